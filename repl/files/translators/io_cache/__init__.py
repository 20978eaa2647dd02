# SPDX-License-Identifier: Apache-2.0
"""performance/io-cache: keeps pages of files that were read.

Inputs: all operations, upcalls.  Outputs: reads are answered from the pages, whole ones are read where one is missing.
A change drops what it touches: ours at once, another client's when the brick tells; after ``cache-timeout`` the
first read asks for the file's attributes and drops all pages if they are others.  A lock that is got drops the file:
whoever has it sees what was written under it.  Files opened with O_DIRECT are not cached.
Source: spec 4.3.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence

from repl.files.dropping import DataCache
from repl.files.events import Invalidated
from repl.files.options import Kind, Option, Options
from repl.files.translator import Context, Translator
from repl.files.translators.io_cache.pages import PAGE_BYTES, File, Pages
from repl.files.values import Caller, Changed, Fd, Read, SyncKind
from repl.files.watching import copy_of, version_of
from repl.limits import MOUNT_TRANSFER_BYTES_MAX

MIB = 1024 * 1024


class IoCache(DataCache):
    TYPE = "performance/io-cache"
    OPTIONS = (
        Option("cache-size", Kind.SIZE, 32 * MIB, "bytes of all files together", minimum=4 * MIB,
               maximum=32 * 1024**4),
        Option("cache-timeout", Kind.TIME, 1.0, "after so long it is asked whether the file is still the same",
               minimum=0, maximum=60, aliases=("force-revalidate-timeout",)),
        Option("min-file-size", Kind.SIZE, 0, "smaller files are not cached", minimum=0),
        Option("max-file-size", Kind.SIZE, 0, "larger files are not cached; 0: no limit", minimum=0),
        Option("priority", Kind.STRING, "",
               "which files stay longest: PATTERN:NUMBER, separated by commas; larger numbers stay longer"),
        Option("pass-through", Kind.BOOL, False, "cache nothing"),
    )  # fmt: skip

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._pages = Pages()
        self._use(options)
        self.hits = 0
        self.misses = 0

    def _use(self, options: Options) -> None:
        self._size: int = 0 if options["pass-through"] else options["cache-size"]
        self._timeout_s: float = options["cache-timeout"]
        self._least: int = options["min-file-size"]
        self._most: int = options["max-file-size"] or 1 << 63
        words = [word.rpartition(":") for word in options["priority"].split(",") if ":" in word]
        self._priorities = [(pattern.strip(), int(number)) for pattern, _, number in words if number.strip().isdigit()]

    def reconfigure(self, options: Options) -> None:
        super().reconfigure(options)
        self._pages.clear()
        self._use(options)

    def state(self) -> dict[str, object]:
        return {"files": len(self._pages), "bytes": self._pages.bytes, "hits": self.hits, "misses": self.misses}

    # ---- changes ----

    def invalidate(self, event: Invalidated) -> None:
        if event.is_data or event.is_gone:
            self._pages.drop(event.gfid)

    def clear(self) -> None:
        self._pages.clear()

    def forget(self, gfid: bytes) -> None:
        self._pages.drop(gfid)
        super().forget(gfid)

    def drop(self, gfid: bytes) -> None:
        self.note_change(gfid)
        self._pages.drop(gfid)

    def _drop_range(self, gfid: bytes, first: int, end: int) -> None:
        self.note_change(gfid)
        self._pages.drop_range(gfid, first, end)

    # ---- reading ----

    async def readv(self, caller: Caller, fd: Fd, *, size: int, offset: int) -> Read:
        if not self._size or fd.flags & os.O_DIRECT or size <= 0:
            return await self.child.readv(caller, fd, size=size, offset=offset)
        file = self._pages.file(fd.gfid)
        if file is not None and file.checked + self._timeout_s < self.context.now():
            file = await self._check(caller, fd, file)
        if file is not None and (parts := file.find(size, offset)) is not None:
            self.hits += 1
            self._pages.touch(file, size, offset)
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            return Read(data, copy_of(file.iatt))
        self.misses += 1
        return await self._fetch(caller, fd, size, offset)

    async def _check(self, caller: Caller, fd: Fd, file: File) -> File | None:
        """Whether the file is still the same."""
        with self.watch() as watch:
            found = (await self.child.stat(caller, fd)).iatt
        if version_of(found) != version_of(file.iatt) or not watch.is_fresh(fd.gfid):
            self._pages.drop(fd.gfid)
            return None
        file.checked = self.context.now()
        return self._pages.file(fd.gfid)

    async def _fetch(self, caller: Caller, fd: Fd, size: int, offset: int) -> Read:
        """Whole pages, in one read where it may be so large."""
        first = offset - offset % PAGE_BYTES
        end = -(-(offset + size) // PAGE_BYTES) * PAGE_BYTES
        if end - first > MOUNT_TRANSFER_BYTES_MAX and size <= MOUNT_TRANSFER_BYTES_MAX:
            first, end = offset, offset + size
        now = self.context.now()
        with self.watch() as watch:
            read = await self.child.readv(caller, fd, size=end - first, offset=first)
        if watch.is_fresh(fd.gfid) and first % PAGE_BYTES == 0 and self._least <= read.iatt.size <= self._most:
            self._keep(fd, read, first, end, now)
        if first == offset and len(read.data) <= size:
            return read
        return Read(memoryview(read.data)[offset - first : offset - first + size], read.iatt)

    def _keep(self, fd: Fd, read: Read, first: int, end: int, now: float) -> None:
        if first + len(read.data) < min(end, read.iatt.size):
            return  # shorter than the file: it has changed while it was read
        file = self._pages.file(fd.gfid)
        if file is None or version_of(file.iatt) != version_of(read.iatt):
            self._pages.drop(fd.gfid)
            file = File(copy_of(read.iatt), now, self._priority(fd.path))
            self._pages.add_file(file)
        view = memoryview(read.data)
        for at in range(0, len(view), PAGE_BYTES):
            self._pages.put(file, (first + at) // PAGE_BYTES, view[at : at + PAGE_BYTES], self._size)

    def _priority(self, path: bytes) -> int:
        name = os.fsdecode(path)
        for pattern, number in self._priorities:
            if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(os.path.basename(name), pattern):
                return number
        return 0

    # ---- our own changes ----

    async def writev(
        self, caller: Caller, fd: Fd, data: bytes | bytearray | memoryview, *, offset: int, flags: int = 0
    ) -> Changed:
        """Only those pages."""
        is_append = (flags | fd.flags) & os.O_APPEND
        end = offset if is_append else offset + len(data)
        self._drop_range(fd.gfid, offset, end)
        try:
            return await self.child.writev(caller, fd, data, offset=offset, flags=flags)
        finally:
            self._drop_range(fd.gfid, offset, end)

    async def fsync(self, caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> Changed:
        try:
            return await self.child.fsync(caller, fd, kind)
        except OSError:
            self.drop(fd.gfid)  # what was written may be lost
            raise
