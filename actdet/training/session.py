"""What all trainings of one command share: the plan, the open loader of the clips, and how the command is continued."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from actdet.data.cache import FrameCache
from actdet.data.clips import ClipIndex
from actdet.data.loader import ClipLoader
from actdet.training.plan import Plan
from actdet.video.disk_cache import DiskCache, cache_folder
from actdet.video.readers import open_reader


@dataclass(frozen=True)
class Session:
    """A plan, and a loader that follows it."""

    plan: Plan
    loader: ClipLoader
    command: str = "train"
    """The command that trains: train, crossval, ablate or demo. Messages advise only options that it has."""
    drawing: Callable[[int, int], None] | None = None
    """Called with (frames drawn, frames in all) while the pictures and videos of a run's report are drawn."""

    @property
    def again(self) -> str:
        """What to run to make an interrupted training go on, in words."""
        return "the same command with --resume" if self.command == "train" else "the same command"

    @property
    def has_options(self) -> bool:
        """Whether the settings are options of the command."""
        return self.command != "demo"


@contextmanager
def open_session(plan: Plan, index: ClipIndex, *, command: str = "train") -> Iterator[Session]:
    """While active, processes decode the clips of `index` as the plan says.

    Args:
        plan: The plan, made for this index.
        index: The data set.
        command: The command that trains, as in `Session`.

    Raises:
        ActdetError: If the memory for the decoded clips cannot be had.
    """
    config = plan.config
    size = plan.clip_size
    disk_cache = None
    if config.disk_cache:
        disk_cache = DiskCache(cache_folder(), int(config.disk_cache * 2**30))

    pictures = (size.image_size, size.image_size)
    with open_reader(plan.reader.value, pictures, workers=config.workers, disk_cache=disk_cache) as reader:
        cache = None
        if plan.cache.value:
            cache = FrameCache(index, size, plan.device, jitter=config.augment.jitter)
        loader = ClipLoader(
            index,
            size,
            reader,
            plan.device,
            dtype=plan.dtype.value,
            cache=cache,
            bad_files=config.bad_files,
            truth=plan.truth,
        )
        yield Session(plan, loader, command)
