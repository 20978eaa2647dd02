# SPDX-License-Identifier: Apache-2.0
"""The node's side of handlers: started after the metadata is stable, status delivered, seen while they run."""

from __future__ import annotations

from repl.node.handlers import Handlers
from tests.sim.cluster import Cluster, Setup
from tests.sim.node_shell import Script


def handlers(cluster: Cluster) -> Handlers:
    return cluster.node(0).handlers


def test_handler_status_is_delivered_and_shown_while_it_runs() -> None:
    with Cluster(1, Setup(handlers=("split-brain",))) as cluster:
        cluster.connect_fresh()
        cluster.shells[0].scripts["split-brain"] = Script(status=9, delay_ms=500)
        node = cluster.node(0)
        flow = node.start(handlers(cluster).run("split-brain", node.volumes[0]), "test")
        cluster.ask(0, "role")
        cluster.run(200)
        shown = cluster.ask(0, "status")["handlers"]
        assert [(h["handler"], h["volume"]) for h in shown] == [("split-brain", 0)]
        assert shown[0]["running_s"] >= 0.1
        cluster.until(lambda: flow.done.is_done, 1000, "the handler's end")
        assert flow.done.result() == 9
        assert cluster.ask(0, "status")["handlers"] == []


def test_handler_that_is_not_configured_gives_none() -> None:
    with Cluster(2, Setup()) as cluster:
        cluster.connect_fresh()
        flow = cluster.node(0).start(handlers(cluster).run("split-brain"), "test")
        handlers(cluster).notify("out-of-sync", 0)
        cluster.ask(0, "role")
        assert flow.done.is_done and flow.done.result() is None
        assert not cluster.shells[0].handler_calls


def test_handler_waits_for_the_metadata() -> None:
    with Cluster(3, Setup(handlers=("out-of-sync",))) as cluster:
        cluster.connect_fresh()
        node = cluster.node(0)
        before = node.volumes[0].uuids.current
        promotion = cluster.fire(0, "primary")
        handlers(cluster).notify("out-of-sync", 0)
        cluster.until(lambda: bool(cluster.shells[0].handler_calls), 5000, "the handler's start")
        assert cluster.shells[0].handler_calls[0].volume == 0
        cluster.until(lambda: promotion.is_done, 5000, "the promotion")
        assert node.volumes[0].uuids.current == before | 1


def test_disconnected_is_told_how_the_connection_ended() -> None:
    with Cluster(3, Setup(handlers=("disconnected",))) as cluster:
        cluster.connect_fresh()
        cluster.ask(0, "disconnect")
        cluster.until(lambda: len(cluster.shells[1].handler_calls) == 1, 5000, "the peer's handler")
        cluster.ask(0, "connect")
        cluster.until(lambda: cluster.in_sync, 20_000, "connected again")
        cluster.cut()
        cluster.until(lambda: not cluster.connected, 20_000, "lost")
        cluster.run(2000)
        calls = [[c.environment["DRBD_CSTATE"] for c in shell.handler_calls] for shell in cluster.shells]
        assert [c[0] for c in calls] == ["Disconnecting", "TearDown"]
        assert [c[1] for c in calls] == ["NetworkFailure"] * 2
        assert all(len(c) == 2 for c in calls), "an attempt that fails is no connection that is lost"
