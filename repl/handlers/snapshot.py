# SPDX-License-Identifier: Apache-2.0
"""``repl-snapshot``: keeps the resync target's old, consistent data while it is overwritten.

    handlers {
        before-resync-target "repl-snapshot before";
        after-resync-target  "repl-snapshot after";
    }

The kind follows the backing device (``DRBD_LL_DISK``): an LVM volume gets an LVM snapshot (of a thin volume it takes no
space of its own), a file gets a copy that shares its blocks (reflink) beside it.  "before" does nothing for a disk that
is Inconsistent already: the snapshot of the interrupted resync is the one worth keeping.  "after" removes it, unless
blocks failed.

Exit status: 0; 1 where there is no snapshot and ``--required`` was given: then the resync does not start.
"""

from __future__ import annotations

import argparse
import os
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SUFFIX = "-before-resync"
THICK_PERCENT_DEFAULT = 20


class SnapshotFailed(Exception):
    """There is no snapshot, and why."""


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SnapshotFailed(f"{' '.join(argv)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


class FileSnapshot:
    """A copy beside the file."""

    def __init__(self, path: Path, *, may_copy: bool) -> None:
        self._path = path
        self._copy = path.with_name(path.name + SUFFIX)
        self._mode = "auto" if may_copy else "always"

    def take(self) -> str:
        new = self._copy.with_name(self._copy.name + ".new")
        try:
            _run("cp", f"--reflink={self._mode}", "--sparse=always" if self._mode == "auto" else "--sparse=auto",
                 "--", str(self._path), str(new))  # fmt: skip
            with new.open("rb") as file:
                os.fsync(file.fileno())
            new.rename(self._copy)
        except (SnapshotFailed, OSError) as error:
            new.unlink(missing_ok=True)
            hint = "" if self._mode == "auto" else " (the file system has no reflinks? --may-copy copies everything)"
            raise SnapshotFailed(f"{error}{hint}") from None
        return str(self._copy)

    def remove(self) -> str:
        self._copy.unlink(missing_ok=True)
        return str(self._copy)


class LvmSnapshot:
    """A snapshot in the same volume group."""

    def __init__(self, device: Path, *, thick_percent: int) -> None:
        names = _run("lvs", "--noheadings", "--separator", "/", "-o", "vg_name,lv_name,pool_lv", str(device))
        self._group, self._volume, self._pool = (names.strip().split("/") + ["", "", ""])[:3]
        if not self._group or not self._volume:
            raise SnapshotFailed(f"{device} is no LVM volume")
        self._thick_percent = thick_percent

    @property
    def _name(self) -> str:
        return self._volume + SUFFIX

    def take(self) -> str:
        room = () if self._pool else ("--extents", f"{self._thick_percent}%ORIGIN")
        self.remove()
        _run("lvcreate", "--snapshot", "--name", self._name, *room, f"{self._group}/{self._volume}")
        return f"{self._group}/{self._name}"

    def remove(self) -> str:
        there = subprocess.run(("lvs", f"{self._group}/{self._name}"), capture_output=True, check=False).returncode == 0
        if there:
            _run("lvremove", "--force", f"{self._group}/{self._name}")
        return f"{self._group}/{self._name}"


def snapshot_of(device: Path, options: argparse.Namespace) -> FileSnapshot | LvmSnapshot:
    try:
        mode = device.stat().st_mode
    except OSError as error:
        raise SnapshotFailed(f"{device}: {error.strerror}") from None
    if stat.S_ISREG(mode):
        return FileSnapshot(device, may_copy=options.may_copy)
    return LvmSnapshot(device, thick_percent=options.thick_percent)


def before(device: Path, options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    if environment.get("REPL_DISK_STATE") == "Inconsistent":
        print(f"{device} is Inconsistent already: no snapshot, an older one is kept")
        return 0
    try:
        made = snapshot_of(device, options).take()
    except SnapshotFailed as error:
        print(f"no snapshot of {device}: {error}")
        return 1 if options.required else 0
    print(f"{made} keeps what {device} holds now")
    return 0


def after(device: Path, options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    if options.keep or environment.get("REPL_FAILED_BLOCKS", "0") != "0":
        print(f"the snapshot of {device} is kept")
        return 0
    try:
        print(f"{snapshot_of(device, options).remove()} is gone")
    except (SnapshotFailed, OSError) as error:
        print(f"the snapshot of {device} cannot be removed: {error}")
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="repl-snapshot", description="Keeps old data while a resync overwrites it.")
    parser.add_argument("when", choices=("before", "after"))
    parser.add_argument("--required", action="store_true", help="without a snapshot the resync does not start")
    parser.add_argument("--may-copy", action="store_true", help="copy a file where the file system has no reflinks")
    parser.add_argument("--keep", action="store_true", help="never remove it")
    parser.add_argument("--thick-percent", type=int, default=THICK_PERCENT_DEFAULT, metavar="N",
                        help="room for the snapshot of a volume that is not thin")  # fmt: skip
    options = parser.parse_args(argv)
    device = os.environ.get("DRBD_LL_DISK", "")
    if not device or device == "none":
        print("DRBD_LL_DISK names no disk", file=sys.stderr)
        return 1
    step = before if options.when == "before" else after
    return step(Path(device), options, os.environ)


if __name__ == "__main__":
    sys.exit(main())
