# SPDX-License-Identifier: Apache-2.0
"""A node of two Primaries beside a scripted one that holds the resolve-conflicts flag, as DRBD's may: it asks that one
for the data of a resync or the digests of a verify.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace

from repl.drbd.states import ConnectionState
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

    def __init__(self, *, verify: bool, asks: bool = True) -> None:
        """``asks``: the requests begin at once."""
        self.is_verify = verify
        self.requests: list[tuple[int, int]] = []
        self.replies: dict[int, bytes] = {}
        self.theirs: dict[int, bytes] = {}
        self.seq = 0
        self.writes: list[bytes] = []
        self.acks: list[int] = []
        self.cluster = cluster = Cluster(5, Setup(net=replace(QUICK_NET, two_primaries=True, verify_alg="md5")))
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
        if verify and asks:
            self.verify()
        if asks:
            self.until("requests", lambda: self.requests)

    def verify(self, **limits: int) -> None:
        self.cluster.fire(0, "verify", **limits)

    def _meet(self) -> None:
        """As ScriptedPeer.meet, with a verify-alg and a pace."""
        peer = self.peer
        algorithms = b"md5".ljust(64, b"\0") + bytes(64)
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
            elif name == "P_OV_REPLY":
                self.replies[self.request(body)[0] // SECTORS] = body[24:]
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

    def content(self, block: int) -> bytes:
        return bytes(self.cluster.shells[0].data.content(block * BYTES, BYTES))

    def digest(self, block: int) -> bytes:
        """Of the peer's block: the same as the node's, if nobody has written there."""
        return hashlib.md5(self.theirs.get(block) or self.content(block)).digest()

    def answer_requests(self) -> None:
        for sector, size in self.requests:
            if self.is_verify:
                digest = self.digest(sector // SECTORS)
                self.peer.say("P_OV_REPLY", struct.pack(">QQII", sector, SYNCER, size, 0) + digest)
                continue
            payload = (THEIRS * -(-size // BYTES))[:size]
            self.peer.say("P_RS_DATA_REPLY", data(sector, payload, block_id=SYNCER, flags=0, seq=0))
        self.requests.clear()

    def their_write(self, block: int, block_id: int) -> None:
        self.seq += 1
        self.theirs[block] = THEIRS
        self.peer.say("P_DATA", data(block * SECTORS, THEIRS, block_id=block_id, flags=WRITE_ACK, seq=self.seq))

    def answer_write(self, body: bytes, name: str = "P_WRITE_ACK") -> None:
        """Carried out, unless the answer says something else."""
        sector, block_id = struct.unpack_from(">QQ", body)
        payload = body[24:]
        self.seq += 1
        self.peer.say_meta(name, ack(sector, block_id, len(payload), self.seq))
        if name == "P_WRITE_ACK":
            for at in range(0, len(payload), BYTES):
                self.theirs[(sector + at // 512) // SECTORS] = payload[at : at + BYTES]
