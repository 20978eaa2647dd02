# SPDX-License-Identifier: Apache-2.0
"""Distributed volumes with real bricks and mounts: bricks added and removed under load, renames under readers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lib.bricks import BrickProcess, bricks, distribute
from tests.lib.mounts import mounted, needs_fuse
from tests.lib.wait import wait_for

pytestmark = needs_fuse()


def rebalance(folder: Path, volfile: Path, *words: str) -> dict[str, Any]:
    program = [sys.executable, "-m", "repl.files.rebalance.main"]
    command = [*program, "-N", "-f", volfile, "-P", folder / "progress", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "progress").read_text())
    return found


def digest(root: Path) -> dict[str, Any]:
    """Every path below: kind, mode, contents."""
    found: dict[str, Any] = {}
    for here, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(here, name)
            st = path.lstat()
            about: list[Any] = [oct(st.st_mode), st.st_nlink if path.is_file() else 0]
            if path.is_symlink():
                about.append(os.readlink(path))
            elif path.is_file():
                about.append(hashlib.sha256(path.read_bytes()).hexdigest())
            found[str(path.relative_to(root))] = about
    return found


def fill(root: Path) -> None:
    for number in range(60):
        folder = root / ("a", "a/b", "c", ".")[number % 4]
        folder.mkdir(exist_ok=True)
        (folder / f"file{number}").write_bytes(os.urandom(number * 97))
    os.symlink("file0", root / "a/symlink")
    os.setxattr(root / "a/file0", b"user.color", b"red")


def data_files(brick: BrickProcess) -> list[Path]:
    """Files of users on a brick, link files left out."""
    found = []
    for here, folders, files in os.walk(brick.directory):
        if ".glusterfs" in folders:
            folders.remove(".glusterfs")
        for name in files:
            path = Path(here, name)
            if b"trusted.glusterfs.dht.linkto" not in map(os.fsencode, os.listxattr(path, follow_symlinks=False)):
                found.append(path)
    return found


class Threads:
    """Work beside the test until it is told to end; its errors are the test's."""

    def __init__(self) -> None:
        self.is_over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def run(self, work: Callable[[], None]) -> None:
        def loop() -> None:
            try:
                while not self.is_over.is_set():
                    work()
            except BaseException as error:
                self._errors.append(error)

        thread = threading.Thread(target=loop)
        thread.start()
        self._threads.append(thread)

    def check(self) -> bool:
        """Raises what one of them has raised."""
        if self._errors:
            raise self._errors[0]
        return True

    def end(self) -> None:
        self.is_over.set()
        for thread in self._threads:
            thread.join(60)
        self.check()


def test_distribute_bricks_added_and_removed_under_load(tmp_path: Path) -> None:
    volfile = tmp_path / "client.vol"
    with bricks(tmp_path, 4) as found:
        volfile.write_text(distribute(found[:3]))
        with mounted(tmp_path, volfile) as mount:
            fill(mount.path)
            before = digest(mount.path)
            assert len(before) == 64 and all(data_files(brick) for brick in found[:3])
            threads, counter = Threads(), [0]
            with open(mount.path / "log", "ab", buffering=0) as log:

                def append() -> None:
                    counter[0] += 1
                    log.write(b"%d\n" % counter[0])
                    path = mount.path / f"a/new{counter[0] % 20}"
                    path.with_name("new.tmp").write_bytes(b"%d" % counter[0])
                    os.rename(path.with_name("new.tmp"), path)
                    assert path.read_bytes() == b"%d" % counter[0]

                threads.run(append)
                volfile.write_text(distribute(found))
                wait_for(lambda: "graph" in mount.process.log().split("service: mounted")[1], 20, "another graph")
                done = rebalance(tmp_path, volfile, "-m", "force")
                assert done["state"] == "completed" and done["files"] > 5 and done["failures"] == 0
                assert data_files(found[3])
                count = counter[0]
                wait_for(lambda: threads.check() and counter[0] > count + 20, 20, "more work")
                volfile.write_text(distribute(found, decommissioned_bricks="c0"))
                wait_for(lambda: "options" in mount.process.log().split("service: mounted")[1], 20, "the options")
                done = rebalance(tmp_path, volfile)
                assert done["state"] == "completed" and done["failures"] == 0
                threads.end()
            assert (mount.path / "log").read_bytes() == b"".join(b"%d\n" % n for n in range(1, counter[0] + 1))
            for number in range(20):
                (mount.path / f"a/new{number}").unlink(missing_ok=True)
            assert data_files(found[0]) == []
            (mount.path / "log").unlink()
            assert digest(mount.path) == before
            assert os.getxattr(mount.path / "a/file0", b"user.color") == b"red"
        volfile.write_text(distribute(found[1:]))
        with mounted(tmp_path, volfile, name="smaller") as mount:
            assert digest(mount.path) == before


def test_distribute_readers_see_one_file_or_the_other(tmp_path: Path) -> None:
    """A name that is replaced again and again, across bricks, is never missing."""
    volfile = tmp_path / "client.vol"
    with bricks(tmp_path, 3) as found:
        volfile.write_text(distribute(found))
        with mounted(tmp_path, volfile) as writer, mounted(tmp_path, volfile, name="other") as reader:
            target = writer.path / "target"
            target.write_bytes(b"0" * 100)
            threads, reads = Threads(), [0]

            def read(root: Path) -> None:
                data = (root / "target").read_bytes()
                assert len(data) == 100 and len(set(data)) == 1, data
                reads[0] += 1

            threads.run(lambda: read(writer.path))
            threads.run(lambda: read(reader.path))
            for number in range(80):
                new = writer.path / f"source{number}"
                new.write_bytes(b"%d" % (number % 10) * 100)
                os.rename(new, target)
            threads.end()
            assert reads[0] > 20
            assert os.listdir(writer.path) == os.listdir(reader.path) == ["target"]


def test_distribute_brick_killed_and_back(tmp_path: Path) -> None:
    volfile = tmp_path / "client.vol"
    with bricks(tmp_path, 2) as found:
        volfile.write_text(distribute(found))
        with mounted(tmp_path, volfile) as mount:
            fill(mount.path)
            before = digest(mount.path)
            found[1].kill()
            works, fails = 0, 0
            for name in before:
                path = mount.path / name
                try:
                    if path.is_file():
                        path.read_bytes()
                        works += 1
                except OSError:
                    fails += 1
            assert works > 10 and fails > 10
            found[1].start()
            wait_for(lambda: _is_same(mount.path, before), 20, "the brick")


def _is_same(root: Path, before: dict[str, Any]) -> bool:
    try:
        return digest(root) == before
    except OSError:
        return False
