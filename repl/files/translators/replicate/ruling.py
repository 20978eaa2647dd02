# SPDX-License-Identifier: Apache-2.0
"""What is seen of a directory's names stays true when a copy that is away comes back (decision 0134).

A change of names that was interrupted may have been carried out on a copy that is away now.  Nobody accuses that copy,
and with another one it would have its way later: what has been looked up meanwhile, and written to, would be undone.
So before the first name is shown after a copy has gone, the copies that are here are asked whether a change may have
been interrupted (dirty), and if so they accuse all others: what the good ones here have holds from then on.
Errors: ENOTCONN, where no copy that is here is good, or too few are here to accuse the others; what they say when
there is no such directory.
"""

from __future__ import annotations

from typing import Any

from repl.files.answers import Answers, errors_of, good_of
from repl.files.translators.replicate.base import bits, heard, telling_error
from repl.files.translators.replicate.changelog import DIRTY, Kind, unpack
from repl.files.translators.replicate.inodes import UNKNOWN, InodeState
from repl.files.translators.replicate.transactions import Transactions
from repl.files.values import Caller, FopError, Loc, Want

_TURNS_MAX = 8  # that copies may come or go while they are asked for one name


class Ruling(Transactions):
    async def rule(self, gfid: bytes) -> None:
        """Of one directory, before what some copies have is shown."""
        inode, turns, generation = self.inodes.get(gfid), self.turns, self.generation
        if inode.ruled == turns:
            self.need_good_names(gfid, self.up)
            return
        loc = Loc(gfid=gfid)
        answers = await self.ask_all(self.up, "lookup", self.owner(), [loc, self.want_keys])
        self.need_quorum(f"looking into {loc}", heard(answers))
        found = good_of(answers)
        if not found:
            raise telling_error(errors_of(answers))
        self.learn(inode, found, generation)
        self.need_good_names(gfid, self.up)
        if self._is_open_ended(inode, found):
            try:
                tenure = await self.hold(inode, Kind.ENTRY, is_entry=True)
                try:
                    await tenure.overrule(Kind.ENTRY)
                finally:
                    tenure.unpin()
            except FopError:
                inode.generation = UNKNOWN  # else it would be read without quorum as what is known
                raise
        inode.ruled = turns

    def need_good_names(self, gfid: bytes, mask: int) -> None:
        if not self.inodes.get(gfid).readable[Kind.ENTRY] & mask:
            raise self.nobody(f"looking into {Loc(gfid=gfid)}: no good copy of the directory answers")

    def _is_open_ended(self, inode: InodeState, found: dict[int, Any]) -> bool:
        """A change was interrupted, or is under way, and not all accuse those that are away or old."""
        if not any(unpack(a.xattrs.get(DIRTY))[Kind.ENTRY] for a in found.values()):
            return False
        others = [self.keys[i] for i in bits(self.everyone & ~inode.readable[Kind.ENTRY])]
        return not all(unpack(a.xattrs.get(key))[Kind.ENTRY] for a in found.values() for key in others)


class Look:
    """What the copies say of one name, or of an inode."""

    __slots__ = ("_afr", "_caller", "_loc", "_wanted")

    def __init__(self, afr: Ruling, caller: Caller, loc: Loc, wanted: Want) -> None:
        self._afr = afr
        self._caller = caller
        self._loc = loc
        self._wanted = wanted

    async def once(self) -> Answers | None:
        """None: copies that did not answer may undo what the others say, ``rule`` comes first."""
        afr, loc = self._afr, self._loc
        turns = afr.turns
        is_ruled = bool(loc.name) and afr.inodes.get(loc.parent).ruled == turns
        answers = await afr.ask_all(afr.up, "lookup", self._caller, [loc, self._wanted])
        return answers if self.is_final(answers, turns, is_ruled=is_ruled) else None

    def is_final(self, answers: Answers, turns: int, *, is_ruled: bool) -> bool:
        """``turns``, ``is_ruled``: when they were asked for."""
        afr, loc = self._afr, self._loc
        if not loc.name or not afr.quorum.is_majority:
            return True
        who = heard(answers)
        if who == afr.everyone or not afr.quorum.is_met(who):  # without quorum nobody believes them
            return True
        if not is_ruled or afr.turns != turns:
            return False
        afr.need_good_names(loc.parent, who)
        return True

    async def rule_and_ask(self) -> Answers:
        """No lock may be held: to rule is to lock all names."""
        for _ in range(_TURNS_MAX):
            await self._afr.rule(self._loc.parent)
            if (answers := await self.once()) is not None:
                return answers
        raise self._afr.nobody(f"looking up {self._loc}: copies come and go")
