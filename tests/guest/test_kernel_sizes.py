# SPDX-License-Identifier: Apache-2.0
"""Big requests between our node and the kernel's, and devices that change their size."""

from __future__ import annotations

import os

import pytest

from tests.lib.interop import MIB, KernelPair, PairMaker

BIG = 320 * MIB
SMALL, LARGE = 32 * MIB, 48 * MIB


def grow_kernels_disk(pair: KernelPair) -> None:
    kernel = pair.kernel
    kernel.guest.run(f"truncate -s {LARGE} {kernel.backing} && losetup -c {kernel.disk}")


def wait_size(pair: KernelPair, size_bytes: int) -> None:
    def holds() -> bool:
        sectors = pair.kernel.guest.run(f"cat /sys/block/drbd{pair.kernel.minor}/size").out
        return int(sectors) * 512 == pair.ours.size_bytes == size_bytes

    pair.wait(holds, f"{size_bytes} bytes on both")


@pytest.mark.parametrize(
    ("primary", "asked"),
    [
        ("ours", "ours"),
        ("kernel", "kernel"),
        pytest.param("ours", "kernel", marks=pytest.mark.interop),
        pytest.param("kernel", "ours", marks=pytest.mark.interop),
    ],
)
def test_device_grows_online(make_pair: PairMaker, primary: str, asked: str) -> None:
    pair = make_pair(can_discard=True, our_bytes=SMALL, kernel_bytes=SMALL)
    if primary == "ours":
        pair.our_primary()
    else:
        pair.kernel_primary()
    before = pair.ours.size_bytes
    os.truncate(pair.ours.disk, LARGE)
    grow_kernels_disk(pair)
    if asked == "ours":
        assert pair.ours.call("resize")["has_changed"]
    else:
        pair.kernel.adm("resize")
    after = before + LARGE - SMALL
    wait_size(pair, after)
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == (after - before) // 1024
    if primary == "ours":
        with pair.ours.client() as client:
            client.write(after - MIB, os.urandom(MIB))
            client.flush()
    else:
        pair.kernel.write(after // 1024 - 1024, 1024)
    pair.compare()
    pair.reconnect_quietly()
    assert pair.ours.size_bytes == after


@pytest.mark.interop
def test_peer_follows_later_when_only_one_disk_grew(make_pair: PairMaker) -> None:
    pair = make_pair(can_discard=True, our_bytes=SMALL, kernel_bytes=SMALL)
    pair.our_primary()
    before = pair.ours.size_bytes
    os.truncate(pair.ours.disk, LARGE)
    assert not pair.ours.call("resize")["has_changed"]
    wait_size(pair, before)
    grow_kernels_disk(pair)
    pair.kernel.adm("-- --assume-clean resize")
    wait_size(pair, before + LARGE - SMALL)
    assert pair.kernel.log().count("Began resync") == 1, "only the initial one"
    pair.reconnect_quietly()


@pytest.mark.interop
def test_size_by_order_shrinks_and_grows_again(make_pair: PairMaker) -> None:
    pair = make_pair(can_discard=True, our_bytes=SMALL, kernel_bytes=SMALL)
    pair.our_primary()
    before = pair.ours.size_bytes
    less = 20 * MIB
    pair.ours.call("resize", size_sectors=less // 512, force=True)
    wait_size(pair, less)
    pair.compare()
    pair.ours.call("resize", size_sectors=before // 512)
    wait_size(pair, before)
    pair.wait_in_sync()
    pair.compare()


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
