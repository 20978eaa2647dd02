# SPDX-License-Identifier: Apache-2.0
"""Two Primaries: a scripted node holds the resolve-conflicts flag and discards our writes, as DRBD does.

P_SUPERSEDED: ours is complete, the other node's data remains.  P_RETRY_WRITE: the other node's is written first, then
ours is sent again.  The barrier of an epoch with discarded writes is never acknowledged.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from repl.drbd.states import DiskState
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.scripted_peer import ScriptedPeer, ack, data

BYTES = 4096
SECTORS = BYTES // 512
THEIRS = bytes([0xA5]) * BYTES
PRIMARY = 1
FLUSH, WRITE_ACK = 1 << 5, 1 << 8


class Sent:
    """A P_DATA of the node."""

    def __init__(self, body: bytes) -> None:
        self.sector, self.block_id, _, self.flags = struct.unpack_from(">QQII", body)
        self.payload = body[24:]


class Pair:
    """A serving node and a scripted Primary with the flag."""

    def __init__(self) -> None:
        self.cluster = cluster = Cluster(5, Setup(net=replace(QUICK_NET, two_primaries=True)))
        cluster.connect_fresh()
        cluster.ask(1, "down")
        cluster.until(lambda: not cluster.shells[1].is_running, 5000, "the end of the node that the peer plays")
        self.peer = ScriptedPeer(cluster)
        self.peer.answers_pings = True
        self.app = cluster.serve(0)
        self.peer.accept()
        self.peer.introduce(role=PRIMARY, node_role=PRIMARY, two=True)
        cluster.until(lambda: cluster.state(0)[3] == DiskState.UP_TO_DATE, 5000, "replication")
        assert not cluster.node(0).connection.resolve_conflicts
        self.seq = 0

    def write(self, block: int, blocks: int = 1) -> tuple[int, Sent]:
        op = self.app.submit("write", block * BYTES, blocks * BYTES)
        return op, Sent(self.peer.take("P_DATA"))

    def their_write(self, block: int, block_id: int) -> None:
        self.seq += 1
        self.peer.say("P_DATA", data(block * SECTORS, THEIRS, block_id=block_id, flags=WRITE_ACK, seq=self.seq))

    def answer(self, name: str, sent: Sent) -> None:
        self.seq += 1
        self.peer.say_meta(name, ack(sent.sector, sent.block_id, len(sent.payload), self.seq))

    def their_ack(self) -> int:
        """The block id of the next write of theirs that the node has carried out."""
        return int(struct.unpack_from(">QQ", self.peer.take("P_WRITE_ACK"))[1])

    def acknowledge_barrier(self, count: int) -> None:
        number = self.peer.take("P_BARRIER")[:4]
        self.peer.say_meta("P_BARRIER_ACK", number + struct.pack(">I", count))

    def is_done(self, op: int) -> bool:
        return self.cluster.op(op).state != 0

    def wait(self, op: int) -> None:
        self.cluster.until(lambda: self.is_done(op), 5000, "the answer to the application")
        assert self.cluster.op(op).error == 0

    def content(self, block: int) -> bytes:
        return bytes(self.cluster.shells[0].data.content(block * BYTES, BYTES))

    def wait_released(self) -> None:
        engine = self.cluster.node(0).stats.engine_stats
        self.cluster.until(lambda: engine().transfer_log == 0, 10_000, "an empty transfer log")


@pytest.fixture
def pair() -> Iterator[Pair]:
    require_sim()
    made = Pair()
    yield made
    print(made.cluster.tail(100))
    made.cluster.close()


def test_superseded_write_is_complete_and_their_data_remains(pair: Pair) -> None:
    op, sent = pair.write(4)
    pair.their_write(4, 77)
    pair.answer("P_SUPERSEDED", sent)
    pair.wait(op)
    assert pair.their_ack() == 77
    assert pair.content(4) == THEIRS


@pytest.mark.parametrize("answer_first", [True, False])
def test_write_to_be_retried_comes_again_after_theirs(pair: Pair, answer_first: bool) -> None:
    op, sent = pair.write(4, 2)
    if answer_first:
        pair.answer("P_RETRY_WRITE", sent)
        sent = Sent(pair.peer.take("P_DATA"))  # nothing of theirs is there yet: it crosses once more
    pair.their_write(4, 77)
    pair.cluster.run(100)
    assert not pair.is_done(op)
    pair.answer("P_RETRY_WRITE", sent)
    again = Sent(pair.peer.take("P_DATA"))
    assert (again.sector, again.payload) == (sent.sector, sent.payload)
    assert not pair.is_done(op)
    pair.answer("P_WRITE_ACK", again)
    pair.wait(op)
    assert pair.content(4) == sent.payload[:BYTES]


def test_retried_again_and_again_it_is_still_sent(pair: Pair) -> None:
    op, sent = pair.write(4)
    for number in range(20):
        pair.their_write(4, number + 1)
        pair.answer("P_RETRY_WRITE", sent)
        sent = Sent(pair.peer.take("P_DATA"))
    pair.answer("P_WRITE_ACK", sent)
    pair.wait(op)
    assert pair.content(4) == sent.payload


def test_barrier_of_a_discarded_write_is_released_by_a_later_one(pair: Pair) -> None:
    first, kept = pair.write(8)
    op, sent = pair.write(4)
    pair.their_write(4, 77)
    pair.answer("P_SUPERSEDED", sent)
    pair.answer("P_WRITE_ACK", kept)
    pair.wait(op)
    pair.wait(first)
    pair.peer.take("P_BARRIER")  # one of its two writes was discarded: it is never acknowledged
    flush = Sent(pair.peer.take("P_DATA"))  # nothing else follows, so the node sends an empty write
    assert flush.payload == b"" and flush.flags & FLUSH
    pair.answer("P_WRITE_ACK", flush)
    pair.acknowledge_barrier(1)
    pair.wait_released()


def test_epoch_of_which_all_was_discarded_needs_no_ack(pair: Pair) -> None:
    op, sent = pair.write(4)
    pair.their_write(4, 77)
    pair.answer("P_SUPERSEDED", sent)
    pair.wait(op)
    pair.wait_released()
