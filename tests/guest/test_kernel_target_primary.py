# SPDX-License-Identifier: Apache-2.0
"""We are Primary while our disk is target of a resync from the kernel's node, and the link breaks again and again."""

from __future__ import annotations

import os

import pytest

from tests.lib.interop import LINK_LOST, MIB, PairMaker


@pytest.mark.interop
def test_our_primary_finds_its_source_again(make_pair: PairMaker) -> None:
    """Nobody else was served by it meanwhile: no refusal because of its generation (decision 0110)."""
    pair = make_pair(rate="3M", more="options { on-no-data-accessible suspend-io; }", allowed=LINK_LOST)
    pair.kernel_primary()
    pair.kernel.write(0, 4096)
    pair.kernel.adm("secondary")
    pair.wait_ours(peer_role="Secondary")
    pair.ours.call("invalidate")
    pair.wait_ours(replication="SyncTarget", disk="Inconsistent")
    pair.ours.call("primary")
    with pair.ours.client() as client:
        for turn in range(2):
            data = os.urandom(65536)
            client.write(turn * MIB, data)
            pair.interrupt_cable()
            pair.wait_ours(replication="SyncTarget|Connected", peer_disk="UpToDate")
            assert client.read(turn * MIB, len(data)) == data
        pair.wait_in_sync()
    pair.our_secondary()
    pair.compare()
