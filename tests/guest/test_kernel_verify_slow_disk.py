# SPDX-License-Identifier: Apache-2.0
"""Both nodes write to what is verified, and the kernel's disk takes its time to read: no difference is found.

As the source the module reads its block when our digest has come: our next write to it may be there first, if it does
not wait for the verdict (decision 0026).  A ram disk reads at once and does not show that.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.guest.test_kernel_verify import out_of_sync
from tests.lib.crossing import CONFLICTS, Area, CrossingWrites, check_end, promote_both, reconnect_until_flag
from tests.lib.interop import MIB, KernelPair, PairMaker

NET = "allow-two-primaries yes; verify-alg crc32c;"
READ_MS = 30
VERIFIES = 5
AREA = Area(MIB, 24576)
AT_THE_END = "current_epoch->list not empty"  # what the module says when two Primaries part


def slow(make_pair: PairMaker, **options: Any) -> KernelPair:
    """A pair whose kernel disk answers each read late."""
    pair = make_pair(can_discard=True, **options)
    guest, disk = pair.kernel.guest, pair.kernel.disk
    name = f"slow{pair.kernel.minor}"
    sectors = int(guest.run(f"blockdev --getsz {disk}").out)
    table = f"0 {sectors} delay {disk} 0 {READ_MS} {disk} 0 0"
    guest.run(f"modprobe dm-mod; modprobe dm-delay; dmsetup create {name} --table '{table}'")
    guest.run(f"sed -i 's,{disk};,/dev/mapper/{name};,' {pair.kernel.conf} && dmsetup mknodes")
    return pair


def verify(pair: KernelPair, source: str) -> None:
    """Of the blocks that are written to."""
    begin = len(pair.kernel.log())
    first, last = AREA.offset // 512, (AREA.offset + AREA.length) // 512
    if source == "kernel":
        limits = f"--start={first}s --stop={last}s"
        pair.kernel.guest.run(f"drbdadm -c {pair.kernel.conf} -- {limits} verify r0")
    else:
        pair.ours.call("verify", start_sector=first, stop_sector=last)
    pair.wait(lambda: "Online verify" in pair.kernel.log()[begin:], "the end of the verify")
    pair.wait_in_sync()
    assert out_of_sync(pair.kernel.log()[begin:]) == []
    assert pair.ours.status()["volumes"][0]["verify"]["ranges"] == []


@pytest.mark.interop
@pytest.mark.parametrize("flag_is_ours", [True, False], ids=["flag-here", "flag-there"])
@pytest.mark.parametrize("source", ["kernel", "ours"])
def test_verify_of_what_both_write_finds_nothing(make_pair: PairMaker, source: str, flag_is_ours: bool) -> None:
    pair = slow(make_pair, net=NET, rate="8M; c-min-rate 0", allowed=f"{CONFLICTS}|{AT_THE_END}")
    pair.up()
    pair.wait_connected()
    pair.ours.call("new-current-uuid", clear_bitmap=True)
    pair.wait_in_sync()
    reconnect_until_flag(pair, ours=flag_is_ours)
    promote_both(pair)
    with CrossingWrites(pair, AREA) as load:
        for _ in range(VERIFIES):
            load.wait_more(20)
            verify(pair, source)
    check_end(pair)
    pair.kernel.adm("down")
    pair.kernel.guest.run(f"dmsetup remove slow{pair.kernel.minor}")
