# SPDX-License-Identifier: Apache-2.0
"""storage/posix on a real directory: what is on the disk, what clients see."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from repl.errors import ConfigError
from repl.files.replaced import Replaced, replaced_of
from repl.files.translator import Step
from repl.files.translators.posix import Posix
from repl.files.translators.posix.brick import Node
from repl.files.translators.posix.known import KnownXattrs
from repl.files.values import (
    LAST,
    ROOT,
    ROOT_GFID,
    Caller,
    End,
    Fd,
    FopError,
    Loc,
    SetAttr,
    XattrOp,
    gfid_text,
)
from repl.limits import POSIX_KNOWN_XATTRS_MAX, POSIX_LISTING_CONTENTS_MAX, QUICK_READ_BYTES_MAX
from tests.lib.files import HEALER, ME, at, make, new_gfid, posix
from tests.lib.wait import wait_for_async

USER = Caller(uid=1000, gid=1001, client="b")


def on_brick(work: Callable[[Posix], Awaitable[None]], path: Path, **options: str) -> None:
    async def main() -> None:
        async with posix(path, **options) as brick:
            await work(brick)

    asyncio.run(main())


async def new_file(brick: Posix, name: str, content: bytes = b"", parent: bytes = ROOT_GFID, mode: int = 0o644) -> Fd:
    fd = Fd(new_gfid(), os.O_RDWR)
    await brick.create(USER, at(name, parent), fd, flags=os.O_RDWR | os.O_EXCL, mode=mode, gfid=fd.gfid)
    if content:
        await brick.writev(USER, fd, content, offset=0)
    return fd


async def new_directory(brick: Posix, name: str, parent: bytes = ROOT_GFID) -> bytes:
    gfid = new_gfid()
    await brick.mkdir(USER, at(name, parent), mode=0o755, gfid=gfid)
    return gfid


async def fails(work: Awaitable[object], number: int) -> None:
    with pytest.raises(FopError) as caught:
        await work
    assert caught.value.errno == number, caught.value


def handle(path: Path, gfid: bytes) -> Path:
    text = gfid_text(gfid)
    return path / ".glusterfs" / text[:2] / text[2:4] / text


def test_first_start_makes_root_gfid_and_folders(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        assert os.getxattr(tmp_path, "trusted.gfid") == ROOT_GFID
        assert os.readlink(handle(tmp_path, ROOT_GFID)) == "../../.."
        assert stat.S_IMODE((tmp_path / ".glusterfs/00").stat().st_mode) == 0o700
        assert len([n for n in os.listdir(tmp_path / ".glusterfs") if len(n) == 2]) == 256
        root = await brick.lookup(ME, ROOT)
        assert (root.iatt.gfid, root.iatt.nlink) == (ROOT_GFID, 2)

    on_brick(work, tmp_path)


def test_create_leaves_gfid_note_owner_and_hard_linked_handle(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "abc", b"hello")
        st = (tmp_path / "abc").stat()
        assert (st.st_nlink, st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (2, 1000, 1001, 0o644)
        assert os.getxattr(tmp_path / "abc", "trusted.gfid") == fd.gfid
        assert handle(tmp_path, fd.gfid).stat().st_ino == st.st_ino
        notes = [k for k in os.listxattr(tmp_path / "abc") if k.startswith("trusted.gfid2path.")]
        assert [os.getxattr(tmp_path / "abc", k) for k in notes] == [b"00000000-0000-0000-0000-000000000001/abc"]
        looked = await brick.lookup(ME, at("abc"), want=(b"trusted.gfid", b"trusted.afr.x"))
        assert looked.iatt.nlink == 1 and looked.iatt.size == 5 and looked.xattrs == {b"trusted.gfid": fd.gfid}
        assert (await brick.stat(ME, Loc(gfid=fd.gfid))).iatt.size == 5

    on_brick(work, tmp_path)


def test_gfid2path_keys_are_those_of_real_bricks(tmp_path: Path) -> None:
    from repl.files.translators.posix.names import gfid2path
    from repl.files.values import gfid_from_text

    lines = (Path(__file__).parent.parent / "vectors/gluster-gfid.txt").read_text().splitlines()
    vectors = [line.split() for line in lines if line.startswith("gfid2path ")]
    assert len(vectors) >= 6
    for _, key, value in vectors:
        parent, name = value.split("/", 1)
        made = gfid2path(gfid_from_text(parent), name.encode())
        assert made == (f"trusted.gfid2path.{key}", value.encode())


def test_directory_handle_is_a_symlink_that_follows_renames(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        outer = await new_directory(brick, "outer")
        inner = await new_directory(brick, "inner", outer)
        assert (
            os.readlink(handle(tmp_path, inner))
            == f"../../{outer.hex()[:2]}/{outer.hex()[2:4]}/{gfid_text(outer)}/inner"
        )
        await brick.rename(ME, at("inner", outer), at("moved"))
        assert os.readlink(handle(tmp_path, inner)) == f"../../00/00/{gfid_text(ROOT_GFID)}/moved"
        assert (await brick.getxattr(ME, Loc(gfid=inner), b"glusterfs.gfidtopath")) == {
            b"glusterfs.gfidtopath": b"/moved"
        }
        await brick.rmdir(ME, at("moved"))
        assert not handle(tmp_path, inner).is_symlink()
        await fails(brick.stat(ME, Loc(gfid=inner)), errno.ESTALE)

    on_brick(work, tmp_path)


def test_names_that_could_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        for name in (b"..", b".", b"a/b", b"", b"a\0b", b"/etc"):
            for call in (
                brick.mkdir(ME, at(name), mode=0o755, gfid=new_gfid()),
                brick.unlink(ME, at(name)),
                brick.rename(ME, at(name), at("x")),
            ):
                await fails(call, errno.EINVAL)
        await fails(brick.lookup(ME, at(".glusterfs")), errno.ENOENT)
        await fails(brick.mkdir(ME, at(".glusterfs"), mode=0o755, gfid=new_gfid()), errno.EPERM)
        await fails(brick.rmdir(ME, at(".glusterfs"), recursive=True), errno.EPERM)
        await fails(brick.rename(ME, at(".glusterfs"), at("x")), errno.EPERM)
        await fails(brick.lookup(ME, at("x" * 256)), errno.ENAMETOOLONG)

    on_brick(work, tmp_path)


def test_symlinks_never_lead_out_of_the_brick(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/f").write_text("secret")

    async def work(brick: Posix) -> None:
        gfid = new_gfid()
        looked = await brick.symlink(USER, at("ln"), target=str(tmp_path / "secret").encode(), gfid=gfid)
        assert stat.S_ISLNK(looked.iatt.mode)
        assert await brick.readlink(ME, Loc(gfid=gfid)) == str(tmp_path / "secret").encode()
        for call in (
            brick.lookup(ME, at("f", gfid)),
            brick.opendir(ME, Loc(gfid=gfid), Fd(gfid, is_directory=True)),
            brick.mkdir(ME, at("d", gfid), mode=0o755, gfid=new_gfid()),
        ):
            await fails(call, errno.ENOTDIR)
        await fails(brick.open(ME, Loc(gfid=gfid), Fd(gfid), flags=os.O_RDONLY), errno.ELOOP)
        # The same with a link that looks like the handle of a directory.
        evil = new_gfid()
        await brick.symlink(
            USER, at("evil"), target=b"../../00/00/" + gfid_text(ROOT_GFID).encode() + b"/ln", gfid=evil
        )
        assert stat.S_ISLNK((await brick.stat(ME, Loc(gfid=evil))).iatt.mode)
        await fails(brick.lookup(ME, at("f", evil)), errno.ESTALE)
        # A directory that somebody has replaced by a link, on the brick itself.
        victim = await new_directory(brick, "dir")
        os.rmdir(tmp_path / "brick/dir")
        os.symlink(tmp_path / "secret", tmp_path / "brick/dir")
        brick._brick.drop_directory(victim)
        await fails(brick.lookup(ME, at("f", victim)), errno.ESTALE)

    on_brick(work, tmp_path / "brick")


def test_unlinked_file_stays_reachable_by_gfid_while_it_is_open(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "f", b"data")
        assert (await brick.unlink(ME, at("f"))).iatt.nlink == 0
        await fails(brick.lookup(ME, at("f")), errno.ENOENT)
        again = Fd(fd.gfid, os.O_RDWR)
        await brick.open(ME, Loc(gfid=fd.gfid), again, flags=os.O_RDWR)
        await brick.release(fd)
        assert bytes((await brick.readv(ME, again, size=10, offset=0)).data) == b"data"
        assert (await brick.stat(ME, Loc(gfid=fd.gfid))).iatt.nlink == 0
        await brick.release(again)
        await fails(brick.stat(ME, Loc(gfid=fd.gfid)), errno.ESTALE)
        assert os.listdir(tmp_path / ".glusterfs/unlink") == []

    on_brick(work, tmp_path)


def test_hard_links_count_what_users_see_and_are_limited(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "f")
        assert (await brick.link(ME, Loc(gfid=fd.gfid), at("g"))).iatt.nlink == 2
        await brick.link(ME, Loc(gfid=fd.gfid), at("h"))
        await fails(brick.link(ME, Loc(gfid=fd.gfid), at("i")), errno.EMLINK)
        await fails(brick.link(ME, Loc(gfid=fd.gfid), at("h")), errno.EMLINK)
        paths = (await brick.getxattr(ME, Loc(gfid=fd.gfid), b"glusterfs.gfidtopath"))[b"glusterfs.gfidtopath"]
        assert sorted(paths.split(b"\n")) == [b"/f", b"/g", b"/h"]
        assert (await brick.unlink(ME, at("f"))).iatt.nlink == 2
        await brick.rename(ME, at("g"), at("h"))  # two names of one file: both stay
        assert sorted(n for n in os.listdir(tmp_path) if n != ".glusterfs") == ["g", "h"]
        notes = [k for k in os.listxattr(tmp_path / "g") if k.startswith("trusted.gfid2path.")]
        assert len(notes) == 2

    on_brick(work, tmp_path, max_hardlinks="3")


def test_rename_tells_what_it_replaced_and_refuses_another_file_than_was_meant(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        first, second = await new_file(brick, "first"), await new_file(brick, "second")
        await brick.setattr(ME, second, SetAttr(mode=0o1000))
        await fails(brick.rename(ME, replace(at("first"), gfid=second.gfid), at("second")), errno.ESTALE)
        for gfid, target in ((first.gfid, "second"), (second.gfid, "free")):
            await fails(brick.rename(ME, at("first"), replace(at(target), gfid=gfid)), errno.ESTALE)
        await brick.rename(ME, at("first"), replace(at("free"), gfid=first.gfid))  # it says what will be there
        await brick.rename(ME, at("free"), at("first"))
        looked = await brick.rename(ME, replace(at("first"), gfid=first.gfid), replace(at("second"), gfid=second.gfid))
        assert replaced_of(looked) == Replaced(second.gfid, stat.S_IFREG | 0o1000)
        assert replaced_of(await brick.rename(ME, at("second"), at("third"))) is None
        await brick.link(ME, Loc(gfid=first.gfid), at("fourth"))
        replaced = replaced_of(await brick.rename(ME, at("third"), at("fourth")))
        assert replaced is not None and replaced.gfid == first.gfid  # two names of one file
        await fails(brick.unlink(ME, replace(at("third"), gfid=second.gfid)), errno.ESTALE)
        await brick.unlink(ME, replace(at("third"), gfid=first.gfid))
        await fails(brick.unlink(ME, replace(at("fourth"), gfid=second.gfid)), errno.ESTALE)  # the last name
        await brick.unlink(ME, replace(at("fourth"), gfid=first.gfid))

    on_brick(work, tmp_path)


def test_full_space_of_attributes_is_no_reason_not_to_rename_or_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "f")
        set_it = Node.set

        def full(self: Node, key: str, value: bytes, flags: int = 0) -> None:
            if key.startswith("trusted.gfid2path."):
                raise OSError(errno.ENOSPC, "no room")
            set_it(self, key, value, flags)

        monkeypatch.setattr(Node, "set", full)
        await brick.rename(ME, at("f"), at("g"))
        await brick.link(ME, Loc(gfid=fd.gfid), at("h"))
        assert sorted(os.listdir(tmp_path)) == [".glusterfs", "g", "h"]
        assert not [key for key in os.listxattr(tmp_path / "g") if "gfid2path" in key]

    on_brick(work, tmp_path)


def test_rename_over_a_file_removes_its_handle_and_keeps_open_ones_readable(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        old, new = await new_file(brick, "old", b"old"), await new_file(brick, "new", b"new")
        await brick.release(new)
        await brick.rename(ME, at("new"), at("old"))
        assert not handle(tmp_path, old.gfid).exists()
        assert bytes((await brick.readv(ME, old, size=9, offset=0)).data) == b"old"
        assert (await brick.stat(ME, old)).iatt.nlink == 0
        assert (await brick.lookup(ME, at("old"))).iatt.gfid == new.gfid
        await fails(brick.rename(ME, at("old"), at("old2"), flags=1 | 4), errno.EINVAL)
        third = await new_file(brick, "third")
        await fails(brick.rename(ME, at("third"), at("old"), flags=1), errno.EEXIST)
        await brick.rename(ME, at("third"), at("old"), flags=2)
        assert (await brick.lookup(ME, at("old"))).iatt.gfid == third.gfid
        assert (await brick.lookup(ME, at("third"))).iatt.gfid == new.gfid
        notes = [k for k in os.listxattr(tmp_path / "old") if k.startswith("trusted.gfid2path.")]
        assert [os.getxattr(tmp_path / "old", k)[-4:] for k in notes] == [b"/old"]

    on_brick(work, tmp_path)


def test_create_of_an_existing_name_opens_it_unless_exclusive(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "f", b"data")
        other = Fd(new_gfid(), os.O_RDWR)
        looked = await brick.create(ME, at("f"), other, flags=os.O_RDWR, mode=0o600, gfid=other.gfid)
        assert looked.iatt.gfid == other.gfid == fd.gfid and looked.iatt.size == 4
        third = Fd(new_gfid(), os.O_RDWR)
        flags = os.O_RDWR | os.O_EXCL
        await fails(brick.create(ME, at("f"), third, flags=flags, mode=0o600, gfid=third.gfid), errno.EEXIST)
        flags = os.O_RDWR | os.O_TRUNC
        assert (await brick.create(ME, at("f"), third, flags=flags, mode=0o600, gfid=third.gfid)).iatt.size == 0

    on_brick(work, tmp_path)


def test_listing_has_stable_offsets_and_hides_internals(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        names = {f"file-{i:04}" for i in range(1000)}
        for name in names:
            await brick.release(await new_file(brick, name))
        await new_directory(brick, "dir")
        os.mkdir(tmp_path / ".glusterfs-anonymous-inode-5b6f4dca-9910-4939-a33f-d55be8c525cc")
        fd = Fd(ROOT_GFID, is_directory=True)
        await brick.opendir(ME, ROOT, fd)
        seen, offset = [], 0
        while entries := await brick.readdir(ME, fd, size=4096, offset=offset, is_plus=True):
            for entry in entries:
                seen.append(entry.name.decode())
                assert entry.iatt is not None and entry.iatt.gfid == entry.gfid
                assert entry.iatt.nlink == (2 if entry.name == b"dir" else 1)
                if entry.name != b"dir":
                    await brick.unlink(ME, at(entry.name))  # as rm -r does
            offset = entries[-1].offset
        assert sorted(seen) == sorted(names | {"dir"})
        again = await brick.readdir(ME, fd, size=4096, offset=0)
        assert [entry.name for entry in again] == [b"dir"]

    on_brick(work, tmp_path)


def test_listing_says_which_entry_is_the_last_one(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        for number in range(100):
            await brick.release(await new_file(brick, f"f{number}"))
        fd, offset, marked, count = Fd(ROOT_GFID, is_directory=True), 0, [], 0
        await brick.opendir(ME, ROOT, fd)
        while entries := await brick.readdir(ME, fd, size=1000, offset=offset, want=(LAST, DIRTY)):
            count += len(entries)
            offset = entries[-1].offset
            marked += [entry.offset for entry in entries if LAST in entry.xattrs]
        assert count == 100 and marked in ([offset], [])  # none if the last answer was full
        assert not any(e.xattrs for e in await brick.readdir(ME, fd, size=1 << 20, offset=0, want=(DIRTY,)))
        everything = await brick.readdir(ME, fd, size=1 << 20, offset=0, want=(LAST,))
        assert [LAST in entry.xattrs for entry in everything] == [False] * 99 + [True]

    on_brick(work, tmp_path)


def test_listing_goes_on_after_a_reopen_and_after_seeking_back(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        for i in range(300):
            await brick.release(await new_file(brick, f"f{i}"))

        async def all_from(offset: int) -> list[bytes]:
            fd = Fd(ROOT_GFID, is_directory=True)
            await brick.opendir(ME, ROOT, fd)
            names = []
            while entries := await brick.readdir(ME, fd, size=1000, offset=offset):
                names += [entry.name for entry in entries]
                offset = entries[-1].offset
            back = await brick.readdir(ME, fd, size=100, offset=offset - 3)
            assert [entry.name for entry in back] == names[-3:]
            await brick.release(fd)
            return names

        whole = await all_from(0)
        assert len(whole) == 300
        # The brick itself has one entry more (.glusterfs), which nobody sees but which counts.
        tail = await all_from(100)
        assert tail == whole[-len(tail) :] and len(tail) in (200, 201)

    on_brick(work, tmp_path)


def test_attributes_and_times_are_set_as_asked(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "f")
        for target in (Loc(gfid=fd.gfid), fd):
            changed = await brick.setattr(ME, target, SetAttr(mode=0o4755, uid=7, gid=8, mtime_ns=123_000_000_456))
            after = changed.after
            assert (after.mode & 0o7777, after.uid, after.gid, after.mtime_ns) == (0o4755, 7, 8, 123_000_000_456)
        assert after.atime_ns == changed.before.atime_ns
        gfid = new_gfid()
        await brick.symlink(USER, at("ln"), target=b"nowhere", gfid=gfid)
        assert (await brick.setattr(ME, Loc(gfid=gfid), SetAttr(uid=5, atime_ns=5))).after.uid == 5
        assert (await brick.setattr(ME, ROOT, SetAttr(mode=0o700))).after.mode & 0o7777 == 0o700

    on_brick(work, tmp_path)


def test_a_mode_that_shows_a_migration_is_not_changed_by_users(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "f")
        ours, mode = Caller(is_internal=True), SetAttr(mode=0o640)
        await brick.setattr(ours, fd, SetAttr(mode=0o3644))
        assert (await brick.setattr(USER, fd, SetAttr(mode=0o1644))).after.mode == 0o101644  # a user's sticky bit
        await brick.setxattr(ours, fd, {b"trusted.glusterfs.dht.linkto": b"other\0"})
        await fails(brick.setattr(USER, fd, mode), errno.EBUSY)
        assert (await brick.setattr(USER, fd, SetAttr(mtime_ns=5))).after.mode == 0o101644
        assert (await brick.setattr(ours, fd, mode)).after.mode == 0o100640
        assert (await brick.setattr(USER, fd, SetAttr(mode=0o600))).after.mode == 0o100600

    on_brick(work, tmp_path)


def test_internal_attributes_are_hidden_and_kept_from_users(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "f")
        await brick.setxattr(USER, fd, {b"user.a": b"1", b"trusted.mine": b"2"})
        await brick.setxattr(HEALER, fd, {b"trusted.glusterfs.dht": bytes(16)})
        assert await brick.getxattr(USER, fd) == {b"user.a": b"1", b"trusted.mine": b"2"}
        assert b"trusted.glusterfs.dht" in await brick.getxattr(HEALER, fd)
        await fails(brick.getxattr(USER, fd, b"trusted.gfid"), errno.ENODATA)
        for key in (b"trusted.afr.v-client-0", b"trusted.glusterfs.dht", b"trusted.gfid"):
            await fails(brick.setxattr(USER, fd, {key: b"x"}), errno.EPERM)
            await fails(brick.removexattr(USER, fd, key), errno.EPERM)
        await fails(brick.setxattr(HEALER, fd, {b"trusted.gfid": bytes(16)}), errno.EPERM)
        await fails(brick.setxattr(USER, fd, {b"user.a": b"3"}, flags=os.XATTR_CREATE), errno.EEXIST)
        await fails(brick.removexattr(USER, fd, b"user.b"), errno.ENODATA)

    on_brick(work, tmp_path)


def test_counters_add_per_word_and_answer_what_is_wanted(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "f")
        key = b"trusted.afr.v-client-0"
        one = bytes.fromhex("00000001 00000000 00000002")
        assert (await brick.xattrop(ME, fd, XattrOp.ADD, {key: one}))[key] == one
        back = bytes.fromhex("ffffffff 00000000 fffffffe")
        answer = await brick.xattrop(ME, Loc(gfid=fd.gfid), XattrOp.ADD, {key: back}, want=(b"trusted.gfid",))
        assert answer == {key: bytes(12), b"trusted.gfid": fd.gfid}
        assert os.getxattr(tmp_path / "f", key) == bytes(12)  # zeroed, not removed, as Gluster leaves it
        answer = await brick.xattrop(ME, fd, XattrOp.ADD_64, {b"trusted.ec.size": (5).to_bytes(8, "big")})
        assert answer == {b"trusted.ec.size": (5).to_bytes(8, "big")}
        await brick.xattrop(ME, fd, XattrOp.ADD, {b"trusted.afr.dirty": bytes(12)})
        assert "trusted.afr.dirty" not in os.listxattr(tmp_path / "f")  # nothing added, nothing written

    on_brick(work, tmp_path)


def test_data_operations_behave_like_the_file_system(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "f")
        changed = await brick.writev(ME, fd, b"abc", offset=4096)
        assert (changed.before.size, changed.after.size) == (0, 4099)
        assert (await brick.writev(ME, fd, b"def", offset=0, flags=os.O_APPEND)).after.size == 4102
        read = await brick.readv(ME, fd, size=100, offset=4094)
        assert bytes(read.data) == b"\0\0abcdef" and read.iatt.size == 4102
        assert bytes((await brick.readv(ME, fd, size=100, offset=9999)).data) == b""
        big = os.urandom(1 << 20)
        await brick.writev(ME, fd, memoryview(big), offset=8192, flags=os.O_DSYNC)
        assert bytes((await brick.readv(ME, fd, size=1 << 20, offset=8192)).data) == big
        await brick.fallocate(ME, fd, mode=1 | 2, offset=8192, length=1 << 19)
        assert bytes((await brick.readv(ME, fd, size=4096, offset=8192)).data) == bytes(4096)
        assert await brick.seek(ME, fd, offset=8192, what=os.SEEK_DATA) == 8192 + (1 << 19)
        await fails(brick.seek(ME, fd, offset=1 << 30, what=os.SEEK_DATA), errno.ENXIO)
        await brick.fsync(ME, fd)
        assert len(await brick.rchecksum(ME, fd, offset=0, length=131072)) == 32
        assert await brick.rchecksum(ME, fd, offset=1 << 30, length=131072) == b""
        assert (await brick.truncate(ME, fd, 10)).after.size == 10
        assert (await brick.truncate(ME, Loc(gfid=fd.gfid), 20)).after.size == 20
        await brick.release(fd)
        await fails(brick.writev(ME, fd, b"x", offset=0), errno.EBADF)

    on_brick(work, tmp_path)


def test_direct_io_reads_and_writes_any_size(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "f")
        await brick.release(fd)
        direct = Fd(fd.gfid, os.O_RDWR)
        await brick.open(ME, Loc(gfid=fd.gfid), direct, flags=os.O_RDWR)
        data = os.urandom(10000)
        await brick.writev(ME, direct, data[:8192], offset=0)
        await brick.writev(ME, direct, data[8192:], offset=8192)
        assert bytes((await brick.readv(ME, direct, size=20000, offset=0)).data) == data
        assert bytes((await brick.readv(ME, direct, size=50, offset=3)).data) == data[3:53]

    on_brick(work, tmp_path, o_direct="on")


def test_set_group_id_directories_and_default_lists_pass_on(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        shared = await new_directory(brick, "shared")
        await brick.setattr(ME, Loc(gfid=shared), SetAttr(mode=0o2775, gid=77))
        await new_file(brick, "f", parent=shared)
        sub = await new_directory(brick, "sub", shared)
        assert (await brick.stat(ME, Loc(gfid=sub))).iatt.mode & 0o7777 == 0o2755
        assert (tmp_path / "shared/f").stat().st_gid == 77
        # default:user::rwx, user:1234:rwx, group::r-x, mask::rwx, other::r-x
        acl = bytes.fromhex(
            "02000000 01000700ffffffff 02000700d2040000 04000500ffffffff 10000700ffffffff 20000500ffffffff"
        )
        await brick.setxattr(ME, Loc(gfid=shared), {b"system.posix_acl_default": acl})
        below = await new_directory(brick, "below", shared)
        values = await brick.getxattr(ME, Loc(gfid=below))
        assert values[b"system.posix_acl_default"] == acl
        assert values[b"system.posix_acl_access"][12:20] == bytes.fromhex("02000700d2040000")
        await brick.access(Caller(uid=1234), Loc(gfid=below), os.R_OK | os.X_OK)
        await fails(brick.access(Caller(uid=4321), Loc(gfid=below), os.W_OK), errno.EACCES)
        fd = await new_file(brick, "g", parent=shared)
        assert b"system.posix_acl_access" in await brick.getxattr(ME, fd)

    on_brick(work, tmp_path)


def test_special_files_have_handles_and_are_never_opened(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        for name, mode in (("fifo", stat.S_IFIFO), ("device", stat.S_IFCHR), ("socket", stat.S_IFSOCK)):
            gfid = new_gfid()
            looked = await brick.mknod(USER, at(name), mode=mode | 0o600, rdev=os.makedev(1, 3), gfid=gfid)
            assert stat.S_IFMT(looked.iatt.mode) == mode and looked.iatt.nlink == 1 and looked.iatt.uid == 1000
            await fails(brick.open(ME, Loc(gfid=gfid), Fd(gfid), flags=os.O_RDONLY), errno.ENXIO)
            await brick.unlink(ME, at(name))
            assert not handle(tmp_path, gfid).exists()

    on_brick(work, tmp_path)


def test_what_was_put_into_the_brick_by_hand_gets_the_same_gfid_everywhere(tmp_path: Path) -> None:
    found = []

    async def work(brick: Posix) -> None:
        found.append(((await brick.lookup(ME, at("d"))).iatt.gfid, (await brick.lookup(ME, at("f"))).iatt.gfid))
        assert (await brick.stat(ME, Loc(gfid=found[-1][1]))).iatt.nlink == 1
        assert (await brick.lookup(ME, at("g", found[-1][0]))).iatt.size == 2

    for name in ("one", "two"):
        (tmp_path / name / "d").mkdir(parents=True)
        (tmp_path / name / "f").write_text("x")
        (tmp_path / name / "d/g").write_text("yy")
        on_brick(work, tmp_path / name)
    assert found[0] == found[1]


def test_reserve_refuses_users_and_lets_heals_through(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        await fails(brick.mkdir(ME, at("d"), mode=0o755, gfid=new_gfid()), errno.ENOSPC)
        await brick.mkdir(HEALER, at("d"), mode=0o755, gfid=new_gfid())
        assert (await brick.statfs(ME, ROOT)).blocks_available == 0

    on_brick(work, tmp_path, reserve="100%")


def test_recursive_rmdir_removes_handles_of_all_below(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        top = await new_directory(brick, "top")
        sub = await new_directory(brick, "sub", top)
        inside = await new_file(brick, "f", b"x", sub)
        outside = await new_file(brick, "kept")
        await brick.link(ME, Loc(gfid=outside.gfid), at("other-name", sub))
        await brick.rmdir(ME, at("top"), recursive=True)
        await fails(brick.lookup(ME, at("top")), errno.ENOENT)
        await fails(brick.lookup(ME, Loc(gfid=top)), errno.ESTALE)
        async with asyncio.timeout(10):
            while os.listdir(tmp_path / ".glusterfs/landfill"):
                await asyncio.sleep(0.01)
        await fails(brick.lookup(ME, Loc(gfid=sub)), errno.ESTALE)
        assert bytes((await brick.readv(ME, inside, size=9, offset=0)).data) == b"x"
        await brick.release(inside)
        await fails(brick.lookup(ME, Loc(gfid=inside.gfid)), errno.ESTALE)
        assert (await brick.stat(ME, Loc(gfid=outside.gfid))).iatt.nlink == 1

    on_brick(work, tmp_path, janitor_sleep_duration="0.01")


def test_brick_of_another_volume_or_inside_a_brick_is_refused(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        await new_directory(brick, "d")

    on_brick(work, tmp_path)
    os.setxattr(tmp_path, "trusted.glusterfs.volume-id", bytes(15) + b"\1")
    for path, options, text in (
        (tmp_path / "d", {}, "inside a brick"),
        (tmp_path / "none", {}, "cannot open"),
        (tmp_path, {"volume_id": "c2631cab-b60f-46f8-9655-24a207125cfc"}, "belongs to volume"),
    ):
        with pytest.raises(ConfigError, match=text):
            asyncio.run(make(Posix, "brick", directory=str(path), **options).start())


def test_depth_beyond_the_kernels_links_is_reached_after_a_restart(tmp_path: Path) -> None:
    chain = [ROOT_GFID]

    async def fill(brick: Posix) -> None:
        for i in range(120):
            chain.append(await new_directory(brick, f"d{i}", chain[-1]))
        await brick.release(await new_file(brick, "deep", b"!", chain[-1]))

    async def find(brick: Posix) -> None:
        looked = await brick.lookup(ME, at("deep", chain[-1]))
        assert looked.iatt.size == 1
        paths = await brick.getxattr(ME, Loc(gfid=looked.iatt.gfid), b"trusted.glusterfs.pathinfo")
        assert paths[b"trusted.glusterfs.pathinfo"].startswith(
            f"<POSIX({tmp_path}):localhost:{tmp_path}/d0/d1".encode()
        )

    on_brick(fill, tmp_path)
    on_brick(find, tmp_path)


def test_file_that_was_replaced_can_be_opened_for_a_while(tmp_path: Path) -> None:
    async def scenario(brick: Posix) -> None:
        old, new = new_gfid(), new_gfid()
        for name, gfid in (("target", old), ("source", new)):
            fd = Fd(gfid, os.O_RDWR)
            await brick.create(ME, at(name), fd, flags=os.O_RDWR, mode=0o644, gfid=gfid)
            await brick.writev(ME, fd, name.encode(), offset=0)
            await brick.release(fd)
        await brick.rename(ME, at("source"), at("target"))
        for _ in range(2):  # whoever looked it up before; the first to close does not take it away from the second
            fd = Fd(old)
            await brick.open(ME, Loc(gfid=old), fd, flags=os.O_RDONLY)
            assert bytes((await brick.readv(ME, fd, size=9, offset=0)).data) == b"target"
            await brick.release(fd)
        assert (await brick.lookup(ME, at("target"))).iatt.gfid == new
        unlinked = tmp_path / ".glusterfs/unlink"
        await wait_for_async(lambda: not list(unlinked.iterdir()), 10, "its end")

    on_brick(scenario, tmp_path)


def test_direct_writes_and_reads_in_one_frame_and_by_themselves(tmp_path: Path) -> None:
    async def work() -> None:
        async with posix(tmp_path / "brick") as brick:
            fd = Fd(new_gfid(), os.O_RDWR)
            await brick.create(ME, at("f"), fd, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=fd.gfid)
            direct = Fd(fd.gfid, os.O_RDWR | os.O_DIRECT)
            await brick.open(ME, Loc(gfid=fd.gfid), direct, flags=os.O_RDWR | os.O_DIRECT)
            model = bytearray(64 * 4096)
            chance = random.Random(7)
            for _ in range(30):
                steps = []
                for place in chance.sample(range(60), chance.choice((1, 2, 16))):
                    data = chance.randbytes(chance.choice((4096, 8192)))
                    steps.append(Step("writev", (direct, memoryview(data)), {"offset": place * 4096}))
                    model[place * 4096 : place * 4096 + len(data)] = data
                answers = await brick.compound(ME, steps)
                assert len(answers) == len(steps) and not any(isinstance(a, OSError) for a in answers)
            await brick.fsync(ME, direct)
            await brick.truncate(ME, direct, len(model))
            assert bytes((await brick.readv(ME, fd, size=len(model), offset=0)).data) == bytes(model)
            reads = [brick.readv(ME, direct, size=8192, offset=offset) for offset in range(0, len(model), 8192)]
            assert b"".join(bytes(read.data) for read in await asyncio.gather(*reads)) == bytes(model)
            assert (await brick.readv(ME, direct, size=4096, offset=len(model))).data == b""
            # What is not aligned goes another way.
            await brick.compound(ME, [Step("writev", (direct, b"odd"), {"offset": at_}) for at_ in (1, 5000)])
            assert bytes((await brick.readv(ME, fd, size=3, offset=5000)).data) == b"odd"

    asyncio.run(work())


# ---- attributes that are remembered ----

DIRTY, BLAME, LINK = b"trusted.afr.dirty", b"trusted.afr.other", b"trusted.glusterfs.dht.linkto"
WANT = (DIRTY, BLAME, LINK, b"user.color")


async def settled_file(brick: Posix, path: Path, xattrs: dict[bytes, bytes]) -> bytes:
    """A file whose ctime lies back far enough."""
    fd = await new_file(brick, "file")
    await brick.setxattr(HEALER, fd, xattrs)
    await brick.release(fd)
    inode = (path / "file").stat()
    await wait_for_async(lambda: time.time_ns() - inode.st_ctime_ns > 150_000_000, what="the ctime to be old")
    return fd.gfid


def reads_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which attributes are read from the disk from now on; ``keys``: the list of them."""
    seen: list[str] = []
    get, keys = Node.get, Node.keys

    def counted_get(node: Node, key: str | bytes) -> bytes:
        seen.append(os.fsdecode(key))
        return get(node, key)

    def counted_keys(node: Node) -> list[str]:
        seen.append("keys")
        return keys(node)

    monkeypatch.setattr(Node, "get", counted_get)
    monkeypatch.setattr(Node, "keys", counted_keys)
    return seen


def test_internal_attributes_are_read_from_the_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(brick: Posix) -> None:
        gfid = await settled_file(brick, tmp_path, {DIRTY: bytes(12), b"user.color": b"red"})
        wanted = {DIRTY: bytes(12), b"user.color": b"red"}
        assert (await brick.lookup(USER, at("file"), want=WANT)).xattrs == wanted
        reads = reads_of(monkeypatch)
        assert (await brick.lookup(USER, Loc(gfid=gfid), want=WANT)).xattrs == wanted
        assert reads == ["user.color"]  # users' own are not kept
        fd = Fd(ROOT_GFID, is_directory=True)
        await brick.opendir(USER, ROOT, fd)
        entries = await brick.readdir(USER, fd, size=4096, offset=0, is_plus=True, want=(DIRTY, BLAME))
        assert [entry.xattrs for entry in entries] == [{DIRTY: bytes(12)}]
        assert reads == ["user.color"]
        await brick.release(fd)

    on_brick(work, tmp_path)


@pytest.mark.parametrize("change", ["setxattr", "removexattr", "xattrop", "by hand", "another inode"])
def test_a_changed_attribute_is_read_again(change: str, tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        gfid = await settled_file(brick, tmp_path, {DIRTY: bytes(12), BLAME: bytes(12)})
        loc, one = Loc(gfid=gfid), b"\0\0\0\1" + bytes(8)
        for _ in range(2):
            assert (await brick.lookup(USER, loc, want=WANT)).xattrs == {DIRTY: bytes(12), BLAME: bytes(12)}
        if change == "setxattr":
            await brick.setxattr(HEALER, loc, {BLAME: one})
        elif change == "removexattr":
            await brick.removexattr(HEALER, loc, BLAME)
        elif change == "xattrop":
            await brick.xattrop(HEALER, loc, XattrOp.ADD, {BLAME: one})
        elif change == "by hand":  # as administrators end a split-brain
            os.setxattr(tmp_path / "file", os.fsdecode(BLAME), one)
        else:
            await brick.unlink(USER, at("file"))
            fd = Fd(gfid, os.O_RDWR)
            await brick.create(USER, at("file"), fd, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=gfid)
            await brick.setxattr(HEALER, fd, {BLAME: one})
            await brick.release(fd)
        expected = {DIRTY: bytes(12), BLAME: one}
        if change == "removexattr":
            del expected[BLAME]
        elif change == "another inode":
            del expected[DIRTY]
        for target in (loc, at("file")):
            assert (await brick.lookup(USER, target, want=WANT)).xattrs == expected

    on_brick(work, tmp_path)


def test_attributes_of_a_change_just_before_are_not_remembered(tmp_path: Path) -> None:
    """Another one may get the same ctime."""

    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "file")
        for _ in range(50):
            await brick.xattrop(HEALER, fd, XattrOp.ADD, {BLAME: b"\0\0\0\1" + bytes(8)})
            found = (await brick.lookup(USER, Loc(gfid=fd.gfid), want=WANT)).xattrs[BLAME]
            assert found == os.getxattr(tmp_path / "file", os.fsdecode(BLAME))
        assert not len(brick._brick.known)
        await brick.release(fd)

    on_brick(work, tmp_path)


def test_files_whose_transactions_end_are_remembered_a_moment_later(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fds = [await new_file(brick, f"f{number}") for number in range(40)]
        for fd in fds:
            await brick.xattrop(HEALER, fd, XattrOp.ADD, {DIRTY: b"\0\0\0\1" + bytes(8)})
        ends = [End(fd.gfid, is_entry=False, delta=b"\xff\xff\xff\xff" + bytes(8)) for fd in fds]
        assert await brick.end_all(HEALER, "d", DIRTY, ends) == [bytes(12)] * 40
        await brick.unlink(USER, at("f0"))
        await brick.release(fds[0])
        await wait_for_async(lambda: len(brick._brick.known) == 39, what="what was remembered")
        for fd in fds[1:]:
            assert (await brick.lookup(USER, Loc(gfid=fd.gfid), want=WANT)).xattrs == {DIRTY: bytes(12)}
        await brick.release(fds[1])
        for name in ("f1", "f2"):  # the other one is still open
            await brick.unlink(USER, at(name))
        assert len(brick._brick.known) == 37
        for fd in fds[2:]:
            await brick.release(fd)

    on_brick(work, tmp_path)


def test_whole_seconds_of_a_ctime_are_not_trusted() -> None:
    known = KnownXattrs(lambda: 10**18 + 10**12)

    def status(ctime_ns: int, mode: int = stat.S_IFREG) -> os.stat_result:
        return os.stat_result((mode, 5, 1, 1, 0, 0, 0, 0, 0, 0), {"st_ctime_ns": ctime_ns})

    known.keep(new_gfid(), status(10**18), {}, [])
    known.keep(new_gfid(), status(10**18 + 1, stat.S_IFDIR), {}, [])
    assert not len(known)
    for _ in range(POSIX_KNOWN_XATTRS_MAX + 10):
        known.keep(new_gfid(), status(10**18 + 1), {}, [])
    assert POSIX_KNOWN_XATTRS_MAX - 100 < len(known) <= POSIX_KNOWN_XATTRS_MAX


def test_several_lookups_are_answered_up_to_the_first_error(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fds = [await new_file(brick, f"f{number}") for number in range(40)]
        steps = [Step("lookup", (Loc(gfid=fd.gfid),), {"want": (b"trusted.afr.dirty",)}) for fd in fds]
        answers = await brick.compound(USER, steps)
        assert [answer.iatt.gfid for answer in answers] == [fd.gfid for fd in fds]
        steps[30] = Step("lookup", (Loc(gfid=new_gfid()),))
        answers = await brick.compound(USER, steps)
        assert len(answers) == 31 and answers[-1].errno == errno.ESTALE
        steps[3] = Step("lookup", (at("missing"),))
        answers = await brick.compound(USER, steps)
        assert len(answers) == 4 and answers[-1].errno == errno.ENOENT

    on_brick(work, tmp_path)


def test_a_direct_write_over_pages_in_the_cache_is_stored_and_the_pages_are_forgotten(tmp_path: Path) -> None:
    async def work(brick: Posix) -> None:
        fd = await new_file(brick, "file", b"a" * 64 * 4096)
        await brick.fsync(USER, fd)
        direct = Fd(fd.gfid, os.O_RDWR | os.O_DIRECT)
        await brick.open(USER, Loc(gfid=fd.gfid), direct, flags=os.O_RDWR | os.O_DIRECT)
        steps = [Step("writev", (direct, bytes([n]) * 4096), {"offset": n * 8192}) for n in range(32)]
        for _ in range(2):
            answers = await brick.compound(USER, steps)
            assert len(answers) == 32 and all(answer.after.size == 64 * 4096 for answer in answers)
        for number in range(32):
            read = await brick.readv(USER, direct, size=8192, offset=number * 8192)
            assert bytes(read.data) == bytes([number]) * 4096 + b"a" * 4096
        assert (tmp_path / "file").read_bytes()[8192:8193] == b"\x01"
        for each in (fd, direct):
            await brick.release(each)

    on_brick(work, tmp_path)


def test_a_listing_brings_the_contents_of_small_files_along(tmp_path: Path) -> None:
    content = b"glusterfs.content"

    async def work(brick: Posix) -> None:
        sizes = {f"f{number}": number * 100 for number in range(100)} | {"large": QUICK_READ_BYTES_MAX + 1}
        for name, size in sizes.items():
            fd = await new_file(brick, name, name.encode()[-1:] * size)
            await brick.setxattr(HEALER, fd, {DIRTY: bytes(12)})
            await brick.release(fd)
        await new_directory(brick, "directory")
        await brick.mknod(USER, at("fifo"), mode=stat.S_IFIFO | 0o644, rdev=0, gfid=new_gfid())
        fd, offset, seen = Fd(ROOT_GFID, is_directory=True), 0, {}
        await brick.opendir(USER, ROOT, fd)
        while entries := await brick.readdir(USER, fd, size=9000, offset=offset, is_plus=True, want=(content, DIRTY)):
            brought = [entry for entry in entries if content in entry.xattrs]
            assert 0 < len(brought) <= POSIX_LISTING_CONTENTS_MAX
            for entry in brought:
                assert entry.xattrs[content] == entry.name[-1:] * sizes[entry.name.decode()]
            seen |= {entry.name.decode(): entry for entry in entries}
            offset = entries[-1].offset
        assert seen.keys() == sizes.keys() | {"directory", "fifo"}
        assert all(DIRTY in seen[name].xattrs for name in sizes)
        assert not any(content in seen[name].xattrs for name in ("large", "directory", "fifo"))
        await brick.release(fd)
        still_open = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        assert not [path for path in still_open if os.path.dirname(path) == str(tmp_path) and os.path.isfile(path)]

    on_brick(work, tmp_path)
