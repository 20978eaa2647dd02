# SPDX-License-Identifier: Apache-2.0
"""Volumes whose metadata does not answer: the others do not wait for them.

A transition waits a moment for the metadata of every volume that it changes.  A volume whose disk has not answered by
then is *held*: it keeps its states, the engine freezes its application I/O (so nothing is completed that its metadata
does not cover yet), and the transition goes on with the other volumes.  What later transitions want of a held volume
waits in order and is carried out when its disk answers, fails or is given up (``detach --force``, ``disk-timeout``).
No connection is made meanwhile: a handshake speaks for all volumes.

A resource with one volume just waits: nobody else is held up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from repl.drbd.states import StateWord
from repl.drbd.uuids import Uuids
from repl.engine.events import Event
from repl.node.flow import Promise
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node

PATIENCE_MS = 1000


@dataclass(eq=False)
class Step:
    """What a transition wants of a volume."""

    change: Callable[[Volume, StateWord], StateWord] = lambda v, s: s
    uuids: Callable[[Volume], Uuids] | None = None
    full_sync: bool | None = None
    reason: str = ""
    done: Promise[None] = field(default_factory=Promise)


@dataclass(eq=False)
class _Held:
    since_ms: int
    steps: deque[Step] = field(default_factory=deque)


class LateMetadata:
    """Those of one resource."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._held: dict[int, _Held] = {}

    def holds(self, volume: Volume) -> bool:
        return volume.number in self._held

    @property
    def numbers(self) -> list[int]:
        return sorted(self._held)

    def waited_s(self, volume: Volume) -> float | None:
        """How long the volume's metadata has not answered; None: it is not held."""
        held = self._held.get(volume.number)
        return None if held is None else (self._node.clock_ms() - held.since_ms) / 1000

    async def in_time(self, writes: Sequence[Promise[Event]]) -> None:
        """Until all are done, or until nobody else can wait for them any longer."""
        node = self._node
        if len(node.volumes) == 1:
            for write in writes:
                await write
            return
        everything: Promise[None] = Promise()

        def look() -> None:
            if all(write.is_done for write in writes):
                everything.keep(None)

        look()
        if everything.is_done:
            return
        for write in writes:
            write.when_done(look)
        await node.within(everything, PATIENCE_MS)

    def hold(self, volume: Volume, write: Promise[Event], finish: Callable[[], None]) -> Promise[None]:
        """Within a transition: go on without the volume; ``finish`` is called when its write is done."""
        node, name = self._node, f"{self._node.settings.resource}/{volume.number}"
        held = self._held[volume.number] = _Held(node.clock_ms() - PATIENCE_MS)
        node.tell_engine(volume)
        node.emit(
            "metadata-late",
            f"the metadata of {name} does not answer: its I/O waits, the other volumes go on",
            level="error",
            volume=volume.number,
            advice=f'If the disk does not come back: "replctl detach --force {name}".',
        )
        done: Promise[None] = Promise()
        node.start(self._catch_up(volume, held, write, finish, done), f"wait for the metadata of volume {name}")
        return done

    def defer(self, volume: Volume, step: Step) -> Promise[None]:
        """Within a transition: the volume follows when it can."""
        self._held[volume.number].steps.append(step)
        return step.done

    async def _catch_up(
        self, volume: Volume, held: _Held, write: Promise[Event], finish: Callable[[], None], done: Promise[None]
    ) -> None:
        node = self._node
        await write
        async with node.exclusively():
            finish()
        done.keep(None)
        while held.steps:
            await self._take(volume, held.steps[0])
            held.steps.popleft().done.keep(None)
        while self.holds(volume):
            await self._come_back(volume, held)
        node.emit("metadata-late", "its metadata answers again", volume=volume.number)
        node.notify_watchers()

    async def _take(self, volume: Volume, step: Step) -> None:
        node = self._node
        if node.ends_replay(volume, step):
            await node.write_bitmap(volume)
        async with node.exclusively():
            after, write = node.plan(volume, step.change(volume, volume.state), step)
        if write is not None:
            await write
        async with node.exclusively():
            node.apply(volume, after, step.reason)

    async def _come_back(self, volume: Volume, held: _Held) -> None:
        """The node's own states may have changed since: the last step."""
        if held.steps:
            await self._take(volume, held.steps[0])
            held.steps.popleft().done.keep(None)
            return
        node, step = self._node, Step()
        if node.ends_replay(volume, step):
            await node.write_bitmap(volume)
        async with node.exclusively():
            after, write = node.plan(volume, volume.state, step)
            if write is None and not held.steps:
                del self._held[volume.number]
                node.apply(volume, after, "")
                return
        if write is not None:
            await write

    async def settled(self, volume: Volume | None = None) -> None:
        """Until this volume, or all, have caught up."""
        await self._node.watch(lambda: volume.number not in self._held if volume is not None else not self._held)

    @asynccontextmanager
    async def exclusively(self, volume: Volume) -> AsyncIterator[None]:
        """No transition takes place meanwhile, and none of this volume is unfinished."""
        while True:
            await self.settled(volume)
            async with self._node.exclusively():
                if not self.holds(volume):
                    yield
                    return
