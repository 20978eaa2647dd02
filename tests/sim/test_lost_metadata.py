# SPDX-License-Identifier: Apache-2.0
"""The peer hears of no generation that could not be written to the own metadata."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from repl.drbd.states import ConnectionState, DiskState
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.node_shell import Script
from tests.sim.world import BLOCK

C, D = ConnectionState, DiskState
AHEAD: dict[str, Any] = {"protocol": 1, "on_congestion": "pull-ahead", "congestion_fill_sectors": 128, "ko_count": 20}
HANDLER = "before-resync-source"


def begin_resync(pair: Cluster, *, after_ahead: bool) -> None:
    app = pair.serve(0)
    if after_ahead:
        pair.world.net(0, 1, bytes_per_second=200_000)
        ops = [app.submit("write", block * BLOCK) for block in range(48)]
        pair.until(lambda: all(pair.op(op).state for op in ops), 60_000, "the writes")
        pair.until(lambda: pair.state(1)[1] == C.BEHIND, 5000, "node 1 Behind")
        pair.world.net(0, 1, bytes_per_second=0)
    else:
        pair.cut(silent=False)
        pair.until(lambda: not pair.connected, 20_000, "the loss of the link")
        app.write(1, 2)
        pair.heal()
    pair.until(lambda: bool(pair.events(0, "handler", f'{HANDLER}: "')), 20_000, "the moment before the resync")
    app.leave(orderly=False)


@pytest.mark.parametrize("after_ahead", [False, True])
def test_resync_whose_uuid_is_lost_with_the_disk_does_not_begin(after_ahead: bool) -> None:
    require_sim()
    net = replace(QUICK_NET, **(AHEAD if after_ahead else {}))
    setup = Setup(net=net, external=True, handlers=(HANDLER,), buffer_bytes=1 << 20, requests=1024)
    with Cluster(3, setup) as pair:
        for shell in pair.shells:
            shell.scripts[HANDLER] = Script(0, delay_ms=300)
        pair.connect_fresh()
        before = pair.volume(1).uuids
        begin_resync(pair, after_ahead=after_ahead)
        pair.run(100)
        pair.shells[0].md.fail_next(pair.world.lib.RE_SIM_OP_WRITE)
        pair.until(lambda: pair.state(0)[2] == D.DISKLESS, 5000, "the disk fails")
        pair.run(100)
        assert pair.volume(1).uuids.current | 1 == before.current | 1
        for index in (0, 1):
            pair.shells[index].crash()
            pair.restart(index)
        pair.until(lambda: pair.in_sync, 60_000, "in sync again")
        assert not pair.events(1, "handshake", "Unrelated")
        pair.check_idle_pair()


@pytest.mark.parametrize("seed", range(2, 8))  # what is in the cache may be written all the same
def test_bitmap_that_cannot_be_written_when_a_diskless_primary_goes_leaves_the_activity_log_to_be_replayed(
    seed: int,
) -> None:
    require_sim()
    with Cluster(seed, Setup(net=QUICK_NET, external=True)) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        pair.ask(0, "detach")
        app.write(1, 2)  # that node 0 lacks them, node 1 alone knows
        md = pair.shells[1].md
        md.fail_next(pair.world.lib.RE_SIM_OP_FLUSH)
        pair.cut(silent=False)
        pair.until(lambda: pair.state(1)[2] == D.DISKLESS, 20_000, "the disk of node 1 fails")
        pair.ask(1, "down", force=True)
        pair.until(lambda: pair.shells[1].node is None, 5000, "the end of the process")
        pair.world.lib.re_sim_disk_power_loss(pair.world.sim, md.number)  # what it was refused to flush is gone
        app.leave(orderly=False)
        pair.until(lambda: not pair.node(0).volumes[0].open_count, 5000, "the end of the application")
        pair.ask(0, "secondary")
        pair.ask(0, "down")
        pair.until(lambda: pair.shells[0].node is None, 5000, "the end of the process")
        pair.heal()
        pair.start()
        pair.until(lambda: pair.in_sync, 60_000, "in sync again")
        pair.check_idle_pair()
