# SPDX-License-Identifier: Apache-2.0
"""The heal of one inode: its locks, what the copies say, accusations, and the counters that are taken back at the end.

Rules that hold whoever dies (decision 0066):
- one healer at a time: the lock of the domain NAME:self-heal, tried, never waited for;
- what the copies say is read under the lock that clients take for changes, so no change of theirs is under way; what
  they add afterwards is not in the snapshot, and only the snapshot is ever subtracted;
- a copy that is about to be changed is accused on disk before;
- counters go in two steps: first what the healed copies say, then what the good ones say of them;
- children that are not healed with the others stay accused, and those that were healed accuse them from now on too.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from repl.files.answers import GONE
from repl.files.translator import Step
from repl.files.translators.replicate.base import bits
from repl.files.translators.replicate.changelog import DIRTY, KINDS, Kind, accusations, delta, plus_one, unpack
from repl.files.translators.replicate.decide import Verdict, Witness, favorite, judge
from repl.files.translators.replicate.heal_locks import is_busy, range_lock, send, take, unlock_step
from repl.files.translators.replicate.healing import How, Outcome, Split, Status
from repl.files.translators.replicate.inodes import UNKNOWN
from repl.files.values import FopError, Iatt, Loc, LockCommand, LockType, Looked, XattrOp, Xattrs

if TYPE_CHECKING:
    from repl.files.translators.replicate.transactions import Transactions

log = logging.getLogger(__name__)


def can_heal(afr: Transactions, mask: int) -> bool:
    """All children, or, where no change is acknowledged by fewer, more than half of them (decision 0061)."""
    if mask.bit_count() < 2:
        return False
    return mask == afr.everyone or (afr.quorum.is_majority and afr.quorum.is_met(mask))


class Run:
    def __init__(self, afr: Transactions, gfid: bytes, how: How) -> None:
        self.afr = afr
        self.how = how
        self.gfid = gfid
        self.loc = Loc(gfid=gfid)
        self.caller = afr.owner()
        self.copies: dict[int, Witness] = {}
        self.locked = 0  # children that hold the heal lock for us
        self.held = 0  # those that hold the data lock
        self.missing = 0  # children that are up and do not have the inode
        self.outcome = Outcome(gfid, Status.CLEAN)
        self.is_given_up = False  # nobody waits for it any more: it ends where it can
        self._heal_lock = range_lock(afr.heal_domain, self.loc)
        self._data_lock = range_lock(afr.domain, self.loc)
        # By child and key what is added in the first and the second step of the end.
        self._first: dict[int, dict[bytes, list[int]]] = {}
        self._second: dict[int, dict[bytes, list[int]]] = {}

    # ---- who takes part ----

    @property
    def mask(self) -> int:
        return sum(1 << i for i in self.copies)

    @property
    def is_complete(self) -> bool:
        """All copies are here: what none of them can decide is a split-brain."""
        return self.mask == self.afr.everyone

    def iatt(self, index: int) -> Iatt:
        return self.copies[index].iatt

    @property
    def some_iatt(self) -> Iatt:
        return next(iter(self.copies.values())).iatt

    def note(self, status: Status, reason: str) -> None:
        """The most telling status stays."""
        order = (Status.FAILED, Status.SPLIT, Status.AWAY, Status.PARENT, Status.LATER, Status.IN_USE,
                 Status.HEALED)  # fmt: skip
        now = self.outcome.status
        if now not in order or order.index(status) < order.index(now):
            self.outcome.status, self.outcome.reason = status, reason

    def split(self, word: str, reason: str, name: bytes = b"") -> None:
        if (found := Split(word, name)) not in self.outcome.splits:
            self.outcome.splits.append(found)
        self.note(Status.SPLIT, reason)

    def go_on(self) -> None:
        if self.is_given_up:
            raise FopError(errno.EINTR, "given up")

    # ---- beginning ----

    def look_step(self) -> Step:
        return Step("lookup", (self.loc,), {"want": self.afr.want_keys})

    async def begin(self) -> bool:
        """Heal lock, data lock and the first look, in one frame; False: the outcome says why not."""
        afr = self.afr
        if not can_heal(afr, afr.up):
            return self._refuse(Status.AWAY, f"up: {', '.join(afr.names[i] for i in bits(afr.up)) or 'none'}")
        inode = afr.inodes.peek(self.gfid)
        if inode is not None and not self.how.waits and any(t and t.pins for t in (inode.tenure, inode.entry_tenure)):
            return self._refuse(Status.IN_USE, "by this client")
        if inode is not None:
            await afr.end_tenures(inode)
        lock = self._heal_lock(LockCommand.TRY_QUIETLY, LockType.WRITE)
        command = LockCommand.TRY if self.how.waits else LockCommand.TRY_QUIETLY
        data_lock = self._data_lock(command, LockType.WRITE)
        answers = await send(afr, afr.up, self.caller, [lock, data_lock, self.look_step()])
        self.locked = sum(1 << i for i, a in answers.items() if not isinstance(a[0], OSError))
        self.held = sum(1 << i for i, a in answers.items() if len(a) > 1 and not isinstance(a[1], OSError))
        if any(is_busy(a[0]) for a in answers.values()):
            return self._refuse(Status.BUSY, "")
        self.missing = sum(1 << i for i, a in answers.items() if isinstance(a[0], OSError) and a[0].errno in GONE)
        if any(len(a) > 1 and is_busy(a[1]) for a in answers.values()):
            if not await self._wait_for_data_lock():
                return False
        else:
            self._learn({i: a[2] for i, a in answers.items() if len(a) > 2})
        return self._check_copies()

    def _refuse(self, status: Status, reason: str) -> bool:
        self.outcome.status, self.outcome.reason = status, reason
        return False

    async def _wait_for_data_lock(self) -> bool:
        afr = self.afr
        await send(afr, self.held, self.caller, [unlock_step(self._data_lock)])
        self.held = 0
        if not self.how.waits:
            found = await afr.ask(self.locked, lambda c: c.lookup(self.caller, self.loc, want=afr.want_keys))
            self._learn(found)
            if not self.needs_heal():
                return self._refuse(Status.IN_USE, "marked dirty, nobody is accused")
        await self.take_data_lock()
        return True

    async def take_data_lock(self) -> None:
        """And look again."""
        got = await take(self.afr, self.locked, self.caller, self._data_lock, [self.look_step()])
        assert got is not None
        self.held = sum(1 << i for i in got)
        self._learn({i: a[0] for i, a in got.items()})

    def learn_again(self, found: dict[int, Any]) -> None:
        """Another look, under another lock."""
        self._learn(found)

    def _learn(self, found: dict[int, Any]) -> None:
        self.copies = self.witnesses(found)
        for i, looked in found.items():
            if isinstance(looked, OSError) and looked.errno in GONE:
                self.missing |= 1 << i

    def witnesses(self, found: dict[int, Any]) -> dict[int, Witness]:
        """What the answers of ``look_step`` say."""
        afr = self.afr
        return {
            i: Witness(accusations(looked.xattrs, afr.keys), unpack(looked.xattrs.get(DIRTY)), looked.iatt,
                       bool(afr.arbiters >> i & 1))
            for i, looked in sorted(found.items()) if isinstance(looked, Looked)
        }  # fmt: skip

    def _check_copies(self) -> bool:
        afr = self.afr
        if not self.copies:
            gone = self.missing == afr.everyone
            return self._refuse(Status.GONE if gone else Status.AWAY, "")
        self.outcome.is_directory = self.some_iatt.is_directory
        kinds = {w.iatt.kind for w in self.copies.values()}
        if len(kinds) > 1:
            self.split("type", "the copies are of different types")
            return False
        if self.missing:
            self.note(Status.PARENT, f"missing on {', '.join(afr.names[i] for i in bits(self.missing))}")
        if not can_heal(afr, self.mask):
            if not self.missing:
                self.note(Status.AWAY, "too few copies answer")
            return False
        return True

    # ---- what they say ----

    def needs_heal(self) -> bool:
        """Whoever has it locked or not: a copy that is here is accused, or there are more dirty marks than the one that
        an open transaction makes (decision 0148)."""
        here = bits(self.afr.up)
        return any(
            any(any(w.said[i]) for i in here) or any(count > 1 for count in w.dirty) for w in self.copies.values()
        )

    def has_counters(self, kind: Kind) -> bool:
        return any(w.dirty[kind] or any(c[kind] for c in w.said) for w in self.copies.values())

    async def decide(self, kind: Kind, are_equal: Callable[[], Awaitable[bool]]) -> Verdict | None:
        """Who is good and who is old; None (and the outcome says it) when that cannot be told.

        A split-brain of copies that are equal is none (decision 0067).
        """
        verdict = judge(self.copies, kind, self.afr.quorum)
        if verdict.is_split and self.is_complete and await are_equal():
            return Verdict(self.mask, 0)
        if self.how.winner >= 0:
            if verdict.is_split:
                return await self.enthrone(kind, self.how.winner)
        elif verdict.is_split and self.is_complete:
            chosen = favorite(self.how.policy, self.copies, is_data=kind is Kind.DATA)
            if chosen >= 0:
                return await self.enthrone(kind, chosen)
        if not verdict.is_split:
            return verdict
        if self.is_complete:
            self.split(kind.word, verdict.reason)
        else:
            self.note(Status.AWAY, f"no good copy of its {kind.word} answers")
        return None

    async def accuse(self, kind: Kind, losers: int) -> None:
        """On all copies, on the losers themselves too: none of them may be taken for good if the heal ends here."""
        values = {self.afr.keys[i]: plus_one(kind) for i in bits(losers)}
        if values:
            await self._add(dict.fromkeys(self.copies, values))

    async def enthrone(self, kind: Kind, winner: int) -> Verdict:
        """End a split-brain: all accuse the others, then nobody accuses the winner any more."""
        if winner not in self.copies:
            raise FopError(errno.ENOTCONN, f"{self.afr.names[winner]} has no copy of {self.loc}")
        keys = self.afr.keys
        await self.accuse(kind, self.afr.everyone & ~(1 << winner))
        less: dict[int, dict[bytes, bytes]] = {}
        for i, copy in self.copies.items():
            if count := copy.said[winner][kind]:
                less[i] = {keys[winner]: _word(kind, -count)}
        await self._add(less)
        return Verdict(1 << winner, self.mask & ~(1 << winner))

    async def _add(self, values: dict[int, dict[bytes, bytes]]) -> None:
        """To counters; all must take it.  The snapshot follows."""
        afr = self.afr

        async def add(i: int) -> None:
            if not afr.up >> i & 1:
                raise FopError(errno.ENOTCONN, afr.names[i])
            answer: Xattrs = await afr.subvolumes[i].xattrop(self.caller, self.loc, XattrOp.ADD, values[i])
            self.took(i, answer)

        await asyncio.gather(*(add(i) for i in values))

    def took(self, index: int, answer: Xattrs) -> None:
        """A child has new values of its counters."""
        copy = self.copies[index]
        said = tuple(unpack(answer[k]) if k in answer else copy.said[j] for j, k in enumerate(self.afr.keys))
        self.copies[index] = replace(copy, said=said)

    # ---- end ----

    def plan_undo(self, kind: Kind, sources: int, healed: int) -> None:
        """All copies of ``healed`` are equal now: take back exactly what the snapshot says of this kind."""
        afr = self.afr
        # Whose change was interrupted has not noted its names: as long as a copy is away that may lack them, its heal
        # has to compare the whole directory.
        keeps_dirty = kind is Kind.ENTRY and not self.is_complete and afr.options["granular-entry-heal"]
        for i in bits(healed):
            copy = self.copies[i]
            place = self._second if sources >> i & 1 else self._first
            for j in bits(healed):
                if count := copy.said[j][kind]:
                    self._plan(place, i, afr.keys[j], kind, -count)
            if (count := copy.dirty[kind]) and not keeps_dirty:
                self._plan(place, i, DIRTY, kind, -count)
        # A change that was under way may be on those that are away, and what is here now is without it, or the other
        # way round: the dirty mark that says so goes, an accusation takes its place (decision 0070).
        was_dirty = afr.quorum.is_majority and any(self.copies[i].dirty[kind] for i in bits(healed))
        for j in bits(afr.everyone & ~healed):
            is_accused = was_dirty or any(self.copies[i].said[j][kind] for i in bits(sources & healed))
            for i in bits(healed):
                count = self.copies[i].said[j][kind]
                if is_accused and not count:
                    self._plan(self._first, i, afr.keys[j], kind, 1)
                elif count and not is_accused:  # a copy of a source knows what the source knows
                    self._plan(self._first, i, afr.keys[j], kind, -count)
        if self._first or self._second:
            self.note(Status.HEALED, "")

    @staticmethod
    def _plan(place: dict[int, dict[bytes, list[int]]], index: int, key: bytes, kind: Kind, count: int) -> None:
        words = place.setdefault(index, {}).setdefault(key, [0] * len(KINDS))
        words[kind] += count

    async def flush(self, *, is_last: bool) -> None:
        """Carry out what is planned; then the data lock goes and, at the end, the heal lock."""
        first, second, self._first, self._second = self._first, self._second, {}, {}
        failed = 0
        if first:
            failed = await self._subtract(first)
        for i in bits(failed):  # it may still accuse the good ones: they go on accusing it
            for values in second.values():
                values.pop(self.afr.keys[i], None)
        unlock: dict[int, list[Step]] = {}
        for i in bits(self.held | self.locked if is_last else self.held):
            steps = unlock[i] = []
            if self.held >> i & 1:
                steps.append(unlock_step(self._data_lock))
            if is_last and self.locked >> i & 1:
                steps.append(unlock_step(self._heal_lock))
        self.held = 0
        if is_last:
            self.locked = 0
        await asyncio.gather(*(self._last_frame(i, second.get(i), unlock.get(i, [])) for i in {*second, *unlock}))

    async def _subtract(self, values: dict[int, dict[bytes, list[int]]]) -> int:
        """The mask of children that did not take it."""
        answers = await asyncio.gather(*(self._last_frame(i, changes, []) for i, changes in values.items()))
        return sum(1 << i for i, is_done in zip(values, answers, strict=True) if not is_done)

    async def _last_frame(self, index: int, values: dict[bytes, list[int]] | None, unlock: Sequence[Step]) -> bool:
        steps = list(unlock)
        if values:
            operands = {key: delta(words) for key, words in values.items()}
            steps.insert(0, Step("xattrop", (self.loc, XattrOp.ADD, operands)))
        if not steps:
            return True
        answer = (await send(self.afr, 1 << index, self.caller, steps))[index]
        if values and isinstance(answer[0], OSError):
            self.note(Status.FAILED, f"{self.afr.names[index]}: {answer[0]}")
            if unlock:
                await send(self.afr, 1 << index, self.caller, unlock)
            return False
        return True

    async def end(self) -> Outcome:
        """Whatever came of it: no lock stays, and the next access looks again."""
        if self.held or self.locked:
            self._first, self._second = {}, {}
            await self.flush(is_last=True)
        inode = self.afr.inodes.peek(self.gfid)
        if inode is not None:
            inode.generation = UNKNOWN
        return self.outcome


def _word(kind: Kind, count: int) -> bytes:
    return delta([count if k == kind else 0 for k in KINDS])
