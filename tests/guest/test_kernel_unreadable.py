# SPDX-License-Identifier: Apache-2.0
"""Blocks that the source of a resync cannot read (P_NEG_RS_DREPLY): how it ends, with the kernel on either side.

Two kernel nodes (8.4.11) behave as here: docs/protocol.md.
"""

from __future__ import annotations

import os

import pytest

from tests.guest.test_kernel_our_bad_disk import fragile
from tests.guest.test_kernel_pass_on import break_block, flaky, linear, load, remove
from tests.lib.interop import DISK_BYTES, MIB, PairMaker


@pytest.mark.interop
def test_kernel_target_does_not_end_with_a_refusal(make_pair: PairMaker) -> None:
    """It goes on as SyncTarget, gets every write, and the next connection resyncs what is left."""
    pair = fragile(make_pair, rate="6M")  # every block that can be read is written before the first refusal
    pair.our_primary()
    cut = DISK_BYTES - 2 * MIB
    with pair.ours.client() as client:
        client.write(0, os.urandom(MIB))
        client.flush()
        os.truncate(pair.ours.disk, cut)
        pair.kernel.adm("invalidate")
        bad_kib = (pair.ours.size_bytes - cut) // 1024
        pair.wait(lambda: pair.kernel.state().out_of_sync_kib == bad_kib, "all that can be read")
        pair.wait(lambda: "read error" in pair.ours.status()["volumes"][0]["disk_error"], "the refusal")
        client.write(MIB, os.urandom(MIB))
        client.flush()
        kernel = pair.kernel.state()
        assert (kernel.cstate, kernel.disk, kernel.peer_disk) == ("SyncTarget", "Inconsistent", "UpToDate")
        pair.wait_ours(replication="SyncSource", disk="UpToDate", peer_disk="Inconsistent")
        assert pair.ours.digest(cut) == pair.kernel.digest(cut)
    pair.kernel.adm("disconnect --force", check=False)
    pair.wait_ours(connection="WFConnection|Unconnected")
    os.truncate(pair.ours.disk, DISK_BYTES)  # not before: the kernel may not have asked for all of it yet
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == bad_kib
    pair.compare()


@pytest.mark.interop
def test_our_target_ends_with_what_the_kernel_could_not_read(make_pair: PairMaker) -> None:
    pair = flaky(make_pair)
    pair.kernel_primary()
    pair.kernel.write(0, 4096, block_kib=1024)
    pair.kernel.adm("secondary")
    pair.wait_ours(peer_role="Secondary")
    break_block(pair)
    pair.ours.call("invalidate")
    pair.wait_ours(replication="Connected", disk="Inconsistent", peer_disk="UpToDate")
    left = pair.ours.status()["volumes"][0]["out_of_sync_bytes"]
    assert 4096 <= left <= MIB
    assert pair.kernel.state().cstate == "SyncSource", "as with a node of its own"
    load(pair, linear(pair))
    pair.reconnect_quietly()
    pair.compare()
    remove(pair)
