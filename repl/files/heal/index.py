# SPDX-License-Identifier: Apache-2.0
"""What the index of one brick says needs healing (features/index, spec section 3.4).

Inputs: a child of a replicate volume.  Outputs: gfids, page by page; names of a directory that changed.
Errors: ``OSError``; ``NoIndex`` when there is no features/index below that child.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator

from repl.files.translator import Translator
from repl.files.values import ROOT, Caller, Entry, Fd, FopError, Loc, gfid_text

XATTROP_KEY = b"glusterfs.xattrop_index_gfid"
DIRTY_KEY = b"glusterfs.xattrop_dirty_index_gfid"
COUNT_KEY = b"glusterfs.heal-count"
_PAGE_BYTES = 64 * 1024
_UNKNOWN = frozenset((errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EINVAL))


class NoIndex(FopError):
    """Nothing lists what is pending on this brick."""


async def _place(child: Translator, caller: Caller, key: bytes) -> bytes:
    try:
        return (await child.getxattr(caller, ROOT, key))[key]
    except OSError as error:
        if error.errno in _UNKNOWN:
            raise NoIndex(error.errno or errno.ENODATA, child.name) from None
        raise


async def pages(child: Translator, caller: Caller, key: bytes) -> AsyncIterator[list[bytes]]:
    """The gfids of one index."""
    place = await _place(child, caller, key)
    async for entries in _listing(child, caller, Loc(gfid=place)):
        yield [entry.gfid for entry in entries]


async def _listing(child: Translator, caller: Caller, loc: Loc) -> AsyncIterator[list[Entry]]:
    fd = Fd(loc.gfid, is_directory=True)
    await child.opendir(caller, loc, fd)
    try:
        offset = 0
        while entries := await child.readdir(caller, fd, size=_PAGE_BYTES, offset=offset):
            offset = entries[-1].offset
            yield entries
    finally:
        await child.release(fd)


async def forget(child: Translator, caller: Caller, gfid: bytes) -> None:
    """The inode is gone, or has nothing pending any more: the brick looks and takes the entry away."""
    for key in (XATTROP_KEY, DIRTY_KEY):
        with contextlib.suppress(OSError):
            place = await _place(child, caller, key)
            await child.unlink(caller, Loc(parent=place, name=gfid_text(gfid).encode()))


async def count(child: Translator, caller: Caller) -> int:
    """How many inodes are pending on that brick."""
    try:
        return int((await child.getxattr(caller, ROOT, COUNT_KEY))[COUNT_KEY])
    except OSError as error:
        if error.errno in _UNKNOWN:
            raise NoIndex(error.errno or errno.ENODATA, child.name) from None
        raise
