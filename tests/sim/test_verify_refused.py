# SPDX-License-Identifier: Apache-2.0
"""An online verify whose target has just lost its disk: it refuses what it is asked, and its news comes later."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.lib.tools import require_sim
from tests.sim.cluster import Setup
from tests.sim.peer_stage import NET, PeerStage, made_stages
from tests.sim.scripted_peer import SYNCER, ack, state_word

CONNECTED, UP_TO_DATE = 10, 8
SECONDARY = 2
REFUSED = {16, 24, 40}  # sectors
OUT_OF_SYNC = 4712


@pytest.fixture
def stages() -> Iterator[list[PeerStage]]:
    require_sim()
    yield from made_stages()


def verdicts_of(stage: PeerStage) -> dict[int, int]:
    """Every request is answered with a digest that differs, or refused; by sector, what the node says then."""
    peer, cluster = stage.peer, stage.cluster
    asked: set[int] = set()
    verdicts: dict[int, int] = {}

    def look() -> bool:
        peer.read()
        packets, peer.packets = peer.packets, []
        for name, _, body in packets:
            sector, second = struct.unpack_from(">QQ", body) if len(body) >= 16 else (0, 0)
            if name == "P_STATE_CHG_REQ":
                peer.say_meta("P_STATE_CHG_REPLY", struct.pack(">i", 1))
            elif name == "P_OV_RESULT":
                verdicts[sector] = second
            elif name == "P_OV_REQUEST":
                asked.add(sector)
                size = struct.unpack_from(">I", body, 16)[0]
                if sector in REFUSED:
                    peer.say_meta("P_NEG_RS_DREPLY", ack(sector, SYNCER, size))
                else:
                    peer.say("P_OV_REPLY", struct.pack(">QQII", sector, SYNCER, size, 0) + bytes(4))
        return cluster.node(0).verify.reports[0].state == "complete" if cluster.node(0).verify.reports else False

    cluster.until(look, 20_000, "the end of the verify")
    cluster.run(100)
    look()
    assert asked == set(range(0, 64 * 8, 8))
    return verdicts


def test_a_verify_gives_no_verdict_on_what_was_refused_and_counts_it_as_different(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=False, setup=Setup(net=replace(NET, verify_alg="crc32c")))
    stages.append(stage)
    peer, cluster = stage.peer, stage.cluster
    peer.answers_pings = True
    peer.connect()
    peer.features()
    params = struct.pack(">I", 250) + b"crc32c".ljust(128, b"\0") + struct.pack(">4I", 20, 10, 100, 102400)
    peer.parameters(role=SECONDARY, disk=UP_TO_DATE, sync_param89=params)
    peer.take("P_STATE")
    peer.say("P_STATE", state_word(SECONDARY, CONNECTED, UP_TO_DATE, peer=SECONDARY, pdsk=UP_TO_DATE))
    peer.wait_connected()
    cluster.fire(0, "verify", start_sector=0, stop_sector=64 * 8)
    verdicts = verdicts_of(stage)
    assert set(verdicts) == set(range(0, 64 * 8, 8)) - REFUSED
    assert set(verdicts.values()) == {OUT_OF_SYNC}
    assert cluster.node(0).verify.reports[0].differing_blocks == 64
