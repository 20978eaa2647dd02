# SPDX-License-Identifier: Apache-2.0
"""fsync and direct reads and writes without threads: the kernel's own asynchronous I/O, completions by an eventfd.

A thread for each costs more than ten times as much, because Python's threads wait for each other.
Inputs: open descriptors, for reads and writes with O_DIRECT and offsets and sizes that are multiples of
``DIRECT_ALIGN``; outputs: when it is on the disk, the data that was read.  Several writes go with one system call.
Errors: ``OSError`` of the operation, EAGAIN where submitting it would have to wait (dirty pages, blocks that were never
written: then threads do it); from ``Aio`` itself where the system has none of it.
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
from collections.abc import Sequence
from typing import NamedTuple

from repl.limits import POSIX_AIO_BUFFER_BYTES, POSIX_AIO_BUFFERS_MAX, POSIX_AIO_MAX

# setup, destroy, submit, getevents
_CALLS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4), "riscv64": (0, 1, 2, 4)}
_PREAD, _PWRITE, _FSYNC, _FDSYNC = 0, 1, 2, 3
_RESULT_TO_EVENTFD = 1
_IOCB = struct.Struct("=QIIHhIQQqQII")  # data, key, rw flags, opcode, priority, fd, buffer, bytes, offset, -, flags, fd
_EVENT = struct.Struct("=QQqq")  # data, iocb, result, result 2
_NO_WAIT = struct.pack("=qq", 0, 0)


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


class Aio:
    """Belongs to the loop that runs when it is made."""

    def __init__(self) -> None:
        calls = _CALLS.get(platform.machine())
        if calls is None:
            raise OSError(errno.ENOSYS, "no numbers of system calls for this machine")
        self._setup, self._destroy, self._submit_call, self._getevents = calls
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._context = ctypes.c_ulong(0)
        self._call(self._setup, ctypes.c_long(POSIX_AIO_MAX), ctypes.byref(self._context))
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events = ctypes.create_string_buffer(_EVENT.size * POSIX_AIO_MAX)
        self._waiting: dict[int, tuple[asyncio.Future[int], _Buffer | None]] = {}
        self._free: list[_Buffer] = []
        self._room = asyncio.Semaphore(POSIX_AIO_MAX)
        self._turn = asyncio.Lock()
        self._last = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._eventfd, self._finished)

    def _call(self, number: int, *args: object) -> int:
        done: int = self._libc.syscall(ctypes.c_long(number), *args)
        if done < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return done

    # ---- what it does ----

    async def sync(self, fd: int, *, is_data: bool) -> None:
        await self._run([_Operation(_FDSYNC if is_data else _FSYNC, fd)], None)

    async def sync_data(self, fds: Sequence[int]) -> list[OSError | None]:
        """Of several files together; what became of each."""
        results = await self._results([_Operation(_FDSYNC, fd) for fd in fds], None)
        return [result if isinstance(result, OSError) else None for result in results]

    async def read(self, fd: int, size: int, offset: int) -> bytes:
        buffer = self._buffer(size)
        (count,) = await self._run([_Operation(_PREAD, fd, buffer.address, size, offset)], buffer)
        data = buffer.map[:count]
        self._give_back(buffer)
        return data

    async def write(self, fd: int, pieces: Sequence[tuple[bytes | bytearray | memoryview, int]]) -> None:
        """Data and offset of each; EIO if one is not written as a whole."""
        buffer = self._buffer(sum(len(data) for data, _ in pieces))
        operations, at = [], 0
        for data, offset in pieces:
            size = len(data)
            buffer.map[at : at + size] = bytes(data) if isinstance(data, memoryview) else data
            operations.append(_Operation(_PWRITE, fd, buffer.address + at, size, offset))
            at += size
        counts = await self._run(operations, buffer)
        self._give_back(buffer)
        if any(count != operation.size for count, operation in zip(counts, operations, strict=True)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

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

    async def _run(self, operations: list[_Operation], buffer: _Buffer | None) -> list[int]:
        """The results, in order.  Raises ``OSError`` of the first that failed, when all have ended."""
        results = await self._results(operations, buffer)
        for result in results:
            if isinstance(result, BaseException):
                self._give_back(buffer)
                raise result
        return [result for result in results if isinstance(result, int)]

    async def _results(self, operations: list[_Operation], buffer: _Buffer | None) -> list[int | BaseException]:
        async with self._turn:
            for _ in operations:
                await self._room.acquire()
        futures = self._submit(operations, buffer)
        return await asyncio.shield(asyncio.gather(*futures, return_exceptions=True))

    def _submit(self, operations: list[_Operation], buffer: _Buffer | None) -> list[asyncio.Future[int]]:
        raw = bytearray()
        futures = []
        for operation in operations:
            self._last += 1
            how = os.RWF_NOWAIT if operation.size else 0
            raw += _IOCB.pack(self._last, 0, how, operation.opcode, 0, operation.fd, operation.at, operation.size,
                              operation.offset, 0, _RESULT_TO_EVENTFD, self._eventfd)  # fmt: skip
            future: asyncio.Future[int] = self._loop.create_future()
            self._waiting[self._last] = future, buffer
            futures.append(future)
            if buffer is not None:
                buffer.users += 1
        memory = ctypes.create_string_buffer(bytes(raw), len(raw))
        base, count = ctypes.addressof(memory), len(operations)
        pointers = (ctypes.c_void_p * count)(*(base + index * _IOCB.size for index in range(count)))
        done = 0
        while done < count:
            try:
                begin = ctypes.byref(pointers, done * ctypes.sizeof(ctypes.c_void_p))
                done += self._call(self._submit_call, self._context, ctypes.c_long(count - done), begin)
            except OSError as error:
                self._end(self._last - count + 1 + done, -(error.errno or errno.EIO))
                done += 1
        return futures

    def _finished(self) -> None:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return
        count = self._call(self._getevents, self._context, ctypes.c_long(0), ctypes.c_long(POSIX_AIO_MAX),
                           self._events, _NO_WAIT)  # fmt: skip
        for index in range(count):
            number, _, result, _ = _EVENT.unpack_from(self._events, index * _EVENT.size)
            self._end(number, result)

    def _end(self, number: int, result: int) -> None:
        future, buffer = self._waiting.pop(number)
        self._room.release()
        self._give_back(buffer)
        if future.done():
            return
        if result < 0:
            future.set_exception(OSError(-result, os.strerror(-result)))
        else:
            future.set_result(result)

    def close(self) -> None:
        """Waits for what is on its way."""
        self._loop.remove_reader(self._eventfd)
        self._call(self._destroy, self._context)
        os.close(self._eventfd)
        for future, _ in self._waiting.values():
            future.cancel()
