# SPDX-License-Identifier: Apache-2.0
"""features/index over a real brick: entries come before counters and go after them."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from repl.errors import ConfigError
from repl.files.translators.index import ENTRY_IN, ENTRY_OUT, VIRTUAL, Index
from repl.files.translators.posix import Posix
from repl.files.values import ROOT, Fd, FopError, Loc, XattrOp, gfid_text
from tests.lib.files import HEALER, ME, at, make, new_gfid, posix

PENDING = b"trusted.afr.v-client-1"
DIRTY = b"trusted.afr.dirty"
UP = bytes.fromhex("000000010000000000000000")
DOWN = bytes.fromhex("ffffffff0000000000000000")


def on_index(work: Callable[[Index, Posix], Awaitable[None]], path: Path) -> None:
    async def main() -> None:
        async with posix(path) as brick:
            index = make(Index, "index", [brick], brick.context, index_base=str(path / ".glusterfs/indices"),
                         xattrop_pending_watchlist="trusted.afr.v-")  # fmt: skip
            await index.start()
            await work(index, brick)
            await index.stop()

    asyncio.run(main())


async def listed(index: Index, loc: Loc) -> list[bytes]:
    fd = Fd(loc.gfid, is_directory=True)
    await index.opendir(HEALER, loc, fd)
    names, offset = [], 0
    while entries := await index.readdir(HEALER, fd, size=100, offset=offset):
        names += [entry.name for entry in entries]
        offset = entries[-1].offset
    await index.release(fd)
    return names


async def new_directory(index: Index, name: str) -> Loc:
    gfid = new_gfid()
    await index.mkdir(ME, at(name), mode=0o755, gfid=gfid)
    return Loc(gfid=gfid)


def test_counters_that_are_not_zero_have_a_hard_link_in_the_index(tmp_path: Path) -> None:
    async def work(index: Index, _: Posix) -> None:
        loc = await new_directory(index, "d")
        await index.xattrop(ME, loc, XattrOp.ADD, {PENDING: UP, DIRTY: UP})
        folder = tmp_path / ".glusterfs/indices"
        for kind in ("xattrop", "dirty"):
            names = sorted(os.listdir(folder / kind))
            base = next(name for name in names if name.startswith(kind + "-"))
            assert set(names) == {base, gfid_text(loc.gfid)}
            assert (folder / kind / base).stat().st_ino == (folder / kind / gfid_text(loc.gfid)).stat().st_ino
        assert await listed(index, Loc(gfid=VIRTUAL["xattrop"])) == [gfid_text(loc.gfid).encode()]
        assert (await index.getxattr(HEALER, ROOT, b"glusterfs.heal-count")) == {b"glusterfs.heal-count": b"1"}
        await index.xattrop(ME, loc, XattrOp.ADD, {PENDING: DOWN, DIRTY: DOWN})
        assert await listed(index, Loc(gfid=VIRTUAL["xattrop"])) == []
        assert await listed(index, Loc(gfid=VIRTUAL["dirty"])) == []
        assert (await index.getxattr(HEALER, ROOT, b"glusterfs.heal-count")) == {b"glusterfs.heal-count": b"0"}

    on_index(work, tmp_path)


def test_an_entry_stays_while_another_counter_of_the_inode_is_not_zero(tmp_path: Path) -> None:
    async def work(index: Index, _: Posix) -> None:
        loc = await new_directory(index, "d")
        await index.xattrop(ME, loc, XattrOp.ADD, {PENDING: UP, b"trusted.afr.v-client-0": UP})
        await index.xattrop(ME, loc, XattrOp.ADD, {PENDING: DOWN})
        assert len(await listed(index, Loc(gfid=VIRTUAL["xattrop"]))) == 1
        await index.xattrop(ME, loc, XattrOp.ADD, {b"trusted.afr.other": UP})  # not watched
        assert await listed(index, Loc(gfid=VIRTUAL["dirty"])) == []

    on_index(work, tmp_path)


def test_an_entry_is_on_the_disk_before_the_counter(tmp_path: Path) -> None:
    async def work(index: Index, brick: Posix) -> None:
        loc = await new_directory(index, "d")
        seen = []
        real = brick.xattrop

        async def spy(*args: object, **kwargs: object) -> object:
            seen.append(os.path.exists(tmp_path / ".glusterfs/indices/dirty" / gfid_text(loc.gfid)))
            return await real(*args, **kwargs)  # type: ignore[arg-type]

        brick.xattrop = spy  # type: ignore[method-assign,assignment]
        await index.xattrop(ME, loc, XattrOp.ADD, {DIRTY: UP})
        assert seen == [True]

    on_index(work, tmp_path)


def test_overlapping_writers_do_not_lose_the_entry(tmp_path: Path) -> None:
    async def work(index: Index, brick: Posix) -> None:
        loc = await new_directory(index, "d")
        real = brick.xattrop
        gate = asyncio.Event()

        async def slow(*args: object, **kwargs: object) -> object:
            await gate.wait()
            return await real(*args, **kwargs)  # type: ignore[arg-type]

        await index.xattrop(ME, loc, XattrOp.ADD, {DIRTY: UP})
        brick.xattrop = slow  # type: ignore[method-assign,assignment]
        late = asyncio.ensure_future(index.xattrop(ME, loc, XattrOp.ADD, {DIRTY: UP}))
        await asyncio.sleep(0)
        brick.xattrop = real  # type: ignore[method-assign]
        await index.xattrop(ME, loc, XattrOp.ADD, {DIRTY: DOWN})
        await listed(index, Loc(gfid=VIRTUAL["dirty"]))  # sweeps
        gate.set()
        await late
        assert len(await listed(index, Loc(gfid=VIRTUAL["dirty"]))) == 1

    on_index(work, tmp_path)


def test_entries_survive_a_restart_and_those_of_dead_inodes_can_be_removed(tmp_path: Path) -> None:
    locs = []

    async def before(index: Index, _: Posix) -> None:
        for name in ("a", "b"):
            locs.append(await new_directory(index, name))
            await index.xattrop(ME, locs[-1], XattrOp.ADD, {PENDING: UP})

    async def after(index: Index, brick: Posix) -> None:
        assert len(await listed(index, Loc(gfid=VIRTUAL["xattrop"]))) == 2
        await brick.rmdir(ME, at("a"))  # behind the index's back
        for loc in locs:
            await index.unlink(HEALER, Loc(parent=VIRTUAL["xattrop"], name=gfid_text(loc.gfid).encode()))
        assert await listed(index, Loc(gfid=VIRTUAL["xattrop"])) == [gfid_text(locs[1].gfid).encode()]

    on_index(before, tmp_path)
    on_index(after, tmp_path)


def test_changed_names_are_kept_per_directory(tmp_path: Path) -> None:
    async def work(index: Index, _: Posix) -> None:
        loc = await new_directory(index, "d")
        for name in (b"one", b"two"):
            await index.xattrop(ME, loc, XattrOp.ADD, {PENDING: bytes(8) + UP[:4], ENTRY_IN: name})
        names = Loc(parent=VIRTUAL["entry-changes"], name=gfid_text(loc.gfid).encode())
        assert await listed(index, Loc(gfid=VIRTUAL["entry-changes"])) == [gfid_text(loc.gfid).encode()]
        assert sorted(await listed(index, names)) == [b"one", b"two"]
        await index.xattrop(ME, loc, XattrOp.ADD, {ENTRY_OUT: b"one"})
        assert await listed(index, names) == [b"two"]
        await index.rmdir(HEALER, names)
        assert await listed(index, Loc(gfid=VIRTUAL["entry-changes"])) == []
        for evil in (b"../x", b"..", b""):
            with pytest.raises(FopError):
                await index.xattrop(ME, loc, XattrOp.ADD, {ENTRY_IN: evil})

    on_index(work, tmp_path)


def test_ordinary_callers_do_not_see_the_index(tmp_path: Path) -> None:
    async def work(index: Index, _: Posix) -> None:
        with pytest.raises(FopError) as caught:
            await index.opendir(ME, Loc(gfid=VIRTUAL["xattrop"]), Fd(VIRTUAL["xattrop"]))
        assert caught.value.errno == errno.ESTALE
        with pytest.raises(FopError):
            await index.getxattr(ME, ROOT, b"glusterfs.heal-count")

    on_index(work, tmp_path)


def test_an_index_without_its_brick_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with posix(tmp_path) as brick:
            index = make(Index, "index", [brick], brick.context, index_base=str(tmp_path / "no/indices"))
            with pytest.raises(ConfigError, match="index-base"):
                await index.start()

    asyncio.run(main())
