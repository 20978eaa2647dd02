# SPDX-License-Identifier: Apache-2.0
"""A third node: a resource whose disk is the device of another resource, and disks behind an NBD server that hang."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbd.client import NbdClient
from nbd.uri import build_unix_uri
from repl.cli.client import Client
from repl.errors import ReplError
from tests.lib.ports import free_port
from tests.lib.process import Process
from tests.lib.tools import ROOT, require_engine
from tests.lib.wait import wait_for

MIB = 1 << 20
DISK_BYTES = 24 * MIB
NET = "connect-int 1; ping-timeout 10; timeout 20;"
RATE = "c-plan-ahead 0; resync-rate 400M;"


class Site:
    """Nodes alpha and beta share the lower resource; gamma is far away.  Each has a run directory of its own."""

    def __init__(self, folder: Path) -> None:
        require_engine()
        self.folder = folder
        self.processes: dict[tuple[str, str], Process] = {}
        ports = [free_port() for _ in range(4)]
        disks = {}
        for name in ("alpha", "beta", "gamma"):
            (folder / name).mkdir()
            disks[name] = folder / f"{name}.img"
            with disks[name].open("wb") as file:
                file.truncate(DISK_BYTES)
        self.conf = folder / "site.res"
        self.conf.write_text(f"""
resource low {{
    net {{ protocol C; {NET} }} disk {{ {RATE} }}
    on alpha {{ device minor 1; disk {disks["alpha"]}; meta-disk internal; address 127.0.0.1:{ports[0]}; }}
    on beta {{ device minor 1; disk {disks["beta"]}; meta-disk internal; address 127.0.0.1:{ports[1]}; }}
}}
resource top {{
    net {{ protocol A; {NET} }} disk {{ {RATE} disk-timeout 20; }}
    stacked-on-top-of low {{ device minor 11; address 127.0.0.1:{ports[2]}; }}
    on gamma {{ device minor 11; disk {disks["gamma"]}; meta-disk internal; address 127.0.0.1:{ports[3]}; }}
}}
""")

    def _options(self, node: str) -> list[str]:
        return ["--config", str(self.conf), "--node", node, "--run-dir", str(self.folder / node / "run")]

    def ctl(self, node: str, *words: str) -> str:
        argv = [sys.executable, "-P", "-m", "repl.cli.main", *self._options(node), *words]
        environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, f"{node}: {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, node: str, resource: str) -> None:
        argv = [sys.executable, "-P", "-m", "repl.daemon.main", resource, *self._options(node), "--up"]
        environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
        log = self.folder / f"{node}-{resource}.log"
        process = self.processes[node, resource] = Process(argv, log, env=environment)
        process.wait_until(lambda: self.is_up(node, resource), 30, f"{resource} on {node} up")

    def is_up(self, node: str, resource: str) -> bool:
        try:
            return bool(self.status(node, resource)["up"])
        except (ReplError, OSError):
            return False

    def call(self, node: str, resource: str, verb: str, **args: Any) -> dict[str, Any]:
        with Client(self.folder / node / "run" / f"{resource}.sock", resource) as client:
            return client.call(verb, answer_timeout_s=60, **args)

    def status(self, node: str, resource: str) -> dict[str, Any]:
        return self.call(node, resource, "status")

    def disks(self, node: str, resource: str) -> tuple[str, str]:
        volume = self.status(node, resource)["volumes"][0]
        return volume["disk"], volume["peer_disk"]

    def wait_disks(self, node: str, resource: str, own: str, peer: str) -> None:
        wait_for(lambda: self.disks(node, resource) == (own, peer), 40, f"{resource} on {node} {own}/{peer}",
                 describe=lambda: str(self.disks(node, resource)), ignore=(ReplError, OSError))  # fmt: skip

    def client(self, node: str, resource: str) -> NbdClient:
        socket = self.folder / node / "run" / f"{resource}.nbd"
        return NbdClient(build_unix_uri(str(socket), f"{resource}/0"))

    def stop(self, node: str, resource: str) -> None:
        self.call(node, resource, "down")
        self.processes.pop((node, resource)).wait_exit(30)

    def close(self) -> None:
        for process in reversed(self.processes.values()):
            process.kill()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        made.ctl("alpha", "create-md", "low")
        made.ctl("beta", "create-md", "low")
        made.ctl("gamma", "create-md", "top")
        made.start("alpha", "low")
        made.start("beta", "low")
        wait_for(lambda: made.disks("alpha", "low") == ("Inconsistent", "Inconsistent"), 30, "the pair")
        made.call("alpha", "low", "new-current-uuid", clear_bitmap=True, volume=0)
        made.wait_disks("beta", "low", "UpToDate", "UpToDate")
        made.ctl("alpha", "create-md", "top")
        made.start("gamma", "top")
        made.start("alpha", "top")
        wait_for(lambda: made.disks("alpha", "top") == ("Inconsistent", "Inconsistent"), 30, "the third node")
        made.call("alpha", "top", "primary", force=True)
        made.wait_disks("gamma", "top", "UpToDate", "UpToDate")
        yield made
    finally:
        made.close()


def test_upper_resource_moves_along_when_the_lower_pair_fails_over(site: Site) -> None:
    first, second = os.urandom(MIB), os.urandom(MIB)
    with site.client("alpha", "top") as client:
        client.write(0, first)
        client.flush()
    assert site.status("alpha", "low")["role"] == "Primary"
    site.stop("alpha", "top")
    wait_for(lambda: site.status("alpha", "low")["role"] == "Secondary", 20, "the lower one is let go")
    site.start("beta", "top")
    site.wait_disks("beta", "top", "UpToDate", "UpToDate")
    with site.client("beta", "top") as client:
        assert client.read(0, MIB) == first
        client.write(MIB, second)
        client.zero(3 * MIB, MIB)
        client.flush()
    site.stop("beta", "top")
    site.call("gamma", "top", "primary")
    with site.client("gamma", "top") as client:  # the disaster: only the third node is left
        assert client.read(0, 2 * MIB) == first + second


def test_disk_that_hangs_is_given_up_and_holds_nothing_up(site: Site) -> None:
    with site.client("alpha", "top") as client:
        client.write(0, os.urandom(65536))
        client.flush()
        hung = site.processes["alpha", "low"]
        hung.freeze()
        try:
            client.write(65536, b"x" * 4096)  # the third node has it
            assert client.read(65536, 4096) == b"x" * 4096
            wait_for(lambda: site.disks("alpha", "top")[0] == "Diskless", 20, "the disk is given up")
            assert site.status("gamma", "top")["connection"] == "Connected"
        finally:
            hung.thaw()


def test_daemon_ends_in_time_although_its_disk_hangs(site: Site) -> None:
    hung, process = site.processes["alpha", "low"], site.processes.pop(("alpha", "top"))
    hung.freeze()
    try:
        process.stop(45)
    finally:
        hung.thaw()
