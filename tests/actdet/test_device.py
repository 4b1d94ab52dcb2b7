"""Which arithmetic is chosen on which device, and that the machine is described as it is."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from actdet import device as device_module
from actdet.cli.env import describe_environment
from actdet.device import choose_device, choose_precision, choose_step
from actdet.errors import ActdetError

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("precision", "capability", "expected"),
    [
        ("fp32", (9, 0), FP32),
        ("bf16", (9, 0), BF16),
        ("fp16", (9, 0), FP16),
        ("auto", (12, 0), BF16),
        ("auto", (8, 0), BF16),
        ("auto", (7, 5), FP16),
        ("fp16", (7, 5), FP16),
        ("fp32", (7, 5), FP32),
        ("bf16", (7, 5), "8.0 or newer"),
        ("fp32", None, FP32),
        ("bf16", None, BF16),
        ("fp16", None, "needs a GPU"),
    ],
)
def test_precision_of_a_device(
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    capability: tuple[int, int] | None,
    expected: torch.dtype | str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda" if capability else "cpu")
    if isinstance(expected, str):
        with pytest.raises(ActdetError, match=expected) as caught:
            choose_precision(precision, device)
        assert "\n" not in str(caught.value)
    else:
        dtype, reason = choose_precision(precision, device)
        assert dtype == expected
        assert reason == "asked for" or precision == "auto"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu sse2 avx512f avx512_bf16 amx_tile", BF16),
        ("flags : fpu amx_bf16", BF16),
        ("Features : asimd bf16 i8mm", BF16),
        ("flags : fpu sse2 avx512f", FP32),
        ("flags : fpu notbf16 bf16x", FP32),
        ("", FP32),
        (None, FP32),
    ],
)
def test_precision_of_a_cpu_follows_its_flags(
    monkeypatch: pytest.MonkeyPatch, flags: str | None, expected: torch.dtype
) -> None:
    def read(path: object, *arguments: object, **options: object) -> str:
        assert str(path) == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError
        return f"processor : 0\n{flags}\n"

    with monkeypatch.context() as patch:
        patch.setattr(device_module.Path, "read_text", read)
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        patch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        dtype, reason = choose_precision("auto", torch.device("cpu"))
    assert dtype == expected
    assert "bf16" in reason


@pytest.mark.parametrize(("capability", "onednn"), [("AVX2", ""), ("AVX512", "AVX2"), ("AVX2", "avx2")])
def test_units_that_are_masked_are_not_used(monkeypatch: pytest.MonkeyPatch, capability: str, onednn: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", onednn)
    with monkeypatch.context() as patch:
        patch.setattr(device_module.Path, "read_text", lambda *_, **__: "flags : avx512_bf16 amx_bf16\n")
        dtype, _ = choose_precision("auto", torch.device("cpu"))
    assert dtype == FP32


@pytest.mark.parametrize("available", [True, False])
def test_the_gpu_comes_first(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device().type == ("cuda" if available else "cpu")


@pytest.mark.parametrize(
    ("name", "found", "taken"),
    [("cpu", 0, None), ("cpu", 2, None), ("auto", 2, None), ("cuda", 2, None), ("cuda:0", 1, 0), ("cuda:1", 2, 1)],
)
def test_a_device_that_is_there_is_taken(
    monkeypatch: pytest.MonkeyPatch, name: str, found: int, taken: int | None
) -> None:
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device(name) == torch.device("cpu" if name == "cpu" else "cuda")
    assert current == ([] if taken is None else [taken])


@pytest.mark.parametrize(
    ("name", "found", "problem"),
    [
        ("cuda", 0, "device cuda not found: PyTorch sees no GPU"),
        ("cuda:0", 0, "device cuda:0 not found: PyTorch sees no GPU"),
        ("cuda:1", 1, "device cuda:1 not found: PyTorch sees one GPU, cuda:0"),
        ("cuda:9999", 8, "device cuda:9999 not found: PyTorch sees 8 GPUs, cuda:0 to cuda:7"),
        *(
            (name, 2, f"device must be auto, cpu, cuda or cuda:N, got {name}")
            for name in ("gpu", "cuda:", "cuda:-1", "cuda:1e3", "CPU", "", "cpu:0", "meta", "cuda:" + "1" * 30)
        ),
    ],
)
def test_a_device_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, found: int, problem: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(ActdetError) as caught:
        choose_device(name)
    assert str(caught.value) == problem


def test_the_environment_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = dict(describe_environment())
    assert torch.__version__.startswith(found["torch"])
    assert found["device"] == f"CPU, {torch.get_num_threads()} threads: torch finds no CUDA device"
    assert found["reader"].startswith("pyav: ")
    assert found["precision"].split(":")[0] in {"bfloat16", "float32"}
    assert found["matching and loss"]
    assert all("\n" not in value for value in found.values())


def test_a_package_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from actdet.cli import parsing as commands

    def version(package: str) -> str:
        raise commands.PackageNotFoundError(package)

    monkeypatch.setattr(commands, "version", version)
    found = dict(describe_environment())
    assert found["triton"] == found["dali"] == "not installed"


@pytest.mark.parametrize(
    ("asked", "device", "processes", "checkpointing", "expected"),
    [
        ("auto", "cpu", 1, False, "eager"),
        ("auto", "cpu", 2, True, "eager"),
        ("auto", "cuda", 1, False, "graph"),
        ("auto", "cuda", 1, True, "graph"),
        ("auto", "cuda", 4, False, "eager"),
        ("eager", "cuda", 1, False, "eager"),
        ("graph", "cuda", 1, True, "graph"),
        ("compile", "cuda", 1, False, "compile"),
        ("compile", "cuda", 2, False, "step compile supports one process only: use auto or eager"),
        ("graph", "cpu", 1, False, "step graph needs a GPU: use auto, eager or compile"),
        ("graph", "cuda", 2, False, "step graph supports one process only: use auto or eager"),
        ("compile", "cuda", 1, True, "--step compile does its own recomputation"),
    ],
)
def test_how_a_step_is_launched(
    asked: str, device: str, processes: int, checkpointing: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
    given = {"processes": processes, "checkpointing": checkpointing}
    if expected not in ("graph", "eager", "compile"):
        with pytest.raises(ActdetError) as caught:
            choose_step(asked, torch.device(device), **given)
        assert str(caught.value).startswith(expected)
    else:
        step, reason = choose_step(asked, torch.device(device), **given)
        assert step == expected
        assert (reason == "asked for") == (asked != "auto")


@pytest.mark.parametrize("step", ["auto", "eager", "graph", "compile"])
def test_a_pascal_gpu_does_everything_but_compile(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's compiler refuses such a GPU with a traceback."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (6, 1))
    if step != "compile":
        assert choose_step(step, torch.device("cuda"))[0] in ("eager", "graph")
        return
    with pytest.raises(ActdetError) as caught:
        choose_step(step, torch.device("cuda"))
    assert str(caught.value) == (
        "step compile needs a GPU of compute capability 7.0 or newer: use auto, eager or graph"
    )


def test_compiling_on_a_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ActdetError) as caught:
        choose_step("compile", torch.device("cpu"))
    assert str(caught.value).startswith("step compile needs a C++ compiler on a CPU")


# Counts the page faults of ten large tensors before and after `prepare_device`. The first ones after it may still take
# new memory: small objects come to lie where a large one was, until the heap has places for both.
MAPS = """
import torch
from actdet.device import prepare_device
def faults():
    return int(open("/proc/self/stat").read().rpartition(")")[2].split()[7])
def count():
    for _ in range(30):
        torch.ones(2**24)
    before = faults()
    for _ in range(10):
        torch.ones(2**24)
    return faults() - before
plain = count()
prepare_device(torch.device("cpu"))
print(plain, count())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for page faults")
def test_a_prepared_cpu_keeps_freed_memory() -> None:
    """Ten blocks of 64 MiB. If each is given back to the system, the next is mapped page by page, of at most 2 MiB."""
    done = subprocess.run([sys.executable, "-c", MAPS], capture_output=True, text=True, check=True)
    plain, prepared = map(int, done.stdout.split())
    assert plain > 250
    assert prepared < plain / 2
