# SPDX-License-Identifier: Apache-2.0
"""The source of a resync loses its disk and is Primary: nobody reads old data, and with the disk the resync goes on.

DRBD's node takes an Outdated disk for UpToDate when the other node has none: its own, and ours (decision 0016).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nbd.client import NbdClient, NbdRequestError
from repl.errors import ReplError
from tests.guest.test_kernel_left_over import SLOW, congested, set_speed
from tests.guest.test_kernel_our_bad_disk import fragile
from tests.lib.interop import DISK_BYTES, LINK_LOST, MIB, KernelLab, KernelPair, PairMaker

HANDLER = "before-resync-source"
GO = "/run/interop/go"
GOOD_BYTES = 20 * MIB  # of our disk that fails
WRITTEN = 8 * MIB
PLACES = 0, MIB, WRITTEN - 65536  # some of what is written


def in_sync(pair: KernelPair) -> None:
    """From the start: no resync at the slow rate."""
    pair.up()
    pair.wait_connected()
    pair.ours.call("new-current-uuid", clear_bitmap=True)
    pair.wait_in_sync()


def write_alone(pair: KernelPair, client: NbdClient) -> dict[int, bytes]:
    """What the kernel's node lacks when it connects again."""
    client.write(0, os.urandom(WRITTEN))
    pair.kernel.adm("disconnect")
    pair.wait_ours(connection="WFConnection|Unconnected")
    client.write(0, os.urandom(WRITTEN))
    client.flush()
    return {at: client.read(at, 65536) for at in PLACES}


def check_refused(client: NbdClient) -> None:
    for at in PLACES:
        with pytest.raises(NbdRequestError):
            client.read(at, 65536)
        with pytest.raises(NbdRequestError):
            client.write(at, os.urandom(4096))


def check_shown(client: NbdClient, shown: dict[int, bytes]) -> None:
    for at, data in shown.items():
        assert client.read(at, len(data)) == data


def break_reads(pair: KernelPair, client: NbdClient) -> None:
    os.truncate(pair.ours.disk, GOOD_BYTES)
    with pytest.raises(NbdRequestError):
        client.read(GOOD_BYTES + MIB, 4096)
    pair.wait_ours(disk="Diskless")
    os.truncate(pair.ours.disk, DISK_BYTES)  # nothing was ever written there


def test_our_disk_fails_while_the_kernel_fetches(make_pair: PairMaker) -> None:
    pair = fragile(make_pair, rate="4M", policy="detach")
    in_sync(pair)
    pair.ours.call("primary")
    with pair.ours.client() as client:
        shown = write_alone(pair, client)
        pair.kernel.adm("connect")
        pair.wait_kernel(cstate="SyncTarget")
        with pytest.raises(ReplError, match="no other good data"):
            pair.ours.call("detach")
        break_reads(pair, client)
        pair.wait_kernel(cstate="Connected", disk="Inconsistent", peer_disk="Diskless")
        check_refused(client)
        assert "no access to good data" in pair.ours.log()
        assert pair.ours.status()["volumes"][0]["peer_disk"] == "Inconsistent"
        pair.ours.call("attach")
        pair.wait_in_sync()
        check_shown(client, shown)
    pair.compare()


@pytest.mark.interop
@pytest.mark.parametrize("role", ["Primary", "Secondary"])
def test_our_disk_is_lost_before_the_kernel_has_begun(make_pair: PairMaker, tmp_path: Path, role: str) -> None:
    """Else it takes what it has for UpToDate, begins a generation with it, and our disk is a split brain to it."""
    hold = tmp_path / "hold"
    script = f"while [ -e {hold} ]; do sleep 0.1; done"
    pair = make_pair(rate="4M", more=f'handlers {{ {HANDLER} "{script}"; }}', allowed=LINK_LOST)
    in_sync(pair)
    pair.ours.call("primary")
    hold.touch()
    with pair.ours.client() as client:
        shown = write_alone(pair, client)
    if role == "Secondary":
        pair.our_secondary()
    pair.kernel.adm("connect")
    pair.wait_kernel(cstate="WFSyncUUID", disk="Outdated")
    with pytest.raises(ReplError, match="no other good data"):
        pair.ours.call("detach")
    pair.ours.call("detach", force=True)
    pair.wait_stand_alone()
    assert pair.ours.status()["reason_code"] == "unconfirmed-writes"
    pair.wait_kernel(cstate="WFConnection|Unconnected", disk="Outdated")
    if role == "Primary":
        assert "no access to good data" in pair.ours.log()
        with pair.ours.client() as client:
            check_refused(client)
        pair.our_secondary()
    hold.unlink()
    pair.ours.call("attach")
    pair.ours.call("connect")
    pair.wait_in_sync()
    pair.ours.call("primary")
    with pair.ours.client() as client:
        check_shown(client, shown)
    pair.compare()


def kernel_writes_alone(pair: KernelPair) -> str:
    """What we lack when we connect again; its digest."""
    pair.kernel.write(0, WRITTEN // 1024, block_kib=1024)
    pair.ours.call("disconnect")
    pair.wait_kernel(cstate="WFConnection|Unconnected")
    pair.kernel.write(0, WRITTEN // 1024, block_kib=1024)
    return kernel_reads(pair)


def kernel_reads(pair: KernelPair, path: str = "") -> str:
    """A digest, or the error; of the device unless said otherwise."""
    read = f"dd if={path or pair.kernel.device} iflag=direct bs=64K count={WRITTEN // 65536}"
    done = pair.kernel.guest.run(f"{read} 2>/run/interop/said | b2sum; cat /run/interop/said", 20)
    return "error" if "error" in done.out else done.out.split()[0]


def kernel_reads_nothing_old(pair: KernelPair) -> None:
    assert kernel_reads(pair) == "error"


def test_the_kernels_disk_fails_while_we_fetch(make_pair: PairMaker) -> None:
    pair = make_pair(rate="4M")
    in_sync(pair)
    pair.kernel.adm("primary")
    shown = kernel_writes_alone(pair)
    pair.ours.call("connect")
    pair.wait_ours(replication="SyncTarget", disk="Inconsistent")
    pair.kernel.adm("detach --force")
    pair.wait_ours(replication="Connected", disk="Inconsistent", peer_disk="Diskless")
    kernel_reads_nothing_old(pair)
    pair.kernel.adm("attach")
    pair.wait_in_sync()
    assert kernel_reads(pair) == shown
    pair.compare()


def kernel_comes_back(pair: KernelPair, shown: str) -> None:
    """We have left it."""
    pair.wait_stand_alone()
    assert pair.ours.status()["reason_code"] == "peer-needs-its-disk"
    assert pair.ours.status()["volumes"][0]["disk"] == "Outdated"
    kernel_reads_nothing_old(pair)
    pair.kernel.adm("attach")
    pair.ours.call("connect")
    pair.wait_in_sync()
    assert kernel_reads(pair) == shown
    pair.compare()


@pytest.mark.interop
def test_the_kernels_disk_fails_before_we_have_begun(make_pair: PairMaker) -> None:
    """Else it reads from us, is refused, and does nothing but ask once more."""
    pair = make_pair(rate="4M", allowed=f"{LINK_LOST}|Got NegDReply")
    in_sync(pair)
    pair.kernel.adm("primary")
    shown = kernel_writes_alone(pair)
    pair.kernel.guest.run(f"rm -f {GO}")
    pair.kernel.helper(f'[ "$1" != {HANDLER} ] || while [ ! -e {GO} ]; do sleep 0.1; done')
    try:
        pair.ours.call("connect")
        pair.wait_ours(replication="WFSyncUUID", disk="Outdated")
        pair.kernel.adm("detach --force")
    finally:
        pair.kernel.guest.run(f"touch {GO}")
        pair.kernel.helper("")
    kernel_comes_back(pair, shown)


@pytest.mark.interop
def test_the_kernels_disk_fails_while_we_are_behind(make_pair: PairMaker) -> None:
    pair = congested(make_pair)
    in_sync(pair)
    pair.kernel.adm("primary")
    set_speed(pair, SLOW // 2)  # it catches up when all that was on its way has come
    pair.kernel.write(0, WRITTEN // 1024)
    pair.wait_ours(replication="Behind", disk="Outdated")
    pair.kernel.adm("detach --force")
    set_speed(pair, 0)
    kernel_comes_back(pair, kernel_reads(pair, pair.kernel.disk))


def test_outdated_kernel_stays_outdated_when_we_have_no_disk(make_pair: PairMaker) -> None:
    pair = make_pair(allowed=LINK_LOST)
    in_sync(pair)
    pair.kernel.adm("disconnect")
    pair.kernel.adm("outdate")
    pair.ours.call("detach")
    pair.kernel.adm("connect")
    pair.wait_stand_alone()
    assert pair.ours.status()["reason_code"] == "unconfirmed-writes"
    pair.wait_kernel(cstate="WFConnection|Unconnected", disk="Outdated")
    pair.ours.call("attach")
    pair.ours.call("connect")
    pair.wait_in_sync()


@pytest.mark.interop
def test_the_kernel_loses_power_before_it_has_noted_that_it_is_a_target(tmp_path: Path) -> None:
    """It comes back UpToDate, with what it had before: our Primary without a disk does not read that."""
    shared = tmp_path / "shared"
    shared.mkdir()
    lab = KernelLab(shared=shared)
    try:
        pair = KernelPair(lab, tmp_path, rate="4M", survives=True)
        try:
            loses_power_unnoted(pair)
        finally:
            print(pair.report())
            pair.close()
    finally:
        lab.close()


def loses_power_unnoted(pair: KernelPair) -> None:
    in_sync(pair)
    pair.ours.call("primary")
    disk = Path(pair.kernel.backing)
    unnoted = disk.with_name("unnoted")
    with pair.ours.client() as client:
        shown = write_alone(pair, client)
        pair.kernel.guest.run("sync")
        shutil.copy(disk, unnoted)
        pair.kernel.adm("connect")
        pair.wait_kernel(cstate="SyncTarget")

        def while_it_is_off() -> None:
            shutil.copy(unnoted, disk)
            pair.ours.call("detach", force=True)
            pair.wait_ours(connection="WFConnection|Unconnected", disk="Diskless")

        pair.kernel.power_cycle(while_it_is_off)
        pair.wait_stand_alone()
        assert pair.ours.status()["reason_code"] == "other-generation"
        assert pair.kernel.uuids()[1] == 0, "it has begun no generation with it"
        pair.wait_kernel(cstate="WFConnection|Unconnected", disk="UpToDate")
        check_refused(client)
        pair.ours.call("attach")
        check_shown(client, shown)
        pair.ours.call("connect")
        pair.wait_in_sync()
        check_shown(client, shown)
    pair.compare()
