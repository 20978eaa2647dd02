# SPDX-License-Identifier: Apache-2.0
"""The kernel's DRBD 8.4 is Primary, our node follows."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.lib.interop import LINK_LOST, MIB, ROUNDS, PairMaker
from tests.lib.tools import find_tool, require


def test_kernel_primary_syncs_us_and_its_writes_arrive(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.compare()
    pair.kernel.write(0, 1024, flush=True)
    pair.kernel.write(5000, 12, block_kib=4)
    pair.kernel.write(20000, 4096, block_kib=1024)
    pair.compare()


def test_kernel_primary_with_a_filesystem_leaves_the_same_on_our_disk(make_pair: PairMaker, tmp_path: Path) -> None:
    require("mkfs.ext4", "e2fsck")
    pair = make_pair()
    pair.kernel_primary()
    device = pair.kernel.device
    pair.kernel.guest.run(
        f"modprobe ext4 && mkfs.ext4 -q {device} && mkdir -p /run/m && mount -o discard {device} /run/m && "
        "cp -r /etc/default /run/m && cp /bin/ls /bin/cat /run/m && sync && rm /run/m/cat && umount /run/m"
    )
    pair.compare()
    copy = tmp_path / "copy.img"
    with pair.ours.disk.open("rb") as source:
        copy.write_bytes(source.read(pair.ours.size_bytes))
    fsck = subprocess.run([find_tool("e2fsck") or "", "-fn", str(copy)], capture_output=True, text=True)
    assert fsck.returncode == 0, fsck.stdout


def test_kernel_primary_discards_and_zeroes_ranges_on_our_disk(make_pair: PairMaker) -> None:
    pair = make_pair(can_discard=True)
    pair.kernel_primary()
    pair.kernel.write(0, 8192, block_kib=1024)
    pair.kernel.guest.run(f"blkdiscard -z -o 1M -l 2M {pair.kernel.device}")
    pair.kernel.guest.run(f"blkdiscard -o 4M -l 1M {pair.kernel.device}")
    pair.compare()
    assert not any(pair.ours.disk.read_bytes()[MIB : 3 * MIB])


@pytest.mark.interop
def test_kernel_primary_parted_by_either_side_resyncs_only_what_it_wrote(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.ours.call("disconnect")
    pair.wait_kernel(cstate="WFConnection", peer_disk="DUnknown|Outdated")
    pair.kernel.write(1000, 64, block_kib=4)
    assert pair.kernel.state().out_of_sync_kib == 64
    pair.ours.call("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 64
    pair.compare()

    pair.kernel.adm("disconnect")
    pair.wait_ours(connection="WFConnection")
    pair.kernel.write(9000, 128)
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 128
    pair.compare()


def test_kernel_primary_goes_on_when_our_process_is_killed_and_resyncs_it(make_pair: PairMaker) -> None:
    pair = make_pair(allowed=LINK_LOST)
    pair.kernel_primary()
    pair.kernel.load_start()
    pair.wait_load(20)
    pair.ours.kill()
    pair.wait_kernel(cstate="WFConnection|Unconnected", peer_disk="DUnknown")
    pair.wait_load(60)
    pair.ours.start()
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() < 16 * 1024
    pair.kernel.load_stop()
    pair.compare()


@pytest.mark.interop
def test_kernel_primary_resyncs_us_after_the_cable_was_pulled(make_pair: PairMaker) -> None:
    pair = make_pair(net="ping-int 1;", allowed=LINK_LOST)
    pair.kernel_primary()
    pair.kernel.load_start()
    pair.wait_load(20)
    pair.lab.net.link(0, up=False)
    try:
        pair.wait_kernel(cstate="WFConnection|Unconnected")
        pair.wait_ours(connection="WFConnection|Unconnected")
        pair.wait_load(40)
    finally:
        pair.lab.net.link(0, up=True)
    pair.wait_in_sync()
    pair.kernel.load_stop()
    pair.compare()


@pytest.mark.interop
def test_kernel_primary_writes_while_it_resyncs_us(make_pair: PairMaker) -> None:
    pair = make_pair(rate="8M")
    pair.up()
    pair.wait_connected()
    pair.kernel.adm("primary --force")
    pair.kernel.load_start()
    pair.wait_kernel(cstate="SyncSource")
    pair.wait_in_sync()
    pair.kernel.load_stop()
    pair.compare()


def test_resync_towards_us_goes_on_where_it_was_interrupted(make_pair: PairMaker) -> None:
    pair = make_pair(rate="12M")
    pair.up()
    pair.wait_connected()
    pair.kernel.adm("primary --force")
    pair.wait(lambda: 0 < pair.kernel.state().out_of_sync_kib < 30 * 1024, "some of it done")
    pair.kernel.adm("disconnect")
    pair.wait_ours(connection="WFConnection", disk="Inconsistent")
    pair.kernel.write(100, 40, block_kib=4)
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() < 31 * 1024
    pair.compare()


def test_kernel_primary_that_lost_its_disk_reads_and_writes_ours(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.kernel.write(0, 256)
    pair.kernel.adm("detach")
    pair.wait_ours(peer_disk="Diskless")
    device = pair.kernel.device
    pair.kernel.write(2048, 64, block_kib=4)
    read = pair.kernel.guest.run(f"dd if={device} iflag=direct bs=64K count=64 2>/dev/null | b2sum").out.split()[0]
    assert read == pair.ours.digest(64 * 65536)
    pair.kernel.adm("attach")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 4096  # the extent that was hot in its activity log
    pair.compare()


@pytest.mark.interop
def test_kernel_that_pauses_a_resync_towards_us_resumes_it(make_pair: PairMaker) -> None:
    pair = make_pair(rate="8M")
    pair.up()
    pair.wait_connected()
    pair.kernel.adm("primary --force")
    pair.wait_kernel(cstate="SyncSource")
    pair.kernel.adm("pause-sync")
    pair.wait_kernel(cstate="PausedSyncS")
    pair.wait_ours(replication="PausedSyncT")
    pair.kernel.write(0, 64)
    pair.kernel.adm("resume-sync")
    pair.wait_in_sync()
    pair.compare()


def test_kernel_that_changes_options_while_connected_stays_connected(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.kernel.guest.run(f"sed -i 's/resync-rate 400M/resync-rate 300M/; s/protocol C;/protocol C; ping-int 5;/' "
                          f"{pair.kernel.conf}")  # fmt: skip
    pair.kernel.adm("adjust")
    pair.kernel.write(0, 64)
    assert pair.ours.is_in_sync
    pair.compare()


def test_kernel_that_asks_for_an_online_verify_is_refused(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.kernel.adm("verify", check=False)
    assert pair.kernel.state().is_in_sync
    pair.kernel.write(0, 64)
    pair.compare()


def test_kernels_smaller_disk_decides_the_size(make_pair: PairMaker) -> None:
    pair = make_pair(our_bytes=40 * MIB)
    pair.kernel_primary()
    pair.kernel.write(0, 64)
    assert pair.ours.size_bytes < 32 * MIB
    pair.compare()


def test_we_take_over_from_a_kernel_that_lost_power(make_pair: PairMaker) -> None:
    pair = make_pair(net="ping-int 1;")
    pair.kernel_primary()
    pair.kernel.write(1024, 1024, flush=True)
    expected = pair.kernel.digest(pair.ours.size_bytes)
    pair.kernel.guest.kill()
    pair.wait_ours(connection="WFConnection|Unconnected")
    pair.ours.call("primary")
    assert pair.ours.digest(pair.ours.size_bytes) == expected
    with pair.ours.client() as client:
        client.write(0, os.urandom(4096))


@pytest.mark.interop
def test_kernel_primary_whose_link_comes_and_goes_under_load_keeps_us_in_step(make_pair: PairMaker) -> None:
    pair = make_pair(net="ping-int 1;", rate="40M", allowed=LINK_LOST)
    pair.kernel_primary()
    pair.kernel.load_start()
    ways = (pair.interrupt_ours, pair.interrupt_process, pair.interrupt_kernel, pair.interrupt_cable)
    for turn in range(ROUNDS):
        pair.wait_load(10)
        ways[turn % len(ways)]()
    pair.wait_load(10)
    pair.kernel.load_stop()
    pair.wait_in_sync()
    pair.compare()
