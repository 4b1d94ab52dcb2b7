"""Which frames a snippet of STMA learns from, and shares of a batch. Tests of the kernels say what is computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from actdet_kernels import CenterWeights, center_loss
from torch import Tensor

from actdet.data.truth import TubeTargets
from actdet.models.stma.config import StmaConfig, StmaLoss
from actdet.models.stma.losses import LOSSES, snippet_targets, stma_losses
from actdet.models.stma.maps import SnippetMaps, snippet_starts
from tests.actdet.models.detr.test_losses import Meeting
from tests.actdet.models.stma.scenes import actors, perfect_maps

CONFIG = StmaConfig(image_size=64, frames=8, snippet=3, class_names=("a", "b", "c"))
LOSS = StmaLoss(cls_weight=0.3, center_weight=1.5, movement_weight=0.7, size_weight=0.4)


def noisy_maps(config: StmaConfig, targets: TubeTargets, seed: int = 0) -> SnippetMaps:
    """Maps near the truth, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    maps = perfect_maps(config, targets)
    return SnippetMaps(
        *((each.clamp(-3, 3) + 0.3 * torch.randn(each.shape, generator=generator)).requires_grad_() for each in maps)
    )


def test_a_snippet_has_the_actors_of_its_frames() -> None:
    targets = actors(CONFIG, (2, 0, 1), hidden=0.3)
    got = snippet_targets(targets, CONFIG)
    starts = snippet_starts(CONFIG)
    assert got.labels.shape == (3 * len(starts), 2)
    for clip in range(3):
        for number, start in enumerate(starts):
            sample = clip * len(starts) + number
            assert torch.equal(got.labels[sample], targets.labels[clip])
            assert got.counts[sample] == targets.counts[clip]
            for frame in range(3):
                assert torch.equal(got.boxes[sample, :, frame], targets.boxes[clip, :, start + frame])
                assert torch.equal(got.visible[sample, :, frame], targets.visible[clip, :, start + frame])


def test_the_total_is_the_weighted_sum_and_options_reach_the_kernels() -> None:
    targets = actors(CONFIG, (2, 1), hidden=0.2)
    # Large enough for radii of several pixels.
    config = replace(CONFIG, image_size=192, key="last", moving_sizes=False)
    loss = replace(LOSS, center_radius="corrected", movement_area="circle", size_area="center")
    maps = noisy_maps(config, targets)
    got = stma_losses(maps, targets, config, loss)
    assert tuple(got) == LOSSES
    total = sum(weight * got[name] for name, weight in loss.term_weights().items())
    torch.testing.assert_close(got["total"], total)

    wanted = center_loss(
        maps.as_samples(),
        snippet_targets(targets, config),
        weights=CenterWeights(0.3, 1.5, 0.7, 0.4),
        key=2,
        radius="corrected",
        movement_area="circle",
        size_area="center",
        moved=False,
        backend="reference",
    )
    torch.testing.assert_close(got["total"], wanted.total)
    for name, value in zip(LOSSES[1:], wanted[1:5], strict=True):
        torch.testing.assert_close(got[name], value)
    for option in ({"center_radius": "published"}, {"movement_area": "ellipse"}, {"size_area": "ellipse"}):
        assert not torch.equal(stma_losses(maps, targets, config, replace(loss, **option))["total"], got["total"])


def test_nothing_is_learned_of_key_frames_that_nobody_has_annotated() -> None:
    targets = actors(CONFIG, (2, 1), sparse=True)
    maps = noisy_maps(CONFIG, targets)
    stma_losses(maps, targets, CONFIG, LOSS)["total"].backward()
    known = torch.stack([targets.annotated[:, start + 1] for start in snippet_starts(CONFIG)], 1)
    assert known.any()
    assert not known.all()
    for gradient in (maps.centers.grad, maps.movement.grad, maps.sizes.grad, maps.classes.grad):
        assert gradient is not None
        assert not gradient[~known].any()
        assert gradient[known].any()
    # No frame but annotated ones teaches sides.
    assert maps.sizes.grad is not None
    for number, start in enumerate(snippet_starts(CONFIG)):
        for frame in range(3):
            unknown = ~targets.annotated[:, start + frame]
            assert not maps.sizes.grad[unknown, number, frame].any()


@pytest.mark.parametrize("counts", [(2, 0, 1, 3), (0, 0, 0, 2), (0, 0, 0, 0)])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_mean_over_the_processes_is_the_loss_of_the_whole_batch(counts: tuple[int, ...], sparse: bool) -> None:
    """Of losses and gradients, whatever the shares hold."""
    targets = actors(CONFIG, counts, hidden=0.2, sparse=sparse)
    maps = noisy_maps(CONFIG, targets)
    whole = stma_losses(maps, targets, CONFIG, LOSS)
    wanted = torch.autograd.grad(whole["total"], maps, allow_unused=True)

    def of_share(rank: int, noted: list[list[Tensor]], first: int) -> dict[str, Tensor]:
        clips = slice(rank, None, 2)
        own = SnippetMaps(*(each[clips] for each in maps))
        theirs = TubeTargets(*(value[clips] for value in targets))
        return stma_losses(own, theirs, CONFIG, LOSS, processes=Meeting(rank, 2, noted, [first]))

    noted: list[list[Tensor]] = [[], []]
    for rank in (0, 1):
        of_share(rank, noted, -1)
    shares = [of_share(rank, noted, 0) for rank in (0, 1)]
    for loss, value in whole.items():
        torch.testing.assert_close((shares[0][loss] + shares[1][loss]) / 2, value, rtol=1e-5, atol=1e-6)
    mean = (shares[0]["total"] + shares[1]["total"]) / 2
    for gradient, expected in zip(torch.autograd.grad(mean, maps, allow_unused=True), wanted, strict=True):
        if expected is not None:
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
