# SPDX-License-Identifier: Apache-2.0
"""Moves one file from one subvolume to another while clients use it.

Input: a distribute translator, a name, where its data are and where they belong.  Output: ``Outcome``.  The order of
steps is that of decision 0065; a crash between any two of them leaves one file, at the source until ``migration`` is
removed there, at the target from then on.
Errors: ``OSError`` of a brick, after the marks have been taken back as far as possible.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from repl.files.answers import GONE
from repl.files.rebalance.at_once import AtOnce
from repl.files.rebalance.mover import Disturbed, Moved, Outcome, Skipped, mover_domain
from repl.files.translators.distribute.copying import copy_range, next_data
from repl.files.translators.distribute.marks import (
    FILE_WANT,
    FINAL_SIZE,
    INCOMING,
    LINK_MODE,
    LINKTO,
    MIGRATING_BITS,
    MIGRATION,
    is_link,
    is_migrating,
    linkto_name,
    linkto_value,
    real_mode,
)
from repl.files.values import Fd, FopError, Loc, LockCommand, Looked, SetAttr
from repl.limits import DISTRIBUTE_COPY_BYTES

log = logging.getLogger(__name__)

_TRIES = 3


class Migration(AtOnce):
    # ---- the whole ----

    async def run(self) -> Moved:
        """Only one migrator at a time has the file."""
        domain = mover_domain(self.dht)
        try:
            if not any(self._file.gfid):
                self._file = Loc(gfid=(await self._from.lookup(self._caller, self.loc)).iatt.gfid)
            async with self.dht.locked_inode(self.source, self._file, domain, command=LockCommand.TRY):
                moved = await self._try()
                if moved.outcome is Outcome.SKIPPED and self._was_marked:
                    await self._drop_marks()
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

    async def drop_marks(self) -> None:
        """Of a migrator that has died: the file stays where it is.  Not while one is at work."""
        try:
            async with self.dht.locked_inode(
                self.source, self._file, mover_domain(self.dht), command=LockCommand.TRY
            ):
                await self._drop_marks()
        except FopError as error:
            if error.errno not in (errno.EAGAIN, *GONE):
                raise

    async def _drop_marks(self) -> None:
        self._fd = Fd(self._file.gfid, os.O_RDONLY)
        await self._from.open(self._caller, self._file, self._fd, flags=os.O_RDONLY)
        try:
            async with self._whole():
                there = await self._from.stat(self._caller, self._fd, want=FILE_WANT)
                name = linkto_name(there.xattrs[LINKTO]) if is_migrating(there.xattrs) else ""
                if name in self.dht.names and name != self._from.name:
                    self._to = self.dht.subvolumes[self.dht.names.index(name)]
                    if there.iatt.mode & MIGRATING_BITS == MIGRATING_BITS:
                        self._shown = stat.S_IMODE(there.iatt.mode)
                    await self._take_back()
                    log.info("%s stays on '%s': marks of an interrupted migration are gone", self.loc, self._from.name)
        finally:
            await self._from.release(self._fd)

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
        self._names = [self.loc]
        async with self._names_locked():
            looked = await self._look()
            self._was_marked = is_migrating(looked.xattrs)
            self._check(looked)
            if looked.iatt.gfid != self._file.gfid:
                raise Disturbed("it has been replaced")
            self._mode = stat.S_IMODE(real_mode(looked))
            if self.is_moved_at_once(looked):
                return await self.move_at_once()
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
                await self.dht.undo(self._give_up())
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

    async def _prepare_target(self) -> None:
        """A link file that leads to the source, with all names, marked and empty."""
        for name in self._names:
            await self._prepare_name(name)
        await self._drop_other_names((await self._to.lookup(self._caller, self._file)).iatt.nlink)
        await self._to.setxattr(self._caller, self._file, {INCOMING: linkto_value(self.dht.names[self.source])})
        await self._to.truncate(self._caller, self._file, 0)

    async def _move(self) -> int:
        await self._mark()
        await self._copy()
        async with self._names_locked():
            async with self._whole():
                async with self._no_locks():
                    size = await self._switch()
            await self._clear_source()
        return size

    async def _give_up(self) -> None:
        async with self._whole():
            await self._take_back()

    def _whole(self) -> AbstractAsyncContextManager[None]:
        """Clients that write in phase 1, or set a mode, take this lock as well."""
        return self.dht.locked_inode(self.source, self._file, self.dht.migration_domain)

    # ---- phase 1 ----

    async def _mark(self) -> None:
        await self._put_marks()
        self._shown = self._mode | MIGRATING_BITS
        changed = await self._from.setattr(self._caller, self._file, SetAttr(mode=self._shown))
        before = stat.S_IMODE(changed.before.mode)
        if before not in (self._mode, self._shown):
            await self._from.setattr(self._caller, self._file, SetAttr(mode=before))
            raise Disturbed("its mode has changed")
        await self._wait_for_writes()

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

    async def _switch(self) -> int:
        """Everything is locked.  The file is at the target when ``MIGRATION`` is gone from the source."""
        await self._still_ours()
        iatt = (await self._from.stat(self._caller, self._fd)).iatt
        await self._copy_attributes(SetAttr(mode=self._mode, uid=iatt.uid, gid=iatt.gid))  # times come last of all
        changed = await self._from.setattr(self._caller, self._file, SetAttr(mode=stat.S_IMODE(LINK_MODE)))
        if stat.S_IMODE(changed.before.mode) != self._shown:
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
        if stat.S_IMODE(there.iatt.mode) != self._shown:
            self._mode = stat.S_IMODE(there.iatt.mode)
            raise Disturbed("its mode has changed")
        self._mode = int.from_bytes(there.xattrs[MIGRATION], "big")  # as a client has set it meanwhile

    async def _catch_up(self) -> int:
        """What was appended by those who did not know, and the attributes that it has changed."""
        source = (await self._from.stat(self._caller, self._fd)).iatt
        there = (await self._to.stat(self._caller, self._fd)).iatt
        if there.size != source.size:
            await copy_range(self._from, self._to, self._fd, self._caller, min(there.size, source.size))
        times = SetAttr(atime_ns=source.atime_ns, mtime_ns=source.mtime_ns)
        await self._to.setattr(self._caller, self._file, times)
        return source.size
