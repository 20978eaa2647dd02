# SPDX-License-Identifier: Apache-2.0
"""A question of an online verify reaches the target in pieces, and writes come between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from repl.engine.commands import Resync
from tests.lib.tools import require_sim

BLOCK = 4096
MS = 1_000_000


def verified_below_large_writes(seed: int, version: int) -> tuple[Any, int]:
    """The report, and how long the slowest write took, in milliseconds."""
    from tests.sim.app import Load
    from tests.sim.cluster import QUICK_NET, Cluster, Setup

    resync = Resync(resync_rate_kib=4096, plan_ahead=0, max_rate_kib=4096, min_rate_kib=0)
    setup = Setup(net=replace(QUICK_NET, verify_alg="crc32c", protocol_max=version), resync=resync, disk_bytes=1 << 20)
    with Cluster(seed, setup) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        pair.world.net(1, 0, tiny_ppm=200_000, partial_ppm=600_000, latency_max_ns=2 * MS)
        first = pair.world.lib.re_sim_op_count(pair.world.sim)
        app.load(Load(queue_depth=6, read_percent=0, min_bytes=65536, max_bytes=262144, think_max_ms=2))
        pair.ask(1, "verify")
        report = pair.ask(1, "wait-verify")
        app.stop()
        last = pair.world.lib.re_sim_op_count(pair.world.sim)
        ops = [pair.op(n) for n in range(first, last)]
        assert len(ops) > 20 and not any(op.error for op in ops)
        pair.check_idle_pair()
        return report, max(op.completed_ns - op.invoked_ns for op in ops) // MS


@pytest.mark.parametrize(
    ("seed", "version"),
    [*((seed, 101) for seed in (19, 23, 30, 41, 52, 382)), *((seed, 99) for seed in (14, 24, 25, 55))],
)
def test_no_write_waits_for_a_timeout_and_no_false_alarm(seed: int, version: int) -> None:
    """Below version 100 neither node knows that the other runs this software."""
    require_sim()
    report, slowest_ms = verified_below_large_writes(seed, version)
    assert (report["state"], report["differing_blocks"]) == ("complete", 0)
    assert slowest_ms < 600
