# SPDX-License-Identifier: Apache-2.0
"""A metadata disk that does not answer, without disk-timeout: the other volumes go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from repl.drbd.states import ConnectionState, DiskState, Role
from repl.drbd.superblock import MdFlag
from repl.engine.commands import Resync
from tests.lib.tools import require_sim
from tests.sim.cluster import Cluster, Setup
from tests.sim.world import BLOCK

_C = ConnectionState
_D = DiskState
DONE = 1


@contextmanager
def cluster(seed: int = 7) -> Iterator[Cluster]:
    require_sim()
    with Cluster(seed, Setup(external=True, volumes=2)) as pair:
        pair.connect_fresh()
        yield pair


def hang(pair: Cluster, index: int, number: int = 0) -> None:
    pair.shells[index].places[number].md.hold()


def answer(pair: Cluster, index: int, number: int = 0) -> None:
    pair.shells[index].places[number].md.release()


def finish(pair: Cluster, index: int, *apps: object) -> None:
    """Everything comes to an end as if nothing had been."""
    answer(pair, index)
    pair.heal()
    pair.until(lambda: not pair.node(index).late.numbers, 20_000, "caught up")
    pair.until(lambda: pair.in_sync, 60_000, "in sync")
    for app in apps:
        app.stop()  # type: ignore[attr-defined]
        assert app.stats.failed == 0  # type: ignore[attr-defined]
    pair.check_idle_pair()


@pytest.mark.parametrize("seed", range(3))
def test_peer_is_lost_and_the_other_volume_goes_on(seed: int) -> None:
    with cluster(seed) as pair:
        first, second = pair.serve(0, 0), pair.serve(0, 1)
        first.write(1, 2)
        second.write(1, 2)
        hang(pair, 0)
        pair.cut()
        pair.until(lambda: pair.state(0)[1] < _C.CONNECTED, 20_000, "the loss is seen")
        hot = first.submit("write", 1 * BLOCK)  # its extent is in the activity log: the disk itself would take it
        second.write(3, 4)
        assert pair.op(hot).state == 0, "its generation is not durable"
        assert pair.volume(0, 1).state.pdsk == _D.UNKNOWN and pair.volume(0, 1).uuids.bitmap
        assert pair.node(0).late.numbers == [0]
        pair.heal()
        pair.run(5000)
        assert not pair.node(0).is_connected, "a handshake speaks for both volumes"
        assert {f["code"] for f in pair.ask(0, "why")["findings"]} >= {"metadata-late"}
        pair.until(lambda: pair.op(hot).state == 0, 10, "still")
        answer(pair, 0)
        pair.until(lambda: pair.op(hot).state == DONE, 10_000, "the frozen write")
        finish(pair, 0, first, second)


def test_other_volume_is_detached_and_attached_meanwhile() -> None:
    with cluster() as pair:
        app = pair.serve(0, 1)
        app.write(1)
        hang(pair, 0)
        promote = pair.fire(1, "detach", volume=0)  # the Primary begins a generation of its own
        pair.until(lambda: pair.node(0).late.numbers == [0], 10_000, "the first volume is late")
        app.write(2)
        for _ in range(2):
            pair.ask(0, "detach", volume=1, ms=5000)
            app.write(3)
            pair.ask(0, "attach", volume=1, ms=5000)
            pair.until(lambda: pair.volume_in_sync(1), 20_000, "the second volume")
        pair.ask(1, "detach", volume=1, ms=5000)
        pair.until(lambda: pair.volume(0, 1).state.pdsk == _D.DISKLESS, 5000, "told")
        pair.ask(1, "attach", volume=1, ms=5000)
        pair.until(lambda: pair.volume_in_sync(1), 20_000, "the second volume")
        app.write(4)
        assert promote.is_done and pair.node(0).late.numbers == [0]
        answer(pair, 0)
        pair.until(lambda: not pair.node(0).late.numbers, 10_000, "caught up")
        pair.ask(1, "attach", volume=0)
        finish(pair, 0, app)


def test_volume_is_given_up_by_force_and_the_connection_comes_back() -> None:
    with cluster() as pair:
        first, second = pair.serve(0, 0), pair.serve(0, 1)
        first.write(1)
        hang(pair, 1)
        pair.cut()
        pair.until(lambda: pair.node(1).late.numbers == [0], 20_000, "late")
        first.write(2)
        second.write(1)
        pair.heal()
        pair.run(5000)
        assert not pair.connected
        pair.ask(1, "detach", volume=0, force=True, ms=15_000)
        assert pair.state(1)[2] == _D.DISKLESS and not pair.node(1).late.numbers
        pair.until(lambda: pair.connected and pair.volume_in_sync(1), 30_000, "connected")
        first.write(3)
        second.write(2)
        answer(pair, 1)
        pair.until(lambda: 0 not in pair.node(1).disks._leaving, 5000, "the disk is free")
        pair.ask(1, "attach", volume=0)
        finish(pair, 1, first, second)


def test_orders_that_need_every_volume_wait_and_are_carried_out() -> None:
    with cluster() as pair:
        pair.ask(0, "primary")
        hang(pair, 0)
        demote = pair.fire(0, "secondary")
        pair.run(3000)
        assert not demote.is_done and pair.node(0).late.numbers == [0]
        pair.ask(0, "detach", volume=1, ms=5000)
        pair.ask(0, "attach", volume=1, ms=5000)
        pair.ask(0, "disconnect", ms=5000)
        connect = pair.fire(0, "connect")
        pair.run(3000)
        answer(pair, 0)
        pair.until(lambda: demote.is_done and connect.is_done, 10_000, "carried out")
        assert demote.error is None and pair.node(0).role == Role.SECONDARY
        if pair.state(1)[1] == _C.STANDALONE:
            pair.ask(1, "connect")
        finish(pair, 0)
        for number in pair.numbers:
            block = pair.volume(0, number).superblock
            assert block is not None and MdFlag.PRIMARY_IND not in block.flags


def test_down_gives_the_disk_up() -> None:
    with cluster() as pair:
        pair.ask(0, "primary")
        hang(pair, 0)
        pair.cut()
        pair.until(lambda: pair.node(0).late.numbers == [0], 20_000, "late")
        assert pair.ask(0, "down", ms=60_000) == {}


def test_volume_that_waited_for_another_ones_resync_is_late() -> None:
    require_sim()
    slow = Resync(resync_rate_kib=256, plan_ahead=0, max_rate_kib=256, min_rate_kib=0)
    with Cluster(7, Setup(external=True, volumes=2, resync=slow, resync_in_turn=True)) as pair:
        pair.connect_fresh()
        pair.ask(0, "primary")
        for volume in pair.numbers:
            pair.ask(1, "pause-sync", volume=volume)
            pair.ask(1, "invalidate", volume=volume)
        for volume in pair.numbers:
            pair.ask(1, "resume-sync", volume=volume)
        second = pair.volume(0, 1)
        pair.until(lambda: second.state.conn == _C.PAUSED_SYNC_S and second.state.aftr_isp, 10_000, "it waits")
        hang(pair, 0, 1)
        pair.cut(silent=False)
        pair.until(lambda: pair.node(0).late.numbers == [1], 20_000, "the loss is not written")
        pair.run(3000)
        answer(pair, 0, 1)
        pair.heal()
        pair.until(lambda: pair.state(0, 0)[1] == _C.SYNC_SOURCE, 20_000, "the resync of the first one")
        pair.until(lambda: second.state.aftr_isp, 5000, "the second one waits again")
        pair.until(lambda: pair.in_sync, 200_000, "in sync")
        assert not second.state.aftr_isp
        pair.check_idle_pair()


def test_disk_comes_back_to_a_resync_source_that_could_not_yet_write_that_it_has_left() -> None:
    """A P_STATE that shows a disk which is Negotiating is no end of a resync."""
    require_sim()
    slow = Resync(resync_rate_kib=64, plan_ahead=0, max_rate_kib=64, min_rate_kib=0)
    with Cluster(7, Setup(external=True, volumes=2, resync=slow)) as pair:
        pair.connect_fresh()
        pair.ask(0, "primary")
        pair.ask(1, "invalidate", volume=0)
        pair.until(lambda: pair.state(0)[1] == _C.SYNC_SOURCE, 10_000, "the resync")
        hang(pair, 0)
        pair.ask(1, "detach", volume=0)
        pair.until(lambda: pair.node(0).late.numbers == [0], 10_000, "late")
        assert pair.state(0)[1] == _C.SYNC_SOURCE
        attach = pair.fire(1, "attach", volume=0)
        pair.run(3000)
        assert not attach.is_done
        answer(pair, 0)
        pair.until(lambda: attach.is_done, 20_000, "the attach")
        assert attach.error is None
        pair.until(lambda: pair.in_sync, 200_000, "in sync")
        pair.check_idle_pair()
