# SPDX-License-Identifier: Apache-2.0
"""cluster/distribute over bricks in memory: where things are, link files, listings, bricks that are away."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable
from typing import Any

import pytest

from repl.files.events import Event, Invalidated
from repl.files.options import Options
from repl.files.translator import Context, Step, Translator
from repl.files.values import LAST, ROOT_GFID, Fd, FopError, Iatt, Loc, Lock, LockCommand, LockType, SetAttr, StatVfs
from tests.lib.distributed import LINKTO, Client, World
from tests.lib.virtual_loop import run

LAYOUT = b"trusted.glusterfs.dht"


async def fails(number: int, work: Awaitable[Any]) -> None:
    with pytest.raises(FopError) as caught:
        await work
    assert caught.value.errno == number, caught.value


def test_distribute_files_are_where_their_names_say_and_listed_once() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        await client.mkdir("d")
        names = [f"file{i}" for i in range(60)]
        for name in names:
            await client.write(f"d/{name}", name.encode())
        used = set()
        for name in names:
            places = world.data_at(f"d/{name}")
            assert len(places) == 1 and not world.links_at(f"d/{name}")
            used |= set(places)
            assert await client.read(f"d/{name}") == name.encode()
        assert used == {0, 1, 2, 3}
        assert await client.names("d", size=300) == sorted(names)
        assert await client.names() == ["d"]

    run(scenario())


async def sixty_files(client: Client) -> tuple[bytes, list[str]]:
    """The gfid of ``d``, and the names in it."""
    await client.mkdir("d")
    names = [f"file{i}" for i in range(60)]
    for name in names:
        await client.write(f"d/{name}")
    return (await client.look("d")).iatt.gfid, names


def test_distribute_listing_begins_on_all_bricks_at_once() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        gfid, names = await sixty_files(client)
        fd = Fd(gfid, is_directory=True)
        await client.dht.opendir(client.caller, Loc(gfid=gfid), fd)
        part = await client.dht.readdir(client.caller, fd, size=1 << 16, offset=0)
        assert sorted(entry.name.decode() for entry in part) == sorted(names)
        assert not any(entry.xattrs for entry in part)
        found, offset = [], 0  # whoever asks where a directory ends must not take the end of a brick for it
        while more := await client.dht.readdir(client.caller, fd, size=300, offset=offset, want=(LAST,)):
            assert not any(entry.xattrs for entry in more)
            found += [entry.name.decode() for entry in more]
            offset = more[-1].offset
        assert sorted(found) == sorted(names)
        for position in (0, 20, 40, 59):  # going on anywhere
            rest, offset = [], part[position].offset
            while more := await client.dht.readdir(client.caller, fd, size=300, offset=offset):
                rest += more
                offset = more[-1].offset
            assert [entry.name for entry in rest] == [entry.name for entry in part[position + 1 :]]
        await client.dht.release(fd)

    run(scenario())


@pytest.mark.parametrize("size", [300, 1 << 16])
def test_distribute_listing_tells_of_a_brick_that_fails_when_it_gets_there(size: int) -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        gfid, names = await sixty_files(client)

        async def fail(brick: str, fop: str) -> None:
            if (brick, fop) == ("brick2", "readdir"):
                raise FopError(errno.EIO)

        client.pause = fail
        fd, found, offset = Fd(gfid, is_directory=True), [], 0
        await client.dht.opendir(client.caller, Loc(gfid=gfid), fd)
        with pytest.raises(FopError) as error:
            while part := await client.dht.readdir(client.caller, fd, size=size, offset=offset):
                found += [entry.name.decode() for entry in part]
                offset = part[-1].offset
        assert error.value.errno == errno.EIO
        assert sorted(found) == sorted(name for name in names if world.data_at(f"d/{name}") < [2])
        await client.dht.release(fd)

    run(scenario())


def test_distribute_removes_a_file_that_was_listed_without_looking_for_it() -> None:
    async def scenario() -> None:
        world = World()
        client, other = world.client(), world.client()
        names = [f"file{i}" for i in range(8)]
        for name in (*names, *(f"first{i}" for i in range(8))):
            await other.write(name)
        await client.names()
        for number in range(8):
            await client.unlink(f"first{number}")  # bricks have said what layout they have
        await other.rename(names[0], "away")
        await other.write(names[0], b"another")
        client.log.clear()
        for name in names:
            await client.unlink(name)
        sent = [line.partition(".")[2] for line in client.log]
        assert sent.count("unlink") == 8 and sent.count("lookup") == 1  # of the name that was said to have changed
        assert await world.client().names() == ["away"]

    run(scenario())


def test_distribute_fresh_volume_needs_one_brick_for_a_miss() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        await client.mkdir("d")
        await fails(errno.ENOENT, client.look("d/nothing"))
        client.log.clear()
        gfid = (await client.look("d")).iatt.gfid
        client.log.clear()
        await fails(errno.ENOENT, client.dht.lookup(client.caller, Loc(parent=gfid, name=b"nothing")))
        assert len(client.log) == 1

    run(scenario())


def test_distribute_adopted_volume_finds_what_has_no_link_file() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        await client.look("")
        for brick in world.bricks:
            root = brick.inodes[ROOT_GFID]
            root.xattrs = {LAYOUT: bytes(3) + b"\x01" + root.xattrs[LAYOUT][4:]}
        name = world.name_on(client, 2)
        fd = Fd(world.new_gfid(), os.O_RDWR)
        loc = Loc(parent=ROOT_GFID, name=name.encode())
        await world.bricks[0].create(client.caller, loc, fd, flags=os.O_RDWR, mode=0o644, gfid=fd.gfid)
        other = world.client()
        assert (await other.look(name)).iatt.gfid == fd.gfid
        await other.idle()
        assert world.links_at(name) == [2] and world.data_at(name) == [0]
        await fails(errno.EEXIST, world.client().write(name))

    run(scenario())


def test_distribute_rename_leaves_a_link_file_and_unlink_takes_both() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        await client.look("")
        old, new = world.name_on(client, 1), world.name_on(client, 3)
        gfid = await client.write(old, b"text")
        await client.rename(old, new)
        assert (world.data_at(new), world.links_at(new)) == ([1], [3]) and not world.stored(old)
        assert world.bricks[3].inodes[gfid].xattrs[LINKTO] == b"brick1\0"
        assert await world.client().read(new) == b"text"
        assert await client.names() == [new]
        await world.client().unlink(new)
        assert not world.stored(new)

    run(scenario())


def test_distribute_user_file_with_the_sticky_bit_is_a_file() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        gfid = await client.write("f", b"sticky")
        await client.dht.setattr(client.caller, Loc(gfid=gfid), SetAttr(mode=0o1000))
        assert await world.client().read("f") == b"sticky"
        assert (await world.client().look("f")).iatt.mode == 0o101000

    run(scenario())


def test_distribute_hard_links_keep_data_in_one_place() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        await client.look("")
        first = world.name_on(client, 0)
        await client.write(first, b"x")
        for number in range(6):
            await client.link(first, f"hard{number}")
        assert (await client.look(first)).iatt.nlink == 7
        for number in range(6):
            assert world.data_at(f"hard{number}") == [0]
            assert await world.client().read(f"hard{number}") == b"x"
        await fails(errno.EEXIST, client.link(first, "hard0"))
        for number in range(6):
            await client.unlink(f"hard{number}")
        assert (await client.look(first)).iatt.nlink == 1
        assert all(len(brick.inodes) <= 2 for brick in world.bricks)

    run(scenario())


def test_distribute_rename_of_hard_links_across_bricks() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        await client.look("")
        first, second = world.name_on(client, 0, "a"), world.name_on(client, 2, "b")
        third, fourth = world.name_on(client, 2, "c"), world.name_on(client, 1, "d")
        await client.write(first, b"x")
        await client.link(first, second)
        await client.rename(second, third)  # both names belong to brick 2: its link file is the same inode
        assert await client.read(third) == b"x"
        await client.rename(third, fourth)
        assert sorted(await client.names()) == sorted([first, fourth])
        await client.rename(first, fourth)  # the same file: nothing happens
        assert sorted(await client.names()) == sorted([first, fourth])
        assert (await world.client().look(fourth)).iatt.nlink == 2

    run(scenario())


def test_distribute_open_file_survives_rename_over_and_unlink() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        await client.look("")
        target, source = world.name_on(client, 0, "t"), world.name_on(client, 1, "s")
        await client.write(target, b"old")
        await client.write(source, b"new")
        fd = await client.open(target)
        await client.rename(source, target)
        assert (await client.dht.readv(client.caller, fd, size=9, offset=0)).data == b"old"
        assert await client.read(target) == b"new"
        assert len(world.data_at(target)) == 1
        await client.dht.release(fd)

    run(scenario())


def test_distribute_missing_copy_and_attributes_are_healed() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        gfid = await client.mkdir("d")
        await client.write("d/f", b"1")
        victim = next(i for i in range(4) if i not in world.data_at("d/f") and b"trusted.glusterfs.dht.mds"
                      not in world.stored("d")[i].xattrs)  # fmt: skip
        await world.bricks[victim].rmdir(client.caller, Loc(parent=ROOT_GFID, name=b"d"))
        other = next(i for i in range(4) if i != victim)
        world.bricks[other].inodes[gfid].xattrs.pop(LAYOUT)
        reader = world.client()
        await reader.look("d")
        assert len(world.stored("d")) == 4
        assert reader.dht.directories.get(gfid).layout.anomalies().is_sound
        assert await reader.read("d/f") == b"1"

    run(scenario())


def test_distribute_directory_attributes_reach_a_brick_that_was_away() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        gfid = await client.mkdir("d")
        mds = client.dht.directories.get(gfid).mds
        away = (mds + 1) % 4
        world.bricks[away].go_down()
        await client.dht.setattr(client.caller, Loc(gfid=gfid), SetAttr(mode=0o700, uid=5))
        await client.dht.setxattr(client.caller, Loc(gfid=gfid), {b"user.color": b"red"})
        world.bricks[away].come_up()
        looked = await client.look("d")
        assert (looked.iatt.mode & 0o7777, looked.iatt.uid) == (0o700, 5)
        copy = world.stored("d")[away]
        assert (copy.iatt.mode & 0o7777, copy.iatt.uid, copy.xattrs[b"user.color"]) == (0o700, 5, b"red")
        assert not any(world.stored("d")[mds].xattrs[b"trusted.glusterfs.dht.mds"])

    run(scenario())


def test_distribute_brick_away_only_takes_its_names_with_it() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        await client.mkdir("d")
        folder = (await client.look("d")).iatt.gfid
        for i in range(4):
            await client.write("d/" + world.name_on(client, i, folder=folder), bytes([i]))
        world.bricks[2].go_down()
        for i in range(4):
            name = "d/" + world.name_on(client, i, folder=folder)
            if i == 2:
                await fails(errno.ENOTCONN, client.read(name))
            else:
                assert await client.read(name) == bytes([i])
        await fails(errno.ENOTCONN, client.write("d/" + world.name_on(client, 2, "new", folder=folder)))
        await client.write("d/" + world.name_on(client, 1, "new", folder=folder))
        await fails(errno.ENOTCONN, client.rmdir("d"))
        assert len(await client.names("d")) == 4
        late = world.client()  # has never seen the layout of the brick that is away
        late.dht.up[2] = False
        await fails(errno.ENOTCONN, late.look("d/" + world.name_on(client, 2, folder=folder)))
        assert await late.read("d/" + world.name_on(client, 3, folder=folder)) == b"\3"
        world.bricks[2].come_up()
        assert await client.read("d/" + world.name_on(client, 2, folder=folder)) == b"\2"

    run(scenario())


def test_distribute_mkdir_while_a_brick_is_away_is_completed_later() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        await client.look("")
        world.bricks[3].go_down()
        name = world.name_on(client, 0, "d")
        await client.mkdir(name)
        for i in range(20):
            await client.write(f"{name}/f{i}")
        world.bricks[3].come_up()
        assert len(await client.names(name)) == 20
        assert len(world.stored(name)) == 4

    run(scenario())


def test_distribute_rmdir_needs_an_empty_directory_everywhere() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        folder = await client.mkdir("d")
        a, b = world.name_on(client, 1, "a", folder), world.name_on(client, 2, "b", folder)
        await client.write(f"d/{a}")
        await fails(errno.ENOTEMPTY, client.rmdir("d"))
        await client.rename(f"d/{a}", f"d/{b}")
        await fails(errno.ENOTEMPTY, client.rmdir("d"))
        await client.unlink(f"d/{b}")
        await client.dht.make_link(1, Loc(parent=folder, name=b"stale"), world.new_gfid(), 2)
        await client.rmdir("d")
        assert not world.stored("d")
        await fails(errno.ENOENT, client.look("d"))

    run(scenario())


def test_distribute_directory_rename_and_its_failure() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        await client.mkdir("a")
        await client.mkdir("b")
        await client.write("a/f", b"1")
        await client.rename("a", "c")
        assert await client.read("c/f") == b"1" and not world.stored("a")
        await client.rename("c", "b")  # an empty directory gives way
        assert await client.read("b/f") == b"1" and await client.names() == ["b"]
        await client.mkdir("e")
        await fails(errno.ENOTEMPTY, client.rename("e", "b"))
        # One brick refuses: it is undone on the others.
        real = world.bricks[1].rename

        async def full(*args: Any, **kwargs: Any) -> Any:
            raise FopError(errno.ENOSPC, "test")

        world.bricks[1].rename = full  # type: ignore[method-assign]
        await fails(errno.ENOSPC, client.rename("b", "g"))
        world.bricks[1].rename = real  # type: ignore[method-assign]
        assert await world.client().read("b/f") == b"1"
        assert await client.names() == ["b", "e"] and not world.stored("g")

    run(scenario())


def test_distribute_full_brick_gets_no_new_files() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        await client.look("")

        async def statfs(*_: Any) -> StatVfs:
            return StatVfs(4096, 1000, 10, 10, 1000, 900, 900)

        world.bricks[0].statfs = statfs  # type: ignore[method-assign]
        await client.dht.look_for_room()
        name = world.name_on(client, 0)
        await client.write(name, b"elsewhere")
        assert world.links_at(name) == [0] and world.data_at(name) != [0]
        assert await world.client().read(name) == b"elsewhere"
        total = await client.dht.statfs(client.caller, Loc(gfid=ROOT_GFID))
        assert total.blocks == 1000 + 3 * (1 << 20)

    run(scenario())


def test_distribute_stale_link_file_is_no_obstacle() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        await client.look("")
        name = world.name_on(client, 1)
        loc = Loc(parent=ROOT_GFID, name=name.encode())
        await client.dht.make_link(1, loc, world.new_gfid(), 3)
        await fails(errno.ENOENT, client.look(name))
        await client.idle()
        assert not world.stored(name)
        await client.dht.make_link(1, loc, world.new_gfid(), 3)
        await client.write(name, b"x")
        assert await client.read(name) == b"x" and world.data_at(name) == [1]

    run(scenario())


def test_distribute_client_with_an_old_layout_learns_the_new_one() -> None:
    async def scenario() -> None:
        world = World()
        old, new = world.client(), world.client()
        await old.look("")
        await new.look("")
        name = world.name_on(old, 0)
        swapped = [brick.inodes[ROOT_GFID].xattrs[LAYOUT] for brick in world.bricks]
        for brick, value in zip(world.bricks, [swapped[1], swapped[0], *swapped[2:]], strict=True):
            await brick.setxattr(new.caller, Loc(gfid=ROOT_GFID), {LAYOUT: value})
        old.dht.directories.get(ROOT_GFID).checked = dict.fromkeys(range(4), float("inf"))  # no upcall has reached it
        await old.write(name)
        assert world.data_at(name) == [1]

    run(scenario())


def test_distribute_create_without_exclusive_opens_what_is_there() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        gfid = await client.write("f", b"hello")
        fd = Fd(world.new_gfid(), os.O_RDWR)
        await client.dht.create(
            client.caller, await client.at("f"), fd, flags=os.O_RDWR | os.O_TRUNC, mode=0o600, gfid=fd.gfid
        )
        assert fd.gfid == gfid
        await client.dht.release(fd)
        assert await client.read("f") == b""

    run(scenario())


def test_distribute_compound_is_one_frame_for_one_file() -> None:
    async def scenario() -> None:
        world = World()
        client = world.client()
        gfid = await client.write("f", b"hello")
        fd = Fd(gfid)
        before = sum(brick.counts["compound"] for brick in world.bricks)
        steps = [Step("open", (Loc(gfid=gfid), fd), {"flags": os.O_RDONLY}), Step("stat", (fd,)),
                 Step("readv", (fd,), {"size": 9, "offset": 0})]  # fmt: skip
        answers = await client.dht.compound(client.caller, steps)
        assert answers[2].data == b"hello" and answers[1].iatt.size == 5
        assert (await client.dht.readv(client.caller, fd, size=2, offset=0)).data == b"he"
        await client.dht.release(fd)
        assert sum(brick.counts["compound"] for brick in world.bricks) <= before + 1
        assert all(inode.opened == 0 for brick in world.bricks for inode in brick.inodes.values())

    run(scenario())


def test_distribute_locks_and_exchange() -> None:
    async def scenario() -> None:
        world = World()
        one, two = world.client(), world.client()
        await one.write("f")
        fd, other = await one.open("f"), await two.open("f")
        lock = Lock(LockType.WRITE, 0, 9)
        await one.dht.lk(one.caller, fd, LockCommand.TRY, lock)
        await fails(errno.EAGAIN, two.dht.lk(two.caller, other, LockCommand.TRY, lock))
        await one.dht.lk(one.caller, fd, LockCommand.TRY, Lock(LockType.UNLOCK, 0, 9))
        await two.dht.lk(two.caller, other, LockCommand.TRY, lock)
        a, b = world.name_on(one, 0, "a"), world.name_on(one, 0, "b")
        await one.write(a, b"a")
        await one.write(b, b"b")
        await one.rename(a, b, 2)
        assert (await one.read(a), await one.read(b)) == (b"b", b"a")
        await one.mkdir("x")
        await one.mkdir("y")
        await one.write("x/1")
        await one.rename("x", "y", 2)
        assert (await two.names("x"), await two.names("y")) == ([], ["1"])
        await fails(errno.EEXIST, one.rename(a, b, 1))

    run(scenario())


def test_distribute_tells_no_attributes_of_link_files_or_single_copies() -> None:
    class Ear(Translator):
        def __init__(self, child: Translator) -> None:
            super().__init__("ear", Options((), {}, {}), [child], Context())
            self.heard: list[Event] = []

        def notify(self, event: Event, child: Translator | None) -> None:
            self.heard.append(event)

    async def scenario() -> None:
        world = World()
        client = world.client()
        ear = Ear(client.dht)
        for mode in (0o40755, 0o101000):
            client.dht.notify(Invalidated(b"g" * 16, Iatt(mode=mode), is_gone=True), client.ports[0])
        client.dht.notify(Invalidated(b"g" * 16, Iatt(mode=0o100644)), client.ports[0])
        first, second, third = ear.heard
        assert isinstance(first, Invalidated) and first.iatt is None and first.is_gone
        assert isinstance(second, Invalidated) and second.iatt is None and not second.is_gone
        assert isinstance(third, Invalidated) and third.iatt is not None

    run(scenario())


def test_distribute_file_that_could_not_be_emptied_is_not_left_open() -> None:
    """O_TRUNC with an error on the brick: nobody closed what the failed open had opened."""

    async def scenario() -> None:
        world = World()
        client = world.client()
        await client.write("f", b"x")
        gfid = (await client.look("f")).iatt.gfid
        fd = Fd(gfid, os.O_WRONLY | os.O_TRUNC)
        for port in client.ports:

            async def full(*_: Any, **__: Any) -> Any:
                raise FopError(errno.ENOSPC, "full")

            port.truncate = full  # type: ignore[method-assign]
        await fails(errno.ENOSPC, client.dht.open(client.caller, Loc(gfid=gfid), fd, flags=os.O_WRONLY | os.O_TRUNC))
        await asyncio.sleep(1)
        assert all(brick.inodes[gfid].opened == 0 for brick in world.bricks if gfid in brick.inodes)

    run(scenario())
