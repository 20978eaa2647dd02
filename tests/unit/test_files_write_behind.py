# SPDX-License-Identifier: Apache-2.0
"""performance/write-behind: order, errors, what waits and what does not."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest

from repl.files.translator import Step
from repl.files.values import Fd, FopError, Loc, Looked, SetAttr
from repl.limits import WRITE_BEHIND_HOLD_S
from tests.lib.cached import Mount, on_mounts
from tests.lib.files import at, new_gfid

KINDS = ("write-behind",)


class Gate:
    """Writes wait at the brick until they are let in, each with an error or without; ``seen`` are those that came."""

    def __init__(self, mount: Mount) -> None:
        self.is_open = asyncio.Event()
        self.errors: list[OSError] = []
        self.seen: list[tuple[int, bytes]] = []
        self._write = mount.brick.writev
        mount.brick.writev = self._gated  # type: ignore[method-assign]

    async def _gated(self, caller: Any, fd: Fd, data: Any, *, offset: int, flags: int = 0) -> Any:
        self.seen.append((offset, bytes(data)))
        await self.is_open.wait()
        if self.errors:
            raise self.errors.pop(0)
        return await self._write(caller, fd, data, offset=offset, flags=flags)


async def new_file(mount: Mount, flags: int = os.O_RDWR) -> Fd:
    fd = Fd(new_gfid(), flags)
    await mount.top.create(mount.me, at(f"f{fd.gfid.hex()}"), fd, flags=flags | os.O_EXCL, mode=0o644, gfid=fd.gfid)
    return fd


def data_of(mount: Mount, fd: Fd) -> bytes:
    return bytes(mount.brick.inodes[fd.gfid].data)


async def settle() -> None:
    """Nothing waits for more to come any longer."""
    await asyncio.sleep(WRITE_BEHIND_HOLD_S)
    for _ in range(20):
        await asyncio.sleep(0)


def test_writes_are_answered_before_they_are_stored_and_reads_see_them() -> None:
    async def work(mount: Mount) -> None:
        fd, gate = await new_file(mount), Gate(mount)
        await mount.top.writev(mount.me, fd, b"abc", offset=0)
        await mount.top.writev(mount.me, fd, b"xyz", offset=3)
        assert data_of(mount, fd) == b""
        read = asyncio.ensure_future(mount.top.readv(mount.me, fd, size=10, offset=1))
        await settle()
        assert not read.done()
        gate.is_open.set()
        assert bytes((await read).data) == b"bcxyz"

    on_mounts(work, KINDS, "a")


def test_adjoining_writes_are_joined_and_overlapping_ones_keep_their_order() -> None:
    async def work(mount: Mount) -> None:
        fd, gate = await new_file(mount), Gate(mount)
        await mount.top.writev(mount.me, fd, b"first", offset=0)
        await settle()
        for index in range(10):
            await mount.top.writev(mount.me, fd, bytes([index]) * 100, offset=1000 + 100 * index)
        await mount.top.writev(mount.me, fd, b"over", offset=1950)
        gate.is_open.set()
        await mount.top.fsync(mount.me, fd)
        assert [(offset, len(data)) for offset, data in gate.seen] == [(0, 5), (1000, 1000), (1950, 4)]
        assert data_of(mount, fd)[1940:1960] == b"\x09" * 10 + b"over" + b"\x09" * 6

    on_mounts(work, KINDS, "a")


def test_an_error_is_told_once_by_the_next_operation_on_the_descriptor_that_wrote() -> None:
    async def work(mount: Mount) -> None:
        fd, gate = await new_file(mount), Gate(mount)
        other = Fd(fd.gfid, os.O_RDWR)
        await mount.top.open(mount.me, Loc(gfid=fd.gfid), other, flags=os.O_RDWR)
        gate.is_open.set()
        for tell in ("fsync", "flush", "writev"):
            gate.errors.append(FopError(errno.ENOSPC))
            await mount.top.writev(mount.me, fd, b"lost", offset=0)
            await mount.top.flush(mount.me, other)
            with pytest.raises(OSError) as error:
                if tell == "writev":
                    await mount.top.writev(mount.me, fd, b"next", offset=0)
                else:
                    await getattr(mount.top, tell)(mount.me, fd)
            assert error.value.errno == errno.ENOSPC
            await mount.top.fsync(mount.me, fd)

    on_mounts(work, KINDS, "a")


def test_what_a_frame_did_not_reach_behind_a_failed_write_is_written_all_the_same() -> None:
    async def work(mount: Mount) -> None:
        fd, gate = await new_file(mount), Gate(mount)
        await mount.top.writev(mount.me, fd, b"1", offset=0)
        await settle()
        for index in (1, 2, 3):
            await mount.top.writev(mount.me, fd, b"x", offset=index * 10)
        gate.errors = [FopError(errno.EIO), FopError(errno.EIO)]
        gate.is_open.set()
        with pytest.raises(OSError):
            await mount.top.fsync(mount.me, fd)
        assert data_of(mount, fd).count(b"x") >= 2

    on_mounts(work, KINDS, "a")


def test_failed_writes_are_tried_again_when_asked_for() -> None:
    async def work(mount: Mount) -> None:
        fd, gate = await new_file(mount), Gate(mount)
        gate.is_open.set()
        gate.errors.append(FopError(errno.ENOSPC))
        await mount.top.writev(mount.me, fd, b"again", offset=0)
        await mount.top.fsync(mount.me, fd)
        assert data_of(mount, fd) == b"again"

    on_mounts(work, KINDS, "a", resync_failed_syncs_after_fsync="on")


@pytest.mark.parametrize("flags", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_writes_are_not_held_back(flags: int) -> None:
    async def work(mount: Mount) -> None:
        fd, gate = await new_file(mount, os.O_RDWR | flags), Gate(mount)
        write = asyncio.ensure_future(mount.top.writev(mount.me, fd, b"now", offset=0))
        await settle()
        assert not write.done()
        gate.is_open.set()
        assert (await write).after.size == 3

    on_mounts(work, KINDS, "a")


def test_direct_writes_are_held_back_unless_strict() -> None:
    async def work(mount: Mount) -> None:
        fd, gate = await new_file(mount, os.O_RDWR | os.O_DIRECT), Gate(mount)
        write = asyncio.ensure_future(mount.top.writev(mount.me, fd, b"x", offset=0))
        await settle()
        assert write.done() is not (mount.layers["write-behind"].options["strict-O_DIRECT"])
        gate.is_open.set()
        await write

    on_mounts(work, KINDS, "a")
    on_mounts(work, KINDS, "a", **{"strict-O_DIRECT": "on"})


def test_whatever_may_see_a_write_waits_for_it() -> None:
    async def work(mount: Mount) -> None:
        fd = await new_file(mount)
        loc, target = Loc(gfid=fd.gfid), at("other")
        operations = [
            lambda: mount.top.stat(mount.me, loc),
            lambda: mount.top.truncate(mount.me, fd, 2),
            lambda: mount.top.fallocate(mount.me, fd, mode=0, offset=0, length=9),
            lambda: mount.top.setattr(mount.me, loc, SetAttr(mode=0o600)),
            lambda: mount.top.rename(mount.me, at(f"f{fd.gfid.hex()}"), target),
            lambda: mount.top.lookup(mount.me, target),
            lambda: mount.top.compound(mount.me, [Step("stat", (fd,))]),
            lambda: mount.top.flush(mount.me, fd),
        ]
        for operation in operations:
            gate = Gate(mount)
            await mount.top.writev(mount.me, fd, b"some data", offset=0)
            task = asyncio.ensure_future(operation())
            await settle()
            assert not task.done()
            gate.is_open.set()
            answer = await task
            mount.brick.writev = gate._write  # type: ignore[method-assign]
            if isinstance(answer, Looked):
                assert answer.iatt.size == 9

    on_mounts(work, KINDS, "a")


def test_a_file_without_a_name_takes_what_was_held_back_and_is_released_last() -> None:
    async def work(mount: Mount) -> None:
        fd, gate = await new_file(mount), Gate(mount)
        await mount.top.writev(mount.me, fd, b"kept", offset=0)
        await mount.top.unlink(mount.me, at(f"f{fd.gfid.hex()}"))
        release = asyncio.ensure_future(mount.top.release(fd))
        await settle()
        assert fd.gfid in mount.brick.inodes and not release.done()
        gate.is_open.set()
        await release
        assert gate.seen == [(0, b"kept")] and fd.gfid not in mount.brick.inodes

    on_mounts(work, KINDS, "a")


def test_a_writer_waits_when_the_window_is_full() -> None:
    async def work(mount: Mount) -> None:
        fd, gate = await new_file(mount), Gate(mount)
        block = bytes(256 * 1024)
        writes = [
            asyncio.ensure_future(mount.top.writev(mount.me, fd, block, offset=index * len(block)))
            for index in range(8)
        ]
        await settle()
        # Four are on their way in two frames, two fill the window.
        assert [write.done() for write in writes] == [True] * 6 + [False] * 2
        gate.is_open.set()
        await asyncio.gather(*writes)
        await mount.top.fsync(mount.me, fd)
        assert len(data_of(mount, fd)) == 8 * len(block)

    on_mounts(work, KINDS, "a", cache_size="512KB")


def test_appends_keep_their_order_and_close_need_not_wait_with_flush_behind() -> None:
    async def work(mount: Mount) -> None:
        fd, gate = await new_file(mount, os.O_WRONLY | os.O_APPEND), Gate(mount)
        for number in range(5):
            await mount.top.writev(mount.me, fd, b"%d" % number, offset=0, flags=os.O_APPEND)
        await mount.top.flush(mount.me, fd)
        release = asyncio.ensure_future(mount.top.release(fd))
        gate.is_open.set()
        await release
        assert data_of(mount, fd) == b"01234"

    on_mounts(work, KINDS, "a", flush_behind="on")


class Frames:
    """What comes to the brick, frame by frame."""

    def __init__(self, mount: Mount) -> None:
        self.seen: list[list[str]] = []
        self._compound, self._one = mount.brick.compound, {}
        mount.brick.compound = self._several  # type: ignore[method-assign]
        for fop in ("writev", "setattr"):
            self._one[fop] = getattr(mount.brick, fop)
            setattr(mount.brick, fop, self._counted(fop))

    async def _several(self, caller: Any, steps: Any) -> list[Any]:
        self.seen.append([step.fop for step in steps])
        answers = []
        for step in steps:
            try:
                answers.append(await self._one[step.fop](caller, *step.args, **step.kwargs))
            except OSError as error:
                return [*answers, error]
        return answers

    def _counted(self, fop: str) -> Any:
        async def one(*args: Any, **kwargs: Any) -> Any:
            self.seen.append([fop])
            return await self._one[fop](*args, **kwargs)

        return one


def test_small_writes_wait_a_moment_for_what_belongs_to_them() -> None:
    async def work(mount: Mount) -> None:
        fd, frames = await new_file(mount), Frames(mount)
        await mount.top.writev(mount.me, fd, b"head", offset=0)
        await asyncio.sleep(0)
        await mount.top.writev(mount.me, fd, b"tail", offset=4)
        changed = await mount.top.setattr(mount.me, fd, SetAttr(uid=7, mtime_ns=5))
        assert frames.seen == [["writev", "setattr"]]
        assert (changed.after.uid, changed.after.mtime_ns, changed.after.size) == (7, 5, 8)
        await mount.top.writev(mount.me, fd, b"more", offset=8)
        await mount.top.flush(mount.me, fd)
        assert frames.seen[1:] == [["writev"]]
        await mount.top.writev(mount.me, fd, b"late", offset=12)
        await settle()
        assert frames.seen[2:] == [["writev"]]
        assert data_of(mount, fd) == b"headtailmorelate"

    on_mounts(work, KINDS, "a")


def test_attributes_are_set_even_if_a_write_before_them_has_failed() -> None:
    async def work(mount: Mount) -> None:
        fd, gate = await new_file(mount), Gate(mount)
        gate.is_open.set()
        gate.errors.append(FopError(errno.ENOSPC))
        await mount.top.writev(mount.me, fd, b"lost", offset=0)
        await mount.top.writev(mount.me, fd, b"kept", offset=100)
        assert (await mount.top.setattr(mount.me, fd, SetAttr(uid=7))).after.uid == 7
        with pytest.raises(OSError) as error:
            await mount.top.flush(mount.me, fd)
        assert error.value.errno == errno.ENOSPC
        assert data_of(mount, fd)[100:] == b"kept"

    on_mounts(work, KINDS, "a")


def test_what_changes_nothing_waits_for_what_is_set_behind_it() -> None:
    """As tar does with each file."""

    async def work(mount: Mount) -> None:
        fd, frames = await new_file(mount), Frames(mount)
        await mount.top.writev(mount.me, fd, b"data", offset=0)
        for values in (SetAttr(mtime_ns=5), SetAttr(uid=0, gid=0), SetAttr(mode=0o644, atime_ns=6)):
            changed = await mount.top.setattr(mount.me, fd, values)
            assert changed.before.mode == 0, "it is not said to be so yet"
            assert (changed.after.mode, changed.after.size, changed.after.mtime_ns) == (0o100644, 4, 5)
        assert frames.seen == []
        changed = await mount.top.setattr(mount.me, fd, SetAttr(mode=0o600))
        assert frames.seen == [["writev", "setattr"]]
        after = changed.after
        assert (changed.before.mode, after.mode, after.size) == (0o100644, 0o100600, 4)
        assert (after.atime_ns, after.mtime_ns) == (6, 5)
        await mount.top.setattr(mount.me, fd, SetAttr(mode=0o600))  # it has this one now
        assert frames.seen[1:] == []
        await mount.top.flush(mount.me, fd)
        assert frames.seen[1:] == [["setattr"]]
        assert not mount.layers["write-behind"].state()["files"]

    on_mounts(work, KINDS, "a")


@pytest.mark.parametrize("wanted_by", ["time", "flush", "fsync", "stat", "lookup", "release", "truncate", "other file"])
def test_attributes_that_wait_are_set_when_somebody_could_see_them(wanted_by: str) -> None:
    async def work(mount: Mount) -> None:
        fd, me = await new_file(mount), mount.me
        loc = Loc(gfid=fd.gfid)
        if wanted_by != "stat":
            await mount.top.writev(me, fd, b"data", offset=0)
        await mount.top.setattr(me, fd, SetAttr(mtime_ns=5))
        wanted: dict[str, Any] = {
            "time": settle, "flush": lambda: mount.top.flush(me, fd), "fsync": lambda: mount.top.fsync(me, fd),
            "stat": lambda: mount.top.stat(me, loc), "lookup": lambda: mount.top.lookup(me, loc),
            "release": lambda: mount.top.release(fd), "truncate": lambda: mount.top.truncate(me, fd, 4),
            "other file": lambda: mount.top.rename(me, at("none"), at("other")),
        }  # fmt: skip
        answer: object = None
        try:
            answer = await wanted[wanted_by]()
        except FopError:
            assert wanted_by == "other file"
        if isinstance(answer, Looked):
            assert answer.iatt.mtime_ns == 5
        if wanted_by != "truncate":
            assert mount.brick.inodes[fd.gfid].iatt.mtime_ns == 5

    on_mounts(work, KINDS, "a")


def test_a_write_behind_attributes_comes_after_them() -> None:
    async def work(mount: Mount) -> None:
        fd, gate = await new_file(mount), Gate(mount)
        await mount.top.writev(mount.me, fd, b"a", offset=0)
        await mount.top.setattr(mount.me, fd, SetAttr(mtime_ns=5))
        await mount.top.writev(mount.me, fd, b"b", offset=1)
        gate.is_open.set()
        await mount.top.flush(mount.me, fd)
        assert gate.seen == [(0, b"a"), (1, b"b")]
        assert mount.brick.inodes[fd.gfid].iatt.mtime_ns != 5

    on_mounts(work, KINDS, "a")


def test_attributes_that_change_something_or_are_not_known_do_not_wait() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        me = mount.me
        plain, set_id, seen, found = [await new_file(mount) for _ in range(4)]
        await mount.top.setattr(me, set_id, SetAttr(mode=0o4755))
        await other.top.stat(other.me, Loc(gfid=seen.gfid))
        await mount.top.stat(me, seen)
        await other.top.setattr(other.me, Loc(gfid=seen.gfid), SetAttr(uid=7))
        await mount.top.release(found)
        again = Fd(found.gfid, os.O_RDWR)
        await mount.top.open(me, Loc(gfid=found.gfid), again, flags=os.O_RDWR)
        frames = Frames(mount)
        for fd, values in (
            (plain, SetAttr(uid=1)), (plain, SetAttr(gid=1)), (plain, SetAttr(mode=0o600)), (set_id, SetAttr(uid=0)),
            (seen, SetAttr(uid=0)), (again, SetAttr(mtime_ns=5)), (Loc(gfid=set_id.gfid), SetAttr(mtime_ns=5)),
        ):  # fmt: skip
            assert (await mount.top.setattr(me, fd, values)).before.mode, values
        assert frames.seen == [["setattr"]] * 7

    on_mounts(work, KINDS, "ab")


def test_attributes_that_could_not_be_set_are_told_at_the_close() -> None:
    async def work(mount: Mount) -> None:
        fd = await new_file(mount)

        async def fail(*_: Any, **__: Any) -> Any:
            raise FopError(errno.EDQUOT)

        await mount.top.setattr(mount.me, fd, SetAttr(mtime_ns=5))
        mount.brick.setattr = fail  # type: ignore[method-assign]
        with pytest.raises(OSError) as error:
            await mount.top.flush(mount.me, fd)
        assert error.value.errno == errno.EDQUOT

    on_mounts(work, KINDS, "a")
