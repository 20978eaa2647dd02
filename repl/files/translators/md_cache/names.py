# SPDX-License-Identifier: Apache-2.0
"""What is known of the names in directories.

A directory that was empty when it was made here, or was listed to its end, is known as a whole: then a name that is not
there does not exist.  ``count`` never exceeds the limit given to ``folder``.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class Folder:
    """Names of one directory.  ``misses``: lookups that had to ask; ``hits``: those answered since it was listed ahead
    (-1: it was not, or that is settled); ``losses``: names of which nothing is known any more."""

    __slots__ = ("_told", "entries", "hits", "is_listing", "is_walk", "is_whole", "losses", "misses", "next", "until")

    def __init__(self, until: float) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.is_whole = False
        self.until = until
        self.misses = 0
        self.losses = 0
        self.next = 0  # where a listing goes on
        self.is_listing = False
        self.is_walk = False  # which lookups wait for
        self.hits = -1
        self._told: asyncio.Future[None] | None = None

    async def wait_told(self, seconds: float) -> None:
        """Until the listing has brought something, or has ended; not longer than that."""
        if self._told is None:
            self._told = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._told,), timeout=seconds)

    def tell(self) -> None:
        told, self._told = self._told, None
        if told is not None:
            told.set_result(None)


class Names:
    def __init__(self) -> None:
        self._folders: OrderedDict[bytes, Folder] = OrderedDict()
        self.count = 0

    def find(self, gfid: bytes, now: float) -> Folder | None:
        folder = self._folders.get(gfid)
        if folder is not None and folder.until < now:
            self.drop(gfid)
            return None
        return folder

    def folder(self, gfid: bytes, now: float, valid_s: float, limit: int) -> Folder:
        """The directory's names, to add to."""
        folder = self.find(gfid, now)
        if folder is None:
            while self.count >= limit and self._folders:
                self.drop(next(iter(self._folders)))
            folder = self._folders[gfid] = Folder(now + valid_s)
        else:
            self._folders.move_to_end(gfid)
        return folder

    def put(self, folder: Folder, name: bytes, gfid: bytes) -> None:
        self.count += name not in folder.entries
        folder.entries[name] = gfid

    def remove(self, parent: bytes, name: bytes) -> None:
        """It is known not to be there."""
        folder = self._folders.get(parent)
        if folder is not None and folder.entries.pop(name, None) is not None:
            self.count -= 1

    def forget(self, parent: bytes, name: bytes) -> None:
        """Nothing is known of it."""
        self.remove(parent, name)
        folder = self._folders.get(parent)
        if folder is not None:
            folder.is_whole = False
            folder.losses += 1
            folder.next = 0

    def drop(self, gfid: bytes) -> None:
        folder = self._folders.pop(gfid, None)
        if folder is not None:
            self.count -= len(folder.entries)

    def clear(self) -> None:
        self._folders.clear()
        self.count = 0
