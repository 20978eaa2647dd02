# SPDX-License-Identifier: Apache-2.0
"""Lookup: asks all children, and makes of their answers one.

All answers have the same inode: its counters say which copies are good.  Answers that differ (a name missing on some,
two gfids) are judged by the counters of the directory: an old copy of it has nothing to say.  A name that is missing on
a good copy is brought back in the background (name heal), whether other heals are on or off (spec 5.8).
Two objects of one name on good copies may be a rename of somebody else that has reached only one of them: they are
looked at again while the name is locked, before they are called a split-brain.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from repl.files.answers import GONE, Answers, errors_of, good_of
from repl.files.translators.replicate.base import bits, heard, mask_of, telling_error
from repl.files.translators.replicate.changelog import KINDS, Kind
from repl.files.translators.replicate.decide import owners_differ
from repl.files.translators.replicate.inodes import InodeState
from repl.files.translators.replicate.left_over import is_left_over
from repl.files.translators.replicate.reads import with_size
from repl.files.translators.replicate.ruling import Look
from repl.files.translators.replicate.writes import Writes
from repl.files.values import NO_GFID, ROOT_GFID, Caller, FopError, Loc, LockCommand, LockType, Looked, Want

_HEALS_MAX = 3  # of a name, for one lookup
CONTENT = b"glusterfs.content"


class Lookups(Writes):
    async def lookup(self, caller: Caller, loc: Loc, *, want: Want = ()) -> Looked:
        await self.settled()
        if loc.name and loc.parent == ROOT_GFID and loc.name == self.aside_name:
            raise FopError(errno.ENOENT, str(loc))
        generation = self.generation
        if not self.quorum.is_met(self.up):
            return await self._lookup_known(caller, loc, want)
        turns, parent, wanted = self.turns, self.inodes.get(loc.parent), (*want, *self.want_keys)
        is_known, is_ruled = not loc.name or parent.generation == generation, parent.ruled == turns
        answers = await self.ask_all(self.up, "lookup", caller, [loc, wanted])
        found = good_of(answers)
        if len(found) != self.count or not _agree(found):
            if len(found) != len(answers) and not self.quorum.is_met(heard(answers)):
                return await self._lookup_known(caller, loc, want)
            look = Look(self, caller, loc, wanted)
            if not look.is_final(answers, turns, is_ruled=is_ruled):
                answers, is_known = await look.rule_and_ask(), True
                found = good_of(answers)
            if len(found) != len(answers) or not _agree(found):
                found = await self._judge(loc, answers, look, is_known=is_known)
        gfid = next(iter(found.values())).iatt.gfid
        inode = self.inodes.get(gfid)
        self.learn(inode, found, generation)
        if inode.is_pending or _is_doubtful(inode, found):
            self.heal_soon(gfid)
        return self._answer(inode, found, want, caller.pid)

    async def _lookup_known(self, caller: Caller, loc: Loc, want: Want) -> Looked:
        """Without quorum: only through directories and to inodes that are known to be good on what is left."""
        if loc.name:
            parent = self.inodes.peek(loc.parent)
            if parent is None or not self.is_fresh(parent):
                raise self.nobody(f"looking up {loc}")
            found: Looked = await self.read_from(parent, Kind.ENTRY, caller, lambda c: c.lookup(caller, loc, want=want))
        else:
            known = self.inodes.get(loc.gfid)
            found = await self.read_from(known, Kind.METADATA, caller, lambda c: c.lookup(caller, loc, want=want))
        await self.readable(self.inodes.get(found.iatt.gfid), Kind.METADATA)
        return found

    def _answer(self, inode: InodeState, found: dict[int, Looked], want: Want, pid: int) -> Looked:
        """Attributes of a good copy, size and times of one whose data are good."""
        mask = mask_of(found)
        trusted = inode.readable[Kind.METADATA] & inode.readable[Kind.DATA] & mask
        metadata = trusted or inode.readable[Kind.METADATA] & mask or mask
        index = self.read_order(inode.gfid, metadata & ~self.arbiters or metadata, pid)[0]
        answer = found[index]
        iatt = answer.iatt
        data = inode.readable[Kind.DATA] & mask
        if not trusted and data and stat.S_ISREG(iatt.mode):
            iatt = with_size(iatt, found[self.read_order(inode.gfid, data, pid)[0]].iatt)
        xattrs = {k: v for k, v in answer.xattrs.items() if k in want or k not in self.want_keys}
        if not trusted:
            xattrs.pop(CONTENT, None)  # those of a copy whose data may be old
        return Looked(iatt, answer.parent, xattrs)

    # ---- answers that differ ----

    async def _judge(self, loc: Loc, answers: Answers, look: Look, *, is_known: bool) -> dict[int, Looked]:
        parent = self.inodes.get(loc.parent)
        is_none_good = bool(loc.name) and not parent.readable[Kind.ENTRY] & self.up
        if not is_known or is_none_good:
            # Which copies of the directory are good must be known of a time before their answers: one that has been
            # healed since would be believed what it said before.
            await (self.look_again(parent) if is_none_good else self.refresh(parent))
            answers = await look.once() or await look.rule_and_ask()
        found = await self._judge_once(loc, answers)
        if loc.name and (found is None or self._is_missing(loc, answers)):
            found = await self._judge_again(loc, look, heals=found is not None)
        if found is None:
            self.heal_soon(loc.parent)
            raise FopError(errno.EIO, f"{self.name}: {loc} is in split-brain: the copies are different objects")
        return found

    def _is_missing(self, loc: Loc, answers: Answers) -> bool:
        """A good copy of the directory does not have the name."""
        good = self.inodes.get(loc.parent).readable[Kind.ENTRY] & self.up
        return any(good >> i & 1 and e.errno in GONE for i, e in errors_of(answers).items())

    async def _judge_again(self, loc: Loc, look: Look, *, heals: bool) -> dict[int, Looked] | None:
        """While nobody changes the name.  Half a change is healed before: the file may have another name where this one
        is missing, and who wrote into it by this one would write into what the other one means (decision 0125)."""
        for _ in range(_HEALS_MAX):
            if heals:
                await self.heal_name_now(loc)
            async with self._name_kept(loc):
                if (answers := await look.once()) is not None:
                    found = await self._judge_once(loc, answers)
                    if found is None or not self._is_missing(loc, answers):
                        return found
            heals = answers is not None
            if not heals:
                await self.rule(loc.parent)
        raise self.nobody(f"looking up {loc}: it is on some good copies only, and cannot be healed")

    @asynccontextmanager
    async def _name_kept(self, loc: Loc) -> AsyncIterator[None]:
        """Nobody is in the middle of changing the name."""
        owner, parent, locked = self.owner(), Loc(gfid=loc.parent), 0
        lock, unlock = (LockCommand.WAIT, LockType.READ), (LockCommand.TRY, LockType.UNLOCK)
        try:
            for i in self.lock_order:
                taken = await self.ask(
                    1 << i & self.up, lambda c: c.entrylk(owner, self.domain, parent, loc.name, *lock)
                )
                locked |= mask_of(good_of(taken))
            yield
        finally:
            giving_back = self.ask(locked, lambda c: c.entrylk(owner, self.domain, parent, loc.name, *unlock))
            self.context.spawn(giving_back, f"{self.name}: a lock goes back")

    async def _judge_once(self, loc: Loc, answers: Answers) -> dict[int, Looked] | None:
        """None: good copies have different objects."""
        self.need_quorum(f"looking up {loc}", heard(answers))
        errors = errors_of(answers)
        found: dict[int, Looked] = good_of(answers)
        missing = mask_of([i for i, e in errors.items() if e.errno in GONE])
        if not loc.name:
            return await self._judge_gfid(found, missing, errors)
        if not missing and not found:
            raise telling_error(errors)
        if missing and not found and missing == self.everyone:
            raise telling_error(errors)
        good = await self._good_directory(loc.parent)
        trusted = {i: a for i, a in found.items() if good >> i & 1}
        if not trusted:
            if missing & good:
                raise errors[bits(missing & good)[0]]
            if not found or good or self.quorum.is_majority:
                raise self.nobody(f"looking up {loc}: no good copy of the directory answers")
            trusted = found
        gfid = next(iter(trusted.values())).iatt.gfid
        if not _agree(trusted):
            return None
        if missing & good or any(a.iatt.gfid != gfid for a in found.values()):
            self.heal_name_soon(loc)
        return {i: a for i, a in found.items() if a.iatt.gfid == gfid}

    async def _good_directory(self, gfid: bytes) -> int:
        """Children whose copy of the directory is good; all of them when none is (a heal merges their names), unless
        the good one is away."""
        inode = self.inodes.get(gfid)
        if not self.is_fresh(inode):
            await self.refresh(inode)
        if not inode.readable[Kind.ENTRY] & self.up and inode.is_split[Kind.ENTRY] and not self.is_good_away(inode):
            return self.up
        return inode.readable[Kind.ENTRY] & self.up

    async def _judge_gfid(
        self, found: dict[int, Looked], missing: int, errors: dict[int, OSError]
    ) -> dict[int, Looked]:
        """By gfid alone: whoever has it must accuse those that do not, or it is a left-over of something removed."""
        if not found:
            raise telling_error(errors)
        if not missing or not _agree(found):
            return found
        gfid = next(iter(found.values())).iatt.gfid
        tenured = self.inodes.peek(gfid)
        if tenured is not None and (tenured.tenure or tenured.fds):
            return found
        said = {i: answer.xattrs for i, answer in found.items()}
        if not await is_left_over(self, gfid, missing, said):
            return found
        raise FopError(errno.ESTALE, f"{self.name}: some copies do not have it, and those that do cannot say why")

    # ---- heals: see Replicate ----

    async def heal_name_now(self, loc: Loc) -> None:
        """The same, and wait for it."""

    def heal_name_soon(self, loc: Loc) -> None:
        """The name is missing on a good copy."""

    def check_name(self, loc: Loc) -> None:
        if loc.parent == ROOT_GFID and loc.name == self.aside_name and loc.name:
            raise FopError(errno.EPERM, f"{loc} belongs to heals")


def _is_doubtful(inode: InodeState, found: dict[int, Looked]) -> bool:
    """Nobody is accused, but a client may have died in a change: marked dirty by nobody here, or not equal at all."""
    if inode.tenure is not None or inode.entry_tenure is not None:
        return False
    return inode.is_dirty or owners_differ([a.iatt for a in found.values()])


def _agree(found: dict[int, Looked]) -> bool:
    """The same inode of the same type everywhere."""
    answers = list(found.values())
    return all(a.iatt.gfid == answers[0].iatt.gfid and a.iatt.kind == answers[0].iatt.kind for a in answers[1:])


__all__ = ["KINDS", "NO_GFID", "Lookups"]
