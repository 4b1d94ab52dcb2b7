"""Memory with bounds and poison, and the race detector.

Two accesses of different threads to the same place, one of them a write, are a race unless a barrier lies between them;
within a warp, unless a collective or bar.warp.sync does. Accesses of different CTAs to global memory are never ordered.
"""

from __future__ import annotations

import numpy as np

from .arithmetic import i4, i8, u1, u8

GLOBAL_BASE = 1 << 40
SHARED_BASE = 1024


class Fault(Exception):
    """What a GPU would stop at, or leave undefined."""


class Space:
    """Memory of one kind, and who touched it since the last barrier."""

    def __init__(self, name: str, size: int, base: int, granule: int, report):
        self.name, self.base, self.size, self.granule, self.report = name, base, size, granule, report
        size = -(-size // 16) * 16 + 16
        self.bytes = np.zeros(size, u1)
        self.valid = np.zeros(size, bool)
        self.of = {n: self.bytes.view(f"u{n}") for n in (1, 2, 4, 8)}
        count = size // granule
        # the last write and the last read of each granule: CTA and epoch (barriers passed), thread, warp-barriers
        self.w_when, self.r_when = np.full(count, -1, i8), np.full(count, -1, i8)
        self.w_who, self.r_who = np.full(count, -1, i4), np.full(count, -1, i4)
        self.w_sync, self.r_sync = np.full(count, -1, i4), np.full(count, -1, i4)
        self.w_site, self.r_site = np.full(count, -1, i4), np.full(count, -1, i4)
        self.written = np.zeros(count, bool)
        self.races = True

    def bind(self, unit) -> Bound:
        return Bound(self, unit)


class Bound:
    """A space as one unit sees it."""

    def __init__(self, space: Space, unit):
        self.space, self.unit = space, unit

    def locate(self, address, offset, size, m, site):
        space, unit = self.space, self.unit
        select = None if m is None else np.flatnonzero(m)
        a = address.view(i8) if address.dtype == u8 else address.astype(i8)
        if a.shape[0] != unit.T:
            a = np.broadcast_to(a, unit.T)
        if select is not None:
            a = a[select]
        a = a + (offset - space.base)
        if space.name == "shared":
            a = a + (unit.shared_shift if select is None else unit.shared_shift[select])
        if len(a) and (int(a.min()) < 0 or int(a.max()) + size > space.size):
            bad = np.flatnonzero((a < 0) | (a + size > space.size))
            raise Fault(f"{space.name} access out of bounds at {unit.where(site)}: {len(bad)} threads, "
                        f"first at {a[bad[0]]} of {space.size}")  # fmt: skip
        return select, a

    def check(self, a, size, site, what):
        space = self.space
        ok = space.valid[a] & space.valid[a + (size - 1)]
        if not ok.all():
            bad = np.flatnonzero(~ok)
            raise Fault(f"{space.name} {what} outside of any allocation at {self.unit.where(site)}: "
                        f"{len(bad)} threads, offset {a[bad[0]]}")  # fmt: skip

    def load(self, address, offset, targets, size, signed, m, site):
        total = size * len(targets)
        select, a = self.locate(address, offset, total, m, site)
        if not len(a):
            return
        if (a % total).any():
            raise Fault(f"misaligned load at {self.unit.where(site)}")
        self.check(a, total, site, "load")
        self.raw_load(select, a, targets, size, signed, site)

    def raw_load(self, select, a, targets, size, signed, site):
        space = self.space
        memory = space.of[size] if not signed else space.of[size].view(f"i{size}")
        index = a // size
        for k, target in enumerate(targets):
            if target is not None:
                if select is None:
                    target[...] = memory[index + k]
                else:
                    target[select] = memory[index + k]
        self.unit.traffic(space.name, a, site)
        if space.races:
            self.mark(select, a, size * len(targets), site, None, None)

    def store(self, address, offset, sources, size, m, site):
        total = size * len(sources)
        select, a = self.locate(address, offset, total, m, site)
        if not len(a):
            return
        if (a % total).any():
            raise Fault(f"misaligned store at {self.unit.where(site)}")
        self.check(a, total, site, "store")
        space = self.space
        memory, index = space.of[size], a // size
        index = index[:, None] + np.arange(len(sources))
        columns = [np.broadcast_to(source, self.unit.T) for source in sources]
        if select is not None:
            columns = [column[select] for column in columns]
        values = np.stack(columns, 1).astype(memory.dtype)
        changes = (memory[index] != values).any(1)
        memory[index] = values
        self.unit.traffic(space.name, a, site)
        if space.races:
            lost = (memory[index] != values).any(1)
            self.mark(select, a, total, site, changes, lost)

    def mark(self, select, a, total, site, changes, lost):
        """Record an access, and report those of other threads since the last barrier between them."""
        space, unit = self.space, self.unit
        g = space.granule
        who = unit.tid if select is None else unit.tid[select]
        when = unit.when if select is None else unit.when[select]
        sync = unit.sync if select is None else unit.sync[select]
        meet = unit.meet if select is None else unit.meet[select]
        cells = a // g
        if total > g:
            n = total // g
            cells = (cells[:, None] + np.arange(n)).ravel()
            who, when, sync, meet = who.repeat(n), when.repeat(n), sync.repeat(n), meet.repeat(n)
            if changes is not None:
                changes, lost = changes.repeat(n), lost.repeat(n)
        writes = changes is not None
        if not writes and space.name == "shared" and not space.written[cells].all():
            space.report("uninitialised read", unit.where(site), "", int((~space.written[cells]).sum()))
        kinds = [("WW" if writes else "RAW", space.w_when, space.w_who, space.w_sync, space.w_site)]
        if writes:
            kinds.append(("WAR", space.r_when, space.r_who, space.r_sync, space.r_site))
        for kind, times, whos, syncs, sites in kinds:
            before = whos[cells]
            other = (before != who) & (before != -1)
            if not other.any():
                continue
            then = times[cells]
            other_cta = (then >> 32) != (when >> 32)
            unordered = other & ((then == when) | other_cta & (space.name == "global"))
            if not unordered.any():
                continue
            same_warp = ((before >> 5) == (who >> 5)) & ~other_cta
            harmless = (~changes & ~lost) if writes else np.zeros(len(cells), bool)
            for scope, chosen in (
                ("between warps", unordered & ~same_warp),
                # a value that was read before a shuffle is known at the shuffle; a write may not be
                ("within a warp", unordered & same_warp & (syncs[cells] == (meet if kind == "WAR" else sync))),
            ):
                for label, some in (("", chosen & ~harmless), (" (same value)", chosen & harmless)):
                    if some.any():
                        first = np.flatnonzero(some)[0]
                        space.report(f"{kind} {scope}{label}", unit.where(site),
                                     unit.where(int(sites[cells[first]])), int(some.sum()))  # fmt: skip
        if writes:
            space.w_when[cells], space.w_who[cells], space.w_sync[cells], space.w_site[cells] = when, who, sync, site
            space.written[cells] = True
            # several threads in one instruction
            twice = space.w_who[cells] != who
            if twice.any():
                warps = twice & ((space.w_who[cells] >> 5) != (who >> 5))
                for scope, chosen in (("between warps", warps), ("within a warp", twice & ~warps)):
                    for label, some in (("", chosen & lost), (" (same value)", chosen & ~lost)):
                        if some.any():
                            space.report(f"WW in one instruction {scope}{label}", unit.where(site), "", int(some.sum()))
        else:
            before = space.r_who[cells]
            mixed = (space.r_when[cells] == when) & (before != -1) & ((before >> 5) != (who >> 5))
            space.r_when[cells], space.r_who[cells], space.r_sync[cells], space.r_site[cells] = when, who, meet, site
            mixed |= (space.r_who[cells] >> 5) != (who >> 5)
            if mixed.any():
                space.r_who[cells[mixed]] = -2  # several warps: any writer is another
