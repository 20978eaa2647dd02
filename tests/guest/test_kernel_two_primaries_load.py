# SPDX-License-Identifier: Apache-2.0
"""Our node and the kernel's DRBD 8.4 are both Primary and write to the same area for longer, also below a resync."""

from __future__ import annotations

import os

import pytest

from tests.lib.crossing import CONFLICTS, Area, CrossingWrites, check_end, promote_both, reconnect_until_flag
from tests.lib.interop import MIB, ROUNDS, KernelPair, PairMaker

NET = "allow-two-primaries yes;"
FLAGS = pytest.mark.parametrize("flag_is_ours", [True, False], ids=["flag-here", "flag-there"])
HOT, SECTORS = Area(MIB, 24576), Area(MIB, MIB, align=512, most=65536)


def ready(pair: KernelPair, *, flag_is_ours: bool) -> None:
    """In sync, Secondary both, with different data in every block, and the flag where it is to be."""
    pair.our_primary()
    with pair.ours.client() as client:
        client.write(0, os.urandom(8 * MIB))
    pair.our_secondary()
    reconnect_until_flag(pair, ours=flag_is_ours)


@pytest.mark.interop
@FLAGS
@pytest.mark.parametrize("delay_ms", [0, 5])
@pytest.mark.parametrize("area", [HOT, SECTORS], ids=["hot", "sectors"])
def test_long_load_of_both_nodes(make_pair: PairMaker, flag_is_ours: bool, delay_ms: int, area: Area) -> None:
    pair = make_pair(net=NET, relay={"delay_ms": delay_ms}, allowed=CONFLICTS)
    ready(pair, flag_is_ours=flag_is_ours)
    promote_both(pair)
    with CrossingWrites(pair, area, threads=4) as load:
        for _ in range(ROUNDS):
            load.wait_more(100)
    assert pair.ours.status()["volumes"][0]["counters"]["conflicts"] > 0
    check_end(pair)


@pytest.mark.interop
@FLAGS
@pytest.mark.parametrize("target", ["ours", "kernel"])
@pytest.mark.parametrize("digests", ["", "csums-alg crc32c;"], ids=["data", "digests"])
@pytest.mark.parametrize("delay_ms", [0, 5])
def test_resync_below_the_load_of_both_nodes(
    make_pair: PairMaker, flag_is_ours: bool, target: str, digests: str, delay_ms: int
) -> None:
    pair = make_pair(net=NET + digests, relay={"delay_ms": delay_ms}, rate="8M; c-min-rate 0", allowed=CONFLICTS)
    ready(pair, flag_is_ours=flag_is_ours)
    for number in range(ROUNDS):
        pair.ours.call("pause-sync")
        if target == "ours":
            pair.ours.call("invalidate")
            pair.wait_ours(replication="PausedSyncT", disk="Inconsistent")
        else:
            pair.kernel.adm("invalidate")
            pair.wait_ours(replication="PausedSyncS", peer_disk="Inconsistent")
        promote_both(pair)
        with CrossingWrites(pair, SECTORS if number % 2 else HOT) as load:
            load.wait_more(20)
            pair.ours.call("resume-sync")
            load.wait_more(50)
            pair.wait_in_sync(120)
            load.wait_more(20)
        check_end(pair)


@pytest.mark.interop
@FLAGS
@pytest.mark.parametrize("source", ["ours", "kernel"])
def test_verify_below_the_load_of_both_nodes(make_pair: PairMaker, flag_is_ours: bool, source: str) -> None:
    pair = make_pair(net=NET + "verify-alg xxhash64;", rate="8M; c-min-rate 0", allowed=CONFLICTS)
    ready(pair, flag_is_ours=flag_is_ours)
    promote_both(pair)
    with CrossingWrites(pair, SECTORS) as load:
        load.wait_more(20)
        if source == "ours":
            pair.ours.call("verify")
        else:
            pair.kernel.adm("verify")
        load.wait_more(50)
        pair.wait(lambda: "Online verify done" in pair.kernel.log(), "the end of the verify", 120)
        load.wait_more(20)
    assert pair.ours.status()["volumes"][0]["verify"]["ranges"] == []
    assert "Out of sync" not in pair.kernel.log()
    check_end(pair)


@pytest.mark.interop
@FLAGS
@pytest.mark.parametrize("area", [HOT, SECTORS], ids=["hot", "sectors"])
def test_our_disk_comes_and_goes_below_the_load_of_both_nodes(
    make_pair: PairMaker, flag_is_ours: bool, area: Area
) -> None:
    """Our writes wait meanwhile; the kernel's never wait for these (decision 0080)."""
    pair = make_pair(net=NET, allowed=CONFLICTS)
    ready(pair, flag_is_ours=flag_is_ours)
    promote_both(pair)
    with CrossingWrites(pair, area, threads=4) as load:
        for _ in range(ROUNDS):
            load.wait_more(20)
            pair.ours.call("detach")
            load.wait_more(20)
            pair.ours.call("attach")
            pair.wait_in_sync(120)
    check_end(pair)
