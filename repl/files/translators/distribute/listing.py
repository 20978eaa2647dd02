# SPDX-License-Identifier: Apache-2.0
"""Listings: one subvolume after another, each directory once, link files never.

A directory's entry is taken from the subvolume that its name belongs to.  Offsets are those of the subvolume times the
number of subvolumes plus its own number.
"""

from __future__ import annotations

from repl.files.translators.distribute.base import GONE
from repl.files.translators.distribute.caches import Directory, FdState
from repl.files.translators.distribute.lookups import name_of
from repl.files.translators.distribute.marks import FILE_WANT, is_link, is_migrating
from repl.files.translators.distribute.renames import Renames
from repl.files.values import Caller, Entry, Fd, FopError, Loc, SyncKind, Want

DOTS = (b".", b"..")


class Listings(Renames):
    async def opendir(self, caller: Caller, loc: Loc, fd: Fd) -> None:
        known = await self.directory(loc.gfid)
        fd.is_directory = True
        state = FdState(self._first_present(known.present, loc), 0, set())
        await self._open_on(caller, fd, state, state.index)
        fd.contexts[self] = state

    async def _open_on(self, caller: Caller, fd: Fd, state: FdState, index: int) -> None:
        if index not in state.opened:
            await self.need(index, str(fd)).opendir(caller, Loc(gfid=fd.gfid), fd)
            state.opened.add(index)

    async def fsyncdir(self, caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> None:
        state = self.fd_state(fd)
        for index in self.up_ones:
            try:
                await self._open_on(caller, fd, state, index)
            except FopError as error:
                if error.errno not in GONE:
                    raise
        for index in sorted(state.opened):
            await self.subvolumes[index].fsyncdir(caller, fd, kind)

    async def readdir(
        self, caller: Caller, fd: Fd, *, size: int, offset: int, is_plus: bool = False, want: Want = ()
    ) -> list[Entry]:
        state = self.fd_state(fd)
        known = await self.directory(fd.gfid)
        index, at = offset % self.count, offset // self.count
        while index < self.count:
            if self.up[index]:
                part = await self._part(caller, fd, state, index, size, at, is_plus, want)
                kept = [entry for entry in part if self._belongs(known, index, entry)]
                if kept and self.is_final(known):
                    kept = await self._without_left_overs(caller, known, index, kept)
                if kept:
                    return self._shown(index, kept, is_plus, want)
                if part:  # nothing of it is for users
                    at = part[-1].offset
                    continue
            index, at = index + 1, 0
        return []

    async def _part(
        self, caller: Caller, fd: Fd, state: FdState, index: int, size: int, at: int, is_plus: bool, want: Want
    ) -> list[Entry]:
        try:
            await self._open_on(caller, fd, state, index)
            return await self.subvolumes[index].readdir(
                caller, fd, size=size, offset=at, is_plus=is_plus, want=(*want, *FILE_WANT)
            )
        except FopError as error:
            if error.errno not in GONE:
                raise
            return []

    def _belongs(self, known: Directory, index: int, entry: Entry) -> bool:
        """Whether users see the entry of this subvolume."""
        if entry.name in DOTS or is_link(entry.xattrs):
            return False
        if entry.kind != 0o040000:
            return True
        owner = known.layout.owner(self.hash_of(entry.name))
        if owner is None or not self.up[owner] or owner not in known.present:
            owner = min(i for i in known.present if self.up[i])
        return owner == index

    async def _without_left_overs(self, caller: Caller, known: Directory, index: int, kept: list[Entry]) -> list[Entry]:
        """Data that are not where their name belongs count only if the name leads to them."""
        aside = [
            entry for entry in kept
            if entry.kind != 0o040000 and known.layout.owner(self.hash_of(entry.name)) not in (index, None)
        ]  # fmt: skip
        if not aside:
            return kept
        left_over = set()
        for entry in aside:
            loc = name_of(Loc(parent=known.gfid, name=entry.name))
            try:
                place, _ = await self.find(caller, loc)
            except FopError as error:
                if error.errno in GONE:
                    left_over.add(entry.name)
                continue
            if place != index:
                left_over.add(entry.name)
        return [entry for entry in kept if entry.name not in left_over]

    def _shown(self, index: int, kept: list[Entry], is_plus: bool, want: Want) -> list[Entry]:
        for entry in kept:
            entry.offset = entry.offset * self.count + index
            if entry.iatt is not None:
                if entry.iatt.is_directory and self.count > 1:
                    entry.iatt = None  # what one copy says is not all
                elif is_migrating(entry.xattrs):
                    entry.iatt = None
            if entry.kind == 0o100000:
                self.files.put(entry.gfid, index)
            if entry.xattrs:
                entry.xattrs = {k: v for k, v in entry.xattrs.items() if k in want}
        return kept


__all__ = ["Listings"]
