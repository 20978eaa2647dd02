# SPDX-License-Identifier: Apache-2.0
"""The connection with the kernel: reads requests, hands them on, writes answers and notifications.

Inputs: the descriptor of a mounted /dev/fuse and a function that turns a request into an answer.  Several requests are
read per wake-up of the loop, and one is looked for a little before it sleeps (patience.py); each is a task of its own,
so a slow one delays nobody.  Functions in ``quick`` are asked first: they answer what needs no waiting, or say False.
Answers: bytes (the body), None (done, no body), ``NO_ANSWER``; an ``OSError`` goes to the kernel as its number, any
other exception is a bug, logged and told as EIO.
Interrupts end the wait for a lock with EINTR; all else runs to its end, because half a change would be worse than a
late signal, and what is below answers in bounded time.
Errors: ``ConfigError`` for a kernel that is too old.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from repl.clock import monotonic_ns
from repl.errors import ConfigError
from repl.files.eager import Begun
from repl.files.mount import wire
from repl.files.mount.failures import Failures
from repl.files.mount.patience import Patience
from repl.files.mount.wire import Init, Op, Request
from repl.files.values import FopError
from repl.limits import MOUNT_REQUESTS_MAX, MOUNT_REQUESTS_PER_WAKE_MAX, MOUNT_TRANSFER_BYTES_MAX

log = logging.getLogger(__name__)

PAGE_BYTES = 4096
BUFFER_BYTES = MOUNT_TRANSFER_BYTES_MAX + PAGE_BYTES  # as the kernel demands: a whole write with its headers
LARGE_BYTES = 128 * 1024  # from here on a write keeps the buffer it came in
SMALL_BYTES = 1024  # up to here an answer and its header are joined
HEADER_BYTES = wire.IN_HEADER.size
NO_ANSWER = object()
NOTHING = Init(0)

_WANTED = (
    Init.ASYNC_READ | Init.POSIX_LOCKS | Init.ATOMIC_O_TRUNC | Init.BIG_WRITES | Init.FLOCK_LOCKS
    | Init.AUTO_INVAL_DATA | Init.DO_READDIRPLUS | Init.READDIRPLUS_AUTO | Init.ASYNC_DIO | Init.PARALLEL_DIROPS
    | Init.ABORT_ERROR | Init.MAX_PAGES | Init.CACHE_SYMLINKS | Init.HANDLE_KILLPRIV_V2 | Init.SETXATTR_EXT
    | Init.INIT_EXT | Init.DIRECT_IO_ALLOW_MMAP
)  # fmt: skip

Handler = Callable[[Request], Awaitable[Any]]
QuickHandler = Callable[[Request], bool]
NONE_QUICK: Mapping[int, QuickHandler] = {}


class Connection:
    """One mounted /dev/fuse.  ``closed`` is set when the kernel has ended it (unmounted, aborted)."""

    def __init__(
        self, fd: int, handler: Handler, *, quick: Mapping[int, QuickHandler] = NONE_QUICK, flags: Init = NOTHING,
        background: int = 64,
    ) -> None:  # fmt: skip
        self.fd = fd
        self.closed = asyncio.Event()
        self.handled = 0
        self.errors: dict[int, int] = {}  # how often requests failed, by number
        self.agreed = NOTHING
        self._handler = handler
        self._quick = quick
        self._extra = flags
        self._background = background
        self._loop = asyncio.get_running_loop()
        self._failures = Failures(self._loop.time)
        self._buffer = bytearray(BUFFER_BYTES)
        self._running: dict[int, asyncio.Task[None]] = {}
        self._waiting_locks = 0
        self._is_reading = False
        self._is_paused = False
        self._has_answered = False  # since the next request was looked for
        self._patience = Patience(monotonic_ns)
        self._failed: BaseException | None = None
        os.set_blocking(fd, False)

    # ---- life ----

    def start(self) -> None:
        self._is_reading = True
        self._loop.add_reader(self.fd, self._readable)

    def close(self) -> None:
        """No more requests; what runs is left to end by itself."""
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self.fd)
        self.closed.set()

    def raise_failure(self) -> None:
        if self._failed is not None:
            raise self._failed

    async def drain(self, seconds: float) -> None:
        """Wait for what is running, but for blocked locks."""
        running = [task for task in self._running.values() if task.get_name() != "lock"]
        if running:
            await asyncio.wait(running, timeout=seconds)

    @property
    def running(self) -> int:
        return len(self._running)

    def pause(self) -> None:
        """Leave further requests in the kernel."""
        self._is_paused = True
        if self._is_reading:
            self._loop.remove_reader(self.fd)

    def resume(self) -> None:
        self._is_paused = False
        if self._is_reading:
            self._loop.add_reader(self.fd, self._readable)

    # ---- requests ----

    def _readable(self) -> None:
        for _ in range(MOUNT_REQUESTS_PER_WAKE_MAX):
            if len(self._running) - self._waiting_locks >= MOUNT_REQUESTS_MAX:
                self.pause()
                return
            try:
                size = self._read()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):  # ENOENT: interrupted before it was read
                    continue
                if error.errno not in (errno.ENODEV, errno.ECONNABORTED):
                    log.error("reading from /dev/fuse: %s", error)
                self.close()
                return
            if size < HEADER_BYTES:
                self.close()
                return
            self._received(size)
            if len(self._running) == 1:
                return  # whoever works alone sends the next one behind the answer

    def _read(self) -> int:
        """The size of the next request.  Raises ``BlockingIOError``: there is none.  When all are answered it looks for
        one a little longer, once."""
        try:
            return os.readv(self.fd, [self._buffer])
        except BlockingIOError:
            if self._running or not self._has_answered:
                raise
        self._has_answered = False
        return self._patience.look(lambda: os.readv(self.fd, [self._buffer]))

    def _look_again(self) -> None:
        if self._is_reading and not self._is_paused:
            self._readable()

    def _received(self, size: int) -> None:
        _, op, unique, nodeid, uid, gid, pid, extra, _ = wire.IN_HEADER.unpack_from(self._buffer)
        if op == Op.WRITE and size > LARGE_BYTES:
            body: bytes | memoryview = memoryview(self._buffer)[HEADER_BYTES:size]
            self._buffer = bytearray(BUFFER_BYTES)
        else:
            body = bytes(memoryview(self._buffer)[HEADER_BYTES : size - 8 * extra])
        self.handled += 1
        if op == Op.INTERRUPT:
            self._interrupt(unique, *wire.INTERRUPT_IN.unpack_from(body))
            return
        if op == Op.INIT:
            self._init(unique, body)
            return
        request = Request(op, unique, nodeid, uid, gid, pid, body)
        quick = self._quick.get(op)
        if quick is not None and quick(request):
            self._has_answered = True
            return
        is_lock = op == Op.SETLKW
        self._waiting_locks += is_lock
        begun = Begun(self._serve(request))
        if not begun.is_done:
            name = "lock" if is_lock else "request"
            self._running[unique] = self._loop.create_task(begun, name=name)

    async def _serve(self, request: Request) -> None:
        unique = request.unique
        try:
            answer = await self._handler(request)
            if answer is not NO_ANSWER:
                self.answer(unique, answer)
        except asyncio.CancelledError:
            self.fail(unique, errno.EINTR)
        except OSError as error:
            self._request_failed(request, error)
        except KeyError:
            # The kernel names what it forgot: only possible after a forced unmount or a bug of its own.
            self._request_failed(request, FopError(errno.ESTALE))
        except Exception:
            log.exception("request %d of the kernel on inode %d", request.op, request.nodeid)
            self.fail(unique, errno.EIO)
        finally:
            has_waited = self._running.pop(unique, None) is not None
            if request.op == Op.SETLKW:
                self._waiting_locks -= 1
            if self._is_paused and len(self._running) - self._waiting_locks == MOUNT_REQUESTS_MAX // 2:
                self.resume()
            if not self._running:
                self._has_answered = True
                if has_waited:
                    self._loop.call_soon(self._look_again)

    def _request_failed(self, request: Request, error: OSError) -> None:
        number = error.errno or errno.EIO
        self.fail(request.unique, number)
        self.errors[number] = self.errors.get(number, 0) + 1
        self._failures.note(request, error)

    def _interrupt(self, unique: int, target: int) -> None:
        task = self._running.get(target)
        if task is None:
            # Not read yet, or answered already: in the first case the kernel is to say it again.
            self.fail(unique, errno.EAGAIN)
        elif task.get_name() == "lock":
            task.cancel()

    def _init(self, unique: int, body: bytes | memoryview) -> None:
        major, minor, _, low, high = wire.INIT_IN.unpack_from(body)
        if major != wire.KERNEL_MAJOR or minor < wire.KERNEL_MINOR_MIN:
            needed = f"{wire.KERNEL_MAJOR}.{wire.KERNEL_MINOR_MIN} (Linux 5.4)"
            self._failed = ConfigError(f"the kernel speaks FUSE {major}.{minor}; at least {needed} is needed.")
            self.fail(unique, errno.EPROTO)
            self.close()
            return
        offered = Init(low | (high << 32 if low & Init.INIT_EXT else 0))
        self.agreed = agreed = offered & (_WANTED | self._extra)
        self.answer(unique, wire.INIT_OUT.pack(
            wire.KERNEL_MAJOR, min(minor, wire.KERNEL_MINOR), MOUNT_TRANSFER_BYTES_MAX, agreed & 0xFFFFFFFF,
            self._background, self._background * 3 // 4, MOUNT_TRANSFER_BYTES_MAX, 1,
            MOUNT_TRANSFER_BYTES_MAX // PAGE_BYTES, 0, agreed >> 32,
        ))  # fmt: skip

    # ---- answers ----

    def answer(self, unique: int, body: Any = None) -> bool:
        """False: the kernel does not want it any more (interrupted, aborted)."""
        try:
            if body is None:
                os.write(self.fd, wire.OUT_HEADER.pack(wire.OUT_HEADER.size, 0, unique))
            elif type(body) is bytes and len(body) <= SMALL_BYTES:
                os.write(self.fd, wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), 0, unique) + body)
            else:
                os.writev(self.fd, (wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), 0, unique), body))
        except OSError as error:
            return self._unanswered(error)
        return True

    def fail(self, unique: int, number: int) -> bool:
        try:
            os.write(self.fd, wire.OUT_HEADER.pack(wire.OUT_HEADER.size, -number, unique))
        except OSError as error:
            return self._unanswered(error)
        return True

    def _unanswered(self, error: OSError) -> bool:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EBADF):
            log.error("writing to /dev/fuse: %s", error)
        return False

    # ---- notifications; those that say so may block: not from the loop's thread ----

    def invalidate_attributes(self, nodeid: int) -> None:
        self._notify(wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE.pack(nodeid, -1, 0))

    def invalidate_data(self, nodeid: int) -> None:
        """Attributes and all pages.  May block: dirty ones are written first, which comes back to us as requests."""
        self._notify(wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE.pack(nodeid, 0, 0))

    def invalidate_entry(self, nodeid: int, name: bytes) -> None:
        """May block, for the directory's lock, that somebody may hold who waits for an answer of ours."""
        self._notify(wire.NOTIFY_INVAL_ENTRY, wire.INVAL_ENTRY.pack(nodeid, len(name), 0) + name + b"\0")

    def store(self, nodeid: int, data: Any) -> bool:
        """A whole file for the kernel's cache, of the size that the kernel was told.  Nobody may have it open: who
        reads holds a page, and waits for us."""
        size = len(data)
        return self._notify(wire.NOTIFY_STORE, wire.STORE.pack(nodeid, 0, size, 0), data)

    def _notify(self, code: int, head: bytes, data: Any = b"") -> bool:
        size = wire.OUT_HEADER.size + len(head) + len(data)
        try:
            os.writev(self.fd, (wire.OUT_HEADER.pack(size, code, 0) + head, data))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.EBADF, errno.ENOTEMPTY):
                log.warning("notification refused by the kernel: %s", error)
            return False
        return True
