# SPDX-License-Identifier: Apache-2.0
"""What every soak is: clients that work, one fault after the other beside them, an audit every few minutes.

A kind of soak brings its clients (``workers``), its faults (``_schedule``, ``_do``) and its ``_audit``.
Errors: ``AssertionError`` with what was found.
"""

from __future__ import annotations

import abc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.plan import Step
from tests.soak.worker import Worker

ANSWER_S = 60.0  # with nothing wrong any more
END_S = 30.0  # all clients together


@dataclass(frozen=True)
class Timing:
    """``pause_s``: shortest and longest time between two faults; ``audit_s``: seconds between two audits."""

    seed: int
    seconds: float
    pause_s: tuple[float, float] = (1.0, 20.0)
    audit_s: float = 600.0


@dataclass
class Result:
    """What a soak has come to so far."""

    faults: Counter[str] = field(default_factory=Counter)
    audits: int = 0
    writes: int = 0
    reads: int = 0
    slowest_s: float = 0.0
    rss_max_bytes: int = 0


class Row(abc.ABC):
    """``say`` gets a line for everything that happens, ``history`` keeps them.  ``folder`` is what a failure keeps."""

    folder: Path

    def __init__(self, timing: Timing, say: Callable[[str], None]) -> None:
        self.timing = timing
        self.result = Result()
        self.history: list[str] = []
        self.workers: list[Worker] = []
        self._say = say
        self._began_s = time.monotonic()

    # ---- of each kind ----

    @abc.abstractmethod
    def run(self) -> Result:
        """Until the time is over; raises at the first thing that is wrong."""

    @abc.abstractmethod
    def close(self) -> None:
        """Everything that runs ends."""

    @abc.abstractmethod
    def kill(self) -> None:
        """At once, so that what lies there stays as it is."""

    def remarks(self) -> list[str]:
        """What the report of a failure has besides; asked for while everything runs yet."""
        return []

    @abc.abstractmethod
    def _schedule(self) -> Iterator[Step]:
        pass

    @abc.abstractmethod
    def _do(self, step: Step) -> str:
        """Provoke a fault and undo it; what a reader of the log wants to know."""

    @abc.abstractmethod
    def _audit(self) -> None:
        """With all clients standing at the end."""

    # ---- the row of faults ----

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began_s

    def _until_over(self) -> None:
        audit_at_s = self._elapsed_s + self.timing.audit_s
        for step in self._schedule():
            if self._elapsed_s + step.pause_s >= self.timing.seconds:
                return
            self._pause(step.pause_s)
            self._provoke(step)
            if self._elapsed_s >= audit_at_s:
                self._audit()
                self._resume()
                audit_at_s = self._elapsed_s + self.timing.audit_s

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))
            self._check_workers()

    def _provoke(self, step: Step) -> None:
        begin = time.monotonic()
        found = self._do(step)
        self.result.faults[step.fault.name] += 1
        self._tell(f"{step.number} {step.fault.name} ({time.monotonic() - begin:.1f} s): {found}")
        self._check_workers()

    def _tell(self, text: str) -> None:
        minutes, seconds = divmod(int(self._elapsed_s), 60)
        line = f"[{minutes:3d}:{seconds:02d}] {text}"
        self.history.append(line)
        self._say(line)

    def _check_workers(self) -> None:
        self._check([problem for worker in self.workers for problem in worker.problems])

    def _check(self, problems: Sequence[str]) -> None:
        assert not problems, "\n".join(problems)

    # ---- the clients ----

    def _resume(self) -> None:
        for worker in self.workers:
            worker.resume()

    def _stand_still(self) -> None:
        """Every client has got one more answer and has nothing under way."""
        for worker in self.workers:
            worker.wait_progress(ANSWER_S)
        for worker in self.workers:
            worker.ask_to_pause()
        for worker in self.workers:
            worker.pause(ANSWER_S)
        self._check_workers()

    def _close_workers(self) -> None:
        for worker in self.workers:
            worker.ask_to_end()
        until = time.monotonic() + END_S
        for worker in self.workers:
            worker.join(max(0.0, until - time.monotonic()))
