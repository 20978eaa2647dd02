# SPDX-License-Identifier: Apache-2.0
"""Our node is Primary, the kernel's DRBD 8.4 follows."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.lib.interop import LINK_LOST, MIB, ROUNDS, OurLoad, PairMaker
from tests.lib.tools import find_tool, require


def test_our_primary_syncs_the_kernel_and_its_writes_arrive(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.our_primary()
    pair.compare()
    with pair.ours.client() as client:
        client.write(0, os.urandom(MIB))
        client.write(5 * MIB + 512, os.urandom(512))
        client.write(6 * MIB, os.urandom(4 * MIB))
        client.write(20 * MIB, os.urandom(8192), fua=True)
        client.flush()
    pair.compare()


@pytest.mark.parametrize("can_discard", [True, False])
def test_our_primary_zeroes_and_trims_ranges_on_the_kernels_disk(make_pair: PairMaker, can_discard: bool) -> None:
    pair = make_pair(can_discard=can_discard)
    pair.our_primary()
    with pair.ours.client() as client:
        client.write(0, os.urandom(8 * MIB))
        client.zero(MIB, 2 * MIB)
        client.trim(4 * MIB, MIB)
        client.zero(6 * MIB + 512, 1024)
        client.trim(5 * MIB + 512, 9728)  # head and tail are no whole blocks: they are zeroed there
        client.trim(5 * MIB + 65536 + 1024, 512)
        client.zero(7 * MIB, 65536, fast=True)
        client.flush()
        assert client.read(MIB, 2 * MIB) == bytes(2 * MIB)
        assert client.read(7 * MIB, 65536) == bytes(65536)
    pair.compare()


def test_our_primary_takes_an_image_of_nbdcopy(make_pair: PairMaker, tmp_path: Path) -> None:
    require("nbdcopy", "mkfs.ext4")
    pair = make_pair()
    pair.our_primary()
    image = tmp_path / "fs.img"
    with image.open("wb") as file:
        file.truncate(24 * MIB)
    subprocess.run([find_tool("mkfs.ext4") or "", "-q", "-F", "-d", "/etc/default", str(image)], check=True)
    subprocess.run([find_tool("nbdcopy") or "", "--flush", str(image), pair.ours.nbd_uri], check=True, timeout=60)
    pair.compare()


def test_our_primary_parted_by_either_side_resyncs_only_what_it_wrote(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.our_primary()
    pair.kernel.adm("disconnect")
    pair.wait_ours(connection="WFConnection", peer_disk="DUnknown|Outdated")
    with pair.ours.client() as client:
        client.write(MIB, os.urandom(65536))
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 64
    pair.compare()

    pair.ours.call("disconnect")
    pair.wait_kernel(cstate="WFConnection")
    with pair.ours.client() as client:
        client.write(3 * MIB, os.urandom(131072))
        client.trim(5 * MIB, 65536)
    pair.ours.call("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 192
    pair.compare()


def test_our_primary_that_was_killed_comes_back_and_resyncs_its_activity_log(make_pair: PairMaker) -> None:
    pair = make_pair(allowed=LINK_LOST)
    pair.our_primary()
    client = pair.ours.open_client()
    for n in range(50):
        client.write(n * 8192, os.urandom(4096))
    pair.ours.kill()
    pair.wait_kernel(cstate="WFConnection|Unconnected")
    pair.ours.start()
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 4096
    pair.ours.call("primary")
    pair.compare()


def test_our_primary_resyncs_the_kernel_after_the_cable_was_pulled(make_pair: PairMaker) -> None:
    pair = make_pair(net="ping-int 1;", allowed=LINK_LOST)
    pair.our_primary()
    pair.lab.net.link(0, up=False)
    try:
        with pair.ours.client() as client:
            for n in range(20):  # the first one waits until the peer is given up
                client.write(n * 16384, os.urandom(16384))
        pair.wait_kernel(cstate="WFConnection|Unconnected")
    finally:
        pair.lab.net.link(0, up=True)
    pair.wait_in_sync()
    pair.compare()


@pytest.mark.interop
def test_our_primary_writes_while_it_resyncs_the_kernel(make_pair: PairMaker) -> None:
    pair = make_pair(rate="8M")
    pair.up()
    pair.wait_connected()
    pair.ours.call("primary", force=True)
    pair.wait_kernel(cstate="SyncTarget")
    writes = 0
    with pair.ours.client() as client:
        while not pair.ours.is_in_sync and writes < 3000:
            client.write(writes * 7919 % 6000 * 4096, os.urandom(4096))
            writes += 1
            if writes % 100 == 0:
                client.zero(writes * 7907 % 6000 * 4096, 16384)
    assert writes > 20
    pair.wait_in_sync()
    pair.compare()


def test_resync_from_us_goes_on_where_it_was_interrupted(make_pair: PairMaker) -> None:
    pair = make_pair(rate="12M")
    pair.up()
    pair.wait_connected()
    pair.ours.call("primary", force=True)
    pair.wait(lambda: 0 < pair.kernel.state().out_of_sync_kib < 30 * 1024, "some of it done")
    pair.ours.call("disconnect")
    pair.wait_kernel(cstate="WFConnection", disk="Inconsistent")
    with pair.ours.client() as client:
        client.write(0, os.urandom(65536))
    pair.ours.call("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() < 31 * 1024
    pair.compare()


def test_our_primary_goes_on_when_the_kernel_detaches_its_disk(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.our_primary()
    pair.kernel.adm("detach")
    pair.wait_ours(peer_disk="Diskless")
    with pair.ours.client() as client:
        client.write(2 * MIB, os.urandom(65536))
    pair.kernel.adm("attach")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 64
    pair.compare()


def test_kernel_whose_disk_fails_a_write_is_resynced_after_a_new_attach(make_pair: PairMaker) -> None:
    pair = make_pair(allowed=r"Local IO failed|IO ERROR")
    pair.our_primary()
    faults = "/sys/module/drbd/parameters"
    pair.kernel.guest.run(f"echo 100 >{faults}/fault_rate; echo 16 >{faults}/enable_faults")
    try:
        with pair.ours.client() as client:
            client.write(MIB, os.urandom(65536))
        pair.wait_ours(peer_disk="Diskless")
    finally:
        pair.kernel.guest.run(f"echo 0 >{faults}/enable_faults; echo 0 >{faults}/fault_rate")
    pair.kernel.adm("attach")
    pair.wait_in_sync()
    pair.compare()


@pytest.mark.interop
def test_kernel_that_pauses_a_resync_from_us_resumes_it(make_pair: PairMaker) -> None:
    pair = make_pair(rate="8M")
    pair.up()
    pair.wait_connected()
    pair.ours.call("primary", force=True)
    pair.wait_kernel(cstate="SyncTarget")
    pair.kernel.adm("pause-sync")
    pair.wait_kernel(cstate="PausedSyncT")
    with pair.ours.client() as client:
        client.write(0, os.urandom(65536))
    pair.kernel.adm("resume-sync")
    pair.wait_in_sync()
    pair.compare()


def test_our_smaller_disk_decides_the_size(make_pair: PairMaker) -> None:
    pair = make_pair(our_bytes=24 * MIB)
    pair.our_primary()
    with pair.ours.client() as client:
        client.write(0, os.urandom(65536))
    assert pair.ours.size_bytes < 24 * MIB
    pair.compare()


def test_kernel_takes_over_from_our_killed_primary_which_comes_back_as_target(make_pair: PairMaker) -> None:
    pair = make_pair(allowed=LINK_LOST)
    pair.our_primary()
    client = pair.ours.open_client()
    data = os.urandom(65536)
    client.write(MIB, data)
    pair.ours.kill()
    pair.wait_kernel(cstate="WFConnection|Unconnected")
    pair.kernel.adm("primary")
    read = f"dd if={pair.kernel.device} iflag=direct bs=64K skip=16 count=1 2>/dev/null | b2sum"
    before = pair.kernel.guest.run(read).out.split()[0]
    assert before == pair.kernel.digest_of(data)
    pair.kernel.write(8192, 64)
    pair.ours.start()
    pair.wait_in_sync()
    assert pair.ours.status()["role"] == "Secondary"
    pair.compare()


@pytest.mark.interop
def test_our_primary_whose_link_comes_and_goes_under_load_keeps_the_kernel_in_step(make_pair: PairMaker) -> None:
    pair = make_pair(net="ping-int 1;", rate="40M", allowed=LINK_LOST)
    pair.our_primary()
    ways = (pair.interrupt_ours, pair.interrupt_kernel, pair.interrupt_cable)
    with OurLoad(pair.ours) as load:
        for turn in range(ROUNDS):
            target = load.writes + 100
            pair.wait(lambda target=target: load.writes >= target, "100 writes of the load")  # type: ignore[misc]
            ways[turn % len(ways)]()
    pair.wait_in_sync()
    pair.compare()
