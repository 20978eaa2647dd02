# SPDX-License-Identifier: Apache-2.0
"""A client of a soak: a thread that works while it may, stands still when asked to, and says what it found wrong.

Who derives from it does one thing after another in ``_work`` while ``_goes_on()`` is true; ``_since_s`` is when the
request in hand was begun.
"""

from __future__ import annotations

import abc
import threading
import time
import traceback

from tests.lib.wait import wait_for


class Worker(abc.ABC):
    """``problems`` end the soak; ``slowest_s`` is the longest that a request took."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[str] = []
        self.slowest_s = 0.0
        self._is_over = False
        self._may_run = threading.Event()
        self._is_idle = threading.Event()
        self._since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _start(self) -> None:
        """At the end of the constructor."""
        self._thread.start()
        self._is_idle.wait()

    # ---- orders ----

    def resume(self) -> None:
        self._is_idle.clear()
        self._may_run.set()

    def ask_to_pause(self) -> None:
        self._may_run.clear()

    def pause(self, timeout: float) -> None:
        """It has closed its connection when this returns.  Fails when a request is not answered in time."""
        self.ask_to_pause()
        assert self._is_idle.wait(timeout), f"{self.name}: {self.waiting_s:.1f} s without answer"

    def ask_to_end(self) -> None:
        self._is_over = True
        self._may_run.set()

    def join(self, timeout: float) -> None:
        """One that hangs is left alone: it ends with what it waits for."""
        self._thread.join(timeout)

    @property
    def waiting_s(self) -> float:
        """How long the request in hand has been waiting."""
        since = self._since_s
        return 0.0 if since is None else time.monotonic() - since

    @property
    @abc.abstractmethod
    def acknowledged_count(self) -> int:
        """Answered requests that changed something."""

    def wait_progress(self, timeout: float) -> None:
        """Until one more request is answered."""
        goal = self.acknowledged_count + 1
        wait_for(
            lambda: self.acknowledged_count >= goal or self.problems,
            timeout,
            f"an answer for {self.name}",
            describe=lambda: f"{self.acknowledged_count} answers, waiting for {self.waiting_s:.1f} s",
        )

    # ---- the thread ----

    def _run(self) -> None:
        try:
            while not self._is_over:
                if not self._may_run.is_set():
                    self._is_idle.set()
                    self._may_run.wait()
                    continue
                self._work()
        except BaseException as error:
            self.problems.append(f"{self.name}: {error!r}\n{traceback.format_exc()}")
        finally:
            self._is_idle.set()

    def _goes_on(self) -> bool:
        return self._may_run.is_set() and not self._is_over

    def _answered(self) -> None:
        self.slowest_s = max(self.slowest_s, self.waiting_s)
        self._since_s = None

    @abc.abstractmethod
    def _work(self) -> None:
        """Returns when it may not go on, and otherwise whenever it likes."""
