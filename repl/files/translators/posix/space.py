# SPDX-License-Identifier: Apache-2.0
"""Free space: what clients are told, and the part that is kept back (option reserve).

Input: statvfs(3) of the brick.  Errors: ENOSPC below the reserve, but not for internal work.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from repl.files.options import Percent
from repl.files.values import Caller, FopError, StatVfs

_FRESH_S = 1.0
_FRESH_BYTES = 64 * 1024 * 1024  # so much written: look again


class Space:
    def __init__(self, root: int, now: Callable[[], float]) -> None:
        self._root = root
        self._now = now
        self.reserve: Percent | int = Percent(0.0)
        self.bricks = 1
        self.is_told = True  # option export-statfs-size
        self._looked_at = float("-inf")
        self._written = 0
        self._is_low = False

    def _kept(self, st: os.statvfs_result) -> int:
        """Bytes of the reserve."""
        if isinstance(self.reserve, Percent):
            return int(st.f_blocks * st.f_frsize * self.reserve.value / 100)
        return self.reserve

    def need(self, caller: Caller, size: int) -> None:
        """Before something allocates.  Raises ``FopError``."""
        self._written += size
        now = self._now()
        if now - self._looked_at > _FRESH_S or self._written > _FRESH_BYTES:
            self._looked_at, self._written = now, 0
            st = os.fstatvfs(self._root)
            kept = self._kept(st)
            self._is_low = kept > 0 and st.f_bavail * st.f_frsize < kept
        if self._is_low and not caller.is_internal:
            raise FopError(errno.ENOSPC, "less than option reserve is free")

    @property
    def is_low(self) -> bool:
        return self._is_low

    def statfs(self) -> StatVfs:
        st = os.fstatvfs(self._root)
        if not self.is_told:
            return StatVfs(st.f_frsize, 0, 0, 0, 0, 0, 0, st.f_namemax, st.f_flag)
        kept = self._kept(st) // st.f_frsize
        share = self.bricks
        return StatVfs(
            st.f_frsize, st.f_blocks // share, max(st.f_bfree - kept, 0) // share, max(st.f_bavail - kept, 0) // share,
            st.f_files // share, st.f_ffree // share, st.f_favail // share, st.f_namemax, st.f_flag,
        )  # fmt: skip
