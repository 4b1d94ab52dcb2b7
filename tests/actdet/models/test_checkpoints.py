"""A checkpoint comes back as it was written, holds no code, and says in one line what is wrong with it."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from actdet.errors import DataError
from actdet.models import checkpoints
from actdet.models.checkpoints import (
    CheckpointInfo,
    load_model,
    load_weights,
    read_checkpoint,
    read_info,
    save_checkpoint,
)
from actdet.models.detr.config import LossConfig, ModelConfig
from actdet.models.detr.detector import ActionDetector
from tests.actdet.command import small_disk

SMALL = ModelConfig(image_size=32, frames=8, encoder_layers=0, decoder_layers=1, class_names=("run", "jump", "füßeln"))
INFO = CheckpointInfo(
    SMALL,
    "dali-gpu",
    2.4375,
    LossConfig(l1_weight=3.5, no_object_weight=0.25),
    held_out=("clip 1", "clip_2"),
    training={"step": 7, "scaler": {}, "deep": {"a": [1, None]}},
)


def _tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "floats": torch.randn(3, 1, 5, generator=generator),
        "strided": torch.randn(2, 3, 4, 5, 6, generator=generator).contiguous(memory_format=torch.channels_last_3d),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "half": torch.randn(7, generator=generator).bfloat16(),
        "number": torch.tensor(41),
        "extremes": torch.tensor([torch.inf, -0.0, torch.nan, 1e-45]),
        "needs grad": torch.nn.Parameter(torch.ones(2)),
    }


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_tensors_and_description_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "c.safetensors"
    save_checkpoint(path, _tensors(), INFO)
    loaded, info = read_checkpoint(path)
    assert info == INFO
    assert read_info(path) == INFO
    assert loaded.keys() == _tensors().keys()
    for name, tensor in _tensors().items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape), name
        assert _bits(loaded[name]) == _bits(tensor), name
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_defaults_of_the_description_come_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", {}, CheckpointInfo(ModelConfig(), "pyav", 1.0, LossConfig()))
    assert read_info(tmp_path / "c") == CheckpointInfo(ModelConfig(), "pyav", 1.0, LossConfig(), (), None)


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    """Checked by the format's definition: a length, JSON, and the bytes of the tensors. No pickle, so no code."""
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, _tensors(), INFO)
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert set(metadata) == {"actdet"}
    entry = json.loads(metadata["actdet"])
    assert (entry["format"], entry["family"], entry["model"]["class_names"]) == (2, "detr", list(SMALL.class_names))
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(data) - 8 - length


@pytest.mark.usefixtures("tiny_backbone")
def test_a_file_of_format_1_is_read(tmp_path: Path) -> None:
    """Its header is written out here as that version wrote it."""
    header = {
        "format": 1,
        "model": {
            "class_names": ["run", "jump", "füßeln"],
            "image_size": 32,
            "frames": 8,
            "queries": 12,
            "encoder_layers": 0,
            "decoder_layers": 1,
            "dropout": 0.1,
            "deep_supervision": False,
        },
        "reader": "dali-gpu",
        "clip_seconds": 2.4375,
        "loss": {"cls_weight": 2.0, "l1_weight": 3.5, "giou_weight": 2.0, "no_object_weight": 0.25},
        "held_out": ["clip 1", "clip_2"],
        "training": {"step": 7, "scaler": {}, "deep": {"a": [1, None]}},
    }
    detector = ActionDetector(SMALL)
    tensors = {f"model.{name}": value for name, value in detector.state_dict().items()}
    path = tmp_path / "c.safetensors"
    path.write_bytes(safetensors.torch.save(tensors, {"actdet": json.dumps(header)}))

    loaded, info = load_model(path)
    assert info == INFO
    assert info.family == "detr"
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, tensors[f"model.{name}"])


def test_a_weights_checkpoint_of_the_default_detector_has_the_reports_size(tmp_path: Path) -> None:
    """40.5 million parameters; 155 MB are their four bytes each, and the BatchNorm statistics, in MiB."""
    detector = ActionDetector()
    path = tmp_path / "model.safetensors"
    state = detector.state_dict()
    parameters = sum(state[name].numel() for name, _ in detector.named_parameters())
    assert round(parameters / 1e6, 1) == 40.5
    info = CheckpointInfo(detector.config, "pyav", 3.0, LossConfig())
    save_checkpoint(path, {f"model.{k}": v for k, v in state.items()}, info)
    tensors = sum(v.numel() * (4 if v.dtype == torch.float32 else 8) for v in state.values())
    # The rest is the header.
    assert 0 < path.stat().st_size - tensors < 2**16
    assert round(path.stat().st_size / 2**20) == 155
    loaded, info = load_model(path)
    assert info.model == ModelConfig()
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name]), name
    path.unlink()


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "c"
    save_checkpoint(path, _tensors(), INFO)
    return path.read_bytes()


def _header_length(data: bytes) -> int:
    return 8 + struct.unpack_from("<Q", data)[0]


def _with_header(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The file with another actdet entry."""
    length = _header_length(data)
    header = json.loads(data[8:length])
    entry = json.loads(header["__metadata__"]["actdet"])
    replaced = change(entry)
    header["__metadata__"]["actdet"] = replaced if isinstance(replaced, str) else json.dumps(entry)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[length:]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda d: b"", "safetensors"),
    "cut in the length": (lambda d: d[:5], "safetensors"),
    "cut in the header": (lambda d: d[: _header_length(d) // 2], "safetensors"),
    "cut after the header": (lambda d: d[: _header_length(d)], "safetensors"),
    "cut in the tensors": (lambda d: d[: (len(d) + _header_length(d)) // 2], "safetensors"),
    "cut by a byte": (lambda d: d[:-1], "safetensors"),
    "a byte too many": (lambda d: d + b"x", "safetensors"),
    "text": (lambda d: b"epoch 1 loss 2.5\n" * 30, "safetensors"),
    "a pickle": (lambda d: pickle.dumps({"model": [1.0] * 100}), "safetensors"),
    "zeros": (lambda d: bytes(len(d)), "safetensors"),
    "no header of ours": (lambda d: safetensors.torch.save({"a": torch.ones(2)}), "not an actdet checkpoint"),
    "another's header": (lambda d: safetensors.torch.save({"a": torch.ones(2)}, {"format": "pt"}), "not an actdet"),
    "a newer format": (lambda d: _with_header(d, lambda e: e.update(format=3)), "formats 1 to 2"),
    "a format that is text": (lambda d: _with_header(d, lambda e: e.update(format="2")), "formats 1 to 2"),
    "no family": (lambda d: _with_header(d, lambda e: e.pop("family") and None), "family"),
    "another family": (
        lambda d: _with_header(d, lambda e: e.update(family="unheard-of")),
        "of the family 'unheard-of'; this",
    ),
    "a family that is a list": (lambda d: _with_header(d, lambda e: e.update(family=["detr"])), "of the family"),
    "a family in format 1": (lambda d: _with_header(d, lambda e: e.update(format=1)), "format 1 has no family"),
    "no format": (lambda d: _with_header(d, lambda e: e.pop("format") and None), "description"),
    "no model": (lambda d: _with_header(d, lambda e: e.pop("model") and None), "description"),
    "an unknown field": (lambda d: _with_header(d, lambda e: e.update(colour=1)), "description"),
    "an unknown setting": (lambda d: _with_header(d, lambda e: e["model"].update(heads=3)), "description"),
    "an impossible setting": (lambda d: _with_header(d, lambda e: e["model"].update(queries=0)), "queries"),
    "a setting of another type": (lambda d: _with_header(d, lambda e: e["model"].update(queries="x")), "description"),
    "a whole number with a point": (lambda d: _with_header(d, lambda e: e["model"].update(frames=8.0)), "frames"),
    "a truth for a number": (lambda d: _with_header(d, lambda e: e["model"].update(queries=True)), "queries"),
    "a number for a truth": (lambda d: _with_header(d, lambda e: e["model"].update(deep_supervision=1)), "deep_"),
    "a number for names": (lambda d: _with_header(d, lambda e: e["model"].update(class_names=[1, 2])), "class_names"),
    "text for names": (lambda d: _with_header(d, lambda e: e["model"].update(class_names="ab")), "class_names"),
    "NaN": (lambda d: _with_header(d, lambda e: e["loss"].update(l1_weight=float("nan"))), "l1_weight"),
    "a length of nothing": (lambda d: _with_header(d, lambda e: e.update(clip_seconds=0)), "clip_seconds"),
    "a length below nothing": (lambda d: _with_header(d, lambda e: e.update(clip_seconds=-3.0)), "clip_seconds"),
    "an endless length": (lambda d: _with_header(d, lambda e: e.update(clip_seconds=float("inf"))), "clip_seconds"),
    "windows of less than nothing": (lambda d: _with_header(d, lambda e: e.update(window=-1.0)), "window must be in"),
    "windows in words": (lambda d: _with_header(d, lambda e: e.update(window="long")), "window cannot be"),
    "a length in words": (lambda d: _with_header(d, lambda e: e.update(clip_seconds="long")), "clip_seconds"),
    "a reader that is a number": (lambda d: _with_header(d, lambda e: e.update(reader=3)), "reader"),
    "clips that are text": (lambda d: _with_header(d, lambda e: e.update(held_out="abc")), "held_out"),
    "a training that is a list": (lambda d: _with_header(d, lambda e: e.update(training=[1])), "training"),
    "a model that is a list": (lambda d: _with_header(d, lambda e: e.update(model=[1])), "ModelConfig"),
    "no length": (lambda d: _with_header(d, lambda e: e.pop("clip_seconds") and None), "description"),
    "JSON without an end": (lambda d: _with_header(d, lambda e: "[" * 100_000), "description"),
    "a header that is no JSON": (lambda d: _with_header(d, lambda e: "{nothing"), "description"),
    "a header that is a list": (lambda d: _with_header(d, lambda e: "[1]"), "description"),
}


@pytest.mark.parametrize(("damage", "word"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_no_checkpoint_is_refused_in_one_line(
    small_file: bytes, tmp_path: Path, damage: Callable[[bytes], bytes], word: str
) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(damage(small_file))
    with pytest.raises(DataError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert word in message


@pytest.mark.parametrize("make", [lambda p: None, Path.mkdir], ids=["missing", "a folder"])
def test_no_file_is_refused_in_one_line(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "c.safetensors"
    make(path)
    with pytest.raises(DataError, match=f"^{path}: no such checkpoint$"):
        read_checkpoint(path)


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.pop("model.queries"), "it has no queries"),
        (lambda t: t.update({"model.queries": torch.zeros(3, 256)}), r"queries is \(3, 256\), should be \(12, 256\)"),
        (lambda t: t.pop("model.backbone.1.num_batches_tracked"), "it has no backbone.1.num_batches_tracked"),
        (lambda t: t.clear(), "it has no "),
    ],
    ids=["missing", "misshapen", "missing buffer", "none"],
)
def test_tensors_of_another_configuration_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], word: str
) -> None:
    path = tmp_path / "c.safetensors"
    tensors = {f"model.{name}": value for name, value in ActionDetector(SMALL).state_dict().items()}
    save_checkpoint(path, tensors, INFO)
    load_model(path)
    change(tensors)
    save_checkpoint(path, tensors, INFO)
    with pytest.raises(DataError, match=f"^{path}: a checkpoint of another configuration: .*{word}") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"decoder_layers": 10**6}, "decoder_layers"),
        ({"encoder_layers": 10**9}, "encoder_layers"),
        ({"queries": 10**12}, "queries"),
        ({"frames": 8 * 10**9}, "(positions|frames)"),
        ({"class_names": list("abcd")}, "class_head"),
        ({"decoder_layers": 2}, "it has no decoder.1"),
    ],
    ids=str,
)
def test_what_a_description_says_is_compared_with_the_tensors_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], word: str
) -> None:
    path = tmp_path / "c.safetensors"
    tensors = {f"model.{name}": value for name, value in ActionDetector(SMALL).state_dict().items()}
    save_checkpoint(path, tensors, INFO)
    path.write_bytes(_with_header(path.read_bytes(), lambda entry: entry["model"].update(changes)))
    # Tensors of the device "meta" take no memory.
    monkeypatch.setattr(checkpoints, "read_checkpoint", None)
    with pytest.raises(DataError, match=f"^{path}: .*{word}"):
        load_model(path)


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize(
    ("value", "word"),
    [
        (torch.full((12, 256), torch.nan), "queries holds numbers that are not finite"),
        (torch.full((12, 256), -torch.inf, dtype=torch.float16), "queries holds numbers that are not finite"),
        (torch.zeros(12, 256, dtype=torch.int64), "queries holds torch.int64"),
        (torch.zeros(12, 256, dtype=torch.bool), "queries holds torch.bool"),
    ],
    ids=["NaN", "infinite halves", "integers", "truths"],
)
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: Tensor, word: str) -> None:
    path = tmp_path / "c.safetensors"
    tensors = {f"model.{name}": value for name, value in ActionDetector(SMALL).state_dict().items()}
    save_checkpoint(path, tensors | {"model.queries": value}, INFO)
    with pytest.raises(DataError, match=f"^{path}: .*{word}"):
        load_model(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_description_that_json_lacks_is_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(DataError, match="not finite"):
        save_checkpoint(tmp_path / "c", {}, replace(INFO, clip_seconds=value))
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("tiny_backbone")
def test_a_refused_checkpoint_leaves_the_detector_as_it_was(tmp_path: Path) -> None:
    detector = ActionDetector(SMALL)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    other = {f"model.{name}": value for name, value in ActionDetector(replace(SMALL, queries=5)).state_dict().items()}
    with pytest.raises(DataError):
        load_weights(detector, other, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


@pytest.mark.parametrize("room", [0, 1000, 39_000])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, small_file: bytes, room: int) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(small_file)
    with small_disk(room), pytest.raises(DataError, match=f"^{path}: cannot be written: ") as caught:
        save_checkpoint(path, {"large": torch.ones(10_000)}, INFO)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == small_file
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["error", "stop"])
def test_a_write_that_ends_before_the_rename_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_file: bytes, error: BaseException
) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(small_file)

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DataError):
        save_checkpoint(path, {"large": torch.ones(10)}, INFO)
    assert path.read_bytes() == small_file
    assert os.listdir(tmp_path) == [path.name]
