# SPDX-License-Identifier: Apache-2.0
"""Listings: one subvolume after another, each directory once, link files never.

A directory's entry is taken from the subvolume that its name belongs to.  Offsets are those of the subvolume and, in
the lowest bits, its number: they hold when subvolumes are added.
"""

from __future__ import annotations

import asyncio
import stat

from repl.files.answers import GONE
from repl.files.translators.distribute.base import SUBVOLUMES_MAX
from repl.files.translators.distribute.caches import Directory, FdState
from repl.files.translators.distribute.marks import FILE_WANT, INCOMING, is_link, is_migrating
from repl.files.translators.distribute.renames import Renames
from repl.files.values import LAST, Caller, Entry, Fd, FopError, Loc, SyncKind, Want

DOTS = (b".", b"..")
SUBVOLUME_BITS = SUBVOLUMES_MAX.bit_length() - 1
_AT_ONCE = 64  # names that are looked up at the same time
LISTED_AT_ONCE = 8  # subvolumes


class Listings(Renames):
    async def opendir(self, caller: Caller, loc: Loc, fd: Fd) -> None:
        known = await self.directory(loc.gfid)
        fd.is_directory = True
        state = FdState(self._first_present(known.present, loc), 0, set())
        await self._open_on(caller, fd, state, state.index)
        fd.contexts[self] = state

    async def _open_on(self, caller: Caller, fd: Fd, state: FdState, index: int) -> None:
        if index not in state.opened:
            await self.need(index, fd).opendir(caller, Loc(gfid=fd.gfid), fd)
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
        want = tuple(key for key in want if key != LAST)  # the last one of a subvolume is not the last one
        if offset == 0 or state.listing is None:
            state.listing = await self.directory(fd.gfid)
        known = state.listing  # the same to the end, so that each directory is listed once
        index, at = offset & SUBVOLUMES_MAX - 1, offset >> SUBVOLUME_BITS
        if offset == 0 and self.count > 1:
            found, index = await self._beginnings(caller, fd, state, size, is_plus, want)
            if found:
                return found
        while index < self.count:
            if self.up[index]:
                part = await self._part(caller, fd, state, index, size, at, is_plus, want)
                kept = await self._for_users(caller, known, index, part)
                if kept:
                    return self._shown(index, kept, is_plus, want)
                if part:  # nothing of it is for users
                    at = part[-1].offset
                    continue
            index, at = index + 1, 0
        return []

    async def _beginnings(
        self, caller: Caller, fd: Fd, state: FdState, size: int, is_plus: bool, want: Want
    ) -> tuple[list[Entry], int]:
        """What begins the listing, of all subvolumes at once, since of a small directory that is everything; and the
        subvolume to go on with if that is nothing.  Behind a part that is not whole none is given out."""
        indexes = self.up_ones[:LISTED_AT_ONCE]
        parts = await asyncio.gather(
            *(self._part(caller, fd, state, i, size, 0, is_plus, (*want, LAST)) for i in indexes),
            return_exceptions=True,
        )
        assert state.listing is not None
        found: list[Entry] = []
        for index, part in zip(indexes, parts, strict=True):
            if isinstance(part, BaseException):
                if not found:
                    raise part
                break  # it is told when the listing gets there
            is_whole = not part or LAST in part[-1].xattrs
            found += self._shown(index, await self._for_users(caller, state.listing, index, part), is_plus, want)
            if not is_whole:
                return found, index
        return found, indexes[-1] + 1 if indexes else 0

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

    async def _for_users(self, caller: Caller, known: Directory, index: int, part: list[Entry]) -> list[Entry]:
        """Without link files, what is left over from something, and directories that another subvolume lists."""
        is_settled = self.is_final(known) and self.looks_everywhere
        verdicts: list[bool | None] = []
        for entry in part:
            owner = known.layout.owner(self.hash_of(entry.name))
            if entry.name in DOTS or (is_link(entry.xattrs) and INCOMING not in entry.xattrs):
                verdicts.append(False)
            elif entry.kind == stat.S_IFDIR:
                verdicts.append(self._lists_directory(known, index, owner, is_settled))
            else:
                is_here = owner == index and not is_link(entry.xattrs)
                verdicts.append(True if is_here else None)
                if is_here and entry.kind == stat.S_IFREG:  # as a lookup would find it
                    self.known_names.put((known.gfid, entry.name), (entry.gfid, index))
        unsure = [i for i, verdict in enumerate(verdicts) if verdict is None]
        for at in range(0, len(unsure), _AT_ONCE):
            some = unsure[at : at + _AT_ONCE]
            found = await asyncio.gather(*(self._is_listed_here(caller, known, index, part[i]) for i in some))
            for i, verdict in zip(some, found, strict=True):
                verdicts[i] = verdict
        return [entry for entry, verdict in zip(part, verdicts, strict=True) if verdict]

    def _lists_directory(self, known: Directory, index: int, owner: int | None, is_settled: bool) -> bool | None:
        """None: its copies have to be looked for."""
        if owner is not None and self.up[owner]:
            return True if owner == index else (False if is_settled else None)
        return index == min(i for i in self.everyone if self.up[i]) if is_settled else None

    async def _is_listed_here(self, caller: Caller, known: Directory, index: int, entry: Entry) -> bool:
        """A file that is not where its name belongs counts if the name leads to it; a directory is listed where its
        name belongs, if there is a copy, else by the first that has one."""
        loc = Loc(parent=known.gfid, name=entry.name)
        if entry.kind != stat.S_IFDIR:
            try:
                return (await self.find(caller, loc))[0] == index
            except FopError as error:
                return error.errno not in GONE
        owner = known.layout.owner(self.hash_of(entry.name))
        if owner is not None and self.up[owner] and await self._has(owner, loc):
            return False
        for other in self.everyone[:index]:
            if self.up[other] and await self._has(other, loc):
                return False
        return True

    async def _has(self, index: int, loc: Loc) -> bool:
        try:
            await self.subvolumes[index].lookup(self.owner(), loc)
        except FopError:
            return False
        return True

    def _shown(self, index: int, kept: list[Entry], is_plus: bool, want: Want) -> list[Entry]:
        for entry in kept:
            entry.offset = entry.offset << SUBVOLUME_BITS | index
            if entry.iatt is not None:
                if entry.iatt.is_directory and self.count > 1:
                    entry.iatt = None  # what one copy says is not all
                elif is_migrating(entry.xattrs):
                    entry.iatt = None
            if entry.kind == stat.S_IFREG:
                self.files.put(entry.gfid, index)
            if entry.xattrs:
                entry.xattrs = {k: v for k, v in entry.xattrs.items() if k in want}
        return kept


__all__ = ["Listings"]
