# SPDX-License-Identifier: Apache-2.0
"""The heal daemon's work: for each replicate volume of a graph, sweeps when there is reason to.

A sweep of the indices runs at the start, when a child comes back, every ``heal-timeout`` seconds, and when somebody
asks; a full one when somebody asks, and when a child without an index comes back.  One sweep of a volume at a time, all
volumes side by side, within one ``Pace``.  ``self-heal-daemon off`` leaves a volume alone.
Outputs: ``Progress`` of each volume; changes of state are logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from repl.files.graph import Graph
from repl.files.heal.sweep import Progress, Sweeper
from repl.files.translators.replicate import Replicate
from repl.files.translators.replicate.base import bits
from repl.files.translators.replicate.healing import Pace, Status

log = logging.getLogger(__name__)

_FINE = (Status.HEALED, Status.CLEAN, Status.GONE)
SETTLE_S = 1.0  # after a child's return, for the others that come with it


class VolumeHeals:
    """One replicate volume."""

    def __init__(self, afr: Replicate, pace: Pace) -> None:
        self.afr = afr
        self.sweeper = Sweeper(afr, pace)
        self.sweeps = 0
        self._wanted = asyncio.Event()
        self._is_full_wanted = False
        self._done: list[asyncio.Future[Progress]] = []
        afr.child_up_listeners.append(self._child_up)

    @property
    def progress(self) -> Progress:
        return self.sweeper.progress

    def want(self, *, is_full: bool = False) -> asyncio.Future[Progress]:
        """A sweep that begins from now on; the future has its result."""
        future: asyncio.Future[Progress] = asyncio.get_running_loop().create_future()
        self._done.append(future)
        self._is_full_wanted = self._is_full_wanted or is_full
        self._wanted.set()
        return future

    def _child_up(self, index: int) -> None:
        asyncio.get_running_loop().call_later(SETTLE_S, self._wanted.set)

    async def run(self) -> None:
        await self.afr.settled()
        while True:
            self._wanted.clear()
            done, self._done = self._done, []
            is_full, self._is_full_wanted = self._is_full_wanted, False
            try:
                progress = await self._sweep(is_full=is_full, is_asked=bool(done))
            except OSError as error:
                log.error("volume '%s': %s", self.afr.name, error)
                progress = self.sweeper.progress
            for future in done:
                if not future.done():
                    future.set_result(progress)
            try:
                await asyncio.wait_for(self._wanted.wait(), self.afr.options["heal-timeout"])
            except TimeoutError:
                continue

    async def _sweep(self, *, is_full: bool, is_asked: bool) -> Progress:
        if not self.afr.options["self-heal-daemon"] and not is_asked:
            return self.progress
        self.sweeps += 1
        progress = await self.sweeper.index()
        if is_full or progress.without_index:
            progress = await self.sweeper.full()
        self._report(progress)
        return progress

    def _report(self, progress: Progress) -> None:
        if progress.found:
            counts = ", ".join(f"{s.value}: {n}" for s, n in progress.by_status.items() if n)
            log.info("volume '%s': %s sweep of %d inodes in %.1f s: %s", self.afr.name, progress.kind, progress.found,
                     progress.ended_s - progress.started_s, counts)  # fmt: skip


class HealDaemon:
    """All replicate volumes of one graph."""

    def __init__(self, graph: Graph, rate_bytes_s: int = 0) -> None:
        self.graph = graph
        self.pace = Pace(rate_bytes_s)
        found = [t for t in graph.translators.values() if isinstance(t, Replicate)]
        self.volumes = {afr.name: VolumeHeals(afr, self.pace) for afr in found}

    async def run(self) -> None:
        """Until it is cancelled."""
        await asyncio.gather(*(volume.run() for volume in self.volumes.values()))

    def chosen(self, name: str = "") -> list[VolumeHeals]:
        """One volume, or all.  ``KeyError``."""
        return [self.volumes[name]] if name else list(self.volumes.values())

    def state(self) -> dict[str, dict[str, object]]:
        """For state dumps."""
        return {f"heal.{name}": describe(volume) for name, volume in self.volumes.items()}


def describe(volume: VolumeHeals, progress: Progress | None = None) -> dict[str, object]:
    """What an administrator wants to see of it (of the last sweep, if no other is given); JSON can take it."""
    progress, afr = progress or volume.progress, volume.afr
    now = afr.context.now()
    seconds = (now if progress.is_running else progress.ended_s) - progress.started_s
    return {
        "kind": progress.kind,
        "running": progress.is_running,
        "sweeps": volume.sweeps,
        "found": progress.found,
        "healed": progress.healed,
        "left": progress.left,
        "undone": _words((s, n) for s, n in progress.by_status.items() if s not in _FINE),
        "at_work": [gfid.hex() for gfid in progress.at_work],
        "copied_bytes": progress.pace.copied_bytes,
        "compared_bytes": progress.pace.compared_bytes,
        "seconds": round(seconds, 3),
        "up": [afr.names[i] for i in bits(afr.up)],
        "without_index": list(progress.without_index),
    }


def _words(counts: Iterable[tuple[Status, int]]) -> dict[str, int]:
    return {status.value: count for status, count in counts if count}
