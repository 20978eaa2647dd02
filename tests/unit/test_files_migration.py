# SPDX-License-Identifier: Apache-2.0
"""Moving files that are in use: no acknowledged write is lost, and a migrator that dies leaves one file."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
from contextlib import suppress
from typing import Any

import pytest

from repl.files.rebalance import at_once
from repl.files.rebalance.crawl import Crawl
from repl.files.rebalance.migration import Migration
from repl.files.rebalance.mover import Moved, Outcome
from repl.files.rebalance.progress import Progress
from repl.files.translator import Step
from repl.files.translators.distribute.marks import INCOMING, MIGRATION
from repl.files.values import ROOT_GFID, Fd, FopError, Loc, Lock, LockCommand, LockType, SetAttr
from tests.lib.distributed import Client, Died, World
from tests.lib.distributed_meetings import Held, change_layout, misplaced, slow_down
from tests.lib.virtual_loop import run

LINKTO = b"trusted.glusterfs.dht.linkto"
MARKS = (b"migration", b"incoming", b"linkto")


@pytest.fixture(autouse=True, params=["at once", "in phases"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are moved at once; all can be moved like large ones."""
    if request.param == "in phases":
        monkeypatch.setattr(at_once, "REBALANCE_AT_ONCE_BYTES_MAX", -1)


def migration(client: Client, name: str) -> Migration:
    return Migration(client.dht, Loc(parent=ROOT_GFID, name=name.encode()), 0, 1)


def assert_clean(world: World, name: str) -> None:
    """The file is on brick 1 alone, with no mark."""
    assert list(world.stored(name)) == [1]
    inode = world.stored(name)[1]
    assert not any(b"trusted.glusterfs.dht." + mark in inode.xattrs for mark in MARKS)
    assert inode.iatt.gfid not in world.bricks[0].inodes or world.bricks[0].inodes[inode.iatt.gfid].opened


def test_migration_brings_no_name_back_whose_link_file_was_left_over() -> None:
    async def scenario() -> None:
        world = World(2)
        client, mover = world.client(), world.client()
        name = await misplaced(world, client)
        target = world.bricks[1]
        gfid = (await client.look(name)).iatt.gfid
        # A crash, or a rename while the layout changed, has left them.
        for left in (b"before", b".glusterfs-dht-left"):
            await target.link(client.caller, Loc(gfid=gfid), Loc(parent=ROOT_GFID, name=left))
        await mover.look("")
        assert (await migration(mover, name).run()).outcome is Outcome.MOVED
        assert_clean(world, name)
        assert (await client.look(name)).iatt.nlink == 1
        assert await world.client().names() == [name]

    run(scenario())


def test_migration_waits_for_a_name_that_is_being_made() -> None:
    async def scenario() -> None:
        world = World(2)
        client, mover = world.client(), world.client()
        name = await misplaced(world, client)
        other = world.name_on(client, 1, "other")
        held = Held(client, 0, "link")
        linking = asyncio.create_task(client.link(name, other))
        await held.is_there.wait()  # its link file has been made
        await mover.look("")
        moved = await migration(mover, name).run()
        assert moved.outcome is Outcome.SKIPPED
        assert "in use" in moved.reason
        held.may_go.set()
        await linking
        reader = world.client()
        assert await reader.names() == sorted([name, other])
        assert await reader.read(other) == await reader.read(name) == b"data"

    run(scenario())


def test_migration_carries_everything() -> None:
    async def scenario() -> None:
        world = World(2)
        client, mover = world.client(), world.client()
        name = await misplaced(world, client, b"some data\0\0\0")
        gfid = (await client.look(name)).iatt.gfid
        loc = Loc(gfid=gfid)
        await client.dht.setxattr(client.caller, loc, {b"user.color": b"red", b"system.posix_acl_access": b"acl"})
        await client.dht.setattr(client.caller, loc, SetAttr(mode=0o2751, uid=7, gid=8, mtime_ns=12345))
        await mover.look("")
        moved = await migration(mover, name).run()
        assert (moved.outcome, moved.size) == (Outcome.MOVED, 12)
        assert_clean(world, name)
        for reader in (client, world.client()):
            looked = await reader.look(name)
            iatt = looked.iatt
            assert (iatt.gfid, iatt.mode, iatt.uid, iatt.gid, iatt.mtime_ns) == (gfid, 0o102751, 7, 8, 12345)
            assert await reader.read(name) == b"some data\0\0\0"
            assert (await reader.dht.getxattr(reader.caller, loc))[b"user.color"] == b"red"

    run(scenario())


def test_migration_holes_stay_holes() -> None:
    async def scenario() -> None:
        world = World(2)
        client, mover = world.client(), world.client()
        name = await misplaced(world, client, b"")
        fd = await client.open(name)
        await client.dht.truncate(client.caller, fd, 5 << 20)
        await client.dht.writev(client.caller, fd, b"end", offset=(5 << 20) - 3)
        await client.dht.release(fd)
        await mover.look("")
        assert (await migration(mover, name).run()).outcome is Outcome.MOVED
        assert (await client.look(name)).iatt.size == 5 << 20
        assert world.bricks[1].counts["fallocate"] >= 4 and world.bricks[1].counts["writev"] == 1

    run(scenario())


def test_migration_skips_what_is_locked_or_has_two_names() -> None:
    async def scenario() -> None:
        world = World(2)
        client, mover = world.client(), world.client()
        name = await misplaced(world, client)
        await mover.look("")
        fd = await client.open(name)
        for lock in (Lock(LockType.READ, 0, 5), Lock(LockType.WRITE, is_flock=True)):
            await client.dht.lk(client.caller, fd, LockCommand.TRY, lock)
            moved = await migration(mover, name).run()
            assert moved.outcome is Outcome.SKIPPED and "lock" in moved.reason
            assert (await client.look(name)).iatt.mode == 0o100644
            free = Lock(LockType.UNLOCK, lock.first, lock.last, lock.is_flock)
            await client.dht.lk(client.caller, fd, LockCommand.TRY, free)
        await client.link(name, "other")
        assert (await migration(mover, name).run()).outcome is Outcome.SKIPPED
        await client.unlink("other")
        assert (await migration(mover, name).run()).outcome is Outcome.MOVED
        # The lock is asked for where the file was; it is got where it is.
        await client.dht.lk(client.caller, fd, LockCommand.TRY, Lock(LockType.WRITE, 0, 5))
        other = world.client()
        second = await other.open(name)
        with pytest.raises(FopError):
            await other.dht.lk(other.caller, second, LockCommand.TRY, Lock(LockType.WRITE, 0, 5))

    run(scenario())


def test_migration_open_files_go_along() -> None:
    async def scenario() -> None:
        world = World(2)
        client, mover = world.client(), world.client()
        name = await misplaced(world, client, b"0123456789")
        reader, writer = await client.open(name, os.O_RDONLY), await client.open(name)
        await mover.look("")
        assert (await migration(mover, name).run()).outcome is Outcome.MOVED
        assert (await client.dht.readv(client.caller, reader, size=4, offset=3)).data == b"3456"
        await client.dht.writev(client.caller, writer, b"X", offset=0)
        await client.dht.writev(client.caller, writer, b"Y", offset=0, flags=os.O_APPEND)
        assert (await client.dht.stat(client.caller, reader)).iatt.size == 11
        await client.dht.release(reader)
        await client.dht.release(writer)
        assert await world.client().read(name) == b"X123456789Y"
        assert all(inode.opened == 0 for brick in world.bricks for inode in brick.inodes.values())
        assert_clean(world, name)

    run(scenario())


@pytest.mark.parametrize("seed", range(40))
def test_migration_under_writers(seed: int) -> None:
    """Clients write, append, truncate and change attributes at random moments; each one's last word counts."""

    async def scenario() -> None:
        world = World(2, seed=seed)
        dice = random.Random(seed)
        mover = world.client()
        clients = [world.client() for _ in range(3)]
        name = await misplaced(world, clients[0], b"." * 120)
        for client in (*clients, mover):
            await client.look(name)
            slow_down(client, dice, often=2)
        expected: dict[int, bytes] = {}
        appended: list[bytes] = []

        async def write(number: int, client: Client) -> None:
            """Each has 40 bytes of its own; what was acknowledged must be read back at once."""
            await asyncio.sleep(dice.random() * 30)
            fd = await client.open(name)
            for turn in range(dice.randrange(2, 12)):
                await asyncio.sleep(dice.random() * 8)
                at = number * 40 + dice.randrange(36)
                data = bytes([65 + turn]) * 4
                steps = [Step("writev", (fd, data), {"offset": at}), Step("setattr", (fd, SetAttr(mode=0o600 | turn)))]
                for answer in await client.dht.compound(client.caller, steps[: dice.choice((1, 1, 2))]):
                    assert not isinstance(answer, OSError), (seed, turn, answer)
                for offset, byte in enumerate(data):
                    expected[at + offset] = bytes([byte])
                read = await client.dht.readv(client.caller, fd, size=4, offset=at)
                assert bytes(read.data) == data, (seed, turn)
                if dice.random() < 0.3:
                    mark = b"<%d.%02d>" % (number, turn)
                    await client.dht.writev(client.caller, fd, mark, offset=0, flags=os.O_APPEND)
                    appended.append(mark)
                if dice.random() < 0.1:
                    await client.dht.setattr(client.caller, fd, SetAttr(mode=0o600 | turn))
            await client.dht.release(fd)

        async def move() -> Moved:
            await asyncio.sleep(dice.random() * 30)
            return await migration(mover, name).run()

        moved, *_ = await asyncio.gather(move(), *(write(n, c) for n, c in enumerate(clients)))
        final = await world.client().read(name)
        for offset, byte in expected.items():
            assert final[offset : offset + 1] == byte, (seed, offset, moved)
        assert sorted(final[120:]) == sorted(b"".join(appended)), (seed, final[120:], appended)
        for mark in appended:
            assert mark in final
        if moved.outcome is Outcome.MOVED:
            assert world.data_at(name) == [1]
        else:
            assert world.data_at(name) == [0], moved

    run(scenario())


def test_a_new_mode_does_not_hide_a_migration_from_writers() -> None:
    """One client sets a mode at each step of the migration, and another writes before anybody can look again."""

    async def is_reached(step: int) -> bool:
        world = World(2)
        client, writer, mover = world.client(), world.client(), world.client()
        name = await misplaced(world, client, b"." * 50)
        fd, other = await client.open(name), await writer.open(name)
        await mover.look(name)
        start = mover.sent
        tasks: list[asyncio.Task[Any]] = []

        async def set_mode(_brick: str, _fop: str) -> None:
            if mover.sent - start == step:
                tasks.append(asyncio.ensure_future(client.dht.setattr(client.caller, fd, SetAttr(mode=0o640))))
                await asyncio.sleep(0.01)

        async def write_behind_it(_brick: str, fop: str) -> None:
            if fop != "setattr" and len(tasks) == 1:
                tasks.append(asyncio.ensure_future(writer.dht.writev(writer.caller, other, b"seen", offset=10)))
                await asyncio.sleep(0.01)

        mover.pause, client.pause = set_mode, write_behind_it
        moved = await migration(mover, name).run()
        if not tasks:
            return False
        await asyncio.gather(*tasks)
        if len(tasks) == 1:
            await writer.dht.writev(writer.caller, other, b"seen", offset=10)
        reader = world.client()
        assert await reader.read(name) == b"." * 10 + b"seen" + b"." * 36, (step, moved)
        assert (await reader.look(name)).iatt.mode == 0o100640, step
        assert moved.outcome is Outcome.MOVED
        await client.dht.release(fd)
        await writer.dht.release(other)
        assert_clean(world, name)
        return True

    step = 2
    while run(is_reached(step)):
        step += 1
    assert step > 25


@pytest.mark.parametrize("change", ["times", "write", "append"])
def test_whoever_changes_a_file_that_is_being_moved_is_told_its_own_mode(change: str) -> None:
    """Not the marks that bricks show."""

    async def mode_at(step: int) -> int | None:
        world = World(2)
        client, mover = world.client(), world.client()
        name = await misplaced(world, client, b"." * 50)
        fd = await client.open(name)
        await mover.look(name)
        start, tasks = mover.sent, []

        async def make_change() -> int:
            dht, me = client.dht, client.caller
            if change == "times":
                changed = await dht.setattr(me, fd, SetAttr(mtime_ns=5))
            else:
                changed = await dht.writev(me, fd, b"x", offset=0, flags=os.O_APPEND if change == "append" else 0)
            return changed.after.mode

        async def pause(_brick: str, _fop: str) -> None:
            if mover.sent - start == step:
                tasks.append(asyncio.ensure_future(make_change()))
                await asyncio.sleep(0.01)

        mover.pause = pause
        await migration(mover, name).run()
        modes: list[int] = await asyncio.gather(*tasks)
        await client.dht.release(fd)
        return modes[0] if modes else None

    step, seen = 2, set()
    while (mode := run(mode_at(step))) is not None:
        seen.add(mode)
        step += 1
    assert step > 20
    assert seen - {0} == {0o100644}  # 0: not known


@pytest.mark.parametrize("fop", ["rename", "unlink"])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_file_that_is_being_moved_is_replaced_and_removed_everywhere(fop: str, is_known: bool) -> None:
    """Its client takes no locks: the names belong where the file is, as it knows the layout."""

    async def is_reached(step: int) -> bool:
        world = World(2)
        client, mover = world.client(), world.client()
        await client.look("")
        source, name = world.name_on(client, 0, "source"), world.name_on(client, 0, "name")
        if fop == "rename":
            await client.write(source, b"new")
        await client.write(name, b"old")
        if not is_known:
            client.dht.known_names.drop((ROOT_GFID, name.encode()))
        await mover.look(name)
        start, tasks = mover.sent, []

        async def pause(_brick: str, _fop: str) -> None:
            if mover.sent - start == step:
                work = client.rename(source, name) if fop == "rename" else client.unlink(name)
                tasks.append(asyncio.ensure_future(work))
                await asyncio.sleep(0.01)

        mover.pause = pause
        with suppress(FopError):  # it has been replaced
            await migration(mover, name).run()
        await mover.idle()
        await asyncio.gather(*tasks)
        await client.idle()
        if not tasks:
            return False
        reader = world.client()
        if fop == "rename":
            assert len(world.data_at(name)) == 1, step
            assert await reader.names() == [name]
            assert await reader.read(name) == b"new"
            assert not world.stored(source)
        else:
            assert not world.data_at(name), step
            assert not await reader.names()
        return True

    step = 2
    while run(is_reached(step)):
        step += 1
    assert step > 20


@pytest.mark.parametrize("bricks", [1, 2])
def test_a_mode_can_be_set_when_the_other_subvolume_of_a_migration_is_no_more(bricks: int) -> None:
    """docs/files.md tells how: without distribute the brick refuses it for ever."""

    async def scenario() -> None:
        world = World(bricks)
        client = world.client()
        gfid = await client.write("file", b"data")
        loc = Loc(gfid=gfid)
        inode = next(iter(world.stored("file").values()))
        inode.iatt.mode |= 0o3000
        inode.xattrs |= {LINKTO: b"no more\0", MIGRATION: (0o644).to_bytes(4, "big")}
        with pytest.raises(FopError) as refused:
            await world.bricks[next(iter(world.stored("file")))].setattr(client.caller, loc, SetAttr(mode=0o600))
        assert refused.value.errno == errno.EBUSY
        await client.dht.setattr(client.caller, loc, SetAttr(mode=0o600))
        assert (await world.client().look("file")).iatt.mode == inode.iatt.mode == 0o100600
        assert await world.client().read("file") == b"data"

    run(scenario())


def test_an_append_that_the_end_of_a_migration_overtakes_leaves_no_hole() -> None:
    """Another one behind it is at the target already, so that both files are of the same size at the end."""

    async def scenario() -> None:
        world = World(2)
        client, other, mover = world.client(), world.client(), world.client()
        name = await misplaced(world, client, b"head,")
        flags = os.O_RDWR | os.O_APPEND
        first, second = await client.open(name, flags), await other.open(name, flags)
        await mover.look(name)
        appended, is_over = asyncio.Event(), asyncio.Event()

        async def held_up(_brick: str, fop: str) -> None:
            if fop not in ("writev", "release"):
                appended.set()
                await is_over.wait()

        async def append_both(_brick: str, fop: str) -> None:
            if not appended.is_set() and world.stored(name)[0].iatt.mode & 0o3000 == 0o3000:
                client.pause = held_up
                tasks.append(asyncio.ensure_future(
                    client.dht.writev(client.caller, first, b"one,", offset=0, flags=os.O_APPEND)
                ))  # fmt: skip
                await appended.wait()
                await other.dht.writev(other.caller, second, b"two,", offset=0, flags=os.O_APPEND)

        tasks: list[asyncio.Task[Any]] = []
        mover.pause = append_both
        assert (await migration(mover, name).run()).outcome is Outcome.MOVED
        is_over.set()
        for changed in await asyncio.gather(*tasks):
            assert changed.after.mode in (0, 0o100644)  # not the link file's
        has_phases = at_once.REBALANCE_AT_ONCE_BYTES_MAX < 0  # nobody appends to what is moved at once
        assert bool(tasks) is has_phases
        assert await world.client().read(name) == (b"head,one,two," if has_phases else b"head,")

    run(scenario())


def test_a_migration_that_cannot_be_taken_back_ends_as_what_ended_it() -> None:
    async def scenario() -> None:
        world = World(2)
        client, mover = world.client(), world.client()
        name = await misplaced(world, client)
        await mover.look(name)
        source = world.bricks[0]
        unlocked = source.inodelk

        async def no_more_locks(caller: Any, domain: str, loc: Any, command: LockCommand, lock: Lock) -> None:
            if lock.type is not LockType.UNLOCK:
                raise FopError(errno.ENOTCONN)
            await unlocked(caller, domain, loc, command, lock)

        async def cancel(_brick: str, _fop: str) -> None:
            if source.inodelk is unlocked and world.stored(name)[0].iatt.mode & 0o1000:
                source.inodelk = no_more_locks  # type: ignore[method-assign]
                work.cancel()

        mover.pause = cancel
        work = asyncio.ensure_future(migration(mover, name).run())
        await asyncio.wait([work])
        assert work.cancelled()

    run(scenario())


@pytest.mark.parametrize("seed", range(10))
def test_migration_under_truncation(seed: int) -> None:
    async def scenario() -> None:
        world = World(2, seed=seed)
        dice = random.Random(seed)
        client, mover = world.client(), world.client()
        name = await misplaced(world, client, b"x" * 100)
        await mover.look(name)
        for each in (client, mover):
            slow_down(each, dice)
        model = bytearray(b"x" * 100)

        async def change() -> None:
            fd = await client.open(name)
            for _ in range(25):
                if dice.random() < 0.5:
                    size = dice.randrange(150)
                    await client.dht.truncate(client.caller, fd, size)
                    del model[size:]
                    model.extend(bytes(size - len(model)))
                else:
                    at, data = dice.randrange(150), bytes([dice.randrange(1, 255)]) * 5
                    await client.dht.writev(client.caller, fd, data, offset=at)
                    model.extend(bytes(max(0, at - len(model))))
                    model[at : at + 5] = data
                read = await client.dht.readv(client.caller, fd, size=200, offset=0)
                assert bytes(read.data) == bytes(model)
            await client.dht.release(fd)

        await asyncio.gather(change(), migration(mover, name).run())
        assert await world.client().read(name) == bytes(model)

    run(scenario())


def test_migration_crash_at_every_step() -> None:
    async def once(deaths: int) -> bool:
        world = World(2)
        client, mover = world.client(), world.client()
        name = await misplaced(world, client, b"precious")
        await client.dht.setattr(client.caller, Loc(gfid=(await client.look(name)).iatt.gfid), SetAttr(mode=0o640))
        fd = await client.open(name)
        await mover.look(name)
        mover.die_at = mover.sent + deaths + 1
        try:
            await migration(mover, name).run()
        except (Died, asyncio.CancelledError):
            pass
        is_through = not mover.is_dead
        mover.die()
        # A client that had it open, and one that has seen nothing.
        fresh = world.client()
        assert (await client.dht.readv(client.caller, fd, size=20, offset=0)).data == b"precious"
        assert (await fresh.look(name)).iatt.mode == 0o100640
        assert await fresh.names() == [name], deaths
        await client.dht.writev(client.caller, fd, b"P", offset=0)
        assert await fresh.read(name) == b"Precious", deaths
        other = await fresh.open(name)
        await fresh.dht.writev(fresh.caller, other, b"R", offset=1)
        assert (await client.dht.readv(client.caller, fd, size=20, offset=0)).data == b"PRecious", deaths
        await client.idle()
        await fresh.idle()
        # The next migrator finishes it.
        second = world.client()
        await second.look("")
        if world.data_at(name) != [1]:
            moved = await migration(second, name).run()
            assert moved.outcome in (Outcome.MOVED, Outcome.SKIPPED)
        last = world.client()
        await last.look(name)
        await last.idle()
        assert await last.read(name) == b"PRecious"
        await fresh.dht.release(other)
        await client.dht.release(fd)
        await last.rename(name, "elsewhere")
        assert await last.names() == ["elsewhere"]
        assert await last.read("elsewhere") == b"PRecious"
        await last.unlink("elsewhere")
        assert await last.names() == []
        await Crawl(world.client().dht, "start", Progress()).run()  # takes away a link file that is left over
        assert not world.stored("elsewhere") and not world.stored(name)
        return is_through

    deaths = 0
    while not run(once(deaths)):
        deaths += 1
    assert deaths > 25


@pytest.mark.parametrize("belongs_here", [True, False], ids=["it belongs where it is", "it has two names"])
def test_migration_crash_leaves_no_marks_on_a_file_that_stays(belongs_here: bool) -> None:
    """The next rebalance does not move it, because the layout has changed, or the file has got another name."""

    async def once(deaths: int) -> bool:
        world = World(2)
        client, mover = world.client(), world.client()
        name = await misplaced(world, client, b"precious")
        await mover.look(name)
        mover.die_at = mover.sent + deaths + 1
        with contextlib.suppress(Died, asyncio.CancelledError):
            await migration(mover, name).run()
        is_through = not mover.is_dead
        mover.die()
        if 0 in world.stored(name) and MIGRATION in world.stored(name)[0].xattrs:
            if belongs_here:
                change_layout(world, 0, 1)
            else:
                await client.link(name, world.name_on(client, 0, "other"))
            await Crawl(world.client().dht, "start", Progress()).run()
            marked[0] += 1
            inode = world.stored(name)[0]
            assert not any(b"trusted.glusterfs.dht." + mark in inode.xattrs for mark in MARKS)
            assert (await world.client().look(name)).iatt.mode == inode.iatt.mode == 0o100644
            there = world.bricks[1].inodes.get(inode.iatt.gfid)
            assert there is None or INCOMING not in there.xattrs
        assert await world.client().read(name) == b"precious"
        return is_through

    deaths, marked = 0, [0]
    while not run(once(deaths)):
        deaths += 1
    assert marked[0] > 3


@pytest.mark.parametrize("change", ["unlink", "rename", "rename-over", "link", "chmod", "target-full"])
@pytest.mark.parametrize("step", range(2, 40, 3))
def test_migration_meets_a_change_of_the_name(change: str, step: int) -> None:
    async def scenario() -> None:
        world = World(2)
        client, mover = world.client(), world.client()
        name = await misplaced(world, client)
        second = await misplaced(world, client, b"second", "other")
        fd = await client.open(name)
        await mover.look(name)
        reached, go_on = asyncio.Event(), asyncio.Event()
        start = mover.sent

        async def pause(_brick: str, _fop: str) -> None:
            if mover.sent - start == step:
                reached.set()
                await go_on.wait()

        mover.pause = pause
        work = asyncio.ensure_future(migration(mover, name).run())
        done = asyncio.ensure_future(reached.wait())
        await asyncio.wait([work, done], return_when=asyncio.FIRST_COMPLETED)
        changing = asyncio.ensure_future(act(world, client, change, name, second, fd))
        while not changing.done() and not _is_stuck(client):
            await asyncio.sleep(1)
        go_on.set()
        await changing
        await work
        await client.idle()
        await check(world, world.client(), change, name, second)
        await client.dht.release(fd)

    def _is_stuck(client: Client) -> bool:
        """It waits for a lock of the migrator's."""
        return bool(client.log) and client.log[-1].endswith(("entrylk", "inodelk"))

    async def act(world: World, client: Client, change: str, name: str, second: str, fd: Fd) -> None:
        if change == "unlink":
            await client.unlink(name)
            await client.dht.writev(client.caller, fd, b"DATA", offset=0)
            assert (await client.dht.readv(client.caller, fd, size=9, offset=0)).data == b"DATA"
        elif change == "rename":
            await client.rename(name, "new")
        elif change == "rename-over":
            await client.rename(second, name)
        elif change == "link":
            await client.link(name, "new")
        elif change == "chmod":
            await client.dht.setattr(client.caller, fd, SetAttr(mode=0o600))
            await client.dht.writev(client.caller, fd, b"DATA", offset=0)
        else:

            async def full(*_: Any, **__: Any) -> Any:
                raise FopError(errno.ENOSPC, "test")

            world.bricks[1].writev = full  # type: ignore[method-assign]
            if world.data_at(name) != [1]:
                try:
                    await client.dht.writev(client.caller, fd, b"DATA", offset=0)
                except FopError as error:
                    assert error.errno == errno.ENOSPC  # the file had moved already

    async def check(world: World, client: Client, change: str, name: str, second: str) -> None:
        names = sorted(await client.names())
        if change == "unlink":
            assert names == [second]
        elif change == "rename":
            assert names == sorted(["new", second]) and await client.read("new") == b"data"
        elif change == "rename-over":
            assert names == [name] and await client.read(name) == b"second"
        elif change == "link":
            assert names == sorted([name, "new", second])
            assert await client.read(name) == await client.read("new") == b"data"
            assert (await client.look("new")).iatt.nlink == 2
        elif change == "chmod":
            assert await client.read(name) == b"DATA" and (await client.look(name)).iatt.mode == 0o100600
        else:
            assert await client.read(name) in (b"data", b"DATA")
        for path in names:
            looked = (await client.look(path)).iatt
            assert looked.mode in (0o100644, 0o100600)

    try:
        run(scenario())
    except FopError as error:
        assert change == "target-full" and error.errno == errno.ENOSPC
