# SPDX-License-Identifier: Apache-2.0
"""The node's state as plain values, for ``replctl status`` and whoever else looks.

Sizes in bytes, percentages 0..100, times in seconds.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from repl.drbd.states import ConnectionState
from repl.engine.events import ResyncLimit
from repl.limits import BLOCK_BYTES
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node

_C = ConnectionState
_PROTOCOLS = {1: "A", 2: "B", 3: "C"}
_SOURCES = (_C.SYNC_SOURCE, _C.PAUSED_SYNC_S)
_TARGETS = (_C.SYNC_TARGET, _C.PAUSED_SYNC_T)

# What a resync waits for, as it is shown.
LIMITS: dict[int, str] = {
    ResyncLimit.RATE: "resync-rate",
    ResyncLimit.BUFFERS: "max-buffers",
    ResyncLimit.APPLICATION: "application",
    ResyncLimit.PEER: "peer-or-link",
    ResyncLimit.OWN_DISK: "own-disk",
    ResyncLimit.PEER_DISK: "peer-disk",
    ResyncLimit.LINK: "link",
}


def node_status(node: Node) -> dict[str, Any]:
    """Everything about the resource on this node."""
    settings = node.settings
    return {
        "resource": settings.resource,
        "node": settings.node,
        "role": str(node.role),
        "connection": "Connected" if node.is_settled else str(min(node.cstate, _C.WF_REPORT_PARAMS)),
        "reason": node.reason,
        "reason_code": node.reason_code,
        "advice": node.advice,
        "suspended": node.suspension.active,
        "suspended_by": node.suspension.reasons,
        "suspended_advice": node.suspension.advice(),
        "fencing": node.settings.net.fencing,
        "protocol": _PROTOCOLS.get(settings.net.protocol, "?"),
        "up": node.is_up,
        "peer": {
            "name": settings.peer,
            "role": str(node.peer_role),
            "address": settings.peer_address,
            "resolve_conflicts": node.connection.resolve_conflicts,
        },
        "volumes": [_volume_status(node, v) for v in node.volumes.values()],
        "handlers": node.handlers.status(),
        "engine": dataclasses.asdict(node.stats.engine_stats()),
    }


def _volume_status(node: Node, volume: Volume) -> dict[str, Any]:
    stats = node.stats.volume_stats(volume.number)
    dirty = node.dirty_bits(volume)
    return {
        "volume": volume.number,
        "minor": volume.settings.minor,
        "disk": str(volume.state.disk),
        "disk_error": volume.disk_error,
        "metadata_late_s": node.late.waited_s(volume),
        "write_ordering": volume.write_ordering,
        "peer_disk": str(volume.state.pdsk),
        "replication": str(volume.state.conn) if node.is_connected else "Off",
        "size_bytes": volume.size_sectors * 512,
        "out_of_sync_bytes": min(dirty * BLOCK_BYTES, volume.size_sectors * 512),
        "open": volume.open_count,
        "undo": node.undo.status(volume),
        "exposed_uuid": f"{volume.uuids.current:016X}",
        "resync": _resync_status(node, volume),
        "resync_suspended": [
            name
            for name, on in (
                ("user", volume.state.user_isp), ("peer", volume.state.peer_isp), ("dependency", volume.state.aftr_isp)
            )
            if on
        ],
        "resync_options": {**dataclasses.asdict(volume.resync), "priority": volume.resync_priority},
        "verify": node.verify.status(volume),
        "counters": dataclasses.asdict(stats) if stats is not None else {},
    }


def _resync_status(node: Node, volume: Volume) -> dict[str, Any] | None:
    conn = volume.state.conn
    stats = node.stats.volume_stats(volume.number)
    if stats is None or conn not in (*_SOURCES, *_TARGETS):
        return None
    total = max(stats.resync_total_bits, stats.out_of_sync_bits)
    done = total - stats.out_of_sync_bits
    elapsed_s = max((node.stats.engine_stats().now_ns - stats.resync_started_ns) / 1e9, 0.001)
    average = done * BLOCK_BYTES / elapsed_s
    rate = stats.resync_rate_kib * 1024 if stats.resync_rate_kib else average
    left = stats.out_of_sync_bits * BLOCK_BYTES
    is_paused = conn in (_C.PAUSED_SYNC_S, _C.PAUSED_SYNC_T)
    if is_paused:
        rate = 0.0
    return {
        "role": "source" if conn in _SOURCES else "target",
        "done_percent": round(100.0 * done / total, 2) if total else 100.0,
        "total_bytes": total * BLOCK_BYTES,
        "done_bytes": done * BLOCK_BYTES,
        "rate_bytes": int(rate),
        "eta_s": round(left / rate, 1) if rate > 0 else None,
        "limited_by": "paused" if is_paused else LIMITS.get(stats.resync_limit, ""),
        "equal_bytes": stats.resync_equal_bits * BLOCK_BYTES,
        "holes_bytes": stats.resync_deallocated_bits * BLOCK_BYTES,
        "transferred_bytes": stats.resync_payload_bytes,
        "failed_bytes": stats.resync_failed_bits * BLOCK_BYTES,
    }
