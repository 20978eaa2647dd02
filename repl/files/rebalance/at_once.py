# SPDX-License-Identifier: Apache-2.0
"""Moves a small file in one go: its name and its contents are locked until it is where it belongs (decision 0132).

The marks are those of decision 0065, and the order in which they are made and taken away; phase 1 is left out.  A crash
between any two steps leaves what the next migrator begins again, or what the next lookup repairs.
"""

from __future__ import annotations

import errno
import os
import stat

from repl.files.answers import GONE
from repl.files.rebalance.mover import Disturbed, Mover
from repl.files.translators.distribute.marks import (
    FILE_WANT,
    FINAL_SIZE,
    INCOMING,
    LINK_MODE,
    LINKTO,
    MIGRATION,
    linkto_value,
)
from repl.files.values import Fd, FopError, Looked, SetAttr
from repl.limits import DISTRIBUTE_COPY_BYTES, REBALANCE_AT_ONCE_BYTES_MAX

_BLOCK_BYTES = 64 * 1024  # so much that is all zeroes is left out


class AtOnce(Mover):
    def is_moved_at_once(self, looked: Looked) -> bool:
        """Clients that write to it wait until it has moved."""
        is_marked = MIGRATION in looked.xattrs
        return looked.iatt.nlink == 1 and looked.iatt.size <= REBALANCE_AT_ONCE_BYTES_MAX and not is_marked

    async def move_at_once(self) -> int:
        """Bytes.  The name is locked."""
        fd = self._fd = Fd(self._file.gfid, os.O_RDWR)
        await self._from.open(self._caller, self._file, fd, flags=os.O_RDWR)
        try:
            await self._open_target()
            try:
                async with self.dht.locked_inode(self.source, self._file, self.dht.migration_domain):
                    size = await self._carry()
                await self._clear_source(frees_first=False)
            finally:
                await self._to.release(fd)
        finally:
            await self._from.release(fd)
        return size

    async def _open_target(self) -> None:
        """A link file that leads to the source, marked and empty."""
        caller, value, link = self._caller, linkto_value(self.dht.names[self.source]), self._link
        if link is None:
            try:
                await self._to.create(caller, self.loc, self._fd, flags=os.O_RDWR | os.O_EXCL,
                                      mode=stat.S_IMODE(LINK_MODE), gfid=self._file.gfid,
                                      extra={LINKTO: value, INCOMING: value})  # fmt: skip
            except FopError as error:
                if error.errno != errno.EEXIST:
                    raise
            else:
                return
            await self._prepare_name(self.loc)  # with another name it is there, or somebody else was faster
        there = link or await self._to.lookup(caller, self._file)
        await self._drop_other_names(there.iatt.nlink)
        await self._to.setxattr(caller, self._file, {INCOMING: value})
        if link is None or link.iatt.size or INCOMING in link.xattrs:
            await self._to.truncate(caller, self._file, 0)
        await self._to.open(caller, self._file, self._fd, flags=os.O_RDWR)

    async def _carry(self) -> int:
        try:
            async with self._no_locks():
                return await self._switch_at_once()
        except BaseException:
            await self._take_back()
            raise

    async def _switch_at_once(self) -> int:
        """The file is at the target when ``MIGRATION`` is gone from the source."""
        caller, file = self._caller, self._file
        await self._put_marks()
        changed = await self._from.setattr(caller, file, SetAttr(mode=stat.S_IMODE(LINK_MODE)))
        before = stat.S_IMODE(changed.before.mode)
        if before != self._mode:
            await self._from.setattr(caller, file, SetAttr(mode=before))
            raise Disturbed("its mode has changed")
        now = (await self._wait_for_writes()).after
        self._first_size = changed.after.size
        await self._copy_bytes(now.size)
        await self._copy_attributes(SetAttr(mode=self._mode, uid=now.uid, gid=now.gid, atime_ns=now.atime_ns,
                                            mtime_ns=now.mtime_ns))  # fmt: skip
        await self._to.fsync(caller, self._fd)
        await self._from.setxattr(caller, file, {
            FINAL_SIZE: self._first_size.to_bytes(8, "big") + now.size.to_bytes(8, "big")
        })  # fmt: skip
        await self._is_undisturbed()
        await self._from.removexattr(caller, file, MIGRATION)
        await self._to.removexattr(caller, file, LINKTO)
        await self._to.removexattr(caller, file, INCOMING)
        return now.size

    async def _copy_bytes(self, size: int) -> None:
        """So many, no more: what is appended meanwhile is appended to the target by who does it."""
        at = end = 0
        while at < size:
            read = await self._from.readv(self._caller, self._fd, size=min(DISTRIBUTE_COPY_BYTES, size - at), offset=at)
            data = bytes(read.data)
            if not data:
                break
            for first, last in _not_zero(data):
                await self._to.writev(self._caller, self._fd, data[first:last], offset=at + first)
                end = at + last
            at += len(data)
        if end < size:
            await self._to.truncate(self._caller, self._fd, size)

    async def _is_undisturbed(self) -> None:
        """Marks and name are as we have left them: nobody has written unseen, or gives it another name."""
        try:
            there = await self._from.lookup(self._caller, self.loc, want=FILE_WANT)
        except FopError as error:
            if error.errno not in GONE:
                raise
            raise FopError(errno.ENOENT, f"{self.loc} is gone") from error
        if there.iatt.gfid != self._file.gfid:
            raise FopError(errno.ENOENT, f"{self.loc} has been replaced")
        if there.iatt.mode != LINK_MODE or MIGRATION not in there.xattrs:
            self._mode = stat.S_IMODE(there.iatt.mode)
            raise Disturbed("its mode has changed")
        if there.iatt.nlink != 1:
            raise Disturbed("it has got another name")


def _not_zero(data: bytes) -> list[tuple[int, int]]:
    """Ranges, as few as can be."""
    if data.strip(b"\0") == data:  # most files
        return [(0, len(data))]
    found: list[tuple[int, int]] = []
    for first in range(0, len(data), _BLOCK_BYTES):
        block = data[first : first + _BLOCK_BYTES]
        if not block.strip(b"\0"):
            continue
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], first + len(block))
        else:
            found.append((first, first + len(block)))
    return found
