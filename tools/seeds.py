#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs simulator seeds and says which fail and what was reached.

usage: .venv/bin/python tools/seeds.py [--first N] [--count N] [--jobs N] [--stop] [--log] [--twice] [--reach]
           [--steps N,N...] [--shrink] [--scenario KIND]

--stop ends at the first failure, --log prints the event log's tail of each failure, --twice runs each seed a second
time and compares the trace hashes (otherwise one in fifty), --reach prints the table of what was reached with its gaps
and, from REACH_SEEDS seeds on, takes one that has no reason (tests/sim/reach_gaps.py) for a failure.
--steps runs only these steps of the scenarios; --shrink looks for the fewest that still fail and prints that command.
--scenario ahead and pass_on are usual scenarios of one kind (tests/sim/mixes.py); primaries runs two Primaries, frozen
those whose I/O waits for the end of each interruption: these two know no --steps, --shrink and --reach.
Each failure is printed when it happens, with the command that shows it again, and the others go on.  Every PROGRESS_S
seconds one line says how far it is; the last lines say how many failed, of which kinds, and how long a seed took.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import re
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.sim.mixes import PLANS
from tests.sim.primaries import run_primaries
from tests.sim.reach import Reach, gaps, table
from tests.sim.reach_gaps import reason_of
from tests.sim.scenario import option_of, run_seed

CHUNK = 20
TWICE_EVERY = 50
PROGRESS_S = 30
REACH_SEEDS = 1500
HANGS_S = 300
SCENARIOS = (*PLANS, "primaries", "frozen")
Begins = Callable[[int], None]


@dataclass
class Chunk:
    """What came out of some seeds."""

    reach: Reach = field(default_factory=Reach)
    times: dict[int, float] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)


def kind_of(message: str) -> str:
    """The first line without its numbers."""
    return re.sub(r"\d+", "#", message.splitlines()[0])[:150]


def run_one(scenario: str, seed: int, steps: Sequence[int] | None, reach: Reach | None = None) -> int:
    """The trace's hash."""
    if scenario in PLANS:
        return run_seed(seed, kind=scenario, keep=steps, reach=reach)
    return run_primaries(seed, frozen=scenario == "frozen").trace


def run_chunk(seeds: range, options: argparse.Namespace, steps: Sequence[int] | None, *, begins: Begins) -> Chunk:
    chunk = Chunk()
    for seed in seeds:
        begins(seed)
        begin = time.process_time()
        try:
            trace = run_one(options.scenario, seed, steps, chunk.reach)
            again = options.twice or seed % TWICE_EVERY == 0
            moved = bytearray(1 << 20 | seed)  # other addresses the second time
            if again and run_one(options.scenario, seed, steps) != trace:
                raise AssertionError(f"seed {seed} took another course the second time")
            del moved
        except AssertionError as error:
            chunk.failures[seed] = str(error)
        except Exception as error:  # of the test itself: the other seeds go on
            chunk.failures[seed] = f"{type(error).__name__}: {error}"
        chunk.times[seed] = time.process_time() - begin
        if options.stop and chunk.failures:
            break
    return chunk


def run_apart(seeds: range, options: argparse.Namespace, steps: Sequence[int] | None) -> Iterator[Chunk]:
    """In a process of its own: one that dies or hangs costs the seed that it was at, not the others."""
    todo = [seeds]
    while todo:
        seeds = todo.pop(0)
        if not seeds:
            continue
        mine, its = multiprocessing.Pipe(duplex=False)

        def work(seeds: range = seeds, its: Connection = its) -> None:
            its.send(run_chunk(seeds, options, steps, begins=its.send))

        process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
        process.start()
        its.close()
        seed, chunk, why = seeds[0], None, ""
        try:
            while chunk is None:
                if not mine.poll(HANGS_S):
                    why = f"it does not end within {HANGS_S} s"
                    break
                message = mine.recv()
                seed, chunk = (message, None) if isinstance(message, int) else (seed, message)
        except EOFError:
            pass
        if chunk is None:
            process.kill()
        process.join()
        if chunk is None:
            why = why or f"the process died with {process.exitcode}"
            chunk = Chunk(failures={seed: why}, times={seed: 0.0})
            todo = [range(seeds[0], seed), range(seed + 1, seeds[-1] + 1)]  # what it had found is lost with it
        yield chunk


def run_all(options: argparse.Namespace, steps: Sequence[int] | None) -> Iterator[Chunk]:
    end = options.first + options.count
    chunks = iter([range(at, min(at + CHUNK, end)) for at in range(options.first, end, CHUNK)])
    lock = threading.Lock()
    results: queue.Queue[Chunk | None] = queue.Queue()
    is_over = threading.Event()

    def take() -> None:
        try:
            while not is_over.is_set():
                with lock:
                    seeds = next(chunks, None)
                if seeds is None:
                    return
                for chunk in run_apart(seeds, options, steps):
                    results.put(chunk)
        finally:
            results.put(None)

    for _ in range(options.jobs):
        threading.Thread(target=take, daemon=True).start()
    left = options.jobs
    try:
        while left:
            chunk = results.get()
            if chunk is None:
                left -= 1
            else:
                yield chunk
    finally:
        is_over.set()


def shrink(kind: str, seed: int) -> None:
    """Drop steps as long as the seed fails in the same way."""

    def failure(keep: Sequence[int]) -> str:
        try:
            run_seed(seed, kind=kind, keep=keep)
        except AssertionError as error:
            return kind_of(str(error))
        return ""

    all_steps = PLANS[kind](seed).steps
    keep = list(range(len(all_steps)))
    wanted = failure(keep)
    if not wanted:
        return
    for step in reversed(list(keep)):
        fewer = [n for n in keep if n != step]
        if failure(fewer) == wanted:
            keep = fewer
    names = " ".join(all_steps[n] for n in keep)
    steps = ",".join(map(str, keep)) or "none"
    print(f"seed {seed} still fails with: {names or 'no fault at all'}")
    again = f".venv/bin/python tools/seeds.py{option_of(kind)} --first {seed}"
    print(f"again: {again} --count 1 --log --steps {steps}", flush=True)


def progress(options: argparse.Namespace, done: int, failed: int, elapsed: float) -> str:
    rate = done / elapsed
    left = (options.count - done) / rate / 60
    return (
        f"{done} of {options.count} seeds (up to about {options.first + done - 1}), {failed} failed, "
        f"{rate * 3600:.0f} an hour, {left:.0f} minutes left"
    )


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
    parser.add_argument("--scenario", choices=SCENARIOS, default="usual", help="which scenarios (%(default)s)")
    options = parser.parse_args()
    if options.scenario not in PLANS and (options.steps or options.shrink or options.reach):
        parser.error(f"--scenario {options.scenario} knows no --steps, --shrink and --reach")
    steps = None
    if options.steps:
        steps = [] if options.steps == "none" else [int(n) for n in options.steps.split(",")]
    kinds: Counter[str] = Counter()
    example: dict[str, int] = {}
    times: dict[int, float] = {}
    reach = Reach()
    begin = shown = time.perf_counter()
    for chunk in run_all(options, steps):
        reach.add(chunk.reach)
        times.update(chunk.times)
        for seed, message in chunk.failures.items():
            kind = kind_of(message)
            kinds[kind] += 1
            example.setdefault(kind, seed)
            print(f"seed {seed}: {message if options.log else message.splitlines()[0][:300]}", flush=True)
            if not options.log:
                which = option_of(options.scenario)
                print(f"again: .venv/bin/python tools/seeds.py{which} --first {seed} --count 1 --log", flush=True)
            if options.shrink:
                shrink(options.scenario, seed)
        if options.stop and kinds:
            break
        now = time.perf_counter()
        if now > shown + PROGRESS_S:
            shown = now
            print(progress(options, len(times), kinds.total(), now - begin), flush=True)
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
    unexplained = [gap for gap in gaps(reach) if not reason_of(gap)] if options.reach else []
    if unexplained and len(times) >= REACH_SEEDS:
        print(f"not reached, and nobody knows why: {', '.join(unexplained)}")
        return 1
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
