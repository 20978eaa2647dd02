# SPDX-License-Identifier: Apache-2.0
"""The network options while the resource runs: by order of the operator ("net-options"), or as the peer says.

Inputs: fields of ``NetSettings``, P_PROTOCOL_UPDATE, P_SYNC_PARAM.  Outputs: LINK_OPTIONS to the engine (which sends
the P_PROTOCOL_UPDATE itself, so that no packet of the new kind goes before it), and P_SYNC_PARAM for each volume.
Both nodes go on with the same protocol, policies and algorithms; what is in the files stays as it is.
Facts: docs/protocol.md, section 1.8.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from repl.drbd import packets as pk
from repl.drbd.digests import DIGESTS, digest_number
from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState, Role
from repl.engine import commands as ec
from repl.errors import ConfigError, RequestRefused, UsageError
from repl.node.drops import FinalDrop
from repl.node.settings import NetSettings

if TYPE_CHECKING:
    from repl.node.node import Node

_C = ConnectionState
PROTOCOL_A, PROTOCOL_C = 1, 3
FIXED = ("cram_hmac_alg", "shared_secret", "protocol_min", "protocol_max", "fencing")  # only before a connection
_SHARED = ("protocol", "two_primaries", "after_sb_0pri", "after_sb_1pri", "after_sb_2pri", "data_integrity_alg")
_ALGORITHMS = {"data_integrity_alg": "data-integrity-alg", "verify_alg": "verify-alg", "csums_alg": "csums-alg"}


class NetOptions:
    """Of the one connection."""

    def __init__(self, node: Node) -> None:
        self._node = node

    # ---- by order ----

    async def change(self, values: Mapping[str, Any]) -> None:
        """Fields of ``NetSettings`` with their new values."""
        node = self._node
        known = {part.name for part in fields(NetSettings)} - set(FIXED)
        for name in values:
            if name not in known:
                raise UsageError(f"net-options: {name} cannot be changed.", advice='See "replctl net-options -h".')
        if node.cstate == _C.WF_REPORT_PARAMS:  # the peer is just being told the old ones
            await node.watch(lambda: node.cstate != _C.WF_REPORT_PARAMS)
        old = node.settings.net
        new = replace(old, **values)
        self._check(old, new)
        self._take(new)
        if not node.is_connected:
            return
        connection = node.connection
        packet = b""
        if connection.agreed.version >= pk.PROTOCOL_H100:
            body = connection.own_protocol().encode(connection.agreed.version)
            packet = pk.encode(Packet.PROTOCOL_UPDATE, body, version=connection.agreed.version)
        node.send(ec.LinkOptions(connection.link_options(connection.peer_integrity), packet))
        for volume in node.volumes.values():
            connection.send_sync_param(volume)

    def _check(self, old: NetSettings, new: NetSettings) -> None:
        """What DRBD refuses, with its codes."""
        node = self._node
        name, both = node.settings.resource, Role.PRIMARY == node.role == node.peer_role
        old_peer = node.is_connected and node.connection.agreed.version < pk.PROTOCOL_H100
        syncs = any(_C.STARTING_SYNC_S <= v.state.conn <= _C.PAUSED_SYNC_T for v in node.volumes.values())
        verifies = any(v.state.conn in (_C.VERIFY_S, _C.VERIFY_T) for v in node.volumes.values())
        changed = {part.name for part in fields(NetSettings) if getattr(old, part.name) != getattr(new, part.name)}
        refusals = (
            (new.two_primaries and new.protocol != PROTOCOL_C, 139, "allow-two-primaries needs protocol C"),
            (new.fencing == "resource-and-stonith" and new.protocol == PROTOCOL_A, 139,
             "fencing resource-and-stonith needs protocol B or C"),
            (new.on_congestion == "pull-ahead" and new.protocol != PROTOCOL_A, 155, "pull-ahead needs protocol A"),
            (both and not new.two_primaries, 161, "both nodes are Primary and need allow-two-primaries"),
            (old_peer and changed & set(_SHARED), 163,
             f"the peer's protocol version ({node.connection.agreed.version}) has no word for the change"),
            (syncs and "csums_alg" in changed, 148, "a resync is running"),
            (verifies and "verify_alg" in changed, 149, "a verify is running"),
        )  # fmt: skip
        for is_wrong, number, text in refusals:
            if is_wrong:
                raise RequestRefused(f"{name}: {text}", number=number, advice="Nothing was changed.")
        for field in changed & _ALGORITHMS.keys():
            digest_number(getattr(new, field), _ALGORITHMS[field])  # raises for one that is not known

    def _take(self, new: NetSettings, because: str = "") -> None:
        node, old = self._node, self._node.settings.net
        changed = [part.name for part in fields(NetSettings) if getattr(old, part.name) != getattr(new, part.name)]
        node.settings = replace(node.settings, net=new)
        node.connection.csums_alg = new.csums_alg if "csums_alg" in changed else node.connection.csums_alg
        if changed:
            text = ", ".join(f"{name.replace('_', '-')} {getattr(new, name)}" for name in changed)
            node.emit("connection", f"network options{because}: {text}")
            node.notify_watchers()

    # ---- as the peer says ----

    def adopt(self, theirs: pk.Protocol) -> None:
        """P_PROTOCOL_UPDATE: no comparison, we do as the peer does."""
        node, connection = self._node, self._node.connection
        policies = (theirs.after_sb_0p, theirs.after_sb_1p, theirs.after_sb_2p)
        zero, one, two = (int(policy.seen_by_peer()) for policy in policies)
        new = replace(
            node.settings.net,
            protocol=int(theirs.protocol),
            two_primaries=theirs.two_primaries,
            after_sb_0pri=zero,
            after_sb_1pri=one,
            after_sb_2pri=two,
        )
        self._take(new, ", as the peer says")
        try:  # from the next packet on the peer digests with this; we go on with ours
            options = connection.link_options(theirs.integrity_alg or "")
        except ConfigError as error:
            raise FinalDrop(error.message, reason="settings-differ", advice=error.advice) from None
        node.send(ec.LinkOptions(options))

    def adopt_verify(self, name: str | None) -> None:
        """P_SYNC_PARAM: the peer's verify-alg; one that is not known here makes a verify impossible."""
        node = self._node
        if name is None or name == node.settings.net.verify_alg or (name and name not in DIGESTS):
            return
        self._take(replace(node.settings.net, verify_alg=name), ", as the peer says")
        node.send(ec.LinkOptions(node.connection.link_options(node.connection.peer_integrity)))
