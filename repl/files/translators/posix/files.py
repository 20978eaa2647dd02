# SPDX-License-Identifier: Apache-2.0
"""Open files of a brick and what is done with their data.

Reads that the page cache can answer and small writes happen at once, in the event loop: handing them to a thread costs
more than they do.  What may wait for the disk goes to threads: reads that miss the cache (preadv2 with RWF_NOWAIT says
so), large ones, synchronous writes, fsync, large allocations.  A descriptor is closed when it is released and nothing
uses it any more.  Errors: ``OSError`` as the kernel says it (ENOSPC, EDQUOT, EROFS, EIO, EFBIG).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from repl.files.translators.posix import calls
from repl.files.translators.posix.brick import Brick, iatt_of
from repl.files.translators.posix.listing import Listing
from repl.files.translators.posix.native import Native
from repl.files.values import Changed, FopError, Iatt, SyncKind

Data = bytes | bytearray | memoryview

DIRECT_ALIGN = 4096
FALLOC_PUNCH_HOLE = 2
SYNC_FLAGS = os.O_SYNC | os.O_DSYNC
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(slots=True, eq=False)
class OpenFile:
    """A descriptor of a client's.  ``users`` are the threads that work on it now."""

    gfid: bytes
    fd: int
    is_writable: bool = True
    is_direct: bool = False
    users: int = 0
    is_released: bool = False
    listing: Listing | None = None  # directories
    mdata_dropped: bool = False
    buffered: list[int] = field(default_factory=list)  # a second descriptor for what O_DIRECT cannot do
    pages_stay_until: float = 0.0  # they have just been dropped from the page cache


class OpenFiles:
    """All of them, by gfid.  ``last_closed`` is told when a gfid has none any more."""

    def __init__(self, brick: Brick, last_closed: Callable[[bytes], None]) -> None:
        self._brick = brick
        self._by_gfid: dict[bytes, set[OpenFile]] = {}
        self._last_closed = last_closed

    def is_open(self, gfid: bytes) -> bool:
        return gfid in self._by_gfid

    def __len__(self) -> int:
        return sum(map(len, self._by_gfid.values()))

    def open(self, gfid: bytes, flags: int, *, is_direct: bool) -> OpenFile:
        """A regular file by its gfid.  Written to or not, it can be read: partial blocks and heals need it."""
        node = self._brick.node(gfid)
        if stat.S_ISDIR(node.st.st_mode):
            raise FopError(errno.EISDIR)
        if not stat.S_ISREG(node.st.st_mode):
            raise FopError(errno.ELOOP if stat.S_ISLNK(node.st.st_mode) else errno.ENXIO)
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        mode = (os.O_RDWR if writable else os.O_RDONLY) | (flags & os.O_TRUNC if writable else 0)
        is_direct = is_direct or bool(flags & os.O_DIRECT)
        path = self._brick.file_path(gfid)
        try:
            fd = calls.open(path, mode | _OPEN | (os.O_DIRECT if is_direct else 0), dir_fd=self._brick.root)
        except OSError as error:
            if error.errno != errno.EINVAL or not is_direct:
                raise
            is_direct = False  # this file system has no direct I/O
            fd = calls.open(path, mode | _OPEN, dir_fd=self._brick.root)
        return self.add(gfid, fd, is_writable=writable, is_direct=is_direct)

    def open_directory(self, gfid: bytes) -> OpenFile:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._brick.directory(gfid))
        opened = self.add(gfid, fd, is_writable=False)
        opened.listing = Listing(fd)
        return opened

    def add(self, gfid: bytes, fd: int, *, is_writable: bool, is_direct: bool = False) -> OpenFile:
        opened = OpenFile(gfid, fd, is_writable, is_direct)
        self._by_gfid.setdefault(gfid, set()).add(opened)
        return opened

    def release(self, opened: OpenFile) -> None:
        opened.is_released = True
        if opened.users:
            return
        for fd in (opened.fd, *opened.buffered):
            os.close(fd)
        opened.fd = -1
        group = self._by_gfid.get(opened.gfid)
        if group is not None:
            group.discard(opened)
            if not group:
                del self._by_gfid[opened.gfid]
                self._last_closed(opened.gfid)

    def close_all(self) -> None:
        for group in list(self._by_gfid.values()):
            for opened in list(group):
                opened.users = 0
                self.release(opened)


def is_aligned(size: int, offset: int) -> bool:
    """As direct I/O wants it."""
    return size > 0 and size % DIRECT_ALIGN == 0 and offset % DIRECT_ALIGN == 0


def are_apart(pieces: Sequence[tuple[Data, int]]) -> bool:
    """All aligned, and no byte in two of them."""
    end = 0
    for offset, size in sorted((offset, len(data)) for data, offset in pieces):
        if offset < end or not is_aligned(size, offset):
            return False
        end = offset + size
    return True


# ---- data: each is called with an open descriptor, in the loop or in a thread ----


def read_cached(opened: OpenFile, size: int, offset: int) -> bytearray | memoryview | None:
    """What is in the page cache; None: it has to be fetched."""
    buffer = bytearray(size)
    try:
        count = os.preadv(opened.fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return None
        raise
    if count == size:
        return buffer
    if offset + count < os.fstat(opened.fd).st_size:
        return None  # the rest is not in the cache
    return memoryview(buffer)[:count]


def read(opened: OpenFile, size: int, offset: int) -> Data:
    if opened.is_direct:
        return _read_direct(opened, size, offset)
    return _read_all(opened.fd, size, offset)


def _read_all(fd: int, size: int, offset: int) -> bytes:
    """The kernel may give less than asked before the end (signals, 2 GiB)."""
    data = os.pread(fd, size, offset)
    if len(data) == size or not data:
        return data
    parts = [data]
    got = len(data)
    while got < size and (data := os.pread(fd, size - got, offset + got)):
        parts.append(data)
        got += len(data)
    return b"".join(parts) if len(parts) > 1 else parts[0]


def _read_direct(opened: OpenFile, size: int, offset: int) -> Data:
    if offset % DIRECT_ALIGN:
        return _read_all(_buffered(opened), size, offset)
    with mmap.mmap(-1, -(-size // DIRECT_ALIGN) * DIRECT_ALIGN) as room:
        with memoryview(room) as view:
            count = os.preadv(opened.fd, [view], offset)
        return room[: min(count, size)]


def forget_pages(opened: OpenFile) -> None:
    """Clean ones leave the page cache, dirty ones are on their way to the disk."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(opened.fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _buffered(opened: OpenFile) -> int:
    if not opened.buffered:
        mode = os.O_RDWR if opened.is_writable else os.O_RDONLY
        opened.buffered.append(os.open(f"/proc/self/fd/{opened.fd}", mode | os.O_CLOEXEC))
    return opened.buffered[0]


def write(opened: OpenFile, data: Data, offset: int, flags: int) -> Changed:
    before = iatt(opened)
    _write(opened, data, offset, flags)
    return Changed(before, iatt(opened))


def write_soon(native: Native, opened: OpenFile, data: Data, offset: int, flags: int) -> Changed:
    """Into the page cache.  In the lane only."""
    return native.write(opened.fd, opened.gfid, data, offset, os.RWF_APPEND if flags & os.O_APPEND else 0)


def _write(opened: OpenFile, data: Data, offset: int, flags: int) -> None:
    """All of it.  O_APPEND: at the end, wherever that is; O_SYNC, O_DSYNC: on the disk before this returns."""
    how = 0
    if flags & os.O_APPEND:
        how |= os.RWF_APPEND
    if flags & SYNC_FLAGS:
        how |= os.RWF_SYNC if flags & os.O_SYNC == os.O_SYNC else os.RWF_DSYNC
    view = memoryview(data)
    fd = opened.fd
    if opened.is_direct:
        if not how & os.RWF_APPEND and offset % DIRECT_ALIGN == 0 and len(view) % DIRECT_ALIGN == 0:
            with mmap.mmap(-1, max(len(view), 1)) as room:
                room[:] = view  # aligned memory
                with memoryview(room) as aligned:
                    _write_all(fd, aligned, offset, how)
            return
        fd = _buffered(opened)
        how |= os.RWF_DSYNC
    _write_all(fd, view, offset, how)


def _write_all(fd: int, view: memoryview, offset: int, how: int) -> None:
    while len(view):
        count = calls.pwritev(fd, [view], offset, how)
        if count == len(view):
            return
        view = view[count:]
        offset += count


def iatt(opened: OpenFile) -> Iatt:
    return iatt_of(os.fstat(opened.fd), opened.gfid)


def truncate(opened: OpenFile, size: int) -> Changed:
    before = iatt(opened)
    calls.ftruncate(opened.fd, size)
    return Changed(before, iatt(opened))


def allocate(opened: OpenFile, mode: int, offset: int, length: int) -> Changed:
    before = iatt(opened)
    calls.fallocate(opened.fd, mode, offset, length)
    return Changed(before, iatt(opened))


def sync(opened: OpenFile, kind: SyncKind) -> None:
    if kind == SyncKind.DATA:
        os.fdatasync(opened.fd)
    else:
        os.fsync(opened.fd)


def checksum(opened: OpenFile, offset: int, length: int) -> bytes:
    """SHA-256 of what is there, empty if the file ends before the range begins."""
    data = _read_all(_buffered(opened) if opened.is_direct else opened.fd, length, offset)
    return hashlib.sha256(data).digest() if data else b""
