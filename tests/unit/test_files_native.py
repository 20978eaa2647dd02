# SPDX-License-Identifier: Apache-2.0
"""The calls of C that a brick makes for what is done often, against the same step by step."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from repl.files.translators.posix import Posix
from repl.files.translators.posix.brick import iatt_of
from repl.files.translators.posix.native import Native, pack_extra
from repl.files.translators.posix.xattrs import add
from repl.files.values import ROOT_GFID, Caller, Fd, FopError, Loc
from tests.lib.files import at, new_gfid, posix

USER = Caller(uid=1000, gid=1001, client="b")
DIRTY = b"trusted.afr.dirty"


def on_brick(work: Callable[[Posix], Awaitable[None]], path: Path) -> None:
    async def main() -> None:
        async with posix(path) as brick:
            await work(brick)

    asyncio.run(main())


async def new_file(brick: Posix, name: str) -> Fd:
    fd = Fd(new_gfid(), os.O_RDWR)
    await brick.create(USER, at(name), fd, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=fd.gfid)
    return fd


def test_attributes_are_those_that_stat_tells(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "file")
        changed = await brick.writev(USER, fd, memoryview(b"x" * 5000), offset=7)
        iatt = iatt_of((tmp_path / "file").stat(), fd.gfid)
        assert (changed.before.size, changed.after) == (0, iatt)
        looked = await brick.lookup(USER, at("file"))
        assert looked.iatt == iatt
        assert looked.parent == iatt_of(tmp_path.stat(), ROOT_GFID)
        await brick.release(fd)

    on_brick(work, tmp_path)


def test_appended_data_goes_to_the_end_whatever_the_offset(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "file")
        for part in (b"one", bytearray(b"two")):
            await brick.writev(USER, fd, part, offset=0, flags=os.O_APPEND)
        assert (tmp_path / "file").read_bytes() == b"onetwo"
        await brick.release(fd)

    on_brick(work, tmp_path)


def test_a_file_of_several_names_keeps_its_handle_until_the_last_one_goes(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "file")
        await brick.release(fd)
        await brick.link(USER, Loc(gfid=fd.gfid), at("second"))
        assert (await brick.unlink(USER, at("file"))).iatt.nlink == 1
        assert (await brick.lookup(USER, Loc(gfid=fd.gfid))).iatt.nlink == 1
        looked = await brick.unlink(USER, at("second"))
        assert (looked.iatt.nlink, looked.iatt.gfid) == (0, fd.gfid)
        assert looked.parent == iatt_of(tmp_path.stat(), ROOT_GFID)
        with pytest.raises(FopError) as caught:
            await brick.lookup(USER, Loc(gfid=fd.gfid))
        assert caught.value.errno == errno.ESTALE

    on_brick(work, tmp_path)


def test_a_new_file_whose_gfid_is_there_leaves_nothing_behind(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "file")
        with pytest.raises(FopError) as caught:
            await brick.create(USER, at("other"), Fd(fd.gfid), flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=fd.gfid)
        assert caught.value.errno == errno.EEXIST
        assert not (tmp_path / "other").exists()
        await brick.release(fd)

    on_brick(work, tmp_path)


def test_a_zero_in_the_name_of_an_attribute_does_not_let_another_name_through(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        with pytest.raises(FopError) as caught:
            await brick.create(USER, at("file"), Fd(bytes(16)), flags=os.O_RDWR, mode=0o644, gfid=new_gfid(),
                               extra={b"trusted.gfid\0": b"x"})  # fmt: skip
        assert caught.value.errno == errno.EINVAL
        assert not (tmp_path / "file").exists()

    on_brick(work, tmp_path)


def test_extra_attributes_stand_one_after_another_with_their_sizes() -> None:
    assert pack_extra([(b"a", b"12"), (b"b", b"")]) == b"a\0\x02\0\0\x0012b\0\0\0\0\0"


@pytest.mark.parametrize("value", [b"", b"\xff\xff\xff\xff", bytes(12), b"\0\0\0\x05" * 4], ids=len)
def test_counters_are_added_as_by_hand(value: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    path, native = os.fsencode(file), Native()
    delta = b"\0\0\0\x01" + b"\xff\xff\xff\xff" + bytes(4)
    assert native.add(path, DIRTY, delta) is None
    os.setxattr(file, DIRTY, value)
    assert native.add(path, DIRTY, delta) == add(value, delta, 4) == os.getxattr(file, DIRTY)
    assert native.add(path, DIRTY, b"123") is None
