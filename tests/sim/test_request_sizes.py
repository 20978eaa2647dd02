# SPDX-License-Identifier: Apache-2.0
"""Requests of every size that NBD knows, towards peers that know less."""

from __future__ import annotations

import pytest

from repl.drbd.packets import Packet
from repl.drbd.uuids import Feature
from repl.node import handshake
from tests.lib.tools import require_sim
from tests.sim.cluster import Cluster, Setup
from tests.sim.world import MIB

BIG = 40 * MIB
ALL = int(Feature.KERNEL)


def sent(pair: Cluster, packet: Packet) -> int:
    return int(pair.world.lib.re_sim_packets_sent(pair.world.sim, 0, packet))


@pytest.mark.parametrize(
    ("missing", "trims", "zeroes", "data"),
    [
        (Feature(0), 1, 1, 0),
        (Feature.TRIM, 0, 2, 0),
        (Feature.WSAME, 8, 8, 0),
        (Feature.WZEROES, 1, 0, 32),
        (Feature.WSAME | Feature.WZEROES, 8, 0, 32),
        (Feature.TRIM | Feature.WZEROES, 0, 0, 64),
    ],
)
def test_trim_and_zeroes_of_any_length_reach_every_peer(
    monkeypatch: pytest.MonkeyPatch, missing: Feature, trims: int, zeroes: int, data: int
) -> None:
    require_sim()
    monkeypatch.setattr(handshake, "OFFERED_FEATURES", handshake.OFFERED_FEATURES & ~int(missing))
    with Cluster(3, Setup(disk_bytes=BIG, partial_ppm=0, tiny_ppm=0, write_max_us=50)) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        for first in range(0, 34, 2):
            assert app.do("write", first * MIB, 4096) == 0
        before = sent(pair, Packet.DATA)
        assert app.do("zero", 0, 32 * MIB) == 0
        assert app.do("trim", MIB, 32 * MIB) == 0
        assert app.do("flush") == 0
        counts = sent(pair, Packet.TRIM), sent(pair, Packet.ZEROES), sent(pair, Packet.DATA) - before
        assert counts == (trims, zeroes, data)
        app.stop()
        pair.check_idle_pair()


def test_parts_of_a_resync_time_zero_clear_only_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    require_sim()
    monkeypatch.setattr(handshake, "OFFERED_FEATURES", handshake.OFFERED_FEATURES & ~int(Feature.WSAME))
    with Cluster(4, Setup(disk_bytes=BIG, partial_ppm=0, tiny_ppm=0)) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        pair.ask(1, "disconnect")
        for first in range(0, 34, 2):
            assert app.do("write", first * MIB, 4096) == 0
        pair.ask(1, "connect")
        pair.until(lambda: pair.connected, 20_000, "the connection")
        assert app.do("zero", 0, 32 * MIB) == 0
        pair.until(lambda: pair.in_sync, 60_000, "in sync")
        app.stop()
        pair.check_idle_pair()


@pytest.mark.parametrize("length", [32 * MIB, 32 * MIB - 512, 3 * MIB + 512])
def test_large_reads_and_writes_are_one_request_for_the_client(length: int) -> None:
    require_sim()
    with Cluster(5, Setup(disk_bytes=BIG, partial_ppm=0, tiny_ppm=0, buffer_bytes=4 * MIB, write_max_us=50)) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        assert app.do("write", 512, length, ms=120_000) == 0
        assert app.do("read", 512, length, ms=120_000) == 0
        pair.ask(0, "detach")
        assert app.do("read", 0, length, ms=120_000) == 0
        pair.ask(0, "attach")
        pair.until(lambda: pair.in_sync, 60_000, "in sync")
        app.stop()
        pair.check_idle_pair()
