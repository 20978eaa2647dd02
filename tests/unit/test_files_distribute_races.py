# SPDX-License-Identifier: Apache-2.0
"""Several clients change the same few names at the same time: the volume stays whole, readers always find a file."""

from __future__ import annotations

import asyncio
import errno
import random
from contextlib import suppress

import pytest

from repl.files.rebalance.crawl import Crawl
from repl.files.rebalance.migration import Migration
from repl.files.rebalance.mover import Outcome
from repl.files.rebalance.progress import Progress
from repl.files.translators.distribute.layout import read_layout
from repl.files.values import ROOT_GFID, Caller, Fd, FopError, Loc, SetAttr
from tests.lib.distributed import Client, World
from tests.lib.distributed_meetings import Held, check_contents, check_whole, name_contents, pair, slow_down
from tests.lib.memory_brick import MemoryBrick
from tests.lib.virtual_loop import run

LAYOUT = b"trusted.glusterfs.dht"
EXPECTED = (
    errno.EPERM, errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.ESTALE, errno.EINVAL
)  # fmt: skip
NOREPLACE, EXCHANGE = 1, 2
KINDS = ("write", "unlink", "rename", "rename", "link", "read")
MORE_KINDS = (*KINDS, "mkdir", "rmdir", "chmod", "color", "rewrite", "exchange", "noreplace", "list")


async def write_own(client: Client, fd: Fd) -> None:
    """What it has been made with: every file says which one it is."""
    await client.dht.writev(client.caller, fd, fd.gfid[-4:], offset=0)


async def do(client: Client, dice: random.Random, kind: str, path: str, other: str) -> None:
    """One operation on ``path``, or from there to ``other``."""
    dht, me = client.dht, client.caller
    if kind == "write":
        gfid = await client.write(path)
        fd = await client.open(path)
        if fd.gfid == gfid:
            await write_own(client, fd)
        await dht.release(fd)
    elif kind == "rewrite":
        fd = await client.open(path)
        try:
            await write_own(client, fd)
        finally:
            await dht.release(fd)
    elif kind in ("exchange", "noreplace"):
        await client.rename(path, other, EXCHANGE if kind == "exchange" else NOREPLACE)
    elif kind in ("chmod", "color"):
        loc = Loc(gfid=(await client.look(path)).iatt.gfid)
        if kind == "chmod":
            await dht.setattr(me, loc, SetAttr(mode=dice.choice((0o700, 0o755))))
        else:
            await dht.setxattr(me, loc, {b"user.color": dice.choice((b"red", b"blue"))})
    elif kind == "list":
        await client.names(path.rpartition("/")[0])
    elif kind in ("rename", "link"):
        await getattr(client, kind)(path, other)
    else:
        await getattr(client, kind)(path)


async def work(client: Client, dice: random.Random, paths: list[str], *, has_folders: bool) -> None:
    for _ in range(30):
        kind, path, other = dice.choice(MORE_KINDS if has_folders else KINDS), dice.choice(paths), dice.choice(paths)
        try:
            await do(client, dice, kind, path, other)
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
        name_contents(world)
        await check_whole(world)

    run(scenario())


@pytest.mark.parametrize("has_folders", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_distribute_clients_that_change_the_same_names_while_they_are_moved(seed: int, has_folders: bool) -> None:
    async def scenario() -> None:
        world = World(2, seed=seed)
        dice = random.Random(seed)
        await world.client().mkdir("d")
        world.bricks.append(MemoryBrick("brick2"))
        clients = [world.client() for _ in range(3)]
        mover = world.client()
        for client in (*clients, mover):
            await client.look("d")
            slow_down(client, dice)
        paths = ["a", "b", "c", "d/a", "d/b"]

        async def move() -> None:
            await asyncio.sleep(dice.random() * 20)
            await Crawl(mover.dht, "force", Progress()).run()

        await asyncio.gather(move(), *(work(client, dice, paths, has_folders=has_folders) for client in clients))
        for client in clients:
            await client.idle()
        name_contents(world)
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


def test_distribute_rename_over_what_becomes_another_name_of_the_file_keeps_both() -> None:
    async def scenario() -> None:
        world = World(3)
        first, other = await pair(world)
        start, far = world.name_on(first, 1), world.name_on(first, 2)
        target = world.name_on(first, 1, "t")
        await first.write(start)
        await first.rename(start, far)
        assert world.data_at(far) == [1]
        held = Held(first, 1, "rename")
        renaming = asyncio.create_task(first.rename(far, target))
        await held.is_there.wait()
        await other.link(far, target)  # without locks: the name belongs where the data are
        held.may_go.set()
        await renaming
        assert await world.client().names() == sorted([far, target])
        await check_contents(world)
        await other.unlink(far)
        await check_contents(world)
        assert len(world.stored(far)) == 0

    run(scenario())


@pytest.mark.parametrize("is_moved_again", [False, True])
def test_distribute_rename_over_what_has_just_been_moved_leaves_nothing_behind(is_moved_again: bool) -> None:
    async def scenario() -> None:
        world = World(3)
        first, other = await pair(world)
        source, target = world.name_on(first, 1), world.name_on(first, 1, "t")
        far, further = world.name_on(first, 2), world.name_on(first, 0)
        for name in (source, target, far, further):
            await first.write(name)
        held = Held(first, 1, "rename")
        renaming = asyncio.create_task(first.rename(source, target))
        await held.is_there.wait()
        await other.rename(far, target)  # a link file is there now, and data elsewhere
        if is_moved_again:  # and again before anybody can look after what was replaced
            locking = Held(first, 1, "entrylk")
            held.may_go.set()
            await locking.reached(renaming)
            await other.rename(further, target)
            locking.may_go.set()
        held.may_go.set()
        await renaming
        assert world.data_at(target) == ([0] if is_moved_again else [1])
        await check_contents(world)

    run(scenario())


def test_distribute_rename_of_what_becomes_a_directory_takes_all_of_it() -> None:
    async def scenario() -> None:
        world = World(3)
        first, other = await pair(world)
        source, target = world.name_on(first, 1), world.name_on(first, 1, "t")
        await first.write(source)
        held = Held(first, 1, "rename")
        renaming = asyncio.create_task(first.rename(source, target))
        await held.is_there.wait()
        await other.unlink(source)
        making = Held(other, 0, "mkdir")
        made = asyncio.create_task(other.mkdir(source))
        await making.is_there.wait()
        locking = Held(first, 1, "entrylk")
        held.may_go.set()
        await locking.reached(renaming)
        making.may_go.set()
        locking.may_go.set()
        await asyncio.gather(renaming, made)
        assert not world.stored(source)
        assert list(world.stored(target)) == [0, 1, 2]
        await check_whole(world)

    run(scenario())


def test_distribute_link_file_that_goes_is_not_in_the_way_of_another_name() -> None:
    async def scenario() -> None:
        world = World(3)
        first, other = await pair(world)
        source, far, free = world.name_on(first, 1), world.name_on(first, 2), world.name_on(first, 2, "t")
        await first.write(source)
        await first.link(source, far)
        making = Held(first, 2, "mknod")
        renaming = asyncio.create_task(first.rename(source, free))
        await making.is_there.wait()
        held = Held(first, 2, "lookup")  # another name's link file was in the way: what is it?
        making.may_go.set()
        await held.is_there.wait()
        await other.unlink(far)
        held.may_go.set()
        await renaming
        assert await world.client().names() == [free]
        await check_contents(world)

    run(scenario())


@pytest.mark.parametrize("has_link", [False, True])
def test_distribute_rename_takes_only_its_own_old_name_away(has_link: bool) -> None:
    """Not the file that another client has made there meanwhile."""

    async def scenario() -> None:
        world = World(3)
        first, other = await pair(world)
        third = world.client()
        start, target = world.name_on(first, 1), world.name_on(first, 1 if has_link else 2, "t")
        old, brick = (world.name_on(first, 2), 2) if has_link else (start, 1)
        removing = Held(other, 2, "unlink")
        if has_link:  # one who is about to remove a file removes the link file that has taken its place
            await other.write(old)
            unlinking = asyncio.create_task(other.unlink(old))
            await removing.is_there.wait()
        await first.write(start)
        if has_link:
            await first.rename(start, old)
        held = Held(first, brick, "unlink")
        renaming = asyncio.create_task(first.rename(old, target))
        await held.is_there.wait()
        if has_link:
            waiting = Held(other, 2, "entrylk")
            removing.may_go.set()
            await waiting.is_there.wait()
            waiting.may_go.set()
        else:
            unlinking = asyncio.create_task(other.unlink(old))
            await unlinking
        made = await third.write(old)
        held.may_go.set()
        await asyncio.gather(renaming, unlinking)
        assert (await world.client().look(old)).iatt.gfid == made
        assert await world.client().names() == sorted([old, target])
        await check_contents(world)

    run(scenario())


@pytest.mark.parametrize("moves", [False, True])
def test_distribute_rename_under_locks_goes_on_when_the_layout_changes(moves: bool) -> None:
    async def scenario() -> None:
        world = World(3)
        first, other = await pair(world)
        source, target = world.name_on(first, 1), world.name_on(first, 1, "t")
        await first.write(source)
        found = await first.look(source)
        await first.dht.setattr(first.caller, Loc(gfid=found.iatt.gfid), SetAttr(mode=0o1644))  # as if it were moved
        held = Held(first, 1, "rename")
        renaming = asyncio.create_task(first.rename(source, target))
        await held.is_there.wait()
        one, another = (brick.inodes[ROOT_GFID].xattrs for brick in world.bricks[:2])
        if moves:
            one[LAYOUT], another[LAYOUT] = another[LAYOUT], one[LAYOUT]
        else:
            another[LAYOUT] = bytes([0, 0, 0, 1]) + another[LAYOUT][4:]
        held.may_go.set()
        await renaming
        await first.idle()
        assert world.links_at(target) == ([0] if moves else [])  # it belongs there now
        assert await other.names() == [target]

    run(scenario())


def test_distribute_rename_whose_link_file_is_tidied_away_begins_again() -> None:
    async def scenario() -> None:
        world = World(3)
        first, other = await pair(world)
        source, target = world.name_on(first, 1), world.name_on(first, 2, "t")
        await first.write(source)
        held = Held(first, 2, "rename")
        renaming = asyncio.create_task(first.rename(source, target))
        await held.is_there.wait()
        (hidden,) = (name for name in world.bricks[2].inodes[ROOT_GFID].entries if name.startswith(b".glusterfs-dht-"))
        await other.dht.remove_stale(Loc(parent=ROOT_GFID, name=hidden), 2)  # as a rebalance does
        assert hidden not in world.bricks[2].inodes[ROOT_GFID].entries
        held.may_go.set()
        await renaming
        assert await other.names() == [target]
        await check_contents(world)

    run(scenario())


def test_distribute_lookup_by_an_old_layout_finds_what_has_been_moved() -> None:
    async def scenario() -> None:
        world = World(3)
        first, reader = await pair(world)
        start, name = world.name_on(first, 1), world.name_on(first, 2, "t")
        await first.write(start, b"data")
        await first.rename(start, name)
        assert (world.data_at(name), world.links_at(name)) == ([1], [2])
        await reader.look(name)
        await asyncio.sleep(2)  # what it knows of the layout has to be asked for again
        one, another = (world.bricks[i].inodes[ROOT_GFID].xattrs for i in (0, 2))
        not_complete = bytes([0, 0, 0, 1])
        one[LAYOUT], another[LAYOUT] = not_complete + another[LAYOUT][4:], not_complete + one[LAYOUT][4:]
        mover = world.client()
        await mover.look("")
        loc = Loc(parent=ROOT_GFID, name=name.encode())
        assert (await Migration(mover.dht, loc, 1, 0).run()).outcome is Outcome.MOVED
        assert world.links_at(name) == [2]  # it leads where nothing is any more, until the rebalance comes by
        tries = 0

        async def pause(brick: str, fop: str) -> None:
            nonlocal tries
            if (brick, fop) == ("brick2", "lookup"):
                tries += 1
                if tries == 5:
                    await world.bricks[2].unlink(mover.caller, loc)

        reader.pause = pause
        assert await reader.read(name) == b"data"
        assert tries >= 5

    run(scenario())


@pytest.mark.parametrize("by_name", [True, False])
def test_directory_that_is_being_made_gets_its_ranges_from_who_makes_it(by_name: bool) -> None:
    """Another client saw two of three copies, gave the range of the third to them, and put names elsewhere."""

    async def scenario() -> None:
        world = World(3)
        maker, other = await pair(world)
        name = world.name_on(maker, 0, "folder")
        held = Held(maker, 2, "mkdir")
        making = asyncio.create_task(maker.mkdir(name))
        await held.reached(making)
        copy = world.stored(name)[0]
        work = other.look(name) if by_name else other.dht.directory(copy.iatt.gfid)
        looking = asyncio.create_task(work)
        await asyncio.sleep(0.3)
        held.may_go.set()
        await making
        await looking
        stored = world.stored(name)
        layout = read_layout({index: inode.xattrs[LAYOUT] for index, inode in stored.items()})
        assert len(layout.ranges) == 3 and layout.anomalies().is_sound
        for number in range(20):
            await maker.write(f"{name}/f{number}")
            await other.look(f"{name}/f{number}")
            assert len(world.stored(f"{name}/f{number}")) == 1
        await check_contents(world)

    run(scenario())


def test_distribute_copy_of_a_directory_that_nothing_leads_to_does_not_keep_its_parent() -> None:
    """What a race of a heal with a removal leaves; nobody sees it, and nobody could remove it."""

    async def scenario() -> None:
        world = World(3)
        first, other = await pair(world)
        folder = await first.mkdir("d")
        name = world.name_on(first, 0, "sub", folder)
        left = await first.mkdir(f"d/{name}")
        copy = Loc(parent=folder, name=name.encode())
        for brick in world.bricks[:2]:
            await brick.rmdir(first.caller, copy)
        assert list(world.stored(f"d/{name}")) == [2]
        await other.look("d")
        assert not await other.names("d")
        inside = Loc(parent=left, name=b"file")
        await world.bricks[2].mknod(first.caller, inside, mode=0o100644, rdev=0, gfid=world.new_gfid())
        with pytest.raises(FopError) as caught:  # but for what is in it
            await other.rmdir("d")
        assert caught.value.errno == errno.ENOTEMPTY
        assert len(world.stored("d")) == 3
        await world.bricks[2].unlink(first.caller, inside)
        await other.rmdir("d")
        assert not world.stored("d")

    run(scenario())


@pytest.mark.parametrize("gone", [(1, 2), (1,)])
def test_distribute_heal_takes_back_the_copy_of_a_directory_that_is_removed_meanwhile(gone: tuple[int, ...]) -> None:
    """By a client that knows another layout of the names, and holds another lock; not if only a part is gone."""

    async def scenario() -> None:
        world = World(3)
        first, other = await pair(world)
        folder = await first.mkdir("d")
        name = world.name_on(first, 2, "sub", folder)
        path, copy = f"d/{name}", Loc(parent=folder, name=name.encode())
        await first.mkdir(path)
        await world.bricks[0].rmdir(first.caller, copy)
        held = Held(other, 0, "mkdir")
        looking = asyncio.ensure_future(other.look(path))
        await held.is_there.wait()
        for index in gone:
            await world.bricks[index].rmdir(first.caller, copy)
        held.may_go.set()
        with suppress(FopError):
            await looking
        assert list(world.stored(path)) == ([] if len(gone) == 2 else [0, 2])

    run(scenario())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_distribute_exchange_of_names_that_lead_elsewhere_by_now_is_refused(kind: str) -> None:
    """The other name has got a link file, or a file for a directory: exchanged with that, what it led to was lost."""

    async def scenario() -> None:
        world = World(3)
        first, other = await pair(world)
        one, two, far = world.name_on(first, 0, "one"), world.name_on(first, 0, "two"), world.name_on(first, 1, "far")
        for name in (one, two):
            await (first.mkdir(name) if kind == "folder" else first.write(name, name.encode()))
        gfid = await first.write(far, b"far")
        held = Held(first, 0, "entrylk")
        exchanging = asyncio.create_task(first.rename(one, two, EXCHANGE))
        await held.is_there.wait()
        if kind == "folder":
            await other.rmdir(two)
        await other.rename(far, two)
        assert (world.data_at(two), world.links_at(two)) == ([1], [0])
        held.may_go.set()
        with pytest.raises(FopError) as caught:
            await exchanging
        assert caught.value.errno == errno.EINVAL  # as if it had begun now
        reader = world.client()
        assert await reader.names() == sorted([one, two])
        assert await reader.read(two) == b"far"
        assert (await reader.look(two)).iatt.gfid == gfid
        assert (await reader.look(one)).iatt.is_directory == (kind == "folder")
        assert len(world.stored(one)) == (3 if kind == "folder" else 1)

    run(scenario())


@pytest.mark.parametrize("fop", ["rename", "rmdir"])
@pytest.mark.parametrize("is_there", [True, False])
def test_distribute_copy_of_a_directory_that_was_not_seen_is_looked_for_again(fop: str, is_there: bool) -> None:
    """A set of replicas said that it has none when its bricks went: the copy kept the old name for ever."""

    async def scenario() -> None:
        world = World(3)
        client, _ = await pair(world)
        await client.mkdir("other")
        old, new = world.name_on(client, 0, "old"), world.name_on(client, 0, "new")
        gfid = await client.mkdir(old)
        brick = world.bricks[1]
        work, remove = getattr(brick, fop), brick.rmdir

        async def not_seen(caller: Caller, loc: Loc, *args: object, **kwargs: object) -> object:
            if loc.name != old.encode():
                return await work(caller, loc, *args, **kwargs)
            if not is_there:
                await remove(caller, loc)
            raise FopError(errno.ENOENT)

        setattr(brick, fop, not_seen)
        change = client.rename(old, new) if fop == "rename" else client.rmdir(old)
        if is_there:
            with pytest.raises(FopError) as caught:
                await change
            assert caught.value.errno == errno.ENOTCONN
        else:
            await change
        setattr(brick, fop, work)
        reader = world.client()
        left = {True: [old], False: [new] if fop == "rename" else []}[is_there]
        assert await reader.names() == sorted([*left, "other"])
        for name in left:
            assert (await reader.look(name)).iatt.gfid == gfid
            assert len(world.stored(name)) == 3

    run(scenario())
