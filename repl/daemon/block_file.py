# SPDX-License-Identifier: Apache-2.0
"""``repl.node.disk.BlockFile`` on a descriptor: buffered, or O_DIRECT through an aligned bounce buffer.

Offsets and lengths in bytes, any alignment.  Errors: ``DiskFailed`` with the name of the file and errno.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from pathlib import Path
from typing import NoReturn

from repl.errors import DiskFailed

BLKGETSIZE64 = 0x80081272
BLKSSZGET = 0x1268
DIRECT_ALIGNMENT_BYTES = 4096
BOUNCE_BYTES = 1 << 20
READ_BYTES_MAX = 1 << 30


def device_size_bytes(fd: int) -> int:
    """The size of a block device or a regular file."""
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        answer = fcntl.ioctl(fd, BLKGETSIZE64, bytes(8))
        return int(struct.unpack("=Q", answer)[0])
    return os.fstat(fd).st_size


def logical_sector_bytes(fd: int) -> int:
    """What direct I/O on a block device has to be aligned to (512 for a file)."""
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        return int(struct.unpack("=i", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))[0])
    return 512


def discard_granularity(fd: int, sysfs: Path = Path("/sys")) -> int:
    """Bytes of the pieces that a block device can discard; 0 if it cannot, or if they do not begin at its beginning."""
    status = os.fstat(fd)
    if not stat.S_ISBLK(status.st_mode):
        return 0
    device = (sysfs / "dev/block" / f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}").resolve()
    queue = device / "queue" if (device / "queue").is_dir() else device.parent / "queue"  # of a partition's disk
    try:
        misaligned = int((device / "discard_alignment").read_text())
        most = int((queue / "discard_max_bytes").read_text())
        granularity = int((queue / "discard_granularity").read_text())
    except (OSError, ValueError):
        return 0
    return granularity if most >= granularity > 0 == misaligned and granularity < 1 << 32 else 0


class FdBlockFile:
    """Owns ``fd``; ``close`` releases it (and with it the locks)."""

    is_nbd = False

    def __init__(self, fd: int, name: str, *, is_direct: bool = False) -> None:
        self.fd = fd
        self.name = name
        self.is_direct = is_direct
        self._bounce: mmap.mmap | None = None
        self.refresh_size()

    def refresh_size(self) -> None:
        """It may have grown."""
        try:
            self.size_bytes = device_size_bytes(self.fd)
        except OSError as error:
            self._fail("its size cannot be read", error)

    def pread(self, offset: int, length: int) -> bytes:
        """Fewer bytes only at the end of the file."""
        if offset < 0 or not 0 <= length <= READ_BYTES_MAX:
            raise ValueError(f"pread of {length} bytes at {offset}")
        try:
            return self._read_direct(offset, length) if self.is_direct else self._read(offset, length)
        except OSError as error:
            self._fail(f"{length} bytes at {offset} cannot be read", error)

    def pwrite(self, offset: int, data: bytes) -> None:
        if offset < 0 or offset + len(data) > self.size_bytes:
            raise DiskFailed(
                f"{self.name}: {len(data)} bytes at {offset} reach beyond its end at {self.size_bytes}.",
                errno=errno.ENOSPC,
            )
        try:
            if not self.is_direct:
                self._write(offset, data)
            elif (offset | len(data)) % DIRECT_ALIGNMENT_BYTES:
                self._write_unaligned(offset, data)
            else:
                self._write_direct(offset, data)
        except OSError as error:
            self._fail(f"{len(data)} bytes at {offset} cannot be written", error)

    def flush(self) -> None:
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self._fail("the flush failed", error)

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            if self._bounce is not None:
                self._bounce.close()
                self._bounce = None
            os.close(fd)

    # Buffered

    def _read(self, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        while length > 0:
            part = os.pread(self.fd, length, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _write(self, offset: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self.fd, rest, offset)
            offset += written
            rest = rest[written:]

    # O_DIRECT

    def _buffer(self) -> mmap.mmap:
        if self._bounce is None:
            self._bounce = mmap.mmap(-1, BOUNCE_BYTES)  # anonymous memory starts at a page
        return self._bounce

    def _read_direct(self, offset: int, length: int) -> bytes:
        end = offset + length
        at = offset - offset % DIRECT_ALIGNMENT_BYTES
        parts: list[bytes] = []
        bounce = self._buffer()
        with memoryview(bounce) as view:
            while at < end:
                wanted = min(BOUNCE_BYTES, -(-(end - at) // DIRECT_ALIGNMENT_BYTES) * DIRECT_ALIGNMENT_BYTES)
                with view[:wanted] as window:
                    count = os.preadv(self.fd, [window], at)
                parts.append(bounce[max(offset - at, 0) : min(count, end - at)])
                if count < wanted:  # a short direct read is the end of the file
                    break
                at += count
        return b"".join(parts)

    def _write_direct(self, offset: int, data: bytes) -> None:
        bounce = self._buffer()
        with memoryview(bounce) as view:
            for begin in range(0, len(data), BOUNCE_BYTES):
                part = data[begin : begin + BOUNCE_BYTES]
                bounce[: len(part)] = part
                with view[: len(part)] as window:
                    written = os.pwritev(self.fd, [window], offset + begin)
                if written != len(part):
                    raise OSError(errno.EIO, f"only {written} of {len(part)} bytes were written")

    def _write_unaligned(self, offset: int, data: bytes) -> None:
        """Through the page cache: rounding up would write more than was asked, or let the file grow.

        The kernel keeps page cache and direct I/O coherent on one file; the flush writes it out.
        """
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        try:
            self._write(offset, data)
            os.fdatasync(self.fd)
        finally:
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags)

    def _fail(self, what: str, error: OSError) -> NoReturn:
        raise DiskFailed(
            f"{self.name}: {what}: {error.strerror or error}.",
            errno=error.errno or errno.EIO,
            advice="Look at the kernel log for errors of the disk.",
        ) from error
