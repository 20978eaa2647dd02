# SPDX-License-Identifier: Apache-2.0
"""A client changes a name by a layout that has just changed: it means what others see under the name by the new one.

It is stopped right before the operation on the brick where the name belonged.  Then the layout changes, and what had
the name is moved, or another client makes a file of this name.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable

import pytest

from repl.files.rebalance.migration import Migration
from repl.files.rebalance.mover import Outcome
from repl.files.translators.distribute.renames import NOREPLACE
from repl.files.values import ROOT_GFID, FopError, Loc
from tests.lib.distributed import Client, World
from tests.lib.distributed_meetings import LAYOUT, Held, change_layout, pair
from tests.lib.virtual_loop import run


async def outcome(work: Awaitable[object]) -> int:
    try:
        await work
    except FopError as error:
        return error.errno
    return 0


class Scene:
    """``source`` and ``name`` belong to brick ``old``, and to ``new`` afterwards."""

    def __init__(self, old: int, new: int) -> None:
        self.old, self.new = old, new
        self.world = World(3)

    async def begin(self) -> Client:
        client, self.other = await pair(self.world)
        self.source = self.world.name_on(client, self.old, "source")
        self.name = self.world.name_on(client, self.old, "name")
        await client.write(self.source, b"source")
        await client.look(self.source)
        return client

    def change_layout(self) -> None:
        change_layout(self.world, self.old, self.new)

    async def change(self, client: Client, fop: str, work: Awaitable[None], way: str) -> int:
        """``way``: the file of that name has been moved (``moved``), its link file is there yet (``switched``), or
        there is a file only by the new layout (``made``).  The work's error."""
        held = Held(client, self.old, fop)
        working = asyncio.ensure_future(outcome(work))
        await held.is_there.wait()
        self.change_layout()
        mover = self.world.client()
        await mover.look("")
        if way == "made":
            await mover.write(self.name, b"other")
            held.may_go.set()
            return await working
        clearing = Held(mover, self.old, "unlink")
        migration = Migration(mover.dht, Loc(parent=ROOT_GFID, name=self.name.encode()), self.old, self.new)
        moving = asyncio.ensure_future(migration.run())
        await clearing.is_there.wait()
        if way == "moved":
            clearing.may_go.set()
            await moving
        held.may_go.set()
        while way == "switched" and not working.done() and not client.log[-1].endswith("entrylk"):
            await asyncio.sleep(0.01)  # until it waits for the mover's lock
        clearing.may_go.set()
        assert (await moving).outcome is Outcome.MOVED
        return await working

    async def contents(self, client: Client) -> dict[str, bytes]:
        await client.idle()
        reader = self.world.client()
        return {name: await reader.read(name) for name in await reader.names()}


@pytest.fixture(params=[(1, 2), (2, 1)], ids=["up", "down"])
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(*request.param)


@pytest.mark.parametrize("way", ["moved", "switched", "made"])
def test_rename_replaces_what_has_the_name_by_now(scene: Scene, way: str) -> None:
    async def scenario() -> None:
        client = await scene.begin()
        if way != "made":
            await client.write(scene.name, b"name")
        assert await scene.change(client, "rename", client.rename(scene.source, scene.name), way) == 0
        assert await scene.contents(client) == {scene.name: b"source"}
        assert (scene.world.data_at(scene.name), scene.world.links_at(scene.name)) == ([scene.old], [scene.new])
        assert not scene.world.stored(scene.source)

    run(scenario())


def test_rename_that_may_not_replace_gives_the_old_name_back(scene: Scene) -> None:
    async def scenario() -> None:
        client = await scene.begin()
        renaming = client.rename(scene.source, scene.name, NOREPLACE)
        assert await scene.change(client, "rename", renaming, "made") == errno.EEXIST
        # The old name belongs elsewhere now as well, where a rebalance would make its link file.
        assert list(scene.world.stored(scene.source)) == [scene.old]
        assert await scene.contents(client) == {scene.source: b"source", scene.name: b"other"}

    run(scenario())


@pytest.mark.parametrize("is_taken", [False, True])
def test_link_gets_a_name_that_is_free_by_now(scene: Scene, is_taken: bool) -> None:
    async def scenario() -> None:
        client = await scene.begin()
        held = Held(client, scene.old, "link")
        linking = asyncio.ensure_future(outcome(client.link(scene.source, scene.name)))
        await held.is_there.wait()
        scene.change_layout()
        if is_taken:
            await scene.world.client().write(scene.name, b"other")
        held.may_go.set()
        assert await linking == (errno.EEXIST if is_taken else 0)
        there = await scene.contents(client)
        assert there == {scene.source: b"source", scene.name: b"other" if is_taken else b"source"}
        assert (await client.look(scene.source)).iatt.nlink == (1 if is_taken else 2)

    run(scenario())


@pytest.mark.parametrize("fop", ["link", "create"])
def test_what_lies_elsewhere_does_not_get_a_name_that_is_taken_by_now(scene: Scene, fop: str) -> None:
    """By the layout that it knew nothing could be without a link file; the new one is not complete."""

    async def scenario() -> None:
        await scene.begin()
        client = scene.world.client(decommissioned_bricks=f"brick{scene.old}")
        await client.look("")
        source = scene.world.name_on(client, 0)
        gfid = await client.write(source, b"far")
        held = Held(client, scene.old, "entrylk")
        making = client.link(source, scene.name) if fop == "link" else client.write(scene.name, b"new")
        working = asyncio.ensure_future(outcome(making))
        await held.is_there.wait()
        await scene.other.write(scene.name, b"other")
        scene.change_layout()
        held.may_go.set()
        assert await working == errno.EEXIST
        assert scene.world.data_at(scene.name) == [scene.old]
        assert await scene.contents(client) == {
            scene.source: b"source", source: b"far", scene.name: b"other"
        }  # fmt: skip
        assert (await client.dht.lookup(client.caller, Loc(gfid=gfid))).iatt.nlink == 1

    run(scenario())


@pytest.mark.parametrize("way", ["moved", "switched"])
@pytest.mark.parametrize("is_known", [False, True])
def test_unlink_removes_what_has_the_name_by_now(scene: Scene, way: str, is_known: bool) -> None:
    async def scenario() -> None:
        client = await scene.begin()
        await client.write(scene.name, b"name")
        if not is_known:
            client.dht.known_names.drop((ROOT_GFID, scene.name.encode()))
        assert await scene.change(client, "unlink", client.unlink(scene.name), way) == 0
        assert await scene.contents(client) == {scene.source: b"source"}
        assert not scene.world.stored(scene.name)

    run(scenario())


def test_rename_works_under_the_lock_that_counts_when_it_makes_its_plan(scene: Scene) -> None:
    async def scenario() -> None:
        await scene.begin()
        client = scene.world.client()
        await client.look("")
        source = scene.world.name_on(client, 0)
        await client.write(source, b"far")
        held = Held(client, scene.old, "entrylk")
        renaming = asyncio.create_task(client.rename(source, scene.name))
        await held.is_there.wait()
        looking = Held(client, 0, "lookup")  # the names are locked, and their layout was right
        held.may_go.set()
        await looking.is_there.wait()
        scene.change_layout()
        await asyncio.sleep(2)  # so long a layout is not believed
        client.log.clear()
        looking.may_go.set()
        await renaming
        making = f"brick{scene.new}.mknod"
        assert f"brick{scene.new}.entrylk" in client.log[: client.log.index(making)]
        assert await scene.contents(client) == {scene.source: b"source", scene.name: b"far"}

    run(scenario())


def test_layout_that_was_read_while_it_was_written_hides_no_subvolume() -> None:
    async def scenario() -> None:
        world = World(3)
        client, _ = await pair(world)
        name = world.name_on(client, 1)
        first, second = (world.bricks[index].inodes[ROOT_GFID].xattrs for index in (0, 1))
        whole = second[LAYOUT]
        second[LAYOUT] = first[LAYOUT]  # nobody has the other half
        client.dht.learn(ROOT_GFID, await client.dht.ask_directory(Loc(gfid=ROOT_GFID), client.dht.directory_want))
        second[LAYOUT] = whole
        assert await outcome(client.read(name)) == errno.ENOENT

    run(scenario())


def test_rename_of_a_directory_does_not_wait_for_itself() -> None:
    """A copy is another directory, left over from something: it goes under the lock of the name, which is held."""

    async def scenario() -> None:
        world = World(3)
        client, _ = await pair(world)
        source, target = world.name_on(client, 1, "source"), world.name_on(client, 1, "target")
        gfid = await client.mkdir(source)
        await client.idle()
        held = Held(client, 1, "entrylk")
        renaming = asyncio.create_task(client.rename(source, target))
        await held.is_there.wait()
        loc = Loc(parent=ROOT_GFID, name=source.encode())
        await world.bricks[2].rmdir(client.caller, loc)
        await world.bricks[2].mkdir(client.caller, loc, mode=0o755, gfid=world.new_gfid())
        held.may_go.set()
        await renaming
        reader = world.client()
        assert await reader.names() == [target]
        await reader.look(target)
        assert {inode.iatt.gfid for inode in world.stored(target).values()} == {gfid}
        assert list(world.stored(target)) == [0, 1, 2] and not world.stored(source)

    run(scenario())
