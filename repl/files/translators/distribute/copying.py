# SPDX-License-Identifier: Apache-2.0
"""Copies a range of a file from one subvolume to another; holes stay holes.

Input: the file, open on both; the range is locked by the caller.  Output: the target has the source's bytes, and its
size where the range reaches beyond the source's end.  Errors: ``FopError`` of either side.
"""

from __future__ import annotations

import errno
import os

from repl.files.translator import Translator
from repl.files.values import END, Caller, Fd, FopError
from repl.limits import DISTRIBUTE_COPY_BYTES

_PUNCH = 1 | 2  # KEEP_SIZE, PUNCH_HOLE
_NO_HOLES = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


async def copy_range(
    source: Translator, target: Translator, fd: Fd, caller: Caller, first: int, last: int = END
) -> int:
    """Bytes that were read."""
    at, done = first, 0
    while at <= last:
        size = min(DISTRIBUTE_COPY_BYTES, last - at + 1)
        read = await source.readv(caller, fd, size=size, offset=at)
        data = bytes(read.data)
        if data:
            await put(target, fd, caller, data, at)
        at += len(data)
        done += len(data)
        if len(data) < size:
            there = (await target.stat(caller, fd)).iatt.size
            if there > max(at, read.iatt.size) or there < read.iatt.size:
                await target.truncate(caller, fd, read.iatt.size)
            break
    return done


async def put(target: Translator, fd: Fd, caller: Caller, data: bytes, offset: int) -> None:
    """Zeroes become a hole."""
    if not data.strip(b"\0"):
        try:
            await target.fallocate(caller, fd, mode=_PUNCH, offset=offset, length=len(data))
        except FopError as error:
            if error.errno not in _NO_HOLES:
                raise
        else:
            there = (await target.stat(caller, fd)).iatt.size
            if there < offset + len(data):
                await target.truncate(caller, fd, offset + len(data))
            return
    await target.writev(caller, fd, data, offset=offset)


async def next_data(source: Translator, fd: Fd, caller: Caller, offset: int) -> int | None:
    """Where data begin at or after ``offset``; None: there are none."""
    try:
        return await source.seek(caller, fd, offset=offset, what=os.SEEK_DATA)
    except FopError as error:
        if error.errno == errno.ENXIO:
            return None
        if error.errno in _NO_HOLES:
            return offset
        raise
