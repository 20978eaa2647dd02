# SPDX-License-Identifier: Apache-2.0
"""``replctl why``: every state that somebody can be stuck in, as a stable code, what it means, and the next step.

Pure: looks at the node, changes nothing.  The most important finding comes first; the list is never empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from repl.drbd.states import ConnectionState, DiskState, Role
from repl.limits import BLOCK_BYTES
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node

_C = ConnectionState
_D = DiskState
_SOURCES = (_C.SYNC_SOURCE, _C.PAUSED_SYNC_S)
_TARGETS = (_C.SYNC_TARGET, _C.PAUSED_SYNC_T)


@dataclass(frozen=True, slots=True)
class Finding:
    """``code`` is stable; ``text`` says what is and why; ``step`` what to do ("" if nothing)."""

    code: str
    text: str
    step: str = ""
    volume: int = -1

    def as_map(self) -> dict[str, str | int]:
        return {"code": self.code, "text": self.text, "next": self.step, "volume": self.volume}


def explain(node: Node) -> list[Finding]:
    """What stands between this resource and "everything is fine"."""
    name = node.settings.resource
    if not node.is_up:
        return [Finding("down", f"{name} is not up.", f'"replctl up {name}"')]
    found = [*_suspension(node), *_connection(node)]
    for volume in node.volumes.values():
        found += _disk(node, volume)
        found += _peer_disk(node, volume)
    return found or [Finding("ok", f"{name} is connected to {node.settings.peer} and both copies are UpToDate.")]


def _suspension(node: Node) -> list[Finding]:
    if not node.suspension.active:
        return []
    handlers = [f"{h['handler']} (for {h['running_s']:.0f} s)" for h in node.handlers.status()]
    waiting = f" Running: {', '.join(handlers)}." if handlers else ""
    reasons = ", ".join(node.suspension.reasons)
    text = f"Application I/O is suspended ({reasons}): nothing is lost, nothing ends.{waiting}"
    return [Finding("suspended", text, node.suspension.advice())]


def _connection(node: Node) -> list[Finding]:
    name, peer = node.settings.resource, node.settings.peer
    if node.is_connected:
        return []
    if node.reason_code:
        still = "" if node.cstate == _C.STANDALONE else f" This node goes on trying to reach {peer}."
        return [Finding(node.reason_code, node.reason + still, node.advice)]
    if node.cstate == _C.STANDALONE:
        return [Finding("disconnected", f"{name} was disconnected by order.", f'"replctl connect {name}"')]
    last = f" The last connection: {node.connection.last_loss}." if node.connection.last_loss else ""
    error = node.connection.pairs.last_dial_error
    if node.cstate == _C.WF_REPORT_PARAMS:
        return [Finding("handshake", f"{name} is agreeing with {peer} just now.{last}", "Wait a moment.")]
    return [
        Finding(
            "no-peer",
            f"{peer} ({node.settings.peer_address}) does not answer{f': {error}' if error else ''}.{last}",
            f'Is {peer} running and "replctl up {name}" (or "connect") done there? Can {node.settings.peer_address} '
            "be reached from here?",
        )
    ]


def _disk(node: Node, volume: Volume) -> list[Finding]:
    """The own disk."""
    name, peer, number = f"{node.settings.resource}/{volume.number}", node.settings.peer, volume.number
    state = volume.state
    late_s = node.late.waited_s(volume)
    if late_s is not None:
        text = f"The metadata of {name} has not answered for {late_s:.0f} s: its I/O waits, and so does the connection."
        step = f'Check the disk. To go on without it: "replctl detach --force {name}".'
        return [Finding("metadata-late", text, step, number)]
    if state.conn in _TARGETS:
        paused = " (paused)" if state.conn == _C.PAUSED_SYNC_T else ""
        text = f"{name} is being resynced from {peer}{paused}, {_dirty(node, volume)} to go."
        return [Finding("sync-target", text, f'"replctl wait-sync {node.settings.resource}"', number)]
    if state.disk <= _D.FAILED and volume.disk_error:
        text = f"{name} has lost its disk: {volume.disk_error}."
        step = "Check or replace the disk; down and up attach it again."
        return [Finding("disk-failed", text, step, number)]
    if state.disk <= _D.FAILED:
        return [Finding("diskless", f"{name} has no disk here; data is read from and written to {peer}.", "", number)]
    if state.disk == _D.INCONSISTENT:
        missing = _dirty(node, volume)
        text = f"{name} is Inconsistent: it was never synced or a resync was interrupted, {missing} is missing."
        return [Finding("inconsistent", text, f"Connect to {peer} if it has good data: it is copied here.", number)]
    if state.disk == _D.OUTDATED:
        text = f"{name} is Outdated: {peer} went on without this node."
        return [Finding("outdated", text, f"Connect to {peer}: what is missing is copied here.", number)]
    if state.disk == _D.CONSISTENT:
        text = f"{name} is consistent, but {peer} may have newer data."
        step = f"Connect to {peer}; or promote this node if {peer} is surely down."
        return [Finding("consistent", text, step, number)]
    return []


def _peer_disk(node: Node, volume: Volume) -> list[Finding]:
    """The peer's disk, and what is different."""
    name, peer, number = f"{node.settings.resource}/{volume.number}", node.settings.peer, volume.number
    state = volume.state
    if state.suspended:
        step = f'Bring {peer} back, or "replctl resume-io {node.settings.resource}".'
        return [Finding("suspended", f"{name}: application I/O is suspended.", step, number)]
    if not node.is_connected:
        if node.role == Role.PRIMARY and node.dirty_bits(volume):
            text = f"{name}: {_dirty(node, volume)} was written that {peer} does not have."
            return [Finding("unreplicated", text, f"It is copied when {peer} is back.", number)]
        return []
    if state.conn in _SOURCES:
        paused = " (paused)" if state.conn == _C.PAUSED_SYNC_S else ""
        text = f"{peer} is being resynced from {name}{paused}, {_dirty(node, volume)} to go."
        return [Finding("sync-source", text, f'"replctl wait-sync {node.settings.resource}"', number)]
    if state.pdsk < _D.UP_TO_DATE:
        return [Finding("peer-disk", f"The disk of {peer} is {state.pdsk}.", f"Look at {name} on {peer}.", number)]
    if volume.attached and node.dirty_bits(volume):
        text = f"{name}: {_dirty(node, volume)} is marked as different on the two nodes."
        step = f'"replctl disconnect {node.settings.resource}" and "connect" copy it.'
        return [Finding("differs", text, step, number)]
    return []


def _dirty(node: Node, volume: Volume) -> str:
    return f"{node.dirty_bits(volume) * BLOCK_BYTES // 1024} KiB"
