# SPDX-License-Identifier: Apache-2.0
"""The writes of one inode that are acknowledged and not stored yet.

``waiting`` are in the order in which they came, ``running`` were sent.  A write is sent only when nothing that overlaps
it is on its way; those of one frame are done in order, so there they may overlap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TypeAlias

from repl.files.values import END, Caller, Fd, SetAttr
from repl.limits import WRITE_BEHIND_FRAME_BYTES, WRITE_BEHIND_FRAME_WRITES

Data: TypeAlias = bytes | memoryview


class Write:
    """``first`` to ``last`` is what it touches: everything for an append, whose place the brick finds."""

    __slots__ = (
        "caller", "error", "fd", "first", "flags", "is_append", "is_done", "last", "offset", "parts", "size", "times",
    )  # fmt: skip

    def __init__(self, caller: Caller, fd: Fd, data: Data, offset: int, flags: int, *, is_append: bool) -> None:
        self.caller = caller
        self.fd = fd
        self.offset = offset
        self.flags = flags
        self.is_append = is_append
        self.size = len(data)
        self.parts = [data]
        self.first = 0 if is_append else offset
        self.last = END if is_append else offset + self.size - 1
        self.is_done = False
        self.times = 0  # that it has failed
        self.error: OSError | None = None

    @property
    def data(self) -> Data:
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)

    def overlaps(self, other: Write) -> bool:
        return self.first <= other.last and other.first <= self.last

    def can_take(self, other: Write, most: int) -> bool:
        """``other`` came right after and goes on where this one ends."""
        if self.fd is not other.fd or self.flags != other.flags or self.size + other.size > most:
            return False
        if self.caller.uid != other.caller.uid or self.is_append != other.is_append:
            return False
        return self.is_append or self.offset + self.size == other.offset

    def take(self, other: Write) -> None:
        self.parts += other.parts
        self.size += other.size
        if not self.is_append:
            self.last = other.last


class Attributes(Write):
    """Attributes that are to be set behind what is written so far.  They stand for the whole file: nothing overtakes
    them, and they overtake nothing."""

    __slots__ = ("values",)

    def __init__(self, caller: Caller, fd: Fd, values: SetAttr) -> None:
        super().__init__(caller, fd, b"", 0, 0, is_append=False)
        self.last = END
        self.values = values

    def can_take(self, other: Write, most: int) -> bool:
        return False


class Queue:
    def __init__(self, gfid: bytes) -> None:
        self.gfid = gfid
        self.waiting: deque[Write] = deque()
        self.running: list[Write] = []
        self.failed: list[Write] = []  # to be tried again
        self.bytes = 0
        self.waiting_bytes = 0  # not on their way
        self.frames = 0  # on their way
        self.is_push_due = False
        self.timer: asyncio.TimerHandle | None = None  # until when more is waited for
        self.is_wanted = False  # somebody waits for all that is here
        self._changed: asyncio.Future[None] | None = None

    @property
    def is_empty(self) -> bool:
        return not self.waiting and not self.running and not self.failed

    def add(self, write: Write, aggregate_bytes: int) -> None:
        self.bytes += write.size
        self.waiting_bytes += write.size
        if self.waiting and self.waiting[-1].can_take(write, aggregate_bytes):
            self.waiting[-1].take(write)
        else:
            self.waiting.append(write)

    def attributes(self, caller: Caller, fd: Fd) -> Attributes | None:
        """What waits to be set behind everything else, on behalf of the same."""
        last = self.waiting[-1] if self.waiting else None
        return last if isinstance(last, Attributes) and last.fd is fd and last.caller == caller else None

    def take(self) -> list[Write]:
        """Writes of one open file for one frame, the oldest first; they count as running.  Attributes end a frame."""
        taken: list[Write] = []
        size = 0
        while self.waiting and len(taken) < WRITE_BEHIND_FRAME_WRITES:
            write = self.waiting[0]
            if self.running and self._is_in_the_way(write):
                break
            if taken and (write.fd is not taken[0].fd or size + write.size > WRITE_BEHIND_FRAME_BYTES):
                break
            size += write.size
            taken.append(self.waiting.popleft())
            if isinstance(write, Attributes):
                break
        self.waiting_bytes -= size
        self.running += taken
        self.frames += bool(taken)
        return taken

    def _is_in_the_way(self, write: Write) -> bool:
        """Something that overlaps it is on its way."""
        first, last = write.first, write.last
        for other in self.running:
            if first <= other.last and other.first <= last:
                return True
        return False

    def is_waiting_for(self, target: object, caller: Caller) -> bool:
        """Nothing is on its way or to be done again, and all writes are of this open file and on behalf of the same."""
        if self.running or self.failed or not self.waiting:
            return False
        return all(write.fd is target and write.caller == caller and not write.is_append for write in self.waiting)

    def finish(self, writes: list[Write]) -> None:
        """The frame has been answered; those that are to be done again are waiting already."""
        self.frames -= 1
        if len(writes) == len(self.running):
            self.running.clear()
        else:
            for write in writes:
                self.running.remove(write)
        self.wake()

    def done(self, write: Write) -> None:
        write.is_done = True
        self.bytes -= write.size

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def has_left(self, writes: list[Write]) -> bool:
        """Some are neither done nor to be tried again by whoever asks for that."""
        failed = self.failed
        for write in writes:
            if not write.is_done and write not in failed:
                return True
        return False

    def put_back(self, writes: list[Write]) -> None:
        """To be done before what is waiting."""
        if not writes:
            return
        self.waiting.extendleft(reversed(writes))
        self.waiting_bytes += sum(write.size for write in writes)

    # ---- waiting ----

    def wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)

    async def wait_change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def all(self) -> list[Write]:
        return [*self.running, *self.waiting]

    def reaching(self, offset: int) -> list[Write]:
        """Those that a read from ``offset`` on may see: a write behind its end makes it longer, too."""
        return [write for write in self.all() if write.last >= offset]
