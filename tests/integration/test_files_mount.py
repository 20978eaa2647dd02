# SPDX-License-Identifier: Apache-2.0
"""The program repl-mount: messages, the background, state dumps, other volfiles while files are open, upcalls."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from repl.files.events import Invalidated
from repl.files.mount.filesystem import MountOptions
from repl.files.translator import Context
from repl.files.values import ROOT_GFID, Caller, Fd, Loc
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
