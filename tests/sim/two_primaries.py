# SPDX-License-Identifier: Apache-2.0
"""What tests of two Primaries begin and end with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from repl.drbd.states import Role
from tests.lib.tools import require_sim


def made_clusters() -> Iterator[Any]:
    """For a fixture: a function that makes pairs, which are closed at its end."""
    require_sim()
    from tests.sim.cluster import QUICK_NET, Cluster, Setup

    made: list[Any] = []

    def make(seed: int = 1, **settings: Any) -> Any:
        net = replace(QUICK_NET, **{"two_primaries": True, **settings.pop("net", {})})
        cluster = Cluster(seed, Setup(net=net, **settings))
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        print(cluster.tail(100))
        cluster.close()


def both_primary(make: Any, seed: int = 1, **settings: Any) -> tuple[Any, list[Any]]:
    """A pair in sync with an application on each node."""
    cluster = make(seed, **settings)
    cluster.connect_fresh()
    apps = [cluster.serve(0), cluster.serve(1)]
    assert [cluster.node(n).role for n in (0, 1)] == [Role.PRIMARY] * 2
    return cluster, apps


def written_by(cluster: Any, node: int, offset: int) -> int:
    """The operation whose data this node's disk has there."""
    world = cluster.world
    op = world.ffi.new("uint64_t *")
    world.lib.re_sim_tag_parse(
        world.sim, cluster.shells[node].data.content(offset, 512), op, world.ffi.new("uint64_t *")
    )
    return int(op[0])


def check(cluster: Any) -> None:
    from tests.sim.world import ACKED

    cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")
    cluster.wait_idle()
    cluster.check_equal()
    for node in (0, 1):
        cluster.check_audit(node, ACKED, "after writes of both nodes")
