# SPDX-License-Identifier: Apache-2.0
"""Inodes that the sweeps found in use, and since when: none is left alone for ever (decision 0148).

What a sweep did not find in use is forgotten at its end.  A bounded number; what finds no place begins anew with the
next sweep.  Plain data, no clock.
"""

from __future__ import annotations


class InUse:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._since: dict[bytes, float] = {}
        self._before: dict[bytes, float] = {}

    def begin(self) -> None:
        """Another sweep."""
        self._before, self._since = self._before | self._since, {}

    def end(self) -> None:
        """It has looked at everything."""
        self._before = {}

    def note(self, gfid: bytes, now: float, *, is_in_use: bool) -> None:
        since = self._since.pop(gfid, self._before.pop(gfid, now))
        if is_in_use and len(self._since) < self._limit:
            self._since[gfid] = since

    def for_s(self, gfid: bytes, now: float) -> float:
        """So long already; 0: not at all."""
        return now - self._since.get(gfid, self._before.get(gfid, now))
