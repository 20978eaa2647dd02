# SPDX-License-Identifier: Apache-2.0
"""The open files of one client, by the numbers that it chose.

A number is taken when its open arrives, so that calls which follow without waiting find it; they wait here until the
open is done.  A release waits until nothing uses the file.
"""

from __future__ import annotations

import asyncio
import errno

from repl.errors import ProtocolError
from repl.files.values import Fd, FopError
from repl.limits import RPC_OPEN_FILES_MAX


class OpenFile:
    """``users``: calls under way that were given it, its open included."""

    __slots__ = ("fd", "is_failed", "is_open", "number", "users", "waiters")

    def __init__(self, number: int, fd: Fd) -> None:
        self.number = number
        self.fd = fd
        self.is_open = False
        self.is_failed = False
        self.users = 0
        self.waiters: list[asyncio.Future[None]] = []

    async def wait_open(self) -> None:
        """EBADF if the open has failed."""
        while not self.is_open and not self.is_failed:
            await self._wait()
        if self.is_failed:
            raise FopError(errno.EBADF, "the file could not be opened")

    async def wait_unused(self) -> None:
        while self.users:
            await self._wait()

    def _wait(self) -> asyncio.Future[None]:
        waiter = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        return waiter

    def wake(self) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class OpenFiles:
    """Number -> file."""

    def __init__(self) -> None:
        self._files: dict[int, OpenFile] = {}

    def __len__(self) -> int:
        return len(self._files)

    def find(self, number: int) -> OpenFile:
        """EBADF."""
        file = self._files.get(number)
        if file is None:
            raise FopError(errno.EBADF, f"there is no open file {number}")
        return file

    def add(self, number: int, fd: Fd) -> OpenFile:
        """EMFILE; a number that is taken is the client's mistake."""
        if number in self._files:
            raise ProtocolError(f"file {number} is open already.")
        if len(self._files) >= RPC_OPEN_FILES_MAX:
            raise FopError(errno.EMFILE, f"the client has {RPC_OPEN_FILES_MAX} open files")
        file = self._files[number] = OpenFile(number, fd)
        return file

    def remove(self, number: int) -> OpenFile | None:
        return self._files.pop(number, None)

    def fail(self, file: OpenFile) -> None:
        """Its open has failed."""
        if self._files.get(file.number) is file:
            del self._files[file.number]
        file.is_failed = True
        file.wake()

    def all(self) -> list[OpenFile]:
        return list(self._files.values())
