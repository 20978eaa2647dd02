# SPDX-License-Identifier: Apache-2.0
"""data-integrity-alg with the kernel's DRBD 8.4 in both directions: data, zeroes, trims, resync and the handshake."""

from __future__ import annotations

import os

import pytest

from tests.lib.interop import MIB, PairMaker

LONG = [pytest.param(name, marks=pytest.mark.interop) for name in ("sha1", "xxhash64", "md5")]


@pytest.mark.parametrize("algorithm", ["crc32c", *LONG[:2]])
def test_our_writes_and_zeroes_carry_digests_that_the_kernel_accepts(make_pair: PairMaker, algorithm: str) -> None:
    pair = make_pair(net=f"data-integrity-alg {algorithm};", can_discard=True)
    pair.our_primary()
    with pair.ours.client() as client:
        client.write(0, os.urandom(12 * MIB))
        client.write(13 * MIB + 512, os.urandom(512))
        client.zero(MIB, 3 * MIB + 512)  # as data, in parts
        client.zero(6 * MIB + 512, 1024)
        client.trim(8 * MIB, MIB)
        client.flush()
        assert client.read(MIB, 3 * MIB) == bytes(3 * MIB)
    pair.compare()
    pair.reconnect_quietly()
    pair.compare()


@pytest.mark.parametrize("algorithm", ["crc32c", *LONG])
def test_digests_of_the_kernels_writes_and_resync_are_checked_here(make_pair: PairMaker, algorithm: str) -> None:
    pair = make_pair(net=f"data-integrity-alg {algorithm};")
    pair.kernel_primary()
    pair.kernel.write(0, 2048)
    pair.ours.call("disconnect")
    pair.wait_kernel(cstate="WFConnection")
    pair.kernel.write(4096, 512)
    pair.ours.call("connect")
    pair.wait_in_sync()
    pair.compare()
    assert pair.ours.status()["engine"]["integrity_errors"] == 0


def test_different_algorithms_end_standalone_on_both_with_the_reason(make_pair: PairMaker) -> None:
    said = "incompatible|error receiving ReportProtocol"
    pair = make_pair(net="data-integrity-alg crc32c;", other_net="data-integrity-alg sha1;", allowed=said)
    pair.up()
    pair.wait_stand_alone()
    assert "data-integrity-alg" in pair.ours.status()["reason"]
    pair.wait_kernel(cstate="StandAlone")
