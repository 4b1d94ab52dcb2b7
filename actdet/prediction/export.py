"""Exports a trained detector as one file that other programs run: ONNX, or PyTorch's own .pt2.

    checkpoint -> one function -> a file under a temporary name -> compared with PyTorch on clips -> its final name

Converters and runtimes can be wrong without a word, so a file that does not compute what PyTorch computes never gets
its name. docs/export.md describes the inputs and outputs of the file, and how to run it.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from actdet.detections import THRESHOLD
from actdet.errors import ActdetError, DataError, shortage
from actdet.files import remove_abandoned, replacing
from actdet.models.checkpoints import CheckpointInfo, load_model, read_info
from actdet.models.config import FamilyConfig
from actdet.models.exportable import Exportable
from actdet.models.family import FamilyNetwork
from actdet.synthetic.rendered import RenderConfig, render_dataset
from actdet.video.decoding import decode_frames
from actdet.video.info import probe
from actdet.video.sampling import sample_frames

Format = Literal["onnx", "pt2"]

# The names in the file; the family names the outputs.
INPUT = "clips"
METADATA = "actdet"

# The version of ONNX's set of operators if the user asks for none. The exporter writes it without a conversion.
DEFAULT_OPSET = 18

# The largest difference from PyTorch that is rounding, as a share of the largest value or, if that is less than 1,
# of 1. Usual are 1e-6; a wrong conversion errs by far more than this.
_TOLERANCE = 1e-3

# What running an ONNX file and writing one need beyond what actdet requires.
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

# An ONNX file begins with the version of its format, a single byte, and then names its producer: protobuf's tag of a
# text, the length of the text, and the text.
_ONNX_START = b"\x12\x06actdet"


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how it compares with PyTorch."""

    path: Path
    bytes: int
    """Size of the file."""
    clips: str
    """The clips that it was compared on, in words."""
    batches: tuple[int, ...]
    """How many clips each batch of the comparison had."""
    differences: dict[str, float]
    """The largest absolute difference of each output. A rule may jump where its inputs differ by rounding, so what it
    says is compared with the rule applied to the file's own raw outputs."""


def export_model(
    checkpoint: Path,
    out: Path | None = None,
    *,
    format: Format = "onnx",
    opset: int | None = None,
    threshold: float | None = None,
    video: Path | None = None,
) -> Exported:
    """Write the detector of a checkpoint as one file, after comparing it with PyTorch.

    Args:
        checkpoint: The model.safetensors of a run.
        out: The file to write, whose name ends in the format; by default beside the checkpoint.
        format: onnx, or pt2 for `torch.export`.
        opset: The version of ONNX's operators, for format onnx only; by default `DEFAULT_OPSET`.
        threshold: The lowest score at which an action counts, in [0, 1], by default 0.5; only for families that export
            their rule.
        video: A video whose frames are compared; by default clips are rendered.

    Raises:
        ActdetError: If packages are missing, or a setting is wrong.
        DataError: If a file cannot be used, the model cannot be exported, or the file computes something else.
    """
    if format not in ("onnx", "pt2"):
        raise ActdetError(f"format must be onnx or pt2, got {format}")
    if format == "pt2" and opset is not None:
        raise ActdetError("opset is for format onnx: a pt2 file has no opset")
    _check_packages(format)
    info = read_info(checkpoint)
    out = checkpoint.with_suffix(f".{format}") if out is None else out
    _check_out(out, format)

    detector, info = load_model(checkpoint)
    if video is None:
        clips = _rendered_clips(info.model)
        source = f"{len(clips)} rendered clips"
    else:
        clips = _clips_of(video, info.model)
        source = f"{len(clips)} clips of {video}"

    with _one_line(out, "cannot be exported"):
        exportable = detector.exportable(info.loss, threshold=THRESHOLD if threshold is None else threshold)
        if threshold is not None and exportable.threshold is None:
            raise ActdetError(f"an export of the family {info.family} has no threshold inside: leave out threshold")
        program = _trace(exportable, info.model)
        metadata = _metadata(info, exportable.threshold)
        if format == "pt2":
            data = _to_pt2(program, metadata)
        else:
            data = _to_onnx(program, list(exportable(clips[:1])), opset or DEFAULT_OPSET, metadata)

    batches = [clips[:1], clips[1:], clips]
    remove_abandoned(out.parent)
    with replacing(out) as temporary:
        temporary.write_bytes(data)
        with _one_line(out, "was exported, but cannot be run"):
            run = _load_pt2(temporary) if format == "pt2" else _load_onnx(temporary)
            answers = [run(batch) for batch in batches]
        differences = _compare(out, detector, exportable, batches, answers)
    return Exported(out, len(data), source, tuple(len(batch) for batch in batches), differences)


def _check_packages(format: Format) -> None:
    missing = [name for name in _ONNX_PACKAGES if format == "onnx" and find_spec(name) is None]
    if missing:
        raise ActdetError(f"format onnx needs more packages: pip install {' '.join(missing)}, or use --format pt2")


def _check_out(out: Path, format: Format) -> None:
    """Raise an error unless `out` is a name for this format, and free or that of an earlier export."""
    if out.suffix != f".{format}":
        raise ActdetError(f"the name of a file of format {format} ends in .{format}, got {out}")
    if (out.exists() or out.is_symlink()) and not _is_export(out):
        raise DataError(out, "was not written by actdet export and would be replaced: choose another --out")


def _is_export(path: Path) -> bool:
    """Whether `export_model` wrote the file `path`."""
    if not path.is_file():
        return False
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return any(name.rpartition("/")[2] == f"{METADATA}.json" for name in archive.namelist())
        with open(path, "rb") as file:
            return file.read(2 + len(_ONNX_START))[2:] == _ONNX_START
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _rendered_clips(config: FamilyConfig) -> Tensor:
    """(3, T, S, S, 3) uint8: a rendered fight, a collapse, and a clip without either."""
    with TemporaryDirectory(prefix="actdet-") as folder:
        render_dataset(Path(folder), RenderConfig(clips=3, workers=1))
        videos = sorted(Path(folder, "videos").iterdir())
        return torch.cat([_clips_of(video, config)[:1] for video in videos])


def _clips_of(path: Path, config: FamilyConfig) -> Tensor:
    """(3, T, S, S, 3) uint8: the whole video, its first half, and its second half.

    Raises:
        DataError: If the video cannot be read.
    """
    video = probe(path)
    start = int(video.pts[0])
    middle = start + max((video.end - start) // 2, 1)

    # The second half of a video of a single tick would be empty.
    halves = [(start, middle), (min(middle, video.end - 1), video.end)]
    spans = [(start, video.end), *halves]
    indices = [sample_frames(video, config.frames, start=begin, end=end) for begin, end in spans]
    frames = decode_frames(video, np.concatenate(indices), (config.image_size, config.image_size))
    return torch.from_numpy(frames).unflatten(0, (len(spans), config.frames))


def _trace(detector: Exportable, config: FamilyConfig) -> torch.export.ExportedProgram:
    """Record the operators of `detector` for any number of clips."""
    # The example is stored in a pt2 file, so it is nobody's video. A batch of one would be taken for a constant.
    example = torch.zeros(2, config.frames, config.image_size, config.image_size, 3, dtype=torch.uint8)
    with _fast_path_off(), _quiet():
        program = torch.export.export(detector, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))

    # Where each operator was called names folders of this machine, which are nobody else's business.
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


@contextmanager
def _fast_path_off() -> Iterator[None]:
    """Context manager: while active, Transformer layers do not use their fused operator, which only PyTorch has."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager: while active, what exporters log and warn about their own code is not shown."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _one_line(path: Path, problem: str) -> Iterator[None]:
    """Context manager: errors of the exporters and runtimes, of which there are many kinds, become a DataError."""
    try:
        yield
    except (ActdetError, OSError):
        raise
    except Exception as error:
        if shortage(error) is not None:
            raise
        reason = str(error).strip().partition("\n")[0]
        raise DataError(path, f"{problem}: {type(error).__name__}: {reason}") from error


def _metadata(info: CheckpointInfo, threshold: float | None) -> str:
    """What a program that runs the file has to know, as JSON; a file without a rule inside has no threshold."""
    from actdet import __version__

    rule = {} if threshold is None else {"threshold": threshold}
    return json.dumps(
        {
            **asdict(info.loss),
            "actdet": __version__,
            "torch": torch.__version__,
            "family": info.family,
            "class_names": info.model.class_names,
            "frames": info.model.frames,
            "image_size": info.model.image_size,
            "clip_seconds": info.clip_seconds,
            **rule,
        }
    )


def _to_pt2(program: torch.export.ExportedProgram, metadata: str) -> bytes:
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={f"{METADATA}.json": metadata})
    return buffer.getvalue()


def _load_pt2(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    with _quiet():
        return torch.export.load(path).module()


def _to_onnx(program: torch.export.ExportedProgram, outputs: Sequence[str], opset: int, metadata: str) -> bytes:
    """Convert to an ONNX model, weights and all."""
    with _quiet():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(outputs),
            verbose=False,
        )
    assert converted is not None
    model: Any = converted.model_proto

    written = {each.domain: each.version for each in model.opset_import}[""]
    if written != opset:
        raise ActdetError(f"opset {opset} cannot be written by this version of PyTorch: use --opset {written}")

    # PyTorch calls the batch by a symbol of its own, which occurs in the shapes of all values.
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = dimension.dim_param.replace(symbol, "batch")
    for node in model.graph.node:
        del node.metadata_props[:]

    from actdet import __version__

    model.producer_name = "actdet"
    model.producer_version = __version__
    entry = model.metadata_props.add()
    entry.key = METADATA
    entry.value = metadata
    return model.SerializeToString()


def _load_onnx(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    """What runs an ONNX file on the CPU."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path))
    options = onnxruntime.SessionOptions()
    # Only errors are logged.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(clips: Tensor) -> dict[str, Tensor]:
        values = session.run(names, {INPUT: clips.numpy()})
        return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(names, values, strict=True)}

    return run


@torch.inference_mode()
def _compare(
    path: Path,
    detector: FamilyNetwork,
    exportable: Exportable,
    batches: list[Tensor],
    answers: list[dict[str, Tensor]],
) -> dict[str, float]:
    """Compare what a file computed with what PyTorch computes.

    Args:
        path: The final name of the file, for messages.
        detector: The detector, as it was trained.
        exportable: What was exported of it.
        batches: Clips (B, T, S, S, 3) uint8.
        answers: What the file computed for each batch, by name.

    Returns:
        The largest absolute difference of each output.

    Raises:
        DataError: If an output differs by more than rounding.
    """
    largest: dict[str, float] = {}
    for clips, found in zip(batches, answers, strict=True):
        for name, wanted in exportable.expected(detector, clips, found).items():
            largest[name] = max(largest.get(name, 0.0), _difference(path, name, found[name], wanted))
    return {name: largest[name] for name in answers[0]}


def _difference(path: Path, name: str, found: Tensor, wanted: Tensor) -> float:
    """The largest absolute difference of an output; DataError if it is more than rounding, or if one is not finite."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        shapes = f"{tuple(found.shape)} of {found.dtype}, should be {tuple(wanted.shape)} of {wanted.dtype}"
        raise DataError(path, f"not written: its output {name} is {shapes}".replace("torch.", ""))

    difference = (found.double() - wanted.double()).abs().max().item()
    allowed = _TOLERANCE * max(1.0, wanted.abs().max().item()) if wanted.is_floating_point() else 0.0
    # Written so that NaN fails.
    if not difference <= allowed:
        raise DataError(
            path,
            f"not written: its output {name} differs from PyTorch's by {difference:.3g}, "
            f"which is more than rounding ({allowed:.3g})",
        )
    return difference
