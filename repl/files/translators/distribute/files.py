# SPDX-License-Identifier: Apache-2.0
"""Operations on files and on the attributes of directories: each goes to the subvolume that has the file, a change of a
directory to all copies.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from repl.files.answers import good_of
from repl.files.translator import Step, Translator
from repl.files.translators.distribute.caches import FdState, state_of
from repl.files.translators.distribute.marks import MIGRATION, is_suspicious
from repl.files.translators.distribute.migrating import NONE, Migrating
from repl.files.values import (
    Caller,
    Changed,
    Fd,
    FopError,
    Iatt,
    Loc,
    Lock,
    LockCommand,
    LockType,
    Looked,
    Read,
    SetAttr,
    SyncKind,
    Target,
    Want,
    XattrOp,
    Xattrs,
)

PATHINFO = b"trusted.glusterfs.pathinfo"


def _of_read(answer: Any) -> Iatt:
    found: Iatt = answer.iatt
    return found


def _of_change(answer: Any) -> Iatt:
    found: Iatt = answer.after
    return found


def changed_of(answer: Any) -> Changed:
    found: Changed = answer
    return found


class Files(Migrating):
    # ---- attributes ----

    async def stat(self, caller: Caller, target: Target, *, want: Want = ()) -> Looked:
        target = await self.by_gfid(target)
        if await self.is_directory(target):
            if isinstance(target, Fd):
                target = Loc(gfid=target.gfid)
            return await self.stat_directory(caller, target, want)
        answer, _, _ = await self.at_place(target, lambda c: c.stat(caller, target, want=want), _of_read)
        return self.shown(answer, want)

    async def access(self, caller: Caller, loc: Loc, mask: int) -> None:
        if await self.is_directory(loc):
            known = await self.directory(loc.gfid)
            place = known.mds if self.up[known.mds] else self._first_present(known.present, loc)
            await self.subvolumes[place].access(caller, loc, mask)
        else:
            await self.at_place(loc, lambda c: c.access(caller, loc, mask))

    def _first_present(self, present: frozenset[int], loc: object) -> int:
        for index in sorted(present):
            if self.up[index]:
                return index
        raise self.away(present, str(loc))

    async def readlink(self, caller: Caller, loc: Loc) -> bytes:
        answer: bytes = (await self.at_place(loc, lambda c: c.readlink(caller, loc)))[0]
        return answer

    async def setattr(self, caller: Caller, target: Target, attributes: SetAttr) -> Changed:
        target = await self.by_gfid(target)
        if await self.is_directory(target):
            loc = Loc(gfid=target.gfid)
            changed: Changed = await self.change_directory(caller, Step("setattr", (loc, attributes)))
            return changed
        try:
            answer, index, phase = await self.at_place(
                target, lambda c: c.setattr(caller, target, attributes), _of_change
            )
        except FopError as error:
            if error.errno != errno.EBUSY or attributes.mode is None:
                raise
            return await self._set_marked(caller, target, attributes)
        if phase is not NONE:
            await self.repeat(
                target, index, phase, lambda: self.setattr(caller, target, attributes), is_data=False
            )
        return changed_of(answer)

    async def _set_marked(self, caller: Caller, target: Target, attributes: SetAttr) -> Changed:
        """Of a file whose mode shows that it is being moved, or was.  Its migrator has this lock when it ends."""
        assert attributes.mode is not None
        index = await self.place(target)
        child, loc = self.need(index, target), Loc(gfid=target.gfid)
        async with self.locked_inode(index, loc, self.migration_domain):
            phase = await self.phase_of(index, target)
            if phase.target is None:  # its migrator is dead, or has given up
                return await child.setattr(self.owner(), target, attributes)
            if not phase.is_link:
                await child.setxattr(self.owner(), loc, {MIGRATION: stat.S_IMODE(attributes.mode).to_bytes(4, "big")})
                changed = await child.setattr(caller, target, replace(attributes, mode=None))
                changed.after.mode = stat.S_IFREG | stat.S_IMODE(attributes.mode)
                return changed
        await self.follow_move(target, index)
        return await self.setattr(caller, target, attributes)

    async def getxattr(self, caller: Caller, target: Target, name: bytes | None = None) -> Xattrs:
        target = await self.by_gfid(target)
        if not await self.is_directory(target):
            found: Xattrs = (await self.at_place(target, lambda c: c.getxattr(caller, target, name)))[0]
        elif name == PATHINFO:
            loc = Loc(gfid=target.gfid)
            answers = await self.ask(self.up_ones, lambda i, c: c.getxattr(caller, loc, name))
            found = {PATHINFO: b" ".join(a[PATHINFO] for a in good_of(answers).values() if PATHINFO in a)}
        else:
            known = await self.directory(target.gfid)
            place = known.mds if self.up[known.mds] else self._first_present(known.present, target)
            found = await self.subvolumes[place].getxattr(caller, Loc(gfid=target.gfid), name)
        if name == PATHINFO:
            return {name: b"(<DISTRIBUTE:" + self.name.encode() + b"> " + found.get(name, b"") + b")"}
        return found

    async def setxattr(self, caller: Caller, target: Target, values: Xattrs, *, flags: int = 0) -> None:
        await self._change_xattrs(target, "setxattr", caller, values, flags=flags)

    async def removexattr(self, caller: Caller, target: Target, name: bytes) -> None:
        await self._change_xattrs(target, "removexattr", caller, name)

    async def _change_xattrs(self, target: Target, fop: str, caller: Caller, *args: Any, **kwargs: Any) -> None:
        target = await self.by_gfid(target)
        if await self.is_directory(target):
            loc = Loc(gfid=target.gfid)
            await self.change_directory(caller, Step(fop, (loc, *args), kwargs))
            return
        steps = [Step(fop, (target, *args), kwargs), Step("stat", (target,))]
        looked, index, phase = await self.at_place(target, lambda c: _both(c, caller, steps), _of_read)
        if phase is not NONE:
            await self.repeat(
                target, index, phase, lambda: self._change_xattrs(target, fop, caller, *args, **kwargs), is_data=False
            )

    async def xattrop(self, caller: Caller, target: Target, op: XattrOp, values: Xattrs, *, want: Want = ()) -> Xattrs:
        target = await self.by_gfid(target)
        if await self.is_directory(target):
            known = await self.directory(target.gfid)
            place, lower = self._first_present(known.present, target), Loc(gfid=target.gfid)
            return await self.subvolumes[place].xattrop(caller, lower, op, values, want=want)
        found: Xattrs = (await self.at_place(target, lambda c: c.xattrop(caller, target, op, values, want=want)))[0]
        return found

    # ---- open files ----

    def opened(self, fd: Fd, index: int, flags: int) -> None:
        fd.contexts[self] = FdState(index, flags, {index})
        self.open_files.setdefault(fd.gfid, set()).add(fd)

    def _closed(self, fd: Fd) -> None:
        fd.contexts.pop(self, None)
        others = self.open_files.get(fd.gfid)
        if others is not None:
            others.discard(fd)
            if not others:
                del self.open_files[fd.gfid]

    async def open(self, caller: Caller, loc: Loc, fd: Fd, *, flags: int) -> None:
        target = await self.by_gfid(loc)
        assert isinstance(target, Loc)
        if await self.is_directory(target):
            raise FopError(errno.EISDIR, str(loc))
        fd.gfid = target.gfid
        _, index, _ = await self.at_place(
            target, lambda c: c.open(caller, target, fd, flags=flags & ~os.O_TRUNC)
        )
        self.opened(fd, index, flags)
        if flags & os.O_TRUNC:
            try:
                await self.truncate(caller, fd, 0)
            except BaseException:  # it is not open for the caller, who will not close it
                self.context.spawn(self.release(fd), f"{self.name}: a file that was not opened is closed")
                raise

    async def readv(self, caller: Caller, fd: Fd, *, size: int, offset: int) -> Read:
        asked = self.need(self.fd_state(fd).index, fd)
        answer: Read = await asked.readv(caller, fd, size=size, offset=offset)
        if not is_suspicious(answer.iatt):
            return answer
        first: Read | None = answer

        async def read(child: Translator) -> Read:
            nonlocal first
            again, first = first if child is asked else None, None
            return again or await child.readv(caller, fd, size=size, offset=offset)

        answer = (await self.at_place(fd, read, _of_read))[0]
        return answer

    async def writev(
        self, caller: Caller, fd: Fd, data: bytes | bytearray | memoryview, *, offset: int, flags: int = 0
    ) -> Changed:
        answer, index, phase = await self.at_place(
            fd, lambda c: c.writev(caller, fd, data, offset=offset, flags=flags), _of_change,
            is_append=bool(flags & os.O_APPEND),
        )  # fmt: skip
        if phase is not NONE and data:
            changed: Changed = answer
            is_append = bool(flags & os.O_APPEND)
            first = changed.before.size if is_append else offset
            last = max(changed.after.size if is_append else 0, first + len(data)) - 1
            if phase.is_link or not await self.repeat(
                fd, index, phase, lambda: self.writev(caller, fd, data, offset=offset, flags=flags),
                first=first, last=last, is_append=is_append, changed=changed,
            ):  # fmt: skip
                await self._write_in_place(fd.gfid, data, first)
            if phase.is_link:
                changed.after.mode = 0  # the link file's
        return changed_of(answer)

    async def _write_in_place(self, gfid: bytes, data: bytes | bytearray | memoryview, offset: int) -> None:
        """What was appended at the source of a migration, where it was appended, in the file that has been moved."""
        caller, fd = self.owner(), Fd(gfid, os.O_RDWR)
        await self.open(caller, Loc(gfid=gfid), fd, flags=os.O_RDWR)
        try:
            await self.writev(caller, fd, data, offset=offset)
        finally:
            await self.release(fd)

    async def truncate(self, caller: Caller, target: Target, size: int) -> Changed:
        target = await self.by_gfid(target)
        if await self.is_directory(target):
            raise FopError(errno.EISDIR, str(target))
        answer, index, phase = await self.at_place(target, lambda c: c.truncate(caller, target, size), _of_change)
        if phase is not NONE:
            first = min(size, answer.before.size)
            await self.repeat(target, index, phase, lambda: self.truncate(caller, target, size), first=first)
        return changed_of(answer)

    async def fallocate(self, caller: Caller, fd: Fd, *, mode: int, offset: int, length: int) -> Changed:
        answer, index, phase = await self.at_place(
            fd, lambda c: c.fallocate(caller, fd, mode=mode, offset=offset, length=length), _of_change
        )
        if phase is not NONE:
            await self.repeat(
                fd, index, phase, lambda: self.fallocate(caller, fd, mode=mode, offset=offset, length=length),
                first=offset, last=offset + length - 1,
            )  # fmt: skip
        return changed_of(answer)

    async def seek(self, caller: Caller, fd: Fd, *, offset: int, what: int) -> int:
        state = self.fd_state(fd)
        try:
            return await self.need(state.index, fd).seek(caller, fd, offset=offset, what=what)
        except FopError as error:
            if error.errno != errno.ENXIO or not (await self.phase_of(state.index, fd)).is_link:
                raise
        await self.follow_move(fd, state.index)
        return await self.need(state.index, fd).seek(caller, fd, offset=offset, what=what)

    async def flush(self, caller: Caller, fd: Fd) -> None:
        await self.need(self.fd_state(fd).index, fd).flush(caller, fd)

    async def fsync(self, caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> Changed:
        answer, _, _ = await self.at_place(fd, lambda c: c.fsync(caller, fd, kind), _of_change)
        return changed_of(answer)

    async def rchecksum(self, caller: Caller, fd: Fd, *, offset: int, length: int) -> bytes:
        index = self.fd_state(fd).index
        return await self.need(index, fd).rchecksum(caller, fd, offset=offset, length=length)

    async def release(self, fd: Fd) -> None:
        state = state_of(fd, self)
        if state is None:
            return
        if state.mirror is not None:
            await self.close_mirror(state)
        self._closed(fd)
        for index in state.opened:
            await self.subvolumes[index].release(fd)

    # ---- locks ----

    async def lk(self, caller: Caller, fd: Fd, command: LockCommand, lock: Lock) -> Lock:
        """A lock that was got where the file no longer is counts for nothing."""
        while True:
            index = self.fd_state(fd).index
            child = self.need(index, fd)
            answer = await child.lk(caller, fd, command, lock)
            if lock.type is LockType.UNLOCK or not is_suspicious((await child.stat(caller, fd)).iatt):
                return answer
            if not (await self.phase_of(index, fd)).is_link:
                return answer
            if command is not LockCommand.GET:
                free = Lock(LockType.UNLOCK, lock.first, lock.last, lock.is_flock, lock.pid)
                await child.lk(caller, fd, LockCommand.TRY, free)
            await self.follow_move(fd, index)

    async def inodelk(self, caller: Caller, domain: str, target: Target, command: LockCommand, lock: Lock) -> None:
        if await self.is_directory(target):
            known = await self.directory(target.gfid)
            index, target = self._first_present(known.present, target), Loc(gfid=target.gfid)
        else:
            index = await self.place(target)
        await self.need(index, target).inodelk(caller, domain, target, command, lock)

    async def entrylk(
        self, caller: Caller, domain: str, loc: Loc, name: bytes | None, command: LockCommand, type: LockType
    ) -> None:
        known = await self.directory(loc.gfid)
        index = known.layout.owner(self.hash_of(name)) if name is not None else None
        if index is None or not self.up[index]:
            index = self._first_present(known.present, loc)
        await self.subvolumes[index].entrylk(caller, domain, loc, name, command, type)

    # ---- several at once ----

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        """One frame where all steps are about one file and nothing needs a second look; else one after another."""
        if len(steps) > 1 and steps[0].fop == "writev":
            return await self._write_several(caller, steps)
        index, opens = self._common_place(steps)
        if index is None:
            return await super().compound(caller, steps)
        answers = await self.need(index, steps[0].args[0]).compound(caller, steps)
        first = answers[0]
        if opens is not None and not isinstance(first, OSError):
            self.opened(opens, index, steps[0].kwargs.get("flags", 0))
        if opens is not None and any(step.fop == "release" for step in steps):
            self._closed(opens)
        marked = any(_is_marked(answer) for answer in answers)
        is_gone = isinstance(first, OSError) and first.errno in (errno.ENOENT, errno.ESTALE)
        if not marked and not is_gone:
            return answers
        return await self._compound_again(caller, steps, answers, opens, index)

    async def _write_several(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        """Writes, and attributes behind them.  Where the file is being moved, or was, each again and by itself: twice
        the same bytes do no harm."""
        fd = steps[0].args[0]
        is_simple = all(step.args[0] is fd and _is_repeatable(step) for step in steps)
        state = self.fd_state(fd)
        if not is_simple or state.flags & os.O_APPEND:
            return await super().compound(caller, steps)
        answers = await self.need(state.index, fd).compound(caller, steps)
        if any(_is_moving(answer) for answer in answers):
            return await super().compound(caller, steps)
        return answers

    async def _compound_again(
        self, caller: Caller, steps: Sequence[Step], answers: list[Any], opens: Fd | None, index: int
    ) -> list[Any]:
        """The file is not there, or not only there: each step by itself."""
        if opens is not None and self in opens.contexts:
            await self.release(opens)
        if isinstance(steps[0].args[0], Loc):
            self.files.drop(steps[0].args[0].gfid)
        return await super().compound(caller, steps)

    def _common_place(self, steps: Sequence[Step]) -> tuple[int | None, Fd | None]:
        """The subvolume, and the file that the first step opens.  Only reading, so that it can be done again."""
        if not steps:
            return None, None
        target = steps[0].args[0] if steps[0].args else None
        opens: Fd | None = None
        if steps[0].fop == "open" and isinstance(target, Loc) and not steps[0].kwargs.get("flags", 0) & os.O_TRUNC:
            opens = steps[0].args[1]
            index = self.files.get(target.gfid)
        elif isinstance(target, Fd) and not target.is_directory and (state := state_of(target, self)) is not None:
            opens, index = None, state.index
        else:
            return None, None
        fd = opens or target
        allowed = ("stat", "readv", "flush", "release") if opens else ("stat", "readv", "flush")
        for step in steps[1 if opens else 0 :]:
            if step.fop not in allowed or step.args[0] is not fd:
                return None, None
        return (index, opens) if index is not None and self.up[index] else (None, None)


async def _both(child: Translator, caller: Caller, steps: list[Step]) -> Looked:
    """The answer of the last step, if all went well."""
    answers = await child.compound(caller, steps)
    if isinstance(answers[-1], OSError):
        raise answers[-1]
    found: Looked = answers[-1]
    return found


def _is_repeatable(step: Step) -> bool:
    """A write at a place, or attributes."""
    return step.fop == "setattr" or step.fop == "writev" and not step.kwargs.get("flags", 0) & os.O_APPEND


def _is_moving(answer: Any) -> bool:
    """EBUSY: a mode would have taken the mark away."""
    if isinstance(answer, OSError):
        return answer.errno == errno.EBUSY
    return isinstance(answer, Changed) and is_suspicious(answer.after)


def _is_marked(answer: Any) -> bool:
    return isinstance(answer, Looked | Read) and is_suspicious(answer.iatt)

