# SPDX-License-Identifier: Apache-2.0
"""A volume's whole life through ``replctl volume``: real bricks, heal daemon, rebalance and a mount."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repl.files.mount.device import mounted_id
from tests.integration.test_files_distribute import Threads, digest, fill
from tests.lib.mounts import needs_fuse
from tests.lib.ports import free_port
from tests.lib.wait import wait_for

pytestmark = needs_fuse()
TIMEOUT_S = 120


class Host:
    """State and run directory in one folder; everything that runs is gone at the end."""

    def __init__(self, folder: Path, address: str = "") -> None:
        """``address``: of one machine among several."""
        self.folder = folder
        self.address = address or "127.0.0.1"
        self.mount_point = folder / "mnt"
        self.mount_point.mkdir(exist_ok=True)
        self.env = {**os.environ, "REPL_RUN_DIR": str(folder / f"r{address}"), "REPL_NODE": address}
        self.env.pop("REPL_STATE_DIR", None)

    def place(self, number: int) -> str:
        return f"{self.address}:{self.brick(number)}"

    def brick(self, number: int) -> Path:
        return self.folder / f"brick{number}"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "repl.cli.main", "--mode=script", "volume", *words]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=TIMEOUT_S)

    def do(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def ask(self, *words: str) -> Any:
        return json.loads(self.do(*words, "--json"))["data"]

    def refused(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def mount(self, source: str) -> None:
        command = [sys.executable, "-m", "repl.files.mount.main", source, str(self.mount_point)]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stderr

    def pids(self) -> dict[str, int | None]:
        return {brick["brick"]: brick["pid"] for brick in self.ask("status", "v")[0]["bricks"]}

    def kill(self, number: int) -> None:
        def pid() -> int | None:
            return next(pid for name, pid in self.pids().items() if name.endswith(f":{self.brick(number)}"))

        running = pid()
        assert running
        os.kill(running, signal.SIGKILL)
        wait_for(lambda: pid() is None, 10, "the end of the brick")

    def wait_task(self, *words: str) -> dict[str, Any]:
        last: dict[str, Any] = {}

        def is_over() -> bool:
            last.update(self.ask(*words))
            return bool(last["state"] not in ("in progress", "not started"))

        wait_for(is_over, 60, " ".join(words))
        return last

    def logs(self) -> str:
        return "".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.rglob("*.log")))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    found = Host(tmp_path)
    try:
        yield found
    finally:
        while mounted_id(str(found.mount_point)):
            subprocess.run(["umount", "-l", found.mount_point], check=True)
        if (tmp_path / "r/volumes/v").exists():
            found.run("stop", "v", "force")
    assert "Traceback" not in found.logs(), found.logs()


def same_bricks(one: Path, other: Path) -> bool:
    def listing(root: Path) -> dict[str, Any]:
        return {name: what for name, what in digest(root).items() if not name.startswith(".glusterfs")}

    return listing(one) == listing(other)


def test_volume_lives_through_everything_that_gluster_users_type(host: Host) -> None:
    base = str(free_port())
    create = ["create", "v", "replica", "2", *(host.place(n) for n in (1, 2, 3, 4)), "--base-port", base]
    assert "volume create: v: success" in host.do(*create)
    host.do("start", "v")
    assert "Volume v already started" in host.refused("start", "v")
    assert host.do("status", "v").count(" Y ") == 5
    host.mount("127.0.0.1:/v")
    root = host.mount_point
    assert "127.0.0.1:/v" in Path("/proc/self/mounts").read_text()
    fill(root)
    before = digest(root)

    # A brick dies, the others go on; it comes back and is healed.
    host.kill(2)
    for number in range(8):  # some of them belong to the pair
        (root / f"a/missed{number}").write_bytes(b"missed")
    assert "/a/missed" in host.do("heal", "v", "info")
    assert "Status: Transport endpoint is not connected\nNumber of entries: -" in host.do("heal", "v", "info")
    assert host.ask("heal", "v", "statistics", "heal-count")[host.place(2)] is None
    host.do("start", "v", "force")
    host.do("heal", "v", "wait")
    assert set(host.ask("heal", "v", "statistics", "heal-count").values()) == {0}
    assert same_bricks(host.brick(1), host.brick(2))
    for number in range(8):
        (root / f"a/missed{number}").unlink()

    # More bricks and fewer, under load.
    threads, counter = Threads(), [0]
    with open(root / "log", "ab", buffering=0) as log:

        def append() -> None:
            counter[0] += 1
            log.write(b"%d\n" % counter[0])

        threads.run(append)
        host.do("add-brick", "v", host.place(5), host.place(6))
        host.do("rebalance", "v", "start", "force")
        done = host.wait_task("rebalance", "v", "status")
        assert done["state"] == "completed" and done["failures"] == 0 and done["files"] > 0, done
        assert any(path.is_file() for path in (host.brick(5) / "a").iterdir())
        assert "is not decommissioned" in host.refused("remove-brick", "v", host.place(1), host.place(2), "commit")
        host.do("remove-brick", "v", host.place(1), host.place(2), "start")
        done = host.wait_task("remove-brick", "v", host.place(1), host.place(2), "status")
        assert done["state"] == "completed" and done["failures"] == 0, done
        host.do("remove-brick", "v", host.place(1), host.place(2), "commit")
        count = counter[0]
        wait_for(lambda: threads.check() and counter[0] > count + 20, 20, "more work")
        threads.end()
    assert (root / "log").read_bytes() == b"".join(b"%d\n" % n for n in range(1, counter[0] + 1))
    (root / "log").unlink()
    assert "Number of Bricks: 2 x 2 = 4" in host.do("info", "v")
    assert digest(root) == before

    # An empty brick takes the place of a copy and is never read from before it is filled.
    host.do("replace-brick", "v", host.place(3), host.place(7), "commit", "force")
    assert digest(root) == before
    host.do("heal", "v", "wait")
    assert same_bricks(host.brick(4), host.brick(7))
    host.do("set", "v", "network.ping-timeout", "8", "performance.io-cache", "on")
    assert host.ask("get", "v", "network.ping-timeout") == {"network.ping-timeout": "8"}
    mount_log = next(path for path in host.folder.rglob("*.log") if path.name.endswith("-mnt.log"))
    wait_for(lambda: mount_log.read_text().count("a new graph has taken over") >= 3, 20, "the new graph")
    assert digest(root) == before

    host.do("stop", "v")
    assert "Volume v is not started" in host.refused("status", "v")
    host.do("delete", "v")
    assert host.do("list") == "No volumes present in cluster\n"


def test_volume_profile_and_top_tell_what_is_used_most_and_fastest(host: Host) -> None:
    """The lines are those of GlusterFS 10.3."""
    host.do("create", "v", host.place(1), "--base-port", str(free_port()))
    host.do("start", "v")
    assert "volume profile v start" in host.refused("top", "v", "open")
    host.do("profile", "v", "start")
    host.mount("v")

    def is_counted() -> bool:
        (host.mount_point / "f0").write_bytes(b"x" * 100_000)
        return "/f0" in host.do("top", "v", "write-perf")

    wait_for(is_counted, 20, "the brick counts")
    for number in (1, 2):
        (host.mount_point / f"f{number}").write_bytes(b"x" * 100_000 * (number + 1))
    (host.mount_point / "f1").read_bytes()
    with open(host.mount_point / "f1", "r+b", buffering=0) as file:
        for _ in range(3):
            file.write(b"more")
            os.fsync(file.fileno())
        words = ("top", "v", "write-perf", "bs", "4096", "count", "50", "brick", host.place(1), "list-cnt", "2")
        said = host.do(*words).splitlines()
        assert said[0] == f"Brick: {host.place(1)}"
        assert re.fullmatch(r"Throughput [0-9.]+ MBps time [0-9.]+ secs", said[1])
        assert said[2:4] == ["MBps Filename" + " " * 40 + "Time", "==== ========" + " " * 40 + "===="]
        assert len(said) == 6 and re.fullmatch(r" *\d+ /f\d {44} \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", said[4])
        found = host.ask("top", "v", "open")[host.place(1)]
        assert found["opened"] == 1 and {row["file"] for row in found["files"]} == {"/f0", "/f1", "/f2"}
        assert host.do("top", "v", "open").splitlines()[1].startswith("Current open fds: 1, Max open fds: ")
    assert host.do("top", "v", "write", "list-cnt", "1").count("\t\t/f") == 1
    assert "Need to give both" in host.refused("top", "v", "read-perf", "bs", "256")
    assert "half of what is free" in host.refused("top", "v", "read-perf", "bs", "1000000", "count", "1000000000")
    assert host.ask("top", "v", "read-perf", "bs", "4096", "count", "5")[host.place(1)]["throughput_mbps"] > 0
    assert f"Brick: {host.place(1)}" in host.do("profile", "v", "info")
    assert host.do("top", "v", "clear") == f"Cleared stats for brick {host.place(1)}\n"
    wait_for(lambda: host.do("top", "v", "write") == f"Brick: {host.place(1)}\n", 10, "counts from zero")


@pytest.mark.files_long
def test_volume_third_copies_arbiters_and_split_brains(host: Host) -> None:
    host.do("create", "v", "replica", "2", host.place(1), host.place(2), "--base-port", str(free_port()))
    host.do("set", "v", "cluster.self-heal-daemon", "off", "cluster.data-self-heal", "off")
    host.do("start", "v")
    host.mount("v")
    file = host.mount_point / "file"
    file.write_bytes(b"0")
    for number, text in ((1, b"one"), (2, b"two, longer")):
        host.do("start", "v", "force")
        other = 3 - number
        wait_for(lambda: _is_up(host), 20, "both bricks")
        host.kill(other)
        _write(file, text)
    host.do("start", "v", "force")
    wait_for(lambda: _is_up(host), 20, "both bricks")
    assert host.do("heal", "v", "info", "split-brain").count("Number of entries in split-brain: 1") == 2
    with pytest.raises(OSError, match="Input/output"):
        _write(file, b"x")
    assert "data" in host.do("heal", "v", "explain", "/file")
    assert host.do("heal", "v", "split-brain", "bigger-file", "/file") == "Healed /file.\n"
    assert file.read_bytes() == b"two, longer"
    assert "is not in split-brain" in host.refused("heal", "v", "split-brain", "latest-mtime", "/file")

    host.do("heal", "v", "enable")
    host.do("add-brick", "v", "replica", "3", "arbiter", "1", host.place(3))
    assert f"Brick3: {host.place(3)} (arbiter)" in host.do("info", "v")
    host.do("heal", "v", "wait")
    assert (host.brick(3) / "file").stat().st_size == 0
    host.kill(1)
    _write(file, b"with two of three")
    assert file.read_bytes() == b"with two of three"
    host.do("start", "v", "force")
    host.do("heal", "v", "wait")
    assert (host.brick(1) / "file").read_bytes() == b"with two of three"


@pytest.mark.files_long
def test_volume_of_two_hosts_changes_by_export_and_import(tmp_path: Path, host: Host) -> None:
    """The new copy is of the host that only gets the description: it is accused before it is started there."""
    alice, bob = Host(tmp_path, "127.0.0.2"), Host(tmp_path, "127.0.0.3")
    try:
        base = str(free_port())
        for one in (alice, bob):
            one.do("create", "v", "replica", "2", alice.place(1), bob.place(2), "--base-port", base)
            one.do("start", "v")
        alice.mount("v")
        fill(alice.mount_point)
        before = digest(alice.mount_point)
        alice.do("add-brick", "v", "replica", "3", bob.place(3))
        exported = alice.folder / "v.json"
        exported.write_text(alice.do("export", "v"))
        bob.do("import", str(exported))
        assert {brick["online"] for brick in bob.ask("status", "v")[0]["bricks"]} == {True}
        assert digest(alice.mount_point) == before
        wait_for(lambda: _is_up(alice) and _is_up(bob), 20, "three bricks")
        bob.do("heal", "v", "wait")
        assert same_bricks(host.brick(1), host.brick(3)) and digest(alice.mount_point) == before
        assert "serves yet" in alice.refused("replace-brick", "v", bob.place(2), alice.place(4), "commit", "force")
    finally:
        subprocess.run(["umount", "-l", alice.mount_point], check=False, capture_output=True)
        for one in (alice, bob):
            one.run("stop", "v", "force")


def _write(file: Path, text: bytes) -> None:
    with open(file, "r+b") as handle:
        handle.truncate(0)
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def _is_up(host: Host) -> bool:
    """The heal daemon has links to all bricks; so has the mount soon."""
    return all(brick["total"] is not None for brick in host.ask("heal", "v", "info"))
