#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does an operation cost the same on a large device, with many clients, with many volumes?

`python -m bench.growth`: two nodes on this machine, protocol C, 4 KiB random writes at a fixed total queue depth; one
quantity grows at a time.  Prints CPU time per write of both nodes together, its ratio to the smallest case, and each
node's memory beside its limit: 64 MiB + 32 MiB per TiB + the configured buffers.
Exit status: 0 measured, 1 something failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench.contenders import free_port  # noqa: E402
from bench.measure import (  # noqa: E402
    LOAD_GENERATOR,
    BenchError,
    build_load_generator,
    cpu_seconds,
    make_sparse_file,
)
from bench.ours import RESOURCE, Ours, processes_mentioning  # noqa: E402

GIB, TIB, MIB = 1 << 30, 1 << 40, 1 << 20
SPAN_BYTES = 128 * MIB
TOTAL_DEPTH = 64
LOAD_TIMEOUT_S = 120.0
BASE_MEMORY_BYTES, MEMORY_PER_TIB_BYTES = 64 * MIB, 32 * MIB
# What csrc/engine sets aside at most: clients' and the peer's payloads, metadata pages.
BUFFER_BYTES = (128 + 64 + 8) * MIB


@dataclass(frozen=True, slots=True)
class Case:
    """One pair: its volumes' size, how many volumes, how many clients in all."""

    size_bytes: int = GIB
    volumes: int = 1
    clients: int = 1

    @property
    def memory_limit_bytes(self) -> int:
        return BASE_MEMORY_BYTES + MEMORY_PER_TIB_BYTES * self.size_bytes * self.volumes // TIB + BUFFER_BYTES


class GrowingPair(Ours):
    """A pair with several volumes, made without an initial sync."""

    name = "growth"
    fill_target = False

    def __init__(self, case: Case, disk_dir: Path, run_dir: Path, replctl: Path) -> None:
        super().__init__(disk_dir, run_dir, case.size_bytes, replctl)
        self.case = case
        self.uris: list[str] = []

    def write_config(self) -> None:
        hosts = ""
        for node in self.nodes:
            volumes = "".join(
                f"volume {n} {{ device /dev/drbd{n} minor {n}; disk {self.disk_path(node)}{n}; meta-disk internal; }} "
                for n in range(self.case.volumes)
            )
            hosts += f"    on {node} {{ address 127.0.0.1:{free_port()}; {volumes}}}\n"
        self.config_path.write_text(f"resource {RESOURCE} {{\n    net {{ protocol C; }}\n{hosts}}}\n")

    def prepare(self) -> None:
        self.write_config()
        for node in self.nodes:
            self.node_run_dir(node).mkdir()
            for n in range(self.case.volumes):
                make_sparse_file(Path(f"{self.disk_path(node)}{n}"), self.size_bytes)
            self.call(node, "create-md", RESOURCE)
        for node in self.nodes:
            self._up.append(node)
            self.call(node, "up", RESOURCE)
        self._pids = [pid for node in self.nodes for pid in processes_mentioning(str(self.node_run_dir(node)))]
        if len(self._pids) != len(self.nodes):
            raise BenchError(f"{len(self._pids)} daemons found after `up`")

    def start(self) -> None:
        self.prepare()
        self.call("alice", "wait-connect", RESOURCE)
        for n in range(self.case.volumes):
            self.call("alice", "new-current-uuid", "--clear-bitmap", f"{RESOURCE}/{n}")
        self.promote()
        for n in range(self.case.volumes):
            words = self.call("alice", "nbd-url", f"{RESOURCE}/{n}").split()
            self.uris.append(next(word for word in words if word.startswith("nbd")))

    def load(self, seconds: float, seed: int) -> float:
        """CPU microseconds of both nodes per write."""
        connections = max(1, self.case.clients // self.case.volumes)
        depth = max(1, TOTAL_DEPTH // (self.case.volumes * connections))
        before_s = cpu_seconds(self._pids)
        running = [
            subprocess.Popen(
                [str(LOAD_GENERATOR), "--mode", "randwrite", "--bs", "4096", "--qd", str(depth), "--connections",
                 str(connections), "--seconds", str(seconds), "--warmup", "0.2", "--span",
                 str(SPAN_BYTES // self.case.volumes), "--seed", str(seed), uri],
                stdout=subprocess.PIPE, text=True,
            )
            for uri in self.uris
        ]  # fmt: skip
        outputs = [process.communicate(timeout=LOAD_TIMEOUT_S)[0] for process in running]
        if any(process.returncode for process in running):
            raise BenchError(f"nbdload failed: {outputs}")
        requests = sum(json.loads(text)["requests_total"] for text in outputs)
        return (cpu_seconds(self._pids) - before_s) * 1e6 / max(1, requests)

    def memory_bytes(self) -> int:
        """The larger node's resident memory."""
        found = []
        for pid in self._pids:
            status = Path(f"/proc/{pid}/status").read_text()
            found.append(int(status.split("VmRSS:")[1].split()[0]) * 1024)
        return max(found)


def measure(case: Case, seconds: float, rounds: int, replctl: Path, disks: Path) -> tuple[float, int]:
    with (
        tempfile.TemporaryDirectory(prefix="repl-bench-") as run_dir,
        tempfile.TemporaryDirectory(prefix="repl-bench-", dir=disks) as disk_dir,
    ):
        pair = GrowingPair(case, Path(disk_dir) / "disks", Path(run_dir) / "run", replctl)
        try:
            pair.start()
            costs = [pair.load(seconds, n + 1) for n in range(rounds)]
            return statistics.median(costs), pair.memory_bytes()
        finally:
            pair.stop()


SERIES: dict[str, list[tuple[str, Case]]] = {
    "device size": [("1 GiB", Case()), ("1 TiB", Case(TIB)), ("16 TiB", Case(16 * TIB - 64 * MIB))],
    "clients": [("1", Case()), ("8", Case(clients=8)), ("64", Case(clients=64))],
    "volumes": [("1", Case(clients=8)), ("4", Case(volumes=4, clients=8)), ("8", Case(volumes=8, clients=8))],
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.growth", description="Cost of a write as things grow.")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one run (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of a case; the median counts (default 3)")
    parser.add_argument("--only", choices=sorted(SERIES), nargs="+")
    parser.add_argument("--replctl", type=Path, default=ROOT / ".venv/bin/replctl")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where the disk files go (a tmpfs)")
    options = parser.parse_args(arguments)
    build_load_generator()
    for name, cases in SERIES.items():
        if options.only and name not in options.only:
            continue
        print(f"\n{name:12} {'CPU us/write':>13} {'ratio':>6} {'memory MiB':>11} {'limit MiB':>10}")
        first = None
        for label, case in cases:
            try:
                cost, memory = measure(case, options.seconds, options.rounds, options.replctl, options.dir)
            except BenchError as error:
                print(f"{label:12} {error}")
                return 1
            first = first or cost
            limit = case.memory_limit_bytes // MIB
            print(f"{label:12} {cost:13.2f} {cost / first:6.2f} {memory // MIB:11} {limit:10}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
