# SPDX-License-Identifier: Apache-2.0
"""What replicate knows of each inode: which copies can be read, which transaction is open, who has it open."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from repl.files.translators.replicate.changelog import DIRTY, KINDS, NOTHING, Counts, Kind, accusations, accused, unpack
from repl.files.translators.replicate.quorum import Quorum
from repl.files.values import Caller, Fd, Lock, LockType, Looked

if TYPE_CHECKING:
    from repl.files.translators.replicate.listing import Listing
    from repl.files.translators.replicate.tenure import Tenure

UNKNOWN = -1  # a generation that never is


@dataclass(slots=True, eq=False)
class InodeState:
    """``readable`` per kind, ``found``: masks of children, true for ``generation`` only."""

    gfid: bytes
    generation: int = UNKNOWN
    found: int = 0
    readable: list[int] = field(default_factory=lambda: [0, 0, 0])
    is_split: list[bool] = field(default_factory=lambda: [False, False, False])
    is_pending: bool = False  # somebody is accused
    is_dirty: bool = False
    has_half_names: bool = False  # a change of names by somebody else, or one of ours that failed, is not at its end
    tenure: Tenure | None = None
    entry_tenure: Tenure | None = None
    fds: set[FdState] = field(default_factory=set)
    has_locks: bool = False
    is_gone: bool = False  # nothing is kept of it once nobody uses it
    contended_until: float = 0.0
    refreshing: asyncio.Future[None] | None = None
    ruled: int = UNKNOWN  # of a directory: ``Base.turns`` when it was known that no copy that is away can change it
    choice: int = -1  # replica.split-brain-choice
    choice_until: float = 0.0

    @property
    def is_idle(self) -> bool:
        return self.tenure is None and self.entry_tenure is None and not self.fds and self.refreshing is None

    def learn(self, answers: Mapping[int, Looked], keys: tuple[bytes, ...], arbiters: int, generation: int,
              quorum: Quorum) -> None:  # fmt: skip
        """Take over what the children's counters say; ``answers`` are those that have the inode."""
        self.generation = generation
        if _is_quiet(answers, keys):
            found = 0
            for i in answers:
                found |= 1 << i
            self.found = found
            self.is_pending = self.is_dirty = self.has_half_names = False
            self.readable[:] = found & ~arbiters, found, found
            self.is_split[:] = False, False, False
            return
        said: dict[int, tuple[Counts, ...]] = {i: accusations(a.xattrs, keys) for i, a in answers.items()}
        self.found = sum(1 << i for i in answers)
        self.is_pending = any(any(counts) for row in said.values() for counts in row)
        dirty = [unpack(a.xattrs.get(DIRTY)) for a in answers.values()]
        self.is_dirty = any(map(any, dirty))
        own = self.entry_tenure is not None and Kind.ENTRY not in self.entry_tenure.suspect
        self.has_half_names = any(counts[Kind.ENTRY] > own for counts in dirty)
        for kind in KINDS:
            old = accused(said, kind, quorum) if self.is_pending else 0
            good = self.found & ~old
            self.is_split[kind] = bool(self.found) and not good
            self.readable[kind] = good & ~arbiters if kind is Kind.DATA else good

    def know(self, found: int, accused: Mapping[Kind, int], arbiters: int, generation: int) -> None:
        """All counters were read under a lock of ours: ``accused`` says whose copies are old."""
        self.found = found
        for kind in KINDS:
            good = found & ~accused[kind]
            self.is_split[kind] = not good
            self.readable[kind] = good & ~arbiters if kind is Kind.DATA else good
        self.generation = generation

    def lose(self, mask: int, kind: Kind) -> None:
        """Those children have missed a change."""
        self.readable[kind] &= ~mask


def _is_quiet(answers: Mapping[int, Looked], keys: tuple[bytes, ...]) -> bool:
    """Nobody is accused, and nothing is under way."""
    for answer in answers.values():
        xattrs = answer.xattrs
        if xattrs.get(DIRTY, NOTHING) != NOTHING:
            return False
        for key in keys:
            if xattrs.get(key, NOTHING) != NOTHING:
                return False
    return True


@dataclass(slots=True, eq=False)
class FdState:
    """An open file: ``lower`` goes to the children, ``opened``: mask of those that have it open."""

    inode: InodeState
    lower: Fd
    flags: int
    opened: int = 0
    locks: list[tuple[Caller, Lock]] = field(default_factory=list)
    opening: asyncio.Future[None] | None = None  # on children that did not have it open
    is_released: bool = False
    listing: Listing | None = None

    def remember_lock(self, caller: Caller, lock: Lock) -> None:
        """What a child that comes back is told: later locks replace the parts of earlier ones that they cover."""
        left: list[tuple[Caller, Lock]] = []
        for holder, held in self.locks:
            if holder.lock_owner != caller.lock_owner or held.is_flock != lock.is_flock or not held.overlaps(lock):
                left.append((holder, held))
                continue
            if held.first < lock.first:
                left.append((holder, replace(held, last=lock.first - 1)))
            if held.last > lock.last:
                left.append((holder, replace(held, first=lock.last + 1)))
        if lock.type is not LockType.UNLOCK:
            left.append((caller, lock))
        self.locks = left


class Inodes:
    """By gfid, at most ``limit`` of them beside those in use."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._states: dict[bytes, InodeState] = {}

    def get(self, gfid: bytes) -> InodeState:
        state = self._states.get(gfid)
        if state is None:
            if len(self._states) >= self._limit:
                self._evict()
            state = self._states[gfid] = InodeState(gfid)
        return state

    def peek(self, gfid: bytes) -> InodeState | None:
        return self._states.get(gfid)

    def gone(self, gfid: bytes) -> None:
        """The inode has lost its last name, or probably: nothing of it is kept once nobody uses it."""
        state = self._states.get(gfid)
        if state is not None:
            state.is_gone = True
            self.used(state)

    def used(self, state: InodeState) -> None:
        """Something that used it has ended."""
        if state.is_gone and state.is_idle and self._states.get(state.gfid) is state:
            del self._states[state.gfid]

    def _evict(self) -> None:
        """Some of the eldest go."""
        eldest = [s for s, _ in zip(self._states.values(), range(64), strict=False)]
        for state in eldest:
            del self._states[state.gfid]
            if not state.is_idle:
                self._states[state.gfid] = state  # in use: the youngest again

    def all(self) -> list[InodeState]:
        return list(self._states.values())
