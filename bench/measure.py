# SPDX-License-Identifier: Apache-2.0
"""Building and running the load generator, sampling server CPU time and the growth of a sparse file.

Inputs: an NBD URI, a `Cell` (what to do), process ids of the server. Outputs: `Sample` values (operations per
second, MB/s of 10^6 bytes, microseconds). Raises `BenchError` with a message for the user. CPU times are
those in /proc/<pid>/stat of the whole process tree, waited-for children included.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import statistics
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

BENCH_DIR = Path(__file__).resolve().parent
LOAD_GENERATOR = BENCH_DIR.parent / "build" / "bench" / "nbdload"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
READY_TIMEOUT_S = 30.0
RESULT_SLACK_S = 60.0
CHUNK_BYTES = 1 << 20
WARMUP_S = 0.2
BURSTS = 15
BURST_PAUSE_S = 0.3


class BenchError(Exception):
    """A benchmark step failed; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of load: access pattern, request size and depth; at a fixed rate, or in short bursts, if asked for."""

    mode: str
    block_bytes: int
    queue_depth: int
    rate_per_s: int = 0
    burst_requests: int = 0

    @property
    def sequential(self) -> bool:
        return self.mode.startswith("seq")

    @property
    def label(self) -> str:
        size = f"{self.block_bytes >> 20} MiB" if self.block_bytes >= 1 << 20 else f"{self.block_bytes >> 10} KiB"
        pace = f" at {self.rate_per_s}/s" if self.rate_per_s else ""
        pace += f" burst of {self.burst_requests}" if self.burst_requests else ""
        return f"{size} {self.mode} QD{self.queue_depth}{pace}"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run of one cell measured."""

    iops: float
    mb_per_s: float
    server_cpu_us_per_op: float
    client_cpu_us_per_op: float
    latency_p50_us: float
    latency_p99_us: float
    latency_p999_us: float
    latency_max_us: float


@dataclass(frozen=True, slots=True)
class SyncSample:
    """What one full synchronisation measured."""

    mb_per_s: float
    wall_s: float
    cpu_s_per_gb: float


def build_load_generator() -> Path:
    """Compiles nbdload if it is missing or older than its source."""
    done = subprocess.run(["make", "-s", "-C", str(BENCH_DIR)], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not LOAD_GENERATOR.exists():
        raise BenchError(f"building nbdload failed:\n{done.stdout}{done.stderr}")
    return LOAD_GENERATOR


def fill_file(path: Path, size_bytes: int) -> None:
    """Writes `size_bytes` of incompressible bytes, so that no page of the file is a hole."""
    chunk = os.urandom(CHUNK_BYTES)
    with path.open("wb") as file:
        for _ in range(size_bytes // CHUNK_BYTES):
            file.write(chunk)
        file.truncate(size_bytes)


def make_sparse_file(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)


def available_memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise BenchError("/proc/meminfo has no MemAvailable")


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def process_tree(roots: Iterable[int]) -> set[int]:
    """The processes themselves and all their living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat_fields(int(entry))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: set[int] = set()
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo.extend(children.get(pid, ()))
    return found


def cpu_seconds(roots: Sequence[int]) -> float:
    """User and system time of the trees below `roots`, with what their reaped children used."""
    ticks = 0
    for pid in process_tree(roots):
        fields = _stat_fields(pid)
        if fields is None:
            if pid in roots:
                raise BenchError(f"server process {pid} has died")
            continue
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / TICKS_PER_S


def read_line(process: subprocess.Popen[str], timeout_s: float, what: str) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], timeout_s)
    if not ready:
        raise BenchError(f"nbdload: no {what} within {timeout_s:.0f} s")
    return process.stdout.readline()


def run_cell(uri: str, pids: Sequence[int], cell: Cell, seconds: float, span_bytes: int, seed: int) -> Sample:
    """Runs one cell against a server; the server's CPU time is sampled while the connection is open."""
    if not cell.burst_requests:
        return _run_load(uri, pids, cell, seconds, span_bytes, seed)
    samples = []
    for number in range(BURSTS):
        time.sleep(BURST_PAUSE_S)  # what the burst before has left on the way is gone
        samples.append(_run_load(uri, pids, cell, 0.0, span_bytes, seed * BURSTS + number))
    values = [dataclasses.astuple(sample) for sample in samples]
    middle = Sample(*(statistics.median(column) for column in zip(*values, strict=True)))
    cpu = statistics.fmean(sample.server_cpu_us_per_op for sample in samples)  # a burst is shorter than a clock tick
    return dataclasses.replace(middle, server_cpu_us_per_op=cpu)


def _run_load(uri: str, pids: Sequence[int], cell: Cell, seconds: float, span_bytes: int, seed: int) -> Sample:
    warmup_s = 0.0 if cell.burst_requests else WARMUP_S
    command = [
        str(LOAD_GENERATOR), "--gate", "--mode", cell.mode, "--bs", str(cell.block_bytes),
        "--qd", str(cell.queue_depth), "--seconds", str(seconds), "--warmup", str(warmup_s),
        "--span", str(span_bytes), "--seed", str(seed), uri,
    ]  # fmt: skip
    if cell.rate_per_s:
        command += ["--rate", str(cell.rate_per_s)]
    if cell.burst_requests:
        command += ["--requests", str(cell.burst_requests)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        try:
            line = read_line(process, READY_TIMEOUT_S, "connection")
            if line.strip() != "ready":
                raise BenchError(process.stderr.read().strip() or "nbdload ended without a word")
            before_s = cpu_seconds(pids)
            process.stdin.write("\n")
            process.stdin.flush()
            line = read_line(process, seconds + warmup_s + RESULT_SLACK_S, "result")
            if not line:
                raise BenchError(process.stderr.read().strip() or "nbdload ended without a word")
            used_s = cpu_seconds(pids) - before_s
            process.stdin.close()
            status = process.wait(timeout=READY_TIMEOUT_S)
            if status != 0:
                raise BenchError(process.stderr.read().strip() or f"nbdload ended with status {status}")
        finally:
            if process.poll() is None:
                process.kill()
    result = json.loads(line)
    latency = result["latency_us"]
    return Sample(
        iops=result["iops"],
        mb_per_s=result["mb_per_s"],
        server_cpu_us_per_op=used_s * 1e6 / max(1, result["requests_total"]),
        client_cpu_us_per_op=result["client_cpu_us_per_op"],
        latency_p50_us=latency["p50"],
        latency_p99_us=latency["p99"],
        latency_p999_us=latency["p999"],
        latency_max_us=latency["max"],
    )


class GrowthMeter:
    """Watches a sparse file fill up: the copy rate as the target's disk sees it, free of commands' cost."""

    INTERVAL_S = 0.002
    SKIPPED_SHARE = 0.05

    def __init__(self, path: Path) -> None:
        self._path = path
        self._points: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> GrowthMeter:
        self._record()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._record()

    def _record(self) -> None:
        self._points.append((time.monotonic(), self._path.stat().st_blocks * 512))

    def _watch(self) -> None:
        while not self._stop.wait(self.INTERVAL_S):
            self._record()

    @property
    def grown_bytes(self) -> int:
        return self._points[-1][1] - self._points[0][1]

    def mb_per_s(self) -> float:
        """The rate between the first and the last 5 % of the growth."""
        base = self._points[0][1]
        low = base + self.grown_bytes * self.SKIPPED_SHARE
        high = base + self.grown_bytes * (1 - self.SKIPPED_SHARE)
        start = next((point for point in self._points if point[1] >= low), self._points[-1])
        end = next((point for point in self._points if point[1] >= high), self._points[-1])
        if end[0] <= start[0]:
            raise BenchError("the target did not grow: nothing was copied, or all at once")
        return (end[1] - start[1]) / (end[0] - start[0]) / 1e6
