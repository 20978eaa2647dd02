# SPDX-License-Identifier: Apache-2.0
"""A Primary that is resync target shows nothing that is on its own disk alone: with the peer it would be gone again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from repl.drbd.states import ConnectionState, DiskState
from tests.lib.tools import require_sim
from tests.sim.app import App
from tests.sim.cluster import Cluster, Setup
from tests.sim.world import BLOCK

SEED = 31
PENDING, DONE, FAILED = 0, 1, 2
CLEAN = range(100, 108)


@pytest.fixture
def pair() -> Iterator[Cluster]:
    """Node 0 is Primary and target of a resync that stands still; only the blocks 0..3 differ."""
    require_sim()
    with Cluster(SEED, Setup()) as cluster:
        cluster.connect_fresh()
        before = cluster.serve(1)
        before.write(*CLEAN)
        cluster.ask(0, "disconnect")
        before.write(0, 1, 2, 3)
        before.stop()
        cluster.ask(0, "pause-sync", volume=0)
        cluster.ask(1, "secondary")
        cluster.ask(0, "connect")
        cluster.until(lambda: cluster.state(0)[1] == ConnectionState.PAUSED_SYNC_T, 10_000, "a resync that is paused")
        yield cluster


def lose_and_find_the_peer(pair: Cluster, writes: list[int]) -> None:
    pair.until(lambda: not pair.node(0).is_connected, 20_000, "the loss of the peer")
    pair.run(100)
    assert {pair.op(op).state for op in writes} == {FAILED}
    pair.heal()
    pair.until(lambda: pair.connected and pair.state(0)[3] == DiskState.UP_TO_DATE, 20_000, "the peer again")


def read_all(app: App) -> None:
    """The simulator compares what they see with what was seen before."""
    assert [app.do("read", block * BLOCK) for block in CLEAN] == [0] * len(CLEAN)


def test_a_read_behind_a_write_that_the_peer_never_gets(pair: Cluster) -> None:
    app = pair.serve(0)
    read_all(app)
    pair.cut(silent=True)
    writes = [app.submit("write", block * BLOCK) for block in CLEAN]
    pair.run(50)
    for block in CLEAN:
        app.submit("read", block * BLOCK)
    pair.run(50)
    assert {pair.op(op).state for op in writes} == {PENDING}
    lose_and_find_the_peer(pair, writes)
    read_all(app)


def test_a_read_that_such_a_write_has_overtaken(pair: Cluster) -> None:
    app, other = pair.serve(0), pair.serve(0)
    pair.cut(silent=True)
    pair.shells[0].data.settings(read_min_ns=5_000_000, read_max_ns=9_000_000)
    for block in CLEAN:
        other.submit("read", block * BLOCK)
    pair.run(1)
    writes = [app.submit("write", block * BLOCK) for block in CLEAN]
    pair.run(50)
    assert {pair.op(op).state for op in writes} == {PENDING}
    lose_and_find_the_peer(pair, writes)
    read_all(app)


def test_a_read_behind_a_write_that_the_peer_confirms(pair: Cluster) -> None:
    app = pair.serve(0)
    pair.shells[1].data.hold()
    write = app.submit("write", CLEAN[0] * BLOCK)
    pair.run(50)
    read = app.submit("read", CLEAN[0] * BLOCK)
    pair.run(50)
    assert (pair.op(write).state, pair.op(read).state) == (PENDING, PENDING)
    pair.shells[1].data.release()
    pair.until(lambda: (pair.op(write).state, pair.op(read).state) == (DONE, DONE), 5000, "the answers")
    read_all(app)


def test_a_read_behind_a_write_that_the_peer_has_shown_and_the_own_disk_has_not_yet(pair: Cluster) -> None:
    app, data = pair.serve(0), pair.shells[0].data
    app.write(CLEAN[0])  # its extent is in the activity log
    read_all(app)
    data.settings(write_min_ns=2_000_000_000, write_max_ns=2_000_000_000)
    write = app.submit("write", CLEAN[0] * BLOCK)
    pair.run(50)
    data.settings(write_min_ns=0, write_max_ns=1_000_000)
    read_all(app)  # the peer answers, with the new block
    pair.ask(0, "resume-sync", volume=0)
    pair.until(lambda: pair.state(0)[2] == DiskState.UP_TO_DATE, 1500, "the end of the resync")
    pair.run(2)  # the engine knows it as well: until then the peer answers
    read = app.submit("read", CLEAN[0] * BLOCK)
    others = [app.submit("read", block * BLOCK) for block in CLEAN[1:]]
    pair.until(lambda: all(pair.op(other).state == DONE for other in others), 500, "reads of other blocks")
    assert (pair.op(write).state, pair.op(read).state) == (PENDING, PENDING)
    pair.until(lambda: (pair.op(write).state, pair.op(read).state) == (DONE, DONE), 5000, "the answers")
    read_all(app)
