# SPDX-License-Identifier: Apache-2.0
"""NBD's FAST_ZERO: only what costs less than writing zeroes, with a peer as well."""

from __future__ import annotations

import pytest

from repl.drbd.packets import Packet
from repl.drbd.states import DiskState
from repl.drbd.uuids import Feature
from repl.node import handshake
from tests.lib.tools import require_sim
from tests.sim.app import Load
from tests.sim.cluster import Cluster, Setup
from tests.sim.world import BLOCK, MIB

ENOTSUP = 95


def sent(pair: Cluster, packet: Packet) -> int:
    return int(pair.world.lib.re_sim_packets_sent(pair.world.sim, 0, packet))


def fast_zero(pair: Cluster, *, own_disk: bool = True, load: bool = False) -> int:
    app = pair.serve(0)
    app.write(*range(40))
    pair.shells[0].data.settings(no_fast_zero=0 if own_disk else 1)
    if load:
        app.load(Load(ops=100, think_max_ms=1))
    error = app.do("zero", 3 * BLOCK, 20 * BLOCK, fast=True)
    pair.until(lambda: app.is_idle, 20_000, "the load")
    pair.shells[0].data.settings(no_fast_zero=0)
    app.stop()
    return error


@pytest.mark.parametrize("load", [False, True])
def test_peer_is_told_in_one_packet(load: bool) -> None:
    require_sim()
    with Cluster(5, Setup()) as pair:
        pair.connect_fresh()
        assert fast_zero(pair, load=load) == 0
        assert sent(pair, Packet.ZEROES) >= 1
        pair.check_idle_pair()


def test_own_disk_that_is_not_fast_refuses_and_nothing_is_changed() -> None:
    require_sim()
    with Cluster(5, Setup()) as pair:
        pair.connect_fresh()
        assert fast_zero(pair, own_disk=False) == ENOTSUP
        assert sent(pair, Packet.ZEROES) == 0
        pair.check_idle_pair()


def test_peer_that_would_need_the_zeroes_as_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_sim()
    monkeypatch.setattr(handshake, "OFFERED_FEATURES", handshake.OFFERED_FEATURES & ~int(Feature.WZEROES))
    with Cluster(5, Setup()) as pair:
        pair.connect_fresh()
        data = sent(pair, Packet.DATA)
        assert fast_zero(pair) == ENOTSUP
        assert sent(pair, Packet.DATA) == data + 40
        pair.check_idle_pair()


def test_primary_without_a_disk_leaves_it_to_the_peer() -> None:
    require_sim()
    with Cluster(5, Setup()) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        app.write(*range(8))
        pair.ask(0, "detach")
        assert app.do("zero", 2 * BLOCK, BLOCK, fast=True) == 0
        pair.ask(0, "attach")
        app.stop()
        pair.check_idle_pair()


def test_own_disk_that_fails_is_detached_and_the_peer_zeroes() -> None:
    require_sim()
    with Cluster(5, Setup(disk_bytes=4 * MIB)) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        app.write(*range(8))
        pair.shells[0].data.settings(bad_offset=2 * BLOCK, bad_length=BLOCK)
        assert app.do("zero", 2 * BLOCK, BLOCK, fast=True) == 0
        pair.until(lambda: pair.state(0)[2] == DiskState.DISKLESS, 5000, "detached")
        pair.shells[0].data.heal()
        pair.ask(0, "attach")
        app.stop()
        pair.check_idle_pair()
