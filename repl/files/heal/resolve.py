# SPDX-License-Identifier: Apache-2.0
"""Ending a split-brain by somebody's word: source-brick, bigger-file, latest-mtime, majority.

Inputs: a replicate volume, a path inside it (or a gfid), the policy.  Outputs: what was healed.
Errors: ``HealRefused`` (a ``UsageError``) with what to do instead: nothing is split, the copies do not differ in what
the policy compares, metadata or directories need a source.
differs (decision 0068): a source also decides for directories and different types, which Gluster leaves to be
repaired by hand on the brick; majority can be asked for like the other policies.
"""

from __future__ import annotations

import enum
import os

from repl.errors import UsageError
from repl.files.heal.info import Examined, State, examine, heal_info, path_of
from repl.files.translators.replicate import Replicate
from repl.files.translators.replicate.changelog import Counts
from repl.files.translators.replicate.decide import Witness, favorite
from repl.files.translators.replicate.healing import How, Outcome, Status
from repl.files.values import ROOT_GFID, FopError, Loc, Looked


class Policy(enum.Enum):
    SOURCE_BRICK = "source-brick"
    BIGGER_FILE = "bigger-file"
    LATEST_MTIME = "latest-mtime"
    MAJORITY = "majority"


_FAVORITES = {Policy.BIGGER_FILE: "size", Policy.LATEST_MTIME: "mtime", Policy.MAJORITY: "majority"}
_NO_WINNER = {
    Policy.BIGGER_FILE: "No bigger file.",
    Policy.LATEST_MTIME: "No difference in mtime.",
    Policy.MAJORITY: "No copy has a majority.",
}


class HealRefused(UsageError):
    """The split-brain stays as it is."""

    code = "heal"


async def resolve(afr: Replicate, path: bytes, policy: Policy, source: str = "") -> str:
    """End the split-brain of one file or name; the sentence to print.  ``source`` is the name of a child."""
    await afr.settled()
    winner = _source(afr, source) if policy is Policy.SOURCE_BRICK else -1
    parent, name = await _parent(afr, path)
    found = await _look(afr, parent, name)
    if len({(a.iatt.gfid, a.iatt.kind) for a in found.values()}) > 1:
        return await _resolve_name(afr, path, parent, name, found, policy, winner)
    if not found:
        raise HealRefused(f"{os.fsdecode(path)}: no such file or directory.")
    return await resolve_inode(afr, next(iter(found.values())).iatt.gfid, policy, winner, os.fsdecode(path))


def _source(afr: Replicate, source: str) -> int:
    if source not in afr.names:
        raise HealRefused(f"'{source}' is no brick of this set.", advice=f"It has {', '.join(afr.names)}.")
    index = afr.names.index(source)
    if not afr.up >> index & 1:
        raise HealRefused(f"'{source}' is not connected.", advice="Start its brick first.")
    return index


async def _parent(afr: Replicate, path: bytes) -> tuple[bytes, bytes]:
    """The directory's gfid and the last name; the root has none."""
    names = [n for n in path.split(b"/") if n]
    parent = ROOT_GFID
    for name in names[:-1]:
        try:
            parent = (await afr.lookup(afr.owner(), Loc(parent=parent, name=name))).iatt.gfid
        except OSError as error:
            raise HealRefused(f"{os.fsdecode(path)}: {os.fsdecode(name)}: {error.strerror}.") from error
    return parent, names[-1] if names else b""


async def _look(afr: Replicate, parent: bytes, name: bytes) -> dict[int, Looked]:
    caller = afr.owner()
    loc = Loc(parent=parent, name=name) if name else Loc(gfid=ROOT_GFID)
    answers = await afr.ask(afr.up, lambda c: c.lookup(caller, loc, want=afr.want_keys))
    return {i: a for i, a in answers.items() if isinstance(a, Looked)}


# ---- data and metadata ----


async def resolve_inode(afr: Replicate, gfid: bytes, policy: Policy, winner: int, what: str) -> str:
    found = await examine(afr, gfid, afr.owner())
    words = {split.word for split in found.splits}
    if not words:
        raise HealRefused(f"{what} is not in split-brain.", advice='"heal VOLUME info split-brain" lists what is.')
    if winner < 0:
        winner = _pick(found, policy, words, what)
    outcome = await afr.healer.heal(gfid, How(winner=winner))
    return await _finish(afr, outcome, what)


def _pick(found: Examined, policy: Policy, words: set[str], what: str) -> int:
    if "data" not in words:
        raise HealRefused(f"{what} is in metadata split-brain.",
                          advice="Use source-brick option to heal metadata split-brain.")  # fmt: skip
    winner = favorite(_FAVORITES[policy], found.copies)
    if winner < 0:
        raise HealRefused(f"{what}: {_NO_WINNER[policy]}", advice="Name the brick whose copy is to stay: source-brick.")
    return winner


async def _finish(afr: Replicate, outcome: Outcome, what: str) -> str:
    if outcome.status is not Status.HEALED:
        raise HealRefused(f"Healing {what} failed: {outcome.status.value}. {outcome.reason}".strip())
    for gfid in outcome.more:
        await afr.healer.heal(gfid, How())
    return f"Healed {what}."


# ---- names ----


async def _resolve_name(
    afr: Replicate, path: bytes, parent: bytes, name: bytes, found: dict[int, Looked], policy: Policy, winner: int
) -> str:
    what = os.fsdecode(path)
    if winner < 0:
        winner = _pick_name(afr, found, policy, what)
    if winner not in found:
        raise HealRefused(f"{afr.names[winner]} has no {what}.")
    outcome = await afr.healer.heal_name(parent, name, How(winner=winner, only_name=name))
    if outcome.status in (Status.SPLIT, Status.FAILED, Status.AWAY):
        raise HealRefused(f"Healing {what} failed: {outcome.reason or outcome.status.value}.")
    await afr.healer.heal(parent, How())
    await afr.healer.aside.clean()
    for gfid in {*outcome.more, found[winner].iatt.gfid}:
        await afr.healer.heal(gfid, How())
    return f"GFID split-brain resolved for file {what}"


def _pick_name(afr: Replicate, found: dict[int, Looked], policy: Policy, what: str) -> int:
    if not all(a.iatt.is_regular for a in found.values()):
        raise HealRefused(f"{what} is a directory, or of different types: there is nothing to compare.",
                          advice="Name the brick whose copy is to stay: source-brick.")  # fmt: skip
    if policy is Policy.MAJORITY:
        gfids = [a.iatt.gfid for a in found.values()]
        for i, a in found.items():
            if 2 * gfids.count(a.iatt.gfid) > afr.count:
                return i
        raise HealRefused(f"{what}: {_NO_WINNER[policy]}")
    nothing: Counts = (0, 0, 0)
    said = (nothing,) * afr.count
    copies = {i: Witness(said, nothing, a.iatt, bool(afr.arbiters >> i & 1)) for i, a in found.items()}
    winner = favorite(_FAVORITES[policy], copies, is_data=policy is Policy.BIGGER_FILE)
    if winner < 0:
        raise HealRefused(f"{what}: {_NO_WINNER[policy]}")
    return winner


async def resolve_all(afr: Replicate, source: str) -> list[str]:
    """source-brick without a file: all that is in split-brain; a sentence for each."""
    await afr.settled()
    winner = _source(afr, source)
    done: list[str] = []
    seen: set[bytes] = set()
    for brick in await heal_info(afr, only_splits=True):
        for item in brick.items or ():
            if item.state is not State.SPLIT or item.gfid in seen:
                continue
            seen.add(item.gfid)
            done += await _resolve_item(afr, item.gfid, {s.name for s in item.splits if s.name}, winner)
    return done


async def _resolve_item(afr: Replicate, gfid: bytes, names: set[bytes], winner: int) -> list[str]:
    what = await path_of(afr, gfid, afr.owner())
    done: list[str] = []
    try:
        for name in sorted(names):
            path = os.fsencode(what.rstrip("/")) + b"/" + name
            found = await _look(afr, gfid, name)
            done.append(await _resolve_name(afr, path, gfid, name, found, Policy.SOURCE_BRICK, winner))
        if not names:
            done.append(await resolve_inode(afr, gfid, Policy.SOURCE_BRICK, winner, what))
    except (HealRefused, FopError) as error:
        done.append(str(error))
    return done
