# SPDX-License-Identifier: Apache-2.0
"""data-integrity-alg between two of our nodes: writes, zeroes, resync and remote reads carry their digests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from repl.drbd.digests import DIGESTS
from tests.lib.tools import require_sim


def quick(integrity: str, **changes: Any) -> Any:
    from tests.sim.cluster import QUICK_NET, Setup

    return Setup(net=replace(QUICK_NET, data_integrity_alg=integrity), **changes)


@pytest.mark.parametrize("algorithm", sorted(DIGESTS))
def test_integrity_with_every_algorithm_replicates_and_resyncs(algorithm: str) -> None:
    require_sim()
    from tests.sim.cluster import Cluster, Load

    with Cluster(7, quick(algorithm)) as cluster:
        cluster.connect_fresh()
        app = cluster.serve(0)
        app.load(Load(ops=200, zero_percent=10, trim_percent=5))
        cluster.until(lambda: app.is_idle, 60_000, "the application's end")
        cluster.shells[1].crash()
        cluster.until(lambda: not cluster.node(0).is_connected, 20_000, "the loss of the peer")
        app.write(1, 2, 3, 100)
        cluster.start(1)
        cluster.until(lambda: cluster.in_sync, 60_000, "the resync")
        app.stop()
        cluster.check_idle_pair()
        assert cluster.node(1).stats.engine_stats().integrity_errors == 0


def test_integrity_with_different_algorithms_ends_standalone_with_the_reason() -> None:
    require_sim()
    from tests.sim.cluster import QUICK_NET, Cluster

    other = replace(QUICK_NET, data_integrity_alg="sha1")
    with Cluster(8, quick("crc32c", other_net=other)) as cluster:
        cluster.start()
        cluster.until(lambda: all("data-integrity-alg" in cluster.node(n).reason for n in (0, 1)), 30_000, "the reason")
        assert "crc32c here and sha1 on b" in cluster.node(0).reason


