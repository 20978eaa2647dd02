# SPDX-License-Identifier: Apache-2.0
"""Changes of files: data and attributes (spec 5.2)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from repl.files.answers import AWAY, Answers, errors_of, good_of
from repl.files.eager import Begun
from repl.files.translator import Step
from repl.files.translators.replicate.base import Question, mask_of, telling_error
from repl.files.translators.replicate.changelog import Kind
from repl.files.translators.replicate.inodes import FdState
from repl.files.translators.replicate.listing import Listings
from repl.files.translators.replicate.order import WHOLE, Span
from repl.files.translators.replicate.tenure import Tenure
from repl.files.values import (
    NO_GFID,
    Caller,
    Changed,
    Fd,
    Loc,
    SetAttr,
    SyncKind,
    Target,
    Want,
    XattrOp,
    Xattrs,
)

_SYNCED = os.O_SYNC | os.O_DSYNC
_CHANGES = frozenset(("setattr", "setxattr", "removexattr", "xattrop"))


def _span_of(step: Step) -> Span:
    offset, size = step.kwargs["offset"], len(step.args[1])
    return offset, offset + max(size, 1) - 1


def _are_writes(steps: Sequence[Step]) -> bool:
    """Of one open file; the last one may set attributes."""
    fd, last = steps[0].args[0], steps[-1].fop
    return all(step.fop == "writev" for step in steps[:-1]) and last in ("writev", "setattr") and all(
        step.args[0] is fd for step in steps
    ) and isinstance(fd, Fd)  # fmt: skip


def _are_changes(steps: Sequence[Step]) -> bool:
    """Of the attributes of one inode, by its gfid."""
    first = steps[0].args[0]
    return isinstance(first, Loc) and first.gfid != NO_GFID and all(
        step.fop in _CHANGES and isinstance(step.args[0], Loc) and step.args[0].gfid == first.gfid for step in steps
    )  # fmt: skip


def _lower_write(state: FdState, step: Step, *, is_empty: bool = False) -> Step:
    if step.fop == "setattr":
        return Step("setattr", (state.lower, step.args[1]))
    return Step("writev", (state.lower, b"" if is_empty else step.args[1]), step.kwargs)


class Writes(Listings):
    # ---- data ----

    async def writev(
        self, caller: Caller, fd: Fd, data: bytes | bytearray | memoryview, *, offset: int, flags: int = 0
    ) -> Changed:
        state = self.fd_state(fd)
        tenure = self.held(state.inode, Kind.DATA) or await self.hold(state.inode, Kind.DATA)
        try:
            is_append = bool((flags | state.flags) & os.O_APPEND)
            # differs from GlusterFS: who appends gets its place from us, so that it is the same on all copies.
            span = WHOLE if is_append else (offset, offset + max(len(data), 1) - 1)
            slot = tenure.order.enter_now(span) or await tenure.order.enter(span)
            try:
                if is_append:
                    offset = await self._end_of(tenure, state, caller)
                return await self._write(tenure, state, caller, data, offset, flags & ~os.O_APPEND)
            except asyncio.CancelledError:
                tenure.suspect.add(Kind.DATA)
                raise
            finally:
                slot.leave()
        finally:
            tenure.unpin()

    async def _write(
        self, tenure: Tenure, state: FdState, caller: Caller, data: bytes | bytearray | memoryview, offset: int,
        flags: int,
    ) -> Changed:  # fmt: skip
        mask = tenure.active
        if mask & ~state.opened:
            await self.ensure_open(state, mask)
        if not (flags | state.flags) & _SYNCED:
            tenure.unstable = state
        lower = state.lower
        # An arbiter keeps no data: it need not get them.
        answers = await self._ask_with_data(
            mask, "writev", caller, [lower, data, offset, flags], [lower, b"", offset, flags]
        )
        changed: Changed | None = self.settle_at_once(tenure, Kind.DATA, answers, caller.pid)
        if changed is None:
            changed = await self.settle(tenure, Kind.DATA, answers, pid=caller.pid)
        tenure.size = max(tenure.size, changed.after.size) if tenure.size >= 0 else -1
        return changed

    async def _ask_with_data(
        self, mask: int, operation: str, caller: Caller, values: list[Any], without: list[Any]
    ) -> Answers:
        """``without``: what an arbiter is told instead."""
        if not mask & self.arbiters:
            return await self.ask_all(mask, operation, caller, values)
        other = Begun(self.ask_all(mask & self.arbiters, operation, caller, without))
        try:
            answers = await self.ask_all(mask & ~self.arbiters, operation, caller, values)
        except BaseException:
            other.cancel()
            raise
        return answers | await other

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        """Several writes of one open file, and attributes behind them, go to each child in one frame."""
        if len(steps) > 1 and _are_writes(steps):
            state = self.fd_state(steps[0].args[0])
            if not any((step.kwargs.get("flags", 0) | state.flags) & os.O_APPEND for step in steps):
                return await self._write_several(caller, state, steps)
        if len(steps) > 1 and _are_changes(steps):
            return await self._change_several(caller, steps)
        return await super().compound(caller, steps)

    async def _change_several(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        """Attributes of one inode, in one transaction."""
        inode = self.inodes.get(steps[0].args[0].gfid)
        tenure = self.held(inode, Kind.METADATA) or await self.hold(inode, Kind.METADATA)
        try:
            slot = tenure.order.enter_now(None) or await tenure.order.enter(None)
            try:
                answers = await self.ask_all(tenure.active, "compound", caller, list(steps))
                return await self._settle_each(tenure, answers, [Kind.METADATA] * len(steps), caller)
            except asyncio.CancelledError:
                tenure.doubt(Kind.METADATA)
                raise
            finally:
                slot.leave()
        finally:
            tenure.unpin()

    async def _write_several(self, caller: Caller, state: FdState, steps: Sequence[Step]) -> list[Any]:
        tenure = self.held(state.inode, Kind.DATA) or await self.hold(state.inode, Kind.DATA)
        try:
            kinds = [Kind.DATA if step.fop == "writev" else Kind.METADATA for step in steps]
            if kinds[-1] not in tenure.has_mark:
                await tenure.mark(kinds[-1])
            spans = [_span_of(step) if step.fop == "writev" else None for step in steps]
            slots = await tenure.order.enter_several(spans)
            try:
                mask = tenure.active
                if mask & ~state.opened:
                    await self.ensure_open(state, mask)
                tenure.unstable = state
                lower = [_lower_write(state, step) for step in steps]
                empty = [_lower_write(state, step, is_empty=True) for step in steps] if self.arbiters else lower
                answers = await self._ask_with_data(mask, "compound", caller, lower, empty)
                return await self._settle_several(tenure, answers, kinds, caller)
            except asyncio.CancelledError:
                tenure.suspect.update(kinds)
                raise
            finally:
                for slot in slots:
                    slot.leave()
        finally:
            tenure.unpin()

    async def _settle_several(
        self, tenure: Tenure, answers: Answers, kinds: Sequence[Kind], caller: Caller
    ) -> list[Any]:
        results = await self._settle_each(tenure, answers, kinds, caller)
        for changed in results:
            if isinstance(changed, Changed):
                tenure.size = max(tenure.size, changed.after.size) if tenure.size >= 0 else -1
        return results

    async def _settle_each(
        self, tenure: Tenure, answers: Answers, kinds: Sequence[Kind], caller: Caller
    ) -> list[Any]:
        """Step by step: a child that failed in one has missed those behind it, too."""
        results: list[Any] = []
        for number, kind in enumerate(kinds):
            those = {i: a if isinstance(a, OSError) else a[min(number, len(a) - 1)] for i, a in answers.items()}
            answer = self.settle_at_once(tenure, kind, those, caller.pid)
            try:
                if answer is None:
                    answer = await self.settle(tenure, kind, those, pid=caller.pid)
            except OSError as error:
                return [*results, error]
            results.append(answer)
        return results

    async def _end_of(self, tenure: Tenure, state: FdState, caller: Caller) -> int:
        """The size of a good copy; of another one if that child goes just now."""
        tried = 0
        while tenure.size < 0:
            left = tenure.good(Kind.DATA) & ~tried
            if not left:
                raise self.nobody(f"appending to {tenure.loc}")
            index = self.read_order(state.inode.gfid, left, caller.pid)[0]
            tried |= 1 << index
            await self.ensure_open(state, 1 << index)
            try:
                tenure.size = (await self.subvolumes[index].stat(caller, state.lower)).iatt.size
            except OSError as error:
                if error.errno not in AWAY:
                    raise
        return tenure.size

    async def truncate(self, caller: Caller, target: Target, size: int) -> Changed:
        lower = self.lower(target)
        return await self._resize(caller, target, WHOLE, lambda c: c.truncate(caller, lower, size))

    async def fallocate(self, caller: Caller, fd: Fd, *, mode: int, offset: int, length: int) -> Changed:
        lower = self.fd_state(fd).lower
        return await self._resize(
            caller, fd, WHOLE, lambda c: c.fallocate(caller, lower, mode=mode, offset=offset, length=length)
        )

    async def _resize(
        self, caller: Caller, target: Target, span: Span, call: Question
    ) -> Changed:
        inode, state = self._inode_of(target)
        tenure = await self.hold(inode, Kind.DATA)
        try:
            slot = await tenure.order.enter(span)
            try:
                tenure.size = -1
                if state is not None:
                    await self.ensure_open(state, tenure.active)
                    tenure.unstable = state
                changed: Changed = await self.settle(
                    tenure, Kind.DATA, await self.ask(tenure.active, call), pid=caller.pid
                )
                return changed
            except asyncio.CancelledError:
                tenure.suspect.add(Kind.DATA)
                raise
            finally:
                slot.leave()
        finally:
            tenure.unpin()

    async def flush(self, caller: Caller, fd: Fd) -> None:
        """Nothing is kept back here; children need to know only if there may be locks of the process to drop."""
        state = self.fd_state(fd)
        if state.inode.has_locks:
            answers = await self.ask(self.up & state.opened, lambda c: c.flush(caller, state.lower))
            if answers and not good_of(answers):
                raise telling_error(errors_of(answers))

    async def fsync(self, caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> Changed:
        """A copy whose sync fails may have lost what was written: it is accused like one that missed a write."""
        state = self.fd_state(fd)
        inode = state.inode
        tenure = inode.tenure
        if tenure is None or tenure.is_closing:
            await self.settled()
            mask = self.up & state.opened
            answers = await self.ask(mask, lambda c: c.fsync(caller, state.lower, kind))
            good = good_of(answers)
            if len(good) == len(answers) and self.quorum.is_met(mask_of(good)):
                changed: Changed = self.pick(good, inode, inode.readable[Kind.DATA], caller.pid)
                return changed
        tenure = await self.hold(inode, Kind.DATA)
        try:
            await self.ensure_open(state, tenure.active)
            answers = await self.ask(tenure.active, lambda c: c.fsync(caller, state.lower, kind))
            changed = await self.settle(tenure, Kind.DATA, answers, pid=caller.pid)
            if tenure.unstable is state and not tenure.order.slots:
                tenure.unstable = None
            return changed
        finally:
            tenure.unpin()

    async def fsyncdir(self, caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> None:
        state = self.fd_state(fd)
        await self.ensure_open(state, self.up)
        answers = await self.ask(self.up, lambda c: c.fsyncdir(caller, state.lower, kind))
        if not self.quorum.is_met(mask_of(good_of(answers))):
            errors = errors_of(answers)
            raise telling_error(errors) if errors else self.nobody("fsyncdir")

    # ---- attributes ----

    async def setattr(self, caller: Caller, target: Target, attributes: SetAttr) -> Changed:
        inode, state = self._inode_of(target)
        lower = self.lower(target)
        answer: Changed = await self.change(inode, Kind.METADATA, caller, "setattr", [lower, attributes], state)
        return answer

    async def setxattr(self, caller: Caller, target: Target, values: Xattrs, *, flags: int = 0) -> None:
        inode, state = self._inode_of(target)
        await self.change(inode, Kind.METADATA, caller, "setxattr", [self.lower(target), values, flags], state)

    async def removexattr(self, caller: Caller, target: Target, name: bytes) -> None:
        inode, state = self._inode_of(target)
        await self.change(inode, Kind.METADATA, caller, "removexattr", [self.lower(target), name], state)

    async def xattrop(self, caller: Caller, target: Target, op: XattrOp, values: Xattrs, *, want: Want = ()) -> Xattrs:
        inode, state = self._inode_of(target)
        given = [self.lower(target), op, values, want]
        answer: Xattrs = await self.change(inode, Kind.METADATA, caller, "xattrop", given, state)
        return answer
