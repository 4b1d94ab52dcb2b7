"""Exported files compute what PyTorch computes, wherever they lie, and no other file gets the name of one."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actdet.data.augment import normalize
from actdet.errors import ActdetError, DataError
from actdet.models.checkpoints import CheckpointInfo, save_checkpoint
from actdet.models.detr import detector
from actdet.models.detr.config import LossConfig, ModelConfig
from actdet.models.detr.decision import actions, decide
from actdet.models.detr.detector import ActionDetector
from actdet.models.detr.exportable import ExportableDetector
from actdet.prediction import export
from actdet.prediction.export import export_model
from tests.actdet.command import Actdet, small_disk

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

DOCS = Path(__file__).parents[3] / "docs" / "export.md"
LOSS = LossConfig(no_object_weight=0.2)
OUTPUTS = ("label", "score", "box", "probabilities", "logits", "boxes")
RULE = {"no_object_weight": 0.2, "threshold": 0.4}
close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def frames(batch: int, config: ModelConfig, seed: int = 0) -> Tensor:
    """(B, T, S, S, 3) uint8 noise, of another brightness in every clip."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.frames, config.image_size, config.image_size, 3)
    noise = torch.rand(shape, generator=generator) * torch.rand(batch, 1, 1, 1, 1, generator=generator)
    return (255 * noise).byte()


def trained_detector(config: ModelConfig) -> ActionDetector:
    """A detector with weights and statistics as training leaves them: none at zero or one."""
    torch.manual_seed(0)
    detector = ActionDetector(config)
    with torch.no_grad():
        state = detector.state_dict()
        for name, _ in detector.named_parameters():
            state[name] += 0.05 * torch.randn_like(state[name])
        detector.train()(normalize(frames(2, config)))
    return detector.eval()


def save(detector: ActionDetector, path: Path) -> Path:
    tensors = {f"model.{name}": value for name, value in detector.state_dict().items()}
    save_checkpoint(path, tensors, CheckpointInfo(detector.config, "pyav", 2.5, LOSS))
    return path


@dataclass(frozen=True)
class Case:
    """A detector, its checkpoint, and the file that was exported from it and moved to another folder."""

    detector: ActionDetector
    checkpoint: Path
    format: str
    path: Path
    exported: export.Exported

    def run(self, clips: Tensor) -> dict[str, Tensor]:
        if self.format == "pt2":
            return torch.export.load(self.path).module()(clips)
        session = onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        values = session.run(names, {"clips": clips.numpy()})
        return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(names, values, strict=True)}


# 48 pixels give a grid of 3, 112 one of 7; 128 give 8 x 8 features, which 7 does not divide.
CASES = [
    pytest.param(("onnx", 48), marks=pytest.mark.slow),
    pytest.param(("onnx", 112), marks=pytest.mark.slow),
    pytest.param(("onnx", 128), marks=pytest.mark.slow),
    ("pt2", 48),
    pytest.param(("pt2", 128), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """With the real backbone."""
    format, size = request.param
    folder = tmp_path_factory.mktemp("export")
    detector = trained_detector(ModelConfig(("a", "b", "c"), size, 8, 6, 1, 2, deep_supervision=True))
    checkpoint = save(detector, folder / "model.safetensors")
    exported = export_model(checkpoint, format=format, threshold=0.4)
    assert exported.path == folder / f"model.{format}"
    assert sorted(path.name for path in folder.iterdir()) == sorted(["model.safetensors", f"model.{format}"])
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    path = Path(shutil.move(exported.path, elsewhere / f"other name.{format}"))
    return Case(detector, checkpoint, format, path, exported)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_file_computes_what_pytorch_computes(case: Case, batch: int) -> None:
    """On other clips than those that it was compared on before it got its name."""
    clips = frames(batch, case.detector.config, seed=batch)
    got = case.run(clips)
    assert list(got) == list(OUTPUTS)
    with torch.no_grad():
        logits, boxes = case.detector(normalize(clips)).final()
    decision = decide(logits, boxes, **RULE)
    close(got["logits"], logits)
    close(got["boxes"], boxes)
    assert torch.equal(got["label"], decision.label)
    close(got["score"], decision.score)
    close(got["box"], decision.box)


def test_what_was_compared_is_told(case: Case) -> None:
    exported = case.exported
    assert exported.clips == "3 rendered clips"
    assert exported.batches == (1, 2, 3)
    assert tuple(exported.differences) == OUTPUTS
    assert exported.differences["label"] == 0
    assert all(0 <= difference < 1e-4 for difference in exported.differences.values())
    assert exported.bytes == case.path.stat().st_size
    # The weights are in the file once: the backbone's and the rest.
    parameters = sum(value.numel() for value in case.detector.parameters())
    assert 4 * parameters * 0.98 < exported.bytes < 4 * parameters * 1.1


def test_the_file_describes_itself(case: Case) -> None:
    if case.format == "pt2":
        extra = {"actdet.json": ""}
        torch.export.load(case.path, extra_files=extra)
        text = extra["actdet.json"]
    else:
        session = onnxruntime.InferenceSession(str(case.path), providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map["actdet"]
        assert session.get_modelmeta().producer_name == "actdet"
        size = case.detector.config.image_size
        assert session.get_inputs()[0].shape == ["batch", 8, size, size, 3]
        assert [output.shape[0] for output in session.get_outputs()] == ["batch"] * len(OUTPUTS)
    found = json.loads(text)
    assert found.pop("torch") == torch.__version__
    assert isinstance(found.pop("actdet"), str)
    assert found == {
        "family": "detr",
        "class_names": ["a", "b", "c"],
        "frames": 8,
        "image_size": case.detector.config.image_size,
        "clip_seconds": 2.5,
        "cls_weight": 2.0,
        "l1_weight": 5.0,
        "giou_weight": 2.0,
        "no_object_weight": 0.2,
        "threshold": 0.4,
    }


def test_nothing_in_the_file_names_a_folder_of_this_machine(case: Case) -> None:
    texts = [case.path.read_bytes()]
    if case.format == "pt2":
        with zipfile.ZipFile(case.path) as archive:
            texts += [archive.read(name) for name in archive.namelist()]
    for folder in (Path(__file__).parents[3], Path(torch.__file__).parent):
        assert not any(os.fsencode(folder) in text for text in texts)


def test_an_onnx_file_has_no_batch_norm_and_only_standard_operators(case: Case) -> None:
    if case.format == "pt2":
        pytest.skip("this is of ONNX files")
    model = onnx.load(case.path)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == 38
    assert "BatchNormalization" not in operators
    assert {node.domain for node in model.graph.node} == {""}
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]


def test_a_program_without_actdet_runs_the_file(case: Case) -> None:
    program = """
import sys
import numpy as np
path, frames, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
clips = np.zeros((3, frames, size, size, 3), np.uint8)
if path.endswith("onnx"):
    import onnxruntime
    label, = onnxruntime.InferenceSession(path).run(["label"], {"clips": clips})
else:
    import torch
    label = torch.export.load(path).module()(torch.from_numpy(clips))["label"].numpy()
print(label.tolist(), any(name.startswith("actdet") for name in sys.modules))
"""
    config = case.detector.config
    arguments = [str(case.path), str(config.frames), str(config.image_size)]
    ended = subprocess.run(
        [sys.executable, "-I", "-c", program, *arguments], capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr
    with torch.no_grad():
        outputs = case.detector(normalize(torch.zeros_like(frames(3, config)))).final()
    assert ended.stdout.split("\n")[0] == f"{decide(*outputs, **RULE).label.tolist()} False"


@pytest.mark.parametrize("name", ["label", "score", "box", "probabilities", "logits", "boxes"])
def test_the_documentation_lists_the_outputs(name: str) -> None:
    assert name in OUTPUTS
    assert re.search(rf"^\| `{name}` \|", DOCS.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_the_documented_function_finds_the_set_of_actions(threshold: float) -> None:
    (code,) = re.findall(r"```python\n(import numpy as np\n.*?)```", DOCS.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)

    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(60, 8, 4, generator=generator)
    boxes = torch.rand(60, 8, 4, generator=generator)
    probabilities = (logits - torch.tensor([0, 0, 0, np.log(0.2)])).softmax(-1)[..., :-1]
    wanted = actions(logits, boxes, no_object_weight=0.2, threshold=threshold)
    assert max(map(len, wanted)) > 3
    for clip, of_clip in enumerate(wanted):
        found = names["find_actions"](probabilities[clip].numpy(), boxes[clip].numpy(), threshold)
        assert [label for _, label, _ in found] == [action.label for action in of_clip]
        for (score, _, box), action in zip(found, of_clip, strict=True):
            corners = np.clip([*(box[:2] - box[2:] / 2), *(box[:2] + box[2:] / 2)], 0, 1)
            assert score == pytest.approx(action.score, abs=1e-5)
            assert corners == pytest.approx(np.array(action.box), abs=1e-5)


# The command


TINY = ModelConfig(("a", "b"), 32, 8, 5, 0, 1)


@pytest.fixture
def checkpoint(tiny_backbone: None, tmp_path: Path) -> Path:
    return save(trained_detector(TINY), tmp_path / "model.safetensors")


@pytest.fixture
def video(rendered: Path) -> Path:
    return min((rendered / "videos").iterdir())


@pytest.mark.parametrize("opset", [None, *(pytest.param(opset, marks=pytest.mark.slow) for opset in (20, 23))])
def test_the_command_prints_what_it_compared(
    actdet_command: Actdet, checkpoint: Path, video: Path, tmp_path: Path, opset: int | None
) -> None:
    out = tmp_path / "new" / "door.onnx"
    version = [] if opset is None else ["--opset", opset]
    outcome = actdet_command("export", checkpoint, "--out", out, "--video", video, *version)
    assert outcome.code == 0, outcome.err
    compared, differences, exported = outcome.out.splitlines()
    assert compared == f"compared with PyTorch on 3 clips of {video}, in batches of 1, 2 and 3"
    assert re.fullmatch(r"largest differences: (\w+ [\d.e-]+, ){5}\w+ [\d.e-]+", differences)
    assert exported.startswith(f"exported: {out} (")
    assert outcome.err == ""
    assert [path.name for path in out.parent.iterdir()] == ["door.onnx"]
    assert [each.version for each in onnx.load(out).opset_import] == [opset or 18]


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=pytest.mark.slow), "pt2"])
def test_an_earlier_export_is_replaced(checkpoint: Path, video: Path, tmp_path: Path, format: Any) -> None:
    first = export_model(checkpoint, format=format, video=video)
    assert first.path == tmp_path / f"model.{format}"
    before = first.path.stat().st_ino
    # What a killed process left of it goes.
    (tmp_path / f".model.{2**22 + 1}.partial.{format}").write_bytes(b"half")
    assert export_model(checkpoint, format=format, video=video).path == first.path
    assert first.path.stat().st_ino != before
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"model.{format}", "model.safetensors"]


def _other_onnx(path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "other", [value], [output])
    onnx.save(onnx.helper.make_model(graph, producer_name="somebody"), str(path))


def _other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.json", "{}")


OTHERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("a diary"),
    "nothing": lambda path: path.touch(),
    "another ONNX file": _other_onnx,
    "another archive": _other_zip,
    "half an archive": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
    "a folder": lambda path: path.mkdir(),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a pipe": lambda path: os.mkfifo(path),
}


def identity(path: Path) -> tuple[int, ...]:
    """What tells a file from one that replaced it or was written to; when it was last read is not among it."""
    found = os.lstat(path)
    return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_other_files_are_not_replaced(
    actdet_command: Actdet, checkpoint: Path, tmp_path: Path, format: str, kind: str
) -> None:
    out = tmp_path / f"mine.{format}"
    OTHERS[kind](out)
    before = identity(out)
    complaint = actdet_command("export", checkpoint, "--format", format, "--out", out).complaint()
    assert complaint == f"{out}: was not written by actdet export and would be replaced: choose another --out"
    assert identity(out) == before


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--out", "a.pt2"], "the name of a file of format onnx ends in .onnx, got a.pt2"),
        (["--out", "a", "--format", "pt2"], "the name of a file of format pt2 ends in .pt2, got a"),
        (["--format", "pt2", "--opset", 18], "opset is for format onnx: a pt2 file has no opset"),
        (["--video", "no/such.mp4"], "no/such.mp4: "),
        (["--video", "."], ".: "),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_in_one_line(
    actdet_command: Actdet, checkpoint: Path, tmp_path: Path, arguments: list[object], problem: str
) -> None:
    assert actdet_command("export", checkpoint, *arguments).complaint().startswith(problem)
    assert os.listdir(tmp_path) == [checkpoint.name]


def test_a_format_that_does_not_exist_is_refused(actdet_command: Actdet, checkpoint: Path) -> None:
    outcome = actdet_command("export", checkpoint, "--format", "tflite")
    assert outcome.code == 2
    assert "--format must be one of" in outcome.err
    with pytest.raises(ActdetError, match=r"^format must be onnx or pt2, got tflite$"):
        export_model(checkpoint, format="tflite")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("content", [None, b"", b"weights", b"\x00" * 100], ids=str)
def test_what_is_no_checkpoint_is_refused(actdet_command: Actdet, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    before = os.listdir(tmp_path)
    assert actdet_command("export", path).complaint().startswith(f"{path}: ")
    assert os.listdir(tmp_path) == before


def test_a_bad_video_is_named(actdet_command: Actdet, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(b"nothing")
    assert actdet_command("export", checkpoint, "--video", path).complaint().startswith(f"{path}: ")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("missing", [["onnxscript"], ["onnx", "onnxscript", "onnxruntime"]])
def test_missing_packages_are_named(
    actdet_command: Actdet, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, missing: list[str]
) -> None:
    found = export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name in missing else found(name))
    complaint = actdet_command("export", checkpoint).complaint()
    assert complaint == f"format onnx needs more packages: pip install {' '.join(missing)}, or use --format pt2"


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda value: value + 0.01,
    "boxes": lambda value: value * torch.nan,
    "label": lambda value: value + 1,
    "box": lambda value: value.flip(-1),
    "score": lambda value: value[:, None],
}


# Each takes two exports, and what is compared is the same for both formats.
QUICK = [("pt2", "logits"), ("pt2", "box")]


@pytest.mark.parametrize(
    ("format", "name"),
    [
        pytest.param(format, name, marks=[] if (format, name) in QUICK else [pytest.mark.slow])
        for format in ("onnx", "pt2")
        for name in WRONG
    ],
)
def test_a_file_that_computes_something_else_is_not_written(
    checkpoint: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any, name: str
) -> None:
    change = WRONG[name]

    class Wrong(ExportableDetector):
        def forward(self, clips: Tensor) -> dict[str, Tensor]:
            answer = super().forward(clips)
            return answer | {name: change(answer[name])}

    out = export_model(checkpoint, format=format, video=video).path
    before = out.read_bytes()
    monkeypatch.setattr(detector, "ExportableDetector", Wrong)
    with pytest.raises(DataError, match=f"^{re.escape(str(out))}: not written: its output {name} ") as caught:
        export_model(checkpoint, format=format, video=video)
    assert "\n" not in str(caught.value)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "model.safetensors"]


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=pytest.mark.slow), "pt2"])
def test_a_full_disk_leaves_nothing(checkpoint: Path, video: Path, tmp_path: Path, format: Any) -> None:
    with small_disk(100_000), pytest.raises(DataError, match="cannot be written: ") as caught:
        export_model(checkpoint, format=format, video=video)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [checkpoint.name]


@pytest.mark.parametrize("step", ["_trace", "_to_onnx", pytest.param("_load_onnx", marks=pytest.mark.slow)])
def test_an_exporter_that_fails_says_so_in_one_line(
    checkpoint: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such operator\nand a page of advice")

    monkeypatch.setattr(export, step, fail)
    with pytest.raises(DataError, match=r"(exported|run): RuntimeError: no such operator$"):
        export_model(checkpoint, video=video)
    assert os.listdir(tmp_path) == [checkpoint.name]


def test_the_settings_of_the_process_are_as_before(checkpoint: Path, video: Path) -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    export_model(checkpoint, format="pt2", video=video)
    assert torch.backends.mha.get_fastpath_enabled()
