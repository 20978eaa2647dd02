# SPDX-License-Identifier: Apache-2.0
"""Resync between two of our nodes: order, pauses, digests, holes, interruptions, settings at run time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from repl.drbd import packets as pk
from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState as C
from repl.drbd.states import DiskState, Role
from repl.engine.commands import Resync
from repl.engine.events import VolumeStats
from repl.errors import ReplError
from tests.lib.tools import require_sim

BLOCK = 4096
MIB = 1 << 20
SLOW = Resync(resync_rate_kib=500, plan_ahead=0, max_rate_kib=1000, min_rate_kib=0)
DIRTY = 64  # blocks that the target lacks in most tests
OPEN = Resync(resync_rate_kib=1 << 20, plan_ahead=0, max_rate_kib=1 << 20, min_rate_kib=0)


@pytest.fixture
def make() -> Iterator[Any]:
    require_sim()
    from tests.sim.cluster import QUICK_NET, Cluster, Setup

    made: list[Any] = []

    def make(seed: int = 5, *, net: dict[str, Any] | None = None, **options: Any) -> Any:
        setup = Setup(partial_ppm=0, tiny_ppm=0, net=replace(QUICK_NET, **(net or {})), **options)
        made.append(Cluster(seed, setup))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def stats(cluster: Any, node: int) -> VolumeStats:
    found: VolumeStats = cluster.node(node).stats.volume_stats(0)
    return found


def fill(cluster: Any, blocks: int) -> None:
    """Node 0 writes so many blocks, both have them."""
    app = cluster.serve(0)
    for first in range(0, blocks, 16):
        assert app.do("write", first * BLOCK, min(16, blocks - first) * BLOCK) == 0
    app.stop()
    cluster.ask(0, "secondary")


def fall_behind(cluster: Any, blocks: int = DIRTY, *, spacing: int = 2, start: bool = True) -> None:
    """Node 1 lacks blocks; with ``start`` it comes back and the resync begins."""
    app = cluster.serve(0)
    cluster.shells[1].crash()
    cluster.until(lambda: not cluster.node(0).is_connected, 20_000, "the loss of the peer")
    for n in range(blocks):
        app.write(n * spacing)
    assert app.do("flush") == 0
    app.stop()
    assert cluster.dirty_bits(0) == blocks
    if start:
        cluster.start(1)
        cluster.until(lambda: cluster.state(1)[1] in (C.SYNC_TARGET, C.PAUSED_SYNC_T), 20_000, "the resync's start")


def end(cluster: Any) -> None:
    cluster.until(lambda: cluster.in_sync, 120_000, "the end of the resync")
    cluster.check_equal()


def sent(cluster: Any, node: int, packet: Packet) -> int:
    return int(cluster.world.lib.re_sim_packets_sent(cluster.world.sim, node, packet))


# ---- pauses ----


@pytest.mark.parametrize("who", [0, 1])
def test_pause_on_either_node_pauses_both_until_that_node_resumes(make: Any, who: int) -> None:
    cluster = make(resync=SLOW)
    cluster.connect_fresh()
    fall_behind(cluster)
    cluster.ask(who, "pause-sync")
    cluster.until(
        lambda: (cluster.state(0)[1], cluster.state(1)[1]) == (C.PAUSED_SYNC_S, C.PAUSED_SYNC_T), 5000, "both paused"
    )
    cluster.run(300)  # what was asked for arrives
    left = cluster.dirty_bits(1)
    assert left > 0
    cluster.run(3000)
    assert cluster.dirty_bits(1) == left
    for node in (0, 1):
        shown = cluster.ask(node, "status")["volumes"][0]
        assert shown["resync_suspended"] == (["user"] if node == who else ["peer"])
        assert shown["resync"]["limited_by"] == "paused"
    with pytest.raises(ReplError) as refused:
        cluster.ask(1 - who, "resume-sync")
    assert refused.value.number == 157
    with pytest.raises(ReplError) as again:
        cluster.ask(who, "pause-sync")
    assert again.value.number == 134
    cluster.ask(who, "resume-sync")
    end(cluster)
    with pytest.raises(ReplError) as not_paused:
        cluster.ask(who, "resume-sync")
    assert not_paused.value.number == 135


def test_pause_before_a_resync_and_over_a_reconnect_holds(make: Any) -> None:
    cluster = make(resync=SLOW)
    cluster.connect_fresh()
    cluster.ask(0, "pause-sync")
    fall_behind(cluster)
    assert cluster.state(1)[1] == C.PAUSED_SYNC_T
    cluster.cut(silent=False)
    cluster.until(lambda: not cluster.connected, 20_000, "the cut")
    cluster.heal()
    cluster.until(lambda: cluster.connected and cluster.state(1)[1] == C.PAUSED_SYNC_T, 30_000, "paused again")
    cluster.run(2000)
    assert cluster.dirty_bits(1) == DIRTY
    cluster.ask(0, "resume-sync")
    end(cluster)


def test_resync_after_a_volume_of_another_resource_waits_and_tells_the_peer(make: Any) -> None:
    cluster = make(resync=SLOW, overrides={"resync_after": ("other", 3)})
    cluster.connect_fresh()
    assert cluster.shells[0].watched == {("other", 3)}
    node = cluster.node(0)
    node.other_resync("other", 3, True)
    cluster.ask(0, "role")
    fall_behind(cluster)
    assert cluster.state(1)[1] == C.PAUSED_SYNC_T
    assert cluster.shells[0].published == {0: True}
    with pytest.raises(ReplError) as waits:
        cluster.ask(0, "resume-sync")
    assert waits.value.number == 156
    assert cluster.ask(0, "status")["volumes"][0]["resync_suspended"] == ["dependency"]
    node.other_resync("other", 3, False)
    cluster.ask(0, "role")
    end(cluster)
    assert cluster.shells[0].published == {0: False}


# ---- full sync by order ----


@pytest.mark.parametrize(("who", "verb"), [(1, "invalidate"), (0, "invalidate-remote")])
def test_invalidation_copies_everything_to_the_node_that_is_meant(make: Any, who: int, verb: str) -> None:
    cluster = make()
    cluster.connect_fresh()
    fill(cluster, 128)
    cluster.ask(who, verb)
    cluster.until(lambda: cluster.state(1)[1] == C.SYNC_TARGET, 5000, "node 1 as the target")
    assert cluster.state(1)[2] == DiskState.INCONSISTENT
    end(cluster)
    assert stats(cluster, 1).resync_total_bits == -(-cluster.device_bytes // BLOCK)
    assert cluster.events(1, "change", "resync done")


def test_invalidate_remote_of_a_primary_or_without_a_connection_is_refused(make: Any) -> None:
    cluster = make()
    cluster.connect_fresh()
    cluster.ask(1, "primary")
    with pytest.raises(ReplError):
        cluster.ask(0, "invalidate-remote")
    assert cluster.state(1)[0] == Role.PRIMARY and cluster.in_sync
    cluster.ask(1, "secondary")
    cluster.ask(0, "disconnect")
    with pytest.raises(ReplError) as alone:
        cluster.ask(0, "invalidate-remote")
    assert alone.value.number == -15


# ---- digests ----


def test_checksum_based_resync_transfers_only_what_differs(make: Any) -> None:
    cluster = make(net={"csums_alg": "sha256"}, resync=OPEN)
    cluster.connect_fresh()
    fill(cluster, 256)
    cluster.shells[1].crash()
    blocks = [7, 40, 41, 200]
    for block in blocks:
        cluster.shells[1].data.load(block * BLOCK, os.urandom(BLOCK))
    cluster.start(1)
    cluster.until(lambda: cluster.in_sync, 30_000, "connected again")
    cluster.ask(1, "invalidate")
    end(cluster)
    target, source = stats(cluster, 1), stats(cluster, 0)
    total = target.resync_total_bits
    ranges = {block // 16 for block in blocks}
    assert target.resync_payload_bytes == len(ranges) * 16 * BLOCK
    assert target.resync_equal_bits == source.resync_equal_bits == total - len(ranges) * 16
    assert sent(cluster, 1, Packet.CSUM_RS_REQUEST) >= total // 16
    assert sent(cluster, 1, Packet.RS_DATA_REQUEST) == 0


def test_csums_after_crash_only_asks_for_data_unless_a_primary_has_crashed(make: Any) -> None:
    cluster = make(net={"csums_alg": "crc32c", "csums_after_crash_only": True}, resync=OPEN)
    cluster.connect_fresh()
    fill(cluster, 64)
    cluster.ask(1, "invalidate")
    end(cluster)
    assert sent(cluster, 1, Packet.CSUM_RS_REQUEST) == 0
    app = cluster.serve(0)
    app.write(1, 2, 3)
    cluster.shells[0].crash()
    cluster.until(lambda: not cluster.node(1).is_connected, 20_000, "the loss of the Primary")
    cluster.start(0)
    end(cluster)
    assert sent(cluster, 1, Packet.CSUM_RS_REQUEST) > 0


@pytest.mark.parametrize("seed", range(6))
def test_writes_during_a_checksum_based_resync_leave_both_equal(make: Any, seed: int) -> None:
    from tests.sim.cluster import Load

    cluster = make(seed, net={"csums_alg": "md5"}, resync=replace(SLOW, resync_rate_kib=4000))
    cluster.connect_fresh()
    fill(cluster, 256)
    cluster.ask(1, "invalidate")
    app = cluster.serve(0)
    app.load(Load(queue_depth=4, think_max_ms=2, span_length=256 * BLOCK, max_bytes=16384))
    cluster.until(lambda: cluster.in_sync, 120_000, "the end of the resync")
    assert stats(cluster, 1).resync_equal_bits > 0
    app.stop()
    cluster.wait_idle()
    cluster.check_equal()


# ---- holes ----


def test_holes_are_neither_read_nor_transferred_nor_written(make: Any) -> None:
    cluster = make(disk_bytes=16 * MIB, resync=OPEN)
    cluster.connect_fresh()
    app = cluster.serve(0)
    app.write(*range(0, 40, 10), *range(3000, 3004))
    app.stop()
    cluster.ask(0, "secondary")
    before = [stats(cluster, n) for n in (0, 1)]
    cluster.ask(1, "invalidate")
    end(cluster)
    source, target = stats(cluster, 0), stats(cluster, 1)
    assert target.resync_payload_bytes <= 8 * BLOCK
    assert source.resync_disk_bytes - before[0].resync_disk_bytes <= 5 * 16 * BLOCK  # five islands
    assert target.resync_disk_bytes - before[1].resync_disk_bytes <= 8 * BLOCK
    assert target.resync_deallocated_bits == source.resync_deallocated_bits == target.resync_total_bits - 8
    assert sent(cluster, 1, Packet.RS_THIN_REQ) < target.resync_total_bits // 32


def test_data_of_the_target_where_the_source_has_a_hole_becomes_zeroes(make: Any) -> None:
    cluster = make(resync=OPEN)
    cluster.connect_fresh()
    cluster.shells[1].crash()
    cluster.shells[1].data.load(20 * BLOCK, os.urandom(30 * BLOCK))
    cluster.start(1)
    cluster.until(lambda: cluster.in_sync, 30_000, "connected again")
    cluster.ask(0, "invalidate-remote")
    end(cluster)
    assert cluster.shells[1].data.content(20 * BLOCK, 30 * BLOCK) == bytes(30 * BLOCK)


@pytest.mark.parametrize("seed", range(6))
def test_writes_trims_and_zeroes_during_a_thin_resync_leave_both_equal(make: Any, seed: int) -> None:
    from tests.sim.cluster import Load

    cluster = make(seed, resync=replace(SLOW, resync_rate_kib=2000))
    cluster.connect_fresh()
    fill(cluster, 100)
    cluster.ask(1, "invalidate")
    app = cluster.serve(0)
    app.load(Load(queue_depth=4, think_max_ms=2, zero_percent=15, trim_percent=15))
    cluster.until(lambda: cluster.in_sync, 120_000, "the end of the resync")
    app.stop()
    cluster.wait_idle()
    cluster.check_equal()


# ---- no more than what is dirty ----


def test_only_the_dirty_blocks_are_read_and_written(make: Any) -> None:
    cluster = make(disk_bytes=16 * MIB, resync=OPEN)
    cluster.connect_fresh()
    fill(cluster, 2000)
    before = stats(cluster, 0).resync_disk_bytes
    fall_behind(cluster, 20, spacing=90)
    end(cluster)
    assert stats(cluster, 0).resync_disk_bytes - before == 20 * BLOCK
    assert stats(cluster, 1).resync_disk_bytes == 20 * BLOCK  # of this process
    assert stats(cluster, 1).resync_payload_bytes == 20 * BLOCK


def test_last_partial_block_of_the_device_is_resynced(make: Any) -> None:
    cluster = make(resync=OPEN, odd_sectors=3)
    cluster.connect_fresh(skip_initial_sync=False)
    app = cluster.serve(0)
    last = cluster.device_bytes // BLOCK * BLOCK
    assert cluster.device_bytes - last == 5 * 512
    assert app.do("write", last, cluster.device_bytes - last) == 0
    app.stop()
    cluster.ask(0, "secondary")
    cluster.ask(1, "invalidate")
    end(cluster)


# ---- interruptions ----

STEPS = [
    (0, Packet.COMPRESSED_BITMAP),
    (1, Packet.COMPRESSED_BITMAP),
    (0, Packet.SYNC_UUID),
    (1, Packet.RS_THIN_REQ),
    (0, Packet.RS_DATA_REPLY),
    (1, Packet.RS_WRITE_ACK),
    (0, Packet.PING_ACK),
]


@pytest.mark.parametrize("crash", [None, 0, 1], ids=["cut", "source crashes", "target crashes"])
@pytest.mark.parametrize(("node", "packet"), STEPS, ids=[f"{p.name}-{n}" for n, p in STEPS])
def test_resync_interrupted_anywhere_goes_on_with_what_is_left(
    make: Any, node: int, packet: Packet, crash: int | None
) -> None:
    cluster = make(7, resync=SLOW)
    cluster.connect_fresh()
    fall_behind(cluster, start=False)
    before = sent(cluster, node, packet)
    cluster.start(1)
    cluster.until(lambda: sent(cluster, node, packet) > before, 20_000, "the packet")
    if crash is None:
        cluster.cut(silent=False)
        cluster.until(lambda: not cluster.connected, 20_000, "the loss")
        cluster.heal()
    else:
        cluster.shells[crash].crash()
        cluster.run(50)
        cluster.start(crash)
    end(cluster)
    for each in (0, 1):
        for text in cluster.events(each, "change", "blocks ("):
            if found := re.search(r"\((\d+) blocks \(\d+ KiB\) to be fetched", text):
                assert int(found[1]) <= DIRTY
        assert not [text for text in cluster.events(each) if "full" in text]


@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("milliseconds", [0, 1, 3, 8, 30, 200])
def test_invalidation_that_is_interrupted_ends_with_equal_disks(make: Any, node: int, milliseconds: int) -> None:
    cluster = make(9, resync=SLOW)
    cluster.connect_fresh()
    fill(cluster, 40)
    cluster.fire(node, "invalidate")
    cluster.run(milliseconds)
    cluster.cut(silent=False)
    cluster.until(lambda: not cluster.connected, 20_000, "the loss")
    cluster.heal()
    cluster.until(lambda: cluster.connected, 30_000, "the connection")
    cluster.until(lambda: cluster.in_sync, 120_000, "the end of the resync")
    cluster.check_equal()


# ---- settings at run time ----


def test_disk_options_change_the_pace_of_a_running_resync_and_reach_the_peer(make: Any) -> None:
    cluster = make(resync=replace(SLOW, resync_rate_kib=40))
    cluster.connect_fresh()
    fall_behind(cluster, 200)
    cluster.run(1000)
    assert cluster.dirty_bits(1) > 150
    cluster.ask(0, "disk-options", resync_rate_kib=40960)
    cluster.until(lambda: cluster.in_sync, 3000, "the end of the faster resync")
    assert cluster.node(1).volumes[0].resync.resync_rate_kib == 40960
    assert cluster.events(1, "resync", "as the peer says")
    with pytest.raises(ReplError):
        cluster.ask(0, "disk-options", resync_rate_kib=0)
    with pytest.raises(ReplError):
        cluster.ask(0, "disk-options", al_extents=7)


def test_priority_is_a_preset_until_a_number_is_set(make: Any) -> None:
    cluster = make()
    cluster.connect_fresh()
    cluster.ask(1, "disk-options", priority="fast")
    shown = cluster.ask(1, "status")["volumes"][0]["resync_options"]
    assert shown["priority"] == "fast" and shown["plan_ahead"] == 0 and shown["min_rate_kib"] == 0
    cluster.ask(1, "disk-options", max_rate_kib=5000)
    assert cluster.ask(1, "status")["volumes"][0]["resync_options"]["priority"] == ""
    with pytest.raises(ReplError):
        cluster.ask(1, "disk-options", priority="ludicrous")
    cluster.ask(1, "disk-options", reset=True)
    assert cluster.node(1).volumes[0].resync == Resync()


def test_limiting_factor_is_named_on_both_nodes(make: Any) -> None:
    cluster = make(disk_bytes=16 * MIB, resync=replace(SLOW, resync_rate_kib=400), net={"max_buffers": 32})
    cluster.connect_fresh()
    fill(cluster, 2000)
    fall_behind(cluster, 900)
    cluster.run(3000)
    limits = [cluster.ask(n, "status")["volumes"][0]["resync"]["limited_by"] for n in (0, 1)]
    assert limits == ["resync-rate", "resync-rate"]
    cluster.shells[1].data.settings(write_min_ns=1_500_000_000, write_max_ns=2_000_000_000)
    cluster.ask(1, "disk-options", resync_rate_kib=1 << 20)
    for node, limit in ((1, "own-disk"), (0, "peer-disk")):
        cluster.until(
            lambda node=node, limit=limit: (
                cluster.ask(node, "status")["volumes"][0]["resync"]["limited_by"] == limit
            ), 9000, limit,
        )  # fmt: skip


# ---- answers other than data ----


def answer(cluster: Any, packet: Packet, blocks: range) -> None:
    """The source's control plane says this about single blocks that the target has asked for."""
    connection = cluster.node(0).connection
    for block in blocks:
        body = pk.Ack(sector=block * 8, block_id=b"\xff" * 8, size_bytes=BLOCK, seq_num=0).encode()
        connection.send_meta(packet, body)
    cluster.ask(0, "role")


def test_canceled_requests_are_asked_for_again_later(make: Any) -> None:
    cluster = make(resync=OPEN)
    cluster.judge()  # the answers of node 0 are made up, and node 1 believes them
    cluster.connect_fresh()
    cluster.ask(0, "pause-sync")
    fall_behind(cluster)
    cluster.shells[0].data.hold()
    cluster.ask(0, "resume-sync")
    cluster.until(lambda: sent(cluster, 1, Packet.RS_THIN_REQ) == DIRTY, 5000, "all requests")
    answer(cluster, Packet.RS_CANCEL, range(0, 2 * DIRTY, 2))
    cluster.until(lambda: sent(cluster, 1, Packet.RS_THIN_REQ) == 2 * DIRTY, 5000, "all requests once more")
    assert cluster.state(1)[1] == C.SYNC_TARGET and cluster.dirty_bits(1) == DIRTY
    cluster.shells[0].data.release()
    end(cluster)


def test_block_that_the_source_cannot_read_stays_dirty_until_the_next_resync(make: Any) -> None:
    cluster = make(resync=OPEN)
    cluster.judge(1)  # the answers of node 0 are made up
    cluster.connect_fresh()
    cluster.ask(0, "pause-sync")
    fall_behind(cluster, 1)
    cluster.shells[0].data.hold()
    cluster.ask(0, "resume-sync")
    cluster.until(lambda: sent(cluster, 1, Packet.RS_THIN_REQ) == 1, 5000, "the request")
    answer(cluster, Packet.NEG_RS_DREPLY, range(1))
    cluster.until(lambda: cluster.state(1)[1] == C.CONNECTED, 5000, "the end of the resync")
    assert cluster.state(1)[2] == DiskState.INCONSISTENT and cluster.dirty_bits(1) == cluster.dirty_bits(0) == 1
    assert cluster.events(1, "change", "1 blocks failed")
    cluster.shells[0].data.release()
    cluster.run(100)
    assert cluster.state(1)[2] == DiskState.INCONSISTENT  # a late answer changes nothing
    cluster.cut(silent=False)
    cluster.until(lambda: not cluster.connected, 20_000, "the cut")
    cluster.heal()
    end(cluster)


# ---- applications first ----


@pytest.mark.parametrize("least_kib", [0, 200])
def test_resync_above_c_min_rate_steps_back_for_the_application(make: Any, least_kib: int) -> None:
    from tests.sim.cluster import Load

    cluster = make(disk_bytes=16 * MIB, resync=replace(SLOW, resync_rate_kib=4000, min_rate_kib=least_kib))
    cluster.connect_fresh()
    fill(cluster, 1600)
    cluster.ask(0, "pause-sync")
    fall_behind(cluster, 500)
    app = cluster.serve(0)
    app.load(Load(queue_depth=2, think_max_ms=4, read_percent=0, span_offset=8 * MIB, span_length=MIB))
    cluster.run(500)
    cluster.ask(0, "resume-sync")
    begin = cluster.now_ms
    limits = set()
    while not cluster.in_sync:
        cluster.run(500)
        if resync := cluster.ask(1, "status")["volumes"][0]["resync"]:
            limits.add(resync["limited_by"])
        assert cluster.now_ms - begin < 60_000
    took_ms = cluster.now_ms - begin
    app.stop()
    cluster.wait_idle()
    cluster.check_equal()
    if least_kib:
        assert took_ms > 3000 and "application" in limits
    else:
        assert took_ms < 2500 and "application" not in limits


# ---- several volumes ----


def test_volume_waits_for_the_volume_of_its_own_resource_that_goes_first(make: Any) -> None:
    cluster = make(volumes=2, resync=SLOW, overrides={"resync_after": ("r0", 0)})
    cluster.connect_fresh()
    for volume in (0, 1):
        cluster.ask(1, "pause-sync", volume=volume)
        cluster.ask(1, "invalidate", volume=volume)
        cluster.ask(1, "resume-sync", volume=volume)
    volumes = cluster.node(1).volumes
    cluster.until(lambda: volumes[1].state.conn == C.PAUSED_SYNC_T, 10_000, "volume 1 waits")
    assert volumes[0].state.conn == C.SYNC_TARGET
    assert volumes[1].state.aftr_isp and not volumes[0].state.aftr_isp
    cluster.until(lambda: volumes[0].is_in_sync, 120_000, "volume 0")
    cluster.until(lambda: volumes[1].is_in_sync, 120_000, "volume 1")
    assert not volumes[1].state.aftr_isp
