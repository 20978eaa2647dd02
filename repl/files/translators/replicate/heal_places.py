# SPDX-License-Identifier: Apache-2.0
"""A directory has one place.  When a copy has it elsewhere than the names under heal say, this decides which counts.

Usually the other place is old itself: its directory has pending counters, its heal puts the directory aside, and the
name under heal takes it from there.  If both places are good (each side renamed it while the other was away, or a
client died in the middle of a rename), the one whose copy changed last counts, and the others are moved there.
"""

from __future__ import annotations

import os

from repl.files.answers import GONE
from repl.files.translators.replicate.base import bits
from repl.files.translators.replicate.changelog import Kind, accusations
from repl.files.translators.replicate.decide import Verdict, Witness, judge
from repl.files.translators.replicate.heal_aside import Aside
from repl.files.translators.replicate.heal_locks import names_lock, send, take, unlock_step
from repl.files.translators.replicate.heal_run import Run
from repl.files.translators.replicate.healing import Status
from repl.files.values import ROOT_GFID, Iatt, Loc, Looked

PATHS = b"glusterfs.gfidtopath"


class Places:
    """``trusted``: children whose word counts in the directory under heal."""

    def __init__(self, run: Run, aside: Aside, trusted: int) -> None:
        self.run = run
        self.afr = run.afr
        self.aside = aside
        self.trusted = trusted

    async def settle(self, index: int, loc: Loc, good: Iatt, here: Iatt, same: int) -> bool:
        """``index`` has the directory elsewhere, those of ``same`` have it as ``loc``.  True: it is at ``loc`` now."""
        run = self.run
        other = await self._where(index, good.gfid)
        if other is None:
            run.note(Status.LATER, f"{loc.name!r} lies in what has been put aside on {self.afr.names[index]}")
            return False
        is_same = other.parent == loc.parent
        is_old = not self.trusted >> index & 1 if is_same else await self._is_old(index, other.parent)
        if is_old:
            run.outcome.more.append(other.parent)
            run.note(Status.LATER, f"{loc.name!r} has another place on {self.afr.names[index]}, which is old")
            return False
        # Where others have something else at that place, moved there as well it would be in its way for ever.
        is_other_newer = here.ctime_ns > good.ctime_ns and not await self._at(other, same) - {good.gfid}
        if is_same:
            if is_other_newer:
                await self._rename(same, loc, other)
            else:
                await self._rename(1 << index, other, loc)
            return True
        if is_other_newer:
            return await self._move(index, good.gfid, other, same, loc, other)
        return await self._move(index, good.gfid, other, 1 << index, other, loc)

    async def move_file(self, index: int, loc: Loc, gfid: bytes, same: int) -> bool | None:
        """A file with one name, ``loc`` on those of ``same``, another one on ``index``, whose word counts as much: half
        a rename that was never acknowledged.  It gets one name, not both: who goes on with the old name, which is there
        after a rename that failed, must not write into what the new one means (decision 0070).
        None: the other name is an old one, or nobody knows it: it gets this one too, and the other's heal goes on.
        """
        run = self.run
        if (other := await self._other_name(index, loc, gfid)) is None:
            return None
        there = await self._at(other, same)
        if gfid in there:
            return None
        if there:
            run.note(Status.LATER, f"{other.name!r}, its name on {self.afr.names[index]}, comes first")
            return False
        if other.parent == loc.parent:
            await self._rename(1 << index, other, loc)
            return True
        return await self._move(index, gfid, other, 1 << index, other, loc)

    async def is_claimed_twice(self, index: int, loc: Loc, gfid: bytes, same: int) -> bool:
        """Its other name means another file on the copies that have it as ``loc``: two renames, each half done."""
        other = await self._other_name(index, loc, gfid)
        return other is not None and bool(await self._at(other, same) - {gfid})

    async def _other_name(self, index: int, loc: Loc, gfid: bytes) -> Loc | None:
        """Where a copy has it, if its word counts there."""
        try:
            other = await self._where(index, gfid)
        except OSError:
            return None
        if other is None or other.parent != loc.parent and await self._is_old(index, other.parent):
            return None
        return other

    async def _at(self, other: Loc, same: int) -> set[bytes | int | None]:
        """What good copies have there: gfids, and errors that say nothing of it."""
        place = Loc(parent=other.parent, name=other.name)
        answers = await self.afr.ask(same & self.trusted, lambda c: c.lookup(self.run.caller, place))
        return {a.iatt.gfid if isinstance(a, Looked) else a.errno for a in answers.values()} - GONE

    async def _where(self, index: int, gfid: bytes) -> Loc | None:
        """Its directory and name on that child; None: below the root there is no way to it."""
        child, caller = self.afr.subvolumes[index], self.run.caller
        try:
            path = (await child.getxattr(caller, Loc(gfid=gfid), PATHS))[PATHS].split(b"\n")[0]
            parent = ROOT_GFID
            names = [name for name in path.split(b"/") if name]
            if not names or names[0] == self.aside.name:
                return None
            for name in names[:-1]:
                parent = (await child.lookup(caller, Loc(parent=parent, name=name))).iatt.gfid
            return Loc(gfid, parent, names[-1], path)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise

    async def lasts(self, index: int, gfid: bytes) -> bool:
        """False: the directory is old there, and the good copies of it do not have the inode under that name."""
        other = await self._where(index, gfid)
        if other is None:
            return True
        _, verdict = await self._judged(other.parent)
        if verdict.is_split or not verdict.sources or not verdict.sinks >> index & 1:
            return True
        place = Loc(parent=other.parent, name=other.name)
        answers = await self.afr.ask(verdict.sources, lambda c: c.lookup(self.run.caller, place))
        return any(a.iatt.gfid == gfid if isinstance(a, Looked) else a.errno not in GONE for a in answers.values())

    async def _is_old(self, index: int, directory: bytes) -> bool:
        """Another child says that this one has missed changes of that directory (or lacks it at all)."""
        copies, verdict = await self._judged(directory)
        return len(copies) < self.run.mask.bit_count() or bool(verdict.sinks >> index & 1 and not verdict.is_split)

    async def _judged(self, directory: bytes) -> tuple[dict[int, Witness], Verdict]:
        loc = Loc(gfid=directory)
        answers = await self.afr.ask(
            self.run.mask, lambda c: c.lookup(self.run.caller, loc, want=self.afr.want_keys)
        )
        copies: dict[int, Witness] = {}
        for i, answer in answers.items():
            if isinstance(answer, Looked):
                copies[i] = Witness(accusations(answer.xattrs, self.afr.keys), (0, 0, 0), answer.iatt)
        return copies, judge(copies, Kind.ENTRY, self.afr.quorum)

    async def _move(self, index: int, gfid: bytes, other: Loc, mask: int, source: Loc, target: Loc) -> bool:
        """On the children of the mask, with the other directory locked too, if that can be had at once, and only if
        ``index`` still has it there: a change of the other directory may have come in between."""
        afr, run = self.afr, self.run
        lock = names_lock(afr.domain, Loc(gfid=other.parent))
        caller = afr.owner()
        got = await take(afr, run.mask, caller, lock, [], waits=False)
        if got is None or mask & ~sum(1 << i for i in got):
            await send(afr, sum(1 << i for i in got or ()), caller, [unlock_step(lock)])
            run.note(Status.LATER, f"{os.fsdecode(other.path)}: its directory is in use")
            return False
        try:
            now = await self._where(index, gfid)
            if now is None or (now.parent, now.name) != (other.parent, other.name):
                run.note(Status.LATER, f"{os.fsdecode(other.path)} has been moved meanwhile")
                return False
            if await self._is_old(index, other.parent):
                run.note(Status.LATER, f"{os.fsdecode(other.path)}: its directory is old by now")
                return False
            await self._rename(mask, source, target)
        finally:
            await send(afr, sum(1 << i for i in got), caller, [unlock_step(lock)])
        return True

    async def _rename(self, mask: int, source: Loc, target: Loc) -> None:
        for i in bits(mask):
            await self.afr.subvolumes[i].rename(self.run.caller, source, target, flags=1)
