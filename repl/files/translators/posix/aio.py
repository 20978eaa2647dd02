# SPDX-License-Identifier: Apache-2.0
"""fsync and direct reads and writes without threads: the kernel's own asynchronous I/O, completions by an eventfd.

A thread for each costs more than ten times as much, because Python's threads wait for each other.
Inputs: open descriptors, for reads and writes with O_DIRECT and offsets and sizes that are multiples of
``DIRECT_ALIGN``; outputs: when it is on the disk, the data that was read.  What is asked for in one turn of the loop
goes with one system call.
Errors: ``OSError`` of the operation, EAGAIN where submitting it would have to wait (pages in the cache, blocks that
were never written: then threads do it); from ``Aio`` itself where the system has none of it.
Source: io_submit(2), <linux/aio_abi.h>; IOCB_CMD_FSYNC and IOCB_CMD_FDSYNC are since Linux 4.18.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import os
import platform
import struct
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from repl.limits import POSIX_AIO_BUFFER_BYTES, POSIX_AIO_BUFFERS_MAX, POSIX_AIO_MAX

# setup, destroy, submit, getevents
_CALLS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4), "riscv64": (0, 1, 2, 4)}
_PREAD, _PWRITE, _FSYNC, _FDSYNC = 0, 1, 2, 3
_RESULT_TO_EVENTFD = 1
_IOCB = struct.Struct("=QIIHhIQQqQII")  # data, key, rw flags, opcode, priority, fd, buffer, bytes, offset, -, flags, fd
_EVENT = struct.Struct("=QQqq")  # data, iocb, result, result 2
_NO_WAIT = struct.pack("=qq", 0, 0)
_LONG, _ADDRESS = ctypes.c_long, ctypes.c_void_p
_CONTEXT = ctypes.c_ulong
_ARGUMENTS = ((_LONG, _ADDRESS), (_CONTEXT,), (_CONTEXT, _LONG, _ADDRESS), (_CONTEXT, _LONG, _LONG, _ADDRESS, _ADDRESS))
_POINTER_BYTES = ctypes.sizeof(_ADDRESS)


class _Operation(NamedTuple):
    opcode: int
    fd: int
    at: int = 0  # in memory
    size: int = 0
    offset: int = 0


class _Buffer:
    """Aligned memory."""

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.users = 0


class _Group:
    """Operations that are waited for together."""

    __slots__ = ("buffer", "ended", "left", "operations", "results")

    def __init__(self, operations: list[_Operation], buffer: _Buffer | None, ended: asyncio.Future[None]) -> None:
        self.operations = operations
        self.buffer = buffer
        self.ended = ended
        self.results = [0] * len(operations)
        self.left = len(operations)


def _prototype(libc: ctypes.CDLL, arguments: Sequence[Any]) -> Callable[..., int]:
    function = libc["syscall"]  # a new one each time, with argument types of its own
    function.argtypes = [ctypes.c_long, *arguments]
    function.restype = ctypes.c_long
    return function


def _checked(call: Callable[..., int], *arguments: object) -> int:
    done = call(*arguments)
    if done < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return done


class Aio:
    """Belongs to the loop that runs when it is made."""

    def __init__(self) -> None:
        calls = _CALLS.get(platform.machine())
        if calls is None:
            raise OSError(errno.ENOSYS, "no numbers of system calls for this machine")
        libc = ctypes.CDLL(None, use_errno=True)
        self._context = ctypes.c_ulong(0)
        setup, destroy, submit, getevents = (partial(_checked, _prototype(libc, arguments), number)
                                             for number, arguments in zip(calls, _ARGUMENTS, strict=True))  # fmt: skip
        setup(POSIX_AIO_MAX, ctypes.byref(self._context))
        number = self._context.value
        self._destroy = partial(destroy, number)
        self._submit_some = partial(submit, number)
        self._get_events = partial(getevents, number, 0, POSIX_AIO_MAX)
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events = ctypes.create_string_buffer(_EVENT.size * POSIX_AIO_MAX)
        self._blocks = ctypes.create_string_buffer(_IOCB.size * POSIX_AIO_MAX)  # what is submitted, one after another
        first = ctypes.addressof(self._blocks)
        self._pointers = (ctypes.c_void_p * POSIX_AIO_MAX)(
            *(first + index * _IOCB.size for index in range(POSIX_AIO_MAX))
        )
        self._waiting: dict[int, tuple[_Group, int]] = {}  # by number: of which group, and which of it
        self._queue: list[_Group] = []  # to be submitted in this turn of the loop
        self._free: list[_Buffer] = []
        self._room = POSIX_AIO_MAX
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()  # who waits for so much room
        self._last = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._eventfd, self._finished)

    # ---- what it does ----

    async def sync(self, fd: int, *, is_data: bool) -> None:
        await self._run(_Operation(_FDSYNC if is_data else _FSYNC, fd), None)

    async def sync_data(self, fds: Sequence[int]) -> list[OSError | None]:
        """Of several files together; what became of each."""
        results = await self._ended([_Operation(_FDSYNC, fd) for fd in fds], None)
        return [OSError(-result, os.strerror(-result)) if result < 0 else None for result in results]

    async def read(self, fd: int, size: int, offset: int) -> bytes:
        buffer = self._buffer(size)
        count = await self._run(_Operation(_PREAD, fd, buffer.address, size, offset), buffer)
        data = buffer.map[:count]
        self._give_back(buffer)
        return data

    async def write(self, fd: int, pieces: Sequence[tuple[bytes | bytearray | memoryview, int]]) -> list[int]:
        """Data and offset of each.  Answers the numbers of those that would have had to wait and are not written; EIO
        if one is not written as a whole."""
        buffer = self._buffer(sum(len(data) for data, _ in pieces))
        operations, at = [], 0
        for data, offset in pieces:
            size = len(data)
            buffer.map[at : at + size] = bytes(data) if isinstance(data, memoryview) else data
            operations.append(_Operation(_PWRITE, fd, buffer.address + at, size, offset))
            at += size
        counts = await self._ended(operations, buffer)
        self._give_back(buffer)
        late = [number for number, count in enumerate(counts) if count == -errno.EAGAIN]
        for count, operation in zip(counts, operations, strict=True):
            if count != operation.size and count != -errno.EAGAIN:
                failed = -count if count < 0 else errno.EIO
                raise OSError(failed, os.strerror(failed))
        return late

    # ---- memory ----

    def _buffer(self, size: int) -> _Buffer:
        if size <= POSIX_AIO_BUFFER_BYTES and self._free:
            buffer = self._free.pop()
        else:
            buffer = _Buffer(max(size, POSIX_AIO_BUFFER_BYTES))
        buffer.users = 1
        return buffer

    def _give_back(self, buffer: _Buffer | None) -> None:
        """Used again when neither the kernel nor we need it any more."""
        if buffer is None:
            return
        buffer.users -= 1
        if not buffer.users and len(buffer.map) == POSIX_AIO_BUFFER_BYTES and len(self._free) < POSIX_AIO_BUFFERS_MAX:
            self._free.append(buffer)

    # ---- submission and completion ----

    async def _run(self, operation: _Operation, buffer: _Buffer | None) -> int:
        """The result.  Raises ``OSError``."""
        (result,) = await self._ended([operation], buffer)
        if result < 0:
            self._give_back(buffer)
            raise OSError(-result, os.strerror(-result))
        return result

    async def _ended(self, operations: list[_Operation], buffer: _Buffer | None) -> list[int]:
        """All results, errors as numbers below zero, in order, when all have ended."""
        if self._line or self._room < len(operations):
            await self._wait_room(len(operations))
        self._room -= len(operations)
        group = _Group(operations, buffer, self._loop.create_future())
        if not self._queue:
            self._loop.call_soon(self._submit)
        self._queue.append(group)
        try:
            await group.ended
        except asyncio.CancelledError:
            if group in self._queue:  # the descriptor may be closed, and its number used again, when this returns
                self._submit()
            raise
        return group.results

    async def _wait_room(self, count: int) -> None:
        """In the order of coming: a large one is not overtaken for ever."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self._line.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._line = deque(item for item in self._line if item[1] is not turn)
            else:
                self._room += count
            self._next_in_line()
            raise
        self._room += count  # what was set aside for this one

    def _next_in_line(self) -> None:
        while self._line and self._line[0][0] <= self._room:
            count, turn = self._line.popleft()
            if not turn.done():
                self._room -= count
                turn.set_result(None)

    def _submit(self) -> None:
        """All of one turn with one system call: the disk is told once of many, too."""
        queue, self._queue = self._queue, []
        count = 0
        for group in queue:
            if group.buffer is not None:
                group.buffer.users += 1
            for index, operation in enumerate(group.operations):
                self._last += 1
                _IOCB.pack_into(self._blocks, count * _IOCB.size, self._last, 0, os.RWF_NOWAIT if operation.size else 0,
                                operation.opcode, 0, operation.fd, operation.at, operation.size, operation.offset, 0,
                                _RESULT_TO_EVENTFD, self._eventfd)  # fmt: skip
                self._waiting[self._last] = group, index
                count += 1
        done = 0
        while done < count:
            try:
                done += self._submit_some(count - done, ctypes.byref(self._pointers, done * _POINTER_BYTES))
            except OSError as error:
                self._end(self._last - count + 1 + done, -(error.errno or errno.EIO))
                done += 1

    def _finished(self) -> None:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return
        count = self._get_events(self._events, _NO_WAIT)
        for number, _, result, _ in _EVENT.iter_unpack(memoryview(self._events)[: count * _EVENT.size]):
            self._end(number, result)

    def _end(self, number: int, result: int) -> None:
        group, index = self._waiting.pop(number)
        self._room += 1
        if self._line:
            self._next_in_line()
        group.results[index] = result
        group.left -= 1
        if not group.left:
            self._give_back(group.buffer)
            if not group.ended.done():
                group.ended.set_result(None)

    def close(self) -> None:
        """Waits for what is on its way."""
        self._loop.remove_reader(self._eventfd)
        if self._queue:
            self._submit()
        self._destroy()
        os.close(self._eventfd)
        for group, _ in self._waiting.values():
            group.ended.cancel()
