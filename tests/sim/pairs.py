# SPDX-License-Identifier: Apache-2.0
"""What tests of a plain pair begin with."""

from __future__ import annotations

from collections.abc import Iterator

from repl.drbd.states import DiskState
from tests.lib.tools import require_sim
from tests.sim.cluster import Cluster, Setup


def connected_pair(seed: int) -> Iterator[Cluster]:
    """For a fixture: two nodes in sync, closed at its end."""
    require_sim()
    with Cluster(seed, Setup()) as cluster:
        cluster.connect_fresh()
        yield cluster


def disks(pair: Cluster, index: int) -> tuple[DiskState, DiskState]:
    """Of a node: its own, and what it believes of the other one's."""
    return pair.state(index)[2:]
