# SPDX-License-Identifier: Apache-2.0
"""Two Primaries: no write of one node waits for one of the other that waits for it.

The other node has no disk, so a write of the node with the resolve-conflicts flag is firm once it is started.  Of the
other node's writes one that came before is on its way to the disk, and the own data comes on top of it; one that comes
after it waits for it, and must not be waited for as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from repl.drbd.states import DiskState
from tests.sim.two_primaries import both_primary, check, made_clusters, written_by

BLOCK = 4096
WRITE_NS = 100_000_000


@pytest.fixture
def clusters() -> Iterator[Any]:
    yield from made_clusters()


def all_done(cluster: Any, *ops: int) -> bool:
    return all(cluster.op(op).state for op in ops)


def test_own_write_waits_for_the_one_below_it_but_not_for_the_one_behind_it(clusters: Any) -> None:
    cluster, apps = both_primary(clusters)
    flag = [cluster.node(n).connection.resolve_conflicts for n in (0, 1)].index(True)
    own, other = apps[flag], apps[1 - flag]
    own.write(0)  # the extent is in the activity log
    cluster.ask(1 - flag, "detach", volume=0)
    cluster.until(lambda: cluster.state(flag)[3] == DiskState.DISKLESS, 5000, "the news of it")
    cluster.wait_idle()
    disk = cluster.shells[flag].data

    disk.settings(write_min_ns=WRITE_NS, write_max_ns=WRITE_NS)
    first = own.submit("write", 0, BLOCK)
    over = own.submit("write", 0, 4 * BLOCK)  # it waits for the first one
    cluster.until(lambda: disk.in_flight == 1, 1000, "the first write on its way")
    disk.hold()
    below = other.submit("write", BLOCK, BLOCK)
    cluster.until(lambda: disk.in_flight == 2, 1000, "the other node's write beside it")
    cluster.until(lambda: all_done(cluster, first), 1000, "the turn of the second write")
    assert disk.in_flight == 1, "it waits for the one below it"
    behind = other.submit("write", 2 * BLOCK, BLOCK)
    cluster.run(10)
    assert disk.in_flight == 1, "the last one waits for it"
    disk.release()
    cluster.until(lambda: all_done(cluster, over, below, behind), 1000, "all answers")
    assert [cluster.op(op).error for op in (first, over, below, behind)] == [0] * 4

    assert [written_by(cluster, flag, n * BLOCK) for n in range(4)] == [over, over, behind, over]
    cluster.ask(1 - flag, "attach", volume=0)
    check(cluster)
