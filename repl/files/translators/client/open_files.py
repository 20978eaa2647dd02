# SPDX-License-Identifier: Apache-2.0
"""The files that are open on the server, by the numbers that this end gives them.

A file keeps its number over connections; on a new one it is opened again by gfid.  A file that the server has not
been able to open yet (it was away) is opened by the first operation on it.
"""

from __future__ import annotations

import asyncio
import os

from repl.files.translators.client.held_locks import HeldLocks
from repl.files.values import Fd

OPENING_FLAGS = os.O_CREAT | os.O_EXCL | os.O_TRUNC  # what opening again must not do


class RemoteFile:
    """What the client translator keeps about an ``Fd``."""

    __slots__ = ("fd", "has_lost_locks", "is_open", "listed_to", "locks", "number", "opening")

    def __init__(self, number: int, fd: Fd) -> None:
        self.number = number
        self.fd = fd
        self.is_open = False  # the server has answered its open
        self.has_lost_locks = False
        self.listed_to = 0  # a directory: behind its last entry, once that has been told
        self.locks = HeldLocks()
        self.opening: asyncio.Future[None] | None = None  # a late open that others wait for


class RemoteFiles:
    """Number -> file; ``key`` is the translator, under which each ``Fd`` keeps its ``RemoteFile``."""

    def __init__(self, key: object) -> None:
        self._key = key
        self._files: dict[int, RemoteFile] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._files)

    def find(self, fd: Fd) -> RemoteFile | None:
        found: RemoteFile | None = fd.contexts.get(self._key)
        return found

    def is_unknown(self, fd: Fd) -> bool:
        """It was never opened, or is just being opened late, or has lost locks."""
        found: RemoteFile | None = fd.contexts.get(self._key)
        return found is None or found.opening is not None or found.has_lost_locks

    def number(self, fd: Fd) -> int:
        """Its number, a new one if it has none."""
        found = fd.contexts.get(self._key)
        return found.number if found is not None else self.add(fd).number

    def add(self, fd: Fd) -> RemoteFile:
        self._last += 1
        file = self._files[self._last] = fd.contexts[self._key] = RemoteFile(self._last, fd)
        return file

    def remove(self, fd: Fd) -> RemoteFile | None:
        found: RemoteFile | None = fd.contexts.pop(self._key, None)
        if found is not None:
            self._files.pop(found.number, None)
        return found

    def go_on_from(self, before: RemoteFiles) -> None:
        """On the link of another table: its numbers stay taken; what was open here is opened again when used."""
        for file in self.all():
            self.remove(file.fd)
        self._last = max(self._last, before._last)

    def all(self) -> list[RemoteFile]:
        return list(self._files.values())
