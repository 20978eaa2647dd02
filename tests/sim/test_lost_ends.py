# SPDX-License-Identifier: Apache-2.0
"""Resyncs whose beginning or end one of the nodes has not seen: the next handshake knows what became of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from repl.drbd.states import ConnectionState as C
from tests.lib.tools import require_sim


@pytest.fixture
def make() -> Iterator[Any]:
    require_sim()
    from tests.sim.cluster import QUICK_NET, Cluster, Setup

    made: list[Any] = []

    def make(seed: int = 5, **net: Any) -> Any:
        made.append(Cluster(seed, Setup(partial_ppm=0, tiny_ppm=0, net=replace(QUICK_NET, **net))))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def write_alone(cluster: Any, node: int, first: int) -> None:
    """The node is promoted and works for itself."""
    app = cluster.serve(node)
    for block in range(first, first + 8):
        assert app.do("write", block * 4096, 4096) == 0
    assert app.do("flush") == 0
    app.stop()
    cluster.ask(node, "secondary")


def die_in_resync(cluster: Any, *, told: bool) -> None:
    """Node 0 begins a resync, then both die; ``told``: node 1 has got the sync UUID by then.  Node 0 comes back."""
    cluster.start(1)
    cluster.until(lambda: cluster.state(0)[1] == C.SYNC_SOURCE, 30_000, "the beginning of the resync")
    if told:
        cluster.until(lambda: cluster.state(1)[1] == C.SYNC_TARGET, 5000, "the news of it")
    assert cluster.state(1)[1] == (C.SYNC_TARGET if told else C.WF_SYNC_UUID)
    cluster.shells[1].crash()
    cluster.shells[0].crash()
    cluster.start(0)


@pytest.mark.parametrize("rounds", [(False,) * 5, (True, False, False), (False, True, False, True), (True,) * 3])
def test_source_that_dies_again_and_again_and_is_promoted_alone_finds_its_target(
    make: Any, rounds: tuple[bool, ...]
) -> None:
    cluster = make()
    cluster.connect_fresh()
    for node in (0, 1):  # so that no slot of the history is empty
        cluster.ask(node, "invalidate-remote", volume=0)
        cluster.until(lambda: cluster.in_sync, 30_000, "a full resync")
    cluster.shells[1].crash()
    cluster.until(lambda: not cluster.node(0).is_connected, 30_000, "the loss of the peer")
    write_alone(cluster, 0, 0)
    for number, told in enumerate(rounds, 1):
        die_in_resync(cluster, told=told)
        write_alone(cluster, 0, 16 * number)
    cluster.start(1)
    cluster.until(lambda: cluster.in_sync or cluster.stand_alone, 60_000, "an end")
    assert cluster.in_sync, cluster.describe()
    cluster.check_idle_pair()


def test_direction_that_the_disks_turn_leaves_no_correction_behind(make: Any) -> None:
    cluster = make()
    cluster.connect_fresh()
    cluster.shells[1].crash()
    cluster.until(lambda: not cluster.node(0).is_connected, 30_000, "the loss of the peer")
    write_alone(cluster, 0, 0)
    die_in_resync(cluster, told=False)
    cluster.ask(0, "disconnect")
    cluster.ask(0, "invalidate", volume=0)  # an operator wants the older copy
    cluster.ask(0, "connect")
    cluster.start(1)
    cluster.until(lambda: cluster.in_sync, 60_000, "the resync from the older copy")
    cluster.ask(0, "invalidate-remote", volume=0)
    cluster.until(lambda: cluster.in_sync and not cluster.volume(0).uuids.bitmap, 60_000, "a full resync")
    assert cluster.volume(0).uuids == cluster.volume(1).uuids
    cluster.wait_idle()
    cluster.check_equal()


@pytest.mark.parametrize("is_power", [False, True])
def test_source_that_died_before_it_heard_of_the_end_goes_on_in_another_generation(make: Any, is_power: bool) -> None:
    """Its target has the one in which it would go on: that one's disk is recognized, and nobody has to be asked."""
    cluster = make()
    cluster.connect_fresh()
    cluster.ask(1, "disconnect")
    write_alone(cluster, 0, 0)
    cluster.ask(1, "pause-sync", volume=0)
    cluster.ask(1, "connect")
    cluster.until(lambda: cluster.state(1)[1] == C.PAUSED_SYNC_T, 20_000, "the resync")
    cluster.run(100)
    cluster.shells[0].data.hold()
    cluster.ask(1, "resume-sync", volume=0)
    cluster.until(lambda: cluster.shells[0].data.in_flight > 0, 5000, "the source reads")
    cluster.run(10)
    data_socket = min(cluster.world.streams(1))
    cluster.world.lib.re_sim_socket_hold(cluster.world.sim, data_socket, True)
    cluster.shells[0].data.release()
    cluster.until(lambda: cluster.state(1)[1] == C.CONNECTED, 5000, "its end")
    assert cluster.state(0)[1] == C.SYNC_SOURCE, "it has not heard of that"
    generation = cluster.volume(1).uuids.current
    if is_power:
        cluster.shells[0].power_off()
    else:
        cluster.shells[0].crash()
    cluster.cut()
    cluster.restart(0)
    write_alone(cluster, 0, 8)
    assert cluster.volume(0).uuids.current & ~1 != generation & ~1
    cluster.heal()
    cluster.until(lambda: cluster.in_sync, 60_000, "the writes of node 0 on both")
    cluster.check_idle_pair()
