# SPDX-License-Identifier: Apache-2.0
"""Fencing, suspended I/O and graceful disconnects under fencing between our node and the kernel's, both ways."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.interop import LINK_LOST, MIB, KernelPair, PairMaker

STONITH = "fencing resource-and-stonith;"
QUICK = "ping-int 1;"


class PendingWrite:
    """A write of one block through our NBD server that may take long."""

    def __init__(self, pair: KernelPair, offset: int) -> None:
        self._client = pair.ours.open_client()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(offset,))
        self._thread.start()

    def _run(self, offset: int) -> None:
        try:
            self._client.write(offset, os.urandom(4096))
        except Exception as error:
            self._error = error

    @property
    def is_pending(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive(), "the write does not end"
        if self._error is not None:
            raise self._error
        self._client.close()


class Handler:
    """fence-peer of our node: waits for permission, then ends with a status."""

    def __init__(self, folder: Path) -> None:
        self._go, self.calls = folder / "go", folder / "calls"
        script = folder / "fence"
        script.write_text(
            f'#!/bin/sh\necho "$DRBD_RESOURCE $DRBD_PEER_ADDRESS" >>{self.calls}\n'
            f"while [ ! -e {self._go} ]; do sleep 0.05; done\nexit $(cat {self._go})\n"
        )
        script.chmod(0o755)
        self.section = f'handlers {{ fence-peer "{script}"; }}'

    def end(self, status: int) -> None:
        new = self._go.with_suffix(".new")
        new.write_text(str(status))
        new.rename(self._go)


@pytest.fixture
def handler(tmp_path: Path) -> Handler:
    return Handler(tmp_path)


def cut(pair: KernelPair, offset: int) -> PendingWrite:
    """The cable is pulled while our application writes; our node has noticed."""
    pair.lab.net.link(0, up=False)
    write = PendingWrite(pair, offset)
    pair.wait(lambda: pair.ours.status()["suspended_by"] == ["fencing"], "suspended I/O")
    assert write.is_pending
    return write


@pytest.fixture(autouse=True)
def cable(make_pair: PairMaker) -> Iterator[None]:
    yield
    if make_pair.pair is not None:
        make_pair.pair.lab.net.link(0, up=True)
        make_pair.pair.kernel.helper("")


# ---- we are Primary ----


@pytest.mark.interop
def test_our_primary_is_frozen_until_fence_peer_has_stopped_the_kernel(make_pair: PairMaker, handler: Handler) -> None:
    pair = make_pair(net=QUICK, disk=STONITH, more=handler.section, allowed=LINK_LOST)
    pair.our_primary()
    before = pair.ours.uuids()
    write = cut(pair, MIB)
    assert pair.ours.uuids() == before
    pair.wait(lambda: [h["handler"] for h in pair.ours.status()["handlers"]] == ["fence-peer"], "the handler")
    handler.end(7)
    write.end()
    pair.wait_ours(peer_disk="Outdated")
    after = pair.ours.uuids()
    assert after[0] != before[0] and after[1] == before[0]
    assert handler.calls.read_text().split() == ["r0", pair.lab.net.guest_address(0)]
    pair.lab.net.link(0, up=True)
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() >= 4
    pair.compare()


@pytest.mark.interop
def test_our_frozen_primary_sends_again_when_the_kernel_is_back(make_pair: PairMaker, handler: Handler) -> None:
    pair = make_pair(net=QUICK, disk=STONITH, more=handler.section, allowed=LINK_LOST)
    pair.our_primary()
    with pair.ours.client() as client:
        for n in range(20):
            client.write(n * 8192, os.urandom(4096))
    before = pair.ours.uuids()
    resyncs = pair.kernel.log().count("Began resync")
    handler.end(1)
    write = cut(pair, MIB)
    pair.wait_kernel(cstate="WFConnection|Unconnected")
    assert write.is_pending
    pair.lab.net.link(0, up=True)
    pair.wait_in_sync()
    write.end()
    assert pair.ours.status()["suspended_by"] == []
    assert pair.ours.uuids() == before and pair.kernel.log().count("Began resync") == resyncs
    pair.wait_equal()
    pair.compare()


@pytest.mark.interop
def test_our_frozen_primary_resyncs_a_kernel_that_was_restarted(make_pair: PairMaker, handler: Handler) -> None:
    pair = make_pair(net=QUICK, disk=STONITH, more=handler.section, allowed=LINK_LOST)
    pair.our_primary()
    before = pair.ours.uuids()
    handler.end(1)
    write = cut(pair, MIB)
    pair.wait_kernel(cstate="WFConnection|Unconnected")
    pair.kernel.adm("down")
    pair.kernel.guest.run(f"drbdadm -c {pair.kernel.conf} up r0")
    pair.wait_kernel(disk="Consistent")
    pair.lab.net.link(0, up=True)
    pair.wait_in_sync()
    write.end()
    assert pair.ours.uuids()[0] != before[0]
    pair.compare()


def test_kernel_leaves_our_primary_as_outdated(make_pair: PairMaker, handler: Handler) -> None:
    pair = make_pair(disk=STONITH, more=handler.section)
    pair.our_primary()
    before = pair.ours.uuids()
    pair.kernel.adm("disconnect")
    pair.wait_ours(connection="WFConnection", peer_disk="Outdated")
    assert pair.ours.status()["suspended_by"] == [] and not handler.calls.exists()
    assert pair.kernel.state().disk == "Outdated"
    assert pair.ours.uuids()[1] == before[0]
    with pair.ours.client() as client:
        client.write(MIB, os.urandom(4096))
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    pair.compare()


@pytest.mark.interop
def test_our_primary_leaves_the_kernel_outdated(make_pair: PairMaker, handler: Handler) -> None:
    pair = make_pair(disk=STONITH, more=handler.section)
    pair.our_primary()
    pair.ours.call("disconnect")
    pair.wait_kernel(cstate="WFConnection", disk="Outdated")
    assert pair.ours.status()["volumes"][0]["peer_disk"] == "Outdated"
    assert pair.ours.status()["suspended_by"] == [] and not handler.calls.exists()
    with pair.ours.client() as client:
        client.write(MIB, os.urandom(4096))
    pair.ours.call("connect")
    pair.wait_in_sync()
    pair.compare()


# ---- the kernel is Primary ----


def start_kernel_write(pair: KernelPair) -> None:
    """One block, in the background; /run/interop/wrote says when it is done."""
    pair.kernel.guest.run(
        f"rm -f /run/interop/wrote; (setsid sh -c 'dd if=/dev/urandom of={pair.kernel.device} bs=4K count=1 seek=300 "
        "oflag=direct conv=notrunc 2>/dev/null; touch /run/interop/wrote' </dev/null >/dev/null 2>&1 &)"
    )


def has_written(pair: KernelPair) -> bool:
    return "yes" in pair.kernel.guest.run("test -e /run/interop/wrote && echo yes", check=False).out


def test_we_leave_the_kernels_primary_as_outdated(make_pair: PairMaker) -> None:
    pair = make_pair(disk=STONITH)
    pair.kernel_primary()
    pair.ours.call("disconnect")
    pair.wait_kernel(cstate="WFConnection", peer_disk="Outdated")
    assert pair.ours.status()["volumes"][0]["disk"] == "Outdated"
    assert pair.kernel.flags().startswith("r")
    pair.kernel.write(1000, 64)
    pair.ours.call("connect")
    pair.wait_in_sync()
    pair.compare()


@pytest.mark.interop
def test_kernels_primary_leaves_us_outdated(make_pair: PairMaker) -> None:
    pair = make_pair(disk=STONITH)
    pair.kernel_primary()
    pair.kernel.adm("disconnect")
    pair.wait_ours(connection="WFConnection", disk="Outdated")
    assert pair.kernel.state().peer_disk == "Outdated"
    pair.kernel.write(1000, 64)
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    pair.compare()


@pytest.mark.interop
@pytest.mark.parametrize("status", [1, 7])
def test_kernels_frozen_primary_and_our_secondary(make_pair: PairMaker, status: int) -> None:
    pair = make_pair(net=QUICK, disk=STONITH, allowed=LINK_LOST)
    pair.kernel_primary()
    pair.kernel.helper(f'[ "$1" != fence-peer ] || exit {status}')
    before = pair.kernel.uuids()
    pair.lab.net.link(0, up=False)
    start_kernel_write(pair)
    pair.wait_kernel(cstate="WFConnection|Unconnected|NetworkFailure")
    if status == 1:
        assert pair.kernel.flags().startswith("s") and not has_written(pair)
    else:
        pair.wait(lambda: has_written(pair), "the write after fencing")
    pair.wait_ours(connection="WFConnection|Unconnected")
    pair.lab.net.link(0, up=True)
    pair.wait_in_sync()
    pair.wait(lambda: has_written(pair), "the write")
    if status == 1:
        assert pair.kernel.uuids()[0] == before[0]
    pair.wait_equal()
    pair.compare()


# ---- suspend-io ----


@pytest.mark.interop
def test_suspend_io_of_our_primary_survives_the_link(make_pair: PairMaker) -> None:
    pair = make_pair(net=QUICK, allowed=LINK_LOST)
    pair.our_primary()
    before = pair.ours.uuids()
    resyncs = pair.kernel.log().count("Began resync")
    pair.ours.call("suspend-io")
    write = PendingWrite(pair, 2 * MIB)
    pair.wait(lambda: pair.ours.status()["volumes"][0]["counters"]["upper_pending"] == 1, "the write")
    pair.interrupt_cable()
    pair.wait_in_sync()
    assert write.is_pending and pair.ours.uuids() == before
    pair.ours.call("resume-io")
    write.end()
    assert pair.kernel.log().count("Began resync") == resyncs
    pair.wait_equal()
    pair.compare()


@pytest.mark.interop
def test_suspend_io_of_the_kernels_primary_survives_the_link(make_pair: PairMaker) -> None:
    pair = make_pair(net=QUICK, allowed=LINK_LOST)
    pair.kernel_primary()
    pair.kernel.adm("suspend-io")
    start_kernel_write(pair)
    pair.interrupt_cable()
    pair.wait_in_sync()
    assert not has_written(pair)
    pair.kernel.adm("resume-io")
    pair.wait(lambda: has_written(pair), "the write")
    pair.wait_equal()  # but it has begun a generation that it tells nobody: the generations are not compared
