# SPDX-License-Identifier: Apache-2.0
"""A transaction that several operations share: lock, marks, operations, marks taken back, unlock.

A tenure holds the internal lock of one inode (all bytes and the metadata range, as GlusterFS's eager lock) or of all
names of one directory, on all children that are up.  It is opened by the first operation:

    frame 1   to each child: lock (try), xattrop dirty +1, which reads all counters too
    [frame 2  if a child is away, and a good copy is among the others: its counter +1]
    frames    the operations themselves, each to all children at once
    last      [fsync, if something was written]; then in one frame xattrop dirty -1 and unlock

and stays open for those that follow (``post-op-delay-secs``), until somebody else wants the lock (``contend``), a child
comes back or the file is closed.  What it keeps, at every instant (decision 0059):
- an operation is sent to no child whose dirty mark (or the mark of the absent ones) is not on disk yet;
- it is not acknowledged before every child that has missed it is accused on all that have it;
- the dirty mark goes only when all copies are equal and, after writes, on stable storage; if that cannot be known, it
  stays and a heal compares;
- the mark of a child is taken back only by the connection that set it, before its lock goes.
If the client dies, the locks go with its connections and the marks stay: the index has them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from repl.files.answers import AWAY, GONE
from repl.files.translator import Step, Translator
from repl.files.translators.replicate.base import bits
from repl.files.translators.replicate.changelog import (
    DIRTY,
    ENTRY_IN,
    Counts,
    Kind,
    accusations,
    accused,
    delta,
    minus_one,
    plus_one,
    unpack,
)
from repl.files.translators.replicate.inodes import UNKNOWN
from repl.files.translators.replicate.left_over import is_left_over
from repl.files.translators.replicate.order import Order
from repl.files.values import END, FopError, Loc, Lock, LockCommand, LockType, SyncKind, XattrOp, Xattrs
from repl.limits import FILES_CONTENDED_S

if TYPE_CHECKING:
    from repl.files.translators.replicate.inodes import FdState, InodeState
    from repl.files.translators.replicate.transactions import Transactions

log = logging.getLogger(__name__)
_WHOLE = Lock(LockType.WRITE, 0, END)
_UNLOCK = Lock(LockType.UNLOCK, 0, END)


class Tenure:
    def __init__(self, afr: Transactions, inode: InodeState, *, is_entry: bool) -> None:
        self.afr = afr
        self.inode = inode
        self.is_entry = is_entry
        self.loc = Loc(gfid=inode.gfid)
        self.caller = afr.tenure_owner
        self.locked = 0  # children that hold the lock for us
        self.active = 0  # those that have everything done so far
        self.lost = 0  # those whose connection broke: neither their lock nor their marks are ours any more
        self.accused: dict[Kind, int] = {}  # old copies, by the counters that were read at the beginning
        self.is_clean = False  # nobody was accused or dirty at the beginning
        self.is_gone = False  # no copy has it any more
        self.is_split = False  # names can mean other inodes on other copies, and none of these is old
        self.dirty: dict[Kind, int] = {}  # children with our dirty mark
        self.blamed: dict[Kind, int] = {}  # children that are accused of everything done in this tenure
        self.suspect: set[Kind] = set()  # copies may differ without anybody accused: the dirty mark stays
        self.used: set[Kind] = set()
        self.unstable: FdState | None = None  # written, not synced
        self.syncing: FdState | None = None  # just being synced: not to be released yet
        self.noted: set[bytes] = set()  # names that a granular heal will find
        self.order = Order()
        self.pins = 0
        self.is_open = False
        self.is_closing = False
        self.may_go_on = True  # an end that has not begun can be put off
        self.releases: list[FdState] = []  # open files to be released behind the end
        self.size = -1  # for appending; -1: unknown
        self._opened: asyncio.Future[None] | None = None  # made when somebody waits for it
        self._closed: asyncio.Future[None] | None = None
        self._failure: OSError | None = None
        self.is_done = False
        self.has_mark: set[Kind] = set()  # kinds that operations may begin with
        self._marking: dict[Kind, asyncio.Future[None]] = {}  # on their way
        self._blaming: asyncio.Lock | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_used = 0.0

    # ---- beginning ----

    def _lock_step(self, command: LockCommand) -> Step:
        if self.is_entry:
            return Step("entrylk", (self.afr.domain, self.loc, None, command, LockType.WRITE))
        return Step("inodelk", (self.afr.domain, self.loc, command, _WHOLE))

    def _unlock_step(self) -> Step:
        if self.is_entry:
            return Step("entrylk", (self.afr.domain, self.loc, None, LockCommand.TRY, LockType.UNLOCK))
        return Step("inodelk", (self.afr.domain, self.loc, LockCommand.TRY, _UNLOCK))

    def _xattrop(self, values: dict[bytes, bytes], *, is_reading: bool = False) -> Step:
        want = {"want": self.afr.want_keys} if is_reading else {}
        return Step("xattrop", (self.loc, XattrOp.ADD, values), want)

    def _dirty_mark(self, kind: Kind, absent: int) -> dict[bytes, bytes]:
        """What goes onto the children that take part before anything is done."""
        is_needed = absent or kind is not Kind.METADATA or not self.afr.is_optimistic
        return {DIRTY: plus_one(kind)} if is_needed else {}

    async def open(self, kind: Kind) -> None:
        """Lock and mark; raises ``FopError`` (ENOTCONN, EIO for a split-brain)."""
        afr = self.afr
        afr.need_quorum(f"changing {self.loc}")
        wanted = afr.up
        values = self._dirty_mark(kind, afr.everyone & ~wanted)
        answers = await self._take(wanted, values, LockCommand.TRY)
        if any(_is_busy(a) for a in answers.values()):
            await self._give_back(answers, values)
            answers = {}
            for i in afr.lock_order:
                if wanted >> i & 1:
                    answers |= await self._take(1 << i, values, LockCommand.WAIT)
        lost = await self._settle_open(answers, values, kind)
        try:
            self._check_copies(answers, kind)
            if self.is_entry and not afr.quorum.is_majority:
                await self._need_directory(answers, kind)
            if lost:
                await self.blame(kind, lost)
        except BaseException:
            await self._finish()
            raise
        self.is_open = True

    async def _take(self, mask: int, values: dict[bytes, bytes], command: LockCommand) -> dict[int, list[Any]]:
        steps = [self._lock_step(command), self._xattrop(values, is_reading=True)]

        async def take(child: Translator) -> list[Any]:
            answer = await child.compound(self.caller, steps)
            if self.lost:  # before: this connection is a new one
                self.lost &= ~(1 << self.afr.subvolumes.index(child))
            return answer

        answers = await self.afr.ask(mask, take)
        return {i: a if isinstance(a, list) else [a] for i, a in answers.items()}

    async def _give_back(self, answers: dict[int, list[Any]], values: dict[bytes, bytes]) -> None:
        """Somebody else was faster: off with what was locked, to try again one after another."""
        kinds = tuple(k for k in Kind if values and values[DIRTY] == plus_one(k))
        marked = sum(1 << i for i, a in answers.items() if len(a) == 2 and not isinstance(a[1], OSError))
        bare = sum(1 << i for i, a in answers.items() if len(a) == 2) & ~marked
        await self._finish_on(marked, kinds)
        await self._finish_on(bare, ())

    async def _settle_open(self, answers: dict[int, list[Any]], values: dict[bytes, bytes], kind: Kind) -> int:
        """Who takes part; returns the mask of those that were to and do not."""
        afr = self.afr
        for i, answer in answers.items():
            if not isinstance(answer[0], OSError):
                self.locked |= 1 << i
                if not isinstance(answer[-1], OSError):
                    self.active |= 1 << i
        self.locked &= afr.up & ~self.lost
        self.active &= afr.up & ~self.lost
        self.used.add(kind)
        self.dirty[kind] = self.active if DIRTY in values else 0
        self.blamed[kind] = 0
        self.has_mark.add(kind)
        if not afr.quorum.is_met(self.active):
            errors = {i: a[-1] for i, a in answers.items() if isinstance(a[-1], OSError)}
            await self._finish()
            for i, error in errors.items():
                if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
                    raise FopError(errno.EOPNOTSUPP, f"{afr.name}: no features/locks below {afr.names[i]}")
            clean = {i: e for i, e in errors.items() if e.errno not in AWAY}
            raise next(iter(clean.values())) if clean else afr.nobody(f"locking {self.loc}")
        return afr.everyone & ~self.active

    def _check_copies(self, answers: dict[int, list[Any]], kind: Kind) -> None:
        """A change must reach a good copy: else it would make a second history beside the one that is away."""
        afr = self.afr
        said: dict[int, tuple[Counts, ...]] = {}
        dirty = has_half_names = False
        for i, answer in answers.items():
            if self.active >> i & 1:
                said[i] = accusations(answer[1], afr.keys)
                counts = accusations(answer[1], (DIRTY,))[0]
                counts = _less(counts, kind) if self.dirty[kind] >> i & 1 else counts
                dirty = dirty or any(counts)
                has_half_names = has_half_names or counts[Kind.ENTRY] > 0
        for each in Kind:
            self.accused[each] = accused(said, each, afr.quorum)
        self.is_clean = not dirty and not any(any(c) for row in said.values() for c in row)
        if self.active == afr.everyone:
            self.inode.has_half_names = has_half_names
            self.inode.know(self.active, self.accused, afr.arbiters, afr.generation)
        if kind is Kind.ENTRY and not self.active & ~self.accused[kind] and not afr.quorum.is_majority:
            self.accused[kind] = 0  # names of both sides stay: a heal merges them
            self.is_split = True
        if not self.good(kind):
            self.doubt(kind)
            raise self.no_good_copy(kind)

    async def _need_directory(self, answers: dict[int, list[Any]], kind: Kind) -> None:
        """Where one copy is enough: what would be made in a directory that the other ones have removed, and this one
        has not yet, would go with it (decision 0152)."""
        gone = sum(1 << i for i, a in answers.items() if isinstance(a[-1], OSError) and a[-1].errno in GONE)
        if not gone:
            return
        said = {i: dict(answers[i][1]) for i in bits(self.active)}
        for i in bits(self.dirty[kind] & self.active):
            said[i][DIRTY] = delta(_less(unpack(said[i].get(DIRTY)), kind))
        if await is_left_over(self.afr, self.inode.gfid, gone, said):
            raise FopError(errno.ESTALE, f"{self.afr.name}: {self.loc} has been removed on other copies")

    def good(self, kind: Kind) -> int:
        """Children of the tenure whose copy is good."""
        good = self.active & ~self.accused.get(kind, 0)
        return good & ~self.afr.arbiters if kind is Kind.DATA else good

    def nobody(self, what: str) -> FopError:
        """Too few copies are left for a change: ENOTCONN, unless another client has removed the inode."""
        if self.is_gone:
            return FopError(errno.ESTALE, f"{self.afr.name}: {what}: it has been removed")
        return self.afr.nobody(what)

    def no_good_copy(self, kind: Kind) -> FopError:
        afr = self.afr
        if self.active != afr.everyone:
            away = ", ".join(afr.names[i] for i in range(afr.count) if not self.active >> i & 1)
            return FopError(errno.ENOTCONN, f"{afr.name}: the good copy of {self.loc} is on {away}")
        return FopError(errno.EIO, f"{afr.name}: {self.loc} is in {kind.word} split-brain")

    def adopt(self, kind: Kind, active: int, absent: int) -> None:
        """For an inode that was made together with this tenure: lock and marks are there already."""
        self.locked = self.active = active & self.afr.up
        self.lost &= ~active  # before it was made there
        self.used.add(kind)
        self.dirty[kind] = active
        self.blamed[kind] = absent
        self.accused = dict.fromkeys(Kind, 0)
        self.is_clean = True
        self.has_mark.add(kind)
        self.is_open = True

    # ---- between ----

    async def mark(self, kind: Kind) -> None:
        """Before the first operation of another kind."""
        marking = self._marking.get(kind)
        if marking is not None:
            await asyncio.shield(marking)
            return
        self._marking[kind] = marking = asyncio.get_running_loop().create_future()
        marking.add_done_callback(_seen)
        try:
            await self._mark(kind)
        except BaseException as error:
            del self._marking[kind]
            marking.set_exception(error if isinstance(error, FopError) else FopError(errno.EIO, "marking ended early"))
            raise
        del self._marking[kind]
        self.has_mark.add(kind)
        marking.set_result(None)

    async def _mark(self, kind: Kind) -> None:
        afr = self.afr
        self.used.add(kind)
        values = self._dirty_mark(kind, afr.everyone & ~self.active)
        self.dirty[kind] = 0
        if values:
            self.dirty[kind] = await self._add(values)
        if not afr.quorum.is_met(self.active):
            raise afr.nobody(f"marking {self.loc}")
        if not self.good(kind):
            raise self.no_good_copy(kind)
        if missing := afr.everyone & ~self.active & ~self.blamed.get(kind, 0):
            await self.blame(kind, missing)

    async def blame(self, kind: Kind, failed: int) -> None:
        """Accuse ``failed`` on all that took part, before anything that they missed is acknowledged."""
        afr = self.afr
        self.drop(failed)
        if self._blaming is None:
            self._blaming = asyncio.Lock()
        async with self._blaming:
            while need := (afr.everyone & ~self.active) & ~self.blamed.get(kind, 0):
                if not afr.quorum.is_met(self.active) or not self.good(kind):
                    self.doubt(kind)
                    raise self.nobody(f"accusing those that missed a change of {self.loc}")
                await self._add({key: plus_one(kind) for i, key in enumerate(afr.keys) if need >> i & 1})
                self.blamed[kind] = self.blamed.get(kind, 0) | need

    async def overrule(self, kind: Kind) -> None:
        """What the good copies here say holds from now on, whoever comes back: all others are accused, old ones that
        are here by themselves too."""
        afr = self.afr
        if self._blaming is None:
            self._blaming = asyncio.Lock()
        async with self._blaming:
            while need := (afr.everyone & ~self.good(kind)) & ~self.blamed.get(kind, 0):
                if not afr.quorum.is_met(self.active) or not self.good(kind):
                    raise afr.nobody(f"accusing other copies of {self.loc}")
                await self._add({key: plus_one(kind) for i, key in enumerate(afr.keys) if need >> i & 1})
                self.blamed[kind] = self.blamed.get(kind, 0) | need

    async def note_names(self, names: Iterable[bytes]) -> None:
        """For a granular heal: these have changed while somebody was not there.  If it cannot be noted everywhere, the
        dirty mark stays, and the heal compares the whole directory."""
        afr = self.afr
        if self.active == afr.everyone:
            return
        for name in names:
            if name not in self.noted and not await self._note(name):
                self.doubt(Kind.ENTRY)
                return

    async def _note(self, name: bytes) -> bool:
        values = {ENTRY_IN: name}
        answers = await self.afr.ask(
            self.active, lambda c: c.xattrop(self.caller, self.loc, XattrOp.ADD, values)
        )
        self.noted.add(name)
        return not any(isinstance(a, OSError) for a in answers.values())

    async def _add(self, values: Xattrs) -> int:
        """To the counters on all that take part; who cannot write them takes part no longer.  The mask of the rest."""
        asked = self.active
        answers = await self.afr.ask(asked, lambda c: c.xattrop(self.caller, self.loc, XattrOp.ADD, values))
        done = sum(1 << i for i, a in answers.items() if not isinstance(a, OSError))
        self.is_gone = bool(answers) and all(isinstance(a, OSError) and a.errno in GONE for a in answers.values())
        self.drop(asked & ~done)
        return done & self.active

    def doubt(self, kind: Kind) -> None:
        """Some copies may have what others have not, and nobody says so."""
        self.suspect.add(kind)
        if kind is Kind.ENTRY:  # what was known of names is not, also not for reads without quorum
            self.inode.ruled = self.inode.generation = UNKNOWN

    def drop(self, mask: int) -> None:
        """Those have missed something: no further operation of this tenure goes to them."""
        self.active &= ~mask
        for kind in self.used:
            self.inode.lose(mask, kind)

    def removed(self, mask: int) -> None:
        """The inode is gone there, and our marks with it.  What a heal makes there under its gfid has none of ours."""
        for kind in self.dirty:
            self.dirty[kind] &= ~mask

    def child_lost(self, mask: int) -> None:
        """The connection is gone, and the lock with it."""
        self.lost |= mask
        self.locked &= ~mask
        for kind in self.dirty:
            self.dirty[kind] &= ~mask
        self.drop(mask)

    # ---- end ----

    def unpin(self) -> None:
        self.pins -= 1
        if self.pins or not self.is_open:
            return
        self._last_used = self.afr.context.now()
        if self.is_closing or not self.afr.is_eager or self._is_wanted:
            self.close(for_good=False)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.afr.post_op_delay_s, self._expire)

    @property
    def _is_wanted(self) -> bool:
        return self.inode.contended_until > self.afr.context.now()

    def _expire(self) -> None:
        self._timer = None
        idle_s = self.afr.context.now() - self._last_used
        if self.pins:
            return
        if idle_s + 0.001 >= self.afr.post_op_delay_s:
            self.close(for_good=False)
        else:
            self._timer = asyncio.get_running_loop().call_later(self.afr.post_op_delay_s - idle_s, self._expire)

    def contend(self) -> None:
        """Somebody waits for the lock: no new operations, and operations of their own for a while."""
        self.inode.contended_until = self.afr.context.now() + FILES_CONTENDED_S
        self.close()
        self.afr.endings.hurry(self)

    def close(self, *, for_good: bool = True) -> None:
        """The end, as soon as nobody uses it any more.  Not ``for_good``: an operation may take it up again, as long as
        nothing of the end has been sent."""
        self.is_closing = True
        self.may_go_on = self.may_go_on and not for_good
        if self.pins == 0 and self.is_open:
            self.is_open = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self.afr.endings.add(self)
            if self._is_wanted:
                self.afr.endings.hurry(self)

    def take_up(self) -> bool:
        """It goes on after all, if nothing of its end has been sent; if it cannot, that is hurried."""
        if self.may_go_on and self.afr.endings.take_up(self):
            self.is_closing, self.is_open = False, True
            return True
        self.afr.endings.hurry(self)
        return False

    @property
    def is_regular(self) -> bool:
        """Nothing but its usual end is left to do."""
        afr, active = self.afr, self.active
        if self.locked != active or self.lost or self.suspect or active & ~afr.up:
            return False
        for mask in self.dirty.values():
            if mask not in (0, active):
                return False
        if active != afr.everyone and any(
            afr.everyone & ~active & ~self.blamed.get(kind, 0) for kind in self.used
        ):  # fmt: skip
            return False
        return self.unstable is None or not active & ~self.unstable.opened

    @property
    def marked(self) -> tuple[Kind, ...]:
        return tuple(kind for kind, mask in self.dirty.items() if mask)

    def begin_sync(self) -> FdState | None:
        """The open file through which what was written is to be synced, None if nothing was."""
        self.syncing, self.unstable = self.unstable, None
        return self.syncing

    def end_alone(self, failed: int = 0) -> None:
        """``failed``: children on which a sync has failed."""
        self.drop(failed)
        self.afr.context.spawn(self._close(), f"{self.afr.name}: end of a transaction")

    async def _close(self) -> None:
        try:
            for kind in list(self.used) if self.active else ():  # else there is no change that anybody has missed
                if self.afr.everyone & ~self.active & ~self.blamed.get(kind, 0):
                    await self._blame_late(kind)
            await self._make_stable()
            await self._finish()
        finally:
            self.done()
        await self.release_files()

    async def _blame_late(self, kind: Kind) -> None:
        try:
            await self.blame(kind, 0)
        except FopError as error:
            self.doubt(kind)
            log.info("%s", error)

    async def _make_stable(self) -> None:
        """The dirty mark may go only when the data cannot be lost any more."""
        state = self.begin_sync()
        if state is None:
            return
        await self.afr.ensure_open(state, self.active)
        mask = self.active & state.opened
        caller, fd = self.afr.tenure_owner, state.lower
        synced = await self.afr.ask(mask, lambda c: c.fsync(caller, fd, SyncKind.DATA))
        failed = sum(1 << i for i, a in synced.items() if isinstance(a, OSError)) | self.active & ~mask
        if failed:
            self.drop(failed)
            await self._blame_late(Kind.DATA)

    async def _finish(self) -> None:
        """Take the marks back and unlock, in one frame."""
        mine: dict[int, list[Kind]] = {}
        for kind, mask in self.dirty.items():
            if kind not in self.suspect:
                for i in bits(mask & self.active & self.locked & self.afr.up):
                    mine.setdefault(i, []).append(kind)
        groups: dict[tuple[Kind, ...], int] = {}
        for i in bits(self.locked & self.afr.up):
            kinds = tuple(mine.get(i, ()))
            groups[kinds] = groups.get(kinds, 0) | 1 << i
        await asyncio.gather(*(self._finish_on(mask, kinds) for kinds, mask in groups.items()))
        self.locked = 0

    async def _finish_on(self, mask: int, kinds: tuple[Kind, ...]) -> None:
        mask &= ~self.lost
        unlock = self._unlock_step()
        steps = [self._xattrop({DIRTY: minus_one(kinds)}), unlock] if kinds else [unlock]
        answers = await self.afr.ask(mask, lambda c: c.compound(self.caller, steps))
        stuck = sum(1 << i for i, a in answers.items() if isinstance(a, list) and len(a) < len(steps))
        if stuck:  # the inode is gone, or its counters cannot be written: the lock goes in any case
            await self.afr.ask(stuck, lambda c: c.compound(self.caller, [unlock]))

    def done(self) -> None:
        self.afr.tenure_ended(self)
        self.is_done = True
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    async def wait_closed(self) -> None:
        if not self.is_done:
            await asyncio.shield(self.closing())

    def closing(self) -> asyncio.Future[None]:
        """Done when it has ended."""
        if self._closed is None:
            self._closed = asyncio.get_running_loop().create_future()
            if self.is_done:
                self._closed.set_result(None)
        return self._closed

    async def release_files(self) -> None:
        """Those that were kept open for the sync."""
        for state in self.releases:
            await self.afr.release_state(state)
        self.releases.clear()

    def failed_to_open(self, error: BaseException) -> None:
        self._failure = error if isinstance(error, OSError) else FopError(errno.EIO, "opening ended early")
        if self._opened is not None:
            self._opened.set_exception(self._failure)
        self.done()

    def has_opened(self) -> None:
        if self._opened is not None:
            self._opened.set_result(None)

    async def wait_opened(self) -> None:
        """Raises what it could not be opened for."""
        if self._failure is not None:
            raise self._failure
        if self._opened is None:
            self._opened = asyncio.get_running_loop().create_future()
            self._opened.add_done_callback(_seen)
        await asyncio.shield(self._opened)


def _seen(future: asyncio.Future[None]) -> None:
    """Its error is told to whoever waits; nobody waiting is fine."""
    if not future.cancelled():
        future.exception()


def _is_busy(answer: list[Any]) -> bool:
    return isinstance(answer[0], OSError) and answer[0].errno == errno.EAGAIN


def _less(counts: Counts, kind: Kind) -> Counts:
    """Without the one that we have just added."""
    found: Counts = tuple(c - (k == kind) for k, c in enumerate(counts))  # type: ignore[assignment]
    return found
