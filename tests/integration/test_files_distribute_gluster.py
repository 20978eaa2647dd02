# SPDX-License-Identifier: Apache-2.0
"""Distributed volumes of real GlusterFS: served, changed and rebalanced by us, and read by GlusterFS again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.test_files_distribute import data_files, digest, rebalance
from tests.lib.bricks import bricks, distribute
from tests.lib.mounts import mounted, needs_fuse
from tests.lib.ports import free_port
from tests.lib.process import Process
from tests.lib.wait import wait_for

pytestmark = [needs_fuse(), pytest.mark.skipif(not shutil.which("glusterfsd"), reason="needs GlusterFS")]

SERVER = """
volume posix
  type storage/posix
  option directory {directory}
end-volume
volume locks
  type features/locks
  subvolumes posix
end-volume
volume server
  type protocol/server
  option transport-type tcp
  option transport.socket.listen-port {port}
  option transport.socket.bind-address 127.0.0.1
  option auth.addr.locks.allow *
  subvolumes locks
end-volume
"""
CLIENT = """
volume c{number}
  type protocol/client
  option transport-type tcp
  option remote-host 127.0.0.1
  option remote-port {port}
  option remote-subvolume locks
end-volume
"""


@contextmanager
def gluster(folder: Path, count: int, name: str) -> Iterator[Path]:
    """A mount of GlusterFS over the brick directories, with distribute alone."""
    path, processes, client = folder / name, [], ""
    path.mkdir()
    try:
        for number in range(count):
            port, directory = free_port(), folder / f"brick{number}"
            directory.mkdir(exist_ok=True)
            volfile = folder / f"{name}{number}.vol"
            volfile.write_text(SERVER.format(directory=directory, port=port))
            client += CLIENT.format(number=number, port=port)
            command = ["glusterfsd", "-N", "-f", volfile, "-l", folder / f"{name}{number}.log"]
            processes.append(Process(command, folder / f"{name}{number}.out"))
        names = " ".join(f"c{number}" for number in range(count))
        client += f"volume dist\n type cluster/distribute\n subvolumes {names}\nend-volume\n"
        volfile = folder / f"{name}.vol"
        volfile.write_text(client)
        command = ["glusterfs", "-N", "-f", volfile, "-l", folder / f"{name}.log", path]
        processes.append(Process(command, folder / f"{name}.out"))
        wait_for(lambda: os.path.ismount(path) and os.listdir(path) is not None, 20, "GlusterFS's mount")
        log = folder / f"{name}.log"  # it lists what it is connected to by then
        wait_for(lambda: log.read_text().count("attached to remote volume") >= count, 20, "all bricks of the mount")
        yield path
    finally:
        subprocess.run(["umount", path])
        for process in processes:
            process.popen.terminate()
            process.popen.wait(20)


def fill(root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    (root / "c").mkdir()
    for number in range(1, 25):
        (root / f"a/f{number}").write_text(f"data{number}")
        (root / f"c/g{number}").write_text(f"x{number}")
    for number in range(1, 7):
        os.rename(root / f"a/f{number}", root / f"a/renamed{number}")
        os.link(root / f"a/f{number + 10}", root / f"a/b/hard{number}")
        os.symlink(f"f{number}", root / f"a/sym{number}")
    os.mkfifo(root / "c/fifo")
    (root / "c/g1").chmod(0o1644)
    os.setxattr(root / "c/g2", b"user.k", b"v")
    (root / "a/b").chmod(0o750)


def test_distribute_takes_over_a_volume_of_glusterfs(tmp_path: Path) -> None:
    with gluster(tmp_path, 3, "theirs") as path:
        fill(path)
        before = digest(path)
    volfile = tmp_path / "client.vol"
    with bricks(tmp_path, 3) as found:
        volfile.write_text(distribute(found))
        with mounted(tmp_path, volfile) as mount:
            assert digest(mount.path) == before
            assert os.getxattr(mount.path / "c/g2", b"user.k") == b"v"
            (mount.path / "new").mkdir()
            for number in range(12):
                (mount.path / f"new/n{number}").write_text(f"n{number}")
                os.rename(mount.path / f"a/f{number + 11}", mount.path / f"new/r{number}")
            (mount.path / "a/renamed1").unlink()
            os.rename(mount.path / "c", mount.path / "d")
            after = digest(mount.path)
    with gluster(tmp_path, 3, "again") as path:
        assert digest(path) == after
        (path / "new/theirs").write_text("theirs")
        after = digest(path)
    # A fourth brick; everything is moved to where it belongs, and GlusterFS can still read it.
    with bricks(tmp_path, 4) as found:
        volfile.write_text(distribute(found))
        done = rebalance(tmp_path, volfile, "-m", "force")
        assert done["state"] == "completed" and done["failures"] == 0
        with mounted(tmp_path, volfile, name="ours") as mount:
            assert digest(mount.path) == after
        assert data_files(found[3])
    with gluster(tmp_path, 4, "last") as path:
        assert digest(path) == after
