# SPDX-License-Identifier: Apache-2.0
"""What distribute remembers: layouts of directories, where files are, where names led.

Everything here may be old; whoever uses it finds that out from the answer and looks again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from repl.files.translators.distribute.layout import Layout
from repl.files.values import Fd, Iatt, Xattrs

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """At most ``limit`` entries; the eldest go."""

    __slots__ = ("_limit", "_values")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        if len(self._values) >= self._limit and key not in self._values:
            for old, _ in list(zip(self._values, range(64), strict=False)):
                del self._values[old]
        self._values[key] = value

    def drop(self, key: K) -> None:
        self._values.pop(key, None)

    def clear(self) -> None:
        self._values.clear()


@dataclass(slots=True, eq=False)
class Directory:
    """``mds``: the subvolume whose attributes count; ``present``: those that have a copy; ``raw``: the layout's
    attribute on each; true while the set of subvolumes that are up (``generation``) is the same."""

    gfid: bytes
    layout: Layout
    mds: int
    present: frozenset[int]
    raw: dict[int, bytes]
    generation: int
    checked: dict[int, float]  # when a subvolume has said that its range is that
    commit: int | None
    is_whole: bool  # nothing is missing anywhere
    xattrs: Xattrs = field(default_factory=dict)
    iatt: Iatt | None = None  # of all copies together, true until
    iatt_until: float = 0.0
    changes: int = 0  # heard of, of its attributes

    def has_changed(self) -> None:
        """Its attributes are not known any more."""
        self.iatt = None
        self.changes += 1


@dataclass(slots=True, eq=False)
class Mirror:
    """A file that is open at both ends of its migration."""

    fd: Fd
    source: int
    target: int


@dataclass(slots=True, eq=False)
class FdState:
    """Where an open file or directory is open, and which subvolume its operations go to."""

    index: int
    flags: int
    opened: set[int]
    lock: asyncio.Lock | None = None  # while it is opened elsewhere
    mirror: Mirror | None = None  # while the file is being migrated
    listing: Directory | None = None


def state_of(fd: Fd, key: object) -> FdState | None:
    found: FdState | None = fd.contexts.get(key)
    return found
