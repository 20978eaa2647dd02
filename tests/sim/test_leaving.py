# SPDX-License-Identifier: Apache-2.0
"""Two nodes part: who was asked closes its sockets first, and a demotion just then leaves no trace.

A kernel that sees the end of its meta socket before it has closed its own says "meta connection shut down by peer".
"""

from __future__ import annotations

import struct

import pytest

from repl.drbd.states import ConnectionState, Role
from repl.drbd.uuids import base
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.peer_stage import SECONDARY, PeerStage


def reply(code: int) -> bytes:
    return struct.pack(">i", code)


@pytest.mark.parametrize("verb", ["disconnect", "down"])
@pytest.mark.parametrize("peer_closes", [True, False], ids=["closes", "does-not-close"])
def test_node_that_leaves_lets_its_peer_close_first(verb: str, peer_closes: bool) -> None:
    require_sim()
    stage = PeerStage(serves=False, setup=Setup(net=QUICK_NET))
    cluster, peer = stage.cluster, stage.peer
    with cluster:
        peer.answers_pings = True
        peer.meet(role=SECONDARY)
        answer = cluster.fire(0, verb)
        peer.take("P_CONN_ST_CHG_REQ")
        peer.say_meta("P_CONN_ST_CHG_REPLY", reply(1))
        cluster.run(QUICK_NET.ping_timeout_ms * 0.8)
        assert not peer.has_ended(), "the node has closed before its peer"
        assert not answer.is_done
        if peer_closes:
            peer.close()
            cluster.until(lambda: answer.is_done, 50, "the end of the command")
        else:
            cluster.until(peer.has_ended, QUICK_NET.ping_timeout_ms, "the node waits no longer than for a ping")
            cluster.until(lambda: answer.is_done, 1000, "the end of the command")
        if verb == "disconnect":
            assert cluster.node(0).cstate == ConnectionState.STANDALONE, cluster.describe()
            assert cluster.node(0).connection.last_loss == "disconnected"


def test_demotion_that_is_under_way_when_the_peer_leaves_makes_no_generation() -> None:
    require_sim()
    with Cluster(5, Setup(net=QUICK_NET, external=True)) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        app.write(1, 2)
        app.stop()
        pair.until(lambda: pair.volume(0).open_count == 0, 5000, "the client's end")
        before = base(pair.volume(0).uuids.current)
        pair.shells[0].places[0].md.hold()
        demotion = pair.fire(0, "secondary")
        pair.until(lambda: pair.node(0).role == Role.SECONDARY, 5000, "it is being written")
        pair.cut()
        pair.world.lib.re_sim_net_reset(pair.world.sim, 0, 1)
        pair.run(50)
        assert not demotion.is_done
        pair.shells[0].places[0].md.release()
        pair.until(lambda: not pair.node(0).is_connected and demotion.is_done, 5000, "both")
        assert (base(pair.volume(0).uuids.current), pair.volume(0).uuids.bitmap) == (before, 0)
        pair.until(lambda: not pair.node(1).is_connected, 5000, "the loss on the other node")
        other = pair.serve(1)
        other.write(3)
        pair.heal()
        pair.until(lambda: pair.in_sync, 20_000, "no split brain")
        other.stop()
        pair.check_idle_pair()
