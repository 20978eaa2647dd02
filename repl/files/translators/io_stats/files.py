# SPDX-License-Identifier: Apache-2.0
"""Which files are opened, read and written most, and fastest: by gfid, bounded.

When a table is full the lower half goes; a file that is used all the time stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from repl.files.values import Fd
from repl.limits import IO_STATS_FILES_MAX

SHOWN_MAX = 100
KINDS = {"open": "open", "create": "open", "readv": "read", "writev": "write", "opendir": "opendir",
         "readdir": "readdir"}  # fmt: skip


class FileCounts:
    """``opened``: files that are open now, ``opened_max``: at most so far, at ``opened_max_ns``."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[bytes]] = {kind: Counter() for kind in KINDS.values()}
        self.opened = self.opened_max = self.opened_max_ns = 0

    def open(self, now_ns: int) -> None:
        self.opened += 1
        if self.opened > self.opened_max:
            self.opened_max, self.opened_max_ns = self.opened, now_ns

    def add(self, fop: str, args: Sequence[Any]) -> None:
        kind = KINDS.get(fop)
        if kind is None:
            return
        for arg in args[:2]:
            if isinstance(arg, Fd):
                counts = self._counts[kind]
                counts[arg.gfid] += 1
                if len(counts) > IO_STATS_FILES_MAX:
                    self._counts[kind] = Counter(dict(counts.most_common(IO_STATS_FILES_MAX // 2)))
                return

    def clear(self) -> None:
        for counts in self._counts.values():
            counts.clear()
        self.opened_max = self.opened

    def state(self) -> dict[str, object]:
        """``top.read``: ``<gfid in hex>:<count>``, most used first."""
        shown: dict[str, object] = {
            f"top.{kind}": " ".join(f"{gfid.hex()}:{count}" for gfid, count in counts.most_common(SHOWN_MAX))
            for kind, counts in self._counts.items() if counts
        }  # fmt: skip
        return shown | {"opened": self.opened, "opened_max": self.opened_max, "opened_max_ns": self.opened_max_ns}


class Throughputs:
    """The fastest read and write of each file: bytes a second, and when (nanoseconds)."""

    def __init__(self) -> None:
        self._best: dict[str, dict[bytes, tuple[int, int]]] = {"read": {}, "write": {}}

    def add(self, kind: str, gfid: bytes, size: int, duration_us: int, now_ns: int) -> None:
        best, rate = self._best[kind], size * 1_000_000 // max(duration_us, 1)
        if rate > best.get(gfid, (0, 0))[0]:
            best[gfid] = rate, now_ns
            if len(best) > IO_STATS_FILES_MAX:
                self._best[kind] = dict(_fastest(best)[: IO_STATS_FILES_MAX // 2])

    def clear(self) -> None:
        for best in self._best.values():
            best.clear()

    def state(self) -> dict[str, object]:
        """``perf.read``: ``<gfid in hex>:<bytes a second>:<when>``, fastest first."""
        return {
            f"perf.{kind}": " ".join(f"{gfid.hex()}:{rate}:{when}" for gfid, (rate, when) in _fastest(best)[:SHOWN_MAX])
            for kind, best in self._best.items() if best
        }  # fmt: skip


def _fastest(best: dict[bytes, tuple[int, int]]) -> list[tuple[bytes, tuple[int, int]]]:
    return sorted(best.items(), key=lambda item: -item[1][0])
