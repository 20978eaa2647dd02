# SPDX-License-Identifier: Apache-2.0
"""One operation on several subvolumes at once, answered once.

``Translator.begin_call`` sends an operation's frame before it returns, without a coroutine or a task, and says False
if it cannot (then the operation is called as any other).  Whoever asked waits for one future, which is done when all
have answered.  An answer is what the subvolume returned or its ``OSError``, by the subvolume's number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from repl.files.answers import Answers


class Round:
    """``answers`` are in the order of asking; None: not answered yet.  ``encoded`` and ``plan`` are for those who
    send: the numbers of caller and file, and what was made of them."""

    __slots__ = ("_future", "_giving_up", "answers", "encoded", "left", "plan")

    def __init__(self) -> None:
        self.answers: Answers = {}
        self.left = 0
        self.encoded: tuple[int, int, bytes, list[Any]] | None = None
        self.plan: Any = None
        self._future: asyncio.Future[None] | None = None
        self._giving_up: list[Callable[[], None]] = []

    def asked(self, number: int, give_up: Callable[[], None]) -> None:
        """One answer more to wait for; ``give_up`` is called if nobody waits for it any more, or has got it in vain."""
        self.left += 1
        self.answers[number] = None
        self._giving_up.append(give_up)

    def answered(self, number: int, answer: object) -> None:
        self.answers[number] = answer
        self.left -= 1
        if not self.left and self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        """Until all have answered."""
        if not self.left:
            return
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        except asyncio.CancelledError:
            for give_up in self._giving_up:
                give_up()
            raise
