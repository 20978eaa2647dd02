# SPDX-License-Identifier: Apache-2.0
"""repl-snapshot: copies of files for real, LVM with stand-ins that record what they are asked."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from repl.handlers import snapshot

FICLONE = 0x40049409
MIB = 1 << 20


def has_reflinks(folder: Path) -> bool:
    with (folder / "a").open("wb") as a, (folder / "b").open("wb") as b:
        a.write(b"x" * 4096)
        a.flush()
        try:
            fcntl.ioctl(b.fileno(), FICLONE, a.fileno())
        except OSError:
            return False
    return True


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(MIB)
        file.write(b"old data" * 512)
    monkeypatch.setenv("DRBD_LL_DISK", str(disk))
    monkeypatch.delenv("REPL_DISK_STATE", raising=False)
    return disk


def kept(disk: Path) -> Path:
    return disk.with_name(disk.name + snapshot.SUFFIX)


def test_file_is_kept_while_it_changes_and_removed_afterwards(disk: Path) -> None:
    old = disk.read_bytes()
    assert snapshot.main(["before", "--required", "--may-copy"]) == 0
    with disk.open("r+b") as file:
        file.write(b"new")
    assert kept(disk).read_bytes() == old
    assert kept(disk).stat().st_blocks * 512 < MIB, "holes stay holes"
    assert snapshot.main(["after"]) == 0
    assert not kept(disk).exists()


def test_file_without_reflinks_is_not_copied_unasked(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if has_reflinks(disk.parent):
        assert snapshot.main(["before", "--required"]) == 0
        assert kept(disk).read_bytes() == disk.read_bytes()
        return
    assert snapshot.main(["before", "--required"]) == 1
    assert snapshot.main(["before"]) == 0, "without --required the resync goes on"
    assert "--may-copy" in capsys.readouterr().out
    assert sorted(os.listdir(disk.parent)) == ["a", "b", "disk.img"]


def test_inconsistent_disk_leaves_the_older_snapshot(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(disk).write_bytes(b"consistent")
    monkeypatch.setenv("REPL_DISK_STATE", "Inconsistent")
    assert snapshot.main(["before", "--required", "--may-copy"]) == 0
    assert kept(disk).read_bytes() == b"consistent"


@pytest.mark.parametrize("keep", ["--keep", "failed"])
def test_snapshot_is_kept_when_told_or_when_blocks_failed(
    disk: Path, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(disk).write_bytes(b"consistent")
    if keep == "failed":
        monkeypatch.setenv("REPL_FAILED_BLOCKS", "3")
    assert snapshot.main(["after", *([keep] if keep != "failed" else [])]) == 0
    assert kept(disk).exists()


def test_disk_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRBD_LL_DISK", "/nonexistent/disk")
    assert snapshot.main(["before", "--required"]) == 1
    monkeypatch.setenv("DRBD_LL_DISK", "none")
    assert snapshot.main(["before"]) == 1


# ---- LVM ----


@pytest.fixture
def lvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for LVM's tools; the file they write their arguments to."""
    calls = tmp_path / "calls"
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("lvs", "lvcreate", "lvremove"):
        there = "exit 0" if name != "lvs" else 'case "$*" in *separator*) echo "  $LVS_SAYS";; *) [ -e there ];; esac'
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >>{calls}\ncd {tmp_path}\n{there}\n')
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("DRBD_LL_DISK", "/dev/null")  # a device and no file
    return calls


@pytest.mark.parametrize(("pool", "room"), [("pool0", ""), ("", "--extents 20%ORIGIN ")])
def test_lvm_snapshot_of_a_thin_and_of_a_thick_volume(
    lvm: Path, pool: str, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LVS_SAYS", f"vg0/data/{pool}")
    assert snapshot.main(["before", "--required"]) == 0
    assert lvm.read_text().splitlines()[-1] == f"lvcreate --snapshot --name data-before-resync {room}vg0/data"
    (lvm.parent / "there").touch()
    assert snapshot.main(["after"]) == 0
    assert lvm.read_text().splitlines()[-1] == "lvremove --force vg0/data-before-resync"


def test_lvm_replaces_a_forgotten_snapshot(lvm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LVS_SAYS", "vg0/data/pool0")
    (lvm.parent / "there").touch()
    assert snapshot.main(["before", "--required"]) == 0
    assert [line.split()[0] for line in lvm.read_text().splitlines()] == ["lvs", "lvs", "lvremove", "lvcreate"]
