# SPDX-License-Identifier: Apache-2.0
"""Transactions that end together.

Inputs: tenures that nobody uses any more.  Nobody waits for the end of a transaction either, so one waits
``post-op-delay-secs`` (at most a second) for others to come along; then all are synced with one call to each child, and
have their marks taken back and their locks given back with another.  Whoever wants the lock meanwhile ends the wait
(``hurry``), a child that goes or comes ends all waits (``start``), and an operation of ours on the same inode takes the
transaction up again as it is (``take_up``).
Only what went as it should ends like this: where a child was lost, or somebody is yet to be accused, each ends by
itself (tenure.py), and so does what goes wrong here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from repl.files.translators.replicate.changelog import DIRTY, minus_one
from repl.files.values import End
from repl.limits import FILES_BUNDLE_MAX, FILES_BUNDLE_S

if TYPE_CHECKING:
    from repl.files.translators.replicate.inodes import FdState
    from repl.files.translators.replicate.tenure import Tenure
    from repl.files.translators.replicate.transactions import Transactions


class Endings:
    """Of one replicate volume."""

    def __init__(self, afr: Transactions) -> None:
        self._afr = afr
        self._waiting: dict[Tenure, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, tenure: Tenure) -> None:
        if not tenure.is_regular:
            tenure.end_alone()
            return
        self._waiting[tenure] = None
        if len(self._waiting) >= FILES_BUNDLE_MAX:
            self.start()
        elif self._timer is None:
            wait_s = min(FILES_BUNDLE_S, self._afr.post_op_delay_s)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self.start)

    def hurry(self, tenure: Tenure) -> None:
        """It ends now, by itself, if it is still waiting."""
        if tenure in self._waiting:
            del self._waiting[tenure]
            tenure.end_alone()

    def take_up(self, tenure: Tenure) -> bool:
        """It goes on; False: it does not wait any more."""
        if tenure not in self._waiting:
            return False
        del self._waiting[tenure]
        return True

    def start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, {}
        together: dict[int, list[Tenure]] = {}  # those with the same children
        for tenure in waiting:
            if tenure.is_regular:
                together.setdefault(tenure.active, []).append(tenure)
            else:
                tenure.end_alone()
        for mask, tenures in together.items():
            self._afr.context.spawn(self._run(mask, tenures), f"{self._afr.name}: ends of transactions")

    async def _run(self, mask: int, tenures: list[Tenure]) -> None:
        left = tenures
        try:
            left = await self._sync(mask, tenures)
            await self._finish(mask, left)
        finally:
            for tenure in left:
                tenure.done()
        for tenure in left:
            await tenure.release_files()

    async def _sync(self, mask: int, tenures: Sequence[Tenure]) -> list[Tenure]:
        """Those that are stable on all their children; the others go on by themselves."""
        afr = self._afr
        written: list[tuple[Tenure, FdState]] = []
        for tenure in tenures:
            if (state := tenure.begin_sync()) is not None:
                written.append((tenure, state))
        failed: dict[Tenure, int] = {}
        if written:
            fds = [state.lower for _, state in written]
            answers = await afr.ask(mask, lambda c: c.sync_all(afr.tenure_owner, fds))
            for index, (tenure, _) in enumerate(written):
                failed[tenure] = sum(1 << i for i, a in answers.items() if isinstance(a, OSError) or a[index])
        left = []
        for tenure in tenures:
            if failed.get(tenure) or not tenure.is_regular:
                tenure.end_alone(failed.get(tenure, 0))
            else:
                left.append(tenure)
        return left

    async def _finish(self, mask: int, tenures: Sequence[Tenure]) -> None:
        """Marks back, then locks.  What a child that is lost meanwhile has not done stays: marks for a heal to see."""
        ends = [
            End(t.inode.gfid, minus_one(kinds) if (kinds := t.marked) else b"", t.is_entry) for t in tenures
        ]  # fmt: skip
        if ends:
            afr = self._afr
            await afr.ask(mask, lambda c: c.end_all(afr.tenure_owner, afr.domain, DIRTY, ends))

