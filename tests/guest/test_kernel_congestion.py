# SPDX-License-Identifier: Apache-2.0
"""Protocol A over a link that cannot keep up, with pull-ahead: our node and the kernel's DRBD 8.4, each as Primary."""

from __future__ import annotations

import os

from tests.lib.interop import LINK_LOST, MIB, KernelPair, PairMaker

NET = "on-congestion pull-ahead; congestion-fill 512; sndbuf-size 64k; rcvbuf-size 64k;"
SLOW = 600_000  # bytes a second


def slow_pair(make_pair: PairMaker) -> KernelPair:
    return make_pair(protocol="A", net=NET, relay={"bytes_per_second": 0})


def set_speed(pair: KernelPair, bytes_per_second: int) -> None:
    for relay in pair.relays:
        relay.bytes_per_second = bytes_per_second


def test_we_pull_ahead_of_the_kernel_and_catch_up(make_pair: PairMaker) -> None:
    pair = slow_pair(make_pair)
    pair.our_primary()
    set_speed(pair, SLOW)
    with pair.ours.client() as client:
        for n in range(96):
            client.write(n * 65536 * 2, os.urandom(65536))
    pair.wait_kernel(cstate="Behind|SyncTarget|Connected")
    set_speed(pair, 0)
    pair.wait_in_sync()
    assert "Ahead" in pair.ours.log()
    assert pair.kernel.log().count("-> Behind")
    assert pair.kernel.log().count("Behind -> SyncTarget")
    pair.compare()


def test_kernel_pulls_ahead_of_us_and_catches_up(make_pair: PairMaker) -> None:
    pair = slow_pair(make_pair)
    pair.kernel_primary()
    set_speed(pair, SLOW)
    pair.kernel.write(0, 6144)
    set_speed(pair, 0)
    pair.wait(lambda: "-> Behind" in pair.ours.log(), "us Behind")
    pair.wait(lambda: "Behind -> SyncTarget" in pair.ours.log(), "the resync")
    pair.wait_in_sync()
    assert "-> Ahead" in pair.kernel.log()
    pair.compare()


def test_link_lost_while_ahead_is_repaired_with_the_bitmap(make_pair: PairMaker) -> None:
    pair = make_pair(protocol="A", net=NET, relay={"bytes_per_second": 0}, allowed=LINK_LOST)
    pair.our_primary()
    set_speed(pair, SLOW)
    with pair.ours.client() as client:
        for n in range(64):
            client.write(n * 65536 * 2, os.urandom(65536))
        pair.wait_ours(replication="Ahead")
        pair.ours.call("disconnect", force=True)
        client.write(20 * MIB, os.urandom(65536))
    set_speed(pair, 0)
    pair.wait_kernel(cstate="WFConnection|Unconnected")
    pair.ours.call("connect")
    pair.wait_in_sync()
    pair.compare()
