"""Memory with bounds and poison, and the race detector.

Two accesses of different threads to the same place, one of them a write, are a race unless a barrier lies between them;
within a warp, unless a collective or bar.warp.sync does. Accesses of different CTAs to global memory are never ordered.
Atomic additions to one place are no race with each other; with any other access they are as a write is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .arithmetic import Array, atomic_sum

GLOBAL_BASE = 1 << 40
SHARED_BASE = 1024

# Instead of the thread that made the last access. Divided by 32, both are the number of no warp.
NOBODY = -1
SEVERAL_WARPS = -2

# Instead of the epoch of the last access. Divided by 2^32, it is the number of no CTA.
SEVERAL_CTAS = -1

# Which threads: all of them, or their indices.
Chosen = slice | Array

# Takes a finding: its kind, the instruction, the other instruction if there is one, and how often it happened.
Report = Callable[[str, str, str, int], None]


class Fault(Exception):
    """What a GPU would stop at, or leave undefined."""


class Threads(Protocol):
    """What memory must know of those who access it; every array has an entry for each of them.

    Attributes:
        thread: Their numbers in the whole grid, of which 32 are a warp. (int32)
        epoch: Their CTA, times 2^32, and the barriers that it has passed. (int64)
        synced: How many bar.warp.sync each has passed. (int32)
        met: How many collectives of any kind each has passed. (int32)
        shared_shift: Where the shared memory of their CTA begins, in bytes. (int64)
    """

    thread: Array
    epoch: Array
    synced: Array
    met: Array
    shared_shift: Array

    def where(self, site: int) -> str:
        """An instruction of that index as text."""
        ...


class LastAccesses:
    """The last read, write or atomic addition of each granule of a space: when, by whom and in which instruction.

    `meetings` counts what orders the lanes of a warp: for a read what `Threads` call met, for others what they call
    synced.
    """

    def __init__(self, granules: int):
        self.epoch = np.full(granules, -1, np.int64)
        self.thread = np.full(granules, NOBODY, np.int32)
        self.meetings = np.full(granules, -1, np.int32)
        self.site = np.full(granules, -1, np.int32)


@dataclass
class Access:
    """What one instruction does to granules; the arrays have an entry for each granule of each thread.

    Args:
        granules: Their indices.
        thread: As in `Threads`, and so are the three others.
        epoch: See there.
        synced: See there.
        met: See there.
        site: The index of the instruction.
    """

    granules: Array
    thread: Array
    epoch: Array
    synced: Array
    met: Array
    site: int


class Space:
    """Memory of one kind, and who touched it since the last barrier.

    Args:
        name: "global" or "shared".
        size: In bytes.
        base: The address of its first byte.
        granule: The bytes that share a record of their last access: those of the narrowest write.
        report: Takes what was found.

    Attributes:
        bytes: All of them, and a few behind the end.
        valid: Whether each byte may be touched.
    """

    def __init__(self, name: str, size: int, base: int, granule: int, report: Report):
        self.name = name
        self.size = size
        self.base = base
        self.granule = granule
        self.report = report

        padded = -(-size // 16) * 16 + 16
        self.bytes = np.zeros(padded, np.uint8)
        self.valid = np.zeros(padded, bool)
        self.writes = LastAccesses(padded // granule)
        self.reads = LastAccesses(padded // granule)
        self.additions = LastAccesses(padded // granule)
        self.written = np.zeros(padded // granule, bool)

    def words(self, size: int, signed: bool = False) -> Array:
        """The same bytes as integers of that size."""
        return self.bytes.view(f"{'i' if signed else 'u'}{size}")


class View:
    """A space as some threads see it: what they load and store is checked and recorded.

    Args:
        space: The memory.
        threads: Those who access it.
    """

    def __init__(self, space: Space, threads: Threads):
        self.space = space
        self.threads = threads

    def load(
        self,
        address: Array,
        offset: int,
        targets: Sequence[Array | None],
        size: int,
        signed: bool,
        mask: Array | None,
        site: int,
    ) -> None:
        """Loads one register or a vector of them.

        Args:
            address: Of each thread.
            offset: In bytes, added to each.
            targets: The registers; None where what is loaded goes nowhere.
            size: Bytes of one of them.
            signed: Whether a wider register is filled with the sign.
            mask: The threads that load; None for all.
            site: The index of the instruction.

        Raises:
            Fault: An address is out of bounds or misaligned.
        """
        chosen, places = self.locate(address, offset, size * len(targets), mask, site)
        if not len(places):
            return
        self.check(places, size * len(targets), site, "load")

        words = self.space.words(size, signed)
        for index, target in enumerate(targets):
            if target is not None:
                target[chosen] = words[places // size + index]
        self.record_read(chosen, places, size * len(targets), site)

    def store(
        self, address: Array, offset: int, sources: Sequence[Array], size: int, mask: Array | None, site: int
    ) -> None:
        """Stores one register or a vector of them; arguments and errors are those of `load`."""
        chosen, places = self.locate(address, offset, size * len(sources), mask, site)
        if not len(places):
            return
        self.check(places, size * len(sources), site, "store")

        words = self.space.words(size)
        indices = (places // size)[:, None] + np.arange(len(sources))
        values = np.stack([source[chosen] for source in sources], 1).astype(words.dtype)
        changed = (words[indices] != values).any(1)
        words[indices] = values
        lost = (words[indices] != values).any(1)
        self.record_write(chosen, places, size * len(sources), site, changed, lost)

    def add(
        self,
        address: Array,
        offset: int,
        targets: Sequence[Array | None],
        size: int,
        sources: Sequence[Array],
        mask: Array | None,
        site: int,
    ) -> None:
        """Adds one register or a vector of them to what is there, atomically, one thread after the other.

        Arguments and errors are those of `load`; `targets` get what was there before, `sources` are added as numbers of
        their type.
        """
        chosen, places = self.locate(address, offset, size * len(sources), mask, site)
        if not len(places):
            return
        self.check(places, size * len(sources), site, "atomic")

        words = self.space.bytes.view(sources[0].dtype)
        turns = turns_of(places)
        found = []
        for index, source in enumerate(sources):
            indices = places // size + index
            values = source[chosen]
            before = np.empty_like(values)
            for turn in turns:
                before[turn] = words[indices[turn]]
                words[indices[turn]] = atomic_sum(before[turn], values[turn])
            found.append(before)
        # Not earlier: a register may be a target and a source.
        for target, before in zip(targets, found, strict=True):
            if target is not None:
                target[chosen] = before
        self.record_addition(chosen, places, size * len(sources), site)

    def locate(self, address: Array, offset: int, size: int, mask: Array | None, site: int) -> tuple[Chosen, Array]:
        """Which threads take part, and the offset in the space of each, in bytes.

        Raises:
            Fault: One of the accesses, of `size` bytes each, does not lie within the space.
        """
        space = self.space
        chosen = slice(None) if mask is None else np.flatnonzero(mask)
        # The bits of an address of 64 bits are kept; one of 32 bits is widened.
        wide = address.view(np.int64) if address.dtype == np.uint64 else address.astype(np.int64)
        places = wide[chosen] + (offset - space.base)
        if space.name == "shared":
            places = places + self.threads.shared_shift[chosen]

        outside = (places < 0) | (places + size > space.size)
        if outside.any():
            raise Fault(
                f"{space.name} access out of bounds at {self.threads.where(site)}: {outside.sum()} threads, "
                f"first at {places[outside][0]} of {space.size}"
            )
        return chosen, places

    def check(self, places: Array, size: int, site: int, what: str) -> None:
        """Raises a Fault if accesses of `size` bytes are misaligned, or not to what an argument spans."""
        if (places % size).any():
            raise Fault(f"misaligned {what} at {self.threads.where(site)}")
        invalid = ~(self.space.valid[places] & self.space.valid[places + (size - 1)])
        if invalid.any():
            raise Fault(
                f"{self.space.name} {what} outside of any allocation at {self.threads.where(site)}: "
                f"{invalid.sum()} threads, offset {places[invalid][0]}"
            )

    # The race detector

    def record_read(self, chosen: Chosen, places: Array, size: int, site: int) -> None:
        """Records reads of `size` bytes, and reports writes that no barrier separates from them."""
        space = self.space
        access, _ = self._access(chosen, places, size, site)

        unwritten = ~space.written[access.granules]
        if space.name == "shared" and unwritten.any():
            space.report("uninitialized read", self.threads.where(site), "", int(unwritten.sum()))
        never = np.zeros(len(access.granules), bool)
        self._report_unordered("RAW", space.writes, access, access.synced, never)
        self._report_unordered("read after atomic", space.additions, access, access.synced, never)
        self._remember_who(space.reads, access, access.met)

    def record_write(self, chosen: Chosen, places: Array, size: int, site: int, changed: Array, lost: Array) -> None:
        """Records writes of `size` bytes, and reports accesses that no barrier separates from them.

        Args:
            chosen: The threads.
            places: Their offsets in the space, in bytes.
            size: Bytes of each access.
            site: The index of the instruction.
            changed: Whether what each thread wrote differs from what was there.
            lost: Whether another thread wrote something else over it in the same instruction.
        """
        space = self.space
        access, count = self._access(chosen, places, size, site)
        changed = changed.repeat(count)
        lost = lost.repeat(count)
        harmless = ~changed & ~lost
        self._report_unordered("WW", space.writes, access, access.synced, harmless)
        # A value that was read before a shuffle is known at the shuffle, but a write may not have been done.
        self._report_unordered("WAR", space.reads, access, access.met, harmless)
        # Not even a store of what is there is harmless: before the addition, it would have changed the sum.
        never = np.zeros(len(access.granules), bool)
        self._report_unordered("write after atomic", space.additions, access, access.synced, never)

        self._remember(space.writes, access, access.synced)
        space.written[access.granules] = True
        last = space.writes.thread[access.granules]
        twice = last != access.thread
        same_warp = last >> 5 == access.thread >> 5
        self._report("WW in one instruction", twice, same_warp, ~lost, access, None)

    def record_addition(self, chosen: Chosen, places: Array, size: int, site: int) -> None:
        """Records atomic additions of `size` bytes, and reports other accesses that no barrier separates from them."""
        space = self.space
        access, _ = self._access(chosen, places, size, site)
        never = np.zeros(len(access.granules), bool)
        self._report_unordered("atomic after write", space.writes, access, access.synced, never)
        self._report_unordered("atomic after read", space.reads, access, access.met, never)
        self._remember_who(space.additions, access, access.synced)

    def _access(self, chosen: Chosen, places: Array, size: int, site: int) -> tuple[Access, int]:
        """The access, and how many granules each thread touches."""
        threads = self.threads
        count = max(1, size // self.space.granule)
        granules = (places // self.space.granule)[:, None] + np.arange(count)
        access = Access(
            granules.ravel(),
            threads.thread[chosen].repeat(count),
            threads.epoch[chosen].repeat(count),
            threads.synced[chosen].repeat(count),
            threads.met[chosen].repeat(count),
            site,
        )
        return access, count

    def _remember(self, accesses: LastAccesses, access: Access, meetings: Array) -> None:
        accesses.epoch[access.granules] = access.epoch
        accesses.thread[access.granules] = access.thread
        accesses.meetings[access.granules] = meetings
        accesses.site[access.granules] = access.site

    def _remember_who(self, accesses: LastAccesses, access: Access, meetings: Array) -> None:
        """Remembers one of the accesses that are no race with each other.

        If several warps made some, or several CTAs, any access that is a race with them is of another one.
        """
        granules = access.granules
        epoch = accesses.epoch[granules]
        thread = accesses.thread[granules]
        several_ctas = (thread != NOBODY) & (epoch >> 32 != access.epoch >> 32)
        several_warps = (thread != NOBODY) & (thread >> 5 != access.thread >> 5) & (epoch == access.epoch)

        self._remember(accesses, access, meetings)
        several_ctas |= accesses.epoch[granules] >> 32 != access.epoch >> 32
        several_warps |= accesses.thread[granules] >> 5 != access.thread >> 5
        accesses.thread[granules[several_warps | several_ctas]] = SEVERAL_WARPS
        accesses.epoch[granules[several_ctas]] = SEVERAL_CTAS

    def _report_unordered(
        self, kind: str, accesses: LastAccesses, access: Access, meetings: Array, harmless: Array
    ) -> None:
        """Reports which of the last accesses nothing separates from this one; `meetings` is this one's count."""
        before = accesses.thread[access.granules]
        other = (before != access.thread) & (before != NOBODY)
        if not other.any():
            return

        then = accesses.epoch[access.granules]
        other_cta = then >> 32 != access.epoch >> 32
        unordered = other & ((then == access.epoch) | (other_cta & (self.space.name == "global")))
        same_warp = (before >> 5 == access.thread >> 5) & ~other_cta
        unordered &= ~same_warp | (accesses.meetings[access.granules] == meetings)
        self._report(kind, unordered, same_warp, harmless, access, accesses.site)

    def _report(
        self, kind: str, found: Array, same_warp: Array, harmless: Array, access: Access, sites: Array | None
    ) -> None:
        """Reports what was found by its scope, and by whether it is harmless, as the values agree.

        Args:
            kind: "RAW", for example.
            found: Which entries of the access are meant. So are those of the next two.
            same_warp: Whether the other access is of the same warp.
            harmless: Whether values agree.
            access: This one.
            sites: The instruction of the last access to each granule; None where it is the same one.
        """
        if not found.any():
            return
        for scope, in_scope in (("between warps", ~same_warp), ("within a warp", same_warp)):
            for label, agreeing in (("", ~harmless), (" (same value)", harmless)):
                which = found & in_scope & agreeing
                if which.any():
                    other = "" if sites is None else self.threads.where(int(sites[access.granules[which]][0]))
                    here = self.threads.where(access.site)
                    self.space.report(f"{kind} {scope}{label}", here, other, int(which.sum()))


def turns_of(places: Array) -> list[Array]:
    """The indices of the first access to each place, then those of the second ones, and so on."""
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    # How many accesses to the same place come before each one.
    earlier = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    by_turn = order[np.argsort(earlier, kind="stable")]
    return np.split(by_turn, np.cumsum(np.bincount(earlier))[:-1])
