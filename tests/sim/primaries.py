# SPDX-License-Identifier: Apache-2.0
"""Scenarios of two Primaries: both nodes write to the same blocks while the link, the nodes and operators do what they
like.  What has to hold: P9 (both nodes equal, each write whole), P4, P7 and the acknowledged writes, but for those of a
split brain's loser."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from repl.drbd.states import ConnectionState, Role
from tests.sim.app import App, Load
from tests.sim.faults import Faults
from tests.sim.node_shell import Script
from tests.sim.plan import Plan, draw
from tests.sim.world import ACKED, TAGS, SimFailure

SPAN = 96 << 10  # all writes go to its sectors
SECTOR = 512
SLOWEST_MS = 300_000  # what had been sent before a slow link became fast comes at 1 KiB/s
ALONE = ConnectionState.STANDALONE
BEHIND = "This node is Primary but should become resync target"
STONITH = "resource-and-stonith"
NETWORK = ("cut", "reset", "half_open", "flap", "silence", "one_socket", "slow_link", "tiny", "flip", "freeze")
FROZEN_STEPS = ("cut", "reset", "reset", "flap", "one_socket", "half_open", "tiny", "client", "suspend", "rest")
STEPS = (*NETWORK, "crash", "power", "both_power", "client", "demote", "suspend", "reconnect", "detach", "rest", "rest")


def plan_of(seed: int, *, frozen: bool) -> Plan:
    """Two Primaries with the rest as for any seed; ``frozen``: only interruptions that I/O waits for the end of."""
    rng = random.Random(f"primaries {seed}")
    drawn = draw(seed)
    net = replace(
        drawn.setup.net, two_primaries=True, protocol=3, on_congestion="block", after_sb_0pri=0, after_sb_1pri=0,
        rr_conflict="disconnect", fencing=STONITH if frozen else rng.choice(("dont-care", "dont-care", STONITH)),
        protocol_max=rng.choice((100, 101)), csums_alg="",
    )  # fmt: skip
    setup = replace(drawn.setup, net=net, volumes=1, room_bytes=0, resync_in_turn=False, on_no_data="io-error",
                    resync=replace(drawn.setup.resync, use_csums=False, resync_rate_kib=20_000),
                    handlers=("fence-peer", "unfence-peer"),
                    overrides={**drawn.setup.overrides, "split_brain_undo": False})  # fmt: skip
    load = Load(read_percent=0, zero_percent=rng.choice((0, 5)), trim_percent=rng.choice((0, 5)),
                flush_percent=rng.choice((0, 5)), fua_percent=5, queue_depth=rng.choice((2, 6, 12)),
                max_bytes=rng.choice((4096, 16384, 65536)), align_bytes=rng.choice((512, 4096)),
                hot_percent=rng.choice((0, 60)), think_max_ms=rng.choice((3, 10)), span_length=SPAN)  # fmt: skip
    steps = rng.choices(FROZEN_STEPS if frozen else STEPS, k=rng.randint(2, 8))
    return Plan(setup, load, {}, tuple(steps), rng.choice((20, 100, 500)), initial_sync=False)


class Primaries(Faults):
    """One run."""

    def __init__(self, seed: int, *, frozen: bool = False) -> None:
        super().__init__(seed, plan_of(seed, frozen=frozen))
        self.frozen_only = frozen
        status = 1 if frozen else self.rng.choice((1, 1, 7))
        for shell in self.c.shells:
            shell.scripts["fence-peer"] = Script(status, delay_ms=self.rng.choice((0, 100, 3000)))
        self.done: list[str] = []
        self.is_lossy = False  # acknowledged writes were given up, or both nodes have lost their caches
        self.is_torn = False
        self.lost_power = [False, False]  # since they were in sync: a write that nobody has answered may be torn
        self.crossed = self.trace = 0

    def run(self) -> None:
        try:
            self.c.connect_fresh(skip_initial_sync=True)
            self.oracle.begin()
            self.serve_both()
            for number, name in enumerate(self.plan.steps):
                self.rng = random.Random(f"primaries {self.seed}/{number}")
                self.c.run(self.rng.randint(1, self.plan.gap_ms))
                self.done.append(name)
                self.c.log(f"---- {name} ({self.c.describe()})")
                getattr(self, f"fault_{name}")()
                if self.rng.random() < 0.5:
                    self.settle()
            self.settle()
            self.end()
            self.trace = self.c.world.trace_hash
        finally:
            self.c.close()

    # ---- applications ----

    def serve_both(self) -> bool:
        """False if the link turns out to have been broken all the time."""
        for node in (0, 1):
            if any(app.node == node and not app.is_closed for app in self.apps):
                continue
            if self.c.node(node).role != Role.PRIMARY and not self.try_ask(node, "primary"):
                if not self.c.in_sync:
                    return False
                raise SimFailure(f"node {node} of a pair in sync is refused as Primary ({self.c.describe()})")
            app = App(self.c, node)
            self.c.until(lambda app=app: app.is_open or app.is_refused or app.is_closed, 20_000, "a served client")
            if not app.is_open:
                raise SimFailure(f"node {node} serves no client ({self.c.describe()})")
            self.apps = [a for a in self.apps if not a.is_closed] + [app]
        self.load()
        return True

    def apps_leave(self, node: int) -> None:
        gone = [app for app in self.apps if app.node == node]
        self.apps = [app for app in self.apps if app.node != node]
        for app in gone:
            app.end_load()
        self.c.wait(lambda: all(app.is_idle or app.is_closed for app in gone), 3000)
        for app in gone:
            app.leave(orderly=app.is_idle)
        self.c.wait(lambda: all(v.open_count == 0 for v in self.c.node(node).volumes.values()), 3000)

    # ---- faults of its own ----

    def fault_rest(self) -> None:
        self.pause(1000)

    def fault_client(self) -> None:
        node = self.rng.randrange(2)
        for app in self.apps:
            if app.node == node:
                app.leave(orderly=False)
        self.apps = [app for app in self.apps if app.node != node]
        self.pause(300)

    def fault_suspend(self) -> None:
        node = self.rng.randrange(2)
        self.try_ask(node, "suspend-io")
        if self.rng.random() < 0.4:
            self.c.world.lib.re_sim_net_reset(self.c.world.sim, 0, 1)
        self.pause(2000)
        self.try_ask(node, "resume-io")

    def fault_demote(self) -> None:
        node = self.rng.randrange(2)
        self.apps_leave(node)
        if self.try_ask(node, "secondary"):
            self.coverage("after a demotion", 1)
        self.pause(1000)

    def fault_reconnect(self) -> None:
        """Refused while both are Primary, unless it is forced."""
        node = self.rng.randrange(2)
        if self.try_ask(node, "disconnect", force=self.rng.random() < 0.5):
            self.pause(500)
            self.try_ask(node, "connect")

    def fault_detach(self) -> None:
        node = self.rng.randrange(2)
        if self.try_ask(node, "detach", volume=0):
            self.pause(1000)
            if not self.try_ask(node, "attach", volume=0):
                self.pause(1000)

    def _die(self, kill: Callable[[int], None], *nodes: int) -> None:
        for node in nodes:
            self.apps = [app for app in self.apps if app.node != node]
            kill(node)
        self.pause(2000)
        self.back(*nodes)
        self.pause(1000)

    def fault_crash(self) -> None:
        node = self.rng.randrange(2)
        if self.lost_power[1 - node] and self.c.node(node).is_connected:
            self.is_lossy = self.is_torn = True  # it dies without having noticed: either copy may win then
        self._die(self.crash, node)

    def fault_power(self) -> None:
        node = self.rng.randrange(2)
        self.lost_power[node] = True
        alone = not self.c.in_sync or self.c.node(1 - node).role != Role.PRIMARY
        self.is_lossy = self.is_lossy or alone  # the copy that wins afterwards, with its volatile cache
        self.is_torn = self.is_torn or alone
        self._die(self.power, node)

    def fault_both_power(self) -> None:
        self.is_lossy = self.is_torn = True
        self._die(self.power, 0, 1)

    # ---- together again ----

    def settle(self) -> None:
        """The faults end; both are in sync, by an operator's word after a split brain, and serve."""
        self.c.heal()
        self.back_all()
        self.meet()
        if not self.serve_both():
            self.meet()
            assert self.serve_both(), "the network is open, and the link broke twice"
        self.c.run(300)

    def meet(self) -> None:
        c = self.c

        def alone() -> list[int]:
            return [node for node in (0, 1) if c.node(node).cstate == ALONE]

        for _ in range(6):
            if self.wait_calmly(lambda: c.in_sync or bool(alone()), 3 * self.bound_ms()) and c.in_sync:
                break
            self.end_load()
            c.wait(lambda: c.stand_alone, 3000)  # the other one finds out as well
            split = [c.node(node).reason for node in alone() if "plit" in c.node(node).reason]
            behind = [node for node in alone() if c.node(node).reason.startswith(BEHIND)]
            bare = [node for node in alone() if "This Primary has no disk" in c.node(node).reason]
            if bare:  # its clients have seen more than its own disk has: they leave, then that disk is a target
                self.apps_leave(bare[0])
                self.demote(bare[0])
                self.bring_disks()
            elif behind:  # the other one went on alone, by order
                self.solve(c.node(behind[0]).reason, behind[0])
            elif split:
                self.solve(split[0], self.rng.randrange(2))
            elif not alone() and not self.is_syncing:
                self.bring_disks()
            for node in alone():
                self.try_ask(node, "connect")
        if not self.wait_calmly(lambda: c.in_sync, 240_000):
            raise SimFailure(f"P10: not in sync ({c.describe()})")
        self.lost_power = [False, False]

    def bring_disks(self) -> None:
        for node in (0, 1):
            answer = self.c.fire(node, "attach", volume=0)
            self.c.until(lambda answer=answer: answer.is_done, 90_000, "the answer to an attach")
            if "Split-Brain" in str(answer.error):  # that disk went on alone: as the error advises
                self.try_ask(node, "disconnect", force=True)
                self.try_ask(1 - node, "disconnect", force=True)
                self.try_ask(node, "attach", volume=0)

    def solve(self, reason: str, loser: int) -> None:
        """A split brain: one of the nodes gives up what it has."""
        c = self.c
        if self.frozen_only and "suspend" not in self.done and "client" not in self.done:
            raise SimFailure(f"split brain although I/O was frozen: {reason}")
        winner = 1 - loser
        self.is_torn = self.is_torn or self.lost_power[winner]
        c.log(f"operator: {reason} Node {winner} wins")
        self.oracle.may_lose(loser)
        self.is_lossy = True
        self.try_ask(winner, "resume-io")
        self.try_ask(loser, "resume-io")
        self.apps_leave(loser)
        self.demote(loser)
        for node in (0, 1):
            if c.node(node).cstate != ALONE:
                self.try_ask(node, "disconnect", force=True)
        self.fire_and_wait(loser, "connect", discard_my_data=True)
        self.fire_and_wait(winner, "connect")

    def end(self) -> None:
        """P9: one content, each write whole."""
        c = self.c
        while True:
            self.end_load()
            if c.wait(lambda: c.in_sync and all(app.is_idle for app in self.apps), SLOWEST_MS):
                break
            if c.in_sync:
                raise SimFailure(f"P9: a write is never answered ({c.describe()})")
            self.settle()  # what had been slow on its way has ended the connection once more
        apps, self.apps = self.apps, []
        c.wait_idle()
        c.check_equal()
        self.coverage("idle", 0)
        for node in (0, 1):
            c.check_audit(node, TAGS if self.is_lossy else ACKED, "written by two Primaries")
        if not self.is_torn:
            self.check_whole()
        self.crossed = sum(int(c.node(node).stats.volume_stats(0).conflicts) for node in (0, 1))
        for app in apps:
            app.leave()
        for node in (0, 1):
            c.until(lambda n=node: c.volume(n).open_count == 0, 5000, "the end of the applications")
        for node in (0, 1):
            c.ask(node, "secondary")
            engine = c.node(node).stats.engine_stats()
            if engine.transfer_log or engine.epochs_open:
                raise SimFailure(f"node {node}: a demoted node has a transfer log ({c.describe()})")

    def check_whole(self) -> None:
        """Where two writes overlap only one of them is visible."""
        c, world = self.c, self.c.world
        op, more = world.ffi.new("uint64_t *"), world.ffi.new("uint64_t *")
        shown: dict[int, set[int]] = {}  # operation -> its sectors that can be seen
        content = c.shells[0].data.content(0, SPAN)
        for sector in range(SPAN // SECTOR):
            piece = bytes(content[sector * SECTOR : (sector + 1) * SECTOR])
            if world.lib.re_sim_tag_parse(world.sim, piece, op, more):
                shown.setdefault(int(op[0]), set()).add(sector)
        area = {n: range(c.op(n).offset // SECTOR, (c.op(n).offset + c.op(n).length) // SECTOR) for n in shown}
        for one, sectors in shown.items():
            for other, others in shown.items():
                if one < other and (sectors & set(area[other])) and (others & set(area[one])):
                    raise SimFailure(f"P9: writes {one} ({area[one]}) and {other} ({area[other]}) are mixed")


def run_primaries(seed: int, *, frozen: bool = False) -> Primaries:
    """A failure says how to see it again."""
    scenario = Primaries(seed, frozen=frozen)
    try:
        scenario.run()
    except Exception as error:
        raise SimFailure(
            f"{type(error).__name__}: {error}\nseed {seed}, steps so far: {' '.join(scenario.done)}\n"
            f"again: .venv/bin/python tools/seeds.py --scenario {'frozen' if frozen else 'primaries'} "
            f"--first {seed} --count 1 --log\n{scenario.c.tail(150)}"
        ) from error
    return scenario
