# SPDX-License-Identifier: Apache-2.0
"""The matrix: who is Primary x protocol x what happens; one cell is one test on a fresh pair.

Protocol C's row of the cheap cells runs always, the rest with ``pytest --interop``.
After each cell both disks are equal.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lib.guest import memory_folder
from tests.lib.interop import DISK_BYTES, LINK_LOST, MIB, KernelLab, KernelPair, PairMaker

OURS, KERNEL = "our Primary", "kernel Primary"
GROWN_BYTES = DISK_BYTES + 16 * MIB  # of both disks, while they are in use
MODULES = ("crc32c_generic",)


class Sides:
    """The same steps for whoever is Primary."""

    def __init__(self, pair: KernelPair, primary: str) -> None:
        self.pair, self.is_ours = pair, primary == OURS

    def begin(self) -> None:
        if self.is_ours:
            self.pair.our_primary()
        else:
            self.pair.kernel_primary()

    def write(self, offset_kib: int, length_kib: int, *, flush: bool = False) -> None:
        if not self.is_ours:
            self.pair.kernel.write(offset_kib, length_kib, flush=flush)
            return
        with self.pair.ours.client() as client:
            for at in range(0, length_kib, 64):
                client.write((offset_kib + at) * 1024, os.urandom(min(64, length_kib - at) * 1024))
            if flush:
                client.flush()

    def discard(self, offset_kib: int, length_kib: int) -> None:
        if self.is_ours:
            with self.pair.ours.client() as client:
                client.trim(offset_kib * 1024, length_kib * 1024)
                client.flush()
        else:
            kernel = self.pair.kernel
            kernel.guest.run(f"blkdiscard -o {offset_kib}K -l {length_kib}K {kernel.device}")

    def crash_primary(self) -> None:
        self._crash(ours=self.is_ours)

    def crash_secondary(self) -> None:
        self._crash(ours=not self.is_ours)

    def _crash(self, *, ours: bool) -> None:
        if ours:
            self.pair.ours.kill()
            self.pair.wait_kernel(cstate="WFConnection|Unconnected")
            self.pair.ours.start()
        else:
            self.pair.kernel.power_cycle()

    def promote_again(self) -> None:
        if self.is_ours:
            self.pair.ours.call("primary")
        else:
            self.pair.kernel.adm("primary")

    def end(self) -> None:
        self.pair.wait_in_sync()
        self.pair.wait_equal()
        self.pair.compare()


# ---- the cells ----


def initial_sync(sides: Sides) -> None:
    sides.begin()


def writes_with_flushes(sides: Sides) -> None:
    sides.begin()
    for turn in range(6):
        sides.write(turn * 1024, 256, flush=True)
        sides.write(turn * 1024 + 300, 4)


def cut_and_resync(sides: Sides) -> None:
    sides.begin()
    pair = sides.pair
    pair.lab.net.link(0, up=False)
    try:
        sides.write(1024, 512)
        pair.wait_kernel(cstate="WFConnection|Unconnected")
        pair.wait_ours(connection="WFConnection|Unconnected")
        sides.write(4096, 64)
    finally:
        pair.lab.net.link(0, up=True)
    pair.wait_in_sync()
    sides.write(8192, 64)


def crash_of_the_primary(sides: Sides) -> None:
    sides.begin()
    sides.write(0, 1024, flush=True)
    sides.crash_primary()
    sides.pair.wait_in_sync()
    sides.promote_again()
    sides.write(2048, 64, flush=True)


def crash_of_the_secondary(sides: Sides) -> None:
    sides.begin()
    sides.write(0, 1024)
    sides.crash_secondary()
    sides.pair.wait_connected()
    sides.write(2048, 64, flush=True)


def trim(sides: Sides) -> None:
    sides.begin()
    sides.write(0, 8192)
    sides.discard(1024, 4096)


def cram_hmac(sides: Sides) -> None:
    sides.begin()
    sides.write(0, 256, flush=True)


def data_integrity(sides: Sides) -> None:
    sides.begin()
    sides.write(0, 1024, flush=True)
    sides.pair.reconnect_quietly()
    sides.write(4096, 256)


def verify_with_a_difference(sides: Sides) -> None:
    """A block of the Secondary's disk changes by itself; the Primary finds it, a new connection mends it."""
    sides.begin()
    sides.write(0, 256, flush=True)
    pair = sides.pair
    if sides.is_ours:
        pair.kernel.guest.run(f"dd if=/dev/urandom of={pair.kernel.disk} bs=4K count=1 seek=7 oflag=direct")
        pair.ours.call("verify")
        assert pair.ours.call("wait-verify")["ranges"] == [[56, 8]]
    else:
        with pair.ours.disk.open("r+b") as file:
            file.seek(7 * 4096)
            file.write(os.urandom(4096))
        pair.kernel.adm("verify")
        pair.wait(lambda: "Out of sync: start=56, size=8 (sectors)" in pair.kernel.log(), "the difference is found")
        pair.wait_in_sync()
    pair.reconnect_quietly()
    assert pair.kernel.resync_kib() == 4


def online_grow(sides: Sides) -> None:
    sides.begin()
    sides.write(0, 256, flush=True)
    pair = sides.pair
    before, kernel = pair.ours.size_bytes, pair.kernel
    os.truncate(pair.ours.disk, GROWN_BYTES)
    kernel.guest.run(f"truncate -s {GROWN_BYTES} {kernel.backing} && losetup -c {kernel.disk}")
    if sides.is_ours:
        pair.ours.call("resize")
    else:
        kernel.adm("resize")
    pair.wait(lambda: pair.ours.size_bytes == before + GROWN_BYTES - DISK_BYTES, "our device is larger")
    pair.wait_in_sync()
    sides.write(before // 1024 + 1024, 512, flush=True)


def split_brain(sides: Sides) -> None:
    """Both were Primary while apart; the former Secondary's changes are thrown away."""
    sides.begin()
    pair = sides.pair
    pair.ours.call("disconnect")
    pair.wait_kernel(cstate="WFConnection")
    pair.kernel.adm("disconnect")
    with contextlib.suppress(Exception):
        pair.kernel.adm("primary")
    pair.ours.call("primary")
    Sides(pair, OURS).write(1024, 64)
    Sides(pair, KERNEL).write(2048, 64)
    pair.ours.call("connect")
    pair.kernel.adm("connect")
    pair.wait_stand_alone()
    assert "Split-Brain" in pair.ours.status()["reason"]
    pair.kernel.adm("disconnect", check=False)
    if sides.is_ours:
        pair.kernel.adm("secondary")
        pair.kernel.adm("connect --discard-my-data")
        pair.ours.call("connect")
    else:
        pair.our_secondary()
        pair.ours.call("connect", discard_my_data=True)
        pair.kernel.adm("connect")


CELLS: dict[str, tuple[Callable[[Sides], None], dict[str, object]]] = {
    "initial sync": (initial_sync, {}),
    "writes with flushes": (writes_with_flushes, {}),
    "cut and resync": (cut_and_resync, {"net": "ping-int 1;", "allowed": LINK_LOST}),
    "crash of the Primary": (crash_of_the_primary, {"net": "ping-int 1;", "allowed": LINK_LOST}),
    "crash of the Secondary": (crash_of_the_secondary, {"net": "ping-int 1;", "allowed": LINK_LOST}),
    "trim": (trim, {"can_discard": True}),
    "cram-hmac": (cram_hmac, {"net": 'cram-hmac-alg sha256; shared-secret "between us";'}),
    "data-integrity": (data_integrity, {"net": "data-integrity-alg crc32c;"}),
    "verify with a difference": (verify_with_a_difference, {"net": "verify-alg crc32c;"}),
    "online grow": (online_grow, {"can_discard": True}),
    "split brain": (split_brain, {"allowed": f"{LINK_LOST}|Split-Brain|incompatible"}),
}
# Always run in protocol C; the others only with --interop.
SMOKE = ("writes with flushes", "trim")
# The kernel's machine loses its power and boots again.
REBOOTS = {("crash of the Primary", KERNEL), ("crash of the Secondary", OURS)}


@pytest.fixture(scope="module")
def lab() -> Iterator[KernelLab]:
    """One whose disks outlive its guest."""
    with tempfile.TemporaryDirectory(prefix="matrix-", dir=memory_folder(64)) as folder:
        lab = KernelLab(MODULES, shared=Path(folder))
        try:
            yield lab
        finally:
            lab.close()


def _cells() -> Iterator[object]:
    for name in CELLS:
        for protocol in "CBA":
            for primary in (OURS, KERNEL):
                always = protocol == "C" and name in SMOKE
                marks = () if always else (pytest.mark.interop,)
                yield pytest.param(name, protocol, primary, marks=marks, id=f"{name}-{protocol}-{primary}")


@pytest.mark.parametrize(("name", "protocol", "primary"), list(_cells()))
def test_cell(make_pair: PairMaker, name: str, protocol: str, primary: str) -> None:
    step, options = CELLS[name]
    pair = make_pair(protocol=protocol, survives=(name, primary) in REBOOTS, **options)
    sides = Sides(pair, primary)
    step(sides)
    sides.end()
