# SPDX-License-Identifier: Apache-2.0
"""on-io-error pass_on: a block is lost in the moment in which something else changes the disk's state."""

from __future__ import annotations

from dataclasses import replace

from repl.drbd.states import ConnectionState
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.world import BLOCK

WRITE = 1
STEPS = range(30, 52)  # tenths of a millisecond: the last of the resync
PASS_ON = {"on_io_error": "pass_on"}


def test_peer_hears_of_a_block_that_is_lost_while_a_resync_ends() -> None:
    """Inconsistent before the resync ended, and Inconsistent again: UpToDate was said in between."""
    require_sim()
    met = 0
    for step in STEPS:
        with Cluster(17, Setup(external=True, overrides=PASS_ON, wake_max_us=50)) as pair:
            pair.connect_fresh()
            app = pair.serve(0)
            app.write(1)
            pair.ask(1, "disconnect")
            app.write(2)
            pair.ask(1, "connect")
            pair.until(lambda c=pair: c.state(1)[1] == ConnectionState.SYNC_TARGET, 20_000, "the resync")
            pair.run(step * 0.1)
            was_syncing = pair.state(1)[1] == ConnectionState.SYNC_TARGET
            pair.shells[1].data.fail_next(WRITE)
            app.submit("write", 9 * BLOCK)
            pair.run(200)
            pair.until(lambda c=pair: c.connected and c.state(0)[1] == ConnectionState.CONNECTED, 20_000, "the end")
            assert pair.state(0)[3] == pair.state(1)[2], f"step {step}: {pair.describe()}"
            met += was_syncing and any("UpToDate -> Inconsistent" in text for text in pair.events(1))
    assert met


def test_peer_that_alone_has_a_block_does_not_fall_behind() -> None:
    """The own disk loses what was sent and acknowledged while the control plane decides to go Ahead."""
    require_sim()
    net = replace(QUICK_NET, protocol=1, on_congestion="pull-ahead", congestion_fill_sectors=64, ko_count=20)
    setup = Setup(net=net, external=True, overrides=PASS_ON, requests=256, buffer_bytes=1 << 20, wake_max_us=30_000)
    acknowledged = 0
    for seed in range(8):
        with Cluster(seed, setup) as pair:
            pair.connect_fresh()
            app = pair.serve(0)
            app.write(1, 2)
            pair.run(100)
            pair.world.net(0, 1, bytes_per_second=200_000)
            pair.shells[0].data.fail_next(WRITE)
            ops = [app.submit("write", block * BLOCK) for block in (1, *range(10, 30))]
            pair.until(lambda c=pair, ops=ops: all(c.op(op).state for op in ops), 20_000, "the writes")
            acknowledged += pair.op(ops[0]).state == pair.world.lib.RE_SIM_OP_DONE
            pair.world.net(0, 1, bytes_per_second=0)
            pair.run(3000)
            app.do("read", BLOCK)  # the simulator compares
            app.stop()
            pair.ask(1, "disconnect", force=True)
            pair.ask(1, "connect")
            pair.until(lambda c=pair: c.in_sync, 20_000, "what was lost is copied from the peer")
            pair.check_idle_pair()
    assert acknowledged


def test_target_that_was_refused_a_block_is_not_taken_for_one_that_may_have_finished() -> None:
    """The link breaks when nothing is left but what the source cannot read: no full resync follows."""
    require_sim()
    met = 0
    for step in range(12):
        with Cluster(19, Setup(overrides=PASS_ON, wake_max_us=50)) as pair:
            pair.connect_fresh()
            app = pair.serve(0)
            app.write(*range(4))
            pair.ask(1, "disconnect")
            app.write(0, 1, 2, 3)
            pair.shells[0].data.settings(bad_offset=3 * BLOCK, bad_length=BLOCK)
            pair.ask(1, "connect")
            pair.until(lambda c=pair: c.events(0, "disk-error"), 20_000, "the source cannot read it")
            pair.run(step * 0.05)
            was_source = pair.state(0)[1] == ConnectionState.SYNC_SOURCE
            pair.world.lib.re_sim_net_reset(pair.world.sim, 0, 1)
            pair.until(lambda c=pair: not c.node(0).is_connected, 20_000, "the loss of the target")
            pair.shells[0].data.heal()
            pair.until(lambda c=pair: c.in_sync, 60_000, "what is left")
            assert not [text for text in pair.events(0, "handshake") if "rule 80" in text], f"step {step}"
            met += was_source
            app.stop()
            pair.check_idle_pair()
    assert met
