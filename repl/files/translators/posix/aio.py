# SPDX-License-Identifier: Apache-2.0
"""fsync without threads: the kernel's own asynchronous I/O (io_submit), its completions through an eventfd.

A thread for each fsync costs more than ten times as much, because Python's threads wait for each other.
Input: an open descriptor; output: when it is on the disk.  Errors: ``OSError`` of the fsync; from ``Aio`` itself where
the system has none of it (the caller goes on with threads).
Source: io_submit(2), <linux/aio_abi.h>; IOCB_CMD_FSYNC and IOCB_CMD_FDSYNC are since Linux 4.18.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import struct

from repl.limits import POSIX_SYNCS_MAX

# setup, destroy, submit, getevents
_CALLS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4), "riscv64": (0, 1, 2, 4)}
_FSYNC, _FDSYNC = 2, 3
_RESULT_TO_EVENTFD = 1
_IOCB = struct.Struct("=QIIHhIQQqQII")  # data, key, rw flags, opcode, priority, fd, buffer, bytes, offset, -, flags, fd
_EVENT = struct.Struct("=QQqq")  # data, iocb, result, result 2


class Aio:
    """Belongs to the loop that runs when it is made."""

    def __init__(self) -> None:
        self._calls = _CALLS.get(platform.machine())
        if self._calls is None:
            raise OSError(38, "no numbers of system calls for this machine")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._context = ctypes.c_ulong(0)
        self._call(self._calls[0], ctypes.c_long(POSIX_SYNCS_MAX), ctypes.byref(self._context))
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events = ctypes.create_string_buffer(_EVENT.size * POSIX_SYNCS_MAX)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._room = asyncio.Semaphore(POSIX_SYNCS_MAX)
        self._last = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._eventfd, self._finished)

    def _call(self, number: int, *args: object) -> int:
        done: int = self._libc.syscall(ctypes.c_long(number), *args)
        if done < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return done

    async def sync(self, fd: int, *, is_data: bool) -> None:
        async with self._room:
            self._last += 1
            number = self._last
            iocb = ctypes.create_string_buffer(_IOCB.pack(
                number, 0, 0, _FDSYNC if is_data else _FSYNC, 0, fd, 0, 0, 0, 0, _RESULT_TO_EVENTFD, self._eventfd
            ))  # fmt: skip
            pointer = ctypes.pointer(iocb)
            assert self._calls is not None
            self._call(self._calls[2], self._context, ctypes.c_long(1), ctypes.byref(pointer))
            future = self._waiting[number] = self._loop.create_future()
            await asyncio.shield(future)

    def _finished(self) -> None:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return
        assert self._calls is not None
        none = struct.pack("=qq", 0, 0)
        count = self._call(self._calls[3], self._context, ctypes.c_long(0), ctypes.c_long(POSIX_SYNCS_MAX),
                           self._events, none)  # fmt: skip
        for index in range(count):
            number, _, result, _ = _EVENT.unpack_from(self._events, index * _EVENT.size)
            future = self._waiting.pop(number)
            if future.done():
                continue
            if result < 0:
                future.set_exception(OSError(-result, os.strerror(-result)))
            else:
                future.set_result(None)

    def close(self) -> None:
        """Waits for what is on its way."""
        self._loop.remove_reader(self._eventfd)
        assert self._calls is not None
        self._call(self._calls[1], self._context)
        os.close(self._eventfd)
        for future in self._waiting.values():
            future.cancel()
