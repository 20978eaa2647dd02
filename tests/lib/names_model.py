# SPDX-License-Identifier: Apache-2.0
"""Names that are replaced and removed while bricks go and come back: what each may mean at any time.

``Names`` works like a mount of one program: it looks a name up and acts on the answer, and goes on with names of which
nobody knows what became of them.  For each name it knows the possible contents (None: no such name): after an
acknowledged change exactly one, after one that failed those before and behind it.  Every read must find one of them,
which ends the doubt (decision 0134), and so must the bricks at the end.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from repl.files.values import Fd, FopError, Loc
from tests.lib.replicas import Client

NAMES = tuple(b"f%d" % i for i in range(4))
NEW = b"new"


class Names:
    """In the directory ``folder``; ``idle``: awaited when something failed, so that time goes on for the faults."""

    def __init__(self, client: Client, folder: bytes, seed: int, idle: Callable[[], Awaitable[None]]) -> None:
        self.client = client
        self.afr = client.afr
        self.caller = client.caller
        self.folder = folder
        self.random = random.Random(seed)
        self.idle = idle
        self.possible: dict[bytes, set[bytes | None]] = {name: {None} for name in NAMES}
        self.history: dict[bytes, deque[str]] = {name: deque(maxlen=12) for name in NAMES}
        self.pauses: tuple[float, ...] = (0, 0, 0.01, 2)  # one of them after each operation
        self.acknowledged = 0
        self.errors: list[str] = []
        self.count = 0

    async def run(self, operations: int) -> None:
        for _ in range(operations):
            self.count += 1
            work = self.random.choice((self.replace, self.replace, self.remove, self.look, self.look))
            name = self.random.choice(NAMES)
            try:
                await work(name)
                self.acknowledged += work != self.look
            except FopError as error:
                self.errors.append(f"{self.count} {work.__name__} of {name!r} failed: {error}")
                self._note(name, self.errors[-1])
                await self.idle()
            await asyncio.sleep(self.random.choice(self.pauses))

    def _note(self, name: bytes, what: str) -> None:
        self.history[name].append(f"{self.count} {what}")

    def _loc(self, name: bytes, gfid: bytes = bytes(16)) -> Loc:
        return Loc(gfid, self.folder, name)

    async def _find(self, name: bytes) -> bytes | None:
        """Its gfid, None if there is no such name."""
        try:
            return (await self.afr.lookup(self.caller, self._loc(name))).iatt.gfid
        except FopError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    # ---- what is done ----

    async def _write_new(self, data: bytes) -> None:
        """The file is made, or emptied if it is there."""
        gfid = await self._find(NEW)
        if gfid is None:
            gfid = self.client.context.new_gfid()
            fd = Fd(gfid, os.O_WRONLY)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            await self.afr.create(self.caller, self._loc(NEW), fd, flags=flags, mode=0o644, gfid=gfid)
        else:
            fd = Fd(gfid, os.O_WRONLY)
            await self.afr.open(self.caller, self._loc(NEW, gfid), fd, flags=os.O_WRONLY | os.O_TRUNC)
        try:
            await self.afr.writev(self.caller, fd, data, offset=0)
            await self.afr.fsync(self.caller, fd)
        finally:
            await self.afr.release(fd)

    async def replace(self, name: bytes) -> None:
        data = b"%08d" % self.count
        await self._write_new(data)
        gfid = await self._find(NEW)
        if gfid is None:
            raise FopError(errno.ENOENT, "new")
        self.possible[name].add(data)
        self._note(name, f"replacing by {gfid.hex()[-4:]}")
        await self.afr.rename(self.caller, self._loc(NEW, gfid), self._loc(name))
        self.possible[name] = {data}
        self._note(name, "replaced")

    async def remove(self, name: bytes) -> None:
        gfid = await self._find(name)
        if gfid is None:
            self._saw(name, None)
            return
        self.possible[name].add(None)
        self._note(name, f"removing {gfid.hex()[-4:]}")
        await self.afr.unlink(self.caller, self._loc(name, gfid))
        self.possible[name] = {None}
        self._note(name, "removed")

    async def look(self, name: bytes) -> None:
        gfid = await self._find(name)
        if gfid is None:
            self._saw(name, None)
            return
        fd = Fd(gfid, os.O_RDONLY)
        await self.afr.open(self.caller, self._loc(name, gfid), fd, flags=os.O_RDONLY)
        try:
            self._saw(name, bytes((await self.afr.readv(self.caller, fd, size=100, offset=0)).data))
        finally:
            await self.afr.release(fd)

    # ---- judging ----

    def _saw(self, name: bytes, content: bytes | None) -> None:
        self._note(name, f"saw {content!r}")
        about = f"{name!r} is {content!r}, possible: {self.possible[name]}; {list(self.history[name])}"
        assert content in self.possible[name], about
        self.possible[name] = {content}

    def check(self, tree: dict[bytes, Any], path: bytes) -> None:
        """``tree`` is that of ``World.tree``, ``path`` that of the folder."""
        for name in NAMES:
            about = tree.get(path + b"/" + name)
            self._saw(name, about[6] if about else None)
