# SPDX-License-Identifier: Apache-2.0
"""Moves one file from one subvolume to another while clients use it.

Input: a distribute translator, a name, where its data are and where they belong.  Output: ``Outcome``.  The order of
steps is that of decision 0065; a crash between any two of them leaves one file, at the source until ``migration`` is
removed there, at the target from then on.
Errors: ``OSError`` of a brick, after the marks have been taken back as far as possible.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from repl.files.answers import GONE
from repl.files.translators.distribute import Distribute
from repl.files.translators.distribute.copying import copy_range, next_data
from repl.files.translators.distribute.links import name_of
from repl.files.translators.distribute.marks import (
    FILE_WANT,
    FINAL_SIZE,
    INCOMING,
    LINK_MODE,
    LINKTO,
    MIGRATING_BITS,
    MIGRATION,
    is_link,
    linkto_name,
    linkto_value,
    real_mode,
)
from repl.files.translators.posix.names import GFID2PATH_PREFIX, parse_gfid2path
from repl.files.values import (
    Caller,
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
from repl.limits import DISTRIBUTE_COPY_BYTES

log = logging.getLogger(__name__)

_TRIES = 3
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


class Migration:
    """One file.  ``loc`` is one of its names; a file with others is moved only if ``takes_all_names``."""

    def __init__(self, dht: Distribute, loc: Loc, source: int, target: int, *, takes_all_names: bool = False) -> None:
        self.dht = dht
        self.loc = name_of(loc)
        self.takes_all_names = takes_all_names
        self.source = source
        self.target = target
        self._from = dht.subvolumes[source]
        self._to = dht.subvolumes[target]
        self._caller: Caller = dht.owner()
        self._mode = 0
        self._first_size = 0
        self._names: list[Loc] = [self.loc]
        self._file: Loc
        self._fd: Fd

    # ---- the whole ----

    async def run(self) -> Moved:
        """Only one migrator at a time has the file."""
        domain = mover_domain(self.dht)
        try:
            self._file = Loc(gfid=(await self._from.lookup(self._caller, self.loc, want=FILE_WANT)).iatt.gfid)
            async with self.dht.locked_inode(self.source, self._file, domain, command=LockCommand.TRY):
                moved = await self._try()
        except FopError as error:
            if error.errno == errno.EAGAIN:
                return Moved(Outcome.GONE, reason="it is being moved, perhaps under another name")
            if error.errno not in GONE:
                raise
            return Moved(Outcome.GONE, reason=str(error))
        self.dht.files.drop(self._file.gfid)
        for name in self._names:
            self.dht.known_names.drop((name.parent, name.name))
        return moved

    async def _try(self) -> Moved:
        reason = ""
        for _ in range(_TRIES):
            try:
                return Moved(Outcome.MOVED, await self._alone())
            except Skipped as skipped:
                return Moved(Outcome.SKIPPED, reason=str(skipped))
            except Disturbed as disturbed:
                reason = str(disturbed)
        return Moved(Outcome.SKIPPED, reason=reason)

    async def _alone(self) -> int:
        looked = await self._from.lookup(self._caller, self.loc, want=FILE_WANT)
        self._check(looked)
        if looked.iatt.gfid != self._file.gfid:
            raise Disturbed("it has been replaced")
        self._mode = stat.S_IMODE(real_mode(looked))
        self._names = await self._all_names(looked.iatt.nlink)
        async with self._names_locked():
            await self._prepare_target()
        self._fd = Fd(looked.iatt.gfid, os.O_RDWR)
        await self._from.open(self._caller, self._file, self._fd, flags=os.O_RDWR)
        try:
            await self._to.open(self._caller, self._file, self._fd, flags=os.O_RDWR)
            try:
                return await self._move()
            except BaseException:
                await self._take_back()
                raise
            finally:
                await self._to.release(self._fd)
        finally:
            await self._from.release(self._fd)

    def _check(self, looked: Looked) -> None:
        iatt = looked.iatt
        if is_link(looked.xattrs) or not iatt.is_regular:
            raise Skipped("it is no file")
        if iatt.nlink > 1 and not self.takes_all_names:
            raise Skipped("it has several names")
        if MIGRATION not in looked.xattrs and iatt.mode & MIGRATING_BITS == MIGRATING_BITS:
            raise Skipped("its mode has both the set-group-id and the sticky bit")

    async def _all_names(self, count: int) -> list[Loc]:
        """The brick notes the names of each file.  Raises ``Skipped`` if it does not know them all."""
        if count == 1:
            return [self.loc]
        notes = await self._from.getxattr(self._caller, self._file)
        names = [parse_gfid2path(value) for key, value in notes.items() if key.startswith(GFID2PATH_PREFIX.encode())]
        found = [Loc(parent=name[0], name=name[1]) for name in names if name is not None]
        if len(found) != count or self.loc.name not in [loc.name for loc in found if loc.parent == self.loc.parent]:
            raise Skipped("not all of its names are known")
        return found

    @asynccontextmanager
    async def _names_locked(self) -> AsyncIterator[None]:
        places = [(await self.dht.hashed_up(name))[1] for name in self._names]
        async with self.dht.locked_names(*zip(places, self._names, strict=True)):
            yield

    async def _prepare_target(self) -> None:
        """A link file that leads to the source, with all names, marked and empty."""
        for name in self._names:
            await self._prepare_name(name)
        await self._to.setxattr(self._caller, self._file, {INCOMING: linkto_value(self.dht.names[self.source])})
        await self._to.truncate(self._caller, self._file, 0)

    async def _prepare_name(self, name: Loc) -> None:
        dht, gfid = self.dht, self._file.gfid
        try:
            there = await self._to.lookup(self._caller, name, want=FILE_WANT)
        except FopError as error:
            if error.errno != errno.ENOENT:
                raise
            await dht.make_link(self.target, name, gfid, self.source)
            return
        if there.iatt.is_directory or not is_link(there.xattrs):
            raise Skipped("something else is where it belongs")
        if there.iatt.gfid != gfid or linkto_name(there.xattrs[LINKTO]) != dht.names[self.source]:
            await dht.replace_link(self.target, name, gfid, self.source)

    async def _move(self) -> int:
        await self._mark()
        await self._copy()
        async with self._names_locked():
            async with self.dht.locked_inode(self.source, self._file, self.dht.migration_domain):
                async with self._no_locks():
                    size = await self._switch()
            await self._clear_source()
        return size

    # ---- phase 1 ----

    async def _mark(self) -> None:
        """The real mode first: with ``linkto`` alone the file would be a link file."""
        value = self._mode.to_bytes(4, "big")
        await self._from.setxattr(self._caller, self._file, {MIGRATION: value})
        await self._from.setxattr(self._caller, self._file, {LINKTO: linkto_value(self.dht.names[self.target])})
        changed = await self._from.setattr(self._caller, self._file, SetAttr(mode=self._mode | MIGRATING_BITS))
        before = stat.S_IMODE(changed.before.mode)
        if before not in (self._mode, self._mode | MIGRATING_BITS):
            await self._from.setattr(self._caller, self._file, SetAttr(mode=before))
            raise Disturbed("its mode has changed")
        await self._wait_for_writes()

    async def _wait_for_writes(self) -> None:
        """Those that are under way, on every replica, have been carried out when this has."""
        await self._from.writev(self._caller, self._fd, b"", offset=0)

    async def _copy(self) -> None:
        offset: int | None = 0
        size = 0
        while offset is not None:
            offset = await next_data(self._from, self._fd, self._caller, offset)
            if offset is None:
                break
            async with self._range(offset):
                read = await copy_range(
                    self._from, self._to, self._fd, self._caller, offset, offset + DISTRIBUTE_COPY_BYTES - 1
                )
            offset += read
            size = max(size, offset)
            if read == 0:
                break

    @asynccontextmanager
    async def _range(self, first: int) -> AsyncIterator[None]:
        last = first + DISTRIBUTE_COPY_BYTES - 1
        async with self.dht.locked_inode(self.source, self._file, self.dht.migration_domain, first=first, last=last):
            yield

    # ---- the switch ----

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

    async def _switch(self) -> int:
        """Everything is locked.  The file is at the target when ``MIGRATION`` is gone from the source."""
        await self._still_ours()
        await self._copy_attributes()
        changed = await self._from.setattr(self._caller, self._file, SetAttr(mode=stat.S_IMODE(LINK_MODE)))
        if stat.S_IMODE(changed.before.mode) != self._mode | MIGRATING_BITS:
            await self._from.setattr(self._caller, self._file, SetAttr(mode=stat.S_IMODE(changed.before.mode)))
            raise Disturbed("its mode has changed")
        await self._wait_for_writes()
        self._first_size = changed.after.size
        size = await self._catch_up()
        await self._to.fsync(self._caller, self._fd)
        await self._from.setxattr(self._caller, self._file, {
            FINAL_SIZE: self._first_size.to_bytes(8, "big") + size.to_bytes(8, "big")
        })  # fmt: skip
        await self._still_marked()
        await self._from.removexattr(self._caller, self._file, MIGRATION)
        await self._to.removexattr(self._caller, self._file, LINKTO)
        await self._to.removexattr(self._caller, self._file, INCOMING)
        return size

    async def _still_marked(self) -> None:
        """Nobody has taken the last mark away, and written unseen."""
        there = await self._from.stat(self._caller, self._file, want=FILE_WANT)
        if there.iatt.mode != LINK_MODE:
            self._mode = stat.S_IMODE(there.iatt.mode)
            raise Disturbed("its mode has changed")

    async def _still_ours(self) -> None:
        """Marks and names are as we have left them."""
        for name in self._names:
            there = await self._from.lookup(self._caller, name, want=FILE_WANT)
            link = await self._to.lookup(self._caller, name, want=FILE_WANT)
            if there.iatt.gfid != self._file.gfid or link.iatt.gfid != self._file.gfid:
                raise FopError(errno.ENOENT, f"{name} has been replaced")
        if there.iatt.nlink != len(self._names):
            raise Disturbed("it has got another name")
        if INCOMING not in link.xattrs or MIGRATION not in there.xattrs:
            raise Disturbed("its marks are gone")
        if stat.S_IMODE(there.iatt.mode) != self._mode | MIGRATING_BITS:
            self._mode = stat.S_IMODE(there.iatt.mode)
            raise Disturbed("its mode has changed")

    async def _catch_up(self) -> int:
        """What was appended by those who did not know, and the attributes that it has changed."""
        source = (await self._from.stat(self._caller, self._fd)).iatt
        there = (await self._to.stat(self._caller, self._fd)).iatt
        if there.size != source.size:
            await copy_range(self._from, self._to, self._fd, self._caller, min(there.size, source.size))
        times = SetAttr(atime_ns=source.atime_ns, mtime_ns=source.mtime_ns)
        await self._to.setattr(self._caller, self._file, times)
        return source.size

    async def _copy_attributes(self) -> None:
        """Owner, mode, extended attributes, ACLs; times come last of all."""
        iatt = (await self._from.stat(self._caller, self._fd)).iatt
        wanted = of_users(await self._from.getxattr(self._caller, self._file))
        there = of_users(await self._to.getxattr(self._caller, self._file))
        await self._to.setattr(self._caller, self._file, SetAttr(mode=self._mode, uid=iatt.uid, gid=iatt.gid))
        if wanted != there and wanted:
            await self._to.setxattr(self._caller, self._file, wanted)
        for key in there.keys() - wanted.keys():
            await self._to.removexattr(self._caller, self._file, key)
        if any(key.startswith(b"system.posix_acl") for key in wanted):
            await self._to.setattr(self._caller, self._file, SetAttr(mode=self._mode))

    async def _clear_source(self) -> None:
        """Space first; the link file itself is needed only where the name belongs there."""
        dht = self.dht
        if self._first_size:
            # Not one that was empty: what is appended to it in error would look as if it had been taken over.
            await dht.undo(self._from.truncate(self._caller, self._fd, 0))
        places = [(name, (await dht.hashed(name))[1]) for name in self._names]
        for name, hashed in places:
            if hashed is not None and hashed not in (self.source, self.target):
                await dht.undo(dht.replace_link(hashed, name, self._file.gfid, self.target))
        for name, hashed in places:
            if hashed != self.source:
                await dht.undo(self._from.unlink(self._caller, name))

    # ---- giving up ----

    async def _take_back(self) -> None:
        """``linkto`` goes first: without ``migration`` it would make the source a link file.  After the switch there
        is nothing to take back."""
        dht, caller = self.dht, self._caller
        try:
            there = await self._from.stat(caller, self._fd, want=FILE_WANT)
            if is_link(there.xattrs):
                return
            if stat.S_IMODE(there.iatt.mode) in (self._mode | MIGRATING_BITS, stat.S_IMODE(LINK_MODE)):
                await self._from.setattr(caller, self._file, SetAttr(mode=self._mode))
            for child, key in ((self._from, LINKTO), (self._from, MIGRATION), (self._to, INCOMING)):
                await self._drop(child, key)
            link = SetAttr(mode=stat.S_IMODE(LINK_MODE), uid=0, gid=0)
            await dht.undo(self._to.setattr(caller, self._file, link))
            await dht.undo(self._to.truncate(caller, self._file, 0))
        except OSError as error:
            if error.errno not in GONE:
                log.warning("%s: marks of a migration are left at '%s': %s", self.loc, self._from.name, error)

    async def _drop(self, child: object, key: bytes) -> None:
        try:
            await child.removexattr(self._caller, self._file, key)  # type: ignore[attr-defined]
        except FopError as error:
            if error.errno not in (errno.ENODATA, *GONE):
                raise


def mover_domain(dht: Distribute) -> str:
    """Of the lock that a file's migrator holds."""
    return f"{dht.domain}:mover"


def of_users(values: Xattrs) -> Xattrs:
    return {key: value for key, value in values.items() if not key.startswith(_INTERNAL)}
