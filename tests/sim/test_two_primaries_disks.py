# SPDX-License-Identifier: Apache-2.0
"""Two Primaries whose disks come and go under load: deaths at any moment leave no block that nobody knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from repl.engine.commands import Resync
from tests.sim.two_primaries import both_primary, check, made_clusters

FULL_SPEED = Resync(resync_rate_kib=40960, plan_ahead=0, max_rate_kib=102400, min_rate_kib=0)


@pytest.fixture
def clusters() -> Iterator[Any]:
    yield from made_clusters()


def follow(cluster: Any, answer: Any, when: str) -> None:
    """Millisecond by millisecond: what would a death of both nodes leave?"""
    while not answer.is_done:
        cluster.run(1)
        for layer in (0, 1):
            cluster.check_coverage(when, layer=layer)
    assert answer.error is None, answer.error


@pytest.mark.parametrize("span_kib", [96, 36 << 10])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_deaths_while_a_disk_comes_or_goes_leave_no_block_unknown(
    clusters: Any, seed: int, index: int, span_kib: int
) -> None:
    """Also where nearly every write meets one of the other node."""
    from tests.sim.cluster import Load

    cluster, apps = both_primary(
        clusters, seed, latency_max_us=5000, wake_max_us=5000, al_extents=7, disk_bytes=40 << 20, resync=FULL_SPEED
    )
    for app in apps:
        app.load(Load(max_bytes=16384, think_max_ms=1, queue_depth=8, read_percent=0, span_length=span_kib << 10))
    cluster.run(100)
    for verb in ("detach", "attach") * 3:
        follow(cluster, cluster.fire(index, verb, volume=0), f"in the {verb}")
        cluster.run(cluster.world.random(50))
        if verb == "attach":
            cluster.until(lambda: cluster.in_sync, 60_000, "in sync again")
    for app in apps:
        app.end_load()
    cluster.until(lambda: all(app.is_idle for app in apps), 60_000, "the last answers")
    assert all(app.stats.failed == 0 for app in apps)
    check(cluster)
