#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs all contenders side by side and prints tables, ratios and our goals; writes the same as JSON.

`python bench/run.py` or `python -m bench.run`. Contenders of a section are all started first, then each
cell is run in alternating rounds (A, B, C, A, B, C, ...) and the medians are reported, so that a machine's
slow moments hit everybody.
Exit status: 0 measured, 1 something failed (or, with --strict, a goal is short), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench.contenders import (  # noqa: E402
    Contender,
    Nbdkit,
    NbdServer,
    QemuMirror,
    QemuMirrorNbdkit,
    QemuMirrorSync,
    QemuNbd,
    QemuQuorum,
    tool_versions,
)
from bench.goals import BURST_REQUESTS, FULL_SYNC, PACED_PER_S, Verdict, judge  # noqa: E402
from bench.measure import (  # noqa: E402
    BenchError,
    Cell,
    Sample,
    SyncSample,
    available_memory_bytes,
    build_load_generator,
    run_cell,
)
from bench.ours import (  # noqa: E402
    Ours,
    OursA,
    OursB,
    OursC,
    OursChecked,
    OursDistant,
    OursPlain,
    OursSync,
    OursVerify,
    OursVerifySha1,
)

SECTIONS = ("plain", "replicated", "distant", "resync", "verify")
BASELINES = {
    "plain": "nbdkit", "replicated": "qemu-mirror", "distant": "ours", "resync": "qemu-mirror-nbdkit",
    "verify": "ours-crc32c",
}  # fmt: skip
WHOLE_DEVICE = ("resync", "verify")
CONTENDERS: dict[str, tuple[type[Contender], ...]] = {
    "plain": (Nbdkit, QemuNbd, NbdServer, OursPlain),
    "replicated": (QemuMirror, QemuMirrorNbdkit, QemuQuorum, OursA, OursB, OursC, OursChecked, OursPlain),
    "distant": (OursPlain, OursA, OursDistant),
    "resync": (QemuMirrorSync, OursSync),
    "verify": (OursVerify, OursVerifySha1),
}
QUICK_SKIPPED = {"qemu-quorum", "ours-A", "ours-B", "nbd-server"}
MEMORY_SHARE = 0.75
SPAN_RESERVE_BYTES = 16 << 20


def cells_of(section: str, quick: bool) -> list[Cell]:
    if section == "distant":
        write = Cell("randwrite", 4096, 32)
        return [replace(write, rate_per_s=PACED_PER_S), replace(write, burst_requests=BURST_REQUESTS)]
    depths = (1, 32) if quick else (1, 32, 128)
    cells = [Cell("randwrite", 4096, depth) for depth in depths]
    if section == "plain":
        cells += [Cell("randread", 4096, depth) for depth in depths]
    cells.append(Cell("seqwrite", 1 << 20, 8))
    if section == "plain":
        cells.append(Cell("seqread", 1 << 20, 8))
    return cells


@dataclass(slots=True)
class Settings:
    """What the command line asks for."""

    sections: list[str]
    quick: bool
    seconds: float
    rounds: int
    size_bytes: int
    only_contenders: set[str] | None
    replctl: Path
    disk_base: Path

    @property
    def span_bytes(self) -> int:
        """The part of each export that is used: the same for all, with room for internal metadata."""
        return self.size_bytes - SPAN_RESERVE_BYTES


@dataclass(slots=True)
class Results:
    """Everything measured: section → contender → cell label → samples of all rounds."""

    samples: dict[str, dict[str, dict[str, list[Any]]]] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)

    def add(self, section: str, contender: str, cell: str, sample: Sample | SyncSample) -> None:
        self.samples.setdefault(section, {}).setdefault(contender, {}).setdefault(cell, []).append(sample)

    def problem(self, section: str, contender: str, kind: str, message: str) -> None:
        self.problems.append({"section": section, "contender": contender, "kind": kind, "message": message})
        say(f"  {contender}: {message}")

    def median(self, section: str, contender: str, cell: str, metric: str) -> float | None:
        samples = self.samples.get(section, {}).get(contender, {}).get(cell)
        return statistics.median(getattr(sample, metric) for sample in samples) if samples else None


def say(text: str = "") -> None:
    print(text, flush=True)


def make_contender(kind: type[Contender], settings: Settings, run_base: Path, disk_base: Path) -> Contender:
    places = (disk_base / kind.name, run_base / kind.name, settings.size_bytes)
    return kind(*places, settings.replctl) if issubclass(kind, Ours) else kind(*places)


def chosen(section: str, settings: Settings) -> list[type[Contender]]:
    kinds = list(CONTENDERS[section])
    if settings.only_contenders is not None:
        return [kind for kind in kinds if kind.name in settings.only_contenders]
    return [kind for kind in kinds if not (settings.quick and kind.name in QUICK_SKIPPED)]


@contextlib.contextmanager
def workspace(settings: Settings) -> Iterator[tuple[Path, Path]]:
    """A directory for sockets and one for disks, both removed at the end."""
    run_base = Path(tempfile.mkdtemp(prefix="repl-bench-"))
    disk_base = Path(tempfile.mkdtemp(prefix="repl-bench-", dir=settings.disk_base))
    try:
        yield run_base, disk_base
    finally:
        shutil.rmtree(run_base, ignore_errors=True)
        shutil.rmtree(disk_base, ignore_errors=True)


def check_memory(files: int, settings: Settings) -> None:
    needed = files * settings.size_bytes
    if needed > available_memory_bytes() * MEMORY_SHARE:
        raise BenchError(
            f"{files} disk files of {settings.size_bytes >> 20} MiB do not fit into memory; use --size or --contenders"
        )


def run_load_section(section: str, settings: Settings, results: Results) -> None:
    """Plain or replicated: all contenders up, then cell by cell in alternating rounds."""
    with workspace(settings) as (run_base, disk_base), contextlib.ExitStack() as stack:
        running: list[Contender] = []
        candidates = []
        for kind in chosen(section, settings):
            contender = make_contender(kind, settings, run_base, disk_base)
            reason = contender.missing()
            if reason is not None:
                results.problem(section, contender.name, "missing", reason)
            else:
                candidates.append(contender)
        check_memory(sum(contender.files for contender in candidates), settings)
        for contender in candidates:
            stack.callback(contender.stop)
            try:
                contender.start()
                running.append(contender)
            except (BenchError, OSError) as error:
                results.problem(section, contender.name, "failed", str(error))
        if not running:
            return
        for cell in cells_of(section, settings.quick):
            for number in range(settings.rounds):
                for contender in running:
                    try:
                        sample = run_cell(
                            contender.uri,
                            contender.pids(),
                            cell,
                            settings.seconds,
                            settings.span_bytes,
                            number + 1,
                        )
                        results.add(section, contender.name, cell.label, sample)
                    except BenchError as error:
                        results.problem(section, contender.name, "failed", f"{cell.label}: {error}")
            print_cell(section, cell, [contender.name for contender in running], results)


def run_device_section(section: str, settings: Settings, results: Results) -> None:
    """Something that is done to the whole device once, by each contender anew in every round."""
    names: list[str] = []
    for number in range(settings.rounds):
        for kind in chosen(section, settings):
            with workspace(settings) as (run_base, disk_base):
                contender = make_contender(kind, settings, run_base, disk_base)
                assert isinstance(contender, QemuMirrorSync | OursSync | OursVerify)
                reason = contender.missing()
                if reason is not None:
                    if number == 0:
                        results.problem(section, contender.name, "missing", reason)
                    continue
                check_memory(contender.files, settings)
                try:
                    results.add(section, contender.name, FULL_SYNC, contender.measure_sync())
                    if contender.name not in names:
                        names.append(contender.name)
                except (BenchError, OSError) as error:
                    results.problem(section, contender.name, "failed", str(error))
                finally:
                    contender.stop()
    print_device(section, names, results)


# ---- output -----------------------------------------------------------------------------------------------


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        say("    " + "  ".join(cells).rstrip())


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def ratio(value: float | None, base: float | None) -> str:
    return "-" if value is None or not base else f"{value / base:.2f}x"


def print_cell(section: str, cell: Cell, names: Sequence[str], results: Results) -> None:
    """One cell: rate and CPU of everybody, and their ratios to the section's baseline."""
    base_name = BASELINES[section]
    rate_metric, rate_title = ("mb_per_s", "MB/s") if cell.sequential else ("iops", "IOPS")

    def value(name: str, metric: str) -> float | None:
        return results.median(section, name, cell.label, metric)

    rows = []
    for name in names:
        rate, cpu = value(name, rate_metric), value(name, "server_cpu_us_per_op")
        rows.append([
            name, number(rate, 0), ratio(rate, value(base_name, rate_metric)),
            number(cpu), ratio(cpu, value(base_name, "server_cpu_us_per_op")),
            number(value(name, "latency_p50_us")), number(value(name, "latency_p99_us")),
            number(value(name, "latency_p999_us")), number(value(name, "client_cpu_us_per_op")),
        ])  # fmt: skip
    say(f"  {cell.label}")
    base = f"/{base_name}"
    head = ["", rate_title, base, "CPU us/op", base, "p50 us", "p99 us", "p99.9 us", "client us/op"]
    print_table(head, rows)


def print_device(section: str, names: Sequence[str], results: Results) -> None:
    def value(name: str, metric: str) -> float | None:
        return results.median(section, name, FULL_SYNC, metric)

    base = value(BASELINES[section], "mb_per_s")
    rows = [
        [name, number(value(name, "mb_per_s"), 0), ratio(value(name, "mb_per_s"), base),
         number(value(name, "wall_s"), 2), number(value(name, "cpu_s_per_gb"), 2)]
        for name in names
    ]  # fmt: skip
    if rows:
        print_table(["", "MB/s", f"/{BASELINES[section]}", "wall s", "CPU s/GB"], rows)


def print_goals(verdicts: Sequence[Verdict]) -> None:
    say("\ngoals")
    rows = []
    for verdict in verdicts:
        if verdict.measured is not None:
            measured = f"{number(verdict.measured, 2 if verdict.unit == 'x' else 1)} {verdict.unit}"
            rows.append([verdict.question, verdict.goal, measured, verdict.verdict])
    print_table(["question", "goal", "measured", ""], rows)
    if len(rows) < len(verdicts):
        say(f"    ({len(verdicts) - len(rows)} goals were not measured in this run)")


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def machine() -> dict[str, Any]:
    return {
        "cpu": cpu_model(), "cpus": len(os.sched_getaffinity(0)), "kernel": platform.release(),
        "load": list(os.getloadavg()), "tools": tool_versions(),
        "tcp": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
    }  # fmt: skip


def as_json(
    settings: Settings, results: Results, verdicts: Sequence[Verdict], started: str, host: Any
) -> dict[str, Any]:
    cells: list[dict[str, Any]] = []
    for section, contenders in results.samples.items():
        for contender, by_cell in contenders.items():
            for cell, samples in by_cell.items():
                metrics = asdict(samples[0]).keys()
                cells.append({
                    "section": section, "contender": contender, "cell": cell,
                    "median": {name: results.median(section, contender, cell, name) for name in metrics},
                    "rounds": [asdict(sample) for sample in samples],
                })  # fmt: skip
    return {
        "started": started,
        "machine": host,
        "settings": {
            "sections": settings.sections, "quick": settings.quick, "seconds": settings.seconds,
            "rounds": settings.rounds, "size_bytes": settings.size_bytes, "span_bytes": settings.span_bytes,
        },
        "cells": cells,
        "goals": [asdict(verdict) for verdict in verdicts],
        "problems": results.problems,
    }  # fmt: skip


# ---- command line -----------------------------------------------------------------------------------------


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise ValueError(text)
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def parse_arguments(arguments: Sequence[str] | None) -> tuple[Settings, argparse.Namespace]:
    names = sorted({kind.name for kinds in CONTENDERS.values() for kind in kinds})
    parser = argparse.ArgumentParser(prog="bench", description="Our exports against other servers, side by side.")
    parser.add_argument("--quick", action="store_true", help="2 s a cell in two rounds, fewer cells and contenders")
    parser.add_argument("--seconds", type=positive(float), help="measured time of one run of a cell (default 3)")
    parser.add_argument("--rounds", type=positive(int), help="alternating rounds (default 3)")
    parser.add_argument("--size", type=positive(int), default=1024, metavar="MIB", help="device size (default 1024)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="sections to run")
    parser.add_argument("--contenders", help=f"comma-separated, of: {', '.join(names)}")
    parser.add_argument("--replctl", type=Path, default=ROOT / ".venv/bin/replctl", help="our command line")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where the disk files go (a tmpfs)")
    parser.add_argument("--json", type=Path, help="result file (default bench/results/<date>.json)")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a goal is short")
    options = parser.parse_args(arguments)
    wanted = set(options.contenders.split(",")) if options.contenders else None
    if wanted is not None and not wanted <= set(names):
        parser.error(f"unknown contender: {', '.join(sorted(wanted - set(names)))} (known: {', '.join(names)})")
    if options.size < 64:
        parser.error("--size must be at least 64 MiB")
    settings = Settings(
        sections=[section for section in SECTIONS if options.only is None or section in options.only],
        quick=options.quick,
        seconds=options.seconds or (1.0 if options.quick else 3.0),
        rounds=int(options.rounds or (2 if options.quick else 3)),
        size_bytes=int(options.size) << 20,
        only_contenders=wanted,
        replctl=options.replctl,
        disk_base=options.dir,
    )
    return settings, options


def main(arguments: Sequence[str] | None = None) -> int:
    settings, options = parse_arguments(arguments)
    # Ending by a signal must still stop the servers and free the memory their disks use.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = Results()
    started = datetime.datetime.now().strftime("%Y-%m-%dT%H%M%S")
    try:
        build_load_generator()
        host = machine()
        say(f"{host['cpu']}, {host['cpus']} CPUs, Linux {host['kernel']}, TCP {host['tcp']}, "
            f"load {host['load'][0]:.2f}; {settings.size_bytes >> 20} MiB files in {settings.disk_base}, "
            f"{settings.rounds} rounds of {settings.seconds:g} s a cell")  # fmt: skip
        for section in settings.sections:
            say(f"\n{section}")
            if section in WHOLE_DEVICE:
                run_device_section(section, settings, results)
            else:
                run_load_section(section, settings, results)
    except BenchError as error:
        say(f"bench: {error}")
        return 1
    except BrokenPipeError:
        # Whoever read our output has left; the servers are stopped by now.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        say("bench: interrupted")
        return 130
    verdicts = judge(results.median)
    print_goals(verdicts)
    path = options.json or ROOT / "bench" / "results" / f"{started}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_json(settings, results, verdicts, started, host), indent=1) + "\n")
    say(f"\nwritten to {path}")
    failed = any(problem["kind"] == "failed" for problem in results.problems) or not results.samples
    short = any(verdict.verdict == "short" for verdict in verdicts)
    return 1 if failed or (options.strict and short) else 0


if __name__ == "__main__":
    sys.exit(main())
