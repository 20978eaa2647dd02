# SPDX-License-Identifier: Apache-2.0
"""A Primary that is a resync's source loses its disk: its applications see what the target has got, never what it had
before."""

from __future__ import annotations

from functools import partial

from repl.drbd.states import ConnectionState, DiskState
from tests.lib.tools import require_sim
from tests.sim.app import App
from tests.sim.cluster import Cluster, Setup
from tests.sim.world import BLOCK, STRICT

C, D = ConnectionState, DiskState
SEEDS = range(37, 49)  # what becomes of a disk's write when the power fails is drawn
STEPS_MS = 24  # from the handshake to the end of the resync


def about_to_resync(pair: Cluster) -> App:
    """Node 1 lacks the last write, and hears of it in the handshake that has begun."""
    pair.connect_fresh()
    app = pair.serve(0)
    app.write(0, 1)
    pair.cut(silent=False)
    pair.until(lambda: not pair.node(0).is_connected, 20_000, "the loss of the peer")
    app.write(0)
    pair.heal()
    pair.until(lambda: pair.node(1).cstate == C.WF_REPORT_PARAMS, 20_000, "the handshake")
    return app


def target_loses_power(pair: Cluster) -> None:
    """While it notes that it is one; its peer does not hear of that."""
    pair.on_crash_point = lambda node: pair.shells[node].power_off()
    pair.world.lib.re_sim_crash_point(pair.world.sim, 1, 1)
    pair.until(lambda: not pair.shells[1].is_running, 20_000, "its end")
    pair.until(lambda: pair.state(0)[1] == C.WF_BITMAP_S, 5000, "the source's decision")


def source_loses_disk(pair: Cluster, app: App) -> None:
    pair.shells[0].data.fail_next(pair.world.lib.RE_SIM_OP_READ)
    app.submit("read", 7 * BLOCK)
    pair.until(lambda: pair.state(0)[2] == D.DISKLESS, 5000, "the disk is given up")


def has_decided(pair: Cluster) -> bool:
    return bool(pair.node(0).reason) or pair.connected


def take_advice(pair: Cluster, app: App) -> None:
    """The disk was lost by one error of a read: it has everything."""
    pair.ask(0, "attach")
    pair.ask(0, "connect")
    pair.until(lambda: pair.in_sync, 20_000, "in sync again")
    assert app.do("read") == 0
    app.stop()
    pair.check_audit(1, STRICT)
    pair.check_idle_pair()


def test_a_target_that_forgot_its_resync_is_not_good_enough_for_a_primary_without_a_disk() -> None:
    require_sim()
    came_back_as = set()
    for seed in SEEDS:
        with Cluster(seed, Setup()) as pair:
            app = about_to_resync(pair)
            target_loses_power(pair)
            source_loses_disk(pair, app)
            pair.until(lambda c=pair: not c.node(0).is_connected, 20_000, "the loss of the peer")
            pair.restart(1)
            pair.until(lambda c=pair: c.node(1).cstate == C.WF_CONNECTION, 20_000, "the target is back")
            came_back_as.add(pair.state(1)[2])
            pair.until(partial(has_decided, pair), 20_000, "the next handshake")
            assert app.do("read") != 0
            assert "can only connect to data of generation" in pair.node(0).reason
            take_advice(pair, app)
    assert came_back_as == {D.UP_TO_DATE, D.OUTDATED}


def test_a_source_that_loses_its_disk_reads_from_a_target_that_has_got_everything() -> None:
    """Also when it does so in the moment in which the target says so."""
    require_sim()
    seen = set()
    for step in range(STEPS_MS):
        with Cluster(SEEDS[0], Setup()) as pair:
            app = about_to_resync(pair)
            pair.run(step)
            source_loses_disk(pair, app)
            pair.run(1000)
            has_all = pair.state(1)[2] == D.UP_TO_DATE and pair.connected
            assert (app.do("read") == 0) == has_all, f"after {step} ms: {pair.describe()}"
            seen.add(has_all)
    assert seen == {False, True}
