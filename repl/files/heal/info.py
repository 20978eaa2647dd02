# SPDX-License-Identifier: Apache-2.0
"""``heal info``: what is pending on each brick, what is in split-brain, what is being healed.

Inputs: a replicate volume.  Outputs: ``BrickInfo`` for each child, as ``gluster volume heal VOLUME info`` shows it;
``summary`` counts.  Nothing is changed; an inode that somebody is only writing to is not listed.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from repl.files.heal import index
from repl.files.translators.replicate import Replicate
from repl.files.translators.replicate.base import bits
from repl.files.translators.replicate.changelog import DIRTY, Kind, accusations, unpack
from repl.files.translators.replicate.decide import Witness, is_doubtful, judge
from repl.files.translators.replicate.heal_aside import list_all
from repl.files.translators.replicate.heal_locks import LockStep, names_lock, range_lock, send, take, unlock_step
from repl.files.translators.replicate.heal_own import has_gone_on
from repl.files.translators.replicate.healing import Split
from repl.files.values import Caller, Loc, Looked, gfid_text
from repl.limits import HEAL_BATCH_NAMES, HEAL_NAMES_MAX

PATHS = b"glusterfs.gfidtopath"


class State(enum.Enum):
    PENDING = "heal pending"
    SPLIT = "Is in split-brain"
    HEALING = "Possibly undergoing heal"


@dataclass(frozen=True, slots=True)
class Item:
    """One inode.  ``path`` is inside the volume; without one it is ``<gfid:...>``."""

    gfid: bytes
    path: str
    state: State
    splits: tuple[Split, ...] = ()

    def __str__(self) -> str:
        return self.path if self.state is State.PENDING else f"{self.path} - {self.state.value}"


@dataclass(slots=True)
class BrickInfo:
    """``items`` is None when the brick is not connected or has no index."""

    name: str
    is_connected: bool
    items: list[Item] | None = None

    @property
    def status(self) -> str:
        return "Connected" if self.is_connected else os.strerror(107)

    def lines(self) -> list[str]:
        """As Gluster prints it, without the line ``Brick``."""
        if self.items is None:
            return [f"Status: {self.status}", "Number of entries: -"]
        return [*map(str, self.items), f"Status: {self.status}", f"Number of entries: {len(self.items)}"]


@dataclass(slots=True)
class Summary:
    """Per brick, as ``info summary`` shows it."""

    total: int = 0
    pending: int = 0
    split: int = 0
    healing: int = 0


@dataclass(slots=True)
class Examined:
    """The copies of one inode: by child what it says, and what nobody can decide."""

    copies: dict[int, Witness]
    missing: int = 0
    splits: list[Split] = field(default_factory=list)

    @property
    def is_accused(self) -> bool:
        return any(any(counts) for w in self.copies.values() for counts in w.said)

    @property
    def is_dirty(self) -> bool:
        return any(any(w.dirty) for w in self.copies.values())


async def examine(afr: Replicate, gfid: bytes, caller: Caller) -> Examined:
    """Look at all copies; names of a directory are compared if it is accused on all sides."""
    await afr.settled()
    loc = Loc(gfid=gfid)
    answers = await afr.ask(afr.up, lambda c: c.lookup(caller, loc, want=afr.want_keys))
    found = Examined({})
    for i, answer in answers.items():
        if isinstance(answer, Looked):
            said, dirty = accusations(answer.xattrs, afr.keys), unpack(answer.xattrs.get(DIRTY))
            found.copies[i] = Witness(said, dirty, answer.iatt, bool(afr.arbiters >> i & 1))
        else:
            found.missing |= 1 << i
    if sum(1 << i for i in found.copies) != afr.everyone:
        return found
    for kind in (Kind.DATA, Kind.METADATA):
        if judge(found.copies, kind, afr.quorum).is_split:
            found.splits.append(Split(kind.word))
    iatt = next(iter(found.copies.values())).iatt
    if iatt.is_directory and found.is_accused:
        found.splits += await _split_names(afr, gfid, found, caller)
    return found


async def _split_names(afr: Replicate, gfid: bytes, found: Examined, caller: Caller) -> list[Split]:
    """Names that mean different inodes where no copy of the directory is old."""
    verdict = judge(found.copies, Kind.ENTRY, afr.quorum)
    trusted = afr.everyone if verdict.is_split else verdict.sources
    # Of changes that nobody acknowledged a heal chooses.
    is_chosen = not verdict.is_split and is_doubtful(found.copies, Kind.ENTRY, trusted)
    if is_chosen and afr.quorum.is_majority:
        return []
    names: dict[bytes, dict[int, tuple[bytes, int]]] = {}
    for i in bits(trusted if afr.quorum.is_majority else afr.everyone):
        for entry in (await list_all(afr.subvolumes[i], caller, gfid))[:HEAL_NAMES_MAX]:
            names.setdefault(entry.name, {})[i] = (entry.gfid, entry.kind)
    splits = []
    for name, there in names.items():
        good = {about for i, about in there.items() if trusted >> i & 1}
        if len(good) > 1 and not is_chosen:
            splits.append(Split("type" if len({kind for _, kind in good}) > 1 else "gfid", name))
        elif good and await _is_held(afr, caller, {i: a for i, a in there.items() if a not in good}, trusted):
            splits.append(Split("gfid", name))
    return splits


async def _is_held(afr: Replicate, caller: Caller, there: dict[int, tuple[bytes, int]], trusted: int) -> bool:
    """Good copies have something else there, but one side has gone on in its directory (decision 0152)."""
    for i, (gfid, kind) in there.items():
        if stat.S_ISDIR(kind) and not trusted >> i & 1:
            with contextlib.suppress(OSError):  # it is gone, or cannot be asked
                if await has_gone_on(afr, caller, i, gfid, trusted):
                    return True
    return False


async def path_of(afr: Replicate, gfid: bytes, caller: Caller) -> str:
    """One path of an inode, from the first child that knows it; else ``<gfid:...>``."""
    for i in bits(afr.up):
        try:
            found = (await afr.subvolumes[i].getxattr(caller, Loc(gfid=gfid), PATHS))[PATHS]
        except OSError:
            continue
        if path := found.split(b"\n")[0]:
            return os.fsdecode(path)
    return f"<gfid:{gfid_text(gfid)}>"


async def _state(afr: Replicate, gfid: bytes, caller: Caller) -> tuple[State, tuple[Split, ...]] | None:
    """None: nothing is pending, or it is only being written."""
    found = await examine(afr, gfid, caller)
    if found.splits:
        return State.SPLIT, tuple(found.splits)
    if not found.is_accused and not found.is_dirty:
        return None
    loc = Loc(gfid=gfid)
    if not await _is_free(afr, range_lock(afr.heal_domain, loc)):
        return State.HEALING, ()
    if not found.is_accused and await _is_used(afr, loc):
        return None
    return State.PENDING, ()


async def _is_used(afr: Replicate, loc: Loc) -> bool:
    """Somebody is changing it: that is what it is marked for."""
    inode = afr.inodes.peek(loc.gfid)
    if inode is not None and (inode.tenure is not None or inode.entry_tenure is not None):
        return True
    return not (
        await _is_free(afr, range_lock(afr.domain, loc)) and await _is_free(afr, names_lock(afr.domain, loc))
    )


async def _is_free(afr: Replicate, lock: LockStep) -> bool:
    caller = afr.owner()
    got = await take(afr, afr.up, caller, lock, [], waits=False, asks=False)
    if got is None:
        return False
    await send(afr, sum(1 << i for i in got), caller, [unlock_step(lock)])
    return True


async def brick_items(afr: Replicate, child: int) -> AsyncIterator[Item]:
    """What is pending by the index of one brick.  Raises ``index.NoIndex``."""
    caller = afr.owner()
    seen: set[bytes] = set()
    for key in (index.XATTROP_KEY, index.DIRTY_KEY):
        async for gfids in index.pages(afr.subvolumes[child], caller, key):
            fresh = [g for g in gfids if g not in seen]
            seen.update(fresh)
            for at in range(0, len(fresh), HEAL_BATCH_NAMES):
                part = fresh[at : at + HEAL_BATCH_NAMES]
                states = await asyncio.gather(*(_state(afr, g, caller) for g in part))
                for gfid, state in zip(part, states, strict=True):
                    if state is not None:
                        yield Item(gfid, await path_of(afr, gfid, caller), *state)


async def heal_info(afr: Replicate, *, only_splits: bool = False) -> list[BrickInfo]:
    await afr.settled()
    bricks = []
    for i, name in enumerate(afr.names):
        brick = BrickInfo(name, bool(afr.up >> i & 1))
        bricks.append(brick)
        if brick.is_connected:
            try:
                brick.items = [
                    item async for item in brick_items(afr, i) if not only_splits or item.state is State.SPLIT
                ]
            except OSError:
                brick.items = None
    return bricks


def summary(brick: BrickInfo) -> Summary | None:
    if brick.items is None:
        return None
    states = [item.state for item in brick.items]
    return Summary(len(states), states.count(State.PENDING), states.count(State.SPLIT), states.count(State.HEALING))
