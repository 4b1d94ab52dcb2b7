"""A stream says of its last frames what a network says that computes everything anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from actdet.models.stma.config import StmaConfig
from actdet.models.stma.detector import StmaDetector
from actdet.models.stma.maps import SnippetMaps
from actdet.models.stma.stream import SnippetStream

CONFIG = StmaConfig(image_size=32, frames=8, snippet=3, snippets="last", key="last")


def network(config: StmaConfig = CONFIG) -> StmaDetector:
    torch.manual_seed(0)
    return StmaDetector(config).eval()


def video(frames: int) -> Tensor:
    return torch.randn(3, frames, 32, 32, generator=torch.Generator().manual_seed(1))


def last_frames(given: Tensor, end: int, count: int) -> Tensor:
    """The frames before `end`; the first one stands for those before it."""
    return given[:, [max(number, 0) for number in range(end - count, end)]]


def answers(detector: StmaDetector, frames: Tensor, clip_every: int = 1) -> list[SnippetMaps]:
    stream = SnippetStream(detector, clip_every=clip_every)
    return [stream.push(frame) for frame in frames.unbind(1)]


@pytest.mark.parametrize("aggregation", [True, False])
@torch.no_grad()
def test_what_is_kept_changes_no_bit(aggregation: bool) -> None:
    detector = network(replace(CONFIG, aggregation=aggregation))
    given = video(20)
    running = answers(detector, given)
    for end in (1, 2, 7, 8, 9, 20):
        clip = last_frames(given, end, 8)
        # One that has seen nothing else computes all of it, frame by frame.
        anew = answers(detector, clip)[-1]
        for one, other in zip(running[end - 1], anew, strict=True):
            assert torch.equal(one, other)
        # The detector of clips computes all frames at once, in which sums may be added up in another order.
        for one, other in zip(running[end - 1], detector(clip[None]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_each_frame_is_seen_once_by_itself_and_the_clip_every_so_often() -> None:
    detector = network()
    seen: dict[str, list[tuple[int, ...]]] = {"pictures": [], "clips": []}

    def note(name: str) -> None:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[name].append(tuple(arguments[0].shape))

        detector.backbone.get_submodule(name).register_forward_pre_hook(hook)

    note("pictures")
    note("clips")
    answers(detector, video(10), clip_every=4)
    assert seen["pictures"] == [(1, 3, 32, 32)] * 10
    assert seen["clips"] == [(1, 3, 8, 32, 32)] * 3


@torch.no_grad()
def test_between_two_looks_at_the_clip_the_last_one_counts() -> None:
    detector = network()
    given = video(12)
    rare = answers(detector, given, clip_every=4)
    often = answers(detector, given)
    for number, (one, other) in enumerate(zip(rare, often, strict=True)):
        assert torch.equal(one.centers, other.centers)
        assert torch.equal(one.sizes, other.sizes)
        assert torch.equal(one.classes, other.classes) == (number % 4 == 0)


def test_an_interval_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="clip_every must be at least 1, got 0"):
        SnippetStream(network(), clip_every=0)
