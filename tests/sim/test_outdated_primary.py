# SPDX-License-Identifier: Apache-2.0
"""A Primary on an Outdated disk works through its peer's; a crash before that does not make its disk the better one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from repl.drbd.states import ConnectionState, DiskState, Role
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.node_shell import Script
from tests.sim.world import BLOCK

C, D = ConnectionState, DiskState
HANDLER = "before-resync-source"
EARLY, LATE = range(8), range(2, 6)  # written before and after the crash
Pair = tuple[Cluster, int, int]


@pytest.fixture(params=[(0, 101), (1, 101), (0, 99), (1, 99)], ids="source{0[0]}-{0[1]}".format)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The source has crashed as Primary, its resync does not get beyond the handler, and it is Secondary now.

    Until the resync has its UUID both have the same generation; the source alone has the LATE blocks.  Below protocol
    version 100 two nodes of ours speak as with DRBD's, but they decide in the same way.
    """
    require_sim()
    source, version = request.param
    other = 1 - source
    with Cluster(11, Setup(handlers=(HANDLER,), net=replace(QUICK_NET, protocol_max=version))) as cluster:
        cluster.connect_fresh()
        cluster.serve(source).write(*EARLY)
        cluster.shells[source].scripts[HANDLER] = Script(0, delay_ms=4000)
        cluster.shells[source].crash()
        cluster.restart(source)
        outdated = (C.WF_SYNC_UUID, D.OUTDATED)
        cluster.until(lambda: cluster.state(other)[1:3] == outdated, 20_000, "the end of the bitmaps")
        before = cluster.serve(source)
        before.write(*LATE)
        before.stop()
        cluster.ask(source, "secondary")
        yield cluster, source, other


def works_through_its_peer(pair: Pair) -> None:
    cluster, _, other = pair
    app = cluster.serve(other)
    assert cluster.state(other)[::2] == (Role.PRIMARY, D.OUTDATED)
    assert [app.do("read", block * BLOCK) for block in LATE] == [0] * len(LATE)


def is_lost(cluster: Cluster, index: int) -> Callable[[], bool]:
    return lambda: not cluster.node(index).is_connected


def finds_the_source_again(pair: Pair) -> None:
    """What the other node shows: the simulator compares it with what was written last."""
    cluster, source, other = pair
    cluster.heal()
    cluster.until(lambda: cluster.connected, 20_000, "the connection")
    app = cluster.serve(other)
    assert [app.do("read", block * BLOCK) for block in EARLY] == [0] * len(EARLY)
    app.stop()
    assert not cluster.events(source, "handshake", "decision target")
    assert cluster.events(other, "handshake", "decision target")
    cluster.check_idle_pair()


def test_outdated_primary_that_loses_the_link_takes_what_its_source_has(pair: Pair) -> None:
    works_through_its_peer(pair)
    cluster, source, other = pair
    cluster.cut(silent=False)
    cluster.until(is_lost(cluster, other), 5000, "the loss of the source")
    cluster.until(is_lost(cluster, source), 5000, "the loss of the target")
    finds_the_source_again(pair)


def test_outdated_primary_that_dies_takes_what_its_source_has(pair: Pair) -> None:
    """Both nodes have crashed as Primary then."""
    works_through_its_peer(pair)
    cluster, source, other = pair
    cluster.shells[other].crash()
    cluster.until(is_lost(cluster, source), 5000, "the loss of the target")
    cluster.restart(other)
    finds_the_source_again(pair)
