# SPDX-License-Identifier: Apache-2.0
"""Whole contents of small files, the least recently used ones go first, and whether contents are worth asking for."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from repl.files.values import Iatt

Data: TypeAlias = bytes | bytearray | memoryview
_SAMPLE = 16


class Content:
    """A file as it was at ``checked``."""

    __slots__ = ("checked", "data", "iatt")

    def __init__(self, iatt: Iatt, data: Data, checked: float) -> None:
        self.iatt = iatt
        self.data = data
        self.checked = checked


class Contents:
    ENTRY_BYTES = 512  # what an entry takes beside its data

    def __init__(self) -> None:
        self._found: OrderedDict[bytes, Content] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._found)

    def get(self, gfid: bytes) -> Content | None:
        content = self._found.get(gfid)
        if content is not None:
            self._found.move_to_end(gfid)
        return content

    def put(self, content: Content, limit_bytes: int) -> None:
        self.drop(content.iatt.gfid)
        self._found[content.iatt.gfid] = content
        self.bytes += len(content.data) + self.ENTRY_BYTES
        while self.bytes > limit_bytes and self._found:
            self.drop(next(iter(self._found)))

    def drop(self, gfid: bytes) -> None:
        content = self._found.pop(gfid, None)
        if content is not None:
            self.bytes -= len(content.data) + self.ENTRY_BYTES

    def clear(self) -> None:
        self._found.clear()
        self.bytes = 0


class Habit:
    """Are files that are looked up also read?  Of the last ones, at least every other one must have been."""

    def __init__(self) -> None:
        self._looked = 0
        self._read = 0

    def looked(self) -> None:
        self._looked += 1
        if self._looked >= _SAMPLE:
            self._looked //= 2
            self._read //= 2

    def read(self) -> None:
        self._read = min(self._read + 1, _SAMPLE)

    @property
    def reads_what_it_looks_up(self) -> bool:
        return self._read >= 2 and 2 * self._read >= self._looked
