"""A small detector learns the same with either implementation: every loss, every matching, the final parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from actdet_kernels import MatchWeights, match, set_loss
from torch import Tensor, nn

from tests.kernels.device import DEVICE, EACH_KERNEL, POISONED
from tests.kernels.oracles import random_targets

pytestmark = POISONED
LAYERS, SAMPLES, QUERIES, CLASSES, WIDTH, STEPS = 2, 2, 8, 4, 16, 32
RATE = 0.01
COUNTS = [[4, 2], [0, 1], [3, 3], [0, 0]]


class Heads(nn.Module):
    """What remains of a DETR without its decoder: a head for each layer, on features of each query."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.classes = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(LAYERS))
        self.boxes = nn.ModuleList(nn.Linear(WIDTH, 4) for _ in range(LAYERS))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = [layer(features).tanh() for layer in self.hidden]
        logits = [head(value) for head, value in zip(self.classes, hidden, strict=True)]
        boxes = [head(value).sigmoid() for head, value in zip(self.boxes, hidden, strict=True)]
        return torch.stack(logits), torch.stack(boxes)


def train(backend: Any, kind: Any) -> tuple[list[list[float]], list[Any], Tensor]:
    """The four losses and the matching at every step, and the final parameters."""
    torch.manual_seed(5)
    heads = Heads().to(DEVICE)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=RATE)
    features = torch.randn(len(COUNTS), SAMPLES, QUERIES, WIDTH).to(DEVICE)
    batches = [random_targets(counts, 4, CLASSES - 1, seed=3, dtype=torch.float32).to(DEVICE) for counts in COUNTS]
    losses, matchings = [], []
    class_loss: Any = {"softmax": "cross_entropy"}.get(kind, kind)
    for step in range(STEPS):
        targets = batches[step % len(COUNTS)]
        logits, boxes = heads(features[step % len(COUNTS)])
        matched = match(logits, boxes, targets, class_cost=kind, backend=backend)
        loss = set_loss(logits, boxes, targets, matched, weights=MatchWeights(), class_loss=class_loss, backend=backend)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(torch.stack(loss).tolist())
        matchings.append(matched.tolist())
    return losses, matchings, torch.cat([value.detach().flatten() for value in heads.parameters()]).cpu()


@EACH_KERNEL
@pytest.mark.parametrize("kind", ["softmax", pytest.param("focal", marks=pytest.mark.slow)])
def test_a_training_goes_the_same_way_with_the_kernels_as_with_the_reference(kernels: Any, kind: str) -> None:
    """A loss adds up some 64 terms: within 32 units in the last place of float32. A step moves a parameter by at most
    about RATE, in proportion to gradients that agree to some 1e-6: within a thousandth of one step after 32 of them.
    """
    mine, theirs = train(kernels, kind), train("reference", kind)
    assert mine[1] == theirs[1]
    assert len(set(map(str, mine[1]))) > len(COUNTS)  # they change as it learns
    assert mine[0][-4][0] < 0.6 * mine[0][0][0]
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(torch.tensor(mine[0]), torch.tensor(theirs[0]), rtol=32 * eps, atol=0)
    torch.testing.assert_close(mine[2], theirs[2], rtol=0, atol=RATE / 1000)
