# SPDX-License-Identifier: Apache-2.0
"""After-split-brain policies decide for each volume on its own: each node may win one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from repl.drbd.split_brain import AfterSplitBrain
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Cluster, Setup


def all_closed(pair: Cluster, node: int) -> bool:
    return all(pair.volume(node, volume).open_count == 0 for volume in pair.numbers)


def test_each_node_wins_the_volume_that_only_it_has_changed() -> None:
    require_sim()
    net = replace(QUICK_NET, after_sb_0pri=AfterSplitBrain.DISCARD_ZERO_CHANGES)
    with Cluster(5, Setup(net=net, volumes=2)) as pair:
        pair.connect_fresh()
        for node in (0, 1):
            pair.ask(node, "secondary")
        pair.cut(silent=False)
        for node in (0, 1):
            pair.ask(node, "disconnect", force=True)
        for node in (0, 1):
            apps = [pair.serve(node, volume) for volume in pair.numbers]
            apps[node].write(1, 2, 3)
            for app in apps:
                app.stop()
            closed = partial(all_closed, pair, node)
            pair.until(closed, 5000, "the end of the clients")
            pair.ask(node, "secondary")
        pair.heal()
        for node in (0, 1):
            pair.ask(node, "connect")
        pair.until(lambda: pair.in_sync, 20_000, "in sync")
        for node in (0, 1):
            said = pair.events(node, "handshake", "automatically solved")
            assert [("Sync from this node" in s) for s in said] == [node == 0, node == 1], said
            assert pair.volume(node, node).uuids.bitmap == 0
