# SPDX-License-Identifier: Apache-2.0
"""Clients over bricks in memory (``distributed``) that meet: at random moments, or where one of them is held up."""

from __future__ import annotations

import asyncio
import random
import stat
from collections import Counter
from typing import Any

from repl.files.values import ROOT_GFID, Caller, Loc
from tests.lib.distributed import LINKTO, Client, World

LAYOUT = b"trusted.glusterfs.dht"
MDS = b"trusted.glusterfs.dht.mds"
_ANOTHER = Caller(client="another")


def slow_down(client: Client, dice: random.Random, *, often: int = 1) -> None:
    """Pauses before its operations; ``often``: so many have none for one that has one."""

    async def pause(_brick: str, _fop: str) -> None:
        await asyncio.sleep(dice.choice((*[0] * often, dice.random())))

    client.pause = pause


class Held:
    """A client that stops once before an operation on a brick, until it may go on."""

    def __init__(self, client: Client, brick: int, fop: str) -> None:
        self.is_there, self.may_go = asyncio.Event(), asyncio.Event()

        async def pause(where: str, what: str) -> None:
            if (where, what) == (f"brick{brick}", fop) and not self.is_there.is_set():
                self.is_there.set()
                await self.may_go.wait()

        client.pause = pause

    async def reached(self, work: asyncio.Task[Any]) -> None:
        """Or the work is over."""
        waiting = asyncio.create_task(self.is_there.wait())
        await asyncio.wait((waiting, work), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()


async def pair(world: World) -> tuple[Client, Client]:
    """Two clients; a miss in the root is final for them."""
    clients = world.client(), world.client()
    for client in clients:
        await client.look("")
    await clients[0].mkdir("any")  # the layout of the root is known and counts
    await clients[0].rmdir("any")
    return clients


async def misplaced(
    world: World, client: Client, data: bytes = b"data", head: str = "name", *, at: int = 0, hashed: int = 1
) -> str:
    """A file whose data are on one brick and whose name belongs to another one."""
    await client.look("")
    first, name = world.name_on(client, at, f"first-{head}"), world.name_on(client, hashed, head)
    await client.write(first, data)
    await client.rename(first, name)
    assert (world.data_at(name), world.links_at(name)) == ([at], [hashed])
    return name


async def put_in_place(world: World, brick: int, name: str, folder: bytes = ROOT_GFID) -> bytes:
    """A file comes to a name on a brick, in place of what is there, as from a client that knows another layout and
    renames without locks; its gfid."""
    gfid, child, hidden = world.new_gfid(), world.bricks[brick], Loc(parent=folder, name=b"on its way")
    await child.mknod(_ANOTHER, hidden, mode=stat.S_IFREG | 0o644, rdev=0, gfid=gfid)
    await child.rename(_ANOTHER, hidden, Loc(parent=folder, name=name.encode()))
    return gfid


def change_layout(world: World, one: int, other: int) -> None:
    """What belonged to one brick belongs to the other one, and the other way round; a miss is not final any more."""
    first, second = (world.bricks[index].inodes[ROOT_GFID].xattrs for index in (one, other))
    first[LAYOUT], second[LAYOUT] = (b"\0\0\0\1" + xattrs[LAYOUT][4:] for xattrs in (second, first))


async def check_whole(world: World, folder: str = "", found: Counter[bytes] | None = None) -> Counter[bytes]:
    """Everything that is listed can be reached, once, and says what was written into it; gfid -> names."""
    client = world.client()
    is_top = found is None
    found = Counter() if found is None else found
    entries = await client.entries(folder)
    names = [entry.name for entry in entries]
    assert len(set(names)) == len(names), names
    nlinks: dict[bytes, int] = {}
    for entry in entries:
        path = f"{folder}/{entry.name.decode()}"
        looked = await client.look(path)
        assert looked.iatt.gfid == entry.gfid
        if looked.iatt.is_directory:
            copies = world.stored(path)
            assert len(copies) == len(world.bricks), path
            assert len({copy.iatt.mode for copy in copies.values()}) == 1, path
            assert not any(any(copy.xattrs.get(MDS, b"")) for copy in copies.values()), path
            await check_whole(world, path, found)
        else:
            found[entry.gfid] += 1
            nlinks[entry.gfid] = looked.iatt.nlink
            assert len(world.data_at(path)) == 1, (path, world.data_at(path))
            assert await client.read(path) == entry.gfid[-4:]
    if is_top:
        for gfid, nlink in nlinks.items():
            assert found[gfid] == nlink, gfid
    await client.idle()
    return found


def name_contents(world: World) -> None:
    """Files in which nothing has been written get their contents."""
    for brick in world.bricks:
        for gfid, inode in brick.inodes.items():
            if inode.iatt.is_regular and not inode.data and LINKTO not in inode.xattrs:
                inode.data[:] = gfid[-4:]


async def check_contents(world: World) -> None:
    """``check_whole`` where nobody has written."""
    name_contents(world)
    await check_whole(world)
