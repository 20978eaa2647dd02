# SPDX-License-Identifier: Apache-2.0
"""Heals of cluster/replicate over bricks in memory: data, metadata, names, splits, and what keeps old copies from
winning."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os

import pytest

from repl.files.translators.replicate.healing import How, Outcome, Status
from repl.files.values import ROOT_GFID, Fd, FopError, Loc, SetAttr
from tests.lib.replicas import Client, World
from tests.unit.test_files_replicate import counters, make_file, play, read, settle, write

HEALS_OFF = {"data_self_heal": "off", "metadata_self_heal": "off", "entry_self_heal": "off"}


async def make_directory(client: Client, name: bytes, parent: bytes = ROOT_GFID) -> bytes:
    gfid = client.context.new_gfid()
    await client.afr.mkdir(client.caller, Loc(parent=parent, name=name), mode=0o755, gfid=gfid)
    return gfid


async def heal_all(client: Client, rounds: int = 8) -> list[Outcome]:
    """Whatever has a counter on any brick, and what comes of it, until nothing more can be done."""
    last: list[Outcome] = []
    for _ in range(rounds):
        await settle()
        gfids = {g for brick in client.world.bricks for g, i in brick.inodes.items()
                 if any(k.startswith(b"trusted.afr.") and any(v) for k, v in i.xattrs.items())}  # fmt: skip
        last = []
        todo = sorted(gfids)
        while todo:
            last.append(await client.afr.healer.heal(todo.pop(0), How()))
            todo += last[-1].more
        await client.afr.healer.aside.clean()
        if not gfids:
            break
    return last


def assert_healed(world: World) -> None:
    assert world.pending() == {}
    for index in range(1, len(world.bricks)):
        arbiter = world.options.get("arbiter-count") and index == len(world.bricks) - 1
        assert strip(world.tree(index), arbiter) == strip(world.tree(0), arbiter)
    for brick in world.bricks:
        reachable = {ROOT_GFID} | {g for i in brick.inodes.values() for _, g in i.entries.values()}
        assert {g.hex() for g in brick.inodes} == {g.hex() for g in reachable}
        for name, (_, gfid) in brick.inodes[ROOT_GFID].entries.items():
            if name.startswith(b".glusterfs"):
                assert not brick.inodes[gfid].entries


def strip(tree: dict[bytes, tuple[object, ...]], is_arbiter: object) -> dict[bytes, tuple[object, ...]]:
    return {k: v[:6] + v[7:] for k, v in tree.items()} if is_arbiter else tree


def test_a_missed_write_is_healed() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"old data, long")
        await settle()
        world.crash(1)
        await write(client, gfid, b"new")
        await settle()
        world.come_back(1)
        outcome = await client.afr.healer.heal(gfid, How())
        assert outcome.status is Status.HEALED, outcome
        assert_healed(world)
        assert (await client.afr.healer.heal(gfid, How())).status is Status.CLEAN

    play(2, scene, **HEALS_OFF)


def test_everything_that_changed_while_a_brick_was_away_is_healed() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        await busy_tree(client, b"before")
        await settle()
        world.crash(1)
        await busy_tree(client, b"after")
        for name in (b"before-f1", b"before-f2"):
            await client.afr.unlink(client.caller, Loc(parent=ROOT_GFID, name=name))
        await settle()
        world.come_back(1)
        outcomes = await heal_all(client)
        assert outcomes == []
        assert_healed(world)

    play(2, scene, **HEALS_OFF)


async def busy_tree(client: Client, head: bytes) -> bytes:
    """A directory with all kinds of things, and names beside it."""
    afr, caller = client.afr, client.caller
    directory = await make_directory(client, head)
    for i in range(3):
        gfid = await make_file(client, head + b"-f%d" % i, b"x" * (i * 70_000))
        await afr.setattr(caller, Loc(gfid=gfid), SetAttr(mode=0o600 + i, uid=i))
        await afr.setxattr(caller, Loc(gfid=gfid), {b"user.color": b"red%d" % i})
    link = afr.context.new_gfid()
    await afr.symlink(caller, Loc(parent=directory, name=b"link"), target=b"to/nowhere", gfid=link)
    fifo = afr.context.new_gfid()
    await afr.mknod(caller, Loc(parent=directory, name=b"fifo"), mode=0o010644, rdev=0, gfid=fifo)
    await make_file(client, b"inside", b"data", directory)
    await afr.link(caller, Loc(gfid=gfid), Loc(parent=directory, name=b"hard"))
    return directory


def test_a_large_file_is_healed_while_it_is_written() -> None:
    size = 3 * (1 << 20) + 12345

    async def scene(world: World) -> None:
        client = await world.client()
        writer = await world.client()
        gfid = await make_file(client, b"big", os.urandom(1) * size)
        await settle()
        world.crash(1)
        await write(client, gfid, b"N" * 200_000, 1 << 20)
        await settle()
        world.come_back(1)
        fd = Fd(gfid, os.O_WRONLY)
        await writer.afr.open(writer.caller, Loc(gfid=gfid), fd, flags=os.O_WRONLY)
        is_over = False

        async def load() -> None:
            count = 0
            while not is_over:
                await writer.afr.writev(writer.caller, fd, b"%08d" % count, offset=count * 99_991 % size)
                count += 1
                await asyncio.sleep(0.01)

        task = asyncio.ensure_future(load())
        outcome = await client.afr.healer.heal(gfid, How())
        is_over = True
        await task
        await writer.afr.release(fd)
        assert outcome.status is Status.HEALED, outcome
        await heal_all(client)
        assert_healed(world)

    play(2, scene, **HEALS_OFF)


def test_a_heal_that_fails_in_one_window_leaves_no_lock_of_another() -> None:
    """The one that failed cut the others off while they gave their locks back: whoever wanted the file afterwards
    waited until the healer's process ended."""
    block = 128 * 1024

    async def scene(world: World) -> None:
        client, healing = await world.client(), await world.client()
        gfid = await make_file(client, b"big", b"a" * block * 8)
        await settle()
        world.crash(2)
        await write(client, gfid, b"b" * block * 8)
        await settle()
        world.come_back(2)
        reads = 0
        unlocking, failing = asyncio.Event(), asyncio.Event()

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            nonlocal reads
            if who != healing.name or is_done:
                return
            reads += fop == "readv"
            if fop == "readv" and reads >= 2:
                await unlocking.wait()
                failing.set()
                raise FopError(errno.EIO, "a disk that fails")
            if fop == "inodelk" and reads >= 2:
                unlocking.set()
                await failing.wait()
                await asyncio.sleep(1)

        no_fault, world.hook = world.hook, hook
        outcome = await healing.afr.healer.heal(gfid, How())
        world.hook = no_fault
        assert outcome.status is Status.FAILED and "a disk that fails" in outcome.reason
        assert reads <= 3, "windows are begun although one has failed"
        await asyncio.wait_for(write(client, gfid, b"new"), 60)
        await heal_all(healing)
        assert_healed(world)

    play(3, scene, **HEALS_OFF, data_self_heal_window_size="1", read_subvolume_index="0")


def test_only_the_blocks_that_differ_travel() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"big", b"o" * (8 << 20))
        await settle()
        world.crash(1)
        await write(client, gfid, b"new", 5_000_000)
        await settle()
        world.come_back(1)
        how = How()
        assert (await client.afr.healer.heal(gfid, how)).status is Status.HEALED
        assert how.pace.copied_bytes == 128 * 1024
        assert_healed(world)

    play(2, scene, **HEALS_OFF)


def test_a_rename_that_a_brick_missed_moves_the_inode_and_copies_nothing() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        one, two = await make_directory(client, b"one"), await make_directory(client, b"two")
        sub = await make_directory(client, b"sub", one)
        await make_file(client, b"deep", b"d" * 1000, sub)
        await make_file(client, b"f", b"data", one)
        await settle()
        world.crash(1)
        for name in (b"f", b"sub"):
            source, target = Loc(parent=one, name=name), Loc(parent=two, name=b"new-" + name)
            await client.afr.rename(client.caller, source, target)
        await client.afr.rmdir(client.caller, Loc(parent=ROOT_GFID, name=b"one"))
        await settle()
        world.come_back(1)
        before = world.bricks[1].counts["writev"]
        assert await heal_all(client) == []
        assert world.bricks[1].counts["writev"] == before
        assert_healed(world)

    play(2, scene, **HEALS_OFF)


def test_two_directories_that_were_turned_inside_out() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        outer = await make_directory(client, b"y")
        inner = await make_directory(client, b"x", outer)
        await settle()
        world.crash(1)
        await client.afr.rename(client.caller, Loc(parent=outer, name=b"x"), Loc(parent=ROOT_GFID, name=b"x"))
        await client.afr.rename(client.caller, Loc(parent=ROOT_GFID, name=b"y"), Loc(parent=inner, name=b"y"))
        await settle()
        world.come_back(1)
        assert await heal_all(client) == []
        assert_healed(world)

    play(2, scene, **HEALS_OFF)


def test_an_empty_brick_in_the_place_of_a_lost_one_is_filled() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        await busy_tree(client, b"d")
        await settle()
        world.crash(1)
        await client.afr.setattr(client.caller, Loc(gfid=ROOT_GFID), SetAttr(mode=0o711))
        await make_file(client, b"while-it-was-away", b"x")
        await settle()
        lost = world.bricks[1]
        root = lost.inodes[ROOT_GFID]
        lost.inodes = {ROOT_GFID: root}
        root.entries.clear()
        root.xattrs.clear()
        root.iatt.nlink = 2
        world.come_back(1)
        todo = [ROOT_GFID]
        while todo:
            todo += (await client.afr.healer.heal(todo.pop(), How(is_full=True))).more
        assert_healed(world)

    play(2, scene, **HEALS_OFF)


@pytest.mark.parametrize("word", ["data", "metadata", "gfid", "type"])
def test_each_kind_of_split_brain_is_told(word: str) -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await split(world, client, word)
        outcome = await client.afr.healer.heal(gfid, How())
        assert outcome.status is Status.SPLIT
        assert [s.word for s in outcome.splits] == [word]
        with pytest.raises(FopError) as caught:
            if word in ("gfid", "type"):
                await client.afr.lookup(client.caller, Loc(parent=ROOT_GFID, name=b"same"))
            else:
                await read(client, gfid)
        assert caught.value.errno == errno.EIO

    play(2, scene, **HEALS_OFF)


async def split(world: World, client: Client, word: str) -> bytes:
    """Each brick has had a change that the other one has not; answers the inode whose heal tells."""
    gfid = await make_file(client, b"a", b"x")
    await settle()
    for down in (0, 1):
        world.crash(1 - down)
        world.come_back(down)
        if word == "data":
            await write(client, gfid, b"side %d" % down)
        elif word == "metadata":
            await client.afr.setattr(client.caller, Loc(gfid=gfid), SetAttr(mode=0o600 + down))
        elif word == "type" and down:
            await make_directory(client, b"same")
        else:
            await make_file(client, b"same", b"side %d" % down)
        await settle()
    world.come_back(0)
    return gfid if word in ("data", "metadata") else ROOT_GFID


def test_names_of_both_sides_of_a_split_are_kept() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        for down in (0, 1):
            world.crash(1 - down)
            world.come_back(down)
            await make_file(client, b"from-%d" % (1 - down), b"data")
            await settle()
        world.come_back(0)
        assert await heal_all(client) == []
        assert_healed(world)
        assert set(world.tree(0)) == {b"/", b"/from-0", b"/from-1"}

    play(2, scene, **HEALS_OFF)


def test_a_heal_that_dies_halfway_leaves_a_copy_that_nobody_takes_for_good() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"o" * (4 << 20))
        await settle()
        world.crash(1)
        await write(client, gfid, b"N" * (4 << 20))
        await settle()
        world.come_back(1)

        async def crash_source(who: str, brick: str, fop: str, is_done: bool) -> None:
            await asyncio.sleep(0)
            if fop == "writev" and brick == "brick1" and is_done:
                world.crash(0)

        no_fault, world.hook = world.hook, crash_source
        await client.afr.healer.heal(gfid, How())
        for attempt in (read, lambda c, g: write(c, g, b"z")):
            with pytest.raises(FopError) as caught:
                await attempt(client, gfid)
            assert caught.value.errno == errno.ENOTCONN
        world.hook = no_fault
        world.come_back(0)
        assert await heal_all(client) == []
        assert_healed(world)
        assert await read(client, gfid, 4) == b"NNNN"

    play(2, scene, **HEALS_OFF)


def test_two_of_three_copies_are_enough_and_the_third_stays_old() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"old")
        await settle()
        world.crash(2)
        await write(client, gfid, b"2nd")
        await settle()
        world.crash(1)
        world.come_back(2)
        assert (await client.afr.healer.heal(gfid, How())).status is Status.HEALED
        await write(client, gfid, b"3rd")
        await settle()
        # Of 1 and 2 each says that the other one has missed something: only 0 can tell.
        world.come_back(1)
        world.crash(0)
        with pytest.raises(FopError) as caught:
            await read(client, gfid)
        assert caught.value.errno == errno.ENOTCONN
        world.come_back(0)
        assert await heal_all(client) == []
        assert_healed(world)
        assert await read(client, gfid) == b"3rd"

    play(3, scene, **HEALS_OFF)


def test_a_copy_that_was_healed_accuses_those_that_were_away_then() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"old")
        await settle()
        world.crash(3)
        world.crash(4)
        await write(client, gfid, b"new")
        await settle()
        world.come_back(3)
        assert (await client.afr.healer.heal(gfid, How())).status is Status.HEALED
        for brick in range(4):
            assert counters(world, brick, gfid, "brick3") == "0" * 24
            assert counters(world, brick, gfid, "brick4") == "000000010000000000000000"

    play(5, scene, **HEALS_OFF)


def test_an_arbiter_is_healed_but_never_the_source_of_data() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"old data")
        await settle()
        world.crash(0)
        await write(client, gfid, b"new")
        await make_file(client, b"b", b"more")
        await settle()
        world.come_back(0)
        world.crash(1)
        assert (await client.afr.healer.heal(gfid, How())).status is Status.AWAY
        world.come_back(1)
        world.crash(2)
        await write(client, gfid, b"NEW")
        await client.afr.setattr(client.caller, Loc(gfid=gfid), SetAttr(mode=0o640))
        await settle()
        world.come_back(2)
        assert await heal_all(client) == []
        assert_healed(world)
        assert await read(client, gfid) == b"NEW data"

    play(3, scene, arbiter_count="1", **HEALS_OFF)


def test_what_a_dead_client_left_is_made_equal() -> None:
    async def scene(world: World) -> None:
        client, other = await world.client(), await world.client()
        gfid = await make_file(client, b"a", b"0123456789")
        await settle()
        fd = Fd(gfid, os.O_WRONLY)
        await other.afr.open(other.caller, Loc(gfid=gfid), fd, flags=os.O_WRONLY)

        async def die(who: str, brick: str, fop: str, is_done: bool) -> None:
            await asyncio.sleep(0)
            if who == other.name and fop == "writev" and is_done and not other.is_dead:
                other.die()

        world.hook = die
        with pytest.raises((FopError, asyncio.CancelledError)):
            await other.afr.writev(other.caller, fd, b"abc", offset=4)
        assert await heal_all(client) == []
        assert_healed(world)
        assert await read(client, gfid) in (b"0123456789", b"0123abc789")

    play(2, scene, **HEALS_OFF)


def test_a_client_that_meets_something_old_heals_it() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        directory = await make_directory(client, b"d")
        gfid = await make_file(client, b"a", b"old", directory)
        await settle()
        world.crash(1)
        await write(client, gfid, b"new")
        await make_file(client, b"b", b"more", directory)
        await settle()
        world.come_back(1)
        for loc in (Loc(gfid=ROOT_GFID), Loc(parent=ROOT_GFID, name=b"d"), Loc(parent=directory, name=b"a")):
            await client.afr.lookup(client.caller, loc)
        await client.afr.heals.idle()
        await settle()
        assert_healed(world)

    play(2, scene)


def test_what_a_dead_client_left_half_done_is_healed_on_access() -> None:
    async def scene(world: World) -> None:
        client, other = await world.client(), await world.client()
        gfid = await make_file(client, b"a", b"x")
        plain = await make_file(client, b"b", b"x")
        await settle()
        fd = Fd(gfid, os.O_WRONLY)
        await other.afr.open(other.caller, Loc(gfid=gfid), fd, flags=os.O_WRONLY)
        await other.afr.writev(other.caller, fd, b"y", offset=0)

        async def die(who: str, brick: str, fop: str, is_done: bool) -> None:
            await asyncio.sleep(0)
            if who == other.name and fop == "setattr" and is_done and not other.is_dead:
                other.die()

        world.hook = die
        with pytest.raises((FopError, asyncio.CancelledError)):
            await other.afr.setattr(other.caller, Loc(gfid=plain), SetAttr(mode=0o600))
        assert world.pending() != {}
        for name in (b"a", b"b"):
            await client.afr.lookup(client.caller, Loc(parent=ROOT_GFID, name=name))
        await client.afr.heals.idle()
        await settle()
        assert_healed(world)

    play(2, scene)


def test_a_heal_on_access_leaves_a_file_alone_that_another_client_writes() -> None:
    async def scene(world: World) -> None:
        client, other = await world.client(), await world.client()
        gfid = await make_file(client, b"a", b"x")
        await settle()
        fd = Fd(gfid, os.O_WRONLY)
        await other.afr.open(other.caller, Loc(gfid=gfid), fd, flags=os.O_WRONLY)
        await other.afr.writev(other.caller, fd, b"y", offset=0)
        await client.afr.lookup(client.caller, Loc(parent=ROOT_GFID, name=b"a"))
        await client.afr.heals.idle()
        assert (await client.afr.healer.heal(gfid, How(waits=False))).status in (Status.IN_USE, Status.CLEAN)
        await other.afr.release(fd)
        await settle()
        assert_healed(world)

    play(2, scene)


def test_a_granular_heal_looks_at_the_names_that_changed_only() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        directory = await make_directory(client, b"d")
        for i in range(50):
            await make_file(client, b"old%02d" % i, b"x", directory)
        await settle()
        world.crash(1)
        await make_file(client, b"new", b"data", directory)
        await client.afr.rename(client.caller, Loc(parent=directory, name=b"old01"), Loc(parent=ROOT_GFID, name=b"m"))
        below = await make_directory(client, b"below", directory)
        await make_file(client, b"deep", b"data", below)
        await settle()
        assert world.bricks[0].noted[directory] == {b"new", b"old01", b"below"}  # type: ignore[attr-defined]
        world.come_back(1)
        before = world.bricks[1].counts["readdir"]
        outcome = await client.afr.healer.heal(directory, How())
        assert world.bricks[1].counts["readdir"] == before, "the directory was listed"
        assert outcome.status in (Status.HEALED, Status.LATER)
        assert await heal_all(client) == []
        assert_healed(world)
        assert not any(brick.noted.get(directory) for brick in world.bricks)  # type: ignore[attr-defined]

    play(2, scene, granular_entry_heal="on", **HEALS_OFF)


def test_without_notes_a_granular_heal_compares_the_whole_directory() -> None:
    async def scene(world: World) -> None:
        client, other = await world.client(), await world.client(granular_entry_heal="off")
        directory = await make_directory(client, b"d")
        await settle()
        world.crash(1)
        await make_file(other, b"not-noted", b"data", directory)
        await settle()
        world.come_back(1)
        assert await heal_all(client) == []
        assert_healed(world)

    play(2, scene, granular_entry_heal="on", **HEALS_OFF)


def test_names_of_an_interrupted_change_are_healed_on_a_copy_that_was_away() -> None:
    """A client died between a rename and the note of its names.  The heal of the copies that were there took the dirty
    mark away; later changes were noted, and for the third copy the notes seemed to be all that it had missed."""

    async def scene(world: World) -> None:
        first, second = await world.client(), await world.client()
        directory = await make_directory(first, b"d")
        for name in (b"a", b"b"):
            await make_file(first, name, name, directory)
        await settle()
        world.crash(1)
        renamed: set[str] = set()

        async def dies(client: str, brick: str, fop: str, is_done: bool) -> None:
            if client == first.name and fop == "rename" and is_done:
                renamed.add(brick)
                while len(renamed) < 2:
                    await asyncio.sleep(0)
                first.die()

        world.hook = dies
        a, b = (Loc(parent=directory, name=name) for name in (b"a", b"b"))
        with contextlib.suppress(FopError, asyncio.CancelledError):
            await first.afr.rename(first.caller, a, b)
        assert renamed == {"brick0", "brick2"}
        await second.afr.healer.heal(directory, How())
        await make_file(second, b"later", b"x", directory)
        await settle()
        world.come_back(1)
        assert await heal_all(second) == []
        assert_healed(world)

    play(3, scene, granular_entry_heal="on", **HEALS_OFF)


def test_names_that_change_while_a_whole_directory_is_compared_stay_noted() -> None:
    """The heal daemon had the brick back before the client had.  It compared all names, and forgot at the end whatever
    was noted: also what the client had renamed meanwhile.  The next heal believed the notes that came later to be all
    there is: the name stayed another file on each copy, with nobody accused."""

    async def scene(world: World) -> None:
        client, daemon = await world.client(), await world.client("daemon", iam_self_heal_daemon="on")
        directory = await make_directory(client, b"d")
        for name in (b"a", b"b", b"c"):
            await make_file(client, name, b"old", directory)
        await settle()
        world.crash(1)
        await make_file(client, b"missed", b"1", directory)
        client.links[1].is_cut = True
        world.come_back(1)
        pages: list[bool] = []

        async def replace(name: bytes) -> None:
            gfid = await make_file(client, b"new", b"newer", directory)
            loc = Loc(parent=directory, name=b"new", gfid=gfid)
            await client.afr.rename(client.caller, loc, Loc(parent=directory, name=name))

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            await asyncio.sleep(0)
            if who == "daemon" and fop == "readdir" and brick == "brick0" and is_done:
                pages.append(True)
                if len(pages) == 2:  # it has come to the end
                    await replace(b"a")

        world.hook = hook
        await daemon.afr.healer.heal(directory, How(is_full=True))
        await replace(b"b")
        world.join(client, 1)
        await settle()
        await heal_all(daemon)
        assert_healed(world)

    play(2, scene, granular_entry_heal="on", **HEALS_OFF)
