"""Compiles every kernel for one architecture, without a GPU, and prints a line of JSON for each.

A process of its own, because kernels that were imported under TRITON_INTERPRET=1 cannot be compiled:
python tests/kernels/ahead_of_time.py 90
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
import triton.backends
import triton.language as tl
from actdet_kernels import matching
from actdet_kernels.arguments import compiler_options
from actdet_kernels.assignment import assign_kernel, solver_options
from actdet_kernels.cost import BLOCK_M, BLOCK_N, pairwise_cost_kernel
from actdet_kernels.losses import BLOCK_I, BLOCK_L, gradient_kernel, loss_options, set_loss_kernel, total_kernel
from actdet_kernels.matching import match_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

WEIGHTS = {"CLS": 2.0, "L1": 5.0, "GIOU": 2.0}
TARGETS = {"labels": "*i64", "target_boxes": "*fp32", "counts": "*i32", "visible": None}


def predictions(dtype: str, class_cost: str, **more: Any) -> dict[str, Any]:
    compute = tl.float64 if dtype == "*fp64" else tl.float32
    return {"logits": dtype, "boxes": dtype, **TARGETS, **WEIGHTS, "CLASS_COST": class_cost, "DTYPE": compute, **more}


def problem(dtype: str, block: int, **more: Any) -> dict[str, Any]:
    compute = tl.float64 if dtype == "*fp64" else tl.float32
    sides = {"row_of_column": "*i64", "column_of_row": "*i64", "status": "*i32"}
    return {"cost": dtype, **sides, "SIGN": 1, "DTYPE": compute, "BLOCK": block, **more}


NO_DUALS = {"counts": None, "row_dual": None, "column_dual": None}
DUALS = {"counts": "*i32", "row_dual": "*fp64", "column_dual": "*fp64"}
FOUND = {"matched": "*i64", "status": "*i32", "BLOCK_C": 8}
TILE = {"out": "*fp32", "BLOCK_N": BLOCK_N, "BLOCK_M": BLOCK_M, "BLOCK_C": 64}

LOSSES = dict.fromkeys(("sums", "total", "cls", "l1", "giou", "divisors"), "*fp32")
TOTALS = {"DTYPE": tl.float32, "BLOCK_L": BLOCK_L, "BLOCK_I": BLOCK_I}
GRADIENTS = {"d_total": "*fp32", "d_cls": None, "d_l1": None, "d_giou": None, "d_logits": "*bf16", "d_boxes": "*fp32"}


def losses(dtype: str, class_loss: str, classes: int, **more: Any) -> dict[str, Any]:
    compute = torch.float64 if dtype == "*fp64" else torch.float32
    options = loss_options(compute, 0.1, class_loss, classes)
    return {
        "logits": dtype,
        "boxes": "*fp32",
        **TARGETS,
        **WEIGHTS,
        "matched": "*i64",
        "sums": "*fp32",
        "divisors": "*fp32",
        "PER_LAYER": False,
        **options,
        **more,
    }


CASES = [
    (assign_kernel, problem("*bf16", 1024, **NO_DUALS)),
    (assign_kernel, problem("*fp64", 1024, **DUALS)),
    (pairwise_cost_kernel, predictions("*fp16", "softmax", **TILE)),
    (pairwise_cost_kernel, predictions("*bf16", "focal", **TILE | {"out": "*bf16"})),
    (match_kernel, predictions("*fp32", "softmax", **FOUND, BLOCK=128)),
    (match_kernel, predictions("*bf16", "softmax", **FOUND, BLOCK=matching.FUSED_BLOCK[torch.float32])),
    (match_kernel, predictions("*fp64", "focal", **FOUND, BLOCK=matching.FUSED_BLOCK[torch.float64])),
    (pairwise_cost_kernel, predictions("*fp32", "softmax", visible="*i1", **TILE)),
    (set_loss_kernel, losses("*bf16", "cross_entropy", 92)),
    (set_loss_kernel, losses("*fp64", "focal", 3, visible="*i1")),
    (total_kernel, {**WEIGHTS, **LOSSES, "counts": "*i32", "CROSS_ENTROPY": True, "PER_LAYER": False, **TOTALS}),
    (gradient_kernel, losses("*bf16", "cross_entropy", 92, **GRADIENTS)),
    (gradient_kernel, losses("*fp64", "focal", 3, visible="*i1", **GRADIENTS)),
]


def compile_case(kernel: Any, arguments: dict[str, Any], capability: int) -> dict[str, Any]:
    """A pointer's type is a string with a star; what is not named is an int32; the rest is a constant."""
    signature, constants = {}, {}
    for name in kernel.arg_names:
        value = arguments.get(name, "i32")
        if isinstance(value, str) and (value.startswith("*") or value == "i32"):
            signature[name] = value
        else:
            signature[name], constants[name] = "constexpr", value
    options = compiler_options()
    if "BLOCK" in arguments:
        options = solver_options(arguments["BLOCK"])
        constants["TILE"] = options.pop("TILE")
        signature["TILE"] = "constexpr"
        del options["BLOCK"]
    source = ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return {
        "kernel": kernel.__name__,
        "inputs": arguments.get("cost") or arguments.get("logits"),
        "block": arguments.get("BLOCK"),
        "recompiled_for": specialised(kernel, signature),
        **resources(compiled.asm["cubin"]),
    }


def specialised(kernel: Any, signature: dict[str, str]) -> list[str]:
    """The sizes for whose values (1, multiples of 16) a new kernel would be compiled at run time."""
    names = {name for name, kind in signature.items() if kind == "i32"}
    return [
        parameter.name for parameter in kernel.params if parameter.name in names and not parameter.do_not_specialize
    ]


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, and bytes of stack, to which registers are spilt, as cuobjdump counts them."""
    tool = Path(triton.backends.__file__).parent / "nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    fields = dict(field.split(":")[:2] for field in text.split() if field.startswith(("REG:", "STACK:")))
    return {"registers": int(fields["REG"]), "stack": int(fields["STACK"])}


if __name__ == "__main__":
    for kernel, arguments in CASES:
        print(json.dumps(compile_case(kernel, arguments, int(sys.argv[1]))), flush=True)
