# SPDX-License-Identifier: Apache-2.0
"""Two Primaries, a resync from DRBD's node, which holds the resolve-conflicts flag.

It receives nothing more while a resync request of ours waits for its own writes to the same extent, which may wait
here for ours: so our requests and our writes are never under way together.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from repl.drbd.states import ConnectionState, DiskState
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.scripted_peer import SYNCER, ScriptedPeer, ack, data, state_word

BYTES = 4096
SECTORS = BYTES // 512
THEIRS = bytes([0xA5]) * BYTES
PRIMARY, SECONDARY = 1, 2
INCONSISTENT, UP_TO_DATE = 2, 8
CONNECTED, STARTING_SYNC_S, SYNC_SOURCE = 10, 11, 16
WRITE_ACK = 1 << 8
RATE_KIB = 250  # six blocks a tick


class Target:
    """A serving node that is the target of a resync from a scripted Primary with the flag."""

    def __init__(self) -> None:
        self.cluster = cluster = Cluster(5, Setup(net=replace(QUICK_NET, two_primaries=True)))
        cluster.connect_fresh()
        cluster.ask(1, "down")
        cluster.until(lambda: not cluster.shells[1].is_running, 5000, "the end of the node that the peer plays")
        self.peer = peer = ScriptedPeer(cluster)
        peer.answers_pings = True
        peer.meet(role=PRIMARY, node_role=SECONDARY, dials=False, two=True)
        assert not cluster.node(0).connection.resolve_conflicts
        peer.say("P_SYNC_PARAM89", struct.pack(">I", RATE_KIB) + bytes(128) + struct.pack(">4I", 0, 10, 100, 102400))
        peer.say("P_STATE_CHG_REQ", struct.pack(">II", 0xF << 4, STARTING_SYNC_S << 4))
        assert struct.unpack(">i", peer.take("P_STATE_CHG_REPLY"))[0] >= 1
        peer.say("P_SYNC_UUID", struct.pack(">Q", 0xABCDEF0))
        peer.say("P_STATE", state_word(PRIMARY, SYNC_SOURCE, UP_TO_DATE, peer=SECONDARY, pdsk=INCONSISTENT))
        cluster.until(lambda: cluster.volume(0).state.conn == ConnectionState.SYNC_TARGET, 10_000, "SyncTarget")
        self.requests = [self.request(peer.take("P_RS_DATA_REQUEST"))]
        promotion = cluster.fire(0, "primary")
        cluster.until(lambda: promotion.is_done or self._agree(), 10_000, "the promotion")
        cluster.until(lambda: promotion.is_done, 10_000, "the promotion")
        assert promotion.error is None
        self.app = cluster.serve(0)
        self.seq = 0
        self.writes: list[bytes] = []
        self.acks: list[int] = []

    def _agree(self) -> bool:
        self.look()
        return False

    @staticmethod
    def request(body: bytes) -> tuple[int, int]:
        sector, _, size = struct.unpack_from(">QQI", body)
        return sector, size

    def look(self) -> None:
        """Sort what the node has sent."""
        self.peer.read()
        packets, self.peer.packets = self.peer.packets, []
        for name, _, body in packets:
            if name == "P_RS_DATA_REQUEST":
                self.requests.append(self.request(body))
            elif name == "P_STATE_CHG_REQ":
                self.peer.say_meta("P_STATE_CHG_REPLY", struct.pack(">i", 1))
            elif name == "P_DATA":
                self.writes.append(body)
            elif name == "P_WRITE_ACK":
                self.acks.append(struct.unpack_from(">QQ", body)[1])

    def run(self, ms: float) -> None:
        for _ in range(10):
            self.cluster.run(ms / 10)
            self.look()

    def until(self, what: str, holds: object) -> None:
        def now() -> bool:
            self.look()
            return bool(holds())  # type: ignore[operator]

        self.cluster.until(now, 10_000, what)

    def answer_requests(self) -> None:
        for sector, size in self.requests:
            payload = (THEIRS * -(-size // BYTES))[:size]
            self.peer.say("P_RS_DATA_REPLY", data(sector, payload, block_id=SYNCER, flags=0, seq=0))
        self.requests.clear()

    def their_write(self, block: int, block_id: int) -> None:
        self.seq += 1
        self.peer.say("P_DATA", data(block * SECTORS, THEIRS, block_id=block_id, flags=WRITE_ACK, seq=self.seq))

    def answer_write(self, body: bytes) -> None:
        sector, block_id = struct.unpack_from(">QQ", body)
        self.seq += 1
        self.peer.say_meta("P_WRITE_ACK", ack(sector, block_id, len(body) - 24, self.seq))


@pytest.fixture
def target() -> Iterator[Target]:
    require_sim()
    made = Target()
    yield made
    print(made.cluster.tail(100))
    made.cluster.close()


def test_resync_requests_and_own_writes_are_not_under_way_together(target: Target) -> None:
    assert target.requests
    far = target.cluster.device_bytes // BYTES // 2
    ops = [target.app.submit("write", block * BYTES, BYTES) for block in (far, far, far + 1)]
    target.run(500)
    assert target.writes == []
    for number, block in enumerate((far, far + 1, target.requests[0][0] // SECTORS)):
        target.their_write(block, 70 + number)
    target.until("the acks of their writes", lambda: sorted(target.acks) == [70, 71, 72])
    assert target.writes == []
    for _ in range(3):
        target.answer_requests()
        target.run(30)
    target.until("our writes", lambda: target.writes)
    assert target.requests == []
    target.run(500)
    assert target.requests == []
    while not all(target.cluster.op(op).state for op in ops):
        target.until("the next write", lambda: target.writes)
        assert target.requests == []
        target.answer_write(target.writes.pop(0))
        target.run(20)
        if target.requests:
            target.answer_requests()
    assert all(target.cluster.op(op).error == 0 for op in ops)
    target.until("more requests", lambda: target.requests)
    assert target.cluster.state(0)[2] == DiskState.INCONSISTENT
