# SPDX-License-Identifier: Apache-2.0
"""``new-current-uuid --clear-bitmap`` of two fresh disks that are connected: the initial sync is skipped.

One node makes the generation, and both disks are UpToDate; the peer takes it over from P_UUIDS with a flag of its own.
Two nodes of this software agree before who that is, as both may be told at one instant: each would be UpToDate with a
generation of its own (decision 0144).  What the peer sent before it heard of it is no news (decision 0141).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd.packets import UuidReport
from repl.drbd.states import ConnectionState, DiskState, Role, StateChange, StateWord
from repl.drbd.uuids import UuidFlag, Uuids, adopt_current, base, clear_bitmap_uuid, new_current
from repl.engine import commands as ec
from repl.errors import PeerLost, StateRefused
from repl.node.refusals import refusal
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.connection import Connection
    from repl.node.node import Node

SKIP_VERSION = 90  # an older peer would not understand
TRIES = 3
CONCURRENT_CHANGE = -19
_C = ConnectionState
_D = DiskState


def may_skip(c: Connection, volume: Volume) -> bool:
    """Both disks are fresh, and nothing has been decided about them."""
    report = volume.peer_report
    fresh_peer = report is not None and report.uuids.just_created
    return fresh_peer and _is_open(volume) and c.agreed.version >= SKIP_VERSION


def _is_open(volume: Volume) -> bool:
    return volume.attached and volume.uuids.just_created and volume.state.conn == _C.CONNECTED


async def skip(node: Node, volume: Volume) -> None:
    """By order here; done as well if the peer has done it meanwhile."""
    try:
        if await _is_ours_to_do(node, volume):
            await _carry_out(node, volume)
    finally:
        volume.is_skipping = False
    await node.watch(lambda: volume.is_in_sync or not (volume.peer_skips and volume.state.conn == _C.CONNECTED))
    if not volume.is_in_sync:
        raise _not_done(node)


async def _is_ours_to_do(node: Node, volume: Volume) -> bool:
    c = node.connection
    if not c.peer_decides_alike:
        return True
    for _ in range(TRIES):
        code = CONCURRENT_CHANGE
        if not volume.peer_skips:
            try:
                code = await c.request_change(StateChange.of(disk=_D.UP_TO_DATE), volume=volume.number)
            except PeerLost:
                raise _not_done(node) from None
        if code >= 1:
            volume.is_skipping = True
            return True
        if code != CONCURRENT_CHANGE:
            raise refusal(node, "new-current-uuid", code)
        settled = node.watch(lambda: not _is_open(volume))  # the peer does it, or was told to as well
        await node.within(settled, node.settings.net.ping_timeout_ms)
        node.unwatch(settled)
        if not _is_open(volume):
            return False
    raise refusal(node, "new-current-uuid", CONCURRENT_CHANGE)


def _not_done(node: Node) -> StateRefused:
    return StateRefused(
        f"{node.settings.resource}: the initial sync is not skipped: the link was lost, or another order came first",
        number=CONCURRENT_CHANGE,
        advice="Look at the status of both nodes; give the order again if both disks are still fresh.",
    )


async def _carry_out(node: Node, volume: Volume) -> None:
    if _is_open(volume):
        await node.ask(ec.BitmapClearAll(volume.number))
    is_begun = False

    def change(v: Volume, s: StateWord) -> StateWord:
        nonlocal is_begun
        is_begun = v is volume and _is_open(v) and not v.peer_skips  # it waited for its turn
        return replace(s, disk=_D.UP_TO_DATE, pdsk=_D.UP_TO_DATE) if is_begun else s

    def uuids(v: Volume) -> Uuids:
        if not is_begun:
            return v.uuids
        v.skip_is_unanswered = True  # the peer has to know before our P_STATE could say UpToDate
        fresh = new_current(v.uuids, node.random, primary=node.role == Role.PRIMARY, keep_bitmap=True)
        return clear_bitmap_uuid(fresh)

    await node.transition(change, uuids=uuids, only=volume, reason="initial sync skipped by order")
    if is_begun:
        node.connection.send_uuids(volume, extra_flags=UuidFlag.SKIP_INITIAL_SYNC)
        volume.peer_has_our_uuids()


# ---- the peer's side ----


def peer_asks_to_skip(volume: Volume) -> int:
    """May it make the generation?  Then this node does not, until it has heard of that."""
    if volume.is_skipping or not _is_open(volume):
        return CONCURRENT_CHANGE
    volume.peer_skips = True
    return 1


async def peer_has_skipped(c: Connection, volume: Volume, report: UuidReport) -> None:
    """P_UUIDS came.  DRBD's nodes do not ask: two orders that cross there leave their generation to count."""
    node = c.node
    crossed = volume.skip_is_unanswered and not c.peer_decides_alike
    volume.skip_is_unanswered = False
    skips = UuidFlag.SKIP_INITIAL_SYNC in report.flags and c.agreed.version >= SKIP_VERSION
    volume.peer_skips = skips and volume.attached
    if not volume.peer_skips:
        return

    def is_it(v: Volume) -> bool:
        return v is volume and v.state.conn == _C.CONNECTED and (v.uuids.just_created or crossed)

    if is_it(volume) and not crossed:
        await node.ask(ec.BitmapClearAll(volume.number))
    await node.transition(
        lambda v, s: replace(s, disk=_D.UP_TO_DATE, pdsk=_D.UP_TO_DATE) if is_it(v) else s,
        uuids=lambda v: (
            adopt_current(v.uuids, report.uuids.current, primary=node.role == Role.PRIMARY) if is_it(v) else v.uuids
        ),
        only=volume,
        reason="initial sync skipped by order",
    )
    volume.peer_skips = False
    node.notify_watchers()
    if base(volume.uuids.current) != base(report.uuids.current):
        return
    volume.peer_has_our_uuids()
    c.send_state(volume)  # an older P_STATE of ours may have reached the peer after its own change


def disk_after_skip(volume: Volume, theirs: StateWord, peer_disk: DiskState) -> DiskState:
    """What the peer sent before it heard that the initial sync is skipped shows our disk as it was, too."""
    is_old = theirs.conn == _C.CONNECTED and theirs.pdsk == _D.INCONSISTENT and volume.state.disk == _D.UP_TO_DATE
    if volume.skip_is_unanswered and peer_disk == _D.INCONSISTENT and is_old:
        return _D.UP_TO_DATE
    volume.skip_is_unanswered = False
    return peer_disk
