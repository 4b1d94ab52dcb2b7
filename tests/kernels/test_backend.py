"""Which implementation runs where, and that each does without what the others need."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from actdet_kernels import assign, backend, explain_backend, gather_clips

from tests.kernels.device import HAS_CPP, NEEDS_COMPILER

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
NEEDS_CPP = pytest.mark.skipif(not HAS_CPP, reason="the C++ kernels were not built")
NOT_BUILT = "the C++ kernels were not built, which takes a C++ compiler when this package is installed"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    caches = (backend._obstacle, backend._cpu_obstacle)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "NATIVE", "actdet_kernels.cpu.nowhere")


@NEEDS_COMPILER
def test_the_kernels_are_built_where_there_is_a_compiler() -> None:
    assert backend._cpu_obstacle() is None


@NEEDS_CPP
@pytest.mark.parametrize("interpret", ["0", "1"])
def test_the_automatic_choice_on_a_cpu_is_cpp(interpret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    assert backend.choose_backend("auto", CPU) == backend.choose_backend("cpu", CPU) == "cpu"
    assert backend.choose_backend("reference", CPU) == "reference"
    assert backend.choose_backend("auto", CPU, cpu_obstacle="no C++ code computes this") == "reference"
    assert backend.choose_backend("auto", torch.device("mps")) == "reference"
    assert explain_backend(CPU) in [f"cpu: C++ kernels, {isa}" for isa in ("baseline", "avx2", "avx512")]
    assert explain_backend(torch.device("mps")) == "reference: kernels are for CUDA devices and CPUs, but this is mps"


def test_where_they_were_not_built_the_reference_goes_on(not_built: None) -> None:
    cost = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert assign(cost).tolist() == [[1, 0]]
    assert backend.choose_backend("auto", CPU) == "reference"
    assert explain_backend(CPU) == f"reference: {NOT_BUILT}"
    with pytest.raises(RuntimeError, match=f"^backend .cpu. cannot run: {re.escape(NOT_BUILT)}$"):
        assign(cost, backend="cpu")


def test_what_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_kernels.py").write_text("raise ImportError('libstdc++.so.6: version not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backend, "NATIVE", "broken_kernels")
    assert explain_backend(CPU) == "reference: the C++ kernels cannot be loaded (libstdc++.so.6: version not found)"


def test_the_interpreter_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="there is no Triton for this platform")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.choose_backend("triton", CPU) == "triton"
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run on cpu: no kernel computes this"):
        backend.choose_backend("triton", CPU, "no kernel computes this")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="cannot run on cpu: kernels run on CUDA devices, and on a CPU under"):
        backend.choose_backend("triton", CPU)
    with pytest.raises(RuntimeError, match="cannot run on mps: kernels run on CUDA devices"):
        backend.choose_backend("triton", torch.device("mps"))


@NEEDS_CPP
@pytest.mark.parametrize(("capability", "choice"), [((5, 2), "cpu"), ((6, 0), "triton"), ((9, 0), "triton")])
def test_the_automatic_choice_on_a_gpu(
    capability: tuple[int, int], choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="there is no Triton for this platform")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert backend.choose_backend("auto", CUDA) == choice
    assert backend.choose_backend("auto", CUDA, "no kernel computes this") == "cpu"
    assert backend.choose_backend("auto", CUDA, "no kernel computes this", "nor that") == "reference"
    text = explain_backend(CUDA)
    assert text.startswith(choice)
    assert "\n" not in text


def test_a_gpu_without_any_kernels_has_the_reference(not_built: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (5, 2))
    assert backend.choose_backend("auto", CUDA) == "reference"
    assert explain_backend(CUDA) == f"reference: its compute capability is 5.2, but kernels need 6.0; {NOT_BUILT}"


def test_a_problem_beyond_triton_is_solved_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    cost = torch.zeros(1, 1, 2**15 + 1)
    with pytest.raises(RuntimeError, match="cannot run on cpu: 1 x 32769 is larger than 32768"):
        assign(cost, backend="triton")
    assert (assign(cost) >= 0).sum() == 1


def test_clips_that_the_kernel_does_not_compute_are_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    frames, indices = torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="cannot run on cpu: clips are computed in float32"):
        gather_clips(frames, indices, dtype=torch.float64, backend="triton")
    assert gather_clips(frames, indices, dtype=torch.float64).dtype == torch.float64
    large = torch.empty(1, 2**14, 2**15 + 1, 3, dtype=torch.uint8)  # of which nothing is touched
    with pytest.raises(RuntimeError, match="cannot run on cpu: 16384 x 32769 is more than 536870912 pixels"):
        gather_clips(large, indices, backend="triton")


BROKEN = """
import sys, torch, actdet_kernels
assert "triton" not in sys.modules
cost = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
assert actdet_kernels.assign(cost).tolist() == [[1, 0]]
assert "triton" not in sys.modules
try:
    actdet_kernels.assign(cost, backend="triton")
except RuntimeError as error:
    print(error)
"""


def test_without_a_working_triton_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise OSError('libcuda is\\nnowhere')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", BROKEN], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    reason = "Triton cannot be imported (OSError: libcuda is nowhere)"
    assert done.stdout.strip() == f"backend 'triton' cannot run on cpu: {reason}"
