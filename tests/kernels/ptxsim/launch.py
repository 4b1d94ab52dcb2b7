"""The host code of `actdet_kernels` on CPU tensors, with every launch compiled for a GPU and run by the machine."""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton
from actdet_kernels import backend, gates
from actdet_kernels.triton import launch
from torch import Tensor
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .generator import Generator
from .machine import Machine
from .memory import GLOBAL_BASE, Space
from .parser import Program, parse

# Bytes before, between and behind the arguments in the emulated memory, where nothing may be touched.
GUARD = 256

# Threads that run at once in lockstep: more of them make NumPy's calls fewer.
LOCKSTEP_THREADS = 4096


@dataclass
class Record:
    """What one launch did."""

    kernel: str
    capability: int
    block: str
    warps: int
    machine: Machine


# The program of each kernel and its settings, and the shared memory that it takes, in bytes. Tests put mutants here.
COMPILED: dict[Any, tuple[Generator, int]] = {}


def compiled(kernel: Any, values: dict[str, Any], capability: int) -> tuple[Generator, int]:
    """As `gates.compiled_for`, with what JITFunction would specialize: pointers at a multiple of 16, wide integers."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if isinstance(value, Tensor):
            signature[parameter.name] = gates.POINTERS[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[index,] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, int):
            assert parameter.do_not_specialize, parameter.name
            signature[parameter.name] = "i32" if is_narrow(value) else "i64"
        else:
            signature[parameter.name] = "fp32"
    options = {name: value for name, value in values.items() if name not in kernel.arg_names}

    key = (kernel.__name__, capability, str(signature), str(constants), str(attributes), str(options))
    if key not in COMPILED:
        source = ASTSource(kernel, signature, constants, attributes)
        # ptxas is slow, and what it makes is not read. Without it, the result must not get into the user's cache.
        with (
            tempfile.TemporaryDirectory() as cache,
            mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache),
            # The class that compiles, which is another one than that of the same name to be imported in Triton 3.3.
            mock.patch.object(backends["nvidia"].compiler, "make_cubin", return_value=b""),
        ):
            done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        COMPILED[key] = Generator(parse(done.asm["ptx"])), done.metadata.shared
    return COMPILED[key]


class Emulator:
    """Runs what is launched while it is active.

    Args:
        capability: the architecture to compile for, 90 for sm_90.
        mode: "lockstep", which is quick, or "warps": one at a time, in a random order.
        seed: of that order.

    Attributes:
        records: what each launch did, in order.
    """

    def __init__(self, capability: int = 90, mode: str = "lockstep", seed: int = 0):
        self.capability = capability
        self.mode = mode
        self.seed = seed
        self.records: list[Record] = []

    @contextmanager
    def active(self) -> Iterator[Emulator]:
        """While active, kernels that are asked for by backend="triton" run here, on CPU tensors."""
        with (
            mock.patch.object(launch, "launch", self.launch),
            mock.patch.object(launch, "empty", poisoned),
            mock.patch.object(launch, "capability", return_value=divmod(self.capability, 10)),
            mock.patch.object(backend, "_obstacle", return_value=None),
        ):
            yield self

    def findings(self) -> Counter:
        """How often each (kind, instruction, other instruction) was found."""
        return sum((record.machine.findings for record in self.records), Counter())

    def races(self) -> Counter:
        """What was found, but for accesses that agree on the value."""
        return Counter({key: count for key, count in self.findings().items() if "same value" not in key[0]})

    def launch(self, kernel: Any, programs: int, **values: Any) -> None:
        if programs <= 0:
            return
        generator, shared = compiled(kernel, values, self.capability)
        program = generator.program
        machine = Machine(program, generator, programs, shared)
        passed = [values[parameter.name] for parameter in kernel.params if not parameter.is_constexpr]
        passed = [value for value in passed if value is not None]
        memory, homes = arena([value for value in passed if isinstance(value, Tensor)], machine)
        parameters = bits_of_parameters(program, passed, homes)

        # Registers are much wider for many threads; a solver's programs diverge, which lockstep makes slow.
        alone = any(instruction.base == "bra" and instruction.predicate for instruction in program.instructions)
        together = 1 if alone else max(1, LOCKSTEP_THREADS // program.threads)
        block = "x".join(str(values[name]) for name in kernel.arg_names if name.startswith("BLOCK"))
        self.records.append(Record(kernel.__name__, self.capability, block, program.threads // 32, machine))
        try:
            machine.run(memory, parameters, self.mode, self.seed, together)
        finally:
            for start, storage in homes.values():
                view = bytes_of(storage)
                view[:] = memory.bytes[start : start + len(view)]


def bits_of_parameters(program: Program, passed: list[Any], homes: dict[int, tuple[int, Any]]) -> list[Any]:
    """The bits of each parameter; behind those of the kernel are two of Triton's own, for scratch memory: null."""
    bits: list[Any] = []
    for value in passed:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            base = homes[storage.data_ptr()][0] if storage.nbytes() else GUARD
            bits.append(np.uint64(GLOBAL_BASE + base + value.storage_offset() * value.element_size()))
        elif isinstance(value, int):
            bits.append(np.uint32(value & (2**32 - 1)) if is_narrow(value) else np.uint64(value & (2**64 - 1)))
        else:
            bits.append(np.float32(value).view(np.uint32))
    bits += [np.uint64(0)] * (len(program.parameters) - len(bits))

    names = [name for name, _ in program.parameters]
    for (name, kind), value in zip(program.parameters, bits, strict=True):
        assert kind.endswith("64") == (value.dtype.itemsize == 8), f"{name} is a {kind}, {value!r} was given"
    for instruction in program.instructions:
        # Into a register of 64 bits.
        if instruction.opcode == "ld.param.s32":
            index = names.index(instruction.operands[1].strip("[]"))
            bits[index] = sign_extended(bits[index])
    return bits


def is_narrow(value: int) -> bool:
    return -(2**31) <= value < 2**31


def sign_extended(value: np.generic) -> np.generic:
    return np.int64(value.view(np.int32)).view(np.uint64) if value.dtype.itemsize == 4 else value


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, math.nan if dtype.is_floating_point else -7, dtype=dtype, device=device)


def bytes_of(storage: Any) -> np.ndarray:
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()


def arena(tensors: list[Tensor], machine: Machine) -> tuple[Space, dict[int, tuple[int, Any]]]:
    """One memory with all storages in it, guards between; only what an argument spans may be touched."""
    homes, end = {}, GUARD
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in homes and storage.nbytes():
            start = end + (storage.data_ptr() - end) % 256
            homes[storage.data_ptr()] = (start, storage)
            end = start + storage.nbytes() + GUARD
    memory = Space("global", end + GUARD, GLOBAL_BASE, machine.granules["global"], machine.report)
    for start, storage in homes.values():
        data = bytes_of(storage)
        memory.bytes[start : start + len(data)] = data
    for tensor in tensors:
        if tensor.numel():
            storage = tensor.untyped_storage()
            first = homes[storage.data_ptr()][0] + tensor.storage_offset() * tensor.element_size()
            span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            memory.valid[first : first + span * tensor.element_size()] = True
    return memory, homes
