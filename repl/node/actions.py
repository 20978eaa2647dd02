# SPDX-License-Identifier: Apache-2.0
"""What the node asks its shell to do.  The shell takes the list after every event (``Node.take_actions``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from repl.engine.commands import Command


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """Give the engine a command; ``cookie`` comes back in its DONE event (0: none wanted)."""

    command: Command
    cookie: int = 0


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Call ``Node.timer(timer_id)`` once, ``delay_ms`` from now."""

    timer_id: int
    delay_ms: int


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Forget a timer (it may have been delivered already)."""

    timer_id: int


@dataclass(frozen=True, slots=True)
class Listen:
    """Open (or close) the replication listener; each connection ends in ``Node.accepted(fd)``.

    A listener that cannot be opened is reported with ``Node.listen_failed(reason)``; the shell tries again by itself.
    """

    on: bool


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to the peer; ends in ``Node.dialled(dial_id, fd)`` or ``Node.dial_failed(dial_id, reason)``."""

    dial_id: int
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class CloseFd:
    """Close a descriptor that the node does not want (it has not been given to the engine)."""

    fd: int


@dataclass(frozen=True, slots=True)
class OpenDisk:
    """Open and lock the volume's disk and read its metadata (``repl.node.disk.prepare``), off the event loop.

    Ends in ``Node.disk_opened(volume, prepared)`` or ``Node.disk_failed(volume, error)``.
    """

    volume: int


@dataclass(frozen=True, slots=True)
class MeasureDisk:
    """Look at the size of the volume's open disk again; the two numbers are the layout of its activity log.

    Ends in ``Node.disk_measured(volume, layout, usable_sectors)`` or ``Node.measure_failed(volume, error)``.
    """

    volume: int
    al_stripes: int
    al_stripe_size_4k: int


@dataclass(frozen=True, slots=True)
class CloseDisk:
    """The engine has let the volume's descriptors go: close and unlock them.

    Ends in ``Node.disk_closed(volume)``, also if there was nothing to close.
    """

    volume: int


@dataclass(frozen=True, slots=True)
class OpenUndo:
    """Make the files of a split-brain undo; ``facts``: plain values that stay with them, "size_bytes" is the device's.

    Ends in ``Node.undo_opened(volume, found)`` or ``Node.undo_failed(volume, error)``.  Files that exist already are
    opened together with the disk.
    """

    volume: int
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CloseUndo:
    """The engine does not use the undo's files any more: close them, and delete them if they are not needed."""

    volume: int
    is_deleted: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer to ``Node.command(token, …)``: exactly one of ``result`` and ``error``."""

    token: Any
    result: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class StateEvent:
    """Something changed; the log line and ``replctl events`` are rendered from it.

    ``level``: "info", "warning" or "error".  ``fields`` hold plain values (old and new states, reason).
    """

    sequence: int
    kind: str
    message: str
    level: str = "info"
    volume: int = -1
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunHandler:
    """Run a configured command; ends in ``Node.handler_done(handler_id, exit status)``.

    ``volume``: -1 for the whole resource.  ``environment``: variables of this event, the shell adds the usual ones.
    """

    handler_id: int
    name: str
    command: str
    volume: int = -1
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PublishResync:
    """Other resources of this host wait (``resync-after``) while this volume is busy with a resync, or paused."""

    volume: int
    busy: bool


@dataclass(frozen=True, slots=True)
class WatchResync:
    """Look after a volume of another resource of this host: ``Node.other_resync(resource, volume, busy)``."""

    resource: str
    volume: int


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep these plain values under ``key``; the next life gets them with ``Node.remembered``."""

    key: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Exit:
    """The resource is down for good: stop the engine and end the process."""


Action = (
    EngineCommand
    | SetTimer
    | CancelTimer
    | Listen
    | Dial
    | CloseFd
    | OpenDisk
    | MeasureDisk
    | CloseDisk
    | OpenUndo
    | CloseUndo
    | Reply
    | StateEvent
    | RunHandler
    | PublishResync
    | WatchResync
    | Remember
    | Exit
)
