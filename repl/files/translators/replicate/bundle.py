# SPDX-License-Identifier: Apache-2.0
"""The ends of several transactions in one frame.

Inputs: groups of steps for one child, all on behalf of this client's transactions.  Output: the answers of each group,
as a compound of its own would give them: an error ends its group and no other.  A group waits a few milliseconds for
others to come along; nobody waits for the end of a transaction, unless somebody wants its lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from repl.files.translator import Step
from repl.limits import FILES_BUNDLE_S, RPC_COMPOUND_STEPS_MAX

if TYPE_CHECKING:
    from repl.files.translators.replicate.transactions import Transactions

Group = tuple[Sequence[Step], "asyncio.Future[Any]"]


class Bundle:
    """For one child."""

    def __init__(self, afr: Transactions, index: int) -> None:
        self._afr = afr
        self._index = index
        self._waiting: list[Group] = []
        self._steps = 0
        self._timer: asyncio.TimerHandle | None = None

    def send(self, steps: Sequence[Step]) -> asyncio.Future[Any]:
        """The list of answers, or the ``OSError`` with which the frame failed."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((steps, future))
        self._steps += len(steps)
        if self._steps >= RPC_COMPOUND_STEPS_MAX:
            self._start()
        elif self._timer is None:
            self._timer = loop.call_later(FILES_BUNDLE_S, self._start)
        return future

    def lost(self, error: OSError) -> None:
        """The connection is gone: nothing that belongs to it goes over the next one (marks would be taken back when
        the lock is not ours any more, beside somebody who does the same)."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        groups, self._waiting, self._steps = self._waiting, [], 0
        for _, future in groups:
            if not future.done():
                future.set_result(error)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        groups, self._waiting, self._steps = self._waiting, [], 0
        if groups:
            self._afr.context.spawn(self._run(groups), f"{self._afr.name}: ends of transactions")

    async def _run(self, groups: list[Group]) -> None:
        while groups:
            frame, groups = _fitting(groups)
            steps = [step for group, _ in frame for step in group]
            answers = await self._afr.ask_one(self._index, lambda c, steps=steps: c.compound(  # type: ignore[misc]
                self._afr.tenure_owner, steps))  # fmt: skip
            groups = _hand_out(frame, answers) + groups


def _fitting(groups: list[Group]) -> tuple[list[Group], list[Group]]:
    """As many as a frame takes, and the rest."""
    count = size = 0
    for steps, _ in groups:
        size += len(steps)
        if count and size > RPC_COMPOUND_STEPS_MAX:
            break
        count += 1
    return groups[:count], groups[count:]


def _hand_out(frame: list[Group], answers: Any) -> list[Group]:
    """Groups that an error before them kept from being done come back."""
    left: list[Group] = []
    at = 0
    for steps, future in frame:
        part = answers if isinstance(answers, OSError) else answers[at : at + len(steps)]
        at += len(steps)
        if isinstance(part, list) and len(part) < len(steps) and not (part and isinstance(part[-1], OSError)):
            left.append((steps, future))
        elif not future.done():
            future.set_result(part)
    return left
