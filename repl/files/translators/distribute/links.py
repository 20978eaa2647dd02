# SPDX-License-Identifier: Apache-2.0
"""Where names belong, and the link files there: made, led elsewhere, removed when they lead nowhere."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from repl.files.answers import GONE, errors_of, good_of
from repl.files.translators.distribute.caches import Directory
from repl.files.translators.distribute.directories import Directories
from repl.files.translators.distribute.marks import (
    FILE_WANT,
    INCOMING,
    LINK_MODE,
    LINKTO,
    is_link,
    linkto_name,
    linkto_value,
)
from repl.files.values import NO_GFID, FopError, Loc, LockCommand, Looked

log = logging.getLogger(__name__)

_TRIES = 4


def name_of(loc: Loc) -> Loc:
    """The name alone: what it led to may have changed."""
    return Loc(NO_GFID, loc.parent, loc.name, loc.path) if any(loc.gfid) else loc


def of_file(loc: Loc, gfid: bytes) -> Loc:
    """The name as long as it leads to the file: who takes it away means nothing that has come there since."""
    return Loc(gfid, loc.parent, loc.name, loc.path)


class Links(Directories):
    # ---- where names belong ----

    async def hashed(self, loc: Loc) -> tuple[Directory, int | None]:
        """The directory and the subvolume that a name belongs to (None: it falls into a hole)."""
        known, number = await self.directory(loc.parent), self.hash_of(loc.name)
        index = known.layout.owner(number)
        if index is None and all(self.up):  # it was read while somebody wrote it, and is being healed
            self.directories.drop(loc.parent)
            known = await self.directory(loc.parent)
            index = known.layout.owner(number)
        return known, index

    async def hashed_up(self, loc: Loc) -> tuple[Directory, int]:
        """The same for who is about to change the name.  ENOTCONN."""
        known, index = await self.hashed(loc)
        if index is None or (self.up[index] and not await self.still_true(known, index)):
            self.directories.drop(loc.parent)
            known, index = await self.hashed(loc)
        if index is None or not self.up[index]:
            raise self.away([index] if index is not None else [i for i in self.everyone if not self.up[i]], str(loc))
        return known, index

    async def is_fresh(self, loc: Loc, index: int) -> bool:
        """Whether the name still belongs to the subvolume, as far as that one knows."""
        known = self.directories.get(loc.parent)
        if known is None:
            return False
        known.checked.pop(index, None)
        return await self.still_true(known, index)

    @asynccontextmanager
    async def names_kept(self, *locs: Loc) -> AsyncIterator[list[int]]:
        """For changes of names that take part on several subvolumes: nobody else changes the names meanwhile.  Gives
        the subvolumes that they belong to, for sure."""
        for _ in range(_TRIES):
            places = [(await self.hashed_up(loc))[1] for loc in locs]
            pairs = list(zip(places, locs, strict=True))
            async with self.locked_names(*pairs):
                if not all(await asyncio.gather(*(self.is_fresh(loc, place) for place, loc in pairs))):
                    continue
                yield places
            self._later(partial(self.verify_names, pairs), "layouts after a change of names")
            return
        raise FopError(errno.ESTALE, f"{self.name}: the layout of {locs[0]} changes all the time")

    async def verify_names(self, pairs: Sequence[tuple[int, Loc]]) -> None:
        """A new layout may have come in the middle of a change: then the link file is missing where it counts now."""
        for place, loc in pairs:
            is_fresh = await self.is_fresh(loc, place)
            if not is_fresh or (await self.hashed(loc))[1] != place:  # the other name may have told already
                _, index = await self.hashed_up(loc)
                await self.repair_link(loc, index, LockCommand.WAIT)

    # ---- link files ----

    async def make_link(self, index: int, loc: Loc, gfid: bytes, target: int) -> None:
        """A link file; another name of the same file may have one already.  EEXIST."""
        for _ in range(_TRIES):
            if await self._link_made(index, loc, gfid, target):
                return
        raise FopError(errno.EEXIST, f"{self.names[index]}: {loc}")

    async def _link_made(self, index: int, loc: Loc, gfid: bytes, target: int) -> bool:
        """False: the other name's, which was in the way, has gone in this moment."""
        caller, child = self.owner(), self.subvolumes[index]
        value = linkto_value(self.names[target])
        try:
            await child.mknod(caller, name_of(loc), mode=LINK_MODE, rdev=0, gfid=gfid, extra={LINKTO: value})
        except FopError as error:
            if error.errno != errno.EEXIST:
                raise
        else:
            return True
        # Is it the name that is there, or the gfid?
        try:
            looked = await child.lookup(caller, Loc(gfid=gfid), want=FILE_WANT)
            if not is_link(looked.xattrs):
                raise FopError(errno.EEXIST, f"{self.names[index]}: {loc}")
            await child.link(caller, Loc(gfid=gfid), name_of(loc))
        except FopError as error:
            if error.errno not in GONE:
                raise
        else:
            if looked.xattrs[LINKTO] != value:
                await child.setxattr(caller, Loc(gfid=gfid), {LINKTO: value})
            return True
        try:
            await child.lookup(caller, name_of(loc))
        except FopError as error:
            if error.errno not in GONE:
                raise
            return False
        raise FopError(errno.EEXIST, f"{self.names[index]}: {loc}")

    async def repair_link(self, loc: Loc, index: int, command: LockCommand = LockCommand.TRY) -> None:
        """Make the name's link file lead to where the data are; a finished migration's marks go."""
        async with self.locked_names((index, loc), command=command):
            await self.repair_link_locked(loc, index)

    async def repair_link_locked(self, loc: Loc, index: int) -> None:
        caller = self.owner()
        answers = await self.ask(self.up_ones, lambda i, c: c.lookup(caller, loc, want=FILE_WANT))
        found: dict[int, Looked] = good_of(answers)
        if any(a.iatt.is_directory for a in found.values()):
            return
        data = self.data_among(found)
        if data is None:
            return
        gfid = found[data].iatt.gfid
        if LINKTO in found[data].xattrs and INCOMING in found[data].xattrs:
            await self._forget_migration(data, gfid)
        there = found.get(index)
        if data == index or (there is not None and not is_link(there.xattrs)):
            return
        if there is None:
            await self.make_link(index, loc, gfid, data)
        elif there.iatt.gfid != gfid or linkto_name(there.xattrs[LINKTO]) != self.names[data]:
            await self.replace_link(index, loc, gfid, data, there.iatt.gfid)

    async def _forget_migration(self, index: int, gfid: bytes) -> None:
        """The target of a migration has become the file."""
        caller, loc, child = self.owner(), Loc(gfid=gfid), self.subvolumes[index]
        await child.removexattr(caller, loc, LINKTO)
        await child.removexattr(caller, loc, INCOMING)

    def hidden_name(self, gfid: bytes) -> bytes:
        """Of a link file on its way to another name; link files are never listed."""
        return b".glusterfs-dht-" + gfid.hex().encode() + b"-" + self.context.random.randbytes(4).hex().encode()

    async def remove_link(self, index: int, loc: Loc, gfid: bytes) -> None:
        """The name's link file, which has the file's gfid as a rule."""
        caller, child = self.owner(), self.subvolumes[index]
        try:
            await child.unlink(caller, of_file(loc, gfid))
        except FopError as error:
            if error.errno != errno.ESTALE:
                raise
        else:
            return
        looked = await child.lookup(caller, name_of(loc), want=FILE_WANT)
        if is_link(looked.xattrs):
            await child.unlink(caller, of_file(loc, looked.iatt.gfid))

    async def replace_link(self, index: int, loc: Loc, gfid: bytes, target: int, old: bytes) -> None:
        """The link file (or file) ``old`` gives way to a link file, in one step.  ESTALE: something else has its name
        by now, or nothing."""
        child, caller = self.subvolumes[index], self.owner()
        if old == gfid:
            await child.setxattr(caller, Loc(gfid=gfid), {LINKTO: linkto_value(self.names[target])})
            return
        hidden = Loc(gfid, loc.parent, self.hidden_name(gfid))
        await self.make_link(index, hidden, gfid, target)
        try:
            await child.rename(caller, hidden, of_file(loc, old))
        except OSError:
            await self.undo(child.unlink(caller, hidden))
            raise

    async def undo(self, call: Awaitable[Any]) -> None:
        """Best effort."""
        try:
            await call
        except OSError as error:
            if error.errno not in GONE:
                log.warning("volume '%s': something is left behind: %s", self.name, error)

    async def remove_stale(self, loc: Loc, index: int, command: LockCommand = LockCommand.TRY) -> None:
        """A link file that leads nowhere goes, unless somebody is at work on the name."""
        _, at = await self.hashed(loc)
        async with self.locked_names((at if at is not None and self.up[at] else index, loc), command=command):
            caller = self.owner()
            answers = await self.ask(self.everyone, lambda i, c: c.lookup(caller, loc, want=FILE_WANT))
            found: dict[int, Looked] = good_of(answers)
            if self.data_among(found) is not None or any(a.iatt.is_directory for a in found.values()):
                return
            if index in found and all(e.errno in GONE for e in errors_of(answers).values()):
                await self.subvolumes[index].unlink(caller, of_file(loc, found[index].iatt.gfid))

    def _later(self, work: Callable[[], Awaitable[Any]], name: str) -> None:
        async def guarded() -> None:
            try:
                await work()
            except OSError as error:
                log.info("volume '%s': %s: %s", self.name, name, error)

        self.context.spawn(guarded(), f"{self.name}: {name}")
