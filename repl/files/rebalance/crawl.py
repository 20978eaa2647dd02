# SPDX-License-Identifier: Apache-2.0
"""Walks a volume, directory by directory: new layouts, files to where they belong, link files put right.

Inputs: a distribute translator, what to do, where to keep the progress.  Output: ``Progress``.  A directory that cannot
be worked on counts as a failure and the walk goes on; a brick that goes away ends it (``OSError`` ENOTCONN), to be
started again later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from repl.files.answers import GONE
from repl.files.rebalance.layouts import fix_layout, weights_of, write_commit, write_volume_commit
from repl.files.rebalance.leftovers import clean, entries_on
from repl.files.rebalance.progress import Progress, State
from repl.files.rebalance.tidying import Folder, Tidying
from repl.files.translators.distribute import Distribute
from repl.files.values import ROOT_GFID, FopError, Loc
from repl.limits import FILES_DEPTH_MAX

MODES = ("fix-layout", "start", "force")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A directory whose layout has been made, and its children."""

    children: Sequence[Folder]
    is_laid_out: bool = False


class Crawl(Tidying):
    def __init__(self, dht: Distribute, mode: str, progress: Progress, path: Path | None = None) -> None:
        super().__init__(dht, mode, progress, path)
        self._commit = 0
        self._weights: dict[int, int] = {}
        self._ahead: dict[Folder, asyncio.Task[Prepared]] = {}  # layouts of the next directories
        self._working: deque[tuple[Folder, asyncio.Task[bool]]] = deque()  # directories, as they will be told

    @property
    def _moves(self) -> bool:
        return self.mode != "fix-layout"

    # ---- the whole ----

    async def run(self, started: Callable[[], None] = lambda: None) -> Progress:
        """``started`` is called when all bricks are there and the progress file tells so."""
        progress, context = self.progress, self.dht.context
        if progress.state in (State.COMPLETED, State.NOT_STARTED) or progress.mode != self.mode:
            self.progress = progress = Progress(mode=self.mode, started_ns=context.wall_ns(), pid=progress.pid)
        self.began_at = context.now() - progress.run_s
        progress.state = State.IN_PROGRESS
        try:
            await self._prepare()
            started()
            await self._walk()
            if not self.is_stopping and self._moves:
                await write_volume_commit(self.dht, self._commit)
            progress.state = State.STOPPED if self.is_stopping else State.COMPLETED
        except BaseException:
            progress.state = State.FAILED
            raise
        finally:
            self.save(is_due=True)
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
        self.save(is_due=True)

    # ---- directories ----

    async def _walk(self) -> None:
        """Parents before their children, those in order; what is done already is passed over.  Layouts of a few
        directories are made ahead, and files of a few are moved at the same time."""
        left = [Folder(ROOT_GFID, (), Loc(gfid=ROOT_GFID, path=b"/"))]
        try:
            while left and not self.is_stopping:
                self._look_ahead(left)
                here = left.pop()
                found = await self._ahead[here]
                del self._ahead[here]
                if not self.progress.is_done(here.path):
                    await self._begin(here, found)
                if len(here.path) < FILES_DEPTH_MAX:
                    left += reversed(found.children)
            while self._working:
                await self._end_first()
        finally:
            tasks = [*self._ahead.values(), *(task for _, task in self._working)]
            if not self.is_stopping:  # something has failed
                for task in tasks:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _look_ahead(self, left: Sequence[Folder]) -> None:
        for folder in reversed(left[-self.parallel :]):
            if folder not in self._ahead and (len(self._ahead) < self.parallel or folder is left[-1]):
                self._ahead[folder] = asyncio.ensure_future(self._lay_out(folder))

    async def _lay_out(self, folder: Folder) -> Prepared:
        if self.progress.is_done(folder.path):
            return Prepared(await self._children_or_none(folder))
        try:
            if not folder.has_copies:
                await self.dht.lookup(self.dht.owner(), folder.loc)  # makes missing copies
            await clean(self.dht, folder.gfid)
            await fix_layout(self.dht, folder.gfid, folder.text, self._weights)
            children = await self._children(folder)
            for at in range(0, len(children), self.parallel):
                await asyncio.gather(*map(self._look, children[at : at + self.parallel]))
        except FopError as error:
            self.failed(folder.loc, error)
            return Prepared(await self._children_or_none(folder))
        return Prepared(children, is_laid_out=True)

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

    async def _children_or_none(self, folder: Folder) -> list[Folder]:
        try:
            return await self._children(folder)
        except FopError as error:
            self.failed(folder.loc, error)
            return []

    async def _look(self, folder: Folder) -> None:
        """So that it is on the subvolume that its name belongs to now, and on all others."""
        try:
            await self.dht.lookup(self.dht.owner(), folder.loc)
            folder.has_copies = True
        except FopError as error:
            if error.errno not in GONE:  # half of one that was removed
                raise

    async def _begin(self, folder: Folder, found: Prepared) -> None:
        self._working.append((folder, asyncio.ensure_future(self._finish(folder, found))))
        while self._working and (len(self._working) > self.parallel or self._working[0][1].done()):
            await self._end_first()

    async def _finish(self, folder: Folder, found: Prepared) -> bool:
        """False: it was stopped."""
        if not found.is_laid_out or not self._moves:
            return True
        try:
            if await self.tidy(folder):
                await write_commit(self.dht, await self.dht.directory(folder.gfid), self._commit)
        except FopError as error:
            self.failed(folder.loc, error)
        return not self.is_stopping

    async def _end_first(self) -> None:
        """Told are directories in their order: who starts again goes on behind the last one."""
        folder, task = self._working[0]
        if await task:
            self.progress.directories += 1
            self.progress.last_directory = [part.decode(errors="surrogateescape") for part in folder.path]
            self._working.popleft()
        else:
            await asyncio.gather(*(other for _, other in self._working), return_exceptions=True)
            self._working.clear()
        self.save()
