# SPDX-License-Identifier: Apache-2.0
"""Clients of one mount each that work on the same files: appended lines, counters under locks, names that only one may
make, and readers of what a ``Tree`` replaces.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections import Counter as Counts
from collections.abc import Sequence
from pathlib import Path

from tests.soak_files.tree import ALWAYS, Tree, short
from tests.soak_files.worker import STALE_S, Failed, FileWorker, World, read_whole, write_whole

LOGS = 2
LOCK_TRIES_S = 0.01
PADDING = (0, 0, 30, 300, 5000)


class Appender(FileWorker):
    """Appends lines to a log that others append to as well: nothing is lost, nothing comes twice."""

    def __init__(self, world: World, name: str, seed: int, home: str, log: str) -> None:
        super().__init__(world, name, seed, home)
        self.log = log
        self.lines: list[tuple[bytes, bool]] = []  # and whether it was acknowledged
        self._fd = -1
        self._waiting: list[int] = []  # lines that were written and not synced
        self._start()

    def prepare(self, mount: Path) -> None:
        (mount / self.log).touch()

    def _arrive(self) -> None:
        path = self.root / self.log
        self._fd = self._attempt("open", lambda: os.open(path, os.O_WRONLY | os.O_APPEND))

    def _leave(self) -> None:
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            self._attempt("fsync", lambda: os.fsync(fd))
        except Failed:
            self._waiting.clear()
        else:
            self._synced()
        finally:
            try:
                os.close(fd)
            except OSError:
                pass

    def _turn(self) -> None:
        if self._fd < 0:  # it could not be opened after a failure
            self._arrive()
        line = b"%s %06d %s\n" % (self.name.encode(), len(self.lines), b"." * self.chance.choice(PADDING))
        self.lines.append((line, False))
        try:
            count = self._attempt("append", lambda: os.write(self._fd, line))
            assert count == len(line), f"{count} bytes of {len(line)} were appended"
            self._waiting.append(len(self.lines) - 1)
            if self.chance.random() < 0.4:
                self._attempt("fsync", lambda: os.fsync(self._fd))
                self._synced()
        except Failed:
            self._waiting.clear()
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)
            except OSError:
                pass
            if self.view is not None and self.view.is_alive:
                self._arrive()
            raise

    def _synced(self) -> None:
        for at in self._waiting:
            self.lines[at] = (self.lines[at][0], True)
        self._waiting.clear()

    def final_problems(self, root: Path) -> list[str]:
        return log_problems(read_whole(root / self.log), self.log, [self])


def log_problems(data: bytes, log: str, appenders: Sequence[Appender]) -> list[str]:
    lines = data.splitlines(keepends=True)
    found = []
    for one in appenders:
        mine = [line for line in lines if line.startswith(one.name.encode() + b" ")]
        sent = dict(one.lines)
        missing = [line for line, is_acknowledged in one.lines if is_acknowledged and line not in set(mine)]
        strange = [line for line in mine if line not in sent]
        twice = [line for line, count in Counts(mine).items() if count > 1]
        order = [line for line in mine if sent.get(line)]
        for what, those in (("missing", missing), ("strange", strange), ("twice", twice)):
            if those:
                found.append(f"{log}: {len(those)} lines of {one.name} {what}, first {those[0][:60]!r}")
        if order != sorted(order):
            found.append(f"{log}: lines of {one.name} are out of order")
    return found


class Counter(FileWorker):
    """Counts in a file under a lock; the file says how far everybody has counted."""

    def __init__(self, world: World, name: str, seed: int, home: str, file: str, *, is_flock: bool) -> None:
        super().__init__(world, name, seed, home)
        self.file = file
        self.counted = 0  # acknowledged
        self.maybe = 0  # the highest that may stand there
        self._is_flock = is_flock
        self._start()

    def prepare(self, mount: Path) -> None:
        if not (mount / self.file).exists():
            (mount / self.file).write_text("{}")

    def _turn(self) -> None:
        path = self.root / self.file
        fd = self._attempt("open", lambda: os.open(path, os.O_RDWR))
        try:
            self._lock(fd)
            found = self._attempt("read", lambda: self._read(fd))
            self._judge(found)
            value = found | {self.name: self.maybe + 1}
            self.maybe += 1
            text = json.dumps(value).encode()
            self._attempt("write", lambda: self._write(fd, text))
            self.counted = self.maybe
        finally:
            try:
                os.close(fd)  # the lock goes with it
            except OSError:
                self.counted = min(self.counted, self.maybe)

    def _lock(self, fd: int) -> None:
        call = fcntl.flock if self._is_flock else fcntl.lockf
        while True:
            try:
                self._attempt("lock", lambda: call(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), answers=[errno.EAGAIN])
                return
            except BlockingIOError:
                if not self._goes_on() or self.view is None or not self.view.is_alive:
                    raise Failed from None
                time.sleep(LOCK_TRIES_S)

    def _read(self, fd: int) -> dict[str, int]:
        data = os.pread(fd, 4096, 0)
        try:
            found: dict[str, int] = json.loads(data)
        except ValueError:
            self.problem(f"{self.file} has {short(data)}")
            return {self.name: self.maybe}
        return found

    def _write(self, fd: int, text: bytes) -> None:
        """Longer than what was there: what is there is never nothing."""
        os.pwrite(fd, text, 0)
        os.fsync(fd)

    def _judge(self, found: dict[str, int]) -> None:
        mine = found.get(self.name, 0)
        if not self.counted <= mine <= self.maybe:
            self.problem(f"{self.file} says {mine}, {self.counted} was acknowledged, {self.maybe} was tried: {found}")
        self.counted = mine

    def final_problems(self, root: Path) -> list[str]:
        data = (root / self.file).read_bytes()
        mine = json.loads(data).get(self.name, 0)
        if self.counted <= mine <= self.maybe:
            return []
        return [f"{self.file} says {mine}, {self.counted} was acknowledged, {self.maybe} was tried: {data!r}"]


class Winners:
    """Who was told to have made a name, and which name everybody tries to make."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0
        self._trying: dict[str, int] = {}
        self._by_number: dict[int, list[str]] = {}

    def begin(self, who: str) -> int:
        with self._lock:
            self._trying[who] = self._next
            return self._next

    def over(self, who: str, number: int, *, is_won: bool) -> list[str]:
        """All that have won it."""
        with self._lock:
            self._next = max(self._next, number + 1)
            self._trying[who] = self._next
            found = self._by_number.setdefault(number, [])
            if is_won:
                found.append(who)
            return list(found)

    def nobody_tries(self, number: int) -> bool:
        with self._lock:
            return all(number < other for other in self._trying.values())


class Exclusive(FileWorker):
    """Tries to be the first to make each name: a file with O_EXCL, a directory, a link."""

    FOLDER = "exclusive"

    def __init__(self, world: World, name: str, seed: int, home: str, winners: Winners) -> None:
        super().__init__(world, name, seed, home)
        self.winners = winners
        self.mine: list[int] = []  # names that are to be removed
        self._start()

    def prepare(self, mount: Path) -> None:
        (mount / self.FOLDER).mkdir(exist_ok=True)
        (mount / self.FOLDER / f"own-{self.name}").write_text(self.name)

    def _turn(self) -> None:
        number = self.winners.begin(self.name)
        is_won = False
        try:
            self._attempt(f"make n{number}", lambda: self._make(number), answers=[errno.EEXIST])
            is_won = True
        except FileExistsError:
            return
        finally:  # after a failure nobody knows who has it
            others = self.winners.over(self.name, number, is_won=is_won)
        if len(others) > 1:
            self.problem(f"n{number} was made by {others}")
        self.mine.append(number)
        if number % 3 == 0:
            path = self.root / self.FOLDER / f"n{number}"
            data = self._attempt(f"read n{number}", lambda: read_whole(path))
            if data != self.name.encode():
                self.problem(f"n{number} was made by {self.name} and has {data!r}")
        if self.winners.nobody_tries(self.mine[0]):
            self._remove(self.mine.pop(0))

    def _make(self, number: int) -> None:
        folder = self.root / self.FOLDER
        path = folder / f"n{number}"
        if number % 3 == 0:
            write_whole(path, self.name.encode(), os.O_CREAT | os.O_EXCL)
        elif number % 3 == 1:
            os.mkdir(path)
        else:
            os.link(folder / f"own-{self.name}", path)

    def _remove(self, number: int) -> None:
        path = self.root / self.FOLDER / f"n{number}"
        remove = os.rmdir if number % 3 == 1 else os.unlink
        try:
            self._attempt(f"remove n{number}", lambda: remove(path), answers=[errno.ENOENT])
        except FileNotFoundError:
            self.problem(f"n{number} was made by {self.name} and is not there")


class Reader(FileWorker):
    """Reads what ``Tree`` clients replace: whole files only, none that has been gone for long."""

    def __init__(self, world: World, name: str, seed: int, trees: Sequence[Tree], home: str) -> None:
        super().__init__(world, name, seed, home)
        self._trees = trees
        self._last: dict[str, int] = {}
        self._start()

    def _arrive(self) -> None:
        self._last.clear()  # another mount may be behind the one before, for a moment

    def _turn(self) -> None:
        tree = self.chance.choice(self._trees)
        name = self.chance.choice([ALWAYS, *list(tree.slots)])
        begin = time.monotonic()
        try:
            path = self.root / tree.name / name
            data = self._attempt(f"read {tree.name}/{name}", lambda: read_whole(path), answers=[errno.ENOENT])
        except FileNotFoundError:
            if name == ALWAYS:
                self.problem(f"{tree.name}/{name} is not there: {tree.history.get(name)}")
            return
        self.reads += 1
        self._judge(tree, name, data, begin)

    def _judge(self, tree: Tree, name: str, data: bytes, begin: float) -> None:
        words = data[:64].replace(b"-", b" ").split()
        known = len(words) > 1 and words[0] == tree.name.encode() and words[1].isdigit()
        thing = tree.things.get(int(words[1])) if known else None
        where = f"{tree.name}/{name} read on {self.view.name if self.view else ''}"
        if name.startswith("new") or (thing is not None and thing.is_partial):
            return
        if thing is None or data != thing.content:
            self.problem(f"{where}: {short(data)}: {tree.history.get(name)}")
            return
        if thing.gone_s is not None and begin > thing.gone_s + STALE_S:
            self.problem(f"{where}: {short(data)}, gone for {begin - thing.gone_s:.1f} s: {tree.history.get(name)}")
        if name == ALWAYS:
            if thing.id < self._last.get(tree.name, 0):
                self.problem(f"{where}: {thing.id} after {self._last[tree.name]}: {tree.history.get(name)}")
            self._last[tree.name] = thing.id
