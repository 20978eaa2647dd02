# SPDX-License-Identifier: Apache-2.0
"""Lookup: from a name or a gfid to the subvolume that has it.

A name is asked for where its hash says.  There is the file, or a link file that says where it is, or a directory (which
is on all subvolumes), or nothing; then, unless the directory's layout rules it out, all are asked.  Link files that
lead nowhere are removed, missing ones are made; both under the lock of the name, in the background.
"""

from __future__ import annotations

import errno
import logging
from contextlib import nullcontext
from functools import partial
from typing import Any

from repl.files.answers import GONE, errors_of, good_of
from repl.files.translators.distribute.base import telling_error
from repl.files.translators.distribute.caches import Directory
from repl.files.translators.distribute.directories import merged
from repl.files.translators.distribute.links import Links, name_of
from repl.files.translators.distribute.marks import (
    FILE_WANT,
    INCOMING,
    LINKTO,
    MOVING,
    is_link,
    is_migrating,
    linkto_name,
    real_mode,
)
from repl.files.values import Caller, FopError, Loc, Looked, Want

log = logging.getLogger(__name__)

_TRIES = 4


class Lookups(Links):
    async def lookup(self, caller: Caller, loc: Loc, *, want: Want = ()) -> Looked:
        await self.settled()
        if not loc.name:
            return await self._lookup_gfid(caller, loc, want)
        return (await self.find(caller, loc, want))[1]

    async def find(
        self, caller: Caller, loc: Loc, want: Want = (), *, has_lock: bool = False
    ) -> tuple[int, Looked]:
        """The subvolume of the data (of a directory: the name's), and the answer.  ``has_lock``: who asks has locked
        the name, and must not wait for himself.  ENOENT, ENOTCONN."""
        named = name_of(loc)
        for _ in range(_TRIES):
            found = await self._find_once(caller, named, want, has_lock, is_last=False)
            if found is not None:
                return found
        found = await self._find_once(caller, named, want, has_lock, is_last=True)
        if found is None:
            raise FopError(errno.ESTALE, f"{self.name}: {loc} does not keep still")
        return found

    async def _find_once(
        self, caller: Caller, loc: Loc, want: Want, has_lock: bool, *, is_last: bool
    ) -> tuple[int, Looked] | None:
        known, index = await self.hashed(loc)
        if index is None or not self.up[index]:
            return await self._find_everywhere(caller, loc, want, known, None, has_lock)
        try:
            first: Looked = await self.subvolumes[index].lookup(caller, loc, want=(*want, *FILE_WANT))
        except FopError as error:
            if error.errno not in GONE:
                raise
            if error.errno == errno.ENOENT and self.is_final(known):
                if await self.still_true(known, index):
                    raise
                if not is_last:
                    return None
                known, index = await self.hashed(loc)  # its link file went with the layout that we knew
                index = index if index is not None and self.up[index] else None
            return await self._find_everywhere(caller, loc, want, known, index, has_lock)
        if first.iatt.is_directory:
            return index, await self._found_directory(caller, loc, want, index, first, has_lock)
        if not is_link(first.xattrs):
            return index, self._found(loc, index, first, want)
        place = await self._follow(caller, loc, want, index, first)
        if place is not None:
            if place[1].iatt.gfid != first.iatt.gfid or INCOMING in first.xattrs:
                self._later(partial(self.repair_link, loc, index), f"link file of {loc}")
            return place[0], self._found(loc, *place, want)
        if not is_last:
            return None  # it may have moved under our feet
        return await self._find_everywhere(caller, loc, want, known, index, has_lock, is_stale=True)

    async def _follow(
        self, caller: Caller, loc: Loc, want: Want, index: int, first: Looked
    ) -> tuple[int, Looked] | None:
        """From link file to link file until there is data; None: it leads nowhere.  ENOTCONN."""
        seen = {index: first}
        at, looked = index, first
        while True:
            target = self.number_of.get(linkto_name(looked.xattrs[LINKTO]))
            if target is None:
                return None
            if target in seen:
                data = self.data_among(seen)
                return None if data is None else (data, seen[data])
            try:
                looked = await self.need(target, loc).lookup(caller, loc, want=(*want, *FILE_WANT))
            except FopError as error:
                if error.errno not in GONE:
                    raise
                return None
            if looked.iatt.is_directory:
                return None
            seen[target], at = looked, target
            if not is_link(looked.xattrs):
                return at, looked
            data = self.data_among(seen)
            if data is not None:
                return data, seen[data]

    def _found(self, loc: Loc, index: int, looked: Looked, want: Want) -> Looked:
        """A file, as users see it."""
        gfid = looked.iatt.gfid
        self.files.put(gfid, index)
        self.known_names.put((loc.parent, loc.name), (gfid, index))
        return self.shown(looked, want)

    def shown(self, looked: Looked, want: Want) -> Looked:
        """Without our own marks; what one subvolume says of the directory is not all either."""
        iatt = looked.iatt
        if is_migrating(looked.xattrs):
            iatt.mode = real_mode(looked)
        if looked.xattrs:
            looked.xattrs = {k: v for k, v in looked.xattrs.items() if k in want}
        if self.count > 1:
            looked.parent = None
        return looked

    async def _find_everywhere(
        self, caller: Caller, loc: Loc, want: Want, known: Directory, index: int | None, has_lock: bool,
        *, is_stale: bool = False,
    ) -> tuple[int, Looked]:  # fmt: skip
        """``index``: where it should be, None if that is away; ``is_stale``: a link file there leads nowhere."""
        answers = await self.ask(self.up_ones, lambda i, c: c.lookup(caller, loc, want=(*want, *FILE_WANT)))
        found: dict[int, Looked] = good_of(answers)
        folders = [i for i, a in found.items() if a.iatt.is_directory]
        if folders:
            at = index if index in folders else folders[0]
            return at, await self._found_directory(caller, loc, want, at, found[at], has_lock)
        data = self.data_among({index: found[index], **found} if index in found else found)
        if data is not None:
            if index is not None and data != index:
                self._later(partial(self.repair_link, loc, index), f"link file of {loc}")
            return data, self._found(loc, data, found[data], want)
        if index is None:
            raise self.away([i for i in self.everyone if not self.up[i]], str(loc))
        serious = {i: e for i, e in errors_of(answers).items() if e.errno not in GONE}
        if is_stale and serious:
            raise telling_error(serious)
        for i in found:
            self._later(partial(self.remove_stale, loc, i), f"stale link file of {loc}")
        gone = errors_of(answers)
        raise next((e for e in gone.values() if e.errno == errno.ENOENT), None) or FopError(errno.ENOENT, str(loc))

    # ---- directories ----

    async def _found_directory(
        self, caller: Caller, loc: Loc, want: Want, index: int, first: Looked, has_lock: bool
    ) -> Looked:
        gfid = first.iatt.gfid
        answers = await self.ask_directory(loc, self.wanted_of(gfid, want))
        found: dict[int, Looked] = good_of(answers)
        if any(a.iatt.gfid != gfid for a in found.values()):
            answers = await self._of_one_gfid(loc, gfid, answers, has_lock)
            found = good_of(answers)
            if index in found and found[index].iatt.gfid != gfid:
                return (await self.find(caller, loc, want, has_lock=has_lock))[1]
        known = await self.learned(gfid, loc, answers)
        if known.is_whole and any(MOVING in a.xattrs for a in found.values()):
            # A rename was finished: perhaps it is not here any more.
            return (await self.find(caller, loc, want, has_lock=has_lock))[1]
        iatt = merged(found, known.mds)
        answer = found.get(known.mds, first)
        return Looked(iatt, None, {k: v for k, v in answer.xattrs.items() if k in want})

    async def _of_one_gfid(
        self, loc: Loc, gfid: bytes, answers: dict[int, Any], has_lock: bool
    ) -> dict[int, Any]:
        """Copies with different gfids: a rename over the name was interrupted and is finished here, or is under way and
        the copy that decides counts.  EIO for others."""
        found: dict[int, Looked] = good_of(answers)
        moved = [a.iatt.gfid for a in found.values() if MOVING in a.xattrs]
        if not moved and await self._drop_empty(loc, gfid, has_lock):
            return await self.ask_directory(loc, self.wanted_of(gfid))
        if not moved:
            different = ", ".join(f"'{self.names[i]}'" for i, a in found.items() if a.iatt.gfid != gfid)
            log.error("volume '%s': directory %s has another gfid on %s", self.name, loc, different)
            raise FopError(errno.EIO, f"{self.name}: {loc} has another gfid on {different}")
        try:
            await self.heal_directory(moved[0], loc)
        except OSError as error:
            log.warning("volume '%s': the rename of %s cannot be finished: %s", self.name, loc, error)
        answers = await self.ask_directory(loc, self.wanted_of(gfid))
        gone = FopError(errno.ENOENT, f"{self.name}: {loc} is about to be replaced")
        same = {i: gone if i in good_of(answers) and a.iatt.gfid != gfid else a for i, a in answers.items()}
        return same if good_of(same) else answers

    async def _drop_empty(self, loc: Loc, gfid: bytes, has_lock: bool) -> bool:
        """Copies with another gfid than the one that decides are left over from something; empty ones go."""
        _, index = await self.hashed(loc)
        if index is None or not self.up[index]:
            return False
        async with nullcontext() if has_lock else self.locked_names((index, loc)):
            caller = self.owner()
            found = good_of(await self.ask(self.up_ones, lambda i, c: c.lookup(caller, loc)))
            if index not in found or found[index].iatt.gfid != gfid:
                return True  # it has been replaced meanwhile
            others = [i for i, a in found.items() if a.iatt.gfid != gfid and a.iatt.is_directory]
            answers = await self.ask(others, lambda i, c: c.rmdir(caller, loc))
            return all(e.errno in GONE for e in errors_of(answers).values())

    # ---- by gfid ----

    async def _lookup_gfid(self, caller: Caller, loc: Loc, want: Want) -> Looked:
        known = self.directories.get(loc.gfid)
        if known is None:
            index = self.files.get(loc.gfid)
            if index is not None and self.up[index]:
                try:
                    looked: Looked = await self.subvolumes[index].lookup(caller, loc, want=(*want, *FILE_WANT))
                except FopError as error:
                    if error.errno not in GONE:
                        raise
                else:
                    if not is_link(looked.xattrs):
                        return self.shown(looked, want)
            _, answers = await self.locate(loc.gfid, want)
        else:
            answers = await self.ask_directory(Loc(gfid=loc.gfid, path=loc.path), self.wanted_of(loc.gfid, want))
        found: dict[int, Looked] = good_of(answers)
        some = next(iter(found.values()))
        if some.iatt.is_directory:
            known = await self.learned(loc.gfid, Loc(gfid=loc.gfid, path=loc.path), answers)
            answer = found.get(known.mds, some)
            return Looked(merged(found, known.mds), None, {k: v for k, v in answer.xattrs.items() if k in want})
        index = self.files.get(loc.gfid)
        assert index is not None  # locate has found it
        return self.shown(found[index], want)

    async def locate(self, gfid: bytes, want: Want = ()) -> tuple[int, dict[int, Any]]:
        """The subvolume of a gfid (any for a directory), by asking all; it is remembered.  ESTALE, ENOTCONN."""
        await self.settled()
        caller, loc = self.owner(), Loc(gfid=gfid)
        wanted = (*self.wanted_of(gfid, want), *FILE_WANT)
        answers = await self.ask(self.up_ones, lambda i, c: c.lookup(caller, loc, want=wanted))
        found: dict[int, Looked] = good_of(answers)
        some = next(iter(found.values()), None)
        if some is not None and some.iatt.is_directory:
            self.learn(gfid, answers)
            return min(found), answers
        data = self.data_among(found)
        if data is None:
            if not all(self.up):
                raise self.away([i for i in self.everyone if not self.up[i]], str(loc))
            serious = {i: e for i, e in errors_of(answers).items() if e.errno not in GONE}
            raise telling_error(serious) if serious else FopError(errno.ESTALE, f"{self.name}: {loc} is nowhere")
        self.files.put(gfid, data)
        return data, answers
