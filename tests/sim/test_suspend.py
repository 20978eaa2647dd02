# SPDX-License-Identifier: Apache-2.0
"""suspend-io and on-no-data-accessible: nothing is completed, nothing is lost, and how it goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repl.drbd.states import DiskState, Role
from repl.drbd.uuids import base
from tests.sim.cluster import QUICK_NET, App, Cluster, Load, Setup
from tests.sim.world import BLOCK


def pair(seed: int = 1, *, protocol: int = 3, on_no_data: str = "io-error", volumes: int = 1) -> Cluster:
    setup = Setup(net=replace(QUICK_NET, protocol=protocol), on_no_data=on_no_data, volumes=volumes,
                  handlers=("pri-on-incon-degr",))  # fmt: skip
    cluster = Cluster(seed, setup)
    cluster.connect_fresh()
    return cluster


def answered(app: App) -> int:
    return int(app.stats.submitted - app.stats.in_flight)


def pending(cluster: Cluster, *ops: int) -> bool:
    return any(cluster.op(op).state == cluster.world.lib.RE_SIM_OP_PENDING for op in ops)


def lose(cluster: Cluster) -> None:
    cluster.cut()
    cluster.until(lambda: not cluster.node(0).is_connected, 20_000, "the loss of the peer")
    cluster.run(500)


def reconnect(cluster: Cluster) -> None:
    cluster.heal()
    cluster.until(lambda: cluster.in_sync, 60_000, "the reconnection")


@pytest.mark.parametrize("protocol", [1, 2, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_suspend_freezes_everything_and_resume_ends_it(seed: int, protocol: int) -> None:
    with pair(seed, protocol=protocol) as cluster:
        app = cluster.serve(0)
        app.load(Load(queue_depth=8, think_max_ms=1))
        cluster.run(100)
        cluster.ask(0, "suspend-io")
        cluster.run(200)
        before = answered(app)
        shown = cluster.ask(0, "status")
        assert shown["suspended_by"] == ["user"] and "resume-io" in shown["suspended_advice"]
        assert cluster.volume(0).state.susp
        cluster.run(60_000)
        assert answered(app) == before and cluster.connected, "frozen, and no timeout fires for it"
        cluster.ask(0, "resume-io")
        cluster.until(lambda: answered(app) > before, 5_000, "the load")
        app.stop()
        assert not app.stats.failed
        cluster.check_idle_pair()


@pytest.mark.parametrize("protocol", [1, 2, 3])
@pytest.mark.parametrize("seed", range(1, 7))
def test_suspended_requests_survive_the_link(seed: int, protocol: int) -> None:
    with pair(seed, protocol=protocol, on_no_data="suspend-io" if seed % 2 else "io-error") as cluster:
        app = cluster.serve(0)
        app.load(Load(queue_depth=8, think_max_ms=1, no_overlap=True, hot_percent=0, max_bytes=8192))
        cluster.run(100)
        generation = cluster.volume(0).uuids
        cluster.ask(0, "suspend-io")
        lose(cluster)
        before = answered(app)
        cluster.run(10_000)
        assert answered(app) == before and cluster.volume(0).uuids == generation
        reconnect(cluster)
        cluster.run(1_000)
        assert answered(app) == before, "still suspended by the operator"
        cluster.ask(0, "resume-io")
        cluster.until(lambda: answered(app) > before, 5_000, "the load")
        app.stop()
        assert not app.stats.failed
        cluster.check_idle_pair()


@pytest.mark.parametrize("seed", range(1, 4))
def test_resume_without_the_peer_makes_a_generation_first(seed: int) -> None:
    with pair(seed) as cluster:
        app = cluster.serve(0)
        app.load(Load(queue_depth=8, think_max_ms=1))
        cluster.run(100)
        generation = cluster.volume(0).uuids
        cluster.ask(0, "suspend-io")
        lose(cluster)
        before = answered(app)

        def generation_comes_first(index: int) -> None:
            if index == 0 and answered(app) > before and not cluster.node(0).is_connected:
                assert base(cluster.volume(0).uuids.bitmap) == base(generation.current)

        cluster.observers.append(generation_comes_first)
        cluster.ask(0, "resume-io")
        cluster.until(lambda: answered(app) > before, 5_000, "the load")
        cluster.observers.clear()
        reconnect(cluster)
        app.stop()
        assert not app.stats.failed
        cluster.check_idle_pair()


def test_peer_that_lost_power_gets_everything_again() -> None:
    with pair(5) as cluster:
        app = cluster.serve(0)
        app.load(Load(queue_depth=8, think_max_ms=1, no_overlap=True, hot_percent=0, max_bytes=8192, flush_percent=0))
        cluster.run(100)
        cluster.ask(0, "suspend-io")
        cluster.shells[1].power_off()
        cluster.until(lambda: not cluster.node(0).is_connected, 20_000, "the loss of the peer")
        cluster.restart(1)
        reconnect(cluster)
        cluster.ask(0, "resume-io")
        app.stop()
        cluster.check_idle_pair()


def test_crash_of_a_frozen_primary_leaves_its_extents_marked() -> None:
    with pair(6) as cluster:
        app = cluster.serve(0)
        app.load(Load(queue_depth=8, think_max_ms=1))
        cluster.run(100)
        cluster.ask(0, "suspend-io")
        lose(cluster)
        cluster.shells[0].power_off()
        cluster.check_coverage("power loss of a frozen Primary")
        cluster.heal()
        cluster.restart(0)
        cluster.until(lambda: cluster.in_sync, 60_000, "both back")
        cluster.check_idle_pair()


def test_suspended_secondary_takes_the_peers_writes() -> None:
    with pair(7) as cluster:
        cluster.ask(1, "suspend-io")
        app = cluster.serve(0)
        app.write(1, 2, 3)
        app.stop()
        cluster.check_idle_pair()
        cluster.ask(1, "resume-io")


def test_two_volumes_are_frozen_and_sent_again_together() -> None:
    with pair(8, volumes=2, on_no_data="suspend-io") as cluster:
        apps = [App(cluster, 0, number) for number in (0, 1)]
        cluster.until(lambda: all(app.is_open for app in apps), 5_000, "both clients")
        for app in apps:
            app.load(Load(queue_depth=4, think_max_ms=1, no_overlap=True, hot_percent=0, max_bytes=8192))
        cluster.run(100)
        generations = [volume.uuids for volume in cluster.node(0).volumes.values()]
        cluster.ask(0, "suspend-io")
        lose(cluster)
        cluster.run(2_000)
        cluster.heal()
        cluster.until(lambda: all(v.is_in_sync for v in cluster.node(0).volumes.values()), 60_000, "both volumes")
        cluster.ask(0, "resume-io")
        for app in apps:
            app.stop()
            assert not app.stats.failed
        assert [volume.uuids for volume in cluster.node(0).volumes.values()] == generations


# ---- on-no-data-accessible ----


def lose_own_disk(cluster: Cluster, app: App) -> None:
    """Its next write fails; the peer has the data."""
    cluster.shells[0].data.fail_next(cluster.world.lib.RE_SIM_OP_WRITE)
    app.write(9)
    cluster.until(lambda: cluster.state(0)[2] == DiskState.DISKLESS, 5_000, "the detach")


@pytest.mark.parametrize("on_no_data", ["io-error", "suspend-io"])
def test_primary_without_any_data(on_no_data: str) -> None:
    with pair(9, on_no_data=on_no_data) as cluster:
        app = cluster.serve(0)
        app.write(1)
        lose_own_disk(cluster, app)
        app.write(2)
        lose(cluster)
        assert [call.name for call in cluster.shells[0].handler_calls] == ["pri-on-incon-degr"]
        if on_no_data == "io-error":
            assert app.do("read", BLOCK) and app.do("write", BLOCK)
            return
        ops = [app.submit("write", 5 * BLOCK), app.submit("read", BLOCK), app.submit("flush")]
        cluster.run(20_000)
        assert pending(cluster, *ops)
        assert cluster.ask(0, "status")["suspended_by"] == ["no-data"] and cluster.volume(0).state.susp_nod
        cluster.heal()
        cluster.until(lambda: not pending(cluster, *ops), 60_000, "everything to go on")
        assert all(cluster.op(op).state == 1 for op in ops)
        assert not cluster.volume(0).state.suspended and cluster.state(0)[0] == Role.PRIMARY
        app.stop()


def test_operator_lets_requests_without_data_fail() -> None:
    with pair(10, on_no_data="suspend-io") as cluster:
        app = cluster.serve(0)
        lose_own_disk(cluster, app)
        lose(cluster)
        op = app.submit("write", 5 * BLOCK)
        cluster.run(1_000)
        assert pending(cluster, op)
        cluster.ask(0, "resume-io")
        cluster.until(lambda: not pending(cluster, op), 5_000, "the failure")
        assert cluster.op(op).state == 2
        assert app.do("write", BLOCK), "and so do those that follow"
        reconnect_diskless(cluster)
        app.write(6)
        app.stop()


def reconnect_diskless(cluster: Cluster) -> None:
    cluster.heal()
    cluster.until(lambda: cluster.state(0)[3] == DiskState.UP_TO_DATE, 60_000, "the reconnection")
    cluster.run(5)  # the engine's turn


@pytest.mark.parametrize("seed", range(1, 5))
def test_own_disk_fails_while_there_is_no_peer(seed: int) -> None:
    with pair(seed, on_no_data="suspend-io") as cluster:
        app = cluster.serve(0)
        app.write(1)
        lose(cluster)
        app.write(2)
        cluster.shells[0].data.fail_next(cluster.world.lib.RE_SIM_OP_WRITE)
        op = app.submit("write", 3 * BLOCK)
        cluster.until(lambda: cluster.state(0)[2] == DiskState.DISKLESS, 5_000, "the detach")
        cluster.run(5_000)
        assert pending(cluster, op), "neither lost nor failed"
        assert cluster.volume(0).state.susp_nod
        cluster.ask(0, "resume-io")
        cluster.until(lambda: not pending(cluster, op), 5_000, "the failure")
