# SPDX-License-Identifier: Apache-2.0
"""How a change gets to all copies: who has which tenure, what answers mean, children that come and go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from repl.files.answers import AWAY, Answers, errors_of, good_of
from repl.files.events import ChildDown, ChildUp, Contended, Event, Invalidated, Reconnected, Unwatched
from repl.files.options import Options
from repl.files.translator import Context, Translator
from repl.files.translators.replicate.base import HARMLESS, Base, mask_of, telling_error
from repl.files.translators.replicate.changelog import Kind
from repl.files.translators.replicate.endings import Endings
from repl.files.translators.replicate.inodes import UNKNOWN, FdState, InodeState
from repl.files.translators.replicate.tenure import Tenure
from repl.files.values import Caller, FopError, Loc
from repl.limits import FILES_TENURES_MAX

log = logging.getLogger(__name__)


class Transactions(Base):
    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self.tenures: dict[Tenure, None] = {}
        self.endings = Endings(self)

    # ---- tenures ----

    async def hold(self, inode: InodeState, kind: Kind, *, is_entry: bool = False) -> Tenure:
        """The inode's tenure, marked for ``kind``; call ``unpin`` on it when the operation is done."""
        while True:
            tenure = inode.entry_tenure if is_entry else inode.tenure
            if tenure is None:
                tenure = self.new_tenure(inode, is_entry=is_entry)
                tenure.pins = 1
                self.context.spawn(self._open(tenure, kind), f"{self.name}: a transaction begins")
            elif tenure.is_closing and not tenure.take_up():
                await tenure.wait_closed()
                continue
            else:
                tenure.pins += 1
            try:
                if not tenure.is_open:
                    await tenure.wait_opened()
                if kind not in tenure.has_mark:
                    await tenure.mark(kind)
            except BaseException:
                tenure.unpin()
                raise
            return tenure

    def held(self, inode: InodeState, kind: Kind, *, is_entry: bool = False) -> Tenure | None:
        """The same where nothing has to be waited for."""
        tenure = inode.entry_tenure if is_entry else inode.tenure
        if tenure is None or not tenure.is_open or tenure.is_closing or kind not in tenure.has_mark:
            return None
        tenure.pins += 1
        return tenure

    def new_tenure(self, inode: InodeState, *, is_entry: bool) -> Tenure:
        tenure = Tenure(self, inode, is_entry=is_entry)
        if is_entry:
            inode.entry_tenure = tenure
        else:
            inode.tenure = tenure
        self.tenures[tenure] = None
        if len(self.tenures) > FILES_TENURES_MAX:
            idle = next((t for t in self.tenures if t.pins == 0 and t.is_open), None)
            if idle is not None:
                idle.close()
        return tenure

    async def _open(self, tenure: Tenure, kind: Kind) -> None:
        """A task of its own: an operation that is given up must not leave a lock behind."""
        try:
            await tenure.open(kind)
        except BaseException as error:
            tenure.failed_to_open(error)
            if not isinstance(error, OSError):
                raise
            return
        tenure.has_opened()
        tenure.pins += 1
        tenure.unpin()

    def tenure_ended(self, tenure: Tenure) -> None:
        self.tenures.pop(tenure, None)
        if tenure.inode.tenure is tenure:
            tenure.inode.tenure = None
        if tenure.inode.entry_tenure is tenure:
            tenure.inode.entry_tenure = None
        self.inodes.used(tenure.inode)

    async def end_tenures(self, inode: InodeState) -> None:
        """Let go of what we hold of an inode: a heal of ours wants it."""
        for tenure in (inode.tenure, inode.entry_tenure):
            if tenure is not None:
                tenure.contend()
                await tenure.wait_closed()

    # ---- what the answers mean ----

    def settle_at_once(self, tenure: Tenure, kind: Kind, answers: Answers, pid: int) -> Any:
        """The answer to give where all copies have the change; else None."""
        if tenure.active != self.everyone or len(answers) != self.count:
            return None
        for answer in answers.values():
            if isinstance(answer, OSError):
                return None
        return self.pick(answers, tenure.inode, tenure.good(kind), pid)

    async def settle(self, tenure: Tenure, kind: Kind, answers: Answers, *, pid: int = 0) -> Any:
        """The answer to give; those that failed are accused before.  Raises when too few copies have the change."""
        good = good_of(answers)
        if len(good) == self.count and tenure.active == self.everyone:
            return self.pick(good, tenure.inode, tenure.good(kind), pid)
        if not good:
            errors = errors_of(answers)
            if any(e.errno not in HARMLESS for e in errors.values()):
                tenure.doubt(kind)
            # What an old copy does not have says nothing while the others are away.
            trusted = {i: e for i, e in errors.items() if tenure.good(kind) >> i & 1}
            trusted = trusted or {i: e for i, e in errors.items() if e.errno in AWAY}
            raise telling_error(trusted or errors) if errors else tenure.nobody(f"changing {tenure.loc}")
        done = mask_of(good)
        if done != self.everyone or tenure.active != self.everyone:
            if not done & tenure.good(kind) or not self.quorum.is_met(done & tenure.active):
                tenure.doubt(kind)
                errors = errors_of(answers)
                raise telling_error(errors) if errors else tenure.nobody(f"changing {tenure.loc}")
            await tenure.blame(kind, tenure.active & ~done)
        return self.pick(good, tenure.inode, tenure.good(kind), pid)

    def pick(self, answers: Answers, inode: InodeState, trusted: int, pid: int = 0) -> Any:
        """The answer of the child that a read would go to."""
        usable = self.everyone if len(answers) == self.count else mask_of(answers)
        for mask in (usable & trusted & ~self.arbiters, usable & ~self.arbiters, usable):
            if mask:
                return answers[self.first_to_read(inode.gfid, mask, pid)]
        raise AssertionError("no answer to pick from")

    async def release_state(self, state: FdState) -> None:
        """On all children: one that was away and came back may have opened it again without being asked."""
        state.is_released = True
        state.opened = 0
        for child in self.subvolumes:
            await child.release(state.lower)

    async def ensure_open(self, state: FdState, mask: int) -> None:
        """Files are opened late on children that were away, and for reading on those that are not read from."""
        while state.opening is not None and mask & ~state.opened & self.up:
            await asyncio.shield(state.opening)  # one at a time: a file is opened on a child only once
        missing = mask & ~state.opened & self.up
        if not missing:
            return
        state.opening = opening = asyncio.get_running_loop().create_future()
        try:
            await self._open_late(state, missing)
        finally:
            state.opening = None
            opening.set_result(None)

    async def _open_late(self, state: FdState, missing: int) -> None:
        loc, caller = Loc(gfid=state.inode.gfid), self.tenure_owner
        if state.lower.is_directory:
            answers = await self.ask(missing, lambda c: c.opendir(caller, loc, state.lower))
        else:
            answers = await self.ask(missing, lambda c: c.open(caller, loc, state.lower, flags=state.lower.flags))
        if state.is_released:  # meanwhile
            for index in good_of(answers):
                await self.subvolumes[index].release(state.lower)
            return
        state.opened |= mask_of(good_of(answers))

    async def change(
        self, inode: InodeState, kind: Kind, caller: Caller, operation: str, values: list[Any],
        state: FdState | None = None,
    ) -> Any:  # fmt: skip
        """A change of an inode as a whole: attributes, size.  The first of ``values`` is the inode."""
        tenure = self.held(inode, kind) or await self.hold(inode, kind)
        try:
            slot = tenure.order.enter_now(None) or await tenure.order.enter(None)
            try:
                if state is not None and tenure.active & ~state.opened:
                    await self.ensure_open(state, tenure.active)
                answers = await self.ask_all(tenure.active, operation, caller, values)
                answer = self.settle_at_once(tenure, kind, answers, caller.pid)
                return answer if answer is not None else await self.settle(tenure, kind, answers, pid=caller.pid)
            except asyncio.CancelledError:
                tenure.doubt(kind)
                raise
            finally:
                slot.leave()
        finally:
            tenure.unpin()

    # ---- children ----

    async def start(self) -> None:
        if not self.unknown:
            self._settled.set()
            return
        loop = asyncio.get_running_loop()
        self._start_timer = loop.call_later(self.options["child-wait-secs"], self._give_up_waiting)

    def _give_up_waiting(self) -> None:
        self.unknown = 0
        self._settled.set()

    async def stop(self) -> None:
        await self.finish()

    async def finish(self) -> None:
        """What is open is ended properly, for as long as children answer."""
        for tenure in list(self.tenures):
            tenure.close()
        self.endings.start()
        waiting = [t.closing() for t in self.tenures if t.pins == 0]
        if waiting:
            await asyncio.wait(waiting, timeout=self.post_op_delay_s + 4)

    def notify(self, event: Event, child: Translator | None) -> None:
        index = self.subvolumes.index(child) if child in self.subvolumes else -1
        if isinstance(event, ChildUp) and index >= 0:
            self._child_up(index)
        elif isinstance(event, ChildDown) and index >= 0:
            self._child_down(index, event)
        elif isinstance(event, Contended) and event.domain in (self.domain, self.heal_domain):
            if event.domain == self.domain:  # who heals an inode goes on
                self._contended(event)
        else:
            if isinstance(event, Invalidated) and (inode := self.inodes.peek(event.gfid)) is not None:
                inode.generation = UNKNOWN
            if isinstance(event, Reconnected) and index >= 0:
                self._child_lost(index)
            self.notify_parents(event)

    def _known(self, index: int) -> None:
        self.unknown &= ~(1 << index)
        if not self.unknown:
            self._settled.set()

    def _child_up(self, index: int) -> None:
        was = self.up
        self.up |= 1 << index
        self.generation += 1
        self.turns += 1
        self._known(index)
        log.info("volume '%s': child '%s' is up", self.name, self.names[index])
        for tenure in list(self.tenures):
            tenure.close()  # the next one takes the child in
        self.endings.start()
        if not was:
            self.notify_parents(ChildUp())
        self.child_came_up(index)

    def child_came_up(self, index: int) -> None:
        """For heals."""

    def _child_down(self, index: int, event: ChildDown) -> None:
        was = self.up
        self.up &= ~(1 << index)
        self._known(index)
        self._child_lost(index)
        if not self.quorum.is_met(self.up):
            for inode in self.inodes.all():
                if inode.has_half_names:  # what is left of it may be undone
                    inode.generation = UNKNOWN
        if was & ~self.up:
            log.info("volume '%s': child '%s' is down: %s", self.name, self.names[index], event.reason or "no reason")
            self.notify_parents(Unwatched() if self.up else event)

    def _child_lost(self, index: int) -> None:
        self.losses[index] += 1
        self.turns += 1
        for tenure in list(self.tenures):
            tenure.child_lost(1 << index)
        for inode in self.inodes.all():
            for state in inode.fds:
                state.opened &= ~(1 << index)
        self.endings.start()  # whoever has missed something is accused at once

    def _contended(self, event: Contended) -> None:
        inode = self.inodes.peek(event.gfid)
        tenure = inode and (inode.entry_tenure if event.is_entry else inode.tenure)
        if tenure:
            tenure.contend()


__all__ = ["FopError", "Transactions"]
