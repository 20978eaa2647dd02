# SPDX-License-Identifier: Apache-2.0
"""New ranges for the directories of a volume whose subvolumes have changed (fix-layout)."""

from __future__ import annotations

from collections.abc import Mapping

from repl.files.answers import errors_of
from repl.files.translators.distribute import Distribute
from repl.files.translators.distribute.base import telling_error
from repl.files.translators.distribute.caches import Directory
from repl.files.translators.distribute.layout import COMMIT_INVALID, Range, fixed_layout
from repl.files.translators.distribute.marks import COMMIT_HASH, commit_value
from repl.files.translators.distribute.space import Room
from repl.files.values import ROOT_GFID, Loc

_WEIGHT_OF_SMALLEST = 100


def weights_of(rooms: Mapping[int, Room]) -> dict[int, int]:
    """Larger subvolumes get larger ranges; sizes that differ by less than a hundredth are the same."""
    sizes = {i: room.bytes_all for i, room in rooms.items() if room.bytes_all}
    if not sizes:
        return {}
    smallest = min(sizes.values())
    return {i: round(_WEIGHT_OF_SMALLEST * size / smallest) for i, size in sizes.items()}


async def fix_layout(dht: Distribute, gfid: bytes, path: bytes, weights: Mapping[int, int]) -> bool:
    """True if the ranges have changed.  All subvolumes must be up (ENOTCONN)."""
    dht.need_all("fixing a layout")
    loc = Loc(gfid=gfid, path=path)
    known = await dht.directory(gfid)
    async with dht.locked_inode(min(known.present), loc):
        known = dht.learn(gfid, await dht.ask_directory(loc, dht.wanted_of(gfid)))
        present = sorted(known.present)
        numbers = [i for i in present if i not in dht.decommissioned] or present
        chosen = {i: weights.get(i, _WEIGHT_OF_SMALLEST) for i in numbers} if weights else None
        old = known.layout.ranges
        made = fixed_layout(dht.place_of(gfid, loc), old, numbers, weights=chosen, commit=COMMIT_INVALID)
        made = {i: made.get(i, Range(0, 0, COMMIT_INVALID)) for i in present}
        if _same(made, old):
            return False
        await dht.write_layout(dht.owner(), Loc(gfid=gfid), made, known.raw, {})
        dht.learn(gfid, await dht.ask_directory(loc, dht.wanted_of(gfid)))
        return True


def _same(made: Mapping[int, Range], old: Mapping[int, Range]) -> bool:
    return made.keys() == old.keys() and all((r.first, r.last) == (old[i].first, old[i].last) for i, r in made.items())


async def write_commit(dht: Distribute, known: Directory, commit: int) -> bool:
    """All names of the directory are where they belong, or have link files there: from now on a miss is final.  False:
    its ranges have changed meanwhile."""
    loc, gfid = Loc(gfid=known.gfid), known.gfid
    async with dht.locked_inode(min(known.present), loc):
        now = dht.learn(gfid, await dht.ask_directory(loc, dht.wanted_of(gfid)))
        if not now.is_whole or not _same(now.layout.ranges, known.layout.ranges):
            return False
        made = {i: Range(r.first, r.last, commit) for i, r in now.layout.ranges.items()}
        await dht.write_layout(dht.owner(), loc, made, now.raw, {})
        dht.learn(gfid, await dht.ask_directory(loc, dht.wanted_of(gfid)))
        return True


async def write_volume_commit(dht: Distribute, commit: int) -> None:
    """The number that complete directories carry."""
    caller, root = dht.owner(), Loc(gfid=ROOT_GFID)
    values = {COMMIT_HASH: commit_value(commit)}
    answers = await dht.ask(dht.everyone, lambda i, c: c.setxattr(caller, root, values))
    if errors := errors_of(answers):
        raise telling_error(errors)
    dht.directories.drop(ROOT_GFID)
