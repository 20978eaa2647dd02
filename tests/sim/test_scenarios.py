# SPDX-License-Identifier: Apache-2.0
"""What two nodes do, one sentence a test: the simulator's named scenarios."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from repl.drbd.states import ConnectionState, DiskState, Role
from repl.engine.commands import Resync
from repl.errors import ReplError
from repl.node import disk as node_disk
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, App, Cluster, Load, Setup
from tests.sim.world import ACKED, BLOCK, CAUSAL, FLUSHED, MIB, STRICT

SLOW_RESYNC = Resync(resync_rate_kib=512, plan_ahead=0, max_rate_kib=512, min_rate_kib=0)
PROTOCOLS = pytest.mark.parametrize("protocol", [1, 2, 3], ids="ABC")


class Clusters:
    """Makes clusters that are closed at the end; the first one's log is printed if the test fails."""

    def __init__(self) -> None:
        self.made: list[Cluster] = []

    def __call__(self, seed: int = 1, **settings: Any) -> Cluster:
        cluster = Cluster(seed, Setup(**settings))
        self.made.append(cluster)
        return cluster


@pytest.fixture
def clusters() -> Iterator[Clusters]:
    require_sim()
    made = Clusters()
    yield made
    for cluster in made.made:
        print(cluster.tail(100))
        cluster.close()


def in_sync(clusters: Clusters, **settings: Any) -> Cluster:
    """A pair in sync."""
    cluster = clusters(**settings)
    cluster.connect_fresh()
    return cluster


def served(clusters: Clusters, **settings: Any) -> tuple[Cluster, App]:
    """A pair in sync with an application on node 0."""
    cluster = in_sync(clusters, **settings)
    return cluster, cluster.serve(0)


def work(cluster: Cluster, app: App, ms: float, **load: Any) -> None:
    """The application works for a while, and everything is answered at the end."""
    lib, sim = cluster.world.lib, cluster.world.sim
    app.load(Load(**load))
    cluster.run(ms)
    lib.re_sim_workload_stop(sim, app.number)
    cluster.until(lambda: app.is_idle or app.is_closed, 30_000, "the last answers")


def resynced_blocks(cluster: Cluster, node: int) -> int:
    """How many blocks the last resync had to move."""
    stats = cluster.node(node).stats.volume_stats(0)
    assert stats is not None
    return stats.resync_total_bits


def cut_off(cluster: Cluster) -> None:
    cluster.cut(silent=False)
    cluster.until(lambda: not cluster.node(0).is_connected, 20_000, "the loss on node 0")
    cluster.until(lambda: not cluster.shells[1].is_running or not cluster.node(1).is_connected, 20_000, "on node 1")


def rejoin(cluster: Cluster) -> None:
    cluster.heal()
    cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")


# ---- the first sync ----


def test_initial_full_sync_copies_every_block_of_the_forced_primary(clusters: Clusters) -> None:
    cluster = clusters()
    for node in (0, 1):  # what lay on the disks before
        disk = cluster.shells[node].data
        disk.load(0, bytes([node + 1]) * (cluster.device_bytes // 2))
    cluster.start()
    cluster.until(lambda: cluster.connected, 30_000, "the first connection")
    assert cluster.state(0)[2] == cluster.state(1)[2] == DiskState.INCONSISTENT
    with pytest.raises(ReplError, match="no UpToDate data"):
        cluster.ask(0, "primary")
    cluster.ask(0, "primary", force=True)
    cluster.until(lambda: cluster.in_sync, 60_000, "the first sync")
    assert resynced_blocks(cluster, 1) == -(-cluster.device_bytes // BLOCK)
    cluster.wait_idle()
    cluster.check_equal()
    assert cluster.shells[1].data.content(0, 1) == b"\x01"


def test_initial_sync_is_skipped_by_a_new_generation_with_clear_bitmap(clusters: Clusters) -> None:
    cluster = clusters()
    cluster.connect_fresh(skip_initial_sync=True)
    assert resynced_blocks(cluster, 0) == resynced_blocks(cluster, 1) == 0
    cluster.check_idle_pair()
    assert cluster.volume(0).uuids == cluster.volume(1).uuids


# ---- replication ----


@PROTOCOLS
def test_written_data_is_on_both_disks_when_the_pair_is_idle(clusters: Clusters, protocol: int) -> None:
    cluster, app = served(clusters, net=replace(QUICK_NET, protocol=protocol))
    work(cluster, app, 2000)
    assert app.stats.completed > 50 and not app.stats.failed
    cluster.check_idle_pair()


def test_cut_costs_a_resync_of_what_was_written_meanwhile_only(clusters: Clusters) -> None:
    cluster, app = served(clusters, disk_bytes=8 * MIB)
    app.write(*range(100))
    cut_off(cluster)
    app.write(200, 201, 900)
    rejoin(cluster)
    assert resynced_blocks(cluster, 1) == 3
    cluster.check_idle_pair()


def test_writes_in_flight_at_a_reset_reach_the_peer_with_the_resync(clusters: Clusters) -> None:
    cluster, app = served(clusters)
    app.load(Load(queue_depth=16, think_max_ms=1, flush_percent=0))
    for _ in range(5):
        cluster.run(700)
        cluster.world.lib.re_sim_net_reset(cluster.world.sim, 0, 1)
    cluster.world.lib.re_sim_workload_stop(cluster.world.sim, app.number)
    cluster.until(lambda: app.is_idle, 30_000, "the last answers")
    cluster.until(lambda: cluster.in_sync, 30_000, "both nodes in sync")
    assert not app.stats.failed
    cluster.check_idle_pair()


def test_peer_that_vanishes_silently_is_noticed_by_the_ping(clusters: Clusters) -> None:
    cluster, app = served(clusters)
    app.write(1)
    cluster.cut(silent=True)
    cluster.until(lambda: not cluster.connected, QUICK_NET.ping_int_ms + 3 * QUICK_NET.ping_timeout_ms, "the loss")
    app.write(2)
    rejoin(cluster)
    cluster.check_idle_pair()


def test_writes_during_a_resync_are_not_overwritten_by_it(clusters: Clusters) -> None:
    cluster, app = served(clusters, disk_bytes=4 * MIB, resync=SLOW_RESYNC)
    cut_off(cluster)
    work(cluster, app, 1000, queue_depth=8, think_max_ms=2, read_percent=0, hot_percent=0, max_bytes=MIB)
    cluster.heal()
    cluster.until(lambda: cluster.state(1)[1] == ConnectionState.SYNC_TARGET, 20_000, "the resync")
    work(cluster, app, 1000, queue_depth=4, think_max_ms=10, read_percent=0, max_bytes=16384)
    assert cluster.state(1)[1] == ConnectionState.SYNC_TARGET, "the resync was over before the writes"
    cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")
    cluster.check_idle_pair()


# ---- crashes and takeovers ----


@PROTOCOLS
@pytest.mark.parametrize("power", [False, True], ids=["process", "power"])
def test_primary_dies_the_other_takes_over_and_the_first_gets_a_union_resync(
    clusters: Clusters, protocol: int, power: bool
) -> None:
    cluster, app = served(clusters, disk_bytes=16 * MIB, net=replace(QUICK_NET, protocol=protocol))
    work(cluster, app, 1000, read_percent=0, span_length=4 * MIB)  # the first extent
    app.load(Load(queue_depth=8, think_max_ms=2, read_percent=0, span_length=4 * MIB))
    cluster.run(100)
    if power:
        cluster.shells[0].power_off()
    else:
        cluster.shells[0].crash()
    cluster.check_coverage("the Primary's end")
    cluster.until(lambda: not cluster.node(1).is_connected, 20_000, "the loss")
    cluster.ask(1, "primary")
    cluster.check_audit(1, ACKED if protocol > 1 else CAUSAL, "taken over")
    cluster.rebase([1])
    second = cluster.serve(1)
    second.write(3000)  # the fourth extent: nobody else has been there since the nodes were in sync
    cluster.restart(0)
    cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")
    assert cluster.node(1).role == Role.PRIMARY
    assert 1 < resynced_blocks(cluster, 0) <= 1024 + 1, "more than the hot extents of both"
    cluster.check_idle_pair()


@pytest.mark.parametrize("power", [False, True], ids=["process", "power"])
def test_both_nodes_die_and_nothing_flushed_is_lost(clusters: Clusters, power: bool) -> None:
    cluster, app = served(clusters)
    app.load(Load(queue_depth=8, think_max_ms=2, flush_percent=20))
    cluster.run(500)
    for shell in cluster.shells:
        if power:
            cluster.check_coverage("before the power loss", layer=1)
            shell.power_off()
        else:
            shell.crash()
    cluster.check_coverage("the end of both")
    for node in (0, 1):
        cluster.restart(node)
    cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")
    cluster.wait_idle()
    cluster.check_equal()
    cluster.check_audit(0, FLUSHED if power else STRICT)


def test_flushed_write_survives_in_c_when_both_lose_power_and_only_the_peer_returns(clusters: Clusters) -> None:
    cluster, app = served(clusters)
    app.write(1, 2, 3)
    assert app.do("flush") == 0
    for shell in cluster.shells:
        shell.power_off()
    cluster.restart(1)
    cluster.ask(1, "primary")
    cluster.check_audit(1, FLUSHED, "the only one that is back")
    tags = cluster.shells[1].data.content(BLOCK, 3 * BLOCK)
    assert all(any(tags[at : at + BLOCK]) for at in range(0, 3 * BLOCK, BLOCK))


def test_flush_does_not_wait_for_the_peer_when_strict_flush_is_off(clusters: Clusters) -> None:
    cluster, app = served(clusters, net=replace(QUICK_NET, strict_flush=False, protocol=1))
    app.write(1)
    cluster.shells[1].data.hold()
    assert app.do("flush", ms=500) == 0
    cluster.shells[1].data.release()
    cluster.check_idle_pair()


# ---- interrupted resyncs ----


@pytest.mark.parametrize("victim", [0, 1], ids=["source", "target"])
@pytest.mark.parametrize("power", [False, True], ids=["process", "power"])
def test_interrupted_resync_goes_on_by_bitmap_and_never_starts_over(
    clusters: Clusters, victim: int, power: bool
) -> None:
    cluster, app = served(clusters, disk_bytes=8 * MIB, resync=SLOW_RESYNC)
    cut_off(cluster)
    app.write(*range(400))
    app.stop()
    cluster.until(lambda: cluster.volume(0).open_count == 0, 5000, "the client's end")
    cluster.ask(0, "secondary")
    cluster.heal()
    cluster.until(lambda: cluster.state(1)[1] == ConnectionState.SYNC_TARGET, 20_000, "the resync")
    cluster.until(lambda: cluster.dirty_bits(1) < 300, 20_000, "a part of the resync")
    if power:
        cluster.shells[victim].power_off()
    else:
        cluster.shells[victim].crash()
    cluster.check_coverage("in the middle of the resync")
    cluster.restart(victim)
    cluster.until(lambda: cluster.connected, 30_000, "the next connection")
    assert cluster.state(1)[2] == DiskState.INCONSISTENT
    cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")
    assert resynced_blocks(cluster, 1) <= 400 < cluster.device_bytes // BLOCK
    cluster.check_idle_pair()


def test_inconsistent_node_is_never_promoted_without_force(clusters: Clusters) -> None:
    cluster, app = served(clusters, resync=SLOW_RESYNC)
    cut_off(cluster)
    app.write(*range(200))
    cluster.heal()
    cluster.until(lambda: cluster.state(1)[1] == ConnectionState.SYNC_TARGET, 20_000, "the resync")
    cluster.shells[0].power_off()
    cluster.until(lambda: not cluster.node(1).is_connected, 20_000, "the loss")
    with pytest.raises(ReplError, match="no UpToDate data"):
        cluster.ask(1, "primary")
    with pytest.raises(ReplError):
        cluster.ask(1, "nbd-open", volume=0)


def test_outdated_node_is_never_promoted_when_its_source_dies_before_the_resync(clusters: Clusters) -> None:
    cluster, app = served(clusters)
    cut_off(cluster)
    app.write(1)
    cluster.heal()
    outdated = (ConnectionState.WF_BITMAP_T, ConnectionState.WF_SYNC_UUID)
    cluster.until(lambda: cluster.state(1)[1] in outdated, 20_000, "the bitmap exchange")
    cluster.shells[0].power_off()
    cluster.until(lambda: not cluster.node(1).is_connected, 20_000, "the loss")
    assert cluster.state(1)[2] in (DiskState.OUTDATED, DiskState.INCONSISTENT)
    with pytest.raises(ReplError, match="no UpToDate data"):
        cluster.ask(1, "primary")


# ---- split brain ----


def split(clusters: Clusters) -> Cluster:
    """Both sides wrote alone, and then they meet."""
    cluster, app = served(clusters)
    app.write(1, 2)
    cut_off(cluster)
    app.write(10)
    cluster.ask(1, "primary")
    other = cluster.serve(1)
    other.write(20)
    cluster.heal()
    cluster.until(lambda: cluster.stand_alone, 30_000, "the end of the connection on both nodes")
    app.leave()
    other.leave()
    cluster.until(lambda: not any(cluster.volume(n).open_count for n in (0, 1)), 5000, "the clients' end")
    return cluster


def test_split_brain_is_detected_on_both_nodes_with_a_reason_and_an_advice(clusters: Clusters) -> None:
    cluster = split(clusters)
    for node in (0, 1):
        assert "Split-Brain" in cluster.node(node).reason
        assert "--discard-my-data" in cluster.node(node).advice


@pytest.mark.parametrize("loser", [0, 1])
def test_split_brain_is_resolved_by_discarding_one_side_only(clusters: Clusters, loser: int) -> None:
    cluster = split(clusters)
    winner = 1 - loser
    kept = cluster.shells[winner].data.content(0, cluster.device_bytes)
    cluster.ask(loser, "secondary")
    cluster.ask(loser, "connect", discard_my_data=True)
    cluster.ask(winner, "connect")
    cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")
    cluster.wait_idle()
    cluster.check_equal()
    assert cluster.shells[loser].data.content(0, cluster.device_bytes) == kept


def test_both_sides_told_to_discard_their_data_stay_apart(clusters: Clusters) -> None:
    cluster = split(clusters)
    for node in (0, 1):
        cluster.ask(node, "secondary")
        cluster.ask(node, "connect", discard_my_data=True)
    cluster.run(3000)
    cluster.until(lambda: cluster.stand_alone, 30_000, "StandAlone")
    assert "discard" in cluster.node(0).reason and "discard" in cluster.node(1).reason


# ---- disks ----


def test_stuck_disk_does_not_stop_the_pings(clusters: Clusters) -> None:
    cluster, app = served(clusters, net=replace(QUICK_NET, ko_count=0, timeout_ms=600, ping_int_ms=1000))
    app.write(1)
    cluster.shells[1].data.hold()
    op = app.submit("write", 5 * BLOCK)
    cluster.run(10_000)
    assert cluster.connected and cluster.op(op).state == 0
    cluster.shells[1].data.release()
    cluster.until(lambda: cluster.op(op).state == 1, 1000, "the write")
    cluster.check_idle_pair()


def test_peer_that_acknowledges_nothing_is_expelled_after_ko_count_timeouts(clusters: Clusters) -> None:
    cluster, app = served(clusters, net=replace(QUICK_NET, ko_count=3, timeout_ms=600, ping_int_ms=1000))
    cluster.shells[1].data.hold()
    op = app.submit("write", 5 * BLOCK)
    cluster.run(1500)
    assert cluster.op(op).state == 0
    cluster.until(lambda: cluster.op(op).state == 1, 1000, "the write without the peer")
    assert cluster.events(0, text="ko-count")
    cluster.shells[1].data.release()
    cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")
    cluster.check_idle_pair()


def test_primary_goes_on_through_its_peer_when_its_own_disk_fails(clusters: Clusters) -> None:
    cluster, app = served(clusters)
    app.write(1, 2)
    cluster.shells[0].data.fail_next(1)  # the next write
    app.write(3, 4)
    assert cluster.state(0)[2] == DiskState.DISKLESS
    for block in range(1, 5):
        assert app.do("read", block * BLOCK) == 0
    cluster.check_audit(1)


def test_primary_with_the_only_copy_reports_its_disk_error_to_the_client(clusters: Clusters) -> None:
    cluster, app = served(clusters)
    cut_off(cluster)
    cluster.shells[0].data.fail_next(1)
    assert app.do("write", 5 * BLOCK) == 5
    assert app.do("read", 5 * BLOCK) == 5
    assert cluster.state(0)[2] == DiskState.DISKLESS


def test_secondary_whose_disk_fails_gets_only_what_it_missed_when_it_is_back(clusters: Clusters) -> None:
    cluster, app = served(clusters, disk_bytes=8 * MIB)
    app.write(*range(50))
    cluster.shells[1].data.fail_next(1)
    app.write(60, 61)
    cluster.until(lambda: cluster.state(1)[2] == DiskState.DISKLESS, 5000, "the detach")
    app.write(70)
    cluster.ask(1, "down", force=True)
    cluster.until(lambda: not cluster.shells[1].is_running, 5000, "the end")
    cluster.restart(1)
    cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")
    assert resynced_blocks(cluster, 1) < 100
    cluster.check_idle_pair()


def test_eviction_of_hot_extents_keeps_every_difference_covered(clusters: Clusters) -> None:
    cluster, app = served(clusters, disk_bytes=40 * MIB, al_extents=2)
    cut_off(cluster)
    for extent in range(8):
        app.write(extent * 1024 + 5)
    cluster.check_coverage("after evictions")
    cluster.check_coverage("after evictions", layer=1)
    cluster.shells[0].power_off()
    cluster.check_coverage("after the power loss")
    cluster.restart(0)
    rejoin(cluster)
    cluster.wait_idle()
    cluster.check_equal()


# ---- operators ----


def test_invalidate_fetches_everything_from_the_peer_again(clusters: Clusters) -> None:
    cluster, app = served(clusters)
    app.write(*range(20))
    cluster.shells[1].data.load(5 * BLOCK, b"rotten".ljust(BLOCK, b"!"))
    cluster.ask(1, "invalidate")
    assert cluster.state(1)[2] == DiskState.INCONSISTENT
    cluster.until(lambda: cluster.in_sync, 60_000, "the full sync")
    assert resynced_blocks(cluster, 1) == -(-cluster.device_bytes // BLOCK)
    cluster.check_idle_pair()


def test_roles_change_in_order_and_every_write_is_seen_on_the_other_side(clusters: Clusters) -> None:
    cluster = in_sync(clusters)
    for turn in range(6):
        node = turn % 2
        cluster.ask(node, "primary")
        app = cluster.serve(node)
        work(cluster, app, 200)
        app.leave()
        cluster.until(lambda node=node: cluster.volume(node).open_count == 0, 5000, "the client's end")
        cluster.ask(node, "secondary")
        cluster.until(lambda node=node: cluster.node(1 - node).peer_role == Role.SECONDARY, 5000, "the news")
        cluster.check_audit(1 - node)
    cluster.check_idle_pair()


def test_two_nodes_promoted_at_once_never_both_become_primary(clusters: Clusters) -> None:
    cluster = in_sync(clusters)
    answers = [cluster.fire(node, "primary") for node in (0, 1)]
    cluster.until(lambda: all(a.is_done for a in answers), 30_000, "both answers")
    roles = [cluster.node(node).role for node in (0, 1)]
    assert roles.count(Role.PRIMARY) <= 1
    assert sum(a.error is None for a in answers) == roles.count(Role.PRIMARY)


def test_disconnect_and_connect_lead_back_without_a_resync_when_nothing_was_written(clusters: Clusters) -> None:
    cluster = in_sync(clusters)
    cluster.ask(1, "disconnect")
    assert cluster.state(1)[1] == ConnectionState.STANDALONE
    cluster.ask(1, "connect")
    cluster.until(lambda: cluster.in_sync, 30_000, "both nodes in sync")
    assert resynced_blocks(cluster, 1) == 0


def test_down_leaves_clean_metadata_and_up_finds_no_difference(clusters: Clusters) -> None:
    cluster, app = served(clusters)
    work(cluster, app, 500)
    app.leave()
    cluster.until(lambda: cluster.volume(0).open_count == 0, 5000, "the client's end")
    cluster.ask(0, "secondary")
    for node in (0, 1):
        cluster.ask(node, "down")
    cluster.until(lambda: not any(s.is_running for s in cluster.shells), 5000, "the end of both")
    assert all(node_disk.find_superblock(s.place)[0].clean for s in cluster.shells)
    cluster.check_coverage("down", layer=1)
    cluster.start()
    cluster.until(lambda: cluster.in_sync, 30_000, "both nodes in sync")
    assert resynced_blocks(cluster, 0) == resynced_blocks(cluster, 1) == 0
    cluster.check_idle_pair()


# ---- nodes that do not fit ----


def refused(cluster: Cluster) -> tuple[str, str]:
    """Both nodes come up, meet and end StandAlone: why, as each of them says."""
    cluster.start()
    cluster.until(lambda: cluster.stand_alone, 30_000, "StandAlone on both")
    return cluster.node(0).reason, cluster.node(1).reason


def test_wrong_secret_is_refused_by_both_nodes(clusters: Clusters) -> None:
    net = replace(QUICK_NET, cram_hmac_alg="sha1", shared_secret="right")
    reasons = refused(clusters(net=net, other_net=replace(net, shared_secret="wrong")))
    assert all("Authentication" in reason for reason in reasons)


def test_right_secret_connects(clusters: Clusters) -> None:
    cluster = in_sync(clusters, net=replace(QUICK_NET, cram_hmac_alg="sha256", shared_secret="right"))
    cluster.check_idle_pair()


def test_other_protocol_letter_is_refused_by_both_nodes(clusters: Clusters) -> None:
    reasons = refused(clusters(other_net=replace(QUICK_NET, protocol=1)))
    assert all("protocol" in reason for reason in reasons)


def test_smaller_fresh_disk_of_the_peer_sets_the_size_of_both(clusters: Clusters) -> None:
    cluster = clusters(other_disk_bytes=MIB)
    cluster.connect_fresh(skip_initial_sync=False)
    assert cluster.volume(0).size_sectors == cluster.volume(1).size_sectors
    cluster.check_idle_pair()


def test_smaller_disk_is_refused_by_a_node_with_good_data(clusters: Clusters) -> None:
    cluster = clusters(other_disk_bytes=MIB)
    cluster.start(0)
    cluster.ask(0, "primary", force=True)
    cluster.start(1)
    cluster.until(lambda: cluster.state(0)[1] == ConnectionState.STANDALONE, 30_000, "StandAlone")
    assert "too small" in cluster.node(0).reason


def test_unrelated_data_is_refused_by_both_nodes(clusters: Clusters) -> None:
    cluster = clusters()
    for node in (0, 1):
        cluster.start(node)
        cluster.ask(node, "disconnect")
        cluster.ask(node, "primary", force=True)
        cluster.ask(node, "secondary")
    for node in (0, 1):
        cluster.ask(node, "connect")
    cluster.until(lambda: cluster.stand_alone and all(cluster.node(n).reason for n in (0, 1)), 30_000, "StandAlone")
    assert all("nrelated" in cluster.node(n).reason or "Split" in cluster.node(n).reason for n in (0, 1))
