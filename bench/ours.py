# SPDX-License-Identifier: Apache-2.0
"""Our own replicated device as a contender, driven only through the public command line.

Writes a resource file for two hosts on this machine (own run directories, disk files where the runner
wants them) and calls `replctl --config F --node N --run-dir D VERB r0`. `up` starts the daemon, `down`
ends it. Facts about verbs and syntax: docs of the command line. Raises `BenchError` with the command
and what it printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.contenders import SYNC_TIMEOUT_S, Contender, free_port
from bench.measure import BENCH_DIR, BenchError, GrowthMeter, SyncSample, cpu_seconds, fill_file, make_sparse_file

RESOURCE = "r0"
COMMAND_TIMEOUT_S = 60.0
PROMOTE_ATTEMPTS = 5
PROMOTE_PAUSE_S = 0.5
OUTPUT_TAIL_CHARS = 2000

RES_TEMPLATE = """\
resource {resource} {{
    net {{ protocol {protocol}; {net} }}
    disk {{ resync-priority fast; }}
{hosts}}}
"""
HOST_TEMPLATE = """\
    on {node} {{
        device /dev/drbd0 minor 0;
        disk {disk};
        address 127.0.0.1:{port};
        meta-disk internal;
    }}
"""


def processes_mentioning(text: str) -> list[int]:
    """Processes whose command line or environment contains `text` (a private run directory)."""
    needle = text.encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for part in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    if needle in (entry / part).read_bytes():
                        found.append(int(entry.name))
                        break
    return sorted(found)


class Ours(Contender):
    """One or two nodes of ours; alice is the Primary whose export is measured."""

    nodes: tuple[str, ...] = ("alice", "bob")
    protocol = "C"
    net = ""
    files = 2
    fill_target = True

    def __init__(self, disk_dir: Path, run_dir: Path, size_bytes: int, replctl: Path) -> None:
        super().__init__(disk_dir, run_dir, size_bytes)
        self._replctl = replctl
        self.prefix: list[str] = []  # in front of every command: another network namespace
        self._uri = ""
        self._up: list[str] = []
        self._pids: list[int] = []

    def missing(self) -> str | None:
        if not self._replctl.exists():
            return f"not built: {self._replctl} does not exist"
        done = subprocess.run([self._replctl, "--help"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"not built: `replctl --help` fails: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
        return None

    @property
    def uri(self) -> str:
        return self._uri

    def pids(self) -> list[int]:
        return self._pids

    def disk_path(self, node: str) -> Path:
        return self.disk_dir / node

    def node_run_dir(self, node: str) -> Path:
        return self.run_dir / node

    @property
    def config_path(self) -> Path:
        return self.run_dir / "r0.res"

    def config_of(self, node: str) -> Path:
        """What the node reads."""
        return self.config_path

    def call(self, node: str, *words: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Runs one replctl command on a node; what it wrote to stdout."""
        command = [*self.prefix, str(self._replctl), "--config", str(self.config_of(node)), "--node", node,
                   "--run-dir", str(self.node_run_dir(node)), *words]  # fmt: skip
        called = f"`replctl --node {node} {' '.join(words)}`"
        # The daemon that `up` leaves behind may keep our pipe open, so the output goes to files.
        out_path, error_path = self.run_dir / "stdout", self.run_dir / "stderr"
        with out_path.open("wb") as out, error_path.open("wb") as error:
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=error,
                    check=False,
                    timeout=timeout_s,
                )
            except subprocess.TimeoutExpired:
                raise BenchError(f"{called} took more than {timeout_s:.0f} s") from None
            except OSError as failure:
                raise BenchError(f"cannot run {self._replctl}: {failure}") from failure
        printed = out_path.read_text(errors="replace")
        if done.returncode != 0:
            said = (error_path.read_text(errors="replace") + printed).strip()[-OUTPUT_TAIL_CHARS:]
            raise BenchError(f"{called} ended with status {done.returncode}: {said}")
        return printed

    def write_config(self) -> None:
        ports: set[int] = set()
        while len(ports) < 2:  # a port that was just free may be offered again
            ports.add(free_port())
        hosts = "".join(
            HOST_TEMPLATE.format(node=node, disk=self.disk_path(node), port=port)
            for node, port in zip(("alice", "bob"), ports, strict=True)
        )
        text = RES_TEMPLATE.format(resource=RESOURCE, protocol=self.protocol, net=self.net, hosts=hosts)
        self.config_path.write_text(text)

    def prepare(self) -> None:
        """Disks with metadata, all nodes up, nobody promoted."""
        self.write_config()
        for node in self.nodes:
            self.node_run_dir(node).mkdir()
            fill = fill_file if node == "alice" or self.fill_target else make_sparse_file
            fill(self.disk_path(node), self.size_bytes)
            self.call(node, "create-md", RESOURCE)
        for node in self.nodes:
            self._up.append(node)
            self.call(node, "up", RESOURCE)
        self._pids = [pid for node in self.nodes for pid in processes_mentioning(str(self.node_run_dir(node)))]
        if not self._pids:
            raise BenchError("no daemon found after `up`: no process mentions its run directory")

    def promote(self) -> None:
        for attempt in range(PROMOTE_ATTEMPTS):
            try:
                self.call("alice", "primary", "--force", RESOURCE)
                return
            except BenchError:
                if attempt + 1 == PROMOTE_ATTEMPTS:
                    raise
                time.sleep(PROMOTE_PAUSE_S)

    def start(self) -> None:
        self.prepare()
        self.promote()
        if len(self.nodes) > 1:
            self.call("alice", "wait-sync", RESOURCE, timeout_s=SYNC_TIMEOUT_S)
        words = self.call("alice", "nbd-url", RESOURCE).split()
        self._uri = next((word for word in words if word.startswith("nbd")), "")
        if not self._uri:
            raise BenchError("`replctl nbd-url` printed no URI")

    def stop_nodes(self) -> None:
        for node in reversed(self._up):
            with contextlib.suppress(BenchError):
                self.call(node, "down", RESOURCE)
        self._up.clear()
        # Whatever `down` left running in our private run directories was started by us.
        for node in self.nodes:
            for pid in processes_mentioning(str(self.node_run_dir(node))):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        self.stop_nodes()
        shutil.rmtree(self.disk_dir, ignore_errors=True)
        shutil.rmtree(self.run_dir, ignore_errors=True)


class OursPlain(Ours):
    """Only alice is up: the export without a peer."""

    name = "ours"
    nodes = ("alice",)
    files = 1


class OursA(Ours):
    """Two nodes, protocol A."""

    name = "ours-A"
    protocol = "A"


class OursB(Ours):
    """Two nodes, protocol B."""

    name = "ours-B"
    protocol = "B"


class OursC(Ours):
    """Two nodes, protocol C."""

    name = "ours-C"


class OursChecked(Ours):
    """Protocol C with a digest on every write, as a careful administrator sets it."""

    name = "ours-C-crc32c"
    net = "data-integrity-alg crc32c; verify-alg crc32c; csums-alg crc32c;"


class OursDistant(Ours):
    """Protocol A over a link that takes 50 ms each way (bench/delay.py); each node knows the other by the relay."""

    name = "ours-A-50ms"
    protocol = "A"
    net = "sndbuf-size 10M;"
    delay_ms = 50

    def config_of(self, node: str) -> Path:
        return self.run_dir / f"{node}.res"

    def write_config(self) -> None:
        ports = {node: free_port() for node in self.nodes}
        relays = {node: free_port() for node in self.nodes}
        for reader in self.nodes:
            hosts = "".join(
                HOST_TEMPLATE.format(
                    node=node, disk=self.disk_path(node), port=ports[node] if node == reader else relays[node]
                )
                for node in self.nodes
            )
            text = RES_TEMPLATE.format(resource=RESOURCE, protocol=self.protocol, net=self.net, hosts=hosts)
            self.config_of(reader).write_text(text)
        ways = [f"{relays[node]}:{ports[node]}" for node in self.nodes]
        self.spawn([sys.executable, str(BENCH_DIR / "delay.py"), str(self.delay_ms), *ways])
        for node in self.nodes:
            self.await_listening(("127.0.0.1", relays[node]))

    def promote(self) -> None:
        """Both disks hold the same: nothing to synchronise."""
        self.call("alice", "wait-connect", RESOURCE)
        self.call("alice", "new-current-uuid", "--clear-bitmap", RESOURCE)
        super().promote()

    def stop(self) -> None:
        self.stop_nodes()
        Contender.stop(self)


class OursSync(Ours):
    """The initial full synchronisation of a pair."""

    name = "ours-C"
    fill_target = False

    def measure_sync(self) -> SyncSample:
        self.prepare()
        before_s = cpu_seconds(self.pids())
        with GrowthMeter(self.disk_path("bob")) as meter:
            started_s = time.monotonic()
            self.promote()
            self.call("alice", "wait-sync", RESOURCE, timeout_s=SYNC_TIMEOUT_S)
            wall_s = time.monotonic() - started_s
        used_s = cpu_seconds(self.pids()) - before_s
        if meter.grown_bytes < self.size_bytes * 0.9:
            raise BenchError(f"wait-sync returned after {meter.grown_bytes >> 20} MiB had reached bob's disk")
        return SyncSample(meter.mb_per_s(), wall_s, used_s / (self.size_bytes / 1e9))


class OursVerify(Ours):
    """Online verify of a pair that is the same."""

    name = "ours-crc32c"
    net = "max-buffers 16384; verify-alg crc32c;"

    def measure_sync(self) -> SyncSample:
        self.start()
        before_s = cpu_seconds(self.pids())
        printed = self.call("alice", "--json", "verify", "--wait", RESOURCE, timeout_s=SYNC_TIMEOUT_S)
        (report,) = json.loads(printed)["data"]
        used_s = cpu_seconds(self.pids()) - before_s
        if report["state"] != "complete" or report["differing_blocks"]:
            raise BenchError(f"verify ended with {report['state']}, {report['differing_blocks']} blocks differ")
        return SyncSample(
            self.size_bytes / 1e6 / report["duration_s"], report["duration_s"], used_s / (self.size_bytes / 1e9)
        )


class OursVerifySha1(OursVerify):
    """The same with a digest of libcrypto."""

    name = "ours-sha1"
    net = "max-buffers 16384; verify-alg sha1;"
