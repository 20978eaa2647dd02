# SPDX-License-Identifier: Apache-2.0
"""A disk reports a loss once: to one of two flushes that are under way, or to a write that makes something stable."""

from __future__ import annotations

from repl.drbd.states import ConnectionState, DiskState
from tests.lib.tools import require_sim
from tests.sim.app import App
from tests.sim.cluster import Cluster, Setup
from tests.sim.world import BLOCK, FLUSHED

C, D = ConnectionState, DiskState
WRITE, FLUSH = 1, 2
NBD_EIO = 5
SLOW_NODES = {"wake_max_ns": 1_000_000_000, "run_max_ns": 0}  # the word of the first error comes after both flushes


def slow_flushes(pair: Cluster, index: int, ms: int) -> None:
    pair.shells[index].data.settings(flush_min_ns=ms * 1_000_000, flush_max_ns=ms * 1_000_000)


def test_a_flush_beside_one_that_fails_tells_nobody_that_his_writes_are_stable() -> None:
    """The disk reports the loss once: to the first of two flushes that are under way."""
    require_sim()
    with Cluster(31, Setup(overrides={"on_io_error": "detach"})) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        pair.ask(1, "disconnect")
        app.write(*range(4))
        slow_flushes(pair, 0, 20)
        pair.shells[0].data.fail_next(FLUSH)
        pair.world.timing(**SLOW_NODES)
        first = app.submit("flush")
        pair.run(5)
        slow_flushes(pair, 0, 60)
        second = app.submit("flush")
        pair.until(lambda: all(pair.op(number).state for number in (first, second)), 5000, "both answers")
        assert [pair.op(number).error for number in (first, second)] == [NBD_EIO, NBD_EIO]


def paused_target(seed: int) -> Cluster:
    """Node 1 is target of a resync of the first blocks, which waits for the order to go on."""
    require_sim()
    pair = Cluster(seed, Setup(overrides={"on_io_error": "detach"}))
    pair.connect_fresh()
    app = pair.serve(0)
    pair.ask(1, "disconnect")
    app.write(*range(4))
    app.stop()
    pair.ask(1, "pause-sync", volume=0)
    pair.ask(1, "connect")
    pair.until(lambda: pair.state(1)[1] == C.PAUSED_SYNC_T, 10_000, "a resync that is paused")
    return pair


def test_a_flush_of_the_resync_that_fails_confirms_no_epoch() -> None:
    """Else the source forgets writes that the target's disk has lost: the word of its error may come after the ack.

    The other way round, a flush for the resync beside one for an epoch, its blocks just stay different.
    """
    for seed in range(8):
        with paused_target(seed) as pair:
            target, app = pair.shells[1].data, pair.serve(0)
            slow_flushes(pair, 1, 60)
            assert app.do("write", 20 * BLOCK, 8 * BLOCK) == 0
            pair.until(lambda d=target: d.in_flight > 0, 1000, "the flush of the epoch")
            slow_flushes(pair, 1, 5)
            target.fail_next(FLUSH)
            pair.fire(1, "resume-sync", volume=0)
            stats = pair.node(1).stats
            pair.until(lambda s=stats: s.volume_stats(0).resync_disk_bytes > 0, 50, "the resync has written")
            said = min(pair.world.streams(1))  # data and states; acknowledgements go on the other socket
            pair.world.lib.re_sim_socket_hold(pair.world.sim, said, True)
            pair.until(lambda p=pair: p.state(1)[2] == D.DISKLESS, 20_000, "the target's disk is let go")
            assert target.in_flight == 1, "the flush of the epoch"
            pair.run(100)
            pair.world.lib.re_sim_socket_hold(pair.world.sim, said, False)
            pair.until(lambda p=pair: p.connected and p.state(0)[3] == D.DISKLESS, 20_000, "the news of it")
            target.heal()
            pair.ask(1, "attach")
            pair.until(lambda p=pair: p.in_sync, 60_000, "in sync again")
            app.stop()
            pair.until(lambda p=pair: not p.volume(0).open_count, 5000, "the end of the application")
            pair.ask(0, "secondary")
            pair.shells[1].power_off()
            pair.restart(1)
            pair.check_idle_pair()


def failing_fua_write(pair: Cluster, app: App, index: int, more: int) -> list[int]:
    """Behind some writes of the same epoch; by their number the disk loses some of them as well, or not."""
    app.write(30)  # the extent is in the activity log
    pair.run(50)
    if index:
        pair.shells[0].data.hold()
    ops = [app.submit("write", block * BLOCK, BLOCK) for block in range(4 + more)]
    pair.run(50)
    pair.shells[index].data.fail_next(WRITE)
    ops.append(app.submit("write", 20 * BLOCK, fua=True))
    pair.run(50)
    pair.shells[0].data.release()
    pair.until(lambda: all(pair.op(op).state for op in ops), 5000, "all answers")
    return [int(pair.op(op).error) for op in ops]


def test_a_stable_write_that_loses_others_is_like_a_flush_that_fails() -> None:
    """Under pass_on the disk of a Primary alone stays, but not when nobody knows what it has lost."""
    require_sim()
    states = set()
    for more in range(4):
        with Cluster(31, Setup(overrides={"on_io_error": "pass_on"})) as pair:
            pair.connect_fresh()
            app = pair.serve(0)
            pair.ask(1, "disconnect")
            assert failing_fua_write(pair, app, 0, more) == [0] * (4 + more) + [NBD_EIO]
            pair.run(100)
            state = pair.state(0)[2]
            states.add(state)
            assert app.do("flush") == (0 if state == D.UP_TO_DATE else NBD_EIO)
            pair.shells[0].data.heal()
            app.leave(orderly=False)
            pair.shells[0].power_off()
            pair.restart(0)
            pair.check_audit(0, FLUSHED, "after a power loss")
    assert states == {D.UP_TO_DATE, D.DISKLESS}


def test_an_epoch_whose_stable_write_loses_others_is_not_confirmed() -> None:
    """Else the Primary forgets them."""
    require_sim()
    states = set()
    for more in range(4):
        with Cluster(31, Setup(overrides={"on_io_error": "pass_on"})) as pair:
            pair.connect_fresh()
            app = pair.serve(0)
            assert failing_fua_write(pair, app, 1, more) == [0] * (5 + more)
            pair.run(100)
            states.add(pair.state(1)[2])
            assert app.do("flush") == 0
            app.stop()
            pair.shells[1].data.heal()
            pair.shells[1].power_off()
            pair.restart(1)
            pair.until(lambda p=pair: p.in_sync, 20_000, "in sync again")
            pair.check_idle_pair()
    assert states == {D.INCONSISTENT, D.DISKLESS}
