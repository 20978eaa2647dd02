# SPDX-License-Identifier: Apache-2.0
"""How fast a brick's disk takes and gives blocks: ``volume top NAME read-perf|write-perf bs N count N``.

Input: a brick's directory, the size of a block, how many.  Output: ``Throughput``.  The blocks go to a file without a
name in ``.glusterfs`` of the brick, which is gone at the end whatever happens; as in GlusterFS, they are written to the
cache of the machine and read from there.  Errors: ``UsageError`` where there is no room, ``RequestRefused``.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from repl.errors import RequestRefused, UsageError
from repl.limits import TOP_BLOCK_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Throughput:
    size: int
    duration_s: float

    @property
    def megabytes_s(self) -> float:
        return self.size / 1e6 / max(self.duration_s, 1e-6)


def measure(directory: Path, *, block_bytes: int, count: int, is_read: bool) -> Throughput:
    if block_bytes > TOP_BLOCK_BYTES_MAX:
        raise UsageError(f"blocks of {block_bytes} bytes are too large.", advice=f"At most {TOP_BLOCK_BYTES_MAX}.")
    folder = directory / ".glusterfs"
    try:
        _need_room(folder, block_bytes * count)
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            return _measure(fd, block_bytes, count, is_read=is_read)
        finally:
            os.close(fd)
    except OSError as error:
        raise RequestRefused(f"{directory}: {error.strerror}.", advice="Measure with fewer blocks.") from error


def _need_room(folder: Path, size: int) -> None:
    """A brick in use is not filled up for this."""
    room = os.statvfs(folder)
    if size > room.f_bavail * room.f_frsize // 2:
        raise UsageError(f"{size} bytes are more than half of what is free below {folder.parent}.",
                         advice="Measure with fewer blocks.")  # fmt: skip


def _measure(fd: int, block_bytes: int, count: int, *, is_read: bool) -> Throughput:
    block = bytes(block_bytes)
    began = time.monotonic()
    for number in range(count):
        if os.pwrite(fd, block, number * block_bytes) != block_bytes:
            raise OSError(0, "the disk has taken a part of a block only")
    if is_read:
        began = time.monotonic()
        for number in range(count):
            os.pread(fd, block_bytes, number * block_bytes)
    return Throughput(block_bytes * count, time.monotonic() - began)
