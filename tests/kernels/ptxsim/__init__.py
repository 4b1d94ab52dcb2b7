"""What Triton compiled, run without a GPU: PTX on NumPy, under the kernels' own host code.

Triton makes PTX for any architecture on any machine. `Emulator` replaces `launch.launch`, compiles each kernel as that
launch would, and runs its PTX: a row for every register, a column for every thread. Unlike Triton's interpreter it has
warps, layouts, shuffles, shared memory, barriers and threads that diverge.

    emulator = Emulator(capability=90, mode="warps", seed=0)
    with emulator.active():
        matched = actdet_kernels.match(logits, boxes, targets, backend="triton")  # tensors on the CPU
    assert not emulator.races()

    python -m tests.kernels.ptxsim model  # in a checkout: modeled time of each kernel, nothing measured

Files: `parser` reads PTX, `generator` makes Python of it, `arithmetic` is what that Python calls. `memory` has bounds,
poison and the race detector; `machine` has warps, barriers and collectives. `launch` is the host's side, for which
kernels must not have been imported under TRITON_INTERPRET=1. `timing` is a model of time, of which `__main__` prints a
table.

Modes: in "lockstep" all threads of some CTAs run at once, which is quick. In "warps" one warp runs at a time and is
pre-empted at random between its accesses to memory, so that a race changes results.

What stops a run (`Fault`): an access outside of what an argument spans, one that is misaligned, and a barrier that not
all threads reach. What is counted: reads and writes of one place by two threads without a barrier between them (the
same with equal values apart, as it is harmless), atomic additions and any other access likewise, reads of shared memory
that nobody wrote, and collectives without all lanes of a warp. Registers, shared memory and results start as poison.

Limits, all of them reasons why a kernel that passes here may still fail on a GPU:

- ptxas does not run: neither its allocation of registers, nor its contraction of `mul` and `add` without `.rn`, nor its
  bugs, nor what it refuses, such as `.relaxed` and so all of Triton's own atomics for sm_60.
- Approximate functions (`div.full`, `ex2`, `lg2`, `rcp`, `sqrt`) are computed as exactly as NumPy can; a GPU's are not.
- `fma.f32` is rounded twice, and so is `fma.f64` in rare ties. The sign of a zero out of `min` and `max` may differ.
- A CTA's accesses to global memory are sequentially consistent, and CTAs run one after the other, or in lockstep.
- Atomics are served in the order of lanes and of CTAs. A GPU has no order, and rounds each sum as it comes.
- Of atomics, there are relaxed additions to global memory, of integers, float32 and float64. All others, tensor cores,
  TMA, clusters and calls are not there: `NotImplementedError` names the instruction.
- Divergent threads meet again as soon as they can; a GPU may let them run apart for longer.
"""
