# SPDX-License-Identifier: Apache-2.0
"""Network options that change while the nodes are connected: both go on alike, and nothing on the way is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState
from repl.errors import ReplError
from tests.lib.tools import require_sim

BLOCK = 4096
KIB = 1024


@pytest.fixture
def clusters() -> Iterator[Any]:
    require_sim()
    from tests.sim.cluster import QUICK_NET, Cluster, Setup

    made: list[Any] = []

    def make(seed: int = 1, **net: Any) -> Any:
        other = net.pop("other", {})
        both = replace(QUICK_NET, **net)
        cluster = Cluster(seed, Setup(net=both, other_net=replace(both, **other)))
        made.append(cluster)
        cluster.connect_fresh()
        return cluster

    yield make
    for cluster in made:
        print(cluster.tail(100))
        cluster.close()


def sent(cluster: Any, node: int, packet: Packet) -> int:
    return int(cluster.world.lib.re_sim_packets_sent(cluster.world.sim, node, int(packet)))


def net(cluster: Any, node: int) -> Any:
    return cluster.node(node).settings.net


def test_protocol_and_algorithms_change_under_load(clusters: Any, sim_seed: int) -> None:
    from tests.sim.cluster import Load

    cluster = clusters(sim_seed)
    app = cluster.serve(0)
    app.load(Load(span_length=512 * KIB, queue_depth=6, think_max_ms=2))
    random = cluster.world.random
    for _ in range(12):
        cluster.run(random(60))
        values = [
            {"protocol": 1 + random(3)},
            {"data_integrity_alg": ("", "crc32c", "md5")[random(3)]},
            {"protocol": 1 + random(3), "data_integrity_alg": ("sha1", "")[random(2)], "timeout_ms": 1200},
            {"verify_alg": ("", "crc32c")[random(2)], "csums_alg": ("", "md5")[random(2)]},
            {"after_sb_0pri": random(7), "max_epoch_size": 1 + random(50)},
        ][random(5)]
        teller = random(2)
        cluster.ask(teller, "net-options", **values)
        cluster.until(lambda: net(cluster, 0).protocol == net(cluster, 1).protocol, 5000, "one protocol")
    app.stop()
    assert all(cluster.node(n).is_connected for n in (0, 1))
    cluster.until(lambda: not cluster.differing(), 5000, "what is on its way")
    cluster.check_idle_pair()
    assert sum(sent(cluster, n, Packet.PROTOCOL_UPDATE) for n in (0, 1)) == 12


def test_from_c_to_a_and_back(clusters: Any) -> None:
    cluster = clusters()
    app = cluster.serve(0)
    disk = cluster.shells[1].data
    disk.hold()
    waits = app.submit("write", 0)
    cluster.run(100)
    assert not cluster.op(waits).state
    cluster.ask(0, "net-options", protocol=1)
    cluster.until(lambda: net(cluster, 1).protocol == 1, 5000, "the peer's change")
    asynchronous = app.submit("write", 16 * BLOCK)
    cluster.until(lambda: cluster.op(asynchronous).state, 5000, "an asynchronous write")
    assert not cluster.op(waits).state, "it was sent under protocol C"
    cluster.ask(0, "net-options", protocol=3)
    cluster.run(50)
    synchronous = app.submit("write", 32 * BLOCK)
    cluster.run(100)
    assert not cluster.op(synchronous).state
    disk.release()
    cluster.until(lambda: all(cluster.op(op).state for op in (waits, synchronous)), 5000, "the others")
    cluster.check_idle_pair()


def test_two_primaries_are_allowed_and_taken_back(clusters: Any) -> None:
    cluster = clusters()
    cluster.ask(0, "primary")
    cluster.ask(0, "net-options", two_primaries=True)
    cluster.until(lambda: net(cluster, 1).two_primaries, 5000, "the peer's change")
    cluster.ask(1, "primary")
    with pytest.raises(ReplError, match="161"):
        cluster.ask(0, "net-options", two_primaries=False)
    cluster.ask(0, "secondary")
    cluster.until(lambda: str(cluster.node(1).peer_role) == "Secondary", 5000, "the word of the demotion")
    cluster.ask(1, "net-options", two_primaries=False)
    cluster.until(lambda: not net(cluster, 0).two_primaries, 5000, "the peer's change")


@pytest.mark.parametrize("values, code", [
    ({"two_primaries": True, "protocol": 2}, "139"),
    ({"on_congestion": "pull-ahead"}, "155"),
    ({"data_integrity_alg": "crc33"}, "crc33"),
    ({"shared_secret": "x"}, "cannot be changed"),
])  # fmt: skip
def test_what_does_not_fit_together_changes_nothing(clusters: Any, values: dict[str, Any], code: str) -> None:
    cluster = clusters()
    before = net(cluster, 0)
    with pytest.raises(ReplError, match=code):
        cluster.ask(0, "net-options", **values)
    assert net(cluster, 0) == before
    assert sent(cluster, 0, Packet.PROTOCOL_UPDATE) == 0


def test_old_peers_cannot_be_told(clusters: Any) -> None:
    cluster = clusters(other={"protocol_max": 96})
    with pytest.raises(ReplError, match="163"):
        cluster.ask(0, "net-options", protocol=1)
    cluster.ask(0, "net-options", timeout_ms=1300, verify_alg="crc32c")
    cluster.until(lambda: net(cluster, 1).verify_alg == "crc32c", 5000, "P_SYNC_PARAM89")
    assert sent(cluster, 0, Packet.PROTOCOL_UPDATE) == 0
    assert cluster.state(0)[1] == ConnectionState.CONNECTED
