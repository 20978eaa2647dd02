# SPDX-License-Identifier: Apache-2.0
"""A directory's layout: which range of hashes belongs to which subvolume.

Inputs and outputs: one extended attribute a subvolume (16 bytes: commit hash, type, first, last; big-endian), as on the
bricks of GlusterFS 10.3 (tests/vectors/gluster-dht-layout.txt).  Everything here is a function of values.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from repl.files.translators.distribute.name_hash import hash_bytes

XATTR_NAME = b"trusted.glusterfs.dht"
LAST_HASH = 0xFFFFFFFF
COMMIT_NONE, COMMIT_INVALID = 0, 1
_RANGE = struct.Struct(">IIII")
_TYPE_DAVIES_MEYER = 0


@dataclass(frozen=True, slots=True)
class Range:
    """Hashes ``first`` to ``last`` (inclusive); both 0: none."""

    first: int
    last: int
    commit: int = COMMIT_NONE

    @property
    def is_empty(self) -> bool:
        return self.first == self.last == 0

    def overlap(self, other: Range) -> int:
        """How many hashes both have."""
        if self.is_empty or other.is_empty:
            return 0
        return max(0, min(self.last, other.last) - max(self.first, other.first) + 1)

    def pack(self) -> bytes:
        return _RANGE.pack(self.commit, _TYPE_DAVIES_MEYER, self.first, self.last)


NOTHING = Range(0, 0)


def unpack_range(value: bytes) -> Range | None:
    """None: not one of ours (another length or type, or an end before the beginning)."""
    if len(value) != _RANGE.size:
        return None
    commit, kind, first, last = _RANGE.unpack(value)
    if kind != _TYPE_DAVIES_MEYER or last < first:
        return None
    return Range(first, last, commit)


@dataclass(frozen=True, slots=True)
class Anomalies:
    """What is wrong with a layout."""

    holes: int = 0  # hashes that belong to nobody: ranges of them
    overlaps: int = 0
    missing: tuple[int, ...] = ()  # subvolumes whose copy of the directory or whose range is not there

    @property
    def is_sound(self) -> bool:
        return not (self.holes or self.overlaps)


@dataclass(slots=True)
class Layout:
    """The ranges of a directory by the number of the subvolume."""

    ranges: dict[int, Range]
    missing: tuple[int, ...] = ()
    _sorted: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sorted = sorted((r.first, r.last, n) for n, r in self.ranges.items() if not r.is_empty)

    def owner(self, value: int) -> int | None:
        """The subvolume a hash belongs to; None: it falls into a hole."""
        for first, last, number in self._sorted:
            if first <= value <= last:
                return number
        return None

    def anomalies(self) -> Anomalies:
        holes = overlaps = 0
        expected = 0
        for first, last, _ in self._sorted:
            holes += first > expected
            overlaps += first < expected
            expected = max(expected, last + 1)
        return Anomalies(holes + (expected <= LAST_HASH), overlaps, self.missing)

    def commit(self) -> int | None:
        """The commit hash that all ranges share, None if they do not."""
        found = {r.commit for r in self.ranges.values()}
        return found.pop() if len(found) == 1 and not self.missing else None


def read_layout(found: Mapping[int, bytes | None]) -> Layout:
    """From the attribute on each subvolume's copy (None: no copy of the directory there, or no attribute)."""
    ranges: dict[int, Range] = {}
    missing = []
    for number, value in found.items():
        parsed = unpack_range(value) if value is not None else None
        if parsed is None:
            missing.append(number)
        else:
            ranges[number] = parsed
    return Layout(ranges, tuple(missing))


def _chunks(weights: Sequence[int]) -> list[Range]:
    """The whole space cut into pieces in proportion to the weights, in order."""
    total = sum(weights)
    if len(set(weights)) == 1:
        sizes = [LAST_HASH // len(weights)] * len(weights)
    else:
        unit = LAST_HASH // total
        sizes = [unit * weight for weight in weights]
    pieces, first = [], 0
    for size in sizes:
        pieces.append(Range(first, first + size - 1))
        first += size
    pieces[-1] = Range(pieces[-1].first, LAST_HASH)
    return pieces


def new_layout(path: bytes, numbers: Sequence[int], *, weights: Mapping[int, int] | None = None,
               commit: int = COMMIT_NONE, spread: int = 0) -> dict[int, Range]:  # fmt: skip
    """Ranges for a directory that has none.  ``numbers``: the subvolumes that may get one; ``spread``: how many of them
    do (0: all).  The path decides who begins, so that the first piece is not always the same subvolume's."""
    if not numbers:
        return {}
    start = hash_bytes(path) % len(numbers)
    order = [numbers[(start + n) % len(numbers)] for n in range(len(numbers))]
    chosen = order[: spread or len(order)]
    pieces = _chunks([(weights or {}).get(number, 1) for number in chosen])
    made = {number: Range(p.first, p.last, commit) for number, p in zip(chosen, pieces, strict=True)}
    return {number: made.get(number, Range(0, 0, commit)) for number in numbers}


def fixed_layout(path: bytes, old: Mapping[int, Range], numbers: Sequence[int], *,
                 weights: Mapping[int, int] | None = None, commit: int = COMMIT_NONE) -> dict[int, Range]:  # fmt: skip
    """New ranges for other subvolumes than before, exchanged between them where more of the old ones is kept then."""
    made = new_layout(path, numbers, weights=weights, commit=commit)
    order = list(numbers)

    def kept(number: int, place: int) -> int:
        return made[place].overlap(old.get(number, NOTHING))

    for at, one in enumerate(order):
        gains = {
            other: kept(one, other) + kept(other, one) - kept(one, one) - kept(other, other)
            for other in order[at + 1 :]
        }
        best = max(gains, key=lambda number: gains[number], default=one)
        if gains.get(best, 0) > 0:
            made[one], made[best] = made[best], made[one]
    return made
