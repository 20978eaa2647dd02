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


@pytest.mark.parametrize("algorithm", ["crc32c", "xxhash64"])
def test_integrity_keeps_damaged_payloads_from_every_disk(algorithm: str) -> None:
    """Bits flip in payloads on the wire, of writes and of resyncs: the link is dropped, never a wrong block written."""
    require_sim()
    from tests.sim.cluster import Cluster, Load

    damaged = 0
    for seed in range(4):
        with Cluster(seed, quick(algorithm)) as cluster:
            cluster.connect_fresh()
            app = cluster.serve(0)
            cluster.world.net(flip_payload_ppm=20_000)
            app.load(Load(think_max_ms=5))
            for _ in range(30):
                cluster.run(100)
                damaged += cluster.node(1).stats.engine_stats().integrity_errors > 0
            cluster.world.net(flip_payload_ppm=0)
            app.stop()
            cluster.until(lambda: cluster.in_sync, 60_000, "the resync")
            assert "damaged on the way" in cluster.tail(400) or not damaged
            cluster.check_idle_pair()
    assert damaged > 4


def test_verify_request_without_algorithm_drops_the_link_and_nothing_else() -> None:
    require_sim()
    from repl.drbd import packets as pk
    from repl.drbd.packets import Packet
    from tests.sim.cluster import Cluster, Setup

    with Cluster(9, Setup()) as cluster:
        cluster.judge(1)  # node 0 does wrong
        cluster.connect_fresh()
        request = pk.BlockRequest(sector=0, block_id=b"\xff" * 8, size_bytes=4096)
        cluster.node(0).connection.send(Packet.OV_REQUEST, request.encode())
        cluster.ask(0, "role")  # lets the packet go
        cluster.until(lambda: "P_OV_REQUEST" in cluster.tail(), 5000, "the reason")
        cluster.until(lambda: cluster.in_sync, 20_000, "the next connection")
