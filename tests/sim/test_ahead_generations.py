# SPDX-License-Identifier: Apache-2.0
"""Which generation goes on when the link breaks around a phase of Ahead: found again, and by the bitmap."""

from __future__ import annotations

from typing import Any

import pytest

from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState, DiskState, Role
from repl.drbd.uuids import start_source_sync_uuid
from tests.sim.test_congestion import both_go_on_alone, clusters, go_ahead, sent, served, slow, write

__all__ = ["clusters"]

C, D = ConnectionState, DiskState
FULL = 400  # answers of a full resync would be more


def apart(cluster: Any) -> None:
    cluster.until(lambda: not any(cluster.node(n).is_connected for n in (0, 1)), 20_000, "the loss of the link")


def demoted(cluster: Any) -> None:
    cluster.until(lambda: cluster.volume(0).state.role == Role.SECONDARY, 10_000, "the client's end, and its metadata")


@pytest.mark.parametrize("again", [False, True])
def test_demoted_while_ahead_without_a_resync_before(clusters: Any, again: bool) -> None:
    """The peer has the generation before, what differs is marked.  ``again``: promoted before the link breaks."""
    cluster, app = served(clusters)
    go_ahead(cluster, app)
    app.stop()
    demoted(cluster)
    if again:
        app = cluster.serve(0)
    assert cluster.state(0)[1] == C.AHEAD and cluster.volume(0).uuids.bitmap != 0
    cluster.cut(silent=False)
    apart(cluster)
    slow(cluster, 0)
    if not again:
        app = cluster.serve(0)
    write(cluster, app, 100, 2)
    cluster.heal()
    cluster.until(lambda: cluster.connected, 20_000, "the verdict")
    assert cluster.events(0, text="decision source by rule 70")
    cluster.check_idle_pair()
    assert sent(cluster, 0, Packet.RS_DATA_REPLY) < FULL


def test_disk_of_the_peer_lost_after_a_demotion_while_ahead(clusters: Any) -> None:
    cluster, app = served(clusters)
    go_ahead(cluster, app)
    app.stop()
    demoted(cluster)
    generation = cluster.volume(0).uuids
    cluster.ask(1, "detach", volume=0, force=True)
    cluster.until(lambda: cluster.state(0)[3] == D.DISKLESS, 20_000, "the news of the disk")
    assert cluster.volume(0).uuids == generation
    slow(cluster, 0)
    cluster.ask(1, "attach", volume=0)
    cluster.check_idle_pair()
    assert sent(cluster, 0, Packet.RS_DATA_REPLY) < FULL


# ---- the target of the catch-up has not heard of it ----


def take_each_other_for_drbd(cluster: Any) -> None:
    """On this connection."""
    for node in (0, 1):
        cluster.node(node).connection.peer_decides_alike = False


def ahead_with_nothing_on_its_way(cluster: Any, app: Any, *, ours: bool = False) -> None:
    """The metadata holds the decision up until the link has room again: Ahead without an answer to wait for.

    A node of this software waits for its peer's answer (decision 0145): unless ``ours`` both take the other one for
    DRBD's.
    """
    if not ours:
        take_each_other_for_drbd(cluster)
    go_ahead(cluster, app)
    slow(cluster, 0)
    cluster.until(lambda: cluster.state(1)[1] == C.SYNC_TARGET, 10_000, "the resync")
    cluster.shells[0].md.settings(write_min_ns=600_000_000, write_max_ns=600_000_000)
    cluster.until(lambda: cluster.state(1)[2] == D.UP_TO_DATE, 10_000, "its end on the target")
    slow(cluster)
    write(cluster, app, 100, 40)
    slow(cluster, 0)
    cluster.run(100)
    assert cluster.state(0)[1] == C.SYNC_SOURCE and cluster.dirty_bits(0) == 0


def hold(cluster: Any, node: int) -> None:
    """Nothing that this node sends on the data socket arrives any more."""
    world, meta = cluster.world, cluster.checker.meta_connection(0)
    (data,) = (fd for fd in world.streams(node) if fd // 2 != meta // 2)
    world.lib.re_sim_socket_hold(world.sim, data, True)


def catching_up(cluster: Any, app: Any) -> int:
    """Ahead with three marked blocks, then source of a resync that has not moved anything; its generation."""
    cluster.until(lambda: cluster.state(0)[1] == C.AHEAD, 5000, "Ahead")
    cluster.shells[0].md.settings(write_min_ns=20_000, write_max_ns=1_000_000)
    write(cluster, app, 200, 3)
    app.stop()
    cluster.ask(0, "primary")
    cluster.until(lambda: cluster.state(0)[1] == C.SYNC_SOURCE, 5000, "the catch-up")
    assert cluster.dirty_bits(0) == 3
    return int(cluster.volume(0).uuids.current | 1)


def unheard(clusters: Any, how: str) -> Any:
    """The peer's disk says UpToDate, of the generation before; node 0 has lost it and is Primary without clients."""
    cluster, app = served(clusters, external=True)
    ahead_with_nothing_on_its_way(cluster, app)
    if how == "nothing arrived":
        hold(cluster, 0)
    else:
        cluster.shells[1].md.settings(write_min_ns=5_000_000_000, write_max_ns=5_000_000_000)
    generation = catching_up(cluster, app)
    assert generation == cluster.volume(1).uuids.current | 1
    cluster.cut(silent=False)
    if how == "nothing written":
        cluster.shells[1].power_off()
    cluster.until(lambda: not cluster.node(0).is_connected, 20_000, "the loss of the link")
    cluster.shells[1].md.settings(write_min_ns=20_000, write_max_ns=1_000_000)
    if how == "nothing written":
        cluster.restart(1)
    cluster.until(lambda: cluster.state(1)[1] == C.WF_CONNECTION, 20_000, "node 1 alone")
    assert cluster.state(1)[2] == D.UP_TO_DATE and cluster.volume(1).uuids.current | 1 == generation
    return cluster


@pytest.mark.parametrize("slow_disk", [False, True])
def test_catch_up_waits_until_the_peer_is_behind_for_certain(clusters: Any, slow_disk: bool) -> None:
    cluster, app = served(clusters, external=True)
    ahead_with_nothing_on_its_way(cluster, app, ours=True)
    if slow_disk:
        cluster.shells[1].md.settings(write_min_ns=4_000_000_000, write_max_ns=4_000_000_000)
    else:
        hold(cluster, 0)
    cluster.until(lambda: cluster.state(0)[1] == C.AHEAD, 5000, "Ahead")
    cluster.shells[0].md.settings(write_min_ns=20_000, write_max_ns=1_000_000)
    write(cluster, app, 200, 3)
    cluster.run(3000)
    assert cluster.state(0)[1] == C.AHEAD and cluster.state(1)[2] == D.UP_TO_DATE
    if slow_disk:
        cluster.shells[1].md.settings(write_min_ns=20_000, write_max_ns=1_000_000)
        cluster.check_idle_pair()
        return
    cluster.cut(silent=False)
    apart(cluster)
    both_go_on_alone(cluster, app)


HOW = ("nothing arrived", "nothing written")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("writes", [False, True])
def test_both_go_on_alone_after_a_catch_up_that_the_target_missed(clusters: Any, how: str, writes: bool) -> None:
    """What was written while Ahead is on node 0 alone, and so is what it writes now."""
    cluster = unheard(clusters, how)
    if writes:
        app = cluster.serve(0)
        write(cluster, app, 210, 2)
        app.leave(orderly=False)
    cluster.shells[0].crash()
    other = cluster.serve(1)
    write(cluster, other, 300, 2)
    cluster.heal()
    cluster.restart(0)
    cluster.until(lambda: cluster.state(1)[1] == C.STANDALONE, 20_000, "the verdict")
    assert "Split-Brain" in cluster.node(1).reason


@pytest.mark.parametrize("how", HOW)
def test_catch_up_that_the_target_missed_goes_on_by_the_bitmap(clusters: Any, how: str) -> None:
    cluster = unheard(clusters, how)
    before = sent(cluster, 0, Packet.RS_DATA_REPLY)
    write(cluster, cluster.serve(0), 210, 2)
    cluster.heal()
    cluster.check_idle_pair()
    assert sent(cluster, 0, Packet.RS_DATA_REPLY) <= before + 5


def begun_but_unheard(clusters: Any) -> tuple[Any, Any]:
    """A catch-up whose target has the sync UUID, and nothing that it asks for gets to the source."""
    cluster, app = served(clusters, external=True)
    take_each_other_for_drbd(cluster)
    go_ahead(cluster, app)
    write(cluster, app, 48, 3)
    hold(cluster, 1)
    slow(cluster, 0)
    cluster.until(lambda: cluster.state(1)[1] == C.SYNC_TARGET, 5000, "the target's start")
    return cluster, app


def test_catch_up_whose_target_had_begun_goes_on_by_the_bitmap(clusters: Any) -> None:
    cluster, app = begun_but_unheard(clusters)
    cluster.cut(silent=False)
    apart(cluster)
    write(cluster, app, 210, 2)
    cluster.heal()
    cluster.check_idle_pair()
    assert cluster.events(0, text="decision source by rule 71")
    assert sent(cluster, 0, Packet.RS_DATA_REPLY) < 20


def test_target_of_the_first_of_two_catch_ups_is_found_again(clusters: Any) -> None:
    """It has asked for nothing and has the first sync UUID; the source has begun again since (seed 640021)."""
    cluster, app = begun_but_unheard(clusters)
    hold(cluster, 0)
    cluster.volume(0).uuids = start_source_sync_uuid(cluster.volume(0).uuids, cluster.world.random64)
    cluster.cut(silent=False)
    apart(cluster)
    write(cluster, app, 210, 2)
    cluster.heal()
    cluster.check_idle_pair()


@pytest.mark.parametrize(("seed", "phase"), [(1, C.STARTING_SYNC_S), (2, C.SYNC_SOURCE)])
def test_full_sync_by_order_that_the_target_could_not_note(clusters: Any, seed: int, phase: ConnectionState) -> None:
    """It has agreed, and loses power before its metadata says that its data is bad; then both go on alone."""
    cluster, app = served(clusters, seed, external=True)
    write(cluster, app, 0, 2)
    app.leave(orderly=True)
    cluster.ask(0, "primary")
    cluster.run(50)
    for node in (0, 1) if phase == C.STARTING_SYNC_S else (1,):
        cluster.shells[node].md.settings(write_min_ns=5_000_000_000, write_max_ns=5_000_000_000)
    cluster.ask(0, "invalidate-remote", volume=0)
    cluster.until(lambda: cluster.state(0)[1] == phase, 3000, "the phase")
    cluster.shells[1].power_off()
    for node in (0, 1):
        cluster.shells[node].md.settings(write_min_ns=20_000, write_max_ns=1_000_000)
    cluster.until(lambda: not cluster.node(0).is_connected, 20_000, "the loss of the link")
    cluster.cut(silent=False)
    cluster.restart(1)
    assert cluster.state(1)[2] == D.UP_TO_DATE
    both_go_on_alone(cluster, cluster.serve(0))


def test_link_that_ends_in_the_moment_of_the_start(clusters: Any) -> None:
    """The counters still say what the resync before has moved."""
    cluster, app = served(clusters, 2, external=True)
    cluster.ask(1, "disconnect")
    write(cluster, app, 0, 20)
    slow(cluster, 0)
    cluster.ask(1, "connect")
    cluster.until(lambda: cluster.in_sync, 10_000, "a resync")
    app.leave(orderly=True)
    cluster.ask(0, "primary")
    cluster.run(50)
    cluster.shells[1].md.settings(write_min_ns=5_000_000_000, write_max_ns=5_000_000_000)
    cluster.ask(0, "invalidate-remote", volume=0)
    cluster.until(lambda: cluster.state(0)[1] == C.SYNC_SOURCE, 3000, "the start")
    cluster.fire(0, "disconnect", force=True)
    cluster.shells[1].power_off()
    cluster.shells[1].md.settings(write_min_ns=20_000, write_max_ns=1_000_000)
    cluster.cut(silent=False)
    cluster.until(lambda: cluster.state(0)[1] == C.STANDALONE, 5000, "the end of the link")
    cluster.ask(0, "connect")
    cluster.restart(1)
    assert cluster.state(1)[2] == D.UP_TO_DATE
    both_go_on_alone(cluster, cluster.serve(0))


def test_disk_lost_before_its_node_has_heard_of_the_catch_up(clusters: Any) -> None:
    """And attached again where nobody has told it that the other one has gone on."""
    cluster, app = served(clusters, external=True)
    ahead_with_nothing_on_its_way(cluster, app)
    hold(cluster, 0)
    catching_up(cluster, app)
    cluster.ask(1, "detach", volume=0, force=True)
    cluster.until(lambda: cluster.state(0)[3] == D.DISKLESS, 5000, "the news of the disk")
    cluster.cut(silent=False)
    apart(cluster)
    cluster.ask(1, "attach", volume=0)
    assert cluster.state(1)[2] == D.UP_TO_DATE
    both_go_on_alone(cluster, cluster.serve(0))


def test_catch_up_belongs_to_the_congestion_that_it_follows(clusters: Any) -> None:
    """The peer's disk goes and comes back while the first one waits; the next one has data on its way."""
    cluster, app = served(clusters)
    go_ahead(cluster, app)
    slow(cluster, 0)
    stats = cluster.node(0).stats
    cluster.until(lambda: stats.volume_stats(0).unacked == 0, 5000, "the end of the congestion")
    cluster.run(50)
    cluster.ask(1, "detach", volume=0, force=True)
    cluster.until(lambda: cluster.state(0)[3] == D.DISKLESS, 5000, "the news of the disk")
    cluster.ask(1, "attach", volume=0)
    cluster.until(lambda: cluster.in_sync, 5000, "in sync")
    slow(cluster, 20_000)
    write(cluster, app, 100, 40)
    cluster.until(lambda: cluster.state(0)[1] == C.AHEAD, 300, "Ahead again")
    cluster.run(2000)
    assert cluster.state(0)[1] == C.AHEAD
    slow(cluster, 0)
    cluster.check_idle_pair()
