# SPDX-License-Identifier: Apache-2.0
"""Coroutines without an event loop: the node's procedures are ``async def``, but nothing here waits by itself.

A :class:`Flow` runs until it awaits an unfinished :class:`Promise` and goes on when somebody keeps the promise.
Everything happens inside the call that delivers an event, in a fixed order: the same events give the same actions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Cancelled(Exception):
    """Thrown into a flow that is given up."""


class Promise(Generic[T]):
    """A value that comes later."""

    __slots__ = ("_callbacks", "_error", "_value", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []

    def keep(self, value: T) -> None:
        """Deliver the value; a second delivery is ignored."""
        if not self.is_done:
            self.is_done = True
            self._value = value
            self._notify()

    def fail(self, error: BaseException) -> None:
        """Deliver an error instead."""
        if not self.is_done:
            self.is_done = True
            self._error = error
            self._notify()

    def when_done(self, callback: Callable[[], None]) -> None:
        if self.is_done:
            callback()
        else:
            self._callbacks.append(callback)

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def _notify(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def __await__(self) -> Generator[Promise[T], None, T]:
        if not self.is_done:
            yield self
        return self.result()


class Scheduler:
    """Runs flows; ``run`` empties the ready queue."""

    def __init__(self) -> None:
        self._ready: deque[Flow[Any]] = deque()
        self._running = False

    def start(self, coroutine: Coroutine[Any, Any, T], name: str) -> Flow[T]:
        flow: Flow[T] = Flow(self, coroutine, name)
        self.make_ready(flow)
        return flow

    def make_ready(self, flow: Flow[Any]) -> None:
        self._ready.append(flow)

    def run(self) -> None:
        if self._running:  # an event delivered from inside a flow: the outer call goes on with it
            return
        self._running = True
        try:
            while self._ready:
                self._ready.popleft().step()
        finally:
            self._running = False


class Flow(Generic[T]):
    """One running coroutine; ``done`` is its result."""

    def __init__(self, scheduler: Scheduler, coroutine: Coroutine[Any, Any, T], name: str) -> None:
        self.name = name
        self.done: Promise[T] = Promise()
        self._scheduler = scheduler
        self._coroutine = coroutine
        self._cancel: Cancelled | None = None
        self._waiting: Promise[Any] | None = None

    def cancel(self, reason: str = "") -> None:
        """Throw :class:`Cancelled` into it at its current wait (nothing if it has ended)."""
        if not self.done.is_done and self._cancel is None:
            self._cancel = Cancelled(reason)
            self._waiting = None
            self._scheduler.make_ready(self)

    def step(self) -> None:
        if self.done.is_done:
            return
        if self._waiting is not None and not self._waiting.is_done:
            return
        try:
            if self._cancel is not None and self._waiting is None:
                cancel, self._cancel = self._cancel, None
                promise = self._coroutine.throw(cancel)
            else:
                promise = self._coroutine.send(None)
        except StopIteration as end:
            self.done.keep(end.value)
            return
        except Cancelled as error:
            self.done.fail(error)
            return
        except Exception as error:
            self.done.fail(error)
            return
        self._wait(promise)

    def _wait(self, promise: Promise[Any]) -> None:
        self._waiting = promise

        def resume() -> None:
            if self._waiting is promise:
                self._scheduler.make_ready(self)

        promise.when_done(resume)


class Mutex:
    """First come, first served."""

    def __init__(self) -> None:
        self._held = False
        self._waiters: deque[Promise[None]] = deque()

    async def __aenter__(self) -> None:
        if self._held:
            promise: Promise[None] = Promise()
            self._waiters.append(promise)
            try:
                await promise
            except Cancelled:
                if promise.is_done:
                    self._release()
                elif promise in self._waiters:
                    self._waiters.remove(promise)
                raise
        self._held = True

    async def __aexit__(self, *error: object) -> None:
        self._release()

    @property
    def is_held(self) -> bool:
        return self._held

    def _release(self) -> None:
        self._held = False
        if self._waiters:
            self._held = True
            self._waiters.popleft().keep(None)
