# SPDX-License-Identifier: Apache-2.0
"""The locks of a heal: on several children, tried at once and, when somebody is in the way, taken one after another.

Inputs: the steps that lock and unlock, and steps that are carried out in the same frame once the lock is held.
Outputs: by child what those steps answered; None if somebody holds it and the heal does not want to wait.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

from repl.files.translator import Step
from repl.files.translators.replicate.base import Base, bits
from repl.files.values import END, Caller, Loc, Lock, LockCommand, LockType

LockStep = Callable[[LockCommand, LockType], Step]


def range_lock(domain: str, loc: Loc, first: int = 0, last: int = END) -> LockStep:
    def step(command: LockCommand, kind: LockType) -> Step:
        return Step("inodelk", (domain, loc, command, Lock(kind, first, last)))

    return step


def names_lock(domain: str, loc: Loc) -> LockStep:
    """All names of a directory."""

    def step(command: LockCommand, kind: LockType) -> Step:
        return Step("entrylk", (domain, loc, None, command, kind))

    return step


def unlock_step(lock: LockStep) -> Step:
    return lock(LockCommand.TRY, LockType.UNLOCK)


def is_busy(answer: Any) -> bool:
    return isinstance(answer, OSError) and answer.errno == errno.EAGAIN


async def send(base: Base, mask: int, caller: Caller, steps: Sequence[Step]) -> dict[int, list[Any]]:
    """One frame to each child; a lost connection is an answer of one error."""
    answers = await base.ask(mask, lambda child: child.compound(caller, steps))
    return {i: a if isinstance(a, list) else [a] for i, a in answers.items()}


async def take(
    base: Base, mask: int, caller: Caller, lock: LockStep, more: Sequence[Step], *,
    waits: bool = True, asks: bool = True,
) -> dict[int, list[Any]] | None:
    """Only children that hold the lock now are in the answer.  ``asks``: whoever holds it is to let go."""
    got: dict[int, list[Any]] = {}
    command = LockCommand.TRY if asks else LockCommand.TRY_QUIETLY
    try:
        answers = await send(base, mask, caller, [lock(command, LockType.WRITE), *more])
        got = {i: a[1:] for i, a in answers.items() if not isinstance(a[0], OSError)}
        if not any(is_busy(a[0]) for a in answers.values()):
            return got
        held, got = sum(1 << i for i in got), {}
        await send(base, held, caller, [unlock_step(lock)])
        if not waits:
            return None
        steps = [lock(LockCommand.WAIT, LockType.WRITE), *more]
        for i in base.lock_order:
            if mask >> i & 1:
                answer = (await send(base, 1 << i, caller, steps))[i]
                if not isinstance(answer[0], OSError):
                    got[i] = answer[1:]
        return got
    except BaseException:
        held = sum(1 << i for i in bits(mask))
        base.context.spawn(send(base, held, caller, [unlock_step(lock)]), f"{base.name}: a heal's lock goes back")
        raise
