# SPDX-License-Identifier: Apache-2.0
"""Two Primaries, DRBD's node verifies: it reads its own block after our digest has come, and our next write to it may
be there first.  So that waits for the verdict; a write of DRBD's node does not (decision 0026).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.lib.tools import require_sim
from tests.sim.asking import BYTES, SECTORS, SYNCER, Asking
from tests.sim.cluster import QUICK_NET
from tests.sim.scripted_peer import ack

VERIFY_S = 18
IN_SYNC = 4711
BLOCK, NEIGHBOUR = 8, 20


@pytest.fixture
def node() -> Iterator[Asking]:
    """It has answered for one block, and an own write to it has come since."""
    require_sim()
    made = Asking(verify=True, asks=False)
    peer = made.peer
    peer.say("P_STATE_CHG_REQ", struct.pack(">II", 0x1F << 4, VERIFY_S << 4))
    assert struct.unpack(">i", peer.take("P_STATE_CHG_REPLY"))[0] >= 1
    peer.say("P_OV_REQUEST", struct.pack(">QQII", BLOCK * SECTORS, SYNCER, BYTES, 0))
    made.until("the digest", lambda: made.replies)
    made.app.submit("write", BLOCK * BYTES, BYTES)
    made.app.submit("write", NEIGHBOUR * BYTES, BYTES)
    made.until("the write beside it", lambda: made.writes)
    yield made
    made.cluster.close()


def places(node: Asking) -> list[int]:
    return [struct.unpack_from(">Q", body)[0] // SECTORS for body in node.writes]


def test_our_write_waits_for_the_verdict(node: Asking) -> None:
    node.run(QUICK_NET.timeout_ms / 2)
    assert places(node) == [NEIGHBOUR]
    assert node.replies == {BLOCK: node.digest(BLOCK)}
    node.peer.say_meta("P_OV_RESULT", ack(BLOCK * SECTORS, IN_SYNC, BYTES, 1))
    node.until("our write", lambda: BLOCK in places(node))


def test_our_write_does_not_wait_for_a_verdict_that_never_comes(node: Asking) -> None:
    node.run(QUICK_NET.timeout_ms + 500)
    assert BLOCK in places(node)


def test_a_write_of_theirs_waits_for_no_verdict_of_theirs(node: Asking) -> None:
    node.their_write(BLOCK, 70)
    node.run(QUICK_NET.timeout_ms / 2)
    assert len(node.acks) == 1
