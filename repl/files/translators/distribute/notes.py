# SPDX-License-Identifier: Apache-2.0
"""Changes of a directory's attributes that are noted on the copy that counts, and are on all copies by now.

The note (``dht.mds``, a counter) is taken back a moment behind the answer, once for all changes that came together:
who sets times, owner and mode of a directory one after another would wait for it each time.
A client that dies, or loses the copy, leaves the note: the next lookup compares the copies, and finds no difference.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from repl.files.translator import Context
from repl.limits import DISTRIBUTE_NOTE_S

log = logging.getLogger(__name__)
SETTLE_S = 5.0

Key: TypeAlias = tuple[bytes, int]  # directory, subvolume


class Notes:
    """``take_back`` is given a directory, the subvolume of its note, and how much to take from that."""

    def __init__(self, name: str, context: Context, take_back: Callable[[bytes, int, int], Awaitable[object]]) -> None:
        self._name = name
        self._context = context
        self._take_back = take_back
        self._own: dict[Key, int] = {}  # on the copy, as far as we know
        self._waiting: dict[Key, int] = {}  # of these, not being taken back yet
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._running: set[asyncio.Task[None]] = set()

    def is_own(self, gfid: bytes, index: int, value: int) -> bool:
        """The counter tells of nothing but changes of ours that all copies have."""
        return 0 <= value <= self._own.get((gfid, index), 0)

    def done(self, gfid: bytes, index: int) -> None:
        """One noted change more that all copies have."""
        key = (gfid, index)
        self._own[key] = self._own.get(key, 0) + 1
        self._waiting[key] = self._waiting.get(key, 0) + 1
        if key not in self._timers:
            self._timers[key] = asyncio.get_running_loop().call_later(DISTRIBUTE_NOTE_S, self._due, key)

    def forget(self, gfid: bytes) -> None:
        """The counter has been set to nothing."""
        for key in [key for key in self._timers if key[0] == gfid]:
            self._timers.pop(key).cancel()
            self._gone(key, self._waiting.pop(key))

    def _gone(self, key: Key, count: int) -> None:
        left = self._own[key] - count
        if left:
            self._own[key] = left
        else:
            del self._own[key]

    def _due(self, key: Key) -> None:
        del self._timers[key]
        work = self._settle_one(key, self._waiting.pop(key))
        task = self._context.spawn(work, f"{self._name}: attributes of a directory are the same")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _settle_one(self, key: Key, count: int) -> None:
        try:
            await self._take_back(*key, count)
        except OSError as error:
            log.debug("volume '%s': a note stays: %s", self._name, error)
        finally:
            self._gone(key, count)

    async def settle(self) -> None:
        """All of them are taken back."""
        for key, timer in list(self._timers.items()):
            timer.cancel()
            self._due(key)
        if self._running:
            await asyncio.wait(self._running, timeout=SETTLE_S)
