"""A CTA on NumPy: warps that are pre-empted at random, barriers, and what the lanes of a warp do together.

A unit is what runs together: one warp, or whole CTAs in lockstep. Its threads diverge by masks; those at the least
program counter run next, which brings them together again. Units change places only between memory accesses, since
nothing else that a warp does can be seen by another.
"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np

from .arithmetic import BARRIER, DIVERGED, EXIT, NAMES, f4, i4, i8, u1, u2, u4, u8
from .generator import Generator
from .memory import SHARED_BASE, Fault, Space
from .parser import WIDTHS, Program

LANE = np.arange(32)


class Unit:
    def __init__(self, machine: Machine, ctas: list[int], first: int, threads: int):
        """ctas: the CTAs whose threads [first, first + threads) run here."""
        self.machine, self.ctas = machine, ctas
        T = self.T = threads * len(ctas)
        local = np.tile(np.arange(first, first + threads), len(ctas))
        cta = np.repeat(np.array(ctas), threads)
        self.cta_slot = np.repeat(np.arange(len(ctas)), threads)
        self.tid = (cta * machine.threads + local).astype(i4)  # of all CTAs
        self.when = cta.astype(i8) << 32
        self.sync, self.meet = np.zeros(T, i4), np.zeros(T, i4)  # bar.warp.sync; and collectives of any kind
        self.shared_shift = (self.cta_slot * machine.shared_size).astype(i8)
        self.alive, self.waiting = np.ones(T, bool), np.zeros(T, bool)
        self.pc, self.pcs = 0, np.zeros(T, i4)  # pc of all, or -3: each its own in pcs
        self.trace: list[int] = []
        self.names = names = dict(NAMES)
        names.update(T=T, true=np.ones(T, bool), false=np.zeros(T, bool), laneid=(local % 32).astype(u4),
                     tid_x=local.astype(u4), ctaid_x=cta.astype(u4), ntid_x=np.full(T, machine.threads, u4),
                     nctaid_x=np.full(T, machine.programs, u4), shared_base=np.full(T, SHARED_BASE, u4),
                     shared_base64=np.full(T, SHARED_BASE, u8))  # fmt: skip
        for name, kind in machine.program.registers.items():
            width = WIDTHS[kind]
            if kind == "pred":
                names[name[1:]] = np.zeros(T, bool)
                continue
            array = np.full(T, 0xDEADBEEFDEADBEEF & (2**width - 1), f"u{width // 8}")
            names[name[1:]], names[name[1:] + "s"] = array, array.view(f"i{width // 8}")
            if width > 8:
                names[name[1:] + "f"] = array.view(f"f{width // 8}")
            if width == 64:
                names[name[1:] + "p"] = array.view(f4)
        for name, (kind, bits) in machine.generator.constants.items():
            names[name] = np.full(T, bits, f"u{kind[1:]}").view(kind)
        for k, value in enumerate(machine.arguments):
            names[f"P{k}"] = value
        names.update(
            glob=machine.glob.bind(self), shared=machine.shared.bind(self), shuffle=self.shuffle, redux=self.redux,
            vote=self.vote, barrier=self.barrier, warp_sync=self.warp_sync, branch=self.branch,
            matrix_ld=lambda *a: self.matrix("ld", *a), matrix_st=lambda *a: self.matrix("st", *a),
        )  # fmt: skip
        exec(machine.generator.code, names)
        count = len(machine.generator.segments)
        self.whole = [names[f"all_{k}"] for k in range(count)]
        self.permutations: dict = {}

    def where(self, site: int) -> str:
        ins = self.machine.program.instructions[site]
        return f"ptx:{ins.line} `{ins}` [{ins.place}]"

    def traffic(self, space, a, site):
        machine = self.machine
        machine.transactions[space] += len(set((a >> 7).tolist())) if space == "global" else 1

    # running --------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """One segment of the threads that are least far. False where nobody can go on before a barrier."""
        if self.pc >= 0:
            pc, m = self.pc, None
            self.trace.append(pc)
            result = self.whole[pc]()
        else:
            able = self.alive & ~self.waiting
            for pc in np.unique(self.pcs[able]).tolist():
                m = able & (self.pcs == pc)
                if self.machine.generator.together[pc]:  # only with all lanes of the warp
                    missing = (self.alive & ~m).reshape(-1, 32).any(1)
                    m &= ~missing.repeat(32)
                if m.any():
                    break
            else:
                if able.any():
                    raise Fault("lanes of a warp wait for each other at different places")
                return False
            self.trace.append(pc)
            self.machine.partial += 1
            if f"some_{pc}" not in self.names:
                exec(self.machine.generator.masked_code(pc), self.names)
            result = self.names[f"some_{pc}"](m)
        if result >= 0:
            if m is None:
                self.pc = result
            else:
                self.pcs[m] = result
                self.join()
        elif result == DIVERGED:
            self.join()
        elif result == EXIT:
            self.alive[slice(None) if m is None else m] = False
            self.pc = DIVERGED
            return bool((self.alive & ~self.waiting).any())
        elif result == BARRIER:
            self.pcs[slice(None) if m is None else m] = self.machine.generator.segments[pc].next
            self.waiting[slice(None) if m is None else m] = True
            self.pc = DIVERGED
            return bool((self.alive & ~self.waiting).any())
        return True

    def join(self):
        able = self.alive & ~self.waiting
        if able.all() and (self.pcs == self.pcs[0]).all():
            self.pc = int(self.pcs[0])

    def branch(self, taken, m, yes, no):
        self.pcs[m] = no
        self.pcs[taken] = yes
        self.pc = DIVERGED
        return DIVERGED

    def release(self, slots):
        chosen = np.isin(self.cta_slot, slots) & self.alive
        self.waiting[chosen] = False
        self.when[chosen] += 1
        self.join()

    # collectives ----------------------------------------------------------------------------------------------------

    def whole_warps(self, m, site, what):
        self.meet[slice(None) if m is None else m] += 1
        if m is not None:
            full = m.reshape(-1, 32)
            if (full.any(1) & ~full.all(1)).any():
                self.machine.report(f"{what} without all lanes", self.where(site), "", 1)

    def barrier(self, m, site):
        self.whole_warps(m, site, "bar.sync")
        self.machine.barriers += 1

    def warp_sync(self, m, site):
        self.whole_warps(m, site, "bar.warp.sync")
        self.sync[slice(None) if m is None else m] += 1

    def shuffle(self, x, mode, b, clamp, m, site, fixed):
        self.whole_warps(m, site, "shfl.sync")
        key = (mode, int(b[0]), int(clamp[0])) if fixed else None
        if key is None or key not in self.permutations:
            lane = np.tile(LANE, self.T // 32)
            b, c = b.astype(i8), clamp.astype(i8)
            cval, seg = c & 31, (c >> 8) & 31
            top, b = (lane & seg) | (cval & ~seg), b & 31
            if mode == "up":
                j, ok = lane - b, (lane - b) >= top
            elif mode == "down":
                j, ok = lane + b, (lane + b) <= top
            elif mode == "bfly":
                j, ok = lane ^ b, (lane ^ b) <= top
            else:
                j = (lane & seg) | (b & ~seg)
                ok = j <= top
            source = np.where(ok, j, lane) + (np.arange(self.T) // 32) * 32
            if key is None:
                return x[source], ok
            self.permutations[key] = source, ok
        source, ok = self.permutations[key]
        return x[source], ok

    def redux(self, x, operation, nan, absolute, m, site):
        self.whole_warps(m, site, "redux.sync")
        x = np.absolute(x) if absolute else x
        floating = x.dtype.kind == "f"
        ufunc = {"add": np.add, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
                 "min": np.minimum if nan or not floating else np.fmin,
                 "max": np.maximum if nan or not floating else np.fmax}[operation]  # fmt: skip
        return ufunc.reduce(x.reshape(-1, 32), axis=1, dtype=x.dtype).repeat(32)

    def vote(self, p, negate, mode, m, site):
        p = (~p if negate else p) & (True if m is None else m)
        rows = p.reshape(-1, 32)
        if mode == "ballot":
            return (rows * (1 << LANE)).sum(1).astype(u4).repeat(32)
        active = np.ones_like(rows) if m is None else m.reshape(-1, 32)
        answer = rows.any(1) if mode == "any" else (rows | ~active).all(1)
        return answer.repeat(32)

    def matrix(self, way, address, offset, registers, transposed, m, site):
        """ldmatrix and stmatrix of 8 x 8 matrices of 16 bits: lane l gives the address of row l % 8 of matrix l / 8."""
        self.whole_warps(m, site, way + "matrix")
        bound = self.names["shared"]
        space, n, warps = self.machine.shared, len(registers), self.T // 32
        _, a = bound.locate(address, offset, 16, None, site)
        rows = a.reshape(warps, 32)[:, : 8 * n].reshape(warps, n, 8)
        active = np.ones(warps, bool) if m is None else m.reshape(warps, 32)[:, 0]
        rows = rows[active]
        bound.check(rows.ravel(), 16, site, way + "matrix")
        if (rows % 16).any():
            raise Fault(f"misaligned {way}matrix at {self.where(site)}")
        halves = space.of[2]
        index = (rows // 2)[..., None] + np.arange(8)  # (warps, n, row, column)
        for k, register in enumerate(registers):
            parts = register.view(u2).reshape(warps, 8, 4, 2)  # lane = 4 row + column / 2
            if way == "ld":
                block = halves[index[:, k]]
                block = block.swapaxes(1, 2) if transposed else block
                parts[active] = block.reshape(-1, 8, 4, 2)
            else:
                block = parts[active].reshape(-1, 8, 8)
                block = block.swapaxes(1, 2) if transposed else block
                old = halves[index[:, k]].copy()
                halves[index[:, k]] = block
                lost = halves[index[:, k]] != block
                changed = old != block
                if space.races:
                    # of one warp's rows, lane = row
                    self.mark_matrix(bound, index[:, k], active, site, changed.any(2), lost.any(2), k)
        if way == "ld" and space.races:
            for k in range(n):
                self.mark_matrix(bound, index[:, k], active, site, None, None, k)

    def mark_matrix(self, bound, index, active, site, changes, lost, k):
        lanes = (np.arange(self.T).reshape(-1, 32)[active][:, 8 * k : 8 * k + 8]).ravel()
        flat = lambda x: None if x is None else x.ravel()  # noqa: E731
        bound.mark(lanes, (index[..., 0] * 2).ravel(), 16, site, flat(changes), flat(lost))


class Machine:
    """One launch. mode: "lockstep" (several CTAs at once), or "warps" in a random order that `seed` gives."""

    def __init__(self, program: Program, generator: Generator, programs: int, shared_size: int, races: bool = True):
        self.program, self.generator, self.programs = program, generator, programs
        self.threads, self.shared_size = program.threads, -(-shared_size // 16) * 16
        self.findings: Counter = Counter()
        self.barriers = self.partial = self.segments_run = self.barrier_rounds = 0
        self.races, self.transactions = races, Counter()
        stores = {"global": [8], "shared": [8]}
        for ins in program.instructions:
            if ins.base == "st":
                space = "shared" if any(p.startswith("shared") for p in ins.parts) else "global"
                stores[space].append(WIDTHS[ins.type()] // 8)
            if ins.base == "stmatrix":
                stores["shared"].append(2)
        self.granules = {name: min(sizes) for name, sizes in stores.items()}
        self.traces: list[tuple[int, list[int]]] = []

    def report(self, kind: str, here: str, there: str, count: int):
        self.findings[kind, here, there] += count

    def run(self, memory: Space, arguments: list, mode: str = "lockstep", seed: int = 0, together: int = 1,
            limit: int = 50_000_000):  # fmt: skip
        self.glob = memory
        self.glob.races = self.races
        self.random = random.Random(seed)
        self.scalars = arguments
        if mode == "warps":
            together = 1
        with np.errstate(all="ignore"):
            for first in range(0, self.programs, together):
                ctas = list(range(first, min(first + together, self.programs)))
                self.first_cta = first
                self.run_ctas(ctas, mode, limit)

    def run_ctas(self, ctas, mode, limit):
        self.shared = Space("shared", self.shared_size * len(ctas), SHARED_BASE, self.granules["shared"], self.report)
        self.shared.races = self.races
        self.shared.bytes[:] = np.resize(
            np.array([0xF9, 0xFF, 0xC0, 0x7F], u1), len(self.shared.bytes)
        )  # NaN, as float
        self.shared.valid[: self.shared.size] = True
        self.arguments = self.scalars
        if mode == "lockstep":
            units = [Unit(self, ctas, 0, self.threads)]
        else:
            units = [Unit(self, ctas, first, 32) for first in range(0, self.threads, 32)]
        steps = 0
        while True:
            running = [u for u in units if (u.alive & ~u.waiting).any()]
            while running:
                unit = running[self.random.randrange(len(running))] if len(running) > 1 else running[0]
                quantum = self.random.choice((1, 1, 2, 3, 10, 100, 10**6)) if mode == "warps" else 10**9
                for _ in range(quantum):
                    steps += 1
                    if not unit.step():
                        running.remove(unit)
                        break
                    if mode == "lockstep" and unit.waiting.any():
                        self.try_release(units, ctas)
                if steps > limit:
                    raise Fault(f"more than {limit} steps")
            if not any(u.alive.any() for u in units):
                break
            if not self.try_release(units, ctas):
                raise Fault("nobody can go on: a barrier that not all threads reach")
        self.segments_run += steps
        self.traces.append((len(ctas), [u.trace for u in units] if mode == "warps" else [units[0].trace]))

    def try_release(self, units, ctas) -> bool:
        """CTAs of which every thread that is alive waits go on."""
        ready = []
        for slot in range(len(ctas)):
            waits, places = False, set()
            for u in units:
                mine = (u.cta_slot == slot) & u.alive
                if (mine & ~u.waiting).any():
                    break
                if mine.any():
                    waits = True
                    places.update(u.pcs[mine].tolist())
            else:
                if waits:
                    ready.append(slot)
                    self.barrier_rounds += 1
                    if len(places) > 1:
                        self.report("barrier at several places", str(sorted(places)), "", 1)
        for u in units:
            if ready:
                u.release(ready)
        return bool(ready)
