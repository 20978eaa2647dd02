# SPDX-License-Identifier: Apache-2.0
"""How caches deal with our own changes: what is kept of a file goes before the change, and behind it once more.

Behind it, whatever came of it: a change whose answer is lost may have been carried out, and what was read in between is
as old as what was dropped before.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Sequence
from typing import Any, ClassVar

from repl.files.translator import Step
from repl.files.values import Caller, Changed, Fd, Loc, Lock, LockCommand, LockType, Looked, Target, Xattrs
from repl.files.watching import Watching


class Dropping(Watching):
    """``drop`` is the cache's own; ``about_to_change`` too, if it has more to do before a change."""

    @abc.abstractmethod
    def drop(self, gfid: bytes) -> None:
        """Nothing is known of the inode, and answers on their way may be old."""

    async def about_to_change(self, gfid: bytes) -> None:
        self.drop(gfid)

    def not_created(self, flags: int) -> None:
        """Whoever makes a file may open one instead, and empty it; without an answer nobody knows which one."""
        if flags & (os.O_TRUNC | os.O_EXCL) == os.O_TRUNC:
            self.note_change(None)
            self.clear()

    async def open(self, caller: Caller, loc: Loc, fd: Fd, *, flags: int) -> None:
        if not flags & os.O_TRUNC:
            await self.child.open(caller, loc, fd, flags=flags)
            return
        await self.about_to_change(loc.gfid)
        try:
            await self.child.open(caller, loc, fd, flags=flags)
        finally:
            self.drop(loc.gfid)

    async def writev(
        self, caller: Caller, fd: Fd, data: bytes | bytearray | memoryview, *, offset: int, flags: int = 0
    ) -> Changed:
        await self.about_to_change(fd.gfid)
        try:
            return await self.child.writev(caller, fd, data, offset=offset, flags=flags)
        finally:
            self.drop(fd.gfid)

    async def truncate(self, caller: Caller, target: Target, size: int) -> Changed:
        await self.about_to_change(target.gfid)
        try:
            return await self.child.truncate(caller, target, size)
        finally:
            self.drop(target.gfid)

    async def fallocate(self, caller: Caller, fd: Fd, *, mode: int, offset: int, length: int) -> Changed:
        await self.about_to_change(fd.gfid)
        try:
            return await self.child.fallocate(caller, fd, mode=mode, offset=offset, length=length)
        finally:
            self.drop(fd.gfid)

    async def lk(self, caller: Caller, fd: Fd, command: LockCommand, lock: Lock) -> Lock:
        """Whoever gets a lock sees what was written under it."""
        held = await self.child.lk(caller, fd, command, lock)
        if command is not LockCommand.GET and lock.type is not LockType.UNLOCK:
            self.drop(fd.gfid)
        return held


class DataCache(Dropping):
    """Of what is in files: names and compounds are passed on as they are."""

    CHANGING: ClassVar[frozenset[str]] = frozenset(("writev", "truncate", "fallocate", "lk"))

    async def create(
        self, caller: Caller, loc: Loc, fd: Fd, *, flags: int, mode: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        try:
            looked = await self.child.create(caller, loc, fd, flags=flags, mode=mode, gfid=gfid, extra=extra)
        except OSError:
            self.not_created(flags)
            raise
        if flags & os.O_TRUNC:
            self.drop(looked.iatt.gfid)
        return looked

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        """In one frame; what it changes is dropped."""
        changed = {step.args[0].gfid for step in steps if step.fop in self.CHANGING or truncates(step)}
        for gfid in changed:
            await self.about_to_change(gfid)
        try:
            return await self.child.compound(caller, steps)
        finally:
            for gfid in changed:
                self.drop(gfid)


def truncates(step: Step) -> bool:
    return step.fop == "open" and bool(step.kwargs["flags"] & os.O_TRUNC)
