# SPDX-License-Identifier: Apache-2.0
"""Brings what lies in one directory to where it belongs: files, links, devices, link files.

Inputs: a distribute translator, a directory with its new layout.  Output: whether every name is where it belongs or has
its link file there; counters in ``Progress``.  So many files at the same time as the throttle says, of all directories
together.  What cannot be moved counts as a failure; a brick that goes away ends it (``OSError`` ENOTCONN).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import stat
from dataclasses import dataclass
from pathlib import Path

from repl.errors import UsageError
from repl.files.answers import AWAY, GONE
from repl.files.rebalance.leftovers import entries_on
from repl.files.rebalance.migration import Migration
from repl.files.rebalance.mover import Moved, Outcome, mover_domain
from repl.files.rebalance.progress import Progress
from repl.files.rebalance.special import move_special
from repl.files.translators.distribute import Distribute
from repl.files.translators.distribute.links import name_of, of_file
from repl.files.translators.distribute.marks import FILE_WANT, INCOMING, is_link, is_migrating
from repl.files.values import Entry, FopError, Loc, LockCommand, Looked

log = logging.getLogger(__name__)

THROTTLES = {"lazy": 1, "normal": 4, "aggressive": 16}
_SAVE_INTERVAL_S = 1.0
_ROOM_S = 1.0  # so long what the bricks said of their free space is believed


def parallel_of(throttle: str) -> int:
    """Files that are moved at the same time.  Raises ``UsageError``."""
    if throttle in THROTTLES:
        return THROTTLES[throttle]
    if throttle.isdigit() and 1 <= int(throttle) <= 64:
        return int(throttle)
    raise UsageError(f"rebal-throttle cannot be '{throttle}'.", advice="lazy, normal, aggressive or 1 to 64.")


@dataclass(slots=True, eq=False)
class Folder:
    """A directory on the way.  ``has_copies``: on all subvolumes."""

    gfid: bytes
    path: tuple[bytes, ...]
    loc: Loc
    has_copies: bool = False

    @property
    def text(self) -> bytes:
        return b"/" + b"/".join(self.path)


class Tidying:
    def __init__(self, dht: Distribute, mode: str, progress: Progress, path: Path | None = None) -> None:
        self.dht = dht
        self.mode = mode
        self.progress = progress
        self.began_at = 0.0
        self._path = path
        self._saved_at = float("-inf")
        self.is_stopping = False
        self.parallel = parallel_of(dht.options["rebal-throttle"])
        self._turns = asyncio.Semaphore(self.parallel)
        self._room_at = float("-inf")

    def save(self, *, is_due: bool = False) -> None:
        now = self.dht.context.now()
        self.progress.run_s = now - self.began_at
        if self._path is not None and (is_due or now - self._saved_at > _SAVE_INTERVAL_S):
            self._saved_at = now
            self.progress.save(self._path)

    def failed(self, what: object, error: OSError) -> None:
        if error.errno in AWAY:
            raise error
        if error.errno in GONE:
            return
        self.progress.failures += 1
        log.warning("rebalance: %s: %s", what, error)

    async def look_for_room(self) -> None:
        now = self.dht.context.now()
        if now - self._room_at >= _ROOM_S:
            self._room_at = now
            await self.dht.look_for_room()

    async def tidy(self, folder: Folder) -> bool:
        """True if every name is where it belongs or has its link file there."""
        await self.look_for_room()
        working: set[asyncio.Task[bool]] = set()
        is_tidy = True
        try:
            for index in self.dht.everyone:
                async for entry in entries_on(self.dht, index, folder.gfid):
                    if self.is_stopping:
                        break
                    await self._turns.acquire()
                    loc = Loc(parent=folder.gfid, name=entry.name, path=folder.text.rstrip(b"/") + b"/" + entry.name)
                    task = asyncio.ensure_future(self._entry(index, loc, entry))
                    task.add_done_callback(lambda _: self._turns.release())
                    done = {earlier for earlier in working if earlier.done()}
                    is_tidy = all([is_tidy, *(earlier.result() for earlier in done)])
                    working = working - done | {task}
                    self.save()
            return all([is_tidy, *await asyncio.gather(*working)]) and not self.is_stopping
        except BaseException:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            raise

    async def _entry(self, index: int, loc: Loc, entry: Entry) -> bool:
        try:
            if is_link(entry.xattrs):
                return await self._link(index, loc)
            self.progress.scanned += 1
            _, hashed = await self.dht.hashed_up(loc)
            if hashed == index:
                if is_migrating(entry.xattrs):
                    await Migration(self.dht, loc, index, index, gfid=entry.gfid).drop_marks()
                return True
            moved = await self._move(index, hashed, loc, entry)
        except FopError as error:
            self.failed(loc, error)
            return error.errno == errno.ENOENT
        if moved.outcome is Outcome.MOVED:
            self.progress.files += 1
            self.progress.size += moved.size
            return True
        if moved.outcome is Outcome.SKIPPED:
            self.progress.skip(moved.reason)
            if index in self.dht.decommissioned:  # it would go with the brick
                self.progress.failures += 1
            log.info("rebalance: %s stays on '%s': %s", loc, self.dht.names[index], moved.reason)
        else:
            log.debug("rebalance: %s is not on '%s' any more: %s", loc, self.dht.names[index], moved.reason)
        # Who moves it under another name may give up: this name would be missing when the directory is complete.
        return await self._has_link(index, hashed, loc)

    async def _move(self, index: int, hashed: int, loc: Loc, entry: Entry) -> Moved:
        dht = self.dht
        reason = self._has_no_room(index, hashed)
        if reason:
            return Moved(Outcome.SKIPPED, reason=reason)
        if entry.kind == stat.S_IFREG:
            takes_all = self.mode == "force" or index in dht.decommissioned
            return await Migration(dht, loc, index, hashed, takes_all_names=takes_all, gfid=entry.gfid).run()
        place, looked = await dht.find(dht.owner(), name_of(loc))
        if place != index and looked.iatt.gfid == entry.gfid:
            return Moved(Outcome.GONE)  # with another of its names
        if place != index:
            return Moved(Outcome.SKIPPED, reason="another file has its name")
        return await move_special(dht, loc, index, hashed)

    def _has_no_room(self, source: int, target: int) -> str:
        """Moving to where less is free than here would be no gain; not asked with force or when the source goes."""
        dht = self.dht
        if self.mode == "force" or source in dht.decommissioned:
            return ""
        rooms = dht.rooms
        if source in rooms and target in rooms and rooms[target].bytes_free < rooms[source].bytes_free:
            return "less space would be free at the target than at the source"
        return ""

    async def _has_link(self, index: int, hashed: int, loc: Loc) -> bool:
        try:
            async with self.dht.locked_names((hashed, loc)):
                await self.dht.repair_link_locked(name_of(loc), hashed)
        except FopError as error:
            if error.errno != errno.EEXIST:  # a client has made another file of this name just now
                self.failed(loc, error)
            return False
        return True

    async def _link(self, index: int, loc: Loc) -> bool:
        """A link file where the name does not belong (any more), or that leads nowhere, goes."""
        dht, named = self.dht, name_of(loc)
        _, hashed = await dht.hashed_up(loc)
        try:
            place, _ = await dht.find(dht.owner(), named)
        except FopError as error:
            if error.errno != errno.ENOENT:
                raise
            await dht.remove_stale(loc, index, LockCommand.WAIT)
            return True
        if index in (hashed, place):
            return True
        async with dht.locked_names((hashed, named)):
            place, _ = await dht.find(dht.owner(), named, has_lock=True)
            there = await dht.subvolumes[index].lookup(dht.owner(), named, want=FILE_WANT)
            if place != index and is_link(there.xattrs) and not await self._is_moving(place, there):
                await dht.undo(dht.subvolumes[index].unlink(dht.owner(), of_file(named, there.iatt.gfid)))
        return True

    async def _is_moving(self, place: int, there: Looked) -> bool:
        """The link file is the target of a migration that is under way."""
        if INCOMING not in there.xattrs:
            return False
        try:
            async with self.dht.locked_inode(place, Loc(gfid=there.iatt.gfid), mover_domain(self.dht),
                                             command=LockCommand.TRY):  # fmt: skip
                return False
        except FopError as error:
            if error.errno != errno.EAGAIN:
                raise
            return True
