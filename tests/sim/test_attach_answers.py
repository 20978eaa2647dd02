# SPDX-License-Identifier: Apache-2.0
"""A disk comes back at once over a slow link: what its peer sent before it knew of it is no answer (decision 0105)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from repl.drbd.states import ConnectionState, DiskState, StateWord
from repl.node.attaching import SERIALS, AttachSerials
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, App, Cluster, Setup
from tests.sim.world import BLOCK

C, D = ConnectionState, DiskState
SLOW = 200_000  # bytes a second


def setup(**net: Any) -> Setup:
    return Setup(net=replace(QUICK_NET, **{"protocol": 1, "ko_count": 20} | net), buffer_bytes=1 << 20, requests=1024)


def fill_the_link(cluster: Cluster, app: App, count: int, bytes_per_second: int = SLOW) -> None:
    """More than a second of it: the writes are complete for the application, the peer has few of them."""
    cluster.world.net(0, 1, bytes_per_second=bytes_per_second)
    ops = [app.submit("write", block * BLOCK) for block in range(count)]
    cluster.until(lambda: all(cluster.op(op).state for op in ops), 60_000, "the writes")


def come_back_at_once(cluster: Cluster) -> None:
    """Node 1 lets its disk go and takes it back before it has heard what the peer sent meanwhile."""
    cluster.ask(1, "detach", volume=0)
    attach = cluster.fire(1, "attach", volume=0)
    cluster.until(lambda: cluster.state(1)[2] == D.NEGOTIATING, 1000, "the disk waits for the peer's answer")
    cluster.until(lambda: attach.is_done, 10_000, "the attach")
    assert attach.error is None


@pytest.mark.parametrize("seed", range(4))
def test_a_peer_that_pulls_ahead_does_not_answer_with_that(seed: int) -> None:
    require_sim()
    with Cluster(seed, setup(on_congestion="pull-ahead", congestion_fill_sectors=128)) as cluster:
        cluster.connect_fresh()
        app = cluster.serve(0)
        fill_the_link(cluster, app, 48)
        cluster.until(lambda: cluster.state(0)[1] == C.AHEAD, 5000, "node 0 Ahead")
        come_back_at_once(cluster)
        assert not cluster.events(1, "change", "Negotiating -> UpToDate")
        cluster.until(lambda: cluster.state(0)[1] == C.SYNC_SOURCE, 10_000, "the resync")
        cluster.check_each_side("it begins")
        cluster.world.net(0, 1, bytes_per_second=0)
        cluster.check_idle_pair()


@pytest.mark.parametrize("version", [101, 99])  # below 100 a peer is taken for DRBD's own
@pytest.mark.parametrize("seed", range(4))
def test_a_state_that_was_sent_before_the_disk_left_is_no_answer(seed: int, version: int) -> None:
    require_sim()
    with Cluster(seed, setup(protocol_max=version)) as cluster:
        cluster.connect_fresh()
        app = cluster.serve(0)
        fill_the_link(cluster, app, 64)
        cluster.ask(0, "pause-sync", volume=0)  # says so in a P_STATE behind the writes
        come_back_at_once(cluster)
        assert not cluster.events(1, "change", "Negotiating -> UpToDate")
        cluster.ask(0, "resume-sync", volume=0)
        cluster.world.net(0, 1, bytes_per_second=0)
        cluster.check_idle_pair()


def test_writes_that_a_node_without_a_disk_refuses_are_resynced_when_it_is_back_before_its_acks() -> None:
    """Acks travel on the other socket: the peer may hear of the new disk first."""
    require_sim()
    for seed in range(12):
        with Cluster(seed, replace(setup(), write_max_us=100, flush_max_us=200)) as cluster:
            cluster.connect_fresh()
            app = cluster.serve(0)
            cluster.world.net(1, 0, latency_max_ns=250_000_000)
            fill_the_link(cluster, app, 300, 10_000_000)
            come_back_at_once(cluster)
            states = (C.SYNC_SOURCE, C.SYNC_TARGET)
            cluster.until(lambda c=cluster, s=states: (c.state(0)[1], c.state(1)[1]) == s, 10_000, "the resync")
            for index in (0, 1):
                assert cluster.differing() & ~cluster.memory_bits(index) == 0, f"seed {seed}: node {index}"
            cluster.check_idle_pair()


def test_serials_go_round_and_say_which_attach_is_meant() -> None:
    mine, theirs = AttachSerials(), AttachSerials()
    coming, there = StateWord(disk=D.NEGOTIATING), StateWord(disk=D.UP_TO_DATE)
    for _ in range(2 * SERIALS):
        before = replace(there, pad=theirs.pad(there))
        mine.attached()
        assert not mine.knows_ours(before)
        theirs.heard(replace(coming, pad=mine.pad(coming)))
        assert mine.knows_ours(replace(there, pad=theirs.pad(there)))
        assert theirs.pad(there) < 1 << 9
    theirs.new_connection()
    assert theirs.pad(there) == 0
