# SPDX-License-Identifier: Apache-2.0
"""Big requests between our node and the kernel's, and devices that change their size."""

from __future__ import annotations

import os

import pytest

from tests.lib.interop import MIB, PairMaker

BIG = 320 * MIB


@pytest.mark.interop
def test_large_trims_and_zeroes_of_the_kernel_reach_our_disk(make_pair: PairMaker) -> None:
    pair = make_pair(can_discard=True, our_bytes=BIG, kernel_bytes=BIG)
    pair.up()
    pair.wait_connected()
    pair.ours.call("new-current-uuid", clear_bitmap=True)
    pair.wait_in_sync()
    pair.kernel.adm("primary")
    pair.kernel.write(0, 1024, block_kib=1024)
    pair.kernel.write(200 * 1024, 1024, block_kib=1024)
    pair.kernel.guest.run(f"blkdiscard -o 4096 -l {256 * MIB - 8192} {pair.kernel.device}")
    pair.compare()
    pair.kernel.write(100 * 1024, 64)
    pair.kernel.guest.run(f"blkdiscard -z -o {64 * MIB} -l {130 * MIB} {pair.kernel.device}")
    pair.compare()


@pytest.mark.interop
def test_our_large_trims_zeroes_and_writes_reach_the_kernels_disk(make_pair: PairMaker) -> None:
    pair = make_pair(can_discard=True, our_bytes=BIG, kernel_bytes=BIG)
    pair.up()
    pair.wait_connected()
    pair.ours.call("new-current-uuid", clear_bitmap=True)
    pair.wait_in_sync()
    pair.ours.call("primary")
    with pair.ours.client() as client:
        data = os.urandom(32 * MIB)
        client.write(512, data)
        assert client.read(512, 32 * MIB) == data
        client.write(200 * MIB, data[: 8 * MIB])
        client.trim(MIB, 280 * MIB)
        client.write(64 * MIB, data[:MIB])
        client.zero(0, 300 * MIB)
        client.write(3 * MIB, data[:MIB])
        client.flush()
    pair.compare()
