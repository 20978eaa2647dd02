# SPDX-License-Identifier: Apache-2.0
"""Reading directories with getdents64, so that a listing can go on at any place.

Offsets that clients see count entries from 1; the kernel's own cookies are remembered beside them, so a listing goes
on exactly where it was even when entries have been removed meanwhile.  After a reopen the cookies are gone: entries
are counted again.  Memory: 8 bytes an entry that was listed.
Source of the facts: getdents64(2).
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from repl.files.translators.posix import calls

_HEAD = struct.Struct("<QqHB")  # inode, cookie of the next entry, length of this one, kind
_BUFFER_BYTES = 32 * 1024
_KINDS = {1: stat.S_IFIFO, 2: stat.S_IFCHR, 4: stat.S_IFDIR, 6: stat.S_IFBLK, 8: stat.S_IFREG, 10: stat.S_IFLNK,
          12: stat.S_IFSOCK}  # fmt: skip


@dataclass(slots=True)
class RawEntry:
    name: bytes
    offset: int
    kind: int


class Listing:
    """The place in one open directory."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._cookies = array("q", [0])  # [i]: where the entry after the i-th begins
        self._buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
        self._pending: list[RawEntry] = []  # read, not yet given out; begins at offset _at + 1
        self._at = 0

    def entries(self, offset: int) -> Iterator[RawEntry]:
        """Those after ``offset``, without ``.`` and ``..``; whoever stops early goes on with the last one's offset."""
        if offset == 0:
            del self._cookies[1:]
            self._seek(0)
        elif offset != self._at:
            if offset < len(self._cookies):
                self._seek(offset)
            else:
                self._skip_to(offset)
        while True:
            if not self._pending and not self._fill():
                return
            entry = self._pending.pop()
            self._at = entry.offset
            yield entry

    def _seek(self, offset: int) -> None:
        os.lseek(self._fd, self._cookies[offset], os.SEEK_SET)
        self._pending.clear()
        self._at = offset

    def _skip_to(self, offset: int) -> None:
        self._seek(len(self._cookies) - 1)
        while len(self._cookies) <= offset and self._fill():
            self._at = self._pending[0].offset
            self._pending.clear()
        self._seek(min(offset, len(self._cookies) - 1))

    def _fill(self) -> bool:
        """Read on; False at the end."""
        while count := calls.getdents(self._fd, self._buffer):
            raw = memoryview(self._buffer)[:count].cast("B")
            position = 0
            at = self._at
            while position < count:
                _, cookie, length, kind = _HEAD.unpack_from(raw, position)
                name = bytes(raw[position + _HEAD.size : position + length]).split(b"\0", 1)[0]
                position += length
                if name in (b".", b".."):
                    continue
                at += 1
                if at < len(self._cookies):
                    self._cookies[at] = cookie
                else:
                    self._cookies.append(cookie)
                self._pending.append(RawEntry(name, at, _KINDS.get(kind, 0)))
            self._pending.reverse()
            if self._pending:
                return True
        return False
