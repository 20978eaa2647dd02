# SPDX-License-Identifier: Apache-2.0
"""Two Primaries: writes of both nodes to the same blocks cross on the wire, and both disks end up the same.

The history has one register per sector with two writers; reads are left out, since a node serves its own writes before
the other one has them (decision 0015).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState, DiskState, Role
from repl.errors import ReplError
from tests.sim.two_primaries import both_primary, check, made_clusters, written_by

BLOCK = 4096


@pytest.fixture
def clusters() -> Iterator[Any]:
    yield from made_clusters()


def flag_node(cluster: Any) -> int:
    """The node with the resolve-conflicts flag."""
    flags = [cluster.node(n).connection.resolve_conflicts for n in (0, 1)]
    assert sorted(flags) == [False, True]
    return flags.index(True)


def conflicts(cluster: Any, node: int) -> int:
    return int(cluster.node(node).stats.volume_stats(0).conflicts)


def sent(cluster: Any, node: int, packet: Packet) -> int:
    return int(cluster.world.lib.re_sim_packets_sent(cluster.world.sim, node, int(packet)))


def both_write(cluster: Any, apps: list[Any], ms: float, **load: Any) -> None:
    from tests.sim.cluster import Load

    lib, sim = cluster.world.lib, cluster.world.sim
    for app in apps:
        app.load(Load(read_percent=0, **load))
    cluster.run(ms)
    for app in apps:
        lib.re_sim_workload_stop(sim, app.number)
    for app in apps:
        cluster.until(lambda app=app: app.is_idle or app.is_closed, 60_000, "the last answers")


def test_second_promotion_and_demotions(clusters: Any) -> None:
    cluster = clusters()
    cluster.connect_fresh()
    cluster.ask(0, "primary")
    cluster.ask(1, "primary")
    assert [cluster.node(n).peer_role for n in (0, 1)] == [Role.PRIMARY] * 2
    cluster.ask(0, "secondary")
    cluster.until(lambda: cluster.node(1).peer_role == Role.SECONDARY, 5000, "the word of the demotion")
    app = cluster.serve(1)
    app.write(1, 2, 3)
    app.stop()
    check(cluster)


def test_both_are_promoted_at_once(clusters: Any) -> None:
    cluster = clusters(latency_max_us=20_000)
    cluster.connect_fresh()
    answers = [cluster.fire(n, "primary") for n in (0, 1)]
    cluster.until(lambda: all(a.is_done for a in answers), 20_000, "both promotions")
    assert [a.error for a in answers] == [None, None]
    cluster.until(lambda: all(cluster.node(n).peer_role == Role.PRIMARY for n in (0, 1)), 5000, "both know")


def test_settings_must_agree(clusters: Any) -> None:
    from tests.sim.cluster import QUICK_NET

    cluster = clusters(other_net=QUICK_NET)
    cluster.start()
    cluster.until(lambda: cluster.stand_alone, 30_000, "both StandAlone")
    assert all("allow-two-primaries" in cluster.node(n).reason for n in (0, 1))


def test_without_the_setting_the_second_promotion_is_refused(clusters: Any) -> None:
    cluster = clusters(net={"two_primaries": False})
    cluster.connect_fresh()
    cluster.ask(0, "primary")
    with pytest.raises(ReplError, match="is Primary"):
        cluster.ask(1, "primary")


@pytest.mark.parametrize("of_flag, of_other", [
    ((0, 2), (0, 2)), ((0, 4), (1, 1)), ((1, 1), (0, 4)), ((1, 2), (0, 2)),
])  # fmt: skip
def test_writes_that_cross_are_both_carried_out_and_that_of_the_flag_holder_remains(
    clusters: Any, of_flag: tuple[int, int], of_other: tuple[int, int]
) -> None:
    cluster, apps = both_primary(clusters)
    cluster.world.net(latency_min_ns=15_000_000, latency_max_ns=15_000_000)
    flag = flag_node(cluster)
    areas = {flag: of_flag, 1 - flag: of_other}
    ops = {n: apps[n].submit("write", areas[n][0] * BLOCK, areas[n][1] * BLOCK) for n in (0, 1)}
    cluster.until(lambda: all(cluster.op(op).state for op in ops.values()), 5000, "both answers")
    assert all(cluster.op(op).error == 0 for op in ops.values())
    assert conflicts(cluster, flag) == 1
    for node in (0, 1):
        assert sent(cluster, node, Packet.SUPERSEDED) == sent(cluster, node, Packet.RETRY_WRITE) == 0
    common = max(of_flag[0], of_other[0])
    assert written_by(cluster, 0, common * BLOCK) == ops[flag]
    check(cluster)


@pytest.mark.parametrize("latency_us", [300, 5_000])
def test_random_writes_of_both_nodes_leave_the_same_content(clusters: Any, sim_seed: int, latency_us: int) -> None:
    cluster, apps = both_primary(clusters, sim_seed, latency_max_us=latency_us)
    both_write(cluster, apps, 1500, span_length=128 << 10, queue_depth=6, think_max_ms=3, align_bytes=512)
    check(cluster)
    assert conflicts(cluster, flag_node(cluster)) > 0
    for app in apps:
        assert app.do("flush") == 0
        app.stop()
    for node in (0, 1):
        cluster.ask(node, "secondary")
        engine = cluster.node(node).stats.engine_stats()
        assert (engine.transfer_log, engine.epochs_open) == (0, 0)
    cluster.check_equal()


def test_neither_node_starves_under_the_load_of_the_other(clusters: Any, sim_seed: int) -> None:
    from tests.sim.cluster import Load

    cluster, apps = both_primary(clusters, sim_seed, latency_max_us=1000)
    loud = sim_seed % 2
    load = Load(read_percent=0, flush_percent=0, span_length=24 << 10, queue_depth=12, think_max_ms=0,
                max_bytes=16384, align_bytes=512)  # fmt: skip
    apps[loud].load(load)
    cluster.run(100)
    for block in (0, 1, 2, 3, 4) * 3:
        assert apps[1 - loud].do("write", block * BLOCK, 2 * BLOCK, ms=1000) == 0
    assert conflicts(cluster, flag_node(cluster)) > 0
    apps[loud].stop(2000)
    check(cluster)


def test_suspended_io_holds_up_no_write_of_the_other_node(clusters: Any) -> None:
    cluster, apps = both_primary(clusters, latency_max_us=3000)
    flag = flag_node(cluster)
    for node in (flag, 1 - flag):
        op = apps[node].submit("write", 0, 4 * BLOCK)
        cluster.run(0.5)
        cluster.ask(node, "suspend-io")
        waiting = apps[node].submit("write", 2 * BLOCK, 4 * BLOCK)
        for block in range(6):
            assert apps[1 - node].do("write", block * BLOCK, ms=2000) == 0
        assert [cluster.op(o).state for o in (op, waiting)] == [0, 0]
        cluster.ask(node, "resume-io")
        cluster.until(lambda ops=(op, waiting): all(cluster.op(o).state for o in ops), 2000, "the frozen writes")
    check(cluster)


def test_lost_link_makes_both_go_on_and_then_refuse_each_other(clusters: Any, sim_seed: int) -> None:
    cluster, apps = both_primary(clusters, sim_seed, latency_max_us=3000)
    from tests.sim.cluster import Load

    for app in apps:
        app.load(Load(read_percent=0, span_length=128 << 10, queue_depth=6, think_max_ms=3, align_bytes=512))
    cluster.run(300)
    before = [cluster.volume(n).uuids.current for n in (0, 1)]
    cluster.cut(silent=bool(sim_seed % 2))
    cluster.until(lambda: not any(cluster.node(n).is_connected for n in (0, 1)), 20_000, "the loss of the link")
    cluster.run(300)
    for app in apps:
        cluster.world.lib.re_sim_workload_stop(cluster.world.sim, app.number)
    cluster.until(lambda: all(app.is_idle for app in apps), 30_000, "the last answers")
    after = [cluster.volume(n).uuids.current for n in (0, 1)]
    assert len({u | 1 for u in (*before, *after)}) == 3  # one generation together, then one each
    assert all(app.do("write") == 0 for app in apps)
    cluster.check_coverage("two Primaries without a link")
    cluster.heal()
    cluster.until(lambda: cluster.stand_alone, 60_000, "the split brain")
    assert all(re.search("[Ss]plit", cluster.node(n).reason) for n in (0, 1))
    for app in apps:
        app.stop()
    loser = sim_seed // 2 % 2
    cluster.ask(loser, "secondary")
    cluster.ask(loser, "connect", discard_my_data=True)
    cluster.ask(1 - loser, "connect")
    cluster.until(lambda: cluster.in_sync, 60_000, "the survivor's data on both")
    cluster.wait_idle()
    cluster.check_equal()
    cluster.check_audit(0, 0, "after the split brain")


def test_crash_of_one_primary_is_covered_by_activity_log_and_bitmap(clusters: Any, sim_seed: int) -> None:
    cluster, apps = both_primary(clusters, sim_seed, latency_max_us=3000)
    from tests.sim.cluster import Load
    from tests.sim.world import ACKED

    for app in apps:
        app.load(Load(read_percent=0, span_length=256 << 10, queue_depth=6, think_max_ms=3, align_bytes=512))
    cluster.run(300 + sim_seed % 7 * 10)
    dead = sim_seed % 2
    cluster.shells[dead].crash()
    alive = 1 - dead
    cluster.until(lambda: not cluster.node(alive).is_connected, 20_000, "the loss of the link")
    cluster.world.lib.re_sim_workload_stop(cluster.world.sim, apps[alive].number)
    cluster.until(lambda: apps[alive].is_idle, 30_000, "the last answers")
    cluster.check_coverage("one Primary is dead")
    cluster.restart(dead)
    cluster.until(lambda: cluster.in_sync, 60_000, "the resync")
    cluster.wait_idle()
    cluster.check_equal()
    cluster.check_audit(alive, ACKED, "after the other Primary's crash")


def test_short_window_of_two_primaries_for_a_migration(clusters: Any) -> None:
    cluster = clusters(latency_max_us=2000)
    cluster.connect_fresh()
    first = cluster.serve(0)
    first.write(*range(8))
    second = cluster.serve(1)  # the target of the migration opens its device before the source has closed it
    first.write(8)
    first.stop()
    cluster.until(lambda: cluster.node(0).role == Role.SECONDARY, 10_000, "the source's demotion")
    second.write(9, 10)
    second.stop()
    check(cluster)
    assert cluster.state(1)[1:] == (ConnectionState.CONNECTED, DiskState.UP_TO_DATE, DiskState.UP_TO_DATE)


def test_short_interruption_under_stonith_sends_both_nodes_writes_again(clusters: Any, sim_seed: int) -> None:
    from tests.sim.cluster import Load
    from tests.sim.node_shell import Script

    cluster = clusters(sim_seed, net={"fencing": "resource-and-stonith"}, handlers=("fence-peer", "unfence-peer"),
                       latency_max_us=3000)  # fmt: skip
    cluster.connect_fresh()
    apps = [cluster.serve(0), cluster.serve(1)]
    for shell in cluster.shells:
        shell.scripts["fence-peer"] = Script(1, delay_ms=200)  # it does not help: I/O stays frozen
    for app in apps:
        app.load(Load(read_percent=0, span_length=128 << 10, queue_depth=6, think_max_ms=3, align_bytes=512))
    for _ in range(4):
        cluster.run(200 + sim_seed % 5 * 17)
        cluster.cut(silent=bool(sim_seed % 2))
        cluster.until(lambda: not any(cluster.node(n).is_connected for n in (0, 1)), 20_000, "the loss of the link")
        cluster.run(300)
        cluster.heal()
        cluster.until(lambda: cluster.in_sync or cluster.stand_alone, 60_000, "the connection")
    for app in apps:
        cluster.world.lib.re_sim_workload_stop(cluster.world.sim, app.number)
    assert not cluster.stand_alone
    cluster.until(lambda: all(app.is_idle or app.is_closed for app in apps), 60_000, "the last answers")
    check(cluster)
