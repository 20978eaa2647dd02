# SPDX-License-Identifier: Apache-2.0
"""Finds and removes what crashes in the middle of renames have left: names that nobody can reach.

In a directory where a miss is final, data that are not where their name belongs need a link file there.  Without one
they are the old name of a file that has got its new one (then it has several), or a file that has been replaced.
"""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import AsyncIterator

from repl.files.answers import GONE
from repl.files.translators.distribute import Distribute
from repl.files.translators.distribute.links import name_of, of_file
from repl.files.translators.distribute.marks import FILE_WANT, is_link
from repl.files.values import Entry, Fd, FopError, Loc

log = logging.getLogger(__name__)

_LISTING_BYTES = 64 * 1024


async def entries_on(dht: Distribute, index: int, gfid: bytes, *, folders: bool = False) -> AsyncIterator[Entry]:
    """What one subvolume has in a directory: its directories, or all else."""
    child, caller, fd = dht.subvolumes[index], dht.owner(), Fd(gfid, is_directory=True)
    await child.opendir(caller, Loc(gfid=gfid), fd)
    try:
        offset = 0
        while part := await child.readdir(caller, fd, size=_LISTING_BYTES, offset=offset, want=FILE_WANT):
            offset = part[-1].offset
            for entry in part:
                if entry.name not in (b".", b"..") and (entry.kind == stat.S_IFDIR) == folders:
                    yield entry
    finally:
        await child.release(fd)


async def clean(dht: Distribute, gfid: bytes) -> int:
    """How many were removed."""
    known = await dht.directory(gfid)
    if not dht.looks_everywhere or not dht.is_final(known):
        return 0
    removed = 0
    for index in dht.everyone:
        async for entry in entries_on(dht, index, gfid):
            loc = Loc(parent=gfid, name=entry.name)
            hashed = known.layout.owner(dht.hash_of(entry.name))
            if hashed in (None, index) or is_link(entry.xattrs):
                continue
            assert hashed is not None
            removed += await _judge(dht, loc, index, hashed)
    return removed


async def _judge(dht: Distribute, loc: Loc, index: int, hashed: int) -> bool:
    async with dht.locked_names((hashed, loc)):
        caller, child = dht.owner(), dht.subvolumes[index]
        try:
            there = await child.lookup(caller, name_of(loc), want=FILE_WANT)
        except FopError as error:
            if error.errno not in GONE:
                raise
            return False
        if is_link(there.xattrs) or there.iatt.is_directory:
            return False
        try:
            place, found = await dht.find(caller, loc, has_lock=True)
        except FopError as error:
            if error.errno != errno.ENOENT:
                raise
            if there.iatt.nlink < 2:
                await dht.make_link(hashed, loc, there.iatt.gfid, index)
                return False
        else:
            if place == index or found.iatt.gfid == there.iatt.gfid:
                return False
        log.info("%s on '%s' is left over from an interrupted rename and is removed", loc, dht.names[index])
        await dht.undo(child.unlink(caller, of_file(loc, there.iatt.gfid)))
        return True
