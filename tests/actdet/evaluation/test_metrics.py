"""Metrics of predictions made by hand, with every figure computed on paper."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import asdict

import pytest
import torch
from actdet_kernels import Targets
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from actdet.errors import ActdetError
from actdet.evaluation.metrics import (
    ClassMetrics,
    Metrics,
    calibration_error,
    decided_iou,
    format_figure,
    reliability_bins,
    true_labels,
    wilson_interval,
)
from actdet.evaluation.metrics import (
    measure as measure_assessment,
)
from actdet.models.detr.assessment import assess
from actdet.models.detr.config import LossConfig, ModelConfig
from actdet.models.detr.decision import actions
from actdet.models.detr.detector import Predictions
from actdet.models.family import Decision

FIGHT, COLLAPSE, NONE = 0, 1, 2
NAMES = ("fight", "collapse")
Box = tuple[float, float, float, float]

WHOLE: Box = (0.25, 0.25, 0.5, 0.5)

# The left half of WHOLE: IoU 1/2.
HALF: Box = (0.125, 0.25, 0.25, 0.5)

# Half a width beside WHOLE: IoU 1/3.
SHIFTED: Box = (0.5, 0.25, 0.5, 0.5)

# Touches WHOLE in a corner: IoU 0.
CORNER: Box = (0.75, 0.75, 0.5, 0.5)
FAR: Box = (0.95, 0.95, 0.1, 0.1)

# What a query says: the probabilities of fight, collapse and none, and a box.
Said = tuple[tuple[float, float, float], Box]
NOTHING: Said = ((0.02, 0.03, 0.95), FAR)


def predictions(clips: list[list[Said]]) -> Predictions:
    logits = torch.tensor([[query[0] for query in clip] for clip in clips]).log()
    return Predictions(logits[None], torch.tensor([[query[1] for query in clip] for clip in clips])[None])


def measure(predictions: Predictions, targets: Targets, names: tuple[str, ...], loss: LossConfig) -> Metrics:
    assessment = assess(*predictions.final(), targets, loss)
    return measure_assessment(assessment, names, loss.term_weights())


def targets(clips: list[list[tuple[int, Box]]], size: int = 3) -> Targets:
    """Annotations of clips; padding rows hold values that would be noticed if they were used."""
    labels = torch.full((len(clips), size), 10**6)
    boxes = torch.full((len(clips), size, 4), math.nan)
    for i, clip in enumerate(clips):
        for j, (label, box) in enumerate(clip):
            labels[i, j] = label
            boxes[i, j] = torch.tensor(box)
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
    # Found.
    [(FIGHT, WHOLE)],
    # The class is right, the box is not.
    [(FIGHT, WHOLE)],
    # Taken for a fight.
    [(COLLAPSE, WHOLE)],
    # Nothing is there, and nothing is found.
    [],
    # A false alarm.
    [],
    # The second of the two is found.
    [(COLLAPSE, WHOLE), (COLLAPSE, CORNER)],
    # Found, at an IoU of just 1/2.
    [(COLLAPSE, WHOLE)],
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
        "fight": ClassMetrics(precision=2 / 3, recall=1.0, f1=4 / 5, support=2),
        "collapse": ClassMetrics(precision=2 / 3, recall=2 / 3, f1=2 / 3, support=3),
        "no action": ClassMetrics(precision=1.0, recall=1 / 2, f1=2 / 3, support=2),
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
    # The probability of the true class at each matched query, and of none at the others.
    wanted = [0.96, 0.96, 0.04, 0.96, 0.3, 0.95]
    unmatched = [0.95] * 6 + [0.04, 0.95]
    cls = -(sum(map(math.log, wanted)) + 0.1 * sum(map(math.log, unmatched))) / (6 + 0.1 * 8)

    half = 0.125 + 0.25
    shifted = 0.25
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


# Average precision is a mean over the classes that occur and over the thresholds 0.50, 0.55, ..., 0.95.


SURE: Said = ((0.9, 0.05, 0.05), WHOLE)

# Its IoU with WHOLE is 0.62, so it passes at 0.50, 0.55 and 0.60.
WIDE: Box = (0.25 * 0.62, 0.25, 0.5 * 0.62, 0.5)


@pytest.mark.parametrize(
    ("said", "true", "ap", "ap50"),
    [
        ([[SURE, NOTHING]], [[(FIGHT, WHOLE)]], 1.0, 1.0),
        ([[SURE, ((0.1, 0.8, 0.1), CORNER)]], [[(COLLAPSE, CORNER), (FIGHT, WHOLE)]], 1.0, 1.0),
        ([[SURE, NOTHING]], [[(FIGHT, CORNER)]], 0.0, 0.0),
        ([[SURE, NOTHING]], [[(COLLAPSE, WHOLE)]], 0.0, 0.0),
        ([[((0.9, 0.05, 0.05), WIDE), NOTHING]], [[(FIGHT, WHOLE)]], 0.3, 1.0),
        # A false alarm in a clip without an action, more and less confident than the right one.
        ([[SURE], [((0.95, 0.02, 0.03), WHOLE)]], [[(FIGHT, WHOLE)], []], 0.5, 0.5),
        ([[SURE], [((0.85, 0.05, 0.1), WHOLE)]], [[(FIGHT, WHOLE)], []], 1.0, 1.0),
        # One class is found, the other is not.
        ([[SURE], [((0.3, 0.1, 0.6), FAR)]], [[(FIGHT, WHOLE)], [(COLLAPSE, WHOLE)]], 0.5, 0.5),
        # An unlikely query is a detection, too, with the score of its most likely action.
        ([[((0.1, 0.05, 0.85), WHOLE), NOTHING]], [[(FIGHT, WHOLE)]], 1.0, 1.0),
    ],
)
def test_average_precision(said: list[list[Said]], true: list[list[tuple[int, Box]]], ap: float, ap50: float) -> None:
    got = measure(predictions(said), targets(true), NAMES, LossConfig())
    assert got.average_precision == pytest.approx(ap, abs=1e-6)
    assert got.average_precision_50 == pytest.approx(ap50, abs=1e-6)


def test_clips_without_any_action() -> None:
    got = measure(predictions([SAID[3], SAID[4]]), targets([[], []]), NAMES, LossConfig())
    assert (got.video_accuracy, got.detection_accuracy, got.mean_iou, got.located_iou) == (0.5, 0.5, None, None)
    assert (got.average_precision, got.average_precision_50) == (None, None)
    assert (got.majority_class, got.majority_accuracy) == ("no action", 1.0)
    assert (got.loss["l1"], got.loss["giou"]) == (0.0, 0.0)
    cls = -(3 * math.log(0.95) + math.log(0.04)) / 4
    assert got.loss["cls"] == pytest.approx(cls, rel=1e-5)
    assert got.confusion == [[0, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert got.classes["fight"] == ClassMetrics(precision=None, recall=None, f1=None, support=0)
    assert got.classes["collapse"] == ClassMetrics(precision=0.0, recall=None, f1=0.0, support=0)
    assert got.classes["no action"] == ClassMetrics(precision=1.0, recall=0.5, f1=2 / 3, support=2)
    assert got.describe()[2] == "boxes: mean IoU n/a for matched candidates, n/a for found actions; AP n/a"


def test_one_class_and_half_precision_predictions() -> None:
    logits = torch.tensor([[[[4.0, 0.0]], [[0.0, 4.0]]]], dtype=torch.bfloat16, requires_grad=True)
    boxes = torch.tensor([[[WHOLE], [WHOLE]]], dtype=torch.bfloat16)
    got = measure(Predictions(logits, boxes), targets([[(0, WHOLE)], [(0, WHOLE)]]), ("fall",), LossConfig())
    assert (got.video_accuracy, got.mean_iou) == (0.5, 1.0)
    assert list(got.classes) == ["fall", "no action"]
    assert got.confusion == [[1, 1], [0, 0]]


def test_a_true_label_is_the_decided_one_of_those_annotated_else_the_lowest() -> None:
    assert true_labels(targets(TRUE), NONE).tolist() == [0, 0, 1, 2, 2, 1, 1]
    both = [(COLLAPSE, WHOLE), (FIGHT, WHOLE)]
    true = targets([both, both, both, [], [(COLLAPSE, WHOLE)]])
    assert true_labels(true, NONE).tolist() == [0, 0, 0, 2, 1]
    decided = torch.tensor([COLLAPSE, FIGHT, NONE, FIGHT, NONE])
    assert true_labels(true, NONE, decided).tolist() == [1, 0, 0, 2, 1]


def test_decided_iou_is_the_best_of_the_decided_class() -> None:
    true = targets([[(FIGHT, CORNER), (FIGHT, SHIFTED), (COLLAPSE, WHOLE)]] * 3 + [[]])
    label = torch.tensor([FIGHT, COLLAPSE, NONE, FIGHT])
    decision = Decision(label, torch.ones(4), torch.tensor([WHOLE] * 4), likeliest=label)
    assert decided_iou(decision, true).tolist() == pytest.approx([1 / 3, 1.0, 0.0, 0.0])


# Clips with several actions.


BOTH: list[Said] = [((0.02, 0.96, 0.02), CORNER), ((0.9, 0.05, 0.05), WHOLE)]


@pytest.mark.parametrize("order", list(itertools.permutations([(FIGHT, WHOLE), (COLLAPSE, CORNER), (FIGHT, FAR)])))
def test_no_figure_depends_on_the_order_of_annotations(order: tuple[tuple[int, Box], ...]) -> None:
    said = [BOTH, [SURE, NOTHING], [NOTHING, NOTHING], [((0.02, 0.96, 0.02), WHOLE), NOTHING]]
    got = measure(predictions(said[:1]), targets([list(order[:2])]), NAMES, LossConfig())
    assert got.video_accuracy == (1.0 if (COLLAPSE, CORNER) in order[:2] else 0.0)

    said = [[*clip, NOTHING] for clip in said]
    got = measure(predictions(said), targets([list(order)] * 4), NAMES, LossConfig())
    assert got.video_accuracy == 0.75
    assert got.detection_accuracy == 0.5
    assert got.confusion == [[1, 0, 1], [0, 2, 0], [0, 0, 0]]
    assert got.located_iou == pytest.approx((2 + 1 + 0 + 0) / 12)
    assert got.classes == {
        "fight": ClassMetrics(precision=1.0, recall=0.5, f1=2 / 3, support=4),
        "collapse": ClassMetrics(precision=1.0, recall=0.5, f1=2 / 3, support=4),
        "no action": ClassMetrics(precision=0.0, recall=None, f1=0.0, support=0),
    }
    sorted_ones = measure(predictions(said), targets([sorted(order)] * 4), NAMES, LossConfig())
    for name, value in asdict(got).items():
        if name == "loss":
            assert value == pytest.approx(sorted_ones.loss, rel=1e-5)
        elif name == "mean_iou":
            assert value == pytest.approx(sorted_ones.mean_iou, rel=1e-5)
        else:
            assert value == asdict(sorted_ones)[name]


def _random_clips(clips: int, most: int) -> tuple[Predictions, Targets, list[list[int]]]:
    """Random predictions and annotations of clips with up to `most` actions of three classes, and these classes."""
    generator = torch.Generator().manual_seed(most)
    logits = 3 * torch.randn(1, clips, 5, 4, generator=generator)
    logits[..., -1] += 4
    boxes = torch.rand(1, clips, 5, 4, generator=generator)
    counts = torch.randint(0, most + 1, (clips,), generator=generator).tolist()
    labels = [torch.randint(0, 3, (count,), generator=generator).tolist() for count in counts]
    true = targets([[(label, WHOLE) for label in of_clip] for of_clip in labels])
    return Predictions(logits, boxes), true, labels


@pytest.mark.parametrize("most", [1, 3])
def test_figures_of_classes_are_those_of_scikit_learn_over_sets(most: int) -> None:
    names = ("a", "b", "c")
    said, true, labels = _random_clips(80, most)
    got = measure(said, true, names, LossConfig())
    found = actions(*said.final(), no_object_weight=0.1)
    sets = [{action.label for action in of_clip} or {3} for of_clip in found]
    wanted = [set(of_clip) or {3} for of_clip in labels]
    tables = [[[label in members for label in range(4)] for members in each] for each in (wanted, sets)]
    rows = zip(*precision_recall_fscore_support(*tables, zero_division=0), strict=True)  # pyright: ignore[reportArgumentType]
    for found_class, row in zip(got.classes.values(), rows, strict=True):
        assert [found_class.precision, found_class.recall, found_class.f1, found_class.support] == pytest.approx(row)
    hits = [label in members for label, members in zip(got_labels(said), wanted, strict=True)]
    assert got.video_accuracy == sum(hits) / 80
    if most == 1:
        truth = [next(iter(members)) for members in wanted]
        assert got.confusion == confusion_matrix(truth, got_labels(said), labels=range(4)).tolist()


def got_labels(said: Predictions) -> list[int]:
    """The surest answer to each clip, which is the first of its set."""
    return [(of_clip[0].label if of_clip else 3) for of_clip in actions(*said.final(), no_object_weight=0.1)]


# Boxes that were found.


@pytest.mark.parametrize(
    ("said", "true", "located"),
    [
        # Matching gives half a box to a detector that finds nothing.
        ([((0.02, 0.02, 0.96), HALF), NOTHING], [(FIGHT, WHOLE)], 0.0),
        ([((0.96, 0.02, 0.02), HALF), NOTHING], [(FIGHT, WHOLE)], 0.5),
        ([((0.02, 0.96, 0.02), HALF), NOTHING], [(FIGHT, WHOLE)], 0.0),
        # One action finds only one box.
        ([SURE, NOTHING], [(FIGHT, WHOLE), (FIGHT, WHOLE)], 0.5),
        ([SURE, NOTHING], [(FIGHT, WHOLE), (COLLAPSE, WHOLE)], 0.5),
        ([((0.98, 0.01, 0.01), WHOLE), ((0.98, 0.01, 0.01), CORNER)], [(FIGHT, CORNER), (FIGHT, WHOLE)], 1.0),
        # An action where nothing is annotated finds no box.
        ([((0.98, 0.01, 0.01), WHOLE), ((0.98, 0.01, 0.01), CORNER)], [(FIGHT, WHOLE)], 1.0),
        ([((0.9, 0.05, 0.05), (0.5, 0.5, 0.0, 0.0)), NOTHING], [(FIGHT, (0.5, 0.5, 0.0, 0.0))], 0.0),
        ([SURE, NOTHING], [], None),
    ],
)
def test_located_iou_is_of_boxes_that_were_found(
    said: list[Said], true: list[tuple[int, Box]], located: float | None
) -> None:
    got = measure(predictions([said]), targets([true]), NAMES, LossConfig())
    assert got.located_iou == (None if located is None else pytest.approx(located))
    assert (got.mean_iou is None) == (located is None)


# How far a figure can be trusted.


@pytest.mark.parametrize(("hits", "clips"), [(0, 1), (1, 1), (0, 6), (3, 6), (6, 6), (53, 60), (999, 1000)])
def test_intervals_are_wilsons(hits: int, clips: int) -> None:
    interval = binomtest(hits, clips).proportion_ci(method="wilson")
    assert wilson_interval(hits, clips) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_intervals_and_majority_of_the_clips(metrics: Metrics) -> None:
    assert metrics.video_accuracy_interval == wilson_interval(5, 7)
    assert metrics.detection_accuracy_interval == wilson_interval(4, 7)
    assert (metrics.majority_class, metrics.majority_accuracy) == ("collapse", pytest.approx(3 / 7))


def test_the_majority_is_counted_over_all_annotated_classes() -> None:
    both = [(FIGHT, WHOLE), (COLLAPSE, WHOLE), (COLLAPSE, CORNER)]
    got = measure(predictions([[SURE, NOTHING, NOTHING]] * 3), targets([both, both[1:], []]), NAMES, LossConfig())
    assert (got.majority_class, got.majority_accuracy) == ("collapse", pytest.approx(2 / 3))


def test_reliability_is_of_the_likeliest_class_whether_it_passed_the_threshold_or_not() -> None:
    said = [
        # Both are below the threshold, but there is a fight in the first clip.
        [((0.35, 0.05, 0.6), WHOLE)],
        [((0.35, 0.05, 0.6), WHOLE)],
        [((0.02, 0.95, 0.03), WHOLE)],
        # This one is sure of a class that is not annotated.
        [((0.96, 0.02, 0.02), WHOLE)],
    ]
    true = [[(FIGHT, WHOLE)], [], [(FIGHT, WHOLE), (COLLAPSE, FAR)], [(COLLAPSE, WHOLE)]]
    got = measure(predictions(said), targets(true), NAMES, LossConfig(no_object_weight=1.0))
    counts = [part.count for part in got.reliability]
    assert counts == [0, 0, 0, 2, 0, 0, 0, 0, 0, 2]
    assert got.reliability[3].score == pytest.approx(0.35)
    assert got.reliability[3].accuracy == 0.5
    assert got.reliability[9].score == pytest.approx(0.955)
    assert got.reliability[9].accuracy == 0.5
    assert (got.reliability[0].score, got.reliability[0].accuracy) == (None, None)
    assert got.calibration_error == pytest.approx((2 * 0.15 + 2 * 0.455) / 4)


def test_a_perfectly_calibrated_score_has_hardly_an_error() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(20_000, generator=generator)
    right = torch.rand(20_000, generator=generator) < score
    bins = reliability_bins(score, right)
    assert sum(part.count for part in bins) == 20_000
    assert calibration_error(bins) == pytest.approx(0.0, abs=0.02)
    assert calibration_error(reliability_bins(score, ~right)) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("score", "place"), [(0.0, 0), (0.0999, 0), (0.1001, 1), (0.5, 5), (0.9999, 9), (1.0, 9)])
def test_each_score_has_a_bin(score: float, place: int) -> None:
    bins = reliability_bins(torch.tensor([score]), torch.tensor([True]))
    assert [part.count for part in bins] == [int(number == place) for number in range(10)]


def test_figures_of_no_clips_are_none() -> None:
    empty = Targets(torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1, 4), torch.zeros(0, dtype=torch.int32))
    got = measure(Predictions(torch.zeros(1, 0, 2, 3), torch.zeros(1, 0, 2, 4)), empty, NAMES, LossConfig())
    figures = asdict(got)
    for name in ("video_accuracy", "detection_accuracy", "mean_iou", "average_precision", "calibration_error"):
        assert figures[name] is None
    assert (got.video_accuracy_interval, got.majority_class, got.majority_accuracy) == (None, None, None)
    assert got.describe()[0] == "0 clips: video accuracy n/a, detection accuracy at IoU 0.5 n/a"


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, ".3f", "n/a"),
        (0.0, ".3f", "0.000"),
        (0.12345, ".3f", "0.123"),
        (0.5, ".1%", "50.0%"),
        (None, ".1%", "n/a"),
    ],
)
def test_format_figure(value: float | None, form: str, text: str) -> None:
    assert format_figure(value, form) == text
    if form == ".3f":
        assert format_figure(value) == text


def test_what_a_person_reads(metrics: Metrics) -> None:
    clips, majority, boxes, scores, loss = metrics.describe()
    assert clips.startswith(
        "7 clips: video accuracy 0.714 (95 %: 0.359 to 0.918), detection accuracy at IoU 0.5 0.571 ("
    )
    assert majority == "always answering collapse: video accuracy 0.429"
    assert boxes.startswith(f"boxes: mean IoU {metrics.mean_iou:.3f} ")
    assert scores == f"scores: expected calibration error {metrics.calibration_error:.3f}"
    assert loss == f"loss: {metrics.describe_loss()}"


@pytest.mark.parametrize(
    "loss", [LossConfig(), LossConfig(l1_weight=0.0), LossConfig(cls_weight=0.3, l1_weight=7.7, giou_weight=1 / 3)]
)
@pytest.mark.parametrize("most", [1, 3])
def test_the_loss_adds_up_as_it_is_read(loss: LossConfig, most: int) -> None:
    said, true, _ = _random_clips(20, most)
    got = measure(said, true, ("a", "b", "c"), loss)
    total, *terms = (float(number) for number in re.findall(r"(?<![\w.])\d+\.\d{3}(?!\d)", got.describe_loss()))
    assert len(terms) == 3
    assert total == pytest.approx(sum(terms), abs=1e-9)
    assert total == pytest.approx(got.loss["total"], abs=2e-3)
    weighted = sum(got.loss_weights[name] * got.loss[name] for name in ("cls", "l1", "giou"))
    assert weighted == pytest.approx(got.loss["total"], rel=1e-5)
