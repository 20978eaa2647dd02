# SPDX-License-Identifier: Apache-2.0
"""Files and locks on a new connection.

``recover`` opens again by gfid what was open before, all at a time, and asks again for application locks; answers the
gfids whose locks somebody else has got.  ``open_again`` opens one file that the server does not know yet.
"""

from __future__ import annotations

import asyncio
import errno
import logging

from repl.files.rpc import operations as ops
from repl.files.rpc.frames import Kind
from repl.files.translators.client.link import Link
from repl.files.translators.client.open_files import OPENING_FLAGS, RemoteFile, RemoteFiles
from repl.files.values import Caller, Fd, FopError, Loc, LockCommand, LockType

log = logging.getLogger(__name__)

UNLOCKS = LockType.UNLOCK
_OPEN, _OPENDIR, _LK = ops.BY_NAME["open"], ops.BY_NAME["opendir"], ops.BY_NAME["lk"]


async def recover(files: RemoteFiles, link: Link) -> tuple[bytes, ...]:
    """Raises ``FopError`` ENOTCONN if the new connection dies meanwhile."""
    waiting = [file for file in files.all() if file.is_open]
    results = await asyncio.gather(*(_recover(files, link, file) for file in waiting), return_exceptions=True)
    lost: set[bytes] = set()
    for file, result in zip(waiting, results, strict=True):
        if isinstance(result, OSError) and result.errno != errno.ENOTCONN:
            log.warning("volume '%s': %s cannot be opened again: %s", link.settings.name, file.fd, result)
            if file.locks:
                lost.add(file.fd.gfid)
            files.remove(file.fd)
        elif isinstance(result, BaseException):
            raise result
        elif result:
            file.has_lost_locks = True
            lost.add(file.fd.gfid)
    return tuple(sorted(lost))


async def _recover(files: RemoteFiles, link: Link, file: RemoteFile) -> bool:
    """True: locks are lost."""
    await _open(link, Caller(), file.fd)
    if files.find(file.fd) is not file:
        link.tell(Kind.RELEASE, [file.number])
        return False
    is_lost = False
    for caller, lock in file.locks:
        try:
            await link.call(_LK, caller, [file.fd, LockCommand.TRY, lock])
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                raise
            file.locks.lost(caller, lock)
            is_lost = True
    return is_lost


async def _open(link: Link, caller: Caller, fd: Fd) -> None:
    loc = Loc(gfid=fd.gfid, path=fd.path)
    if fd.is_directory:
        await link.call(_OPENDIR, caller, [loc, fd])
    else:
        await link.call(_OPEN, caller, [loc, fd, fd.flags & ~OPENING_FLAGS])


async def open_again(files: RemoteFiles, link: Link, caller: Caller, fd: Fd, *, strict: bool) -> None:
    """The server was away when the file was opened, or somebody is just opening it for the same reason.

    The permission to open was checked elsewhere then, so it is not asked again.
    """
    file = files.find(fd)
    if file is None:
        file = files.add(fd)
        file.opening = asyncio.ensure_future(_open(link, Caller(client=caller.client), fd))
    if file.opening is not None:
        opening = file.opening
        try:
            await asyncio.shield(opening)
        except OSError:
            if files.find(fd) is file:
                files.remove(fd)
            raise
        file.opening = None
        file.is_open = True
    if file.has_lost_locks and strict:
        raise FopError(errno.EBADF, f"{link.settings.name}: locks on the file were lost with the link (strict-locks)")
