# SPDX-License-Identifier: Apache-2.0
"""Requests on open files: open, read, write, flush, fsync, fallocate, lseek, copy_file_range, release.

Appends go to the brick as appends, whatever size the kernel believes the file to have: such descriptors bypass its page
cache, which would keep them at the wrong place.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from repl.files.mount import wire
from repl.files.mount.attributes import drop_suid
from repl.files.mount.connection import NO_ANSWER
from repl.files.mount.filesystem import OPEN_FLAGS_KEPT, Filesystem, check_writable, handle_of
from repl.files.mount.inodes import Handle, Inode
from repl.files.mount.locks import drop_flock, drop_owner
from repl.files.mount.wire import Op, Request
from repl.files.translator import Step
from repl.files.values import Fd, FopError, SyncKind
from repl.limits import MOUNT_COPY_BYTES_MAX, MOUNT_TRANSFER_BYTES_MAX

ALLOCATE_MODES = 1 | 2 | 16  # KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE


def open_flags(fs: Filesystem, flags: int, *, keeps_cache: bool = False) -> int:
    if fs.options.is_direct or flags & (os.O_APPEND | os.O_DIRECT):
        return wire.FOPEN_DIRECT_IO
    return wire.FOPEN_KEEP_CACHE if keeps_cache else 0


async def open(fs: Filesystem, request: Request) -> Any:
    flags, kill = wire.OPEN_IN.unpack_from(request.body)
    if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
        check_writable(fs)
    inode, caller = fs.inodes[request.nodeid], fs.caller(request)
    if fs.options.has_writeback and flags & os.O_ACCMODE == os.O_WRONLY:
        # The kernel reads around partial writes, and appends by itself.
        flags = flags & ~os.O_ACCMODE | os.O_RDWR
    fd = Fd(inode.gfid, flags & OPEN_FLAGS_KEPT)
    # Attributes in the same round: whether what the kernel has cached is still true.
    steps = [
        Step("open", (inode.loc, fd), {"flags": flags & (OPEN_FLAGS_KEPT | os.O_TRUNC)}),
        Step("stat", (fd,)),
    ]
    answers = await fs.top.compound(caller, steps)
    if isinstance(answers[0], OSError):
        raise answers[0]
    keeps = False
    if len(answers) == 2 and not isinstance(answers[1], OSError):
        keeps = not inode.note(answers[1].iatt)
        if keeps and not kill:
            _store(fs, inode, fd, answers[1].iatt.size)
    if not keeps:
        fs.connection.invalidate_attributes(inode.nodeid)
    handle = fs.inodes.open(inode, fd)
    if kill & wire.OPEN_KILL_SUIDGID:
        await drop_suid(fs, caller, inode)
    if not fs.connection.answer(
        request.unique, wire.OPEN_OUT.pack(handle.number, open_flags(fs, flags, keeps_cache=keeps), 0)
    ):
        await _release(fs, handle)
    return NO_ANSWER


def open_quickly(fs: Filesystem, request: Request) -> bool:
    """To read a file whose contents a cache knows."""
    flags, kill = wire.OPEN_IN.unpack_from(request.body)
    if flags & (os.O_ACCMODE | os.O_TRUNC) or kill:
        return False
    inode = fs.inodes[request.nodeid]
    fd = Fd(inode.gfid, flags & OPEN_FLAGS_KEPT)
    iatt = fs.top.open_known(fs.caller(request), inode.loc, fd, fd.flags)
    if iatt is None:
        return False
    keeps = not inode.note(iatt)
    if not keeps:
        fs.connection.invalidate_attributes(inode.nodeid)
    else:
        _store(fs, inode, fd, iatt.size)
    handle = fs.inodes.open(inode, fd)
    body = wire.OPEN_OUT.pack(handle.number, open_flags(fs, flags, keeps_cache=keeps), 0)
    if not fs.connection.answer(request.unique, body):
        _closed(fs, handle)
        fs.top.release_known(fd)
    return True


def _store(fs: Filesystem, inode: Inode, fd: Fd, size: int) -> None:
    """What is about to be read goes into the kernel's cache, which spares the request for it (decision 0154)."""
    if inode.stored == inode.seen or inode.handles or fs.options.has_writeback:
        return  # who has it open may hold a page, and wait for us
    if fd.flags & (os.O_ACCMODE | os.O_APPEND | os.O_DIRECT) or fs.options.is_direct:
        return  # the kernel does not read through its cache, or writes
    data = fs.top.read_known(fd, size, 0)
    if data is not None and len(data) == size and fs.connection.store(inode.nodeid, data):
        inode.stored = inode.seen


async def read(fs: Filesystem, request: Request) -> Any:
    number, offset, size, *_ = wire.READ_IN.unpack_from(request.body)
    answer = await fs.top.readv(fs.caller(request), handle_of(fs, number).fd, size=size, offset=offset)
    return answer.data


def read_quickly(fs: Filesystem, request: Request) -> bool:
    number, offset, size, *_ = wire.READ_IN.unpack_from(request.body)
    data = fs.top.read_known(fs.inodes.handle(number).fd, size, offset)
    if data is None:
        return False
    fs.connection.answer(request.unique, data)
    return True


async def write(fs: Filesystem, request: Request) -> Any:
    number, offset, size, write_flags, _, flags, _ = wire.WRITE_IN.unpack_from(request.body)
    handle, caller = handle_of(fs, number), fs.caller(request)
    data = request.body[wire.WRITE_IN.size : wire.WRITE_IN.size + size]
    if write_flags & wire.WRITE_KILL_SUIDGID:
        await drop_suid(fs, caller, handle.inode)
    if write_flags & wire.WRITE_CACHE:
        flags &= ~os.O_APPEND  # the kernel has decided where already
    await fs.top.writev(
        caller, handle.fd, data, offset=offset, flags=flags & (os.O_APPEND | os.O_SYNC | os.O_DSYNC | os.O_DIRECT)
    )
    return wire.WRITE_OUT.pack(size, 0)


async def flush(fs: Filesystem, request: Request) -> Any:
    """A descriptor is closed: its owner's locks end, and errors of its writes are told."""
    number, _, _, owner = wire.FLUSH_IN.unpack_from(request.body)
    handle = handle_of(fs, number)
    if handle.fd.is_writable:
        await fs.top.flush(fs.caller(request), handle.fd)
    if handle.inode.locks:
        await drop_owner(fs, request, handle, owner)


def flush_quickly(fs: Filesystem, request: Request) -> bool:
    """Of a file that was only read and has no locks."""
    number, _, _, _ = wire.FLUSH_IN.unpack_from(request.body)
    handle = fs.inodes.handle(number)
    if handle.fd.is_writable or handle.inode.locks:
        return False
    fs.connection.answer(request.unique)
    return True


async def fsync(fs: Filesystem, request: Request) -> Any:
    number, flags, _ = wire.FSYNC_IN.unpack_from(request.body)
    kind = SyncKind.DATA if flags & wire.FSYNC_DATA else SyncKind.ALL
    await fs.top.fsync(fs.caller(request), handle_of(fs, number).fd, kind)


async def release(fs: Filesystem, request: Request) -> Any:
    number, _, flags, owner = wire.RELEASE_IN.unpack_from(request.body)
    handle = handle_of(fs, number)
    fs.connection.answer(request.unique)  # nobody waits for more
    if flags & wire.RELEASE_FLOCK_UNLOCK and handle.inode.locks:
        await drop_flock(fs, request, handle, owner)
    await _release(fs, handle)
    return NO_ANSWER


def release_quickly(fs: Filesystem, request: Request) -> bool:
    """Of a file that no brick has opened."""
    number, _, _, _ = wire.RELEASE_IN.unpack_from(request.body)
    handle = fs.inodes.handle(number)
    if handle.inode.locks or handle.borrowers or not fs.top.release_known(handle.fd):
        return False
    fs.connection.answer(request.unique)
    _closed(fs, handle)
    return True


async def _release(fs: Filesystem, handle: Handle) -> None:
    _closed(fs, handle)
    await handle.returned()
    await fs.top.release(handle.fd)


def _closed(fs: Filesystem, handle: Handle) -> None:
    inode = handle.inode
    fs.inodes.close(handle.number)
    if inode.lookups <= 0:
        fs.dropped(fs.inodes.forget(inode.nodeid, 0))


async def fallocate(fs: Filesystem, request: Request) -> Any:
    check_writable(fs)
    number, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(request.body)
    if mode & ~ALLOCATE_MODES:
        raise FopError(errno.EOPNOTSUPP)
    handle = handle_of(fs, number)
    await fs.top.fallocate(fs.caller(request), handle.fd, mode=mode, offset=offset, length=length)


async def lseek(fs: Filesystem, request: Request) -> Any:
    number, offset, what, _ = wire.LSEEK_IN.unpack_from(request.body)
    if what not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise FopError(errno.EINVAL)
    handle = handle_of(fs, number)
    found = await fs.top.seek(fs.caller(request), handle.fd, offset=offset, what=what)
    return wire.LSEEK_OUT.pack(found)


async def copy_file_range(fs: Filesystem, request: Request) -> Any:
    """Copied here, so that the data need not go through the application.  Shorter than asked is allowed."""
    check_writable(fs)
    source, offset, _, target, target_offset, length, _ = wire.COPY_IN.unpack_from(request.body)
    caller, source_fd, target_fd = fs.caller(request), handle_of(fs, source).fd, handle_of(fs, target).fd
    done, wanted = 0, min(length, MOUNT_COPY_BYTES_MAX)
    while done < wanted:
        size = min(wanted - done, MOUNT_TRANSFER_BYTES_MAX)
        try:
            data = (await fs.top.readv(caller, source_fd, size=size, offset=offset + done)).data
            if data:
                await fs.top.writev(caller, target_fd, data, offset=target_offset + done)
        except OSError:
            if done == 0:
                raise
            break
        done += len(data)
        if len(data) < size:
            break
    return wire.WRITE_OUT.pack(done, 0)


async def ioctl(fs: Filesystem, request: Request) -> Any:
    raise FopError(errno.ENOTTY)


HANDLERS = {
    Op.OPEN: open,
    Op.READ: read,
    Op.WRITE: write,
    Op.FLUSH: flush,
    Op.FSYNC: fsync,
    Op.RELEASE: release,
    Op.FALLOCATE: fallocate,
    Op.LSEEK: lseek,
    Op.COPY_FILE_RANGE: copy_file_range,
    Op.IOCTL: ioctl,
}

QUICK: dict[int, Callable[[Filesystem, Request], bool]] = {
    Op.OPEN: open_quickly, Op.READ: read_quickly, Op.FLUSH: flush_quickly, Op.RELEASE: release_quickly,
}  # fmt: skip
