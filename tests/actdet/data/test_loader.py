"""An epoch shows every clip once, with its own frames and targets: cached or not, shared or not, among bad files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actdet.data import loader as loading
from actdet.data.annotations import Annotation
from actdet.data.augment import Batch
from actdet.data.cache import FrameCache
from actdet.data.clips import Clip, ClipIndex
from actdet.data.config import NO_AUGMENTATION, AugmentConfig, ClipSize
from actdet.data.loader import ClipLoader
from actdet.data.sampler import balanced_batches
from actdet.data.truth import TruthKind, TubeTargets
from actdet.detections import Tube
from actdet.distributed import Processes
from actdet.errors import ActdetError, DataError
from actdet.video.decoding import ClipRequest
from actdet.video.info import VideoInfo

CLIP_SIZE = ClipSize(frames=8, image_size=32)
CPU = torch.device("cpu")
JITTER = AugmentConfig(flip=0.0, crop=0.0, color=0.0, jitter=True)
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def index_of(lengths: Iterable[int]) -> ClipIndex:
    """Clips of these lengths; every second one has an action, whose box is as wide as the clip's number says."""
    clips = []
    for number, length in enumerate(lengths):
        pts = np.arange(length, dtype=np.int64)
        video = VideoInfo(f"{number}.mp4", 1000, 100, 0, Fraction(1, 25), pts, length, "h264", True, 0)
        box = Annotation(number % 2, (0.0, 10.0, number + 1.0, 20.0))
        clips.append(Clip(str(number), video, (box,) if number % 2 == 0 else ()))
    return ClipIndex(Path(), ("fight", "collapse"), tuple(clips))


class Reader:
    """Gives frames whose red is the number of the clip and whose green that of the frame; for `bad` clips an error."""

    name = "fake"

    def __init__(self, bad: Iterable[int] = ()) -> None:
        self.bad = set(bad)
        self.asked = Counter[int]()

    def read(self, requests: Iterable[ClipRequest], prefetch: int = 8) -> Iterator[torch.Tensor | DataError]:
        for video, indices in list(requests):
            clip = int(video.path.removesuffix(".mp4"))
            self.asked[clip] += 1
            frames = np.full((len(indices), 32, 32, 3), 7, np.uint8)
            frames[..., 0] = clip
            frames[..., 1] = indices[:, None, None]
            yield DataError(video.path, "is damaged") if clip in self.bad else torch.from_numpy(frames)

    def close(self) -> None: ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: object) -> None: ...


def make(
    index: ClipIndex,
    reader: Reader,
    *,
    kept: bool,
    jitter: bool = True,
    bad_files: str = "stop",
    truth: TruthKind = "clip_box",
) -> ClipLoader:
    cache = FrameCache(index, CLIP_SIZE, CPU, jitter=jitter) if kept else None
    return ClipLoader(index, CLIP_SIZE, reader, CPU, cache=cache, bad_files=bad_files, truth=truth)


def read_pixels(batch: Batch) -> tuple[list[int], np.ndarray]:
    """Read off the pixels of a batch which clips it shows, and which of their frames (B, T)."""
    pixels = batch.clips.permute(0, 2, 3, 4, 1).double().numpy() * STD + MEAN
    values = np.round(pixels * 255).astype(int)
    assert (values == values[:, :, :1, :1]).all()
    assert (values[..., 2] == 7).all()
    return values[:, 0, 0, 0, 0].tolist(), values[:, :, 0, 0, 1]


def shown(batch: Batch) -> tuple[list[int], np.ndarray]:
    """The same, after checking the targets of the clips."""
    clips, frames = read_pixels(batch)
    for place, clip in enumerate(clips):
        count = int(batch.targets.counts[place])
        assert count == (clip % 2 == 0)
        if count:
            assert float(batch.targets.boxes[place, 0, 2]) == pytest.approx((clip + 1) / 1000)
    return clips, frames


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=24)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 9), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 3))
def test_no_clip_is_lost_or_repeated(
    frames: list[int], size: int, count: int, kept: bool, jitter: bool, skip: int
) -> None:
    """For any number of clips, batch size and number of processes, from any batch on, in two epochs."""
    index = index_of(frames)
    augmentation = JITTER if jitter else NO_AUGMENTATION
    readers = [Reader() for _ in range(count)]
    loaders = [make(index, reader, kept=kept, jitter=jitter) for reader in readers]
    ids = list(range(len(frames)))[::-1]
    whole = make(index, Reader(), kept=False, jitter=jitter)
    for epoch in (0, 1):
        expected = balanced_batches(np.array([clip % 2 == 0 for clip in ids]), size, seed=5, epoch=epoch)[skip:]
        options: Any = {"seed": 5, "epoch": epoch, "skip": skip}
        parts = [
            list(loader.train_batches(ids, size, augmentation, **options, processes=Processes(rank, count)))
            for rank, loader in enumerate(loaders)
            if min(map(len, expected), default=count) >= count
        ]
        batches = whole.train_batches(ids, size, augmentation, **options)
        for number, (batch, together) in enumerate(zip(expected, batches, strict=True)):
            clips, indices = shown(together)
            assert clips == [ids[place] for place in batch]
            for clip, one in zip(clips, indices, strict=True):
                assert (np.diff(one) >= 0).all()
                assert 0 <= one[0] <= one[-1] < frames[clip]
            for rank, part in enumerate(parts):
                mine, seen = shown(part[number])
                assert mine == clips[rank::count]
                np.testing.assert_array_equal(seen, indices[rank::count])
        if kept and epoch:
            for reader in readers:
                assert max(reader.asked.values(), default=1) == 1


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 9), st.booleans(), st.booleans())
def test_an_evaluation_takes_every_clip_once_in_order(frames: list[int], size: int, kept: bool, jitter: bool) -> None:
    loader = make(index_of(frames), Reader(), kept=kept, jitter=jitter)
    ids = list(range(len(frames)))[::-1]
    for _ in range(2):
        clips, indices = zip(*map(shown, loader.eval_batches(ids, size)), strict=True)
        assert list(chain.from_iterable(clips)) == ids
        for clip, one in zip(ids, np.concatenate(indices), strict=True):
            np.testing.assert_array_equal(one, [(2 * k + 1) * frames[clip] // 16 for k in range(8)])


def test_cached_clips_give_the_same_batches_as_decoding_again() -> None:
    """Every kind of change is on, also that of colors, for which the cache keeps the means of the frames."""
    index = index_of([9, 30, 1, 12, 40])
    augmentation = AugmentConfig(flip=0.5, crop=0.3, color=0.5, mixup=0.3)
    loaders = [make(index, Reader(), kept=kept) for kept in (False, True)]
    for epoch in range(3):
        batches = [loader.train_batches(range(5), 2, augmentation, seed=0, epoch=epoch) for loader in loaders]
        for one, other in zip(*batches, strict=True):
            torch.testing.assert_close(one.clips, other.clips, rtol=0, atol=1e-5)
            for field, same in zip(one.targets, other.targets, strict=True):
                torch.testing.assert_close(field, same)


# Files that cannot be read


@pytest.mark.parametrize("kept", [False, True])
def test_a_bad_file_stops_the_epoch(kept: bool) -> None:
    loader = make(index_of([8] * 6), Reader([3]), kept=kept)
    with pytest.raises(DataError, match=r"3\.mp4: is damaged"):
        list(loader.train_batches(range(6), 2, JITTER, seed=0, epoch=0))
    with pytest.raises(DataError, match=r"3\.mp4: is damaged"):
        list(loader.eval_batches(range(6), 2))
    assert loader.left_out == {}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths, st.integers(1, 9), st.booleans(), st.integers(0, 2**24 - 1))
def test_bad_files_are_left_out_and_others_take_their_places(
    monkeypatch: pytest.MonkeyPatch, frames: list[int], size: int, kept: bool, chosen: int
) -> None:
    bad = {clip for clip in range(len(frames)) if chosen >> clip & 1}
    reader = Reader(bad)

    def decode(video: VideoInfo, indices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        (answer,) = reader.read([ClipRequest(video, indices)])
        if isinstance(answer, DataError):
            raise answer
        return answer.numpy()

    monkeypatch.setattr(loading, "decode_frames", decode)
    loader = make(index_of(frames), reader, kept=kept, bad_files="skip")
    ids = list(range(len(frames)))
    for epoch in (0, 1):
        planned = balanced_batches(np.array(ids) % 2 == 0, size, seed=0, epoch=epoch)
        batches = loader.train_batches(ids, size, JITTER, seed=0, epoch=epoch)
        if bad.issuperset(ids):
            with pytest.raises(ActdetError, match=rf"none of the {len(ids)} clips can be read: 0\.mp4: is damaged"):
                list(batches)
            return
        for plan, batch in zip(planned, batches, strict=True):
            clips, _ = shown(batch)
            assert len(clips) == len(plan)
            assert all(clip == wanted for clip, wanted in zip(clips, plan.tolist(), strict=True) if wanted not in bad)
            assert bad.isdisjoint(clips)
            # Without a good clip in its batch, the first good one of all fills it.
            if bad.issuperset(plan.tolist()):
                assert set(clips) == {min(set(ids) - bad)}
        assert set(loader.left_out) == bad
    assert all(reader.asked[clip] <= 2 for clip in bad)
    seen = [clip for batch in loader.eval_batches(ids, size) for clip in shown(batch)[0]]
    assert seen == [clip for clip in ids if clip not in bad]


def test_a_clip_that_is_left_out_while_it_is_decoded_takes_no_place() -> None:
    """Its own frames decode, but meanwhile it is found damaged at other frames."""
    index = index_of([20] * 6)

    class Late(Reader):
        def read(self, requests: Iterable[ClipRequest], prefetch: int = 8) -> Iterator[torch.Tensor | DataError]:
            for answer in super().read(requests, prefetch):
                loader.left_out[2] = DataError("2.mp4", "is damaged")
                yield answer

    loader = make(index, Late(), kept=False, bad_files="skip")
    (batch,) = loader.train_batches(range(6), 6, JITTER, seed=5, epoch=0)
    clips, _ = shown(batch)
    assert len(clips) == 6
    assert 2 not in clips


def test_clips_come_in_the_type_that_the_network_takes() -> None:
    index = index_of([8, 8, 8])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        loader = ClipLoader(index, CLIP_SIZE, Reader(), CPU, dtype=dtype)
        for augmentation in (AugmentConfig(), AugmentConfig(mixup=0.4)):
            (batch,) = loader.train_batches(range(3), 3, augmentation, seed=0, epoch=0)
            assert batch.clips.dtype == dtype
            assert batch.clips.is_contiguous(memory_format=torch.channels_last_3d)
        (batch,) = loader.eval_batches(range(3), 3)
        assert batch.clips.dtype == dtype


@pytest.mark.parametrize("half_pixels", [False, True])
def test_pictures_of_half_the_pixels_show_the_same_clips(half_pixels: bool) -> None:
    loader = make(index_of([8, 12]), Reader(), kept=False)
    (batch,) = loader.train_batches(range(2), 2, NO_AUGMENTATION, seed=0, epoch=0, half_pixels=half_pixels)
    side = 23 if half_pixels else 32
    assert batch.clips.shape == (2, 3, 8, side, side)
    clips, _ = shown(batch)
    assert sorted(clips) == [0, 1]


# Boxes in every frame


def index_of_tubes(lengths: Iterable[int]) -> ClipIndex:
    """As `index_of`; an action is in all frames but every third one, and its box says which clip and frame it is of."""
    index = index_of(lengths)
    clips = []
    for number, clip in enumerate(index.clips):
        frames = np.array([frame for frame in clip.frames if frame % 3 < 2], np.int64)
        boxes = np.array([[frame, 10, frame + number + 1, 20] for frame in frames.tolist()], np.float32)
        clips.append(replace(clip, table=(Tube(number % 2, frames, boxes),) if number % 2 == 0 else ()))
    return replace(index, clips=tuple(clips))


def shown_tubes(batch: Batch) -> tuple[list[int], np.ndarray]:
    """Read off the pixels which clips and frames a batch shows, and check that its boxes are of these."""
    clips, frames = read_pixels(batch)
    targets = batch.targets
    assert isinstance(targets, TubeTargets)
    assert not targets.is_sparse
    seen = [clip % 2 == 0 and bool((of_clip % 3 < 2).any()) for clip, of_clip in zip(clips, frames, strict=True)]
    assert targets.counts.tolist() == list(map(int, seen))
    for place, clip in enumerate(clips):
        if not seen[place]:
            continue
        assert targets.labels[place, 0] == 0
        assert targets.visible[place, 0].tolist() == [frame % 3 < 2 for frame in frames[place].tolist()]
        boxes = targets.boxes[place, 0].tolist()
        for frame, box, visible in zip(frames[place].tolist(), boxes, targets.visible[place, 0].tolist(), strict=True):
            if visible:
                assert box == pytest.approx([(frame + (clip + 1) / 2) / 1000, 0.15, (clip + 1) / 1000, 0.1])
    return clips, frames


@settings(max_examples=30, deadline=None)
@given(lengths, st.integers(1, 9), st.booleans(), st.booleans())
def test_boxes_are_those_of_the_frames_shown(frames: list[int], size: int, kept: bool, jitter: bool) -> None:
    """In training, with jitter and without, and in an evaluation, which shows the middles of eighths."""
    ids = list(range(len(frames)))
    loader = make(index_of_tubes(frames), Reader(), kept=kept, jitter=jitter, truth="tubelet")
    augmentation = JITTER if jitter else NO_AUGMENTATION
    for epoch in (0, 1):
        batches = list(map(shown_tubes, loader.train_batches(ids, size, augmentation, seed=1, epoch=epoch)))
        assert sorted(chain.from_iterable(clips for clips, _ in batches)) == ids
    for clips, indices in map(shown_tubes, loader.eval_batches(ids, size)):
        for clip, one in zip(clips, indices, strict=True):
            np.testing.assert_array_equal(one, [(2 * k + 1) * frames[clip] // 16 for k in range(8)])


def test_jitter_shows_other_frames_with_their_own_boxes() -> None:
    """Of a long clip, so that two epochs hardly ever show the same frames."""
    loader = make(index_of_tubes([200, 200]), Reader(), kept=False, truth="tubelet")
    batches = [next(loader.train_batches([0], 1, JITTER, seed=0, epoch=epoch)) for epoch in range(4)]
    assert len({tuple(shown_tubes(batch)[1].ravel()) for batch in batches}) == 4
    assert len({tuple(batch.targets.boxes.ravel().tolist()) for batch in batches}) == 4


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kept", [False, True])
def test_processes_share_the_boxes_with_the_frames(count: int, kept: bool) -> None:
    index = index_of_tubes([9, 30, 1, 12, 40, 5, 22])
    options: Any = {"seed": 2, "epoch": 0}
    (whole,) = make(index, Reader(), kept=kept, truth="tubelet").train_batches(range(7), 7, JITTER, **options)
    for rank in range(count):
        loader = make(index, Reader(), kept=kept, truth="tubelet")
        (part,) = loader.train_batches(range(7), 7, JITTER, **options, processes=Processes(rank, count))
        shown_tubes(part)
        for field, of_whole in zip(part.targets, whole.targets, strict=True):
            assert torch.equal(field, of_whole[rank::count])


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("bad", [{1}, {0, 3, 4}, {0, 1, 2, 3, 5}])
def test_the_clip_in_the_place_of_a_bad_one_brings_its_boxes(
    monkeypatch: pytest.MonkeyPatch, bad: set[int], kept: bool
) -> None:
    """From the same batch, or from another one if all of a batch are bad."""
    reader = Reader(bad)

    def decode(video: VideoInfo, indices: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        (answer,) = reader.read([ClipRequest(video, indices)])
        if isinstance(answer, DataError):
            raise answer
        return answer

    monkeypatch.setattr(loading, "decode_frames", decode)
    loader = make(index_of_tubes([30, 40, 25, 12, 33, 7]), reader, kept=kept, bad_files="skip", truth="tubelet")
    for epoch in range(3):
        for batch in loader.train_batches(range(6), 2, JITTER, seed=3, epoch=epoch):
            clips, _ = shown_tubes(batch)
            assert len(clips) == 2
            assert bad.isdisjoint(clips)
    seen = [clip for batch in loader.eval_batches(range(6), 4) for clip in shown_tubes(batch)[0]]
    assert seen == [clip for clip in range(6) if clip not in bad]
