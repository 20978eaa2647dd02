# SPDX-License-Identifier: Apache-2.0
"""What the clients of a soak of files have in common: one mount at a time, operations that may fail in a storm.

``_attempt`` does one operation.  ``Failed``: what became of it is not known; that it failed was excused by the weather
or is a finding already.  An errno that the operation itself expects, as ENOENT, is an answer and not a failure.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from tests.soak.worker import Worker
from tests.soak_files.volume import PING_S, SoakVolume, View
from tests.soak_files.weather import Weather

T = TypeVar("T")
AFTER_FAILURE_S = 0.1  # not to spin while nothing can be done
STALE_S = PING_S + 20.0  # what another mount has changed is seen after this at the latest
STALE_ASK_S = 0.05
TURNS_ON_A_MOUNT = (20, 200)


class Failed(Exception):
    """An operation of which nobody knows whether it was done."""


@dataclass
class World:
    """What clients know of the soak around them.  ``pace_s``: between two operations of one client."""

    volume: SoakVolume
    weather: Weather
    pace_s: float


class FileWorker(Worker):
    """``view`` is the mount in use, None while there is none.  ``home``: the only one it may use."""

    def __init__(self, world: World, name: str, seed: int, home: str = "") -> None:
        super().__init__(name)
        self.world = world
        self.view: View | None = None
        self.looking: View | None = None  # another mount that is being looked at
        self.chance = random.Random(f"{seed} {name}")
        self.acknowledged = 0
        self.reads = 0
        self.failures: list[str] = []
        self._home = home

    @property
    def acknowledged_count(self) -> int:
        return self.acknowledged

    def prepare(self, mount: Path) -> None:
        """Before anybody works, on any mount."""

    # ---- mounts ----

    def _work(self) -> None:
        """Some turns on one mount."""
        views = [view for view in list(self.world.volume.views.values()) if self._home in ("", view.name)]
        views = [view for view in views if view.is_alive]
        if not views:
            time.sleep(AFTER_FAILURE_S)
            return
        self.view = self.chance.choice(views)
        try:
            if not self.view.is_alive:  # it has gone meanwhile
                return
            self._arrive()
            for _ in range(self.chance.randrange(*TURNS_ON_A_MOUNT)):
                if not self._goes_on() or not self.view.is_alive:
                    break
                try:
                    self._turn()
                    self.acknowledged += 1
                except Failed:
                    time.sleep(AFTER_FAILURE_S)
                time.sleep(self.world.pace_s * self.chance.uniform(0, 2))
        except Failed:
            time.sleep(AFTER_FAILURE_S)
        finally:
            self._leave()
            self.view = None

    def _arrive(self) -> None:
        """On another mount, perhaps."""

    def _leave(self) -> None:
        """Close what is open on this mount."""

    def _turn(self) -> None:
        raise NotImplementedError

    @property
    def root(self) -> Path:
        assert self.view is not None
        return self.view.root

    def others(self) -> list[View]:
        return [view for view in list(self.world.volume.views.values()) if view is not self.view and view.is_alive]

    # ---- operations ----

    def _attempt(self, what: str, work: Callable[[], T], *, answers: Sequence[int] = (), view: View | None = None) -> T:
        """``answers``: errnos that are answers; they are raised as they are."""
        view = view or self.view
        assert view is not None
        begin = self._since_s = time.monotonic()
        try:
            return work()
        except OSError as error:
            if error.errno in answers:
                raise
            self._failed(what, error, view, begin)
            raise Failed from error
        finally:
            self._answered()

    def _failed(self, what: str, error: OSError, view: View, begin: float) -> None:
        when = datetime.now().isoformat(sep=" ", timespec="milliseconds")
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        line = f"{when} {self.name} on {view.name}: {what}: {name} after {time.monotonic() - begin:.2f} s"
        why = "the mount was killed" if not view.is_alive else self.world.weather.excuse(view.name, begin)
        self.failures.append(f"{line} ({why or 'no excuse'})")
        if not why:
            self.problem(line)

    def problem(self, text: str) -> None:
        when = datetime.now().isoformat(sep=" ", timespec="milliseconds")
        self.problems.append(f"{when} {self.name}: {text}")

    # ---- looking ----

    def _look(self, view: View, problems: Callable[[Path], list[str]]) -> None:
        """On the mount where the work is done at once; on another one what is old may be seen for a while."""
        self.reads += 1
        until = time.monotonic() + (0 if view is self.view else STALE_S)
        self.looking = view
        try:
            while view.is_alive:
                found = self._attempt("look", lambda: problems(view.root), view=view)
                if not found:
                    return
                if time.monotonic() >= until:
                    for one in found:
                        self.problem(f"on {view.name}: {one}")
                    return
                time.sleep(STALE_ASK_S)
        finally:
            self.looking = None

    def is_using(self, view: View) -> bool:
        return view in (self.view, self.looking)

    def final_problems(self, root: Path) -> list[str]:
        """At an audit, while the client stands still: what is not as it must be on this mount."""
        return []


def write_whole(path: Path, data: bytes, flags: int, *, is_synced: bool = False) -> None:
    fd = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if is_synced:
            os.fsync(fd)
    finally:
        os.close(fd)


def read_whole(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(fd, 1 << 20):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)
