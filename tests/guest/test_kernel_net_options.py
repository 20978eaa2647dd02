# SPDX-License-Identifier: Apache-2.0
"""Network options that change while our node and the kernel's DRBD 8.4 are connected."""

from __future__ import annotations

import os

import pytest

from tests.lib.interop import MIB, KernelPair, PairMaker


def kernel_options(pair: KernelPair, options: str) -> None:
    """``drbdsetup net-options``: by the addresses of the connection."""
    here, guest = f"{pair.lab.net.HOST}:{pair.port}", f"{pair.lab.net.guest_address(0)}:{pair.port}"
    pair.kernel.guest.run(f"drbdsetup net-options ipv4:{guest} ipv4:{here} {options}")


def letter(pair: KernelPair) -> str:
    return pair.kernel.state().protocol[:1]


def test_we_do_as_the_kernel_says(make_pair: PairMaker) -> None:
    pair = make_pair(protocol="C")
    pair.our_primary()
    for protocol, algorithm in (("A", "crc32c"), ("B", ""), ("C", "sha1")):
        kernel_options(pair, f"--protocol={protocol} --data-integrity-alg={algorithm or repr('')}")
        pair.wait(lambda: pair.ours.status()["protocol"] == protocol, "our protocol")  # noqa: B023
        with pair.ours.client() as client:
            client.write(MIB, os.urandom(65536))
            client.flush()
        pair.wait_equal()
    assert pair.ours.is_in_sync
    assert pair.ours.log().count("lost the peer") == 0


@pytest.mark.interop
def test_the_kernel_does_as_we_say(make_pair: PairMaker) -> None:
    pair = make_pair(protocol="C")
    pair.our_primary()
    for protocol, letter_number in (("A", 1), ("B", 2), ("C", 3)):
        pair.ours.call("net-options", protocol=letter_number, data_integrity_alg="crc32c", csums_alg="md5")
        pair.wait(lambda: letter(pair) == protocol, "the kernel's protocol")  # noqa: B023
        with pair.ours.client() as client:
            client.write(MIB, os.urandom(65536))
            client.flush()
        pair.wait_equal()
    assert pair.ours.is_in_sync
    pair.our_secondary()
    pair.kernel.adm("primary")
    pair.kernel.write(4096, 64)
    pair.wait_equal()
    assert pair.ours.log().count("lost the peer") == 0


def test_two_primaries_are_allowed_at_run_time(make_pair: PairMaker) -> None:
    pair = make_pair(protocol="C")
    pair.our_primary()
    pair.ours.call("net-options", two_primaries=True)
    pair.kernel.adm("primary")
    pair.wait_ours(role="Primary", peer_role="Primary")
    pair.kernel.write(64, 64)
    pair.kernel.adm("secondary")
    pair.wait_ours(peer_role="Secondary")
    kernel_options(pair, "--allow-two-primaries=no")
    pair.wait(lambda: "two-primaries False" in pair.ours.log(), "our change")
    pair.compare()
