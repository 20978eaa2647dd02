# SPDX-License-Identifier: Apache-2.0
"""io-cache, read-ahead, quick-read, md-cache: what they spare the brick, and that two clients see the same."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from repl.files.events import Unwatched
from repl.files.translator import Step
from repl.files.values import ROOT_GFID, Fd, FopError, Iatt, Loc, Lock, LockCommand, LockType, SetAttr
from repl.limits import QUICK_READ_BYTES_MAX
from tests.lib.cached import CACHES, Mount, jitter, on_mounts
from tests.lib.files import at, new_gfid

READING = ("read-ahead", "io-cache", "quick-read", "md-cache")


async def put(mount: Mount, name: str, data: bytes) -> bytes:
    """A file that is closed again; its gfid."""
    fd = Fd(new_gfid(), os.O_WRONLY)
    await mount.top.create(mount.me, at(name), fd, flags=os.O_WRONLY | os.O_EXCL, mode=0o644, gfid=fd.gfid)
    await mount.top.writev(mount.me, fd, data, offset=0)
    await mount.top.flush(mount.me, fd)
    await mount.top.release(fd)
    return fd.gfid


async def opened(mount: Mount, gfid: bytes, flags: int = os.O_RDONLY) -> Fd:
    fd = Fd(gfid, flags)
    await mount.top.open(mount.me, Loc(gfid=gfid), fd, flags=flags)
    return fd


async def read(mount: Mount, fd: Fd, size: int = 1 << 20, offset: int = 0) -> bytes:
    return bytes((await mount.top.readv(mount.me, fd, size=size, offset=offset)).data)


async def get(mount: Mount, name: str) -> bytes:
    """As a program reads a file."""
    fd = await opened(mount, (await mount.top.lookup(mount.me, at(name))).iatt.gfid)
    data = await read(mount, fd)
    await mount.top.flush(mount.me, fd)
    await mount.top.release(fd)
    return data


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


# ---- what they spare ----


def test_md_cache_answers_lookups_stats_and_names_that_do_not_exist() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        gfid = new_gfid()
        await mount.top.mkdir(mount.me, at("d"), mode=0o755, gfid=gfid)
        with pytest.raises(FopError):
            await mount.top.lookup(mount.me, at("x", gfid))
        await put(mount, "f", b"x")
        await mount.top.lookup(mount.me, at("f"))
        before = mount.brick.counts.total()
        for _ in range(3):
            looked = await mount.top.lookup(mount.me, at("f"))
            assert (await mount.top.stat(mount.me, Loc(gfid=looked.iatt.gfid))).iatt == looked.iatt
            with pytest.raises(FopError) as error:
                await mount.top.lookup(mount.me, at("none", gfid))
            assert error.value.errno == errno.ENOENT
        assert mount.brick.counts.total() == before
        await put_in(other, "none", gfid)
        assert (await mount.top.lookup(mount.me, at("none", gfid))).iatt.is_regular

    on_mounts(work, ["md-cache"])


async def put_in(mount: Mount, name: str, parent: bytes) -> None:
    await mount.top.mknod(mount.me, at(name, parent), mode=0o100644, rdev=0, gfid=new_gfid())


def test_md_cache_lists_a_directory_in_which_names_are_looked_up() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        for number in range(50):
            await put(other, f"f{number}", b"x")
        for number in range(4):
            await mount.top.lookup(mount.me, at(f"f{number}"))
        await settle()
        before = mount.brick.counts["lookup"]
        for number in range(50):
            assert (await mount.top.lookup(mount.me, at(f"f{number}"))).iatt.size == 1
        with pytest.raises(FopError):
            await mount.top.lookup(mount.me, at("none"))
        assert mount.brick.counts["lookup"] == before and mount.brick.counts["readdir"] >= 1
        await other.top.unlink(other.me, at("f7"))
        await other.top.rename(other.me, at("f8"), at("none"))
        for name in ("f7", "f8"):
            with pytest.raises(FopError):
                await mount.top.lookup(mount.me, at(name))
        await mount.top.lookup(mount.me, at("none"))

    on_mounts(work, ["md-cache"])


def test_md_cache_lists_again_where_all_names_are_known_but_not_what_is_behind_them() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        folder = new_gfid()
        await mount.top.mkdir(mount.me, at("d"), mode=0o755, gfid=folder)
        gfids = [new_gfid() for _ in range(20)]
        for number, gfid in enumerate(gfids):
            await mount.top.mknod(mount.me, at(f"f{number}", folder), mode=0o100644, rdev=0, gfid=gfid)
        for gfid in gfids:
            await other.top.setattr(other.me, Loc(gfid=gfid), SetAttr(mode=0o600))
        before = mount.brick.counts["lookup"]
        for number in range(20):
            assert (await mount.top.lookup(mount.me, at(f"f{number}", folder))).iatt.mode == 0o100600
            await settle()
        assert mount.brick.counts["lookup"] == before + 3

    on_mounts(work, ["md-cache"])


def test_md_cache_knows_what_has_just_been_written_and_closed() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        await put(mount, "f", b"contents")
        before = mount.brick.counts.copy()
        looked = await mount.top.lookup(mount.me, at("f"))
        assert looked.iatt.size == 8
        assert looked.iatt == (await mount.top.stat(mount.me, Loc(gfid=looked.iatt.gfid))).iatt
        assert mount.brick.counts == before
        assert looked.iatt == (await other.top.lookup(other.me, at("f"))).iatt
        # Others' changes are told, also those made while it was being closed.
        await other.top.setattr(other.me, Loc(gfid=looked.iatt.gfid), SetAttr(mode=0o600))
        assert (await mount.top.lookup(mount.me, at("f"))).iatt.mode == 0o100600

        async def meanwhile(fop: str) -> None:
            if fop == "writev":
                mount.brick.before = None
                found = await other.top.lookup(other.me, at("g"))
                await other.top.setattr(other.me, Loc(gfid=found.iatt.gfid), SetAttr(mode=0o640))

        mount.brick.before = meanwhile
        await put(mount, "g", b"x")
        assert mount.brick.before is None
        assert (await mount.top.lookup(mount.me, at("g"))).iatt.mode == 0o100640

    on_mounts(work, ["write-behind", "quick-read", "md-cache"])


def test_only_who_made_a_file_is_told_its_attributes_when_it_is_closed() -> None:
    """Bricks tell of changes whoever has looked at an inode since the last one, which a writer need not have done."""

    async def work(mount: Mount, other: Mount) -> None:
        fd = Fd(new_gfid(), os.O_WRONLY)
        await mount.top.create(mount.me, at("f"), fd, flags=os.O_WRONLY | os.O_EXCL, mode=0o644, gfid=fd.gfid)
        theirs = await opened(other, fd.gfid, os.O_WRONLY)
        for name, who, file in (("first", mount, fd), ("of another", other, theirs), ("after that", mount, fd)):
            await who.top.writev(who.me, file, name.encode(), offset=0)
            iatt = await who.top.flush(who.me, file)
            assert (iatt is not None and iatt.size == 5) if name == "first" else iatt is None, name
        assert await mount.top.flush(mount.me, fd) is None  # nothing was held back

    on_mounts(work, ["write-behind", "quick-read", "md-cache"])


async def filled_folders(mount: Mount, count: int) -> list[bytes]:
    """d0 and so on with f0 to f19 each; their gfids."""
    folders = [new_gfid() for _ in range(count)]
    for number, folder in enumerate(folders):
        await mount.top.mkdir(mount.me, at(f"d{number}"), mode=0o755, gfid=folder)
        for name in range(20):
            await put_in(mount, f"f{name}", folder)
    return folders


def test_directories_that_are_walked_are_listed_with_their_first_lookup() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        folders = await filled_folders(other, 12)

        async def before(fop: str) -> None:
            await asyncio.sleep(0.001)

        mount.brick.before = before
        lookups: list[int] = []
        for folder in folders[:5]:
            so_far = mount.brick.counts["lookup"]
            for name in range(20):
                await mount.top.lookup(mount.me, at(f"f{name}", folder))
            lookups.append(mount.brick.counts["lookup"] - so_far)
        assert lookups[0] >= 3 and lookups[1:] == [1, 1, 1, 1]
        # Now a directory is listed when it is looked up itself.
        gfid = (await mount.top.lookup(mount.me, at("d11"))).iatt.gfid
        so_far = mount.brick.counts["lookup"]
        for name in range(20):
            await mount.top.lookup(mount.me, at(f"f{name}", gfid))
        assert gfid == folders.pop() and mount.brick.counts["lookup"] == so_far
        # Somebody looks at one file in each: after a few of them they are not listed any more.
        listed: list[bool] = []
        for folder in folders[5:]:
            so_far = mount.brick.counts["opendir"]
            await mount.top.lookup(mount.me, at("f7", folder))
            await asyncio.sleep(1)
            listed.append(mount.brick.counts["opendir"] > so_far)
        assert listed[0] and not any(listed[4:])

    on_mounts(work, ["md-cache"])


@pytest.mark.parametrize("how", ["slow", "fails"])
def test_a_lookup_does_not_wait_long_for_a_listing(how: str) -> None:
    async def work(mount: Mount, other: Mount) -> None:
        folders = await filled_folders(other, 4)

        folder = folders[0]

        async def before(fop: str) -> None:
            if fop == "readdir" and folder is folders[3]:
                if how == "fails":
                    raise FopError(errno.EIO)
                await asyncio.sleep(3600)
            await asyncio.sleep(0.001)

        mount.brick.before = before
        for folder in folders:
            began = asyncio.get_running_loop().time()
            for name in range(20):
                assert (await mount.top.lookup(mount.me, at(f"f{name}", folder))).iatt.is_regular
            assert asyncio.get_running_loop().time() - began < 20 * 0.1

    on_mounts(work, ["md-cache"])


def test_md_cache_tells_what_it_knows_of_a_name_without_asking() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        made = new_gfid()
        await mount.top.mkdir(mount.me, at("d"), mode=0o755, gfid=made)
        assert mount.top.known(made, b"x") is False
        assert mount.top.known(new_gfid(), b"x") is None
        gfid, fd = new_gfid(), Fd(new_gfid(), os.O_RDWR)
        await mount.top.mkdir(mount.me, at("e", made), mode=0o700, gfid=gfid)
        known = mount.top.known(made, b"e")
        assert isinstance(known, Iatt) and known.gfid == gfid and known.mode & 0o7777 == 0o700
        known.mode = 0
        again = mount.top.known(made, b"e")
        assert isinstance(again, Iatt) and again.mode, "it is a copy"
        await other.top.create(other.me, at("x", made), fd, flags=os.O_RDWR, mode=0o600, gfid=fd.gfid)
        await settle()
        assert mount.top.known(made, b"x") is None
        await mount.top.setattr(mount.me, Loc(gfid=gfid), SetAttr(mode=0o711))
        assert mount.top.known(made, b"e") is None

    on_mounts(work, ("md-cache",))


def test_md_cache_knows_no_directory_as_a_whole_while_a_part_of_the_names_is_away() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        mount.layers["md-cache"].notify(Unwatched(is_partial=True), None)
        gfid = new_gfid()
        await mount.top.mkdir(mount.me, at("d"), mode=0o755, gfid=gfid)
        before = mount.brick.counts["lookup"]
        with pytest.raises(FopError):
            await mount.top.lookup(mount.me, at("x", gfid))
        assert mount.brick.counts["lookup"] == before + 1

    on_mounts(work, ["md-cache"])


def test_md_cache_remembers_extended_attributes_and_that_there_is_none() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        loc = Loc(gfid=await put(mount, "f", b""))
        for _ in range(3):
            with pytest.raises(FopError):
                await mount.top.getxattr(mount.me, loc, b"security.capability")
        assert mount.brick.counts["getxattr"] == 1
        await other.top.setxattr(other.me, loc, {b"security.capability": b"x"})
        for _ in range(3):
            found = await mount.top.getxattr(mount.me, loc, b"security.capability")
            assert found == {b"security.capability": b"x"}
        assert mount.brick.counts["getxattr"] == 2

    on_mounts(work, ["md-cache"])


def test_quick_read_opens_and_reads_a_known_file_without_the_brick() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        gfid = await put(other, "f", b"contents")
        fd = await opened(mount, gfid)
        assert await read(mount, fd) == b"contents"
        before = mount.brick.counts.total()
        late = await opened(mount, gfid)
        assert await read(mount, late, 3, 2) == b"nte" and await read(mount, late, 9, 8) == b""
        await mount.top.release(late)
        assert mount.brick.counts.total() == before
        # Changed by the other: read anew; gone: what was open goes on being read.
        late = await opened(mount, gfid)
        writer = await opened(other, gfid, os.O_RDWR)
        await other.top.writev(other.me, writer, b"CON", offset=0)
        assert await read(mount, late) == b"CONtents"
        again = await opened(mount, gfid)
        await other.top.release(writer)
        await mount.top.release(late)
        await mount.top.release(fd)
        await other.top.unlink(other.me, at("f"))
        assert await read(mount, again) == b"CONtents"
        assert (await mount.top.stat(mount.me, again)).iatt.size == 8

    on_mounts(work, ["quick-read"])


def test_the_open_of_a_large_file_whose_attributes_are_known_brings_no_contents() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        for name, size, reads in (("small", 100, 1), ("large", QUICK_READ_BYTES_MAX + 1, 0)):
            gfid = await put(other, name, b"x" * size)
            await mount.top.lookup(mount.me, at(name))
            before, fd = mount.brick.counts["readv"], Fd(gfid)
            steps = [Step("open", (Loc(gfid=gfid), fd), {"flags": os.O_RDONLY}), Step("stat", (fd,))]
            answers = await mount.top.compound(mount.me, steps)
            assert answers[0] is None and answers[1].iatt.size == size
            assert mount.brick.counts["readv"] - before == reads, name
            await mount.top.release(fd)

    on_mounts(work, ["quick-read", "md-cache"])


def test_contents_come_along_with_the_listing_where_files_are_read() -> None:
    """Already in the first directory, however many directories were looked up on the way."""

    async def work(mount: Mount, other: Mount) -> None:
        folder = ROOT_GFID
        for number in range(8):
            folder, above = new_gfid(), folder
            await other.top.mkdir(other.me, at(f"d{number}", above), mode=0o755, gfid=folder)
            await mount.top.lookup(mount.me, at(f"d{number}", above))
        for number in range(20):
            fd = Fd(new_gfid(), os.O_WRONLY)
            name = at(f"f{number}", folder)
            await other.top.create(other.me, name, fd, flags=os.O_WRONLY | os.O_EXCL, mode=0o644, gfid=fd.gfid)
            await other.top.writev(other.me, fd, b"contents", offset=0)
            await other.top.release(fd)

        async def before(fop: str) -> None:
            await asyncio.sleep(0.001)

        mount.brick.before = before
        opened_before = mount.brick.counts["open"] + mount.brick.counts["compound"]
        for number in range(20):
            looked = await mount.top.lookup(mount.me, at(f"f{number}", folder))
            fd = await opened(mount, looked.iatt.gfid)
            assert await read(mount, fd) == b"contents"
            await mount.top.release(fd)
            await asyncio.sleep(0.1)
        assert mount.brick.counts["open"] + mount.brick.counts["compound"] - opened_before <= 3

    on_mounts(work, ["quick-read", "md-cache"])


def test_quick_read_opens_late_what_is_about_to_change() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        gfid = await put(other, "f", b"before")
        await mount.top.release(await _read_once(mount, gfid))
        late, writer = await opened(mount, gfid), await opened(mount, gfid, os.O_WRONLY)
        await mount.top.writev(mount.me, writer, b"after!", offset=0)
        await mount.top.unlink(mount.me, at("f"))
        await mount.top.release(writer)
        assert await read(mount, late) == b"after!"
        lock = Lock(LockType.READ)
        await mount.top.lk(mount.me, late, LockCommand.TRY, lock)

    on_mounts(work, ["quick-read"])


async def _read_once(mount: Mount, gfid: bytes) -> Fd:
    fd = await opened(mount, gfid)
    await read(mount, fd)
    return fd


def test_io_cache_reads_whole_pages_once_and_makes_room() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        data = random.Random(1).randbytes(6 << 20)
        fd = await opened(mount, await put(other, "f", data))
        for offset in range(0, 1 << 20, 65536):
            assert await read(mount, fd, 65536, offset) == data[offset : offset + 65536]
        assert mount.brick.counts["readv"] == 8
        for offset in range(0, len(data), 1 << 19):
            assert await read(mount, fd, 1 << 19, offset) == data[offset : offset + (1 << 19)]
        bytes_kept = mount.layers["io-cache"].state()["bytes"]
        assert isinstance(bytes_kept, int) and bytes_kept <= 4 << 20
        assert await read(mount, fd, 100, len(data) - 50) == data[-50:]

    on_mounts(work, ["io-cache"], cache_size="4MB")


def test_io_cache_asks_again_after_its_timeout() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        gfid = await put(other, "f", b"old")
        fd = await opened(mount, gfid)
        assert await read(mount, fd) == b"old"
        mount.brick.inodes[gfid].data[:] = b"new"  # nobody tells
        mount.brick.inodes[gfid].iatt.mtime_ns += 1
        assert await read(mount, fd) == b"old"
        await asyncio.sleep(2)
        assert await read(mount, fd) == b"new"

    on_mounts(work, ["io-cache"], cache_timeout="1")


def test_read_ahead_reads_on_and_throws_away_what_has_changed() -> None:
    async def work(mount: Mount, other: Mount) -> None:
        data = random.Random(2).randbytes(2 << 20)
        gfid = await put(other, "f", data)
        fd, writer = await opened(mount, gfid), await opened(other, gfid, os.O_WRONLY)
        step = 128 * 1024
        for offset in range(0, 1 << 20, step):
            assert await read(mount, fd, step, offset) == data[offset : offset + step]
        assert mount.layers["read-ahead"].state()["hits"] != 0
        await settle()
        await other.top.writev(other.me, writer, b"CHANGED", offset=(1 << 20) + 5)
        assert (await read(mount, fd, step, 1 << 20))[5:12] == b"CHANGED"

    on_mounts(work, ["read-ahead"])


async def made_again(mount: Mount, name: str) -> None:
    """As open(2) with O_CREAT does with a name that the kernel does not know, but somebody has made meanwhile."""
    fd, flags = Fd(new_gfid(), os.O_WRONLY), os.O_WRONLY | os.O_TRUNC
    await mount.top.create(mount.me, at(name), fd, flags=flags, mode=0o644, gfid=fd.gfid)


UNANSWERED: dict[str, Callable[[Mount, Fd], Awaitable[object]]] = {
    "writev": lambda m, fd: m.top.writev(m.me, fd, b"WRITTEN", offset=3),
    "truncate": lambda m, fd: m.top.truncate(m.me, fd, 4),
    "fallocate": lambda m, fd: m.top.fallocate(m.me, fd, mode=3, offset=1, length=3),
    "open": lambda m, fd: opened(m, fd.gfid, os.O_WRONLY | os.O_TRUNC),
    "create": lambda m, fd: made_again(m, "f"),
    "compound": lambda m, fd: m.top.compound(m.me, [Step("writev", (fd, b"WRITTEN"), {"offset": 3})]),
}


def unanswered(answered: Callable[..., Awaitable[Any]], before: Callable[[], Awaitable[Any]]) -> Any:
    async def call(*args: Any, **words: Any) -> None:
        await before()
        await answered(*args, **words)
        raise FopError(errno.ENOTCONN, "the link broke")

    return call


@pytest.mark.parametrize("kind", READING)
@pytest.mark.parametrize("change", UNANSWERED)
def test_what_a_change_may_have_done_whose_answer_is_lost_is_not_hidden(kind: str, change: str) -> None:
    """Somebody reads the file before the brick carries it out; only quick-read and read-ahead got this wrong."""

    async def work(mount: Mount, other: Mount) -> None:
        gfid = await put(other, "f", b"0123456789" * 4000)
        reader, writer = await opened(mount, gfid), await opened(mount, gfid, os.O_RDWR)

        async def look() -> tuple[bytes, int]:
            data = await read(mount, reader, 1 << 16)
            parts = b"".join([await read(mount, reader, 1000, offset) for offset in range(0, 40_000, 1000)])
            assert parts == data
            return data, (await mount.top.stat(mount.me, Loc(gfid=gfid))).iatt.size

        await look()
        port = mount.layers[kind].child
        for fop in (change, "writev") if change == "compound" else (change,):
            setattr(port, fop, unanswered(getattr(port, fop), look))
        with contextlib.suppress(FopError):
            answers = await UNANSWERED[change](mount, writer)
            assert isinstance(answers, list) and isinstance(answers[-1], FopError)
        data = bytes(mount.brick.inodes[gfid].data)
        assert await look() == (data, len(data))

    on_mounts(work, [kind])


# ---- two clients ----


Change = Callable[[Mount, bytes, Fd], Awaitable[object]]
CHANGES: dict[str, Change] = {
    "write": lambda m, g, fd: m.top.writev(m.me, fd, b"WRITTEN", offset=3),
    "truncate": lambda m, g, fd: m.top.truncate(m.me, fd, 4),
    "extend": lambda m, g, fd: m.top.truncate(m.me, Loc(gfid=g), 100),
    "punch": lambda m, g, fd: m.top.fallocate(m.me, fd, mode=3, offset=1, length=3),
    "open O_TRUNC": lambda m, g, fd: opened(m, g, os.O_WRONLY | os.O_TRUNC),
    "chmod": lambda m, g, fd: m.top.setattr(m.me, Loc(gfid=g), SetAttr(mode=0o600)),
    "rename over": lambda m, g, fd: m.top.rename(m.me, at("other"), at("f")),
    "unlink": lambda m, g, fd: m.top.unlink(m.me, at("f")),
    "link": lambda m, g, fd: m.top.link(m.me, Loc(gfid=g), at("second")),
}


@pytest.mark.parametrize("kinds", [(kind,) for kind in CACHES] + [CACHES], ids=lambda kinds: "+".join(kinds))
@pytest.mark.parametrize("change", CHANGES)
def test_what_one_client_changed_the_next_operation_of_the_other_sees(kinds: tuple[str, ...], change: str) -> None:
    async def work(a: Mount, b: Mount) -> None:
        gfid = await put(a, "f", b"0123456789")
        await put(a, "other", b"another file")
        writer = await opened(a, gfid, os.O_RDWR)
        for _ in range(2):
            assert await get(b, "f") == b"0123456789"
        reader = await opened(b, gfid)
        await CHANGES[change](a, gfid, writer)
        await a.top.flush(a.me, writer)
        assert await _seen(b) == await _truth(b)
        inode = b.brick.inodes.get(gfid)
        if inode is not None:
            assert await read(b, reader) == bytes(inode.data)

    on_mounts(work, kinds)


async def _seen(mount: Mount) -> list[object]:
    found: list[object] = []
    for name in ("f", "other", "second"):
        try:
            iatt = (await mount.top.lookup(mount.me, at(name))).iatt
            assert (await mount.top.stat(mount.me, Loc(gfid=iatt.gfid))).iatt == iatt
            found.append((iatt, await get(mount, name)))
        except FopError as error:
            found.append(error.errno)
    return found


async def _truth(mount: Mount) -> list[object]:
    brick = mount.brick
    found: list[object] = []
    for name in ("f", "other", "second"):
        entry = brick.inodes[ROOT_GFID].entries.get(name.encode())
        inode = brick.inodes[entry[1]] if entry else None
        found.append((inode.iatt, bytes(inode.data)) if inode else errno.ENOENT)
    return found


def test_who_gets_a_lock_sees_what_was_written_under_it() -> None:
    async def work(a: Mount, b: Mount) -> None:
        a.brick._tell = lambda caller, event: None  # type: ignore[method-assign]  # the word of the change is late
        gfid = await put(a, "counter", b"000")
        files = [(a, await opened(a, gfid, os.O_RDWR)), (b, await opened(b, gfid, os.O_RDWR))]

        async def count(mount: Mount, fd: Fd) -> None:
            for _ in range(20):
                await mount.top.lk(mount.me, fd, LockCommand.WAIT, Lock(LockType.WRITE))
                value = int(await read(mount, fd, 3))
                await mount.top.writev(mount.me, fd, b"%03d" % (value + 1), offset=0)
                await mount.top.lk(mount.me, fd, LockCommand.TRY, Lock(LockType.UNLOCK))

        jitter(a.brick, 3)
        await asyncio.gather(*(count(mount, fd) for mount, fd in files))
        assert bytes(a.brick.inodes[gfid].data) == b"040"

    on_mounts(work, CACHES)


# ---- at random ----


class Exerciser:
    """fsx without a kernel: random operations through ``mounts`` on one file, each compared with a model."""

    def __init__(self, mounts: list[Mount], seed: int) -> None:
        self.random = random.Random(seed)
        self.mounts = mounts
        self.model = bytearray()
        self.mtime_ns = 0  # 0: not known, because data were written since it was set
        self.owner, self.mode = 0, 0o644
        self.most = 400_000 if seed % 2 else 30_000  # quick-read keeps small files only
        self.quick = 0  # opens and reads that needed no coroutine
        self.files: list[tuple[Mount, Fd]] = []
        self.gfid = b""

    async def run(self, steps: int) -> None:
        maker, made = self.mounts[0], Fd(new_gfid(), os.O_RDWR)
        self.gfid = made.gfid
        await maker.top.create(maker.me, at("f"), made, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=made.gfid)
        self.files.append((maker, made))
        for mount in self.mounts:
            for flags in (os.O_RDWR, os.O_RDWR, os.O_RDONLY)[mount is maker :]:
                self.files.append((mount, await opened(mount, self.gfid, flags)))
        for _ in range(steps):
            step = self.random.choice((self.write, self.write, self.append, self.read, self.read, self.size,
                                       self.truncate, self.punch, self.attributes, self.attributes, self.again,
                                       self.sync, self.rest))  # fmt: skip
            mount, fd = self.random.choice([pair for pair in self.files if pair[1].is_writable or step == self.read])
            await step(mount, fd)
            if len(self.mounts) > 1 and step != self.again:  # the other one sees what is closed
                await mount.top.flush(mount.me, fd)

    def span(self) -> tuple[int, int]:
        offset = self.random.randrange(self.most)
        return offset, min(self.random.choice((1, 100, 4096, 70_000, 300_000)), self.most - offset)

    async def attributes(self, mount: Mount, fd: Fd) -> None:
        """Often what they are already, on the way of tar: times, owner, mode."""
        for _ in range(self.random.choice((1, 3))):
            dice = self.random.random()
            if dice < 0.4:
                self.mtime_ns = self.random.randrange(1 << 40)
                values = SetAttr(mtime_ns=self.mtime_ns, atime_ns=1)
            elif dice < 0.7:
                self.owner = self.random.choice((0, 0, 0, 7))
                values = SetAttr(uid=self.owner, gid=self.owner)
            else:
                self.mode = self.random.choice((0o644, 0o644, 0o600))
                values = SetAttr(mode=self.mode)
            target = fd if self.random.random() < 0.8 else Loc(gfid=self.gfid)
            after = (await mount.top.setattr(mount.me, target, values)).after
            self.check(after)
            assert after.size == len(self.model)

    def check(self, iatt: Iatt) -> None:
        assert (iatt.uid, iatt.gid, iatt.mode) == (self.owner, self.owner, 0o100000 | self.mode)
        assert self.mtime_ns in (0, iatt.mtime_ns)

    def put(self, offset: int, data: bytes) -> None:
        self.mtime_ns = 0
        self.model.extend(bytes(max(0, offset - len(self.model))))
        self.model[offset : offset + len(data)] = data

    async def write(self, mount: Mount, fd: Fd) -> None:
        offset, size = self.span()
        if self.random.random() < 0.5:  # a row of small ones
            offset, size = self.random.randrange(1000), self.random.randrange(1, 50)
        for _ in range(self.random.choice((1, 1, 8))):
            data = self.random.randbytes(size)
            await mount.top.writev(mount.me, fd, data, offset=offset)
            self.put(offset, data)
            offset += size

    async def append(self, mount: Mount, fd: Fd) -> None:
        data = self.random.randbytes(self.random.randrange(1, 3000))
        await mount.top.writev(mount.me, fd, data, offset=0, flags=os.O_APPEND)
        self.put(len(self.model), data)

    async def read(self, mount: Mount, fd: Fd) -> None:
        offset, size = (0, self.most) if self.random.random() < 0.3 else self.span()
        for _ in range(self.random.choice((1, 4))):
            known = mount.top.read_known(fd, size, offset) if self.random.random() < 0.5 else None
            self.quick += known is not None
            got = bytes(known) if known is not None else await read(mount, fd, size, offset)
            assert got == bytes(self.model[offset : offset + size])
            offset += size

    async def size(self, mount: Mount, fd: Fd) -> None:
        target = fd if self.random.random() < 0.5 else Loc(gfid=self.gfid)
        looked = await mount.top.stat(mount.me, target)
        assert looked.iatt.size == len(self.model)
        self.check(looked.iatt)
        assert (await mount.top.lookup(mount.me, at("f"))).iatt.size == len(self.model)

    async def truncate(self, mount: Mount, fd: Fd) -> None:
        size = self.random.choice((0, 10, self.random.randrange(self.most)))
        await mount.top.truncate(mount.me, fd if self.random.random() < 0.5 else Loc(gfid=self.gfid), size)
        del self.model[size:]
        self.put(size, b"")

    async def punch(self, mount: Mount, fd: Fd) -> None:
        offset, size = self.span()
        await mount.top.fallocate(mount.me, fd, mode=3, offset=offset, length=size)
        self.mtime_ns = 0
        end = min(offset + size, len(self.model))
        self.model[offset:end] = bytes(max(0, end - offset))

    async def again(self, mount: Mount, fd: Fd) -> None:
        index = self.random.randrange(len(self.files))
        mount, fd = self.files[index]
        if fd.is_writable:
            await mount.top.flush(mount.me, fd)
        if not mount.top.release_known(fd):
            await mount.top.release(fd)
        self.files[index] = mount, await self.open(mount, fd.flags)

    async def open(self, mount: Mount, flags: int) -> Fd:
        fd = Fd(self.gfid, flags)
        if flags == os.O_RDONLY and self.random.random() < 0.5:
            iatt = mount.top.open_known(mount.me, Loc(gfid=self.gfid), fd, flags)
            if iatt is not None:
                self.quick += 1
                self.check(iatt)
                assert iatt.size == len(self.model)
                return fd
        return await opened(mount, self.gfid, flags)

    async def sync(self, mount: Mount, fd: Fd) -> None:
        await mount.top.fsync(mount.me, fd)
        assert bytes(mount.brick.inodes[self.gfid].data) == bytes(self.model)

    async def rest(self, mount: Mount, fd: Fd) -> None:
        await asyncio.sleep(self.random.choice((0.001, 0.1, 70)))


@pytest.mark.parametrize("kinds", [CACHES, tuple(reversed(CACHES)), ("write-behind", "io-cache"), READING])
@pytest.mark.parametrize("clients", ["a", "ab"])
@pytest.mark.parametrize("seed", range(4))
def test_random_operations_match_the_model(kinds: tuple[str, ...], clients: str, seed: int) -> None:
    async def work(*mounts: Mount) -> None:
        jitter(mounts[0].brick, seed)
        await Exerciser(list(mounts), seed).run(250)

    on_mounts(work, kinds, clients)
