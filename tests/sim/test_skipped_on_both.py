# SPDX-License-Identifier: Apache-2.0
"""Both nodes are told to skip the initial sync at one instant: one generation, whoever made it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from repl.drbd.states import ConnectionState, DiskState
from repl.errors import StateRefused
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.node_shell import Answer
from tests.sim.scripted_peer import ScriptedPeer, state_word

SKIP = "new-current-uuid"


def fresh(seed: int) -> Iterator[Cluster]:
    require_sim()
    with Cluster(seed, Setup(external=True, latency_max_us=5000, net=QUICK_NET)) as pair:
        pair.start()
        pair.until(lambda: pair.connected, 30_000, "the first connection")
        pair.run(100)
        yield pair


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    yield from fresh(getattr(request, "param", 1))


def order(pair: Cluster, node: int) -> Answer:
    return pair.fire(node, SKIP, clear_bitmap=True)


def check_one_generation(pair: Cluster) -> None:
    mine, theirs = (pair.volume(node).uuids for node in (0, 1))
    assert mine.current | 1 == theirs.current | 1 and (mine.bitmap, theirs.bitmap) == (0, 0)


@pytest.mark.parametrize("later_ms", [0, 0.3, 1, 2, 3, 4, 6, 10])
@pytest.mark.parametrize("pair", range(4), indirect=True)
def test_two_orders_make_one_generation(pair: Cluster, later_ms: float) -> None:
    answers = [order(pair, 0)]
    pair.run(later_ms)
    answers.append(order(pair, 1))
    pair.until(lambda: all(a.is_done for a in answers), 10_000, "both answers")
    assert answers[0].error is None
    pair.until(lambda: pair.in_sync, 10_000, "in sync")
    check_one_generation(pair)
    app = pair.serve(1)
    for block in range(8):
        app.write(block)
    app.stop()
    pair.check_idle_pair()
    pair.ask(0, "disconnect")
    pair.ask(0, "connect")
    pair.until(lambda: pair.in_sync, 20_000, "in sync after a new handshake")
    pair.check_idle_pair()


@pytest.mark.parametrize("cut_ms", [0.1, 0.5, 1, 1.5, 2, 3, 4, 5, 7, 9, 12])
@pytest.mark.parametrize("pair", range(3), indirect=True)
def test_link_that_breaks_meanwhile_leaves_one_generation_or_none(pair: Cluster, cut_ms: float) -> None:
    answers = [order(pair, node) for node in (0, 1)]
    pair.run(cut_ms)
    pair.cut(silent=False)
    pair.until(lambda: all(a.is_done for a in answers), 10_000, "both answers")
    pair.until(lambda: not any(pair.node(n).is_connected for n in (0, 1)), 10_000, "the loss of the link")
    for index, answer in enumerate(answers):
        assert isinstance(answer.error, StateRefused) or pair.state(index)[2] == DiskState.UP_TO_DATE
    pair.heal()
    pair.until(lambda: pair.connected, 20_000, "the next connection")
    if all(pair.volume(node).uuids.just_created for node in (0, 1)):
        pair.ask(0, SKIP, clear_bitmap=True)
    pair.until(lambda: pair.in_sync, 60_000, "in sync")
    check_one_generation(pair)


def test_order_given_twice_on_one_node(pair: Cluster) -> None:
    answers = [order(pair, 0) for _ in range(2)]
    pair.until(lambda: all(a.is_done for a in answers), 10_000, "both answers")
    assert not any(a.error for a in answers)
    pair.until(lambda: pair.in_sync, 10_000, "in sync")
    check_one_generation(pair)


# ---- a node of DRBD's, which does not agree before ----

FRESH, GOOD, SECONDARY = DiskState.INCONSISTENT, DiskState.UP_TO_DATE, 2
SKIPS = 8  # flag of P_UUIDS


@pytest.fixture
def stage() -> Iterator[tuple[Cluster, ScriptedPeer]]:
    require_sim()
    with Cluster(7, Setup(external=True, net=QUICK_NET)) as cluster:
        cluster.start(0)
        peer = ScriptedPeer(cluster)
        peer.answers_pings = True
        peer.connect()
        peer.features()
        peer.parameters(role=SECONDARY, disk=FRESH)
        peer.take("P_STATE")
        say_state(peer, FRESH, FRESH)
        peer.wait_connected()
        cluster.run(50)
        yield cluster, peer


def say_state(peer: ScriptedPeer, disk: DiskState, seen: DiskState) -> None:
    """Its own disk, and what it knows of the node's."""
    peer.say("P_STATE", state_word(SECONDARY, ConnectionState.CONNECTED, disk, peer=SECONDARY, pdsk=seen))


def test_what_drbds_node_said_before_it_heard_is_no_news(stage: tuple[Cluster, ScriptedPeer]) -> None:
    """What it says of its disk afterwards is."""
    cluster, peer = stage
    cluster.ask(0, SKIP, clear_bitmap=True)
    say_state(peer, FRESH, FRESH)
    cluster.run(50)
    assert cluster.state(0)[2:] == (GOOD, GOOD)
    assert struct.unpack_from(">Q", peer.take("P_UUIDS"), 40) == (SKIPS,)
    say_state(peer, FRESH, GOOD)
    cluster.run(50)
    assert cluster.state(0)[2:] == (GOOD, FRESH)


def test_fresh_disk_of_drbds_node_after_it_has_answered_is_news(stage: tuple[Cluster, ScriptedPeer]) -> None:
    cluster, peer = stage
    cluster.ask(0, SKIP, clear_bitmap=True)
    say_state(peer, GOOD, GOOD)
    say_state(peer, FRESH, FRESH)
    cluster.run(50)
    assert cluster.state(0)[3] == FRESH


@pytest.mark.parametrize("waits_ms", [0, 3])
def test_order_of_drbds_node_that_crosses_ours_counts(stage: tuple[Cluster, ScriptedPeer], waits_ms: int) -> None:
    cluster, peer = stage
    answer = order(cluster, 0)
    cluster.run(waits_ms)
    theirs = 0x1234567890ABCDE0
    peer.say("P_UUIDS", struct.pack(">6Q", theirs, 0, 0, 0, 0, SKIPS))
    say_state(peer, GOOD, GOOD)
    cluster.until(lambda: answer.is_done, 5000, "the answer")
    cluster.run(50)
    assert answer.error is None and not peer.has_ended()
    assert cluster.volume(0).uuids.current | 1 == theirs | 1 and cluster.state(0)[2:] == (GOOD, GOOD)
