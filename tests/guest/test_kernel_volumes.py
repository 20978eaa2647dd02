# SPDX-License-Identifier: Apache-2.0
"""A resource of two volumes with the kernel: one connection, one write order, a decision for each volume."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest

from nbd.client import NbdClient
from tests.lib.interop import DISK_BYTES, Kernel, KernelPair, PairMaker

SINGLE = re.compile(r"device (\S+) minor (\d+); disk (\S+); meta-disk internal;")


class TwoVolumes:
    """A pair whose nodes have the volumes 0 and 1."""

    def __init__(self, make_pair: PairMaker, **options: Any) -> None:
        make_pair.lab.make_room(2)
        self.pair = make_pair(**options)
        first = self.pair.kernel
        minor = self.pair.lab.take_minor()
        assert self.pair.lab.guest is first.guest, "a guest with a free disk"
        second = copy.copy(first)
        second.minor, second.device, second.disk = minor, f"/dev/drbd{minor}", f"/dev/ram{minor}"
        self.kernels: list[Kernel] = [first, second]
        ours = self.pair.ours
        self.disks: list[Path] = [ours.disk, ours.disk.with_name("disk1.img")]
        with self.disks[1].open("wb") as file:
            file.truncate(DISK_BYTES)
        ours.conf.write_text(self._both(ours.conf.read_text()))
        first.guest.write_file(first.conf, self._both(first.guest.run(f"cat {first.conf}").out))

    def _both(self, text: str) -> str:
        def volumes(found: re.Match[str]) -> str:
            disk = str(self.disks[1]) if found[3] == str(self.disks[0]) else self.kernels[1].disk
            second = f"device {self.kernels[1].device} minor {self.kernels[1].minor}; disk {disk}; meta-disk internal;"
            return f"volume 0 {{ {found[0]} }} volume 1 {{ {second} }}"

        changed, count = SINGLE.subn(volumes, text)
        assert count == 2
        return changed

    def client(self, volume: int) -> NbdClient:
        return NbdClient(f"nbd+unix:///r0/{volume}?socket={self.pair.ours.run_dir / 'r0.nbd'}")

    def write(self, volume: int, at: int, data: bytes, *, flush: bool = False) -> None:
        with self.client(volume) as client:
            client.write(at, data)
            if flush:
                client.flush()

    def wait_in_sync(self) -> None:
        def holds() -> bool:
            mine = [(v["replication"], v["disk"], v["peer_disk"]) for v in self.pair.ours.status()["volumes"]]
            return mine == [("Connected", "UpToDate", "UpToDate")] * 2 and all(
                k.state().is_in_sync for k in self.kernels
            )

        self.pair.wait(holds, "both volumes in sync")

    def compare(self) -> None:
        for volume, kernel in enumerate(self.kernels):
            size = self.pair.ours.status()["volumes"][volume]["size_bytes"]
            mine = kernel.digest_of(self.disks[volume].read_bytes()[:size])
            assert mine == kernel.digest(size), f"volume {volume}"

    def our_secondary(self) -> None:
        self.pair.wait(lambda: not any(v["open"] for v in self.pair.ours.status()["volumes"]), "no NBD client")
        self.pair.ours.call("secondary")


def begin(make_pair: PairMaker, *, kernel_primary: bool, **options: Any) -> TwoVolumes:
    two = TwoVolumes(make_pair, **options)
    two.pair.up()
    two.pair.wait_connected()
    if kernel_primary:
        two.kernels[0].adm("primary --force")
    else:
        two.pair.ours.call("primary", force=True)
    two.wait_in_sync()
    return two


def part(pair: KernelPair) -> None:
    pair.ours.call("disconnect")
    pair.wait_kernel(cstate="WFConnection|StandAlone")


@pytest.mark.parametrize("protocol", [pytest.param("A", marks=pytest.mark.interop), "C"])
def test_two_volumes_of_ours_are_replicated_and_resynced(make_pair: PairMaker, protocol: str) -> None:
    two = begin(make_pair, kernel_primary=False, protocol=protocol)
    for step in range(8):  # one epoch has writes of both
        two.write(step % 2, step << 16, os.urandom(1 << 16), flush=step % 4 == 3)
    part(two.pair)
    for volume, at in ((0, 1 << 20), (1, 3 << 20)):
        two.write(volume, at, os.urandom(1 << 18))
    two.pair.ours.call("connect")
    two.wait_in_sync()
    two.our_secondary()
    two.compare()


@pytest.mark.interop
def test_two_volumes_of_the_kernel_are_replicated_and_resynced(make_pair: PairMaker) -> None:
    two = begin(make_pair, kernel_primary=True)
    for kernel in two.kernels:
        kernel.write(0, 512, flush=True)
    part(two.pair)
    for kernel in two.kernels:
        kernel.write(2048, 256)
    two.pair.ours.call("connect")
    two.wait_in_sync()
    two.compare()


@pytest.mark.interop
def test_policy_decides_for_each_volume_who_wins_it(make_pair: PairMaker) -> None:
    """Each node has changed another volume: both drivers resync each from the node that changed it."""
    two = begin(make_pair, kernel_primary=False, net="after-sb-0pri discard-zero-changes;", allowed="Split-Brain")
    pair = two.pair
    two.our_secondary()
    part(pair)
    pair.kernel.adm("disconnect")
    written = os.urandom(1 << 16)
    pair.ours.call("primary", force=True)
    with two.client(1):  # opened, not written
        two.write(0, 1 << 20, written)
    two.our_secondary()
    pair.kernel.adm("primary --force")
    two.kernels[1].write(1024, 64, flush=True)
    pair.kernel.adm("secondary")
    theirs = two.kernels[1].digest(DISK_BYTES - (1 << 20))
    pair.kernel.adm("connect")
    pair.ours.call("connect")
    two.wait_in_sync()
    two.compare()
    assert two.disks[0].read_bytes()[1 << 20 : (1 << 20) + len(written)] == written, "ours has won volume 0"
    assert two.kernels[1].digest(DISK_BYTES - (1 << 20)) == theirs, "the kernel has won volume 1"
