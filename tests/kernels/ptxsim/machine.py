"""A CTA on NumPy: warps that are pre-empted at random, barriers, and what the lanes of a warp do together.

A unit is what runs together: one warp, or whole CTAs in lockstep. Its threads diverge by masks; those at the least
program counter run next, which brings them together again. Units change places only between memory accesses, since
nothing else that a warp does can be seen by another.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np

from .arithmetic import BARRIER, DIVERGED, EXIT, NAMES, Array
from .generator import Generator
from .memory import SHARED_BASE, Fault, Space, View
from .parser import WIDTHS, WRITING, Program

WARP = 32
LANES = np.arange(WARP)

# What registers hold that nobody wrote, and shared memory: as float32 the latter is NaN.
REGISTER_POISON = 0xDEADBEEFDEADBEEF
SHARED_POISON = np.array([0xF9, 0xFF, 0xC0, 0x7F], np.uint8)

# For how many steps a warp goes on before another may take its place.
QUANTA = (1, 1, 2, 3, 10, 100, 10**6)


def selected(mask: Array | None) -> slice | Array:
    """The threads of a mask as an index; None is all of them."""
    return slice(None) if mask is None else mask


class Unit:
    """Threads that run together.

    Generated code runs in `names`, where it finds its registers, and the methods below that take a mask of the threads
    that execute an instruction (None for all) and the instruction's index, `site`.

    Args:
        machine: The launch that they belong to.
        ctas: The numbers of the CTAs that they belong to.
        first: The first of the threads of each CTA.
        threads: How many threads of each CTA run here, a multiple of 32.

    Attributes:
        thread: As `memory.Threads` has it, and so have the next four.
        epoch: See there.
        synced: See there.
        met: See there.
        shared_shift: See there.
        cta_slot: Which of `ctas` each thread belongs to.
        alive: Whether each thread has not yet come to its end.
        waiting: Whether each thread waits at a barrier.
        segment: The number of the segment that all threads execute next; DIVERGED if each has its own.
        segments: The number of each thread's own, then.
        trace: The numbers of the segments that ran.
    """

    def __init__(self, machine: Machine, ctas: list[int], first: int, threads: int):
        self.machine = machine
        self.thread_count = threads * len(ctas)
        local = np.tile(np.arange(first, first + threads), len(ctas))
        cta = np.repeat(np.array(ctas), threads)
        self.cta_slot = np.repeat(np.arange(len(ctas)), threads)

        self.thread = (cta * machine.threads + local).astype(np.int32)
        self.epoch = cta.astype(np.int64) << 32
        self.synced = np.zeros(self.thread_count, np.int32)
        self.met = np.zeros(self.thread_count, np.int32)
        self.shared_shift = (self.cta_slot * machine.shared_size).astype(np.int64)

        self.alive = np.ones(self.thread_count, bool)
        self.waiting = np.zeros(self.thread_count, bool)
        self.segment = 0
        self.segments = np.zeros(self.thread_count, np.int32)
        self.trace: list[int] = []

        self.shared_view = View(machine.shared, self)
        self.names: dict[str, Any] = {
            **NAMES,
            **self._special_registers(local, cta),
            **self._registers(),
            **self._constants(),
            **{f"parameter_{index}": value for index, value in enumerate(machine.parameters)},
            "thread_count": self.thread_count,
            "global_memory": View(machine.global_memory, self),
            "shared": self.shared_view,
            "branch": self.branch,
            "barrier": self.barrier,
            "warp_sync": self.warp_sync,
            "shuffle": self.shuffle,
            "redux": self.redux,
            "vote": self.vote,
            "load_matrices": self.load_matrices,
            "store_matrices": self.store_matrices,
        }
        exec(machine.generator.code, self.names)
        self._functions = [self.names[f"all_{segment.index}"] for segment in machine.generator.segments]
        # Where each lane's value comes from in shuffles by constants.
        self._shuffles: dict[tuple[str, int, int], tuple[Array, Array]] = {}

    def _special_registers(self, local: Array, cta: Array) -> dict[str, Array]:
        """Those that a thread cannot write, for threads of the numbers `local` within their CTAs `cta`."""
        return {
            "true": np.ones(self.thread_count, bool),
            "false": np.zeros(self.thread_count, bool),
            "lane": (local % WARP).astype(np.uint32),
            "thread_x": local.astype(np.uint32),
            "cta_x": cta.astype(np.uint32),
            "thread_count_x": np.full(self.thread_count, self.machine.threads, np.uint32),
            "cta_count_x": np.full(self.thread_count, self.machine.programs, np.uint32),
            "shared_base_32": np.full(self.thread_count, SHARED_BASE, np.uint32),
            "shared_base_64": np.full(self.thread_count, SHARED_BASE, np.uint64),
        }

    def _registers(self) -> dict[str, Array]:
        """All others, with their views as signed integers (s), floating-point numbers (f) and pairs of those (p)."""
        arrays: dict[str, Array] = {}
        for register, type in self.machine.program.registers.items():
            name = register[1:]
            width = WIDTHS[type]
            if type == "pred":
                arrays[name] = np.zeros(self.thread_count, bool)
                continue
            bits = np.full(self.thread_count, REGISTER_POISON & (2**width - 1), f"uint{width}")
            arrays[name] = bits
            arrays[f"{name}s"] = bits.view(f"int{width}")
            if width > 8:
                arrays[f"{name}f"] = bits.view(f"float{width}")
            if width == 64:
                arrays[f"{name}p"] = bits.view(np.float32)
        return arrays

    def _constants(self) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        for name, (kind, bits) in self.machine.generator.constants.items():
            width = 8 * np.dtype(kind).itemsize
            arrays[name] = np.full(self.thread_count, bits, f"uint{width}").view(kind)
        return arrays

    def where(self, site: int) -> str:
        """An instruction as text: its line of the PTX, itself, and its line of the source."""
        instruction = self.machine.program.instructions[site]
        return f"ptx:{instruction.line} `{instruction}` [{instruction.place}]"

    # Running

    def step(self) -> bool:
        """Runs one segment of the threads that are least far.

        Returns:
            Whether any thread can go on without a barrier.

        Raises:
            Fault: Lanes of a warp wait for each other at different places.
        """
        mask = None
        segment = self.segment
        if segment == DIVERGED:
            chosen = self._least_far()
            if chosen is None:
                return False
            segment, mask = chosen
        self.trace.append(segment)
        result = self._functions[segment]() if mask is None else self._masked_function(segment)(mask)

        if result == BARRIER:
            self.segments[selected(mask)] = self.machine.generator.segments[segment].next
            self.waiting[selected(mask)] = True
            self.segment = DIVERGED
            return self.can_go_on()
        if result == EXIT:
            self.alive[selected(mask)] = False
            self.segment = DIVERGED
            return self.can_go_on()
        if result == DIVERGED:
            self._join()
        elif mask is None:
            self.segment = result
        else:
            self.segments[mask] = result
            self._join()
        return True

    def can_go_on(self) -> bool:
        return bool((self.alive & ~self.waiting).any())

    def _least_far(self) -> tuple[int, Array] | None:
        """A segment and the threads that execute it next, or None if all are at a barrier or their end.

        What lanes do together is left for later while some of their warp are elsewhere.
        """
        able = self.alive & ~self.waiting
        for segment in np.unique(self.segments[able]).tolist():
            mask = able & (self.segments == segment)
            if self.machine.generator.segments[segment].together:
                missing = (self.alive & ~mask).reshape(-1, WARP).any(1)
                mask &= ~missing.repeat(WARP)
            if mask.any():
                return segment, mask
        if able.any():
            raise Fault("lanes of a warp wait for each other at different places")
        return None

    def _masked_function(self, segment: int) -> Any:
        name = f"some_{segment}"
        if name not in self.names:
            exec(self.machine.generator.masked_code(segment), self.names)
        return self.names[name]

    def _join(self) -> None:
        """Goes on without masks as soon as all threads are at the same segment."""
        if (self.alive & ~self.waiting).all() and (self.segments == self.segments[0]).all():
            self.segment = int(self.segments[0])

    def branch(self, taken: Array, mask: Array, target: int, following: int) -> int:
        """The threads of a mask go to a segment if they are among those that take the branch, to another if not."""
        self.segments[mask] = following
        self.segments[taken] = target
        self.segment = DIVERGED
        return DIVERGED

    def release(self, slots: list[int]) -> None:
        """The threads of those of `ctas` go on from the barrier at which they wait."""
        chosen = np.isin(self.cta_slot, slots) & self.alive
        self.waiting[chosen] = False
        self.epoch[chosen] += 1
        self._join()

    # What lanes of a warp do together

    def _meet(self, mask: Array | None, site: int, what: str) -> None:
        """Counts a collective, which all lanes of a warp should execute."""
        self.met[selected(mask)] += 1
        if mask is not None:
            lanes = mask.reshape(-1, WARP)
            if (lanes.any(1) & ~lanes.all(1)).any():
                self.machine.report(f"{what} without all lanes", self.where(site), "", 1)

    def barrier(self, mask: Array | None, site: int) -> None:
        self._meet(mask, site, "bar.sync")

    def warp_sync(self, mask: Array | None, site: int) -> None:
        self._meet(mask, site, "bar.warp.sync")
        self.synced[selected(mask)] += 1

    def shuffle(
        self, values: Array, mode: str, lane: Array, clamp: Array, mask: Array | None, site: int, is_fixed: bool
    ) -> tuple[Array, Array]:
        """`shfl.sync`: the value of another lane, and whether there is that lane.

        Args:
            values: Of each lane.
            mode: How the other lane is found: "up", "down", "bfly" or "idx".
            lane: By how much, or which.
            clamp: The last lane that can be meant, and, from bit 8 on, the bits of a lane's number that stay its own.
            mask: The threads that execute it.
            site: The instruction's index.
            is_fixed: Whether `lane` and `clamp` are constants.
        """
        self._meet(mask, site, "shfl.sync")
        if not is_fixed:
            source, in_range = self._sources(mode, lane, clamp)
            return values[source], in_range
        key = (mode, int(lane[0]), int(clamp[0]))
        if key not in self._shuffles:
            self._shuffles[key] = self._sources(mode, lane, clamp)
        source, in_range = self._shuffles[key]
        return values[source], in_range

    def _sources(self, mode: str, operand: Array, clamp: Array) -> tuple[Array, Array]:
        """The thread whose value each gets, its own if there is none, and whether there is one."""
        lane = np.tile(LANES, self.thread_count // WARP)
        operand = operand.astype(np.int64) & 31
        last = clamp.astype(np.int64) & 31
        own_bits = (clamp.astype(np.int64) >> 8) & 31
        limit = (lane & own_bits) | (last & ~own_bits)

        if mode == "up":
            other = lane - operand
            in_range = other >= limit
        elif mode == "down":
            other = lane + operand
            in_range = other <= limit
        elif mode == "bfly":
            other = lane ^ operand
            in_range = other <= limit
        else:
            other = (lane & own_bits) | (operand & ~own_bits)
            in_range = other <= limit
        first_of_warp = np.arange(self.thread_count) // WARP * WARP
        return np.where(in_range, other, lane) + first_of_warp, in_range

    def redux(
        self, values: Array, operation: str, keeps_nan: bool, of_absolute: bool, mask: Array | None, site: int
    ) -> Array:
        """`redux.sync`: the values of all lanes reduced to one, which each lane gets."""
        self._meet(mask, site, "redux.sync")
        if of_absolute:
            values = np.absolute(values)
        keeps_nan = keeps_nan or values.dtype.kind != "f"
        functions = {
            "add": np.add,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
            "min": np.minimum if keeps_nan else np.fmin,
            "max": np.maximum if keeps_nan else np.fmax,
        }
        reduced = functions[operation].reduce(values.reshape(-1, WARP), axis=1, dtype=values.dtype)
        return reduced.repeat(WARP)

    def vote(self, asked: Array, mode: str, mask: Array | None, site: int) -> Array:
        """`vote.sync`: whether any or all lanes of a mask say yes, or, as a "ballot", a bit of each."""
        active = np.ones(self.thread_count, bool) if mask is None else mask
        rows = (asked & active).reshape(-1, WARP)
        if mode == "ballot":
            return (rows * (1 << LANES)).sum(1).astype(np.uint32).repeat(WARP)
        answer = rows.any(1) if mode == "any" else (rows | ~active.reshape(-1, WARP)).all(1)
        return answer.repeat(WARP)

    def load_matrices(
        self,
        address: Array,
        offset: int,
        registers: tuple[Array, ...],
        transposed: bool,
        mask: Array | None,
        site: int,
    ) -> None:
        """`ldmatrix` of matrices of 8 x 8 values of 16 bits, one for each register.

        Args:
            address: That of row l % 8 of matrix l / 8 is lane l's.
            offset: In bytes, added to each.
            registers: Each holds two neighbors of a row: lane l those of row l / 4 from column 2 (l % 4) on.
            transposed: Whether what is loaded as a row is a column of the matrix.
            mask: The threads that execute it.
            site: The instruction's index.
        """
        places, active = self._matrix_rows(address, offset, len(registers), mask, site, "ldmatrix")
        words = self.machine.shared.words(2)
        for index, register in enumerate(registers):
            matrices = words[places[:, index, :, None] // 2 + np.arange(8)]
            if transposed:
                matrices = matrices.swapaxes(1, 2)
            register.view(np.uint16).reshape(-1, 8, 4, 2)[active] = matrices.reshape(-1, 8, 4, 2)
        for index in range(len(registers)):
            lanes = self._matrix_lanes(active, index)
            self.shared_view.record_read(lanes, places[:, index].ravel(), 16, site)

    def store_matrices(
        self,
        address: Array,
        offset: int,
        registers: tuple[Array, ...],
        transposed: bool,
        mask: Array | None,
        site: int,
    ) -> None:
        """`stmatrix`, with the arguments of `load_matrices`."""
        places, active = self._matrix_rows(address, offset, len(registers), mask, site, "stmatrix")
        words = self.machine.shared.words(2)
        for index, register in enumerate(registers):
            matrices = register.view(np.uint16).reshape(-1, 8, 8)[active]
            if transposed:
                matrices = matrices.swapaxes(1, 2)
            indices = places[:, index, :, None] // 2 + np.arange(8)
            changed = (words[indices] != matrices).any(2)
            words[indices] = matrices
            lost = (words[indices] != matrices).any(2)
            lanes = self._matrix_lanes(active, index)
            self.shared_view.record_write(lanes, places[:, index].ravel(), 16, site, changed.ravel(), lost.ravel())

    def _matrix_rows(
        self, address: Array, offset: int, count: int, mask: Array | None, site: int, what: str
    ) -> tuple[Array, Array]:
        """The offset of each row in shared memory, (warps that take part, matrices, 8), and which warps take part."""
        self._meet(mask, site, what)
        _, places = self.shared_view.locate(address, offset, 16, None, site)
        rows = places.reshape(-1, WARP)[:, : 8 * count].reshape(-1, count, 8)
        active = np.ones(len(rows), bool) if mask is None else mask.reshape(-1, WARP)[:, 0]
        self.shared_view.check(rows[active].ravel(), 16, site, what)
        return rows[active], active

    def _matrix_lanes(self, active: Array, index: int) -> Array:
        """The threads that gave the addresses of the rows of that matrix."""
        return np.arange(self.thread_count).reshape(-1, WARP)[active][:, 8 * index : 8 * index + 8].ravel()


class Machine:
    """One launch.

    Args:
        program: What every thread runs.
        generator: Of that program.
        programs: The number of CTAs, which Triton calls programs.
        shared_size: The shared memory of each, in bytes.

    Attributes:
        findings: How often each (kind, instruction, other instruction) was found.
        granules: The bytes of the narrowest write to each kind of memory.
        traces: For each group of CTAs that ran together, the segments that each of its units ran.
    """

    def __init__(self, program: Program, generator: Generator, programs: int, shared_size: int):
        self.program = program
        self.generator = generator
        self.programs = programs
        self.threads = program.threads
        self.shared_size = -(-shared_size // 16) * 16
        self.findings: Counter[tuple[str, str, str]] = Counter()
        self.granules = {"global": 8, "shared": 8}
        for instruction in program.instructions:
            if instruction.base in WRITING:
                space = "shared" if instruction.is_shared else "global"
                size = 2 if instruction.base == "stmatrix" else WIDTHS[instruction.type] // 8
                self.granules[space] = min(self.granules[space], size)
        self.traces: list[list[list[int]]] = []

    def report(self, kind: str, here: str, there: str, count: int) -> None:
        """Counts a finding: an instruction, the other one if there is one, and how often it was found."""
        self.findings[kind, here, there] += count

    def run(
        self,
        memory: Space,
        parameters: list[Any],
        mode: str = "lockstep",
        seed: int = 0,
        together: int = 1,
        limit: int = 50_000_000,
    ) -> None:
        """Runs all CTAs.

        Args:
            memory: The global memory.
            parameters: The bits of each parameter of the kernel.
            mode: "lockstep", or "warps": one at a time, in a random order.
            seed: Of that order.
            together: How many CTAs run in lockstep with each other.
            limit: After so many steps of a group of CTAs the kernel is taken to hang.

        Raises:
            Fault: What a GPU would stop at, or leave undefined, or would never end.
        """
        self.global_memory = memory
        self.parameters = parameters
        self.random = random.Random(seed)
        if mode == "warps":
            together = 1
        with np.errstate(all="ignore"):
            for first in range(0, self.programs, together):
                ctas = list(range(first, min(first + together, self.programs)))
                self._run_ctas(ctas, mode, limit)

    def _run_ctas(self, ctas: list[int], mode: str, limit: int) -> None:
        size = self.shared_size * len(ctas)
        self.shared = Space("shared", size, SHARED_BASE, self.granules["shared"], self.report)
        self.shared.bytes[:] = np.resize(SHARED_POISON, len(self.shared.bytes))
        self.shared.valid[: self.shared.size] = True
        if mode == "lockstep":
            units = [Unit(self, ctas, 0, self.threads)]
        else:
            units = [Unit(self, ctas, first, WARP) for first in range(0, self.threads, WARP)]

        steps = 0
        while any(unit.alive.any() for unit in units):
            running = [unit for unit in units if unit.can_go_on()]
            if not running and not self._release(units, len(ctas)):
                raise Fault("nobody can go on: a barrier that not all threads reach")
            while running:
                steps += self._turn(units, running, len(ctas), mode)
                if steps > limit:
                    raise Fault(f"more than {limit} steps")
        self.traces.append([unit.trace for unit in units])

    def _turn(self, units: list[Unit], running: list[Unit], slots: int, mode: str) -> int:
        """One of the running units runs for a while, and is taken from them if it cannot go on. Returns its steps."""
        unit = running[self.random.randrange(len(running))] if len(running) > 1 else running[0]
        quantum = self.random.choice(QUANTA) if mode == "warps" else 10**9
        for step in range(1, quantum + 1):
            if not unit.step():
                running.remove(unit)
                return step
            # Of CTAs in lockstep, one may pass its barrier while others are on their way to it.
            if mode == "lockstep" and unit.waiting.any():
                self._release(units, slots)
        return quantum

    def _release(self, units: list[Unit], slots: int) -> bool:
        """CTAs of which every thread that is alive waits at a barrier go on. Returns whether there was one."""
        ready = []
        for slot in range(slots):
            members = [(unit, (unit.cta_slot == slot) & unit.alive) for unit in units]
            if any((mine & ~unit.waiting).any() for unit, mine in members):
                continue
            places = {place for unit, mine in members for place in unit.segments[mine].tolist()}
            if not places:
                continue
            ready.append(slot)
            if len(places) > 1:
                self.report("barrier at several places", str(sorted(places)), "", 1)

        if ready:
            for unit in units:
                unit.release(ready)
        return bool(ready)
