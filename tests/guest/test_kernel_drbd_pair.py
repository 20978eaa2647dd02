# SPDX-License-Identifier: Apache-2.0
"""Our node and the kernel's DRBD 8.4: roles change, options agree or not, generations decide."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from repl.errors import ReplError
from tests.lib.guest import CommandFailed
from tests.lib.interop import LINK_LOST, MIB, PairMaker


@pytest.mark.interop
def test_roles_are_swapped_there_and_back_without_a_resync(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.our_primary()
    for turn in range(2):
        with pair.ours.client() as client:
            client.write(turn * MIB, os.urandom(65536))
        with pytest.raises(CommandFailed, match="Multiple primaries not allowed"):
            pair.kernel.adm("primary")
        pair.our_secondary()
        pair.wait_kernel(peer_role="Secondary")
        pair.kernel.adm("primary")
        pair.kernel.write(4096 + turn * 1024, 64)
        pair.wait_ours(peer_role="Primary")
        with pytest.raises(ReplError, match="is Primary"):
            pair.ours.call("primary")
        pair.kernel.adm("secondary")
        pair.wait_ours(peer_role="Secondary")
        pair.ours.call("primary")
    assert pair.ours.is_in_sync
    assert pair.kernel.log().count("Began resync") == 1
    pair.compare()


# ---- options ----


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
def test_nodes_with_the_same_secret_connect(make_pair: PairMaker, algorithm: str) -> None:
    pair = make_pair(net=f'cram-hmac-alg {algorithm}; shared-secret "between us";')
    pair.up()
    pair.wait_connected()
    assert pair.kernel.state().cstate == "Connected"


def test_nodes_with_different_secrets_both_give_up(make_pair: PairMaker) -> None:
    pair = make_pair(
        net='cram-hmac-alg sha1; shared-secret "ours";',
        other_net='cram-hmac-alg sha1; shared-secret "theirs";',
        allowed="uthentication|HMAC",
    )
    pair.up()
    pair.wait_stand_alone()
    assert "Authentication" in pair.ours.status()["reason"]
    pair.wait_kernel(cstate="StandAlone")


@pytest.mark.parametrize("protocol", ["A", "B"])
def test_protocols_a_and_b_replicate_both_ways(make_pair: PairMaker, protocol: str) -> None:
    pair = make_pair(protocol=protocol)
    pair.kernel_primary()
    pair.kernel.write(0, 2048, flush=True)
    pair.kernel.adm("secondary")
    pair.wait_ours(peer_role="Secondary")
    pair.wait_equal()  # the kernel did not wait for our disk
    pair.ours.call("primary")
    with pair.ours.client() as client:
        for n in range(100):
            client.write(4 * MIB + n * 8192, os.urandom(8192))
        client.zero(6 * MIB, MIB)
        client.flush()
    pair.our_secondary()
    pair.compare()


def test_nodes_with_different_protocols_both_say_so(make_pair: PairMaker) -> None:
    pair = make_pair(protocol="C", other_net="protocol A;", allowed="incompatible|error receiving ReportProtocol")
    pair.up()
    pair.wait_stand_alone()
    assert "protocol" in pair.ours.status()["reason"]
    pair.wait_kernel(cstate="StandAlone")


def test_bitmaps_without_run_length_coding_are_exchanged(make_pair: PairMaker) -> None:
    pair = make_pair(net="use-rle no;")
    pair.kernel_primary()
    pair.kernel.adm("disconnect")
    pair.kernel.write(1000, 64, block_kib=4)
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 64
    pair.kernel.adm("secondary")
    pair.wait_ours(peer_role="Secondary")
    pair.ours.call("primary")
    pair.ours.call("disconnect")
    with pair.ours.client() as client:
        client.write(MIB, os.urandom(8192))
    pair.ours.call("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 8
    pair.compare()


# ---- generations ----


def test_initial_sync_is_skipped_by_our_order(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.up()
    pair.wait_connected()
    pair.ours.call("new-current-uuid", clear_bitmap=True)
    pair.wait_in_sync()
    pair.reconnect_quietly()
    assert "Began resync" not in pair.kernel.log()
    pair.ours.call("primary")
    with pair.ours.client() as client:
        client.write(0, os.urandom(65536))
    pair.compare()


def test_initial_sync_is_skipped_by_the_kernels_order(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.up()
    pair.wait_connected()
    pair.kernel.guest.run(f"drbdadm -c {pair.kernel.conf} -- --clear-bitmap new-current-uuid r0")
    pair.wait_in_sync()
    pair.reconnect_quietly()
    assert "Began resync" not in pair.kernel.log()
    pair.kernel.adm("primary")
    pair.kernel.write(0, 64)
    pair.compare()


def test_orders_of_both_nodes_to_skip_the_initial_sync_cross(make_pair: PairMaker) -> None:
    """The kernel has a generation of its own when it hears of ours, and ignores that: its own counts (0144)."""
    pair = make_pair(net="ping-timeout 50; timeout 90;", relay={"delay_ms": 0})
    pair.up()
    pair.wait_connected()
    for relay in pair.relays:  # only now: two nodes that connect to each other at a distance need many attempts
        relay.delay_ms = 1500
    order = f"drbdadm -c {pair.kernel.conf} -- --clear-bitmap new-current-uuid r0"
    with ThreadPoolExecutor(1) as background:
        kernel = background.submit(pair.kernel.guest.run, order)
        pair.ours.call("new-current-uuid", clear_bitmap=True)
        kernel.result()
    pair.wait_in_sync()
    pair.wait(lambda: pair.ours.uuids()[0] == pair.kernel.uuids()[0], "one generation")
    for relay in pair.relays:
        relay.delay_ms = 0
    pair.reconnect_quietly()
    assert "Began resync" not in pair.kernel.log()
    pair.compare()


def test_split_brain_is_seen_by_both_and_ended_by_discarding_the_kernels_data(make_pair: PairMaker) -> None:
    pair = make_pair(allowed=LINK_LOST)
    pair.our_primary()
    pair.ours.call("disconnect")
    pair.wait_kernel(cstate="WFConnection")
    pair.kernel.adm("disconnect")
    with pair.ours.client() as client:
        client.write(0, os.urandom(65536))
    pair.kernel.adm("primary")
    pair.kernel.write(4096, 64)
    pair.kernel.adm("secondary")
    pair.kernel.adm("connect")
    pair.ours.call("connect")
    pair.wait_ours(connection="StandAlone")
    assert "plit" in pair.ours.status()["reason"]
    pair.wait_kernel(cstate="StandAlone")
    assert "Split-Brain detected" in pair.kernel.log()
    pair.kernel.guest.run(f"drbdadm -c {pair.kernel.conf} -- --discard-my-data connect r0")
    pair.ours.call("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 128
    pair.compare()


def test_split_brain_is_ended_by_discarding_our_data(make_pair: PairMaker) -> None:
    pair = make_pair(allowed=LINK_LOST)
    pair.kernel_primary()
    pair.kernel.adm("disconnect")
    pair.ours.call("disconnect")
    pair.kernel.write(4096, 64)
    pair.ours.call("primary")
    with pair.ours.client() as client:
        client.write(0, os.urandom(65536))
    pair.our_secondary()
    pair.kernel.adm("connect")
    pair.ours.call("connect")
    pair.wait_ours(connection="StandAlone")
    pair.wait_kernel(cstate="StandAlone")
    pair.ours.call("connect", discard_my_data=True)
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == 128
    pair.compare()


@pytest.mark.interop
def test_full_sync_by_order_of_either_side(make_pair: PairMaker) -> None:
    pair = make_pair()
    pair.kernel_primary()
    pair.ours.call("invalidate")
    pair.wait(lambda: pair.kernel.log().count("Began resync as SyncSource") == 2, "a second resync")
    pair.wait_in_sync()
    pair.kernel.adm("invalidate-remote")
    pair.wait(lambda: pair.kernel.log().count("Began resync as SyncSource") == 3, "a third resync")
    pair.wait_in_sync()
    pair.kernel.adm("secondary")
    pair.wait_ours(peer_role="Secondary")
    pair.kernel.adm("invalidate")
    pair.wait(lambda: "Began resync as SyncTarget" in pair.kernel.log(), "a resync of the kernel")
    pair.wait_in_sync()
    pair.compare()


@pytest.mark.interop
def test_large_bitmaps_of_plain_and_coded_parts_are_exchanged(make_pair: PairMaker) -> None:
    pair = make_pair(our_bytes=256 * MIB, kernel_bytes=256 * MIB)
    pair.up()
    pair.wait_connected()
    pair.ours.call("new-current-uuid", clear_bitmap=True)
    pair.wait_in_sync()
    pair.ours.call("primary")
    pair.ours.call("disconnect")
    dense = range(0, 24_000, 2)  # coded runs would take more than the plain bits
    blocks = {*dense, *range(40_000, 40_500), *(50_000 + n * n for n in range(100))}
    with pair.ours.client() as client:
        for block in blocks:
            client.write(block * 4096, os.urandom(4096))
    pair.ours.call("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == len(blocks) * 4
    pair.our_secondary()
    pair.kernel.adm("primary")
    pair.kernel.adm("disconnect")
    pair.kernel.write_blocks(sorted(blocks))
    pair.kernel.adm("connect")
    pair.wait_in_sync()
    assert pair.kernel.resync_kib() == len(blocks) * 4
    sent = re.search(r"send bitmap stats .*: plain (\d+)\(.*RLE (\d+)\(", pair.kernel.log())
    assert sent and int(sent[1]) > 0 and int(sent[2]) > 0, "the kernel used only one form"
    pair.compare()
