#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures our 2x2 volume through FUSE next to GlusterFS's and a bare directory, and prints ratios and our goals.

`python -m bench.files [--quick] [--only create,heal] [--contenders ours,gluster] [--rounds N] [--folder DIR]`.
All volumes are up at the same time and take turns with each step; medians of all rounds are printed.  Needs root,
/dev/fuse and a folder on a file system with trusted.* attributes (no tmpfs).
Exit status: 0 measured, 1 something failed (or, with --strict, a goal is short), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.fileload import UNITS, FileSample, Load, Sizes
from bench.measure import BenchError
from bench.volumes import GlusterVolume, OursWithoutCaches, OurVolume, Volume

ROOT = Path(__file__).resolve().parent.parent
KINDS: tuple[type[Volume], ...] = (Volume, GlusterVolume, OursWithoutCaches, OurVolume)
QUICK = Sizes(files=300, stream_mib=64, random_mib=32, random_s=3.0, heal_files=200)


@dataclass(frozen=True, slots=True)
class Goal:
    """``ratio``: so many times better than GlusterFS."""

    cell: str
    ratio: float

    def measured(self, ours: float, theirs: float) -> float:
        return theirs / ours if UNITS[self.cell] == "s" else ours / theirs


GOALS = (
    Goal("create", 3), Goal("stat cold", 3), Goal("read cold", 3), Goal("unlink", 3), Goal("write 1 MiB", 1),
    Goal("read 1 MiB cold", 1), Goal("randwrite QD16", 3), Goal("untar", 4), Goal("heal", 3),
)  # fmt: skip


def say(text: str = "") -> None:
    print(text, flush=True)


class Results:
    """Contender -> cell -> samples of all rounds."""

    def __init__(self) -> None:
        self.samples: dict[str, dict[str, list[FileSample]]] = {}
        self.problems: list[str] = []

    def add(self, name: str, samples: dict[str, FileSample]) -> None:
        for cell, sample in samples.items():
            self.samples.setdefault(name, {}).setdefault(cell, []).append(sample)

    def median(self, name: str, cell: str, metric: str = "value") -> float | None:
        found = self.samples.get(name, {}).get(cell)
        return statistics.median(getattr(sample, metric) for sample in found) if found else None


def run_step(load: Load, step: str, results: Results) -> None:
    try:
        load.steps()[step]()
    except (BenchError, OSError) as error:
        results.problems.append(f"{load.volume.name}: {step}: {error!r}")


def measure(kinds: list[type[Volume]], settings: argparse.Namespace, results: Results) -> None:
    base = Path(tempfile.mkdtemp(prefix="repl-bench-files-", dir=settings.folder))
    only = set(filter(None, settings.only.split(",")))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        running: list[Volume] = []
        for kind in kinds:
            volume = kind(base / kind.name)
            reason = volume.missing()
            if reason is not None:
                results.problems.append(f"{volume.name}: {reason}")
                continue
            volume.folder.mkdir()
            stack.callback(volume.stop)
            volume.start()
            running.append(volume)
        for number in range(settings.rounds):
            loads = [Load(volume, QUICK if settings.quick else Sizes(), number) for volume in running]
            for step in loads[0].steps():
                if not only or any(step.startswith(word) for word in only):
                    say(f"round {number + 1} of {settings.rounds}: {step}")
                    for load in loads:
                        run_step(load, step, results)
            for load in loads:
                results.add(load.volume.name, load.samples)


def print_tables(results: Results, names: list[str]) -> bool:
    """True if every goal that could be judged is met."""
    say("\n4 KiB files, 2x2; in brackets: CPU us for one operation, all processes of the volume")
    say(f"{'':18}" + "".join(f"{name:>20}" for name in names))
    for cell, unit in UNITS.items():
        row = ""
        for name in names:
            value, cpu = results.median(name, cell), results.median(name, cell, "cpu_us")
            row += f"{f'{value:.4g} {unit} [{cpu:.0f}]':>20}" if value is not None and cpu is not None else f"{'-':>20}"
        say(f"{cell:18}{row}")
    say(f"\n{'goal':18}{'wanted':>10}{'measured':>10}")
    is_met = True
    for goal in GOALS:
        ours, theirs = results.median("ours", goal.cell), results.median("gluster", goal.cell)
        if not ours or not theirs:
            say(f"{goal.cell:18}{goal.ratio:>9g}x{'-':>10}")
            continue
        measured = goal.measured(ours, theirs)
        is_met = is_met and measured >= goal.ratio
        say(f"{goal.cell:18}{goal.ratio:>9g}x{measured:>9.2f}x  {'ok' if measured >= goal.ratio else 'short'}")
    return is_met


def write_json(results: Results, settings: argparse.Namespace) -> Path:
    folder = ROOT / "bench" / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"files-{datetime.datetime.now():%Y-%m-%d-%H%M%S}.json"
    cells = [
        {"contender": name, "cell": cell, "unit": UNITS[cell], "median": results.median(name, cell),
         "cpu_us": results.median(name, cell, "cpu_us"), "rounds": [sample.value for sample in samples]}
        for name, found in results.samples.items() for cell, samples in found.items()
    ]  # fmt: skip
    content = {"cells": cells, "problems": results.problems, "quick": settings.quick, "cpus": os.cpu_count()}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.files", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little of everything: a first impression")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cells, by the beginning of their names: " + ", ".join(UNITS))
    parser.add_argument("--contenders", default="bare,gluster,ours")
    parser.add_argument("--folder", default=str(ROOT / "build"), help="where bricks and mounts are made")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a goal is short")
    settings = parser.parse_args()
    wanted = settings.contenders.split(",")
    kinds = [kind for kind in KINDS if kind.name in wanted]
    if len(kinds) != len(wanted):
        parser.error("contenders are " + ", ".join(kind.name for kind in KINDS))
    if os.geteuid() != 0:
        parser.error("needs root")
    results = Results()
    measure(kinds, settings, results)
    is_met = print_tables(results, [kind.name for kind in kinds])
    for problem in results.problems:
        say(problem)
    say(f"\nwritten to {write_json(results, settings)}")
    if any(not problem.startswith("gluster: gluster") for problem in results.problems):
        return 1
    return 1 if settings.strict and not is_met else 0


if __name__ == "__main__":
    sys.exit(main())
