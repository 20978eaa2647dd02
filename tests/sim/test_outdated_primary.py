# SPDX-License-Identifier: Apache-2.0
"""A Primary on an Outdated disk works through its peer's; a crash before that does not make its disk the better one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from repl.drbd.states import ConnectionState, DiskState, Role
from tests.lib.tools import require_sim
from tests.sim.cluster import Cluster, Setup
from tests.sim.node_shell import Script
from tests.sim.world import BLOCK

C, D = ConnectionState, DiskState
HANDLER = "before-resync-source"
EARLY, LATE = range(8), range(2, 6)  # written before and after the crash


@pytest.fixture(params=range(4), ids="seed{}".format)
def pair(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Node 0 has crashed as Primary, its resync does not get beyond the handler, and node 1 is Primary now.

    Until the resync has its UUID both have the same generation; node 0 alone has the LATE blocks.
    """
    require_sim()
    with Cluster(request.param, Setup(handlers=(HANDLER,))) as cluster:
        cluster.connect_fresh()
        cluster.serve(0).write(*EARLY)
        cluster.shells[0].scripts[HANDLER] = Script(0, delay_ms=4000)
        cluster.shells[0].crash()
        cluster.restart(0)
        cluster.until(lambda: cluster.state(1)[1:3] == (C.WF_SYNC_UUID, D.OUTDATED), 20_000, "the end of the bitmaps")
        before = cluster.serve(0)
        before.write(*LATE)
        before.stop()
        cluster.ask(0, "secondary")
        yield cluster


def is_lost(pair: Cluster, index: int) -> Callable[[], bool]:
    return lambda: not pair.node(index).is_connected


def finds_the_source_again(pair: Cluster) -> None:
    """What node 1 shows: the simulator compares it with what was written last."""
    pair.heal()
    pair.until(lambda: pair.connected, 20_000, "the connection")
    app = pair.serve(1)
    assert [app.do("read", block * BLOCK) for block in EARLY] == [0] * len(EARLY)
    app.stop()
    assert pair.events(1, "handshake", "decision target") and not pair.events(0, "handshake", "decision target")
    pair.check_idle_pair()


def test_outdated_primary_that_loses_the_link_takes_what_its_source_has(pair: Cluster) -> None:
    app = pair.serve(1)
    assert pair.state(1)[::2] == (Role.PRIMARY, D.OUTDATED)
    assert [app.do("read", block * BLOCK) for block in LATE] == [0] * len(LATE)
    pair.cut(silent=False)
    pair.until(is_lost(pair, 1), 5000, "the loss of the source")
    pair.until(is_lost(pair, 0), 5000, "the loss of the target")
    finds_the_source_again(pair)


def test_outdated_primary_that_dies_takes_what_its_source_has(pair: Cluster) -> None:
    """Both nodes have crashed as Primary then."""
    app = pair.serve(1)
    assert [app.do("read", block * BLOCK) for block in LATE] == [0] * len(LATE)
    pair.shells[1].crash()
    pair.until(is_lost(pair, 0), 5000, "the loss of the target")
    pair.restart(1)
    finds_the_source_again(pair)
