# SPDX-License-Identifier: Apache-2.0
"""``replctl status --json``: the object of one resource as DRBD 9's tools print it.

Every key is always there (null when unknown).  What DRBD has no key for stands in the object ``x``.  Units as in
DRBD: sizes in KiB; those in ``x`` are named.
"""

from __future__ import annotations

from typing import Any

from repl.cli import states
from repl.config.model import NodeView

_SYNC_KEYS = (
    "rs-total", "rs-dt-start-ms", "rs-paused-ms", "rs-dt0-ms", "rs-db0-sectors", "rs-dt1-ms", "rs-db1-sectors",
    "rs-failed", "rs-same-csum", "want", "db0/dt0 [MiB/s]", "db1/dt1 [MiB/s]", "db/dt [MiB/s]",
    "estimated-seconds-to-finish", "percent-resync-done",
)  # fmt: skip


def resource_object(status: dict[str, Any], view: NodeView | None) -> dict[str, Any]:
    """``view``: the configuration, for node ids and addresses; None if it cannot be read now."""
    is_suspended = bool(status.get("suspended"))
    reasons = status.get("suspended_by", ())
    return {
        "name": status.get("resource"),
        "node-id": view.my_node_id if view else None,
        "role": status.get("role"),
        "suspended": is_suspended,
        "suspended-user": "user" in reasons,
        "suspended-no-data": "no-data" in reasons,
        "suspended-fencing": "fencing" in reasons,
        "suspended-quorum": False,
        "force-io-failures": False,
        "write-ordering": (status.get("volumes") or [{}])[0].get("write_ordering", "flush"),
        "devices": [_device(volume) for volume in status.get("volumes", [])],
        "connections": [_connection(status, view)],
        "x": {
            "node": status.get("node"),
            "reason": status.get("reason") or None,
            "advice": status.get("advice") or None,
            "protocol": status.get("protocol"),
            "engine": status.get("engine"),
        },
    }


def _device(volume: dict[str, Any]) -> dict[str, Any]:
    counters = volume.get("counters", {})
    return {
        "volume": volume.get("volume"),
        "minor": volume.get("minor"),
        "disk-state": volume.get("disk"),
        "client": False,
        "open": bool(volume.get("open")),
        "quorum": True,
        "size": volume.get("size_bytes", 0) // 1024,
        "read": counters.get("disk_read_bytes", 0) // 1024,
        "written": counters.get("disk_written_bytes", 0) // 1024,
        "al-writes": counters.get("al_writes", 0),
        "bm-writes": counters.get("bitmap_writes", 0),
        "upper-pending": counters.get("upper_pending", 0),
        "lower-pending": counters.get("lower_pending", 0),
        "x": {
            "size_bytes": volume.get("size_bytes"),
            "open_clients": volume.get("open"),
            "exposed_uuid": volume.get("exposed_uuid"),
            "disk_error": volume.get("disk_error") or None,
            "counters": counters,
        },
    }


def _connection(status: dict[str, Any], view: NodeView | None) -> dict[str, Any]:
    is_connected = states.is_connected(status)
    return {
        "peer-node-id": view.peer_node_id if view else None,
        "name": status.get("peer", {}).get("name"),
        "connection-state": states.connection_9(status),
        "congested": False,
        "peer-role": states.peer_role(status),
        "tls": False,
        "ap-in-flight": None,
        "rs-in-flight": None,
        "paths": [
            {
                "this_host": _host(view, is_mine=True),
                "remote_host": _host(view, is_mine=False),
                "established": is_connected,
            }
        ],
        "peer_devices": [_peer_device(status, volume) for volume in status.get("volumes", [])],
    }


def _host(view: NodeView | None, *, is_mine: bool) -> dict[str, Any]:
    if view is None:
        return {"address": None, "port": None, "family": None}
    address = view.my_address if is_mine else view.peer_address
    return {"address": address.host, "port": address.port, "family": address.family.value}


def _peer_device(status: dict[str, Any], volume: dict[str, Any]) -> dict[str, Any]:
    counters = volume.get("counters", {})
    size_bytes = volume.get("size_bytes", 0)
    dirty_bytes = volume.get("out_of_sync_bytes", 0)
    resync = volume.get("resync")
    found = {
        "volume": volume.get("volume"),
        "replication-state": states.replication_9(status, volume),
        "peer-disk-state": volume.get("peer_disk"),
        "peer-client": False,
        "resync-suspended": ",".join(volume.get("resync_suspended", [])) or "no",
        "received": counters.get("received_bytes", 0) // 1024,
        "sent": counters.get("sent_bytes", 0) // 1024,
        "out-of-sync": dirty_bytes // 1024,
        "pending": counters.get("peer_pending", 0),
        "unacked": counters.get("unacked", 0),
        "has-sync-details": resync is not None,
        "has-online-verify-details": False,
        "percent-in-sync": round(100.0 * (1 - dirty_bytes / size_bytes), 2) if size_bytes else 100.0,
        **dict.fromkeys(_SYNC_KEYS),
        "x": {"out_of_sync_bytes": dirty_bytes, "resync": resync},
    }
    if resync:
        rate = round(resync.get("rate_bytes", 0) / (1 << 20), 2)
        found |= {
            "rs-total": resync.get("total_bytes", 0) // 512,
            "rs-failed": counters.get("resync_failed_bits", 0) * 8,
            "rs-same-csum": counters.get("resync_equal_bits", 0) * 8,
            "db1/dt1 [MiB/s]": rate,
            "db/dt [MiB/s]": rate,
            "estimated-seconds-to-finish": resync.get("eta_s"),
            "percent-resync-done": resync.get("done_percent"),
        }
    return found
