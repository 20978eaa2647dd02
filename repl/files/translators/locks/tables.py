# SPDX-License-Identifier: Apache-2.0
"""Tables of locks: who holds what of one inode, who waits, who comes next.

Plain data, no I/O and no clock.  A waiter is granted by calling its ``granted``; waiters come first come first
served: nobody overtakes an earlier one whose lock would conflict, except owners that hold a lock of the table already
(they would wait for themselves otherwise).
Errors: ``FopError`` ENOLCK when a table is full.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeAlias, TypeVar

from repl.files.values import END, FopError, Lock, LockType
from repl.limits import FILES_LOCKS_PER_INODE_MAX

Owner: TypeAlias = tuple[str, bytes]  # client, lock owner within it


@dataclass(frozen=True, slots=True)
class NameLock:
    """An internal lock on a name of a directory; None: all its names."""

    type: LockType
    name: bytes | None

    def overlaps(self, other: NameLock) -> bool:
        return self.name is None or other.name is None or self.name == other.name


L = TypeVar("L", Lock, NameLock)


@dataclass(slots=True, eq=False)
class Held(Generic[L]):
    owner: Owner
    lock: L
    since: float = 0.0
    contended_at: float = float("-inf")  # when its client was last asked to let go


@dataclass(slots=True, eq=False)
class Waiting(Generic[L]):
    """``granted`` is called once, after the lock is held; ``lost`` when it never will be."""

    owner: Owner
    lock: L
    granted: Callable[[], None]
    lost: Callable[[], None]


class Table(Generic[L]):
    """Internal locks: each is held by itself and released exactly as it was taken."""

    def __init__(self) -> None:
        self.held: list[Held[L]] = []
        self.waiting: list[Waiting[L]] = []

    @property
    def is_empty(self) -> bool:
        return not self.held and not self.waiting

    def clients(self) -> set[str]:
        return {h.owner[0] for h in self.held} | {w.owner[0] for w in self.waiting}

    # ---- who is in the way ----

    def blockers(self, owner: Owner, lock: L) -> list[Held[L]]:
        return [h for h in self.held if h.owner != owner and _conflicts(lock, h.lock)]

    def _is_behind(self, owner: Owner, lock: L, others: Iterable[Waiting[L]]) -> bool:
        """An earlier waiter has the right of way."""
        return any(w.owner != owner and _conflicts(lock, w.lock) for w in others) and not self._holds(owner)

    def _holds(self, owner: Owner) -> bool:
        return any(h.owner == owner for h in self.held)

    # ---- taking and giving back ----

    def take(self, owner: Owner, lock: L, now: float) -> bool:
        """At once, or not at all."""
        if self.blockers(owner, lock) or self.waiting and self._is_behind(owner, lock, self.waiting):
            return False
        self._check_room()
        self._grant(owner, lock, now)
        return True

    def wait(self, waiting: Waiting[L]) -> None:
        """After ``take`` said no."""
        self._check_room()
        self.waiting.append(waiting)

    def give_up(self, waiting: Waiting[L], now: float) -> None:
        """Somebody does not want to wait any more; if it has just been granted, it is given back."""
        if waiting in self.waiting:
            self.waiting.remove(waiting)
            self.wake(now)
        else:
            self.release(waiting.owner, waiting.lock, now)

    def release(self, owner: Owner, lock: L, now: float) -> bool:
        """False: there was no such lock."""
        for held in self.held:
            if held.owner == owner and _is_same_place(held.lock, lock):
                self.held.remove(held)
                self.wake(now)
                return True
        return False

    def drop(self, client: str, now: float) -> None:
        """The client is gone, with all that it held and waited for."""
        self.held = [h for h in self.held if h.owner[0] != client]
        gone = [w for w in self.waiting if w.owner[0] == client]
        self.waiting = [w for w in self.waiting if w.owner[0] != client]
        for waiting in gone:
            waiting.lost()
        self.wake(now)

    def revoke(self, owner: Owner, lock: L, now: float) -> None:
        """Take away what is in somebody's way."""
        for held in self.blockers(owner, lock):
            self.held.remove(held)
        self.wake(now)

    def wake(self, now: float) -> None:
        """Grant what can be granted, in order."""
        index = 0
        while index < len(self.waiting):
            waiting = self.waiting[index]
            if self.blockers(waiting.owner, waiting.lock) or self._is_behind(
                waiting.owner, waiting.lock, self.waiting[:index]
            ):
                index += 1
                continue
            del self.waiting[index]
            self._grant(waiting.owner, waiting.lock, now)
            waiting.granted()

    def _grant(self, owner: Owner, lock: L, now: float) -> None:
        self.held.append(Held(owner, lock, now))

    def _check_room(self) -> None:
        if len(self.held) + len(self.waiting) >= FILES_LOCKS_PER_INODE_MAX:
            raise FopError(errno.ENOLCK, f"more than {FILES_LOCKS_PER_INODE_MAX} locks on one inode")


class RangeTable(Table[Lock]):
    """Locks of applications, as fcntl(2) and flock(2) define them: a new one replaces what its owner held there, ranges
    split and melt together.  The two kinds do not see each other."""

    def take(self, owner: Owner, lock: Lock, now: float) -> bool:
        if self.blockers(owner, lock):
            return False  # fcntl(2) promises no order, so a try does not stand behind those that wait
        self._check_room()
        self._grant(owner, lock, now)
        self.wake(now)  # it may have been a downgrade
        return True

    def blocker(self, owner: Owner, lock: Lock) -> Lock | None:
        """For GET: the first lock in the way."""
        found = self.blockers(owner, lock)
        return min((h.lock for h in found), key=lambda lock: lock.first, default=None)

    def release(self, owner: Owner, lock: Lock, now: float) -> bool:
        had = self._cut(owner, lock)
        self.wake(now)
        return had

    def _cut(self, owner: Owner, lock: Lock) -> bool:
        """Take a range out of what an owner holds."""
        left: list[Held[Lock]] = []
        had = False
        for held in self.held:
            if held.owner != owner or held.lock.is_flock != lock.is_flock or not held.lock.overlaps(lock):
                left.append(held)
                continue
            had = True
            if held.lock.first < lock.first:
                left.append(Held(owner, replace(held.lock, last=lock.first - 1), held.since))
            if held.lock.last > lock.last:
                left.append(Held(owner, replace(held.lock, first=lock.last + 1), held.since))
        self.held = left
        return had

    def _grant(self, owner: Owner, lock: Lock, now: float) -> None:
        self._cut(owner, lock)
        first, last = lock.first, lock.last
        left: list[Held[Lock]] = []
        for held in self.held:
            mine = held.owner == owner and held.lock.is_flock == lock.is_flock and held.lock.type == lock.type
            if mine and held.lock.last < END and held.lock.last + 1 == first:
                first = held.lock.first
            elif mine and last < END and held.lock.first == last + 1:
                last = held.lock.last
            else:
                left.append(held)
        left.append(Held(owner, replace(lock, first=first, last=last), now))
        self.held = left


def _conflicts(one: L, other: L) -> bool:
    if one.type == LockType.READ and other.type == LockType.READ:
        return False
    if isinstance(one, Lock) and isinstance(other, Lock):
        return one.is_flock == other.is_flock and one.overlaps(other)
    if isinstance(one, NameLock) and isinstance(other, NameLock):
        return one.overlaps(other)
    raise AssertionError("locks of two kinds in one table")


def _is_same_place(one: L, other: L) -> bool:
    if isinstance(one, Lock) and isinstance(other, Lock):
        return (one.first, one.last) == (other.first, other.last)
    if isinstance(one, NameLock) and isinstance(other, NameLock):
        return one.name == other.name
    return False
