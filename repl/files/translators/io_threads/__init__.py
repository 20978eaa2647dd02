# SPDX-License-Identifier: Apache-2.0
"""performance/io-threads: how many operations are under way below at a time, and which go first.

There is one event loop and no pool of threads here (storage/posix has its own for what blocks): ``thread-count`` is
the number of operations that are passed on at a time.  What comes above it waits in four queues, by priority; within
one, clients take turns, so that one with a thousand writes does not hold up another with one.  Priorities: high for
names and attributes, normal for changes of names, low for data, least for heals and rebalances (but for their syncs,
which wait for the disk and take nothing from others).
Locks never wait here: an unlock behind a full queue of operations that wait for it would be a deadlock.
"""

from __future__ import annotations

import asyncio
import enum
import errno
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from repl.files.every_fop import define_fops
from repl.files.options import Kind, Option, Options
from repl.files.rpc.operations import BY_NAME, is_lock_wait
from repl.files.translator import Context, Step, Translator
from repl.files.values import TRANSACTION_PID, Caller, End, Fd, FopError

LOCKS = frozenset(("lk", "inodelk", "entrylk"))
_RELEASES = {"release"}


class Priority(enum.IntEnum):
    HIGH = 0
    NORMAL = 1
    LOW = 2
    LEAST = 3


_HIGH = ("lookup", "stat", "open", "opendir", "access", "readlink", "statfs", "readdir", "flush")
_LOW = ("readv", "writev", "fsync", "fsyncdir", "truncate", "fallocate", "seek", "rchecksum", "xattrop")
PRIORITIES = dict.fromkeys(_HIGH, Priority.HIGH) | dict.fromkeys(_LOW, Priority.LOW)


def _threads(name: str, default: int, text: str) -> Option:
    return Option(name, Kind.INT, default, text, minimum=1, maximum=64)


class _Queue:
    """Those who wait with one priority: clients take turns."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self.length = 0

    def add(self, client: str) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._clients.setdefault(client, deque()).append(waiter)
        self.length += 1
        return waiter

    def take(self) -> asyncio.Future[None] | None:
        """The next one that still waits."""
        while self._clients:
            client, waiters = next(iter(self._clients.items()))
            waiter = waiters.popleft()
            self.length -= 1
            if waiters:
                self._clients.move_to_end(client)
            else:
                del self._clients[client]
            if not waiter.done():
                return waiter
        return None

    def drop(self, client: str) -> None:
        for waiter in self._clients.pop(client, ()):
            self.length -= 1
            if not waiter.done():
                waiter.set_exception(FopError(errno.ENOTCONN, "the client is gone"))


def _fop(name: str) -> Callable[..., Any]:
    if name in LOCKS:

        async def lock(self: IoThreads, caller: Caller, *args: Any, **kwargs: Any) -> Any:
            return await getattr(self.child, name)(caller, *args, **kwargs)

        return lock
    usual = PRIORITIES.get(name, Priority.NORMAL)

    async def fop(self: IoThreads, caller: Caller, *args: Any, **kwargs: Any) -> Any:
        priority = Priority.LEAST if self._is_least(caller) and name != "fsync" else usual
        await self.begin(priority, caller)
        try:
            return await getattr(self.child, name)(caller, *args, **kwargs)
        finally:
            self.end(priority)

    return fop


@define_fops(_fop)
class IoThreads(Translator):
    TYPE = "performance/io-threads"
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        _threads("thread-count", 16, "operations under way at a time"),
        _threads("high-prio-threads", 16, "of them lookups, stats, opens, listings at most"),
        _threads("normal-prio-threads", 16, "of them changes of names and attributes at most"),
        _threads("low-prio-threads", 16, "of them reads, writes, syncs at most"),
        _threads("least-prio-threads", 1, "of them for heals and rebalances at most"),
        Option("enable-least-priority", Kind.BOOL, True, "heals and rebalances go last"),
        Option("idle-time", Kind.TIME, 120.0, "accepted for Gluster's sake; there are no idle threads", minimum=1),
        Option("watchdog-secs", Kind.TIME, 0.0, "accepted for Gluster's sake", minimum=0),
        Option("cleanup-disconnected-reqs", Kind.BOOL, False, "drop what waits here for a client that is gone"),
        Option("pass-through", Kind.BOOL, False, "no limits and no order"),
    )

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._queues = tuple(_Queue() for _ in Priority)
        self._running = [0] * len(Priority)
        self._total = 0
        self._apply(options)

    def _apply(self, options: Options) -> None:
        names = ("high-prio-threads", "normal-prio-threads", "low-prio-threads", "least-prio-threads")
        no_limit = 1 << 30
        is_free = options["pass-through"]
        self._limit = no_limit if is_free else options["thread-count"]
        self._limits = [no_limit if is_free else options[name] for name in names]
        self.has_least: bool = options["enable-least-priority"]

    def reconfigure(self, options: Options) -> None:
        super().reconfigure(options)
        self._apply(options)
        self._wake()

    def _is_least(self, caller: Caller) -> bool:
        return caller.is_internal and self.has_least and caller.pid != TRANSACTION_PID

    async def begin(self, priority: Priority, caller: Caller) -> None:
        """Returns when it is its turn."""
        queue = self._queues[priority]
        if self._total < self._limit and self._running[priority] < self._limits[priority] and not queue.length:
            self._total += 1
            self._running[priority] += 1
            return
        waiter = queue.add(caller.client)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.end(priority)
            raise

    def end(self, priority: Priority) -> None:
        self._total -= 1
        self._running[priority] -= 1
        self._wake()

    def _wake(self) -> None:
        for priority, queue in enumerate(self._queues):
            while queue.length and self._total < self._limit and self._running[priority] < self._limits[priority]:
                waiter = queue.take()
                if waiter is None:
                    break
                self._total += 1
                self._running[priority] += 1
                waiter.set_result(None)

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        """Waits for locks at its beginning are done before it takes a place; with one further on it takes none."""
        fops = {step.fop for step in steps}
        if steps and LOCKS.isdisjoint(fops) and fops != _RELEASES and not self._is_least(caller):
            return await self._placed(_priority(steps), caller, steps)
        waits = [_waits(step) for step in steps]
        lead = waits.index(False) if False in waits else len(steps)
        results = await self.child.compound(caller, steps[:lead]) if lead else []
        rest = steps[lead:]
        if await self._is_over(results, rest):
            return results
        if not rest:
            return results
        if any(waits[lead:]) or all(step.fop in LOCKS or step.fop == "release" for step in rest):
            return results + await self.child.compound(caller, rest)
        if not self._is_least(caller):
            return results + await self._placed(_priority(rest), caller, rest)
        # The place of the least is one for all: nobody keeps it while he waits for the disk.
        while rest:
            is_sync = rest[0].fop == "fsync"
            count = next((i for i, step in enumerate(rest) if (step.fop == "fsync") is not is_sync), len(rest))
            part, rest = rest[:count], rest[count:]
            results += await self._placed(Priority.LOW if is_sync else Priority.LEAST, caller, part)
            if await self._is_over(results, rest):
                break
        return results

    async def _placed(self, priority: Priority, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        await self.begin(priority, caller)
        try:
            return await self.child.compound(caller, steps)
        finally:
            self.end(priority)

    async def sync_all(self, caller: Caller, fds: Sequence[Fd]) -> list[OSError | None]:
        await self.begin(Priority.LOW, caller)
        try:
            return await self.child.sync_all(caller, fds)
        finally:
            self.end(Priority.LOW)

    async def end_all(
        self, caller: Caller, domain: str, key: bytes, ends: Sequence[End]
    ) -> list[bytes | OSError | None]:
        """Locks are given back: never behind somebody who waits for one."""
        return await self.child.end_all(caller, domain, key, ends)

    async def _is_over(self, results: list[Any], rest: Sequence[Step]) -> bool:
        """An error has ended it: of the rest only releases are done."""
        if not results or not isinstance(results[-1], OSError):
            return False
        for late in rest:
            if late.fop == "release":
                await self.release(*late.args)
        return True

    def client_gone(self, client: str) -> None:
        if self.options["cleanup-disconnected-reqs"]:
            for queue in self._queues:
                queue.drop(client)
        super().client_gone(client)

    def state(self) -> dict[str, object]:
        values: dict[str, object] = {"running": self._total, "maximum": self.options["thread-count"]}
        for priority in Priority:
            values[f"{priority.name.lower()}.running"] = self._running[priority]
            values[f"{priority.name.lower()}.waiting"] = self._queues[priority].length
        return values


def _waits(step: Step) -> bool:
    if step.fop not in LOCKS:
        return False
    operation = BY_NAME[step.fop]
    return is_lock_wait(operation, operation.bind(step.args, step.kwargs))


def _priority(steps: Sequence[Step]) -> Priority:
    """The lowest of its steps: data makes it a long one."""
    return max(PRIORITIES.get(fop, Priority.NORMAL) for fop in {step.fop for step in steps} if fop not in LOCKS)
