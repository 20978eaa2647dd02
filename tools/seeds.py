#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs simulator seeds in one process and says which fail.

usage: .venv/bin/python tools/seeds.py [--first N] [--count N] [--stop] [--log] [--twice]

--stop ends at the first failure, --log prints the event log's tail of each failure, --twice runs each seed a second
time and compares the trace hashes.  The last lines say how many failed, of which kinds, and how long a seed took.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.sim.scenario import run_seed


def kind_of(message: str) -> str:
    """The first line without its numbers."""
    return re.sub(r"\d+", "#", message.splitlines()[0])[:150]


def main() -> int:
    parser = argparse.ArgumentParser(description="run simulator seeds")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--stop", action="store_true")
    parser.add_argument("--log", action="store_true")
    parser.add_argument("--twice", action="store_true")
    options = parser.parse_args()
    kinds: Counter[str] = Counter()
    example: dict[str, int] = {}
    times = []
    for seed in range(options.first, options.first + options.count):
        begin = time.perf_counter()
        try:
            trace = run_seed(seed)
            if options.twice and run_seed(seed) != trace:
                raise AssertionError("the same seed took another course the second time")
        except AssertionError as error:
            kind = kind_of(str(error))
            kinds[kind] += 1
            example.setdefault(kind, seed)
            print(f"seed {seed}: {str(error) if options.log else str(error).splitlines()[0][:300]}", flush=True)
            if options.stop:
                break
        times.append(time.perf_counter() - begin)
    for kind, count in kinds.most_common():
        print(f"{count:5} x {kind}   (seed {example[kind]})")
    middle = statistics.median(times) * 1000 if times else 0
    rate = len(times) / max(sum(times), 1e-9) * 3600
    print(f"{len(times)} seeds, {kinds.total()} failed, median {middle:.0f} ms, {rate:.0f} an hour")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
