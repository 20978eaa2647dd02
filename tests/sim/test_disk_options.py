# SPDX-License-Identifier: Apache-2.0
"""Options of a disk: which copy answers reads, whether the activity log is kept, how epochs are kept apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repl.drbd.packets import Packet
from repl.drbd.states import DiskState
from repl.drbd.superblock import MdFlag
from repl.node import disk as node_disk
from tests.lib.tools import require_sim
from tests.sim.app import Load
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.world import BLOCK

READ, WRITE = range(2)


def make(seed: int = 51, **overrides: object) -> Cluster:
    require_sim()
    cluster = Cluster(seed, Setup(overrides=overrides))
    cluster.connect_fresh()
    return cluster


def remote_reads(pair: Cluster) -> int:
    return int(pair.node(1).stats.volume_stats(0).disk_read_bytes) // BLOCK


@pytest.mark.parametrize(
    ("policy", "least", "most"),
    [
        ("prefer-local", 0, 0),
        ("prefer-remote", 64, 64),
        ("round-robin", 32, 32),
        ("least-pending", 0, 0),  # one at a time: nothing is pending
        ("when-congested-remote", 0, 0),
        ("32K-striping", 32, 32),
        ("128K-striping", 32, 32),
        ("1M-striping", 0, 0),
    ],
)
def test_reads_go_where_the_policy_says(policy: str, least: int, most: int) -> None:
    with make(read_balancing=policy) as pair:
        app = pair.serve(0)
        app.write(*range(64))
        before = remote_reads(pair)
        for block in range(64):
            assert app.do("read", block * BLOCK) == 0
        assert least <= remote_reads(pair) - before <= most
        app.stop()
        pair.check_idle_pair()


def test_least_pending_uses_both_disks_when_one_is_busy() -> None:
    with make(read_balancing="least-pending") as pair:
        app = pair.serve(0)
        app.write(*range(64))
        pair.shells[0].data.settings(read_min_ns=20_000_000, read_max_ns=30_000_000)
        reads = [app.submit("read", block * BLOCK) for block in range(32)]
        pair.until(lambda: all(pair.op(n).state == 1 for n in reads), 10_000, "the answers")
        assert 8 <= remote_reads(pair) < 32
        app.stop()
        pair.check_idle_pair()


@pytest.mark.parametrize("policy", ["prefer-remote", "round-robin", "32K-striping"])
@pytest.mark.parametrize("seed", range(3))
def test_balanced_reads_return_what_was_written_last_whatever_happens_to_the_peer(seed: int, policy: str) -> None:
    with make(seed, read_balancing=policy) as pair:
        app = pair.serve(0)
        app.load(Load(max_bytes=16384, think_max_ms=1, queue_depth=8, read_percent=60))
        pair.run(100)
        pair.shells[1].data.fail_next(READ)
        pair.run(200)
        if pair.state(1)[2] == DiskState.DISKLESS:
            pair.ask(1, "attach")
            pair.until(lambda: pair.in_sync, 30_000, "in sync")
        pair.cut(silent=False)
        pair.run(500)
        pair.heal()
        pair.until(lambda: pair.in_sync, 30_000, "in sync")
        app.stop()
        assert app.stats.failed == 0
        pair.check_idle_pair()


@pytest.mark.parametrize("policy", ["round-robin", "least-pending"])
def test_balanced_reads_beside_a_write_never_go_back_to_the_old_data(policy: str) -> None:
    """The peer's disk has it long before the own one."""
    with make(read_balancing=policy) as pair:
        app = pair.serve(0)
        app.write(*range(8))
        pair.shells[0].data.settings(write_min_ns=400_000_000, write_max_ns=500_000_000)
        write = app.submit("write", 0)
        pair.run(100)
        for others in (2, 3, 4, 5, 4, 0):  # each policy turns to both disks
            busy = [app.submit("read", block * BLOCK) for block in range(2, 2 + others)]
            assert app.do("read", 0) == 0
            pair.until(lambda b=busy: all(pair.op(n).state == 1 for n in b), 1000, "the answers")
        assert pair.op(write).state == 0, "it has to be under way"
        app.stop()
        pair.check_idle_pair()


@pytest.mark.parametrize("protocol", [1, 3])
def test_balanced_reads_never_return_what_the_disk_of_the_peer_refused_to_replace(protocol: int) -> None:
    """With on-io-error pass_on its state changes after the write's answer: reads on their way are refused there, and
    none starts for a block that differs."""
    require_sim()
    setup = Setup(
        net=replace(QUICK_NET, protocol=protocol),
        wake_max_us=20_000,  # the daemon takes longer than the engine
        overrides={"read_balancing": "prefer-remote", "on_io_error": "pass_on"},
    )
    for seed in range(10):
        with Cluster(seed, setup) as pair:
            pair.connect_fresh()
            app = pair.serve(0)
            app.write(*range(8))
            assert app.do("read", 0) == 0
            pair.shells[1].data.settings(write_min_ns=30_000_000, write_max_ns=40_000_000)
            pair.shells[1].data.fail_next(WRITE)
            assert app.do("write", 0) == 0
            for _ in range(5):
                asked = pair.world.lib.re_sim_packets_sent(pair.world.sim, 0, int(Packet.DATA_REQUEST))
                differs = pair.dirty_bits(0)
                assert app.do("read", 0) == 0
                if differs:
                    assert pair.world.lib.re_sim_packets_sent(pair.world.sim, 0, int(Packet.DATA_REQUEST)) == asked
            pair.until(lambda: pair.state(0)[3] == DiskState.INCONSISTENT, 5000, "the peer's state")
            pair.ask(1, "disconnect", force=True)
            pair.ask(1, "connect")
            pair.until(lambda: pair.in_sync, 30_000, "in sync")
            app.stop()
            pair.check_idle_pair()


def test_without_activity_log_a_crashed_primary_differs_everywhere() -> None:
    with make(al_updates=False) as pair:
        app = pair.serve(0)
        app.write(*range(100))
        stats = pair.node(0).stats.volume_stats(0)
        assert stats.al_writes == 0
        assert MdFlag.AL_DISABLED in node_disk.find_superblock(pair.shells[0].place)[0].flags
        pair.shells[0].crash()
        pair.restart(0)
        pair.until(lambda: pair.in_sync, 60_000, "in sync")
        blocks = -(-pair.device_bytes // BLOCK)
        assert pair.events(0, text=f"{blocks} blocks (") or pair.events(1, text=f"{blocks} blocks (")
        pair.check_idle_pair()


def test_without_activity_log_an_orderly_end_keeps_the_bitmap() -> None:
    with make(al_updates=False) as pair:
        app = pair.serve(0)
        pair.ask(1, "disconnect")
        app.write(*range(0, 100, 3))
        app.stop()
        pair.ask(0, "down")
        pair.until(lambda: not pair.shells[0].is_running, 5000, "the end")
        pair.start(0)
        assert pair.dirty_bits(0) == 34
        pair.ask(1, "connect")
        pair.until(lambda: pair.in_sync, 60_000, "in sync")
        pair.check_idle_pair()


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, "flush"), ({"disk_flushes": False}, "drain"), ({"disk_flushes": False, "disk_drain": False}, "none")],
)
def test_write_ordering_is_shown(options: dict[str, bool], expected: str) -> None:
    with make(**options) as pair:
        assert pair.ask(0, "status")["volumes"][0]["write_ordering"] == expected
        app = pair.serve(0)
        app.write(1, 2)
        assert app.do("flush") == 0
        flushes = pair.node(1).stats.volume_stats(0).disk_flushes
        app.write(3)
        pair.run(200)
        assert (pair.node(1).stats.volume_stats(0).disk_flushes > flushes) == (expected == "flush")
