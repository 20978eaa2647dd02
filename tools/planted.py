#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plants known bugs one by one into a copy of the tree: the tests must find each (``make planted``).

usage: .venv/bin/python tools/planted.py [--list] [--only NAME[,NAME...]] [--seeds N] [--seconds S] [--jobs N]

A bug is a file tests/planted/NAME.patch: header lines "Promise:" (P1..P12, the one that it breaks), "Bug:" and
"Found by:" (comma-separated: "seeds", "primaries" for seeds of two Primaries, or tests for pytest), then a unified diff
for ``patch -p1``.  Seeds are tried in turn until one fails that passes without the bug; N seeds (2000) and S seconds
(300) a detector and bug are the limits.  The exit status is 1 when a patch does not apply or build, or a bug is not
found.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATCHES = ROOT / "tests/planted"
PYTHON = ROOT / ".venv/bin/python"
SCENARIOS = ("seeds", "primaries")
FOLDERS = ("csrc", "repl", "nbd", "tests", "tools")
FILES = ("meson.build", "meson_options.txt", "pyproject.toml", "LICENSE", "README.md")
SKIPPED = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc", "corpus", "guest", "integration", "vectors")
MODULE_TARGET = "csrc/_repl_sim"
PROMISES = {f"P{n}" for n in range(1, 13)}
SEEDS_DEFAULT = 2000
SECONDS_DEFAULT = 300
SEED_SECONDS_MAX = 60
SEEDS_CLEAN = 10

# One line before and one after each seed, so that a dead process or one that hangs says which seed it was.
RUNNER = """
import sys
from tests.sim.primaries import run_primaries
from tests.sim.scenario import run_seed
first, last = map(int, sys.argv[1:3])
for seed in range(first, last + 1):
    print("seed", seed, flush=True)
    try:
        run_seed(seed) if sys.argv[3] == "seeds" else run_primaries(seed)
    except AssertionError as error:
        print("failed", seed, str(error).splitlines()[0], flush=True)
        sys.exit(1)
print("done", flush=True)
"""


@dataclass(frozen=True)
class Bug:
    """One patch."""

    name: str
    path: Path
    promise: str
    text: str
    detectors: tuple[str, ...]


@dataclass
class Result:
    """What came out for one bug."""

    bug: Bug
    found_by: str = ""
    message: str = ""
    seconds: float = 0.0
    error: str = ""
    tried: int = 0


def read_bug(path: Path) -> Bug:
    header = path.read_text().split("\n--- ", 1)[0]
    fields = dict(re.findall(r"^(Promise|Bug|Found by): *(.+)$", header, re.M))
    missing = {"Promise", "Bug", "Found by"} - set(fields)
    if missing:
        raise ValueError(f"{path.name}: no {', '.join(sorted(missing))}")
    if not set(fields["Promise"].replace(",", " ").split()) <= PROMISES:
        raise ValueError(f"{path.name}: promise {fields['Promise']!r}")
    detectors = tuple(d.strip() for d in fields["Found by"].split(","))
    return Bug(path.stem, path, fields["Promise"], fields["Bug"], detectors)


def all_bugs() -> list[Bug]:
    return [read_bug(path) for path in sorted(PATCHES.glob("*.patch"))]


def copy_tree(target: Path) -> None:
    """What the simulator needs, as it is in the checkout now."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=SKIPPED)
    for name in FILES:
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, target / name)


def apply(bug: Bug, tree: Path, *, reverse: bool = False, dry_run: bool = False) -> str:
    """"" or why the patch does not apply."""
    argv = ["patch", "-p1", "--no-backup-if-mismatch", "--forward", "--fuzz=2", "-i", str(bug.path)]
    if reverse:
        argv = [a for a in argv if a != "--forward"] + ["-R"]
    if dry_run:
        argv.append("--dry-run")
    done = subprocess.run(argv, cwd=tree, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return "" if done.returncode == 0 else done.stdout + done.stderr


class Builder:
    """One tree with one build folder: patches are put in and taken out, ninja compiles the difference."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        self.build = folder / "build"
        self.env = dict(os.environ, PATH=f"{ROOT}/.venv/bin:{os.environ['PATH']}")
        copy_tree(self.tree)
        options = ["-Dsim=true", "-Dtests=false"]
        self._run("meson", "setup", str(self.build), str(self.tree), *options)
        names = subprocess.run(
            ["ninja", "-C", str(self.build), "-t", "targets", "all"], env=self.env, capture_output=True, text=True
        ).stdout
        found = re.search(rf"^({MODULE_TARGET}\.[^ :]*\.so):", names, re.M)
        if found is None:
            sys.exit("planted: the simulator module is not a target of the build")
        self.module = found[1]
        self._run("ninja", "-C", str(self.build), "--quiet", self.module)

    def _run(self, *argv: str) -> None:
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv[:3])}:\n{(done.stdout + done.stderr)[-3000:]}")

    def make(self, bug: Bug | None, target: Path) -> None:
        """A tree of its own with the bug and its module."""
        if bug is not None and (why := apply(bug, self.tree)):
            raise RuntimeError(f"the patch does not apply:\n{why}")
        try:
            if bug is not None:  # also for a bug in Python: the module may have the one before
                self._run("ninja", "-C", str(self.build), "--quiet", self.module)
            for name in ("repl", "tests", "nbd"):
                shutil.copytree(self.tree / name, target / name)
            shutil.copy2(self.tree / "pyproject.toml", target)
            (target / "build/dev/csrc").mkdir(parents=True)
            shutil.copy2(self.build / self.module, target / "build/dev/csrc")
        finally:
            if bug is not None and (why := apply(bug, self.tree, reverse=True)):
                raise SystemExit(f"planted: {bug.name} cannot be taken out again:\n{why}")


class Hunt:
    """Looks for one bug in its tree."""

    def __init__(self, bug: Bug, tree: Path, clean: Path, options: argparse.Namespace) -> None:
        self.bug, self.tree, self.clean, self.options = bug, tree, clean, options
        self.result = Result(bug)

    def run(self) -> Result:
        begin = time.monotonic()
        for detector in self.bug.detectors:
            found = self._seeds(detector) if detector in SCENARIOS else self._tests(detector)
            if found:
                break
        self.result.seconds = time.monotonic() - begin
        return self.result

    def _env(self, tree: Path) -> dict[str, str]:
        return dict(os.environ, REPL_BUILD_DIR=str(tree / "build/dev"), PYTHONPATH=str(tree), CI="")

    def check_clean(self) -> str:
        """"" or how the first seeds fail without any bug: then nothing can be said."""
        seed, message = self._run_seeds("seeds", self.clean, 1, SEEDS_CLEAN, time.monotonic() + self.options.seconds)
        return f"seed {seed}: {message}" if message else ""

    def _tests(self, detector: str) -> bool:
        done = self._pytest(self.tree, detector)
        if done is None:
            self.result.found_by, self.result.message = detector, "it does not end"
            return True
        if done.returncode == 0:
            return False
        clean = self._pytest(self.clean, detector)
        if clean is None or clean.returncode != 0:
            self.result.error = f"{detector} fails without the bug as well"
            return False
        lines = [line[1:].strip() for line in done.stdout.splitlines() if line.startswith("E  ")]
        if done.returncode != 1 or not lines:
            self.result.error = (done.stdout + done.stderr)[-2000:]
            return False
        self.result.found_by = Path(detector).name
        self.result.message = next((line for line in lines if re.search(r"\bP\d+:|point \d", line)), lines[0])
        return True

    def _pytest(self, tree: Path, detector: str) -> subprocess.CompletedProcess[str] | None:
        argv = [str(PYTHON), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=short", *detector.split()]
        try:
            return subprocess.run(argv, cwd=tree, env=self._env(tree), capture_output=True, text=True,
                                  stdin=subprocess.DEVNULL, timeout=self.options.seconds)  # fmt: skip
        except subprocess.TimeoutExpired:
            return None

    def _seeds(self, scenario: str) -> bool:
        first, last = 1, self.options.seeds
        end = time.monotonic() + self.options.seconds
        while first <= last and time.monotonic() < end:
            seed, message = self._run_seeds(scenario, self.tree, first, last, end)
            if message is None:
                self.result.tried = max(self.result.tried, seed)
                return False
            self.result.tried = seed
            if self._run_seeds(scenario, self.clean, seed, seed, time.monotonic() + SEED_SECONDS_MAX)[1] is None:
                kind = "seed" if scenario == "seeds" else f"{scenario} seed"
                self.result.found_by, self.result.message = f"{kind} {seed}", message
                return True
            first = seed + 1  # it fails without the bug as well: it says nothing
        return False

    def _run_seeds(self, scenario: str, tree: Path, first: int, last: int, end: float) -> tuple[int, str | None]:
        """The last seed tried, and how it failed."""
        process = subprocess.Popen(
            [str(PYTHON), "-c", RUNNER, str(first), str(last), scenario], cwd=tree, env=self._env(tree), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        seed, noise, began = first, [], time.monotonic()
        stuck = threading.Event()
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                hangs = time.monotonic() - began > SEED_SECONDS_MAX
                if hangs:
                    stuck.set()
                if hangs or time.monotonic() > end:
                    process.kill()
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        message: str | None = None
        try:
            for line in process.stdout:
                if line.startswith("seed "):
                    seed, began, noise = int(line.split()[1]), time.monotonic(), []
                elif line.startswith("failed "):
                    message = line.split(" ", 2)[2].strip()
                else:
                    noise.append(line.strip())
        finally:
            status = process.wait()
            over.set()
            watcher.join()
        if message is None and stuck.is_set():
            message = f"it does not end within {SEED_SECONDS_MAX} s"
        elif message is None and status < 0 and not (status == -signal.SIGKILL and time.monotonic() >= end):
            message = f"{signal.Signals(-status).name}: {noise[-1] if noise else ''}"
        elif message is None and status > 0:
            message = f"exit status {status}: {noise[-1] if noise else ''}"
        return seed, message


def print_table(results: list[Result]) -> None:
    print(f"\n{'bug':28} {'breaks':7} {'found by':26} {'after':>7}  message")
    for result in results:
        if result.found_by:
            by, text = result.found_by, result.message
        elif result.error:
            by, text = "ERROR", result.error
        else:
            by, text = "NOT FOUND", f"{result.tried} seeds: {result.bug.text}"
        first = text.strip().splitlines()[0][:160] if text.strip() else ""
        print(f"{result.bug.name:28} {result.bug.promise:7} {by:26} {result.seconds:6.1f}s  {first}")


def main() -> int:
    parser = argparse.ArgumentParser(description="plant known bugs; the tests must find each")
    parser.add_argument("--list", action="store_true", help="print the bugs")
    parser.add_argument("--only", metavar="NAMES", help="comma-separated")
    parser.add_argument("--seeds", type=int, default=SEEDS_DEFAULT, help="most seeds a bug (%(default)s)")
    parser.add_argument("--seconds", type=int, default=SECONDS_DEFAULT, help="most seconds a detector (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="bugs at a time (%(default)s)")
    options = parser.parse_args()
    bugs = all_bugs()
    if options.list:
        for bug in bugs:
            print(f"{bug.name:28} {bug.promise:7} {bug.text}")
        return 0
    if options.only:
        names = options.only.split(",")
        if unknown := set(names) - {b.name for b in bugs}:
            sys.exit(f"planted: no bug {', '.join(sorted(unknown))}; see --list")
        bugs = [b for b in bugs if b.name in names]
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="planted-") as name, ThreadPoolExecutor(options.jobs) as pool:
        folder = Path(name)
        print("building without a bug", flush=True)
        builder = Builder(folder)
        clean = folder / "clean"
        clean.mkdir()
        builder.make(None, clean)
        if bugs and (why := Hunt(bugs[0], clean, clean, options).check_clean()):
            sys.exit(f"planted: the tree fails as it is: {why}")

        def hunt(bug: Bug, tree: Path) -> Result:
            result = Hunt(bug, tree, clean, options).run()
            shutil.rmtree(tree, ignore_errors=True)
            print(f"{bug.name}: {result.found_by or 'not found'}  {result.message[:150]}", flush=True)
            return result

        futures = []
        for bug in bugs:
            tree = folder / bug.name
            tree.mkdir()
            try:
                builder.make(bug, tree)
            except RuntimeError as error:
                print(f"{bug.name}: {error}", flush=True)
                results.append(Result(bug, error=str(error)))
                continue
            futures.append(pool.submit(hunt, bug, tree))
        results += [future.result() for future in futures]
    results.sort(key=lambda r: r.bug.name)
    print_table(results)
    found = sum(bool(r.found_by) for r in results)
    print(f"\n{found} of {len(results)} planted bugs found")
    return 0 if found == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
