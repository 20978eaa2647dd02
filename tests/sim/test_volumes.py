# SPDX-License-Identifier: Apache-2.0
"""Four volumes of one resource: one write order, and a disk that fails concerns its volume only."""

from __future__ import annotations

import pytest

from repl.drbd.packets import Packet
from repl.drbd.states import DiskState
from tests.lib.tools import require_sim
from tests.sim.app import Load
from tests.sim.cluster import Cluster, Setup

VOLUMES = 4


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("index", [0, 1])
def test_disk_of_one_volume_fails_and_the_others_go_on(seed: int, index: int) -> None:
    require_sim()
    with Cluster(seed, Setup(volumes=VOLUMES)) as pair:
        pair.connect_fresh()
        apps = [pair.serve(0, number) for number in range(VOLUMES)]
        for app in apps:
            app.load(Load(max_bytes=16384, think_max_ms=1, queue_depth=4))
        pair.run(200)
        victim = pair.shells[index].places[2].data
        victim.fail_next(1)
        pair.run(400)
        states = [pair.node(index).volumes[number].state.disk for number in range(VOLUMES)]
        assert states == [DiskState.UP_TO_DATE, DiskState.UP_TO_DATE, DiskState.DISKLESS, DiskState.UP_TO_DATE]
        for app in apps:
            app.stop()
            assert app.stats.failed == 0
        pair.until(lambda: pair.connected, 30_000, "connected")
        pair.ask(index, "attach", volume=2)
        pair.until(lambda: pair.in_sync, 30_000, "in sync")
        pair.check_idle_pair()


def test_barriers_count_the_writes_of_all_volumes() -> None:
    require_sim()
    with Cluster(9, Setup(volumes=VOLUMES)) as pair:
        pair.connect_fresh()
        apps = [pair.serve(0, number) for number in range(VOLUMES)]
        for app in apps:
            app.load(Load(ops=200, max_bytes=8192, queue_depth=8, flush_percent=20))
        pair.until(lambda: all(app.is_idle for app in apps), 60_000, "the load")
        sent = pair.world.lib.re_sim_packets_sent
        assert sent(pair.world.sim, 0, Packet.BARRIER) > 20
        assert pair.connected and not pair.events(0, "connection", "lost")
        for app in apps:
            app.stop()
        pair.check_idle_pair()
