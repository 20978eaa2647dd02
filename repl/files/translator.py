# SPDX-License-Identifier: Apache-2.0
"""What every translator is: a node of a graph that passes on whatever it does not change.

Inputs: file operations from above, answers and events from below.  All operations are coroutines; they raise
``FopError`` with the kernel's error number.  A translator may be called again while it waits: nothing but its own
locks keeps two operations apart.

Ends of the interface:
- operations on an inode take a ``Target``: a ``Loc`` (by gfid) or an ``Fd``; with an ``Fd`` they work on what was
  opened, even if its last name is gone;
- whoever creates something chooses its gfid, so that all replicas agree;
- ``Fd`` objects are made by the caller, before ``open``, ``opendir`` or ``create``;
- ``want`` names extended attributes (internal ones too) that the answer is to carry in ``xattrs``;
- ``extra`` are extended attributes that come into being together with a new object (``trusted.gfid`` needs none);
- ``compound`` carries several operations in one frame: they run in order, the first error ends it;
- ``sync_all`` and ``end_all`` do one thing to many inodes.  They need not be defined: where the operations that they
  are short for are, those are called.
Events (child up, child down, upcalls) go from a child to its parents through ``notify``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from repl.files.events import Event
from repl.files.options import Option, Options
from repl.files.rounds import Round
from repl.files.values import (
    Caller,
    Changed,
    End,
    Entry,
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
    StatVfs,
    SyncKind,
    Target,
    Want,
    XattrOp,
    Xattrs,
)

ANY_NUMBER = 1 << 16
GFIDS_IN_A_ROW = 256


@dataclass(slots=True)
class Context:
    """What a graph's translators share: where time and chance come from, and who they are.

    ``now`` is the event loop's clock in seconds (virtual in tests), ``wall_ns`` the time of day.  ``is_told_once``: no
    names are kept here, so that one word of a directory's change is enough until something asks about it again.
    """

    host: str = "localhost"
    process: str = ""  # names this mount or brick process to others
    random: random.Random = field(default_factory=random.Random)
    wall_ns: Callable[[], int] = lambda: 0
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    loop: asyncio.AbstractEventLoop | None = None
    gfid_head: bytes = b""
    gfids_left: int = 0
    is_told_once: bool = False
    now: Callable[[], float] = field(init=False)

    def __post_init__(self) -> None:
        self.now = self._now

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on it is used in this loop only, so that asking for the time is one call."""
        self.loop, self.now = loop, loop.time

    def _now(self) -> float:
        loop = self.loop
        if loop is None or not loop.is_running():  # asking for the running one is a system call
            loop = self.loop = asyncio.get_running_loop()
        return loop.time()

    def new_gfid(self) -> bytes:
        """A random (version 4) UUID.  Some in a row begin alike: a brick keeps a folder for each two first bytes."""
        if not self.gfids_left:
            self.gfid_head, self.gfids_left = self.random.randbytes(2), GFIDS_IN_A_ROW
        self.gfids_left -= 1
        raw = bytearray(self.gfid_head + self.random.randbytes(14))
        raw[6] = raw[6] & 0x0F | 0x40
        raw[8] = raw[8] & 0x3F | 0x80
        return bytes(raw)

    def spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        """Work in the background; the graph's end cancels what is left."""
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


@dataclass(slots=True)  # not frozen: making one would cost three times as much
class Step:
    """One operation of a compound: a method of Translator by its name.  Not to be changed."""

    fop: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


class Translator:
    """Passes everything on to its first subvolume."""

    TYPE: ClassVar[str] = ""
    ALIASES: ClassVar[tuple[str, ...]] = ()
    OPTIONS: ClassVar[tuple[Option, ...]] = ()
    SUBVOLUMES: ClassVar[tuple[int, int]] = (1, 1)  # fewest and most

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        self.name = name
        self.options = options
        self.subvolumes = list(subvolumes)
        self.context = context
        self.parents: list[Translator] = []
        self._straight: frozenset[str] | None = None  # what it only passes on, known once the graph has started
        for child in subvolumes:
            child.parents.append(self)

    @cached_property
    def child(self) -> Translator:
        """ENOSYS at the bottom of a graph: nobody does it."""
        try:
            return self.subvolumes[0]
        except IndexError:
            raise FopError(errno.ENOSYS, f"{self.name}: {self.TYPE} does not do this") from None

    # ---- life ----

    async def start(self) -> None:
        """Called once, children first."""

    def shorten(self) -> None:
        """Operations that it only passes on go straight to whoever does something with them, from here on.  Called when
        the graph has started, and when options have changed, children first."""
        for fop in self._straight or ():
            self.__dict__.pop(fop, None)
        self._straight = None
        if self.subvolumes:
            self._straight = frozenset(fop for fop in (*FOPS, "release") if self._passes_on(fop))
            for fop in self._straight:
                self.__dict__[fop] = getattr(self.subvolumes[0], fop)

    async def stop(self) -> None:
        """Called once, parents first; afterwards nothing calls it any more."""

    def reconfigure(self, options: Options) -> None:
        """The volfile has changed, the graph's shape has not."""
        self.options = options

    def notify(self, event: Event, child: Translator | None) -> None:
        """Something happened below.  Must not block."""
        self.notify_parents(event)

    def notify_parents(self, event: Event) -> None:
        for parent in self.parents:
            parent.notify(event, self)

    async def finish(self) -> None:
        """A new graph is about to take the place of this one, parents first: what is held back is stored, transactions
        are ended and their locks free.  No operation is under way; the links below still work, for the last time."""

    def take_over(self, before: Translator) -> None:
        """A new graph takes the place of an old one whose volume of the same name and type is ``before``: what clients
        hold there (locks) goes on here.  Both are started; no operation is under way in ``before``."""

    def state(self) -> dict[str, object]:
        """For state dumps: what an administrator wants to see of it."""
        return {}

    # ---- names ----

    async def lookup(self, caller: Caller, loc: Loc, *, want: Want = ()) -> Looked:
        """The inode behind a name (``loc.parent`` and ``loc.name``) or a gfid.  ENOENT, ESTALE."""
        return await self.child.lookup(caller, loc, want=want)

    async def create(
        self, caller: Caller, loc: Loc, fd: Fd, *, flags: int, mode: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        """A regular file, open on ``fd``.  EEXIST with O_EXCL, and without when the name is there: open it instead."""
        return await self.child.create(caller, loc, fd, flags=flags, mode=mode, gfid=gfid, extra=extra)

    async def mknod(
        self, caller: Caller, loc: Loc, *, mode: int, rdev: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        return await self.child.mknod(caller, loc, mode=mode, rdev=rdev, gfid=gfid, extra=extra)

    async def mkdir(self, caller: Caller, loc: Loc, *, mode: int, gfid: bytes, extra: Xattrs | None = None) -> Looked:
        return await self.child.mkdir(caller, loc, mode=mode, gfid=gfid, extra=extra)

    async def symlink(
        self, caller: Caller, loc: Loc, *, target: bytes, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        return await self.child.symlink(caller, loc, target=target, gfid=gfid, extra=extra)

    async def link(self, caller: Caller, source: Loc, loc: Loc) -> Looked:
        """Another name for ``source.gfid``."""
        return await self.child.link(caller, source, loc)

    async def unlink(self, caller: Caller, loc: Loc) -> Looked:
        """Remove a name; answers the inode as it is afterwards (``nlink`` 0: it was the last).  With a gfid: ESTALE if
        the name has another one."""
        return await self.child.unlink(caller, loc)

    async def rmdir(self, caller: Caller, loc: Loc, *, recursive: bool = False) -> Looked:
        """``recursive`` is for heals and layouts only."""
        return await self.child.rmdir(caller, loc, recursive=recursive)

    async def rename(self, caller: Caller, source: Loc, target: Loc, *, flags: int = 0) -> Looked:
        """``flags``: RENAME_NOREPLACE 1, RENAME_EXCHANGE 2.  ``source`` with a gfid: ESTALE if the name has another
        one.  ``target`` with a gfid: ESTALE if that name has another one, or (the source's may be new there) none.
        The answer tells what was replaced (``replaced_of``)."""
        return await self.child.rename(caller, source, target, flags=flags)

    async def readlink(self, caller: Caller, loc: Loc) -> bytes:
        return await self.child.readlink(caller, loc)

    # ---- attributes ----

    async def stat(self, caller: Caller, target: Target, *, want: Want = ()) -> Looked:
        return await self.child.stat(caller, target, want=want)

    async def access(self, caller: Caller, loc: Loc, mask: int) -> None:
        await self.child.access(caller, loc, mask)

    async def setattr(self, caller: Caller, target: Target, attributes: SetAttr) -> Changed:
        return await self.child.setattr(caller, target, attributes)

    async def statfs(self, caller: Caller, loc: Loc) -> StatVfs:
        return await self.child.statfs(caller, loc)

    async def getxattr(self, caller: Caller, target: Target, name: bytes | None = None) -> Xattrs:
        """One attribute, ENODATA if it is not there; or all that the caller may see."""
        return await self.child.getxattr(caller, target, name)

    async def setxattr(self, caller: Caller, target: Target, values: Xattrs, *, flags: int = 0) -> None:
        """``flags``: XATTR_CREATE 1, XATTR_REPLACE 2."""
        await self.child.setxattr(caller, target, values, flags=flags)

    async def removexattr(self, caller: Caller, target: Target, name: bytes) -> None:
        await self.child.removexattr(caller, target, name)

    async def xattrop(self, caller: Caller, target: Target, op: XattrOp, values: Xattrs, *, want: Want = ()) -> Xattrs:
        """Add to counters in one atomic step; answers the values after it, and those of ``want``."""
        return await self.child.xattrop(caller, target, op, values, want=want)

    # ---- open files ----

    async def open(self, caller: Caller, loc: Loc, fd: Fd, *, flags: int) -> None:
        await self.child.open(caller, loc, fd, flags=flags)

    async def opendir(self, caller: Caller, loc: Loc, fd: Fd) -> None:
        await self.child.opendir(caller, loc, fd)

    async def readv(self, caller: Caller, fd: Fd, *, size: int, offset: int) -> Read:
        return await self.child.readv(caller, fd, size=size, offset=offset)

    async def writev(
        self, caller: Caller, fd: Fd, data: bytes | bytearray | memoryview, *, offset: int, flags: int = 0
    ) -> Changed:
        """All of it or an error.  ``flags``: O_APPEND (``offset`` does not count), O_SYNC, O_DSYNC."""
        return await self.child.writev(caller, fd, data, offset=offset, flags=flags)

    async def truncate(self, caller: Caller, target: Target, size: int) -> Changed:
        return await self.child.truncate(caller, target, size)

    async def fallocate(self, caller: Caller, fd: Fd, *, mode: int, offset: int, length: int) -> Changed:
        """``mode`` as in fallocate(2): KEEP_SIZE 1, PUNCH_HOLE 2, ZERO_RANGE 16."""
        return await self.child.fallocate(caller, fd, mode=mode, offset=offset, length=length)

    async def seek(self, caller: Caller, fd: Fd, *, offset: int, what: int) -> int:
        """SEEK_DATA or SEEK_HOLE.  ENXIO beyond the end."""
        return await self.child.seek(caller, fd, offset=offset, what=what)

    async def flush(self, caller: Caller, fd: Fd) -> Iatt | None:
        """Somebody closes a descriptor: errors of earlier writes are told now.  The file's attributes, where storing
        these has told them."""
        return await self.child.flush(caller, fd)

    async def fsync(self, caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> Changed:
        return await self.child.fsync(caller, fd, kind)

    async def fsyncdir(self, caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> None:
        await self.child.fsyncdir(caller, fd, kind)

    async def readdir(
        self, caller: Caller, fd: Fd, *, size: int, offset: int, is_plus: bool = False, want: Want = ()
    ) -> list[Entry]:
        """Entries after ``offset`` (0: from the start), about ``size`` bytes of them; none: the end."""
        return await self.child.readdir(caller, fd, size=size, offset=offset, is_plus=is_plus, want=want)

    async def rchecksum(self, caller: Caller, fd: Fd, *, offset: int, length: int) -> bytes:
        """A strong digest of a range, empty if the file ends before it."""
        return await self.child.rchecksum(caller, fd, offset=offset, length=length)

    async def release(self, fd: Fd) -> None:
        """The last user of the descriptor is gone.  Cannot fail."""
        await self.child.release(fd)

    def forget(self, gfid: bytes) -> None:
        """Nobody above knows the inode any more: caches may go."""
        for child in self.subvolumes:
            child.forget(gfid)

    def client_gone(self, client: str) -> None:
        """The client with this name (``Caller.client``) is gone for good: its locks and waits for locks end.

        Its open files are released one by one (``release``) by whoever opened them.
        """
        for child in self.subvolumes:
            child.client_gone(client)

    # ---- locks ----

    async def lk(self, caller: Caller, fd: Fd, command: LockCommand, lock: Lock) -> Lock:
        """Locks of applications (fcntl, flock).  GET answers the lock in the way, or type UNLOCK."""
        return await self.child.lk(caller, fd, command, lock)

    async def inodelk(self, caller: Caller, domain: str, target: Target, command: LockCommand, lock: Lock) -> None:
        """Internal lock on a range of an inode; only locks of one domain conflict."""
        await self.child.inodelk(caller, domain, target, command, lock)

    async def entrylk(
        self, caller: Caller, domain: str, loc: Loc, name: bytes | None, command: LockCommand, type: LockType
    ) -> None:
        """Internal lock on a name in a directory (``loc.gfid``), None: on all its names."""
        await self.child.entrylk(caller, domain, loc, name, command, type)

    # ---- several at once ----

    def _passes_on(self, fop: str) -> bool:
        """Nothing is done with this operation here."""
        if self._straight is not None:
            return fop in self._straight
        return fop not in self.__dict__ and getattr(type(self), fop) is getattr(Translator, fop)

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        """The answers in order; the first error ends it and comes last, as the exception itself.

        ``release`` may be a step as well: it has no caller, answers None and is done even behind an error, so that
        create, write and release are one frame.
        """
        answers: list[Any] = []
        if self.subvolumes and all(map(self._passes_on, {step.fop for step in steps})):
            return await self.subvolumes[0].compound(caller, steps)
        if len(steps) > 1 and all(step.fop == "fsync" for step in steps):  # they wait for the disk together
            calls = (self.fsync(caller, *step.args, **step.kwargs) for step in steps)
            return _until_error(await asyncio.gather(*calls, return_exceptions=True))
        for index, step in enumerate(steps):
            try:
                if step.fop == "release":
                    await self.release(*step.args)
                    answers.append(None)
                    continue
                answers.append(await getattr(self, step.fop)(caller, *step.args, **step.kwargs))
            except OSError as error:
                answers.append(error)
                for late in steps[index + 1 :]:
                    if late.fop == "release":
                        await self.release(*late.args)
                break
        return answers

    # ---- what a cache does at once: without a coroutine, or not at all ----

    def known(self, parent: bytes, name: bytes) -> Iatt | bool | None:
        """What a lookup would answer without asking anybody: attributes, False for ENOENT; None: it has to be asked."""
        return self.subvolumes[0].known(parent, name) if self.subvolumes and self._passes_on("lookup") else None

    def open_known(self, caller: Caller, loc: Loc, fd: Fd, flags: int) -> Iatt | None:
        """``open`` and ``stat``, of a file that is to be read only.  None: it has not been opened."""
        is_passed = self.subvolumes and self._passes_on("open") and self._passes_on("stat")
        return self.subvolumes[0].open_known(caller, loc, fd, flags) if is_passed else None

    def read_known(self, fd: Fd, size: int, offset: int) -> bytes | bytearray | memoryview | None:
        """``readv``'s data.  None: they have to be read."""
        is_passed = self.subvolumes and self._passes_on("readv")
        return self.subvolumes[0].read_known(fd, size, offset) if is_passed else None

    def release_known(self, fd: Fd) -> bool:
        """``release`` of what no brick has opened.  False: it has to be released."""
        return bool(self.subvolumes) and self._passes_on("release") and self.subvolumes[0].release_known(fd)

    def begin_call(self, round: Round, number: int, operation: str, caller: Caller, values: list[Any]) -> bool:
        """The operation is sent, without waiting for anything, and ``round`` will have its answer as the one of
        ``number``; False: it has to be called instead.  ``values`` are all its arguments in their order.  OSError: it
        has failed already.  If it was begun, ``end_call`` has to be called with its answer.
        """
        return False

    def end_call(self, operation: str, caller: Caller, values: list[Any], answer: Any) -> None:
        """Of an operation that ``begin_call`` has sent."""

    async def sync_all(self, caller: Caller, fds: Sequence[Fd]) -> list[OSError | None]:
        """``fsync`` of the data of several files, which wait for the disk together; none keeps another from it."""
        if self.subvolumes and self._passes_on("fsync"):
            return await self.subvolumes[0].sync_all(caller, fds)
        calls = (self.fsync(caller, fd, SyncKind.DATA) for fd in fds)
        return [_error_of(a) for a in await asyncio.gather(*calls, return_exceptions=True)]

    async def end_all(
        self, caller: Caller, domain: str, key: bytes, ends: Sequence[End]
    ) -> list[bytes | OSError | None]:
        """The ends of several transactions, short for xattrop and the unlock of each: none keeps another from it.

        Answers what the counter ``key`` is afterwards, None where it was not to change.
        """
        if self.subvolumes and all(map(self._passes_on, ("xattrop", "inodelk", "entrylk"))):
            return await self.subvolumes[0].end_all(caller, domain, key, ends)
        return [await self._end(caller, domain, key, end) for end in ends]

    async def _end(self, caller: Caller, domain: str, key: bytes, end: End) -> bytes | OSError | None:
        loc = Loc(gfid=end.gfid)
        value: bytes | OSError | None = None
        try:
            if end.delta:
                value = (await self.xattrop(caller, loc, XattrOp.ADD, {key: end.delta}))[key]
        except OSError as error:
            value = error
        with contextlib.suppress(OSError):  # not held any more
            if end.is_entry:
                await self.entrylk(caller, domain, loc, None, LockCommand.TRY, LockType.UNLOCK)
            else:
                await self.inodelk(caller, domain, loc, LockCommand.TRY, Lock(LockType.UNLOCK))
        return value


def _error_of(answer: Any) -> OSError | None:
    if isinstance(answer, BaseException) and not isinstance(answer, OSError):
        raise answer
    return answer if isinstance(answer, OSError) else None


def _until_error(answers: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, OSError):
            raise answer
        found.append(answer)
        if isinstance(answer, OSError):
            break
    return found


FOPS: tuple[str, ...] = (
    "lookup", "create", "mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "readlink",
    "stat", "access", "setattr", "statfs", "getxattr", "setxattr", "removexattr", "xattrop",
    "open", "opendir", "readv", "writev", "truncate", "fallocate", "seek", "flush", "fsync", "fsyncdir", "readdir",
    "rchecksum", "lk", "inodelk", "entrylk",
)  # fmt: skip

__all__ = ["ANY_NUMBER", "FOPS", "Context", "Iatt", "Step", "Translator"]
