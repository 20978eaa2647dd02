# SPDX-License-Identifier: Apache-2.0
"""Carrying out the decision who resyncs from whom: handlers, demotion, refusal, all bits, dry runs.

The decision itself is pure (``repl.drbd.decision``).  Facts: docs/protocol.md, section 1.9.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd.decision import Decision, DecisionKind, Refusal, decide
from repl.drbd.split_brain import AfterSplitBrain, Policies, ResyncConflict
from repl.drbd.states import ConnectionState, DiskState, Role, StateWord
from repl.drbd.uuids import CODE_SPLIT_BRAIN, Feature, Side, UuidFlag, Uuids, after_split_brain, new_current
from repl.engine import commands as ec
from repl.errors import ProtocolError, ReplError
from repl.node.drops import FinalDrop, RetryDrop
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.connection import Connection

RULE_PEER_MISSED_END = 35

_C = ConnectionState
_D = DiskState


async def settle(
    c: Connection, volume: Volume, theirs: StateWord, peer_disk: DiskState
) -> tuple[ConnectionState, Role]:
    """Both sides of a volume are known: the connection state to take and the peer's role in it, or a drop."""
    node, report = c.node, volume.peer_report
    assert report is not None
    me, peer = _sides(c, volume, theirs, peer_disk)
    decision = _decide(c, me, peer)
    node.emit(
        "handshake",
        f"decision {decision.kind.value} by rule {decision.rule}: {decision.reason}",
        volume=volume.number,
        level="error" if decision.kind is DecisionKind.REFUSE else "info",
        rule=decision.rule,
        code=decision.verdict.code,
        resolve_conflicts=c.resolve_conflicts,
        self_uuids=str(me.uuids),
        peer_uuids=str(peer.uuids),
    )
    if c.is_dry_run:
        c.verdicts[volume.number] = f"rule {decision.rule}: {decision.reason} It {decision.would_become()}."
        return _C.CONNECTED, theirs.role
    if decision.split_brain:
        node.handlers.notify("initial-split-brain", volume)
    if decision.kind is DecisionKind.REFUSE:
        if decision.rule == RULE_PEER_MISSED_END:
            node.suspension.check_missed_end(volume)
        _refuse(c, volume, decision)
    if decision.demote_first and not await node.commands.demote_in_handshake():
        node.handlers.notify("pri-lost-after-sb", volume)
        node.handlers.notify("split-brain", volume)
        raise FinalDrop(
            f"{decision.reason} This node is Primary and cannot be made Secondary: its clients are connected.",
            reason="split-brain",
            advice=_split_brain_advice(c),
        )
    if decision.left_over and not c.peer_is_ours:
        await _left_over_with_kernel(c, volume, decision, theirs)
    return await _begin(c, volume, decision), Role.SECONDARY if decision.peer_demotes else theirs.role


def _decide(c: Connection, me: Side, peer: Side) -> Decision:
    return decide(
        me,
        peer,
        version=c.agreed.version,
        features=c.agreed.features,
        resolve_conflicts=c.resolve_conflicts,
        policies=policies(c),
        peer_is_ours=c.peer_decides_alike,
    )


def refusal_by_kernel(c: Connection, volume: Volume) -> ReplError | None:
    """A disk of ours is Negotiating: the kernel module says nothing when it refuses it, but we know why it will."""
    theirs = replace(volume.state, role=c.node.peer_role, disk=volume.state.pdsk)
    if c.peer_is_ours or volume.peer_report is None or theirs.disk < _D.INCONSISTENT:
        return None
    decision = _decide(c, *_sides(c, volume, theirs, theirs.disk))
    if decision.kind is DecisionKind.REFUSE:
        try:
            _refuse(c, volume, decision)
        except (FinalDrop, RetryDrop) as refused:
            return refused
    return None


def policies(c: Connection) -> Policies:
    """As configured."""
    net = c.node.settings.net
    return Policies(
        after_sb_0pri=AfterSplitBrain(net.after_sb_0pri),
        after_sb_1pri=AfterSplitBrain(net.after_sb_1pri),
        after_sb_2pri=AfterSplitBrain(net.after_sb_2pri),
        always_asbp=net.always_asbp,
        rr_conflict=ResyncConflict(net.rr_conflict),
    )


def _sides(c: Connection, volume: Volume, theirs: StateWord, peer_disk: DiskState) -> tuple[Side, Side]:
    report = volume.peer_report
    assert report is not None
    me = Side(
        uuids=volume.uuids,
        role=c.node.role if c.node.is_connected else volume.sent_role,  # what the peer decides with
        disk=volume.disk_state_found() if volume.is_negotiating else volume.state.disk,
        attaching=volume.is_negotiating,
        dirty_bits=volume.sent_dirty_bits,
        crashed_primary=volume.claims_crash,
        discard_my_data=c.discard_my_data,
    )
    peer = Side(
        uuids=report.uuids,
        role=theirs.role,
        disk=peer_disk,
        attaching=theirs.disk == _D.NEGOTIATING,
        dirty_bits=report.dirty_bits,
        crashed_primary=UuidFlag.CRASHED_PRIMARY in report.flags,
        discard_my_data=UuidFlag.DISCARD_MY_DATA in report.flags,
    )
    return me, peer


async def _begin(c: Connection, volume: Volume, decision: Decision) -> ConnectionState:
    node, report = c.node, volume.peer_report
    assert report is not None
    c.doubt = decision.doubt or c.doubt
    # A direction that the disks' states have turned makes nothing of what the generations alone would correct.
    volume.corrected = decision.verdict.self_corrected if decision.kind is DecisionKind.SOURCE else None
    theirs = decision.verdict.peer_corrected if decision.kind is DecisionKind.TARGET else None
    if abs(decision.verdict.code) == CODE_SPLIT_BRAIN:
        if decision.kind is DecisionKind.SOURCE:
            volume.corrected = after_split_brain(volume.uuids, report.uuids.current)
        elif decision.kind is DecisionKind.TARGET:
            theirs = after_split_brain(report.uuids, volume.uuids.current)
    if theirs is not None and (c.peer_is_ours or decision.rule not in (60, 90, 100)):  # DRBD's corrects nothing there
        volume.peer_report = replace(report, uuids=theirs)
    if decision.kind is DecisionKind.NONE:
        return _C.CONNECTED
    if decision.split_brain and decision.kind is DecisionKind.TARGET:
        await node.undo.begin(volume, decision.reason)
    if decision.kind is DecisionKind.TARGET and c.peer_decides_alike:
        volume.crashed_primary = False  # its data is no better than the peer's, whatever becomes of this resync
    volume.is_discarded = decision.manually and decision.kind is DecisionKind.TARGET
    if decision.full and not await node.ask_ok(ec.BitmapSetAll(volume.number)):
        raise ProtocolError("The bitmap cannot be written.")
    return _C.WF_BITMAP_S if decision.kind is DecisionKind.SOURCE else _C.WF_BITMAP_T


# ---- refusals ----


def _refuse(c: Connection, volume: Volume, decision: Decision) -> None:
    assert decision.refusal is not None
    reason, advice = decision.refusal.value, _advice(c, decision.refusal)
    if decision.refusal is Refusal.SPLIT_BRAIN:
        c.node.handlers.notify("split-brain", volume)
    conflict = ResyncConflict(c.node.settings.net.rr_conflict)
    if decision.refusal is Refusal.PRIMARY_TARGET and conflict is ResyncConflict.CALL_PRI_LOST:
        c.node.handlers.notify("pri-lost", volume)
    if decision.retry:
        raise RetryDrop(decision.reason, reason=reason, advice=advice)
    raise FinalDrop(decision.reason, reason=reason, advice=advice)


def _split_brain_advice(c: Connection) -> str:
    name = c.node.settings.resource
    # A disk that is attached while both nodes are connected: only that disk is refused.
    first = f'"replctl disconnect {name}" on both nodes and attach the disk first. ' if c.node.is_connected else ""
    return (
        f'{first}Choose the node whose changes are to be thrown away; on it: "replctl secondary {name}" and '
        f'"replctl connect --discard-my-data {name}", on the other one: "replctl connect {name}".'
    )


def _advice(c: Connection, refusal: Refusal) -> str:
    name, peer = c.node.settings.resource, c.node.settings.peer
    if refusal is Refusal.SPLIT_BRAIN:
        return _split_brain_advice(c)
    if refusal is Refusal.PRIMARY_TARGET:
        return (
            f'"replctl secondary {name}" here, then "replctl connect {name}": the changes of {peer} are copied here. '
            f"To keep what is here, promote nothing on {peer} and look at both nodes with show-gi first."
        )
    if refusal is Refusal.NO_GOOD_SOURCE:
        return (
            "Neither node has good data: look for an intact copy; "
            f'"replctl primary --force {name}" declares what is on this node\'s disk good.'
        )
    if refusal is Refusal.LEFT_OVER:
        return f'"replctl secondary {name}" on the node whose copy of these blocks is to be replaced; then connect.'
    if refusal is Refusal.OLD_PEER:
        return f"Use a newer DRBD on {peer}, or invalidate the older copy by hand."
    return "Compare both nodes with show-gi; create-md --force on one of them starts anew with a full sync."


# ---- left-over differences and DRBD's own nodes ----


async def _left_over_with_kernel(c: Connection, volume: Volume, decision: Decision, theirs: StateWord) -> None:
    """Equal generations and dirty bits: a DRBD peer would only log it, and two different disks would be UpToDate.

    A node that crashed as Primary makes it resync the bits by rules 40 and 41, the Primary (or we) being the source;
    a node that is Inconsistent becomes the target.  So we connect once more and say so (decision 0008).
    """
    node, name = c.node, c.node.settings.resource
    text = f"{decision.reason} {node.settings.peer} would leave them so"
    found = volume.disk_state_found() if volume.is_negotiating else volume.state.disk
    is_old = volume.is_negotiating or (found == _D.OUTDATED and theirs.disk != _D.OUTDATED)
    is_decided_by_role = Role.PRIMARY in (node.role, theirs.role)
    if decision.kind is DecisionKind.TARGET and is_old:
        await node.transition(
            lambda v, s: replace(s, disk=_D.INCONSISTENT) if v is volume else s, only=volume, reason="left-over bits"
        )
    elif decision.kind is DecisionKind.SOURCE and theirs.role == Role.PRIMARY:
        # It is Outdated, but UpToDate for itself now, and goes on from there: never to be followed without being asked.
        await node.transition(
            lambda v, s: s,
            uuids=lambda v: _new_generation(c, v) if v is volume else v.uuids,
            only=volume,
            reason="left-over bits",
        )
    elif is_decided_by_role and Feature.WSAME not in c.agreed.features:
        raise FinalDrop(
            f"{text}, and it is too old to be told otherwise.",
            reason=Refusal.LEFT_OVER.value,
            advice=f'"replctl invalidate {name}" on the node whose copy is to be replaced, while it is StandAlone.',
        )
    else:
        volume.has_left_over = True
    raise RetryDrop(f"{text}; connecting again to resync them.", reason=Refusal.LEFT_OVER.value)


def _new_generation(c: Connection, volume: Volume) -> Uuids:
    return new_current(volume.uuids, c.node.random, primary=False, keep_bitmap=True)


# ---- dry runs ----


def end_dry_run(c: Connection) -> None:
    """One of the nodes was only asked what would happen; nothing was changed.  Raises once all volumes have spoken."""
    node = c.node
    if not all(v.is_evaluated for v in node.volumes.values()):
        return
    if c.is_tentative:
        raise tentative_result(c)
    text = f"{node.settings.peer} only asked what would happen. {verdict_text(c)}"
    node.emit("connection", text)
    raise RetryDrop(text)


def verdict_text(c: Connection) -> str:
    """One sentence or two for each volume."""
    many = len(c.verdicts) > 1
    texts = [f"{f'volume {number}: ' if many else ''}{text}" for number, text in sorted(c.verdicts.items())]
    return " ".join(texts) or "There is no disk to compare."


def tentative_result(c: Connection) -> FinalDrop:
    return FinalDrop(
        f"Tentative connect: {verdict_text(c)}",
        reason="tentative",
        advice=f'Nothing was changed. "replctl connect {c.node.settings.resource}" does it.',
    )
