# SPDX-License-Identifier: Apache-2.0
"""Our disk has bad blocks and on-io-error pass_on, the kernel's is whole: as Primary and as Secondary.

Writes beyond a limit for the size of files fail (EFBIG), and so do reads behind the end of a file that was cut off.
"""

from __future__ import annotations

import os
import resource

import pytest

from tests.lib.interop import DISK_BYTES, LINK_LOST, MIB, KernelPair, PairMaker

GOOD_BYTES = 20 * MIB
BAD_BYTE = 24 * MIB


def fragile(make_pair: PairMaker, rate: str = "400M", policy: str = "pass_on") -> KernelPair:
    """Our metadata lies in a file of its own, which stays whole."""
    pair = make_pair(disk=f"on-io-error {policy};", allowed=LINK_LOST, rate=rate)
    ours = pair.ours
    meta = ours.disk.with_name("meta.img")
    with meta.open("wb") as file:
        file.truncate(MIB)
    text = ours.conf.read_text()
    ours.conf.write_text(text.replace(f"{ours.disk}; meta-disk internal;", f"{ours.disk}; meta-disk {meta};"))
    assert str(meta) in ours.conf.read_text()
    return pair


def break_writes(pair: KernelPair, *, broken: bool) -> None:
    assert pair.ours.process is not None
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = GOOD_BYTES if broken else resource.RLIM_INFINITY
    resource.prlimit(pair.ours.process.pid, resource.RLIMIT_FSIZE, (limit, hard))


def resync_what_is_bad(pair: KernelPair) -> None:
    pair.kernel.adm("disconnect --force", check=False)
    pair.wait_ours(connection="WFConnection|Unconnected")
    pair.kernel.adm("connect")
    pair.wait_in_sync()


@pytest.mark.interop
def test_write_error_of_our_primary_is_covered_by_the_kernel(make_pair: PairMaker) -> None:
    pair = fragile(make_pair)
    pair.our_primary()
    data = os.urandom(65536)
    with pair.ours.client() as client:
        client.write(0, os.urandom(MIB))
        break_writes(pair, broken=True)
        client.write(BAD_BYTE, data)
        client.flush()
        pair.wait_ours(disk="Inconsistent", peer_disk="UpToDate", replication="Connected")
        pair.wait_kernel(disk="UpToDate", peer_disk="Inconsistent")
        assert client.read(BAD_BYTE, len(data)) == data
        client.write(BAD_BYTE + 4096, data[:4096])
        assert client.read(BAD_BYTE + 4096, 4096) == data[:4096]
        break_writes(pair, broken=False)
        resync_what_is_bad(pair)
        assert client.read(BAD_BYTE, 8192) == data[:4096] * 2
    assert pair.kernel.resync_kib() >= 64
    pair.compare()


def test_write_error_of_our_secondary_is_resynced(make_pair: PairMaker) -> None:
    pair = fragile(make_pair)
    pair.kernel_primary()
    pair.kernel.write(0, 1024)
    break_writes(pair, broken=True)
    pair.kernel.write(BAD_BYTE // 1024, 64)
    pair.wait_kernel(cstate="Connected", disk="UpToDate", peer_disk="Inconsistent")
    pair.kernel.write(BAD_BYTE // 1024 + 32, 64)
    pair.wait_ours(disk="Inconsistent", peer_disk="UpToDate")
    break_writes(pair, broken=False)
    resync_what_is_bad(pair)
    assert 96 <= pair.kernel.resync_kib() <= 128
    pair.compare()


@pytest.mark.interop
def test_read_error_of_our_primary_is_read_from_the_kernel(make_pair: PairMaker) -> None:
    pair = fragile(make_pair)
    pair.our_primary()
    data = os.urandom(MIB)
    with pair.ours.client() as client:
        client.write(BAD_BYTE, data)
        client.flush()
        os.truncate(pair.ours.disk, GOOD_BYTES)
        assert client.read(BAD_BYTE, MIB) == data
        pair.wait_ours(disk="Inconsistent", peer_disk="UpToDate", replication="Connected")
        pair.wait_kernel(peer_disk="Inconsistent")
        os.truncate(pair.ours.disk, DISK_BYTES)
        resync_what_is_bad(pair)
        assert client.read(BAD_BYTE, MIB) == data
    assert pair.kernel.resync_kib() >= 1024
    pair.compare()


@pytest.mark.interop
def test_read_error_of_our_secondary_as_the_source_of_a_resync(make_pair: PairMaker) -> None:
    """What it cannot read stays marked, and the kernel's disk is not whole until it can."""
    pair = fragile(make_pair)
    pair.our_primary()
    data = os.urandom(MIB)
    with pair.ours.client() as client:
        client.write(BAD_BYTE, data)
        client.flush()
    pair.our_secondary()
    cut = BAD_BYTE + MIB // 2
    os.truncate(pair.ours.disk, cut)
    pair.kernel.adm("invalidate")
    bad_kib = (pair.ours.size_bytes - cut) // 1024
    pair.wait(lambda: pair.kernel.state().out_of_sync_kib == bad_kib, "all that can be read")
    assert "read error" in pair.ours.status()["volumes"][0]["disk_error"]
    assert pair.kernel.state().disk == "Inconsistent"
    assert pair.ours.digest(cut) == pair.kernel.digest(cut)
    os.truncate(pair.ours.disk, DISK_BYTES)
    pair.reconnect_quietly()
    assert pair.kernel.resync_kib() == bad_kib
    pair.compare()
