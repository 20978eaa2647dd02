# SPDX-License-Identifier: Apache-2.0
"""Where a heal keeps what lost its name on a copy: ``.glusterfs-anonymous-inode-ID`` in the root of each brick.

An inode that a good copy does not have under that name any more may have been renamed there: its new name takes it from
here (``heal_entries``).  What no other copy has anywhere is removed (``clean``), directories from the top: what is in
them moves up first, because it may live on elsewhere.
"""

from __future__ import annotations

import errno
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from repl.files.answers import GONE, Answers, errors_of, good_of
from repl.files.translator import Translator
from repl.files.translators.replicate.base import bits, mask_of
from repl.files.translators.replicate.changelog import Counts, Kind, accusations
from repl.files.values import ROOT_GFID, Caller, Entry, Fd, Iatt, Loc, gfid_text
from repl.limits import FILES_DEPTH_MAX

if TYPE_CHECKING:
    from repl.files.translators.replicate.transactions import Transactions

log = logging.getLogger(__name__)
PREFIX = b".glusterfs-anonymous-inode-"
_SPACE = uuid.UUID("6c1a5a5e-53a0-4f0a-a4c1-2f8e1b6d3f20")
_LISTING_BYTES = 64 * 1024

Lasts: TypeAlias = Callable[[int, bytes], Awaitable[bool]]  # whether the name that a child has for a gfid will stay


class Aside:
    """The places of one replicate volume."""

    def __init__(self, afr: Transactions, name: bytes) -> None:
        self.afr = afr
        self.name = name
        self.used = 0  # children on which something lies there
        self._places: dict[tuple[int, int], bytes] = {}

    def _caller(self) -> Caller:
        return self.afr.owner()

    async def place(self, index: int) -> bytes:
        """The gfid of the directory on that child, which is made when it is missing."""
        key = (index, self.afr.generation)
        if key not in self._places:
            if len(self._places) > 4 * self.afr.count:
                self._places.clear()
            self._places[key] = await self._make(index)
        return self._places[key]

    async def _make(self, index: int) -> bytes:
        child, caller = self.afr.subvolumes[index], self._caller()
        loc = Loc(parent=ROOT_GFID, name=self.name)
        try:
            return (await child.lookup(caller, loc)).iatt.gfid
        except OSError as error:
            if error.errno not in GONE:
                raise
        gfid = uuid.uuid5(_SPACE, self.name.hex()).bytes
        try:
            return (await child.mkdir(caller, loc, mode=0o700, gfid=gfid)).iatt.gfid
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
        return (await child.lookup(caller, loc)).iatt.gfid

    def _loc(self, place: bytes, gfid: bytes) -> Loc:
        return Loc(gfid, place, gfid_text(gfid).encode())

    async def put(self, index: int, loc: Loc, gfid: bytes) -> None:
        """The name goes, the inode stays."""
        place = await self.place(index)
        source = Loc(gfid, loc.parent, loc.name)
        self.used |= 1 << index
        await self.afr.subvolumes[index].rename(self._caller(), source, self._loc(place, gfid))

    async def take(self, index: int, loc: Loc, gfid: bytes) -> bool:
        """Under its new name; False: it is not here."""
        if not await self.holds(index, gfid):
            return False
        place = await self.place(index)
        await self.afr.subvolumes[index].rename(self._caller(), self._loc(place, gfid), loc)
        return True

    async def holds(self, index: int, gfid: bytes) -> bool:
        place = await self.place(index)
        loc = self._loc(place, gfid)
        try:
            found = await self.afr.subvolumes[index].lookup(self._caller(), Loc(parent=loc.parent, name=loc.name))
        except OSError as error:
            if error.errno in GONE:
                return False
            raise
        return found.iatt.gfid == gfid

    # ---- removing ----

    async def is_dead(self, gfid: bytes, but: int) -> bool:
        """No other copy has it under a name, and at least one has removed it; all of them are asked."""
        found = await self._elsewhere(gfid, but, _always)
        return found is not None and not found[0] and found[1]

    async def _is_nameless(self, gfid: bytes, but: int) -> bool:
        """No other copy has it under a name, and at least one does not have it at all."""
        found = await self._elsewhere(gfid, but, _always, is_any=True)
        return found is not None and not found[0] and found[1]

    async def is_last_name(self, gfid: bytes, index: int, lasts: Lasts) -> bool:
        """All other copies have it, each of them here or under a name that will not last, or have never had it: nobody
        has removed it."""
        found = await self._elsewhere(gfid, index, lasts)
        return found is not None and not found[0] and not found[1]

    async def _elsewhere(
        self, gfid: bytes, but: int, lasts: Lasts, *, is_any: bool = False
    ) -> tuple[bool, bool] | None:
        """Of the other copies: one has it under a name, one has removed it (``is_any``: or never had it).  None: some
        cannot be asked."""
        afr = self.afr
        if afr.up != afr.everyone:
            return None
        answers = await afr.ask(afr.everyone, lambda c: c.lookup(self._caller(), Loc(gfid=gfid), want=afr.want_keys))
        if any(e.errno not in GONE for i, e in errors_of(answers).items() if i != but):
            return None
        is_named = False
        for i, found in good_of(answers).items():
            if i != but and not is_named and not await self.holds(i, gfid):
                is_named = found.iatt.nlink > 1 and not found.iatt.is_directory or await lasts(i, gfid)
        lacking = mask_of([i for i in errors_of(answers) if i != but])
        return is_named, bool(lacking) and (is_any or self._is_removed(answers, lacking))

    def _is_removed(self, answers: Answers, lacking: int) -> bool:
        """By somebody: not if those that lack it are accused of having missed its making, unless they are so many that
        a removal by them counts (decision 0146)."""
        afr = self.afr
        if not afr.quorum.is_majority or afr.quorum.is_met(lacking):
            return True
        said = [accusations(a.xattrs, afr.keys) for a in good_of(answers).values()]
        made = [(r[Kind.DATA] or r[Kind.ENTRY]) and r[Kind.METADATA] for i in bits(lacking) for r in [_sum(said, i)]]
        return not all(made)

    async def clean(self) -> int:
        """Remove what is dead; how much was removed.  Needs all children."""
        afr = self.afr
        removed = 0
        for _ in range(FILES_DEPTH_MAX):
            before = removed
            for i in bits(afr.everyone if afr.up == afr.everyone else 0):
                try:
                    removed += await self._clean(i)
                except OSError as error:
                    log.info("volume '%s': %s on '%s': %s", afr.name, self.name.decode(), afr.names[i], error)
            if removed == before:
                break
        return removed

    async def _clean(self, index: int) -> int:
        child = self.afr.subvolumes[index]
        try:
            await child.lookup(self._caller(), Loc(parent=ROOT_GFID, name=self.name))
        except OSError as error:
            if error.errno in GONE:
                return 0
            raise
        place = await self.place(index)
        removed = 0
        is_first = True
        while True:
            entries = await list_all(child, self._caller(), place)
            if is_first:
                self.used = self.used | 1 << index if entries else self.used & ~(1 << index)
                is_first = False
            now = 0
            for entry in entries:
                now += await self._settle(index, place, entry)
            removed += now
            if not now:
                return removed

    async def _settle(self, index: int, place: bytes, entry: Entry) -> int:
        child, caller = self.afr.subvolumes[index], self._caller()
        iatt: Iatt = (await child.lookup(caller, Loc(parent=place, name=entry.name))).iatt
        loc = Loc(iatt.gfid, place, entry.name)
        if not iatt.is_directory and iatt.nlink > 1:  # it has got its new name already
            await child.unlink(caller, loc)
            return 1
        if not await self._is_nameless(iatt.gfid, index):
            return 0
        if not iatt.is_directory:
            await child.unlink(caller, loc)
            return 1
        for below in await list_all(child, caller, iatt.gfid):
            inner = (await child.lookup(caller, Loc(parent=iatt.gfid, name=below.name))).iatt
            where = Loc(inner.gfid, iatt.gfid, below.name)
            if not inner.is_directory and inner.nlink > 1:
                await child.unlink(caller, where)
            else:
                await child.rename(caller, where, self._loc(place, inner.gfid))
        await child.rmdir(caller, loc)
        return 1


async def _always(index: int, gfid: bytes) -> bool:
    return True


def _sum(said: Sequence[Sequence[Counts]], index: int) -> list[int]:
    """Of what a child is accused by all that were heard."""
    return [sum(row[index][kind] for row in said) for kind in Kind]


async def list_all(child: Translator, caller: Caller, where: bytes | Loc) -> list[Entry]:
    """All names of a directory; for those that are known to be small."""
    loc = where if isinstance(where, Loc) else Loc(gfid=where)
    fd = Fd(loc.gfid, is_directory=True)
    await child.opendir(caller, loc, fd)
    try:
        found: list[Entry] = []
        while entries := await child.readdir(caller, fd, size=_LISTING_BYTES, offset=found[-1].offset if found else 0):
            found += entries
        return found
    finally:
        await child.release(fd)
