# SPDX-License-Identifier: Apache-2.0
"""Requests on open directories: listings, with attributes where the kernel wants them.

``.`` and ``..`` are made here.  Their offsets lie above all of a brick's; the entries' own offsets pass through as they
are.  What did not fit into an answer stays with the handle for the next request, while it is fresh.
"""

from __future__ import annotations

import errno
from typing import Any

from repl.files.mount import wire
from repl.files.mount.connection import NO_ANSWER
from repl.files.mount.filesystem import Filesystem, handle_of
from repl.files.mount.inodes import Handle
from repl.files.mount.wire import Op, Request
from repl.files.values import Entry, Fd, FopError, SyncKind

DOT, DOT_DOT = (1 << 63) - 3, (1 << 63) - 2
LEFTOVER_FRESH_S = 0.5
_PLUS_BYTES = wire.ENTRY_OUT.size
_NO_INODE = bytes(_PLUS_BYTES)


async def opendir(fs: Filesystem, request: Request) -> Any:
    inode = fs.inodes[request.nodeid]
    fd = Fd(inode.gfid, is_directory=True)
    await fs.top.opendir(fs.caller(request), inode.loc, fd)
    handle = fs.inodes.open(inode, fd)
    if not fs.connection.answer(request.unique, wire.OPEN_OUT.pack(handle.number, 0, 0)):
        fs.inodes.close(handle.number)
        await fs.top.release(fd)
    return NO_ANSWER


async def readdir(fs: Filesystem, request: Request) -> Any:
    return await _list(fs, request, is_plus=False)


async def readdirplus(fs: Filesystem, request: Request) -> Any:
    return await _list(fs, request, is_plus=True)


async def _list(fs: Filesystem, request: Request, *, is_plus: bool) -> Any:
    number, offset, size, *_ = wire.READ_IN.unpack_from(request.body)
    handle = handle_of(fs, number)
    answer = _Answer(fs, handle, size, is_plus=is_plus)
    at = offset
    if offset in (0, DOT):
        answer.dots(is_first=offset == 0)
    if offset in (0, DOT, DOT_DOT):
        at = 0
    entries = _leftover(fs, handle, at)
    if entries is None:
        entries = await fs.top.readdir(fs.caller(request), handle.fd, size=size, offset=at, is_plus=is_plus)
    taken = 0
    for entry in entries:
        if not answer.add(entry):
            break
        taken += 1
    if entries and not taken and not answer.size:
        raise FopError(errno.EINVAL)  # not even one fits
    handle.leftover = entries[taken:]
    handle.leftover_at = entries[taken - 1].offset if taken else at
    handle.leftover_time = fs.context.now()
    if not fs.connection.answer(request.unique, answer.body()):
        answer.undo()
    return NO_ANSWER


def _leftover(fs: Filesystem, handle: Handle, at: int) -> list[Entry] | None:
    left, handle.leftover = handle.leftover, []
    if left and handle.leftover_at == at and fs.context.now() - handle.leftover_time < LEFTOVER_FRESH_S:
        return left
    return None


class _Answer:
    """A listing as the kernel takes it."""

    def __init__(self, fs: Filesystem, handle: Handle, size: int, *, is_plus: bool) -> None:
        self._fs = fs
        self._handle = handle
        self._room = size
        self._is_plus = is_plus
        self._parts: list[bytes] = []
        self._looked: list[int] = []
        self.size = 0

    def dots(self, *, is_first: bool) -> None:
        inode = self._handle.inode
        parent = self._fs.inodes.parent(inode)
        if is_first:
            self._put(b".", wire.inode_number(inode.gfid), DOT, 0o040000)
        self._put(b"..", wire.inode_number(parent.gfid), DOT_DOT, 0o040000)

    def add(self, entry: Entry) -> bool:
        """False: there is no room for it."""
        if entry.name in (b".", b".."):
            return True
        number = wire.inode_number(entry.gfid) if any(entry.gfid) else 2
        kind = entry.iatt.kind if entry.iatt is not None else entry.kind
        return self._put(entry.name, number, entry.offset, kind, entry)

    def _put(self, name: bytes, number: int, offset: int, kind: int, entry: Entry | None = None) -> bool:
        padded = (len(name) + 7) & ~7
        size = wire.DIRENT.size + padded + (_PLUS_BYTES if self._is_plus else 0)
        if self.size + size > self._room:
            return False
        if self._is_plus:
            self._parts.append(self._plus(name, entry))
        self._parts.append(wire.DIRENT.pack(number, offset, len(name), kind >> 12) + name.ljust(padded, b"\0"))
        self.size += size
        return True

    def _plus(self, name: bytes, entry: Entry | None) -> bytes:
        if entry is None or entry.iatt is None:
            return _NO_INODE  # only the name: the kernel will ask
        body = self._fs.entry(entry.iatt, self._handle.inode.nodeid, name)
        inode = self._fs.inodes.find(entry.iatt.gfid)
        assert inode is not None
        self._looked.append(inode.nodeid)
        return body

    def body(self) -> bytes:
        return b"".join(self._parts)

    def undo(self) -> None:
        """The kernel did not take it."""
        for nodeid in self._looked:
            self._fs.dropped(self._fs.inodes.forget(nodeid, 1))


async def releasedir(fs: Filesystem, request: Request) -> Any:
    number, *_ = wire.RELEASE_IN.unpack_from(request.body)
    handle = handle_of(fs, number)
    fs.connection.answer(request.unique)
    fs.inodes.close(number)
    if handle.inode.lookups <= 0:
        fs.dropped(fs.inodes.forget(handle.inode.nodeid, 0))
    await handle.returned()
    await fs.top.release(handle.fd)
    return NO_ANSWER


async def fsyncdir(fs: Filesystem, request: Request) -> Any:
    number, flags, _ = wire.FSYNC_IN.unpack_from(request.body)
    kind = SyncKind.DATA if flags & wire.FSYNC_DATA else SyncKind.ALL
    await fs.top.fsyncdir(fs.caller(request), handle_of(fs, number).fd, kind)


HANDLERS = {
    Op.OPENDIR: opendir,
    Op.READDIR: readdir,
    Op.READDIRPLUS: readdirplus,
    Op.RELEASEDIR: releasedir,
    Op.FSYNCDIR: fsyncdir,
}
