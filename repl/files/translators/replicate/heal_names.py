# SPDX-License-Identifier: Apache-2.0
"""The heal of one name of a directory, whose names the caller has locked on all children that take part.

``trusted`` are the children whose word counts: the good copies, or all of them when the names of all are to stay (a
merge).  What the good copies do not have loses its name on the others (and is put aside), what they have comes into
being there with the same identity: by its new name if the inode is there already, else as an empty one that both the
good copies and itself say is old.
Answers whether the name is settled; what cannot be settled is noted in the run's outcome.
"""

from __future__ import annotations

import asyncio
import enum
import stat
from dataclasses import dataclass

from repl.files.answers import GONE
from repl.files.translators.replicate.base import bits, mask_of
from repl.files.translators.replicate.changelog import (
    DIRTY,
    Counts,
    Kind,
    accusations,
    accused,
    delta,
    plus_one,
)
from repl.files.translators.replicate.decide import Witness, favorite
from repl.files.translators.replicate.heal_aside import Aside
from repl.files.translators.replicate.heal_locks import names_lock, range_lock, send, take, unlock_step
from repl.files.translators.replicate.heal_own import has_changed, has_gone_on
from repl.files.translators.replicate.heal_places import Places
from repl.files.translators.replicate.heal_run import Run
from repl.files.translators.replicate.healing import Status
from repl.files.values import Caller, Iatt, Loc, Looked, XattrOp, Xattrs

# What the good copies say of a child for an inode that it gets now, and what it says itself.
_UNITS = {
    stat.S_IFREG: (delta((1, 1, 0)), delta((1, 1, 0))),
    stat.S_IFDIR: (delta((0, 1, 1)), delta((0, 1, 0))),
}
_OTHER_UNITS = (delta((1, 1, 0)), delta((1, 1, 0)))


@dataclass(frozen=True, slots=True)
class Judged:
    """What the directory's counters say: whose names count, whether each side has missed something of the other
    (``is_blamed``: names that differ are a split-brain then), whether a dead client may have left it half changed."""

    trusted: int
    is_blamed: bool
    is_dirty: bool


class Gone(enum.Enum):
    """What came of taking a name away."""

    YES = "it is gone"
    KEPT = "it is the last one that the inode has on any copy, or of a directory that was changed there alone"
    LATER = "the inode is being healed, or has to be looked at without the lock"


class _Entangled(Exception):
    """What becomes of this name depends on what becomes of others: half a rename."""


class NameHeal:
    def __init__(self, run: Run, judged: Judged, aside: Aside) -> None:
        self.run = run
        self.afr = run.afr
        self.judged = judged
        self.aside = aside
        self.places = Places(run, aside, judged.trusted)
        self._alone = asyncio.Lock()
        self._putting = asyncio.Lock()
        self._gone_on: dict[tuple[int, bytes], bool] = {}  # by child and directory, as far as they were looked at
        self.unseen: set[tuple[int, bytes]] = set()  # those that have to be

    async def look_below(self) -> None:
        """Without the lock, because it can take long: how far old copies have gone on in directories that are to lose
        their names there."""
        unseen, self.unseen = self.unseen, set()
        for index, gfid in sorted(unseen):
            self.run.go_on()
            try:
                found = await has_gone_on(self.afr, self.run.caller, index, gfid, self.judged.trusted)
            except OSError as error:
                self.run.note(Status.FAILED, str(error))
            else:
                self._gone_on[index, gfid] = found

    async def heal(self, name: bytes) -> bool:
        """OSError: a child could not do it."""
        try:
            return await self._heal(name, is_alone=False)
        except _Entangled:
            async with self._alone:
                return await self._heal(name, is_alone=True)

    async def _heal(self, name: bytes, *, is_alone: bool) -> bool:
        """``is_alone``: no other name of the directory of which the same can be said is being healed."""
        run = self.run
        loc = Loc(parent=run.gfid, name=name)
        there = await self._look(loc)
        present = {i: a for i, a in there.items() if self.judged.trusted >> i & 1 or self._is_named_winner(i, name)}
        if not present:
            if (kept := await self._expunge_all(loc, there)) is None:
                return False
            if not kept:
                return True
            present = kept
        if not is_alone and len({a.iatt.gfid for a in there.values()}) > 1:
            raise _Entangled
        good = self._choose(name, present)
        if good < 0:
            return False
        if await self._is_claimed_twice(loc, present, good):
            gfid = present[good].iatt.gfid
            good = self._choose(name, {i: a for i, a in present.items() if a.iatt.gfid != gfid})
        iatt = present[good].iatt
        same = sum(1 << i for i, a in there.items() if a.iatt.gfid == iatt.gfid)
        if iatt.is_regular and not same & ~self.afr.arbiters and await self._has_no_data(iatt.gfid):
            answers = [await self._expunge(i, loc, there[i].iatt) for i in bits(same)]
            return same == sum(1 << i for i in there) and all(a is Gone.YES for a in answers)
        if self._is_half_gone(same) and not await self._vouch(iatt, same):
            for i in bits(same):
                if await self._expunge(i, loc, there[i].iatt) is not Gone.YES:
                    return False
            return await self._heal(name, is_alone=is_alone)
        for i in bits(run.mask & ~same):
            if i in there and await self._expunge(i, loc, there[i].iatt, is_replaced=True) is not Gone.YES:
                return False
        is_done = True
        for i in bits(run.mask & ~same):
            is_done &= await self._impunge(i, loc, present[good], same, is_alone=is_alone)
        return is_done

    def _is_named_winner(self, index: int, name: bytes) -> bool:
        """An administrator wants this copy to decide, old or not: each side has gone on alone."""
        how = self.run.how
        return not self.afr.quorum.is_majority and index == how.winner and name == how.only_name

    async def _look(self, loc: Loc) -> dict[int, Looked]:
        answers = await self.afr.ask(
            self.run.mask, lambda c: c.lookup(self.run.caller, loc, want=self.afr.want_keys)
        )
        found: dict[int, Looked] = {}
        for i, answer in answers.items():
            if isinstance(answer, Looked):
                found[i] = answer
            elif answer.errno not in GONE:
                raise answer
        return found

    async def _has_no_data(self, gfid: bytes) -> bool:
        """Only an arbiter knows the file: half of a creation or of a removal, which nobody has acknowledged."""
        if not self.run.is_complete:
            return False
        files = self.run.mask & ~self.afr.arbiters
        answers = await self.afr.ask(files, lambda c: c.lookup(self.run.caller, Loc(gfid=gfid)))
        return all(isinstance(a, OSError) and a.errno in GONE for a in answers.values())

    # ---- half a removal ----

    def _is_half_gone(self, same: int) -> bool:
        """Copies whose word counts differ, for a change was interrupted."""
        judged = self.judged
        is_merge = judged.is_dirty and not judged.is_blamed and self.afr.quorum.is_majority
        return is_merge and bool(judged.trusted & ~same)

    async def _vouch(self, iatt: Iatt, same: int) -> bool:
        """Whether those that have the inode can tell which copy of it is good.

        A good copy of the directory that lacks the inode altogether, and is not accused of having missed it (made in
        another directory), has removed it, or never made it, in a change that nobody acknowledged, and what it said of
        the other copies is lost with it: as if it were away.  What has no good copy then is gone for good; old ones are
        accused by all that have it, so that it stays known (decision 0136).
        """
        afr, caller = self.afr, self.run.caller
        target = Loc(gfid=iatt.gfid)
        answers = await afr.ask(self.run.mask, lambda c: c.lookup(caller, target, want=afr.want_keys))
        found = {i: a for i, a in answers.items() if isinstance(a, Looked)}
        for answer in answers.values():
            if isinstance(answer, OSError) and answer.errno not in GONE:
                raise answer
        have = mask_of(found)
        said = {i: accusations(a.xattrs, afr.keys) for i, a in found.items()}
        missed = mask_of([i for i in range(afr.count) if any(any(row[i]) for row in said.values())])
        if not self.judged.trusted & ~have & ~missed:
            return True
        if afr.quorum.is_met(afr.everyone & ~have):
            return False
        old = {kind: accused(said, kind, afr.quorum) & have for kind in self._kinds(iatt)}
        if any(not have & ~mask & ~(afr.arbiters if kind is Kind.DATA else 0) for kind, mask in old.items()):
            return False
        marks = {
            afr.keys[i]: delta([int(old.get(kind, 0) >> i & 1) for kind in Kind])
            for i in bits(have) if any(mask >> i & 1 for mask in old.values())
        }  # fmt: skip
        if marks:
            taken = await afr.ask(have, lambda c: c.xattrop(caller, target, XattrOp.ADD, marks))
            if error := next((a for a in taken.values() if isinstance(a, OSError)), None):
                raise error
        return True

    @staticmethod
    def _kinds(iatt: Iatt) -> tuple[Kind, ...]:
        return (Kind.METADATA, Kind.ENTRY if iatt.is_directory else Kind.DATA)

    # ---- which inode the name means ----

    def _choose(self, name: bytes, present: dict[int, Looked]) -> int:
        """A child that has the right one, -1 if nobody can tell."""
        first = next(iter(present))
        identities = {(a.iatt.gfid, a.iatt.kind) for a in present.values()}
        if len(identities) == 1:
            return first
        if self.run.how.winner in present:
            return self.run.how.winner
        if not self.judged.is_blamed and self.judged.is_dirty:
            return self._newest(present)
        chosen = self._favorite(present)
        if chosen < 0:
            is_type = len({kind for _, kind in identities}) > 1
            word = "type" if is_type else "gfid"
            self.run.split(word, f"{name!r} is another object on each side", name)
        return chosen

    async def _is_claimed_twice(self, loc: Loc, present: dict[int, Looked], good: int) -> bool:
        """The inode chosen for this name has been given another contested name too: it cannot have both, and what the
        copies had at this one before must not be lost for it."""
        iatt, judged = present[good].iatt, self.judged
        same = sum(1 << i for i, a in present.items() if a.iatt.gfid == iatt.gfid)
        is_merge = judged.is_dirty and not judged.is_blamed
        if len(present) == same.bit_count() or not is_merge or iatt.is_directory or iatt.nlink != 1:
            return False
        for i in bits(judged.trusted & self.run.mask & ~same):
            answer = await self.afr.ask_one(i, lambda c: c.lookup(self.run.caller, Loc(gfid=iatt.gfid)))
            if isinstance(answer, Looked) and answer.iatt.nlink == 1:
                if await self.places.is_claimed_twice(i, loc, iatt.gfid, same):
                    return True
        return False

    @staticmethod
    def _newest(present: dict[int, Looked]) -> int:
        """A change that nobody acknowledged: any of them will do, the one that most have before the newest."""
        gfids = [a.iatt.gfid for a in present.values()]
        return max(present, key=lambda i: (gfids.count(present[i].iatt.gfid), present[i].iatt.ctime_ns, -i))

    def _favorite(self, present: dict[int, Looked]) -> int:
        """By the policy, among files only."""
        policy = self.run.how.policy
        if policy == "none" or not all(a.iatt.is_regular for a in present.values()):
            return -1
        if policy == "majority":
            gfids = [a.iatt.gfid for a in present.values()]
            best = max(present, key=lambda i: (gfids.count(present[i].iatt.gfid), -i))
            return best if 2 * gfids.count(present[best].iatt.gfid) > self.afr.count else -1
        nothing: Counts = (0, 0, 0)
        said = tuple(nothing for _ in range(self.afr.count))
        witnesses = {
            i: Witness(said, nothing, a.iatt, bool(self.afr.arbiters >> i & 1)) for i, a in present.items()
        }
        return favorite(policy, witnesses, is_data=policy == "size")

    # ---- taking a name away ----

    async def _expunge_all(self, loc: Loc, there: dict[int, Looked]) -> dict[int, Looked] | None:
        """The good copies have no such name.  Answers who has to keep it all the same, None: it is left for later."""
        answers = dict(zip(there, [await self._expunge(i, loc, a.iatt) for i, a in there.items()], strict=True))
        if Gone.LATER in answers.values():
            return None
        return {i: a for i, a in there.items() if answers[i] is Gone.KEPT}

    async def _expunge(self, index: int, loc: Loc, iatt: Iatt, *, is_replaced: bool = False) -> Gone:
        child, caller = self.afr.subvolumes[index], self.run.caller
        victim = Loc(iatt.gfid, loc.parent, loc.name)
        if self._may_have_gone_on(index, iatt, is_replaced=is_replaced):
            if (has_gone_on := self._gone_on.get((index, iatt.gfid))) is None:
                self.unseen.add((index, iatt.gfid))
                return Gone.LATER
            if has_gone_on:
                return self._keep(victim, is_replaced=is_replaced)
        if not iatt.is_directory and (iatt.nlink > 1 or await self.aside.is_dead(iatt.gfid, index)):
            await child.unlink(caller, victim)
            return Gone.YES
        if not self.afr.options["use-anonymous-inode"]:
            await (child.rmdir(caller, victim, recursive=True) if iatt.is_directory else child.unlink(caller, victim))
            return Gone.YES
        return await self._put_aside(index, victim, is_replaced=is_replaced)

    def _may_have_gone_on(self, index: int, iatt: Iatt, *, is_replaced: bool) -> bool:
        """Names may have been acknowledged on this copy alone, in a directory that the good ones have not any more."""
        if self.afr.quorum.is_majority or self.judged.trusted >> index & 1 or not iatt.is_directory:
            return False
        return not is_replaced or self.run.how.winner < 0  # whoever named a winner has looked

    def _keep(self, victim: Loc, *, is_replaced: bool) -> Gone:
        """A removal can be undone; where the good copies have something else there, nobody can tell."""
        if is_replaced:
            self.run.split("gfid", f"{victim.name!r}: replaced on one side, changed on the other one", victim.name)
        return Gone.KEPT

    async def _put_aside(self, index: int, victim: Loc, *, is_replaced: bool) -> Gone:
        """One name of an inode at a time: the last one that it has on any copy stays, unless somebody removed it.

        Half of a rename that was never acknowledged can leave it under one name here and under another one there, and
        each directory's good copy may be the one without.
        """
        async with self._putting:  # two names of one inode would be in each other's way for ever
            return await self._put_aside_alone(index, victim, is_replaced=is_replaced)

    async def _put_aside_alone(self, index: int, victim: Loc, *, is_replaced: bool) -> Gone:
        afr, caller = self.afr, self.afr.owner()
        lock = range_lock(afr.heal_domain, Loc(gfid=victim.gfid))
        got = await take(afr, self.run.mask, caller, lock, [], waits=False, asks=False)
        if got is None:
            self.run.note(Status.LATER, f"{victim.name!r} is being healed")
            return Gone.LATER
        try:
            if not is_replaced and await self.aside.is_last_name(victim.gfid, index, self.places.lasts):
                return Gone.KEPT
            if (index, victim.gfid) in self._gone_on:
                return await self._put_aside_unchanged(index, victim)
            await self.aside.put(index, victim, victim.gfid)
            return Gone.YES
        finally:
            await send(afr, sum(1 << i for i in got), caller, [unlock_step(lock)])

    async def _put_aside_unchanged(self, index: int, victim: Loc) -> Gone:
        """A directory in which nobody has gone on, and cannot meanwhile."""
        afr, caller = self.afr, self.afr.owner()
        lock = names_lock(afr.domain, Loc(gfid=victim.gfid))
        got = await take(afr, 1 << index, caller, lock, [], waits=False)
        if not got:
            self.run.note(Status.LATER, f"{victim.name!r} is in use")
            return Gone.LATER
        try:
            if await has_changed(afr, caller, index, victim.gfid, self.judged.trusted):
                self.run.note(Status.LATER, f"{victim.name!r} has been changed meanwhile")
                return Gone.LATER
            await self.aside.put(index, victim, victim.gfid)
            return Gone.YES
        finally:
            await send(afr, 1 << index, caller, [unlock_step(lock)])

    # ---- giving a name ----

    async def _impunge(self, index: int, loc: Loc, good: Looked, same: int, *, is_alone: bool) -> bool:
        child, caller, gfid = self.afr.subvolumes[index], self.run.caller, good.iatt.gfid
        try:
            here = (await child.lookup(caller, Loc(gfid=gfid))).iatt
        except OSError as error:
            if error.errno not in GONE:
                raise
            await self._make(index, loc, good, same)
            return True
        if here.kind != good.iatt.kind:
            self.run.split("type", "the same gfid has another type", loc.name)
            return False
        if await self.aside.take(index, loc, gfid):
            return True
        if here.is_directory:
            return await self.places.settle(index, loc, good.iatt, here, same)
        if here.nlink == 1 == good.iatt.nlink and self.judged.trusted >> index & 1 and not self.judged.is_blamed:
            if not is_alone:
                raise _Entangled
            if (is_moved := await self.places.move_file(index, loc, gfid, same)) is not None:
                return is_moved
        await child.link(caller, Loc(gfid=gfid), loc)
        return True

    async def _make(self, index: int, loc: Loc, good: Looked, same: int) -> None:
        """Marks first, on all copies that have it; the new inode is marked by itself from its first instant."""
        afr, iatt, key = self.afr, good.iatt, self.afr.keys[index]
        unit, own = _UNITS.get(iatt.kind, _OTHER_UNITS)
        target = Loc(gfid=iatt.gfid)
        said = accusations(good.xattrs, afr.keys)[index]
        is_marked = said[Kind.METADATA] and (said[Kind.ENTRY] if iatt.is_directory else said[Kind.DATA])
        if not is_marked or same & (same - 1):
            answers = await afr.ask(same, lambda c: c.xattrop(self.run.caller, target, XattrOp.ADD, {key: unit}))
            if error := next((a for a in answers.values() if isinstance(a, OSError)), None):
                raise error
        if iatt.is_directory and afr.options["granular-entry-heal"]:
            # Nobody has noted what is in it: its heal has to compare all names.
            dirty = {DIRTY: plus_one(Kind.ENTRY)}
            await afr.ask(same, lambda c: c.xattrop(self.run.caller, target, XattrOp.ADD, dirty))
        await self._make_empty(index, loc, iatt, {key: own}, bits(same)[0])
        self.run.outcome.more.append(iatt.gfid)

    async def _make_empty(self, index: int, loc: Loc, iatt: Iatt, extra: Xattrs, source: int) -> None:
        child, gfid = self.afr.subvolumes[index], iatt.gfid
        caller = Caller(iatt.uid, iatt.gid, (), 0, self.run.caller.client, self.run.caller.lock_owner, True)
        mode = stat.S_IMODE(iatt.mode)
        if iatt.is_directory:
            await child.mkdir(caller, loc, mode=mode, gfid=gfid, extra=extra)
        elif stat.S_ISLNK(iatt.mode):
            target = await self.afr.subvolumes[source].readlink(self.run.caller, Loc(gfid=gfid))
            await child.symlink(caller, loc, target=target, gfid=gfid, extra=extra)
        else:
            await child.mknod(caller, loc, mode=iatt.mode, rdev=iatt.rdev, gfid=gfid, extra=extra)
