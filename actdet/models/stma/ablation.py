"""The ablations of STMA (Zhang and Zhao 2022, tables 2 to 4), on UCF101-24 there.

CAL finds centers whatever the class is, ME stresses what moves, STA reads the whole clip, and GR lets all pixels of an
area learn movement and sides, instead of the center alone. The base has none of them, as MOC.
"""

from __future__ import annotations

from typing import Any

from actdet.models.ablation import AblationTable, Row
from actdet.models.stma.config import StmaConfig

_FIGURES = {
    "frame-mAP @0.5": ("tubes", "frame_map"),
    "video-mAP @0.2": ("tubes", "video_map", "0.2"),
    "video-mAP @0.5": ("tubes", "video_map", "0.5"),
}


def _parts(*, cal: bool = True, me: bool = False, sta: bool = False) -> dict[str, Any]:
    """Return the settings of a network that has these parts."""
    parts = {"class_agnostic": cal, "motion_excitation": me, "aggregation": sta}
    # A network without STA has no backbone of clips, and refuses the name of one.
    return parts if sta else parts | {"clip_backbone": StmaConfig.clip_backbone}


def _areas(*, size: bool = False, movement: bool = False) -> dict[str, Any]:
    """Return the settings of losses in which areas, and not the center alone, learn these."""
    return {"size_area": "ellipse" if size else "center", "movement_area": "ellipse" if movement else "center"}


_BASE = Row((0.728, 0.778, 0.502), _parts(cal=False), _areas())

TABLES = {
    2: AblationTable(
        source="table 2 of the STMA paper",
        figures=_FIGURES,
        rows={
            "base": _BASE,
            "CAL": Row((0.731, 0.775, 0.506), _parts(), _areas()),
            "CAL + ME": Row((0.754, 0.790, 0.512), _parts(me=True), _areas()),
            "CAL + ME + STA": Row((0.772, 0.806, 0.526), _parts(me=True, sta=True), _areas()),
            "CAL + ME + GR": Row((0.761, 0.801, 0.519), _parts(me=True), _areas(size=True, movement=True)),
            "CAL + ME + STA + GR": Row(
                (0.788, 0.833, 0.541), _parts(me=True, sta=True), _areas(size=True, movement=True)
            ),
        },
    ),
    3: AblationTable(
        source="table 3 of the STMA paper",
        figures=_FIGURES,
        rows={
            "base": _BASE,
            "size": Row((0.744, 0.774, 0.508), _parts(cal=False), _areas(size=True)),
            "movement": Row((0.739, 0.783, 0.507), _parts(cal=False), _areas(movement=True)),
            "size + movement": Row((0.747, 0.792, 0.511), _parts(cal=False), _areas(size=True, movement=True)),
        },
    ),
    4: AblationTable(
        source="table 4 of the STMA paper",
        figures=_FIGURES,
        rows={
            "K = 1": Row((0.779, 0.758, 0.484), {"snippet": 1}),
            "K = 3": Row((0.786, 0.771, 0.506), {"snippet": 3}),
            "K = 5": Row((0.788, 0.833, 0.541), {"snippet": 5}),
            "K = 7": Row((0.783, 0.813, 0.529), {"snippet": 7}),
        },
    ),
}
