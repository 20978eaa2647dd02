# SPDX-License-Identifier: Apache-2.0
"""Several clients change the same few names at the same time: the volume stays whole, readers always find a file."""

from __future__ import annotations

import asyncio
import errno
import random
from collections import Counter

import pytest

from repl.files.values import FopError
from tests.lib.distributed import Client, World
from tests.lib.virtual_loop import run

EXPECTED = (errno.EPERM, errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.ESTALE)


def slow_down(client: Client, dice: random.Random) -> None:
    async def pause(_brick: str, _fop: str) -> None:
        await asyncio.sleep(dice.choice((0, dice.random())))

    client.pause = pause


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
            assert len(world.stored(path)) == len(world.bricks), path
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


async def work(client: Client, dice: random.Random, paths: list[str], *, has_folders: bool) -> None:
    kinds = ["write", "unlink", "rename", "rename", "link", "read"] + (["mkdir", "rmdir"] if has_folders else [])
    for _ in range(30):
        kind, path, other = dice.choice(kinds), dice.choice(paths), dice.choice(paths)
        try:
            if kind == "write":
                gfid = await client.write(path)
                fd = await client.open(path)
                if fd.gfid == gfid:
                    await client.dht.writev(client.caller, fd, gfid[-4:], offset=0)
                await client.dht.release(fd)
            elif kind in ("rename", "link"):
                await getattr(client, kind)(path, other)
            else:
                await getattr(client, kind)(path)
        except FopError as error:
            assert error.errno in EXPECTED, error


@pytest.mark.parametrize("has_folders", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_distribute_clients_that_change_the_same_names(seed: int, has_folders: bool) -> None:
    async def scenario() -> None:
        world = World(3, seed=seed)
        dice = random.Random(seed)
        first = world.client()
        await first.mkdir("d")
        clients = [world.client() for _ in range(3)]
        for client in clients:
            await client.look("d")
            slow_down(client, dice)
        paths = ["a", "b", "c", "d/a", "d/b"]
        await asyncio.gather(*(work(client, dice, paths, has_folders=has_folders) for client in clients))
        for client in clients:
            await client.idle()
        # Files that were caught between creation and writing have nothing in them; they are not what this is about.
        for brick in world.bricks:
            for gfid, inode in brick.inodes.items():
                if inode.iatt.is_regular and not inode.data and b"trusted.glusterfs.dht.linkto" not in inode.xattrs:
                    inode.data[:] = gfid[-4:]
        await check_whole(world)

    run(scenario())


@pytest.mark.parametrize("seed", range(12))
def test_distribute_name_that_is_replaced_is_never_missing(seed: int) -> None:
    async def scenario() -> None:
        world = World(3, seed=seed)
        dice = random.Random(seed)
        writer, reader = world.client(), world.client()
        await writer.write("target", b"0")
        await reader.look("target")
        slow_down(writer, dice)
        slow_down(reader, dice)
        is_over = False

        async def write() -> None:
            nonlocal is_over
            for number in range(1, 15):
                await writer.write(f"source{number}", b"%d" % number)
                await writer.rename(f"source{number}", "target")
            is_over = True

        async def read() -> None:
            last = 0
            while not is_over:
                looked = await reader.look("target")
                assert not looked.iatt.is_directory
                try:
                    number = int(await reader.read("target"))
                except FopError as error:
                    assert error.errno == errno.ESTALE  # replaced since it was looked up: the kernel looks again
                    continue
                assert number >= last
                last = number

        await asyncio.gather(write(), read())
        assert await world.client().names() == ["target"]

    run(scenario())
