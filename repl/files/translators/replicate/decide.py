# SPDX-License-Identifier: Apache-2.0
"""Which copies are good and which are old: the decision matrix of a heal, as plain functions.

Input: what every child answered (``Witness``); output: ``Verdict``.  Facts: spec 5.5.
differs (decision 0061): copies that nobody accuses but that are marked dirty get their direction by size, witness
count and mtime as in GlusterFS; the loser is accused on disk before the first byte is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repl.files.translators.replicate.changelog import Counts, Kind, accused
from repl.files.translators.replicate.quorum import Quorum
from repl.files.values import Iatt


@dataclass(frozen=True, slots=True)
class Witness:
    """One child's copy: what it says of each child, its dirty mark, its attributes."""

    said: tuple[Counts, ...]
    dirty: Counts
    iatt: Iatt
    is_arbiter: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Masks of children.  ``is_split``: no copy is good; ``is_guess``: nobody was accused, a tie was broken among
    ``equals``."""

    sources: int
    sinks: int
    is_split: bool = False
    is_guess: bool = False
    reason: str = ""
    equals: int = 0


def _bits(mask: int) -> list[int]:
    return [i for i in range(mask.bit_length()) if mask >> i & 1]


def judge(copies: Mapping[int, Witness], kind: Kind, quorum: Quorum) -> Verdict:
    """Sources and sinks of one kind among the children that answered."""
    everyone = sum(1 << i for i in copies)
    arbiters = sum(1 << i for i, c in copies.items() if c.is_arbiter)
    old = accused({i: c.said for i, c in copies.items()}, kind, quorum) & everyone
    sources = everyone & ~old
    if not sources and kind is not Kind.ENTRY and (chosen := _most_trusted(copies, kind, quorum)) >= 0:
        return Verdict(1 << chosen, everyone & ~(1 << chosen), reason="the only copy that most witnesses trust")
    usable = sources & ~arbiters if kind is Kind.DATA else sources
    if not usable:
        return Verdict(0, everyone, is_split=True, reason="every copy is accused by another one")
    if old:
        sinks = everyone & ~sources
        return _among_equals(copies, kind, usable, sinks | (sources & ~usable & ~arbiters))
    if kind is Kind.ENTRY:
        return Verdict(everyone, 0)
    return _among_equals(copies, kind, usable, 0)


def is_doubtful(copies: Mapping[int, Witness], kind: Kind, sources: int) -> bool:
    """Copies that count as good can differ: a change was under way, or one of them is accused all the same."""
    return any(
        copies[i].dirty[kind] or any(counts[kind] for j, counts in enumerate(copies[i].said) if sources >> j & 1)
        for i in _bits(sources)
    )


def _most_trusted(copies: Mapping[int, Witness], kind: Kind, quorum: Quorum) -> int:
    """With three copies or more: the child that fewer accuse than any other.  Where one copy is enough for an
    acknowledged change, only if none accuses it but those that accuse themselves: any other may have gone on alone."""
    if len(copies) < 3:
        return -1
    votes = {j: sum(1 for i, c in copies.items() if c.said[j][kind]) for j, w in copies.items() if not w.is_arbiter}
    best = sorted(votes, key=lambda j: votes[j])
    majority = len(copies) // 2 + 1
    if len(best) < 2 or not votes[best[0]] < votes[best[1]] >= majority > votes[best[0]]:
        return -1
    accusers = [i for i, c in copies.items() if i != best[0] and c.said[best[0]][kind]]
    if quorum.is_majority or all(copies[i].said[i][kind] for i in accusers):
        return best[0]
    return -1


def _among_equals(copies: Mapping[int, Witness], kind: Kind, sources: int, sinks: int) -> Verdict:
    """Sources that differ although nobody accuses them: one of them wins."""
    if kind is Kind.ENTRY:
        return Verdict(sources, sinks)
    candidates = _bits(sources)
    if kind is Kind.DATA:
        is_dirty = is_doubtful(copies, kind, sources)
        sizes = {copies[i].iatt.size for i in candidates}
        if len(candidates) == 1 or (not is_dirty and len(sizes) == 1):
            return Verdict(sources, sinks)
        winner = max(candidates, key=lambda i: _weight(copies[i], kind, i))
        return Verdict(1 << winner, sinks | (sources & ~(1 << winner)), is_guess=True, equals=sources,
                       reason="nobody is accused: the longest, best witnessed, newest copy wins")  # fmt: skip
    shapes = {_owner(copies[i].iatt) for i in candidates}
    is_dirty = is_doubtful(copies, kind, sources)
    if len(candidates) == 1 or (len(shapes) == 1 and not is_dirty):
        return Verdict(sources, sinks)
    winner = max(candidates, key=lambda i: (copies[i].iatt.ctime_ns, -i))
    return Verdict(1 << winner, sinks | (sources & ~(1 << winner)), is_guess=True, equals=sources,
                   reason="nobody is accused: the attributes that changed last win")  # fmt: skip


def _weight(copy: Witness, kind: Kind, index: int) -> tuple[int, int, int, int]:
    return copy.iatt.size, witnessed(copy, kind), copy.iatt.mtime_ns, -index


def _owner(iatt: Iatt) -> tuple[int, int, int]:
    return iatt.uid, iatt.gid, iatt.mode


def witnessed(copy: Witness, kind: Kind) -> int:
    """How much a copy has seen that others may have missed."""
    return copy.dirty[kind] + sum(counts[kind] for counts in copy.said)


def favorite(policy: str, copies: Mapping[int, Witness], *, is_data: bool = True) -> int:
    """The child that ``policy`` makes the source of a split-brain, -1 if it cannot tell."""
    eligible = {i: c for i, c in copies.items() if not (c.is_arbiter and is_data)}
    if not eligible or policy == "none":
        return -1
    if policy == "majority":
        return _majority(eligible, len(copies))
    field = {"size": "size", "mtime": "mtime_ns", "ctime": "ctime_ns"}[policy]
    values: dict[int, int] = {i: getattr(copy.iatt, field) for i, copy in eligible.items()}
    best = max(values, key=lambda i: values[i])
    return best if list(values.values()).count(values[best]) == 1 else -1


def _majority(copies: Mapping[int, Witness], children: int) -> int:
    """A child whose size and mtime (to the second) more than half have."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for i, copy in copies.items():
        shapes.setdefault((copy.iatt.size, copy.iatt.mtime_ns // 10**9), []).append(i)
    largest = max(shapes.values(), key=len)
    return largest[0] if 2 * len(largest) > children else -1


def healed_counts(copies: Mapping[int, Witness], kind: Kind, healed: int) -> dict[int, tuple[dict[int, int], int]]:
    """What to subtract: child -> ({accused child: count}, dirty count), exactly what was read at the start."""
    result: dict[int, tuple[dict[int, int], int]] = {}
    for i, copy in copies.items():
        if healed >> i & 1:
            said = {j: counts[kind] for j, counts in enumerate(copy.said) if counts[kind] and healed >> j & 1}
            result[i] = (said, copy.dirty[kind])
    return result


def owners_differ(iatts: Sequence[Iatt]) -> bool:
    return len({_owner(iatt) for iatt in iatts}) > 1
