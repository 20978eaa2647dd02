# SPDX-License-Identifier: Apache-2.0
"""Requests on the locks of applications: fcntl and flock, across all mounts of the volume.

Who gets a lock sees what was written under the lock before: the kernel's pages of the file go before the answer.  What
this mount holds is remembered, to end it when its owner closes, and to take it again in a new graph.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from repl.files.mount import wire
from repl.files.mount.filesystem import Filesystem, handle_of
from repl.files.mount.inodes import Handle, Inode
from repl.files.mount.wire import Op, Request
from repl.files.values import END, Caller, FopError, Lock, LockCommand, LockType

F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2
_TYPES = {F_RDLCK: LockType.READ, F_WRLCK: LockType.WRITE, F_UNLCK: LockType.UNLOCK}
_NUMBERS = {kind: number for number, kind in _TYPES.items()}


def _lock(request: Request) -> tuple[int, int, Lock]:
    number, owner, first, last, kind, pid, flags, _ = wire.LK_IN.unpack_from(request.body)
    return number, owner, Lock(_TYPES[kind], first, min(last, END), bool(flags & wire.LK_FLOCK), pid)


async def getlk(fs: Filesystem, request: Request) -> Any:
    number, owner, lock = _lock(request)
    handle = handle_of(fs, number)
    found = await fs.top.lk(fs.owner(request, owner), handle.fd, LockCommand.GET, lock)
    return wire.LK_OUT.pack(found.first, found.last, _NUMBERS[found.type], found.pid)


async def setlk(fs: Filesystem, request: Request) -> Any:
    await _set(fs, request, LockCommand.TRY)


async def setlkw(fs: Filesystem, request: Request) -> Any:
    await _set(fs, request, LockCommand.WAIT)


async def _set(fs: Filesystem, request: Request, command: LockCommand) -> None:
    number, owner, lock = _lock(request)
    handle, caller = handle_of(fs, number), fs.owner(request, owner)
    if fs.options.has_writeback and lock.type == LockType.UNLOCK:
        await fs.make_fresh(handle.inode)  # writes what the kernel holds back
    while True:
        top = fs.top
        try:
            await top.lk(caller, handle.fd, command, lock)
        except FopError:
            if top is not fs.top:  # the graph was replaced meanwhile
                continue
            raise
        break
    _remember(handle.inode, caller.lock_owner, lock)
    if lock.type != LockType.UNLOCK:
        await fs.make_fresh(handle.inode)


def _remember(inode: Inode, owner: bytes, lock: Lock) -> None:
    """The owner's locks after this one."""
    left: list[tuple[bytes, Lock]] = []
    for held_owner, held in inode.locks:
        if held_owner != owner or held.is_flock != lock.is_flock or not held.overlaps(lock):
            left.append((held_owner, held))
            continue
        if held.first < lock.first:
            left.append((owner, replace(held, last=lock.first - 1)))
        if held.last > lock.last:
            left.append((owner, replace(held, first=lock.last + 1)))
    if lock.type != LockType.UNLOCK:
        left.append((owner, lock))
    inode.locks = left


async def drop_owner(fs: Filesystem, request: Request, handle: Handle, owner: int) -> None:
    """All fcntl locks of one owner on the file end."""
    caller = fs.owner(request, owner)
    if any(held == caller.lock_owner and not lock.is_flock for held, lock in handle.inode.locks):
        await _drop(fs, caller, handle, Lock(LockType.UNLOCK))


async def drop_flock(fs: Filesystem, request: Request, handle: Handle, owner: int) -> None:
    caller = fs.owner(request, owner)
    if any(held == caller.lock_owner and lock.is_flock for held, lock in handle.inode.locks):
        await _drop(fs, caller, handle, Lock(LockType.UNLOCK, is_flock=True))


async def _drop(fs: Filesystem, caller: Caller, handle: Handle, lock: Lock) -> None:
    _remember(handle.inode, caller.lock_owner, lock)
    await fs.top.lk(caller, handle.fd, LockCommand.TRY, lock)


HANDLERS = {Op.GETLK: getlk, Op.SETLK: setlk, Op.SETLKW: setlkw}
