# SPDX-License-Identifier: Apache-2.0
"""What differs between the copies of one inode, in words: for people who have to decide a split-brain.

Inputs: a replicate volume and a gfid.  Outputs: ``Explanation``: the copies with their attributes, who accuses whom of
what, ranges of bytes, extended attributes and names that are not the same.  Nothing is changed.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from repl.files.heal.info import Examined, examine, path_of
from repl.files.translators.replicate import Replicate
from repl.files.translators.replicate.base import bits
from repl.files.translators.replicate.changelog import KINDS, Kind
from repl.files.translators.replicate.decide import judge
from repl.files.translators.replicate.heal_aside import list_all
from repl.files.translators.replicate.heal_metadata import belongs_to_inode
from repl.files.values import Caller, Fd, Iatt, Loc
from repl.limits import EXPLAIN_RANGES_MAX, HEAL_BLOCK_BYTES

NS = 1_000_000_000


@dataclass(slots=True)
class Explanation:
    path: str
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([self.path, *("  " + line for line in self.lines)])


async def explain(afr: Replicate, gfid: bytes) -> Explanation:
    caller = afr.owner()
    found = await examine(afr, gfid, caller)
    result = Explanation(await path_of(afr, gfid, caller))
    add = result.lines.append
    for i in range(afr.count):
        add(f"{afr.names[i]}: {_copy(afr, found, i)}")
    for line in _accusations(afr, found):
        add(line)
    for line in _verdicts(afr, found):
        add(line)
    if len(found.copies) > 1:
        result.lines += _attributes(afr, found)
        result.lines += await _xattrs(afr, found, gfid, caller)
        iatt = next(iter(found.copies.values())).iatt
        if iatt.is_directory:
            result.lines += await _names(afr, found, gfid, caller)
        elif iatt.is_regular:
            result.lines += await _bytes(afr, found, gfid, caller)
    return result


def _copy(afr: Replicate, found: Examined, index: int) -> str:
    if not afr.up >> index & 1:
        return "not connected"
    if index not in found.copies:
        return "has no copy"
    iatt = found.copies[index].iatt
    what = "arbiter, no data" if found.copies[index].is_arbiter else f"{iatt.size} bytes"
    return (f"{stat.filemode(iatt.mode)} {iatt.uid}:{iatt.gid}, {what}, mtime {_time(iatt.mtime_ns)}, "
            f"ctime {_time(iatt.ctime_ns)}")  # fmt: skip


def _time(ns: int) -> str:
    return f"{ns // NS}.{ns % NS:09d}"


def _accusations(afr: Replicate, found: Examined) -> list[str]:
    lines = []
    for i, copy in found.copies.items():
        for j, counts in enumerate(copy.said):
            words = [f"{counts[kind]} of {kind.word}" for kind in KINDS if counts[kind]]
            if words:
                whom = "itself" if i == j else afr.names[j]
                lines.append(f"{afr.names[i]} says that {whom} has missed changes: {', '.join(words)}")
        if words := [kind.word for kind in KINDS if copy.dirty[kind]]:
            lines.append(f"{afr.names[i]} may have been changed when a client died: {', '.join(words)}")
    return lines


def _verdicts(afr: Replicate, found: Examined) -> list[str]:
    lines: list[str] = []
    if sum(1 << i for i in found.copies) != afr.everyone:
        return lines
    for kind in KINDS:
        verdict = judge(found.copies, kind, afr.quorum)
        if verdict.is_split:
            lines.append(f"{kind.word}: each copy is accused by another one, none is good"
                         + (" (the names of all are kept)" if kind is Kind.ENTRY else ""))  # fmt: skip
        elif verdict.sinks:
            good = ", ".join(afr.names[i] for i in bits(verdict.sources))
            lines.append(f"{kind.word}: a heal copies from {good}" + (f": {verdict.reason}" if verdict.reason else ""))
    return lines


def _attributes(afr: Replicate, found: Examined) -> list[str]:
    iatts = {i: w.iatt for i, w in found.copies.items()}

    def differ(what: str, values: dict[int, str]) -> list[str]:
        if len(set(values.values())) < 2:
            return []
        return [f"{what} differs: " + ", ".join(f"{afr.names[i]} {v}" for i, v in values.items())]

    files = {i: a for i, a in iatts.items() if not found.copies[i].is_arbiter}
    lines = differ("type", {i: stat.filemode(a.mode)[0] for i, a in iatts.items()})
    lines += differ("mode", {i: f"{stat.S_IMODE(a.mode):04o}" for i, a in iatts.items()})
    lines += differ("owner", {i: f"{a.uid}:{a.gid}" for i, a in iatts.items()})
    if all(a.is_regular for a in files.values()):
        lines += differ("size", {i: str(a.size) for i, a in files.items()})
    return lines


async def _xattrs(afr: Replicate, found: Examined, gfid: bytes, caller: Caller) -> list[str]:
    mask = sum(1 << i for i in found.copies)
    answers = await afr.ask(mask, lambda c: c.getxattr(caller, Loc(gfid=gfid), None))
    tables = {i: a for i, a in answers.items() if isinstance(a, dict)}
    keys = sorted({k for table in tables.values() for k in table if belongs_to_inode(k)})
    lines = []
    for key in keys:
        if len({table.get(key) for table in tables.values()}) > 1:
            values = ", ".join(f"{afr.names[i]} {table.get(key)!r}" for i, table in tables.items())
            lines.append(f"extended attribute {os.fsdecode(key)} differs: {values}")
    return lines


async def _names(afr: Replicate, found: Examined, gfid: bytes, caller: Caller) -> list[str]:
    there: dict[bytes, dict[int, bytes]] = {}
    for i in found.copies:
        for entry in await list_all(afr.subvolumes[i], caller, gfid):
            if not entry.name.startswith(b".glusterfs"):
                there.setdefault(entry.name, {})[i] = entry.gfid
    lines = []
    for name, have in sorted(there.items()):
        if len(have) < len(found.copies):
            only = ", ".join(afr.names[i] for i in have)
            lines.append(f"name {os.fsdecode(name)!r} is on {only} only")
        elif len(set(have.values())) > 1:
            lines.append(f"name {os.fsdecode(name)!r} is another object on each: " + ", ".join(
                f"{afr.names[i]} {g.hex()}" for i, g in have.items()))  # fmt: skip
        if len(lines) >= EXPLAIN_RANGES_MAX:
            lines.append("...")
            break
    return lines


async def _bytes(afr: Replicate, found: Examined, gfid: bytes, caller: Caller) -> list[str]:
    """Ranges that differ, in blocks of 128 KiB, as far as the shortest copy goes."""
    iatts: dict[int, Iatt] = {i: w.iatt for i, w in found.copies.items() if not w.is_arbiter}
    if len(iatts) < 2:
        return []
    size = min(a.size for a in iatts.values())
    mask = sum(1 << i for i in iatts)
    fd = Fd(gfid, os.O_RDONLY)
    opened = await afr.ask(mask, lambda c: c.open(caller, Loc(gfid=gfid), fd, flags=os.O_RDONLY))
    try:
        if any(isinstance(a, OSError) for a in opened.values()):
            return ["the contents cannot be compared"]
        ranges: list[list[int]] = []
        for at in range(0, size, HEAL_BLOCK_BYTES):
            length = min(HEAL_BLOCK_BYTES, size - at)
            sums = await _sums(afr, mask, caller, fd, at, length)
            if len(set(sums)) > 1:
                if ranges and ranges[-1][1] == at:
                    ranges[-1][1] = at + length
                elif len(ranges) == EXPLAIN_RANGES_MAX:
                    break
                else:
                    ranges.append([at, at + length])
        return [f"bytes {first} to {end - 1} differ" for first, end in ranges] or ["the contents are the same"]
    finally:
        for i in bits(mask):
            await afr.subvolumes[i].release(fd)


async def _sums(afr: Replicate, mask: int, caller: Caller, fd: Fd, at: int, length: int) -> list[object]:
    answers = await afr.ask(mask, lambda c: c.rchecksum(caller, fd, offset=at, length=length))
    return [a if isinstance(a, bytes) else str(a) for a in answers.values()]
