# SPDX-License-Identifier: Apache-2.0
"""Coroutines that begin at once, in the caller's turn of the loop.

Most operations end without waiting (a cache, a local file) or wait once (an answer from the network).  A task for each
costs a turn of the loop before it begins at all.  ``Begun`` runs a coroutine up to where it first waits and is itself
what is left of it: to be awaited, once, or made a task.
Code that runs like this must not ask for the current task (asyncio.timeout does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")

_ending: set[asyncio.Task[Any]] = set()  # cancelled ones that still clean up


class Begun(Coroutine[Any, Any, T]):
    """``is_done``: it has ended without waiting; awaiting it tells how."""

    __slots__ = ("_coroutine", "_error", "_is_first", "_value", "_waits", "is_done")

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._waits: Any = None
        self._error: BaseException | None = None
        self._value: T | None = None
        self._is_first = True
        self.is_done = False
        try:
            self._waits = coroutine.send(None)
        except StopIteration as end:
            self.is_done = True
            self._value = end.value
        except Exception as error:
            self.is_done = True
            self._error = error

    @property
    def has_failed(self) -> bool:
        """It has ended with an error, without waiting."""
        return self._error is not None

    def _ended(self) -> BaseException:
        return self._error if self._error is not None else StopIteration(self._value)

    def send(self, value: Any) -> Any:
        if self._is_first:  # whoever drives it learns what it waits for
            self._is_first = False
            if self.is_done:
                raise self._ended()
            return self._waits
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        if self._is_first:  # cancelled before it was driven: as a task does, what it waits for first
            self._is_first = False
            if self.is_done:
                raise self._ended()
            if self._waits is not None:
                self._waits.cancel()
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self

    def __iter__(self) -> Begun[T]:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def cancel(self) -> None:
        """Nobody is going to wait for it: it ends as a cancelled task does."""
        if self.is_done:
            return
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(self)
        task.cancel()
        _ending.add(task)
        task.add_done_callback(_ending.discard)
