# SPDX-License-Identifier: Apache-2.0
"""The kernel's disk has bad blocks and on-io-error pass_on: what we do about its write errors and read errors."""

from __future__ import annotations

import os

import pytest

from repl.errors import ReplError
from tests.lib.interop import MIB, KernelPair, PairMaker

BAD_SECTOR = 2048
BAD_BYTE = BAD_SECTOR * 512


def flaky(make_pair: PairMaker) -> KernelPair:
    """A pair whose kernel disk is a device mapper table of one line, in sync."""
    pair = make_pair(can_discard=True, rate="400M; on-io-error pass_on", allowed="I/O error|IO ERROR|read error|disk")
    kernel = pair.kernel
    name = f"flaky{kernel.minor}"
    kernel.guest.run(f"modprobe dm-mod; dmsetup create {name} --table '{linear(pair)}'")
    kernel.guest.run(f"sed -i 's,{kernel.disk};,/dev/mapper/{name};,' {kernel.conf} && dmsetup mknodes")
    return pair


def linear(pair: KernelPair) -> str:
    sectors = int(pair.kernel.guest.run(f"blockdev --getsz {pair.kernel.disk}").out)
    return f"0 {sectors} linear {pair.kernel.disk} 0"


def load(pair: KernelPair, table: str) -> None:
    name = f"flaky{pair.kernel.minor}"
    pair.kernel.guest.run(
        f"printf '{table}' | dmsetup load {name} && dmsetup suspend --noflush {name} && dmsetup resume {name}"
    )


def break_block(pair: KernelPair) -> None:
    sectors, disk = int(linear(pair).split()[1]), pair.kernel.disk
    behind = BAD_SECTOR + 8
    load(pair, f"0 {BAD_SECTOR} linear {disk} 0\\n{BAD_SECTOR} 8 error\\n"
               f"{behind} {sectors - behind} linear {disk} {behind}\\n")  # fmt: skip


def remove(pair: KernelPair) -> None:
    pair.kernel.adm("down", check=False)
    pair.kernel.guest.run(f"dmsetup remove flaky{pair.kernel.minor}", check=False)


@pytest.mark.interop
def test_write_error_of_the_kernels_disk_stops_replication_until_it_is_resynced(make_pair: PairMaker) -> None:
    pair = flaky(make_pair)
    pair.our_primary()
    with pair.ours.client() as client:
        client.write(0, os.urandom(4 * MIB))
        break_block(pair)
        client.write(BAD_BYTE, os.urandom(4096))
        pair.wait_ours(peer_disk="Inconsistent", replication="Connected")
        client.write(3 * MIB, os.urandom(8192))
        client.flush()
        assert pair.ours.status()["volumes"][0]["out_of_sync_bytes"] == 12288
        load(pair, linear(pair))
        pair.kernel.adm("disconnect")
        pair.wait_ours(connection="WFConnection|Unconnected")
        pair.kernel.adm("connect")
        pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 12
    pair.compare()
    remove(pair)


@pytest.mark.interop
def test_read_error_of_the_kernels_primary_is_read_from_us(make_pair: PairMaker) -> None:
    pair = flaky(make_pair)
    pair.kernel_primary()
    kernel = pair.kernel
    kernel.write(0, 4096, block_kib=1024)
    whole = f"dd if={kernel.device} iflag=direct bs=64K count=32 2>/dev/null | sha256sum"
    before = kernel.guest.run(whole).out
    break_block(pair)
    assert kernel.guest.run(whole).out == before
    pair.wait_kernel(disk="Inconsistent", peer_disk="UpToDate")
    pair.wait_ours(peer_disk="Inconsistent", disk="UpToDate")
    with pytest.raises(ReplError, match="only good data|refused"):
        pair.ours.call("disconnect")
    load(pair, linear(pair))
    kernel.adm("disconnect --force", check=False)
    pair.wait_ours(connection="WFConnection|Unconnected")
    kernel.adm("connect", check=False)
    pair.wait_in_sync()
    pair.compare()
    remove(pair)
