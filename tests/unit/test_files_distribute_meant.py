# SPDX-License-Identifier: Apache-2.0
"""What distribute and rebalance take away is the file that they mean, not another one that has come to its name.

Each case stops somebody right before the operation that takes something away; then another file comes to the name on
that brick, as from a client that knows another layout, which renames without locks.
"""

from __future__ import annotations

import asyncio
import errno
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from repl.files.rebalance import at_once, leftovers
from repl.files.rebalance.migration import Migration
from repl.files.rebalance.mover import Outcome
from repl.files.rebalance.progress import Progress
from repl.files.rebalance.special import move_special
from repl.files.rebalance.tidying import Tidying
from repl.files.translators.distribute.marks import FINAL_SIZE, LINK_MODE
from repl.files.values import ROOT_GFID, Caller, Entry, FopError, Loc
from tests.lib.distributed import LINKTO, Client, World
from tests.lib.distributed_meetings import Held, misplaced, pair, put_in_place
from tests.lib.virtual_loop import run

ANOTHER = Caller(client="another")


@dataclass
class Case:
    """``client`` is about to call ``fop`` on ``brick`` for ``name``, when it does ``work``."""

    client: Client
    work: Callable[[], Awaitable[Any]]
    brick: int
    fop: str
    name: str
    folder: bytes = ROOT_GFID
    error: int = 0  # of the work, because of the file that has come


def at(name: str, folder: bytes = ROOT_GFID) -> Loc:
    return Loc(parent=folder, name=name.encode())


async def left_over(world: World, brick: int, name: str, folder: bytes = ROOT_GFID) -> bytes:
    gfid = world.new_gfid()
    await world.bricks[brick].mknod(ANOTHER, at(name, folder), mode=stat.S_IFREG | 0o644, rdev=0, gfid=gfid)
    return gfid


def becomes_a_link_file(world: World, brick: int, fop: str, to: str) -> None:
    """What ``fop`` answers about has just been migrated."""
    child = world.bricks[brick]
    call = getattr(child, fop)

    async def moved(*args: Any, **kwargs: Any) -> Any:
        looked = await call(*args, **kwargs)
        inode = child.inodes[looked.iatt.gfid]
        inode.xattrs |= {LINKTO: to.encode() + b"\0", FINAL_SIZE: bytes(16)}
        inode.iatt.mode = looked.iatt.mode = LINK_MODE
        return looked

    setattr(child, fop, moved)


class Removing:
    """Somebody who removes a name without its lock, as that of a file of the brick where it belongs, and is held up."""

    def __init__(self, client: Client, brick: int, name: str) -> None:
        self.held = Held(client, brick, "unlink")
        self.work = asyncio.create_task(client.unlink(name))

    async def end(self) -> None:
        self.held.may_go.set()
        await self.work


async def migrated(world: World, client: Client, other: Client) -> Case:
    name = await misplaced(world, other)
    return Case(client, Migration(client.dht, at(name), 0, 1).run, 0, "unlink", name)


async def migrated_over_a_wrong_link_file(world: World, client: Client, other: Client) -> Case:
    name = await misplaced(world, other)
    await put_in_place(world, 0, name)  # the link file has another gfid
    return Case(client, Migration(client.dht, at(name), 0, 1).run, 1, "rename", name)


async def special(world: World, client: Client, other: Client) -> Case:
    first, name = world.name_on(other, 0, "first"), world.name_on(other, 1)
    await other.dht.symlink(other.caller, at(first), target=b"text", gfid=world.new_gfid())
    await other.rename(first, name)
    return Case(client, lambda: move_special(client.dht, at(name), 0, 1), 0, "unlink", name)


async def special_to_its_link_file(world: World, client: Client, other: Client) -> Case:
    case = await special(world, client, other)
    return Case(client, case.work, 1, "rename", case.name)


async def special_to_a_free_name(world: World, client: Client, other: Client) -> Case:
    case = await special(world, client, other)
    await world.bricks[1].unlink(ANOTHER, at(case.name))
    return Case(client, case.work, 1, "rename", case.name)


async def link_file_where_it_does_not_belong(world: World, client: Client, other: Client) -> Case:
    name = world.name_on(other, 1)
    gfid = await other.write(name)
    await other.dht.make_link(2, at(name), gfid, 1)
    entry = Entry(name.encode(), gfid, stat.S_IFREG, 0, xattrs={LINKTO: b"brick1\0"})
    tidying = Tidying(client.dht, "start", Progress())
    return Case(client, lambda: tidying._entry(2, at(name), entry), 2, "unlink", name)


async def left_over_by_a_rename(world: World, client: Client, other: Client) -> Case:
    name = world.name_on(other, 1)
    await other.write(name)
    await left_over(world, 2, name)
    return Case(client, lambda: leftovers._judge(client.dht, at(name), 2, 1), 2, "unlink", name)


async def directory_with_a_link_file(world: World, client: Client, other: Client) -> Case:
    folder = await other.mkdir("d")
    await other.dht.make_link(2, at("name", folder), world.new_gfid(), 1)
    return Case(client, lambda: client.rmdir("d"), 2, "unlink", "name", folder, errno.ENOTEMPTY)


async def data_of_a_link_file_that_was_removed(world: World, client: Client, other: Client) -> Case:
    far, name = world.name_on(client, 0), world.name_on(client, 1)
    await client.write(name)
    await other.write(far)
    removing = Removing(client, 1, name)
    await removing.held.is_there.wait()
    await other.rename(far, name)
    return Case(client, removing.end, 0, "unlink", name)


async def left_over_where_a_link_is_made(world: World, client: Client, other: Client) -> Case:
    name = world.name_on(client, 1)
    await left_over(world, 0, name)
    return Case(client, lambda: client.dht.remove_left_over(0, at(name)), 0, "unlink", name)


async def link_to_what_has_moved(world: World, client: Client, other: Client) -> Case:
    source, name = world.name_on(client, 0), world.name_on(client, 1)
    await other.write(source)
    becomes_a_link_file(world, 0, "link", "brick1")
    return Case(client, lambda: client.link(source, name), 0, "unlink", name, error=errno.ESTALE)


async def rename_of_what_has_moved(world: World, client: Client, other: Client) -> Case:
    source, name = world.name_on(client, 0), world.name_on(client, 1)
    await other.write(source)
    becomes_a_link_file(world, 0, "link", "brick1")
    return Case(client, lambda: client.rename(source, name), 0, "unlink", name, error=errno.ENOENT)


async def rename_that_fails(world: World, client: Client, other: Client) -> Case:
    source, name = world.name_on(client, 0), world.name_on(client, 1)
    await other.write(source)

    async def rename(*_: Any, **__: Any) -> Any:
        raise FopError(errno.EIO)

    world.bricks[1].rename = rename  # type: ignore[method-assign]
    return Case(client, lambda: client.rename(source, name), 0, "unlink", name, error=errno.EIO)


async def rename_over_what_lies_elsewhere(world: World, client: Client, other: Client) -> Case:
    name, source = await misplaced(world, other, at=2), world.name_on(client, 0)
    await other.write(source)
    return Case(client, lambda: client.rename(source, name), 2, "rename", name)


async def rename_over_what_lies_elsewhere_and_is_left_over_here(world: World, client: Client, other: Client) -> Case:
    case = await rename_over_what_lies_elsewhere(world, client, other)
    await left_over(world, 0, case.name)
    return Case(client, case.work, 0, "unlink", case.name, error=errno.EEXIST)


async def directory_over_what_is_left_over(world: World, client: Client, other: Client) -> Case:
    name = world.name_on(client, 1)
    await left_over(world, 2, name)
    return Case(client, lambda: client.mkdir(name), 2, "unlink", name)


async def wrong_link_file_is_repaired(world: World, client: Client, other: Client) -> Case:
    name = await misplaced(world, other)
    await put_in_place(world, 0, name)
    return Case(client, lambda: client.dht.repair_link(at(name), 1), 1, "rename", name, error=errno.ESTALE)


CASES = [
    migrated, migrated_over_a_wrong_link_file, special, special_to_its_link_file, special_to_a_free_name,
    link_file_where_it_does_not_belong, left_over_by_a_rename, directory_with_a_link_file,
    data_of_a_link_file_that_was_removed, left_over_where_a_link_is_made, link_to_what_has_moved,
    rename_of_what_has_moved, rename_that_fails, rename_over_what_lies_elsewhere,
    rename_over_what_lies_elsewhere_and_is_left_over_here, directory_over_what_is_left_over,
    wrong_link_file_is_repaired,
]  # fmt: skip


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_distribute_takes_away_what_it_means(make: Callable[[World, Client, Client], Awaitable[Case]]) -> None:
    async def scenario() -> None:
        world = World(3)
        case = await make(world, *await pair(world))
        held = Held(case.client, case.brick, case.fop)

        async def work() -> int:
            try:
                await case.work()
            except FopError as error:
                return error.errno
            return 0

        working = asyncio.create_task(work())
        await held.reached(working)
        assert held.is_there.is_set()
        gfid = await put_in_place(world, case.brick, case.name, case.folder)
        held.may_go.set()
        assert await working == case.error
        entries = world.bricks[case.brick].inodes[case.folder].entries
        assert entries[case.name.encode()][1] == gfid
        assert not any(name.startswith(b".glusterfs-dht-") for name in entries)

    run(scenario())


def test_migration_in_phases_takes_away_what_it_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_once, "REBALANCE_AT_ONCE_BYTES_MAX", -1)
    test_distribute_takes_away_what_it_means(migrated)


def test_migration_that_finds_another_link_file_meanwhile_ends() -> None:
    async def scenario() -> None:
        world = World(3)
        client, other = await pair(world)
        case = await migrated_over_a_wrong_link_file(world, client, other)
        held = Held(client, 1, "rename")
        moving = asyncio.ensure_future(Migration(client.dht, at(case.name), 0, 1).run())
        await held.is_there.wait()
        await world.bricks[1].unlink(ANOTHER, at(case.name))
        held.may_go.set()
        assert (await moving).outcome is Outcome.GONE
        assert not world.links_at(case.name)  # it is not made again for a name that has been removed

    run(scenario())


def test_distribute_wrong_link_file_gives_way_to_nothing_that_a_client_has_made_there() -> None:
    """The name's lock is held; one client knows the name as a file of that brick, and removes it without the lock."""

    async def scenario() -> None:
        world = World(3)
        first, other = await pair(world)
        third = world.client()
        far, name = world.name_on(first, 0), world.name_on(first, 1, "name")
        await other.write(name)
        await first.write(far)
        removing = Removing(other, 1, name)
        await removing.held.is_there.wait()
        await first.rename(far, name)
        await put_in_place(world, 0, name)
        held = Held(first, 1, "rename")
        await first.look(name)  # the link file is mended in the background
        await held.is_there.wait()
        locking = Held(other, 1, "entrylk")
        removing.held.may_go.set()
        await locking.reached(removing.work)
        made = await third.write(name)
        held.may_go.set()
        locking.may_go.set()
        await removing.work
        await first.idle()
        assert world.data_at(name) == [1]
        assert (await world.client().look(name)).iatt.gfid == made

    run(scenario())
