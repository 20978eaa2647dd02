# SPDX-License-Identifier: Apache-2.0
"""A whole scenario from a seed: what the cluster is made of, what happens to it, what has to hold.

Phase 1: an application writes tagged sectors while faults of the classes that the seed has drawn come one after the
other (some of them together).  Phase 2: the faults end; the nodes have to find together (P10) and be equal (P5).
Phase 3: both nodes lose power and come back (P1, P2, P4).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from repl.drbd.states import ConnectionState, DiskState, Role
from repl.engine.commands import Resync
from repl.errors import ReplError
from repl.node.settings import NetSettings
from tests.sim.cluster import App, Cluster, Load, Setup
from tests.sim.oracle import Oracle
from tests.sim.world import MIB, STRICT, SimFailure

FAULTS = {
    "cut": 4, "reset": 2, "half_open": 2, "flap": 1, "secondary_crash": 2, "secondary_power": 2, "primary_crash": 2,
    "primary_power": 2, "both_power": 1, "both_crash": 1, "disk_error": 2, "disk_stuck": 1, "down_up": 1, "switch": 2,
    "reconnect": 1, "invalidate": 1, "operators": 1, "failover": 3, "split": 1, "client": 1, "freeze": 1, "slow": 1,
}  # fmt: skip
SETTLE_MS = 240_000


@dataclass(frozen=True)
class Plan:
    """What the seed has drawn."""

    setup: Setup
    load: Load
    faults: dict[str, int]  # class -> weight
    steps: int
    gap_ms: int
    initial_sync: bool


def draw(seed: int) -> Plan:
    """The scenario of a seed."""
    rng = random.Random(seed)
    version = rng.choice((101, 101, 101, 100))
    mib = rng.choice((1, 1, 1, 2, 2, 2, 4, 4, 8, 16, 64)) if rng.random() < 0.9 else rng.randint(1, 64)
    large = mib > 28
    ping_timeout = rng.choice((200, 300, 500))
    net = NetSettings(
        protocol=rng.choice((1, 2, 3, 3, 3)),
        timeout_ms=rng.choice((600, 1000, 2000, 6000)),
        ping_int_ms=rng.choice((1000, 2000, 5000, 10000)),
        ping_timeout_ms=ping_timeout,
        connect_int_ms=rng.choice((1000, 2000, 4000)),
        ko_count=rng.choice((0, 1, 2, 7)),
        max_epoch_size=rng.choice((1, 2, 3, 8, 64, 2048)),
        max_buffers=rng.choice((32, 64, 131, 2048)),
        use_rle=rng.random() < 0.8,
        strict_flush=rng.random() < 0.8,
        protocol_max=version,
        cram_hmac_alg=rng.choice(("", "", "sha1", "sha256")),
        shared_secret="secret",
    )
    resync = Resync(
        resync_rate_kib=rng.choice((4000, 20000, 100000)),
        plan_ahead=rng.choice((0, 0, 20)),
        fill_target=rng.choice((0, 100, 2000)),
        max_rate_kib=102400,
        min_rate_kib=rng.choice((0, 250, 4000)),
    )
    setup = Setup(
        disk_bytes=mib * MIB + rng.choice((64 << 10, 72 << 10, (64 << 10) + 512 * 8 * rng.randint(0, 4))),
        al_extents=rng.choice((7, 7, 8, 67)) if large else rng.choice((7, 67)),
        net=net,
        resync=resync,
        external=rng.random() < 0.2,
        requests=rng.choice((8, 16, 64, 256)),
        latency_max_us=rng.choice((50, 300, 2000, 20000)),
        write_max_us=rng.choice((100, 1000, 5000)),
        flush_max_us=rng.choice((100, 2000, 20000)),
        wake_max_us=rng.choice((10, 500, 5000, 30000)),
        partial_ppm=rng.choice((0, 100_000, 500_000)),
        tiny_ppm=rng.choice((0, 1000, 20_000)),
        buffer_bytes=rng.choice((8 << 10, 64 << 10, 256 << 10)),
        odd_sectors=rng.choice((0, 0, 1, 5)),
    )
    load = Load(
        queue_depth=rng.choice((1, 2, 4, 16)),
        read_percent=rng.choice((0, 20, 60)),
        flush_percent=rng.choice((0, 2, 10)),
        zero_percent=rng.choice((0, 3)),
        trim_percent=rng.choice((0, 3)),
        fua_percent=rng.choice((0, 5, 30)),
        hot_percent=rng.choice((0, 50, 90)),
        align_bytes=rng.choice((512, 4096, 4096)),
        max_bytes=rng.choice((4096, 16384, 65536, 262144, MIB)),
        think_max_ms=rng.choice((5, 20, 60)) * (3 if mib > 4 else 1),
    )
    names = [name for name in FAULTS if rng.random() < 0.4] or ["cut"]
    faults = {name: FAULTS[name] * rng.randint(1, 3) for name in names}
    return Plan(setup, load, faults, rng.randint(2, 8), rng.choice((50, 300, 1000)), rng.random() < 0.1)


class Scenario:
    """One run."""

    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.seed = seed
        self.plan = plan or draw(seed)
        self.rng = random.Random(seed + (1 << 32))
        self.c = Cluster(seed, self.plan.setup)
        self.oracle = Oracle(self.c)
        self.app: App | None = None
        self.wanted = 0  # where the application should run
        self.stale: set[int] = set()  # came back with a disk that had failed: not to be promoted alone
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
            self.c.close()

    # ---- phases ----

    def phase0(self) -> None:
        self.c.log(f"seed {self.seed}: {self.plan.setup}")
        self.c.log(f"faults {self.plan.faults} load {self.plan.load}")
        self.c.connect_fresh(skip_initial_sync=not self.plan.initial_sync)
        self.serve(self.rng.randrange(2))

    def phase1(self) -> None:
        names, weights = list(self.plan.faults), list(self.plan.faults.values())
        for _ in range(self.plan.steps):
            self.c.run(self.rng.randint(1, self.plan.gap_ms))
            name = self.rng.choices(names, weights)[0]
            self.done.append(name)
            self.c.log(f"---- {name} ({self.c.describe()})")
            getattr(self, f"fault_{name}")()
            self.no_false_alarm()
            if self.app is None or self.app.is_closed:
                self.serve(self.wanted)
        self.c.run(self.rng.randint(1, self.plan.gap_ms))

    def phase2(self) -> None:
        c = self.c
        c.log("==== phase 2: the faults end")
        c.heal()
        for shell in c.shells:
            for disk in {id(shell.data): shell.data, id(shell.md): shell.md}.values():
                disk.heal()
            c.world.lib.re_sim_engine_freeze(c.world.sim, shell.index, False)
        c.run(100)
        for index in (0, 1):
            self.oracle.disk_healed(index)
        self.stop_app()
        self.settle()
        c.wait_idle()
        c.check_equal()
        c.check_coverage("idle")
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
        self.app = None
        self.back(0, 1)
        self.settle()
        c.wait_idle()
        c.check_equal()
        self.oracle.settled()

    # ---- tools ----

    def alive(self, index: int) -> bool:
        return self.c.shells[index].is_running

    def serve(self, node: int, *, must: bool = False) -> bool:
        """Promote, audit, run the application; False if that is refused."""
        c = self.c
        if self.app is not None:
            self.stop_app()
        if not self.alive(node):
            if must:
                raise SimFailure(f"node {node} does not run")
            return False
        if c.in_sync:
            self.stale.clear()
        if node in self.stale:
            # Its generation may be one that the peer has left behind without its knowing (the end of a resync was not
            # written): what it wrote alone would be discarded without a word, as in DRBD.
            if not c.wait(lambda: c.in_sync or not self.alive(node), 20_000) or not self.alive(node):
                return False
            self.stale.clear()
        try:
            if c.node(node).role != Role.PRIMARY:
                c.ask(node, "primary", ms=90_000)
        except ReplError as error:
            if must:
                raise SimFailure(f"a pair in sync refuses a Primary: {error}") from error
            return False
        if not self.alive(node) or c.node(node).role != Role.PRIMARY:
            return False
        if not must and DiskState.UP_TO_DATE not in c.state(node)[2:]:
            return False  # a Primary that has lost its data: its clients get errors
        self.oracle.take_over(node)
        self.wanted = node
        try:
            self.app = c.serve(node)
        except SimFailure:
            if must:
                raise
            return False
        self.app.load(self.plan.load)
        return True

    def stop_app(self) -> None:
        """The application ends: gracefully where that is possible."""
        app, self.app = self.app, None
        if app is None:
            return
        lib, c = self.c.world.lib, self.c
        if app.is_open and not app.is_closed:
            lib.re_sim_workload_stop(c.world.sim, app.number)
            if c.wait(lambda: app.is_idle or app.is_closed, 20_000):
                app.leave()
            else:
                app.leave(orderly=False)
        c.wait(lambda: app.is_closed or not app.is_open, 5_000)
        node = c.shells[app.node].node
        if node is not None:  # the node hears of it
            c.wait(lambda: node is not c.shells[app.node].node or node.volumes[0].open_count == 0, 5_000)

    def crash(self, *nodes: int) -> None:
        for node in nodes:
            self.spare_only_copy(node)
            if self.alive(node):
                self.c.shells[node].crash()
                self.oracle.process_died(node)
        self.coverage("crash", 0)

    def power(self, *nodes: int) -> None:
        for node in nodes:
            self.spare_only_copy(node)
            if self.c.shells[node].is_powered:
                self.coverage("before a power loss", 1)
                self.c.shells[node].power_off()
                self.oracle.power_lost(node)
        self.coverage("power loss", 0)

    def spare_only_copy(self, node: int) -> None:
        """An application whose Primary works on its peer's copy alone does not outlive that peer."""
        if self.app is not None and self.app.node != node and self.oracle.holders == {node}:
            self.stop_app()

    def coverage(self, when: str, layer: int) -> None:
        """P4 at this instant, as if both nodes crashed now (layer 0) or lost power (layer 1)."""
        self.c.check_coverage(when, layer=layer)

    def back(self, *nodes: int) -> None:
        """Machines and processes are there again."""
        for node in nodes:
            shell = self.c.shells[node]
            if not shell.is_powered:
                shell.power_on()
        waiting = [node for node in nodes if not self.alive(node)]
        for node in waiting:
            self.c.shells[node].start()
        answers = [self.c.fire(node, "up") for node in waiting]
        self.c.until(lambda: all(a.is_done for a in answers), 20_000, "up")
        for answer in answers:
            if answer.error is not None:
                raise SimFailure(f"up failed: {answer.error}")

    def pause(self, most_ms: int = 3000) -> None:
        self.c.run(self.rng.choice((1, 20, 300, most_ms)) * self.rng.random() + 1)

    def no_false_alarm(self) -> None:
        """A refusal of the handshake needs two nodes that went on alone."""
        for shell in self.c.shells:
            node = shell.node
            if node is None or node.cstate != ConnectionState.STANDALONE or not node.reason:
                continue
            if "This Primary has no disk" in node.reason:
                continue
            if "disconnect" not in node.reason and not all(self.oracle.alone):
                raise SimFailure(f"node {shell.index} is StandAlone without a split brain: {node.reason}")

    def settle(self) -> None:
        """P10: everything is up and open: in sync within bounds, after the operator's help where that is due."""
        c = self.c
        self.back(*(n for n in (0, 1) if not self.alive(n)))
        for index in (0, 1):
            self.bring_disk_back(index)
        net = self.plan.setup.net
        bound = 3 * (max(1, net.ko_count) * net.timeout_ms + net.ping_int_ms + net.ping_timeout_ms + net.connect_int_ms)
        bound += 5000
        alone = ConnectionState.STANDALONE
        for _ in range(4):  # a StandAlone node waits for its operator
            for index in (0, 1):
                if c.state(index)[1] == alone and not (c.node(index).reason and c.stand_alone):
                    self.try_ask(index, "connect")
            if not c.wait(lambda: c.connected or any(c.state(i)[1] == alone for i in (0, 1)), bound):
                raise SimFailure(f"P10: not connected within {bound} ms ({c.describe()})")
            if c.connected or c.wait(lambda: c.stand_alone, 3000):
                break
        self.no_false_alarm()
        if not c.connected:
            for index in (0, 1):  # a Primary that should become target refuses alone; its peer goes on trying
                if c.state(index)[1] != alone and "Split-Brain" not in c.node(1 - index).reason:
                    self.try_ask(index, "disconnect", force=True)
            self.resolve(bound)
        if not c.wait(lambda: c.in_sync, SETTLE_MS):
            raise SimFailure(f"P10: connected, not in sync within {SETTLE_MS} ms ({c.describe()})")

    def bring_disk_back(self, index: int) -> None:
        """There is no attach: down and up."""
        c = self.c
        if c.state(index)[2] >= DiskState.INCONSISTENT:
            return
        if self.app is not None and self.app.node == index:
            self.stop_app()
        if index == self.oracle.primary:
            self.oracle.process_died(index)  # nothing is drained
        try:
            c.ask(index, "down", force=True, ms=90_000)
        except ReplError as error:
            raise SimFailure(f"down --force refused: {error}") from error
        c.until(lambda: not self.alive(index), 10_000, "the process's end")
        if index == self.oracle.primary:
            self.oracle.primary_died = True
        self.stale.add(index)
        # What a failed flush left in the cache looks good and is never written: whoever uses such a disk again without
        # dropping the cache is on his own.
        shell = c.shells[index]
        for disk in {id(shell.data): shell.data, id(shell.md): shell.md}.values():
            c.world.lib.re_sim_disk_power_loss(c.world.sim, disk.number)
        self.oracle.lost_power[index] = True
        self.back(index)

    def resolve(self, bound: int) -> None:
        """A split brain: the copy that served last wins."""
        c = self.c
        if not c.stand_alone:
            raise SimFailure(f"P10: split brain, but only one node is StandAlone ({c.describe()})")
        for index in (0, 1):
            if not c.node(index).reason and "Split-Brain" in c.node(1 - index).reason:
                raise SimFailure(f"node {index} is StandAlone and does not say why ({c.describe()})")
        winner = self.oracle.source()
        c.log(f"operator: split brain, node {winner} wins")
        for index in (0, 1):
            if c.node(index).role == Role.PRIMARY and index != winner:
                c.ask(index, "secondary")
        self.fire_and_wait(1 - winner, "connect", discard_my_data=True)
        self.fire_and_wait(winner, "connect")
        if not c.wait(lambda: c.connected, bound):
            raise SimFailure(f"P10: not connected after a resolved split brain within {bound} ms ({c.describe()})")

    def fire_and_wait(self, node: int, verb: str, **args: object) -> None:
        answer = self.c.fire(node, verb, **args)
        self.c.until(lambda: answer.is_done, 60_000, f"the answer to {verb}")
        if answer.error is not None:
            raise SimFailure(f"{verb} refused: {answer.error}")

    def try_ask(self, node: int, verb: str, ms: int = 90_000, **args: object) -> bool:
        """False if it was refused."""
        answer = self.c.fire(node, verb, **args)
        self.c.until(lambda: answer.is_done, ms, f"the answer to {verb} on node {node}")
        return answer.error is None

    @property
    def secondary(self) -> int:
        return 1 - self.wanted

    # ---- faults ----

    def fault_cut(self) -> None:
        self.c.cut(silent=self.rng.random() < 0.6)
        self.pause(8000)
        self.c.heal()

    def fault_reset(self) -> None:
        for _ in range(self.rng.randint(1, 3)):
            self.c.log("network: reset")
            self.c.world.lib.re_sim_net_reset(self.c.world.sim, 0, 1)
            self.pause(1000)

    def fault_half_open(self) -> None:
        self.c.cut(silent=True, direction=self.rng.randrange(2))
        self.pause(8000)
        self.c.heal()

    def fault_flap(self) -> None:
        for _ in range(self.rng.randint(2, 6)):
            self.c.cut(silent=self.rng.random() < 0.5)
            self.pause(400)
            self.c.heal()
            self.pause(2000)

    def fault_secondary_crash(self) -> None:
        self.crash(self.secondary)
        self.pause(4000)
        self.back(self.secondary)

    def fault_secondary_power(self) -> None:
        self.power(self.secondary)
        self.pause(8000)
        self.back(self.secondary)

    def fault_primary_crash(self) -> None:
        self.crash(self.wanted)
        self.app = None
        self.pause(4000)
        self.back(self.wanted)
        if self.rng.random() < 0.5:
            self.pause(4000)

    def fault_primary_power(self) -> None:
        self.power(self.wanted)
        self.app = None
        self.pause(8000)
        self.back(self.wanted)
        if self.rng.random() < 0.5:
            self.pause(4000)

    def fault_both_power(self) -> None:
        nodes = [0, 1]
        self.rng.shuffle(nodes)
        self.power(nodes[0])
        if self.rng.random() < 0.5:
            self.pause(100)
        self.power(nodes[1])
        self.app = None
        self.rng.shuffle(nodes)
        self.back(nodes[0])
        if nodes[0] != self.wanted and self.rng.random() < 0.4:
            self.serve(nodes[0])  # only the peer is back
        self.pause(3000)
        self.back(nodes[1])

    def fault_both_crash(self) -> None:
        nodes = [0, 1]
        self.rng.shuffle(nodes)
        self.crash(nodes[0])
        if self.rng.random() < 0.5:
            self.pause(100)
        self.crash(nodes[1])
        self.app = None
        self.rng.shuffle(nodes)
        self.back(nodes[0])
        self.pause(3000)
        self.back(nodes[1])

    def fault_failover(self) -> None:
        """The Primary's machine or process dies, the other one takes over, the first comes back."""
        old = self.wanted
        if self.rng.random() < 0.5:
            self.power(old)
        else:
            self.crash(old)
        self.app = None
        self.pause(3000)
        if self.alive(1 - old):
            self.serve(1 - old)
        self.pause(3000)
        self.back(old)
        self.pause(3000)

    def fault_disk_error(self) -> None:
        node = self.rng.randrange(2)
        disk = self.c.shells[node].data if self.rng.random() < 0.8 else self.c.shells[node].md
        kind = self.rng.choice((0, 1, 1, 2, 2))
        self.c.log(f"disk {disk.name}: the next operation of kind {kind} fails")
        self.oracle.disk_fault(node)
        disk.fail_next(kind, 1)
        self.c.wait(lambda: self.c.state(node)[2] < DiskState.INCONSISTENT, 3000)
        disk.heal()
        if self.c.wait(lambda: self.c.state(node)[2] < DiskState.INCONSISTENT, 200):
            self.pause(3000)
            self.bring_disk_back(node)
        self.oracle.disk_healed(node)

    def fault_disk_stuck(self) -> None:
        disk = self.c.shells[self.rng.randrange(2)].data
        self.c.log(f"disk {disk.name}: hangs")
        disk.hold()
        self.pause(8000)
        self.c.log(f"disk {disk.name}: goes on")
        disk.release()

    def fault_slow(self) -> None:
        disk = self.c.shells[self.rng.randrange(2)].data
        disk.settings(slow_ppm=100_000, slow_ns=self.rng.choice((50, 900)) * 1_000_000)
        self.pause(4000)
        disk.settings(slow_ppm=0)

    def fault_freeze(self) -> None:
        node = self.rng.randrange(2)
        world = self.c.world
        self.c.log(f"node {node}: the engine is frozen")
        world.lib.re_sim_engine_freeze(world.sim, node, True)
        self.pause(9000)
        self.c.log(f"node {node}: the engine goes on")
        world.lib.re_sim_engine_freeze(world.sim, node, False)

    def fault_down_up(self) -> None:
        node = self.secondary if self.rng.random() < 0.8 else self.wanted
        if node == self.wanted:
            self.stop_app()
        if self.alive(node) and self.try_ask(node, "down"):
            self.c.until(lambda: not self.alive(node), 10_000, "the process's end")
            if node == self.oracle.primary:
                self.oracle.primary_died = True
            self.coverage("after down", 1)
            self.pause(3000)
        self.back(*(n for n in (node,) if not self.alive(n)))

    def fault_switch(self) -> None:
        """A planned change of roles."""
        old = self.wanted
        self.stop_app()
        if self.alive(old) and self.try_ask(old, "secondary"):
            self.coverage("after a demotion", 1)
            self.c.run(100)  # the other node hears of it
            if not self.serve(1 - old):
                self.serve(old)

    def fault_reconnect(self) -> None:
        node = self.rng.randrange(2)
        if not self.alive(node):
            return
        if self.try_ask(node, "disconnect"):
            self.pause(3000)
            if self.alive(node):
                self.try_ask(node, "connect")

    def fault_invalidate(self) -> None:
        if self.alive(self.secondary):
            self.try_ask(self.secondary, "invalidate")
            self.pause(2000)

    def fault_operators(self) -> None:
        """Several people at once."""
        verbs = ("disconnect", "connect", "primary", "secondary", "invalidate", "status", "down", "wait-connect")
        answers = []
        self.stop_app()
        for _ in range(self.rng.randint(2, 4)):
            node = self.rng.randrange(2)
            verb = self.rng.choice(verbs)
            if verb == "invalidate" and (node == self.wanted or self.oracle.holders == {node}):
                continue  # nobody gets back what he throws away himself
            if self.alive(node):
                args: dict[str, object] = {"timeout_s": 2} if verb.startswith("wait") else {}
                answers.append(self.c.fire(node, verb, **args))
            if self.rng.random() < 0.5:
                self.pause(200)
        self.c.until(lambda: all(a.is_done for a in answers), 120_000, "the answers to concurrent commands")
        self.c.run(50)
        if self.oracle.primary >= 0 and not self.alive(self.oracle.primary):
            self.oracle.primary_died = True
        self.back(*(n for n in (0, 1) if not self.alive(n)))
        for node in (0, 1):
            if self.c.node(node).cstate == ConnectionState.STANDALONE and not all(self.oracle.alone):
                self.try_ask(node, "connect")
        for node in (0, 1):
            if self.c.node(node).role == Role.PRIMARY and node != self.wanted:
                self.try_ask(node, "secondary")

    def fault_split(self) -> None:
        """Both sides go on without each other."""
        self.c.cut(silent=self.rng.random() < 0.5)
        self.c.wait(lambda: not self.c.connected, 30_000)
        self.pause(1000)
        old = self.wanted
        self.stop_app()
        if self.alive(1 - old):
            self.serve(1 - old)
        self.pause(1000)
        self.c.heal()
        self.pause(8000)

    def fault_client(self) -> None:
        """The application vanishes in the middle of something."""
        if self.app is not None:
            self.app.leave(orderly=False)
            self.pause(1000)
            self.app = None


def run_seed(seed: int, *, plan: Plan | None = None) -> int:
    """The trace hash of a scenario; a failure says how to see it again."""
    scenario = Scenario(seed, plan)
    try:
        return scenario.run()
    except Exception as error:
        raise SimFailure(
            f"{type(error).__name__}: {error}\n"
            f"seed {seed}, faults so far: {' '.join(scenario.done)}\n"
            f"again: REPL_SIM_FIRST_SEED={seed} make sim SEEDS=1\n{scenario.c.tail()}"
        ) from error


def short(plan: Plan, **changes: object) -> Plan:
    """The same scenario, changed (for narrowing a failure down)."""
    return replace(plan, **changes)  # type: ignore[arg-type]


__all__ = ["STRICT", "Plan", "Scenario", "draw", "run_seed", "short"]
