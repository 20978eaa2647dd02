# SPDX-License-Identifier: Apache-2.0
"""A Primary that has worked through its peer never shows its applications an older disk of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from repl.drbd.states import DiskState
from repl.drbd.uuids import base
from repl.errors import RequestRefused
from repl.node import disk as node_disk
from repl.node.flow import Promise
from tests.lib.tools import require_sim
from tests.sim.app import App
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.pairs import connected_pair, disks
from tests.sim.world import BLOCK

_D = DiskState
SEED = 29
WRITTEN = 1


@pytest.fixture
def pair() -> Iterator[Cluster]:
    yield from connected_pair(SEED)


def answered(*answers: Promise[Any]) -> bool:
    return all(answer.is_done for answer in answers)


def own_generation(pair: Cluster, index: int) -> int:
    return base(node_disk.find_superblock(pair.shells[index].place)[0].uuids.current)


def detach_without_news(pair: Cluster, app: App, held: int) -> bool:
    """The peer takes over, but what one of its two sockets sends does not arrive; was the write acknowledged?"""
    answer = pair.fire(0, "detach")
    pair.until(lambda: disks(pair, 0)[0] == _D.FAILED, 5000, "the decision to detach")
    fds = sorted(pair.world.streams(1))
    assert len(fds) == 2
    pair.world.lib.re_sim_socket_hold(pair.world.sim, fds[held], True)
    pair.until(lambda: answer.is_done, 5000, "the detach")
    op = app.submit("write", BLOCK)
    pair.run(300)
    return bool(pair.op(op).state == WRITTEN)


def refused_attach(pair: Cluster) -> None:
    with pytest.raises(RequestRefused) as caught:
        pair.ask(0, "attach")
    assert caught.value.number == 150
    assert disks(pair, 0)[0] == _D.DISKLESS


def find_together(pair: Cluster, app: App) -> None:
    """The operator's way out."""
    app.leave(orderly=False)
    pair.until(lambda: not pair.node(0).volumes[0].open_count, 5000, "the end of the application")
    if not pair.node(1).is_up:
        pair.start(1)
    pair.ask(0, "secondary")
    pair.ask(0, "disconnect", force=True)
    pair.ask(0, "connect")
    pair.until(lambda: pair.connected, 20_000, "the connection")
    if disks(pair, 0)[0] == _D.DISKLESS:
        pair.ask(0, "attach")
    pair.until(lambda: pair.in_sync, 20_000, "in sync again")
    pair.check_idle_pair()


def test_the_news_of_the_peers_generation_was_lost_with_the_link() -> None:
    require_sim()
    acknowledged = []
    for held in (0, 1):
        with Cluster(SEED, Setup()) as pair:
            pair.connect_fresh()
            app = pair.serve(0)
            app.write(0, 1)
            acknowledged.append(detach_without_news(pair, app, held))
            pair.shells[1].crash()
            pair.until(lambda: not pair.node(0).is_connected, 20_000, "the loss of the peer")
            if acknowledged[-1]:
                assert base(pair.volume(0).uuids.current) == own_generation(pair, 0), "no news has come"
            refused_attach(pair)
            assert app.do("read", BLOCK) != 0
            pair.start(1)
            pair.run(3000)
            find_together(pair, app)
    assert sorted(acknowledged) == [False, True]


def test_peer_loses_its_disk_too_and_the_older_one_comes_back(pair: Cluster) -> None:
    app = pair.serve(0)
    pair.ask(0, "detach")
    app.write(1)
    pair.shells[1].data.fail_next(pair.world.lib.RE_SIM_OP_WRITE)
    app.submit("write", 2 * BLOCK)
    pair.until(lambda: disks(pair, 0) == (_D.DISKLESS, _D.DISKLESS), 5000, "both are gone")
    pair.until(lambda: not pair.node(0).is_connected, 5000, "the end of the link")
    pair.until(lambda: pair.node(0).is_connected, 5000, "the next one")
    assert disks(pair, 0) == (_D.DISKLESS, _D.DISKLESS)
    refused_attach(pair)
    assert app.do("read", BLOCK) != 0
    pair.ask(1, "attach")
    pair.until(lambda: disks(pair, 0)[1] == _D.UP_TO_DATE, 5000, "the newer one is back")
    assert app.do("read", BLOCK) == 0
    pair.ask(0, "attach")
    pair.until(lambda: pair.in_sync, 20_000, "in sync again")
    app.stop()
    pair.check_idle_pair()


def test_link_breaks_while_the_older_disk_is_negotiated() -> None:
    """In the moment in which the generation of both disks still seems to be the same."""
    require_sim()
    for held in (0, 1):
        with Cluster(SEED, Setup()) as pair:
            pair.connect_fresh()
            app = pair.serve(0)
            app.write(0, 1)
            acknowledged = detach_without_news(pair, app, held)
            answer = pair.fire(0, "attach")
            pair.run(300)
            pair.shells[1].crash()
            pair.until(lambda: not pair.node(0).is_connected, 20_000, "the loss of the peer")
            pair.until(partial(answered, answer), 20_000, "the answer")
            assert disks(pair, 0)[0] == (_D.DISKLESS if acknowledged else _D.INCONSISTENT)
            assert acknowledged == (answer.error is not None)
            assert app.do("read", BLOCK) != 0
            pair.start(1)
            pair.run(3000)
            find_together(pair, app)


def test_peer_loses_its_disk_while_the_older_one_is_negotiated() -> None:
    require_sim()
    met = 0
    for step in range(40):
        with Cluster(SEED, Setup()) as pair:
            pair.connect_fresh()
            app = pair.serve(0)
            pair.ask(0, "detach")
            app.write(1)
            answer = pair.fire(0, "attach")
            pair.run(step)
            lost = pair.fire(1, "detach", force=True)
            pair.until(partial(answered, answer, lost), 20_000, "the answers")
            pair.run(100)
            good = _D.UP_TO_DATE in disks(pair, 0)
            assert good == (app.do("read", BLOCK) == 0)
            if good:  # the resync was over
                pair.check_equal()
            met += answer.error is not None and "has lost its disk" in str(answer.error)
    assert met


def lose_own_disk(pair: Cluster, app: App) -> None:
    pair.shells[0].data.fail_next(pair.world.lib.RE_SIM_OP_READ)
    app.submit("read", 7 * BLOCK)
    pair.until(lambda: disks(pair, 0)[0] == _D.DISKLESS, 5000, "the disk is given up")


@pytest.mark.parametrize("protocol", [1, 2], ids="AB")
def test_disk_fails_when_the_peer_may_lack_what_was_acknowledged(protocol: int) -> None:
    """The link is dead already and nobody knows it: what comes back is older than what applications have read."""
    require_sim()
    with Cluster(SEED, Setup(net=replace(QUICK_NET, protocol=protocol), external=True)) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        app.write(1)
        pair.run(100)
        if protocol == 1:
            pair.cut(silent=True)
            app.write(1)
        else:
            pair.shells[1].data.hold()
            app.write(1)  # in the peer's memory
            pair.shells[1].power_off()
        lose_own_disk(pair, app)
        pair.until(lambda: not pair.node(0).is_connected, 20_000, "the loss of the peer")
        if protocol == 1:
            pair.heal()
        else:
            pair.shells[1].data.release()
            pair.restart(1)
        pair.until(lambda: "may lack" in pair.node(0).reason, 20_000, "the refusal")
        assert app.do("read", BLOCK) != 0
        find_together(pair, app)
        assert pair.serve(0).do("read", BLOCK) == 0


def test_disk_fails_when_the_peer_has_everything() -> None:
    require_sim()
    for protocol in (1, 2, 3):
        with Cluster(SEED, Setup(net=replace(QUICK_NET, protocol=protocol), external=True)) as pair:
            pair.connect_fresh()
            app = pair.serve(0)
            app.write(1)
            pair.run(100)
            lose_own_disk(pair, app)
            op = app.submit("write", 2 * BLOCK)
            pair.world.lib.re_sim_net_reset(pair.world.sim, 0, 1)
            pair.until(lambda c=pair: not c.node(0).is_connected, 20_000, "the loss of the peer")
            pair.until(lambda c=pair: c.connected, 20_000, "the connection")
            pair.run(10)
            assert pair.op(op).state and app.do("read", BLOCK) == 0
