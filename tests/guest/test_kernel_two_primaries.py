# SPDX-License-Identifier: Apache-2.0
"""Both our node and the kernel's DRBD 8.4 are Primary: writes that cross on the wire end in the same content."""

from __future__ import annotations

import os
import threading

import pytest

from tests.lib.crossing import CONFLICTS, check_end, reconnect_until_flag
from tests.lib.interop import LINK_LOST, KernelPair, PairMaker
from tests.lib.tools import SYSTEM_PYTHON

BLOCK = 4096
BLOCKS = 6  # all writes go to these
WRITES = 100
THREADS = 3

# Overlapping writes of 1 or 2 blocks from several threads at once.
GUEST_WRITERS = """
import mmap, os, random, sys, threading
device, writes, blocks, threads = sys.argv[1], *map(int, sys.argv[2:])
def run(seed):
    rnd, fd, buf = random.Random(seed), os.open(device, os.O_WRONLY | os.O_DIRECT), mmap.mmap(-1, 8192)
    for n in range(writes):
        size = rnd.choice((4096, 8192))
        buf[:size] = bytes([rnd.randrange(1, 127)]) * size
        os.pwritev(fd, [memoryview(buf)[:size]], rnd.randrange(blocks - 1) * 4096)
threads = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
[t.start() for t in threads]
[t.join() for t in threads]
"""


def both_primary(pair: KernelPair) -> None:
    pair.our_primary()
    pair.kernel.adm("primary")
    pair.wait_ours(role="Primary", peer_role="Primary")
    pair.wait_kernel(role="Primary", peer_role="Primary")


class OurWriters:
    """The same load through our NBD server."""

    def __init__(self, pair: KernelPair) -> None:
        self._pair = pair
        self._errors: list[Exception] = []
        self.stop = threading.Event()

    def _run(self, seed: int) -> None:
        try:
            with self._pair.ours.client() as client:
                n = seed
                while not self.stop.is_set():
                    n = n * 1103515245 + 12345 & 0x7FFFFFFF
                    data = bytes([128 | n >> 16 & 127]) * BLOCK * (1 + (n >> 4 & 1))
                    client.write((n >> 8) % (BLOCKS - 1) * BLOCK, data)
        except Exception as error:
            self._errors.append(error)

    def __enter__(self) -> OurWriters:
        self._threads = [threading.Thread(target=self._run, args=(n + 1,)) for n in range(THREADS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]


@pytest.mark.parametrize("ours", [True, False], ids=["flag-here", "flag-there"])
@pytest.mark.parametrize("delay_ms", [0, pytest.param(15, marks=pytest.mark.interop)])
def test_crossing_writes_end_in_the_same_content(make_pair: PairMaker, ours: bool, delay_ms: int) -> None:
    pair = make_pair(net="allow-two-primaries yes;", relay={"delay_ms": delay_ms}, allowed=CONFLICTS)
    pair.our_primary()
    pair.our_secondary()
    reconnect_until_flag(pair, ours=ours)
    both_primary_again(pair)
    with OurWriters(pair):
        numbers = [str(number) for number in (WRITES, BLOCKS, THREADS)]
        pair.kernel.guest.run([SYSTEM_PYTHON, "-c", GUEST_WRITERS, pair.kernel.device, *numbers], 120)
    conflicts = pair.ours.status()["volumes"][0]["counters"]["conflicts"]
    assert conflicts > 0
    check_end(pair)


def both_primary_again(pair: KernelPair) -> None:
    pair.ours.call("primary")
    pair.kernel.adm("primary")
    pair.wait_ours(role="Primary", peer_role="Primary")


@pytest.mark.interop
def test_lost_link_is_a_split_brain(make_pair: PairMaker) -> None:
    pair = make_pair(net="allow-two-primaries yes;", allowed=LINK_LOST)
    both_primary(pair)
    pair.lab.net.link(0, up=False)
    try:
        pair.wait_kernel(cstate="WFConnection|Unconnected")
        pair.wait_ours(connection="WFConnection|Unconnected")
    finally:
        pair.lab.net.link(0, up=True)
    pair.wait_ours(connection="StandAlone")
    assert "plit" in pair.ours.status()["reason"]
    pair.wait_kernel(cstate="StandAlone")


def test_setting_of_one_side_alone_is_refused_by_both(make_pair: PairMaker) -> None:
    refusal = "incompatible|error receiving ReportProtocol"
    pair = make_pair(net="", other_net="allow-two-primaries yes;", allowed=refusal)
    pair.up()
    pair.wait_stand_alone()
    assert "allow-two-primaries" in pair.ours.status()["reason"]
    pair.wait_kernel(cstate="StandAlone")


def test_short_window_of_two_primaries(make_pair: PairMaker) -> None:
    pair = make_pair(net="allow-two-primaries yes;")
    pair.our_primary()
    with pair.ours.client() as client:
        client.write(0, os.urandom(65536))
        pair.kernel.adm("primary")
    pair.our_secondary()
    pair.kernel.write(64, 64)
    pair.wait_kernel(role="Primary", peer_role="Secondary")
    pair.compare()
