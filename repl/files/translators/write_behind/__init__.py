# SPDX-License-Identifier: Apache-2.0
"""performance/write-behind: acknowledges writes at once and sends several of them in one frame.

Inputs: all operations.  Writes are copied nowhere: what is given to ``writev`` must not change afterwards.
Outputs: the same operations, with writes of one file joined and in the order in which they came as far as they overlap.
What could see a write that is not stored yet waits for it: reads that reach it, attributes, size changes, locks,
renames, fsync; a file is released after its last write.  An answer to ``writev`` has no attributes (mode 0).
Attributes wait as well, behind the writes, where that takes nothing away: of a file that was made here and is still
open, times, and an owner and a mode that it has already.  Such an answer has no ``before`` (mode 0).
Errors: that of what was held back is told by the next write, fsync or flush of the same open file, or else logged.
Source: spec 4.2.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from repl.files.events import ChildDown, ChildUp, Event, Invalidated, Reconnected, Unwatched
from repl.files.options import Options
from repl.files.translator import Context, Step, Translator
from repl.files.translators.write_behind.made import Made, update
from repl.files.translators.write_behind.options import OPTIONS
from repl.files.translators.write_behind.queue import Attributes, Queue, Write
from repl.files.values import (
    NO_GFID,
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
    Xattrs,
)
from repl.files.watching import copy_of
from repl.limits import WRITE_BEHIND_BYTES_MAX, WRITE_BEHIND_FRAMES, WRITE_BEHIND_HOLD_S

log = logging.getLogger(__name__)

_SYNCED = os.O_SYNC | os.O_DSYNC
TRIES_MAX = 2
STOP_S = 10.0


class WriteBehind(Translator):
    TYPE = "performance/write-behind"
    OPTIONS = OPTIONS

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._queues: dict[bytes, Queue] = {}
        self._made: dict[bytes, Made] = {}
        self._bytes = 0
        self._use(options)

    def _use(self, options: Options) -> None:
        self._window: int = options["cache-size"]
        self._aggregate: int = 0 if options["strict-write-ordering"] else options["aggregate-size"]
        self._frames = 1 if options["strict-write-ordering"] else WRITE_BEHIND_FRAMES
        self._is_off: bool = options["pass-through"]
        self._is_trickling: bool = options["trickling-writes"]
        self._is_direct_strict: bool = options["strict-O_DIRECT"]
        self._tries = TRIES_MAX if options["resync-failed-syncs-after-fsync"] else 1

    def reconfigure(self, options: Options) -> None:
        super().reconfigure(options)
        self._use(options)

    async def stop(self) -> None:
        await self.finish()

    async def finish(self) -> None:
        """What is held back is still written, for as long as bricks answer."""
        if self._queues:
            await asyncio.wait([asyncio.ensure_future(self._settle_all())], timeout=STOP_S)

    def state(self) -> dict[str, object]:
        return {"files": len(self._queues), "bytes": self._bytes}

    def notify(self, event: Event, child: Translator | None) -> None:
        if isinstance(event, Invalidated):
            self._made.pop(event.gfid, None)
        elif isinstance(event, ChildDown | ChildUp | Reconnected | Unwatched):
            self._made.clear()
        super().notify(event, child)

    # ---- writing ----

    async def writev(
        self, caller: Caller, fd: Fd, data: bytes | bytearray | memoryview, *, offset: int, flags: int = 0
    ) -> Changed:
        self._raise_error(fd)
        how = flags | fd.flags
        if self._made:
            self._note_write(fd, offset + len(data), is_append=bool(how & os.O_APPEND))
        if self._is_off or how & _SYNCED or (how & os.O_DIRECT and self._is_direct_strict) or not data:
            await self._settle(fd.gfid)
            self._raise_error(fd)
            return await self.child.writev(caller, fd, data, offset=offset, flags=flags)
        kept = bytes(data) if isinstance(data, bytearray) else data
        queue = await self._with_room(fd)
        self._add(queue, Write(caller, fd, kept, offset, flags, is_append=bool(how & os.O_APPEND)))
        return Changed(Iatt(fd.gfid), Iatt(fd.gfid))

    def _add(self, queue: Queue, write: Write) -> None:
        if queue.failed:
            for older in [failed for failed in queue.failed if failed.overlaps(write)]:
                queue.failed.remove(older)  # done again it would undo this one
                self._lost(queue, older)
        queue.add(write, self._aggregate)
        self._bytes += write.size
        self._push_soon(queue)

    async def _with_room(self, fd: Fd) -> Queue:
        while True:
            queue = self._queue(fd.gfid)
            if not self._has_room(queue):
                self._push_now(queue)
            if self._has_room(queue):
                return queue
            await queue.wait_change()
            self._raise_error(fd)

    def _queue(self, gfid: bytes) -> Queue:
        queue = self._queues.get(gfid)
        if queue is None:
            queue = self._queues[gfid] = Queue(gfid)
        return queue

    def _has_room(self, queue: Queue) -> bool:
        return queue.waiting_bytes < self._window and (self._bytes < WRITE_BEHIND_BYTES_MAX or not queue.bytes)

    def _push_soon(self, queue: Queue) -> None:
        """A little that is written waits a moment for what belongs to it: more of it, attributes, the close."""
        if queue.is_push_due or queue.frames >= self._frames:
            return
        loop = asyncio.get_running_loop()
        if queue.waiting_bytes >= self._aggregate:
            queue.is_push_due = True
            loop.call_soon(self._push, queue)
        elif queue.timer is None:
            queue.timer = loop.call_later(WRITE_BEHIND_HOLD_S, self._push, queue)

    def _push_now(self, queue: Queue) -> None:
        queue.is_wanted = True
        self._push(queue)

    def _push(self, queue: Queue) -> None:
        queue.is_push_due = False
        queue.stop_timer()
        if not self._is_trickling and not queue.is_wanted and queue.waiting_bytes < self._aggregate:
            return
        while queue.frames < self._frames and (writes := queue.take()):
            self.context.spawn(self._send(queue, writes), f"{self.name}: writes")
            queue.wake()  # there is room for others

    async def _send(self, queue: Queue, writes: list[Write]) -> list[Any]:
        try:
            answers = await self._write(writes)
        except BaseException as error:
            self._answered(queue, writes, [error])
            raise
        self._answered(queue, writes, answers)
        return answers

    async def _write(self, writes: list[Write]) -> list[Any]:
        """The answers; the first error is the last of them."""
        first = writes[0]
        if len(writes) > 1:
            try:
                return await self.child.compound(first.caller, _steps_of(writes))
            except OSError as error:
                return [error]
        try:
            if isinstance(first, Attributes):
                return [await self.child.setattr(first.caller, first.fd, first.values)]
            return [await self.child.writev(
                first.caller, first.fd, first.data, offset=first.offset, flags=first.flags
            )]  # fmt: skip
        except OSError as error:
            return [error]

    def _answered(self, queue: Queue, writes: list[Write], answers: list[Any]) -> None:
        left: list[Write] = []
        for index, write in enumerate(writes):
            answer = answers[index] if index < len(answers) else None
            if answer is None:
                left.append(write)  # behind one that failed: again by itself
            elif isinstance(answer, BaseException):
                self._failed(queue, write, answer)
            else:
                self._done(queue, write)
        queue.put_back(left)
        queue.finish(writes)
        self._push(queue)
        self._drop_empty(queue)

    def _drop_empty(self, queue: Queue) -> None:
        if queue.is_empty:
            queue.is_wanted = False
            if self._queues.get(queue.gfid) is queue:
                del self._queues[queue.gfid]

    def _done(self, queue: Queue, write: Write) -> None:
        queue.done(write)
        self._bytes -= write.size

    def _failed(self, queue: Queue, write: Write, error: BaseException) -> None:
        if not isinstance(error, OSError):
            self._done(queue, write)
            return
        write.error = error
        write.times += 1
        is_newest = not any(other.overlaps(write) for other in queue.all() if other is not write)
        if write.times < self._tries and is_newest:
            queue.failed.append(write)
        else:
            self._lost(queue, write)

    def _lost(self, queue: Queue, write: Write) -> None:
        self._done(queue, write)
        write.fd.contexts.setdefault(self, write.error)

    def _raise_error(self, fd: Fd) -> None:
        if self in fd.contexts:
            error: OSError = fd.contexts.pop(self)
            raise error

    # ---- waiting for what is held back ----

    async def _settle(self, gfid: bytes) -> None:
        """What was acknowledged of the inode so far is stored, or has failed."""
        queue = self._queues.get(gfid)
        if queue is not None:
            await self._wait_done(queue, queue.all())

    async def _settle_all(self) -> None:
        for queue in list(self._queues.values()):
            await self._wait_done(queue, queue.all())

    async def _settle_several(self, gfids: Iterable[bytes]) -> None:
        for gfid in gfids:
            await self._settle(gfid)

    async def _wait_done(self, queue: Queue, writes: list[Write]) -> None:
        while queue.has_left(writes):
            self._push_now(queue)
            await queue.wait_change()

    async def _settle_synced(self, fd: Fd) -> Iatt | None:
        """The same for a sync, which tries again what has failed, if it may.  The attributes, if what was held back has
        been stored here, with one frame."""
        queue = self._queues.get(fd.gfid)
        if queue is None:
            return None
        answers: list[Any] = []
        if not queue.running:  # the usual case: no task is needed
            queue.stop_timer()
            queue.is_wanted = True
            if writes := queue.take():
                answers = await self._send(queue, writes)
        if queue.is_empty:
            return answers[-1].after if answers and isinstance(answers[-1], Changed) else None
        await self._wait_done(queue, queue.all())
        if queue.failed:
            again, queue.failed = queue.failed, []
            queue.put_back(again)
            await self._wait_done(queue, again)
        return None

    # ---- operations that see data ----

    async def readv(self, caller: Caller, fd: Fd, *, size: int, offset: int) -> Read:
        queue = self._queues.get(fd.gfid)
        if queue is not None and (writes := queue.reaching(offset)):
            await self._wait_done(queue, writes)
        return await self.child.readv(caller, fd, size=size, offset=offset)

    async def seek(self, caller: Caller, fd: Fd, *, offset: int, what: int) -> int:
        await self._settle(fd.gfid)
        return await self.child.seek(caller, fd, offset=offset, what=what)

    async def rchecksum(self, caller: Caller, fd: Fd, *, offset: int, length: int) -> bytes:
        await self._settle(fd.gfid)
        return await self.child.rchecksum(caller, fd, offset=offset, length=length)

    async def lookup(self, caller: Caller, loc: Loc, *, want: Want = ()) -> Looked:
        looked = await self.child.lookup(caller, loc, want=want)
        gfid = looked.iatt.gfid
        if gfid in self._queues:
            await self._settle(gfid)
            looked.iatt = (await self.child.stat(caller, Loc(gfid=gfid))).iatt
        return looked

    async def stat(self, caller: Caller, target: Target, *, want: Want = ()) -> Looked:
        await self._settle(target.gfid)
        return await self.child.stat(caller, target, want=want)

    async def readdir(
        self, caller: Caller, fd: Fd, *, size: int, offset: int, is_plus: bool = False, want: Want = ()
    ) -> list[Entry]:
        entries = await self.child.readdir(caller, fd, size=size, offset=offset, is_plus=is_plus, want=want)
        if is_plus and self._queues:
            for entry in entries:
                if entry.gfid in self._queues:
                    entry.iatt = None
        return entries

    async def setattr(self, caller: Caller, target: Target, attributes: SetAttr) -> Changed:
        made, queue = self._made.get(target.gfid), self._queues.get(target.gfid)
        if made is not None and made.can_wait(target, attributes) and self._may_set_later(queue):
            return self._set_later(made, caller, attributes)
        if queue is not None:
            if isinstance(target, Fd) and queue.is_waiting_for(target, caller):
                changed, attributes = await self._write_and_set(queue, caller, target, attributes)
                if changed is not None:
                    return self._set(made, target, changed)
            await self._settle(target.gfid)
        return self._set(made, target, await self.child.setattr(caller, target, attributes))

    def _set(self, made: Made | None, target: Target, changed: Changed) -> Changed:
        if made is not None and self._made.get(target.gfid) is made:
            made.iatt = copy_of(changed.after)
        return changed

    def _may_set_later(self, queue: Queue | None) -> bool:
        """What has failed is not done again behind attributes."""
        return not self._is_off and self._aggregate > 0 and (queue is None or not queue.failed)

    def _set_later(self, made: Made, caller: Caller, attributes: SetAttr) -> Changed:
        fd = made.fd
        self._raise_error(fd)
        queue = self._queue(fd.gfid)
        waiting = queue.attributes(caller, fd)
        if waiting is None:
            self._add(queue, Attributes(caller, fd, replace(attributes)))
        else:
            update(waiting.values, attributes)
        return Changed(Iatt(fd.gfid), made.after(attributes, self.context.wall_ns()))

    def _note_write(self, fd: Fd, end: int, *, is_append: bool) -> None:
        made = self._made.get(fd.gfid)
        if made is None:
            return
        if fd is made.fd and not is_append:
            made.iatt.size = max(made.iatt.size, end)
        else:
            del self._made[fd.gfid]

    async def _write_and_set(
        self, queue: Queue, caller: Caller, target: Fd, attributes: SetAttr
    ) -> tuple[Changed | None, SetAttr]:
        """What waits and the attributes in one frame; None: they have not been set, and what is to be set then."""
        queue.stop_timer()
        waiting = queue.attributes(caller, target)
        if waiting is not None:
            queue.waiting.pop()
            attributes = update(waiting.values, attributes)
            if not queue.waiting:
                self._drop_empty(queue)
                return None, attributes
        writes = queue.take()
        steps = [*_steps_of(writes), Step("setattr", (target, attributes))]
        is_all = not queue.waiting
        try:
            answers = await self.child.compound(caller, steps if is_all else steps[:-1])
        except OSError as error:
            answers = [error]
        except BaseException as error:
            self._answered(queue, writes, [error])
            raise
        self._answered(queue, writes, answers[: len(writes)])
        if len(answers) <= len(writes):
            return None, attributes
        if isinstance(answers[-1], OSError):
            raise answers[-1]
        changed: Changed = answers[-1]
        return changed, attributes

    async def setxattr(self, caller: Caller, target: Target, values: Xattrs, *, flags: int = 0) -> None:
        self._made.pop(target.gfid, None)  # a list of rights changes the mode
        await self.child.setxattr(caller, target, values, flags=flags)

    async def removexattr(self, caller: Caller, target: Target, name: bytes) -> None:
        self._made.pop(target.gfid, None)
        await self.child.removexattr(caller, target, name)

    async def truncate(self, caller: Caller, target: Target, size: int) -> Changed:
        self._made.pop(target.gfid, None)
        await self._settle(target.gfid)
        return await self.child.truncate(caller, target, size)

    async def fallocate(self, caller: Caller, fd: Fd, *, mode: int, offset: int, length: int) -> Changed:
        self._made.pop(fd.gfid, None)
        await self._settle(fd.gfid)
        return await self.child.fallocate(caller, fd, mode=mode, offset=offset, length=length)

    async def lk(self, caller: Caller, fd: Fd, command: LockCommand, lock: Lock) -> Lock:
        if command is not LockCommand.GET:
            await self._settle(fd.gfid)
        return await self.child.lk(caller, fd, command, lock)

    # ---- names: whoever finds a file under its new name finds all of it ----

    async def rename(self, caller: Caller, source: Loc, target: Loc, *, flags: int = 0) -> Looked:
        await self._settle_all()
        return await self.child.rename(caller, source, target, flags=flags)

    async def link(self, caller: Caller, source: Loc, loc: Loc) -> Looked:
        await self._settle(source.gfid)
        return await self.child.link(caller, source, loc)

    async def unlink(self, caller: Caller, loc: Loc) -> Looked:
        looked = await self.child.unlink(caller, loc)
        if looked.iatt.gfid in self._queues and looked.iatt.nlink:
            await self._settle(looked.iatt.gfid)
            looked.iatt = (await self.child.stat(caller, Loc(gfid=looked.iatt.gfid))).iatt
        return looked

    # ---- open files ----

    async def open(self, caller: Caller, loc: Loc, fd: Fd, *, flags: int) -> None:
        if flags & os.O_TRUNC:
            await self._settle(loc.gfid)
        await self.child.open(caller, loc, fd, flags=flags)

    async def create(
        self, caller: Caller, loc: Loc, fd: Fd, *, flags: int, mode: int, gfid: bytes, extra: Any = None
    ) -> Looked:
        if not flags & os.O_EXCL:
            await self._settle_all()
        looked = await self.child.create(caller, loc, fd, flags=flags, mode=mode, gfid=gfid, extra=extra)
        if looked.iatt.gfid == gfid:  # it was not there
            self._made[gfid] = Made(fd, looked.iatt)
        return looked

    async def flush(self, caller: Caller, fd: Fd) -> Iatt | None:
        if self.options["flush-behind"]:
            self._raise_error(fd)
            self.context.spawn(self._flush_behind(caller, fd), f"{self.name}: flush")
            return None
        stored = await self._settle_synced(fd)
        self._raise_error(fd)
        await self.child.flush(caller, fd)
        made = self._made.get(fd.gfid)
        return stored if made is not None and made.fd is fd else None  # of others' files bricks do not tell a writer

    async def _flush_behind(self, caller: Caller, fd: Fd) -> None:
        await self._settle_synced(fd)
        try:
            await self.child.flush(caller, fd)
        except OSError as error:
            fd.contexts.setdefault(self, error)

    async def fsync(self, caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> Changed:
        await self._settle_synced(fd)
        self._raise_error(fd)
        return await self.child.fsync(caller, fd, kind)

    async def release(self, fd: Fd) -> None:
        made = self._made.get(fd.gfid)
        if made is not None and made.fd is fd:
            del self._made[fd.gfid]
        await self._close(fd)
        await self.child.release(fd)

    async def _close(self, fd: Fd) -> None:
        await self._settle_synced(fd)
        error = fd.contexts.pop(self, None)
        if error is not None:
            log.error("volume '%s': %s: a write failed and nobody was left to be told: %s", self.name, fd, error)

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        if self._made:
            for step in steps:
                for target in step.args if step.fop not in _LOOKING else ():
                    if isinstance(target, Loc | Fd):
                        self._made.pop(target.gfid, None)
        if not self._queues and not any(step.fop == "writev" for step in steps):
            return await self.child.compound(caller, steps)
        gfids = {target.gfid for step in steps for target in step.args if isinstance(target, Loc | Fd)}
        if any(step.fop in _NAMING for step in steps):
            await self._settle_all()
        await self._settle_several(gfids - {NO_GFID})
        fds = [step.args[0] for step in steps if isinstance(step.args[0], Fd) and step.fop in _TELLING]
        for fd in fds:
            try:
                self._raise_error(fd)
            except OSError as error:
                return [error]
        return await self.child.compound(caller, steps)


def _steps_of(writes: list[Write]) -> list[Step]:
    return [
        Step("setattr", (w.fd, w.values)) if isinstance(w, Attributes) else
        Step("writev", (w.fd, w.data), {"offset": w.offset, "flags": w.flags})
        for w in writes
    ]  # fmt: skip


_LOOKING = frozenset(("lookup", "open", "stat", "access", "getxattr", "readv", "readlink", "flush", "fsync"))
_NAMING = frozenset(("lookup", "create", "rename", "link", "unlink"))
_TELLING = frozenset(("writev", "fsync", "flush"))
