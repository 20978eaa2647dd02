# SPDX-License-Identifier: Apache-2.0
"""Which files are opened, read and written most: counts by gfid, bounded.

When a table is full the half with the lowest counts goes; a file that is used all the time stays.
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
    def __init__(self) -> None:
        self._counts: dict[str, Counter[bytes]] = {kind: Counter() for kind in KINDS.values()}

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

    def state(self) -> dict[str, object]:
        """``top.read``: ``<gfid in hex>:<count>``, most used first."""
        return {
            f"top.{kind}": " ".join(f"{gfid.hex()}:{count}" for gfid, count in counts.most_common(SHOWN_MAX))
            for kind, counts in self._counts.items() if counts
        }  # fmt: skip
