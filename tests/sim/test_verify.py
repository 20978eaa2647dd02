# SPDX-License-Identifier: Apache-2.0
"""Online verify between two of our nodes: finds what is planted, nothing else, and repairs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from repl.drbd.digests import DIGESTS
from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState, DiskState, Role
from repl.engine.commands import Resync
from repl.errors import StateRefused, UsageError
from tests.lib.tools import require_sim

BLOCK = 4096
SECTORS = 8
SEEDS = int(os.environ.get("REPL_SIM_SEEDS", "20"))


def make(seed: int, *, algorithm: str = "crc32c", rate_kib: int = 40960, **changes: Any) -> Any:
    require_sim()
    from tests.sim.cluster import QUICK_NET, Cluster, Setup

    net = replace(QUICK_NET, verify_alg=algorithm, **changes.pop("net", {}))
    resync = Resync(resync_rate_kib=rate_kib, plan_ahead=0, max_rate_kib=102400, min_rate_kib=0)
    return Cluster(seed, Setup(net=net, resync=resync, **changes))


@pytest.fixture
def pair() -> Iterator[Any]:
    with make(3) as cluster:
        cluster.connect_fresh()
        yield cluster


def plant(cluster: Any, node: int, *blocks: int) -> None:
    """Change blocks behind the engine's back."""
    for block in blocks:
        cluster.shells[node].data.load(block * BLOCK, bytes([block % 251 + 1]) * BLOCK)


def verify(cluster: Any, node: int = 0, **args: Any) -> dict[str, Any]:
    cluster.until(lambda: cluster.in_sync, 5000, "Connected on both nodes")
    cluster.ask(node, "verify", **args)
    report: dict[str, Any] = cluster.ask(node, "wait-verify")
    return report


def ranges(*blocks: tuple[int, int]) -> list[list[int]]:
    return [[first * SECTORS, count * SECTORS] for first, count in blocks]


@pytest.mark.parametrize("algorithm", sorted(DIGESTS))
def test_verify_finds_exactly_what_is_planted(algorithm: str) -> None:
    with make(4, algorithm=algorithm) as cluster:
        cluster.connect_fresh()
        plant(cluster, 1, 5, 6, 7, 100, 300)
        report = verify(cluster)
        assert report["state"] == "complete"
        assert report["ranges"] == ranges((5, 3), (100, 1), (300, 1))
        assert report["differing_blocks"] == 5 == cluster.dirty_bits(0) == cluster.dirty_bits(1)
        cluster.until(lambda: cluster.in_sync, 5000, "Connected on both nodes")
        other = cluster.node(1).verify.reports[0]
        assert (other.role, other.state, other.ranges) == ("target", "complete", report["ranges"])


def test_verify_of_equal_disks_finds_nothing_and_says_how_much_it_compared(pair: Any) -> None:
    report = verify(pair)
    assert (report["state"], report["differing_blocks"], report["ranges"]) == ("complete", 0, [])
    assert report["blocks"] == -(-pair.device_bytes // BLOCK)


def test_verify_of_a_device_with_a_short_last_block() -> None:
    with make(5, odd_sectors=3) as cluster:
        cluster.connect_fresh()
        last = cluster.device_bytes // BLOCK
        cluster.shells[1].data.load(last * BLOCK, b"\1" * 512)
        assert verify(cluster)["ranges"] == [[last * SECTORS, cluster.device_bytes // 512 - last * SECTORS]]


@pytest.mark.parametrize("source", [0, 1], ids=["primary", "secondary"])
@pytest.mark.parametrize("protocol", [1, 2, 3], ids=["A", "B", "C"])
def test_verify_under_writes_gives_no_false_alarm(source: int, protocol: int) -> None:
    from tests.sim.cluster import Load

    for seed in range(max(1, SEEDS // 4)):
        with make(seed, net={"protocol": protocol}, rate_kib=8192) as cluster:
            cluster.connect_fresh()
            app = cluster.serve(0)
            app.load(Load(think_max_ms=3, hot_percent=80, queue_depth=8))
            for _ in range(2):
                cluster.run(100)
                report = verify(cluster, source)
                assert report["state"] == "complete"
                assert report["differing_blocks"] == 0, f"seed {seed}: {report['ranges']}"
            app.stop()
            cluster.check_idle_pair()


def test_verify_under_writes_still_finds_what_nobody_writes() -> None:
    from tests.sim.cluster import Load

    for seed in range(max(1, SEEDS // 8)):
        with make(seed, rate_kib=8192) as cluster:
            cluster.connect_fresh()
            plant(cluster, 1, 400, 401)
            app = cluster.serve(0)
            app.load(Load(think_max_ms=3, span_length=300 * BLOCK))
            assert verify(cluster)["ranges"] == ranges((400, 2))
            app.stop()


def test_verify_between_start_and_stop_looks_only_there(pair: Any) -> None:
    plant(pair, 1, 5, 100, 300)
    report = verify(pair, start_sector=50 * SECTORS, stop_sector=200 * SECTORS)
    assert report["ranges"] == ranges((100, 1))
    assert report["state"] == "complete" and report["blocks"] == 150
    pair.until(lambda: pair.in_sync, 5000, "Connected on both nodes")


def test_verify_that_is_aborted_goes_on_where_it_was() -> None:
    with make(6, rate_kib=1024) as cluster:
        cluster.connect_fresh()
        plant(cluster, 1, 2, 490)
        cluster.ask(0, "verify")
        cluster.run(700)
        report = cluster.ask(0, "verify-abort")
        assert report["state"] == "stopped" and report["ranges"] == ranges((2, 1))
        reached = report["position_sector"]
        assert 0 < reached < cluster.device_bytes // 512
        cluster.until(lambda: cluster.in_sync, 5000, "Connected on both nodes")
        rest = verify(cluster)
        assert rest["start_sector"] == reached and rest["state"] == "complete"
        assert rest["ranges"] == ranges((490, 1))
        assert report["blocks"] + rest["blocks"] == -(-cluster.device_bytes // BLOCK)


def test_verify_ends_with_the_link_and_keeps_its_position() -> None:
    with make(7, rate_kib=1024) as cluster:
        cluster.connect_fresh()
        cluster.ask(0, "verify")
        cluster.run(700)
        cluster.shells[1].crash()
        cluster.until(lambda: not cluster.node(0).is_connected, 20_000, "the loss of the peer")
        report = cluster.ask(0, "wait-verify")
        assert report["state"] == "interrupted" and report["position_sector"] > 0
        cluster.start(1)
        cluster.until(lambda: cluster.in_sync, 30_000, "the connection")
        assert verify(cluster)["start_sector"] == report["position_sector"]


def test_verify_report_outlives_the_process(pair: Any) -> None:
    plant(pair, 1, 9)
    verify(pair)
    kept = pair.shells[0].remembered["verify"]
    fresh = pair.node(1)
    fresh.verify.reports.clear()
    fresh.remembered("verify", kept)
    assert fresh.status()["volumes"][0]["verify"]["ranges"] == ranges((9, 1))


def test_verify_without_algorithm_is_refused_and_sends_nothing() -> None:
    with make(8, algorithm="") as cluster:
        cluster.connect_fresh()
        with pytest.raises(StateRefused, match="no verify-alg.*\\(-14\\)"):
            cluster.ask(0, "verify")
        assert cluster.world.lib.re_sim_packets_sent(cluster.world.sim, 0, Packet.OV_REQUEST) == 0


def test_verify_without_connection_is_refused(pair: Any) -> None:
    pair.ask(0, "disconnect")
    with pytest.raises(StateRefused, match="needs a connection.*\\(-15\\)"):
        pair.ask(0, "verify")


def test_verify_a_second_time_while_it_runs_is_refused() -> None:
    with make(9, rate_kib=512) as cluster:
        cluster.connect_fresh()
        cluster.ask(0, "verify")
        for node in (0, 1):
            with pytest.raises(StateRefused, match="\\(-8\\)"):
                cluster.ask(node, "verify")


def test_verify_counts_a_block_that_the_source_cannot_read() -> None:
    with make(10, overrides={"on_io_error": "pass_on"}) as cluster:
        cluster.connect_fresh()
        cluster.shells[0].data.settings(bad_offset=40 * BLOCK, bad_length=BLOCK)
        cluster.ask(0, "verify")
        report = cluster.ask(0, "wait-verify")
        assert report["ranges"] in (ranges((40, 1)), []), report
        assert report["state"] in ("complete", "interrupted")


@pytest.mark.parametrize("asker", [0, 1])
@pytest.mark.parametrize("source", ["a", "b"])
def test_repair_copies_from_the_node_that_is_named(asker: int, source: str) -> None:
    with make(11) as cluster:
        cluster.connect_fresh()
        plant(cluster, 1, 5, 6, 200)
        good = cluster.shells["ab".index(source)].data.content(5 * BLOCK, BLOCK)
        connected_since = cluster.world.lib.re_sim_packets_sent(cluster.world.sim, 0, Packet.PROTOCOL)
        report = verify(cluster, asker, repair=True, repair_from=source)
        assert report["repair"] == "done" and report["repair_from"] == source, report
        cluster.until(lambda: cluster.in_sync and not cluster.dirty_bits(0), 20_000, "both in sync")
        assert cluster.differing() == 0
        assert cluster.shells[0].data.content(5 * BLOCK, BLOCK) == good
        assert cluster.shells[1].data.content(5 * BLOCK, BLOCK) == good
        again = cluster.world.lib.re_sim_packets_sent(cluster.world.sim, 0, Packet.PROTOCOL)
        assert again == connected_since, "it had to reconnect"
        assert verify(cluster)["differing_blocks"] == 0


def test_repair_under_writes_copies_from_the_primary() -> None:
    from tests.sim.cluster import Load

    for seed in range(max(1, SEEDS // 8)):
        with make(seed, rate_kib=8192) as cluster:
            cluster.connect_fresh()
            app = cluster.serve(0)
            app.load(Load(think_max_ms=3))
            cluster.run(200)
            plant(cluster, 1, *range(100, 140))
            report = verify(cluster, 1, repair=True)
            assert (report["repair_from"], report["repair"]) == ("a", "done") or not report["differing_blocks"]
            app.stop()
            cluster.until(lambda: cluster.in_sync and not cluster.dirty_bits(0), 20_000, "both in sync")
            cluster.check_idle_pair()


def test_repair_that_loses_the_link_goes_on_with_the_next_one() -> None:
    with make(12, rate_kib=512) as cluster:
        cluster.connect_fresh()
        cluster.ask(0, "primary")
        cluster.shells[0].data.load(0, b"good" * (400 * BLOCK // 4))  # zeroes would be no work
        cluster.ask(0, "verify", repair=True)
        syncing = ConnectionState.SYNC_SOURCE
        cluster.until(lambda: cluster.state(0)[1] == syncing, 20_000, "the repair's start")
        cluster.run(50)
        cluster.shells[1].crash()
        cluster.until(lambda: not cluster.node(0).is_connected, 20_000, "the loss of the peer")
        assert "next connection" in cluster.ask(0, "wait-verify")["repair"]
        cluster.start(1)
        cluster.until(lambda: cluster.in_sync and not cluster.dirty_bits(0), 60_000, "both in sync")
        assert cluster.differing() == 0


def test_verify_with_repair_that_loses_the_link_ends_on_both_nodes_whenever_that_happens() -> None:
    """Nobody waits for a report for ever, and nothing is taken for running when the link is back."""
    for step in range(SEEDS):
        with make(step, rate_kib=512, net={"ping_timeout_ms": 100}) as cluster:
            cluster.connect_fresh()
            cluster.ask(0, "primary")
            cluster.until(lambda c=cluster: c.node(1).peer_role == Role.PRIMARY, 5000, "the news of the promotion")
            plant(cluster, 1, 3, 400)
            asker = step % 2
            begun = cluster.fire(asker, "verify", repair=True)
            cluster.run(3 * step)
            cluster.world.lib.re_sim_net_reset(cluster.world.sim, 0, 1)
            cluster.until(lambda c=cluster: not c.connected, 10_000, "the loss of the link")
            waiters = [cluster.fire(node, "wait-verify") for node in (0, 1)]
            cluster.until(lambda c=cluster: c.in_sync, 30_000, "in sync again")
            cluster.until(lambda a=begun: a.is_done, 1000, "the answer to verify")
            cluster.until(lambda w=waiters: all(a.is_done for a in w), 1000, f"the reports of step {step}")
            report = waiters[asker].result
            assert begun.error is not None or report["state"] in ("interrupted", "complete"), f"step {step}: {report}"
            assert not report or report["repair"] not in ("wanted", "starting", "running"), report


def test_repair_refuses_what_cannot_be_meant(pair: Any) -> None:
    with pytest.raises(UsageError, match="neither node is Primary.*--from a"):
        pair.ask(0, "verify", repair=True)
    pair.ask(0, "primary")
    with pytest.raises(StateRefused, match="a is Primary, its data is in use"):
        pair.ask(1, "verify", repair=True, repair_from="b")
    with pytest.raises(UsageError, match="runs on a and b"):
        pair.ask(0, "verify", repair=True, repair_from="c")


def test_verify_with_differences_runs_the_handler_on_both_nodes() -> None:
    with make(13, handlers=("out-of-sync",)) as cluster:
        cluster.connect_fresh()
        plant(cluster, 1, 5)
        verify(cluster)
        cluster.until(lambda: cluster.in_sync, 5000, "Connected on both nodes")
        cluster.run(100)
        for shell in cluster.shells:
            assert [call.name for call in shell.handler_calls] == ["out-of-sync"]


def test_verify_and_promotion_go_together(pair: Any) -> None:
    pair.ask(0, "verify")
    pair.ask(1, "primary")
    report = pair.ask(0, "wait-verify")
    assert report["differing_blocks"] == 0
    assert pair.state(1)[0] == Role.PRIMARY and pair.state(1)[2] == DiskState.UP_TO_DATE


def test_verify_between_two_primaries_that_write_gives_no_false_alarm() -> None:
    from tests.sim.cluster import Load

    for seed in range(max(1, SEEDS // 4)):
        with make(seed, net={"two_primaries": True}, rate_kib=8192) as cluster:
            cluster.connect_fresh()
            apps = [cluster.serve(node) for node in (0, 1)]
            for app in apps:
                app.load(Load(think_max_ms=5, read_percent=0, hot_percent=80))
            for source in (0, 1):
                report = verify(cluster, source)
                assert (report["state"], report["ranges"]) == ("complete", []), f"seed {seed}"
            for app in apps:
                app.stop()
            cluster.until(lambda c=cluster: c.in_sync, 20_000, "in sync")
            assert cluster.differing() == 0
