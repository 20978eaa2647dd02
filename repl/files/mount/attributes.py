# SPDX-License-Identifier: Apache-2.0
"""Requests on attributes: stat, chmod and its kin, truncate, statfs, extended attributes."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from repl.files.mount import wire
from repl.files.mount.filesystem import Filesystem, check_writable, handle_of, name_of
from repl.files.mount.inodes import Inode
from repl.files.mount.wire import Op, Request, SetattrValid
from repl.files.values import Caller, Fd, FopError, Iatt, Loc, SetAttr, Xattrs

_OWNER = SetattrValid.UID | SetattrValid.GID
CAPABILITY = b"security.capability"
_CAPABILITY = CAPABILITY + b"\0"
_GETXATTR_BYTES = wire.GETXATTR_IN.size


async def getattr(fs: Filesystem, request: Request) -> Any:
    inode = fs.inodes[request.nodeid]
    if inode.directory is not None:
        if inode.directory_until > fs.context.now():
            return fs.attributes(inode, inode.directory)
        inode.directory = None
    with inode.target() as target:
        looked = await fs.top.stat(fs.caller(request), target)
    return fs.attributes(inode, looked.iatt)


def getattr_quickly(fs: Filesystem, request: Request) -> bool:
    """Of a directory that was just changed here."""
    inode = fs.inodes[request.nodeid]
    if inode.directory is None or inode.directory_until <= fs.context.now():
        return False
    fs.connection.answer(request.unique, fs.attributes(inode, inode.directory))
    return True


def getxattr_quickly(fs: Filesystem, request: Request) -> bool:
    """The first write of a new file asks for this."""
    body = request.body
    if not fs.inodes[request.nodeid].has_no_capability or body[_GETXATTR_BYTES:] != _CAPABILITY:
        return False
    fs.connection.fail(request.unique, errno.ENODATA)
    return True


def _writable(fs: Filesystem, inode: Inode, valid: int, number: int) -> AbstractContextManager[Fd | Loc]:
    """What to truncate: the descriptor of ftruncate, or any that may write, or the file by its gfid."""
    if valid & SetattrValid.FH:
        return handle_of(fs, number)
    return next((handle for handle in inode.handles if handle.fd.is_writable), nullcontext(inode.loc))


async def setattr(fs: Filesystem, request: Request) -> Any:
    check_writable(fs)
    (valid, _, number, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = (
        wire.SETATTR_IN.unpack_from(request.body)
    )
    inode, caller = fs.inodes[request.nodeid], fs.caller(request)
    inode.directory = None
    wanted = SetAttr()
    if valid & SetattrValid.MODE:
        wanted.mode = mode & 0o7777
    if valid & SetattrValid.UID:
        wanted.uid = uid
    if valid & SetattrValid.GID:
        wanted.gid = gid
    if valid & SetattrValid.ATIME:
        wanted.atime_ns = _time(fs, valid & SetattrValid.ATIME_NOW, atime, atime_ns)
    if valid & SetattrValid.MTIME:
        wanted.mtime_ns = _time(fs, valid & SetattrValid.MTIME_NOW, mtime, mtime_ns)
    iatt: Iatt | None = None
    if valid & SetattrValid.SIZE:
        with _writable(fs, inode, valid, number) as target:
            iatt = (await fs.top.truncate(caller, target, size)).after
    # With a change of owner the bricks' kernels take the bits away.
    if valid & SetattrValid.KILL_SUIDGID and wanted.mode is None and not valid & _OWNER:
        await drop_suid(fs, caller, inode)
    if wanted != SetAttr():
        with inode.target() as target:
            changed = await fs.top.setattr(caller, target, wanted)
        iatt = changed.after
        if not changed.before.mode:  # how it is going to be, not how it is (write-behind)
            return wire.ATTR_OUT.pack(0, 0, 0, *wire.attributes(iatt))
    if iatt is None:
        with inode.target() as target:
            iatt = (await fs.top.stat(caller, target)).iatt
    inode.directory = None
    return fs.attributes(inode, iatt)


def _time(fs: Filesystem, is_now: int, seconds: int, ns: int) -> int:
    if is_now:
        return fs.context.wall_ns()
    if seconds >= 1 << 63:
        seconds -= 1 << 64
    return seconds * wire.SECOND_NS + ns


async def drop_suid(fs: Filesystem, caller: Caller, inode: Inode) -> None:
    """A write of somebody without the right to keep them ends set-uid and (with group execute) set-gid bits."""
    with inode.target() as target:
        mode = (await fs.top.stat(caller, target)).iatt.mode
        kept = mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            kept &= ~stat.S_ISGID
        if kept != mode:
            await fs.top.setattr(caller, target, SetAttr(mode=stat.S_IMODE(kept)))


async def statfs(fs: Filesystem, request: Request) -> Any:
    found = await fs.top.statfs(fs.caller(request), fs.inodes[request.nodeid].loc)
    return wire.STATFS_OUT.pack(
        found.blocks, found.blocks_free, found.blocks_available, found.files, found.files_free, found.block_size,
        found.name_bytes_max, found.block_size, 0,
    )  # fmt: skip


# ---- extended attributes ----


async def setxattr(fs: Filesystem, request: Request) -> Any:
    check_writable(fs)
    head = wire.SETXATTR_IN if fs.connection.agreed & wire.Init.SETXATTR_EXT else wire.GETXATTR_IN
    size, flags, *more = head.unpack_from(request.body)
    name = name_of(request.body, head.size)
    at = head.size + len(name) + 1
    value = bytes(request.body[at : at + size])
    inode, caller = fs.inodes[request.nodeid], fs.caller(request)
    _check_name(fs, name)
    with inode.target() as target:
        await fs.top.setxattr(caller, target, {name: value}, flags=flags)
        inode.has_no_capability = False
        inode.default_acl_until = 0.0
        inode.directory = None
        if more and more[0] & wire.SETXATTR_ACL_KILL_SGID:
            mode = (await fs.top.stat(caller, target)).iatt.mode
            if mode & stat.S_ISGID:
                await fs.top.setattr(caller, target, SetAttr(mode=stat.S_IMODE(mode & ~stat.S_ISGID)))


def _check_name(fs: Filesystem, name: bytes) -> None:
    if name.startswith(b"system.posix_acl_") and not fs.options.has_acl:
        raise FopError(errno.EOPNOTSUPP)


async def getxattr(fs: Filesystem, request: Request) -> Any:
    size, _ = wire.GETXATTR_IN.unpack_from(request.body)
    name = name_of(request.body, wire.GETXATTR_IN.size)
    inode = fs.inodes[request.nodeid]
    if name == CAPABILITY and inode.has_no_capability:
        raise FopError(errno.ENODATA)
    _check_name(fs, name)
    with inode.target() as target:
        found = await fs.top.getxattr(fs.caller(request), target, name)
    if name not in found:
        raise FopError(errno.ENODATA)
    return _sized(bytes(found[name]), size)


async def listxattr(fs: Filesystem, request: Request) -> Any:
    size, _ = wire.GETXATTR_IN.unpack_from(request.body)
    with fs.inodes[request.nodeid].target() as target:
        found: Xattrs = await fs.top.getxattr(fs.caller(request), target)
    return _sized(b"".join(name + b"\0" for name in found), size)


def _sized(value: bytes, size: int) -> bytes:
    """Size 0 asks how long it is."""
    if size == 0:
        return wire.XATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise FopError(errno.ERANGE)
    return value


async def removexattr(fs: Filesystem, request: Request) -> Any:
    check_writable(fs)
    name = name_of(request.body)
    inode = fs.inodes[request.nodeid]
    _check_name(fs, name)
    with inode.target() as target:
        await fs.top.removexattr(fs.caller(request), target, name)
    inode.default_acl_until = 0.0


HANDLERS = {
    Op.GETATTR: getattr,
    Op.SETATTR: setattr,
    Op.STATFS: statfs,
    Op.SETXATTR: setxattr,
    Op.GETXATTR: getxattr,
    Op.LISTXATTR: listxattr,
    Op.REMOVEXATTR: removexattr,
}

QUICK: dict[int, Callable[[Filesystem, Request], bool]] = {Op.GETATTR: getattr_quickly, Op.GETXATTR: getxattr_quickly}
