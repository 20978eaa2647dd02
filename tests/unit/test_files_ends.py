# SPDX-License-Identifier: Apache-2.0
"""Transactions that end together: over the wire down to real directories, and in replicate over bricks in memory."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from repl.files.rpc import handshake
from repl.files.translator import Translator
from repl.files.translators.index import Index
from repl.files.translators.io_stats import IoStats
from repl.files.translators.io_threads import IoThreads
from repl.files.translators.locks import Locks
from repl.files.values import (
    NEW_LOCK,
    ROOT_GFID,
    Caller,
    End,
    Fd,
    FopError,
    Loc,
    Lock,
    LockCommand,
    LockType,
    SyncKind,
    XattrOp,
    gfid_text,
)
from tests.lib.files import ME, at, attached, make, new_gfid, posix, served
from tests.lib.memory_brick import MemoryBrick
from tests.lib.replicas import Client, World
from tests.lib.virtual_loop import run
from tests.lib.wait import wait_for_async

DIRTY = b"trusted.afr.dirty"
UP, DOWN, ZERO = bytes.fromhex("00000001" + "00" * 8), bytes.fromhex("ffffffff" + "00" * 8), bytes(12)
OTHER = Caller(client="b", lock_owner=b"2")
DOMAIN = "v-replicate-0"


@asynccontextmanager
async def graph(path: Path) -> AsyncIterator[tuple[Translator, Path]]:
    """A brick as volumes have it; its top and the folder of its dirty index."""
    async with posix(path) as brick:
        base = path / ".glusterfs/indices"
        locks = make(Locks, "locks", [brick], brick.context)
        threads = make(IoThreads, "threads", [locks], brick.context)
        index = make(Index, "index", [threads], brick.context, index_base=str(base))
        await index.start()
        yield make(IoStats, "brick", [index], brick.context), base / "dirty"
        await index.stop()


async def create(top: Translator, name: str, caller: Caller = ME) -> Fd:
    gfid = new_gfid()
    fd = Fd(gfid, os.O_RDWR)
    extra = {DIRTY: UP, NEW_LOCK: DOMAIN.encode()}
    looked = await top.create(caller, at(name), fd, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=gfid, extra=extra)
    assert looked.xattrs == {NEW_LOCK: b"1"}
    return fd


async def is_locked(top: Translator, fd: Fd) -> bool:
    try:
        await top.inodelk(OTHER, DOMAIN, Loc(gfid=fd.gfid), LockCommand.TRY, Lock(LockType.WRITE))
    except FopError as error:
        assert error.errno == errno.EAGAIN
        return True
    await top.inodelk(OTHER, DOMAIN, Loc(gfid=fd.gfid), LockCommand.TRY, Lock(LockType.UNLOCK))
    return False


@pytest.mark.parametrize("is_known", [True, False])
def test_files_come_with_mark_and_lock_and_end_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """Over the wire, with a server that knows ``ends`` and with one that does not."""
    if not is_known:
        monkeypatch.setattr(handshake, "FEATURES", ("compound", "events"))

    async def main() -> None:
        async with (
            graph(tmp_path / "brick") as (top, index),
            served(top) as server,
            attached(server, "brick") as client,
        ):
            me = Caller(client="client", lock_owner=b"1")
            fds = [await create(client, f"f{n}", me) for n in range(3)]
            assert all((index / gfid_text(fd.gfid)).exists() for fd in fds)
            assert all(os.getxattr(tmp_path / f"brick/f{n}", DIRTY) == UP for n in range(3))
            assert "glusterfs.inodelk" not in os.listxattr(tmp_path / "brick/f0")
            assert [await is_locked(top, fd) for fd in fds] == [True] * 3
            for fd in fds:
                await client.writev(me, fd, b"x", offset=0)
            assert await client.sync_all(me, fds) == [None] * 3
            gone = new_gfid()
            ends = [End(fds[0].gfid, DOWN), End(gone, DOWN), End(fds[1].gfid, b""), End(fds[2].gfid, DOWN)]
            found = await client.end_all(me, DOMAIN, DIRTY, ends)
            assert [bool(isinstance(one, OSError)) for one in found] == [False, True, False, False]
            assert found[1].errno == errno.ESTALE and found[2] is None  # type: ignore[union-attr]
            assert [await is_locked(top, fd) for fd in fds] == [False] * 3
            values = [os.getxattr(tmp_path / f"brick/f{n}", DIRTY) for n in range(3)]
            assert values == [ZERO, UP, ZERO]
            names = {gfid_text(fds[1].gfid)}
            await wait_for_async(
                lambda: {n for n in os.listdir(index) if not n.startswith("dirty-")} == names, 10, "a swept index"
            )
            for fd in fds:
                await client.release(fd)

    asyncio.run(main())


def test_a_directory_ends_with_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        async with graph(tmp_path / "brick") as (top, _):
            gfid = new_gfid()
            await top.mkdir(ME, at("d"), mode=0o755, gfid=gfid)
            loc = Loc(gfid=gfid)
            await top.entrylk(ME, DOMAIN, loc, None, LockCommand.TRY, LockType.WRITE)
            mark = bytes(8) + bytes.fromhex("00000001")
            await top.xattrop(ME, loc, XattrOp.ADD, {DIRTY: mark})
            back = bytes(8) + bytes.fromhex("ffffffff")
            assert await top.end_all(ME, DOMAIN, DIRTY, [End(gfid, back, is_entry=True)]) == [ZERO]
            await top.entrylk(OTHER, DOMAIN, loc, None, LockCommand.TRY, LockType.WRITE)

    asyncio.run(main())


def test_a_counter_that_is_not_zero_afterwards_stays_in_the_index(tmp_path: Path) -> None:
    async def main() -> None:
        async with graph(tmp_path / "brick") as (top, index):
            fd = await create(top, "f")
            await top.xattrop(ME, Loc(gfid=fd.gfid), XattrOp.ADD, {DIRTY: UP})
            assert await top.end_all(ME, DOMAIN, DIRTY, [End(fd.gfid, DOWN)]) == [UP]
            other = await create(top, "g")
            await top.end_all(ME, DOMAIN, DIRTY, [End(other.gfid, DOWN)])
            await wait_for_async(lambda: not (index / gfid_text(other.gfid)).exists(), 10, "a sweep")
            assert (index / gfid_text(fd.gfid)).exists()
            await top.release(fd)
            await top.release(other)

    asyncio.run(main())


def test_one_that_is_not_open_does_not_keep_others_from_being_synced(tmp_path: Path) -> None:
    async def main() -> None:
        async with graph(tmp_path / "brick") as (top, _):
            fd = await create(top, "f")
            found = await top.sync_all(ME, [Fd(new_gfid()), fd])
            assert found[0] is not None and found[0].errno == errno.EBADF and found[1] is None
            await top.release(fd)

    asyncio.run(main())


def test_without_a_definition_it_is_what_it_is_short_for() -> None:
    async def main() -> None:
        brick = MemoryBrick()
        fd = await create(brick, "f")
        await brick.xattrop(ME, Loc(gfid=fd.gfid), XattrOp.ADD, {DIRTY: UP})
        brick.counts.clear()
        assert await Translator.sync_all(brick, ME, [fd, fd]) == [None, None]
        assert await Translator.end_all(brick, ME, DOMAIN, DIRTY, [End(fd.gfid, DOWN)]) == [UP]
        assert brick.counts == Counter(fsync=2, xattrop=1, inodelk=1)
        assert not await is_locked(brick, fd)

    asyncio.run(main())


# ---- replicate ----

Scene = Callable[[World, Client, Counter[str]], Awaitable[None]]


def play(scene: Scene) -> None:
    """Two bricks, one client, and what goes over its link to the first of them."""

    async def main() -> None:
        world = World(2)
        counts: Counter[str] = Counter()

        async def hook(client: str, brick: str, fop: str, is_done: bool) -> None:
            if brick == "brick0" and is_done:
                counts[fop] += 1
            await asyncio.sleep(0)

        world.hook = hook
        await scene(world, await world.client(), counts)
        await asyncio.sleep(5)
        assert world.pending() == {} and world.tree(0) == world.tree(1)

    run(main())


async def make_file(client: Client, name: bytes, data: bytes = b"x") -> Fd:
    gfid = client.context.new_gfid()
    fd = Fd(gfid, os.O_RDWR)
    loc = Loc(parent=ROOT_GFID, name=name)
    await client.afr.create(client.caller, loc, fd, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=gfid)
    await client.afr.writev(client.caller, fd, data, offset=0)
    return fd


def test_a_new_file_needs_no_operation_of_its_own_for_mark_and_lock() -> None:
    async def scene(world: World, client: Client, counts: Counter[str]) -> None:
        fds = [await make_file(client, b"a%d" % n) for n in range(3)]
        assert counts == Counter(entrylk=1, xattrop=1, create=3, writev=3)  # the first two: the directory's
        assert all(world.bricks[0].inodes[fd.gfid].xattrs[DIRTY] == UP for fd in fds)
        for fd in fds:
            await client.afr.release(fd)

    play(scene)


def test_a_file_that_is_written_again_at_once_goes_on_with_its_transaction() -> None:
    async def scene(world: World, client: Client, counts: Counter[str]) -> None:
        fd = await make_file(client, b"a")
        await client.afr.release(fd)
        again = Fd(fd.gfid, os.O_RDWR)
        await client.afr.open(client.caller, Loc(gfid=fd.gfid), again, flags=os.O_RDWR)
        before = counts["xattrop"], counts["inodelk"]
        await client.afr.writev(client.caller, again, b"y", offset=0)
        assert (counts["xattrop"], counts["inodelk"], counts["fsync"]) == (*before, 0)
        await client.afr.release(again)
        await asyncio.sleep(5)
        assert counts["fsync"] == 1
        assert world.bricks[0].inodes[fd.gfid].opened == 0

    play(scene)


def test_who_wants_the_lock_of_a_file_that_waits_for_its_end_gets_it_at_once() -> None:
    async def scene(world: World, client: Client, counts: Counter[str]) -> None:
        fd = await make_file(client, b"a")
        await client.afr.release(fd)
        other = await world.client()
        began = asyncio.get_running_loop().time()
        theirs = Fd(fd.gfid, os.O_RDWR)
        await other.afr.open(other.caller, Loc(gfid=fd.gfid), theirs, flags=os.O_RDWR)
        await other.afr.writev(other.caller, theirs, b"y", offset=0)
        assert asyncio.get_running_loop().time() - began < 0.01
        await other.afr.release(theirs)

    play(scene)


@pytest.mark.parametrize("comes", [False, True])
def test_a_copy_that_goes_or_comes_ends_the_wait_for_others(comes: bool) -> None:
    async def main() -> None:
        world = World(2)
        client = await world.client()
        if comes:
            world.crash(1)
        fd = await make_file(client, b"a")
        await client.afr.release(fd)
        await asyncio.sleep(0.2)
        assert world.bricks[0].inodes[fd.gfid].opened
        if comes:
            world.come_back(1)
        else:
            world.crash(1)
        await asyncio.sleep(0.2)
        assert not world.bricks[0].inodes[fd.gfid].opened

    run(main())


def test_a_copy_that_cannot_be_synced_is_accused_and_only_of_that_file() -> None:
    async def main() -> None:
        world = World(2)
        client = await world.client()
        fds = [await make_file(client, b"a%d" % n) for n in range(3)]
        bad = fds[1].gfid
        brick = world.bricks[1]
        fsync = brick.fsync

        async def fails(caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> object:
            if fd.gfid == bad:
                raise FopError(errno.EIO, "test")
            return await fsync(caller, fd, kind)

        brick.fsync = fails  # type: ignore[method-assign,assignment]
        for fd in fds:
            await client.afr.release(fd)
        await asyncio.sleep(1.5)
        accusing = {where for where in world.pending() if f"{bad.hex()[-6:]}" in where}
        assert {where.split()[0] for where in accusing} >= {"brick0"} and "brick1" in " ".join(accusing)
        assert all(bad.hex()[-6:] in where or " 000001 " in where for where in world.pending())
        assert all(not inode.opened for inode in brick.inodes.values())

    run(main())
