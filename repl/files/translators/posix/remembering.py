# SPDX-License-Identifier: Apache-2.0
"""Attributes of files whose transactions have ended are read into ``KnownXattrs`` while they are in the page cache.

Input: gfids, as transactions end; a moment later, when their ctime is old enough to be trusted, they are looked at, a
few at a time.  So a listing long after does not read a block of the disk for each.  What has gone is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from itertools import islice
from typing import Any

from repl.files.translators.posix.brick import Brick
from repl.files.translators.posix.lane import Lane
from repl.files.translators.posix.xattrs import wanted
from repl.limits import POSIX_REMEMBERED_SOON_MAX

_PAUSE_S = 1.0
_AT_ONCE = 16
_BETWEEN_S = 0.005  # others have work that somebody waits for


class Remembering:
    def __init__(self, brick: Brick, lane: Lane, spawn: Callable[[Coroutine[Any, Any, None]], Any]) -> None:
        self._brick = brick
        self._lane = lane
        self._spawn = spawn
        self._gfids: dict[bytes, None] = {}
        self._is_running = False

    def ended(self, gfids: Iterable[bytes]) -> None:
        self._gfids.update(dict.fromkeys(islice(gfids, max(0, POSIX_REMEMBERED_SOON_MAX - len(self._gfids)))))
        if self._gfids and not self._is_running:
            self._is_running = True
            self._spawn(self._run())

    async def _run(self) -> None:
        try:
            while self._gfids:
                await asyncio.sleep(_PAUSE_S)
                gfids, self._gfids = list(self._gfids), {}
                for at in range(0, len(gfids), _AT_ONCE):
                    await self._lane.run(self._look, gfids[at : at + _AT_ONCE])
                    await asyncio.sleep(_BETWEEN_S)
        finally:
            self._is_running = False

    def _look(self, gfids: list[bytes]) -> None:
        for gfid in gfids:
            try:
                wanted(self._brick, self._brick.node(gfid), ())
            except OSError:
                continue
