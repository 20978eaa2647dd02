# SPDX-License-Identifier: Apache-2.0
"""The names of states: DRBD 9's for ``status``, 8.4's for ``cstate``, ``dstate`` and ``proc``.

Inputs: values of the status map of ``repld`` (either flavour).  Raises nothing.
"""

from __future__ import annotations

from typing import Any

_CONNECTION_9 = {"WFConnection": "Connecting", "WFReportParams": "Connecting"}
_CONNECTION_84 = {"Connecting": "WFConnection"}
ESTABLISHED = "Established"
CONNECTED = "Connected"


def connection_9(status: dict[str, Any]) -> str:
    """``Connecting``, ``Connected``, ``StandAlone``…"""
    found = str(status.get("connection", "Unknown"))
    return _CONNECTION_9.get(found, found)


def is_connected(status: dict[str, Any]) -> bool:
    return connection_9(status) == CONNECTED


def replication_9(status: dict[str, Any], volume: dict[str, Any]) -> str:
    """``Off``, ``Established``, ``SyncSource``…"""
    if not is_connected(status):
        return "Off"
    found = str(volume.get("replication", ESTABLISHED))
    return ESTABLISHED if found == CONNECTED else found


def cstate_84(status: dict[str, Any], volume: dict[str, Any]) -> str:
    """8.4's one merged value."""
    if not is_connected(status):
        found = str(status.get("connection", "Unknown"))
        return _CONNECTION_84.get(found, found)
    found = replication_9(status, volume)
    return CONNECTED if found == ESTABLISHED else found


def roles(status: dict[str, Any]) -> str:
    """``Primary/Secondary``."""
    return f"{status.get('role', 'Unknown')}/{peer_role(status)}"


def peer_role(status: dict[str, Any]) -> str:
    return str(status.get("peer", {}).get("role", "Unknown"))


def disks(volume: dict[str, Any]) -> str:
    """``UpToDate/Inconsistent``."""
    return f"{volume.get('disk', 'Diskless')}/{volume.get('peer_disk', 'DUnknown')}"
