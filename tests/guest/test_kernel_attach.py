# SPDX-License-Identifier: Apache-2.0
"""Disks are detached, attached, replaced and fail while our node and the kernel's are connected."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import pytest

from repl import config
from repl.daemon.disks import open_disk
from repl.drbd.uuids import Uuids
from repl.errors import ReplError
from repl.node.disk import find_superblock
from tests.lib.guest import CommandFailed
from tests.lib.interop import LINK_LOST, MIB, PairMaker


@pytest.mark.interop
def test_our_secondary_detaches_and_attaches_again(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.ours.call("detach")
    pair.wait_kernel(disk="UpToDate", peer_disk="Diskless", cstate="Connected")
    pair.kernel.write(1000, 64, block_kib=4)
    assert pair.kernel.state().out_of_sync_kib == 64
    pair.ours.call("attach")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 64
    pair.compare()


def test_our_disk_leaves_and_comes_back_and_nothing_differs(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.kernel.adm("secondary")
    for _ in range(2):
        pair.ours.call("detach")
        pair.wait_kernel(peer_disk="Diskless", cstate="Connected")
        pair.ours.call("attach")
        pair.wait_in_sync()
    pair.compare()


@pytest.mark.interop
def test_what_the_kernel_sent_before_our_disk_left_is_no_answer_to_its_return(make_pair: PairMaker) -> None:
    """It says that both are UpToDate, and comes late: behind data on a slow link (decision 0105)."""
    pair = make_pair(protocol="A", net="sndbuf-size 64k; rcvbuf-size 64k;", relay={"bytes_per_second": 0},
                     allowed=LINK_LOST)  # fmt: skip
    pair.kernel_primary()
    pair.reconnect_quietly()  # nothing differs in what each has told the other
    for relay in pair.relays:
        relay.bytes_per_second = 20_000
    pair.kernel.write(0, 64)  # the relay takes all of it at once, and what follows
    pair.kernel.adm("pause-sync")
    pair.ours.call("detach")
    pair.wait_kernel(peer_disk="Diskless")
    pair.kernel.write(1024, 64)
    pair.ours.call("attach")
    assert "Negotiating -> UpToDate" not in pair.ours.log()
    for relay in pair.relays:
        relay.bytes_per_second = 0
    pair.kernel.adm("resume-sync")
    pair.wait_in_sync()
    pair.compare()


def test_our_primary_without_a_disk_works_on_the_kernels(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.our_primary()
    with pair.ours.client() as client:
        client.write(MIB, b"before" * 2048)
        pair.ours.call("detach")
        pair.wait_kernel(disk="UpToDate", peer_disk="Diskless", cstate="Connected")
        assert client.read(MIB, 12288) == b"before" * 2048
        client.write(2 * MIB, b"behind" * 2048)
        client.zero(3 * MIB, MIB)
        client.flush()
        assert client.read(2 * MIB, 12288) == b"behind" * 2048
        with pytest.raises(CommandFailed):  # it would take the only data
            pair.kernel.adm("detach")
        with pytest.raises(CommandFailed):
            pair.kernel.adm("disconnect")
        pair.ours.call("attach")
        pair.wait_in_sync()
    pair.compare()


def test_kernels_secondary_detaches_and_attaches_again(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.our_primary()
    pair.kernel.adm("detach")
    pair.wait_ours(peer_disk="Diskless", replication="Connected")
    with pair.ours.client() as client:
        client.write(4 * MIB, os.urandom(65536))
        client.flush()
    pair.kernel.adm("attach")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 64
    pair.compare()


def test_kernels_primary_without_a_disk_works_on_ours(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.kernel.write(0, 256)
    pair.kernel.adm("detach")
    pair.wait_ours(peer_disk="Diskless", replication="Connected")
    pair.kernel.write(2048, 512, block_kib=1024, flush=True)
    digest = pair.kernel.guest.run(f"dd if={pair.kernel.device} iflag=direct bs=1M count=4 2>/dev/null | sha256sum").out
    with pair.ours.disk.open("rb") as file:
        assert digest.split()[0] == hashlib.sha256(file.read(4 * MIB)).hexdigest()
    for verb in ("detach", "disconnect"):
        with pytest.raises(ReplError, match="only good data|No UpToDate|refused"):
            pair.ours.call(verb)
    pair.kernel.adm("attach")
    pair.wait_in_sync()
    pair.compare()


def test_our_replaced_disk_is_filled_completely(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.kernel.write(0, 512)
    pair.ours.call("detach")
    size = pair.ours.disk.stat().st_size
    os.truncate(pair.ours.disk, 0)
    os.truncate(pair.ours.disk, size)
    pair.ours.create_metadata()
    pair.ours.call("attach")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == pair.ours.size_bytes // 1024
    pair.compare()


def test_kernels_replaced_disk_is_filled_completely(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.our_primary()
    pair.kernel.adm("detach")
    pair.kernel.guest.run(f"dd if=/dev/zero of={pair.kernel.disk} bs=1M 2>/dev/null; sync", check=False)
    pair.kernel.adm("create-md --force")
    pair.kernel.adm("attach")
    pair.wait_in_sync()
    pair.compare()


def test_our_strange_disk_is_refused_at_once_although_the_kernel_says_nothing(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.kernel.write(0, 64)
    pair.ours.call("detach")
    view = config.resource_for_node(config.load(pair.ours.conf), "r0", "here", addresses=()).volumes[0]
    disk = open_disk(view)
    try:
        block, layout = find_superblock(disk.place)
        strange = replace(block, uuids=Uuids(0x1110, 0x2220, 0x3330, 0x4440))
        disk.place.md.pwrite(layout.superblock_byte, strange.serialise())
        disk.place.md.flush()
    finally:
        disk.close()
    with pytest.raises(ReplError, match="cannot be attached"):
        pair.ours.call("attach")
    pair.wait_kernel(cstate="Connected", disk="UpToDate", peer_disk="Diskless")
    pair.kernel.write(64, 64)
    pair.ours.create_metadata()
    pair.ours.call("attach")
    pair.wait_in_sync()
    pair.compare()


def test_our_disk_comes_back_to_a_kernel_without_one(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.kernel.adm("secondary")
    pair.ours.call("detach")
    pair.kernel.adm("detach")
    pair.wait_ours(peer_disk="Diskless", replication="Connected")
    pair.ours.call("attach")
    pair.wait_ours(disk="UpToDate", peer_disk="Diskless", replication="Connected")
    pair.kernel.adm("attach")
    pair.wait_in_sync()
    pair.compare()


@pytest.mark.interop
def test_disks_leave_and_come_back_under_the_kernels_load(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.kernel.load_start()
    pair.wait_load(10)
    for _ in range(2):
        pair.ours.call("detach")
        pair.wait_load(5)
        pair.ours.call("attach")
        pair.wait_in_sync()
        pair.wait_load(5)
    pair.kernel.adm("detach")
    pair.wait_load(5)
    pair.kernel.adm("attach")
    pair.wait_in_sync()
    pair.kernel.load_stop()
    pair.compare()
