"""Tells which barriers of a kernel order anything in a run of it, from a list of all its accesses to memory.

The emulator's race detector keeps the last accesses to each place alone, and is what is tested here. This keeps them
all, compares them in the plainest way, and so tells the detector's omissions from barriers that Triton puts where
nothing needs them: its analysis knows which part of shared memory a step uses, not which thread uses which place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from tests.kernels.ptxsim.machine import Machine, Unit
from tests.kernels.ptxsim.memory import View

Array = np.ndarray

# The columns of an access.
CTA, EPOCH, PLACE, THREAD, KIND = range(5)

# Its kind. Of two additions to one place, none has to come first.
READ, ADDITION, WRITE = range(3)


@dataclass
class Log:
    """What one launch did, in the order of the barriers that a CTA has passed: its epochs."""

    accesses: list[Array] = field(default_factory=list)
    """(n, 5) int64 each."""
    ends: dict[tuple[int, int], int] = field(default_factory=dict)
    """From a CTA and an epoch to the index of the barrier that ended it."""


@contextmanager
def logged() -> Iterator[dict[Machine, Log]]:
    """Context manager: while active, the log of each machine that runs is kept."""
    logs: dict[Machine, Log] = defaultdict(Log)

    def keeping(method: Any, kind: int) -> Any:
        def record(view: View, chosen: Any, places: Array, size: int, *rest: Any) -> None:
            # Shared memory begins anew in each CTA; global memory is told from it by its sign.
            threads: Any = view.threads
            granule = view.space.granule
            sign = 1 if view.space.name == "shared" else -1
            count = max(1, size // granule)
            touched = sign * (1 + (places // granule)[:, None] + np.arange(count)).ravel()
            epoch = threads.epoch[chosen].repeat(count)
            thread = threads.thread[chosen].repeat(count)
            columns = [epoch >> 32, epoch & (2**32 - 1), touched, thread, np.full(len(touched), kind)]
            logs[threads.machine].accesses.append(np.stack(columns, axis=1))
            method(view, chosen, places, size, *rest)

        return record

    barrier = Unit.barrier

    def keep_barrier(unit: Unit, mask: Array | None, site: int) -> None:
        epochs = np.unique(unit.epoch if mask is None else unit.epoch[mask])
        logs[unit.machine].ends.update({(int(epoch >> 32), int(epoch & (2**32 - 1))): site for epoch in epochs})
        barrier(unit, mask, site)

    with ExitStack() as stack:
        for name, kind in (("record_read", READ), ("record_write", WRITE), ("record_addition", ADDITION)):
            stack.enter_context(mock.patch.object(View, name, keeping(getattr(View, name), kind)))
        stack.enter_context(mock.patch.object(Unit, "barrier", keep_barrier))
        yield logs


def needed_barriers(log: Log) -> set[int]:
    """The indices of the barriers without which accesses of different warps to one place, one a write, would meet."""
    if not log.accesses:
        return set()
    accesses = np.unique(np.concatenate(log.accesses), axis=0)
    return {site for site in set(log.ends.values()) if _is_needed(accesses, log.ends, site)}


def _is_needed(accesses: Array, ends: dict[tuple[int, int], int], site: int) -> bool:
    """Whether accesses of epochs that barriers at `site` alone separate are in each other's way."""
    for cta in np.unique(accesses[:, CTA]).tolist():
        own = accesses[accesses[:, CTA] == cta]
        last = int(own[:, EPOCH].max())
        # Epochs between which there are only barriers at this site become one stretch.
        stays = [ends[cta, epoch] != site for epoch in range(last)]
        stretch = np.concatenate([[0], np.cumsum(stays)])[own[:, EPOCH]]

        order = np.lexsort((own[:, EPOCH], own[:, PLACE], stretch))
        keys = np.stack([stretch, own[:, PLACE]], axis=1)[order]
        borders = 1 + np.flatnonzero((keys[1:] != keys[:-1]).any(1))
        for group in np.split(own[order], borders):
            if group[0, EPOCH] != group[-1, EPOCH] and _meet(group):
                return True
    return False


def _meet(group: Array) -> bool:
    """Whether two accesses to one place, (n, 5), are of different warps and epochs, and not both reads or additions."""
    warp = group[:, THREAD] // 32
    kind = group[:, KIND]
    conflict = (kind[:, None] == WRITE) | (kind[:, None] != kind)
    return bool((conflict & (warp[:, None] != warp) & (group[:, None, EPOCH] != group[:, EPOCH])).any())
