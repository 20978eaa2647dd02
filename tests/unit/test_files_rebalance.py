# SPDX-License-Identifier: Apache-2.0
"""Rebalance over bricks in memory: new layouts, everything in its place, stopped, crashed and gone on with."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from repl.errors import ConfigError, UsageError
from repl.files.rebalance import at_once
from repl.files.rebalance.crawl import Crawl
from repl.files.rebalance.mover import mover_domain
from repl.files.rebalance.progress import Progress, State, load
from repl.files.rebalance.tidying import Folder, Tidying, parallel_of
from repl.files.translators.distribute.layout import LAST_HASH, unpack_range
from repl.files.values import ROOT_GFID, FopError, Loc, SetAttr, StatVfs
from tests.lib.distributed import LINKTO, Client, Died, World
from tests.lib.distributed_meetings import Held, change_layout, pair, put_in_place, slow_down
from tests.lib.memory_brick import MemoryBrick
from tests.lib.virtual_loop import run

LAYOUT = b"trusted.glusterfs.dht"
COMMIT = b"trusted.glusterfs.dht.commithash"


async def tree(client: Client, path: str = "") -> dict[str, bytes]:
    """All files with their contents, and directories."""
    found: dict[str, bytes] = {}
    entries = await client.entries(path, 300)
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        where = f"{path}/{entry.name.decode()}"
        if entry.kind == 0o040000:
            found |= {where: b"", **await tree(client, where)}
        elif entry.kind == 0o120000:
            found[where] = await client.dht.readlink(client.caller, Loc(gfid=(await client.look(where)).iatt.gfid))
        else:
            found[where] = await client.read(where)
    return found


async def fill(client: Client, files: int = 40) -> None:
    for folder in ("a", "a/b", "c"):
        await client.mkdir(folder)
    for number in range(files):
        folder = ("", "a", "a/b", "c")[number % 4]
        await client.write(f"{folder}/f{number}", b"%d" % number)
    gfid = client.world.new_gfid()
    await client.dht.symlink(client.caller, await client.at("a/link"), target=b"f1", gfid=gfid)


def grow(world: World, bricks: int = 1) -> None:
    for _ in range(bricks):
        world.bricks.append(MemoryBrick(f"brick{len(world.bricks)}"))


def assert_in_place(world: World, client: Client, found: dict[str, bytes]) -> None:
    """Every file is where its name says, nothing else is anywhere."""
    for path in found:
        places = world.stored(path)
        folders = {i for i, inode in places.items() if inode.iatt.is_directory}
        if folders:
            assert folders == set(range(len(world.bricks)))
            continue
        assert len(places) == 1 and LINKTO not in next(iter(places.values())).xattrs, path
    assert len({inode.iatt.gfid for b in world.bricks for inode in b.inodes.values()}) == len(found) + 1


async def rebalance(client: Client, mode: str = "force", path: Path | None = None) -> Progress:
    return await Crawl(client.dht, mode, load(path) if path else Progress(), path).run()


def test_rebalance_after_a_brick_was_added(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(3)
        await fill(world.client())
        before = await tree(world.client())
        grow(world)
        client = world.client()
        progress = await rebalance(client, path=tmp_path / "progress")
        assert progress.state is State.COMPLETED and progress.failures == 0 and progress.skipped == 0
        assert 4 < progress.files < 30 and progress.scanned >= 41 and progress.directories == 4
        assert await tree(client) == before == await tree(world.client())
        assert_in_place(world, client, before)
        saved = json.loads((tmp_path / "progress").read_text())
        assert saved["state"] == "completed" and saved["files"] == progress.files
        # A miss is final again, everywhere.
        number = int(world.bricks[0].inodes[ROOT_GFID].xattrs[COMMIT].rstrip(b"\0"))
        for path in ("", "a", "a/b", "c"):
            for inode in world.stored(path).values():
                assert unpack_range(inode.xattrs[LAYOUT]).commit == number
        assert (await rebalance(world.client())).files == 0

    run(scenario())


def test_rebalance_fix_layout_moves_nothing() -> None:
    async def scenario() -> None:
        world = World(3)
        await fill(world.client())
        before = await tree(world.client())
        grow(world)
        client = world.client()
        progress = await rebalance(client, "fix-layout")
        assert (progress.files, progress.directories) == (0, 4)
        assert await tree(world.client()) == before
        ranges = [unpack_range(inode.xattrs[LAYOUT]) for inode in world.stored("a").values()]
        assert len(ranges) == 4 and all(r.commit == 1 for r in ranges)
        assert sum(r.last - r.first + 1 for r in ranges) == LAST_HASH + 1
        used = set()
        for number in range(20):
            await client.write(f"a/new{number}")
            used |= set(world.data_at(f"a/new{number}"))
        assert 3 in used

    run(scenario())


def test_file_that_stays_on_a_brick_that_leaves_is_a_failure() -> None:
    """remove-brick commit took the brick away with it: elsewhere a file that cannot be moved just now is skipped."""

    async def scenario() -> None:
        world = World(2)
        client = world.client()
        await client.look("")
        name = world.name_on(client, 1, "stays")
        file = Loc(gfid=await client.write(name, b"precious"))
        await client.dht.setattr(client.caller, file, SetAttr(mode=0o3644))  # as if it were being moved
        told = await rebalance(world.client(decommissioned_bricks="brick1"), "start")
        assert world.data_at(name) == [1] and (told.skipped, told.failures) == (1, 1)
        await client.dht.setattr(client.caller, file, SetAttr(mode=0o644))
        told = await rebalance(world.client(decommissioned_bricks="brick1"), "start")
        assert world.data_at(name) == [0] and (told.skipped, told.failures) == (0, 0)

    run(scenario())


def test_rebalance_empties_a_decommissioned_brick() -> None:
    async def scenario() -> None:
        world = World(4)
        await fill(world.client())
        before = await tree(world.client())
        client = world.client(decommissioned_bricks="brick1")
        progress = await rebalance(client, "start")
        assert progress.state is State.COMPLETED and progress.files >= 5
        assert all(inode.iatt.is_directory for inode in world.bricks[1].inodes.values())
        assert await tree(world.client()) == before
        del world.bricks[1]
        smaller = world.client()
        assert await tree(smaller) == before
        await smaller.write("a/new")

    run(scenario())


@pytest.mark.parametrize(("folders", "operations", "round_trips"), [(1, 42, 10), (30, 100, 13)])
def test_rebalance_costs_few_operations_and_works_on_several_directories(
    folders: int, operations: float, round_trips: float
) -> None:
    """62.6 and 133.4 operations, 14.5 and 64.3 round trips a file that moved, while everything was done by turns."""

    async def scenario() -> None:
        world = World(3)
        filler = world.client()
        for number in range(folders):
            await filler.mkdir(f"d{number}")
        for number in range(120):
            await filler.write(f"d{number % folders}/f{number}", b"x" * 4096)
        grow(world)
        client = world.client()

        async def pause(_brick: str, _fop: str) -> None:
            await asyncio.sleep(0.001)

        client.pause = pause
        began = asyncio.get_running_loop().time()
        progress = await rebalance(client)
        assert progress.files > 30
        assert client.sent / progress.files < operations
        assert (asyncio.get_running_loop().time() - began) / 0.001 / progress.files < round_trips

    run(scenario())


def test_rebalance_leaves_files_where_more_space_is_free() -> None:
    async def scenario() -> None:
        world = World(2)
        await fill(world.client())
        grow(world)

        async def statfs(*_: object) -> StatVfs:
            return StatVfs(4096, 1 << 20, 1 << 19, 1 << 19, 1000, 900, 900)

        world.bricks[2].statfs = statfs  # type: ignore[assignment]
        client = world.client(weighted_rebalance="off")
        progress = await rebalance(client, "start")
        assert progress.skipped > 0 and progress.reasons == {
            "less space would be free at the target than at the source": progress.skipped
        }
        assert len(await tree(world.client())) == 44

    run(scenario())


def test_rebalance_weights_by_size() -> None:
    async def scenario() -> None:
        world = World(2)

        async def statfs(*_: object) -> StatVfs:
            return StatVfs(4096, 3 << 20, 3 << 20, 3 << 20, 1000, 900, 900)

        world.bricks[1].statfs = statfs  # type: ignore[assignment]
        await world.client().mkdir("d")
        await rebalance(world.client(), "fix-layout")
        sizes = [unpack_range(inode.xattrs[LAYOUT]) for _, inode in sorted(world.stored("d").items())]
        small, large = (r.last - r.first + 1 for r in sizes)
        assert 2.9 < large / small < 3.1

    run(scenario())


def test_rebalance_stops_and_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(3)
        await fill(world.client())
        before = await tree(world.client())
        grow(world)
        path = tmp_path / "progress"
        first = world.client(rebal_throttle="lazy")
        crawl = Crawl(first.dht, "force", load(path), path)

        async def pause(_brick: str, fop: str) -> None:
            if crawl.progress.directories == 2:
                crawl.is_stopping = True

        first.pause = pause
        assert (await crawl.run()).state is State.STOPPED
        assert await tree(world.client()) == before
        stopped = load(path)
        assert stopped.directories == 2 and stopped.last_directory == ["a"]
        progress = await rebalance(world.client(), path=path)
        assert progress.state is State.COMPLETED and progress.directories == 4
        assert_in_place(world, first, before)

    run(scenario())


@pytest.mark.parametrize("part", range(2))
def test_rebalance_crash_anywhere(tmp_path: Path, part: int) -> None:
    """The process dies at any operation; users see all files, and the next one finishes."""

    async def once(die_at: int) -> bool:
        world = World(2)
        await fill(world.client(), 6)
        before = await tree(world.client())
        grow(world)
        path = tmp_path / f"progress{die_at}"
        mover = world.client(rebal_throttle="lazy" if part % 2 else "normal")
        mover.die_at = die_at
        try:
            await rebalance(mover, path=path)
        except (Died, asyncio.CancelledError):
            pass
        is_through = not mover.is_dead
        mover.die()
        assert await tree(world.client()) == before, die_at
        if not is_through:
            progress = await rebalance(world.client(), path=path)
            assert progress.state is State.COMPLETED and progress.failures == 0
        last = world.client()
        assert await tree(last) == before, die_at
        await last.idle()
        await rebalance(world.client())
        assert_in_place(world, last, before)
        return is_through

    die_at = 1 + part
    while not run(once(die_at)):
        die_at += 47


@pytest.mark.parametrize("seed", range(6))
def test_rebalance_under_load(seed: int) -> None:
    """Clients with the old and the new set of bricks create, rename, remove and write meanwhile."""

    async def scenario() -> None:
        world = World(3, seed=seed)
        await fill(world.client())
        dice = random.Random(seed)
        grow(world)
        workers = [world.client() for _ in range(2)]
        mover = world.client()
        for client in (*workers, mover):
            await client.look("")
            slow_down(client, dice)
        expected = await tree(world.client())
        is_over = False

        async def work(number: int, client: Client) -> None:
            mine = [path for path in expected if expected[path] and path.endswith(("1", "5", "9")[number :: 2])]
            while not is_over:
                kind = dice.randrange(4)
                if kind == 0 or not mine:
                    path = dice.choice(("", "/a", "/a/b", "/c")) + f"/n{number}-{dice.randrange(1 << 30)}"
                    await client.write(path, b"new")
                    expected[path] = b"new"
                    mine.append(path)
                    continue
                path = mine[dice.randrange(len(mine))]
                if kind == 1:
                    new = dice.choice(("", "/a", "/a/b", "/c")) + f"/r{number}-{dice.randrange(1 << 30)}"
                    await client.rename(path, new)
                    expected[new] = expected.pop(path)
                    mine[mine.index(path)] = new
                elif kind == 2:
                    await client.unlink(path)
                    del expected[path]
                    mine.remove(path)
                else:
                    data = b"%d" % dice.randrange(10**6)
                    fd = await client.open(path)
                    await client.dht.truncate(client.caller, fd, 0)
                    await client.dht.writev(client.caller, fd, data, offset=0)
                    await client.dht.release(fd)
                    expected[path] = data
                assert await client.read(mine[0]) == expected[mine[0]] if mine else True

        async def move() -> Progress:
            nonlocal is_over
            try:
                return await rebalance(mover)
            finally:
                is_over = True

        progress, *_ = await asyncio.gather(move(), *(work(n, c) for n, c in enumerate(workers)))
        assert progress.failures == 0
        for client in workers:
            await client.idle()
        assert await tree(world.client()) == expected

    run(scenario())


def test_rebalance_leaves_no_name_without_a_link_file_that_somebody_else_moves() -> None:
    """Who moves the file under another name may give up; the directory would be complete, and the name missing."""

    async def scenario() -> None:
        world = World(2)
        client, other = await pair(world)
        name = world.name_on(client, 0)
        gfid = await client.write(name, b"data")
        change_layout(world, 0, 1)
        mover = world.client()
        await mover.look("")
        tidying = Tidying(mover.dht, "force", Progress())
        async with other.dht.locked_inode(0, Loc(gfid=gfid), mover_domain(other.dht)):
            assert await tidying.tidy(Folder(ROOT_GFID, (), Loc(gfid=ROOT_GFID)))
        assert (world.data_at(name), world.links_at(name)) == ([0], [1])
        assert tidying.progress.failures == 0

    run(scenario())


def test_rebalance_meets_a_file_that_has_just_come_to_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is about to make the link file there; that is no failure."""
    monkeypatch.setattr(at_once, "REBALANCE_AT_ONCE_BYTES_MAX", -1)

    async def scenario() -> None:
        world = World(2)
        client, _ = await pair(world)
        name = world.name_on(client, 0)
        await client.write(name, b"data")
        change_layout(world, 0, 1)
        mover = world.client()
        await mover.look("")
        tidying = Tidying(mover.dht, "force", Progress())
        held = Held(mover, 1, "mknod")
        working = asyncio.create_task(tidying.tidy(Folder(ROOT_GFID, (), Loc(gfid=ROOT_GFID))))
        await held.is_there.wait()
        gfid = await put_in_place(world, 1, name)
        held.may_go.set()
        await working
        assert tidying.progress.failures == 0
        assert world.stored(name)[1].iatt.gfid == gfid
        assert world.data_at(name) == [0, 1]

    run(scenario())


def test_rebalance_brick_away_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(3)
        client = world.client()
        await fill(client)
        world.bricks[1].go_down()
        with pytest.raises(FopError, match="brick1"):
            await rebalance(client, path=tmp_path / "progress")
        assert load(tmp_path / "progress").state is State.FAILED
        world.bricks[1].come_up()
        assert (await rebalance(client, path=tmp_path / "progress")).state is State.COMPLETED

    run(scenario())


def test_rebalance_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "progress").write_text("nonsense")
    with pytest.raises(ConfigError, match="no progress file"):
        load(tmp_path / "progress")
    assert (parallel_of("lazy"), parallel_of("7")) == (1, 7)
    with pytest.raises(UsageError, match="rebal-throttle"):
        parallel_of("fast")
