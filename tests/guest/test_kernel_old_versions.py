# SPDX-License-Identifier: Apache-2.0
"""Old protocol versions: a relay between our node and the kernel's DRBD 8.4 lowers what both offer."""

from __future__ import annotations

import os

import pytest

from tests.lib.interop import LINK_LOST, MIB, PairMaker

ALL = [86, 89, 94, 95, 96, 99, 100, 101]
QUICK = (86,)
VERSIONS = [pytest.param(v, marks=[] if v in QUICK else [pytest.mark.interop]) for v in ALL]
DISKLESS = r"read-only|Remote failed"


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_version_connects_replicates_flushes_resyncs_and_parts(make_pair: PairMaker, version: int) -> None:
    protocol = "CAB"[ALL.index(version) % 3]
    pair = make_pair(protocol=protocol, relay={"version_max": version}, allowed=LINK_LOST)
    pair.our_primary()
    assert f"Agreed network protocol version {version}" in pair.kernel.log()

    with pair.ours.client() as client:
        for n, size in enumerate((512, 4096, 32768, 65536, 131072, MIB)):
            client.write(n * MIB, os.urandom(size))
        client.write(8 * MIB, os.urandom(8192), fua=True)
        client.zero(9 * MIB, MIB)
        client.flush()
        pair.wait_equal()

        pair.ours.call("disconnect")
        pair.wait_kernel(cstate="WFConnection")
        client.write(12 * MIB, os.urandom(2 * MIB))
        pair.ours.call("connect")
        pair.wait_in_sync()
        client.write(15 * MIB, os.urandom(MIB))
    pair.our_secondary()
    pair.wait_kernel(peer_role="Secondary")
    pair.wait_equal()

    pair.kernel.adm("primary")
    pair.kernel.write(16 * 1024, 4096, block_kib=1024, flush=True)
    pair.kernel.adm("disconnect")
    pair.wait_ours(connection="WFConnection|Unconnected")
    pair.kernel.write(20 * 1024, 2048)
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    pair.wait_equal()
    pair.compare()
