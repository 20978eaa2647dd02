# SPDX-License-Identifier: Apache-2.0
"""Rebalance over real directories: files with several names, ACLs, holes, what a decommissioned brick is left with."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from repl.files.options import parse_options
from repl.files.rebalance.crawl import Crawl
from repl.files.rebalance.progress import Progress, State
from repl.files.translator import Context
from repl.files.translators.distribute import Distribute
from repl.files.translators.locks import Locks
from repl.files.values import ROOT_GFID, Fd, Loc
from tests.lib.files import ME, at, make, new_gfid, posix

Work = Callable[[Distribute], Awaitable[None]]
ACL = bytes.fromhex("0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff")


def on_bricks(path: Path, count: int, work: Work, **options: str) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            children = []
            for number in range(count):
                brick = await stack.enter_async_context(posix(path / f"brick{number}"))
                children.append(make(Locks, f"c{number}", [brick]))
            parsed = parse_options(Distribute.OPTIONS, {key.replace("_", "-"): text for key, text in options.items()})
            context = Context(process="test", random=random.Random(), wall_ns=time.time_ns)
            dht = Distribute("dht", parsed, children, context)
            await dht.start()
            await work(dht)
            while context.tasks:
                await asyncio.gather(*list(context.tasks), return_exceptions=True)

    asyncio.run(main())


async def write(dht: Distribute, name: str, data: bytes, offset: int = 0) -> bytes:
    gfid = new_gfid()
    fd = Fd(gfid, os.O_RDWR)
    await dht.create(ME, at(name), fd, flags=os.O_RDWR, mode=0o640, gfid=gfid)
    await dht.writev(ME, fd, data, offset=offset)
    await dht.release(fd)
    return gfid


async def read(dht: Distribute, name: str) -> bytes:
    gfid = (await dht.lookup(ME, at(name))).iatt.gfid
    fd = Fd(gfid)
    await dht.open(ME, Loc(gfid=gfid), fd, flags=os.O_RDONLY)
    try:
        return bytes((await dht.readv(ME, fd, size=1 << 16, offset=0)).data)
    finally:
        await dht.release(fd)


def left_on(brick: Path) -> list[str]:
    """Names of what is no directory, and handles of files."""
    found = [str(p.relative_to(brick)) for p in brick.rglob("*") if not p.is_dir() and ".glusterfs" not in p.parts]
    handles = [p for p in (brick / ".glusterfs").glob("??/??/*") if not p.is_symlink()]
    return found + [p.name for p in handles]


def test_rebalance_takes_everything_from_a_brick(tmp_path: Path) -> None:
    async def fill(dht: Distribute) -> None:
        for number in range(12):
            gfid = await write(dht, f"f{number}", b"data%d" % number)
            for more in range(number % 4):
                await dht.link(ME, Loc(gfid=gfid), at(f"h{number}-{more}"))
            await dht.setxattr(ME, Loc(gfid=gfid), {b"system.posix_acl_access": ACL, b"user.n": b"%d" % number})
        await write(dht, "sparse", b"end", offset=8 << 20)
        for number in range(6):
            await dht.symlink(ME, at(f"s{number}"), target=b"f%d" % number, gfid=new_gfid())
            await dht.mknod(ME, at(f"p{number}"), mode=0o010600, rdev=0, gfid=new_gfid())

    async def empty(dht: Distribute) -> None:
        progress = await Crawl(dht, "start", Progress()).run()
        assert progress.state is State.COMPLETED and not progress.failures
        # Those of other bricks may stay, also because somebody else writes on the disk that all of them are on.
        room = "less space would be free at the target than at the source"
        assert progress.reasons.keys() <= {"it has several names", room}

    async def check(dht: Distribute) -> None:
        for number in range(12):
            looked = await dht.lookup(ME, at(f"f{number}"))
            assert (looked.iatt.mode & 0o777, looked.iatt.nlink) == (0o664, 1 + number % 4)
            names = [f"f{number}", *(f"h{number}-{more}" for more in range(number % 4))]
            for name in names:
                assert (await dht.lookup(ME, at(name))).iatt.gfid == looked.iatt.gfid
                assert await read(dht, name) == b"data%d" % number
            xattrs = await dht.getxattr(ME, Loc(gfid=looked.iatt.gfid))
            assert xattrs[b"user.n"] == b"%d" % number and xattrs[b"system.posix_acl_access"] == ACL
        sparse = (await dht.lookup(ME, at("sparse"))).iatt
        assert sparse.size == (8 << 20) + 3 and sparse.blocks < 64
        for number in range(6):
            looked = await dht.lookup(ME, at(f"s{number}"))
            assert await dht.readlink(ME, Loc(gfid=looked.iatt.gfid)) == b"f%d" % number
            assert (await dht.lookup(ME, at(f"p{number}"))).iatt.mode == 0o010600
        fd = Fd(ROOT_GFID, is_directory=True)
        await dht.opendir(ME, Loc(gfid=ROOT_GFID), fd)
        names = [e.name for e in await dht.readdir(ME, fd, size=1 << 20, offset=0)]
        assert len(names) == len(set(names))
        await dht.release(fd)

    on_bricks(tmp_path, 3, fill)
    on_bricks(tmp_path, 3, check)
    for brick in ("c0", "c2"):
        on_bricks(tmp_path, 3, empty, decommissioned_bricks=brick)
        on_bricks(tmp_path, 3, check)
        assert left_on(tmp_path / f"brick{brick[1]}") == []
