# SPDX-License-Identifier: Apache-2.0
"""Locks on ranges and names, for the memory brick: who holds, who waits.  No I/O, no rules of a real brick beyond
conflict, splitting of ranges and first come first served."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass, replace
from typing import Any

from repl.files.values import FopError, Lock, LockCommand, LockType

Owner = tuple[str, bytes]


@dataclass(slots=True)
class Held:
    owner: Owner
    lock: Lock


@dataclass(slots=True)
class Waiting:
    owner: Owner
    lock: Lock
    granted: asyncio.Future[None]
    counts: bool = False


def _conflict(owner: Owner, lock: Lock, other: Held) -> bool:
    return (
        other.owner != owner
        and other.lock.overlaps(lock)
        and LockType.WRITE in (lock.type, other.lock.type)
        and other.lock.is_flock == lock.is_flock
    )


class LockTable:
    """The locks of one inode (or one name) in one domain."""

    def __init__(self) -> None:
        self.held: list[Held] = []
        self.waiting: list[Waiting] = []

    def blocker(self, owner: Owner, lock: Lock) -> Lock | None:
        return next((h.lock for h in self.held if _conflict(owner, lock, h)), None)

    async def lock(self, owner: Owner, command: LockCommand, lock: Lock, *, counts: bool = False) -> Lock:
        """``counts``: internal locks, where the same owner's ranges do not melt into one another."""
        if command == LockCommand.GET:
            return self.blocker(owner, lock) or replace(lock, type=LockType.UNLOCK)
        if lock.type == LockType.UNLOCK:
            self._drop(owner, lock, exact=counts)
            self._wake()
            return lock
        if self.blocker(owner, lock) is None:
            self._grant(owner, lock, counts=counts)
            self._wake()
            return lock
        if command != LockCommand.WAIT:
            raise FopError(errno.EAGAIN, "locked")
        place = Waiting(owner, lock, asyncio.get_running_loop().create_future(), counts)
        self.waiting.append(place)
        try:
            await place.granted
        except asyncio.CancelledError:
            if place in self.waiting:
                self.waiting.remove(place)
            elif not place.granted.cancelled():
                self._drop(owner, lock, exact=counts)
            self._wake()
            raise
        return lock

    def drop_client(self, client: str) -> None:
        """The client is gone, and all it held or waited for."""
        self.held = [h for h in self.held if h.owner[0] != client]
        for place in [w for w in self.waiting if w.owner[0] == client]:
            self.waiting.remove(place)
            place.granted.cancel()
        self._wake()

    def _grant(self, owner: Owner, lock: Lock, *, counts: bool) -> None:
        if not counts:
            self._drop(owner, lock, exact=False)
        self.held.append(Held(owner, lock))

    def _drop(self, owner: Owner, lock: Lock, *, exact: bool) -> None:
        left: list[Held] = []
        dropped = False
        for held in self.held:
            mine = held.owner == owner and held.lock.is_flock == lock.is_flock and held.lock.overlaps(lock)
            if not mine or (exact and (dropped or (held.lock.first, held.lock.last) != (lock.first, lock.last))):
                left.append(held)
                continue
            dropped = True
            if held.lock.first < lock.first:
                left.append(Held(owner, replace(held.lock, last=lock.first - 1)))
            if held.lock.last > lock.last:
                left.append(Held(owner, replace(held.lock, first=lock.last + 1)))
        self.held = left

    def _wake(self) -> None:
        for place in list(self.waiting):
            if place.granted.done():
                self.waiting.remove(place)
            elif self.blocker(place.owner, place.lock) is None:
                self.waiting.remove(place)
                self._grant(place.owner, place.lock, counts=place.counts)
                place.granted.set_result(None)


class LockSpace:
    """Tables by key."""

    def __init__(self) -> None:
        self.tables: dict[Any, LockTable] = {}

    def table(self, key: Any) -> LockTable:
        return self.tables.setdefault(key, LockTable())

    def drop_client(self, client: str) -> None:
        for table in self.tables.values():
            table.drop_client(client)
