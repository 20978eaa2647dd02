# SPDX-License-Identifier: Apache-2.0
"""From one graph to another while files are open.

Requests wait in the kernel meanwhile.  What the old graph holds back is written, every open file is opened again by its
gfid, and the locks of applications are taken again.  A file that cannot be opened again (its last name is gone and the
new graph does not know it) keeps its handle, whose operations then say EBADFD.
"""

from __future__ import annotations

import asyncio
import errno
import logging

from repl.files.graph import Graph
from repl.files.mount.filesystem import Filesystem
from repl.files.mount.inodes import Handle
from repl.files.values import Caller, Fd, Loc, LockCommand

log = logging.getLogger(__name__)

DRAIN_S = 30.0


async def switch_graph(fs: Filesystem, before: Graph, after: Graph) -> None:
    """Both are started; ``before`` is idle afterwards."""
    fs.connection.pause()
    try:
        await fs.connection.drain(DRAIN_S)
        await asyncio.gather(*(_settle(fs, handle) for handle in fs.inodes.handles()))
        await before.finish()
        for name, translator in after.translators.items():
            old = before.translators.get(name)
            if old is not None and old.TYPE == translator.TYPE:
                translator.take_over(old)
        old_top = fs.replace_top(after.top, after.context)
        for handle in fs.inodes.handles():
            old_fd = handle.fd
            await _reopen(fs, handle)
            await old_top.release(old_fd)
        await _lock_again(fs)
    finally:
        fs.connection.resume()


async def _settle(fs: Filesystem, handle: Handle) -> None:
    """Nothing of the file waits in the old graph."""
    if handle.fd.is_directory or not handle.fd.is_writable:
        return
    try:
        await fs.top.fsync(Caller(client=fs.context.process), handle.fd)
    except OSError as error:
        log.warning("%s: writes failed before the graph was replaced: %s", handle.fd, error)


async def _reopen(fs: Filesystem, handle: Handle) -> None:
    old = handle.fd
    caller, loc = Caller(client=fs.context.process), Loc(gfid=old.gfid)
    handle.fd = fd = Fd(old.gfid, old.flags, is_directory=old.is_directory, path=old.path)
    try:
        if old.is_directory:
            await fs.top.opendir(caller, loc, fd)
        else:
            await fs.top.open(caller, loc, fd, flags=old.flags)
    except OSError as error:
        log.warning("%s cannot be opened in the new graph: %s", fd, error)


async def _lock_again(fs: Filesystem) -> None:
    for inode in fs.inodes.inodes():
        if not inode.handles:
            continue
        for owner, lock in inode.locks:
            caller = Caller(pid=lock.pid, client=fs.context.process, lock_owner=owner)
            try:
                await fs.top.lk(caller, inode.handles[0].fd, LockCommand.TRY, lock)
            except OSError as error:
                lost = "somebody else has it now" if error.errno == errno.EAGAIN else str(error)
                log.warning("%s: a lock was lost with the old graph: %s", inode.handles[0].fd, lost)
