"""`actdet export`: a trained detector as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from actdet.bounds import BOUNDS, check_bounds
from actdet.cli.terminal import print_line

# The exporter writes version 18 of ONNX's operators, and converts to those after it.
_BOUNDS = BOUNDS | {"opset": "[18, 23]"}


def export(
    checkpoint: Positional[Path],
    /,
    format: Literal["onnx", "pt2"] = "onnx",
    out: Path | None = None,
    opset: int | None = None,
    threshold: float | None = None,
    video: Path | None = None,
) -> None:
    """Export a trained detector as one file that other programs run; docs/export.md says how.

    The file is compared with PyTorch before it gets its name. It takes frames as bytes, any number of clips at a time,
    and gives the class, score and box of each clip, or what else the detector's family exports.

    For instance: actdet export runs/mine/model.safetensors --format onnx

    Args:
        checkpoint: The model.safetensors of a run.
        format: What to write: onnx for ONNX Runtime, TensorRT and others, or pt2 for PyTorch.
        out: The file to write; by default it lies beside the checkpoint.
        opset: Version of ONNX's operators; by default 18.
        threshold: The lowest probability at which an action counts; by default 0.5.
        video: A video on whose frames the file is compared with PyTorch; by default clips are rendered.
    """
    check_bounds({"opset": opset, "threshold": threshold}, _BOUNDS)

    from actdet.prediction.export import export_model

    exported = export_model(checkpoint, out, format=format, opset=opset, threshold=threshold, video=video)

    batches = ", ".join(map(str, exported.batches[:-1]))
    print_line(f"compared with PyTorch on {exported.clips}, in batches of {batches} and {exported.batches[-1]}")
    differences = ", ".join(f"{name} {value:.2g}" for name, value in exported.differences.items())
    print_line(f"largest differences: {differences}")
    print_line(f"exported: {exported.path} ({exported.bytes / 1e6:.1f} MB)")
