# SPDX-License-Identifier: Apache-2.0
"""The loser of a split brain dies before it has its P_SYNC_UUID, again and again (decision 0140)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repl.drbd.split_brain import AfterSplitBrain
from repl.drbd.states import ConnectionState, DiskState
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.test_split_brain import contents, meet, split

C = ConnectionState
WINNER, LOSER = 0, 1
DEATHS = 4


def decided(pair: Cluster, number: int) -> Cluster:
    """The winner sends, the loser does not know yet: it dies."""
    pair.until(lambda: pair.state(WINNER)[1] == C.SYNC_SOURCE, 30_000, f"start {number}")
    assert pair.state(LOSER)[1] == C.WF_SYNC_UUID
    pair.shells[LOSER].power_off()
    return pair


def come_back(pair: Cluster, *nodes: int) -> None:
    for node in nodes:
        if not pair.shells[node].is_powered:
            pair.shells[node].power_on()
        pair.shells[node].start()
        pair.ask(node, "up")


def finish(pair: Cluster, kept: bytes) -> None:
    pair.until(lambda: pair.in_sync, 60_000, "in sync")
    pair.wait_idle()
    pair.check_equal()
    assert contents(pair, LOSER) == kept
    mine, theirs = (pair.volume(node).uuids for node in (0, 1))
    assert (mine.bitmap, theirs.bitmap) == (0, 0)
    assert (mine.history1, mine.history2) == (theirs.history1, theirs.history2)


@pytest.mark.parametrize("is_primary", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_order_to_discard_holds_for_any_number_of_deaths(old: bool, is_primary: bool) -> None:
    require_sim()
    with Cluster(3, Setup(latency_max_us=5000, net=QUICK_NET)) as pair:
        pair.connect_fresh()
        split(pair, old=old, primaries=(WINNER,) if is_primary else ())
        kept = contents(pair, WINNER)
        meet(pair)
        pair.until(lambda: pair.stand_alone, 30_000, "the split brain is seen")
        meet(pair, discard=LOSER)
        for number in range(DEATHS):
            decided(pair, number)
            pair.until(lambda: pair.state(WINNER)[1] < C.CONNECTED, 30_000, "the loss is seen")
            come_back(pair, LOSER)
        finish(pair, kept)


def test_policys_decision_outlives_both_nodes() -> None:
    """Solved with one Primary only; after the deaths there is none, and no policy for that."""
    require_sim()
    net = replace(QUICK_NET, after_sb_1pri=int(AfterSplitBrain.DISCARD_SECONDARY))
    with Cluster(4, Setup(latency_max_us=5000, net=net)) as pair:
        pair.connect_fresh()
        split(pair, primaries=(WINNER,))
        kept = contents(pair, WINNER)
        meet(pair)
        decided(pair, 0)
        pair.shells[WINNER].crash()
        come_back(pair, LOSER)
        assert pair.state(LOSER)[2] == DiskState.OUTDATED
        come_back(pair, WINNER)
        decided(pair, 1)
        come_back(pair, LOSER)
        finish(pair, kept)


def test_loser_that_is_forced_to_go_on_is_a_split_brain_again() -> None:
    require_sim()
    with Cluster(5, Setup(latency_max_us=5000, net=QUICK_NET)) as pair:
        pair.connect_fresh()
        split(pair)
        meet(pair, discard=LOSER)
        decided(pair, 0)
        pair.until(lambda: pair.state(WINNER)[1] < C.CONNECTED, 30_000, "the loss is seen")
        pair.cut(silent=False)
        come_back(pair, LOSER)
        pair.ask(LOSER, "primary", force=True)
        app = pair.serve(LOSER)
        app.write(20, 21)
        app.leave()
        pair.heal()
        pair.until(lambda: pair.stand_alone, 30_000, "the refusal")
        assert all("Split-Brain" in pair.node(node).reason for node in (0, 1))
