"""`actdet score`: what detections in a file are worth by the protocols of the field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from actdet.bounds import check_bounds
from actdet.cli.progress import ProgressBar
from actdet.cli.terminal import print_line, print_lines
from actdet.errors import ActdetError
from actdet.files import check_own, read_own_json, remove_abandoned, write_json

# What computes figures is imported only by the functions that use it.
if TYPE_CHECKING:
    from actdet.evaluation.average_precision import ClassPrecision
    from actdet.evaluation.scoring import Figure

ProtocolName = Literal["act", "moc", "yowo", "ava", "ava-ignore-empty"]
FramesName = Literal["all", "annotated"]

# The parts of the error split, as they are printed.
_PARTS = ("right", "localization", "classification", "time", "other", "missed")


def score(
    detections: Positional[Path],
    truth: Positional[Path],
    /,
    protocol: ProtocolName,
    frames: FramesName | None = None,
    split: int | None = None,
    label_map: Path | None = None,
    exclusions: Path | None = None,
    json: Path | None = None,
) -> None:
    """Measure detections that any program wrote by a protocol of the field: act, moc, yowo or ava.

    For instance: actdet score found.jsonl UCF101v2-GT.pkl --protocol moc
    Figures of different protocols cannot be compared; docs/metrics.md says what each computes.

    Args:
        detections: JSON lines, a folder of MOC's pickles, or AVA's csv of results.
        truth: JSON lines, an ACT pickle such as UCF101v2-GT.pkl, or AVA's csv of truth.
        protocol: By which rules: act and moc (Kalogeiton et al.; Li et al.), yowo (also YOWOv2 and v3), ava (official),
            ava-ignore-empty (mmaction2).
        frames: In which frames detections count for frame-mAP: all, or only those annotated. By default both variants
            are printed. Not for AVA.
        split: Which split of an ACT pickle to use, from 1. By default the first.
        label_map: AVA's label map (pbtxt), whose classes count. By default all classes that have truth.
        exclusions: AVA's csv of key frames that do not count.
        json: File for the figures as JSON, with those of each class.
    """
    check_bounds({"split": split}, {"split": "[1, 1000]"})
    if json is not None:
        check_own([json], _is_score_json)

    if protocol in ("ava", "ava-ignore-empty"):
        _refuse({"--frames": frames, "--split": split}, "AVA")
        names, figures, notes = _score_ava(detections, truth, protocol, label_map, exclusions)
    else:
        _refuse({"--label-map": label_map, "--exclusions": exclusions}, f"the protocol {protocol}")
        names, figures, notes = _score_tubelets(detections, truth, protocol, frames, split)

    print_lines(f"note: {note}" for note in notes)
    print_lines(_describe_figures(protocol, figures))
    print_lines(_describe_classes(protocol, names, figures))
    print_lines(_describe_errors(protocol, figures))
    if json is not None:
        facts = {"detections": str(detections), "truth": str(truth), "notes": notes}
        remove_abandoned(json.parent)
        write_json(json, {"protocol": protocol, **facts, "figures": [_facts(figure, names) for figure in figures]})
        print_line(f"figures: {json}")


def _refuse(options: dict[str, object], what: str) -> None:
    """Raises ActdetError for the first option that is given."""
    for option, value in options.items():
        if value is not None:
            raise ActdetError(f"{option} means nothing for {what}: leave it out")


def _score_tubelets(
    detections: Path, truth_path: Path, name: str, frames: FramesName | None, split: int | None
) -> tuple[tuple[str, ...], list[Figure], list[str]]:
    """Returns the names of the classes, the figures by ACT's, MOC's or YOWO's protocol, and notes."""
    from actdet.evaluation.files import read_detections, read_truth
    from actdet.evaluation.protocols import PROTOCOLS
    from actdet.evaluation.scoring import score_found

    protocol = PROTOCOLS[name]
    truth = read_truth(truth_path, split)
    found = read_detections(detections, truth, truth_path)
    variants: list[FramesName] = [frames] if frames else ["all", "annotated"]
    # The protocol's own variant comes first.
    variants.sort(key=lambda variant: variant != protocol.frames)
    with ProgressBar(desc="score", unit="video", leave=False) as bar:
        figures = score_found(truth, found, protocol, variants, progress=bar.show)

    notes = list(found.notes)
    if found.tubes is not None:
        notes.append("the detections are tubes, so there is no frame-mAP")
    if truth.tubes is None:
        notes.append("the truth has boxes and no tubes, so there is no video-mAP")
    if not figures:
        raise ActdetError(f"{detections} has tubes and {truth_path} has none: there is nothing to compare")
    return truth.class_names, figures, notes


def _score_ava(
    detections: Path, truth: Path, name: str, label_map: Path | None, exclusions: Path | None
) -> tuple[tuple[str, ...], list[Figure], list[str]]:
    """Returns the names of the classes, the figure by a protocol of AVA, and notes."""
    from actdet.evaluation.ava import IOU, ava_precision
    from actdet.evaluation.ava_files import read_ava
    from actdet.evaluation.scoring import Figure

    data = read_ava(detections, truth, label_map, exclusions)
    ignore_empty = name == "ava-ignore-empty"
    result = ava_precision(data.truth, data.detections, len(data.class_names), ignore_empty=ignore_empty)

    notes = list(data.notes)
    if label_map is None:
        notes.append("without --label-map every class that has truth counts; AVA's own figures are over 60 of 80")
    if result.dropped:
        notes.append(f"{result.dropped} detections without an area were dropped")
    kind = "annotated key frames only" if ignore_empty else "all key frames"
    variant = f"{kind}, best only, envelope"
    return data.class_names, [Figure("frame-mAP", f"{IOU:g}", variant, result.precision, result.errors)], notes


def _describe_figures(protocol: str, figures: Sequence[Figure]) -> list[str]:
    lines = [f"mean average precision in %, protocol {protocol}"]
    for figure in figures:
        value = _percent(figure.precision.mean)
        lines.append(f"{figure.name + ' [' + protocol + ']':30}{'@' + figure.iou:<12}{value:>8}   {figure.variant}")
    return lines


def _describe_classes(protocol: str, names: Sequence[str], figures: Sequence[Figure]) -> list[str]:
    """A table with a row for each class and a column for each figure."""
    heads = [_short_name(figure) for figure in figures]
    width = max(map(len, [*names, "class"])) + 2
    lines = ["", f"average precision of each class in %, protocol {protocol}"]
    lines.append(f"{'class':{width}}" + "".join(f"{head:>{len(head) + 2}}" for head in heads))
    for label, name in enumerate(names):
        cells = (_percent(_value(figure.precision, label)) for figure in figures)
        row = "".join(f"{cell:>{len(head) + 2}}" for cell, head in zip(cells, heads, strict=True))
        lines.append(f"{name:{width}}{row}")
    return lines


def _describe_errors(protocol: str, figures: Sequence[Figure]) -> list[str]:
    """A table with a row for each figure and a column for each part of the error split."""
    lines = ["", f"what errors cost in %, mean over classes, protocol {protocol}"]
    lines.append(f"{'':24}" + "".join(f"{part:>16}" for part in _PARTS))
    for figure in figures:
        if figure.errors is not None:
            means = figure.errors.means()
            cells = "".join(f"{_percent(means[part]):>16}" for part in _PARTS)
            lines.append(f"{_short_name(figure):24}{cells}")
    return lines


def _short_name(figure: Figure) -> str:
    """The figure without its protocol, as the head of a column; variants of frame-mAP are told apart."""
    kind, _, _ = figure.name.partition("-")
    which, _, _ = figure.variant.partition(" ")
    return f"{kind}@{figure.iou} {which}" if kind == "frame" else f"{kind}@{figure.iou}"


def _facts(figure: Figure, names: Sequence[str]) -> dict[str, Any]:
    """A figure as JSON; shares, not percent, and null for what is undefined."""
    precision = figure.precision
    return {
        "name": figure.name,
        "iou": figure.iou,
        "variant": figure.variant,
        "value": precision.mean,
        "errors": None if figure.errors is None else figure.errors.means(),
        "classes": {
            name: {
                "ap": _value(precision, label),
                "truths": int(precision.truths[label]),
                "detections": int(precision.detections[label]),
            }
            for label, name in enumerate(names)
        },
    }


def _value(precision: ClassPrecision, label: int) -> float | None:
    """The average precision of a class; None if it is not counted."""
    value = float(precision.ap[label])
    return None if value != value else value


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.2f}"


def _is_score_json(path: Path) -> bool:
    """Whether this command wrote the file."""
    content = read_own_json(path)
    return isinstance(content, dict) and {"protocol", "figures", "truth"} <= content.keys()
