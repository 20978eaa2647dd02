# SPDX-License-Identifier: Apache-2.0
"""Undo of a split brain: whatever happens after it was solved, the loser's version of the disk can be put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from repl.drbd.states import ConnectionState, Role
from repl.engine.commands import Resync
from tests.lib.tools import require_sim
from tests.sim.cluster import App, Cluster, Load, Setup

MakeSplit = Callable[..., Cluster]
BLOCK = 4096
SLOW = Resync(resync_rate_kib=1024, plan_ahead=0, max_rate_kib=1024, min_rate_kib=0)
LOSER, WINNER = 0, 1


@pytest.fixture
def split() -> Iterator[MakeSplit]:
    """Both nodes wrote alone; node 0 is going to lose.  ``common``: blocks that both had before."""
    require_sim()
    made: list[Cluster] = []

    def make(seed: int = 1, *, on_error: str = "stop", common: range = range(0, 40, 3), **setup: Any) -> Cluster:
        undo = {"split_brain_undo": True, "split_brain_undo_on_error": on_error}
        cluster = Cluster(seed, Setup(overrides=undo, disk_bytes=4 << 20, **setup))
        made.append(cluster)
        cluster.connect_fresh()
        app = cluster.serve(0)
        app.write(*common)
        leave(cluster, app, 0)
        part(cluster)
        return cluster

    yield make
    for one in made:
        print(one.tail(100))
        one.close()


def leave(cluster: Cluster, app: App, node: int) -> None:
    app.leave()
    cluster.until(lambda: cluster.node(node).role == Role.SECONDARY, 10_000, "the client's end")


def part(cluster: Cluster) -> None:
    """Both nodes write alone."""
    for node in (0, 1):
        cluster.ask(node, "disconnect", force=True)
    for node in (0, 1):
        app = cluster.serve(node)
        app.write(*range(node, 300 + 7 * node, 5 - node))
        leave(cluster, app, node)


def meet(cluster: Cluster) -> None:
    cluster.ask(WINNER, "connect")
    cluster.ask(LOSER, "connect", discard_my_data=True)


def disk(cluster: Cluster, *, layer: int = 0) -> bytes:
    return cluster.shells[LOSER].data.content(0, cluster.device_bytes, layer=layer)


def kept(cluster: Cluster, *, layer: int = 0) -> bytes:
    """The loser's disk put together from overlay, map and what is on the disk."""
    overlay, undo_map = cluster.shells[LOSER].undo_disks[0]
    image = bytearray(disk(cluster, layer=layer))
    blocks = -(-len(image) // BLOCK)
    bits = undo_map.content(4096, -(-blocks // 8), layer=layer)
    for block in range(blocks):
        if bits[block // 8] >> block % 8 & 1:
            end = min((block + 1) * BLOCK, len(image))
            image[block * BLOCK : end] = overlay.content(block * BLOCK, end - block * BLOCK, layer=layer)
    return bytes(image)


def in_sync(cluster: Cluster) -> None:
    cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")


def check_equal(cluster: Cluster) -> None:
    """The history of what was acknowledged is no help here: the loser's part of it is lost on purpose."""
    in_sync(cluster)
    cluster.wait_idle()
    cluster.check_equal()


def test_losers_version_is_kept_while_the_winners_goes_on_being_written(split: MakeSplit) -> None:
    cluster = split()
    before = disk(cluster)
    meet(cluster)
    in_sync(cluster)
    assert disk(cluster) != before and kept(cluster) == before
    app = cluster.serve(WINNER)
    app.load(Load(ops=300, read_percent=0, zero_percent=10, trim_percent=10, align_bytes=512))
    cluster.until(lambda: app.is_idle, 60_000, "the load")
    leave(cluster, app, WINNER)
    assert kept(cluster) == before
    mine = cluster.serve(LOSER)
    mine.load(Load(ops=300, read_percent=0, zero_percent=10, trim_percent=10, align_bytes=512))
    cluster.until(lambda: mine.is_idle, 60_000, "the load")
    assert kept(cluster) == before
    leave(cluster, mine, LOSER)
    check_equal(cluster)
    found = cluster.ask(LOSER, "undo-list")["undos"][0]
    assert found["saved_bytes"] and found["generation"]
    assert cluster.ask(WINNER, "undo-list")["undos"] == []


@pytest.mark.parametrize("seed", range(1, 9))
def test_losers_version_survives_power_cuts_in_the_resync_and_after_it(split: MakeSplit, seed: int) -> None:
    cluster = split(seed, resync=SLOW)
    before = disk(cluster)
    meet(cluster)
    shell = cluster.shells[LOSER]
    cluster.until(lambda: cluster.state(LOSER)[1] == ConnectionState.SYNC_TARGET, 30_000, "the resync")
    for turn in range(3):
        cluster.run(40 + 61 * (seed + turn) % 300)
        if turn % 2:
            shell.crash()
        else:
            shell.power_off()
            assert kept(cluster) == before
        cluster.restart(LOSER)
        assert kept(cluster) == before
    in_sync(cluster)
    app = cluster.serve(WINNER)
    app.load(Load(read_percent=0, align_bytes=512))
    for _ in range(3):
        cluster.run(200 + 37 * seed)
        shell.power_off()
        assert kept(cluster) == before
        cluster.restart(LOSER)
    in_sync(cluster)
    app.stop()
    assert kept(cluster) == before
    cluster.until(lambda: cluster.node(WINNER).role == Role.SECONDARY, 10_000, "the client's end")
    check_equal(cluster)


def test_overlay_that_is_full_stops_the_resync_and_overwrites_nothing(split: MakeSplit) -> None:
    cluster = split(resync=SLOW)
    before = disk(cluster)
    meet(cluster)
    shell = cluster.shells[LOSER]
    cluster.until(lambda: cluster.state(LOSER)[1] == ConnectionState.SYNC_TARGET, 30_000, "the resync")
    overlay = shell.undo_disks[0][0]
    overlay.fail_next(1, count=1_000_000, error=28)
    cluster.until(lambda: cluster.node(LOSER).reason_code == "undo-failed", 30_000, "the reason")
    cluster.until(lambda: cluster.node(LOSER).cstate == ConnectionState.STANDALONE, 30_000, "StandAlone")
    cluster.until(lambda: cluster.node(WINNER).reason_code == "undo-failed", 30_000, "the reason on the other node")
    assert "No space left" in cluster.node(LOSER).reason
    assert kept(cluster) == before
    overlay.heal()
    cluster.ask(LOSER, "connect")
    check_equal(cluster)
    assert kept(cluster) == before


def test_overlay_that_is_full_is_given_up_if_configured_so(split: MakeSplit) -> None:
    cluster = split(on_error="drop", resync=SLOW)
    meet(cluster)
    cluster.until(lambda: 0 in cluster.shells[LOSER].undo_disks, 30_000, "the undo")
    cluster.shells[LOSER].undo_disks[0][0].fail_next(1, count=1_000_000, error=28)
    check_equal(cluster)
    assert cluster.ask(LOSER, "undo-list")["undos"] == []


def test_second_split_brain_waits_until_the_first_ones_undo_is_dropped(split: MakeSplit) -> None:
    cluster = split()
    meet(cluster)
    in_sync(cluster)
    cluster.wait_idle()
    part(cluster)
    before = disk(cluster)
    meet(cluster)
    cluster.until(lambda: cluster.node(LOSER).reason_code == "undo-exists", 30_000, "the refusal")
    cluster.until(lambda: cluster.node(LOSER).cstate == ConnectionState.STANDALONE, 30_000, "StandAlone")
    cluster.ask(LOSER, "undo-drop")
    assert cluster.ask(LOSER, "undo-list")["undos"] == []
    cluster.ask(LOSER, "connect", discard_my_data=True)
    in_sync(cluster)
    assert kept(cluster) == before


def test_undo_goes_on_after_an_orderly_restart(split: MakeSplit) -> None:
    cluster = split()
    before = disk(cluster)
    meet(cluster)
    in_sync(cluster)
    cluster.ask(LOSER, "down")
    cluster.until(lambda: not cluster.shells[LOSER].is_running, 10_000, "the end")
    cluster.start(LOSER)
    in_sync(cluster)
    app = cluster.serve(LOSER)
    app.write(*range(0, 500, 2))
    assert kept(cluster) == before
    assert cluster.ask(LOSER, "undo-list")["undos"][0]["saved_bytes"]


def test_block_that_several_writes_share_is_saved_once(split: MakeSplit) -> None:
    """Writes that end and begin within a block do not wait for each other, so they come to the undo together."""
    cluster = split(common=range(590, 620))
    before = disk(cluster)
    meet(cluster)
    in_sync(cluster)
    app = cluster.serve(LOSER)
    app.write(900)
    had = cluster.ask(LOSER, "undo-list")["undos"][0]["saved_bytes"]
    shared = 600 * BLOCK + 1024
    ops = [app.submit("write", 700 * BLOCK)]  # the first one is saved alone, the others meanwhile wait
    ops.append(app.submit("write", shared + 5 * BLOCK, 4 * BLOCK))
    ops.append(app.submit("write", shared - 4 * BLOCK, 4 * BLOCK))
    ops.append(app.submit("zero", shared, 512))
    ops.append(app.submit("write", shared + 512, 5 * BLOCK - 512))
    cluster.until(lambda: all(cluster.op(op).state for op in ops), 30_000, "the writes' answers")
    assert kept(cluster) == before
    saved = cluster.ask(LOSER, "undo-list")["undos"][0]["saved_bytes"]
    assert saved - had == (1 + 14) * BLOCK
    leave(cluster, app, LOSER)
    check_equal(cluster)
