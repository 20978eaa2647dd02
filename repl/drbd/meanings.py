# SPDX-License-Identifier: Apache-2.0
"""What the states mean and what a person can do about them: for ``docs/STATES.md`` and for explanations.

Plain texts by state, first what it means, then the next step ("" where nothing has to be done).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from repl.drbd.states import ConnectionState, DiskState, Role

_C = ConnectionState
_D = DiskState

ROLE_MEANING: Mapping[Role, str] = MappingProxyType(
    {
        Role.UNKNOWN: "the peer's, while there is no connection",
        Role.PRIMARY: "applications may open the device and write",
        Role.SECONDARY: "keeps a copy; the device cannot be opened",
    }
)

DISK_MEANING: Mapping[DiskState, tuple[str, str]] = MappingProxyType(
    {
        _D.DISKLESS: (
            "no disk is attached; reads and writes go to the peer",
            "Look at the disk's error in the status, replace or repair the disk, then attach it (or down and up).",
        ),
        _D.ATTACHING: ("metadata and bitmap are being read", ""),
        _D.FAILED: ("the disk is being given up after an error or by order", "It becomes Diskless by itself."),
        _D.NEGOTIATING: ("attached while connected; the peer is asked who is newer", ""),
        _D.INCONSISTENT: (
            "the copy is incomplete: fresh, or the target of a resync that has not finished",
            "Wait for the resync (wait-sync). Without a peer the copy cannot be used, except by force.",
        ),
        _D.OUTDATED: (
            "complete, but known to be older than the peer's",
            "Connect; it is brought up to date. Promotion is refused, because it would bring old data back.",
        ),
        _D.UNKNOWN: ("the peer's, while there is no connection", ""),
        _D.CONSISTENT: (
            "complete, but without the peer nobody knows whether it is the newest copy",
            "Connect, or let the fence-peer handler find out that the peer is down (promotion runs it).",
        ),
        _D.UP_TO_DATE: ("complete and current", ""),
    }
)

CONNECTION_MEANING: Mapping[ConnectionState, tuple[str, str]] = MappingProxyType(
    {
        _C.STANDALONE: (
            "not connected and not trying",
            "The status says why. Put that right, then connect.",
        ),
        _C.DISCONNECTING: ("on its way to StandAlone", ""),
        _C.UNCONNECTED: ("about to connect again", ""),
        _C.TIMEOUT: ("the peer did not answer in time; connects again", ""),
        _C.BROKEN_PIPE: ("the connection broke; connects again", ""),
        _C.NETWORK_FAILURE: ("a ping was not answered, or this node's disk failed under the peer's writes", ""),
        _C.PROTOCOL_ERROR: ("the peer sent what it must not send; connects again", "The log says what it was."),
        _C.TEAR_DOWN: ("the peer has disconnected in an orderly way", ""),
        _C.WF_CONNECTION: (
            "waiting for the peer",
            "Is it up? Do both addresses, ports and firewalls agree?",
        ),
        _C.WF_REPORT_PARAMS: ("the sockets stand, the nodes compare settings and generations", ""),
        _C.CONNECTED: ("connected, nothing is going on", ""),
        _C.STARTING_SYNC_S: ("a full resync by order begins here, as its source", ""),
        _C.STARTING_SYNC_T: ("a full resync by order begins here, as its target", ""),
        _C.WF_BITMAP_S: ("the source sends its bitmap and waits for the target's", ""),
        _C.WF_BITMAP_T: ("the target waits for the source's bitmap", ""),
        _C.WF_SYNC_UUID: ("the target waits for the resync's generation", ""),
        _C.SYNC_SOURCE: ("this node's blocks are copied to the peer", ""),
        _C.SYNC_TARGET: ("blocks of the peer are copied here", ""),
        _C.VERIFY_S: ("online verify, asked for here", ""),
        _C.VERIFY_T: ("online verify, asked for by the peer", ""),
        _C.PAUSED_SYNC_S: (
            "resync as its source, paused",
            "resume-sync where it was paused; a resync-after dependency ends by itself.",
        ),
        _C.PAUSED_SYNC_T: (
            "resync as its target, paused",
            "resume-sync where it was paused; a resync-after dependency ends by itself.",
        ),
        _C.AHEAD: ("congested: writes are only marked, the peer falls behind; resyncs when the link has room", ""),
        _C.BEHIND: ("the peer is congested and ahead; this copy is being left behind until its resync", ""),
    }
)
