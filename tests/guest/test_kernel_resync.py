# SPDX-License-Identifier: Apache-2.0
"""Resync with the kernel's DRBD 8.4: digests, holes, pauses, full syncs by order, settings, in both directions."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.lib.interop import DISK_BYTES, LINK_LOST, MIB, KernelPair, PairMaker

SLOW = "4M"


def counters(pair: KernelPair) -> dict[str, Any]:
    found: dict[str, Any] = pair.ours.status()["volumes"][0]["counters"]
    return found


def kernel_equal_percent(pair: KernelPair) -> str:
    """What the kernel says about its last resync with digests."""
    said = [line for line in pair.kernel.log().splitlines() if "had equal checksums" in line or "% equal" in line]
    return said[-1] if said else ""


def our_data(pair: KernelPair, blocks: int = 512) -> None:
    with pair.ours.client() as client:
        client.write(0, os.urandom(blocks * 4096))
        client.flush()


# ---- digests ----


@pytest.mark.interop
@pytest.mark.parametrize("algorithm", ["md5", "xxhash64"])
def test_kernel_target_asks_us_with_digests(make_pair: PairMaker, algorithm: str) -> None:
    pair = make_pair(net=f"csums-alg {algorithm};")
    pair.our_primary()
    our_data(pair)
    pair.kernel.adm("invalidate")
    pair.wait_in_sync()
    after = counters(pair)
    assert after["resync_equal_bits"] == after["resync_total_bits"] > 1000
    assert after["resync_payload_bytes"] == 0
    assert "100" in kernel_equal_percent(pair)
    pair.compare()


@pytest.mark.parametrize("algorithm", ["crc32c", pytest.param("xxhash64", marks=pytest.mark.interop)])
def test_we_ask_the_kernel_with_digests_and_get_what_differs(make_pair: PairMaker, algorithm: str) -> None:
    pair = make_pair(net=f"csums-alg {algorithm};", allowed=LINK_LOST)
    pair.kernel_primary()
    pair.kernel.write(0, 2048)
    pair.wait_in_sync()
    pair.ours.close()
    with pair.ours.disk.open("r+b") as file:
        file.seek(100 * 4096)
        file.write(os.urandom(4096))
    pair.ours.start()
    pair.wait_in_sync()
    pair.ours.call("invalidate")
    pair.wait_in_sync()
    after = counters(pair)
    assert 0 < after["resync_payload_bytes"] <= 64 * 1024
    assert after["resync_equal_bits"] * 4096 >= after["resync_total_bits"] * 4096 - after["resync_payload_bytes"]
    pair.compare()


# ---- holes ----


def test_kernel_target_that_asks_thin_gets_holes_from_us(make_pair: PairMaker) -> None:
    pair = make_pair(can_discard=True, disk="rs-discard-granularity 65536;")
    pair.our_primary()
    with pair.ours.client() as client:
        client.write(MIB, os.urandom(MIB))
        client.write(20 * MIB, os.urandom(4096))
    pair.kernel.adm("invalidate")
    pair.wait_in_sync()
    after = counters(pair)
    assert after["resync_deallocated_bits"] * 4096 > 28 * MIB
    assert after["resync_payload_bytes"] < 4 * MIB
    pair.compare()


def test_kernel_source_tells_us_its_zeroes_and_our_file_stays_sparse(make_pair: PairMaker) -> None:
    pair = make_pair(can_discard=True, disk="rs-discard-granularity 65536;")
    pair.kernel_primary()
    pair.kernel.write(1024, 1024)
    pair.ours.call("invalidate")
    pair.wait_in_sync()
    after = counters(pair)
    assert after["resync_deallocated_bits"] * 4096 > 28 * MIB
    assert after["resync_payload_bytes"] < 4 * MIB
    assert pair.ours.disk.stat().st_blocks * 512 < DISK_BYTES // 4
    pair.compare()


# ---- pauses ----


def test_pause_of_ours_holds_the_kernels_resync_in_both_directions(make_pair: PairMaker) -> None:
    pair = make_pair(rate=SLOW)
    pair.up()
    pair.wait_connected()
    pair.ours.call("primary", force=True)
    pair.wait_kernel(cstate="SyncTarget")
    pair.ours.call("pause-sync")
    pair.wait_kernel(cstate="PausedSyncT")
    pair.wait_ours(replication="PausedSyncS")
    assert "p" in pair.kernel.flags()
    pair.ours.call("resume-sync")
    pair.wait_kernel(cstate="SyncTarget|Connected")
    pair.kernel.adm("pause-sync")
    pair.wait_ours(replication="PausedSyncS|Connected")
    pair.kernel.adm("resume-sync")
    pair.kernel.adm("disk-options --resync-rate=400M")
    pair.wait_in_sync()

    pair.ours.call("secondary")
    pair.kernel.adm("disk-options --resync-rate=4M")
    pair.ours.call("pause-sync")
    pair.ours.call("invalidate")
    pair.wait_ours(replication="PausedSyncT", disk="Inconsistent")
    pair.wait_kernel(cstate="PausedSyncS")
    pair.ours.call("resume-sync")
    pair.wait_ours(replication="SyncTarget")
    pair.kernel.adm("pause-sync")
    pair.wait_ours(replication="PausedSyncT")
    assert pair.ours.status()["volumes"][0]["resync_suspended"] == ["peer"]
    pair.kernel.adm("resume-sync")
    pair.ours.call("disk-options", resync_rate_kib=400 << 10)
    pair.wait_in_sync()
    pair.compare()


# ---- full syncs by order, settings ----


def test_full_sync_by_order_of_either_side_in_both_directions(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.our_primary()
    our_data(pair)
    pair.our_secondary()
    total = pair.ours.size_bytes // 4096
    for order, target in (
        (lambda: pair.ours.call("invalidate"), "ours"),
        (lambda: pair.ours.call("invalidate-remote"), "kernel"),
        (lambda: pair.kernel.adm("invalidate"), "kernel"),
        (lambda: pair.kernel.adm("invalidate-remote"), "ours"),
    ):
        order()
        pair.wait_in_sync()
        assert counters(pair)["resync_total_bits"] == total, target
    pair.compare()


def test_kernel_takes_over_our_settings_and_we_its(make_pair: PairMaker) -> None:
    pair = make_pair(rate="1M")
    pair.up()
    pair.wait_connected()
    pair.ours.call("primary", force=True)
    pair.wait_kernel(cstate="SyncTarget")
    pair.ours.call("disk-options", resync_rate_kib=300 << 10)  # the kernel sets the pace
    pair.wait_in_sync()
    pair.kernel.adm("disk-options --resync-rate=77K --c-max-rate=500K")
    pair.wait(
        lambda: pair.ours.status()["volumes"][0]["resync_options"]["resync_rate_kib"] == 77, "the kernel's settings"
    )
    pair.compare()


def test_our_full_sync_from_the_kernel_goes_on_where_it_was_cut(make_pair: PairMaker) -> None:
    pair = make_pair(rate="8M", allowed=LINK_LOST)
    pair.kernel_primary()
    pair.kernel.write(0, 4096)
    pair.ours.call("invalidate")
    pair.wait(lambda: 0 < pair.kernel.state().out_of_sync_kib < 30 * 1024, "some of it done")
    pair.interrupt_ours()
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() < 31 * 1024
    pair.compare()


def test_kernel_changes_the_digest_while_connected(make_pair: PairMaker) -> None:
    pair = make_pair(net="csums-alg md5;")
    pair.our_primary()
    our_data(pair)
    pair.kernel.adm("net-options --csums-alg=sha1")
    pair.wait(lambda: 'csums-alg "sha1"' in pair.ours.log(), "the kernel's digest")
    pair.kernel.adm("invalidate")
    pair.wait_in_sync()
    after = counters(pair)
    assert after["resync_equal_bits"] == after["resync_total_bits"] > 1000
    pair.compare()
