# SPDX-License-Identifier: Apache-2.0
"""Listings of cluster/replicate go on when bricks go and come: what is there all the time is listed exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random

import pytest

from repl.files.translators.distribute.marks import LINKTO
from repl.files.translators.replicate import listing
from repl.files.values import ROOT_GFID, Fd, FopError, Loc
from tests.lib.memory_brick import MemoryBrick
from tests.lib.replicas import Client, World
from tests.lib.virtual_loop import run

NAMES = {b"name%03d" % number for number in range(60)}


async def make(client: Client, name: bytes) -> None:
    gfid = client.context.new_gfid()
    fd = Fd(gfid, os.O_RDWR)
    loc = Loc(parent=ROOT_GFID, name=name)
    await client.afr.create(client.caller, loc, fd, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=gfid)
    await client.afr.release(fd)


async def filled(world: World) -> Client:
    """Each brick has the names in an order of its own."""
    client = await world.client()
    for name in sorted(NAMES):
        await make(client, name)
    for brick in world.bricks:
        shuffle(world, brick.inodes[ROOT_GFID].entries)
    return client


async def change(client: Client, name: bytes, *, is_new: bool) -> None:
    if is_new:
        await make(client, name)
    else:
        await client.afr.unlink(client.caller, Loc(parent=ROOT_GFID, name=name))


def shuffle(world: World, entries: dict[bytes, tuple[int, bytes]]) -> None:
    cookies = [cookie for cookie, _ in entries.values()]
    world.random.shuffle(cookies)
    for name, cookie in zip(entries, cookies, strict=True):
        entries[name] = (cookie, entries[name][1])


class Reader:
    """An open directory, a few names at a time."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.fd = Fd(ROOT_GFID, is_directory=True)
        self.names: list[bytes] = []
        self.offsets = [0]
        self.is_over = False

    async def open(self) -> Reader:
        await self.client.afr.opendir(self.client.caller, Loc(gfid=ROOT_GFID), self.fd)
        return self

    async def some(self, size: int = 300, *, is_plus: bool = False) -> None:
        afr, caller = self.client.afr, self.client.caller
        found = await afr.readdir(caller, self.fd, size=size, offset=self.offsets[-1], is_plus=is_plus)
        self.names += [entry.name for entry in found]
        self.offsets += [entry.offset for entry in found]
        self.is_over = not found

    async def rest(self) -> list[bytes]:
        while not self.is_over:
            await self.some()
        return self.names

    def reads_from(self) -> int:
        (state,) = (s for s in self.client.afr.inodes.get(ROOT_GFID).fds if s.lower is not None)
        assert state.listing is not None
        return state.listing.leg.index


def test_listing_goes_on_at_another_brick() -> None:
    async def scene() -> None:
        world = World(2)
        reader = await Reader(await filled(world)).open()
        await reader.some()
        world.crash(reader.reads_from())
        assert 0 < len(reader.names) < len(NAMES)
        assert sorted(await reader.rest()) == sorted(NAMES)

    run(scene())


def test_listing_goes_on_when_the_brick_goes_in_the_middle_of_a_question() -> None:
    async def scene() -> None:
        world = World(2)
        reader = await Reader(await filled(world)).open()
        await reader.some(is_plus=True)

        async def fault(_client: str, brick: str, fop: str, is_done: bool) -> None:
            if fop == "readdir" and is_done and not any(b.is_down for b in world.bricks):
                world.crash(int(brick[-1]))

        world.hook = fault
        await reader.some(is_plus=True)
        assert sorted(await reader.rest()) == sorted(NAMES)

    run(scene())


def test_listing_of_a_brick_that_was_away_begins_again() -> None:
    """It counts its entries: where some have been removed it would go on behind others that nobody was told of."""

    async def scene() -> None:
        world = World(2)
        client = await filled(world)
        reader = await Reader(client).open()
        await reader.some()
        index = reader.reads_from()
        world.crash(index)
        for cookie, (name, (_, gfid)) in enumerate(sorted(world.bricks[index].inodes[ROOT_GFID].entries.items())):
            world.bricks[index].inodes[ROOT_GFID].entries[name] = (cookie + 1, gfid)  # all in another order
        world.come_back(index)
        assert sorted(await reader.rest()) == sorted(NAMES)

    run(scene())


def test_listing_goes_back_to_what_another_brick_gave() -> None:
    """The kernel did not take an answer: it asks once more from where it was, and that brick is away now."""

    async def scene() -> None:
        world = World(3)
        reader = await Reader(await filled(world)).open()
        for _ in range(3):
            await reader.some()
        kept = len(reader.names) // 2
        world.crash(reader.reads_from())
        await reader.some()
        del reader.names[kept:], reader.offsets[kept + 1 :]
        assert sorted(await reader.rest()) == sorted(NAMES)
        reader.names, reader.offsets, reader.is_over = [], [0], False  # rewound
        assert sorted(await reader.rest()) == sorted(NAMES)

    run(scene())


def test_listing_without_any_brick_or_with_too_many_names_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        world = World(2)
        reader = await Reader(await filled(world)).open()
        await reader.some()
        first = reader.reads_from()
        world.crash(first)
        world.crash(1 - first)
        with pytest.raises(FopError) as caught:
            await reader.some()
        assert caught.value.errno == errno.ENOTCONN
        world.come_back(1 - first)
        await reader.some()
        monkeypatch.setattr(listing, "FILES_LISTING_REMEMBERED_MAX", 20)
        await reader.some()
        world.come_back(first)
        world.crash(reader.reads_from())
        with pytest.raises(FopError) as caught:
            await reader.rest()
        assert caught.value.errno == errno.ENOTCONN
        world.come_back(1 - first)
        await reader.rest()

    run(scene())


@pytest.mark.parametrize("seed", range(20))
def test_listing_while_bricks_and_names_come_and_go_has_what_stays_once(seed: int) -> None:
    async def scene() -> None:
        world = World(3, seed=seed)
        client = await filled(world)
        chance = random.Random(seed)
        for _ in range(5):
            for index in range(3):
                world.come_back(index)
            reader = await Reader(client).open()
            while not reader.is_over:
                kind = chance.randrange(6)
                name = b"other%d" % chance.randrange(30)
                down = [i for i, brick in enumerate(world.bricks) if brick.is_down]
                if kind == 0 and not down:
                    world.crash(chance.randrange(3))
                elif kind == 0:
                    world.come_back(down[0])
                elif kind in (1, 2):
                    # Not where too few copies agree on what the name means.
                    with contextlib.suppress(FopError):
                        await change(client, name, is_new=kind == 1)
                else:
                    try:
                        await reader.some(chance.choice((100, 400)), is_plus=chance.random() < 0.5)
                    except FopError as error:
                        assert error.errno == errno.ENOTCONN and down  # the only good copy is away
                        world.come_back(down[0])
            await client.afr.release(reader.fd)
            # One that goes and comes may be listed again.
            assert sorted(name for name in reader.names if name in NAMES) == sorted(NAMES)

    run(scene())


@pytest.mark.parametrize("is_plus", [True, False])
@pytest.mark.parametrize("has_index", [True, False])
def test_listing_tells_attributes_of_good_copies_only(is_plus: bool, has_index: bool) -> None:
    """distribute tells link files from files by them: the old copy of one that was made while its brick was away, or
    that a rebalance has turned into the other, showed a name twice or not at all."""

    async def scene() -> None:
        world = World(2)
        client = await filled(world)
        lost, late = sorted(NAMES)[:2]
        await asyncio.sleep(5)  # what made the names is over: of them the old copy has all
        world.crash(0)
        for name in (lost, late):
            gfid = world.bricks[1].inodes[ROOT_GFID].entries[name][1]
            await client.afr.setxattr(client.caller, Loc(gfid=gfid), {LINKTO: b"elsewhere"})
        world.come_back(0)
        if not has_index:
            for brick in world.bricks:
                brick.getxattr = MemoryBrick.getxattr.__get__(brick)  # type: ignore[method-assign]
        for reader in [await world.client(read_subvolume_index=str(number)) for number in (0, 1)]:
            fd = Fd(ROOT_GFID, is_directory=True)
            await reader.afr.opendir(reader.caller, Loc(gfid=ROOT_GFID), fd)
            found = await reader.afr.readdir(reader.caller, fd, size=1 << 20, offset=0, is_plus=is_plus, want=(LINKTO,))
            assert {entry.name for entry in found if entry.xattrs.get(LINKTO) == b"elsewhere"} == {lost, late}
            assert len(found) == len(NAMES) and all((entry.iatt is not None) == is_plus for entry in found)
            await reader.afr.release(fd)

    run(scene())
