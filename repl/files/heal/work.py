# SPDX-License-Identifier: Apache-2.0
"""The inodes that a sweep has still to heal, shared by its workers.

Inputs: what the sweep finds (``put`` waits while ``limit`` of it wait here), and what came into being with a heal
(``done``), which goes first: the names of a directory that has just got them are healed by all workers, not by the one
that healed the directory.  Output: ``take``, None once nothing is left and nothing can come any more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence


class Work:
    def __init__(self, limit: int, more_limit: int) -> None:
        self._limit = limit
        self._more_limit = more_limit
        self._found: deque[bytes] = deque()
        self._more: list[bytes] = []
        self._at_work = 0
        self._is_all_found = False
        self._changed = asyncio.Condition()

    async def put(self, gfid: bytes) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._found) < self._limit)
            self._found.append(gfid)
            self._changed.notify_all()

    async def close(self) -> None:
        """Nothing more is put."""
        async with self._changed:
            self._is_all_found = True
            self._changed.notify_all()

    async def take(self) -> bytes | None:
        """Everything that is taken is given to ``done``."""
        async with self._changed:
            await self._changed.wait_for(self._can_take)
            if not self._more and not self._found:
                return None
            gfid = self._more.pop() if self._more else self._found.popleft()
            self._at_work += 1
            self._changed.notify_all()
            return gfid

    async def done(self, more: Sequence[bytes]) -> None:
        """What of ``more`` finds no place is in the index."""
        async with self._changed:
            self._at_work -= 1
            self._more += more[: self._more_limit - len(self._more)]
            self._changed.notify_all()

    def _can_take(self) -> bool:
        return bool(self._more or self._found) or (self._is_all_found and not self._at_work)
