# SPDX-License-Identifier: Apache-2.0
"""Heals of a whole volume: everything that the indices list, or everything there is.

Inputs: a replicate volume.  ``index`` heals what is pending and goes on for as long as something can be healed,
``full`` walks the tree and compares (a brick that was replaced; bricks without an index).  Several inodes at a time
(``shd-max-threads``), no more than ``Pace`` allows.  Outputs: ``Progress``, which can be looked at any time.
A sweep that is cancelled leaves nothing behind but what is still pending.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from repl.files.answers import GONE
from repl.files.heal import index
from repl.files.heal.in_use import InUse
from repl.files.heal.work import Work
from repl.files.translators.replicate import Replicate
from repl.files.translators.replicate.base import bits
from repl.files.translators.replicate.healing import How, Outcome, Pace, Status
from repl.files.values import ROOT_GFID, Fd, FopError, Loc, Looked
from repl.limits import HEAL_BATCH_NAMES, HEAL_SEEN_MAX, HEAL_SWEEPS_MAX

log = logging.getLogger(__name__)
_UNDONE = (Status.LATER, Status.PARENT, Status.BUSY, Status.FAILED)


@dataclass(slots=True)
class Progress:
    """Of one sweep.  ``found``: inodes looked at so far; ``left``: entries that the indices still have, -1: unknown;
    ``by_status``: how their heals ended; ``at_work``: what is being healed."""

    kind: str = "index"
    is_running: bool = False
    sweeps: int = 0
    found: int = 0
    left: int = -1
    started_s: float = 0.0
    ended_s: float = 0.0
    by_status: Counter[Status] = field(default_factory=Counter)
    at_work: dict[bytes, float] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    without_index: list[str] = field(default_factory=list)

    @property
    def healed(self) -> int:
        return self.by_status[Status.HEALED]

    @property
    def undone(self) -> int:
        return sum(self.by_status[s] for s in (*_UNDONE, Status.AWAY, Status.SPLIT))


class _Seen:
    """What this sweep has looked at already, the last ones of it."""

    def __init__(self) -> None:
        self._gfids: OrderedDict[bytes, None] = OrderedDict()

    def add(self, gfid: bytes) -> bool:
        """False: it is known."""
        if gfid in self._gfids:
            return False
        self._gfids[gfid] = None
        if len(self._gfids) > HEAL_SEEN_MAX:
            self._gfids.popitem(last=False)
        return True


class Sweeper:
    """One at a time per volume."""

    def __init__(self, afr: Replicate, pace: Pace | None = None) -> None:
        self.afr = afr
        self.pace = pace or Pace()
        self.progress = Progress()
        self._caller = afr.owner()
        self._in_use = InUse(HEAL_SEEN_MAX)

    # ---- what is pending ----

    async def index(self) -> Progress:
        progress = self._begin("index")
        self._in_use.begin()
        try:
            for _ in range(HEAL_SWEEPS_MAX):
                before, progress.by_status = progress.healed, Counter({Status.HEALED: progress.healed})
                await self._sweep(self._pending(_Seen()), How(waits=False, policy=self._policy(), pace=self.pace))
                cleaned = await self.afr.healer.aside.clean()
                progress.sweeps += 1
                is_undone = any(progress.by_status[s] for s in _UNDONE)
                if not is_undone or (progress.healed == before and not cleaned):
                    break
            self._in_use.end()
            await self.count_left()
        finally:
            self._end()
        return progress

    async def _pending(self, seen: _Seen) -> AsyncIterator[bytes]:
        for i in bits(self.afr.up):
            child = self.afr.subvolumes[i]
            for key in (index.XATTROP_KEY, index.DIRTY_KEY):
                try:
                    async for gfids in index.pages(child, self._caller, key):
                        for gfid in await self._sort([g for g in gfids if seen.add(g)]):
                            yield gfid
                except index.NoIndex:
                    if child.name not in self.progress.without_index:
                        self.progress.without_index.append(child.name)
                except OSError as error:
                    log.info("volume '%s': index of '%s': %s", self.afr.name, child.name, error)

    async def _sort(self, gfids: list[bytes]) -> list[bytes]:
        """Directories first: what copies lack comes into being with them, and need not be tried before."""
        afr = self.afr
        looks = await asyncio.gather(*(look_all(afr, i, gfids) for i in bits(afr.up)))
        first: list[bytes] = []
        then: list[bytes] = []
        for gfid in gfids:
            found = [look[gfid] for look in looks if gfid in look]
            if len(found) < len(looks) and found and not found[0].iatt.is_directory:
                await self._note(Outcome(gfid, Status.PARENT))
            elif not found or not any(any(a.xattrs.get(key, b"")) for a in found for key in afr.want_keys):
                await self._note(Outcome(gfid, Status.CLEAN if found else Status.GONE))
            else:
                (first if found[0].iatt.is_directory else then).append(gfid)
        return [*first, *then]

    async def count_left(self) -> int:
        """Entries that the fullest index has; it becomes fewer while a sweep runs."""
        counts = []
        for i in bits(self.afr.up):
            with contextlib.suppress(OSError):
                counts.append(await index.count(self.afr.subvolumes[i], self._caller))
        self.progress.left = max(counts, default=-1)
        return self.progress.left

    # ---- everything ----

    async def full(self) -> Progress:
        progress = self._begin("full")
        try:
            for _ in range(HEAL_SWEEPS_MAX):
                before, progress.by_status = progress.healed, Counter({Status.HEALED: progress.healed})
                await self._sweep(self._tree(), How(is_full=True, policy=self._policy(), pace=self.pace))
                cleaned = await self.afr.healer.aside.clean()
                progress.sweeps += 1
                is_undone = any(progress.by_status[s] for s in _UNDONE)
                if not is_undone or (progress.healed == before and not cleaned):
                    break
        finally:
            self._end()
        return progress

    async def _tree(self) -> AsyncIterator[bytes]:
        """Each directory is healed before what is in it is listed."""
        how = How(is_full=True, policy=self._policy(), pace=self.pace)
        directories = [ROOT_GFID]
        while directories:
            gfid = directories.pop()
            for made in await self._heal(gfid, how):
                yield made
            try:
                async for below, is_directory in self._below(gfid):
                    if is_directory:
                        directories.append(below)
                    else:
                        yield below
            except OSError as error:
                log.info("volume '%s': %s cannot be listed: %s", self.afr.name, Loc(gfid=gfid), error)

    async def _below(self, gfid: bytes) -> AsyncIterator[tuple[bytes, bool]]:
        fd = Fd(gfid, is_directory=True)
        size, offset = self.afr.options["self-heal-readdir-size"], 0
        await self.afr.opendir(self._caller, Loc(gfid=gfid), fd)
        try:
            while entries := await self.afr.readdir(self._caller, fd, size=size, offset=offset):
                offset = entries[-1].offset
                for entry in entries:
                    yield entry.gfid, entry.kind == 0o040000
        finally:
            await self.afr.release(fd)

    # ---- several at a time ----

    async def _sweep(self, gfids: AsyncIterator[bytes], how: How) -> None:
        work = Work(self.afr.options["shd-wait-qlength"], HEAL_SEEN_MAX)
        count = self.afr.options["shd-max-threads"]
        workers = [asyncio.get_running_loop().create_task(self._work(work, how)) for _ in range(count)]
        try:
            async for gfid in gfids:
                await work.put(gfid)
            await work.close()
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, work: Work, how: How) -> None:
        while (gfid := await work.take()) is not None:
            await work.done(await self._heal(gfid, how))

    async def _heal(self, gfid: bytes, how: How) -> Sequence[bytes]:
        """What came into being with it."""
        if gfid in self.progress.at_work:
            return ()
        await self.pace.wait()
        now = self.progress.at_work[gfid] = self.afr.context.now()
        if self._in_use.for_s(gfid, now) >= self.afr.options["heal-timeout"]:
            how = replace(how, waits=True)
        try:
            outcome = await self.afr.healer.heal(gfid, how)
        finally:
            del self.progress.at_work[gfid]
        await self._note(outcome)
        return outcome.more

    async def _note(self, outcome: Outcome) -> None:
        self.progress.found += 1
        self.progress.by_status[outcome.status] += 1
        self._in_use.note(outcome.gfid, self.afr.context.now(), is_in_use=outcome.status is Status.IN_USE)
        if outcome.status in (Status.GONE, Status.CLEAN):
            for i in bits(self.afr.up):
                await index.forget(self.afr.subvolumes[i], self._caller, outcome.gfid)
        elif outcome.status in (Status.SPLIT, Status.FAILED):
            log.warning("volume '%s': %s", self.afr.name, outcome)

    def _policy(self) -> str:
        policy: str = self.afr.options["favorite-child-policy"]
        return policy

    def _begin(self, kind: str) -> Progress:
        self.progress = Progress(kind, True, started_s=self.afr.context.now(), pace=self.pace)
        return self.progress

    def _end(self) -> None:
        self.progress.is_running = False
        self.progress.ended_s = self.afr.context.now()


async def look_all(afr: Replicate, child: int, gfids: list[bytes]) -> dict[bytes, Looked]:
    """What one child has of these, with its counters; many questions under way at a time."""
    found: dict[bytes, Looked] = {}
    caller = afr.owner()
    for at in range(0, len(gfids), HEAL_BATCH_NAMES):
        part = gfids[at : at + HEAL_BATCH_NAMES]
        locs = [Loc(gfid=gfid) for gfid in part]
        calls = (afr.subvolumes[child].lookup(caller, loc, want=afr.want_keys) for loc in locs)
        for gfid, answer in zip(part, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(answer, Looked):
                found[gfid] = answer
            elif not isinstance(answer, OSError):
                raise answer
            elif answer.errno not in GONE:
                raise FopError(answer.errno or errno.EIO, f"{afr.names[child]}: {answer}")
    return found
