#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs simulator seeds and says which fail and what was reached.

usage: .venv/bin/python tools/seeds.py [--first N] [--count N] [--jobs N] [--stop] [--log] [--twice] [--reach]
           [--steps N,N...] [--shrink]

--stop ends at the first failure, --log prints the event log's tail of each failure, --twice runs each seed a second
time and compares the trace hashes (otherwise one in fifty), --reach prints the table of what was reached with its gaps.
--steps runs only these steps of the scenarios; --shrink looks for the fewest that still fail and prints that command.
The last lines say how many failed, of which kinds, and how long a seed took.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.sim.reach import Reach, table
from tests.sim.scenario import draw, run_seed

CHUNK = 20
TWICE_EVERY = 50


@dataclass
class Chunk:
    """What came out of some seeds."""

    reach: Reach = field(default_factory=Reach)
    times: dict[int, float] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)


def kind_of(message: str) -> str:
    """The first line without its numbers."""
    return re.sub(r"\d+", "#", message.splitlines()[0])[:150]


def run_chunk(seeds: range, steps: Sequence[int] | None, twice: bool, stop: bool) -> Chunk:
    chunk = Chunk()
    for seed in seeds:
        begin = time.process_time()
        try:
            trace = run_seed(seed, keep=steps, reach=chunk.reach)
            again = twice or seed % TWICE_EVERY == 0
            moved = bytearray(1 << 20 | seed)  # other addresses the second time
            if again and run_seed(seed, keep=steps) != trace:
                raise AssertionError(f"seed {seed} took another course the second time")
            del moved
        except AssertionError as error:
            chunk.failures[seed] = str(error)
        chunk.times[seed] = time.process_time() - begin
        if stop and chunk.failures:
            break
    return chunk


def run_all(options: argparse.Namespace, steps: Sequence[int] | None) -> Iterator[Chunk]:
    end = options.first + options.count
    chunks = [range(at, min(at + CHUNK, end)) for at in range(options.first, end, CHUNK)]
    if options.jobs <= 1:
        for seeds in chunks:
            yield run_chunk(seeds, steps, options.twice, options.stop)
        return
    with ProcessPoolExecutor(options.jobs) as pool:
        same = [[value] * len(chunks) for value in (steps, options.twice, options.stop)]
        yield from pool.map(run_chunk, chunks, *same)


def shrink(seed: int) -> None:
    """Drop steps as long as the seed fails in the same way."""

    def failure(keep: Sequence[int]) -> str:
        try:
            run_seed(seed, keep=keep)
        except AssertionError as error:
            return kind_of(str(error))
        return ""

    keep = list(range(len(draw(seed).steps)))
    wanted = failure(keep)
    if not wanted:
        return
    for step in reversed(list(keep)):
        fewer = [n for n in keep if n != step]
        if failure(fewer) == wanted:
            keep = fewer
    names = " ".join(draw(seed).steps[n] for n in keep)
    steps = ",".join(map(str, keep)) or "none"
    print(f"seed {seed} still fails with: {names or 'no fault at all'}")
    print(f"again: .venv/bin/python tools/seeds.py --first {seed} --count 1 --log --steps {steps}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="run simulator seeds")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--stop", action="store_true", help="end at the first failure")
    parser.add_argument("--log", action="store_true", help="print the log of failures")
    parser.add_argument("--twice", action="store_true", help="run each a second time")
    parser.add_argument("--reach", action="store_true", help="print what was reached")
    parser.add_argument("--steps", metavar="N,N...", help='only these steps of the scenarios, or "none"')
    parser.add_argument("--shrink", action="store_true", help="find the fewest steps that still fail")
    options = parser.parse_args()
    steps = None
    if options.steps:
        steps = [] if options.steps == "none" else [int(n) for n in options.steps.split(",")]
    kinds: Counter[str] = Counter()
    example: dict[str, int] = {}
    times: dict[int, float] = {}
    reach = Reach()
    begin = time.perf_counter()
    for chunk in run_all(options, steps):
        reach.add(chunk.reach)
        times.update(chunk.times)
        for seed, message in chunk.failures.items():
            kind = kind_of(message)
            kinds[kind] += 1
            example.setdefault(kind, seed)
            print(f"seed {seed}: {message if options.log else message.splitlines()[0][:300]}", flush=True)
            if options.shrink:
                shrink(seed)
        if options.stop and kinds:
            break
    elapsed = time.perf_counter() - begin
    if options.reach:
        print("\n".join(table(reach)))
    for kind, count in kinds.most_common():
        print(f"{count:5} x {kind}   (seed {example[kind]})")
    slowest = sorted(times, key=lambda seed: times[seed])[-3:]
    print("slowest: " + ", ".join(f"seed {seed} {times[seed]:.1f} s" for seed in slowest))
    middle = statistics.median(times.values()) * 1000 if times else 0
    each = len(times) / max(sum(times.values()), 1e-9) * 3600
    print(
        f"{len(times)} seeds, {kinds.total()} failed, median {middle:.0f} ms, {each:.0f} an hour and process, "
        f"{len(times) / max(elapsed, 1e-9) * 3600:.0f} an hour in all ({os.cpu_count()} processors)"
    )
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
