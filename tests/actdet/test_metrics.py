"""Metrics of predictions made by hand, every figure computed on paper."""

from __future__ import annotations

import math

import pytest
import torch
from actdet_kernels import Targets

from actdet.config import LossConfig, ModelConfig
from actdet.errors import ActdetError
from actdet.metrics import ClassMetrics, Metrics, decided_iou, measure, true_labels
from actdet.models import Predictions
from actdet.models.decision import Decision

FIGHT, COLLAPSE, NONE = 0, 1, 2
NAMES = ("fight", "collapse")
Box = tuple[float, float, float, float]

WHOLE: Box = (0.25, 0.25, 0.5, 0.5)
HALF: Box = (0.125, 0.25, 0.25, 0.5)  # its left half: IoU 1/2
SHIFTED: Box = (0.5, 0.25, 0.5, 0.5)  # half a width aside: IoU 1/3
CORNER: Box = (0.75, 0.75, 0.5, 0.5)  # touches it: IoU 0
FAR: Box = (0.95, 0.95, 0.1, 0.1)

Said = tuple[tuple[float, float, float], Box]  # probabilities of fight, collapse, none; box
NOTHING: Said = ((0.02, 0.03, 0.95), FAR)


def predictions(clips: list[list[Said]]) -> Predictions:
    logits = torch.tensor([[query[0] for query in clip] for clip in clips]).log()
    return Predictions(logits[None], torch.tensor([[query[1] for query in clip] for clip in clips])[None])


def targets(clips: list[list[tuple[int, Box]]], size: int = 3) -> Targets:
    """The rows past a clip's targets hold what must never be looked at."""
    labels = torch.full((len(clips), size), 10**6)
    boxes = torch.full((len(clips), size, 4), math.nan)
    for i, clip in enumerate(clips):
        for j, (label, box) in enumerate(clip):
            labels[i, j], boxes[i, j] = label, torch.tensor(box)
    return Targets(labels, boxes, torch.tensor([len(clip) for clip in clips], dtype=torch.int32))


SAID: list[list[Said]] = [
    [((0.96, 0.02, 0.02), WHOLE), NOTHING],
    [((0.96, 0.02, 0.02), SHIFTED), NOTHING],
    [NOTHING, ((0.94, 0.04, 0.02), WHOLE)],
    [NOTHING, NOTHING],
    [((0.01, 0.95, 0.04), WHOLE), NOTHING],
    [((0.02, 0.96, 0.02), CORNER), ((0.1, 0.3, 0.6), HALF)],
    [((0.03, 0.95, 0.02), HALF), NOTHING],
]
TRUE: list[list[tuple[int, Box]]] = [
    [(FIGHT, WHOLE)],  # found
    [(FIGHT, WHOLE)],  # right class, box off
    [(COLLAPSE, WHOLE)],  # taken for a fight
    [],  # left alone
    [],  # false alarm
    [(COLLAPSE, WHOLE), (COLLAPSE, CORNER)],  # the second is found
    [(COLLAPSE, WHOLE)],  # found, at an IoU of just 1/2
]


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return measure(predictions(SAID), targets(TRUE), NAMES, LossConfig())


def test_accuracies(metrics: Metrics) -> None:
    assert metrics.clips == 7
    assert metrics.video_accuracy == pytest.approx(5 / 7)
    assert metrics.detection_accuracy == pytest.approx(4 / 7)


def test_confusion_and_figures_of_each_class(metrics: Metrics) -> None:
    assert metrics.confusion == [[2, 0, 0], [1, 2, 0], [0, 1, 1]]
    assert metrics.classes == {
        "fight": ClassMetrics(precision=2 / 3, recall=1.0, f1=pytest.approx(4 / 5), support=2),
        "collapse": ClassMetrics(precision=2 / 3, recall=2 / 3, f1=pytest.approx(2 / 3), support=3),
        "no action": ClassMetrics(precision=1.0, recall=1 / 2, f1=pytest.approx(2 / 3), support=2),
    }
    assert list(metrics.classes) == ["fight", "collapse", "no action"]


def test_classes_may_have_the_names_of_averages() -> None:
    named = measure(predictions(SAID), targets(TRUE), ("accuracy", "macro avg"), LossConfig()).classes
    assert named["accuracy"].support == 2
    assert named["macro avg"].support == 3


@pytest.mark.parametrize("names", [("a", "a"), (), ("fight", "no action")])
def test_class_names_that_cannot_be_told_apart_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ActdetError, match="class_names must"):
        ModelConfig(class_names=names)


def test_mean_iou_is_over_all_annotated_boxes(metrics: Metrics) -> None:
    assert metrics.mean_iou == pytest.approx((1 + 1 / 3 + 1 + (1 / 2 + 1) + 1 / 2) / 6)


def test_loss_terms(metrics: Metrics) -> None:
    wanted = [0.96, 0.96, 0.04, 0.96, 0.3, 0.95]  # probability of the true class at each matched query
    unmatched = [0.95] * 6 + [0.04, 0.95]
    cls = -(sum(map(math.log, wanted)) + 0.1 * sum(map(math.log, unmatched))) / (6 + 0.1 * 8)
    half, shifted = 0.125 + 0.25, 0.25
    l1 = (shifted + half + half) / 6
    giou = (2 / 3 + 1 / 2 + 1 / 2) / 6
    assert metrics.loss == {
        "total": pytest.approx(2 * cls + 5 * l1 + 2 * giou, rel=1e-5),
        "cls": pytest.approx(cls, rel=1e-5),
        "l1": pytest.approx(l1, rel=1e-5),
        "giou": pytest.approx(giou, rel=1e-5),
    }


def test_the_settings_of_the_loss_are_used() -> None:
    loss = LossConfig(cls_weight=1.0, l1_weight=0.0, giou_weight=3.0, no_object_weight=1.0)
    got = measure(predictions(SAID[1:2]), targets(TRUE[1:2]), NAMES, loss).loss
    cls = -(math.log(0.96) + math.log(0.95)) / 2
    assert got["cls"] == pytest.approx(cls, rel=1e-5)
    assert got["total"] == pytest.approx(cls + 3 * 2 / 3, rel=1e-5)


def test_only_the_last_layer_counts(metrics: Metrics) -> None:
    last = predictions(SAID)
    generator = torch.Generator().manual_seed(0)
    noise = [torch.rand(field.shape, generator=generator) for field in last]
    both = Predictions(*(torch.cat(pair) for pair in zip(noise, last, strict=True)))
    assert measure(both, targets(TRUE), NAMES, LossConfig()) == metrics


# Average precision: over the classes that occur, and over the thresholds 0.50, 0.55, ..., 0.95


SURE: Said = ((0.9, 0.05, 0.05), WHOLE)
WIDE: Box = (0.25 * 0.62, 0.25, 0.5 * 0.62, 0.5)  # IoU 0.62 with WHOLE: passes at 0.50, 0.55 and 0.60


@pytest.mark.parametrize(
    ("said", "true", "ap", "ap50"),
    [
        ([[SURE, NOTHING]], [[(FIGHT, WHOLE)]], 1.0, 1.0),
        ([[SURE, ((0.1, 0.8, 0.1), CORNER)]], [[(COLLAPSE, CORNER), (FIGHT, WHOLE)]], 1.0, 1.0),
        ([[SURE, NOTHING]], [[(FIGHT, CORNER)]], 0.0, 0.0),
        ([[SURE, NOTHING]], [[(COLLAPSE, WHOLE)]], 0.0, 0.0),
        ([[((0.9, 0.05, 0.05), WIDE), NOTHING]], [[(FIGHT, WHOLE)]], 0.3, 1.0),
        # a false alarm in a clip without an action, surer and less sure than the find
        ([[SURE], [((0.95, 0.02, 0.03), WHOLE)]], [[(FIGHT, WHOLE)], []], 0.5, 0.5),
        ([[SURE], [((0.85, 0.05, 0.1), WHOLE)]], [[(FIGHT, WHOLE)], []], 1.0, 1.0),
        # one class found, the other not
        ([[SURE], [((0.3, 0.1, 0.6), FAR)]], [[(FIGHT, WHOLE)], [(COLLAPSE, WHOLE)]], 0.5, 0.5),
        # an unlikely query is a detection too, with the score of its likeliest action
        ([[((0.1, 0.05, 0.85), WHOLE), NOTHING]], [[(FIGHT, WHOLE)]], 1.0, 1.0),
    ],
)
def test_average_precision(said: list[list[Said]], true: list[list[tuple[int, Box]]], ap: float, ap50: float) -> None:
    got = measure(predictions(said), targets(true), NAMES, LossConfig())
    assert got.average_precision == pytest.approx(ap, abs=1e-6)
    assert got.average_precision_50 == pytest.approx(ap50, abs=1e-6)


def test_clips_without_any_action() -> None:
    got = measure(predictions([SAID[3], SAID[4]]), targets([[], []]), NAMES, LossConfig())
    assert (got.video_accuracy, got.detection_accuracy, got.mean_iou) == (0.5, 0.5, 0.0)
    assert (got.average_precision, got.average_precision_50) == (0.0, 0.0)
    assert (got.loss["l1"], got.loss["giou"]) == (0.0, 0.0)
    cls = -(3 * math.log(0.95) + math.log(0.04)) / 4
    assert got.loss["cls"] == pytest.approx(cls, rel=1e-5)
    assert got.confusion == [[0, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert got.classes["fight"] == ClassMetrics(0.0, 0.0, 0.0, 0)
    assert got.classes["collapse"] == ClassMetrics(0.0, 0.0, 0.0, 0)


def test_one_class_and_half_precision_predictions() -> None:
    logits = torch.tensor([[[[4.0, 0.0]], [[0.0, 4.0]]]], dtype=torch.bfloat16, requires_grad=True)
    boxes = torch.tensor([[[WHOLE], [WHOLE]]], dtype=torch.bfloat16)
    got = measure(Predictions(logits, boxes), targets([[(0, WHOLE)], [(0, WHOLE)]]), ("fall",), LossConfig())
    assert (got.video_accuracy, got.mean_iou) == (0.5, 1.0)
    assert list(got.classes) == ["fall", "no action"]
    assert got.confusion == [[1, 1], [0, 0]]


def test_true_labels_are_the_first_targets() -> None:
    assert true_labels(targets(TRUE), NONE).tolist() == [0, 0, 1, 2, 2, 1, 1]


def test_decided_iou_is_the_best_of_the_decided_class() -> None:
    true = targets([[(FIGHT, CORNER), (FIGHT, SHIFTED), (COLLAPSE, WHOLE)]] * 3 + [[]])
    decision = Decision(torch.tensor([FIGHT, COLLAPSE, NONE, FIGHT]), torch.ones(4), torch.tensor([WHOLE] * 4))
    assert decided_iou(decision, true).tolist() == pytest.approx([1 / 3, 1.0, 0.0, 0.0])
