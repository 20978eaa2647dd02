# SPDX-License-Identifier: Apache-2.0
"""The test equipment itself: a brick in memory that answers like a real one."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable
from typing import Any

import pytest

from repl.files.events import Event, Invalidated
from repl.files.translator import Step, Translator
from repl.files.values import ROOT, ROOT_GFID, Caller, Fd, FopError, Loc, Lock, LockCommand, LockType, XattrOp
from tests.lib.memory_brick import MemoryBrick, Port

ME = Caller(client="a", lock_owner=b"1")
OTHER = Caller(client="b", lock_owner=b"2")
GFID = bytes(15) + b"\x07"


def run(work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await work

    return asyncio.run(main())


async def _file(brick: MemoryBrick, name: bytes = b"f", gfid: bytes = GFID) -> Fd:
    fd = Fd(gfid, os.O_RDWR)
    await brick.create(ME, Loc(parent=ROOT_GFID, name=name), fd, flags=os.O_RDWR, mode=0o644, gfid=gfid)
    return fd


def test_memory_brick_unlinked_file_stays_readable_while_open() -> None:
    async def scenario() -> None:
        brick = MemoryBrick()
        fd = await _file(brick)
        await brick.writev(ME, fd, b"hello", offset=2)
        assert (await brick.unlink(ME, Loc(parent=ROOT_GFID, name=b"f"))).iatt.nlink == 0
        assert (await brick.readv(ME, fd, size=10, offset=0)).data == b"\0\0hello"
        await brick.release(fd)
        with pytest.raises(FopError) as caught:
            await brick.lookup(ME, Loc(gfid=GFID))
        assert caught.value.errno == errno.ESTALE

    run(scenario())


def test_memory_brick_compound_ends_at_the_first_error() -> None:
    async def scenario() -> None:
        brick = MemoryBrick()
        steps = [Step("lookup", (ROOT,)), Step("lookup", (Loc(parent=ROOT_GFID, name=b"x"),)), Step("statfs", (ROOT,))]
        answers = await brick.compound(ME, steps)
        assert len(answers) == 2 and answers[1].errno == errno.ENOENT

    run(scenario())


def test_memory_brick_range_locks_conflict_split_and_wait() -> None:
    async def scenario() -> None:
        brick = MemoryBrick()
        fd = await _file(brick)
        await brick.lk(ME, fd, LockCommand.TRY, Lock(LockType.WRITE, 0, 99))
        with pytest.raises(FopError):
            await brick.lk(OTHER, fd, LockCommand.TRY, Lock(LockType.READ, 50, 60))
        waiting = asyncio.ensure_future(brick.lk(OTHER, fd, LockCommand.WAIT, Lock(LockType.WRITE, 40, 60)))
        await brick.lk(ME, fd, LockCommand.TRY, Lock(LockType.UNLOCK, 40, 60))
        await waiting
        found = await brick.lk(OTHER, fd, LockCommand.GET, Lock(LockType.WRITE, 0, 99))
        assert (found.type, found.first, found.last) == (LockType.WRITE, 0, 39)

    run(scenario())


def test_memory_brick_adds_to_counters_in_words() -> None:
    async def scenario() -> None:
        brick = MemoryBrick()
        key = b"trusted.afr.x"
        await brick.xattrop(ME, ROOT, XattrOp.ADD, {key: bytes.fromhex("000000010000000000000002")})
        answer = await brick.xattrop(ME, ROOT, XattrOp.ADD, {key: bytes.fromhex("ffffffff0000000100000000")})
        assert answer[key].hex() == "000000000000000100000002"
        assert await brick.getxattr(ME, ROOT) == {}

    run(scenario())


def test_memory_brick_tells_other_clients_what_changed() -> None:
    class Top(Translator):
        def notify(self, event: Event, child: Translator | None) -> None:
            seen.append((self.name, event))

    seen: list[tuple[str, Event]] = []

    async def scenario() -> None:
        brick = MemoryBrick()
        for name in ("a", "b"):
            Top(name, brick.options, [Port(name, brick)], brick.context)
        await _file(brick)
        assert [name for name, _ in seen] == ["b"]
        assert isinstance(seen[0][1], Invalidated) and seen[0][1].names == (b"f",)

    run(scenario())


def test_memory_brick_that_is_down_says_so() -> None:
    async def scenario() -> None:
        brick = MemoryBrick()
        brick.go_down()
        with pytest.raises(FopError) as caught:
            await brick.lookup(ME, ROOT)
        assert caught.value.errno == errno.ENOTCONN
        brick.come_up()
        await brick.lookup(ME, ROOT)

    run(scenario())
