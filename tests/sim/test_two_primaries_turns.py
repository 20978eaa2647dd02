# SPDX-License-Identifier: Apache-2.0
"""Two Primaries, a resync from DRBD's node or a verify of it, which holds the resolve-conflicts flag.

It receives nothing more while such a request of ours waits for its own writes to the same extent, which may wait here
for ours: so our requests and our writes are never under way together.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lib.tools import require_sim
from tests.sim.asking import BYTES, SECTORS, Asking


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
