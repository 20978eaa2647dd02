# SPDX-License-Identifier: Apache-2.0
"""What the random scenario's oracle lets a copy lack, in sequences that seeds seldom draw."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.lib.tools import require_sim

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.oracle import Oracle


def node_dies(cluster: Cluster, oracle: Oracle, node: int, *, power: bool) -> None:
    """With its disk's cache, or its process alone."""
    if power:
        cluster.shells[node].power_off()
        oracle.power_lost(node)
    else:
        cluster.shells[node].crash()
        oracle.process_died(node)


def test_second_death_of_a_former_primary_changes_nothing_of_what_its_peer_has_taken_over() -> None:
    """Until somebody is served, both have what the first power loss has left, in the order of the lost cache."""
    require_sim()
    from tests.sim.cluster import QUICK_NET, Cluster, Load, Setup
    from tests.sim.oracle import Oracle
    from tests.sim.world import FLUSHED, STRICT

    for seed, power in ((1, True), (2, True), (3, False), (4, False)):
        with Cluster(seed, Setup(net=replace(QUICK_NET, protocol=1))) as cluster:
            cluster.connect_fresh()
            oracle = Oracle(cluster)
            oracle.begin()
            cluster.ask(0, "primary")
            oracle.take_over(0)
            app = cluster.serve(0)
            app.load(Load(think_max_ms=3, queue_depth=4, read_percent=20))
            cluster.run(300)
            node_dies(cluster, oracle, 0, power=power)
            cluster.restart(0)
            cluster.until(lambda c=cluster: c.in_sync, 30_000, "the content of node 0 on both")
            cluster.shells[0].crash()
            oracle.process_died(0)
            cluster.until(lambda c=cluster: not c.node(1).is_connected, 20_000, "the second loss")
            cluster.ask(1, "primary")
            assert oracle.volumes[0].mode(1) == (FLUSHED if power else STRICT)
            oracle.take_over(1)  # audits


def test_disk_that_a_primary_has_let_go_is_audited_for_what_it_had_then() -> None:
    """Both die; what the peer has alone acknowledged since counts when that one is asked, not the other."""
    require_sim()
    from tests.sim.cluster import Cluster, Load
    from tests.sim.oracle import Oracle
    from tests.sim.world import ACKED, CAUSAL

    for server in (0, 1):
        with Cluster(server) as cluster:
            cluster.connect_fresh()
            oracle = Oracle(cluster)
            oracle.begin()
            cluster.ask(0, "primary")
            oracle.take_over(0)
            app = cluster.serve(0)
            app.load(Load(think_max_ms=3, queue_depth=4, read_percent=20))
            cluster.run(100)
            cluster.ask(0, "detach", volume=0)
            cluster.run(100)
            for node in (0, 1):
                oracle.process_died(node)
                cluster.shells[node].crash()
            cluster.restart(server)
            cluster.ask(server, "primary")
            assert oracle.volumes[0].mode(server) == (ACKED if server else CAUSAL)
            oracle.take_over(server)  # audits


def test_volumes_have_one_order_of_writes_until_one_of_them_loses_its_disk() -> None:
    """What a failed flush takes with it was acknowledged before that which the other volume got afterwards."""
    require_sim()
    from tests.sim.cluster import QUICK_NET, Cluster, Setup
    from tests.sim.oracle import Oracle
    from tests.sim.world import BLOCK, CAUSAL

    with Cluster(5, Setup(net=replace(QUICK_NET, protocol=1), volumes=2)) as cluster:
        cluster.connect_fresh()
        oracle = Oracle(cluster)
        oracle.begin()
        cluster.ask(0, "primary")
        oracle.take_over(0)
        apps = [cluster.serve(0, number) for number in cluster.numbers]
        for number in cluster.numbers:
            cluster.ask(0, "detach", volume=number)
        oracle.disk_fault(1, 0)
        disk = cluster.shells[1].data
        disk.settings(flush_error_ppm=1_000_000, flush_min_ns=50_000_000)
        ops = [apps[0].submit("write", block * BLOCK) for block in range(8)]
        cluster.until(lambda: cluster.state(1, 0)[2] < 4, 5000, "the disk of the first volume is lost")
        disk.heal()
        assert any(cluster.op(op).state == cluster.world.lib.RE_SIM_OP_DONE for op in ops)
        cluster.until(lambda: cluster.connected and cluster.state(0, 1)[3] == 8, 20_000, "the second one is there")
        apps[1].write(*range(8))
        for app in apps:
            app.stop()
        cluster.world.lib.re_sim_disk_power_loss(cluster.world.sim, disk.number)
        oracle.cache_lost(1)
        cluster.ask(1, "attach", volume=0)
        cluster.until(lambda: cluster.state(0, 0)[3] == 8, 20_000, "the disk is back")
        assert [volume.mode(1) for volume in oracle.volumes] == [CAUSAL, CAUSAL]
        oracle.take_over(0)  # audits


def test_power_that_a_target_loses_before_its_source_has_seen_it_finished_is_not_forgotten() -> None:
    """The Primary takes it for good when it is gone already; what it confirmed may have been in its cache only."""
    require_sim()
    from repl.drbd.states import DiskState
    from tests.sim.cluster import QUICK_NET, Cluster, Load, Setup
    from tests.sim.oracle import Oracle

    with Cluster(6, Setup(net=QUICK_NET)) as cluster:
        cluster.connect_fresh()
        oracle = Oracle(cluster)
        oracle.begin()
        cluster.ask(1, "primary")
        oracle.take_over(1)
        app = cluster.serve(1)
        cluster.ask(0, "disconnect")
        app.load(Load(think_max_ms=3, queue_depth=4, read_percent=20))
        cluster.run(300)
        cluster.world.net(latency_min_ns=60_000_000, latency_max_ns=60_000_000)
        cluster.ask(0, "connect")
        cluster.until(lambda: cluster.state(0)[2] == DiskState.INCONSISTENT, 30_000, "a resync towards node 0")
        cluster.until(lambda: cluster.state(0)[2] == DiskState.UP_TO_DATE, 30_000, "its end, as the target sees it")
        cluster.run(40)  # its word is on the way
        assert cluster.state(1)[3] == DiskState.INCONSISTENT
        cluster.shells[0].power_off()
        oracle.power_lost(0)
        cluster.until(lambda: cluster.state(1)[3] == DiskState.UP_TO_DATE, 10_000, "its end, as the source sees it")
        assert oracle.volumes[0].holders == {0, 1}
        assert oracle.volumes[0].lost_power[0]


def test_loser_of_a_split_brain_that_is_promoted_in_its_resync_may_lack_what_it_had_acknowledged() -> None:
    """It reads from the winner then, and whoever served last has lost (seed 9948373)."""
    require_sim()
    from repl.drbd.split_brain import AfterSplitBrain
    from repl.drbd.states import DiskState
    from tests.sim.cluster import QUICK_NET, Cluster, Load, Setup
    from tests.sim.oracle import Oracle
    from tests.sim.world import ACKED, TAGS

    policy = int(AfterSplitBrain.DISCARD_LEAST_CHANGES)
    with Cluster(1, Setup(net=replace(QUICK_NET, after_sb_0pri=policy))) as cluster:
        cluster.connect_fresh()
        oracle = Oracle(cluster)
        oracle.begin()
        cluster.ask(0, "disconnect")
        for node, milliseconds in ((1, 300), (0, 30)):
            cluster.ask(node, "primary")
            oracle.take_over(node)
            app = cluster.serve(node)
            app.load(Load(think_max_ms=3, queue_depth=4, read_percent=0))
            cluster.run(milliseconds)
            app.stop()
            cluster.ask(node, "secondary")
        cluster.ask(0, "connect")
        cluster.until(lambda: cluster.state(0)[2] == DiskState.INCONSISTENT, 30_000, "a resync towards node 0")
        cluster.ask(0, "primary")
        assert oracle.volumes[0].mode(1) == TAGS
        oracle.take_over(0)  # audits
        assert oracle.volumes[0].mode(1) == ACKED


@pytest.mark.parametrize("power", [True, False], ids=["power", "process"])
@pytest.mark.parametrize("then", ["peer-power", "peer-power-before", "peer-resyncs-it"])
def test_primary_that_comes_back_as_the_source_decides_what_both_have(power: bool, then: str) -> None:
    """Its disk may have failed meanwhile, its peer had everything and is overwritten: what befalls that one does not
    count any more (pass_on seed 7772)."""
    require_sim()
    from tests.sim.cluster import QUICK_NET, Cluster, Load, Setup
    from tests.sim.oracle import Oracle
    from tests.sim.world import ACKED, CAUSAL, FLUSHED, STRICT, TAGS, SimFailure

    setup = Setup(net=replace(QUICK_NET, strict_flush=False), overrides={"on_io_error": "pass_on"})
    with Cluster(1, setup) as cluster:
        cluster.connect_fresh()
        oracle = Oracle(cluster)
        oracle.begin()
        cluster.ask(0, "primary")
        oracle.take_over(0)
        app = cluster.serve(0)
        app.load(Load(think_max_ms=3, queue_depth=4, read_percent=0))
        cluster.run(300)
        node_dies(cluster, oracle, 0, power=power)
        oracle.disk_fault(0, 0)  # that nothing meets
        oracle.disk_healed(0)
        if then == "peer-power-before":
            cluster.shells[1].power_off()
            oracle.power_lost(1)
        for node in (0, 1):
            cluster.restart(node)
        cluster.until(lambda: cluster.in_sync, 30_000, "the content of node 0 on both")
        if then == "peer-power":
            cluster.shells[1].power_off()
            oracle.power_lost(1)
            cluster.restart(1)
        elif then == "peer-resyncs-it":
            cluster.ask(0, "invalidate", volume=0)
            cluster.until(lambda: not cluster.in_sync, 5000, "a resync of node 0")
        cluster.until(lambda: cluster.in_sync, 30_000, "in sync")
        for mode in (ACKED, CAUSAL) if power else ():  # what was in the lost cache had no order
            with pytest.raises(SimFailure):
                cluster.check_audit(0, mode)
        cluster.check_audit(0, FLUSHED if power else STRICT)
        expected = TAGS if power or then == "peer-power-before" else CAUSAL
        assert [oracle.volumes[0].mode(node) for node in (0, 1)] == [expected] * 2
        cluster.ask(0, "primary")
        oracle.take_over(0)  # audits
