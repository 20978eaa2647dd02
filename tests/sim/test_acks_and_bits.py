# SPDX-License-Identifier: Apache-2.0
"""Promises of one side alone, with the peer's disk held: an oracle that looks at both sides together does not see them.

A block that both bitmaps have to know stays covered when one of them forgets it, and a write that only the memory of
the peer has is missed only when both nodes die; here each is looked at by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState
from repl.engine.commands import Resync
from tests.lib.tools import require_sim

BLOCK = 4096
BLOCKS = 64


@pytest.fixture
def pair() -> Iterator[Any]:
    require_sim()
    from tests.sim.cluster import Cluster, Setup

    slow = Resync(resync_rate_kib=500, plan_ahead=0, max_rate_kib=1000, min_rate_kib=0)
    with Cluster(11, Setup(partial_ppm=0, tiny_ppm=0, resync=slow)) as cluster:
        cluster.connect_fresh()
        cluster.ask(0, "primary")
        yield cluster


def submit(cluster: Any, app: Any, kind: int, offset: int = 0, length: int = 0) -> int:
    world = cluster.world
    op = world.struct("re_sim_nbd_op", kind=kind, offset=offset, length=length)
    return int(world.lib.re_sim_nbd_submit(world.sim, app.number, op))


def write(cluster: Any, app: Any, offset: int, length: int) -> int:
    return submit(cluster, app, cluster.world.lib.RE_SIM_NBD_WRITE, offset, length)


def is_pending(cluster: Any, op: int) -> bool:
    return bool(cluster.op(op).state == cluster.world.lib.RE_SIM_OP_PENDING)


def test_write_in_protocol_c_waits_for_the_disk_of_the_peer(pair: Any) -> None:
    app = pair.serve(0)
    disk = pair.shells[1].data
    disk.hold()
    op = write(pair, app, 0, BLOCK)
    pair.until(lambda: disk.in_flight > 0, 1000, "the write on the peer's disk")
    pair.run(200)
    assert is_pending(pair, op), "P1: acknowledged, and the peer's disk does not have it"
    disk.release()
    pair.until(lambda: not is_pending(pair, op), 5000, "the write's answer")


def test_strict_flush_waits_for_the_flush_of_the_peer(pair: Any) -> None:
    app = pair.serve(0)
    pair.shells[1].data.settings(flush_min_ns=500_000_000, flush_max_ns=500_000_000)
    op = write(pair, app, 0, BLOCK)
    pair.until(lambda: not is_pending(pair, op), 5000, "the write's answer")
    flush = submit(pair, app, pair.world.lib.RE_SIM_NBD_FLUSH)
    pair.run(300)
    assert is_pending(pair, flush), "P2: acknowledged, and the peer may still lose it"
    pair.until(lambda: not is_pending(pair, flush), 5000, "the flush's answer")


def fall_behind(pair: Any) -> None:
    """Node 1 lacks blocks; it comes back and the resync begins."""
    app = pair.serve(0)
    pair.shells[1].crash()
    pair.until(lambda: not pair.node(0).is_connected, 20_000, "the loss of the peer")
    ops = [write(pair, app, n * 2 * BLOCK, BLOCK) for n in range(BLOCKS)]
    ops.append(submit(pair, app, pair.world.lib.RE_SIM_NBD_FLUSH))
    pair.until(lambda: not any(is_pending(pair, op) for op in ops), 20_000, "the writes without a peer")
    assert pair.differing().bit_count() == pair.dirty_bits(0) == BLOCKS
    pair.start(1)
    pair.until(lambda: pair.state(1)[1] == ConnectionState.SYNC_TARGET, 20_000, "the resync's start")


def test_both_sides_of_a_resync_know_every_block_that_is_not_on_the_disk_of_the_target(pair: Any) -> None:
    fall_behind(pair)
    disk = pair.shells[1].data
    disk.hold()  # nothing that is asked for from now on gets to the disk
    pair.run(500)
    assert pair.world.lib.re_sim_packets_sent(pair.world.sim, 0, Packet.RS_DATA_REPLY) > 0
    differing = pair.differing().bit_count()
    assert differing > 0
    for node in (0, 1):
        assert pair.dirty_bits(node) >= differing, f"P6: node {node} does not know every block that differs"
    disk.release()
    pair.until(lambda: pair.in_sync, 60_000, "the end of the resync")
    pair.check_idle_pair()


def test_source_of_a_resync_knows_every_block_that_the_target_would_lose_with_its_power(pair: Any) -> None:
    fall_behind(pair)
    looks = 0
    while pair.state(1)[1] == ConnectionState.SYNC_TARGET:
        pair.run(5)
        looks += 1
        stable = pair.differing(layer=1).bit_count()  # the source's own blocks have been flushed by then
        assert pair.dirty_bits(0) >= stable, f"P6: {stable} blocks would differ, {pair.dirty_bits(0)} are known"
    assert looks > 10
    pair.until(lambda: pair.in_sync, 60_000, "the end of the resync")
