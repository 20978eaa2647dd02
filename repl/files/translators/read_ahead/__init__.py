# SPDX-License-Identifier: Apache-2.0
"""performance/read-ahead: reads on where a file is read from front to back.

Inputs: all operations, upcalls.  Outputs: beside each read that goes on where the last one of the same open file ended,
reads of the next ``page-count`` pages, whose answers wait for the reads to come.  Any change of the file, ours or
another client's, throws away what was read ahead, and what is on its way.
Source: spec 4.4.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from repl.files.dropping import DataCache
from repl.files.events import Invalidated
from repl.files.options import Kind, Option, Options
from repl.files.translator import Context, Step, Translator
from repl.files.values import Caller, Fd, Read
from repl.limits import MOUNT_TRANSFER_BYTES_MAX, READ_AHEAD_FILES_MAX

KIB = 1024


class Stream:
    """One open file that is read from front to back.  ``ahead``: offset -> a read on its way or done."""

    __slots__ = ("ahead", "end", "next", "runs")

    def __init__(self) -> None:
        self.next = 0  # where the last read ended
        self.runs = 0  # reads in a row
        self.end = 0  # of what is asked for
        self.ahead: dict[int, asyncio.Task[Read | None]] = {}


class ReadAhead(DataCache):
    TYPE = "performance/read-ahead"
    OPTIONS = (
        Option("page-count", Kind.INT, 4, "pages that are read ahead", minimum=1, maximum=16),
        Option("page-size", Kind.SIZE, 128 * KIB, "bytes of a page; a larger read of the application's counts as one",
               minimum=4 * KIB, maximum=1024 * KIB),
        Option("force-atime-update", Kind.BOOL, False, "accepted; bricks note times of access as they are mounted"),
        Option("pass-through", Kind.BOOL, False, "read nothing ahead"),
    )  # fmt: skip

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._streams: dict[bytes, dict[Fd, Stream]] = {}
        self.hits = 0

    def state(self) -> dict[str, object]:
        return {"files": len(self._streams), "hits": self.hits}

    # ---- changes ----

    def invalidate(self, event: Invalidated) -> None:
        if event.is_data or event.is_gone:
            self.drop(event.gfid)

    def clear(self) -> None:
        for gfid in list(self._streams):
            self.drop(gfid)

    def drop(self, gfid: bytes) -> None:
        self.note_change(gfid)
        for stream in self._streams.get(gfid, {}).values():
            stream.ahead.clear()
            stream.end = stream.runs = 0

    # ---- reading ----

    async def readv(self, caller: Caller, fd: Fd, *, size: int, offset: int) -> Read:
        if self.options["pass-through"] or fd.flags & os.O_DIRECT:
            return await self.child.readv(caller, fd, size=size, offset=offset)
        stream = self._stream(fd)
        if stream is None:
            return await self.child.readv(caller, fd, size=size, offset=offset)
        stream.runs = stream.runs + 1 if offset == stream.next else 0
        stream.next = offset + size
        if not stream.runs:
            stream.ahead.clear()
            stream.end = 0
            return await self.child.readv(caller, fd, size=size, offset=offset)
        step = max(self.options["page-size"], size)
        task = stream.ahead.pop(offset, None)
        self._read_on(caller, fd, stream, offset + size, min(step, MOUNT_TRANSFER_BYTES_MAX))
        read = await asyncio.shield(task) if task is not None else None
        if read is None or len(read.data) < min(size, max(read.iatt.size - offset, 0)):
            return await self.child.readv(caller, fd, size=size, offset=offset)
        self.hits += 1
        if len(read.data) > size:  # the rest of the page is for the next one
            rest = Read(memoryview(read.data)[size:], read.iatt)
            stream.ahead[offset + size] = self._done(rest)
            read = Read(memoryview(read.data)[:size], read.iatt)
        return read

    def _stream(self, fd: Fd) -> Stream | None:
        streams = self._streams.get(fd.gfid)
        if streams is None:
            if len(self._streams) >= READ_AHEAD_FILES_MAX:
                return None
            streams = self._streams[fd.gfid] = {}
        stream = streams.get(fd)
        if stream is None:
            stream = streams[fd] = Stream()
        return stream

    def _read_on(self, caller: Caller, fd: Fd, stream: Stream, begin: int, step: int) -> None:
        end = begin + self.options["page-count"] * step
        at = max(stream.end, begin)
        while at + step <= end:
            stream.ahead[at] = self.context.spawn(self._fetch(caller, fd, step, at), f"{self.name}: ahead")
            at += step
        stream.end = at

    async def _fetch(self, caller: Caller, fd: Fd, size: int, offset: int) -> Read | None:
        """None: it is not to be used."""
        with self.watch() as watch:
            try:
                read = await self.child.readv(caller, fd, size=size, offset=offset)
            except OSError:
                return None
        return read if watch.is_fresh(fd.gfid) else None

    def _done(self, read: Read) -> asyncio.Task[Read | None]:
        async def done() -> Read | None:
            return read

        return self.context.spawn(done(), f"{self.name}: rest of a page")

    # ---- open files ----

    async def release(self, fd: Fd) -> None:
        self._forget(fd)
        await self.child.release(fd)

    def _forget(self, fd: Fd) -> None:
        streams = self._streams.get(fd.gfid)
        if streams is not None and streams.pop(fd, None) is not None and not streams:
            del self._streams[fd.gfid]

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        for step in steps:
            if step.fop == "release":
                self._forget(step.args[0])
        return await super().compound(caller, steps)
