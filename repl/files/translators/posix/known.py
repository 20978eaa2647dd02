# SPDX-License-Identifier: Apache-2.0
"""Internal extended attributes of files that were looked at before.

Reading them costs a block of the disk for each file, because they do not fit into its inode; they are asked for with
every lookup and listing, and hardly ever change.  What was read stays true for as long as the inode's ctime is the
same: every change of an attribute, one by hand included, sets it.
A ctime that was set just before it was read is not trusted (another change may get the same), nor are whole seconds
(file systems that keep no more).

Input: the result of a stat that was made before the attributes were read; output: ``Known``.  Memory is bounded, the
eldest go.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from repl.files.translators.posix.names import is_internal
from repl.files.values import Xattrs
from repl.limits import POSIX_KNOWN_XATTRS_MAX

_SETTLED_NS = 100_000_000  # far more than the step of any kernel's clock
_SECOND_NS = 1_000_000_000
_IDENTITY, _PATHS = b"trusted.gfid", b"trusted.gfid2path."
_SHAPES_MAX = 256
_EVICTED = 64


class Known(NamedTuple):
    """``values``: all internal attributes but gfid and paths; ``others``: names of what else is there, but paths, which
    nobody asks for in this way.  Shared: not to be changed."""

    values: Xattrs
    others: frozenset[bytes]


class KnownXattrs:
    def __init__(self, wall_ns: Callable[[], int] = lambda: 0) -> None:
        self._wall_ns = wall_ns
        self._kept: dict[bytes, tuple[int, int, Known]] = {}  # gfid -> ctime, inode number
        self._shapes: dict[tuple[object, ...], Known] = {}  # most files have the same ones

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, gfid: bytes, st: os.stat_result) -> Known | None:
        return self.find_at(gfid, st.st_ctime_ns, st.st_ino)

    def find_at(self, gfid: bytes, ctime_ns: int, inode: int) -> Known | None:
        kept = self._kept.get(gfid)
        return kept[2] if kept is not None and kept[0] == ctime_ns and kept[1] == inode else None

    def drop(self, gfid: bytes) -> None:
        self._kept.pop(gfid, None)

    def keep(self, gfid: bytes, st: os.stat_result, found: Xattrs, names: list[bytes]) -> None:
        """``names``: all attributes that are there, ``found``: at least the internal ones of them."""
        ctime = st.st_ctime_ns
        if stat.S_ISDIR(st.st_mode) or not ctime % _SECOND_NS or self._wall_ns() - ctime < _SETTLED_NS:
            return
        values = {name: found[name] for name in names if is_kept(name)}
        others = frozenset(name for name in names if name not in values and not name.startswith(_PATHS))
        shape = (*values.items(), others)
        known = self._shapes.get(shape)
        if known is None:
            if len(self._shapes) >= _SHAPES_MAX:
                self._shapes.clear()
            known = self._shapes[shape] = Known(values, others)
        if len(self._kept) >= POSIX_KNOWN_XATTRS_MAX and gfid not in self._kept:
            for old, _ in list(zip(self._kept, range(_EVICTED), strict=False)):
                del self._kept[old]
        self._kept[gfid] = ctime, st.st_ino, known


def is_kept(name: bytes) -> bool:
    return is_internal(name) and not name.startswith(_IDENTITY)
