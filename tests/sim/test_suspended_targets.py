# SPDX-License-Identifier: Apache-2.0
"""A suspended Primary whose data came, or comes, from its peer by a resync: what it may send again, and to whom."""

from __future__ import annotations

from dataclasses import replace

from repl.drbd.states import ConnectionState, DiskState, Role
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, App, Cluster, Setup
from tests.sim.world import BLOCK

C, D = ConnectionState, DiskState


def target(**net: object) -> tuple[Cluster, App]:
    """Node 1 is Primary and target of a resync of a few blocks that stands still."""
    require_sim()
    setup = Setup(net=replace(QUICK_NET, **net), on_no_data="suspend-io")  # type: ignore[arg-type]
    cluster = Cluster(11, setup)
    cluster.connect_fresh()
    before = cluster.serve(0)
    before.write(*range(8))
    cluster.ask(1, "disconnect")
    before.write(0, 1, 2, 3)
    before.stop()
    cluster.ask(1, "pause-sync", volume=0)
    cluster.ask(0, "secondary")
    cluster.ask(1, "connect")
    cluster.until(lambda: cluster.state(1)[1] == C.PAUSED_SYNC_T, 10_000, "a resync that is paused")
    return cluster, cluster.serve(1)


def test_source_that_has_missed_the_end_follows_the_primary() -> None:
    """Nobody may throw away what the Primary has acknowledged, and what it has not is not lost."""
    cluster, app = target()
    with cluster:
        cluster.shells[0].data.hold()
        cluster.ask(1, "resume-sync", volume=0)
        cluster.until(lambda: cluster.shells[0].data.in_flight > 0, 5000, "the source reads")
        cluster.run(10)
        said = cluster.world.streams(1)
        cluster.fire(1, "suspend-io")
        cluster.run(10)
        write = app.submit("write", 20 * BLOCK)
        for fd in said:  # the one for data; on the other one nothing but the acknowledgement of a ping is missing
            cluster.world.lib.re_sim_socket_hold(cluster.world.sim, fd, fd == min(said))
        cluster.shells[0].data.release()
        cluster.until(lambda: cluster.state(1)[2] == D.UP_TO_DATE, 5000, "the end of the resync")
        assert cluster.state(0)[1] == C.SYNC_SOURCE, "it has not heard of it"
        cluster.world.lib.re_sim_net_reset(cluster.world.sim, 0, 1)
        cluster.until(lambda: not cluster.node(1).is_connected, 20_000, "the loss of the source")
        cluster.until(lambda: cluster.connected, 20_000, "the source again")
        cluster.ask(1, "resume-io")
        cluster.until(lambda: cluster.in_sync, 20_000, "in sync")
        cluster.until(lambda: cluster.op(write).state == cluster.world.lib.RE_SIM_OP_DONE, 5000, "the write")
        app.stop()
        cluster.check_idle_pair()


def test_nothing_is_sent_again_to_a_peer_that_has_served_others() -> None:
    """What applications have seen there is not there any more: nobody writes on top of it."""
    cluster, app = target(protocol=1)
    with cluster:
        cluster.shells[0].data.settings(flush_min_ns=10**9, flush_max_ns=2 * 10**9)
        app.write(6)
        cluster.world.lib.re_sim_net_reset(cluster.world.sim, 0, 1)
        cluster.cut(silent=False)
        cluster.until(lambda: not cluster.node(1).is_connected, 20_000, "the loss of the source")
        waits = app.submit("write", 7 * BLOCK)
        cluster.until(lambda: not cluster.node(0).is_connected, 20_000, "the loss of the target")
        other = cluster.serve(0)
        other.write(6, 7)
        other.stop()
        cluster.ask(0, "secondary")
        cluster.heal()
        cluster.until(lambda: cluster.state(1)[1] == C.STANDALONE, 20_000, "the refusal")
        assert "generation" in cluster.node(1).reason, cluster.node(1).reason
        assert cluster.op(waits).state == cluster.world.lib.RE_SIM_OP_PENDING
        app.leave(orderly=False)
        cluster.ask(1, "resume-io")  # without data: with an error
        cluster.until(lambda: not cluster.volume(1).open_count, 5000, "the end of the application")
        cluster.ask(1, "secondary")
        cluster.ask(1, "connect")
        cluster.until(lambda: cluster.connected, 20_000, "the connection")
        cluster.ask(1, "resume-sync", volume=0)
        assert cluster.node(1).role == Role.SECONDARY
        cluster.check_idle_pair()
