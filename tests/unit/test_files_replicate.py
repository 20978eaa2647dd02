# SPDX-License-Identifier: Apache-2.0
"""cluster/replicate over bricks in memory: transactions, counters, quorum, reads.  Heals: test_files_heal.py."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import struct
from collections.abc import Awaitable, Callable

import pytest

from repl.files.events import ChildDown, ChildUp
from repl.files.options import parse_options
from repl.files.translator import Context
from repl.files.translators.replicate import Replicate
from repl.files.values import ROOT_GFID, Caller, Fd, FopError, Loc, Lock, LockCommand, LockType, SetAttr
from tests.lib.memory_brick import MemoryBrick, Port
from tests.lib.replicas import Client, World
from tests.lib.virtual_loop import run

Scene = Callable[[World], Awaitable[None]]


async def make_file(client: Client, name: bytes, data: bytes = b"", parent: bytes = ROOT_GFID) -> bytes:
    gfid = client.context.new_gfid()
    fd = Fd(gfid, os.O_RDWR)
    loc = Loc(parent=parent, name=name)
    await client.afr.create(client.caller, loc, fd, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=gfid)
    if data:
        await client.afr.writev(client.caller, fd, data, offset=0)
    await client.afr.flush(client.caller, fd)
    await client.afr.release(fd)
    return gfid


async def write(client: Client, gfid: bytes, data: bytes, offset: int = 0, flags: int = 0) -> None:
    fd = Fd(gfid, os.O_WRONLY | flags)
    await client.afr.open(client.caller, Loc(gfid=gfid), fd, flags=os.O_WRONLY | flags)
    try:
        await client.afr.writev(client.caller, fd, data, offset=offset)
    finally:
        await client.afr.release(fd)


async def read(client: Client, gfid: bytes, size: int = 1 << 20) -> bytes:
    fd = Fd(gfid, os.O_RDONLY)
    await client.afr.open(client.caller, Loc(gfid=gfid), fd, flags=os.O_RDONLY)
    try:
        return bytes((await client.afr.readv(client.caller, fd, size=size, offset=0)).data)
    finally:
        await client.afr.release(fd)


async def settle() -> None:
    """Everything that is kept open for later operations is ended."""
    await asyncio.sleep(5)


def play(bricks: int, scene: Scene, **options: str) -> World:
    async def main() -> World:
        world = World(bricks, options={key.replace("_", "-"): value for key, value in options.items()})
        await scene(world)
        return world

    return run(main())


def counters(world: World, brick: int, gfid: bytes, key: str) -> str:
    return world.bricks[brick].inodes[gfid].xattrs.get(b"trusted.afr." + key.encode(), bytes(12)).hex()


@pytest.mark.parametrize("is_open", [False, True])
def test_of_an_inode_without_names_nothing_is_kept_once_nobody_uses_it(is_open: bool) -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"hello")
        place = client.context.new_gfid()
        await client.afr.mkdir(client.caller, Loc(parent=ROOT_GFID, name=b"d"), mode=0o755, gfid=place)
        await make_file(client, b"b", b"hello", place)
        await make_file(client, b"c", b"hello")
        await make_file(client, b"new", b"hello", place)
        await client.afr.rename(client.caller, Loc(parent=ROOT_GFID, name=b"c"), Loc(parent=place, name=b"new"))
        await client.afr.unlink(client.caller, Loc(parent=place, name=b"new"))
        fd = Fd(gfid, os.O_RDWR)
        if is_open:
            await client.afr.open(client.caller, Loc(gfid=gfid), fd, flags=os.O_RDWR)
        await client.afr.unlink(client.caller, Loc(gfid=gfid, parent=ROOT_GFID, name=b"a"))
        await client.afr.unlink(client.caller, Loc(parent=place, name=b"b"))
        await client.afr.rmdir(client.caller, Loc(gfid=place, parent=ROOT_GFID, name=b"d"))
        await settle()
        kept = {state.gfid for state in client.afr.inodes.all()}
        assert kept == {ROOT_GFID, gfid} if is_open else kept == {ROOT_GFID}
        if is_open:
            assert bytes((await client.afr.readv(client.caller, fd, size=9, offset=0)).data) == b"hello"
            await client.afr.release(fd)
            await settle()
            assert [state.gfid for state in client.afr.inodes.all()] == [ROOT_GFID]

    play(2, scene)


def test_a_file_is_the_same_on_all_bricks_and_nothing_stays_pending() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"hello")
        await write(client, gfid, b"HE")
        assert await read(client, gfid) == b"HEllo"
        await settle()
        assert world.tree(0) == world.tree(1) == world.tree(2)
        assert world.pending() == {}

    play(3, scene)


def test_the_counters_of_a_missed_change_are_those_of_gluster() -> None:
    """gluster-afr-xattr.txt: overwrite, new file with data, chmod only, the parent directory."""

    async def scene(world: World) -> None:
        client = await world.client()
        old = await make_file(client, b"old", b"x")
        mode = await make_file(client, b"mode", b"x")
        await settle()
        world.crash(1)
        await write(client, old, b"y")
        new = await make_file(client, b"new", b"data")
        await client.afr.setattr(client.caller, Loc(gfid=mode), SetAttr(mode=0o600))
        directory = client.context.new_gfid()
        await client.afr.mkdir(client.caller, Loc(parent=ROOT_GFID, name=b"d"), mode=0o755, gfid=directory)
        await settle()
        assert counters(world, 0, old, "brick1") == "000000010000000000000000"
        assert counters(world, 0, new, "brick1") == "000000020000000100000000"
        assert counters(world, 0, mode, "brick1") == "000000000000000100000000"
        assert counters(world, 0, directory, "brick1") == "000000000000000100000001"
        assert counters(world, 0, ROOT_GFID, "brick1") == "000000000000000000000001"
        assert counters(world, 0, old, "dirty") == "000000000000000000000000"

    play(2, scene)


def test_the_dirty_mark_is_there_while_a_file_is_written() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"x")
        await settle()
        fd = Fd(gfid, os.O_WRONLY)
        await client.afr.open(client.caller, Loc(gfid=gfid), fd, flags=os.O_WRONLY)
        await client.afr.writev(client.caller, fd, b"y", offset=0)
        assert counters(world, 0, gfid, "dirty") == "000000010000000000000000"
        await settle()
        assert counters(world, 0, gfid, "dirty") == "000000000000000000000000"

    play(2, scene)


def test_few_frames_for_many_files() -> None:
    """One frame to each brick for create, one for write; the directory's lock is kept."""

    async def scene(world: World) -> None:
        client = await world.client()
        await make_file(client, b"first", b"x")
        before = sum(world.bricks[0].counts[fop] for fop in ("entrylk",))
        for i in range(50):
            await make_file(client, b"file%d" % i, b"x")
        assert sum(world.bricks[0].counts[fop] for fop in ("entrylk",)) == before

    play(2, scene)


@pytest.mark.parametrize(("bricks", "down", "works"), [(2, 1, True), (2, 0, True), (3, 2, True)])
def test_one_brick_away_leaves_the_volume_usable(bricks: int, down: int, works: bool) -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"x")
        world.crash(down)
        await write(client, gfid, b"y")
        assert await read(client, gfid) == b"y"

    play(bricks, scene)


def test_without_quorum_changes_fail_with_enotconn_and_known_files_are_still_read() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"x")
        other = await client.afr.lookup(client.caller, Loc(parent=ROOT_GFID, name=b"a"))
        assert other.iatt.gfid == gfid
        world.crash(1)
        world.crash(2)
        with pytest.raises(FopError) as caught:
            await write(client, gfid, b"y")
        assert caught.value.errno == errno.ENOTCONN
        assert "quorum" in caught.value.detail
        assert await read(client, gfid) == b"x"

    play(3, scene)


def test_auto_quorum_of_two_needs_the_first_brick() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"x")
        world.crash(1)
        await write(client, gfid, b"y")
        world.come_back(1)
        world.crash(0)
        with pytest.raises(FopError) as caught:
            await write(client, gfid, b"z")
        assert caught.value.errno == errno.ENOTCONN

    play(2, scene, quorum_type="auto")


def test_a_brick_that_comes_back_old_is_not_read_from() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"old")
        await settle()
        for down in (0, 1):
            world.crash(down)
            await write(client, gfid, b"new%d" % down)
            await make_file(client, b"name%d" % down)
            world.come_back(down)
            fresh = await world.client()
            assert await read(fresh, gfid) == b"new%d" % down
            assert (await fresh.afr.lookup(fresh.caller, Loc(parent=ROOT_GFID, name=b"name%d" % down))).iatt.nlink == 1
            break

    play(2, scene, data_self_heal="off", metadata_self_heal="off", entry_self_heal="off")


def test_the_only_good_copy_away_is_enotconn_not_old_data() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"old")
        await settle()
        world.crash(0)
        await write(client, gfid, b"new")
        await settle()
        world.come_back(0)
        world.crash(1)
        for attempt in (read(client, gfid), write(client, gfid, b"x")):
            with pytest.raises(FopError) as caught:
                await attempt
            assert caught.value.errno == errno.ENOTCONN
        await make_file(client, b"new")  # names are known to the arbiter

    heals = {"data_self_heal": "off", "metadata_self_heal": "off", "entry_self_heal": "off"}
    play(3, scene, arbiter_count="1", **heals)


def test_two_clients_append_to_the_same_file_without_losing_a_line() -> None:
    async def scene(world: World) -> None:
        clients = [await world.client() for _ in range(3)]
        gfid = await make_file(clients[0], b"log")
        await settle()

        async def append(client: Client) -> None:
            fd = Fd(gfid, os.O_WRONLY | os.O_APPEND)
            await client.afr.open(client.caller, Loc(gfid=gfid), fd, flags=fd.flags)
            for i in range(20):
                await client.afr.writev(client.caller, fd, b"%s %02d\n" % (client.name.encode(), i), offset=0)
            await client.afr.release(fd)

        await asyncio.gather(*(append(c) for c in clients))
        await settle()
        lines = (await read(clients[0], gfid)).splitlines()
        assert sorted(lines) == sorted(b"%s %02d" % (c.name.encode(), i) for c in clients for i in range(20))
        assert world.tree(0) == world.tree(1)
        assert world.pending() == {}

    play(2, scene)


def test_renames_of_two_clients_in_opposite_directions_end() -> None:
    async def scene(world: World) -> None:
        clients = [await world.client() for _ in range(2)]
        directories = []
        for name in (b"x", b"y"):
            directories.append(clients[0].context.new_gfid())
            await clients[0].afr.mkdir(
                clients[0].caller, Loc(parent=ROOT_GFID, name=name), mode=0o755, gfid=directories[-1]
            )
        for i in range(2):
            await make_file(clients[0], b"f%d" % i, b"", directories[i])

        async def move(i: int) -> None:
            here, there = directories[i], directories[1 - i]
            for _ in range(10):
                source, target = Loc(parent=here, name=b"f%d" % i), Loc(parent=there, name=b"f%d" % i)
                await clients[i].afr.rename(clients[i].caller, source, target)
                here, there = there, here

        await asyncio.gather(move(0), move(1))
        await settle()
        assert world.tree(0) == world.tree(1)
        assert world.pending() == {}

    play(2, scene)


def test_removal_of_a_tree() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        directory = client.context.new_gfid()
        loc = Loc(parent=ROOT_GFID, name=b"d")
        await client.afr.mkdir(client.caller, loc, mode=0o755, gfid=directory)
        await make_file(client, b"f", b"data", directory)
        with pytest.raises(FopError) as caught:
            await client.afr.rmdir(client.caller, loc)
        assert caught.value.errno == errno.ENOTEMPTY
        await client.afr.unlink(client.caller, Loc(parent=directory, name=b"f"))
        await client.afr.rmdir(client.caller, loc)
        await settle()
        assert world.tree(0) == world.tree(1)
        assert list(world.tree(0)) == [b"/"]
        assert world.pending() == {}

    play(2, scene)


def test_a_lock_of_one_mount_keeps_the_other_out_and_survives_a_brick() -> None:
    async def scene(world: World) -> None:
        one, two = await world.client(), await world.client()
        gfid = await make_file(one, b"a")
        fds = []
        for client in (one, two):
            fds.append(Fd(gfid, os.O_RDWR))
            await client.afr.open(client.caller, Loc(gfid=gfid), fds[-1], flags=os.O_RDWR)
        lock = Lock(LockType.WRITE, 0, 9)
        await one.afr.lk(one.caller, fds[0], LockCommand.TRY, lock)
        with pytest.raises(FopError) as caught:
            await two.afr.lk(two.caller, fds[1], LockCommand.TRY, lock)
        assert caught.value.errno == errno.EAGAIN
        world.crash(0)
        world.come_back(0)
        await asyncio.sleep(1)
        world.crash(1)
        with pytest.raises(FopError) as caught:
            await two.afr.lk(two.caller, fds[1], LockCommand.TRY, lock)
        assert caught.value.errno == errno.EAGAIN
        await one.afr.lk(one.caller, fds[0], LockCommand.TRY, Lock(LockType.UNLOCK, 0, 9))
        await two.afr.lk(two.caller, fds[1], LockCommand.TRY, lock)

    play(2, scene)


def test_a_listing_carries_attributes_of_good_copies_only() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfids = [await make_file(client, b"f%d" % i, b"old") for i in range(4)]
        await settle()
        world.crash(0)
        await write(client, gfids[2], b"new data")
        await settle()
        world.come_back(0)
        fresh = await world.client(read_subvolume_index="0")
        fd = Fd(ROOT_GFID, is_directory=True)
        await fresh.afr.opendir(fresh.caller, Loc(gfid=ROOT_GFID), fd)
        entries = await fresh.afr.readdir(fresh.caller, fd, size=65536, offset=0, is_plus=True)
        assert {e.name: e.iatt and e.iatt.size for e in entries} == {b"f0": 3, b"f1": 3, b"f2": 8, b"f3": 3}

    play(2, scene, data_self_heal="off", metadata_self_heal="off", entry_self_heal="off")


def test_an_existing_name_is_opened_instead_of_made() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"data")
        other = client.context.new_gfid()
        fd = Fd(other, os.O_RDWR)
        loc = Loc(parent=ROOT_GFID, name=b"a")
        made = await client.afr.create(client.caller, loc, fd, flags=os.O_RDWR | os.O_CREAT, mode=0o644, gfid=other)
        assert made.iatt.gfid == fd.gfid == gfid
        with pytest.raises(FopError) as caught:
            fd = Fd(other, os.O_RDWR)
            await client.afr.create(client.caller, loc, fd, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=other)
        assert caught.value.errno == errno.EEXIST

    play(2, scene)


def test_a_client_that_dies_leaves_its_marks_and_no_locks() -> None:
    async def scene(world: World) -> None:
        one, two = await world.client(), await world.client()
        gfid = await make_file(one, b"a", b"x")
        await settle()
        fd = Fd(gfid, os.O_WRONLY)
        await one.afr.open(one.caller, Loc(gfid=gfid), fd, flags=os.O_WRONLY)
        await one.afr.writev(one.caller, fd, b"y", offset=0)
        one.die()
        await write(two, gfid, b"z")
        await settle()
        assert counters(world, 0, gfid, "dirty") == counters(world, 1, gfid, "dirty") == "000000010000000000000000"

    play(2, scene)


def test_callers_keep_their_identity() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = client.context.new_gfid()
        caller = Caller(uid=1000, gid=100, client=client.name)
        loc = Loc(parent=ROOT_GFID, name=b"mine")
        fd = Fd(gfid, os.O_RDWR)
        made = await client.afr.create(caller, loc, fd, flags=os.O_RDWR, mode=0o600, gfid=gfid)
        assert (made.iatt.uid, made.iatt.gid) == (1000, 100)

    play(2, scene)


def test_a_file_that_is_closed_while_its_data_are_synced_stays_readable() -> None:
    """Two mounts that count in one file: the fsync at the end of a transaction, which somebody waits for, was taken
    for failed on all copies when the file was closed in the middle of it, and the next open was ENOTCONN."""

    async def scene(world: World) -> None:
        client, other = await world.client(), await world.client()
        gfid = await make_file(client, b"a", b"x")
        await settle()
        closing: list[asyncio.Future[None]] = []
        fd = Fd(gfid, os.O_RDWR)

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            if who == client.name and fop == "fsync" and is_done and not closing:
                closing.append(asyncio.ensure_future(client.afr.release(fd)))
                await asyncio.sleep(0.1)

        await client.afr.open(client.caller, Loc(gfid=gfid), fd, flags=os.O_RDWR)
        await client.afr.writev(client.caller, fd, b"y", offset=0)
        world.hook = hook
        await write(other, gfid, b"z")
        assert await read(client, gfid) == b"z"
        await settle()
        assert closing and closing[0].done()
        assert world.pending() == {} and world.tree(0) == world.tree(1)
        assert all(not link.opened for c in world.clients for link in c.links)

    play(2, scene)


def test_a_name_that_is_replaced_on_one_copy_already_is_no_split_brain() -> None:
    """A lookup between the two halves of somebody else's rename found two files of one name and was EIO."""

    async def scene(world: World) -> None:
        client, other = await world.client(), await world.client()
        await make_file(client, b"target", b"old")
        source = await make_file(client, b"source", b"new")
        await settle()
        renamed = asyncio.Event()

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            if who == client.name and fop == "rename" and brick == "brick0" and is_done:
                renamed.set()
            elif who == client.name and fop == "rename" and brick == "brick1" and not is_done:
                await asyncio.sleep(1)

        world.hook = hook
        target = Loc(parent=ROOT_GFID, name=b"target")
        renaming = asyncio.ensure_future(
            client.afr.rename(client.caller, Loc(parent=ROOT_GFID, name=b"source"), target)
        )
        await renamed.wait()
        assert (await other.afr.lookup(other.caller, target)).iatt.gfid == source
        await renaming
        await settle()
        assert world.pending() == {}
        assert not any(table.held for brick in world.bricks for table in brick._internal.tables.values())

    play(2, scene)


def test_a_file_that_was_open_while_a_brick_was_away_is_closed_there_too() -> None:
    """The link opens it again by itself; nobody closed it, and a removed file stayed on the brick for ever."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"x")
        fd = Fd(gfid, os.O_RDWR)
        await client.afr.open(client.caller, Loc(gfid=gfid), fd, flags=os.O_RDWR)
        world.crash(1)
        await settle()
        world.come_back(1)
        await client.afr.release(fd)
        await settle()
        assert not client.links[1].opened and world.bricks[1].inodes[gfid].opened == 0

    play(2, scene)


@pytest.mark.parametrize("is_accused", [True, False])
def test_a_file_below_what_an_empty_brick_lacks_is_found_by_its_gfid(is_accused: bool) -> None:
    """Only the root accuses a brick that took its place empty; everything below was ESTALE until it was healed."""

    async def scene(world: World) -> None:
        client = await world.client()
        folder = b"\xf0" * 16
        await client.afr.mkdir(client.caller, Loc(parent=ROOT_GFID, name=b"folder"), mode=0o755, gfid=folder)
        gfid = await make_file(client, b"file", b"text", parent=folder)
        await settle()
        world.crash(1)
        inodes = world.bricks[1].inodes
        for lost in [g for g in inodes if g != ROOT_GFID]:
            del inodes[lost]
        inodes[ROOT_GFID].entries.clear()
        if is_accused:
            world.bricks[0].inodes[ROOT_GFID].xattrs[client.afr.keys[1]] = struct.pack(">3I", 0, 1, 1)
        world.come_back(1)
        fresh = await world.client()
        if is_accused:
            assert (await fresh.afr.lookup(fresh.caller, Loc(gfid=gfid))).iatt.size == 4
            assert await read(fresh, gfid) == b"text"
        else:
            with pytest.raises(FopError) as caught:
                await fresh.afr.lookup(fresh.caller, Loc(gfid=gfid))
            assert caught.value.errno == errno.ESTALE

    play(2, scene, data_self_heal="off", metadata_self_heal="off", entry_self_heal="off")


def test_a_file_that_could_not_be_emptied_is_not_left_open() -> None:
    """O_TRUNC without a quorum: the open failed after all copies had opened the file, and nobody closed it."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"x")
        await settle()

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            if fop == "xattrop":
                raise FopError(errno.ENOSPC, brick)

        world.hook = hook
        with pytest.raises(FopError):
            await client.afr.open(client.caller, Loc(gfid=gfid), Fd(gfid), flags=os.O_WRONLY | os.O_TRUNC)
        await settle()
        assert all(not link.opened and link.brick.inodes[gfid].opened == 0 for link in client.links)

    play(2, scene)


def test_a_file_is_opened_late_only_once_whoever_needs_it() -> None:
    """Two writes at the same time to a brick that is back: the second open ended the connection."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"x")
        world.crash(1)
        fd = Fd(gfid, os.O_WRONLY)
        await client.afr.open(client.caller, Loc(gfid=gfid), fd, flags=os.O_WRONLY)
        world.come_back(1)
        before = world.bricks[1].counts["open"]
        await asyncio.gather(*(client.afr.writev(client.caller, fd, b"y", offset=n) for n in range(5)))
        assert world.bricks[1].counts["open"] == before + 1
        await client.afr.release(fd)

    play(2, scene)


def test_making_a_name_that_is_there_accuses_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Each such create left a line in the log about copies that had missed a change."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"x")
        await settle()
        for flags in (0, os.O_EXCL):
            fd = Fd(client.context.new_gfid(), os.O_RDWR)
            loc = Loc(parent=ROOT_GFID, name=b"a")
            try:
                await client.afr.create(client.caller, loc, fd, flags=os.O_RDWR | flags, mode=0o644, gfid=fd.gfid)
            except FopError as error:
                assert error.errno == errno.EEXIST and flags
            assert flags or fd.gfid == gfid
        await settle()
        assert world.pending() == {} and client.afr.tenures == {}

    caplog.set_level("INFO")
    play(2, scene)
    assert [record.message for record in caplog.records if "accusing" in record.message] == []


def test_nodes_that_replicate_among_themselves_mean_the_same_bricks() -> None:
    """Each has its own brick first, and other names for the two: counters and the order of locks are the same."""

    class Remote(Port):
        TYPE = "protocol/client"

    async def work() -> None:
        bricks = [MemoryBrick("here"), MemoryBrick("here")]
        nodes = []
        for own in (0, 1):
            context = Context(process=f"node{own}", random=random.Random(own))
            remote = Remote(f"node{own}", bricks[1 - own])
            remote.name = "there"
            node = Replicate("afr", parse_options(Replicate.OPTIONS, {}), [bricks[own], remote], context)
            await node.start()
            assert node.up == 0 and node.keys[1] == b"trusted.afr.there"
            nodes.append((node, remote))
        for node, remote in nodes:
            node.notify(ChildUp(), remote)
        await asyncio.sleep(1)
        (one, _), (two, away) = nodes
        assert one.up == two.up == 3
        assert one.keys == two.keys[::-1] and len(set(one.keys)) == 2
        assert [one.keys[i] for i in one.lock_order] == [two.keys[i] for i in two.lock_order]
        again = Replicate("afr", two.options, [bricks[1], Remote("again", bricks[0])], Context(process="again"))
        again.names[1] = "there"
        await again.start()
        assert again.up == 1 and again.keys == two.keys, "it knows the other one without meeting it"
        two.notify(ChildDown("away"), away)
        assert two.up == 1

    run(work())


def test_a_change_of_names_that_cannot_be_acknowledged_is_not_begun() -> None:
    """The directory's transaction was open when two of three bricks went: the third renamed, removed and made alone."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"x")
        world.crash(0)
        world.crash(1)
        before = world.tree(2)
        here, there = Loc(gfid, ROOT_GFID, b"a"), Loc(parent=ROOT_GFID, name=b"b")
        fd = Fd(client.context.new_gfid(), os.O_RDWR)
        changes = (
            client.afr.rename(client.caller, here, there),
            client.afr.link(client.caller, Loc(gfid=gfid), there),
            client.afr.unlink(client.caller, here),
            client.afr.create(client.caller, there, fd, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=fd.gfid),
        )
        for change in changes:
            with pytest.raises(FopError) as caught:
                await change
            assert caught.value.errno == errno.ENOTCONN
        assert world.tree(2) == before

    play(3, scene)
