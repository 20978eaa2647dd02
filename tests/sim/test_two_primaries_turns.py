# SPDX-License-Identifier: Apache-2.0
"""Two Primaries, a resync from DRBD's node or a verify of it, which holds the resolve-conflicts flag.

It receives nothing more while such a request of ours waits for its own writes to the same extent, which may wait here
for ours: so our requests and our writes are never under way together.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from repl.drbd.states import ConnectionState
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


class Asking:
    """A serving node that asks a scripted Primary with the flag: for a resync's data, or a verify's digests."""

    def __init__(self, *, verify: bool) -> None:
        self.is_verify = verify
        self.requests: list[tuple[int, int]] = []
        self.seq = 0
        self.writes: list[bytes] = []
        self.acks: list[int] = []
        self.cluster = cluster = Cluster(5, Setup(net=replace(QUICK_NET, two_primaries=True, verify_alg="crc32c")))
        cluster.connect_fresh()
        cluster.ask(1, "down")
        cluster.until(lambda: not cluster.shells[1].is_running, 5000, "the end of the node that the peer plays")
        self.peer = peer = ScriptedPeer(cluster)
        peer.answers_pings = True
        self._meet()
        assert not cluster.node(0).connection.resolve_conflicts
        if not verify:
            self._become_target()
        promotion = cluster.fire(0, "primary")
        self.until("the promotion", lambda: promotion.is_done)
        assert promotion.error is None
        self.app = cluster.serve(0)
        if verify:
            cluster.fire(0, "verify")
        self.until("requests", lambda: self.requests)

    def _meet(self) -> None:
        """As ScriptedPeer.meet, with a verify-alg and a pace."""
        peer = self.peer
        algorithms = b"crc32c".ljust(64, b"\0") + bytes(64)
        pace = struct.pack(">I", RATE_KIB) + algorithms + struct.pack(">4I", 0, 10, 100, 102400)
        peer.accept()
        peer.features()
        peer.parameters(role=PRIMARY, disk=UP_TO_DATE, protocol=peer.protocol(two=1), sync_param89=pace)
        peer.take("P_STATE")
        peer.say("P_STATE", state_word(PRIMARY, CONNECTED, UP_TO_DATE, peer=SECONDARY, pdsk=UP_TO_DATE))
        peer.wait_connected()
        peer.say("P_SYNC_PARAM89", pace)

    def _become_target(self) -> None:
        cluster, peer = self.cluster, self.peer
        peer.say("P_STATE_CHG_REQ", struct.pack(">II", 0xF << 4, STARTING_SYNC_S << 4))
        assert struct.unpack(">i", peer.take("P_STATE_CHG_REPLY"))[0] >= 1
        peer.say("P_SYNC_UUID", struct.pack(">Q", 0xABCDEF0))
        peer.say("P_STATE", state_word(PRIMARY, SYNC_SOURCE, UP_TO_DATE, peer=SECONDARY, pdsk=INCONSISTENT))
        cluster.until(lambda: cluster.volume(0).state.conn == ConnectionState.SYNC_TARGET, 10_000, "SyncTarget")

    @staticmethod
    def request(body: bytes) -> tuple[int, int]:
        sector, _, size = struct.unpack_from(">QQI", body)
        return sector, size

    def look(self) -> None:
        """Sort what the node has sent."""
        self.peer.read()
        packets, self.peer.packets = self.peer.packets, []
        for name, _, body in packets:
            if name in ("P_RS_DATA_REQUEST", "P_OV_REQUEST"):
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

    def until(self, what: str, holds: Callable[[], object]) -> None:
        def now() -> bool:
            self.look()
            return bool(holds())

        self.cluster.until(now, 10_000, what)

    def answer_requests(self) -> None:
        for sector, size in self.requests:
            if self.is_verify:
                self.peer.say("P_OV_REPLY", struct.pack(">QQII", sector, SYNCER, size, 0) + bytes(4))
                continue
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


@pytest.fixture(params=["resync", "verify"])
def node(request: pytest.FixtureRequest) -> Iterator[Asking]:
    require_sim()
    made = Asking(verify=request.param == "verify")
    yield made
    print(made.cluster.tail(100))
    made.cluster.close()


def test_requests_and_own_writes_are_not_under_way_together(node: Asking) -> None:
    assert node.requests
    far = node.cluster.device_bytes // BYTES // 2
    ops = [node.app.submit("write", block * BYTES, BYTES) for block in (far, far, far + 1)]
    node.run(500)
    assert node.writes == []
    for number, block in enumerate((far, far + 1, node.requests[0][0] // SECTORS)):
        node.their_write(block, 70 + number)
    node.until("the acks of their writes", lambda: sorted(node.acks) == [70, 71, 72])
    assert node.writes == []
    for _ in range(3):
        node.answer_requests()
        node.run(30)
    node.until("our writes", lambda: node.writes)
    assert node.requests == []
    node.run(500)
    assert node.requests == []
    while not all(node.cluster.op(op).state for op in ops):
        node.until("the next write", lambda: node.writes)
        assert node.requests == []
        node.answer_write(node.writes.pop(0))
        node.run(20)
        if node.requests:
            node.answer_requests()
    assert all(node.cluster.op(op).error == 0 for op in ops)
    node.until("more requests", lambda: node.requests)
