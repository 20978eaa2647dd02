# SPDX-License-Identifier: Apache-2.0
"""Pages of files, the least recently used ones of the least priority go first.

A page shorter than ``PAGE_BYTES`` is the end of its file.  ``bytes`` never exceeds the limit given to ``put``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from repl.files.values import Iatt

PAGE_BYTES = 128 * 1024
Data: TypeAlias = bytes | bytearray | memoryview


class File:
    """Pages of one inode with the attributes of that time; known to be true at ``checked``."""

    __slots__ = ("checked", "gfid", "iatt", "pages", "priority")

    def __init__(self, iatt: Iatt, checked: float, priority: int) -> None:
        self.gfid = iatt.gfid
        self.iatt = iatt
        self.checked = checked
        self.priority = priority
        self.pages: dict[int, Data] = {}

    def find(self, size: int, offset: int) -> list[Data] | None:
        """The parts of a range, None if a page is missing."""
        parts: list[Data] = []
        end = offset + size
        at = offset
        while at < end:
            index, within = divmod(at, PAGE_BYTES)
            page = self.pages.get(index)
            if page is None:
                return None
            part = page[within : within + end - at]
            if len(part):
                parts.append(part)
            if len(page) < PAGE_BYTES:
                break
            at += len(part)
        return parts


class Pages:
    def __init__(self) -> None:
        self._files: dict[bytes, File] = {}
        self._order: dict[int, OrderedDict[tuple[bytes, int], None]] = {}  # by priority
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._files)

    def file(self, gfid: bytes) -> File | None:
        return self._files.get(gfid)

    def add_file(self, file: File) -> None:
        self._files[file.gfid] = file

    def touch(self, file: File, size: int, offset: int) -> None:
        order = self._order.get(file.priority)
        if order is None:
            return
        for index in range(offset // PAGE_BYTES, (offset + size - 1) // PAGE_BYTES + 1):
            key = (file.gfid, index)
            if key in order:
                order.move_to_end(key)

    def put(self, file: File, index: int, page: Data, limit_bytes: int) -> None:
        """Others go to make room."""
        if len(page) > limit_bytes or not len(page):
            return
        self._drop_page(file, index)
        file.pages[index] = page
        self._order.setdefault(file.priority, OrderedDict())[file.gfid, index] = None
        self.bytes += len(page)
        while self.bytes > limit_bytes:
            gfid, oldest = next(iter(self._order[min(p for p, order in self._order.items() if order)]))
            self._drop_page(self._files[gfid], oldest)

    def _drop_page(self, file: File, index: int) -> None:
        page = file.pages.pop(index, None)
        if page is None:
            return
        self.bytes -= len(page)
        self._order[file.priority].pop((file.gfid, index), None)

    def drop(self, gfid: bytes) -> None:
        file = self._files.pop(gfid, None)
        if file is not None:
            for index in list(file.pages):
                self._drop_page(file, index)

    def drop_range(self, gfid: bytes, first: int, end: int) -> None:
        """What a write touches: its own pages, and the end of the file, which it may have moved."""
        file = self._files.get(gfid)
        if file is None:
            return
        for index, page in list(file.pages.items()):
            if first < (index + 1) * PAGE_BYTES and index * PAGE_BYTES < end or len(page) < PAGE_BYTES:
                self._drop_page(file, index)

    def clear(self) -> None:
        self._files.clear()
        self._order.clear()
        self.bytes = 0
