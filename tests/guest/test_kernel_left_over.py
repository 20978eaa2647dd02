# SPDX-License-Identifier: Apache-2.0
"""Equal generations, or nearly so, and blocks that differ: an Outdated disk never becomes the source."""

from __future__ import annotations

import os

import pytest

from nbd.client import NbdRequestError
from repl.errors import ReplError
from tests.lib.interop import LINK_LOST, MIB, KernelPair, PairMaker

NET = "on-congestion pull-ahead; congestion-fill 512; sndbuf-size 64k; rcvbuf-size 64k;"
SLOW = 40_000  # bytes a second


def congested(make_pair: PairMaker) -> KernelPair:
    return make_pair(protocol="A", net=NET, relay={"bytes_per_second": 0}, allowed=LINK_LOST)


def set_speed(pair: KernelPair, bytes_per_second: int) -> None:
    for relay in pair.relays:
        relay.bytes_per_second = bytes_per_second


def check_source(pair: KernelPair, good: str) -> None:
    pair.wait_in_sync()
    assert pair.ours.digest(pair.ours.size_bytes) == good
    pair.compare()


def our_outdated_primary(make_pair: PairMaker) -> tuple[KernelPair, str]:
    """Behind and promoted: it works through the kernel's disk.  And the digest of that."""
    pair = congested(make_pair)
    pair.kernel_primary()
    set_speed(pair, SLOW)
    pair.kernel.write(0, 2048)
    pair.wait_ours(replication="Behind")
    pair.kernel.adm("secondary")
    pair.ours.call("primary")
    pair.wait_ours(role="Primary", disk="Outdated")
    return pair, pair.kernel.digest(pair.ours.size_bytes)


@pytest.mark.interop
def test_our_outdated_primary_takes_what_the_kernel_has(make_pair: PairMaker) -> None:
    pair, good = our_outdated_primary(make_pair)
    pair.ours.call("disconnect", force=True)
    set_speed(pair, 0)
    pair.wait_kernel(cstate="WFConnection|Unconnected")
    assert pair.ours.status()["volumes"][0]["disk"] == "Outdated"
    pair.ours.call("connect")
    check_source(pair, good)


@pytest.mark.interop
def test_our_outdated_primary_that_dies_takes_what_the_kernel_has(make_pair: PairMaker) -> None:
    """It has not crashed as Primary in the sense of rule 40: its own disk was not the one that was written last."""
    pair, good = our_outdated_primary(make_pair)
    pair.ours.kill()
    set_speed(pair, 0)
    pair.wait_kernel(cstate="WFConnection|Unconnected")
    pair.ours.start()
    check_source(pair, good)


@pytest.mark.interop
def test_kernels_outdated_primary_takes_what_we_have(make_pair: PairMaker) -> None:
    pair = congested(make_pair)
    pair.our_primary()
    set_speed(pair, SLOW)
    with pair.ours.client() as client:
        for n in range(32):
            client.write(n * 65536 * 2, os.urandom(65536))
    pair.wait_ours(replication="Ahead")
    pair.ours.call("pause-sync")
    set_speed(pair, 0)
    pair.our_secondary()
    pair.wait_kernel(cstate="Behind", peer_role="Secondary")
    pair.kernel.adm("primary")
    assert pair.kernel.state().disk == "Outdated"
    good = pair.ours.digest(pair.ours.size_bytes)
    pair.ours.kill()
    pair.wait_kernel(cstate="WFConnection|Unconnected")
    pair.ours.start()
    check_source(pair, good)


@pytest.mark.interop
def test_kernel_that_is_behind_is_left_when_our_disk_is_lost(make_pair: PairMaker) -> None:
    """Else it takes its copy for UpToDate, and our applications read old data."""
    pair = congested(make_pair)
    pair.our_primary()
    set_speed(pair, SLOW)
    with pair.ours.client() as client:
        for n in range(32):
            client.write(n * 65536 * 2, os.urandom(65536))
        pair.wait_kernel(cstate="Behind")
        with pytest.raises(ReplError, match="the peer is behind"):
            pair.ours.call("detach")
        good = pair.ours.digest(pair.ours.size_bytes)
        pair.ours.call("detach", force=True)
        with pytest.raises(NbdRequestError):
            client.read(31 * 65536 * 2, 4096)
    set_speed(pair, 0)
    pair.wait_stand_alone()
    assert pair.ours.status()["reason_code"] == "unconfirmed-writes"
    pair.wait_kernel(cstate="WFConnection|Unconnected", disk="Outdated")
    pair.our_secondary()
    pair.ours.call("attach")
    pair.ours.call("connect")
    check_source(pair, good)


@pytest.mark.interop
def test_disk_that_is_attached_takes_what_the_kernels_disk_in_use_has(make_pair: PairMaker) -> None:
    pair = make_pair(net="verify-alg crc32c;", allowed=LINK_LOST)
    pair.kernel_primary()
    pair.kernel.write(0, 1024)
    pair.kernel.adm("secondary")
    good = pair.kernel.digest(pair.ours.size_bytes)
    with pair.ours.disk.open("r+b") as file:
        file.seek(MIB // 2)
        file.write(os.urandom(65536))
    pair.kernel.adm("verify")
    pair.wait(lambda: pair.kernel.state().out_of_sync_kib == 64, "the kernel's verdict")
    pair.wait_kernel(cstate="Connected")
    pair.ours.call("detach")
    pair.ours.call("attach")
    check_source(pair, good)
