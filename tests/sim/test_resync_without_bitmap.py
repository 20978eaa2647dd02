# SPDX-License-Identifier: Apache-2.0
"""A source that begins the resync without (all of) its bitmap: DRBD's does so when it carries out an old decision.

Nothing would come behind its P_SYNC_UUID: the node connects again, not in a hurry, and changes nothing (decision 0006).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from repl.drbd.states import ConnectionState, DiskState
from repl.node.connection import RETRY_PAUSE_MS
from tests.lib.tools import require_sim
from tests.sim.peer_stage import PRIMARY, SECONDARY, PeerStage, made_stages
from tests.sim.scripted_peer import h100, state_word

C = ConnectionState
BLOCK = 4096
CHUNK_BYTES = BLOCK - 16
WF_CONNECTION, WF_BITMAP_S = 8, 13
OUTDATED, CONSISTENT, UP_TO_DATE = 5, 7, 8
THEIR_CURRENT, SYNC_UUID = 0x7A846E9212CEBB38, 0xC025B1B4DB5F3C6A
WHY = "has begun the resync without sending its bitmap"


@pytest.fixture
def stages() -> Iterator[list[PeerStage]]:
    require_sim()
    yield from made_stages()


def made(stages: list[PeerStage]) -> PeerStage:
    stages.append(PeerStage(serves=False))
    return stages[-1]


def meet_as_source(stage: PeerStage) -> None:
    """The peer has gone on from the node's data: the node is its target and waits for its bitmap."""
    peer, cluster = stage.peer, stage.cluster
    peer.connect()
    peer.features()
    sizes, uuids = peer.take("P_SIZES"), peer.take("P_UUIDS")
    for name, body in (
        ("P_PROTOCOL", peer.protocol()),
        ("P_SYNC_PARAM89", struct.pack(">I", 250) + bytes(128) + struct.pack(">4I", 20, 10, 100, 102400)),
        ("P_SIZES", sizes),
        ("P_UUIDS", struct.pack(">Q", THEIR_CURRENT) + uuids[:8] + uuids[16:32] + struct.pack(">QQ", 1, 0)),
        ("P_STATE", state_word(PRIMARY, WF_CONNECTION, UP_TO_DATE)),
    ):
        peer.say(name, body)
    cluster.until(lambda: cluster.volume(0).state.conn == C.WF_BITMAP_T, 10_000, "WFBitMapT")
    peer.say("P_STATE", state_word(PRIMARY, WF_BITMAP_S, UP_TO_DATE, peer=SECONDARY, pdsk=CONSISTENT))


def bitmap(stage: PeerStage) -> list[bytes]:
    """A plain one, whose first block differs, with its end mark."""
    bits = -(-stage.cluster.device_bytes // BLOCK)
    content = b"\1" + bytes(-(-bits // 64) * 8 - 1)
    return [*(content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)), b""]


def begin(stage: PeerStage) -> None:
    stage.peer.say("P_SYNC_UUID", struct.pack(">Q", SYNC_UUID))


@pytest.mark.parametrize("is_begun", [False, True], ids=["no-bitmap", "without-its-end"])
def test_source_that_begins_without_its_bitmap_is_met_again_and_resyncs(
    stages: list[PeerStage], is_begun: bool
) -> None:
    stage = made(stages)
    cluster = stage.cluster
    before = cluster.volume(0).uuids
    meet_as_source(stage)
    for chunk in bitmap(stage)[:-1] if is_begun else []:
        stage.peer.say("P_BITMAP", chunk)
    begin(stage)
    cluster.until(stage.peer.has_ended, 2_000, "the end of the connection")
    node = cluster.node(0)
    assert WHY in node.reason and node.reason_code == "resync-without-bitmap"
    assert cluster.volume(0).uuids == before

    meet_as_source(stage)
    for chunk in bitmap(stage):
        stage.peer.say("P_BITMAP", chunk)
    stage.peer.take("P_COMPRESSED_BITMAP")
    begin(stage)
    cluster.until(lambda: cluster.volume(0).state.conn == C.SYNC_TARGET, 10_000, "SyncTarget")
    assert cluster.volume(0).state.disk == DiskState.INCONSISTENT and cluster.dirty_bits(0) == 1
    assert cluster.volume(0).uuids.current == SYNC_UUID and not node.reason


def test_source_that_never_sends_its_bitmap_is_not_met_in_a_hurry(stages: list[PeerStage]) -> None:
    stage = made(stages)
    cluster = stage.cluster
    met = []
    for _ in range(4):
        meet_as_source(stage)
        begin(stage)
        cluster.until(stage.peer.has_ended, 2_000, "the end of the connection")
        met.append(cluster.now_ms)
    assert all(b - a >= RETRY_PAUSE_MS for a, b in zip(met, met[1:], strict=False)), met


def test_source_that_begins_with_its_bitmap_but_without_ours_is_followed(stages: list[PeerStage]) -> None:
    """All that it has marked is fetched, and it marks what we send."""
    stage = made(stages)
    cluster = stage.cluster
    meet_as_source(stage)
    stage.peer.send(
        b"".join(h100("P_BITMAP", chunk) for chunk in bitmap(stage)) + h100("P_SYNC_UUID", struct.pack(">Q", SYNC_UUID))
    )
    cluster.until(lambda: cluster.volume(0).state.conn == C.SYNC_TARGET, 10_000, "SyncTarget")
    stage.peer.take("P_RS_DATA_REQUEST")
    assert not stage.peer.has_ended() and cluster.dirty_bits(0) == 1
