# SPDX-License-Identifier: Apache-2.0
"""Two nodes that agree on an old protocol version: connect, replicate, flush, read remotely, resync, disconnect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from errno import EIO
from typing import Any

import pytest

from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState, DiskState
from repl.engine.commands import Resync
from repl.errors import ReplError
from tests.lib.tools import require_sim

BLOCK = 4096
KIB = 1024
VERSIONS = pytest.mark.parametrize("version", [86, 87, 88, 89, 90, 94, 95, 96, 99, 100, 101])
SLOW_RESYNC = Resync(resync_rate_kib=1024, plan_ahead=0, max_rate_kib=1024, min_rate_kib=0)


@pytest.fixture
def clusters() -> Iterator[Any]:
    require_sim()
    from tests.sim.cluster import QUICK_NET, Cluster, Setup

    made: list[Any] = []

    def make(version: int, seed: int = 1, **settings: Any) -> Any:
        net = replace(QUICK_NET, **settings.pop("net", {}))
        cluster = Cluster(seed, Setup(net=net, other_net=replace(net, protocol_max=version), **settings))
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        print(cluster.tail(100))
        cluster.close()


def connected(make: Any, version: int, seed: int = 1, **settings: Any) -> tuple[Any, Any]:
    cluster = make(version, seed, **settings)
    cluster.connect_fresh(skip_initial_sync=version >= 90)
    assert cluster.node(0).connection.agreed.version == version
    return cluster, cluster.serve(0)


def sent(cluster: Any, node: int, packet: Packet) -> int:
    return int(cluster.world.lib.re_sim_packets_sent(cluster.world.sim, node, int(packet)))


def done(cluster: Any, app: Any, kind: str, offset: int = 0, length: int = BLOCK, **flags: bool) -> None:
    assert app.do(kind, offset, length, **flags) == 0


@VERSIONS
@pytest.mark.parametrize("protocol", [1, 2, 3], ids="ABC")
def test_everything_a_link_does_works(clusters: Any, version: int, protocol: int) -> None:
    algorithms = {"verify_alg": "crc32c", "csums_alg": "md5", "data_integrity_alg": "crc32c"}
    cluster, app = connected(clusters, version, net={"protocol": protocol, **algorithms})
    for size in (512, BLOCK, 32 * KIB, 96 * KIB, 128 * KIB, 512 * KIB):
        done(cluster, app, "write", 512 * KIB, size)
    done(cluster, app, "write", 0, 64 * KIB, fua=True)
    done(cluster, app, "zero", 256 * KIB, 256 * KIB)
    done(cluster, app, "trim", 256 * KIB, 96 * KIB)
    done(cluster, app, "flush")
    cluster.wait_idle()
    cluster.check_equal()
    cluster.cut(silent=False)
    cluster.until(lambda: not cluster.node(0).is_connected, 20_000, "the loss of the link")
    for block in range(0, 256, 3):
        app.submit("write", block * BLOCK)
    cluster.run(200)
    cluster.heal()
    cluster.check_idle_pair()
    assert sent(cluster, 1, Packet.RS_DATA_REQUEST) + sent(cluster, 1, Packet.CSUM_RS_REQUEST) > 5 or version >= 100
    app.stop()
    cluster.ask(0, "secondary")
    cluster.ask(0, "disconnect")
    cluster.until(lambda: cluster.state(1)[1] < ConnectionState.CONNECTED, 5000, "node 1 is left alone")
    wide = sent(cluster, 0, Packet.CONN_ST_CHG_REQ)
    assert (wide > 0) is (version >= 100)
    cluster.ask(0, "connect")
    cluster.check_idle_pair()


@VERSIONS
@pytest.mark.parametrize("protocol", [1, 2, 3], ids="ABC")
def test_diskless_primary_hears_of_a_write_that_its_peer_could_not_make(
    clusters: Any, version: int, protocol: int
) -> None:
    cluster, app = connected(clusters, version, net={"protocol": protocol})
    cluster.ask(0, "detach")
    app.write(1)
    cluster.shells[1].data.fail_next(cluster.world.lib.RE_SIM_OP_WRITE)
    assert app.do("write", BLOCK) == EIO


@VERSIONS
def test_remote_reads_are_in_parts_that_the_peer_takes(clusters: Any, version: int) -> None:
    cluster, app = connected(clusters, version)
    done(cluster, app, "write", 0, 512 * KIB)
    cluster.shells[0].data.fail_next(0)
    cluster.until(lambda: cluster.in_sync, 5000, "in sync")
    assert app.do("read", 0, 512 * KIB) == 0
    cluster.until(lambda: cluster.state(0)[2] == DiskState.DISKLESS, 20_000, "the detach")
    assert app.do("read", 0, 512 * KIB) == 0
    parts = {True: 16, version >= 95: 4, version >= 100: 1}[True]
    assert sent(cluster, 0, Packet.DATA_REQUEST) == 2 * parts
    done(cluster, app, "write", 64 * KIB, 256 * KIB)
    assert app.do("read", 0, 512 * KIB) == 0


@VERSIONS
def test_writes_wait_during_the_bitmap_exchange_with_peers_that_cannot_be_told(clusters: Any, version: int) -> None:
    from tests.sim.cluster import Load

    cluster, app = connected(clusters, version, seed=version, resync=SLOW_RESYNC)
    app.load(Load(span_length=512 * KIB, queue_depth=6, think_max_ms=2))
    for _ in range(6):
        if version < 91:  # an interrupted handshake cannot be told from other histories: both nodes would refuse
            cluster.until(lambda: cluster.in_sync, 60_000, "in sync")
        cluster.cut(silent=False)
        cluster.until(lambda: not cluster.node(0).is_connected, 20_000, "the loss of the link")
        cluster.run(100)
        cluster.heal()
        cluster.until(lambda: cluster.connected, 30_000, "a connection")
        cluster.run(cluster.world.random(300))
    app.stop()
    cluster.check_idle_pair()
    assert version >= 96 or sent(cluster, 0, Packet.OUT_OF_SYNC) == 0


def test_two_primaries_need_a_version_that_can_retry_writes(clusters: Any) -> None:
    cluster = clusters(96, net={"two_primaries": True})
    cluster.start()
    cluster.until(lambda: cluster.stand_alone, 30_000, "both StandAlone")
    assert all("two Primaries" in cluster.node(n).reason for n in (0, 1))


def test_pull_ahead_is_not_for_old_peers(clusters: Any) -> None:
    net = {"protocol": 1, "on_congestion": "pull-ahead", "congestion_fill_sectors": 64}
    cluster, app = connected(clusters, 95, net=net)
    cluster.world.net(0, 1, bytes_per_second=200_000)
    ops = [app.submit("write", block * BLOCK) for block in range(40)]
    cluster.until(lambda: all(cluster.op(op).state for op in ops), 20_000, "the writes")
    assert cluster.state(0)[1] == ConnectionState.CONNECTED
    cluster.world.net(0, 1, bytes_per_second=0)
    cluster.until(lambda: not cluster.differing(), 20_000, "what is on its way")
    cluster.check_idle_pair()


def test_verify_needs_a_version_that_knows_it(clusters: Any) -> None:
    cluster, app = connected(clusters, 87, net={"verify_alg": "crc32c"})
    app.stop()
    with pytest.raises(ReplError, match="verify"):
        cluster.ask(0, "verify")


def test_several_volumes_need_long_headers(clusters: Any) -> None:
    cluster = clusters(99, volumes=2)
    cluster.start()
    cluster.until(lambda: cluster.stand_alone, 30_000, "both StandAlone")
    assert all("volumes" in cluster.node(n).reason for n in (0, 1))
