# SPDX-License-Identifier: Apache-2.0
"""Walks a volume, directory by directory: new layouts, files to where they belong, link files put right.

Inputs: a distribute translator, what to do, where to keep the progress.  Output: ``Progress``.  A directory that cannot
be worked on counts as a failure and the walk goes on; a brick that goes away ends it (``OSError`` ENOTCONN), to be
started again later.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from repl.errors import UsageError
from repl.files.answers import AWAY, GONE
from repl.files.rebalance.layouts import fix_layout, weights_of, write_commit, write_volume_commit
from repl.files.rebalance.leftovers import clean, entries_on
from repl.files.rebalance.migration import Migration, Moved, Outcome, mover_domain
from repl.files.rebalance.progress import Progress, State
from repl.files.rebalance.special import move_special
from repl.files.translators.distribute import Distribute
from repl.files.translators.distribute.links import name_of
from repl.files.translators.distribute.marks import FILE_WANT, INCOMING, is_link
from repl.files.values import ROOT_GFID, Entry, FopError, Loc, LockCommand, Looked
from repl.limits import FILES_DEPTH_MAX

log = logging.getLogger(__name__)

MODES = ("fix-layout", "start", "force")
THROTTLES = {"lazy": 1, "normal": 4, "aggressive": 16}
_LISTING_BYTES = 64 * 1024
_SAVE_INTERVAL_S = 1.0


def parallel_of(throttle: str) -> int:
    """Files that are moved at the same time.  Raises ``UsageError``."""
    if throttle in THROTTLES:
        return THROTTLES[throttle]
    if throttle.isdigit() and 1 <= int(throttle) <= 64:
        return int(throttle)
    raise UsageError(f"rebal-throttle cannot be '{throttle}'.", advice="lazy, normal, aggressive or 1 to 64.")


@dataclass(slots=True)
class Folder:
    """A directory on the way."""

    gfid: bytes
    path: tuple[bytes, ...]
    loc: Loc

    @property
    def text(self) -> bytes:
        return b"/" + b"/".join(self.path)


class Crawl:
    def __init__(self, dht: Distribute, mode: str, progress: Progress, path: Path | None = None) -> None:
        self.dht = dht
        self.mode = mode
        self.progress = progress
        self.is_stopping = False
        self._path = path
        self._saved_at = float("-inf")
        self._parallel = parallel_of(dht.options["rebal-throttle"])
        self._commit = 0
        self._weights: dict[int, int] = {}

    @property
    def _moves(self) -> bool:
        return self.mode != "fix-layout"

    # ---- the whole ----

    async def run(self, started: Callable[[], None] = lambda: None) -> Progress:
        """``started`` is called when all bricks are there and the progress file tells so."""
        progress, context = self.progress, self.dht.context
        if progress.state in (State.COMPLETED, State.NOT_STARTED) or progress.mode != self.mode:
            self.progress = progress = Progress(mode=self.mode, started_ns=context.wall_ns(), pid=progress.pid)
        began = context.now() - progress.run_s
        progress.state = State.IN_PROGRESS
        try:
            await self._prepare()
            started()
            async for folder in self._folders(Folder(ROOT_GFID, (), Loc(gfid=ROOT_GFID, path=b"/"))):
                await self._work_on(folder)
                progress.run_s = context.now() - began
                self._save()
                if self.is_stopping:
                    break
            if not self.is_stopping and self._moves:
                await write_volume_commit(self.dht, self._commit)
            progress.state = State.STOPPED if self.is_stopping else State.COMPLETED
        except BaseException:
            progress.state = State.FAILED
            raise
        finally:
            progress.run_s = context.now() - began
            self._save(is_due=True)
        return progress

    async def _prepare(self) -> None:
        dht = self.dht
        await dht.settled()
        dht.need_all("rebalance")
        await dht.look_for_room()
        if dht.options["weighted-rebalance"]:
            self._weights = weights_of(dht.rooms)
        await dht.directory(ROOT_GFID)
        self._commit = self.progress.commit or dht.volume_commit or dht.fresh_commit()
        self.progress.commit = self._commit
        self._save(is_due=True)

    def _save(self, *, is_due: bool = False) -> None:
        now = self.dht.context.now()
        if self._path is not None and (is_due or now - self._saved_at > _SAVE_INTERVAL_S):
            self._saved_at = now
            self.progress.save(self._path)

    # ---- directories ----

    async def _folders(self, folder: Folder) -> AsyncIterator[Folder]:
        """Parents before their children, those in order; what is done already is passed over."""
        left = [folder]
        while left:
            here = left.pop()
            if not self.progress.is_done(here.path):
                yield here
            if self.is_stopping or len(here.path) >= FILES_DEPTH_MAX:
                return
            try:
                children = await self._children(here)
            except FopError as error:
                self._failed(here, error)
                continue
            left += reversed(children)

    async def _children(self, folder: Folder) -> list[Folder]:
        """As each subvolume has them: a listing of the volume would look for every file that is not in its place."""
        found: dict[bytes, bytes] = {}
        for index in self.dht.everyone:
            async for entry in entries_on(self.dht, index, folder.gfid, folders=True):
                found[entry.name] = entry.gfid
        return [
            Folder(gfid, (*folder.path, name), Loc(parent=folder.gfid, name=name,
                                                   path=b"/" + b"/".join((*folder.path, name))))
            for name, gfid in sorted(found.items())
        ]  # fmt: skip

    def _failed(self, what: object, error: OSError) -> None:
        if error.errno in AWAY:
            raise error
        if error.errno in GONE:
            return
        self.progress.failures += 1
        log.warning("rebalance: %s: %s", what, error)

    async def _work_on(self, folder: Folder) -> None:
        progress = self.progress
        try:
            await self.dht.lookup(self.dht.owner(), folder.loc)  # makes missing copies
            await clean(self.dht, folder.gfid)
            await fix_layout(self.dht, folder.gfid, folder.text, self._weights)
            for child in await self._children(folder):
                await self._look(child)
            if self._moves and await self._tidy(folder) and not self.is_stopping:
                await write_commit(self.dht, await self.dht.directory(folder.gfid), self._commit)
        except FopError as error:
            self._failed(folder.loc, error)
        if not self.is_stopping:
            progress.directories += 1
            progress.last_directory = [part.decode(errors="surrogateescape") for part in folder.path]

    async def _look(self, folder: Folder) -> None:
        """So that it is on the subvolume that its name belongs to now."""
        try:
            await self.dht.lookup(self.dht.owner(), folder.loc)
        except FopError as error:
            if error.errno not in GONE:  # half of one that was removed
                raise

    # ---- files ----

    async def _tidy(self, folder: Folder) -> bool:
        """Files of one directory; True if every name is where it belongs or has its link file there."""
        await self.dht.look_for_room()
        working: set[asyncio.Task[bool]] = set()
        is_tidy = True
        try:
            for index in self.dht.everyone:
                async for entry in entries_on(self.dht, index, folder.gfid):
                    if self.is_stopping:
                        return False
                    loc = Loc(parent=folder.gfid, name=entry.name, path=folder.text.rstrip(b"/") + b"/" + entry.name)
                    if len(working) >= self._parallel:
                        done, working = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
                        is_tidy = all([is_tidy, *(task.result() for task in done)])
                    working.add(asyncio.ensure_future(self._entry(index, loc, entry)))
                    self._save()
            return all([is_tidy, *await asyncio.gather(*working)])
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
                return True
            moved = await self._move(index, hashed, loc, entry)
        except FopError as error:
            self._failed(loc, error)
            return error.errno in GONE
        if moved.outcome is Outcome.MOVED:
            self.progress.files += 1
            self.progress.size += moved.size
        elif moved.outcome is Outcome.SKIPPED:
            self.progress.skip(moved.reason)
            log.info("rebalance: %s stays on '%s': %s", loc, self.dht.names[index], moved.reason)
            return await self._has_link(index, hashed, loc)
        else:
            log.debug("rebalance: %s is not on '%s' any more: %s", loc, self.dht.names[index], moved.reason)
        return True

    async def _move(self, index: int, hashed: int, loc: Loc, entry: Entry) -> Moved:
        dht = self.dht
        place, looked = await dht.find(dht.owner(), name_of(loc))
        if place != index and looked.iatt.gfid == entry.gfid:
            return Moved(Outcome.GONE)  # with another of its names
        if place != index:
            return Moved(Outcome.SKIPPED, reason="another file has its name")
        reason = self._has_no_room(index, hashed)
        if reason:
            return Moved(Outcome.SKIPPED, reason=reason)
        if not looked.iatt.is_regular:
            return await move_special(dht, loc, index, hashed)
        takes_all = self.mode == "force" or index in dht.decommissioned
        return await Migration(dht, loc, index, hashed, takes_all_names=takes_all).run()

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
            self._failed(loc, error)
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
            place, _ = await dht.find(dht.owner(), named)
            there = await dht.subvolumes[index].lookup(dht.owner(), named, want=FILE_WANT)
            if place != index and is_link(there.xattrs) and not await self._is_moving(place, there):
                await dht.undo(dht.subvolumes[index].unlink(dht.owner(), named))
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
