# SPDX-License-Identifier: Apache-2.0
"""Application locks that the server has granted, kept so that they can be asked for again on a new connection.

For each open file and owner the ranges held; flock counts as one of its own.  A later lock of the same owner takes
the place of an earlier one where they overlap, as POSIX says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from repl.files.values import Caller, Lock, LockType


class HeldLocks:
    """Of one open file."""

    def __init__(self) -> None:
        self._held: dict[tuple[bytes, str, bool], tuple[Caller, list[Lock]]] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def __iter__(self) -> Iterator[tuple[Caller, Lock]]:
        for caller, locks in list(self._held.values()):
            for lock in locks:
                yield caller, lock

    def record(self, caller: Caller, lock: Lock) -> None:
        """The server has granted it (or taken it back: type UNLOCK)."""
        key = (caller.lock_owner, caller.client, lock.is_flock)
        _, before = self._held.get(key, (caller, []))
        locks = [piece for held in before for piece in _without(held, lock)]
        if lock.type is not LockType.UNLOCK:
            locks.append(lock)
        if locks:
            self._held[key] = (caller, locks)
        else:
            self._held.pop(key, None)

    def closed(self, caller: Caller) -> None:
        """A descriptor of the owner was closed: all its byte ranges are free, flock is not."""
        self._held.pop((caller.lock_owner, caller.client, False), None)

    def lost(self, caller: Caller, lock: Lock) -> None:
        self.record(caller, replace(lock, type=LockType.UNLOCK))

    def forget_client(self, client: str) -> None:
        for key in [key for key in self._held if key[1] == client]:
            del self._held[key]


def _without(held: Lock, other: Lock) -> Iterator[Lock]:
    if not held.overlaps(other):
        yield held
        return
    if held.first < other.first:
        yield replace(held, last=other.first - 1)
    if held.last > other.last:
        yield replace(held, first=other.last + 1)
