# SPDX-License-Identifier: Apache-2.0
"""Our node against the kernel's DRBD 8.4, in both roles, over a tap."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repl.errors import ReplError
from tests.lib.guest import CommandFailed
from tests.lib.interop import KernelLab, KernelPair
from tests.lib.tools import find_tool, require

MIB = 1 << 20
LINK_LOST = r"PingAck did not arrive|sock was|error receiving|meta connection shut down"


@pytest.fixture(scope="module")
def lab() -> Iterator[KernelLab]:
    lab = KernelLab()
    try:
        yield lab
    finally:
        lab.close()


class PairMaker:
    """Makes the pair of a test."""

    def __init__(self, lab: KernelLab, folder: Path) -> None:
        self._lab = lab
        self._folder = folder
        self.pair: KernelPair | None = None
        self.allowed = ""

    def __call__(self, *, allowed: str = "", **options: Any) -> KernelPair:
        """``options`` of KernelPair; ``allowed``: complaints in the kernel's log that belong to the test."""
        self.allowed = allowed
        self.pair = KernelPair(self._lab, self._folder, **options)
        return self.pair


@pytest.fixture
def make_pair(lab: KernelLab, tmp_path: Path) -> Iterator[PairMaker]:
    """At the end both sides are taken down, and the kernel must not have complained."""
    maker = PairMaker(lab, tmp_path)
    try:
        yield maker
    finally:
        complaints = []
        if maker.pair is not None:
            print(maker.pair.report())
            complaints = maker.pair.kernel.complaints(allowed=maker.allowed)
            maker.pair.close()
    assert complaints == []


# ---- the kernel is Primary ----


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


def test_kernel_primary_writes_while_it_resyncs_us(make_pair: PairMaker) -> None:
    pair = make_pair(disk="resync-rate 8M;")
    pair.up()
    pair.wait_connected()
    pair.kernel.adm("primary --force")
    pair.kernel.load_start()
    pair.wait_kernel(cstate="SyncSource")
    pair.wait_in_sync()
    pair.kernel.load_stop()
    pair.compare()


def test_resync_towards_us_goes_on_where_it_was_interrupted(make_pair: PairMaker) -> None:
    pair = make_pair(disk="resync-rate 4M;")
    pair.up()
    pair.wait_connected()
    pair.kernel.adm("primary --force")
    pair.wait(lambda: 0 < pair.kernel.state().out_of_sync_kib < 24 * 1024, "a quarter done")
    pair.kernel.adm("disconnect")
    pair.wait_ours(connection="WFConnection", disk="Inconsistent")
    pair.kernel.write(100, 40, block_kib=4)
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() < 26 * 1024
    pair.compare()


def test_kernel_primary_that_lost_its_disk_reads_and_writes_ours(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.kernel.write(0, 256)
    pair.kernel.adm("detach")
    pair.wait_ours(peer_disk="Diskless")
    device = pair.kernel.device
    pair.kernel.write(2048, 64, block_kib=4)
    read = pair.kernel.guest.run(f"dd if={device} iflag=direct bs=64K count=64 2>/dev/null | sha256sum").out.split()[0]
    assert read == pair.ours.digest(64 * 65536)
    pair.kernel.adm("attach")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 4096  # the extent that was hot in its activity log
    pair.compare()


# ---- we are Primary ----


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


def test_our_primary_zeroes_and_trims_ranges_on_the_kernels_disk(make_pair: PairMaker) -> None:
    pair = make_pair(can_discard=True)
    pair.our_primary()
    with pair.ours.client() as client:
        client.write(0, os.urandom(8 * MIB))
        client.zero(MIB, 2 * MIB)
        client.trim(4 * MIB, MIB)
        client.zero(6 * MIB + 512, 1024)
        client.flush()
        assert client.read(MIB, 2 * MIB) == bytes(2 * MIB)
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


def test_our_primary_writes_while_it_resyncs_the_kernel(make_pair: PairMaker) -> None:
    pair = make_pair(disk="resync-rate 8M;")
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
    pair = make_pair(disk="resync-rate 4M;")
    pair.up()
    pair.wait_connected()
    pair.ours.call("primary", force=True)
    pair.wait(lambda: 0 < pair.kernel.state().out_of_sync_kib < 24 * 1024, "a quarter done")
    pair.ours.call("disconnect")
    pair.wait_kernel(cstate="WFConnection", disk="Inconsistent")
    with pair.ours.client() as client:
        client.write(0, os.urandom(65536))
    pair.ours.call("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() < 26 * 1024
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


# ---- roles change ----


def test_roles_are_swapped_there_and_back_without_a_resync(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.our_primary()
    for turn in range(2):
        with pair.ours.client() as client:
            client.write(turn * MIB, os.urandom(65536))
        with pytest.raises(CommandFailed, match="Multiple primaries not allowed"):
            pair.kernel.adm("primary")
        pair.ours.call("secondary")
        pair.wait_kernel(peer_role="Secondary")
        pair.kernel.adm("primary")
        pair.kernel.write(4096 + turn * 1024, 64)
        pair.wait_ours(peer_role="Primary")
        with pytest.raises(ReplError, match="is Primary"):
            pair.ours.call("primary")
        pair.kernel.adm("secondary")
        pair.wait_ours(peer_role="Secondary")
        pair.ours.call("primary")
    assert pair.ours.is_in_sync
    assert pair.kernel.log().count("Began resync") == 1
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
    read = f"dd if={pair.kernel.device} iflag=direct bs=64K skip=16 count=1 2>/dev/null | sha256sum"
    before = pair.kernel.guest.run(read).out.split()[0]
    assert before == pair.kernel.sha256(data)
    pair.kernel.write(8192, 64)
    pair.ours.start()
    pair.wait_in_sync()
    assert pair.ours.status()["role"] == "Secondary"
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


# ---- options ----


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
def test_nodes_with_the_same_secret_connect(make_pair: PairMaker, algorithm: str) -> None:
    pair = make_pair(net=f'cram-hmac-alg {algorithm}; shared-secret "between us";')
    pair.up()
    pair.wait_connected()
    assert pair.kernel.state().cstate == "Connected"


def test_nodes_with_different_secrets_both_give_up(make_pair: PairMaker) -> None:
    pair = make_pair(
        net='cram-hmac-alg sha1; shared-secret "ours";',
        other_net='cram-hmac-alg sha1; shared-secret "theirs";',
        allowed="uthentication|HMAC",
    )
    pair.up()
    pair.wait_ours(connection="StandAlone")
    assert "Authentication" in pair.ours.status()["reason"]
    pair.wait_kernel(cstate="StandAlone")


@pytest.mark.parametrize("protocol", ["A", "B"])
def test_protocols_a_and_b_replicate_both_ways(make_pair: PairMaker, protocol: str) -> None:
    pair = make_pair(protocol=protocol)
    pair.kernel_primary()
    pair.kernel.write(0, 2048, flush=True)
    pair.kernel.adm("secondary")
    pair.wait_ours(peer_role="Secondary")
    pair.ours.call("primary")
    with pair.ours.client() as client:
        for n in range(100):
            client.write(4 * MIB + n * 8192, os.urandom(8192))
        client.zero(6 * MIB, MIB)
        client.flush()
    pair.ours.call("secondary")
    pair.compare()


def test_nodes_with_different_protocols_both_say_so(make_pair: PairMaker) -> None:
    pair = make_pair(protocol="C", other_net="protocol A;", allowed="incompatible|error receiving ReportProtocol")
    pair.up()
    pair.wait_ours(connection="StandAlone")
    assert "protocol" in pair.ours.status()["reason"]
    pair.wait_kernel(cstate="StandAlone")


def test_bitmaps_without_run_length_coding_are_exchanged(make_pair: PairMaker) -> None:
    pair = make_pair(net="use-rle no;")
    pair.kernel_primary()
    pair.kernel.adm("disconnect")
    pair.kernel.write(1000, 64, block_kib=4)
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 64
    pair.kernel.adm("secondary")
    pair.wait_ours(peer_role="Secondary")
    pair.ours.call("primary")
    pair.ours.call("disconnect")
    with pair.ours.client() as client:
        client.write(MIB, os.urandom(8192))
    pair.ours.call("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 8
    pair.compare()


# ---- generations ----


def test_initial_sync_is_skipped_by_our_order(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.up()
    pair.wait_connected()
    pair.ours.call("new-current-uuid", clear_bitmap=True)
    pair.wait_in_sync()
    pair.reconnect_quietly()
    assert "Began resync" not in pair.kernel.log()
    pair.ours.call("primary")
    with pair.ours.client() as client:
        client.write(0, os.urandom(65536))
    pair.compare()


def test_initial_sync_is_skipped_by_the_kernels_order(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.up()
    pair.wait_connected()
    pair.kernel.guest.run(f"drbdadm -c {pair.kernel.conf} -- --clear-bitmap new-current-uuid r0")
    pair.wait_in_sync()
    pair.reconnect_quietly()
    assert "Began resync" not in pair.kernel.log()
    pair.kernel.adm("primary")
    pair.kernel.write(0, 64)
    pair.compare()


def test_split_brain_is_seen_by_both_and_ended_by_discarding_the_kernels_data(make_pair: PairMaker) -> None:
    pair = make_pair(allowed=LINK_LOST)
    pair.our_primary()
    pair.ours.call("disconnect")
    pair.wait_kernel(cstate="WFConnection")
    pair.kernel.adm("disconnect")
    with pair.ours.client() as client:
        client.write(0, os.urandom(65536))
    pair.kernel.adm("primary")
    pair.kernel.write(4096, 64)
    pair.kernel.adm("secondary")
    pair.kernel.adm("connect")
    pair.ours.call("connect")
    pair.wait_ours(connection="StandAlone")
    assert "plit" in pair.ours.status()["reason"]
    pair.wait_kernel(cstate="StandAlone")
    assert "Split-Brain detected" in pair.kernel.log()
    pair.kernel.guest.run(f"drbdadm -c {pair.kernel.conf} -- --discard-my-data connect r0")
    pair.ours.call("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 128
    pair.compare()


def test_split_brain_is_ended_by_discarding_our_data(make_pair: PairMaker) -> None:
    pair = make_pair(allowed=LINK_LOST)
    pair.kernel_primary()
    pair.kernel.adm("disconnect")
    pair.ours.call("disconnect")
    pair.kernel.write(4096, 64)
    pair.ours.call("primary")
    with pair.ours.client() as client:
        client.write(0, os.urandom(65536))
    pair.ours.call("secondary")
    pair.kernel.adm("connect")
    pair.ours.call("connect")
    pair.wait_ours(connection="StandAlone")
    pair.wait_kernel(cstate="StandAlone")
    pair.ours.call("connect", discard_my_data=True)
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 128
    pair.compare()


def test_full_sync_by_order_of_either_side(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.ours.call("invalidate")
    pair.wait(lambda: pair.kernel.log().count("Began resync as SyncSource") == 2, "a second resync")
    pair.wait_in_sync()
    pair.kernel.adm("invalidate-remote")
    pair.wait(lambda: pair.kernel.log().count("Began resync as SyncSource") == 3, "a third resync")
    pair.wait_in_sync()
    pair.kernel.adm("secondary")
    pair.wait_ours(peer_role="Secondary")
    pair.kernel.adm("invalidate")
    pair.wait(lambda: "Began resync as SyncTarget" in pair.kernel.log(), "a resync of the kernel")
    pair.wait_in_sync()
    pair.compare()


def test_kernel_that_asks_for_an_online_verify_is_refused(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.kernel.adm("verify", check=False)
    assert pair.kernel.state().is_in_sync
    pair.kernel.write(0, 64)
    pair.compare()


def test_smaller_disk_of_either_side_decides_the_size(make_pair: PairMaker) -> None:
    pair = make_pair(our_bytes=40 * MIB)
    pair.kernel_primary()
    pair.kernel.write(0, 64)
    assert pair.ours.size_bytes < 32 * MIB
    pair.compare()


def test_our_smaller_disk_decides_the_size(make_pair: PairMaker) -> None:
    pair = make_pair(our_bytes=24 * MIB)
    pair.our_primary()
    with pair.ours.client() as client:
        client.write(0, os.urandom(65536))
    assert pair.ours.size_bytes < 24 * MIB
    pair.compare()


def test_large_bitmaps_of_plain_and_coded_parts_are_exchanged(make_pair: PairMaker) -> None:
    pair = make_pair(our_bytes=1024 * MIB, kernel_bytes=1024 * MIB)
    pair.up()
    pair.wait_connected()
    pair.ours.call("new-current-uuid", clear_bitmap=True)
    pair.wait_in_sync()
    pair.ours.call("primary")
    pair.ours.call("disconnect")
    blocks = {n * 3 for n in range(2000)} | {100_000 + n for n in range(500)} | {200_000 + n * n for n in range(200)}
    with pair.ours.client() as client:
        for block in blocks:
            client.write(block * 4096, os.urandom(4096))
    pair.ours.call("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == len(blocks) * 4
    pair.compare()

    pair.ours.call("secondary")
    pair.kernel.adm("primary")
    pair.kernel.adm("disconnect")
    pair.kernel.write_blocks(sorted(blocks))
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == len(blocks) * 4
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


def test_kernel_that_pauses_a_resync_towards_us_resumes_it(make_pair: PairMaker) -> None:
    pair = make_pair(disk="resync-rate 8M;")
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


def test_kernel_that_pauses_a_resync_from_us_resumes_it(make_pair: PairMaker) -> None:
    pair = make_pair(disk="resync-rate 8M;")
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


def test_kernel_that_changes_options_while_connected_stays_connected(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.kernel.guest.run(f"sed -i 's/resync-rate 400M/resync-rate 300M/; s/protocol C;/protocol C; ping-int 5;/' "
                          f"{pair.kernel.conf}")  # fmt: skip
    pair.kernel.adm("adjust")
    pair.kernel.write(0, 64)
    assert pair.ours.is_in_sync
    pair.compare()
