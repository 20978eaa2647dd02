# SPDX-License-Identifier: Apache-2.0
"""Fencing: a Primary's I/O, generations and states when the peer is lost, for each policy and exit status."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repl.drbd.states import ConnectionState, DiskState, Role
from repl.drbd.superblock import MdFlag
from repl.drbd.uuids import base
from repl.errors import StateRefused
from tests.sim.cluster import QUICK_NET, App, Cluster, Load, Setup
from tests.sim.node_shell import Script
from tests.sim.world import BLOCK

STONITH, RESOURCE = "resource-and-stonith", "resource-only"
LOSS_MS = 20_000


def cluster_with(policy: str, *, seed: int = 1, handlers: tuple[str, ...] = ("fence-peer", "unfence-peer")) -> Cluster:
    cluster = Cluster(seed, Setup(net=replace(QUICK_NET, fencing=policy), handlers=handlers))
    cluster.connect_fresh()
    return cluster


def pending(cluster: Cluster, op: int) -> bool:
    return bool(cluster.op(op).state == cluster.world.lib.RE_SIM_OP_PENDING)


def lose(cluster: Cluster, app: App, *, block: int = 3) -> int:
    """The path breaks and a write is under way; its number."""
    cluster.cut()
    op = app.submit("write", block * BLOCK)
    cluster.until(lambda: not cluster.node(0).is_connected, LOSS_MS, "the loss of the peer")
    cluster.run(1000)
    return op


def reconnect(cluster: Cluster) -> None:
    cluster.heal()
    cluster.until(lambda: cluster.in_sync, 60_000, "the reconnection")


def calls(cluster: Cluster, index: int, name: str) -> int:
    return sum(call.name == name for call in cluster.shells[index].handler_calls)


@pytest.mark.parametrize(
    ("status", "peer_disk"),
    [(3, DiskState.INCONSISTENT), (4, DiskState.OUTDATED), (5, DiskState.OUTDATED), (7, DiskState.OUTDATED)],
)
def test_stonith_freezes_until_the_handler_has_outdated_the_peer(status: int, peer_disk: DiskState) -> None:
    with cluster_with(STONITH) as cluster:
        app = cluster.serve(0)
        app.write(1)
        before = cluster.volume(0).uuids
        cluster.shells[0].scripts["fence-peer"] = Script(status, delay_ms=30_000)
        op = lose(cluster, app)
        assert pending(cluster, op)
        shown = cluster.ask(0, "status")
        assert shown["suspended_by"] == ["fencing"] and "resume-io" in shown["suspended_advice"]
        assert cluster.volume(0).state.susp_fen
        assert cluster.volume(0).uuids == before, "a new generation before the peer was fenced"
        cluster.until(lambda: not pending(cluster, op), 60_000, "the write after fencing")
        assert cluster.op(op).state == 1
        assert cluster.volume(0).state.pdsk == peer_disk
        assert not cluster.volume(0).state.suspended
        after = cluster.volume(0).uuids
        assert base(after.current) != base(before.current) and base(after.bitmap) == base(before.current)
        assert cluster.dirty_bits(0) >= 1
        assert calls(cluster, 0, "fence-peer") == 1
        reconnect(cluster)
        assert base(cluster.volume(1).uuids.current) == base(after.current)
        app.stop()
        cluster.check_idle_pair()
        assert calls(cluster, 0, "unfence-peer") == 1


@pytest.mark.parametrize("status", [0, 1, 2, 6, 127])
def test_stonith_stays_frozen_and_sends_again_when_the_peer_is_back(status: int) -> None:
    with cluster_with(STONITH) as cluster:
        app = cluster.serve(0)
        app.write(1)
        before = cluster.volume(0).uuids
        cluster.shells[0].scripts["fence-peer"] = Script(status, delay_ms=100)
        op = lose(cluster, app)
        cluster.run(20_000)
        assert pending(cluster, op) and cluster.volume(0).state.susp_fen
        assert cluster.volume(0).state.disk == DiskState.UP_TO_DATE
        reconnect(cluster)
        cluster.until(lambda: not pending(cluster, op), 5_000, "the write that is sent again")
        assert cluster.op(op).state == 1
        assert not cluster.volume(0).state.suspended
        assert cluster.volume(0).uuids == before, "the same peer has everything: no new generation"
        assert not cluster.events(0, "change", "SyncSource")[1:], "no resync"
        app.stop()
        cluster.check_idle_pair()


def test_stonith_result_after_the_reconnection_does_not_count() -> None:
    with cluster_with(STONITH) as cluster:
        app = cluster.serve(0)
        before = cluster.volume(0).uuids
        cluster.shells[0].scripts["fence-peer"] = Script(7, delay_ms=30_000)
        op = lose(cluster, app)
        reconnect(cluster)
        cluster.until(lambda: not pending(cluster, op), 5_000, "the write")
        second = lose(cluster, app, block=4)  # lost again while the first handler still runs
        assert calls(cluster, 0, "fence-peer") == 2
        cluster.until(lambda: bool(cluster.events(0, "fencing", "does not count")), 40_000, "the first one's end")
        assert pending(cluster, second) and cluster.volume(0).uuids.current == before.current | 1
        cluster.until(lambda: not pending(cluster, second), 60_000, "the second one's result")
        reconnect(cluster)
        app.stop()
        cluster.check_idle_pair()


def test_stonith_operator_resumes_without_the_peer() -> None:
    with cluster_with(STONITH) as cluster:
        app = cluster.serve(0)
        before = cluster.volume(0).uuids
        cluster.shells[0].scripts["fence-peer"] = Script(1, delay_ms=100)
        op = lose(cluster, app)
        cluster.ask(0, "resume-io")
        cluster.until(lambda: not pending(cluster, op), 5_000, "the write")
        assert base(cluster.volume(0).uuids.bitmap) == base(before.current)
        reconnect(cluster)
        app.stop()
        cluster.check_idle_pair()


def test_stonith_peer_that_was_restarted_gets_a_resync() -> None:
    with cluster_with(STONITH) as cluster:
        app = cluster.serve(0)
        app.write(1)
        before = cluster.volume(0).uuids
        cluster.shells[0].scripts["fence-peer"] = Script(1, delay_ms=100)
        op = lose(cluster, app)
        cluster.shells[1].power_off()
        cluster.restart(1)
        assert cluster.state(1)[2] == DiskState.CONSISTENT
        reconnect(cluster)
        cluster.until(lambda: not pending(cluster, op), 5_000, "the write")
        assert base(cluster.volume(0).uuids.current) != base(before.current)
        app.stop()
        cluster.check_idle_pair()


def test_stonith_disconnect_and_connect_by_an_operator_lose_nothing() -> None:
    with cluster_with(STONITH) as cluster:
        app = cluster.serve(0)
        cluster.shells[0].scripts["fence-peer"] = Script(1, delay_ms=100)
        op = lose(cluster, app)
        cluster.ask(0, "disconnect", force=True)
        cluster.run(5_000)
        assert pending(cluster, op)
        cluster.ask(0, "connect")
        reconnect(cluster)
        cluster.until(lambda: not pending(cluster, op), 5_000, "the write")
        app.stop()
        cluster.check_idle_pair()


def test_stonith_forced_down_ends_the_clients() -> None:
    with cluster_with(STONITH) as cluster:
        app = cluster.serve(0)
        cluster.shells[0].scripts["fence-peer"] = Script(None)
        op = lose(cluster, app)
        with pytest.raises(StateRefused):
            cluster.ask(0, "secondary")
        cluster.fire(0, "down", force=True)
        cluster.until(lambda: cluster.shells[0].node is None, 30_000, "down")
        assert not pending(cluster, op)
        cluster.check_coverage("down")
        cluster.heal()
        cluster.restart(0)
        cluster.until(lambda: cluster.in_sync, 60_000, "both back")
        cluster.check_idle_pair()


@pytest.mark.parametrize("seed", range(1, 13))
def test_stonith_load_is_frozen_and_sent_again(seed: int) -> None:
    with cluster_with(STONITH, seed=seed) as cluster:
        app = cluster.serve(0)
        app.load(Load(queue_depth=16, think_max_ms=1, max_bytes=16384))
        cluster.run(200)
        cluster.shells[0].scripts["fence-peer"] = Script(1, delay_ms=100)
        before = cluster.volume(0).uuids
        for round_ in range(3):
            cluster.cut(silent=bool(seed % 2))
            cluster.until(lambda: not cluster.node(0).is_connected, LOSS_MS, "the loss")
            cluster.run(100)
            done = app.stats.submitted - app.stats.in_flight
            cluster.run(5_000)
            assert app.stats.submitted - app.stats.in_flight == done, "something was completed while frozen"
            reconnect(cluster)
            cluster.until(lambda n=done: app.stats.submitted - app.stats.in_flight > n, 5_000, f"load {round_}")
        assert cluster.volume(0).uuids == before
        app.stop()
        assert not app.stats.failed
        cluster.check_idle_pair()


def test_resource_only_goes_on_and_outdates_the_peer() -> None:
    with cluster_with(RESOURCE) as cluster:
        app = cluster.serve(0)
        before = cluster.volume(0).uuids
        cluster.shells[0].scripts["fence-peer"] = Script(4, delay_ms=30_000)
        op = lose(cluster, app)
        cluster.until(lambda: not pending(cluster, op), 1_000, "the write")
        assert base(cluster.volume(0).uuids.bitmap) == base(before.current)
        assert cluster.volume(0).state.pdsk == DiskState.UNKNOWN
        current = cluster.volume(0).uuids.current
        cluster.until(lambda: cluster.volume(0).state.pdsk == DiskState.OUTDATED, 60_000, "the handler's result")
        assert cluster.volume(0).uuids.current == current, "one generation for one loss"
        app.stop()
        reconnect(cluster)
        cluster.check_idle_pair()


def test_dont_care_runs_no_handler() -> None:
    with cluster_with("dont-care") as cluster:
        app = cluster.serve(0)
        op = lose(cluster, app)
        assert not pending(cluster, op) and not calls(cluster, 0, "fence-peer")
        app.stop()
        reconnect(cluster)


# ---- a lone node ----


@pytest.mark.parametrize(
    ("status", "promoted", "code"),
    [(4, True, 0), (7, True, 0), (3, True, 0), (5, False, -2), (6, False, -2), (1, False, -7), (0, False, -7)],
)
def test_lone_node_comes_up_consistent_and_needs_the_handler(status: int, promoted: bool, code: int) -> None:
    with cluster_with(RESOURCE) as cluster:
        for index in (0, 1):
            cluster.ask(index, "disconnect", force=True)
            cluster.shells[index].crash()
        cluster.start(0)
        assert cluster.state(0)[2] == DiskState.CONSISTENT
        cluster.shells[0].scripts["fence-peer"] = Script(status, delay_ms=100)
        if promoted:
            cluster.ask(0, "primary")
            assert cluster.state(0)[0] == Role.PRIMARY and cluster.state(0)[2] == DiskState.UP_TO_DATE
        else:
            with pytest.raises(StateRefused) as refused:
                cluster.ask(0, "primary")
            assert refused.value.number in (code, -7)
            assert cluster.state(0)[0] == Role.SECONDARY
            assert cluster.state(0)[2] == (DiskState.OUTDATED if status == 6 else DiskState.CONSISTENT)
        assert calls(cluster, 0, "fence-peer") == 1


def test_survivor_is_not_promoted_unless_the_peer_is_outdated() -> None:
    with cluster_with(RESOURCE) as cluster:
        cluster.shells[1].crash()
        cluster.until(lambda: not cluster.node(0).is_connected, LOSS_MS, "the loss")
        cluster.shells[0].scripts["fence-peer"] = Script(1)
        with pytest.raises(StateRefused) as refused:
            cluster.ask(0, "primary")
        assert refused.value.number == -7
        cluster.shells[0].scripts["fence-peer"] = Script(5)  # its own disk is UpToDate: that is enough
        cluster.ask(0, "primary")
        assert cluster.state(0)[3] == DiskState.OUTDATED
        block = cluster.volume(0).superblock
        assert block is not None and MdFlag.PEER_OUTDATED in block.flags
        cluster.shells[0].crash()
        cluster.start(0)  # nobody has newer data: it is UpToDate at once
        assert cluster.state(0)[2:] == (DiskState.UP_TO_DATE, DiskState.OUTDATED)


def test_forced_promotion_counts_the_peer_as_outdated() -> None:
    with cluster_with(STONITH) as cluster:
        cluster.shells[1].crash()
        cluster.until(lambda: not cluster.node(0).is_connected, LOSS_MS, "the loss")
        cluster.shells[0].scripts["fence-peer"] = Script(1)
        cluster.ask(0, "primary", force=True)
        assert cluster.state(0)[0] == Role.PRIMARY and cluster.state(0)[3] == DiskState.OUTDATED
        assert not cluster.volume(0).state.suspended
        app = cluster.serve(0)
        app.write(1)
        app.stop()


def test_no_handler_configured_is_a_refusal() -> None:
    with cluster_with(RESOURCE, handlers=()) as cluster:
        cluster.shells[1].crash()
        cluster.until(lambda: not cluster.node(0).is_connected, LOSS_MS, "the loss")
        with pytest.raises(StateRefused, match="no fence-peer handler") as refused:
            cluster.ask(0, "primary")
        assert refused.value.number == -7


# ---- leaving in an orderly way ----


@pytest.mark.parametrize("policy", [RESOURCE, STONITH])
def test_secondary_leaves_as_outdated(policy: str) -> None:
    with cluster_with(policy) as cluster:
        app = cluster.serve(0)
        app.write(1)
        before = cluster.volume(0).uuids
        cluster.ask(1, "disconnect")
        cluster.until(lambda: not cluster.node(0).is_connected, 5_000, "the peer's departure")
        app.write(2)  # nothing is frozen
        assert cluster.state(0)[3] == DiskState.OUTDATED and cluster.state(1)[2] == DiskState.OUTDATED
        assert base(cluster.volume(0).uuids.bitmap) == base(before.current)
        assert not calls(cluster, 0, "fence-peer") and not cluster.volume(0).state.suspended
        with pytest.raises(StateRefused):
            cluster.ask(1, "primary")
        cluster.ask(1, "connect")
        cluster.until(lambda: cluster.in_sync, 60_000, "the reconnection")
        app.stop()
        cluster.check_idle_pair()


def test_primary_leaves_and_outdates_the_peer() -> None:
    with cluster_with(STONITH) as cluster:
        app = cluster.serve(0)
        cluster.ask(0, "disconnect")
        app.write(2)
        assert cluster.state(0)[1] == ConnectionState.STANDALONE and cluster.state(0)[3] == DiskState.OUTDATED
        cluster.until(lambda: cluster.state(1)[2] == DiskState.OUTDATED, 5_000, "the Outdated peer")
        assert not calls(cluster, 0, "fence-peer")
        cluster.shells[1].crash()
        cluster.start(1)
        assert cluster.state(1)[2] == DiskState.OUTDATED, "it lasts"
        cluster.ask(0, "connect")
        cluster.until(lambda: cluster.in_sync, 60_000, "the reconnection")
        app.stop()
        cluster.check_idle_pair()


def test_two_secondaries_leave_without_being_outdated() -> None:
    with cluster_with(STONITH) as cluster:
        cluster.ask(0, "disconnect")
        assert cluster.state(0)[2] == DiskState.UP_TO_DATE
        cluster.run(1000)
        assert cluster.state(1)[2] == DiskState.UP_TO_DATE


# ---- outdate ----


def test_outdate_by_order_lasts_and_is_refused_where_it_makes_no_sense() -> None:
    with cluster_with("dont-care") as cluster:
        with pytest.raises(StateRefused) as connected:
            cluster.ask(1, "outdate")
        assert connected.value.number == -6
        cluster.ask(0, "primary")
        cluster.ask(1, "disconnect", force=True)
        cluster.ask(1, "outdate")
        assert cluster.state(1)[2] == DiskState.OUTDATED
        with pytest.raises(StateRefused) as promote:
            cluster.ask(1, "primary")
        assert promote.value.number == -2
        cluster.shells[1].crash()
        cluster.start(1)
        cluster.ask(1, "disconnect", force=True)
        assert cluster.state(1)[2] == DiskState.OUTDATED
        cluster.ask(1, "invalidate")
        with pytest.raises(StateRefused) as lower:
            cluster.ask(1, "outdate")
        assert lower.value.number == -16
