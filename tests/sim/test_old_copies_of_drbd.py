# SPDX-License-Identifier: Apache-2.0
"""A resync's source loses its disk before the target has begun: DRBD's node takes an Outdated disk for UpToDate, its
own or the other one's.  So it must not hear that ours has gone, and is left when its own has (decision 0016)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from repl.drbd.states import ConnectionState, DiskState
from repl.errors import ReplError
from tests.lib.tools import require_sim
from tests.sim.cluster import Setup
from tests.sim.peer_stage import NET, PRIMARY, SECONDARY, PeerStage
from tests.sim.scripted_peer import state_word

C, D = ConnectionState, DiskState
ROLES = pytest.mark.parametrize("serves", [True, False], ids=["primary", "secondary"])
NEXT = 0x1234567890ABCDE0


@pytest.fixture
def made() -> Iterator[list[PeerStage]]:
    require_sim()
    stages: list[PeerStage] = []
    yield stages
    for stage in stages:
        stage.cluster.close()


def stage_of(made: list[PeerStage], *, serves: bool) -> PeerStage:
    stage = PeerStage(serves=serves, setup=Setup(net=NET))
    made.append(stage)
    stage.peer.answers_pings = True
    if stage.app is not None:
        stage.app.write(0)
    else:  # it was Primary in between
        stage.cluster.ask(0, "primary")
        stage.cluster.ask(0, "secondary")
    return stage


def uuids(current: int, bitmap: int = 0, first: int = 0, second: int = 0) -> bytes:
    return struct.pack(">6Q", current, bitmap, first, second, 0, 0)


def peer_lacks_what_was_written(stage: PeerStage, *, says_state: bool = True) -> None:
    """Its disk has the generation before."""
    peer, known = stage.peer, stage.cluster.volume(0).uuids
    assert known.bitmap
    peer.connect()
    peer.features()
    peer.parameters(
        role=SECONDARY,
        disk=D.UP_TO_DATE,
        uuids=uuids(known.bitmap, 0, known.history1, known.history2),
        leave_out="" if says_state else "P_STATE",
    )
    peer.take("P_STATE")


def check_left(stage: PeerStage, code: str, mine: DiskState) -> None:
    node, peer = stage.cluster.node(0), stage.peer
    stage.cluster.until(lambda: node.cstate == C.STANDALONE, 10_000, "StandAlone")
    assert node.reason_code == code
    assert stage.cluster.state(0)[2] == mine
    peer.read()
    for name, _, body in peer.packets:
        if name == "P_STATE":
            disk = struct.unpack(">I", body)[0] >> 9 & 0xF
            assert mine == D.OUTDATED or disk > D.FAILED, "the peer has heard of it"


@ROLES
@pytest.mark.parametrize("is_decided", [True, False], ids=["bitmaps", "handshake"])
def test_drbds_target_does_not_hear_that_our_disk_has_gone(
    made: list[PeerStage], serves: bool, is_decided: bool
) -> None:
    stage = stage_of(made, serves=serves)
    cluster, peer = stage.cluster, stage.peer
    peer_lacks_what_was_written(stage, says_state=is_decided)
    if is_decided:
        cluster.until(lambda: cluster.state(0)[1] == C.WF_BITMAP_S, 5000, "the decision")
        peer.say("P_STATE", state_word(SECONDARY, C.WF_BITMAP_T, D.OUTDATED, peer=3 - SECONDARY, pdsk=D.UP_TO_DATE))
        with pytest.raises(ReplError, match="no other good data"):
            cluster.ask(0, "detach", volume=0)
    lost = cluster.fire(0, "detach", volume=0, force=True)
    check_left(stage, "unconfirmed-writes", D.DISKLESS)
    cluster.until(lambda: lost.is_done, 10_000, "the detach")
    if stage.app is not None:
        assert stage.app.do("read") != 0


@pytest.mark.parametrize(("serves", "theirs", "code"), [(True, D.UP_TO_DATE, "other-generation"),
                                                        (False, D.OUTDATED, "unconfirmed-writes")])  # fmt: skip
def test_drbds_node_with_older_data_does_not_hear_of_a_node_without_a_disk(
    made: list[PeerStage], serves: bool, theirs: DiskState, code: str
) -> None:
    """It begins a generation when it hears of a Primary."""
    stage = stage_of(made, serves=serves)
    cluster, peer = stage.cluster, stage.peer
    old = cluster.volume(0).uuids
    cluster.ask(0, "detach", volume=0, force=True)
    peer.connect()
    peer.features()
    sizes = peer.take("P_SIZES")
    for name, body in (
        ("P_PROTOCOL", peer.protocol()),
        ("P_SYNC_PARAM89", struct.pack(">I", 250) + bytes(128) + struct.pack(">4I", 20, 10, 100, 102400)),
        ("P_SIZES", sizes[16:24] + sizes[8:]),
        ("P_UUIDS", uuids(old.bitmap or old.current, 0, old.history1, old.history2)),
        ("P_STATE", state_word(SECONDARY, C.WF_CONNECTION, theirs)),
    ):
        peer.say(name, body)
    cluster.until(lambda: cluster.node(0).cstate == C.STANDALONE, 10_000, "StandAlone")
    assert cluster.node(0).reason_code == code
    peer.read()
    assert "P_STATE" not in {name for name, _, _ in peer.packets}


@pytest.mark.parametrize("disk", [D.FAILED, D.DISKLESS])
def test_drbds_primary_without_a_disk_is_left_by_a_disk_that_is_outdated(
    made: list[PeerStage], disk: DiskState
) -> None:
    stage = PeerStage(serves=False, setup=Setup(net=NET))
    made.append(stage)
    cluster, peer = stage.cluster, stage.peer
    peer.answers_pings = True
    known = cluster.volume(0).uuids
    peer.connect()
    peer.features()
    peer.parameters(role=PRIMARY, disk=D.UP_TO_DATE, uuids=uuids(NEXT, known.current, known.history1, known.history2))
    cluster.until(lambda: cluster.state(0)[1:3] == (C.WF_BITMAP_T, D.OUTDATED), 5000, "the decision")
    peer.say("P_STATE", state_word(PRIMARY, C.CONNECTED, disk, peer=SECONDARY, pdsk=D.UP_TO_DATE))
    check_left(stage, "peer-needs-its-disk", D.OUTDATED)
