# SPDX-License-Identifier: Apache-2.0
"""Devices grow and shrink: by order, because the peer's did, at connect; metadata moves along."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from repl.drbd.states import ConnectionState, DiskState
from repl.errors import ReplError, RequestRefused, UsageError
from repl.node import disk as node_disk
from repl.node import resize as resize_module
from tests.lib.tools import require_sim
from tests.sim.app import Load
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.node_shell import Script
from tests.sim.world import BLOCK, MIB

DONE = 1
SMALL, LARGE = 6 * MIB, 10 * MIB


@contextmanager
def cluster(seed: int = 41, *, fresh: bool = True, sizes: tuple[int, int] = (SMALL, SMALL)) -> Iterator[Cluster]:
    """Disks of 10 MiB that look smaller at first."""
    require_sim()
    with Cluster(seed, Setup(disk_bytes=LARGE, has_metadata=False)) as made:
        for shell, size in zip(made.shells, sizes, strict=True):
            shell.data.size_bytes = size
            node_disk.create_metadata(shell.place, device_uuid=made.world.random64())
        made.device_bytes = usable(made, 0) * 512
        made.history = int(made.world.lib.re_sim_history_create(made.world.sim, LARGE))
        if fresh:
            made.connect_fresh()
        yield made


def usable(pair: Cluster, index: int) -> int:
    place = pair.shells[index].place
    return node_disk.measure(place, al_stripes=1, al_stripe_size_4k=8)[1]


def grow_disk(pair: Cluster, *indexes: int, size: int = LARGE) -> None:
    for index in indexes:
        pair.shells[index].data.size_bytes = size


def down(pair: Cluster, index: int) -> None:
    pair.ask(index, "down")
    pair.until(lambda: not pair.shells[index].is_running, 5000, "the process's end")


def check(pair: Cluster, size_sectors: int) -> None:
    pair.until(lambda: [pair.volume(n).size_sectors for n in (0, 1)] == [size_sectors] * 2, 10_000, "the new size")
    pair.device_bytes = size_sectors * 512
    pair.until(lambda: pair.in_sync, 30_000, "in sync")
    for index in (0, 1):
        assert pair.node(index).stats.volume_stats(0).size_bytes == pair.device_bytes
        found, where = node_disk.find_superblock(pair.shells[index].place)
        assert found.la_size_sectors == size_sectors and not found.all_dirty
        assert where.device_bytes == pair.shells[index].data.size_bytes


@pytest.mark.parametrize("primary", [0, 1])
@pytest.mark.parametrize("asked", [0, 1])
def test_both_disks_grew_and_either_node_is_asked(asked: int, primary: int) -> None:
    with cluster() as pair:
        app = pair.serve(primary)
        app.write(*range(0, 1000, 50))
        app.load(Load(max_bytes=16384, think_max_ms=2, span_length=SMALL // 2))
        pair.run(50)
        grow_disk(pair, 0, 1)
        assert pair.ask(asked, "resize")["has_changed"]
        check(pair, usable(pair, 0))
        assert pair.events(1 - primary, text="blocks ("), "the new part was copied"
        last = pair.device_bytes // BLOCK - 1
        app.write(last)
        app.stop()
        assert app.stats.failed == 0
        pair.check_idle_pair()
        pair.shells[primary].crash()
        pair.restart(primary)
        pair.until(lambda: pair.in_sync, 30_000, "in sync after a crash")


def test_resync_of_the_new_part_copies_nothing_else() -> None:
    with cluster() as pair:
        app = pair.serve(0)
        before = pair.device_bytes
        grow_disk(pair, 0, 1)
        pair.ask(0, "resize")
        check(pair, usable(pair, 0))
        new_blocks = -(-pair.device_bytes // BLOCK) - before // BLOCK
        assert pair.events(0, text=f"{new_blocks} blocks (")
        app.stop()
        pair.check_idle_pair()


def test_assume_clean_copies_nothing() -> None:
    with cluster() as pair:
        app = pair.serve(0)
        current = pair.volume(0).uuids
        grow_disk(pair, 0, 1)
        pair.ask(0, "resize", assume_clean=True)
        check(pair, usable(pair, 0))
        assert not pair.events(0, text="SyncSource") and pair.volume(0).uuids == current
        app.stop()
        pair.check_idle_pair()


def test_device_stays_while_only_one_disk_grew_and_its_metadata_moves() -> None:
    with cluster() as pair:
        app = pair.serve(0)
        grow_disk(pair, 0)
        assert not pair.ask(0, "resize")["has_changed"]
        app.write(1, 2)
        before = usable(pair, 1)
        check(pair, before)
        grow_disk(pair, 1)
        assert pair.ask(1, "resize")["has_changed"]
        check(pair, usable(pair, 1))
        app.stop()
        pair.check_idle_pair()


def test_size_option_takes_less_than_there_is_and_shrinks_only_when_told_twice() -> None:
    with cluster() as pair:
        app = pair.serve(0)
        grow_disk(pair, 0, 1)
        first = pair.device_bytes // 512
        pair.ask(0, "resize", size_sectors=first + 2048)
        check(pair, first + 2048)
        with pytest.raises(UsageError, match="less than"):
            pair.ask(0, "resize", size_sectors=first)
        pair.ask(0, "resize", size_sectors=first, force=True)
        check(pair, first)
        assert app.do("read", first * 512 - BLOCK) == 0
        assert app.do("read", first * 512) != 0
        with pytest.raises(RequestRefused, match="room for"):
            pair.ask(0, "resize", size_sectors=1 << 30)
        app.stop()
        pair.check_idle_pair()


def test_peer_away_needs_a_word_and_the_new_part_is_copied_later() -> None:
    with cluster() as pair:
        app = pair.serve(0)
        pair.ask(1, "disconnect")
        grow_disk(pair, 0, 1)
        with pytest.raises(RequestRefused, match="peer's disk is not there") as caught:
            pair.ask(0, "resize")
        assert caught.value.number == -15
        assert pair.ask(0, "resize", assume_peer_has_space=True)["has_changed"]
        app.write(usable(pair, 0) * 512 // BLOCK - 1)
        down(pair, 1)
        pair.start(1)  # its own metadata moves when it is attached
        pair.until(lambda: pair.connected, 20_000, "the connection")
        check(pair, usable(pair, 0))
        app.stop()
        pair.check_idle_pair()


def test_disks_that_grew_while_both_were_down_are_used_at_connect() -> None:
    with cluster() as pair:
        app = pair.serve(0)
        app.write(*range(0, 700, 30))
        app.stop()
        for index in (0, 1):
            down(pair, index)
        grow_disk(pair, 0, 1)
        pair.start()
        check(pair, usable(pair, 0))
        pair.check_idle_pair()


def test_crashed_primary_whose_disk_grew_meanwhile_forgets_nothing() -> None:
    with cluster() as pair:
        app = pair.serve(0)
        pair.shells[1].crash()
        pair.until(lambda: not pair.node(0).is_connected, 20_000, "the loss")
        app.write(*range(0, 1400, 9))
        pair.shells[0].crash()
        grow_disk(pair, 0, size=8 * MIB)
        pair.restart(0)
        pair.restart(1)
        pair.until(lambda: pair.in_sync, 30_000, "in sync")
        pair.wait_idle()
        pair.check_equal()


def test_diskless_node_follows_the_size() -> None:
    with cluster() as pair:
        app = pair.serve(0)
        pair.ask(0, "detach")
        grow_disk(pair, 1)
        pair.ask(1, "resize", assume_peer_has_space=True)
        pair.until(lambda: pair.volume(0).size_sectors == usable(pair, 1), 5000, "the size")
        last = usable(pair, 1) * 512 // BLOCK - 1
        app.write(last)
        with pytest.raises(ReplError, match="room for"):
            pair.ask(0, "attach")
        grow_disk(pair, 0)
        pair.ask(0, "attach")
        check(pair, usable(pair, 0))
        app.stop()
        pair.check_idle_pair()


@pytest.mark.parametrize("primary", [0, 1])
def test_disks_that_grew_are_used_when_one_is_attached_again(primary: int) -> None:
    with cluster() as pair:
        app = pair.serve(primary)
        app.write(*range(50))
        pair.ask(1, "detach")
        app.write(*range(20, 70))
        grow_disk(pair, 0, 1)
        pair.ask(1, "attach")
        check(pair, usable(pair, 0))
        assert not pair.events(0, "connection", "lost") and not pair.events(1, "connection", "lost")
        app.write(pair.device_bytes // BLOCK - 1)
        app.stop()
        pair.check_idle_pair()


def test_disk_that_grew_unseen_is_left_alone_while_bitmaps_are_exchanged() -> None:
    """The new, larger disk of the peer takes the smaller size and says so: that is no order to look again."""
    with cluster() as pair:
        app = pair.serve(1)
        app.write(*range(50))
        before = pair.volume(1).size_sectors
        down(pair, 0)
        grow_disk(pair, 0, 1)
        node_disk.create_metadata(pair.shells[0].place, device_uuid=pair.world.random64())
        pair.start(0)
        pair.until(lambda: pair.in_sync, 30_000, "in sync")
        assert [pair.volume(n).size_sectors for n in (0, 1)] == [before] * 2
        pair.ask(1, "resize")
        check(pair, usable(pair, 0))
        app.stop()
        pair.check_idle_pair()


@pytest.mark.parametrize("attached_later", [False, True])
def test_new_disk_takes_the_size_that_its_peer_was_told(attached_later: bool) -> None:
    with cluster() as pair:
        app = pair.serve(0)
        app.write(*range(50))
        grow_disk(pair, 0, 1)
        told = pair.device_bytes // 512 + 2048
        pair.ask(0, "resize", size_sectors=told)
        check(pair, told)
        if attached_later:
            pair.ask(1, "detach")
        else:
            down(pair, 1)
        node_disk.create_metadata(pair.shells[1].place, device_uuid=pair.world.random64())
        if attached_later:
            pair.ask(1, "attach")
        else:
            pair.start(1)
        check(pair, told)
        app.stop()
        pair.check_idle_pair()


def test_shrunk_device_does_not_shrink_its_peer_unasked() -> None:
    with cluster() as pair:
        pair.ask(0, "primary")
        pair.cut()
        pair.until(lambda: not pair.node(0).is_connected, 30_000, "the loss of the peer")
        less = pair.device_bytes // 512 - 2048
        pair.ask(0, "resize", size_sectors=less, force=True)
        pair.heal()
        pair.until(lambda: pair.state(1)[1] == ConnectionState.STANDALONE, 30_000, "given up")
        pair.until(lambda: bool(pair.node(0).reason), 5000, "the peer's word")
        for node in (0, 1):
            assert f"limited to {less} sectors" in pair.node(node).reason
        pair.ask(1, "invalidate")
        pair.ask(1, "connect")
        check(pair, less)
        pair.wait_idle()
        pair.check_equal()


def test_smaller_disk_of_the_peer_is_refused() -> None:
    with cluster(fresh=False, sizes=(LARGE, SMALL)) as pair:
        pair.start(0)
        pair.ask(0, "primary", force=True)
        pair.start(1)
        pair.until(lambda: pair.state(0)[1] == ConnectionState.STANDALONE, 20_000, "given up")
        assert "too small" in pair.node(0).reason


def test_resize_is_refused_where_nobody_knows_the_good_data_and_during_a_resync() -> None:
    with cluster() as pair:
        grow_disk(pair, 0, 1)
        with pytest.raises(RequestRefused) as caught:
            pair.ask(0, "resize")
        assert caught.value.number == 131
        pair.serve(0)
        pair.fire(1, "invalidate")
        pair.until(lambda: pair.state(0)[1] > ConnectionState.CONNECTED, 10_000, "a resync")
        with pytest.raises(RequestRefused) as caught:
            pair.ask(0, "resize")
        assert caught.value.number == 130
        pair.until(lambda: pair.in_sync, 60_000, "its end")


def test_link_that_breaks_in_the_middle_does_not_hang_the_resize() -> None:
    with cluster() as pair:
        app = pair.serve(0)
        app.load(Load(max_bytes=16384, think_max_ms=2, span_length=SMALL // 2))
        pair.run(50)
        grow_disk(pair, 0, 1)
        pair.cut()
        answer = pair.fire(0, "resize")
        pair.until(lambda: answer.is_done, 60_000, "the resize's end")
        pair.heal()
        pair.until(lambda: pair.in_sync, 60_000, "in sync")
        app.stop()
        assert app.stats.failed == 0
        assert pair.volume(0).state.disk == DiskState.UP_TO_DATE
        if pair.volume(0).size_sectors == pair.volume(1).size_sectors:
            pair.device_bytes = pair.volume(0).size_sectors * 512
        pair.check_idle_pair()


def test_order_is_a_plain_value() -> None:
    assert replace(resize_module.Order(), size_sectors=8).size_sectors == 8


def test_peer_that_is_lost_just_before_the_metadata_has_to_move_is_not_waited_for() -> None:
    with cluster() as pair:
        app = pair.serve(0)
        grow_disk(pair, 0)

        def lose_the_peer_first(answer: Callable[[], None]) -> None:
            pair.cut(direction=0)
            app.submit("write", 5 * BLOCK)  # in the activity log until the loss is dealt with
            pair.later(2, lambda: pair.world.lib.re_sim_net_reset(pair.world.sim, 0, 1))
            pair.later(3000, answer)

        pair.shells[0].answer_measure = lose_the_peer_first
        pair.fire(1, "resize")
        pair.until(lambda: bool(pair.events(0, text="lost the peer")), 10_000, "the loss")
        pair.shells[0].answer_measure = lambda answer: answer()
        pair.heal()
        pair.until(lambda: pair.in_sync, 20_000, "in sync again")
        app.stop()
        pair.check_idle_pair()


def test_disk_that_grows_again_before_its_device_does_is_found_by_the_size_of_its_metadata() -> None:
    with cluster() as pair:
        app = pair.serve(1)
        app.write(*range(0, 700, 30))
        for size in (8 * MIB, LARGE):  # its metadata moves to the end of the first one; nobody looks at the second
            grow_disk(pair, 0, size=size)
            if size < LARGE:
                down(pair, 0)
                pair.start(0)
                pair.until(lambda: pair.in_sync, 20_000, "the connection")
        pair.ask(1, "disconnect")
        grow_disk(pair, 1)
        assert pair.ask(1, "resize", assume_peer_has_space=True)["has_changed"]
        pair.ask(1, "connect")
        pair.until(lambda: bool(pair.events(0, text="too small")) or pair.in_sync, 20_000, "an answer")
        down(pair, 0)
        pair.start(0)
        pair.until(lambda: pair.volume(0).attached, 5000, "the disk is found again")
        app.stop()


def test_metadata_is_not_moved_while_requests_are_frozen() -> None:
    require_sim()
    net = replace(QUICK_NET, fencing="resource-and-stonith")
    with Cluster(4, Setup(net=net, disk_bytes=SMALL, room_bytes=LARGE - SMALL, handlers=("fence-peer",))) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        pair.shells[0].scripts["fence-peer"] = Script(1, delay_ms=2000)
        pair.cut()
        op = app.submit("write", 3 * BLOCK)
        pair.until(lambda: not pair.node(0).is_connected, 20_000, "the loss of the peer")
        pair.run(500)
        grow_disk(pair, 0)
        with pytest.raises(RequestRefused, match="suspended"):
            pair.ask(0, "resize", assume_peer_has_space=True)
        pair.heal()
        pair.until(lambda: pair.in_sync, 60_000, "the reconnection")
        pair.until(lambda: pair.op(op).state == DONE, 5000, "the frozen write")
        pair.ask(0, "resize")
        app.stop()
        pair.check_idle_pair()
