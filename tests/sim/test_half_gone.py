# SPDX-License-Identifier: Apache-2.0
"""One of the two sockets of a link ends: the other one is given a ping's time, however much goes on meanwhile."""

from __future__ import annotations

from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Setup
from tests.sim.peer_stage import PRIMARY, PeerStage
from tests.sim.scripted_peer import data

STEP_MS = 20


def test_peer_that_goes_on_writing_without_its_meta_socket_is_lost() -> None:
    require_sim()
    stage = PeerStage(serves=False, setup=Setup(net=QUICK_NET))
    cluster, peer = stage.cluster, stage.peer
    with cluster:
        peer.meet(role=PRIMARY)
        cluster.world.lib.re_sim_socket_reset(cluster.world.sim, peer.meta)
        peer.ended.add(peer.meta)
        limit = 2 * QUICK_NET.ping_timeout_ms // STEP_MS
        steps = 0
        while not peer.has_ended() and steps < limit:
            steps += 1
            peer.say("P_DATA", data(steps * 8, bytes(4096), block_id=steps, seq=steps))  # its ack cannot leave
            cluster.run(STEP_MS)
        assert steps < limit, "each ack that waits has put the loss off"
        assert "the peer closed the connection" in "".join(cluster.events(0))
