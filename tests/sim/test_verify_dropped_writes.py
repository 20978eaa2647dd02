# SPDX-License-Identifier: Apache-2.0
"""Online verify with two Primaries: a write of ours that DRBD's node has dropped (P_RETRY_WRITE) is on our disk alone
until it is sent again.  It is no difference.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

import pytest

from tests.lib.tools import require_sim
from tests.sim.asking import BYTES, SECTORS, SYNCER, Asking

VERIFY_S = 18
BLOCKS = 48


@pytest.fixture
def node() -> Iterator[Asking]:
    require_sim()
    made = Asking(verify=True, asks=False)
    yield made
    print(made.cluster.tail(100))
    made.cluster.close()


def drop_the_next(node: Asking, first: int) -> None:
    """Our write has come; one of theirs to its first block has crossed it."""
    node.until("our write", lambda: node.writes)
    node.run(300)  # a verify that wants to ask has it wait for its turn now
    assert not node.requests and not node.replies
    node.their_write(first, 70)
    node.run(20)
    node.answer_write(node.writes.pop(0), "P_RETRY_WRITE")
    node.until("their write is carried out", lambda: node.acks)


def test_a_verify_of_ours_waits_until_it_was_sent_again(node: Asking) -> None:
    planted = 30
    node.theirs[planted] = b"other" * 819 + b"."
    node.verify(start_sector=0, stop_sector=BLOCKS * SECTORS)
    node.until("requests", lambda: node.requests)
    first = node.requests[-1][0] // SECTORS + 1
    op = node.app.submit("write", first * BYTES, 2 * BYTES)
    node.run(20)
    node.answer_requests()
    drop_the_next(node, first)
    node.until("the write or requests", lambda: node.writes or node.requests)
    assert node.writes, "the verify has asked before"
    node.run(300)
    assert not node.requests

    def is_over() -> bool:
        while node.writes:
            node.answer_write(node.writes.pop(0))
        node.answer_requests()
        return bool(node.cluster.node(0).verify.reports[0].state == "complete")

    node.until("the end of the verify", is_over)
    assert node.cluster.op(op).state and node.cluster.op(op).error == 0
    assert node.cluster.node(0).verify.reports[0].ranges == [[planted * SECTORS, SECTORS]]


def test_a_verify_of_theirs_is_answered_when_it_was_sent_again(node: Asking) -> None:
    first = 8
    node.peer.say("P_STATE_CHG_REQ", struct.pack(">II", 0x1F << 4, VERIFY_S << 4))
    assert struct.unpack(">i", node.peer.take("P_STATE_CHG_REPLY"))[0] >= 1
    node.app.submit("write", first * BYTES, 2 * BYTES)
    node.until("our write", lambda: node.writes)
    for block in (first, first + 1, first + 2):
        node.peer.say("P_OV_REQUEST", struct.pack(">QQII", block * SECTORS, SYNCER, BYTES, 0))
    drop_the_next(node, first)
    node.until("the write again", lambda: node.writes)
    assert not node.replies, "the digest has what is only here"
    node.answer_write(node.writes.pop(0))
    node.until("the digests", lambda: len(node.replies) == 3)
    assert node.replies == {block: node.digest(block) for block in (first, first + 1, first + 2)}
    assert node.replies[first + 1] == hashlib.md5(node.theirs[first + 1]).digest()


# ---- I/O is suspended by order while such a write is to be sent again: both wait, and nobody for ever ----

LONG_S = 60


def suspend(node: Asking) -> None:
    done = node.cluster.fire(0, "suspend-io")
    node.until("the suspension", lambda: done.is_done)
    assert done.error is None


def check_waits(node: Asking) -> None:
    for _ in range(LONG_S):
        node.run(1000)  # pings are answered
    assert not node.writes and not node.requests and not node.replies
    assert node.cluster.node(0).is_connected


def resume(node: Asking) -> None:
    node.cluster.fire(0, "resume-io")
    node.until("the write again", lambda: node.writes)
    node.answer_write(node.writes.pop(0))


@pytest.mark.parametrize("order", ["resume-io", "verify-abort", "disconnect"])
def test_a_verify_of_ours_goes_on_or_ends_when_io_was_suspended(node: Asking, order: str) -> None:
    words = {"force": True} if order == "disconnect" else {}
    node.verify(start_sector=0, stop_sector=BLOCKS * SECTORS)
    node.until("requests", lambda: node.requests)
    first = node.requests[-1][0] // SECTORS + 1
    node.app.submit("write", first * BYTES, 2 * BYTES)
    node.run(20)
    node.answer_requests()
    node.until("our write", lambda: node.writes)
    node.run(300)
    node.their_write(first, 70)
    node.run(20)
    suspend(node)
    node.answer_write(node.writes.pop(0), "P_RETRY_WRITE")
    check_waits(node)
    report = node.cluster.node(0).verify.reports[0]
    assert report.state == "running"
    if order == "resume-io":
        resume(node)
    else:
        node.cluster.fire(0, order, **words)

    def is_over() -> bool:
        node.answer_requests()
        return bool(node.cluster.node(0).verify.reports[0].state != "running")

    node.until("the end of the verify", is_over)
    assert (node.cluster.node(0).verify.reports[0].state == "complete") == (order == "resume-io")


def test_a_verify_of_theirs_is_answered_when_io_goes_on(node: Asking) -> None:
    first = 8
    node.peer.say("P_STATE_CHG_REQ", struct.pack(">II", 0x1F << 4, VERIFY_S << 4))
    assert struct.unpack(">i", node.peer.take("P_STATE_CHG_REPLY"))[0] >= 1
    node.app.submit("write", first * BYTES, 2 * BYTES)
    node.until("our write", lambda: node.writes)
    node.their_write(first, 70)
    node.run(20)
    suspend(node)
    node.answer_write(node.writes.pop(0), "P_RETRY_WRITE")
    node.peer.say("P_OV_REQUEST", struct.pack(">QQII", first * SECTORS, SYNCER, BYTES, 0))
    check_waits(node)
    resume(node)
    node.until("the digest", lambda: node.replies)
    assert node.replies == {first: node.digest(first)}
