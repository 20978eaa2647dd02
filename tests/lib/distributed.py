# SPDX-License-Identifier: Apache-2.0
"""Bricks in memory below cluster/distribute, with clients that can die at any operation.

``World`` makes bricks and clients; a client's ``Port`` to a brick counts what it sends: ``die_at`` is the number of the
operation before which the client dies.  Of a dead client nothing more reaches a brick, and bricks drop its locks.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Callable
from typing import Any

from repl.files.options import Options, parse_options
from repl.files.translator import FOPS, Context, Translator
from repl.files.translators.distribute import Distribute
from repl.files.values import ROOT_GFID, Caller, Entry, Fd, Loc, Looked
from tests.lib.memory_brick import MemoryBrick

LINKTO = b"trusted.glusterfs.dht.linkto"


class Died(BaseException):
    """The client is no more."""


def _quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The background work of the dead ends like everything else of theirs."""
    if not isinstance(context.get("exception"), Died):
        loop.default_exception_handler(context)


class Port(Translator):
    """From one client to one brick."""

    def __init__(self, client: Client, brick: MemoryBrick) -> None:
        super().__init__(brick.name, Options((), {}, {}), [brick], brick.context)
        self.client = client.name
        self._client = client
        for fop in FOPS:
            setattr(self, fop, self._passing(fop))

    def _passing(self, fop: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._client.before(self, fop)
            answer = await getattr(self.subvolumes[0], fop)(*args, **kwargs)
            if self._client.is_dead:
                raise Died
            await asyncio.sleep(0)
            return answer

        return call

    async def release(self, fd: Fd) -> None:
        if not self._client.is_dead:
            await super().release(fd)


class Client:
    """A mount: one distribute volume over all bricks, with shortcuts by path."""

    def __init__(self, world: World, name: str, options: dict[str, str]) -> None:
        self.name = name
        self.world = world
        self.is_dead = False
        self.sent = 0
        self.die_at: int | None = None
        self.log: list[str] = []
        self.pause: Callable[[str, str], Any] | None = None
        context = Context(process=name, random=random.Random(f"{world.seed}-{name}"))
        self.ports = [Port(self, brick) for brick in world.bricks]
        self.dht = Distribute("dht", parse_options(Distribute.OPTIONS, options), self.ports, context)
        self.caller = Caller(client=name, lock_owner=name.encode())

    async def before(self, port: Port, fop: str) -> None:
        self.sent += 1
        if self.is_dead or (self.die_at is not None and self.sent >= self.die_at):
            self.die()
            raise Died
        self.log.append(f"{port.name}.{fop}")
        if self.pause is not None:
            await self.pause(port.name, fop)

    def die(self) -> None:
        if not self.is_dead:
            self.is_dead = True
            asyncio.get_running_loop().set_exception_handler(_quiet)
            for brick in self.world.bricks:
                brick.drop_client(self.name)

    # ---- by path ----

    async def at(self, path: str) -> Loc:
        """Parent's gfid and name."""
        *folders, name = path.strip("/").split("/")
        parent = ROOT_GFID
        for folder in folders:
            looked = await self.dht.lookup(self.caller, Loc(parent=parent, name=folder.encode()))
            parent = looked.iatt.gfid
        return Loc(parent=parent, name=name.encode(), path=b"/" + path.strip("/").encode())

    async def look(self, path: str) -> Looked:
        if path.strip("/") == "":
            return await self.dht.lookup(self.caller, Loc(gfid=ROOT_GFID, path=b"/"))
        return await self.dht.lookup(self.caller, await self.at(path))

    async def write(self, path: str, data: bytes = b"") -> bytes:
        """A new file; answers its gfid."""
        gfid, loc = self.world.new_gfid(), await self.at(path)
        fd = Fd(gfid, os.O_RDWR)
        await self.dht.create(self.caller, loc, fd, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=gfid)
        if data:
            await self.dht.writev(self.caller, fd, data, offset=0)
        await self.dht.release(fd)
        return gfid

    async def open(self, path: str, flags: int = os.O_RDWR) -> Fd:
        looked = await self.look(path)
        fd = Fd(looked.iatt.gfid, flags)
        await self.dht.open(self.caller, Loc(gfid=looked.iatt.gfid), fd, flags=flags)
        return fd

    async def read(self, path: str) -> bytes:
        fd = await self.open(path, os.O_RDONLY)
        try:
            return bytes((await self.dht.readv(self.caller, fd, size=1 << 20, offset=0)).data)
        finally:
            await self.dht.release(fd)

    async def mkdir(self, path: str) -> bytes:
        gfid = self.world.new_gfid()
        await self.dht.mkdir(self.caller, await self.at(path), mode=0o755, gfid=gfid)
        return gfid

    async def unlink(self, path: str) -> None:
        await self.dht.unlink(self.caller, await self.at(path))

    async def rmdir(self, path: str) -> None:
        await self.dht.rmdir(self.caller, await self.at(path))

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        await self.dht.rename(self.caller, await self.at(old), await self.at(new), flags=flags)

    async def link(self, old: str, new: str) -> None:
        source = Loc(gfid=(await self.look(old)).iatt.gfid)
        await self.dht.link(self.caller, source, await self.at(new))

    async def entries(self, path: str = "", size: int = 4096) -> list[Entry]:
        gfid = (await self.look(path)).iatt.gfid
        fd = Fd(gfid, is_directory=True)
        await self.dht.opendir(self.caller, Loc(gfid=gfid), fd)
        found: list[Entry] = []
        offset = 0
        while part := await self.dht.readdir(self.caller, fd, size=size, offset=offset):
            found += part
            offset = part[-1].offset
        await self.dht.release(fd)
        return found

    async def names(self, path: str = "", size: int = 4096) -> list[str]:
        return sorted(entry.name.decode() for entry in await self.entries(path, size))

    async def idle(self) -> None:
        """Until nothing is left to do in the background."""
        while self.dht.context.tasks:
            await asyncio.gather(*list(self.dht.context.tasks), return_exceptions=True)


class World:
    def __init__(self, bricks: int = 4, *, seed: int = 0, **options: str) -> None:
        self.seed = seed
        self.notes: list[str] = []  # for tests
        self.options = {key.replace("_", "-"): value for key, value in options.items()}
        self._numbers = itertools.count(1)
        self.bricks = [MemoryBrick(f"brick{i}") for i in range(bricks)]
        self.clients: list[Client] = []

    def new_gfid(self) -> bytes:
        return b"\xcd" + bytes(11) + next(self._numbers).to_bytes(4, "big")

    def client(self, **options: str) -> Client:
        given = self.options | {key.replace("_", "-"): value for key, value in options.items()}
        client = Client(self, f"client{len(self.clients)}", given)
        self.clients.append(client)
        return client

    def name_on(self, client: Client, brick: int, head: str = "f", folder: bytes = ROOT_GFID, skip: int = 0) -> str:
        """A name that belongs to the brick, as the client knows the layout of the directory."""
        known = client.dht.directories.get(folder)
        assert known is not None
        for number in range(1000):
            name = f"{head}{number}"
            if known.layout.owner(client.dht.hash_of(name.encode())) == brick:
                if skip == 0:
                    return name
                skip -= 1
        raise AssertionError

    def stored(self, path: str) -> dict[int, Any]:
        """What is at a path, by brick."""
        found = {}
        for number, brick in enumerate(self.bricks):
            gfid = ROOT_GFID
            for part in filter(None, path.split("/")):
                entry = brick.inodes[gfid].entries.get(part.encode()) if gfid in brick.inodes else None
                gfid = entry[1] if entry else b""
            if gfid in brick.inodes:
                found[number] = brick.inodes[gfid]
        return found

    def data_at(self, path: str) -> list[int]:
        return [i for i, inode in self.stored(path).items() if LINKTO not in inode.xattrs]

    def links_at(self, path: str) -> list[int]:
        return [i for i, inode in self.stored(path).items() if LINKTO in inode.xattrs]
