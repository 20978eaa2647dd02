# SPDX-License-Identifier: Apache-2.0
"""Tells the kernel what it has to forget, from a thread of its own.

The kernel carries such a notification out while we write it: it may wait for a page or a directory whose holder waits
for an answer of ours.  So the loop never does it; and what waits is kept once, however often it is asked for.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque

from repl.files.mount.connection import Connection
from repl.limits import MOUNT_INVALIDATIONS_MAX

log = logging.getLogger(__name__)

Key = tuple[int, bytes]  # inode and name; no name: its data


class Invalidator:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._condition = threading.Condition()
        self._queue: deque[Key] = deque()
        self._queued: set[Key] = set()
        self._waiting: dict[Key, list[asyncio.Future[None]]] = {}
        self._is_closed = False
        self.lost = 0
        self._thread: threading.Thread | None = None

    def data(self, nodeid: int) -> None:
        self._put((nodeid, b""))

    def entry(self, nodeid: int, name: bytes) -> None:
        self._put((nodeid, name))

    async def wait_data(self, nodeid: int) -> None:
        """Returns when the kernel has dropped the file's pages and attributes."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._put((nodeid, b""), done)
        await done

    def close(self) -> None:
        with self._condition:
            self._is_closed = True
            self._condition.notify()

    def _put(self, key: Key, done: asyncio.Future[None] | None = None) -> None:
        with self._condition:
            if done is not None:
                self._waiting.setdefault(key, []).append(done)
            if key in self._queued:
                return
            if len(self._queue) >= MOUNT_INVALIDATIONS_MAX and done is None:
                self.lost += 1  # the timeouts remain
                return
            self._queue.append(key)
            self._queued.add(key)
            self._condition.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="invalidation", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._queue and not self._is_closed:
                    self._condition.wait()
                if self._is_closed:
                    self._give_up()
                    return
                key = self._queue.popleft()
                self._queued.discard(key)
                waiting = self._waiting.pop(key, [])
            nodeid, name = key
            if name:
                self._connection.invalidate_entry(nodeid, name)
            else:
                self._connection.invalidate_data(nodeid)
            if waiting:
                self._loop.call_soon_threadsafe(_finish, waiting)

    def _give_up(self) -> None:
        left = [future for futures in self._waiting.values() for future in futures]
        self._waiting.clear()
        if left and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_finish, left)


def _finish(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
