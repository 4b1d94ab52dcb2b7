"""The protocols by which papers measure action detection, as numbers.

Every paper uses its own script, and the scripts differ, so a figure without its protocol means nothing.

    act    Kalogeiton et al., ICCV 2017: `act-detector-scripts/ACT.py`
    moc    Li et al., "Actions as Moving Points", ECCV 2020: `src/ACT.py`, `src/ACT_utils/ACT_build.py`
    yowo   Koepueklue et al., "You Only Watch Once", 2019, and YOWOv2: `pascalvoc.py`, `core/eval_results.py`

What a detector does before it writes its answers is not part of these: ACT's suppression within a forward pass, MOC's
100 best tubelets, YOWO's least confidence of 0.005 and its suppression at 0.4. AVA's protocol is in `ava.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actdet.evaluation.average_precision import Curve
from actdet.evaluation.matching import MatchRule

Frames = Literal["all", "annotated"]


@dataclass(frozen=True)
class Suppression:
    """Non-maximum suppression at a threshold; soft ones keep what they suppress, with a lower score."""

    threshold: float
    soft: bool = False


@dataclass(frozen=True)
class LinkRules:
    """How tubelets become tubes (`BuildTubes`)."""

    suppression: Suppression
    """Of the tubelets that start in a frame, by the mean IoU of their boxes."""
    overlap: float
    """A tube takes a tubelet whose mean IoU with the tube's last one, over the frames of both, is at least this."""
    gap: int | None
    """A tube ends when so many frames have started no tubelet that it could take; None: K frames."""
    least_score: float
    """A tube with a lower mean score is dropped."""
    most: int = 10
    """How many tubelets of a class a frame may start, the best ones."""
    least_length: int = 15
    """A tube of fewer frames is dropped."""


@dataclass(frozen=True)
class Protocol:
    """What is computed, and how."""

    name: str
    curve: Curve
    """Which area is the average precision."""
    rule: MatchRule
    """How boxes of a frame are matched with truth. Tubes are always matched by "best unmatched"."""
    frames: Frames
    """Whether detections count in all frames, or only in those that have truth."""
    suppression: Suppression | None
    """Of the boxes of a class in a frame, which come from all tubelets that cover it; None: boxes stay as they are."""
    link: LinkRules | None
    """How tubes are linked; None: YOWO's best paths through all frames."""
    least_common: int = 1
    """How many frames two tubes must have in common to overlap."""
    tube_threshold: float = 0.3
    """A tube that overlaps a better one of its class in its video by more than this is left out."""
    inclusive: bool = True
    """Whether x2 and y2 are the last pixel inside a box."""


ACT_LINK = LinkRules(suppression=Suppression(0.3), overlap=0.2, gap=5, least_score=0.01)
MOC_LINK = LinkRules(suppression=Suppression(0.6, soft=True), overlap=0.5, gap=None, least_score=0.005)

ACT = Protocol(
    name="act",
    curve="raw",
    rule="best unmatched",
    frames="all",
    suppression=Suppression(0.3),
    link=ACT_LINK,
)

MOC = Protocol(
    name="moc",
    curve="raw",
    rule="best unmatched",
    frames="all",
    suppression=Suppression(0.6, soft=True),
    link=MOC_LINK,
)

YOWO = Protocol(
    name="yowo",
    curve="envelope",
    rule="best only",
    frames="annotated",
    suppression=None,
    link=None,
    least_common=2,
)

PROTOCOLS = {protocol.name: protocol for protocol in (ACT, MOC, YOWO)}

# The thresholds of the tube IoU: those that papers print, and the ten whose mean is "0.5:0.95".
VIDEO_THRESHOLDS = (0.2, 0.5, 0.75)
AVERAGED_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


def describe_frames(protocol: Protocol, frames: Frames) -> str:
    """Say by which variant a frame-mAP is computed."""
    area = {"raw": "raw curve", "envelope": "envelope"}[protocol.curve]
    if protocol.suppression is None:
        suppression = "boxes as given"
    else:
        kind = "soft" if protocol.suppression.soft else "hard"
        suppression = f"{kind} NMS {protocol.suppression.threshold:g}"
    kind = {"all": "all frames", "annotated": "annotated frames only"}[frames]
    return f"{kind}, {suppression}, {protocol.rule}, {area}"


def describe_video(protocol: Protocol, *, linked: bool) -> str:
    """Say by which variant a video-mAP is computed; `linked`: whether the tubes were linked here."""
    area = {"raw": "raw curve", "envelope": "envelope"}[protocol.curve]
    if not linked:
        source = "tubes as given"
    elif protocol.link is None:
        source = "best paths, whole videos"
    else:
        gap = "K" if protocol.link.gap is None else protocol.link.gap
        source = f"linked at IoU {protocol.link.overlap:g}, gap {gap}"
    return f"{source}, tube NMS {protocol.tube_threshold:g}, {area}"
