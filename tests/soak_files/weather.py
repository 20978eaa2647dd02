# SPDX-License-Identifier: Apache-2.0
"""When operations on a mount may fail: what the faults say about it, and what the clients ask.

``storm`` is a time in which they may.  An operation is excused if any part of it lay in a storm over its mount; one
that fails in fine weather is a finding.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class _Storm:
    began_s: float
    mount: str  # empty: over all
    why: str
    ended_s: float = float("inf")


class Weather:
    def __init__(self) -> None:
        self._storms: list[_Storm] = []
        self._lock = threading.Lock()

    @contextmanager
    def storm(self, why: str, mount: str = "") -> Iterator[None]:
        """Over one mount, or all."""
        one = _Storm(time.monotonic(), mount, why)
        with self._lock:
            self._storms.append(one)
        try:
            yield
        finally:
            one.ended_s = time.monotonic()

    def excuse(self, mount: str, began_s: float) -> str:
        """Why an operation on that mount that began then and ends now may fail; empty: it may not."""
        with self._lock:
            for storm in reversed(self._storms):
                if storm.mount in ("", mount) and storm.ended_s >= began_s:
                    return storm.why
        return ""
