# SPDX-License-Identifier: Apache-2.0
"""performance/quick-read: small files come as a whole, with their lookup or listing where files are read one after
another, else with the first open; opening and reading them again needs no brick.

Inputs: all operations, upcalls.  Outputs: reads from memory; a file opened for reading whose contents are known is
opened on the bricks only when something needs it there.  Such a late open finds the file even if its last name has
gone meanwhile: then what was known at the open goes on being read, as from any open file without a name.
A change drops the contents: ours at once, after files of ours that are not open yet have been opened; another client's
when the brick tells; after ``cache-timeout`` the attributes are asked for.  Locks that are got drop them too.
Source: spec 4.5.  Gluster opens late in performance/open-behind.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from repl.files.answers import GONE
from repl.files.dropping import DataCache
from repl.files.events import Invalidated
from repl.files.options import Kind, Option, Options
from repl.files.translator import Context, Step, Translator
from repl.files.translators.quick_read.contents import Content, Contents, Habit
from repl.files.values import (
    Caller,
    Changed,
    Entry,
    Fd,
    Iatt,
    Loc,
    Lock,
    LockCommand,
    Looked,
    Read,
    SetAttr,
    SyncKind,
    Target,
    Want,
    XattrOp,
    Xattrs,
)
from repl.files.watching import Watch, copy_of, version_of
from repl.limits import QUICK_READ_BYTES_MAX

KIB = 1024
CONTENT = b"glusterfs.content"
_PLAIN_FLAGS = os.O_NOATIME | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # of an open that may be late


class Late:
    """An open file that no brick knows yet."""

    __slots__ = ("caller", "content", "flags", "loc", "opening")

    def __init__(self, caller: Caller, loc: Loc, flags: int, content: Content) -> None:
        self.caller = caller
        self.loc = loc
        self.flags = flags
        self.content = content
        self.opening: asyncio.Future[None] | None = None


class QuickRead(DataCache):
    TYPE = "performance/quick-read"
    CHANGING = DataCache.CHANGING | {"setattr", "setxattr", "removexattr"}
    OPTIONS = (
        Option("cache-size", Kind.SIZE, 128 * KIB * KIB, "bytes of all files together", minimum=0,
               maximum=32 * 1024**3),
        Option("cache-timeout", Kind.TIME, 1.0, "after so long it is asked whether the file is still the same",
               minimum=1, maximum=60),
        Option("max-file-size", Kind.SIZE, 64 * KIB, "larger files are left alone", minimum=0, maximum=KIB * KIB),
        Option("priority", Kind.STRING, "", "accepted; the least recently used go first"),
        Option("quick-read-cache-invalidation", Kind.BOOL, True,
               "accepted; bricks with features/upcall are always listened to.  differs: off in Gluster",
               aliases=("cache-invalidation",)),
        Option("ctime-invalidation", Kind.BOOL, True, "accepted; a changed ctime always counts"),
        Option("lazy-open", Kind.BOOL, True, "files whose contents are known are opened on the bricks when needed"),
        Option("pass-through", Kind.BOOL, False, "keep nothing"),
    )  # fmt: skip

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._contents = Contents()
        self._habit = Habit()
        self._late: dict[bytes, set[Fd]] = {}
        self._use(options)
        self.hits = 0

    def _use(self, options: Options) -> None:
        self._limit: int = 0 if options["pass-through"] else options["cache-size"]
        self._most: int = min(options["max-file-size"], QUICK_READ_BYTES_MAX)
        self._timeout_s: float = options["cache-timeout"]

    def reconfigure(self, options: Options) -> None:
        super().reconfigure(options)
        self._contents.clear()
        self._use(options)

    def state(self) -> dict[str, object]:
        late = sum(len(files) for files in self._late.values())
        return {"files": len(self._contents), "bytes": self._contents.bytes, "hits": self.hits, "late": late}

    # ---- changes ----

    def invalidate(self, event: Invalidated) -> None:
        self._contents.drop(event.gfid)

    def clear(self) -> None:
        self._contents.clear()

    def forget(self, gfid: bytes) -> None:
        self._contents.drop(gfid)
        super().forget(gfid)

    def drop(self, gfid: bytes) -> None:
        self.note_change(gfid)
        self._contents.drop(gfid)

    async def about_to_change(self, gfid: bytes) -> None:
        """What is open has to see the change."""
        self.drop(gfid)
        for fd in list(self._late.get(gfid, ())):
            await self._open_now(fd)

    # ---- contents ----

    def _known(self, gfid: bytes) -> Content | None:
        """Contents that need not be checked."""
        content = self._contents.get(gfid)
        if content is None or content.checked + self._timeout_s < self.context.now():
            return None
        return content

    def _keep(self, watch: Watch, iatt: Any, data: Any, now: float) -> None:
        if iatt.size == len(data) and iatt.size <= self._most and self._limit and watch.is_fresh(iatt.gfid):
            self._contents.put(Content(copy_of(iatt), data, now), self._limit)

    def _wanted(self, want: Want) -> Want:
        is_worth_it = self._limit and self._habit.reads_what_it_looks_up
        return (*want, CONTENT) if is_worth_it and CONTENT not in want else want

    async def lookup(self, caller: Caller, loc: Loc, *, want: Want = ()) -> Looked:
        now, wanted = self.context.now(), self._wanted(want)
        with self.watch() as watch:
            looked = await self.child.lookup(caller, loc, want=wanted)
        if looked.iatt.is_regular:
            self._habit.looked()
        if wanted is not want and (data := looked.xattrs.pop(CONTENT, None)) is not None:
            self._keep(watch, looked.iatt, data, now)
        return looked

    async def readdir(
        self, caller: Caller, fd: Fd, *, size: int, offset: int, is_plus: bool = False, want: Want = ()
    ) -> list[Entry]:
        now, wanted = self.context.now(), self._wanted(want) if is_plus else want
        with self.watch() as watch:
            entries = await self.child.readdir(caller, fd, size=size, offset=offset, is_plus=is_plus, want=wanted)
        if wanted is not want:
            for entry in entries:
                data = entry.xattrs.pop(CONTENT, None)
                if data is not None and entry.iatt is not None:
                    self._keep(watch, entry.iatt, data, now)
        return entries

    # ---- open files ----

    def _can_wait(self, loc: Loc, flags: int) -> Content | None:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & ~_PLAIN_FLAGS or not self.options["lazy-open"]:
            return None
        return self._known(loc.gfid)

    async def open(self, caller: Caller, loc: Loc, fd: Fd, *, flags: int) -> None:
        self._habit.read()
        content = self._can_wait(loc, flags)
        if content is not None:
            self._open_later(caller, loc, fd, flags, content)
            return
        await super().open(caller, loc, fd, flags=flags)

    def open_known(self, caller: Caller, loc: Loc, fd: Fd, flags: int) -> Iatt | None:
        content = self._can_wait(loc, flags)
        if content is None:
            return None
        self._habit.read()
        self._open_later(caller, loc, fd, flags, content)
        return copy_of(content.iatt)

    def read_known(self, fd: Fd, size: int, offset: int) -> bytes | bytearray | memoryview | None:
        content = None if fd.flags & os.O_DIRECT else self._known(fd.gfid)
        if content is None:
            return None
        self.hits += 1
        return self._part_of(content, size, offset)

    def release_known(self, fd: Fd) -> bool:
        late: Late | None = fd.contexts.get(self)
        if late is None or late.opening is not None:
            return False
        self._no_longer_late(fd)
        return True

    def _open_later(self, caller: Caller, loc: Loc, fd: Fd, flags: int, content: Content) -> None:
        fd.contexts[self] = Late(caller, Loc(gfid=loc.gfid, path=loc.path), flags, content)
        self._late.setdefault(loc.gfid, set()).add(fd)

    def _no_longer_late(self, fd: Fd) -> Late | None:
        late: Late | None = fd.contexts.pop(self, None)
        if late is not None:
            files = self._late[fd.gfid]
            files.discard(fd)
            if not files:
                del self._late[fd.gfid]
        return late

    async def _open_now(self, fd: Fd) -> None:
        """Before anything that a brick has to do with it."""
        late: Late | None = fd.contexts.get(self)
        if late is None:
            return
        if late.opening is None:
            late.opening = asyncio.ensure_future(self.child.open(late.caller, late.loc, fd, flags=late.flags))
            late.opening.add_done_callback(lambda opening: self._opened(fd, late, opening))
        await asyncio.shield(late.opening)

    def _opened(self, fd: Fd, late: Late, opening: asyncio.Future[None]) -> None:
        late.opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._no_longer_late(fd)

    async def readv(self, caller: Caller, fd: Fd, *, size: int, offset: int) -> Read:
        late: Late | None = fd.contexts.get(self)
        content = None if fd.flags & os.O_DIRECT else self._contents.get(fd.gfid)
        if content is not None and content.checked + self._timeout_s < self.context.now():
            content = await self._check(caller, fd, content)
        if content is not None:
            self.hits += 1
            return self._part(content, size, offset)
        if late is not None:
            try:
                await self._open_now(fd)
            except OSError as error:
                if error.errno not in GONE:
                    raise
                return self._part(late.content, size, offset)
        if offset or fd.flags & os.O_DIRECT:  # nothing to keep
            return await self.child.readv(caller, fd, size=size, offset=offset)
        return await self._fetch(caller, fd, size, offset)

    @staticmethod
    def _part_of(content: Content, size: int, offset: int) -> bytes | bytearray | memoryview:
        return content.data if offset == 0 and size >= len(content.data) else content.data[offset : offset + size]

    def _part(self, content: Content, size: int, offset: int) -> Read:
        return Read(self._part_of(content, size, offset), copy_of(content.iatt))

    async def _check(self, caller: Caller, fd: Fd, content: Content) -> Content | None:
        now = self.context.now()
        try:
            with self.watch() as watch:
                iatt = (await self.child.stat(caller, self._target(fd))).iatt
        except OSError:
            self._contents.drop(fd.gfid)
            return None
        if version_of(iatt) != version_of(content.iatt) or not watch.is_fresh(fd.gfid):
            self._contents.drop(fd.gfid)
            return None
        content.checked = now
        return content

    async def _fetch(self, caller: Caller, fd: Fd, size: int, offset: int) -> Read:
        now = self.context.now()
        with self.watch() as watch:
            read = await self.child.readv(caller, fd, size=size, offset=offset)
        self._keep(watch, read.iatt, read.data, now)
        return read

    def _target(self, target: Target) -> Target:
        """By gfid while no brick knows the descriptor."""
        return Loc(gfid=target.gfid) if isinstance(target, Fd) and self in target.contexts else target

    async def stat(self, caller: Caller, target: Target, *, want: Want = ()) -> Looked:
        late: Late | None = target.contexts.get(self) if isinstance(target, Fd) else None
        if late is not None and not want:
            if (content := self._known(target.gfid)) is not None:
                return Looked(copy_of(content.iatt))
            try:
                return await self.child.stat(caller, late.loc)
            except OSError as error:
                if error.errno not in GONE:
                    raise
                return Looked(copy_of(late.content.iatt))
        return await self.child.stat(caller, self._target(target), want=want)

    async def flush(self, caller: Caller, fd: Fd) -> Iatt | None:
        return await self.child.flush(caller, fd) if self not in fd.contexts else None

    async def release(self, fd: Fd) -> None:
        late: Late | None = fd.contexts.get(self)
        if late is not None and late.opening is not None:
            await asyncio.wait([late.opening])
        if self._no_longer_late(fd) is None:
            await self.child.release(fd)

    async def fsync(self, caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> Changed:
        await self._open_now(fd)
        return await self.child.fsync(caller, fd, kind)

    async def seek(self, caller: Caller, fd: Fd, *, offset: int, what: int) -> int:
        await self._open_now(fd)
        return await self.child.seek(caller, fd, offset=offset, what=what)

    async def rchecksum(self, caller: Caller, fd: Fd, *, offset: int, length: int) -> bytes:
        await self._open_now(fd)
        return await self.child.rchecksum(caller, fd, offset=offset, length=length)

    async def lk(self, caller: Caller, fd: Fd, command: LockCommand, lock: Lock) -> Lock:
        await self._open_now(fd)
        return await super().lk(caller, fd, command, lock)

    async def getxattr(self, caller: Caller, target: Target, name: bytes | None = None) -> Xattrs:
        return await self.child.getxattr(caller, self._target(target), name)

    # ---- our own changes ----

    async def setattr(self, caller: Caller, target: Target, attributes: SetAttr) -> Changed:
        changed = await self.child.setattr(caller, self._target(target), attributes)
        self.drop(target.gfid)
        return changed

    async def setxattr(self, caller: Caller, target: Target, values: Xattrs, *, flags: int = 0) -> None:
        await self.child.setxattr(caller, self._target(target), values, flags=flags)
        self.drop(target.gfid)

    async def removexattr(self, caller: Caller, target: Target, name: bytes) -> None:
        await self.child.removexattr(caller, self._target(target), name)
        self.drop(target.gfid)

    async def xattrop(self, caller: Caller, target: Target, op: XattrOp, values: Xattrs, *, want: Want = ()) -> Xattrs:
        return await self.child.xattrop(caller, self._target(target), op, values, want=want)

    async def inodelk(self, caller: Caller, domain: str, target: Target, command: LockCommand, lock: Lock) -> None:
        await self.child.inodelk(caller, domain, self._target(target), command, lock)

    async def link(self, caller: Caller, source: Loc, loc: Loc) -> Looked:
        looked = await self.child.link(caller, source, loc)
        self.drop(looked.iatt.gfid)
        return looked

    async def unlink(self, caller: Caller, loc: Loc) -> Looked:
        looked = await self.child.unlink(caller, loc)
        self.drop(looked.iatt.gfid)
        return looked

    async def rename(self, caller: Caller, source: Loc, target: Loc, *, flags: int = 0) -> Looked:
        looked = await self.child.rename(caller, source, target, flags=flags)
        self.drop(looked.iatt.gfid)
        return looked

    # ---- several at once ----

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        first = steps[0] if steps else None
        if first is not None and first.fop == "open":
            flags = first.kwargs["flags"]
            is_simple = all(step.fop in _SIMPLE for step in steps[1:])
            if is_simple and self._can_wait(first.args[0], flags) is not None:
                return await Translator.compound(self, caller, steps)  # one by one
            if is_simple and flags & os.O_ACCMODE == os.O_RDONLY and not flags & ~_PLAIN_FLAGS and self._limit:
                return await self._open_and_read(caller, steps)
        for step in steps:
            for target in step.args:
                if isinstance(target, Fd) and step.fop != "release":
                    await self._open_now(target)
        if any(step.fop == "release" and self in step.args[0].contexts for step in steps):
            return await Translator.compound(self, caller, steps)  # one by one
        return await super().compound(caller, steps)

    async def _open_and_read(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        """The contents of a file that is small enough come with its open."""
        self._habit.read()
        fd, now = steps[0].args[1], self.context.now()
        more = Step("readv", (fd,), {"size": self._most, "offset": 0})
        with self.watch() as watch:
            answers = await self.child.compound(caller, [*steps, more])
        if len(answers) <= len(steps):
            return answers
        read = answers.pop()
        if isinstance(read, Read):
            self._keep(watch, read.iatt, read.data, now)
        return answers


_SIMPLE = frozenset(("stat", "flush"))
