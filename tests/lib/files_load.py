# SPDX-License-Identifier: Apache-2.0
"""Load on a mounted volume that remembers what was acknowledged, and tells afterwards what of it is missing.

Each ``Writer`` has a folder of its own and knows for each name which contents are possible: the acknowledged ones, and
those of operations that failed since.
"""

from __future__ import annotations

import datetime
import os
import random
import threading
from collections import deque
from pathlib import Path

NAMES = 12
BLOCK_BYTES = 4096
BLOCKS = 24
LOG, BLOCK_FILE = "log", "blocks"
Possible = set[bytes | None]  # None: no such file


class Writer:
    """``root`` is the mount point; ``is_synced``: acknowledged means fsync."""

    def __init__(self, root: Path, name: str, *, is_synced: bool = False) -> None:
        self.root, self.name = root, name
        self.is_synced = is_synced
        self.acknowledged = 0
        self.errors: list[str] = []  # what failed, and when
        self._chance = random.Random(name)
        self._files: dict[str, Possible] = {}
        self._history: dict[str, deque[str]] = {}  # the last things that happened to each
        self._blocks: list[set[bytes]] = [{bytes(BLOCK_BYTES)} for _ in range(BLOCKS)]
        self._lines: list[tuple[bytes, bool]] = []  # and whether it was acknowledged
        self._count = 0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._bug: BaseException | None = None
        self._prepare()

    @property
    def folder(self) -> Path:
        return self.root / self.name

    def _prepare(self) -> None:
        self.folder.mkdir()
        (self.folder / BLOCK_FILE).write_bytes(bytes(BLOCK_BYTES * BLOCKS))
        (self.folder / LOG).touch()

    # ---- running ----

    def start(self) -> None:
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        assert self._thread is not None
        self._thread.join()
        if self._bug is not None:
            raise self._bug

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self.step()
        except BaseException as bug:
            self._bug = bug

    def step(self) -> None:
        work = self._chance.choice((self._replace, self._replace, self._overwrite, self._append, self._remove))
        self._count += 1
        try:
            work()
            self.acknowledged += 1
        except OSError as error:
            when = datetime.datetime.now().isoformat(sep=" ", timespec="milliseconds")
            self.errors.append(f"{when} {self.name} {work.__name__} {self._count}: {error}")
            self._stopped.wait(0.05)  # not to spin while nothing can be written

    def _note(self, name: str, what: str) -> None:
        self._history.setdefault(name, deque(maxlen=8)).append(f"{self._count} {what}")

    # ---- what is done ----

    def _data(self) -> bytes:
        return b"%s %08d;" % (self.name.encode(), self._count) * self._chance.choice((1, 20, 1000))

    def _write(self, path: Path, data: bytes, offset: int = 0, flags: int = 0) -> None:
        fd = os.open(path, os.O_WRONLY | flags, 0o644)
        try:
            os.pwrite(fd, data, offset) if not flags & os.O_APPEND else os.write(fd, data)
            if self.is_synced:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _replace(self) -> None:
        """A new file takes the place of the old one: one or the other is there, whole."""
        name, data = f"f{self._chance.randrange(NAMES)}", self._data()
        possible = self._files.setdefault(name, {None})
        new = self.folder / "new"
        self._write(new, data, flags=os.O_CREAT | os.O_TRUNC)
        possible.add(data)
        self._note(name, "replacing")
        os.rename(new, self.folder / name)
        self._files[name] = {data}
        self._note(name, "replaced")

    def _remove(self) -> None:
        name = f"f{self._chance.randrange(NAMES)}"
        possible = self._files.setdefault(name, {None})
        was_there = None not in possible
        possible.add(None)
        self._note(name, "removing")
        try:
            os.unlink(self.folder / name)
        except FileNotFoundError:
            # What failed before may come true yet, so this is no news of what is there (decision 0070).
            self._note(name, "was not there")
            assert not was_there, f"{self.name}/{name} was acknowledged and is not there: {list(self._history[name])}"
            return
        self._files[name] = {None}
        self._note(name, "removed")

    def _overwrite(self) -> None:
        index = self._chance.randrange(BLOCKS)
        data = (b"%08d" % self._count * 512)[:BLOCK_BYTES]
        self._blocks[index].add(data)
        self._write(self.folder / BLOCK_FILE, data, index * BLOCK_BYTES)
        self._blocks[index] = {data}

    def _append(self) -> None:
        line = b"%08d\n" % self._count
        self._lines.append((line, False))
        self._write(self.folder / LOG, line, flags=os.O_APPEND)
        self._lines[-1] = (line, True)

    # ---- judging ----

    def problems(self, root: Path | None = None) -> list[str]:
        """What is not as it must be, below this mount point or brick."""
        folder = (root or self.root) / self.name
        found = []
        for name, possible in sorted(self._files.items()):
            path = folder / name
            content = path.read_bytes() if path.exists() else None
            if content not in possible:
                found.append(f"{self.name}/{name}: {_short(content)}, possible: "
                             f"{[_short(p) for p in possible]}; {list(self._history[name])}")  # fmt: skip
        data = (folder / BLOCK_FILE).read_bytes()
        for index, contents in enumerate(self._blocks):
            block = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            if block not in contents:
                found.append(f"{self.name} block {index}: {_short(block)}, possible: {[_short(c) for c in contents]}")
        return found + self._log_problems((folder / LOG).read_bytes())

    def _log_problems(self, data: bytes) -> list[str]:
        """All acknowledged lines once and in order; others may be there."""
        lines = data.splitlines(keepends=True)
        sent = dict(self._lines)
        strange = [line for line in lines if line not in sent]
        missing = [line for line, is_acknowledged in self._lines if is_acknowledged and line not in lines]
        order = [line for line in lines if sent.get(line)]
        found = [f"{self.name} log: strange {strange[:3]}"] if strange else []
        if missing:
            found.append(f"{self.name} log: {len(missing)} missing, first {missing[:3]}")
        if order != sorted(set(order)):
            found.append(f"{self.name} log: out of order or twice")
        return found


def _short(data: bytes | None) -> str:
    return "nothing" if data is None else f"{len(data)} bytes {data[:24]!r}"
