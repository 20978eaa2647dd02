# SPDX-License-Identifier: Apache-2.0
"""before-resync-target, after-resync-target, before-resync-source: when they run, and what their veto leaves behind."""

from __future__ import annotations

import pytest

from repl.drbd.states import ConnectionState, DiskState
from tests.sim.cluster import Cluster, Setup
from tests.sim.node_shell import Script

NAMES = ("before-resync-target", "after-resync-target", "before-resync-source")


def pair(seed: int = 1) -> Cluster:
    cluster = Cluster(seed, Setup(handlers=NAMES))
    cluster.connect_fresh()
    return cluster


def called(cluster: Cluster, index: int) -> list[str]:
    return [call.name for call in cluster.shells[index].handler_calls]


def part(cluster: Cluster) -> None:
    """Node 0 writes alone."""
    app = cluster.serve(0)
    app.write(1)
    cluster.ask(1, "disconnect")
    cluster.until(lambda: not cluster.node(0).is_connected, 5_000, "the departure")
    app.write(2, 3)
    app.stop()


def test_handlers_run_on_their_side_around_the_resync() -> None:
    with pair() as cluster:
        part(cluster)
        cluster.shells[1].scripts["before-resync-target"] = Script(0, delay_ms=5_000)
        cluster.ask(1, "connect")
        cluster.run(3_000)
        assert cluster.state(1)[2] == DiskState.OUTDATED, "still the consistent old data: a snapshot can be taken"
        assert cluster.shells[1].handler_calls[0].environment["REPL_DISK_STATE"] == "Outdated"
        cluster.until(lambda: cluster.in_sync, 60_000, "the resync")
        cluster.run(1_000)
        assert called(cluster, 0) == ["before-resync-source"]
        assert called(cluster, 1) == ["before-resync-target", "after-resync-target"]
        cluster.check_idle_pair()


@pytest.mark.parametrize(("index", "name", "status"), [(1, NAMES[0], 1), (1, NAMES[0], 3), (0, NAMES[2], 1)])
def test_veto_ends_standalone_and_the_next_connection_resyncs(index: int, name: str, status: int) -> None:
    with pair() as cluster:
        part(cluster)
        cluster.shells[index].scripts[name] = Script(status)
        cluster.ask(1, "connect")
        cluster.until(lambda: cluster.state(index)[1] == ConnectionState.STANDALONE, 20_000, "StandAlone")
        assert name in cluster.node(index).reason
        assert cluster.state(1)[2] < DiskState.UP_TO_DATE
        del cluster.shells[index].scripts[name]
        for node in (0, 1):
            if cluster.state(node)[1] == ConnectionState.STANDALONE:
                cluster.ask(node, "connect")
        cluster.until(lambda: cluster.in_sync, 60_000, "the resync")
        cluster.check_idle_pair()


def test_source_status_3_is_ignored() -> None:
    with pair() as cluster:
        part(cluster)
        cluster.shells[0].scripts["before-resync-source"] = Script(3)
        cluster.ask(1, "connect")
        cluster.until(lambda: cluster.in_sync, 60_000, "the resync")


@pytest.mark.parametrize(("index", "name"), [(1, "before-resync-target"), (0, "before-resync-source")])
@pytest.mark.parametrize("restarts", [False, True])
def test_vetoed_full_sync_does_not_become_no_resync(index: int, name: str, restarts: bool) -> None:
    with pair() as cluster:
        app = cluster.serve(0)
        app.write(1, 2, 3)
        cluster.shells[index].scripts[name] = Script(1)
        cluster.fire(1, "invalidate")
        cluster.until(lambda: cluster.state(index)[1] == ConnectionState.STANDALONE, 20_000, "StandAlone")
        cluster.run(500)
        if restarts:
            cluster.shells[1].crash()
            cluster.start(1)
        assert cluster.state(1)[2] < DiskState.UP_TO_DATE
        del cluster.shells[index].scripts[name]
        for node in (0, 1):
            if cluster.state(node)[1] == ConnectionState.STANDALONE:
                cluster.ask(node, "connect")
        cluster.until(lambda: cluster.in_sync, 120_000, "the resync")
        assert cluster.events(1, "change", "SyncTarget"), "there was one"
        app.stop()
        cluster.check_idle_pair()


def test_link_lost_while_the_handler_runs() -> None:
    with pair() as cluster:
        part(cluster)
        cluster.shells[1].scripts["before-resync-target"] = Script(0, delay_ms=60_000)
        cluster.ask(1, "connect")
        cluster.until(lambda: bool(called(cluster, 1)), 5_000, "the handler")
        cluster.cut(silent=False)
        cluster.until(lambda: not cluster.node(1).is_connected, 20_000, "the loss is seen although the handler runs")
        cluster.shells[1].scripts["before-resync-target"] = Script(0)
        cluster.heal()
        cluster.until(lambda: cluster.in_sync, 60_000, "the resync")
        cluster.run(60_000)
        cluster.check_idle_pair()


@pytest.mark.parametrize("index", [0, 1])
def test_disk_lost_while_the_handler_runs(index: int) -> None:
    """Nothing of the resync goes on without it; with a disk again there is another one."""
    with pair() as cluster:
        part(cluster)
        cluster.shells[index].scripts[NAMES[0] if index else NAMES[2]] = Script(0, delay_ms=3_000)
        cluster.ask(1, "connect")
        cluster.until(lambda: bool(called(cluster, index)), 5_000, "the handler")
        cluster.ask(index, "detach", force=True)
        cluster.until(lambda: cluster.state(index)[2] == DiskState.DISKLESS, 5_000, "the detach")
        cluster.run(5_000)
        assert cluster.state(index)[2] == DiskState.DISKLESS
        assert cluster.state(index)[1] <= ConnectionState.CONNECTED
        cluster.ask(index, "attach")
        cluster.until(lambda: cluster.in_sync, 60_000, "the resync")
        cluster.check_idle_pair()


@pytest.mark.parametrize("comes_back_after_ms", [500, 3_500])
def test_handler_of_a_resync_that_was_broken_off_starts_none(comes_back_after_ms: int) -> None:
    """The target's disk goes while it runs, and comes back for another resync with a handler of its own: before the end
    of the first one or after it."""
    with pair() as cluster:
        part(cluster)
        cluster.shells[0].scripts["before-resync-source"] = Script(0, delay_ms=3_000)
        cluster.ask(1, "connect")
        cluster.until(lambda: called(cluster, 0) != [], 5_000, "the handler")
        cluster.ask(1, "detach")
        cluster.run(comes_back_after_ms)
        assert cluster.state(0)[1] == ConnectionState.CONNECTED
        cluster.ask(1, "attach")
        cluster.until(lambda: len(called(cluster, 0)) == 2, 5_000, "the handler of the next one")
        cluster.run(2_900)
        assert cluster.state(0)[1] == ConnectionState.WF_BITMAP_S, "it waits for its own handler"
        cluster.until(lambda: cluster.in_sync, 60_000, "the resync")
        cluster.check_idle_pair()
