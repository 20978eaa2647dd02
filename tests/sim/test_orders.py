# SPDX-License-Identifier: Apache-2.0
"""What the random scenario expects of an operator's orders, in sequences that seeds seldom draw."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from repl.drbd.states import ConnectionState, DiskState
from tests.lib.tools import require_sim

MINUTE_MS = 60_000
SECOND = 1_000_000_000  # ns


@contextmanager
def scene() -> Iterator[Any]:
    """Two nodes in sync with two volumes, node 0 Primary; the next order goes to node 1."""
    require_sim()
    from tests.sim.cluster import QUICK_NET, Load, Setup
    from tests.sim.plan import Plan
    from tests.sim.scenario import Scenario

    setup = Setup(external=True, volumes=2, net=QUICK_NET)
    found = Scenario(1, Plan(setup, Load(), faults={}, steps=(), gap_ms=1, initial_sync=False))
    try:
        found.c.connect_fresh()
        found.oracle.begin()
        found.c.ask(0, "primary")
        found.oracle.take_over(0)
        found.rng = random.Random(next(seed for seed in range(99) if random.Random(seed).randrange(2) == 1))
        yield found
    finally:
        found.c.close()


def takes_a_minute(found: Any, node: int) -> None:
    """Each operation on the metadata of the node's first volume does, until `is_fast_again`."""
    found.slow_down(found.c.shells[node].places[0].md, 1_000_000, MINUTE_MS)


def is_fast_again(found: Any, node: int) -> None:
    found.no_longer_slow(found.c.shells[node].places[0].md, MINUTE_MS)


def assert_answered_late(found: Any, before_ms: float) -> None:
    assert found.c.events(1, text="Tentative connect: ")
    assert found.c.now_ms - before_ms > found.bound_ms()


def test_tentative_connect_waits_for_a_peer_whose_metadata_is_slow() -> None:
    """No connection is made until it answers (decision 0043): the question is answered then."""
    with scene() as found:
        takes_a_minute(found, 0)
        found.c.cut(silent=False)
        found.c.until(lambda: found.c.node(0).late.numbers == [0], 20_000, "the loss is not written")
        is_fast_again(found, 0)
        found.c.heal()
        before_ms = found.c.now_ms
        found.fault_tentative()
        assert_answered_late(found, before_ms)
        found.c.until(lambda: found.c.in_sync, 60_000, "in sync")


def test_what_the_metadata_still_owes_is_no_change_by_a_tentative_connect() -> None:
    """The end of a resync has not been written when the question is asked."""
    with scene() as found:
        c = found.c
        c.ask(1, "disconnect")
        for number in c.numbers:
            c.serve(0, number).write(1, 2)
        c.shells[0].data.settings(read_min_ns=2 * SECOND, read_max_ns=2 * SECOND)
        c.ask(1, "connect")
        c.until(lambda: c.volume_in_sync(1), 20_000, "the second volume")
        assert c.state(1)[1] == ConnectionState.SYNC_TARGET
        takes_a_minute(found, 1)
        c.until(lambda: c.node(1).late.numbers == [0], 5 * MINUTE_MS, "its end is not written, its bits are")
        assert c.state(1)[2] == DiskState.INCONSISTENT
        is_fast_again(found, 1)
        c.cut(silent=False)
        c.until(lambda: c.node(1).cstate == ConnectionState.WF_CONNECTION, 20_000, "alone")
        c.heal()
        before_ms = c.now_ms
        found.fault_tentative()
        assert_answered_late(found, before_ms)
        assert c.state(1)[2] == DiskState.UP_TO_DATE
        c.until(lambda: c.in_sync, 60_000, "in sync")
