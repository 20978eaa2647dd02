# SPDX-License-Identifier: Apache-2.0
"""``resync-after`` between the resources of one host: a lock file for each volume that is busy with a resync.

The lock goes with its process, so nobody waits for a ``repld`` that has died.  Who has to wait looks twice a second.
Inputs: the run directory's folder, ``PublishResync`` and ``WatchResync`` of the node.  Output: ``on_change``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

LOOK_S = 0.5
RETRY_S = 0.02

OnChange = Callable[[str, int, bool], None]


class ResyncOrder:
    """The files of one resource, and those that it looks at."""

    def __init__(self, folder: Path, resource: str, on_change: OnChange) -> None:
        self._folder = folder
        self._resource = resource
        self._on_change = on_change
        self._held: dict[int, int] = {}  # volume -> descriptor with the lock
        self._wanted: set[int] = set()
        self._seen: dict[tuple[str, int], bool] = {}
        self._looks: asyncio.Handle | None = None
        self._retry: asyncio.TimerHandle | None = None

    def publish(self, volume: int, busy: bool) -> None:
        """Hold the volume's lock while it is busy."""
        if busy:
            self._wanted.add(volume)
            self._take()
            return
        self._wanted.discard(volume)
        fd = self._held.pop(volume, -1)
        if fd >= 0:
            os.close(fd)

    def watch(self, resource: str, volume: int) -> None:
        """Tell ``on_change`` now (if it is busy) and whenever it changes."""
        self._seen.setdefault((resource, volume), False)
        if self._looks is None:
            self._looks = asyncio.get_running_loop().call_soon(self._look)

    def close(self) -> None:
        for handle in (self._looks, self._retry):
            if handle is not None:
                handle.cancel()
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def _path(self, resource: str, volume: int) -> Path:
        return self._folder / f"{resource}.{volume}.resync"

    def _take(self) -> None:
        """Somebody may look just now: then once more, a little later."""
        self._retry = None
        for volume in self._wanted - self._held.keys():
            with contextlib.suppress(OSError):
                fd = os.open(self._path(self._resource, volume), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os.close(fd)
                else:
                    self._held[volume] = fd
        if self._wanted - self._held.keys():
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._take)

    def _look(self) -> None:
        for (resource, volume), before in list(self._seen.items()):
            busy = self._is_busy(resource, volume)
            if busy != before:
                self._seen[resource, volume] = busy
                self._on_change(resource, volume, busy)
        self._looks = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _is_busy(self, resource: str, volume: int) -> bool:
        try:
            fd = os.open(self._path(resource, volume), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            return False
        finally:
            os.close(fd)
