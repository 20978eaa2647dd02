# SPDX-License-Identifier: Apache-2.0
"""A Primary whose own disk has lost blocks works on its peer's, which fails a flush and loses what it had cached."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repl.drbd.states import DiskState
from tests.lib.tools import require_sim
from tests.sim.app import App
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.world import BLOCK, STRICT

D = DiskState
FLUSH = 2
NBD_EIO = 5


def on_the_peers_disk(protocol: int, on_no_data: str) -> tuple[Cluster, App]:
    """Node 0 serves, and node 1 has the only good copy."""
    require_sim()
    net = replace(QUICK_NET, protocol=protocol)
    cluster = Cluster(31, Setup(net=net, on_no_data=on_no_data, overrides={"on_io_error": "pass_on"}))
    cluster.connect_fresh()
    app = cluster.serve(0)
    app.write(*range(10))
    cluster.shells[0].data.settings(bad_offset=8 * BLOCK, bad_length=BLOCK)
    app.write(8)
    cluster.until(lambda: cluster.state(1)[2:] == (D.UP_TO_DATE, D.INCONSISTENT), 5000, "the peer knows")
    assert app.do("flush") == 0
    cluster.shells[0].data.heal()
    return cluster, app


def test_a_disk_that_fails_beside_a_good_one_is_not_called_the_last_copy() -> None:
    require_sim()
    with Cluster(31, Setup()) as cluster:
        cluster.connect_fresh()
        app = cluster.serve(0)
        cluster.shells[1].data.fail_next(FLUSH)
        app.write(1)
        cluster.until(lambda: cluster.state(1)[2] == D.DISKLESS, 5000, "the peer lets its disk go")
        said = cluster.ask(1, "status")["volumes"][0]["disk_error"]
        assert "flush error" in said and "copy" not in said


def acknowledged_before_a_flush_fails(cluster: Cluster, app: App) -> None:
    """Four writes; the peer's flush for them is under way and will fail."""
    slow = 50_000_000
    cluster.shells[1].data.settings(flush_min_ns=slow, flush_max_ns=slow)
    cluster.shells[1].data.fail_next(FLUSH)
    ops = [app.submit("write", block * BLOCK) for block in range(4, 8)]
    done = cluster.world.lib.RE_SIM_OP_DONE
    cluster.until(lambda: all(cluster.op(op).state == done for op in ops), 40, "the acknowledgements")


def lose_the_cache(cluster: Cluster) -> None:
    """What a failed flush has left there is dropped."""
    for disk in cluster.shells[1].disks:
        disk.heal()
        cluster.world.lib.re_sim_disk_power_loss(cluster.world.sim, disk.number)


@pytest.mark.parametrize("protocol", [1, 2, 3])
def test_a_flush_is_not_answered_for_a_peer_whose_disk_fails_it(protocol: int) -> None:
    cluster, app = on_the_peers_disk(protocol, "io-error")
    with cluster:
        acknowledged_before_a_flush_fails(cluster, app)
        assert app.do("flush") == NBD_EIO
        cluster.until(lambda: cluster.state(1)[2] == D.DISKLESS, 5000, "the peer lets its disk go")
        said = cluster.ask(1, "status")["volumes"][0]["disk_error"]
        assert "flush error" in said and "no other good copy" in said


@pytest.mark.parametrize("protocol", [1, 2, 3])
@pytest.mark.parametrize("restarts", [True, False], ids=["restarts", "attaches"])
def test_kept_writes_wait_for_the_disk_of_a_peer_that_comes_back_without_it(protocol: int, restarts: bool) -> None:
    cluster, app = on_the_peers_disk(protocol, "suspend-io")
    with cluster:
        acknowledged_before_a_flush_fails(cluster, app)
        flush = app.submit("flush")
        cluster.until(lambda: cluster.state(0)[3] == D.DISKLESS and cluster.connected, 20_000, "it is back without it")
        waits = app.submit("write", 12 * BLOCK)
        cluster.run(100)
        assert all(cluster.op(op).state == cluster.world.lib.RE_SIM_OP_PENDING for op in (waits, flush))
        if restarts:
            cluster.ask(1, "down", force=True)
            cluster.until(lambda: not cluster.shells[1].is_running, 5000, "its end")
        lose_the_cache(cluster)
        if restarts:
            cluster.restart(1)
        else:
            cluster.ask(1, "attach")
        done = cluster.world.lib.RE_SIM_OP_DONE
        cluster.until(lambda: all(cluster.op(op).state == done for op in (waits, flush)), 30_000, "the answers")
        cluster.until(lambda: cluster.in_sync, 30_000, "in sync")
        assert app.do("read", 4 * BLOCK, 8 * BLOCK) == 0
        app.stop()
        cluster.check_audit(0, STRICT)
        cluster.check_idle_pair()


def test_an_operator_ends_the_wait_for_a_disk_that_does_not_come_back() -> None:
    cluster, app = on_the_peers_disk(3, "suspend-io")
    with cluster:
        acknowledged_before_a_flush_fails(cluster, app)
        flush = app.submit("flush")
        cluster.until(lambda: cluster.state(0)[3] == D.DISKLESS and cluster.connected, 20_000, "it is back without it")
        cluster.ask(0, "resume-io")
        cluster.until(lambda: cluster.op(flush).error == NBD_EIO, 5000, "the flush's error")
        assert app.do("write", 12 * BLOCK) == NBD_EIO
        app.stop()
        cluster.until(lambda: not cluster.volume(0).open_count, 5000, "the end of the application")
        cluster.ask(0, "secondary")


def test_a_demotion_ends_the_wait_for_a_disk_that_does_not_come_back() -> None:
    cluster, app = on_the_peers_disk(3, "suspend-io")
    with cluster:
        acknowledged_before_a_flush_fails(cluster, app)
        cluster.until(lambda: cluster.state(0)[3] == D.DISKLESS and cluster.connected, 20_000, "it is back without it")
        app.leave()
        cluster.until(lambda: not cluster.volume(0).open_count, 5000, "the end of the application")
        cluster.ask(0, "secondary")
        assert not cluster.node(0).suspension.active and not cluster.node(0).suspension.kept
