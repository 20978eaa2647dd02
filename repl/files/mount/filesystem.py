# SPDX-License-Identifier: Apache-2.0
"""The file system that the kernel sees: a graph's top, what the kernel knows of it, and who serves which request.

Inputs: requests of the kernel, events from the graph.  Outputs: answers, invalidations.
Nothing of another mount's work is hidden for longer than the timeouts, and where bricks send upcalls not at all: an
``Invalidated`` reaches the kernel at once.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from repl.files.events import ChildDown, ChildUp, Event, Invalidated
from repl.files.mount import wire
from repl.files.mount.connection import NO_ANSWER, Connection
from repl.files.mount.inodes import Handle, Inode, InodeTable
from repl.files.mount.invalidation import Invalidator
from repl.files.mount.wire import Init, Op, Request
from repl.files.options import Options
from repl.files.translator import Context, Translator
from repl.files.values import Caller, FopError, Iatt
from repl.limits import MOUNT_CALLERS_MAX

log = logging.getLogger(__name__)

Serve = Callable[["Filesystem", Request], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How the kernel is to treat the mount; times in seconds."""

    entry_timeout: float = 1.0
    attribute_timeout: float = 1.0
    negative_timeout: float = 0.0
    is_read_only: bool = False
    is_direct: bool = False  # no page cache for any file
    has_acl: bool = False
    has_writeback: bool = False
    background: int = 64


@dataclass(slots=True)
class Counters:
    """For state dumps."""

    requests: dict[int, int] = field(default_factory=dict)
    errors: dict[int, int] = field(default_factory=dict)


class _Top(Translator):
    """The graph's parent: takes what it tells."""

    def __init__(self, filesystem: Filesystem, child: Translator, context: Context) -> None:
        super().__init__("mount", Options((), {}, {}), [child], context)
        self._filesystem = filesystem
        self.shorten()

    def notify(self, event: Event, child: Translator | None) -> None:
        if self is self._filesystem.top:
            self._filesystem.notify(event)


class Filesystem:
    """One mount.  ``attach`` gives it its connection; ``replace`` another graph."""

    def __init__(self, top: Translator, context: Context, options: MountOptions) -> None:
        self.context = context
        self.options = options
        self.inodes = InodeTable()
        self.counters = Counters()
        self.top: Translator = _Top(self, top, context)
        self.is_up = True
        self._connection: Connection | None = None
        self._invalidator: Invalidator | None = None
        self._callers: dict[tuple[int, int, int], Caller] = {}
        self.entry_valid = wire.valid_for(options.entry_timeout)
        self.attr_valid = wire.valid_for(options.attribute_timeout)
        self._serve = _handlers()

    # ---- life ----

    def attach(self, fd: int) -> Connection:
        """Start to serve the kernel through ``fd``."""
        flags = Init(0)
        if self.options.has_acl:
            flags |= Init.POSIX_ACL | Init.DONT_MASK
        if self.options.has_writeback:
            flags |= Init.WRITEBACK_CACHE
        quick = {op: partial(self._serve_quickly, serve) for op, serve in _quick_handlers().items()}
        self._connection = Connection(fd, self.serve, quick=quick, flags=flags, background=self.options.background)
        self._connection.errors = self.counters.errors
        self._invalidator = Invalidator(self._connection)
        self._connection.start()
        return self._connection

    async def detach(self) -> None:
        """The kernel is gone: everything that was open is closed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            await connection.drain(5)
        if self._invalidator is not None:
            self._invalidator.close()
        for handle in self.inodes.handles():
            self.inodes.close(handle.number)
            await self.top.release(handle.fd)

    @property
    def connection(self) -> Connection:
        assert self._connection is not None
        return self._connection

    def replace_top(self, top: Translator, context: Context) -> Translator:
        """The graph whose answers count from now on; answers the one before."""
        before, self.top = self.top, _Top(self, top, context)
        self.context = context
        return before

    # ---- requests ----

    def _serve_quickly(self, serve: Callable[[Filesystem, Request], bool], request: Request) -> bool:
        try:
            is_done = serve(self, request)
        except (KeyError, OSError):
            return False  # the other way tells what is wrong
        if is_done:
            count = self.counters.requests
            count[request.op] = count.get(request.op, 0) + 1
        return is_done

    def serve(self, request: Request) -> Awaitable[Any]:
        """What answers one request.  Raises OSError, awaited or before; KeyError: an inode that the kernel forgot."""
        serve = self._serve.get(request.op)
        if serve is None:
            raise FopError(errno.ENOSYS)
        count = self.counters.requests
        count[request.op] = count.get(request.op, 0) + 1
        return serve(self, request)

    def caller(self, request: Request) -> Caller:
        key = (request.uid, request.gid, request.pid)
        found = self._callers.get(key)
        if found is None:
            if len(self._callers) >= MOUNT_CALLERS_MAX:
                self._callers.clear()
            found = self._callers[key] = Caller(*key[:2], pid=key[2], client=self.context.process)
        return found

    def owner(self, request: Request, lock_owner: int) -> Caller:
        return Caller(
            request.uid, request.gid, pid=request.pid, client=self.context.process,
            lock_owner=lock_owner.to_bytes(8, "big"),
        )  # fmt: skip

    # ---- answers that several requests share ----

    def entry(self, iatt: Iatt, parent: int, name: bytes) -> bytes:
        """The kernel learns of an inode by a name."""
        inode = self.inodes.remember(iatt, parent, name)
        entry, entry_ns = self.entry_valid
        attr, attr_ns = self.attr_valid
        return wire.ENTRY_OUT.pack(inode.nodeid, 0, entry, attr, entry_ns, attr_ns, *wire.attributes(iatt))

    def directory_changed(self, nodeid: int, iatt: Iatt | None) -> None:
        """We changed a directory: the kernel will ask for its attributes, which the answer may have told."""
        inode = self.inodes[nodeid]
        known = inode.directory
        if iatt is None:
            inode.directory = None
        elif known is None or iatt.ctime_ns >= known.ctime_ns:
            iatt.gfid = inode.gfid
            inode.directory = iatt
            inode.directory_until = self.context.now() + self.options.attribute_timeout

    def attributes(self, inode: Inode, iatt: Iatt) -> bytes:
        inode.note(iatt)
        attr, attr_ns = self.attr_valid
        return wire.ATTR_OUT.pack(attr, attr_ns, 0, *wire.attributes(iatt))

    def answer_entry(self, request: Request, body: bytes, nodeid: int) -> Any:
        """Answer with a new lookup, which does not count if the kernel does not take it."""
        if not self.connection.answer(request.unique, body):
            self.inodes.forget(nodeid, 1)
        return NO_ANSWER

    def dropped(self, gfid: bytes | None) -> None:
        if gfid is not None:
            self.top.forget(gfid)

    # ---- what the graph tells ----

    def notify(self, event: Event) -> None:
        if isinstance(event, Invalidated):
            self._invalidated(event)
        elif isinstance(event, ChildDown):
            if self.is_up:
                log.warning("the volume cannot be reached: %s", event.reason or "no brick answers")
            self.is_up = False
        elif isinstance(event, ChildUp):
            if not self.is_up:
                log.info("the volume can be reached again")
            self.is_up = True

    def _invalidated(self, event: Invalidated) -> None:
        inode = self.inodes.find(event.gfid)
        invalidator = self._invalidator
        is_ours = not event.clients or self.context.process in event.clients
        if inode is None or invalidator is None or not is_ours:
            return
        inode.has_no_capability = False
        inode.default_acl_until = 0.0
        inode.directory = None
        for name in event.names:
            invalidator.entry(inode.nodeid, name)
        if event.is_data or event.is_gone:
            inode.seen = (-1, -1, -1)
            invalidator.data(inode.nodeid)
        else:
            self.connection.invalidate_attributes(inode.nodeid)

    async def make_fresh(self, inode: Inode) -> None:
        """Whatever the kernel has cached of the file is old; returns when it is gone."""
        inode.seen = (-1, -1, -1)
        if self._invalidator is not None:
            await self._invalidator.wait_data(inode.nodeid)

    # ---- state ----

    def state(self) -> dict[str, object]:
        return {
            "inodes": len(self.inodes),
            "handles": sum(1 for _ in self.inodes.handles()),
            "requests.running": self._connection.running if self._connection else 0,
            **{f"requests.{_op_name(op)}": count for op, count in sorted(self.counters.requests.items())},
            **{f"errors.{errno.errorcode.get(n, n)}": count for n, count in sorted(self.counters.errors.items())},
        }


def _op_name(op: int) -> str:
    return Op(op).name.lower() if op in Op.__members__.values() else str(op)


def _handlers() -> dict[int, Serve]:
    from repl.files.mount import attributes, directories, files, locks, names  # they import this module

    found: dict[int, Serve] = {}
    for module in (attributes, directories, files, locks, names):
        found |= module.HANDLERS
    return found


def _quick_handlers() -> dict[int, Callable[[Filesystem, Request], bool]]:
    from repl.files.mount import attributes, files, names

    return attributes.QUICK | files.QUICK | names.QUICK


def handle_of(filesystem: Filesystem, number: int) -> Handle:
    """EBADF: no such handle."""
    try:
        return filesystem.inodes.handle(number)
    except KeyError:
        raise FopError(errno.EBADF) from None


def name_of(body: bytes | memoryview, at: int = 0) -> bytes:
    """The string that ends with a zero byte."""
    raw = bytes(body)
    return raw[at : raw.index(b"\0", at)]


def check_writable(filesystem: Filesystem) -> None:
    if filesystem.options.is_read_only:
        raise FopError(errno.EROFS)


OPEN_FLAGS_KEPT = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DSYNC | os.O_DIRECT | os.O_NOATIME
