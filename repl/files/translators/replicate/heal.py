# SPDX-License-Identifier: Apache-2.0
"""The heal of one inode, of one name, and the heals that clients start when they meet something old.

``heal`` does all kinds in order: metadata, data, names.  Whoever calls it goes on with ``Outcome.more``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from repl.files.translators.replicate.changelog import Kind
from repl.files.translators.replicate.heal_aside import PREFIX, Aside
from repl.files.translators.replicate.heal_data import DataHeal
from repl.files.translators.replicate.heal_entries import EntryHeal
from repl.files.translators.replicate.heal_metadata import heal_metadata
from repl.files.translators.replicate.heal_run import Run
from repl.files.translators.replicate.healing import How, Outcome, Pace, Status
from repl.limits import HEAL_AGAIN_S

if TYPE_CHECKING:
    from repl.files.translators.replicate.transactions import Transactions

log = logging.getLogger(__name__)


class Healer:
    """Of one replicate volume."""

    def __init__(self, afr: Transactions) -> None:
        self.afr = afr
        self.aside = Aside(afr, PREFIX + (afr.options["volume-id"] or afr.name).encode())

    async def heal(self, gfid: bytes, how: How) -> Outcome:
        """A task of its own: who gives up waiting must not leave a lock behind."""
        run = Run(self.afr, gfid, how)
        return await self._alone(run, self._heal(run))

    async def _alone(self, run: Run, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        task: asyncio.Task[Outcome] = self.afr.context.spawn(work, f"{self.afr.name}: heal of {run.loc}")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            run.is_given_up = True
            raise

    async def _heal(self, run: Run) -> Outcome:
        try:
            if await run.begin():
                await self._heal_kinds(run, run.how)
        except OSError as error:
            run.note(Status.FAILED, str(error))
        finally:
            outcome = await run.end()
        log.debug("volume '%s': %s", self.afr.name, outcome)
        return outcome

    async def _heal_kinds(self, run: Run, how: How) -> None:
        if Kind.METADATA in how.kinds:
            await heal_metadata(run)
        if run.outcome.is_directory:
            await run.flush(is_last=False)
            if Kind.ENTRY in how.kinds:
                await EntryHeal(run, self.aside).heal()
        elif Kind.DATA in how.kinds:
            await DataHeal(run).heal()
        await run.flush(is_last=True)

    async def heal_name(self, parent: bytes, name: bytes, how: How) -> Outcome:
        """A name that a lookup found missing or different on a good copy."""
        run = Run(self.afr, parent, how)
        return await self._alone(run, self._heal_name(run, name))

    async def _heal_name(self, run: Run, name: bytes) -> Outcome:
        try:
            await EntryHeal(run, self.aside).heal_name(name)
        except OSError as error:
            run.note(Status.FAILED, str(error))
        finally:
            outcome = await run.end()
        return outcome


class BackgroundHeals:
    """What clients heal on access: a few at a time, some more waiting, the rest is left to the next access.

    An inode whose heal did not succeed is not tried again for a while.
    """

    def __init__(self, healer: Healer) -> None:
        self.healer = healer
        self.afr = healer.afr
        self.pace = Pace()
        self.dropped = 0
        self._running: set[tuple[bytes, bytes]] = set()
        self._waiting: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()
        self._not_before: OrderedDict[tuple[bytes, bytes], float] = OrderedDict()

    @property
    def length(self) -> int:
        return len(self._running) + len(self._waiting)

    def soon(self, gfid: bytes, name: bytes = b"") -> None:
        """The inode, or with ``name`` that name of the directory."""
        key = (gfid, name)
        options = self.afr.options
        if key in self._running or key in self._waiting or not (name or self._kinds()):
            return
        if options["iam-self-heal-daemon"] or self._not_before.get(key, 0.0) > self.afr.context.now():
            return
        if len(self._running) < options["background-self-heal-count"]:
            self._start(key)
        elif len(self._waiting) < options["heal-wait-queue-length"]:
            self._waiting[key] = None
        else:
            self.dropped += 1

    def forget_failures(self) -> None:
        """A child came back: what failed may work now."""
        self._not_before.clear()

    def _kinds(self) -> frozenset[Kind]:
        return frozenset(kind for kind in Kind if self.afr.options[f"{kind.word}-self-heal"])

    def _start(self, key: tuple[bytes, bytes]) -> None:
        self._running.add(key)
        self.afr.context.spawn(self._heal(key), f"{self.afr.name}: heal")

    async def _heal(self, key: tuple[bytes, bytes]) -> None:
        gfid, name = key
        inode = self.afr.inodes.peek(gfid)
        # What was in use at the last try, ``heal-timeout`` ago, may be for ever.
        waits = bool(name) or inode is None or inode.is_pending or key in self._not_before
        how = How(self._kinds(), waits, policy=self.afr.options["favorite-child-policy"], pace=self.pace)
        try:
            heal = self.healer.heal_name(gfid, name, how) if name else self.healer.heal(gfid, how)
            outcome = await heal
            self._running.discard(key)
            self._not_before.pop(key, None)
            if outcome.status not in (Status.HEALED, Status.CLEAN):
                pause_s = HEAL_AGAIN_S if waits else self.afr.options["heal-timeout"]
                self._not_before[key] = self.afr.context.now() + pause_s
                if len(self._not_before) > self.afr.options["heal-wait-queue-length"] + 64:
                    self._not_before.popitem(last=False)
            for more in outcome.more:
                self.soon(more)
        finally:
            self._running.discard(key)
        while self._waiting and len(self._running) < self.afr.options["background-self-heal-count"]:
            self._start(self._waiting.popitem(last=False)[0])
        if not self._running and self.healer.aside.used and self.afr.up == self.afr.everyone:
            self._running.add((b"", b""))
            try:
                await self.healer.aside.clean()
            finally:
                self._running.discard((b"", b""))

    async def idle(self) -> None:
        """Until nothing is being healed (for tests and an orderly end)."""
        while self.length:
            await asyncio.sleep(0.05)
