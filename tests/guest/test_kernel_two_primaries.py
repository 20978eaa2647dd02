# SPDX-License-Identifier: Apache-2.0
"""Both our node and the kernel's DRBD 8.4 are Primary: writes that cross on the wire end in the same content."""

from __future__ import annotations

import os

import pytest

from tests.lib.crossing import CONFLICTS, Area, CrossingWrites, check_end, promote_both, reconnect_until_flag
from tests.lib.interop import LINK_LOST, PairMaker

AREA = Area(0, 6 * 4096)  # all writes go to these blocks
WRITES = 150


@pytest.mark.parametrize("ours", [True, False], ids=["flag-here", "flag-there"])
@pytest.mark.parametrize("delay_ms", [0, pytest.param(15, marks=pytest.mark.interop)])
def test_crossing_writes_end_in_the_same_content(make_pair: PairMaker, ours: bool, delay_ms: int) -> None:
    pair = make_pair(net="allow-two-primaries yes;", relay={"delay_ms": delay_ms}, allowed=CONFLICTS)
    pair.our_primary()
    pair.our_secondary()
    reconnect_until_flag(pair, ours=ours)
    promote_both(pair)
    with CrossingWrites(pair, AREA) as load:
        load.wait_more(WRITES)
    conflicts = pair.ours.status()["volumes"][0]["counters"]["conflicts"]
    assert conflicts > 0
    check_end(pair)


@pytest.mark.interop
def test_lost_link_is_a_split_brain(make_pair: PairMaker) -> None:
    pair = make_pair(net="allow-two-primaries yes;", allowed=LINK_LOST)
    pair.our_primary()
    promote_both(pair)
    pair.lab.net.link(0, up=False)
    try:
        pair.wait_kernel(cstate="WFConnection|Unconnected")
        pair.wait_ours(connection="WFConnection|Unconnected")
    finally:
        pair.lab.net.link(0, up=True)
    pair.wait_ours(connection="StandAlone")
    assert "plit" in pair.ours.status()["reason"]
    pair.wait_kernel(cstate="StandAlone")


def test_setting_of_one_side_alone_is_refused_by_both(make_pair: PairMaker) -> None:
    refusal = "incompatible|error receiving ReportProtocol"
    pair = make_pair(net="", other_net="allow-two-primaries yes;", allowed=refusal)
    pair.up()
    pair.wait_stand_alone()
    assert "allow-two-primaries" in pair.ours.status()["reason"]
    pair.wait_kernel(cstate="StandAlone")


def test_short_window_of_two_primaries(make_pair: PairMaker) -> None:
    pair = make_pair(net="allow-two-primaries yes;")
    pair.our_primary()
    with pair.ours.client() as client:
        client.write(0, os.urandom(65536))
        pair.kernel.adm("primary")
    pair.our_secondary()
    pair.kernel.write(64, 64)
    pair.wait_kernel(role="Primary", peer_role="Secondary")
    pair.compare()
