# SPDX-License-Identifier: Apache-2.0
"""Listings, which outlive the child that they began at.

A child's offsets mean nothing to another one, nor to itself once its link was lost (it counts its entries again).  Then
a listing begins from the start on a child with a good copy and leaves out the names that were given out already: a
name that is there all the time is listed exactly once (decision 0131).  A copy that is good for the names of its
directory may be old for what the names mean: attributes come from good copies, also those that distribute asks for in
a listing without attributes, to tell its link files from files.  Each beginning is a leg; its number stands
above the child's own bits in the offsets that callers get.
Errors: ENOTCONN when no good copy answers, or when more names than replicate remembers were given out.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from repl.files.translators.replicate.changelog import Kind
from repl.files.translators.replicate.inodes import FdState
from repl.files.translators.replicate.reads import RETRIED, Reads
from repl.files.values import LAST, ROOT, Caller, Entry, Fd, FopError, Want
from repl.limits import FILES_LISTING_LEGS_MAX, FILES_LISTING_REMEMBERED_MAX

# distribute takes 12 bits below, a mount those at the top: 2^40 entries of a child, 2^10 legs.
LEG_SHIFT = 40
HEAL_COUNT = b"glusterfs.heal-count"  # of features/index: how many inodes are pending on a brick
_AT = (1 << LEG_SHIFT) - 1


def _longs() -> array[int]:
    return array("q")


@dataclass(slots=True)
class Leg:
    """What one child gave out, in order: names (their hashes) and the offsets behind them."""

    index: int
    losses: int  # of the child's link when the leg began
    names: array[int] = field(default_factory=_longs)
    offsets: array[int] = field(default_factory=_longs)

    def back_to(self, at: int) -> bool:
        """The caller goes on behind the entry with this offset: what came later is given out once more.  False: no
        such entry was given out."""
        count = 0
        if at:
            if self.offsets and self.offsets[-1] == at:
                return True
            try:
                count = self.offsets.index(at) + 1
            except ValueError:
                return False
        del self.names[count:], self.offsets[count:]
        return True


class Listing:
    """Of one open directory.  ``skipped``: the names that all legs but the last one gave out."""

    __slots__ = ("is_calm", "is_remembered", "legs", "skipped")

    def __init__(self) -> None:
        self.is_calm: bool | None = None  # nobody accuses the child of the last leg; None: not asked yet
        self.legs: list[Leg] = []
        self.skipped: frozenset[int] = frozenset()
        self.is_remembered = True

    @property
    def leg(self) -> Leg:
        return self.legs[-1]

    def back_to(self, offset: int) -> int:
        """Where in its last leg the listing goes on behind an offset that it gave out."""
        number, at = offset >> LEG_SHIFT, offset & _AT
        if number < len(self.legs) - 1:
            del self.legs[number + 1 :]
            self.skipped = self._given(self.legs[:-1])
        if self.is_remembered and not self.leg.back_to(at):
            self._forget()
        return at

    def begin(self, index: int, losses: int) -> None:
        self.skipped = self._given(self.legs)
        self.legs.append(Leg(index, losses))
        self.is_calm = None

    def give(self, entries: Sequence[Entry]) -> None:
        if self.is_remembered:
            self.leg.names.extend([hash(entry.name) for entry in entries])
            self.leg.offsets.extend([entry.offset for entry in entries])
            if sum(len(leg.names) for leg in self.legs) > FILES_LISTING_REMEMBERED_MAX:
                self._forget()
        above = len(self.legs) - 1 << LEG_SHIFT
        for entry in entries:
            entry.offset |= above

    def _given(self, legs: Sequence[Leg]) -> frozenset[int]:
        return frozenset(chain.from_iterable(leg.names for leg in legs))

    def _forget(self) -> None:
        self.is_remembered = False
        for leg in self.legs:
            del leg.names[:], leg.offsets[:]


class Listings(Reads):
    async def readdir(
        self, caller: Caller, fd: Fd, *, size: int, offset: int, is_plus: bool = False, want: Want = ()
    ) -> list[Entry]:
        state = self.fd_state(fd)
        tried, failure = 0, None
        listing = state.listing
        if offset == 0 or listing is None:
            state.listing = listing = Listing()
            await self._begin(state, listing, 0, None)
        at = listing.back_to(offset)
        while True:
            leg = listing.leg
            if self._goes_on(listing):
                try:
                    return await self._list(caller, state, listing, size, at, is_plus, want)
                except OSError as error:
                    if error.errno not in RETRIED:
                        raise
                    failure = failure or error
                tried |= 1 << leg.index
            await self._begin(state, listing, tried, failure)
            at = 0

    def _goes_on(self, listing: Listing) -> bool:
        leg = listing.leg
        is_same = self.losses[leg.index] == leg.losses or not listing.is_remembered
        return bool(self.up >> leg.index & 1) and is_same

    async def _list(
        self, caller: Caller, state: FdState, listing: Listing, size: int, at: int, is_plus: bool, want: Want
    ) -> list[Entry]:
        index = listing.leg.index
        await self.ensure_open(state, 1 << index)
        is_checked = is_plus or (any(key != LAST for key in want) and not await self._is_calm(listing))
        wanted = (*want, *self.want_keys) if is_checked else want
        while True:
            found = await self.subvolumes[index].readdir(
                caller, state.lower, size=size, offset=at, is_plus=is_checked, want=wanted
            )
            entries = self.visible(state.inode.gfid, found)
            if listing.skipped:
                entries = [entry for entry in entries if hash(entry.name) not in listing.skipped]
            if entries or not found:
                break
            at = found[-1].offset
        if is_checked and entries:
            await self.check_entries(entries, index, want)
            for entry in entries if not is_plus else ():
                entry.iatt = None
        listing.give(entries)
        return entries

    async def _is_calm(self, listing: Listing) -> bool:
        """Whether all other children say that nothing is pending: then the child that is listed has no old copy."""
        if listing.is_calm is None:
            others = self.everyone & ~(1 << listing.leg.index)
            caller = Caller(client=self.context.process, is_internal=True)
            answers = await self.ask(others, lambda c: c.getxattr(caller, ROOT, HEAL_COUNT))
            counts = [None if isinstance(a, OSError) else a.get(HEAL_COUNT) for a in answers.values()]
            listing.is_calm = all(count == b"0" for count in counts)
        return listing.is_calm

    async def _begin(self, state: FdState, listing: Listing, tried: int, failure: OSError | None) -> None:
        """At a child that was not tried."""
        if not listing.is_remembered or len(listing.legs) >= FILES_LISTING_LEGS_MAX:
            away = self.names[listing.leg.index]
            raise failure or FopError(errno.ENOTCONN, f"{self.name}: the listing came from {away}, which is away")
        left = await self.readable(state.inode, Kind.ENTRY) & ~tried
        if not left:
            raise failure or self.nobody("going on with a listing")
        index = self.read_order(state.inode.gfid, left, 0)[0]
        listing.begin(index, self.losses[index])
