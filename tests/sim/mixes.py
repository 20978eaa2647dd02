# SPDX-License-Identifier: Apache-2.0
"""Usual scenarios of one kind: what random plans bring together too rarely to be sure of.

`ahead`: protocol A with pull-ahead over a link that stays too slow for the application, so that nodes are Ahead and
Behind most of the time, while disks leave and nodes die.  `pass_on`: disks with on-io-error pass_on that fail again and
again in reads, writes and resyncs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from repl.node.volume import READ_BALANCING
from tests.sim.plan import FIRST_WITH_VOLUMES, Plan, draw, patient, short

AHEAD = {
    "cut": 3, "reset": 2, "half_open": 2, "flap": 1, "one_socket": 3, "secondary_crash": 3, "secondary_power": 3,
    "primary_crash": 3, "primary_power": 2, "double_death": 3, "failover": 3, "crash_point": 5, "crash_loop": 2,
    "resync_cut": 4, "freeze": 1, "disk_error": 4, "disk_range": 2, "disk_stuck": 1, "slow": 1, "pause_resync": 2,
    "detach": 5, "down_up": 1, "switch": 3, "reconnect": 2, "invalidate": 2, "invalidate_remote": 2, "operators": 2,
    "split": 1, "diskless": 2, "resize": 2, "net_options": 1, "disk_options": 1, "slow_link": 2, "verify": 1,
    "suspend": 1,
}  # fmt: skip
PASS_ON = {
    "cut": 3, "reset": 2, "one_socket": 2, "secondary_crash": 2, "secondary_power": 2, "primary_crash": 2,
    "primary_power": 2, "double_death": 2, "failover": 3, "crash_point": 4, "crash_loop": 1, "resync_cut": 4,
    "disk_error": 8, "disk_range": 5, "detach": 4, "switch": 3, "reconnect": 2, "invalidate": 2,
    "invalidate_remote": 1, "pause_resync": 1, "verify": 2, "diskless": 3, "resize": 2, "disk_options": 1, "slow": 1,
}  # fmt: skip
LINK_RATES = (200_000, 1_000_000)  # bytes a second


def _mixed(name: str, seed: int, weights: dict[str, int]) -> tuple[Plan, random.Random]:
    rng, plan = random.Random(f"{name}/{seed}"), draw(seed)
    names = [fault for fault in weights if rng.random() < 0.5] or list(weights)
    faults = {fault: weights[fault] for fault in names}
    steps = tuple(rng.choices(names, list(faults.values()), k=rng.randint(2, 8)))
    net = replace(plan.setup.net, protocol_max=max(plan.setup.net.protocol_max, FIRST_WITH_VOLUMES))
    return short(plan, setup=replace(plan.setup, net=net), faults=faults, steps=steps), rng


def _ahead(seed: int) -> Plan:
    plan, rng = _mixed("ahead", seed, AHEAD)
    net = plan.setup.net
    net = replace(
        net,
        protocol=1,
        on_congestion="pull-ahead",
        congestion_fill_sectors=rng.choice((64, 64, 512)),
        fencing="resource-only" if net.fencing == "resource-and-stonith" else net.fencing,
        timeout_ms=max(net.timeout_ms, 1000),
    )
    overrides = plan.setup.overrides | {"on_io_error": rng.choice(("detach", "pass_on"))}
    setup = replace(plan.setup, net=net, overrides=overrides)
    if setup.on_no_data == "suspend-io":
        setup = patient(setup, plan.load)
    return short(plan, setup=setup, link_bytes_per_second=rng.choice(LINK_RATES))


def _pass_on(seed: int) -> Plan:
    plan, rng = _mixed("pass_on", seed, PASS_ON)
    balancing = rng.choice(("prefer-local", *READ_BALANCING))
    overrides = plan.setup.overrides | {"on_io_error": "pass_on", "read_balancing": balancing}
    return short(plan, setup=replace(plan.setup, overrides=overrides))


PLANS: dict[str, Callable[[int], Plan]] = {"usual": draw, "ahead": _ahead, "pass_on": _pass_on}
