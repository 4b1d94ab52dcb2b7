"""PTX written by hand, for the tests of the emulator: a kernel around instructions, and what runs it."""

from __future__ import annotations

import numpy as np

from tests.kernels.ptxsim.generator import Generator
from tests.kernels.ptxsim.machine import Machine
from tests.kernels.ptxsim.memory import GLOBAL_BASE, Space
from tests.kernels.ptxsim.parser import parse

ENTRY = """
.extern .shared .align 16 .b8 global_smem[];
.visible .entry k(
	.param .u64 .ptr .global .align 1 p0
)
.reqntid {threads}
{{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<9>;
	.reg .b64 	%rd<9>;
	ld.param.b64 	%rd1, [p0];
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd2, %r1, 8;
	add.s64 	%rd1, %rd1, %rd2;
{body}
	ret;
}}
"""

ATOM = "atom.global.gpu.relaxed.add"
RED = "red.global.gpu.relaxed.add"


def run(
    body: str, memory: np.ndarray, threads: int = 32, mode: str = "lockstep", seed: int = 0, programs: int = 1
) -> Machine:
    """CTAs that see `memory`, of 8 bytes each, at p0; %rd1 is the address of a thread's own."""
    program = parse(ENTRY.format(body=body, threads=threads))
    machine = Machine(program, Generator(program), programs, shared_size=1024)
    space = Space("global", memory.nbytes, GLOBAL_BASE, machine.granules["global"], machine.report)
    space.bytes[: memory.nbytes] = memory.view(np.uint8)
    space.valid[: memory.nbytes] = True
    try:
        machine.run(space, [np.uint64(GLOBAL_BASE)], mode, seed, together=2)
    finally:
        memory.view(np.uint8)[:] = space.bytes[: memory.nbytes]
    return machine
