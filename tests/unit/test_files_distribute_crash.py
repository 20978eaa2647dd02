# SPDX-License-Identifier: Apache-2.0
"""A client dies before any operation that a change of names sends: nothing is lost, names lead somewhere sensible."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from repl.files.values import ROOT_GFID, FopError
from tests.lib.distributed import Client, Died, World
from tests.lib.virtual_loop import run

Change = Callable[[Client], Awaitable[Any]]
Check = Callable[[World, Client], Awaitable[None]]


async def crash_everywhere(prepare: Callable[[World, Client], Awaitable[Change]], check: Check) -> int:
    """Dies before the first, second ... operation of the change until it gets through; how many deaths that were."""
    deaths = 0
    while True:
        world = World(4)
        client = world.client()
        await client.look("")
        change = await prepare(world, client)
        await client.idle()
        client.die_at = client.sent + deaths + 1
        try:
            await change(client)
            await client.idle()
        except (Died, asyncio.CancelledError):
            pass
        is_through = not client.is_dead
        client.die()
        for task in list(client.dht.context.tasks):
            task.cancel()
        survivor = world.client()
        await check(world, survivor)
        await survivor.idle()
        await check(world, world.client())
        if is_through:
            return deaths
        deaths += 1
        assert deaths < 200


async def content(client: Client, path: str) -> bytes | None:
    try:
        return await client.read(path)
    except FopError as error:
        assert error.errno == errno.ENOENT, error
        return None


async def check_listing(client: Client, folder: str = "") -> list[str]:
    """What is listed can be looked up, nothing is listed twice."""
    names = await client.names(folder)
    assert len(set(names)) == len(names), names
    for name in names:
        await client.look(f"{folder}/{name}")
    return names


# Where the old name, the data, the new name and the old target's data are.
PLACES = [(s, h, d) for s in (0, 1) for h in (0, 1, 2) for d in (None, 0, 1, 2)]


@pytest.mark.parametrize(("source_hashed", "hashed", "there"), PLACES)
@pytest.mark.parametrize("is_linked", [False, True])
def test_distribute_crash_in_rename(source_hashed: int, hashed: int, there: int | None, is_linked: bool) -> None:
    """The data are on brick 0; with ``is_linked`` the file has a second name."""

    async def prepare(world: World, client: Client) -> Change:
        first = world.name_on(client, 0, "first")
        await client.write(first, b"new")
        source = world.name_on(client, source_hashed, "source")
        await client.rename(first, source)
        target = world.name_on(client, hashed, "target")
        if there is not None:
            second = world.name_on(client, there, "second")
            await client.write(second, b"old")
            await client.rename(second, target)
        if is_linked:
            await client.link(source, "hard")
        world.notes = [source, target]
        return lambda c: c.rename(source, target)

    async def check(world: World, client: Client) -> None:
        source, target = world.notes
        old, new = await content(client, source), await content(client, target)
        before = b"old" if there is not None else None
        assert (old, new) in [(b"new", before), (None, b"new"), (b"new", b"new")], (old, new)
        if is_linked:
            assert await client.read("hard") == b"new"
        names = await check_listing(client)
        expected = {name for name, data in ((source, old), (target, new)) if data is not None}
        assert set(names) == expected | ({"hard"} if is_linked else set())

    run(crash_everywhere(prepare, check))


@pytest.mark.parametrize("hashed", [0, 1])
def test_distribute_crash_in_link_and_unlink(hashed: int) -> None:
    async def prepare(world: World, client: Client) -> Change:
        first, second = world.name_on(client, 0, "first"), world.name_on(client, hashed, "second")
        await client.write(first, b"data")
        world.notes = [first, second]

        async def change(c: Client) -> None:
            await c.link(first, second)
            await c.unlink(first)
            await c.unlink(second)

        return change

    async def check(world: World, client: Client) -> None:
        first, second = world.notes
        found = [await content(client, first), await content(client, second)]
        assert all(data in (None, b"data") for data in found)
        names = await check_listing(client)
        assert set(names) == {n for n, data in zip((first, second), found, strict=True) if data}
        for name, data in zip((first, second), found, strict=True):
            if data is None:
                await client.write(name, b"data")
                await client.unlink(name)
                assert await content(client, name) is None
        assert set(await client.names()) == set(names)

    assert run(crash_everywhere(prepare, check)) > 3


def test_distribute_crash_in_create_elsewhere() -> None:
    async def prepare(world: World, client: Client) -> Change:
        client.dht.decommissioned = frozenset({0})
        name = world.name_on(client, 0)
        world.notes = [name]
        return lambda c: c.write(name, b"")

    async def check(world: World, client: Client) -> None:
        (name,) = world.notes
        names = await check_listing(client)
        assert names in ([], [name])
        if not names:
            assert await content(client, name) is None
            await client.write(name, b"x")
            await client.unlink(name)

    assert run(crash_everywhere(prepare, check)) > 2


@pytest.mark.parametrize("is_renamed", [False, True])
def test_distribute_crash_in_mkdir_and_rmdir(is_renamed: bool) -> None:
    async def prepare(world: World, client: Client) -> Change:
        async def change(c: Client) -> None:
            await c.mkdir("d")
            await c.rmdir("d")

        return change

    async def check(world: World, client: Client) -> None:
        try:
            folder = (await client.look("d")).iatt.gfid
        except FopError as error:
            assert error.errno == errno.ENOENT
            await client.mkdir("d")
            folder = (await client.look("d")).iatt.gfid
        known = client.dht.directories.get(folder)
        assert known is not None and known.layout.anomalies().is_sound
        assert len(world.stored("d")) == 4
        for number in range(6):
            await client.write(f"d/f{number}", b"x")
        if is_renamed:
            await client.rename("d", "e")
            await client.rename("e", "d")
        assert len(await client.names("d")) == 6
        for number in range(6):
            await client.unlink(f"d/f{number}")
        await client.rmdir("d")
        assert not world.stored("d")

    assert run(crash_everywhere(prepare, check)) > 7


@pytest.mark.parametrize("is_replacing", [False, True])
@pytest.mark.parametrize("is_deep", [False, True])
def test_distribute_crash_in_rename_of_a_directory(is_replacing: bool, is_deep: bool) -> None:
    new = "p/new" if is_deep else "new"

    async def prepare(world: World, client: Client) -> Change:
        await client.mkdir("p")
        await client.mkdir("old")
        for number in range(4):
            await client.write(f"old/f{number}", b"x")
        if is_replacing:
            await client.mkdir(new)
        return lambda c: c.rename("old", new)

    async def check(world: World, client: Client) -> None:
        places = {}
        for path in ("old", new):
            try:
                places[path] = (await client.look(path)).iatt.gfid
            except FopError as error:
                assert error.errno == errno.ENOENT
        full = [path for path in places if await client.names(path)]
        assert len(full) == 1 and len(set(places.values())) == len(places), places
        assert await client.names(full[0]) == ["f0", "f1", "f2", "f3"]
        assert await client.read(f"{full[0]}/f0") == b"x"
        for path in ("old", new):
            assert len(world.stored(path)) == (4 if path in places else 0), path
        assert "old" not in places or full == ["old"]
        root = await check_listing(client)
        assert ("old" in root) == ("old" in places)
        gfid = places[full[0]]
        assert all(b"trusted.glusterfs.dht.moving" not in brick.inodes[gfid].xattrs for brick in world.bricks)

    assert run(crash_everywhere(prepare, check)) > 8


def test_distribute_crash_leaves_no_lock() -> None:
    async def prepare(world: World, client: Client) -> Change:
        a, b = world.name_on(client, 0, "a"), world.name_on(client, 1, "b")
        await client.write(a)
        world.notes = [a, b]
        return lambda c: c.rename(a, b)

    async def check(world: World, client: Client) -> None:
        a, b = world.notes
        path = a if await content(client, a) is not None else b
        await client.rename(path, "moved")
        await client.rename("moved", path)
        assert (await client.look("")).iatt.gfid == ROOT_GFID

    run(crash_everywhere(prepare, check))
