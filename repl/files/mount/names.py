# SPDX-License-Identifier: Apache-2.0
"""Requests on names: lookup, making and removing, rename, link, symlinks, and the kernel's forgetting."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from repl.files.mount import wire
from repl.files.mount.connection import NO_ANSWER
from repl.files.mount.files import open_flags
from repl.files.mount.filesystem import OPEN_FLAGS_KEPT, Filesystem, check_writable, name_of
from repl.files.mount.inodes import Inode
from repl.files.mount.wire import Op, Request
from repl.files.values import Fd, FopError, Loc, Looked

DEFAULT_ACL = b"system.posix_acl_default"
DEFAULT_ACL_KNOWN_S = 1.0


def _loc(fs: Filesystem, parent: Inode, name: bytes) -> Loc:
    return Loc(parent=parent.gfid, name=name)


def _hinted(fs: Filesystem, parent: Inode, name: bytes) -> Loc:
    """With its path, for the place of a new directory's layout."""
    above = fs.inodes.path(parent)
    return Loc(parent=parent.gfid, name=name, path=os.path.join(above, name) if above else b"")


def _made(fs: Filesystem, request: Request, looked: Looked, name: bytes, *, is_file: bool = False) -> Any:
    """Something new under the directory of the request."""
    fs.directory_changed(request.nodeid, looked.parent)
    return _entry(fs, request, looked, name, is_new=is_file)


def _entry(fs: Filesystem, request: Request, looked: Looked, name: bytes, *, is_new: bool = False) -> Any:
    body = fs.entry(looked.iatt, request.nodeid, name)
    inode = fs.inodes.find(looked.iatt.gfid)
    assert inode is not None
    inode.has_no_capability = inode.has_no_capability or is_new
    return fs.answer_entry(request, body, inode.nodeid)


async def lookup(fs: Filesystem, request: Request) -> Any:
    name = name_of(request.body)
    try:
        looked = await fs.top.lookup(fs.caller(request), _loc(fs, fs.inodes[request.nodeid], name))
    except OSError as error:
        if error.errno == errno.ENOENT and fs.options.negative_timeout:
            seconds, ns = wire.valid_for(fs.options.negative_timeout)
            return wire.ENTRY_OUT.pack(0, 0, seconds, 0, ns, *[0] * 17)
        raise
    return _entry(fs, request, looked, name)


def lookup_quickly(fs: Filesystem, request: Request) -> bool:
    """Of a name that a cache knows, or knows not to be there."""
    name = name_of(request.body)
    known = fs.top.known(fs.inodes[request.nodeid].gfid, name)
    if known is None or known is False and fs.options.negative_timeout:
        return False
    if isinstance(known, bool):
        fs.connection.fail(request.unique, errno.ENOENT)
    else:
        _entry(fs, request, Looked(known), name)
    return True


def forget_quickly(fs: Filesystem, request: Request) -> bool:
    (count,) = wire.FORGET_IN.unpack_from(request.body)
    fs.dropped(fs.inodes.forget(request.nodeid, count))
    return True


async def batch_forget(fs: Filesystem, request: Request) -> Any:
    count, _ = wire.BATCH_FORGET_IN.unpack_from(request.body)
    for index in range(count):
        at = wire.BATCH_FORGET_IN.size + index * wire.FORGET_ONE.size
        fs.dropped(fs.inodes.forget(*wire.FORGET_ONE.unpack_from(request.body, at)))
    return NO_ANSWER


async def _mode(fs: Filesystem, request: Request, parent: Inode, mode: int, umask: int) -> int:
    """The permissions of something new: a directory's default ACL takes the umask's place."""
    if not fs.options.has_acl:
        return mode & ~umask  # the kernel has done it already; twice is the same
    if parent.default_acl_until < fs.context.now():
        parent.default_acl_until = fs.context.now() + DEFAULT_ACL_KNOWN_S
        try:
            parent.has_default_acl = bool(await fs.top.getxattr(fs.caller(request), parent.loc, DEFAULT_ACL))
        except OSError:
            parent.has_default_acl = False
    return mode if parent.has_default_acl else mode & ~umask


async def create(fs: Filesystem, request: Request) -> Any:
    check_writable(fs)
    flags, mode, umask, _ = wire.CREATE_IN.unpack_from(request.body)
    name = name_of(request.body, wire.CREATE_IN.size)
    parent = fs.inodes[request.nodeid]
    mode = await _mode(fs, request, parent, mode & 0o7777, umask)
    gfid = fs.context.new_gfid()
    fd = Fd(gfid, flags & OPEN_FLAGS_KEPT)
    keep = OPEN_FLAGS_KEPT | os.O_EXCL | os.O_TRUNC | os.O_CREAT
    looked = await fs.top.create(
        fs.caller(request), _loc(fs, parent, name), fd, flags=flags & keep, mode=mode, gfid=gfid
    )
    fd.gfid = looked.iatt.gfid
    fs.directory_changed(request.nodeid, looked.parent)
    body = fs.entry(looked.iatt, request.nodeid, name)
    inode = fs.inodes.find(looked.iatt.gfid)
    assert inode is not None
    inode.has_no_capability = looked.iatt.gfid == gfid
    handle = fs.inodes.open(inode, fd)
    body += wire.OPEN_OUT.pack(handle.number, open_flags(fs, flags), 0)
    if not fs.connection.answer(request.unique, body):
        fs.inodes.close(handle.number)
        fs.dropped(fs.inodes.forget(inode.nodeid, 1))
        await fs.top.release(fd)
    return NO_ANSWER


async def mknod(fs: Filesystem, request: Request) -> Any:
    check_writable(fs)
    mode, rdev, umask, _ = wire.MKNOD_IN.unpack_from(request.body)
    name = name_of(request.body, wire.MKNOD_IN.size)
    parent = fs.inodes[request.nodeid]
    mode = stat.S_IFMT(mode) | await _mode(fs, request, parent, mode & 0o7777, umask)
    looked = await fs.top.mknod(
        fs.caller(request), _loc(fs, parent, name), mode=mode, rdev=rdev, gfid=fs.context.new_gfid()
    )
    return _made(fs, request, looked, name, is_file=True)


async def mkdir(fs: Filesystem, request: Request) -> Any:
    check_writable(fs)
    mode, umask = wire.MKDIR_IN.unpack_from(request.body)
    name = name_of(request.body, wire.MKDIR_IN.size)
    parent = fs.inodes[request.nodeid]
    mode = await _mode(fs, request, parent, mode & 0o7777, umask)
    loc = _hinted(fs, parent, name)
    looked = await fs.top.mkdir(fs.caller(request), loc, mode=mode, gfid=fs.context.new_gfid())
    return _made(fs, request, looked, name)


async def symlink(fs: Filesystem, request: Request) -> Any:
    check_writable(fs)
    name = name_of(request.body)
    target = name_of(request.body, len(name) + 1)
    parent = fs.inodes[request.nodeid]
    looked = await fs.top.symlink(fs.caller(request), _loc(fs, parent, name), target=target, gfid=fs.context.new_gfid())
    return _made(fs, request, looked, name)


async def link(fs: Filesystem, request: Request) -> Any:
    check_writable(fs)
    (source,) = wire.LINK_IN.unpack_from(request.body)
    name = name_of(request.body, wire.LINK_IN.size)
    loc = _loc(fs, fs.inodes[request.nodeid], name)
    looked = await fs.top.link(fs.caller(request), fs.inodes[source].loc, loc)
    return _made(fs, request, looked, name)


async def unlink(fs: Filesystem, request: Request) -> Any:
    check_writable(fs)
    name = name_of(request.body)
    looked = await fs.top.unlink(fs.caller(request), _loc(fs, fs.inodes[request.nodeid], name))
    fs.directory_changed(request.nodeid, looked.parent)


async def rmdir(fs: Filesystem, request: Request) -> Any:
    check_writable(fs)
    name = name_of(request.body)
    looked = await fs.top.rmdir(fs.caller(request), _loc(fs, fs.inodes[request.nodeid], name))
    fs.directory_changed(request.nodeid, looked.parent)


async def rename(fs: Filesystem, request: Request) -> Any:
    (directory,) = wire.RENAME_IN.unpack_from(request.body)
    await _rename(fs, request, directory, 0, wire.RENAME_IN.size)


async def rename2(fs: Filesystem, request: Request) -> Any:
    directory, flags, _ = wire.RENAME2_IN.unpack_from(request.body)
    await _rename(fs, request, directory, flags, wire.RENAME2_IN.size)


async def _rename(fs: Filesystem, request: Request, directory: int, flags: int, at: int) -> None:
    check_writable(fs)
    if flags & ~3:  # RENAME_WHITEOUT
        raise FopError(errno.EINVAL)
    name = name_of(request.body, at)
    new_name = name_of(request.body, at + len(name) + 1)
    old, new = fs.inodes[request.nodeid], fs.inodes[directory]
    looked = await fs.top.rename(fs.caller(request), _loc(fs, old, name), _loc(fs, new, new_name), flags=flags)
    old.directory = None
    fs.directory_changed(directory, None if new is old else looked.parent)
    inode = fs.inodes.find(looked.iatt.gfid)
    if inode is not None:
        inode.parent, inode.name = directory, new_name


async def readlink(fs: Filesystem, request: Request) -> Any:
    return await fs.top.readlink(fs.caller(request), fs.inodes[request.nodeid].loc)


HANDLERS = {
    Op.LOOKUP: lookup,
    Op.BATCH_FORGET: batch_forget,
    Op.CREATE: create,
    Op.MKNOD: mknod,
    Op.MKDIR: mkdir,
    Op.SYMLINK: symlink,
    Op.LINK: link,
    Op.UNLINK: unlink,
    Op.RMDIR: rmdir,
    Op.RENAME: rename,
    Op.RENAME2: rename2,
    Op.READLINK: readlink,
}

QUICK: dict[int, Callable[[Filesystem, Request], bool]] = {Op.LOOKUP: lookup_quickly, Op.FORGET: forget_quickly}
