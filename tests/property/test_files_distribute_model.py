# SPDX-License-Identifier: Apache-2.0
"""cluster/distribute behaves like one brick: random operations on both, the same answers and the same trees."""

from __future__ import annotations

import errno
import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from repl.files.translator import Translator
from repl.files.values import ROOT_GFID, Caller, Fd, FopError, Loc
from tests.lib.distributed import World
from tests.lib.memory_brick import MemoryBrick
from tests.lib.virtual_loop import run

ME = Caller(client="client0", lock_owner=b"1")
LAYOUT = b"trusted.glusterfs.dht"

paths = st.sampled_from(("a", "b", "c", ".a.tmp", "d", "e", "d/a", "d/b", "d/s", "d/s/a", "e/b"))
START: list[tuple[Any, ...]] = [
    ("mkdir", "d"), ("mkdir", "e"), ("mkdir", "d/s"), ("create", "a"), ("create", "b"), ("create", "d/a"),
    ("create", "d/b"),
]  # fmt: skip
operations = st.lists(
    st.one_of(
        st.tuples(st.just("create"), paths),
        st.tuples(st.just("mkdir"), paths),
        st.tuples(st.just("symlink"), paths),
        st.tuples(st.just("unlink"), paths),
        st.tuples(st.just("rmdir"), paths),
        st.tuples(st.just("rename"), paths, paths, st.sampled_from((0, 0, 0, 1))),
        st.tuples(st.just("rename"), paths, paths, st.just(0)),
        st.tuples(st.just("link"), paths, paths),
        st.tuples(st.just("write"), paths, st.binary(min_size=1, max_size=4), st.integers(0, 6)),
        st.tuples(st.just("truncate"), paths, st.integers(0, 8)),
    ),
    max_size=40,
).map(lambda steps: [*START, *steps])


class Side:
    """One of the two, driven by paths."""

    def __init__(self, top: Translator) -> None:
        self.top = top

    async def at(self, path: str) -> Loc:
        *folders, name = path.split("/")
        parent = ROOT_GFID
        for folder in folders:
            found = (await self.top.lookup(ME, Loc(parent=parent, name=folder.encode()))).iatt
            if not found.is_directory:
                raise FopError(errno.ENOTDIR)
            parent = found.gfid
        return Loc(parent=parent, name=name.encode(), path=b"/" + path.encode())

    async def do(self, gfid: bytes, what: str, *args: Any) -> Any:
        try:
            return await getattr(self, f"do_{what}")(gfid, *args)
        except FopError as error:
            return error.errno

    async def do_create(self, gfid: bytes, path: str) -> None:
        fd = Fd(gfid, os.O_RDWR)
        await self.top.create(ME, await self.at(path), fd, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=gfid)
        await self.top.release(fd)

    async def do_mkdir(self, gfid: bytes, path: str) -> None:
        await self.top.mkdir(ME, await self.at(path), mode=0o755, gfid=gfid)

    async def do_symlink(self, gfid: bytes, path: str) -> None:
        await self.top.symlink(ME, await self.at(path), target=path.encode(), gfid=gfid)

    async def do_unlink(self, gfid: bytes, path: str) -> int:
        return (await self.top.unlink(ME, await self.at(path))).iatt.nlink

    async def do_rmdir(self, gfid: bytes, path: str) -> None:
        await self.top.rmdir(ME, await self.at(path))

    async def do_rename(self, gfid: bytes, old: str, new: str, flags: int) -> None:
        source, target = await self.at(old), await self.at(new)
        if f"{new}/".startswith(f"{old}/") or f"{old}/".startswith(f"{new}/"):
            raise FopError(errno.EINVAL)  # the kernel's own business
        await self.top.rename(ME, source, target, flags=flags)

    async def do_link(self, gfid: bytes, old: str, new: str) -> int:
        source = (await self.top.lookup(ME, await self.at(old))).iatt.gfid
        return (await self.top.link(ME, Loc(gfid=source), await self.at(new))).iatt.nlink

    async def do_write(self, gfid: bytes, path: str, data: bytes, offset: int) -> int:
        found = (await self.top.lookup(ME, await self.at(path))).iatt
        if not found.is_regular:
            return -1
        fd = Fd(found.gfid, os.O_RDWR)
        await self.top.open(ME, Loc(gfid=found.gfid), fd, flags=os.O_RDWR)
        changed = await self.top.writev(ME, fd, data, offset=offset)
        await self.top.release(fd)
        return changed.after.size

    async def do_truncate(self, gfid: bytes, path: str, size: int) -> int:
        found = (await self.top.lookup(ME, await self.at(path))).iatt
        if not found.is_regular:
            return -1
        return (await self.top.truncate(ME, Loc(gfid=found.gfid), size)).after.size

    async def tree(self, gfid: bytes = ROOT_GFID, path: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        fd = Fd(gfid, is_directory=True)
        await self.top.opendir(ME, Loc(gfid=gfid), fd)
        entries, offset = [], 0
        while part := await self.top.readdir(ME, fd, size=100, offset=offset):
            entries += part
            offset = part[-1].offset
        await self.top.release(fd)
        assert len({entry.name for entry in entries}) == len(entries)
        for entry in entries:
            where = f"{path}/{entry.name.decode()}"
            iatt = (await self.top.lookup(ME, Loc(parent=gfid, name=entry.name))).iatt
            assert iatt.gfid == entry.gfid and iatt.kind == entry.kind
            found[where] = (iatt.gfid, iatt.mode, iatt.nlink)
            if iatt.is_directory:
                found |= await self.tree(iatt.gfid, where)
            elif iatt.is_regular:
                file = Fd(iatt.gfid)
                await self.top.open(ME, Loc(gfid=iatt.gfid), file, flags=os.O_RDONLY)
                found[where] += (bytes((await self.top.readv(ME, file, size=100, offset=0)).data),)
                await self.top.release(file)
            else:
                found[where] += (await self.top.readlink(ME, Loc(gfid=iatt.gfid)),)
        return found


def adopt(world: World) -> None:
    """As if the bricks came from elsewhere: nothing says that a miss is final."""
    for brick in world.bricks:
        root = brick.inodes[ROOT_GFID]
        root.xattrs = {LAYOUT: bytes(3) + b"\x01" + root.xattrs[LAYOUT][4:]}


@settings(max_examples=120, deadline=None)
@given(bricks=st.integers(1, 4), steps=operations, is_adopted=st.booleans())
def test_distribute_is_like_one_brick(bricks: int, steps: list[Any], is_adopted: bool) -> None:
    async def scenario() -> None:
        world = World(bricks)
        client = world.client()
        if is_adopted:
            await client.look("")
            adopt(world)
            client = world.client()
        model, dht = Side(MemoryBrick()), Side(client.dht)
        for step in steps:
            gfid = world.new_gfid()
            expected, got = await model.do(gfid, *step), await dht.do(gfid, *step)
            assert expected == got, step
        tree = await model.tree()
        assert await dht.tree() == tree
        # Somebody who has cached nothing sees the same, and nothing is left open or behind.
        await client.idle()
        assert await Side(world.client().dht).tree() == tree
        assert all(inode.opened == 0 for brick in world.bricks for inode in brick.inodes.values())

    run(scenario())
