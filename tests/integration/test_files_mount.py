# SPDX-License-Identifier: Apache-2.0
"""The program repl-mount: messages, the background, state dumps, other volfiles while files are open, upcalls."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from repl.files.events import Invalidated
from repl.files.mount.filesystem import MountOptions
from repl.files.mount.wire import Op
from repl.files.translator import Context
from repl.files.translators.quick_read import QuickRead
from repl.files.values import ROOT_GFID, Caller, Fd, Loc, Read, Target, Xattrs
from repl.limits import QUICK_READ_BYTES_MAX
from tests.lib.files import make
from tests.lib.fuse import LocalMount
from tests.lib.memory_brick import MemoryBrick
from tests.lib.mounts import BRICK, Mount, local_volfile, mounted, needs_fuse
from tests.lib.wait import wait_for

pytestmark = needs_fuse()
OTHER = Caller(client="b")
LONG = MountOptions(entry_timeout=3600, attribute_timeout=3600, negative_timeout=3600)


def _run(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "repl.files.mount.main", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"REPL_RUN_DIR": str(folder / "run")}
    )


def test_mount_goes_to_the_background_when_it_works(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    done = _run("-f", local_volfile(tmp_path), path, "-p", tmp_path / "pid", "-l", tmp_path / "log", folder=tmp_path)
    try:
        assert done.returncode == 0, done.stderr
        assert os.path.ismount(path)
    finally:
        subprocess.run(["umount", path], check=True)
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), what="its end after umount")


def test_mount_that_cannot_be_says_why(tmp_path: Path) -> None:
    volfile = local_volfile(tmp_path)
    done = _run("-f", volfile, tmp_path / "absent", folder=tmp_path)
    assert done.returncode != 0 and "Create the directory first" in done.stderr
    volfile.write_text("volume a\n type storage/posixx\nend-volume\n")
    (tmp_path / "mnt").mkdir()
    done = _run("-f", volfile, tmp_path / "mnt", folder=tmp_path)
    assert done.returncode == 10
    assert "client.vol:1" in done.stderr and "Did you mean storage/posix?" in done.stderr
    done = _run("-f", volfile, tmp_path / "mnt", "-o", "readonly", folder=tmp_path)
    assert done.returncode == 1 and "no mount option readonly" in done.stderr


def test_state_dump_has_a_section_for_each_translator(tmp_path: Path) -> None:
    with mounted(tmp_path, local_volfile(tmp_path, ["performance/io-cache"])) as mount:
        list(mount.path.iterdir())
        mount.process.signal(signal.SIGUSR1)
        (dump,) = wait_for(lambda: list((tmp_path / "run").glob("repl-mount.*")), what="the dump")
        wait_for(lambda: "[storage/posix.posix]" in dump.read_text(), what="its sections")
        assert "[performance/io-cache.io-cache]" in dump.read_text()
        assert "[mount]" in dump.read_text() and dump.stat().st_mode & 0o077 == 0


def test_read_only_mount_refuses_changes(tmp_path: Path) -> None:
    with mounted(tmp_path, local_volfile(tmp_path), ["ro"]) as mount, pytest.raises(OSError, match="Read-only"):
        (mount.path / "f").touch()


def test_new_volfile_takes_over_while_files_are_open_and_locked(tmp_path: Path) -> None:
    volfile = local_volfile(tmp_path)
    with mounted(tmp_path, volfile) as mount:
        with open(mount.path / "f", "w+b", buffering=0) as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            file.write(b"before")
            local_volfile(tmp_path, ["performance/write-behind"])
            mount.process.wait_log("a new graph has taken over", 20)
            file.write(b" after")
            assert os.pread(file.fileno(), 100, 0) == b"before after"
            assert os.listdir(mount.path) == ["f"]
        volfile.write_text(BRICK.format(directory="/no/such/directory") + "nonsense")
        mount.process.wait_log("is not used", 20)
        assert (mount.path / "f").read_bytes() == b"before after"


def test_change_of_options_needs_no_new_graph(tmp_path: Path) -> None:
    volfile = local_volfile(tmp_path)
    with mounted(tmp_path, volfile) as mount:
        volfile.write_text(volfile.read_text().replace("end-volume", "  option reserve 2\nend-volume"))
        mount.process.signal(signal.SIGHUP)
        mount.process.wait_log("new options are in force", 20)


def test_dead_mount_of_somebody_else_is_cleared_away(tmp_path: Path) -> None:
    volfile = local_volfile(tmp_path)
    first = Mount(tmp_path, volfile)
    guardian = _guardian_of(first.process.pid)
    os.kill(guardian, signal.SIGKILL)
    first.process.kill()
    with pytest.raises(OSError):
        os.statvfs(first.path)
    with mounted(tmp_path, volfile) as again:
        assert list(again.path.iterdir()) == []


def _guardian_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (found,) = [int(c) for c in children if Path(f"/proc/{c}/comm").read_text().strip() == "repl-guardian"]
    return found


def test_what_another_client_changes_is_seen_at_once(tmp_path: Path) -> None:
    bricks: list[MemoryBrick] = []

    def make(context: Context) -> MemoryBrick:
        bricks.append(MemoryBrick(context=context))
        return bricks[0]

    async def change() -> None:
        brick = bricks[0]
        loc = Loc(parent=ROOT_GFID, name=b"f")
        gfid = (await brick.lookup(OTHER, loc)).iatt.gfid
        fd = Fd(gfid, os.O_RDWR)
        await brick.open(OTHER, Loc(gfid=gfid), fd, flags=os.O_RDWR)
        await brick.writev(OTHER, fd, b"NEW AND LONGER", offset=0)
        await brick.rename(OTHER, loc, Loc(parent=ROOT_GFID, name=b"g"))
        mount.filesystem.notify(Invalidated(gfid, is_data=True))
        mount.filesystem.notify(Invalidated(ROOT_GFID, names=(b"f", b"g")))

    with LocalMount(tmp_path / "mnt", make, LONG) as mount:
        path = mount.path / "f"
        path.write_bytes(b"old")
        assert path.read_bytes() == b"old" and not (mount.path / "g").exists()
        mount.call(change())
        wait_for(lambda: not path.exists(), what="the end of the old name")
        wait_for(lambda: (mount.path / "g").exists(), what="the new name")
        assert (mount.path / "g").read_bytes() == b"NEW AND LONGER"


def _with_quick_read(bricks: list[MemoryBrick]) -> Callable[[Context], QuickRead]:
    def build(context: Context) -> QuickRead:
        bricks.append(MemoryBrick(context=context))
        return make(QuickRead, "quick-read", bricks, context, cache_timeout="60")

    return build


def _reads(mount: LocalMount) -> int:
    return mount.filesystem.counters.requests.get(Op.READ, 0)


def _drop_pages(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def test_small_files_are_in_the_kernels_cache_when_they_are_opened(tmp_path: Path) -> None:
    bricks: list[MemoryBrick] = []

    async def change(data: bytes) -> None:
        brick = bricks[0]
        gfid = (await brick.lookup(OTHER, Loc(parent=ROOT_GFID, name=b"small"))).iatt.gfid
        fd = Fd(gfid, os.O_RDWR)
        await brick.open(OTHER, Loc(gfid=gfid), fd, flags=os.O_RDWR)
        await brick.truncate(OTHER, fd, 0)
        await brick.writev(OTHER, fd, data, offset=0)
        brick.notify_parents(Invalidated(gfid, is_data=True))

    sizes = {"small": 5000, "empty": 0, "pages": 8192, "most": QUICK_READ_BYTES_MAX, "large": QUICK_READ_BYTES_MAX + 1}
    contents = {name: os.urandom(size) for name, size in sizes.items()}
    with LocalMount(tmp_path / "mnt", _with_quick_read(bricks), LONG) as mount:
        for name, data in contents.items():
            (mount.path / name).write_bytes(data)
            _drop_pages(mount.path / name)
        before = _reads(mount)
        for name in ("small", "empty", "pages", "most"):
            assert (mount.path / name).read_bytes() == contents[name]
            assert (mount.path / name).read_bytes() == contents[name]
        assert _reads(mount) == before
        assert (mount.path / "large").read_bytes() == contents["large"]
        assert _reads(mount) > before
        # Of what another client writes nothing old is left, whether it is open here or not.
        with open(mount.path / "small", "rb", buffering=0) as file:
            for number in range(20):
                data = bytes([number]) * (6000 - 100 * number)
                mount.call(change(data))
                wait_for(lambda data=data: os.pread(file.fileno(), 1 << 16, 0) == data, what="the new contents")
                assert (mount.path / "small").read_bytes() == data
        for number in range(20):
            data = bytes([number]) * (4000 + 100 * number)
            mount.call(change(data))
            wait_for(lambda data=data: (mount.path / "small").read_bytes() == data, what="the new contents")


def test_what_is_open_is_never_stored_in_the_kernels_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader may hold the page that the store would wait for, and waits for the mount itself."""
    bricks: list[MemoryBrick] = []
    data = os.urandom(50_000)
    is_reading, may_answer = threading.Event(), asyncio.Event()
    known, read = QuickRead.read_known, QuickRead.readv

    def read_known(self: QuickRead, fd: Fd, size: int, offset: int) -> Any:
        return known(self, fd, size, offset) if size == len(data) else None  # the kernel asks for whole pages

    async def readv(self: QuickRead, caller: Caller, fd: Fd, *, size: int, offset: int) -> Read:
        is_reading.set()
        await may_answer.wait()
        return await read(self, caller, fd, size=size, offset=offset)

    monkeypatch.setattr(QuickRead, "readv", readv)
    monkeypatch.setattr(QuickRead, "read_known", read_known)
    with LocalMount(tmp_path / "mnt", _with_quick_read(bricks), LONG) as mount, ThreadPoolExecutor(2) as pool:
        path = mount.path / "f"
        path.write_bytes(data)
        _drop_pages(path)
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        inode = next(inode for inode in mount.filesystem.inodes.inodes() if inode.handles)
        inode.stored = (-1, -1, -1)
        reading = pool.submit(os.pread, fd, 1 << 16, 0)
        assert is_reading.wait(10)
        opening = pool.submit(os.open, path, os.O_RDONLY)
        try:
            os.close(opening.result(10))
        except TimeoutError:
            ctypes.CDLL(None).umount2(os.fsencode(mount.path), 1)  # MNT_FORCE; else nobody could end this process
            raise
        mount.call(_set(may_answer))
        assert reading.result(10) == data
        os.close(fd)


async def _set(event: asyncio.Event) -> None:
    event.set()


def test_closing_a_file_takes_nothing_away_from_who_changes_it_by_its_name(tmp_path: Path) -> None:
    """A request for an inode uses any descriptor that is open: it got EBADF when that was closed meanwhile."""
    seen: list[str] = []
    gates: list[asyncio.Event] = []

    class Slow(MemoryBrick):
        async def setxattr(self, caller: Caller, target: Target, values: Xattrs, *, flags: int = 0) -> None:
            seen.append("begins")
            await gates[0].wait()
            await super().setxattr(caller, target, values, flags=flags)
            seen.append("ends")

        async def release(self, fd: Fd) -> None:
            seen.append("released")
            await super().release(fd)

    def build(context: Context) -> Slow:
        gates.append(asyncio.Event())
        return Slow(context=context)

    async def open_gate() -> None:
        gates[0].set()

    with LocalMount(tmp_path / "mnt", build) as mount, ThreadPoolExecutor(1) as pool:
        path = mount.path / "f"
        path.touch()
        wait_for(lambda: seen == ["released"])
        fd = os.open(path, os.O_RDONLY)
        changing = pool.submit(os.setxattr, path, "user.a", b"1")
        wait_for(lambda: "begins" in seen)
        os.close(fd)
        wait_for(lambda: not list(mount.filesystem.inodes.handles()), what="the end of the open file")
        mount.call(open_gate())
        changing.result(10)
        wait_for(lambda: seen == ["released", "begins", "ends", "released"], describe=lambda: seen)


def test_lost_volume_answers_at_once_and_comes_back(tmp_path: Path) -> None:
    bricks: list[MemoryBrick] = []

    def make(context: Context) -> MemoryBrick:
        bricks.append(MemoryBrick(context=context))
        return bricks[0]

    async def switch(is_down: bool) -> None:
        bricks[0].go_down() if is_down else bricks[0].come_up()

    with LocalMount(tmp_path / "mnt", make, MountOptions(entry_timeout=0, attribute_timeout=0)) as mount:
        (mount.path / "f").write_text("x")
        mount.call(switch(True))
        with pytest.raises(OSError, match="not connected"):
            (mount.path / "f").read_text()
        mount.call(switch(False))
        assert (mount.path / "f").read_text() == "x"
