# SPDX-License-Identifier: Apache-2.0
"""The configured commands that are run when something happens: fence-peer, split-brain, before-resync-target, ….

``run`` waits for the exit status, ``notify`` does not.  The shell executes them (:class:`repl.node.actions.RunHandler`)
and answers with ``Node.handler_done``.  Every change of metadata that was under way is stable before a handler starts:
it may power off this very machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repl.node import actions as act
from repl.node.flow import Promise
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node


@dataclass(slots=True, eq=False)
class _Running:
    name: str
    volume: int
    started_ms: int
    status: Promise[int]


class Handlers:
    """Those of one resource."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._running: dict[int, _Running] = {}
        self._next_id = 1

    def is_configured(self, name: str) -> bool:
        return bool(self._node.settings.handlers.get(name))

    async def run(
        self, name: str, volume: Volume | int | None = None, facts: Mapping[str, str] | None = None
    ) -> int | None:
        """Start it and wait; its exit status (128 + n if signal n ended it), None if it is not configured.

        ``volume``: None for what concerns the whole resource.  ``facts``: additional environment variables.
        """
        node = self._node
        command = node.settings.handlers.get(name)
        if not command:
            return None
        await node.metadata_is_stable(volume if isinstance(volume, Volume) else None)
        number = volume.number if isinstance(volume, Volume) else -1 if volume is None else volume
        handler_id, self._next_id = self._next_id, self._next_id + 1
        running = _Running(name, number, node.clock_ms(), Promise())
        self._running[handler_id] = running
        node.emit("handler", f'handler {name}: "{command}" starts', volume=number, handler=name)
        environment = {"DRBD_CSTATE": str(node.cstate), **(facts or {})}
        node.act(act.RunHandler(handler_id, name, command, number, environment))
        return await running.status

    def notify(self, name: str, volume: Volume | int | None = None, facts: Mapping[str, str] | None = None) -> None:
        """Start it; nobody waits for the end."""
        if self.is_configured(name):
            self._node.start(self.run(name, volume, facts), f"handler {name}")

    def done(self, handler_id: int, status: int) -> None:
        """It has ended."""
        running = self._running.pop(handler_id, None)
        if running is None:
            return
        self._node.emit(
            "handler",
            f"handler {running.name}: exit status {status}",
            volume=running.volume,
            handler=running.name,
            status=status,
        )
        running.status.keep(status)

    def status(self) -> list[dict[str, Any]]:
        """Those that run now: one that hangs is seen here."""
        now_ms = self._node.clock_ms()
        return [
            {"handler": r.name, "volume": r.volume, "running_s": (now_ms - r.started_ms) / 1000}
            for r in self._running.values()
        ]
