# SPDX-License-Identifier: Apache-2.0
"""A Primary with fencing whose peer, link, handlers and operators do what they like: nothing completes while I/O is
suspended, nothing acknowledged is lost, and in the end both disks are equal."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest

from repl.drbd.states import ConnectionState, DiskState, Role
from tests.sim.cluster import QUICK_NET, App, Cluster, Load, Setup
from tests.sim.node_shell import Script

SEEDS = max(8, int(os.environ.get("REPL_SIM_SEEDS", "24")) // 3)
STATUSES = (0, 1, 3, 4, 5, 6, 7)
STEPS = 25
ENGINE_HEARS_MS = 5  # of a suspension that no lost link precedes


class Storm:
    """One seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        protocol = self.rng.choice((2, 3, 3))
        net = replace(QUICK_NET, fencing="resource-and-stonith", protocol=protocol)
        handlers = ("fence-peer", "unfence-peer", "before-resync-target")
        self.on_no_data = self.rng.choice(("io-error", "suspend-io"))
        self.cluster = Cluster(seed, Setup(net=net, handlers=handlers, on_no_data=self.on_no_data))
        self.cluster.connect_fresh()
        self.app: App | None = None
        self.frozen_at: int | None = None
        self.suspended_ms: float | None = None
        self.cluster.observers.append(self.look)

    def answered(self) -> int:
        assert self.app is not None
        return int(self.app.stats.submitted - self.app.stats.in_flight)

    def look(self, index: int) -> None:
        """What was answered when node 0 came to be suspended is all that may be answered until it no longer is."""
        node = self.cluster.shells[0].node
        if self.app is None or node is None or not node.volumes[0].state.suspended:
            self.frozen_at = self.suspended_ms = None
        elif index == 0 and self.suspended_ms is None:
            self.suspended_ms = self.cluster.now_ms
        elif self.frozen_at is None and self.cluster.now_ms < (self.suspended_ms or 0) + ENGINE_HEARS_MS:
            return
        elif self.frozen_at is None:
            self.frozen_at = self.answered()
        else:
            assert self.answered() == self.frozen_at, "completed while suspended"

    def serve(self) -> None:
        if self.app is not None and not self.app.is_closed:
            return
        self.app, self.frozen_at = None, None
        app = App(self.cluster, 0)
        if self.cluster.wait(lambda: app.is_open or app.is_refused or app.is_closed, 8_000) and app.is_open:
            app.load(Load(queue_depth=6, think_max_ms=3, max_bytes=16384, no_overlap=self.rng.random() < 0.5))
            self.app = app

    def step(self) -> None:
        c, rng = self.cluster, self.rng
        c.shells[0].scripts["fence-peer"] = Script(rng.choice(STATUSES), rng.choice((0, 50, 3_000)))
        c.shells[1].scripts["before-resync-target"] = Script(int(rng.random() < 0.1), rng.choice((0, 500)))
        what = rng.choice(("cut", "cut", "heal", "heal", "reset", "suspend", "resume", "disconnect", "leave", "connect",
                           "kill", "power", "serve", "serve", "outdate", "primary dies"))  # fmt: skip
        if what == "cut":
            c.cut(silent=rng.random() < 0.7)
        elif what == "heal":
            c.heal()
        elif what == "reset":
            c.cut(silent=False)
            c.run(rng.randrange(400))
            c.heal()
        elif what in ("suspend", "resume"):
            c.fire(0, f"{what}-io")
        elif what == "disconnect":
            c.fire(0, "disconnect", force=rng.random() < 0.3)
        elif what == "leave":
            c.fire(1, "disconnect", force=rng.random() < 0.3)
        elif what == "connect":
            c.fire(rng.randrange(2), "connect")
        elif what == "outdate":
            c.fire(1, "outdate")
        elif what in ("kill", "power") and c.shells[1].is_running:
            c.shells[1].crash() if what == "kill" else c.shells[1].power_off()
            c.run(rng.randrange(3_000))
            c.restart(1)
        elif what == "primary dies" and rng.random() < 0.3:
            self.app, self.frozen_at = None, None
            c.shells[0].crash()
            c.check_coverage("the Primary died")
            c.run(rng.randrange(1_000))
            c.restart(0)
        elif what == "serve":
            self.serve()
        c.run(rng.choice((50, 300, 2_000, 6_000)))

    def settle(self) -> None:
        """Everybody helps: both connected, in sync, equal."""
        c = self.cluster
        c.heal()
        for shell in c.shells:
            shell.scripts.clear()
        c.shells[0].scripts["fence-peer"] = Script(1)

        def help_out() -> None:
            for index in (0, 1):
                if c.state(index)[1] == ConnectionState.STANDALONE:
                    c.fire(index, "connect")

        for _ in range(40):
            help_out()
            if c.wait(lambda: c.in_sync, 3_000):
                break
        if not c.in_sync and c.state(0)[0] == Role.SECONDARY and c.state(0)[2] < DiskState.UP_TO_DATE:
            c.ask(0, "primary", force=True)
        c.ask(0, "resume-io")
        c.until(lambda: c.in_sync, 60_000, "both in sync")
        if self.app is not None and not self.app.is_closed:
            self.app.stop()
        c.check_idle_pair()


@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_frozen_primary_keeps_its_promises(seed: int) -> None:
    storm = Storm(seed)
    with storm.cluster as cluster:
        try:
            storm.serve()
            for _ in range(STEPS):
                storm.step()
            storm.settle()
        except BaseException:
            print(cluster.tail(120))
            print(cluster.describe())
            raise
