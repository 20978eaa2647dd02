# SPDX-License-Identifier: Apache-2.0
"""Disks come and go while the nodes are connected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from repl.drbd import superblock
from repl.drbd.states import ConnectionState, DiskState, Role
from repl.drbd.uuids import Uuids
from repl.errors import ReplError, RequestRefused, StateRefused
from repl.node import disk as node_disk
from tests.lib.tools import require_sim
from tests.sim.app import Load
from tests.sim.cluster import Cluster, Setup
from tests.sim.pairs import connected_pair, disks
from tests.sim.world import BLOCK

_D = DiskState
SEED = 23


@pytest.fixture
def pair() -> Iterator[Cluster]:
    yield from connected_pair(SEED)


def superblock_of(pair: Cluster, index: int) -> superblock.Superblock:
    return node_disk.find_superblock(pair.shells[index].place)[0]


def detach(pair: Cluster, index: int) -> None:
    pair.ask(index, "detach")
    pair.until(lambda: disks(pair, 1 - index)[1] == _D.DISKLESS, 5000, "the peer sees it")


def test_secondary_detaches_and_attaches_again_with_what_was_written_meanwhile(pair: Cluster) -> None:
    app = pair.serve(0)
    app.write(1, 2)
    detach(pair, 1)
    assert pair.connected and disks(pair, 1) == (_D.DISKLESS, _D.UP_TO_DATE)
    assert superblock_of(pair, 1).clean
    app.write(2, 3, 7)
    pair.ask(1, "attach")
    pair.until(lambda: pair.in_sync, 20_000, "in sync again")
    app.stop()
    pair.check_idle_pair()


def test_detach_ends_when_others_may_use_the_disk(pair: Cluster) -> None:
    held: list[Callable[[], None]] = []
    pair.shells[1].answer_close = held.append
    answer = pair.fire(1, "detach")
    pair.until(lambda: bool(held), 5000, "the descriptors are to be closed")
    pair.run(100)
    assert disks(pair, 1)[0] == _D.DISKLESS and not answer.is_done
    held.pop()()
    pair.until(lambda: answer.is_done, 1000, "detach has ended")
    assert answer.error is None


def test_primary_detaches_and_goes_on_through_the_peer_and_back(pair: Cluster) -> None:
    app = pair.serve(0)
    app.load(Load(max_bytes=16384, think_max_ms=3))
    pair.run(200)
    detach(pair, 0)
    assert disks(pair, 0) == (_D.DISKLESS, _D.UP_TO_DATE)
    pair.run(300)
    assert pair.dirty_bits(1) > 0, "the node with the disk marks what the other one lacks"
    pair.ask(0, "attach")
    pair.until(lambda: pair.in_sync, 60_000, "in sync again")
    app.stop()
    assert app.stats.failed == 0
    pair.check_idle_pair()


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_disks_leave_and_come_back_under_load(seed: int, index: int) -> None:
    require_sim()
    with Cluster(seed, Setup()) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        app.load(Load(max_bytes=16384, think_max_ms=2, queue_depth=8))
        for _ in range(3):
            pair.run(30 + pair.world.random(100))
            pair.ask(index, "detach")
            pair.run(pair.world.random(60))
            pair.ask(index, "attach")
            if pair.world.random(2):
                pair.until(lambda: pair.in_sync, 60_000, "in sync again")
            else:
                pair.until(lambda: disks(pair, 1)[0] == _D.UP_TO_DATE == disks(pair, 0)[0], 60_000, "both disks good")
        app.stop()
        assert app.stats.failed == 0
        pair.check_idle_pair()


def test_diskless_primary_reads_and_writes_and_its_peer_cannot_leave(pair: Cluster) -> None:
    app = pair.serve(0)
    app.write(5)
    detach(pair, 0)
    app.write(6)
    assert app.do("read", 5 * BLOCK, 2 * BLOCK) == 0 and app.do("flush") == 0 and app.do("trim", 0, 4 * BLOCK) == 0
    with pytest.raises(StateRefused, match="-2|only good data"):
        pair.ask(1, "detach")
    with pytest.raises(StateRefused, match="-2|only good data"):
        pair.ask(1, "disconnect")
    pair.ask(0, "attach")
    pair.until(lambda: pair.in_sync, 20_000, "in sync again")
    app.stop()
    pair.check_idle_pair()


def test_the_only_good_disk_of_a_primary_stays(pair: Cluster) -> None:
    pair.serve(0)
    pair.ask(1, "disconnect")
    with pytest.raises(StateRefused, match="no other good data") as caught:
        pair.ask(0, "detach")
    assert caught.value.number == -2
    assert disks(pair, 0)[0] == _D.UP_TO_DATE


def test_a_lone_diskless_primary_takes_only_the_data_that_it_presented(pair: Cluster) -> None:
    app = pair.serve(0)
    detach(pair, 0)
    app.write(1)  # the peer's generation is newer than the own disk now
    pair.shells[1].crash()
    pair.until(lambda: not pair.node(0).is_connected, 20_000, "the loss of the peer")
    before = superblock_of(pair, 0)
    with pytest.raises(RequestRefused) as caught:
        pair.ask(0, "attach")
    assert caught.value.number == 150
    assert superblock_of(pair, 0) == before
    assert app.do("read", BLOCK) != 0
    pair.start(1)
    pair.until(lambda: pair.connected, 20_000, "the connection")
    pair.ask(0, "attach")
    pair.until(lambda: pair.in_sync, 20_000, "in sync again")
    assert app.do("read", BLOCK) == 0
    app.stop()
    pair.check_idle_pair()


def test_replaced_disk_is_filled_completely(pair: Cluster) -> None:
    app = pair.serve(0)
    app.write(*range(0, 400, 7))
    detach(pair, 1)
    shell = pair.shells[1]
    shell.data.load(0, bytes(shell.data.size_bytes))
    node_disk.create_metadata(shell.place, device_uuid=5)
    pair.ask(1, "attach")
    pair.until(lambda: pair.in_sync, 60_000, "the full sync")
    assert pair.events(1, "handshake", "by rule 20")
    app.stop()
    pair.check_idle_pair()


def test_unrelated_disk_is_refused_and_left_as_it_was(pair: Cluster) -> None:
    detach(pair, 1)
    shell = pair.shells[1]
    found, where = node_disk.find_superblock(shell.place)
    strange = replace(found, uuids=Uuids(0x1110, 0x2220, 0x3330, 0x4440))
    shell.md.pwrite(where.superblock_byte, strange.serialise())
    shell.md.flush()
    theirs = pair.volume(0).uuids
    pair.volume(0).uuids = replace(theirs, history1=0x99990, history2=0xAAAA0)  # nothing in common, not even gaps
    with pytest.raises(RequestRefused, match="cannot be attached"):
        pair.ask(1, "attach")
    assert superblock_of(pair, 1) == strange
    pair.until(lambda: pair.connected and disks(pair, 0) == (_D.UP_TO_DATE, _D.DISKLESS), 5000, "still connected")


def test_connection_lost_while_negotiating_leaves_the_superblock_alone(pair: Cluster) -> None:
    app = pair.serve(0)
    detach(pair, 1)
    app.write(1)
    before = superblock_of(pair, 1)
    pair.cut()
    answer = pair.fire(1, "attach")
    pair.until(lambda: answer.is_done, 30_000, "the attach's end")
    assert isinstance(answer.error, ReplError)
    assert superblock_of(pair, 1) == before
    pair.heal()
    pair.until(lambda: pair.connected, 30_000, "the connection")
    pair.ask(1, "attach")
    pair.until(lambda: pair.in_sync, 20_000, "in sync again")
    app.stop()
    pair.check_idle_pair()


@pytest.mark.parametrize("is_written", [False, True])
def test_disk_that_is_attached_alone_is_outdated_if_the_peer_went_on_meanwhile(pair: Cluster, is_written: bool) -> None:
    app = pair.serve(0)
    app.write(1)
    detach(pair, 1)
    if is_written:
        app.write(1, 2)
    pair.cut(silent=False)
    pair.until(lambda: not pair.connected, 5000, "the loss")
    pair.ask(1, "attach")
    assert disks(pair, 1)[0] == _D.OUTDATED
    with pytest.raises(StateRefused):
        pair.ask(1, "primary")
    pair.heal()
    pair.until(lambda: pair.in_sync, 30_000, "in sync again")
    app.stop()
    pair.check_idle_pair()


def test_disk_that_is_attached_alone_is_up_to_date_if_nobody_went_on(pair: Cluster) -> None:
    detach(pair, 1)
    pair.cut(silent=False)
    pair.until(lambda: not pair.connected, 5000, "the loss")
    pair.ask(1, "attach")
    assert disks(pair, 1)[0] == _D.UP_TO_DATE
    pair.heal()
    pair.until(lambda: pair.in_sync, 30_000, "in sync again")


def test_resync_ends_when_its_targets_disk_is_detached(pair: Cluster) -> None:
    app = pair.serve(0)
    detach(pair, 1)
    app.write(*range(0, 300, 2))
    pair.ask(1, "attach")
    pair.ask(1, "detach")
    pair.until(lambda: pair.state(0)[1:] == (ConnectionState.CONNECTED, _D.UP_TO_DATE, _D.DISKLESS), 5000, "detached")
    pair.ask(1, "attach")
    pair.until(lambda: pair.in_sync, 20_000, "in sync again")
    app.stop()
    pair.check_idle_pair()


def test_attached_disk_of_a_demoted_diskless_node_is_no_crashed_primary(pair: Cluster) -> None:
    app = pair.serve(0)
    app.write(1)
    detach(pair, 0)
    app.stop()
    pair.until(lambda: pair.node(0).role == Role.SECONDARY, 5000, "the automatic demotion")
    pair.ask(0, "attach")
    pair.until(lambda: pair.in_sync, 20_000, "in sync again")
    assert not pair.volume(0).crashed_primary
    pair.check_idle_pair()


def test_deaths_while_a_primary_changes_its_disk_leave_no_block_unknown() -> None:
    """Some metadata knows at any moment which blocks differ: those of writes that went to the peer only as well."""
    require_sim()
    for seed in range(4):
        with Cluster(seed, Setup(latency_max_us=5000, wake_max_us=5000, al_extents=7, disk_bytes=40 << 20)) as pair:
            pair.connect_fresh()
            app = pair.serve(0)
            app.load(Load(max_bytes=16384, think_max_ms=1, queue_depth=8, read_percent=0))
            for verb in ("detach", "attach") * 3:
                answer = pair.fire(0, verb, volume=0)
                while not answer.is_done:
                    pair.run(1)
                    for layer in (0, 1):
                        pair.check_coverage(f"in the {verb}", layer=layer)
                assert answer.error is None
                pair.run(pair.world.random(50))
                if verb == "attach":
                    pair.until(lambda c=pair: c.in_sync, 60_000, "in sync again")
            app.stop()
            assert app.stats.failed == 0
            pair.check_idle_pair()


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_disk_leaves_in_the_middle_of_the_exchange_of_bitmaps_and_comes_back(seed: int, is_slow: bool) -> None:
    """Before its node has sent its own bitmap, or while the beginning of the resync is on its way."""
    require_sim()
    with Cluster(seed, Setup(latency_max_us=20_000)) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        detach(pair, 1)
        app.write(1, 2)
        answer = pair.fire(1, "attach", volume=0)
        pair.until(lambda: pair.state(1)[1] == ConnectionState.WF_BITMAP_T, 5000, "the exchange of bitmaps")
        if is_slow:
            pair.shells[1].data.settings(write_min_ns=60_000_000, write_max_ns=60_000_000)
        pair.ask(1, "detach", volume=0)
        assert answer.error is None and pair.connected
        pair.ask(1, "attach", volume=0)
        app.stop()
        pair.check_idle_pair()
