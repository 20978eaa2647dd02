# SPDX-License-Identifier: Apache-2.0
"""The kernel's node begins a resync on a new connection that it had decided on before the old one was lost.

It catches up one second after it was Ahead.  If the connection is lost in that second its before-resync-source helper
runs while there is none, and may end while the next one exchanges bitmaps: it is SyncSource then, has not sent its
bitmap and sends none (decision 0006).
"""

from __future__ import annotations

import pytest

from tests.lib.interop import LINK_LOST, KernelPair, PairMaker
from tests.lib.wait import WaitTimedOut

HELPER = "before-resync-source"
GO = "/run/interop/go"
NET = "on-congestion pull-ahead; congestion-fill 512; sndbuf-size 64k; rcvbuf-size 64k;"
SLOW = 40_000  # bytes a second
TRIES = 5  # to meet that second


def set_speed(pair: KernelPair, bytes_per_second: int) -> None:
    for relay in pair.relays:
        relay.bytes_per_second = bytes_per_second


def helper_runs_alone(pair: KernelPair) -> bool:
    """It was called since the connection was lost."""
    log = pair.kernel.log()
    return -1 < log.rfind("-> WFConnection )") < log.rfind(f"{HELPER} minor")


def is_left_with_a_start(pair: KernelPair) -> bool:
    """The kernel has lost us while it was about to catch up."""
    pair.kernel.guest.run(f"rm -f {GO}")
    set_speed(pair, SLOW)
    pair.kernel.write(0, 2048)
    pair.wait_ours(replication="Behind")
    pair.ours.call("disconnect", force=True)
    set_speed(pair, 0)
    try:
        pair.wait(lambda: helper_runs_alone(pair), "the helper", timeout=5)
    except WaitTimedOut:  # it ran before that, or the connection was lost too early
        pair.kernel.guest.run(f"touch {GO}")
        pair.ours.call("connect")
        pair.wait_in_sync()
        return False
    return True


@pytest.mark.interop
def test_kernel_that_begins_without_its_bitmap_is_met_once_more(make_pair: PairMaker) -> None:
    pair = make_pair(protocol="A", net=NET, relay={"bytes_per_second": 0}, allowed=LINK_LOST)
    pair.kernel_primary()
    pair.kernel.helper(f'[ "$1" != {HELPER} ] || while [ ! -e {GO} ]; do sleep 0.1; done')
    try:
        assert any(is_left_with_a_start(pair) for _ in range(TRIES))
        good = pair.kernel.digest(pair.ours.size_bytes)
        pair.ours.call("connect")
        pair.wait_ours(replication="WFBitMapT")
        pair.kernel.guest.run(f"touch {GO}")
        pair.wait_in_sync()
    finally:
        pair.kernel.guest.run(f"touch {GO}")
        pair.kernel.helper("")
    assert "has begun the resync without sending its bitmap" in pair.ours.log()
    assert pair.ours.digest(pair.ours.size_bytes) == good
    pair.compare()
