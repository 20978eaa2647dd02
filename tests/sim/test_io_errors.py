# SPDX-License-Identifier: Apache-2.0
"""Disks that fail, and disks that do not answer: on-io-error, disk-timeout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from repl.drbd.states import ConnectionState, DiskState, Role
from repl.engine.commands import Resync
from repl.errors import StateRefused
from tests.lib.tools import require_sim
from tests.sim.app import App, Load
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.world import BLOCK, MIB

_D = DiskState
READ, WRITE, FLUSH, ZERO = range(4)
EIO = 5
NBD_EIO = 5


@contextmanager
def cluster(seed: int = 31, *, external: bool = False, **overrides: object) -> Iterator[Cluster]:
    require_sim()
    with Cluster(seed, Setup(external=external, overrides=overrides)) as made:
        made.connect_fresh()
        yield made


def disks(pair: Cluster, index: int) -> tuple[DiskState, DiskState]:
    return pair.state(index)[2:]


def bad_block(pair: Cluster, index: int, block: int) -> None:
    pair.shells[index].data.settings(bad_offset=block * BLOCK, bad_length=BLOCK)


def heal_and_attach(pair: Cluster, index: int) -> None:
    for disk in (pair.shells[index].data, pair.shells[index].md):
        disk.heal()
    pair.ask(index, "attach")
    pair.until(lambda: pair.in_sync, 60_000, "in sync again")


# ---- detach ----


@pytest.mark.parametrize("kind", [READ, WRITE, FLUSH, ZERO])
@pytest.mark.parametrize("index", [0, 1])
def test_one_error_detaches_the_disk_and_no_client_sees_it(index: int, kind: int) -> None:
    with cluster() as pair:
        app = pair.serve(0)
        app.write(*range(20))
        pair.shells[index].data.fail_next(kind)
        operation = {READ: "read", WRITE: "write", FLUSH: "flush", ZERO: "zero"}[kind]
        if kind == READ and index == 1:
            pair.ask(0, "detach")
        assert app.do(operation, 3 * BLOCK, fua=kind == FLUSH and index == 1) in ((0, NBD_EIO) if index and kind == READ
                                                                                 else (0,))  # fmt: skip
        if kind == FLUSH and index == 1:
            app.write(4)
        if index == 0 or kind != READ:
            pair.until(lambda: disks(pair, index)[0] == _D.DISKLESS, 20_000, "detached")
            app.write(30, 31)
            assert app.do("read", 30 * BLOCK) == 0
            heal_and_attach(pair, index)
            app.stop()
            pair.check_idle_pair()


@pytest.mark.parametrize("policy", ["detach", "pass_on", "call-local-io-error"])
def test_metadata_errors_detach_whatever_the_policy_is(policy: str) -> None:
    with cluster(external=True, on_io_error=policy) as pair:
        app = pair.serve(0)
        pair.shells[0].md.fail_next(WRITE)
        app.write(1)
        pair.until(lambda: disks(pair, 0)[0] == _D.DISKLESS, 20_000, "detached")
        assert "meta" in pair.events(0, "disk-error")[0]
        app.write(2)
        heal_and_attach(pair, 0)
        app.stop()
        pair.check_idle_pair()


# ---- pass_on ----


def switch(pair: Cluster, old: int) -> App:
    """The roles are swapped in order; an application on the new Primary."""
    pair.until(lambda: pair.volume(old).open_count == 0, 5000, "the client's end")
    pair.ask(old, "secondary")
    pair.until(lambda: pair.node(1 - old).peer_role == Role.SECONDARY, 5000, "the word of the demotion")
    return pair.serve(1 - old)


def test_passed_on_read_error_reads_at_the_peer_and_keeps_the_rest() -> None:
    with cluster(on_io_error="pass_on") as pair:
        app = pair.serve(0)
        app.write(*range(10))
        bad_block(pair, 0, 5)
        assert app.do("read", 5 * BLOCK) == 0
        pair.until(lambda: disks(pair, 1)[1] == _D.INCONSISTENT, 5000, "the peer knows")
        assert disks(pair, 0) == (_D.INCONSISTENT, _D.UP_TO_DATE)
        assert pair.dirty_bits(0) == 1
        before = pair.node(1).stats.volume_stats(0).disk_read_bytes
        assert app.do("read", 4 * BLOCK) == 0
        assert pair.node(1).stats.volume_stats(0).disk_read_bytes == before, "a clean block is read here"
        assert app.do("read", 4 * BLOCK, 2 * BLOCK) == 0
        assert pair.node(1).stats.volume_stats(0).disk_read_bytes > before
        app.write(6)
        for verb in ("disconnect", "detach"):
            with pytest.raises(StateRefused, match="only good"):
                pair.ask(1, verb)
        pair.shells[0].data.heal()
        pair.ask(0, "disconnect", force=True)
        pair.ask(0, "connect")
        pair.until(lambda: pair.in_sync, 20_000, "in sync again")
        app.stop()
        pair.check_idle_pair()


def test_passed_on_write_error_of_the_secondary_stops_replication_until_the_next_connection() -> None:
    with cluster(on_io_error="pass_on") as pair:
        app = pair.serve(0)
        app.write(*range(10))
        pair.shells[1].data.fail_next(WRITE)
        app.write(3)
        pair.until(lambda: disks(pair, 0) == (_D.UP_TO_DATE, _D.INCONSISTENT), 5000, "the peer's disk is doubtful")
        current = pair.volume(0).uuids.current
        received = pair.node(1).stats.volume_stats(0).received_bytes
        app.write(6, 7)
        assert pair.node(1).stats.volume_stats(0).received_bytes == received
        assert pair.dirty_bits(0) == 3 and pair.volume(0).uuids.current == current
        pair.ask(1, "disconnect")
        pair.ask(1, "connect")
        pair.until(lambda: pair.in_sync, 20_000, "in sync again")
        app.stop()
        pair.check_idle_pair()


def test_what_a_secondary_was_not_sent_after_its_error_is_not_read_there_after_a_promotion() -> None:
    with cluster(on_io_error="pass_on") as pair:
        app = pair.serve(0)
        app.write(*range(10))
        pair.shells[1].data.fail_next(WRITE)
        app.write(3)
        pair.until(lambda: disks(pair, 0) == (_D.UP_TO_DATE, _D.INCONSISTENT), 5000, "the peer's disk is doubtful")
        app.write(6, 7)  # not sent
        app.stop()
        other = switch(pair, 0)
        for block in range(10):
            assert other.do("read", block * BLOCK) == 0  # the simulator compares with what was written
        pair.run(10)
        other.stop()
        pair.ask(1, "disconnect", force=True)
        pair.ask(1, "connect")
        pair.until(lambda: pair.in_sync, 20_000, "in sync again")
        pair.check_idle_pair()


def test_what_the_peer_wrote_meanwhile_is_not_read_from_a_disk_that_lost_something() -> None:
    with cluster(on_io_error="pass_on") as pair:
        app = pair.serve(0)
        app.write(*range(10))
        bad_block(pair, 0, 3)
        assert app.do("read", 3 * BLOCK) == 0
        pair.until(lambda: disks(pair, 0) == (_D.INCONSISTENT, _D.UP_TO_DATE), 5000, "the disk is doubtful")
        app.stop()
        other = switch(pair, 0)
        other.write(6, 7)
        other.stop()
        app = switch(pair, 1)
        for block in range(10):
            assert app.do("read", block * BLOCK) == 0
        pair.run(10)
        pair.shells[0].data.heal()
        app.stop()
        pair.ask(0, "disconnect", force=True)
        pair.ask(0, "connect")
        pair.until(lambda: pair.in_sync, 20_000, "in sync again")
        pair.check_idle_pair()


def test_block_that_a_source_fails_to_write_in_the_resync_is_resynced_next() -> None:
    slow = Resync(resync_rate_kib=512, plan_ahead=0, max_rate_kib=512, min_rate_kib=0)
    require_sim()
    with Cluster(31, Setup(resync=slow, overrides={"on_io_error": "pass_on"})) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        pair.cut(silent=False)
        pair.until(lambda: not pair.node(0).is_connected, 20_000, "the loss")
        app.write(*range(100))
        pair.heal()
        pair.until(lambda: pair.state(1)[1] == ConnectionState.SYNC_TARGET, 20_000, "the resync")
        pair.shells[0].data.fail_next(WRITE)
        assert app.do("write", 300 * BLOCK) == NBD_EIO, "no good disk has it"
        pair.until(lambda: pair.state(1)[2] == _D.UP_TO_DATE, 20_000, "the resync's end")
        app.write(5, 6)
        pair.until(lambda: pair.in_sync, 20_000, "both in sync: what one of them calls good is good for both")
        app.stop()
        pair.check_idle_pair()


@pytest.mark.parametrize("protocol", [1, 3], ids="AC")
@pytest.mark.parametrize("use_csums", [False, True], ids=["data", "digests"])
def test_write_that_a_source_fails_in_a_resync_leaves_no_difference(use_csums: bool, protocol: int) -> None:
    """The target has it; its digests, and its acks of what it had written before, are older."""
    resync = Resync(resync_rate_kib=8192, plan_ahead=0, max_rate_kib=8192, min_rate_kib=0, use_csums=use_csums)
    require_sim()
    for seed in range(3):
        setup = Setup(
            net=replace(QUICK_NET, csums_alg="crc32c", protocol=protocol),
            resync=resync,
            external=True,  # the metadata is to be spared
            latency_max_us=20_000,
            overrides={"on_io_error": "pass_on"},
        )
        with Cluster(seed, setup) as pair:
            pair.connect_fresh()
            app = pair.serve(0)
            pair.ask(1, "invalidate")
            pair.until(lambda c=pair: c.state(1)[1] == ConnectionState.SYNC_TARGET, 20_000, "the resync")
            writes = []
            for block in range(8, 400, 4):
                if block % 8 == 0 and protocol == 1:
                    app.write(block)
                pair.shells[0].data.fail_next(WRITE)
                writes.append(app.submit("write", block * BLOCK))
                pair.run(4)
            pair.until(lambda c=pair, w=writes: all(c.op(n).state for n in w), 20_000, "the answers")
            pair.shells[0].data.heal()
            app.stop()
            pair.until(lambda c=pair: c.in_sync, 60_000, "both in sync")
            pair.wait_idle()
            pair.check_equal()


def test_passed_on_write_error_of_the_primary_is_masked_and_resynced() -> None:
    with cluster(on_io_error="pass_on") as pair:
        app = pair.serve(0)
        app.write(*range(10))
        bad_block(pair, 0, 8)
        app.write(8)
        pair.until(lambda: disks(pair, 1)[1] == _D.INCONSISTENT, 5000, "the peer knows")
        assert app.do("read", 8 * BLOCK) == 0, "not the old content of the own disk"
        pair.shells[0].data.heal()
        pair.ask(0, "disconnect", force=True)
        pair.ask(0, "connect")
        pair.until(lambda: pair.in_sync, 20_000, "in sync again")
        app.stop()
        pair.check_idle_pair()


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("source", [0, 1])
def test_passed_on_error_ends_a_verify_because_the_disk_is_not_good_any_more(source: int, index: int) -> None:
    slow = Resync(resync_rate_kib=512, plan_ahead=0, max_rate_kib=512, min_rate_kib=0)
    require_sim()
    net = replace(QUICK_NET, verify_alg="crc32c")
    with Cluster(31, Setup(net=net, resync=slow, overrides={"on_io_error": "pass_on"})) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        app.write(*range(10))
        pair.ask(source, "verify")
        bad_block(pair, index, 8)
        app.write(8)
        pair.until(lambda: disks(pair, index) == (_D.INCONSISTENT, _D.UP_TO_DATE), 5000, "the disk is doubtful")
        pair.until(lambda: disks(pair, 1 - index) == (_D.UP_TO_DATE, _D.INCONSISTENT), 5000, "the peer knows")
        for node in (0, 1):
            assert pair.state(node)[1] == ConnectionState.CONNECTED
            assert pair.ask(node, "wait-verify")["state"] == "interrupted"
        assert app.do("read", 8 * BLOCK) == 0
        pair.shells[index].data.heal()
        pair.world.lib.re_sim_net_reset(pair.world.sim, 0, 1)
        pair.until(lambda: not pair.connected, 20_000, "the loss")
        pair.until(lambda: pair.in_sync, 20_000, "in sync again")
        assert app.do("read", 8 * BLOCK) == 0
        app.stop()
        pair.check_idle_pair()


def test_passed_on_errors_without_a_peer_reach_the_client_and_cost_nothing_else() -> None:
    with cluster(on_io_error="pass_on") as pair:
        app = pair.serve(0)
        app.write(*range(10))
        pair.ask(1, "disconnect")
        app.write(2)
        bad_block(pair, 0, 5)
        assert app.do("read", 5 * BLOCK) == NBD_EIO
        assert app.do("write", 5 * BLOCK) == NBD_EIO
        assert disks(pair, 0)[0] == _D.UP_TO_DATE, "it is the best copy there is"
        app.write(6)
        assert app.do("read", 2 * BLOCK) == 0
        pair.shells[0].data.heal()
        app.write(5)
        pair.ask(1, "connect")
        pair.until(lambda: pair.in_sync, 20_000, "in sync again")
        app.stop()
        pair.check_idle_pair()


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("policy", ["pass_on", "detach"])
@pytest.mark.parametrize("seed", range(4))
def test_errors_of_one_disk_under_load_are_never_seen_by_the_client(seed: int, policy: str, index: int) -> None:
    with cluster(seed, on_io_error=policy) as pair:
        app = pair.serve(0)
        app.load(Load(max_bytes=16384, think_max_ms=2, queue_depth=6))
        pair.run(100)
        pair.shells[index].data.settings(read_error_ppm=20_000, write_error_ppm=20_000)
        pair.run(500)
        app.stop()
        assert app.stats.failed == 0
        pair.shells[index].data.heal()
        if disks(pair, index)[0] == _D.DISKLESS:
            pair.until(lambda: pair.connected, 60_000, "connected")
            pair.ask(index, "attach")
        elif disks(pair, index)[0] == _D.INCONSISTENT:
            pair.ask(index, "disconnect", force=True)
            pair.ask(index, "connect")
        pair.until(lambda: pair.in_sync, 60_000, "in sync again")
        pair.check_idle_pair()


# ---- call-local-io-error ----


def test_local_io_error_handler_runs_before_the_disk_is_let_go() -> None:
    with cluster(on_io_error="call-local-io-error") as pair:
        app = pair.serve(0)
        ran: list[DiskState] = []
        handlers = pair.node(0).handlers

        async def run(name: str, volume: object = None, facts: object = None) -> int:
            if name == "local-io-error":
                ran.append(disks(pair, 0)[0])
            return 0

        handlers.run = run  # type: ignore[method-assign,assignment]
        pair.shells[0].data.fail_next(WRITE)
        app.write(1)
        pair.until(lambda: disks(pair, 0)[0] == _D.DISKLESS, 20_000, "detached")
        assert ran == [_D.FAILED]
        heal_and_attach(pair, 0)
        app.stop()
        pair.check_idle_pair()


# ---- disks that do not answer ----


@pytest.mark.parametrize("index", [0, 1])
def test_disk_timeout_gives_a_hung_disk_up(index: int) -> None:
    with cluster(disk_timeout_ms=2000) as pair:
        app = pair.serve(0)
        app.write(*range(10))
        pair.shells[index].data.hold()
        operations = [app.submit("write", n * BLOCK) for n in range(20, 24)]
        operations.append(app.submit("read", 2 * BLOCK))
        pair.until(lambda: all(pair.op(n).state == 1 for n in operations), 10_000, "the peer answers them")
        assert disks(pair, index)[0] == _D.DISKLESS
        pair.until(lambda: disks(pair, 1 - index)[1] == _D.DISKLESS, 5000, "the peer knows")
        app.load(Load(ops=200, think_max_ms=1))
        pair.run(2000)
        pair.shells[index].data.release()  # late: what comes back finds its buffers as they were
        pair.until(lambda: app.is_idle, 30_000, "the load")
        pair.until(lambda: 0 not in pair.node(index).disks._leaving, 5000, "the disk is free")
        heal_and_attach(pair, index)
        app.stop()
        assert app.stats.failed == 0
        pair.check_idle_pair()


def test_hung_read_that_comes_back_late_does_not_spoil_the_answer_of_the_peer() -> None:
    with cluster(disk_timeout_ms=1000) as pair:
        app = pair.serve(0)
        app.write(7)
        pair.shells[0].data.hold()
        reads = [app.submit("read", 7 * BLOCK) for _ in range(8)]
        pair.until(lambda: all(pair.op(n).state == 1 for n in reads), 10_000, "the peer answers")
        app.write(7)
        again = app.submit("read", 7 * BLOCK)
        pair.shells[0].data.release()
        pair.until(lambda: pair.op(again).state == 1, 10_000, "the second answer")
        heal_and_attach(pair, 0)
        app.stop()
        pair.check_idle_pair()


def test_operator_gives_up_a_disk_that_hangs() -> None:
    with cluster() as pair:
        app = pair.serve(0)
        app.write(1)
        pair.shells[0].data.hold()
        write = app.submit("write", 2 * BLOCK)
        pair.run(3000)
        assert pair.op(write).state == 0 and pair.connected, "pings are answered all the time"
        orderly = pair.fire(0, "detach")
        pair.run(500)
        assert not orderly.is_done
        pair.fire(0, "detach", force=True)
        pair.until(lambda: pair.op(write).state == 1, 5000, "the peer has the data")
        app.write(3)
        pair.shells[0].data.release()
        pair.until(lambda: orderly.is_done, 20_000, "the first detach")
        heal_and_attach(pair, 0)
        app.stop()
        pair.check_idle_pair()


@pytest.mark.parametrize("force", [False, True])
def test_down_does_not_wait_for_ever_for_a_disk_that_hangs(force: bool) -> None:
    with cluster() as pair:
        app = pair.serve(0)
        app.write(1)
        app.stop()
        pair.shells[1].data.hold()
        assert pair.ask(1, "down", ms=60_000, force=force) == {}


def test_error_in_a_new_part_of_a_big_request_marks_only_what_failed() -> None:
    with cluster(on_io_error="pass_on") as pair:
        app = pair.serve(0)
        bad_block(pair, 1, 100)
        assert app.do("write", 96 * BLOCK, 8 * BLOCK) == 0
        pair.until(lambda: disks(pair, 0)[1] == _D.INCONSISTENT, 5000, "told")
        assert 1 <= pair.dirty_bits(0) <= 8 and pair.device_bytes >= MIB


@pytest.mark.parametrize("protocol", [1, 3], ids="AC")
def test_block_that_the_peer_has_just_failed_to_write_is_not_read_there(protocol: int) -> None:
    """Its disk is called UpToDate until the bitmap is stable; read-balancing sends reads to it all that time."""
    require_sim()
    overrides = {"on_io_error": "pass_on", "read_balancing": "prefer-remote"}
    with Cluster(31, Setup(net=replace(QUICK_NET, protocol=protocol), overrides=overrides, external=True)) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        app.write(*range(10))
        pair.shells[1].md.settings(write_min_ns=100_000_000, write_max_ns=100_000_000)
        pair.shells[1].data.fail_next(WRITE)
        app.write(3)
        pair.until(lambda: pair.dirty_bits(1) == 1, 5000, "the error")
        reads = 0
        while pair.state(0)[3] == _D.UP_TO_DATE:
            assert app.do("read", 3 * BLOCK) == 0  # the simulator compares with what was written
            reads += 1
        assert reads > 3
        assert app.do("read", 4 * BLOCK) == 0
        app.stop()
        pair.ask(1, "disconnect", force=True)
        pair.ask(1, "connect")
        pair.until(lambda: pair.in_sync, 20_000, "in sync again")
        pair.check_idle_pair()


@pytest.mark.parametrize("heard", [False, True], ids=["end-not-heard", "end-heard"])
def test_source_that_failed_a_write_goes_on_alone_in_a_generation_of_its_own(heard: bool) -> None:
    """Its target has finished and has the same one: if both went on alone in it, one side's writes would vanish."""
    slow = Resync(resync_rate_kib=512, plan_ahead=0, max_rate_kib=512, min_rate_kib=0)
    require_sim()
    with Cluster(31, Setup(resync=slow, latency_max_us=20_000, overrides={"on_io_error": "pass_on"})) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        pair.cut(silent=False)
        pair.until(lambda: not pair.node(0).is_connected, 20_000, "the loss")
        app.write(*range(100))
        pair.heal()
        pair.until(lambda: pair.state(1)[1] == ConnectionState.SYNC_TARGET, 20_000, "the resync")
        pair.shells[0].data.fail_next(WRITE)
        assert app.do("write", 300 * BLOCK) == NBD_EIO, "no good disk has it"
        pair.until(lambda: pair.state(1)[2] == _D.UP_TO_DATE, 20_000, "the resync's end")
        if heard:
            pair.until(lambda: "marked while the resync ran" in pair.node(0).reason, 5000, "the news of it")
        pair.cut(silent=False)
        pair.until(lambda: not any(pair.node(n).is_connected for n in (0, 1)), 20_000, "the loss")
        app.write(5, 6)
        app.leave(orderly=False)
        pair.shells[0].crash()
        other = pair.serve(1)
        other.write(7)
        pair.heal()
        pair.restart(0)
        pair.until(lambda: pair.state(1)[1] == ConnectionState.STANDALONE, 20_000, "the verdict")
        assert "Split-Brain" in pair.node(1).reason
