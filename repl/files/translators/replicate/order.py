# SPDX-License-Identifier: Apache-2.0
"""Operations of one transaction that touch the same thing reach every child in the same order.

Bricks may carry out requests that are under way together in any order: two overlapping writes would leave two copies
that differ although both succeeded everywhere.  So the second waits for the first, in the order of their coming.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

from repl.files.values import END

ALL: frozenset[bytes] | None = None  # every name
Span: TypeAlias = tuple[int, int]  # first and last byte
WHOLE: Span = (0, END)


class Slot:
    """A place in the queue; ``leave`` when the operation is done."""

    __slots__ = ("_done", "names", "queue", "span")

    def __init__(self, queue: Order, span: Span | None, names: frozenset[bytes] | None) -> None:
        self.queue = queue
        self.span = span
        self.names = names
        self._done: asyncio.Future[None] | None = None

    def conflicts(self, other: Slot) -> bool:
        if self.span is not None and other.span is not None:
            return self.span[0] <= other.span[1] and other.span[0] <= self.span[1]
        if self.names is None or other.names is None:
            return True
        return not self.names.isdisjoint(other.names)

    async def wait_left(self) -> None:
        if self._done is None:
            self._done = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._done)

    def leave(self) -> None:
        self.queue.slots.remove(self)
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


class Order:
    """What is under way in one transaction, eldest first."""

    __slots__ = ("slots",)

    def __init__(self) -> None:
        self.slots: list[Slot] = []

    def enter_now(self, span: Span | None = None, names: frozenset[bytes] | None = None) -> Slot | None:
        """The same if nothing at all is under way, else None."""
        if self.slots:
            return None
        slot = Slot(self, span, names)
        self.slots.append(slot)
        return slot

    async def enter(self, span: Span | None = None, names: frozenset[bytes] | None = None) -> Slot:
        """A span for bytes, else names (None: all of them).  Returns when nothing before it is in the way."""
        slot = Slot(self, span, names)
        if not self.slots:
            self.slots.append(slot)
            return slot
        await self._enter([slot])
        return slot

    async def enter_several(self, spans: Sequence[Span | None]) -> list[Slot]:
        """One operation on several spans, which may overlap each other.  None: everything."""
        slots = [Slot(self, span, None) for span in spans]
        await self._enter(slots)
        return slots

    async def _enter(self, slots: list[Slot]) -> None:
        before = self._conflicting(slots) if self.slots else []
        self.slots += slots
        try:
            for other in before:
                await other.wait_left()
        except BaseException:
            for slot in slots:
                slot.leave()
            raise

    def _conflicting(self, slots: list[Slot]) -> list[Slot]:
        spans = [slot.span for slot in slots if slot.span is not None]
        if len(spans) != len(slots):
            return [other for other in self.slots if any(slot.conflicts(other) for slot in slots)]
        found = []
        for other in self.slots:
            if other.span is None:
                found.append(other)
                continue
            begin, end = other.span
            for first, last in spans:
                if first <= end and begin <= last:
                    found.append(other)
                    break
        return found
