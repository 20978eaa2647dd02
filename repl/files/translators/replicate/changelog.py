# SPDX-License-Identifier: Apache-2.0
"""The pending counters: what they look like on disk and what they say.

``trusted.afr.<name of child i>`` on child j: three big-endian 32-bit counters (data, metadata, entry) of the operations
that i missed and j has; ``trusted.afr.dirty``: operations that may be in flight.  Absent is zero.  They only ever
change by adding (xattrop), a healed key stays there as zeroes.
Facts: values read from bricks of GlusterFS 10.3, tests/vectors/gluster-afr-xattr.txt.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from repl.files.translators.replicate.quorum import Quorum

_WORDS = struct.Struct(">3I")
_WORD_MAX = 0xFFFF_FFFF
COUNTS_BYTES = _WORDS.size
PREFIX = b"trusted.afr."
DIRTY = b"trusted.afr.dirty"
# To features/index, with xattrop: a name of the directory has changed while a copy was away, or is equal again.
ENTRY_IN = b"glusterfs.xattrop.entry-in"
ENTRY_OUT = b"glusterfs.xattrop.entry-out"


class Kind(enum.IntEnum):
    """Of what a copy can be old; the index of its counter."""

    DATA = 0
    METADATA = 1
    ENTRY = 2

    @property
    def word(self) -> str:
        return ("data", "metadata", "entry")[self]


KINDS = tuple(Kind)
Counts: TypeAlias = tuple[int, int, int]
ZERO: Counts = (0, 0, 0)
NOTHING = bytes(COUNTS_BYTES)


def unpack(value: bytes | None) -> Counts:
    """Absent, and what is no counter, is zero."""
    if value is None or len(value) != COUNTS_BYTES:
        return ZERO
    found: Counts = _WORDS.unpack(value)
    return found


def delta(counts: Sequence[int]) -> bytes:
    """The operand of an xattrop that adds ``counts`` (negative ones subtract).  As the bricks add: what is below zero
    on one of them reads as a very large count, and taking that back makes it zero."""
    return _WORDS.pack(*(count & _WORD_MAX for count in counts))


_UNITS = tuple(delta([int(k == kind) for k in KINDS]) for kind in KINDS)
_MINUS = tuple(delta([-int(k == kind) for k in KINDS]) for kind in KINDS)


def plus_one(kind: Kind) -> bytes:
    return _UNITS[kind]


def minus_one(kinds: Iterable[Kind]) -> bytes:
    chosen = tuple(kinds)
    return _MINUS[chosen[0]] if len(chosen) == 1 else delta([-int(k in chosen) for k in KINDS])


def accusations(xattrs: Mapping[bytes, bytes], keys: Sequence[bytes]) -> tuple[Counts, ...]:
    """What one child says of each child, by child index."""
    return tuple(unpack(xattrs.get(key)) for key in keys)


def accused(said: Mapping[int, Sequence[Counts]], kind: Kind, quorum: Quorum) -> int:
    """Mask of the children whose copy is old, by what the children in ``said`` witness.

    A child that accuses itself is old; without a majority its accusations of others do not count (spec 5.5).
    """
    everyone = (1 << quorum.children) - 1
    absent = everyone & ~sum(1 << i for i in said)
    accusers = [0] * quorum.children
    confessed = 0
    for i, row in said.items():
        if row[i][kind]:
            confessed |= 1 << i
    for i, row in said.items():
        if quorum.is_majority or not confessed >> i & 1:
            for j, counts in enumerate(row):
                if j != i and counts[kind]:
                    accusers[j] |= 1 << i
    return confessed | sum(1 << j for j, mask in enumerate(accusers) if mask and quorum.is_credible(mask, absent))
