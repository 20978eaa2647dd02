# SPDX-License-Identifier: Apache-2.0
"""Online verify with the kernel's DRBD 8.4 at the other end, both ways round, and repair without a reconnect."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

from repl.errors import ReplError
from tests.lib.interop import MIB, KernelPair, OurLoad, PairMaker

BLOCK = 4096
VERIFY = "verify-alg {};"
LONG = [pytest.param(name, marks=pytest.mark.interop) for name in ("sha1", "xxhash64", "sha256", "md5")]


def out_of_sync(text: str) -> list[tuple[int, int]]:
    """The ranges of DRBD's log lines, in sectors."""
    return [(int(a), int(b)) for a, b in re.findall(r"Out of sync: start=(\d+), size=(\d+) \(sectors\)", text)]


def plant(pair: KernelPair, *blocks: int) -> list[tuple[int, int]]:
    """Change blocks of the kernel's disk behind its back; the ranges that a verify has to find."""
    for block in blocks:
        pair.kernel.guest.run(
            f"dd if=/dev/urandom of={pair.kernel.disk} bs=4K count=1 seek={block} oflag=direct conv=notrunc 2>&1"
        )
    ranges: list[tuple[int, int]] = []
    for block in blocks:
        if ranges and sum(ranges[-1]) == block * 8:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + 8)
        else:
            ranges.append((block * 8, 8))
    return ranges


def our_verify(pair: KernelPair, **args: Any) -> dict[str, Any]:
    pair.ours.call("verify", **args)
    return pair.ours.call("wait-verify")


def kernel_verify(pair: KernelPair) -> list[tuple[int, int]]:
    """What the kernel found."""
    pair.kernel.adm("verify")
    pair.wait(lambda: "Online verify done" in pair.kernel.log(), "the end of the kernel's verify")
    pair.wait_in_sync()
    return sorted(out_of_sync(pair.kernel.log()))


@pytest.mark.parametrize("algorithm", ["crc32c", *LONG])
def test_our_verify_of_the_kernel_finds_what_is_planted(make_pair: PairMaker, algorithm: str) -> None:
    pair = make_pair(net=VERIFY.format(algorithm))
    pair.our_primary()
    with pair.ours.client() as client:
        client.write(0, os.urandom(MIB))
    expected = plant(pair, 5, 6, 100, 4000)
    report = our_verify(pair)
    assert report["state"] == "complete"
    assert [tuple(r) for r in report["ranges"]] == expected
    pair.wait_in_sync()
    assert pair.kernel.state().out_of_sync_kib == 16
    assert sorted(out_of_sync(pair.kernel.log())) == expected  # blocks are compared side by side


@pytest.mark.parametrize("algorithm", ["crc32c", *LONG[:2]])
def test_kernel_verify_of_us_finds_what_is_planted(make_pair: PairMaker, algorithm: str) -> None:
    pair = make_pair(net=VERIFY.format(algorithm))
    pair.kernel_primary()
    pair.kernel.write(0, 1024)
    expected = plant(pair, 7, 8, 9, 2000)
    assert kernel_verify(pair) == expected
    report = pair.ours.status()["volumes"][0]["verify"]
    assert (report["role"], report["state"]) == ("target", "complete")
    assert [tuple(r) for r in report["ranges"]] == expected


@pytest.mark.interop
@pytest.mark.parametrize("protocol", ["A", "C"])
def test_verify_both_ways_under_our_writes_gives_no_false_alarm(make_pair: PairMaker, protocol: str) -> None:
    pair = make_pair(net=VERIFY.format("crc32c"), protocol=protocol, rate="8M; c-min-rate 0")
    pair.our_primary()
    with OurLoad(pair.ours):
        report = our_verify(pair)
        assert (report["state"], report["ranges"]) == ("complete", [])
        pair.wait_in_sync()
        assert kernel_verify(pair) == []
    pair.wait_equal()


@pytest.mark.interop
def test_verify_both_ways_under_the_kernels_writes_gives_no_false_alarm(make_pair: PairMaker) -> None:
    pair = make_pair(net=VERIFY.format("crc32c"), rate="8M; c-min-rate 0")
    pair.kernel_primary()
    pair.kernel.load_start()
    pair.wait_load(20)
    report = our_verify(pair)
    assert (report["state"], report["ranges"]) == ("complete", [])
    pair.wait_in_sync()
    assert kernel_verify(pair) == []
    pair.wait_load(20)
    pair.kernel.load_stop()
    pair.compare()


@pytest.mark.interop
def test_our_verify_that_is_stopped_ends_at_the_kernel_too(make_pair: PairMaker) -> None:
    pair = make_pair(net=VERIFY.format("crc32c"), rate="4M")
    pair.our_primary()
    expected = plant(pair, 300)
    report = our_verify(pair, start_sector=1600, stop_sector=4800)
    assert (report["state"], report["blocks"]) == ("complete", 400)
    assert [tuple(r) for r in report["ranges"]] == expected
    pair.wait_in_sync()
    pair.ours.call("verify")
    stopped = pair.ours.call("verify-abort")
    assert stopped["state"] == "stopped"
    pair.wait_in_sync()
    assert our_verify(pair)["start_sector"] == stopped["position_sector"]
    pair.wait_in_sync()
    with pair.ours.client() as client:  # nothing stays locked
        client.write(0, os.urandom(8 * MIB))


def test_repair_overwrites_the_kernels_blocks_without_a_reconnect(make_pair: PairMaker) -> None:
    pair = make_pair(net=VERIFY.format("crc32c"))
    pair.our_primary()
    with pair.ours.client() as client:
        client.write(0, os.urandom(MIB))
    plant(pair, 5, 6, 100)
    report = our_verify(pair, repair=True)
    assert report["repair"] == "done", report
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 12
    assert "Restarting" not in pair.kernel.log().split("Began resync", 2)[-1]
    pair.compare()
    assert our_verify(pair)["ranges"] == []


def test_repair_from_the_kernel_is_refused_with_the_way_out(make_pair: PairMaker) -> None:
    pair = make_pair(net=VERIFY.format("crc32c"))
    pair.kernel_primary()
    with pytest.raises(ReplError, match="kernel module.*invalidate"):
        pair.ours.call("verify", repair=True)


def test_verify_is_refused_by_both_without_an_algorithm(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.our_primary()
    with pytest.raises(ReplError, match="no verify-alg"):
        pair.ours.call("verify")
    assert "(-14)" in pair.kernel.adm("verify", check=False)
    pair.reconnect_quietly()
