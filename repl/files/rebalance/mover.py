# SPDX-License-Identifier: Apache-2.0
"""What every way to move a file needs: its names under lock, its link file, its marks taken back.

Input: a distribute translator, a name, where its data are and where they belong.
Errors: ``OSError`` of a brick; ``Skipped`` and ``Disturbed`` end the try.
"""

from __future__ import annotations

import enum
import errno
import logging
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from repl.files.answers import GONE, errors_of, good_of
from repl.files.translator import Translator
from repl.files.translators.distribute import Distribute
from repl.files.translators.distribute.links import name_of, of_file
from repl.files.translators.distribute.marks import (
    FILE_WANT,
    INCOMING,
    LINK_MODE,
    LINKTO,
    MIGRATION,
    is_link,
    linkto_name,
    linkto_value,
)
from repl.files.translators.posix.names import GFID2PATH_PREFIX, parse_gfid2path
from repl.files.values import (
    NO_GFID,
    Caller,
    Changed,
    Fd,
    FopError,
    Loc,
    Lock,
    LockCommand,
    LockType,
    Looked,
    SetAttr,
    Xattrs,
)

log = logging.getLogger(__name__)

_INTERNAL = (b"trusted.gfid", b"trusted.afr.", b"trusted.glusterfs.")


class Outcome(enum.Enum):
    MOVED = "moved"
    SKIPPED = "skipped"
    GONE = "gone"  # removed or renamed meanwhile


class Skipped(Exception):
    """It stays where it is, and why."""


class Disturbed(Exception):
    """Somebody has changed the file in a way that makes us begin again."""


@dataclass(slots=True)
class Moved:
    outcome: Outcome
    size: int = 0
    reason: str = ""


class Mover:
    """One file.  ``loc`` is one of its names; a file with others is moved only if ``takes_all_names``."""

    def __init__(
        self, dht: Distribute, loc: Loc, source: int, target: int, *, takes_all_names: bool = False,
        gfid: bytes = NO_GFID,
    ) -> None:  # fmt: skip
        self.dht = dht
        self.loc = name_of(loc)
        self.takes_all_names = takes_all_names
        self.source = source
        self.target = target
        self._from = dht.subvolumes[source]
        self._to = dht.subvolumes[target]
        self._caller: Caller = dht.owner()
        self._mode = 0
        self._shown = stat.S_IMODE(LINK_MODE)  # its mode while it is marked
        self._first_size = 0
        self._was_marked = False  # by a migrator that has died
        self._names: list[Loc] = [self.loc]
        self._file = Loc(gfid=gfid)
        self._link: Looked | None = None  # what is at the target, as far as it leads to the source
        self._fd: Fd

    # ---- names ----

    async def _look(self) -> Looked:
        """The file at the source, if that is where its name leads to.  The name is locked."""
        dht, ends = self.dht, (self.source, self.target)
        answers = await dht.ask(ends, self._lookup)
        if isinstance(answers[self.source], OSError):
            raise answers[self.source]
        here: Looked = answers[self.source]
        there = answers[self.target]
        self._link = None
        if isinstance(there, Looked) and self._leads_here(there, here.iatt.gfid):
            self._link = there
            return here
        if isinstance(there, OSError) and there.errno == errno.ENOENT and not await self._is_final():
            answers |= await dht.ask([i for i in dht.up_ones if i not in ends], self._lookup)
            if dht.data_among(dict(sorted(good_of(answers).items()))) == self.source:
                return here
        place, looked = await dht.find(dht.owner(), self.loc, has_lock=True)
        if place == self.source:
            return here
        if looked.iatt.gfid == here.iatt.gfid:
            raise FopError(errno.ENOENT, f"{self.loc} is on '{dht.names[place]}', and here with another name")
        raise Skipped("another file has its name")

    async def _lookup(self, _index: int, child: Translator) -> Looked:
        return await child.lookup(self._caller, self.loc, want=FILE_WANT)

    def _leads_here(self, there: Looked, gfid: bytes) -> bool:
        is_ours = is_link(there.xattrs) and there.iatt.gfid == gfid
        return is_ours and linkto_name(there.xattrs[LINKTO]) == self.dht.names[self.source]

    async def _is_final(self) -> bool:
        return self.dht.is_final(await self.dht.directory(self.loc.parent))

    async def _all_names(self, count: int) -> list[Loc]:
        """The brick notes the names of each file.  Raises ``Skipped`` if it does not know them all."""
        if count == 1:
            return [self.loc]
        found = await self._noted_names(self._from)
        if len(found) != count or self.loc.name not in [loc.name for loc in found if loc.parent == self.loc.parent]:
            raise Skipped("not all of its names are known")
        return found

    async def _noted_names(self, child: Translator) -> list[Loc]:
        notes = await child.getxattr(self._caller, self._file)
        names = [parse_gfid2path(value) for key, value in notes.items() if key.startswith(GFID2PATH_PREFIX.encode())]
        return [Loc(parent=name[0], name=name[1]) for name in names if name is not None]

    async def _drop_other_names(self, nlink: int) -> None:
        """The link file at the target is about to be the file, under all its names: those that lead nowhere go first,
        or they would be names of the file again.  Another name's lock is only tried: ours are held."""
        if nlink <= len(self._names):
            return
        noted = await self._noted_names(self._to)
        if len(noted) != nlink:
            raise Skipped("not all names of its link file are known")
        ours = {(name.parent, name.name) for name in self._names}
        for other in noted:
            if (other.parent, other.name) not in ours:
                await self._drop_other_name(other)

    async def _drop_other_name(self, name: Loc) -> None:
        dht, file = self.dht, self._file.gfid
        try:
            _, index = await dht.hashed_up(name)
            async with dht.locked_names((index, name), command=LockCommand.TRY):
                dht.need_all(f"a name of the link file {name}")
                found = good_of(await dht.ask(dht.everyone, lambda i, c: c.lookup(self._caller, name, want=FILE_WANT)))
                if any(there.iatt.gfid == file and not is_link(there.xattrs) for there in found.values()):
                    raise Disturbed("it has got another name")
                await self._to.unlink(self._caller, of_file(name, file))
        except FopError as error:
            if error.errno != errno.ESTALE:
                raise Skipped(f"another name of its link file is in use: {error}") from error

    @asynccontextmanager
    async def _names_locked(self) -> AsyncIterator[None]:
        places = [(await self.dht.hashed_up(name))[1] for name in self._names]
        async with self.dht.locked_names(*zip(places, self._names, strict=True)):
            yield

    async def _prepare_name(self, name: Loc) -> None:
        dht, gfid = self.dht, self._file.gfid
        try:
            there = await self._to.lookup(self._caller, name, want=FILE_WANT)
        except FopError as error:
            if error.errno != errno.ENOENT:
                raise
            await self._make_link(name)
            return
        if there.iatt.is_directory or not is_link(there.xattrs):
            raise Skipped("something else is where it belongs")
        if there.iatt.gfid != gfid or linkto_name(there.xattrs[LINKTO]) != dht.names[self.source]:
            await dht.replace_link(self.target, name, gfid, self.source, there.iatt.gfid)

    async def _make_link(self, name: Loc) -> None:
        try:
            await self.dht.make_link(self.target, name, self._file.gfid, self.source)
        except FopError as error:
            if error.errno != errno.EEXIST:
                raise
            raise Skipped("something else is where it belongs") from error

    # ---- the file ----

    async def _put_marks(self) -> None:
        """In this order: with ``linkto`` alone the file would be a link file."""
        marks = {MIGRATION: self._mode.to_bytes(4, "big"), LINKTO: linkto_value(self.dht.names[self.target])}
        await self._from.setxattr(self._caller, self._file, marks)

    async def _wait_for_writes(self) -> Changed:
        """Those that are under way, on every replica, have been carried out when this has."""
        return await self._from.writev(self._caller, self._fd, b"", offset=0)

    @asynccontextmanager
    async def _no_locks(self) -> AsyncIterator[None]:
        """No application holds a lock on the file, or gets one until it has moved."""
        held: list[bool] = []
        try:
            for is_flock in (False, True):
                lock = Lock(LockType.WRITE, is_flock=is_flock)
                try:
                    await self._from.lk(self._caller, self._fd, LockCommand.TRY, lock)
                except FopError as error:
                    if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
                        continue
                    if error.errno in (errno.EAGAIN, errno.EACCES):
                        raise Skipped("an application holds a lock on it") from None
                    raise
                held.append(is_flock)
            yield
        finally:
            for is_flock in held:
                free = Lock(LockType.UNLOCK, is_flock=is_flock)
                await self.dht.undo(self._from.lk(self._caller, self._fd, LockCommand.TRY, free))

    async def _copy_attributes(self, wanted: SetAttr) -> None:
        """Owner, mode, extended attributes, ACLs."""
        answers = await self.dht.ask((self.source, self.target), lambda i, c: c.getxattr(self._caller, self._file))
        for error in errors_of(answers).values():
            raise error
        values, there = of_users(answers[self.source]), of_users(answers[self.target])
        await self._to.setattr(self._caller, self._file, wanted)
        if values != there and values:
            await self._to.setxattr(self._caller, self._file, values)
        for key in there.keys() - values.keys():
            await self._to.removexattr(self._caller, self._file, key)
        if any(key.startswith(b"system.posix_acl") for key in values):
            await self._to.setattr(self._caller, self._file, SetAttr(mode=self._mode))

    async def _clear_source(self, *, frees_first: bool = True) -> None:
        """Space first; the link file itself is needed only where the name belongs there."""
        dht = self.dht
        places = [(name, (await dht.hashed(name))[1]) for name in self._names]
        if self._first_size and (frees_first or self.source in [hashed for _, hashed in places]):
            # Not one that was empty: what is appended to it in error would look as if it had been taken over.
            await dht.undo(self._from.truncate(self._caller, self._fd, 0))
        for name, hashed in places:
            if hashed is not None and hashed not in (self.source, self.target):
                await dht.undo(dht.repair_link_locked(name, hashed))
        for name, hashed in places:
            if hashed != self.source:
                await dht.undo(self._from.unlink(self._caller, of_file(name, self._file.gfid)))

    # ---- giving up ----

    async def _take_back(self) -> None:
        """``linkto`` goes first: without ``migration`` it would make the source a link file.  After the switch there
        is nothing to take back.  The file is locked: its mode is what a client has made of ``migration`` meanwhile."""
        dht, caller = self.dht, self._caller
        try:
            there = await self._from.stat(caller, self._fd, want=FILE_WANT)
            if is_link(there.xattrs):
                return
            if MIGRATION in there.xattrs:
                self._mode = int.from_bytes(there.xattrs[MIGRATION], "big")
            if stat.S_IMODE(there.iatt.mode) in (self._shown, stat.S_IMODE(LINK_MODE)):
                await self._from.setattr(caller, self._file, SetAttr(mode=self._mode))
            for child, key in ((self._from, LINKTO), (self._from, MIGRATION), (self._to, INCOMING)):
                await self._drop(child, key)
            link = SetAttr(mode=stat.S_IMODE(LINK_MODE), uid=0, gid=0)
            await dht.undo(self._to.setattr(caller, self._file, link))
            await dht.undo(self._to.truncate(caller, self._file, 0))
        except OSError as error:
            if error.errno not in GONE:
                log.warning("%s: marks of a migration are left at '%s': %s", self.loc, self._from.name, error)

    async def _drop(self, child: Translator, key: bytes) -> None:
        try:
            await child.removexattr(self._caller, self._file, key)
        except FopError as error:
            if error.errno not in (errno.ENODATA, *GONE):
                raise


def mover_domain(dht: Distribute) -> str:
    """Of the lock that a file's migrator holds."""
    return f"{dht.domain}:mover"


def of_users(values: Xattrs) -> Xattrs:
    return {key: value for key, value in values.items() if not key.startswith(_INTERNAL)}
