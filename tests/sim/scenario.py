# SPDX-License-Identifier: Apache-2.0
"""A whole scenario from a seed: what the cluster is made of, what happens to it, what has to hold.

Phase 1: an application writes tagged sectors while faults of the classes that the seed has drawn come one after the
other (some of them together).  Phase 2: the faults end; the nodes have to find together (P10) and be equal (P5).
Phase 3: both nodes lose power and come back (P1, P2, P4).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from repl.drbd.states import ConnectionState, DiskState, Role
from tests.sim.mixes import PLANS
from tests.sim.orders import Orders
from tests.sim.plan import Plan, draw, short
from tests.sim.reach import Reach
from tests.sim.stage import PEER_MAY_LACK, PRIMARY_TARGET, TOO_OLD
from tests.sim.world import STRICT, SimFailure

SETTLE_MS = 240_000


class Scenario(Orders):
    """One run."""

    def __init__(
        self, seed: int, plan: Plan | None = None, keep: Sequence[int] | None = None, reach: Reach | None = None
    ) -> None:
        super().__init__(seed, plan or draw(seed))
        self.reach = reach
        self.keep = range(len(self.plan.steps)) if keep is None else keep  # steps that are made
        self.done: list[str] = []

    def run(self) -> int:
        """The trace's hash; SimFailure if something is wrong."""
        try:
            self.phase0()
            self.phase1()
            self.phase2()
            self.phase3()
            return self.c.world.trace_hash
        finally:
            if self.reach is not None:
                self.watch.take(self.reach)
            self.c.close()

    # ---- phases ----

    def phase0(self) -> None:
        self.c.log(f"seed {self.seed}: {self.plan.setup}")
        self.c.log(f"faults {self.plan.faults} load {self.plan.load}")
        self.c.connect_fresh(skip_initial_sync=not self.plan.initial_sync)
        self.oracle.begin()
        self.serve(self.rng.randrange(2))

    def phase1(self) -> None:
        self.set_link_rate(self.plan.link_bytes_per_second)
        for number in self.keep:
            name = self.plan.steps[number]
            self.rng = random.Random(f"{self.seed}/{number}")  # the same for a step whatever came before
            self.c.run(self.rng.randint(1, self.plan.gap_ms))
            if self.pulls_ahead and self.rng.random() < 0.5:
                self.c.wait(self.is_ahead, 1000)
            self.done.append(f"{number}:{name}")
            self.c.log(f"---- {name} ({self.c.describe()})")
            getattr(self, f"fault_{name}")()
            self.no_false_alarm()
            self.undo.check(f"after {name}")
            if not self.apps or any(app.is_closed for app in self.apps):
                self.serve(self.wanted)
        self.rng = random.Random(f"{self.seed}/end")
        self.c.run(self.rng.randint(1, self.plan.gap_ms))

    def phase2(self) -> None:
        c = self.c
        c.log("==== phase 2: the faults end")
        c.heal()
        self.set_link_rate(0)
        for shell in c.shells:
            for disk in shell.disks:
                disk.heal()
        c.run(100)
        for index in (0, 1):
            self.oracle.disk_healed(index)
        self.stop_app()
        slow = [disk for shell in c.shells for disk in shell.disks if disk.in_flight]
        c.wait(lambda: not any(disk.in_flight for disk in slow), 130_000)  # what takes a minute or two
        self.settle()
        self.adopt_size()
        c.wait_idle()
        c.check_equal()
        c.check_coverage("idle")
        self.undo.check("idle")
        self.oracle.settled()
        # A pair in sync works: the application is served again, and nothing that it writes gets lost.
        server = self.rng.randrange(2)
        if c.node(1 - server).role == Role.PRIMARY:
            c.ask(1 - server, "secondary")
            c.until(lambda: c.node(server).peer_role == Role.SECONDARY, 5000, "the news of the demotion")
        self.serve(server, must=True)
        c.run(200)

    def phase3(self) -> None:
        c = self.c
        c.log("==== phase 3: both lose power and come back")
        self.power(0, 1)
        self.apps = []
        self.undo.check("both are without power")
        self.back(0, 1)
        self.settle()
        self.adopt_size()
        c.wait_idle()
        c.check_equal()
        self.undo.check("at the end")
        self.oracle.settled()

    # ---- P10 ----

    def settle(self) -> None:
        """Everything is up and open: in sync within bounds, after the operator's help where that is due."""
        c = self.c
        self.back_all()
        for index in (0, 1):
            self.bring_disk_back(index)
        self.give_up_unconfirmed()
        bound = self.bound_ms()
        alone = ConnectionState.STANDALONE
        for _ in range(4):  # a StandAlone node waits for its operator
            for index in (0, 1):
                if c.state(index)[1] == alone and not (c.node(index).reason and c.stand_alone):
                    self.try_ask(index, "connect")
            if not c.wait(lambda: c.connected or any(c.state(i)[1] == alone for i in (0, 1)), bound):
                if not self.retries_in_vain:
                    raise SimFailure(f"P10: not connected within {bound} ms ({c.describe()})")
                for index in (0, 1):
                    self.try_ask(index, "disconnect", force=True)
                break
            if c.connected or c.wait(lambda: c.stand_alone, 3000):
                break
        self.no_false_alarm()
        if not c.connected:
            for index in (0, 1):  # a Primary that should become target refuses alone; its peer goes on trying
                if c.state(index)[1] != alone and "Split-Brain" not in c.node(1 - index).reason:
                    self.try_ask(index, "disconnect", force=True)
            self.resolve(bound)
        for index in (0, 1):
            self.try_ask(index, "resume-sync", volume=0)
        if not c.wait(lambda: c.in_sync, 5000) and not self.is_syncing:
            self.mend()
        if c.wait(lambda: c.in_sync or c.stand_alone, SETTLE_MS) and not c.in_sync:
            refusals = (TOO_OLD, "Unrelated")  # what was resynced was interrupted
            if any(text in c.node(index).reason for index in (0, 1) for text in refusals):
                self.resolve(bound)
        if not c.wait(lambda: c.in_sync, SETTLE_MS):
            raise SimFailure(f"P10: connected, not in sync within {SETTLE_MS} ms ({c.describe()})")

    def give_up_unconfirmed(self) -> None:
        """Protocols A and B: a Primary's disk has failed, its peer may lack the last writes; go on with the peer's."""
        for index in (0, 1):
            if PEER_MAY_LACK in self.c.node(index).reason and self.c.node(index).role == Role.PRIMARY:
                self.oracle.may_lose(index)
                self.demote(index)

    @property
    def retries_in_vain(self) -> bool:
        """rr-conflict retry-connect: a Primary that should become target asks again and again until it is demoted."""
        nodes = [self.c.node(index) for index in (0, 1)]
        return any(n.settings.net.rr_conflict == "retry-connect" and PRIMARY_TARGET in n.reason for n in nodes)

    def mend(self) -> None:
        """A disk that has passed errors on gets its blocks with the next connection, one that is away is attached."""
        c = self.c
        for index in (0, 1):
            for number in c.numbers:
                if c.state(index, number)[2] < DiskState.INCONSISTENT:
                    self.try_ask(index, "attach", volume=number)
        self.try_ask(1 - max(self.oracle.primary, 0), "disconnect", force=True)
        for index in (0, 1):
            if c.node(index).cstate == ConnectionState.STANDALONE:
                self.try_ask(index, "connect")
        c.wait(lambda: c.connected, self.bound_ms())

    def resolve(self, bound: int) -> None:
        """A split brain: the copy that served last wins."""
        c = self.c
        if not c.stand_alone:
            raise SimFailure(f"P10: split brain, but only one node is StandAlone ({c.describe()})")
        for index in (0, 1):
            if not c.node(index).reason and "Split-Brain" in c.node(1 - index).reason:
                raise SimFailure(f"node {index} is StandAlone and does not say why ({c.describe()})")
        winner = self._with_good_data(self.oracle.source())
        c.log(f"operator: split brain, node {winner} wins")
        for index in (0, 1):
            if c.node(index).role == Role.PRIMARY and index != winner:
                self.demote(index)
        self.oracle.may_lose(1 - winner)
        for number in tuple(c.shells[1 - winner].undo_facts):  # of an earlier one: it has been looked at
            self.try_ask(1 - winner, "undo-drop", volume=number)
        if any(text in c.node(index).reason for index in (0, 1) for text in ("Unrelated", TOO_OLD)):
            self.recreate(1 - winner)
        elif PRIMARY_TARGET in c.node(winner).reason:
            self.recreate(1 - winner)  # by the generations that one is ahead: --discard-my-data is for split brains
        else:
            self.fire_and_wait(1 - winner, "connect", discard_my_data=True)
        self.fire_and_wait(winner, "connect")
        if not c.wait(lambda: c.connected, bound):
            raise SimFailure(f"P10: not connected after a resolved split brain within {bound} ms ({c.describe()})")

    def _with_good_data(self, winner: int) -> int:
        """Who served last may have been given up since, by a policy, and be half overwritten: then the other one."""
        half = any(self.c.state(winner, n)[2] == DiskState.INCONSISTENT for n in self.c.numbers)
        whole = all(self.c.state(1 - winner, n)[2] == DiskState.UP_TO_DATE for n in self.c.numbers)
        return 1 - winner if half and whole else winner


def option_of(kind: str) -> str:
    return "" if kind == "usual" else f" --scenario {kind}"


def run_seed(
    seed: int, *, kind: str = "usual", keep: Sequence[int] | None = None, reach: Reach | None = None
) -> int:
    """The trace hash of a scenario of a kind (tests/sim/mixes.py); a failure says how to see it again."""
    scenario = Scenario(seed, PLANS[kind](seed), keep, reach)
    try:
        return scenario.run()
    except Exception as error:
        steps = "" if keep is None else f" --steps {','.join(map(str, keep)) or 'none'}"
        raise SimFailure(
            f"{type(error).__name__}: {error}\n"
            f"seed {seed}, faults so far: {' '.join(scenario.done)}\n"
            f"again: .venv/bin/python tools/seeds.py{option_of(kind)} --first {seed} --count 1 --log{steps}\n"
            f"{scenario.c.tail()}"
        ) from error


__all__ = ["STRICT", "Plan", "Scenario", "draw", "run_seed", "short"]
