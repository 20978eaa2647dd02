# SPDX-License-Identifier: Apache-2.0
"""What happened to the resource: a log line for each ``StateEvent``, and the last of them in memory.

Inputs: events of the node.  Outputs: log lines the way DRBD writes them (``web/0: disk: Inconsistent -> UpToDate``)
and maps for ``replctl events``.  ``time_s`` is seconds since 1970.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from repl.node.actions import StateEvent

EVENTS_MAX = 1000
ANSWER_EVENTS_MAX = 200

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_log = logging.getLogger("repl")


class Journal:
    """The last ``EVENTS_MAX`` events."""

    def __init__(self, resource: str, clock_s: Callable[[], float]) -> None:
        self._resource = resource
        self._clock_s = clock_s
        self._events: deque[tuple[float, StateEvent]] = deque(maxlen=EVENTS_MAX)

    def add(self, event: StateEvent) -> None:
        self._events.append((self._clock_s(), event))
        _log.log(_LEVELS.get(event.level, logging.INFO), "%s", self.render(event))

    def render(self, event: StateEvent) -> str:
        place = self._resource if event.volume < 0 else f"{self._resource}/{event.volume}"
        return f"{place}: {event.message or event.kind}"

    def after(self, sequence: int) -> list[dict[str, Any]]:
        """The oldest events with a higher number, at most ``ANSWER_EVENTS_MAX``."""
        found = [(time_s, event) for time_s, event in self._events if event.sequence > sequence]
        return [
            {
                "sequence": event.sequence,
                "time_s": time_s,
                "kind": event.kind,
                "level": event.level,
                "volume": event.volume,
                "message": event.message,
                "fields": {str(name): _plain(value) for name, value in event.fields.items()},
            }
            for time_s, event in found[:ANSWER_EVENTS_MAX]
        ]


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | str | None) else str(value)
