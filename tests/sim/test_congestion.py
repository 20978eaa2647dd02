# SPDX-License-Identifier: Apache-2.0
"""Protocol A over a link that cannot keep up: block, pull-ahead, disconnect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState, DiskState, Role
from repl.engine.commands import Resync
from repl.errors import StateRefused
from tests.lib.tools import require_sim

BLOCK = 4096
KIB = 1024
SLOW = 200_000  # bytes a second
SLOW_RESYNC = Resync(resync_rate_kib=512, plan_ahead=0, max_rate_kib=512, min_rate_kib=0)
C, D = ConnectionState, DiskState


@pytest.fixture
def clusters() -> Iterator[Any]:
    require_sim()
    from tests.sim.cluster import QUICK_NET, Cluster, Setup

    made: list[Any] = []

    def make(seed: int = 1, **settings: Any) -> Any:
        net = {"protocol": 1, "on_congestion": "pull-ahead", "congestion_fill_sectors": 128, "ko_count": 20}
        net |= settings.pop("net", {})
        setup = {"buffer_bytes": 1 << 20, "requests": 1024, **settings}
        cluster = Cluster(seed, Setup(net=replace(QUICK_NET, **net), **setup))
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        print(cluster.tail(100))
        cluster.close()


def slow(cluster: Any, bytes_per_second: int = SLOW) -> None:
    """From node 0 to node 1."""
    cluster.world.net(0, 1, bytes_per_second=bytes_per_second)


def served(make: Any, seed: int = 1, **settings: Any) -> tuple[Any, Any]:
    cluster = make(seed, **settings)
    cluster.connect_fresh()
    app = cluster.serve(0)
    slow(cluster)
    return cluster, app


def sent(cluster: Any, node: int, packet: Packet) -> int:
    return int(cluster.world.lib.re_sim_packets_sent(cluster.world.sim, node, int(packet)))


def write(cluster: Any, app: Any, first: int, count: int) -> None:
    """So many blocks at once."""
    ops = [app.submit("write", block * BLOCK) for block in range(first, first + count)]
    cluster.until(lambda: all(cluster.op(op).state for op in ops), 60_000, "the writes")
    assert not any(cluster.op(op).error for op in ops)


def go_ahead(cluster: Any, app: Any) -> None:
    """Write until both nodes know."""
    write(cluster, app, 0, 48)
    cluster.until(lambda: cluster.state(0)[1] == C.AHEAD, 5000, "node 0 Ahead")
    cluster.until(lambda: cluster.state(1)[1] == C.BEHIND, 5000, "node 1 Behind")


def test_pull_ahead_marks_on_both_sides_and_catches_up_without_bitmaps(clusters: Any) -> None:
    cluster, app = served(clusters)
    go_ahead(cluster, app)
    assert cluster.state(0)[2:] == (D.UP_TO_DATE, D.CONSISTENT)
    assert cluster.state(1)[2:] == (D.OUTDATED, D.UP_TO_DATE)
    write(cluster, app, 48, 52)
    assert sent(cluster, 0, Packet.OUT_OF_SYNC) > 50
    cluster.until(lambda: cluster.dirty_bits(0) == cluster.dirty_bits(1) > 50, 3000, "equal bitmaps")
    generation = cluster.volume(0).uuids
    begin = cluster.now_ms
    cluster.until(lambda: cluster.state(1)[1] == C.SYNC_TARGET, 10_000, "the resync")
    assert cluster.now_ms - begin > 500
    assert cluster.volume(0).uuids.current == generation.current and generation.bitmap == 0
    slow(cluster, 0)
    cluster.check_idle_pair()
    assert sent(cluster, 0, Packet.SYNC_UUID) == 1
    assert not any(sent(cluster, n, p) for n in (0, 1) for p in (Packet.BITMAP, Packet.COMPRESSED_BITMAP))
    assert cluster.volume(0).uuids.current | 1 == cluster.volume(1).uuids.current | 1


def test_extents_in_use_are_a_threshold_too(clusters: Any) -> None:
    cluster, app = served(clusters, disk_bytes=400 << 20, net={"congestion_fill_sectors": 0, "congestion_extents": 3})
    ops = [app.submit("write", extent << 22) for extent in range(5)]
    cluster.until(lambda: all(cluster.op(op).state for op in ops), 5000, "the writes")
    cluster.until(lambda: cluster.state(0)[1] == C.AHEAD, 5000, "node 0 Ahead")
    assert cluster.events(0, text="congestion-extents")
    slow(cluster, 0)
    cluster.check_idle_pair()


def test_congestion_during_the_resync_cancels_its_requests(clusters: Any) -> None:
    cluster, app = served(clusters, resync=SLOW_RESYNC)
    go_ahead(cluster, app)
    write(cluster, app, 100, 200)
    cluster.until(lambda: cluster.state(1)[1] == C.SYNC_TARGET, 10_000, "the resync")
    disk = cluster.shells[0].data
    disk.settings(read_min_ns=300_000_000, read_max_ns=400_000_000)
    cluster.run(200)
    write(cluster, app, 0, 64)
    cluster.until(lambda: cluster.state(0)[1] == C.AHEAD, 5000, "Ahead again")
    cluster.until(lambda: cluster.state(1)[1] == C.BEHIND, 5000, "Behind again")
    cluster.run(1000)
    assert sent(cluster, 0, Packet.RS_CANCEL) > 0 and sent(cluster, 0, Packet.NEG_RS_DREPLY) == 0
    disk.settings(read_min_ns=20_000, read_max_ns=50_000)
    slow(cluster, 0)
    cluster.until(lambda: cluster.in_sync, 60_000, "in sync")
    cluster.check_idle_pair()
    assert sent(cluster, 0, Packet.SYNC_UUID) >= 2


@pytest.mark.parametrize("demoted", [False, True])
def test_link_lost_while_ahead_is_a_new_generation(clusters: Any, demoted: bool) -> None:
    cluster, app = served(clusters)
    go_ahead(cluster, app)
    app.stop()
    if not demoted:
        cluster.ask(0, "primary")
    before = cluster.volume(0).uuids.current | 1
    cluster.cut(silent=False)
    cluster.until(lambda: not any(cluster.node(n).is_connected for n in (0, 1)), 20_000, "the loss of the link")
    after = cluster.volume(0).uuids
    assert (after.current | 1, after.bitmap | 1) != (before, 1) and after.bitmap | 1 == before
    assert cluster.state(1)[2] == D.OUTDATED
    slow(cluster, 0)
    cluster.heal()
    cluster.check_idle_pair()


def test_on_congestion_disconnect_ends_stand_alone_with_a_reason(clusters: Any) -> None:
    cluster, app = served(clusters, net={"on_congestion": "disconnect"})
    write(cluster, app, 0, 48)
    cluster.until(lambda: cluster.state(0)[1] == C.STANDALONE, 10_000, "StandAlone")
    assert "congestion-fill" in cluster.node(0).reason
    write(cluster, app, 48, 12)
    slow(cluster, 0)
    cluster.ask(0, "connect")
    cluster.check_idle_pair()


@pytest.mark.parametrize("policy", ["block", "pull-ahead"])
def test_writes_are_as_fast_as_without_a_peer_until_the_buffer_is_full(clusters: Any, policy: str) -> None:
    from tests.sim.cluster import Load

    fill = {"on_congestion": policy, "congestion_fill_sectors": 2000}
    cluster, app = served(clusters, net=fill, disk_bytes=8 << 20)
    cluster.shells[0].data.settings(write_min_ns=1_000_000, write_max_ns=1_000_000)
    writes = Load(queue_depth=8, read_percent=0, flush_percent=0, zero_percent=0, trim_percent=0, fua_percent=0,
                  min_bytes=BLOCK, max_bytes=BLOCK, think_max_ms=0)  # fmt: skip

    def milliseconds(count: int) -> float:
        begin = cluster.now_ms
        app.load(replace(writes, ops=count))
        cluster.until(lambda: app.is_idle, 60_000, "the writes")
        return float(cluster.now_ms - begin)

    replicated = milliseconds(200)  # 800 KiB into a buffer of 1 MiB
    beyond = milliseconds(400)
    ahead = cluster.state(0)[1] == C.AHEAD
    slow(cluster, 0)
    cluster.until(lambda: cluster.in_sync, 60_000, "in sync")
    cluster.ask(0, "disconnect")
    alone = milliseconds(200)
    assert replicated < 1.1 * alone
    assert ahead is (policy == "pull-ahead")
    assert (beyond > 1000) is (policy == "block")  # the link takes 200 KB a second
    cluster.ask(0, "connect")
    cluster.check_idle_pair()


def test_random_load_over_a_link_of_changing_speed(clusters: Any, sim_seed: int) -> None:
    from tests.sim.cluster import Load

    cluster, app = served(clusters, sim_seed)
    app.load(Load(span_length=512 * KIB, queue_depth=8, think_max_ms=4))
    random = cluster.world.random
    saw = set()
    for _ in range(12):
        slow(cluster, (0, SLOW, SLOW // 4, 4 * SLOW)[random(4)])
        cluster.run(random(900))
        saw.add(cluster.state(0)[1])
        event = random(10)
        if event == 0:
            cluster.cut(silent=False)
            cluster.run(random(500))
            cluster.heal()
        elif event == 1:
            cluster.shells[1].crash()
            cluster.run(random(1500))
            cluster.restart(1)
        if not cluster.differing() and cluster.in_sync:
            saw.add(C.CONNECTED)
        cluster.check_coverage("under congestion")
    slow(cluster, 0)
    app.stop()
    cluster.until(lambda: cluster.in_sync, 120_000, "in sync")
    cluster.check_idle_pair()


def test_crash_of_the_ahead_node_is_repaired_from_its_metadata(clusters: Any, sim_seed: int) -> None:
    cluster, app = served(clusters, sim_seed)
    go_ahead(cluster, app)
    write(cluster, app, 100, cluster.world.random(40))
    cluster.run(cluster.world.random(1500))
    cluster.shells[0].crash()
    cluster.check_coverage("the Ahead node has crashed")
    slow(cluster, 0)
    cluster.until(lambda: cluster.state(1)[1] < C.CONNECTED, 20_000, "the loss on node 1")
    assert not cluster.differing() or cluster.state(1)[2] in (D.OUTDATED, D.INCONSISTENT)
    assert cluster.state(1)[0] == Role.SECONDARY
    cluster.restart(0)
    cluster.check_idle_pair()


def test_primary_that_went_ahead_during_a_detach_keeps_its_disk(clusters: Any) -> None:
    cluster, app = served(clusters)
    write(cluster, app, 0, 12)
    detach = cluster.fire(0, "detach", volume=0)  # its question to the peer stands behind the writes
    write(cluster, app, 12, 40)
    cluster.until(lambda: detach.is_done, 20_000, "the answer to the detach")
    assert isinstance(detach.error, StateRefused) and "no other good data" in str(detach.error)
    assert cluster.events(0, text="congestion-fill") and cluster.state(0)[2] == D.UP_TO_DATE
    slow(cluster, 0)
    cluster.check_idle_pair()


def test_disk_lost_while_ahead_comes_back_as_the_source(clusters: Any) -> None:
    """And until the nodes have compared them, the peer's old copy takes no writes for it."""
    cluster, app = served(clusters)
    go_ahead(cluster, app)
    write(cluster, app, 48, 20)
    cluster.ask(0, "detach", volume=0, force=True)
    cluster.until(lambda: cluster.state(1)[3] == D.DISKLESS, 10_000, "the peer knows")
    assert cluster.state(1)[2] == D.OUTDATED
    slow(cluster, 0)
    attach = cluster.fire(0, "attach", volume=0)
    ops = []
    while not attach.is_done or cluster.state(0)[2] != D.UP_TO_DATE:
        ops.append(app.submit("write", (100 + len(ops)) * BLOCK))
        cluster.run(5)
    assert attach.error is None
    cluster.until(lambda: all(cluster.op(op).state for op in ops), 20_000, "the writes' answers")
    assert cluster.events(0, text="decision source")
    cluster.check_idle_pair()


def test_primary_behind_takes_what_its_peer_has_after_that_ones_death(clusters: Any) -> None:
    cluster, app = served(clusters)
    go_ahead(cluster, app)
    write(cluster, app, 48, 20)
    app.stop()
    generation = cluster.volume(0).uuids
    cluster.until(lambda: cluster.node(0).role == Role.SECONDARY, 10_000, "the client's end")
    cluster.ask(1, "pause-sync", volume=0)
    cluster.ask(1, "primary")
    assert (generation.bitmap, cluster.volume(0).uuids.bitmap) == (0, generation.current)
    assert cluster.state(1)[1:] == (C.BEHIND, D.OUTDATED, D.UP_TO_DATE)
    cluster.shells[0].crash()
    cluster.restart(0)
    slow(cluster, 0)
    cluster.ask(1, "resume-sync", volume=0)
    cluster.check_idle_pair()


def test_answers_of_a_cancelled_resync_do_not_count_in_the_next_one(clusters: Any) -> None:
    """They come on the other socket, and later: a block that was equal may have been written since, while Ahead."""
    cluster = clusters(
        net={"csums_alg": "crc32c", "ping_int_ms": 60_000, "timeout_ms": 60_000},
        resync=replace(SLOW_RESYNC, use_csums=True),
    )
    cluster.connect_fresh()
    app = cluster.serve(0)
    world = cluster.world
    meta = cluster.checker.meta_connection(0)
    (socket,) = (fd for fd in world.streams(0) if fd // 2 == meta // 2)
    cluster.ask(1, "invalidate", volume=0)
    world.lib.re_sim_socket_hold(world.sim, socket, True)
    cluster.until(lambda: sent(cluster, 0, Packet.RS_IS_IN_SYNC) > 10, 10_000, "blocks that are equal")
    slow(cluster)
    go_ahead(cluster, app)
    write(cluster, app, 0, 48)
    asked = sent(cluster, 1, Packet.CSUM_RS_REQUEST)
    cluster.shells[0].data.settings(read_min_ns=200_000_000, read_max_ns=200_000_000)
    cluster.until(lambda: sent(cluster, 1, Packet.CSUM_RS_REQUEST) > asked + 2, 20_000, "the next resync's requests")
    world.lib.re_sim_socket_hold(world.sim, socket, False)
    slow(cluster, 0)
    cluster.run(150)
    cluster.shells[0].data.settings(read_min_ns=20_000, read_max_ns=50_000)
    cluster.until(lambda: cluster.state(1)[2] == D.UP_TO_DATE, 60_000, "the end of the resync")
    assert not cluster.differing()
    app.stop()
    cluster.check_idle_pair()
    assert not cluster.events(0, text="were marked while the resync ran")


@pytest.mark.parametrize("finished", [True, False])
def test_link_lost_ahead_in_a_resync_whose_target_may_have_finished(clusters: Any, finished: bool) -> None:
    """Then it has the generation in which this node would go on alone; otherwise nothing is copied twice."""
    cluster, app = served(clusters)
    go_ahead(cluster, app)
    write(cluster, app, 48, 20)
    cluster.until(lambda: cluster.state(1)[1] == C.SYNC_TARGET, 10_000, "the resync")
    if finished:
        slow(cluster, 0)
        cluster.until(lambda: cluster.state(1)[2] == D.UP_TO_DATE, 10_000, "its end on the target")
    else:  # a target that has asked for blocks has noted that it is one
        cluster.until(lambda: sent(cluster, 0, Packet.RS_DATA_REPLY) > 0, 10_000, "the first answer")
    generation = cluster.volume(0).uuids.current | 1
    cluster.cut(silent=True)
    write(cluster, app, 100, 48)
    cluster.until(lambda: cluster.state(0)[1] == C.AHEAD, 5000, "Ahead again")
    cluster.until(lambda: not any(cluster.node(n).is_connected for n in (0, 1)), 20_000, "the loss of the link")
    assert (cluster.volume(0).uuids.current | 1 != generation) == finished
    slow(cluster, 0)
    if finished:
        both_go_on_alone(cluster, app)
        return
    cluster.heal()
    cluster.check_idle_pair()
    assert sent(cluster, 0, Packet.RS_DATA_REPLY) < 200


def both_go_on_alone(cluster: Any, app: Any) -> None:
    write(cluster, app, 200, 2)
    app.leave(orderly=False)
    cluster.shells[0].crash()
    other = cluster.serve(1)
    write(cluster, other, 300, 2)
    cluster.heal()
    cluster.restart(0)
    cluster.until(lambda: cluster.state(1)[1] == C.STANDALONE, 20_000, "the verdict")
    assert "Split-Brain" in cluster.node(1).reason


def test_disk_lost_at_the_end_of_a_resync_while_the_source_is_ahead(clusters: Any) -> None:
    """It has the source's generation and has not heard that it is Behind."""
    cluster, app = served(clusters)
    go_ahead(cluster, app)
    write(cluster, app, 48, 20)
    slow(cluster, 0)
    cluster.until(lambda: cluster.state(1)[1] == C.SYNC_TARGET, 10_000, "the resync")
    cluster.until(lambda: cluster.state(1)[2] == D.UP_TO_DATE, 10_000, "its end on the target")
    cluster.cut(silent=True)
    write(cluster, app, 100, 48)
    cluster.until(lambda: cluster.state(0)[1] == C.AHEAD, 5000, "Ahead again")
    cluster.ask(1, "detach", volume=0, force=True)
    cluster.heal()
    cluster.until(lambda: cluster.state(0)[3] == D.DISKLESS, 5000, "the news of the disk")
    cluster.cut(silent=False)
    cluster.until(lambda: not any(cluster.node(n).is_connected for n in (0, 1)), 20_000, "the loss of the link")
    cluster.ask(1, "attach", volume=0)
    assert cluster.state(1)[2] == D.UP_TO_DATE
    both_go_on_alone(cluster, app)


def test_congestion_while_the_source_notes_the_end_of_its_resync(clusters: Any) -> None:
    """It is Ahead then, and its peer Behind, until they have caught up."""
    cluster, app = served(clusters, external=True)
    go_ahead(cluster, app)
    write(cluster, app, 48, 20)
    slow(cluster, 0)
    cluster.until(lambda: cluster.state(1)[1] == C.SYNC_TARGET, 10_000, "the resync")
    cluster.shells[0].md.settings(write_min_ns=50_000_000, write_max_ns=50_000_000)
    cluster.until(lambda: cluster.state(1)[2] == D.UP_TO_DATE, 10_000, "its end on the target")
    slow(cluster)
    write(cluster, app, 100, 48)
    cluster.until(lambda: cluster.state(0)[1] == C.AHEAD, 5000, "Ahead again")
    cluster.until(lambda: cluster.state(1)[1] == C.BEHIND, 5000, "Behind again")
    assert cluster.state(0)[1] == C.AHEAD
    slow(cluster, 0)
    cluster.check_idle_pair()


@pytest.mark.parametrize("begun", [False, True])
def test_source_that_goes_on_alone_finds_the_primary_that_was_behind(clusters: Any, begun: bool) -> None:
    """That one has the source's own generation until it gets the sync UUID, which may be lost with the link."""
    cluster, app = served(clusters, external=True, resync=SLOW_RESYNC)
    go_ahead(cluster, app)
    write(cluster, app, 48, 20)
    slow(cluster, 0)
    cluster.until(lambda: cluster.state(1)[1] == C.SYNC_TARGET, 10_000, "the resync")
    cluster.shells[0].md.settings(write_min_ns=50_000_000, write_max_ns=50_000_000)
    cluster.until(lambda: cluster.state(1)[2] == D.UP_TO_DATE, 10_000, "its end on the target")
    slow(cluster)
    write(cluster, app, 100, 48)
    cluster.until(lambda: cluster.state(0)[1] == C.AHEAD, 5000, "Ahead before the source has noted the end")
    cluster.until(lambda: cluster.state(1)[1] == C.BEHIND, 5000, "Behind again")
    write(cluster, app, 148, 40)
    app.stop()
    cluster.until(lambda: cluster.node(0).role == Role.SECONDARY, 10_000, "the client's end")
    cluster.ask(1, "primary")
    assert cluster.state(0)[1] == C.AHEAD and cluster.volume(0).uuids.bitmap != 0
    world, replies = cluster.world, sent(cluster, 0, Packet.RS_DATA_REPLY)
    meta = cluster.checker.meta_connection(0)
    (data,) = (fd for fd in world.streams(0) if fd // 2 != meta // 2)
    world.lib.re_sim_socket_hold(world.sim, data, not begun)
    cluster.until(lambda: cluster.state(0)[1] == C.SYNC_SOURCE, 10_000, "the next resync")
    if begun:
        cluster.until(lambda: sent(cluster, 0, Packet.RS_DATA_REPLY) > replies, 10_000, "its first answer")
    source, target = (cluster.volume(node).uuids.current | 1 for node in (0, 1))
    assert (source == target) is not begun
    cluster.cut(silent=False)
    cluster.until(lambda: not any(cluster.node(n).is_connected for n in (0, 1)), 20_000, "the loss of the link")
    assert cluster.dirty_bits(0) > 0
    cluster.ask(1, "secondary")
    slow(cluster, 0)
    write(cluster, cluster.serve(0), 200, 2)
    cluster.heal()
    cluster.until(lambda: cluster.connected or cluster.stand_alone, 20_000, "the verdict")
    assert cluster.events(0, text="decision source by rule 70"), cluster.node(0).reason
    cluster.check_idle_pair()


@pytest.mark.parametrize("seed", range(4))
def test_late_acks_of_a_cancelled_resync_do_not_clear_in_the_next_one(clusters: Any, seed: int) -> None:
    """The link has room for the application's writes, but answers of the resync before are still on their way."""
    cluster, app = served(clusters, seed)
    go_ahead(cluster, app)
    write(cluster, app, 0, 440)
    slow(cluster, 0)
    cluster.until(lambda: cluster.state(0)[1] == C.SYNC_SOURCE, 10_000, "the resync")
    slow(cluster)
    node = cluster.node(0)

    async def decide_late() -> None:
        async with node.exclusively():
            await node.pause(100)

    ops = [app.submit("write", block * BLOCK) for block in range(450, 482)]
    node.start(decide_late(), "test")
    cluster.until(lambda: cluster.state(0)[1] == C.AHEAD, 5000, "Ahead again")
    replies = sent(cluster, 0, Packet.RS_DATA_REPLY)
    ops += [app.submit("write", block * BLOCK) for block in range(440)]
    cluster.until(lambda: all(cluster.op(op).state for op in ops), 60_000, "the writes")
    cluster.until(lambda: cluster.state(0)[1] == C.SYNC_SOURCE, 60_000, "the next resync")
    for _ in range(100):
        assert cluster.differing() & ~cluster.memory_bits(0) == 0
        cluster.run(20)
    assert replies > 2
    slow(cluster, 0)
    cluster.check_idle_pair()
