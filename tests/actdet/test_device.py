"""Which arithmetic is chosen on which device, and that the machine is described as it is."""

from __future__ import annotations

import pytest
import torch

from actdet import device as device_module
from actdet.device import choose_device, choose_precision
from actdet.environment import describe_environment
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
        dtype, reason = choose_precision("auto", torch.device("cpu"))
    assert dtype == expected
    assert "bf16" in reason


@pytest.mark.parametrize("available", [True, False])
def test_the_gpu_comes_first(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device().type == ("cuda" if available else "cpu")


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
    from actdet import environment

    def version(package: str) -> str:
        raise environment.PackageNotFoundError(package)

    monkeypatch.setattr(environment, "version", version)
    found = dict(describe_environment())
    assert found["triton"] == found["dali"] == "not installed"
