# SPDX-License-Identifier: Apache-2.0
"""Split brain between two nodes: detection, every way to solve it, and what both nodes say about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from repl.drbd.split_brain import AfterSplitBrain
from repl.drbd.states import ConnectionState, Role
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Cluster, Setup

Asb = AfterSplitBrain
STANDALONE, WF_CONNECTION = ConnectionState.STANDALONE, ConnectionState.WF_CONNECTION
MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make() -> Iterator[MakeCluster]:
    """A pair in sync; ``net`` are options of both nodes, ``other`` those of node 1 where they differ."""
    require_sim()
    made: list[Cluster] = []

    def cluster(seed: int = 1, *, other: dict[str, Any] | None = None, handlers: tuple[str, ...] = (),
                volumes: int = 1, **net: Any) -> Cluster:  # fmt: skip
        mine = replace(QUICK_NET, **net)
        theirs = replace(mine, **(other or {}))
        made.append(Cluster(seed, Setup(net=mine, other_net=theirs, handlers=handlers, volumes=volumes)))
        made[-1].connect_fresh()
        return made[-1]

    yield cluster
    for one in made:
        print(one.tail(100))
        one.close()


def split(
    cluster: Cluster, *, blocks: tuple[int, int] = (2, 4), primaries: tuple[int, ...] = (), old: bool = False
) -> None:
    """Both nodes write alone; ``blocks``: how many each; ``primaries``: who stays Primary.  Both are StandAlone then.

    ``old``: so often that they have no common bitmap any more.
    """
    for node in (0, 1):
        cluster.ask(node, "disconnect", force=True)
    for node in (0, 1):
        app = cluster.serve(node)
        app.write(*range(10 * node, 10 * node + blocks[node]))
        app.leave()
        wait_each(cluster, lambda n: n in primaries or cluster.node(n).role == Role.SECONDARY, "the client's end")
        cluster.run(50)  # and its metadata
        if old:
            cluster.ask(node, "new-current-uuid")
        if node in primaries:
            cluster.ask(node, "primary")


def wait_each(cluster: Cluster, condition: Callable[[int], bool], what: str) -> None:
    """Until it holds for both nodes, one after the other."""
    cluster.until(lambda: condition(0), 30_000, what)
    cluster.until(lambda: condition(1), 30_000, what)


def meet(cluster: Cluster, *, discard: int = -1) -> None:
    for node in (0, 1):
        cluster.ask(node, "connect", **({"discard_my_data": True} if node == discard else {}))


def contents(cluster: Cluster, node: int) -> bytes:
    return cluster.shells[node].data.content(0, cluster.device_bytes)


def check_winner(cluster: Cluster, winner: int, kept: bytes) -> None:
    cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")
    cluster.wait_idle()
    cluster.check_equal()
    assert contents(cluster, 1 - winner) == kept
    assert [cluster.node(n).reason for n in (0, 1)] == ["", ""]


@pytest.mark.parametrize(
    ("policy", "other", "winner"),
    [
        (Asb.DISCARD_LEAST_CHANGES, None, 1),
        (Asb.DISCARD_LOCAL, Asb.DISCARD_REMOTE, 1),
        (Asb.DISCARD_REMOTE, Asb.DISCARD_LOCAL, 0),
        (Asb.DISCARD_YOUNGER_PRIMARY, None, 1),
        (Asb.DISCARD_OLDER_PRIMARY, None, 1),
    ],
)
def test_split_brain_is_solved_by_the_policy_for_no_primary(
    make: MakeCluster, policy: Asb, other: Asb | None, winner: int
) -> None:
    """Younger and older: nobody was Primary when they parted, so the changes decide."""
    cluster = make(after_sb_0pri=int(policy), other={"after_sb_0pri": int(other or policy)})
    split(cluster)
    kept = contents(cluster, winner)
    meet(cluster)
    check_winner(cluster, winner, kept)


def test_policy_decides_for_each_volume_as_the_kernel_does(make: MakeCluster) -> None:
    """The module was seen to take volume 0 from one node and volume 1 from the other (docs/protocol.md)."""
    cluster = make(after_sb_0pri=int(Asb.DISCARD_ZERO_CHANGES), volumes=2)
    for node in (0, 1):
        cluster.ask(node, "disconnect", force=True)
    for node in (0, 1):
        app = cluster.serve(node, node)
        app.write(1, 2, 3)
        app.leave()
        cluster.until(lambda node=node: cluster.node(node).role == Role.SECONDARY, 30_000, "the client's end")
    disks: list[list[Any]] = [[place.data for place in shell.places] for shell in cluster.shells]
    kept = [disks[n][n].content(0, cluster.device_bytes) for n in (0, 1)]
    meet(cluster)
    cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")
    cluster.wait_idle()
    cluster.check_equal()
    for number in (0, 1):
        assert disks[1 - number][number].content(0, cluster.device_bytes) == kept[number]


@pytest.mark.parametrize("policy", [Asb.DISCARD_YOUNGER_PRIMARY, Asb.DISCARD_OLDER_PRIMARY])
def test_who_was_primary_before_the_nodes_parted_is_the_older_one(make: MakeCluster, policy: Asb) -> None:
    cluster = make(after_sb_0pri=int(policy))
    app = cluster.serve(0)
    app.write(1)
    cluster.cut()
    cluster.until(lambda: not cluster.node(0).is_connected and not cluster.node(1).is_connected, 30_000, "the loss")
    app.write(2)
    cluster.ask(1, "primary")
    cluster.serve(1).write(30, 31, 32)
    for each in cluster.apps.values():
        each.leave()
    wait_each(cluster, lambda n: not cluster.volume(n).open_count, "no client")
    for node in (0, 1):
        cluster.ask(node, "disconnect", force=True)
        cluster.ask(node, "secondary")
    cluster.heal()
    winner = 0 if policy is Asb.DISCARD_YOUNGER_PRIMARY else 1
    kept = contents(cluster, winner)
    meet(cluster)
    check_winner(cluster, winner, kept)


def test_zero_changes_solves_it_only_if_one_side_wrote_nothing(make: MakeCluster) -> None:
    for blocks, winner in (((0, 3), 1), ((2, 0), 0)):
        cluster = make(after_sb_0pri=int(Asb.DISCARD_ZERO_CHANGES))
        split(cluster, blocks=blocks)
        kept = contents(cluster, winner)
        meet(cluster)
        check_winner(cluster, winner, kept)
    cluster = make(after_sb_0pri=int(Asb.DISCARD_ZERO_CHANGES))
    split(cluster)
    meet(cluster)
    cluster.until(lambda: cluster.stand_alone, 30_000, "StandAlone")


@pytest.mark.parametrize(("primary", "blocks"), [(0, (2, 4)), (0, (4, 2)), (1, (2, 4))])
def test_secondary_is_discarded_when_one_node_is_primary(
    make: MakeCluster, primary: int, blocks: tuple[int, int]
) -> None:
    cluster = make(after_sb_1pri=int(Asb.DISCARD_SECONDARY))
    split(cluster, blocks=blocks, primaries=(primary,))
    kept = contents(cluster, primary)
    meet(cluster)
    check_winner(cluster, primary, kept)


@pytest.mark.parametrize("primary", [0, 1])
def test_consensus_takes_a_result_only_against_the_secondary(make: MakeCluster, primary: int) -> None:
    cluster = make(after_sb_0pri=int(Asb.DISCARD_LEAST_CHANGES), after_sb_1pri=int(Asb.CONSENSUS))
    split(cluster, primaries=(primary,))  # node 1 wrote more
    kept = contents(cluster, 1)
    meet(cluster)
    if primary == 1:
        check_winner(cluster, 1, kept)
    else:
        cluster.until(lambda: cluster.stand_alone, 30_000, "StandAlone")


def test_primary_is_overwritten_violently_only_with_both_options(make: MakeCluster) -> None:
    options = {"after_sb_0pri": int(Asb.DISCARD_LEAST_CHANGES), "after_sb_1pri": int(Asb.VIOLENTLY_AS_0P)}
    cluster = make(**options, rr_conflict="violently")
    split(cluster, primaries=(0,))
    kept = contents(cluster, 1)
    meet(cluster)
    check_winner(cluster, 1, kept)
    assert cluster.node(0).role == Role.PRIMARY


@pytest.mark.parametrize("conflict", ["disconnect", "call-pri-lost", "auto-discard"])
def test_primary_that_would_be_overwritten_refuses_and_both_say_why(make: MakeCluster, conflict: str) -> None:
    cluster = make(
        after_sb_0pri=int(Asb.DISCARD_LEAST_CHANGES),
        after_sb_1pri=int(Asb.VIOLENTLY_AS_0P),
        rr_conflict=conflict,
        handlers=("pri-lost",),
    )
    split(cluster, primaries=(0,))
    before = contents(cluster, 0)
    meet(cluster)
    wait_each(cluster, lambda n: cluster.node(n).reason_code == "primary-would-lose", "the reason")
    cluster.until(lambda: cluster.node(0).cstate == STANDALONE, 5000, "StandAlone")
    assert "a gave up" in cluster.node(1).reason
    cluster.until(lambda: cluster.node(1).cstate == WF_CONNECTION, 5000, "waiting for the other node")
    assert contents(cluster, 0) == before
    called = [call.name for call in cluster.shells[0].handler_calls]
    assert called == (["pri-lost"] if conflict == "call-pri-lost" else [])


def test_primary_that_would_be_overwritten_tries_again_with_retry_connect(make: MakeCluster) -> None:
    cluster = make(
        after_sb_0pri=int(Asb.DISCARD_LEAST_CHANGES),
        after_sb_1pri=int(Asb.VIOLENTLY_AS_0P),
        rr_conflict="retry-connect",
    )
    split(cluster, primaries=(0,))
    kept = contents(cluster, 1)
    meet(cluster)
    cluster.until(lambda: cluster.node(0).reason_code == "primary-would-lose", 30_000, "the reason")
    cluster.run(3000)
    assert cluster.node(0).cstate != STANDALONE
    cluster.ask(0, "secondary")
    check_winner(cluster, 1, kept)


def test_primary_that_loses_is_demoted_when_nobody_uses_it(make: MakeCluster) -> None:
    options = {"after_sb_0pri": int(Asb.DISCARD_LEAST_CHANGES), "after_sb_1pri": int(Asb.CALL_PRI_LOST)}
    cluster = make(**options, handlers=("pri-lost-after-sb", "initial-split-brain", "split-brain"))
    split(cluster, primaries=(0,))
    kept = contents(cluster, 1)
    meet(cluster)
    check_winner(cluster, 1, kept)
    assert cluster.node(0).role == Role.SECONDARY
    for node in (0, 1):
        assert [call.name for call in cluster.shells[node].handler_calls] == ["initial-split-brain"]


def test_primary_that_loses_and_is_in_use_calls_for_help(make: MakeCluster) -> None:
    options = {"after_sb_0pri": int(Asb.DISCARD_LEAST_CHANGES), "after_sb_1pri": int(Asb.CALL_PRI_LOST)}
    cluster = make(**options, handlers=("pri-lost-after-sb",))
    split(cluster, primaries=(0,))
    app = cluster.serve(0)
    before = contents(cluster, 0)
    meet(cluster)
    wait_each(cluster, lambda n: cluster.node(n).reason_code == "split-brain", "the reason")
    cluster.until(lambda: cluster.node(0).cstate == STANDALONE, 5000, "StandAlone")
    assert [call.name for call in cluster.shells[0].handler_calls] == ["pri-lost-after-sb"]
    assert cluster.node(0).role == Role.PRIMARY and contents(cluster, 0) == before
    app.write(3)


def test_two_primaries_meet_and_the_loser_is_demoted(make: MakeCluster) -> None:
    options = {"after_sb_0pri": int(Asb.DISCARD_LEAST_CHANGES), "after_sb_2pri": int(Asb.CALL_PRI_LOST)}
    cluster = make(**options)
    split(cluster, primaries=(0, 1))
    kept = contents(cluster, 1)
    meet(cluster)
    check_winner(cluster, 1, kept)
    assert [cluster.node(n).role for n in (0, 1)] == [Role.SECONDARY, Role.PRIMARY]


@pytest.mark.parametrize("loser", [0, 1])
@pytest.mark.parametrize("is_old", [False, True])
def test_discarded_data_is_replaced_in_full_where_nothing_is_common(
    make: MakeCluster, loser: int, is_old: bool
) -> None:
    cluster = make(handlers=("split-brain", "initial-split-brain"))
    split(cluster, old=is_old)
    kept = contents(cluster, 1 - loser)
    meet(cluster)
    cluster.until(lambda: cluster.stand_alone, 30_000, "StandAlone")
    for node in (0, 1):
        assert cluster.node(node).reason_code == "split-brain"
        assert [c.name for c in cluster.shells[node].handler_calls] == ["initial-split-brain", "split-brain"]
    meet(cluster, discard=loser)
    check_winner(cluster, 1 - loser, kept)
    assert not cluster.node(loser).connection.discard_my_data


def test_old_split_brain_is_solved_by_policy_with_always_asbp(make: MakeCluster) -> None:
    cluster = make(after_sb_0pri=int(Asb.DISCARD_LEAST_CHANGES), always_asbp=True)
    split(cluster, old=True)
    kept = contents(cluster, 1)
    meet(cluster)
    check_winner(cluster, 1, kept)


def test_promotion_takes_the_order_to_discard_back(make: MakeCluster) -> None:
    cluster = make()
    split(cluster)
    cluster.ask(0, "connect", discard_my_data=True)
    cluster.ask(0, "primary")
    cluster.ask(1, "connect")
    cluster.until(lambda: cluster.stand_alone, 30_000, "StandAlone")
    assert cluster.node(0).reason_code == "split-brain"


def test_order_to_discard_outlives_a_link_that_breaks_before_the_resync(make: MakeCluster) -> None:
    cluster = make()
    split(cluster)
    kept = contents(cluster, 1)

    def cut(index: int) -> None:
        if cluster.state(index)[1] in (ConnectionState.WF_BITMAP_T, ConnectionState.WF_BITMAP_S) and not broken:
            broken.append(index)
            cluster.cut(silent=False)
            cluster.later(2000, cluster.heal)

    broken: list[int] = []
    cluster.observers.append(cut)
    meet(cluster, discard=0)
    check_winner(cluster, 1, kept)
    assert broken


# ---- several volumes ----


def split_two_volumes(make: MakeCluster) -> Cluster:
    cluster = make(volumes=2)
    for node in (0, 1):
        cluster.ask(node, "disconnect", force=True)
    for node in (0, 1):
        for volume in (0, 1):
            app = cluster.serve(node, volume)
            app.write(*range(20 * node, 20 * node + 5 + volume))
            app.leave()
        wait_each(cluster, lambda n: cluster.node(n).role == Role.SECONDARY, "the client's end")
        cluster.run(50)
    return cluster


def data_of(cluster: Cluster, node: int) -> list[bytes]:
    return [cluster.shells[node].places[v].data.pread(0, cluster.device_bytes) for v in (0, 1)]


def test_dry_run_tells_the_verdict_on_every_volume(make: MakeCluster) -> None:
    cluster = split_two_volumes(make)
    before = data_of(cluster, 0), data_of(cluster, 1)
    cluster.ask(1, "connect")
    cluster.ask(0, "connect", tentative=True)
    cluster.until(lambda: cluster.node(0).reason_code == "tentative", 30_000, "the end of the question")
    assert "volume 0: rule 90" in cluster.node(0).reason and "volume 1: rule 90" in cluster.node(0).reason
    assert (data_of(cluster, 0), data_of(cluster, 1)) == before


@pytest.mark.parametrize("breaks", [False, True])
def test_order_to_discard_holds_for_every_volume(make: MakeCluster, breaks: bool) -> None:
    """``breaks``: the link does when the first volume's resync has begun."""
    cluster = split_two_volumes(make)
    kept = data_of(cluster, 1)
    broken: list[int] = []

    def cut(index: int) -> None:
        began = [cluster.state(0, v)[1] == ConnectionState.SYNC_TARGET for v in (0, 1)]
        if breaks and index == 0 and any(began) and not broken:
            broken.append(sum(began))
            cluster.cut(silent=False)
            cluster.later(1500, cluster.heal)

    cluster.observers.append(cut)
    meet(cluster, discard=0)
    cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")
    assert data_of(cluster, 0) == kept
    assert bool(broken) is breaks and not cluster.node(0).connection.discard_my_data


# ---- tentative ----


@pytest.mark.parametrize("asks", [0, 1])
def test_tentative_connect_tells_the_verdict_and_changes_nothing(make: MakeCluster, asks: int) -> None:
    cluster = make(handlers=("split-brain", "initial-split-brain"))
    split(cluster)
    gi = [cluster.ask(n, "show-gi")["gi"] for n in (0, 1)]
    images = [shell.data.content(0, cluster.setup.disk_bytes) for shell in cluster.shells]
    cluster.ask(1 - asks, "connect")
    cluster.ask(asks, "connect", tentative=True)
    cluster.until(lambda: cluster.node(asks).reason_code == "tentative", 30_000, "the end of the question")
    cluster.until(lambda: cluster.node(asks).cstate == STANDALONE, 5000, "StandAlone")
    assert "rule 90" in cluster.node(asks).reason and "Split-Brain" in cluster.node(asks).reason
    assert cluster.node(1 - asks).cstate != STANDALONE
    assert cluster.events(1 - asks, text="only asked")
    assert [cluster.ask(n, "show-gi")["gi"] for n in (0, 1)] == gi
    assert [shell.data.content(0, cluster.setup.disk_bytes) for shell in cluster.shells] == images
    assert not any(shell.handler_calls for shell in cluster.shells)


def test_tentative_connect_after_a_missed_end_leaves_the_corrections_alone(make: MakeCluster) -> None:
    cluster = make()
    cluster.ask(0, "disconnect", force=True)
    cluster.until(lambda: not cluster.node(1).is_connected, 30_000, "the end")
    cluster.serve(0).write(1, 2)
    cluster.ask(0, "connect", tentative=True)
    cluster.until(lambda: cluster.node(0).reason_code == "tentative", 30_000, "the end of the question")
    cluster.until(lambda: cluster.node(0).cstate == STANDALONE, 5000, "StandAlone")
    assert "would become SyncSource, doing a bit-map based resync" in cluster.node(0).reason
    assert cluster.dirty_bits(1) == 0
    cluster.ask(0, "connect")
    cluster.until(lambda: cluster.in_sync, 30_000, "in sync")


def test_tentative_connect_of_a_node_without_a_disk_does_not_take_the_peers_generation(make: MakeCluster) -> None:
    cluster = make()
    cluster.ask(1, "detach")
    cluster.ask(1, "disconnect")
    cluster.serve(0).write(1)
    known = cluster.volume(1).uuids
    cluster.ask(1, "connect", tentative=True)
    cluster.until(lambda: cluster.node(1).reason_code == "tentative", 30_000, "the end of the question")
    assert cluster.volume(1).uuids == known
    cluster.ask(1, "connect")
    cluster.until(lambda: cluster.connected, 30_000, "connected")
    assert cluster.volume(1).uuids.current != known.current


# ---- why ----


def codes(cluster: Cluster, node: int) -> list[str]:
    return [finding["code"] for finding in cluster.ask(node, "why")["findings"]]


def test_why_names_the_state_and_the_next_step(make: MakeCluster) -> None:
    cluster = make()
    assert codes(cluster, 0) == ["ok"]
    split(cluster)
    assert codes(cluster, 0) == ["disconnected"]
    cluster.ask(0, "connect")
    cluster.until(lambda: cluster.node(0).cstate == WF_CONNECTION, 5000, "waiting")
    assert codes(cluster, 0) == ["no-peer"]
    cluster.ask(1, "connect")
    cluster.until(lambda: cluster.stand_alone, 30_000, "StandAlone")
    for node in (0, 1):
        found = cluster.ask(node, "why")["findings"][0]
        assert found["code"] == "split-brain" and "--discard-my-data" in found["next"]


@pytest.mark.parametrize("steps", range(0, 40, 2))
def test_demotion_during_the_handshake_does_not_make_the_nodes_go_the_same_way(make: MakeCluster, steps: int) -> None:
    """The peer was told "Primary", and decides with that: as two Secondaries they would go the other way."""
    policies = {"after_sb_0pri": Asb.DISCARD_LEAST_CHANGES, "after_sb_1pri": Asb.DISCARD_SECONDARY}
    pair = make(steps + 1, **policies)
    split(pair, blocks=(2, 6), primaries=(0,))
    meet(pair)
    pair.until(lambda: pair.node(0).cstate == ConnectionState.WF_REPORT_PARAMS, 20_000, "the handshake")
    pair.run(steps / 4)
    pair.ask(0, "secondary")
    pair.until(lambda: pair.in_sync, 60_000, "both nodes in sync")
    assert not any(pair.events(node, text="both nodes have decided") for node in (0, 1))
    pair.wait_idle()
    pair.check_equal()
