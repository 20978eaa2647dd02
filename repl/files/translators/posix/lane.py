# SPDX-License-Identifier: Apache-2.0
"""Where system calls run.

Calls on names and attributes run one at a time, in the event loop: a few microseconds each, no locks, and every one of
them is atomic to all others.  When one takes long, the disk is slow: from then on they run, in order, in one thread of
their own, until they are fast again, so that the loop goes on answering for other bricks and clients.  Data goes to a
pool of threads, syncs to the kernel's asynchronous I/O.
Time is measured with the wall clock that the graph was given (none in simulations: never slow).  On a busy machine a
call takes long because others have the processor, and threads would make that worse: after a long call the next ones
are watched more closely, and only time that one of them neither ran nor wanted to run is the disk's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from repl.files.translators.posix.aio import Aio
from repl.limits import POSIX_THREADS_MAX

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SLOW_NS = 50_000_000  # a call that takes so long holds up everybody
FAST_CALLS = 200  # so many fast ones, one after another, and the disk counts as fast again


class Schedule:
    """What the kernel's scheduler says of the thread that asks."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}  # by thread

    def ran_ns(self) -> int:
        """For how long it has run or waited for a processor so far; always 0 where the kernel does not tell."""
        thread = threading.get_ident()
        fd = self._files.get(thread)
        try:
            if fd is None:
                fd = self._files[thread] = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            ran, wanted, _ = os.pread(fd, 128, 0).split()
            return int(ran) + int(wanted)
        except (OSError, ValueError):
            return 0

    def close(self) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()


class Lane:
    """``ran_ns``: for how long the thread that asks has run or wanted to (None: as the kernel says)."""

    def __init__(self, wall_ns: Callable[[], int], name: str, ran_ns: Callable[[], int] | None = None) -> None:
        self._wall_ns = wall_ns
        self._schedule = Schedule()
        self._ran_ns = ran_ns or self._schedule.ran_ns
        self._to_watch = 0  # so many calls to come
        self._names = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-names")
        self._data = ThreadPoolExecutor(POSIX_THREADS_MAX, thread_name_prefix=f"{name}-data")
        self._aio: Aio | None = None
        with contextlib.suppress(OSError):  # not on this system: threads
            self._aio = Aio()
        self._in_thread = 0
        self._fast_to_come = 0
        self.slow_calls = 0

    @property
    def is_slow(self) -> bool:
        return self._fast_to_come > 0

    async def asynchronous(self, call: Callable[[Aio], Awaitable[T]]) -> T | None:
        """By the kernel's asynchronous I/O; None: it cannot be done in this way."""
        if self._aio is None:
            return None
        try:
            return await call(self._aio)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EAGAIN):
                raise
            return None

    def close(self) -> None:
        if self._aio is not None:
            self._aio.close()
        self._names.shutdown(wait=True)
        self._data.shutdown(wait=True)
        self._schedule.close()

    async def run(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """One call on names or attributes, after all that came before."""
        if self._fast_to_come or self._in_thread:
            self._in_thread += 1
            try:
                return await asyncio.get_running_loop().run_in_executor(self._names, self._timed, call, *args)
            finally:
                self._in_thread -= 1
        return self._timed(call, *args)

    def _timed(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        if self._to_watch:
            return self._watched(call, *args)
        start = self._wall_ns()
        try:
            return call(*args)
        finally:
            if self._wall_ns() - start > SLOW_NS:
                self._to_watch = FAST_CALLS

    def _watched(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """As long as the lane is slow all of them are."""
        self._to_watch -= 1
        start, ran = self._wall_ns(), self._ran_ns()
        try:
            return call(*args)
        finally:
            if self._wall_ns() - start - (self._ran_ns() - ran) > SLOW_NS:
                self.slow_calls += 1
                self._to_watch = self._fast_to_come = FAST_CALLS
            elif self._fast_to_come:
                self._fast_to_come -= 1

    async def data(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """A call that may wait for the disk, beside all others."""
        return await asyncio.get_running_loop().run_in_executor(self._data, call, *args)

    def close_later(self, close: Callable[[int], None], fd: int) -> None:
        """Fire and forget."""
        self._data.submit(close, fd)
