# SPDX-License-Identifier: Apache-2.0
"""The only way tests wait: poll a condition until it holds or a deadline passes, never sleep for a guess."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
INTERVAL_S = 0.02


class WaitTimedOut(AssertionError):
    """The condition did not come true in time; the message names it and the last value or error seen."""


def _late(what: str, timeout: float, seen: str) -> WaitTimedOut:
    return WaitTimedOut(f"{what or 'the condition'}: not within {timeout:g} s, last seen: {seen}")


def wait_for(
    predicate: Callable[[], T],
    timeout: float = 10,
    what: str = "",
    *,
    interval: float = INTERVAL_S,
    ignore: type[Exception] | tuple[type[Exception], ...] = (),
    describe: Callable[[], object] | None = None,
) -> T:
    """Call ``predicate`` until its value is true and return that value.

    Exceptions of the ``ignore`` classes count as "not yet".  ``describe`` tells the message what
    is there instead.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            value = predicate()
            if value:
                return value
            seen = repr(value)
        except ignore as error:
            seen = repr(error)
        if time.monotonic() >= end:
            raise _late(what, timeout, str(describe()) if describe else seen)
        time.sleep(interval)


async def wait_for_async(predicate: Callable[[], T | Awaitable[T]], timeout: float = 10, what: str = "") -> T:
    """The same inside an event loop; the predicate may be a coroutine function."""
    end = time.monotonic() + timeout
    while True:
        value = predicate()
        result = await value if isinstance(value, Awaitable) else value
        if result:
            return result
        if time.monotonic() >= end:
            raise _late(what, timeout, repr(result))
        await asyncio.sleep(INTERVAL_S)
