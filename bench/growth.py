#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does an operation cost the same on a large device, with many clients, with many volumes?

`python -m bench.growth`: two nodes on this machine, protocol C, 4 KiB random writes; one quantity grows at a time, the
load generator's form stays.  Prints CPU time per write of both nodes together, its ratio to the smallest case, and each
node's memory beside its limit: 64 MiB + 32 MiB per TiB + the configured buffers.  Where clients share a fixed number of
requests in flight, system calls for each socket grow in any server: nbdkit's figures for that load stand beside ours.
Exit status: 0 measured, 1 something failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
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

from bench.contenders import Nbdkit, free_port  # noqa: E402
from bench.measure import (  # noqa: E402
    LOAD_GENERATOR,
    READY_TIMEOUT_S,
    RESULT_SLACK_S,
    BenchError,
    build_load_generator,
    cpu_seconds,
    make_sparse_file,
    read_line,
)
from bench.ours import RESOURCE, Ours, processes_mentioning  # noqa: E402

GIB, TIB, MIB = 1 << 30, 1 << 40, 1 << 20
SPAN_BYTES = 128 * MIB
BASE_MEMORY_BYTES, MEMORY_PER_TIB_BYTES = 64 * MIB, 32 * MIB
# What csrc/engine sets aside at most: clients' and the peer's payloads, metadata pages.
BUFFER_BYTES = (128 + 64 + 8) * MIB


@dataclass(frozen=True, slots=True)
class Case:
    """One pair and its load: the volumes' size, how many volumes, how many clients in all, what each keeps in flight,
    and how many processes they are (a process with several clients wakes up once for all of them)."""

    size_bytes: int = GIB
    volumes: int = 1
    clients: int = 1
    depth: int = 64
    processes: int = 1

    @property
    def memory_limit_bytes(self) -> int:
        return BASE_MEMORY_BYTES + MEMORY_PER_TIB_BYTES * self.size_bytes * self.volumes // TIB + BUFFER_BYTES


@dataclass(frozen=True, slots=True)
class Series:
    """Cases of which one quantity grows."""

    title: str
    cases: tuple[tuple[str, Case], ...]
    beside_nbdkit: bool = False


def load(uris: Sequence[str], pids: Sequence[int], case: Case, seconds: float, seed: int) -> float:
    """The servers' CPU microseconds per write, sampled while all clients are connected."""
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [str(LOAD_GENERATOR), "--gate", "--mode", "randwrite", "--bs", "4096", "--qd", str(case.depth),
                     "--connections", str(case.clients // case.processes), "--seconds", str(seconds),
                     "--span", str(SPAN_BYTES // case.volumes), "--seed", str(seed * case.processes + n),
                     uris[n % len(uris)]],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )
            for n in range(case.processes)
        ]  # fmt: skip
        try:
            if any(read_line(process, READY_TIMEOUT_S, "connection").strip() != "ready" for process in running):
                raise BenchError("nbdload could not connect")
            before_s = cpu_seconds(pids)
            for process in running:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            lines = [read_line(process, seconds + RESULT_SLACK_S, "result") for process in running]
            used_s = cpu_seconds(pids) - before_s
            for process in running:
                process.communicate(timeout=READY_TIMEOUT_S)
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
    if any(process.returncode for process in running):
        raise BenchError(f"nbdload failed: {lines}")
    requests = sum(int(json.loads(line)["requests_total"]) for line in lines)
    return used_s * 1e6 / max(1, requests)


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

    def memory_bytes(self) -> int:
        """The larger node's resident memory."""
        found = []
        for pid in self._pids:
            status = Path(f"/proc/{pid}/status").read_text()
            found.append(int(status.split("VmRSS:")[1].split()[0]) * 1024)
        return max(found)


@dataclass(frozen=True, slots=True)
class Result:
    """Medians of one case."""

    cost_us: float
    memory_bytes: int
    nbdkit_us: float | None


def measure(series: Series, seconds: float, rounds: int, replctl: Path, disks: Path) -> list[Result]:
    """All pairs of a series are up together and take turns, so that a machine's slow moments hit all of them."""
    cases = [case for _, case in series.cases]
    with contextlib.ExitStack() as stack:
        pairs = []
        for case in cases:
            folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="repl-bench-", dir=at)))
                       for at in (disks, None)]  # fmt: skip
            pair = GrowingPair(case, folders[0] / "disks", folders[1] / "run", replctl)
            stack.callback(pair.stop)
            pair.start()
            pairs.append(pair)
        yardstick = None
        if series.beside_nbdkit:
            folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="repl-bench-", dir=at)))
                       for at in (disks, None)]  # fmt: skip
            yardstick = Nbdkit(folders[0] / "disks", folders[1] / "run", SPAN_BYTES)
            stack.callback(yardstick.stop)
            if yardstick.missing():
                yardstick = None
            else:
                yardstick.start()
        costs: list[list[float]] = [[] for _ in cases]
        others: list[list[float]] = [[] for _ in cases]
        for seed in range(rounds + 1):  # the first fills the files and is not counted
            for n, (case, pair) in enumerate(zip(cases, pairs, strict=True)):
                costs[n].append(load(pair.uris, pair.pids(), case, seconds, seed))
                if yardstick:
                    others[n].append(load([yardstick.uri], yardstick.pids(), case, seconds, seed))
        return [
            Result(
                statistics.median(costs[n][1:]),
                pair.memory_bytes(),
                statistics.median(others[n][1:]) if others[n] else None,
            )
            for n, pair in enumerate(pairs)
        ]


SERIES = {
    "size": Series("device size",
                   (("1 GiB", Case()), ("1 TiB", Case(TIB)), ("16 TiB", Case(16 * TIB - 64 * MIB)))),
    "clients": Series("clients, each with 32 in flight",
                      tuple((str(n), Case(clients=n, depth=32)) for n in (1, 8, 64))),
    "shared-depth": Series("clients, 64 in flight in all",
                           tuple((str(n), Case(clients=n, depth=64 // n)) for n in (1, 8, 64)), beside_nbdkit=True),
    "volumes": Series("volumes, 8 clients",
                      tuple((str(n), Case(volumes=n, clients=8, depth=8, processes=8)) for n in (1, 4, 8))),
}  # fmt: skip


def print_series(series: Series, results: Sequence[Result]) -> None:
    beside = f" {'nbdkit us':>10} {'ratio':>6}" if results[0].nbdkit_us else ""
    print(f"\n{series.title:32} {'CPU us/write':>13} {'ratio':>6} {'memory MiB':>11} {'limit MiB':>10}{beside}")
    for (label, case), result in zip(series.cases, results, strict=True):
        ratio = result.cost_us / results[0].cost_us
        memory, limit = result.memory_bytes // MIB, case.memory_limit_bytes // MIB
        beside = ""
        if result.nbdkit_us and results[0].nbdkit_us:
            beside = f" {result.nbdkit_us:10.2f} {result.nbdkit_us / results[0].nbdkit_us:6.2f}"
        print(f"{label:32} {result.cost_us:13.2f} {ratio:6.2f} {memory:11} {limit:10}{beside}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.growth", description="Cost of a write as things grow.")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one run (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of a case; the median counts (default 5)")
    parser.add_argument("--only", choices=sorted(SERIES), nargs="+")
    parser.add_argument("--replctl", type=Path, default=ROOT / ".venv/bin/replctl")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where the disk files go (a tmpfs)")
    options = parser.parse_args(arguments)
    try:
        build_load_generator()
        for name, series in SERIES.items():
            if not options.only or name in options.only:
                print_series(series, measure(series, options.seconds, options.rounds, options.replctl, options.dir))
    except BenchError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
