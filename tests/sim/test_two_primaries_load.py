# SPDX-License-Identifier: Apache-2.0
"""Two Primaries whose applications keep every request busy while something else has to get on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.sim.two_primaries import both_primary, check, made_clusters


@pytest.fixture
def clusters() -> Iterator[Any]:
    yield from made_clusters()


def load_both(cluster: Any, apps: list[Any], **load: Any) -> None:
    from tests.sim.cluster import Load

    for app in apps:
        app.load(Load(**{"read_percent": 0, "span_length": 96 << 10, "queue_depth": 12, "think_max_ms": 0, **load}))
    cluster.run(300)


def end_load(cluster: Any, apps: list[Any]) -> None:
    for app in apps:
        cluster.world.lib.re_sim_workload_stop(cluster.world.sim, app.number)
    cluster.until(lambda: all(app.is_idle or app.is_closed for app in apps), 60_000, "the last answers")


def test_frozen_writes_are_sent_again_with_every_request_in_use(clusters: Any, sim_seed: int) -> None:
    from tests.sim.node_shell import Script

    cluster, apps = both_primary(clusters, sim_seed, requests=8, net={"fencing": "resource-and-stonith"},
                                 handlers=("fence-peer", "unfence-peer"), latency_max_us=3000)  # fmt: skip
    for shell in cluster.shells:
        shell.scripts["fence-peer"] = Script(1, delay_ms=200)  # it does not help: I/O stays frozen
    load_both(cluster, apps)
    for _ in range(3):
        cluster.cut(silent=False)
        cluster.until(lambda: not any(cluster.node(n).is_connected for n in (0, 1)), 20_000, "the loss of the link")
        cluster.run(300)
        cluster.heal()
        cluster.until(lambda: cluster.in_sync or cluster.stand_alone, 60_000, "the connection")
        assert not cluster.stand_alone, cluster.describe()
        cluster.run(300)
    end_load(cluster, apps)
    check(cluster)


@pytest.mark.parametrize("scarce", [False, True], ids=["plenty", "scarce"])
def test_resync_ends_below_the_load_of_both(clusters: Any, sim_seed: int, scarce: bool) -> None:
    """``scarce``: few requests and buffers, slow disks and threads: what waits soon waits for something that waits."""
    little = {"requests": 8, "al_extents": 7, "buffer_bytes": 256 << 10, "write_max_us": 5000, "wake_max_us": 30_000}
    cluster, apps = both_primary(clusters, sim_seed, **({"latency_max_us": 3000} | (little if scarce else {})))
    load_both(cluster, apps, max_bytes=65536)
    node = sim_seed % 2
    cluster.ask(node, "detach", volume=0)
    cluster.run(300)
    cluster.ask(node, "attach", volume=0)
    cluster.until(lambda: cluster.in_sync, 60_000, "the resync's end")
    cluster.run(1000)
    end_load(cluster, apps)
    check(cluster)
