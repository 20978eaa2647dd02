# SPDX-License-Identifier: Apache-2.0
"""features/arbiter: the third brick of ``replica 3 arbiter 1``: names, attributes and counters, but no data.

Inputs: all operations; writev, truncate and fallocate succeed without storing anything, so every file stays empty;
readv, seek and rchecksum answer ENOSYS: this brick is never a source of data.
Source of the facts: spec section 3.7.
"""

from __future__ import annotations

import errno

from repl.files.translator import Translator
from repl.files.values import Caller, Changed, Fd, FopError, Read, Target


class Arbiter(Translator):
    TYPE = "features/arbiter"

    async def _unchanged(self, caller: Caller, target: Target) -> Changed:
        """As a change that left everything as it was."""
        iatt = (await self.child.stat(caller, target)).iatt
        return Changed(iatt, iatt)

    async def writev(
        self, caller: Caller, fd: Fd, data: bytes | bytearray | memoryview, *, offset: int, flags: int = 0
    ) -> Changed:
        return await self._unchanged(caller, fd)

    async def truncate(self, caller: Caller, target: Target, size: int) -> Changed:
        return await self._unchanged(caller, target)

    async def fallocate(self, caller: Caller, fd: Fd, *, mode: int, offset: int, length: int) -> Changed:
        return await self._unchanged(caller, fd)

    async def readv(self, caller: Caller, fd: Fd, *, size: int, offset: int) -> Read:
        raise FopError(errno.ENOSYS, f"{self.name}: an arbiter has no data")

    async def seek(self, caller: Caller, fd: Fd, *, offset: int, what: int) -> int:
        raise FopError(errno.ENOSYS, f"{self.name}: an arbiter has no data")

    async def rchecksum(self, caller: Caller, fd: Fd, *, offset: int, length: int) -> bytes:
        raise FopError(errno.ENOSYS, f"{self.name}: an arbiter has no data")
