# SPDX-License-Identifier: Apache-2.0
"""The calls of one client that are worked on, and its open files.

Calls are worked on at the same time, the steps of a compound in order.  A call on a file whose open is still under
way waits for it.  Calls that wait for locks do not count for the limit of outstanding calls, or the unlock could not
get through; they have bounds of their own.
While frozen (a new graph is about to take over) calls wait in a backlog.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from repl.errors import ProtocolError
from repl.files.eager import Begun
from repl.files.rpc import operations as ops
from repl.files.rpc.frames import Frame, Kind
from repl.files.rpc.operations import Call, Receiver, Sender
from repl.files.rpc.packing import unpack_new_fd
from repl.files.translator import Translator
from repl.files.translators.server.open_files import OpenFile, OpenFiles
from repl.files.values import Caller, Fd, FopError, Loc
from repl.limits import RPC_LOCK_WAIT_BYTES_MAX, RPC_LOCK_WAITS_MAX

log = logging.getLogger(__name__)

LAST_CALLS_GRACE_S = 2.0
OPENING_FLAGS = os.O_CREAT | os.O_EXCL | os.O_TRUNC  # what opening again must not do

Send = Callable[[Kind, int, bytes, Sequence[Any]], None]


class Work:
    """One call.  ``used``: the files it works on, ``added``: those of them that it opens."""

    __slots__ = ("added", "begins_again", "call", "call_id", "held_bytes", "task", "used", "waits")

    def __init__(self, call_id: int, call: Call, used: list[OpenFile], added: list[OpenFile], held_bytes: int) -> None:
        self.call_id = call_id
        self.call = call
        self.used = used
        self.added = added
        self.waits = call.waits_for_lock
        self.held_bytes = held_bytes  # of its payload, if it waits
        self.task: asyncio.Task[None] | None = None
        self.begins_again = False


class _FileReceiver(Receiver):
    """Notes the files that a call names."""

    def __init__(self, frame: Frame, files: OpenFiles) -> None:
        super().__init__(frame.payload, is_lasting=frame.is_lasting, open_file=self._find, new_file=self._add)
        self._files = files
        self.used: list[OpenFile] = []
        self.added: list[OpenFile] = []

    def _find(self, number: int) -> Fd:
        file = self._files.find(number)
        if file not in self.used:
            self.used.append(file)
        return file.fd

    def _add(self, raw: Any) -> Fd:
        file = self._files.add(*unpack_new_fd(raw))
        self.used.append(file)
        self.added.append(file)
        return file.fd


class Calls:
    """Works on the calls of one client with ``top``; ``send`` takes the answers.

    ``outstanding_changed`` is called while there are ``outstanding_high`` or more, and when there are fewer again.
    """

    def __init__(
        self, name: str, top: Translator, send: Send, outstanding_changed: Callable[[], None], outstanding_high: int
    ) -> None:
        self.name = name
        self.top = top
        self.files = OpenFiles()
        self.outstanding = 0
        self.outstanding_high = outstanding_high
        self.is_frozen = False
        self._send = send
        self._outstanding_changed = outstanding_changed
        self._loop = asyncio.get_running_loop()
        self._works: dict[int, Work] = {}
        self._backlog: deque[Work] = deque()
        self._is_cancelling = False
        self._waiting = 0
        self._waiting_bytes = 0
        self._releases: set[asyncio.Task[None]] = set()

    @property
    def under_way(self) -> int:
        return len(self._works)

    # ---- beginning ----

    def take(self, frame: Frame, callers: Mapping[int, Caller]) -> None:
        """A call has come.  Raises ``ProtocolError``."""
        call_id = frame.call_id
        if call_id in self._works:
            raise ProtocolError(f"call {call_id} is under way already.")
        receiver = _FileReceiver(frame, self.files)
        try:
            call = ops.decode_call(frame.body, receiver, callers)
            ops.check_ranges(call.plan)
            work = Work(call_id, call, receiver.used, receiver.added, len(frame.payload))
            if work.waits:
                self._admit_wait(work)
        except FopError as error:
            for file in receiver.added:
                self.files.fail(file)
            self._send(Kind.ERROR, call_id, ops.encode_error(error), ())
            return
        self._begin(work)

    def _admit_wait(self, work: Work) -> None:
        if self._waiting >= RPC_LOCK_WAITS_MAX or self._waiting_bytes + work.held_bytes > RPC_LOCK_WAIT_BYTES_MAX:
            raise FopError(errno.ENOLCK, f"{self._waiting} calls of this client wait for locks")
        self._waiting += 1
        self._waiting_bytes += work.held_bytes

    def _begin(self, work: Work) -> None:
        self._works[work.call_id] = work
        for file in work.used:
            file.users += 1
        if work.call.is_compound:
            for operation, values in work.call.plan:
                if operation is ops.RELEASE:
                    self._forget_number(work, values[0])
        if not work.waits:
            self.outstanding += 1
            if self.outstanding >= self.outstanding_high:
                self._outstanding_changed()
        if self.is_frozen:
            self._backlog.append(work)
        else:
            # What was given up ends before anything that came behind it begins.
            call = self._serve(work) if self._is_cancelling else Begun(self._serve(work))
            if not isinstance(call, Begun) or not call.is_done:
                work.task = self._loop.create_task(call)

    def _forget_number(self, work: Work, fd: Fd) -> None:
        for file in work.used:
            if file.fd is fd:
                self.files.remove(file.number)

    def release(self, number: int) -> None:
        file = self.files.remove(number)
        if file is None:
            return
        call = Begun(self._release(file))
        if not call.is_done or call.has_failed:
            task: asyncio.Task[None] = self._loop.create_task(call)
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)

    async def _release(self, file: OpenFile) -> None:
        await file.wait_unused()
        if file.is_open:
            await self.top.release(file.fd)

    def cancel(self, call_id: int) -> None:
        """Nobody waits for it; only waiting for a lock can be given up."""
        work = self._works.get(call_id)
        if work is not None and work.waits and not work.call.is_compound and work.task is not None:
            work.task.cancel()
            self._is_cancelling = True
            self._loop.call_soon(self._cancelled)

    def _cancelled(self) -> None:
        self._is_cancelling = False

    # ---- working ----

    async def _serve(self, work: Work) -> None:
        sender = Sender(_no_number)
        kind = Kind.ERROR
        try:
            for file in work.used:
                if not file.is_open and file not in work.added:
                    await file.wait_open()
            body = await self._execute(work, sender)
            kind = Kind.ANSWER
        except OSError as error:
            body = ops.encode_error(error)
        except asyncio.CancelledError:
            if work.begins_again:
                work.task = None
                return
            number = errno.ENOTCONN if self.is_frozen else errno.EINTR
            body = ops.encode_error(FopError(number, "given up"))
        except OverflowError as error:
            body = ops.encode_error(FopError(errno.EINVAL, str(error)))  # a number that the system has no room for
        except Exception as error:
            log.exception("volume '%s': %s failed", self.name, [op.name for op, _ in work.call.plan])
            body = ops.encode_error(FopError(errno.EIO, f"internal error: {error!r}"))
        self._end(work)
        self._send(kind, work.call_id, body, sender.payloads if kind is Kind.ANSWER else ())

    async def _execute(self, work: Work, sender: Sender) -> bytes:
        caller, plan = work.call.caller, work.call.plan
        if work.call.is_compound:
            results = await self.top.compound(caller, [operation.step(values) for operation, values in plan])
            for (operation, values), result in zip(plan, results, strict=False):
                if operation.name in ops.OPENERS and not isinstance(result, OSError):
                    _opened(work, values[1], result)
            return ops.encode_compound_answer(plan, results, sender)
        operation, values = plan[0]
        step = operation.step(values)
        result = await getattr(self.top, step.fop)(caller, *step.args, **step.kwargs)
        if work.added:
            _opened(work, values[1], result)
        return ops.encode_answer(operation, result, sender)

    def _end(self, work: Work) -> None:
        self._works.pop(work.call_id, None)
        for file in work.added:
            if not file.is_open:
                self.files.fail(file)
        for file in work.used:
            file.users -= 1
            if not file.users and file.waiters:
                file.wake()
        if work.waits:
            self._waiting -= 1
            self._waiting_bytes -= work.held_bytes
            return
        self.outstanding -= 1
        if self.outstanding == self.outstanding_high - 1:
            self._outstanding_changed()

    async def wait_idle(self, timeout_s: float) -> bool:
        """While frozen: until nothing is under way; False if something had to be given up after ``timeout_s``."""
        tasks = [work.task for work in self._works.values() if work.task is not None]
        if not tasks:
            return True
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
        return not late

    # ---- the end ----

    async def finish(self, forget_locks: Callable[[], None]) -> None:
        """The client is gone: waits for locks end, what has begun goes on to its end, then ``forget_locks`` is called
        and files are released."""
        for work in self._backlog:
            self._end(work)
        self._backlog.clear()
        for call_id in list(self._works):
            self.cancel(call_id)
        tasks = [work.task for work in self._works.values() if work.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=LAST_CALLS_GRACE_S)
        forget_locks()
        await asyncio.gather(*tasks, *self._releases, return_exceptions=True)
        for file in self.files.all():
            self.files.remove(file.number)
            await self._release(file)

    # ---- a new graph ----

    def freeze(self) -> None:
        """Calls that come from now on wait for ``thaw``, waits for locks begin again there."""
        self.is_frozen = True
        for work in self._works.values():
            if work.waits and not work.call.is_compound and work.task is not None:
                work.begins_again = True
                work.task.cancel()

    async def move(self, top: Translator) -> None:
        """To the volume of a new graph: files are opened again there.  One that cannot be is open no more (EBADF)."""
        before, self.top = self.top, top
        for file in self.files.all():
            old = file.fd
            if not file.is_open:
                continue
            file.fd = Fd(old.gfid, old.flags & ~OPENING_FLAGS, is_directory=old.is_directory, path=old.path)
            try:
                await open_again(top, file.fd)
            except OSError as error:
                log.warning("volume '%s': %s cannot be opened again: %s", self.name, old, error)
                self.files.fail(file)
            for work in self._works.values():
                _replace(work, old, file.fd)
            await before.release(old)

    def thaw(self) -> None:
        self.is_frozen = False
        again = [work for work in self._works.values() if work.begins_again]
        for work in again:
            work.begins_again = False
            work.task = self._loop.create_task(self._serve(work))
        while self._backlog:
            work = self._backlog.popleft()
            if work not in again:
                work.task = self._loop.create_task(self._serve(work))


async def open_again(top: Translator, fd: Fd) -> None:
    """By identity: the name may have changed since.  Permissions were checked when it was opened."""
    loc = Loc(gfid=fd.gfid, path=fd.path)
    if fd.is_directory:
        await top.opendir(Caller(), loc, fd)
    else:
        await top.open(Caller(), loc, fd, flags=fd.flags)


def _replace(work: Work, old: Fd, new: Fd) -> None:
    for _, values in work.call.plan:
        for index, value in enumerate(values):
            if value is old:
                values[index] = new


def _opened(work: Work, fd: Fd, result: Any) -> None:
    """A file that was there already when it was to be created has a gfid of its own."""
    if result is not None:
        fd.gfid = result.iatt.gfid
    for file in work.added:
        if file.fd is fd:
            file.is_open = True
            file.wake()


def _no_number(_: Fd) -> int:
    raise AssertionError("there is no file in an answer")
