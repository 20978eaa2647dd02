# SPDX-License-Identifier: Apache-2.0
"""What a scenario can do to the cluster: serve applications, kill and revive, ask operators; with the checks that go
with it.  The faults (tests/sim/faults.py) are made of these."""

from __future__ import annotations

import random
from collections.abc import Callable

from repl.drbd.states import ConnectionState, DiskState, Role
from repl.errors import ReplError
from repl.node import disk as node_disk
from tests.sim.cluster import App, Cluster
from tests.sim.frozen import FrozenWatch
from tests.sim.node_shell import Script
from tests.sim.oracle import Oracle
from tests.sim.plan import Plan
from tests.sim.reach import Watch
from tests.sim.undo_watch import UndoWatch
from tests.sim.world import SimFailure

PEER_MAY_LACK = "may lack writes that were acknowledged before"
TOO_OLD = "This resync decision needs protocol"
PRIMARY_TARGET = "should become resync target"
BUSY_MS = 2000  # of a pause, in which the applications work
SAMPLE_MS = 150  # between two looks at a running resync


class Stage:
    """The cluster, its oracle, and who does what."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.seed = seed
        self.plan = plan
        self.rng = random.Random(f"{seed}/begin")
        self.c = Cluster(seed, plan.setup)
        self.oracle = Oracle(self.c)
        self.apps: list[App] = []  # one for each volume, or none
        self.link_rate = 0  # bytes a second, 0: no limit
        self.slow_until_ms = 0.0  # until then a disk may still be at what a fault has made slow
        self.wanted = 0  # where the application should run
        self.stale: set[int] = set()  # came back with a disk that had failed: not to be promoted alone
        self.excused = False  # a node may refuse the other one for good: its disk is not what it was
        self.options_changed = False
        self.cut_from_data: set[int] = set()  # a Primary whose peer has gone on without its hearing of it
        self.crash_by_power = False
        self.crashed_at_point: set[int] = set()
        self.c.on_crash_point = self.crash_point_reached
        for shell in self.c.shells:
            status = self.rng.choice((1, 3, 4, 5, 6, 7))  # some of them lies
            shell.scripts["fence-peer"] = Script(status, delay_ms=self.rng.choice((0, 100, 3000, 20_000)))
            patience = plan.setup.net.timeout_ms * (plan.setup.net.ko_count or 7) // (4 * plan.setup.volumes)
            for name in ("before-resync-target", "before-resync-source", "local-io-error"):
                # The link stands still meanwhile.
                shell.scripts[name] = Script(0, delay_ms=min(self.rng.choice((0, 0, 100, 2000)), patience))
            for name in ("split-brain", "pri-lost", "out-of-sync"):
                shell.scripts[name] = Script(self.rng.choice((0, 1, None)))
        self.watch = Watch(self.c)
        self.undo = UndoWatch(self.c)
        self.frozen = FrozenWatch(self.c, lambda: self.apps)

    # ---- applications ----

    def alive(self, index: int) -> bool:
        return self.c.shells[index].is_running

    @property
    def secondary(self) -> int:
        return 1 - self.wanted

    @property
    def served_node(self) -> int:
        return self.apps[0].node if self.apps else -1

    def serve(self, node: int, *, must: bool = False) -> bool:
        """Promote, audit, run the applications; False if that is refused."""
        c = self.c
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
        if not must and self._may_send_again(node):
            c.wait(lambda: not self.alive(node) or not self._may_send_again(node), 20_000)
            if not self.alive(node) or self._may_send_again(node):
                return False
        try:
            if c.node(node).role != Role.PRIMARY:
                c.ask(node, "primary", ms=90_000)
        except ReplError as error:
            if must and not c.in_sync:
                # A reset that was on its way broke the link meanwhile, and a fence-peer handler may have lied (seed
                # 10069112).
                c.log("not in sync any more: once more")
                if c.wait(lambda: c.in_sync, self.bound_ms()):
                    return self.serve(node, must=must)
            if must:
                raise SimFailure(f"a pair in sync refuses a Primary: {error}") from error
            return False
        if not self.alive(node) or c.node(node).role != Role.PRIMARY:
            return False
        if not must and any(DiskState.UP_TO_DATE not in c.state(node, n)[2:] for n in c.numbers):
            return False  # a Primary that has lost its data: its clients get errors
        self.oracle.take_over(node)
        self.wanted = node
        try:
            for number in c.numbers:
                self.apps.append(c.serve(node, number))
        except SimFailure:
            if must:
                raise
            self.leave()
            return False
        for app in self.apps:
            app.load(self.plan.load)
        return True

    def _may_send_again(self, node: int) -> bool:
        """A Primary that works on its peer's disk: what that has lost comes again if it is kept (decision 0020).

        Then it counts: what the peer has before is not what the application will read.
        """
        c, seen = self.c, self.c.node(node)
        if seen.role != Role.PRIMARY or not any(c.state(node, n)[2] < DiskState.UP_TO_DATE for n in c.numbers):
            return False
        stats = [seen.stats.volume_stats(n) for n in c.numbers]
        return not c.connected or seen.suspension.kept or any(s is not None and s.peer_pending for s in stats)

    def leave(self) -> None:
        """The clients vanish."""
        apps, self.apps = self.apps, []
        for app in apps:
            app.leave(orderly=False)

    @property
    def pulls_ahead(self) -> bool:
        return self.plan.setup.net.on_congestion == "pull-ahead"

    def is_ahead(self) -> bool:
        """A congested link: writes only mark blocks."""
        return any(self.c.state(n, number)[1] == ConnectionState.AHEAD for n in (0, 1) for number in self.c.numbers)

    def wait_calmly(self, condition: Callable[[], bool], ms: float) -> bool:
        """A long wait: the applications stay, and do nothing after the first second."""
        if self.c.wait(condition, min(ms, 1000)):
            return True
        self.end_load()
        found = self.c.wait(condition, ms)
        self.load()
        return found

    def stop_app(self) -> None:
        """The applications end: gracefully where that is possible."""
        apps, self.apps = self.apps, []
        if not apps:
            return
        c = self.c
        running = [app for app in apps if app.is_open and not app.is_closed]
        for app in running:
            app.end_load()
        c.wait(lambda: all(app.is_idle or app.is_closed for app in running), 20_000)
        for app in running:
            app.leave(orderly=app.is_idle)
        c.wait(lambda: all(app.is_closed or not app.is_open for app in apps), 5_000)
        node = c.shells[apps[0].node].node
        if node is not None:  # the node hears of it
            c.wait(
                lambda: (
                    node is not c.shells[apps[0].node].node or all(v.open_count == 0 for v in node.volumes.values())
                ),
                5_000,
            )

    # ---- death ----

    def crash(self, *nodes: int) -> None:
        for node in nodes:
            self.spare_only_copy(node)
            if self.alive(node):
                self.oracle.process_died(node)
                self.c.shells[node].crash()
                self.watch.absent(node)
        self.coverage("crash", 0)

    def power(self, *nodes: int) -> None:
        for node in nodes:
            self.spare_only_copy(node)
            if self.c.shells[node].is_powered:
                self.coverage("before a power loss", 1)
                self.oracle.power_lost(node)
                self.c.shells[node].power_off()
                self.watch.absent(node)
        self.coverage("power loss", 0)

    def kill(self, *nodes: int) -> None:
        """One way or the other."""
        if self.rng.random() < 0.5:
            self.crash(*nodes)
        else:
            self.power(*nodes)
        if self.served_node in nodes:
            self.apps = []

    def spare_only_copy(self, node: int) -> None:
        """An application whose Primary works on its peer's copy alone does not outlive that peer."""
        if self.apps and self.served_node != node and self.oracle.is_only_holder(node):
            self.stop_app()

    def crash_point_reached(self, node: int) -> None:
        """What re_sim_crash_point() has asked for."""
        self.crashed_at_point.add(node)
        if not self.alive(node):
            return
        if self.apps and self.served_node == node:
            self.apps = []
        elif self.apps and self.oracle.is_only_holder(node):
            self.leave()
        self.oracle.process_died(node)
        if self.crash_by_power:
            self.oracle.power_lost(node)
            self.c.shells[node].power_off()
        else:
            self.c.shells[node].crash()
        self.watch.absent(node)
        self.coverage("crash point", 0)

    def arm(self, node: int, steps: int) -> None:
        """The node dies after so many disk steps."""
        self.crashed_at_point.discard(node)
        self.crash_by_power = self.rng.random() < 0.6
        self.c.log(f"node {node}: dies after {steps} disk steps ({'power' if self.crash_by_power else 'process'})")
        self.c.world.lib.re_sim_crash_point(self.c.world.sim, node, steps)

    def disarm(self, node: int) -> None:
        if not self.c.world.lib.re_sim_is_doomed(self.c.world.sim, node):
            self.c.world.lib.re_sim_crash_point(self.c.world.sim, node, 0)

    def back(self, *nodes: int) -> None:
        """Machines and processes are there again."""
        for node in nodes:
            shell = self.c.shells[node]
            if not shell.is_powered:
                shell.power_on()
        waiting = [node for node in nodes if not self.alive(node)]
        for node in waiting:
            self.crashed_at_point.discard(node)
            self.c.shells[node].start()
        answers = [self.c.fire(node, "up") for node in waiting]
        self.c.until(lambda: all(a.is_done for a in answers), 20_000, "up")
        for node, answer in zip(waiting, answers, strict=True):
            if answer.error is not None and node not in self.crashed_at_point:
                raise SimFailure(f"up failed: {answer.error}")

    def back_all(self) -> None:
        self.back(*(n for n in (0, 1) if not self.alive(n)))

    # ---- time and checks ----

    def pause(self, most_ms: int = 3000) -> None:
        """Let time pass; a resync that runs is looked at.  In a long one the applications do nothing in the end."""
        left = self.rng.choice((1, 20, 300, most_ms)) * self.rng.random() + 1
        busy = BUSY_MS
        while left > 0:
            part = min(left, SAMPLE_MS) if self.is_syncing else left if busy <= 0 else min(left, busy)
            self.c.run(part)
            left -= part
            busy -= part
            if busy <= 0 < busy + part:
                self.end_load()
            self.c.check_each_side("while it runs")
        if busy <= 0:
            self.load()

    def end_load(self) -> None:
        for app in self.apps:
            app.end_load()

    def load(self) -> None:
        for app in self.apps:
            if app.is_open and not app.is_closed:
                app.load(self.plan.load)

    @property
    def is_syncing(self) -> bool:
        return any(self.c.state(i, n)[1] > ConnectionState.CONNECTED for i in (0, 1) for n in self.c.numbers)

    def coverage(self, when: str, layer: int) -> None:
        """P4 at this instant, as if both nodes crashed now (layer 0) or lost power (layer 1)."""
        if not self.excused:
            self.c.check_coverage(when, layer=layer)

    def no_false_alarm(self) -> None:
        """A refusal of the handshake needs two nodes that went on alone."""
        for shell in self.c.shells:
            node = shell.node
            if self.excused or node is None or node.cstate != ConnectionState.STANDALONE or not node.reason:
                continue
            if PEER_MAY_LACK in node.reason:
                continue  # no copy has everything: an operator has to decide
            if "This Primary has shown" in node.reason:
                continue  # others were served meanwhile
            if "This Primary has no disk" in node.reason:
                self.cut_from_data.add(shell.index)
                continue
            if shell.index in self.cut_from_data and PRIMARY_TARGET in node.reason:
                continue  # it has a disk again, an older one
            if TOO_OLD in node.reason or self.options_changed and "Incompatible settings" in node.reason:
                continue  # the versions below 91 know no way; options are told to one node after the other
            if "Both nodes are Primary" in node.reason:
                continue  # one of them without good data
            if "disconnect" not in node.reason and not self.oracle.both_alone:
                raise SimFailure(f"node {shell.index} is StandAlone without a split brain: {node.reason}")

    # ---- operators ----

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

    def demote(self, node: int) -> None:
        """It has to be possible; what vanished clients have left behind suspended I/O lets them go."""
        self.try_ask(node, "resume-io")
        self.c.wait(lambda: not any(v.open_count for v in self.c.node(node).volumes.values()), 5000)
        self.c.ask(node, "secondary")

    def down(self, node: int, *, force: bool = False) -> bool:
        if not self.alive(node) or not self.try_ask(node, "down", force=force):
            return False
        self.c.until(lambda: not self.alive(node), 10_000, "the process's end")
        self.oracle.process_ended(node)
        self.watch.absent(node)
        return True

    def recreate(self, index: int) -> None:
        """New metadata: the disk takes everything from its peer."""
        c = self.c
        self.oracle.may_lose(index)
        if self.alive(index) and not self.down(index, force=True):
            raise SimFailure("down --force refused")
        self.undo.forget(index)
        c.shells[index].undo_facts.clear()
        for place in c.shells[index].places:
            node_disk.create_metadata(place, device_uuid=c.world.random64())
        self.back(index)

    def bring_disk_back(self, index: int) -> None:
        """Down and up, so that nothing of what a failed flush left in the cache is taken for written."""
        c = self.c
        if all(c.state(index, n)[2] >= DiskState.INCONSISTENT for n in c.numbers):
            return
        if self.served_node == index or self.oracle.is_only_holder(index):
            self.stop_app()
        if index == self.oracle.primary:
            self.oracle.ends_undrained(index)
        if not self.down(index, force=True):
            raise SimFailure("down --force refused")
        self.stale.add(index)
        # What a failed flush left in the cache looks good and is never written: whoever uses such a disk again without
        # dropping the cache is on his own.
        for disk in c.shells[index].disks:
            c.world.lib.re_sim_disk_power_loss(c.world.sim, disk.number)
        self.oracle.cache_lost(index)
        self.back(index)

    def bound_ms(self) -> int:
        """Until two nodes that can reach each other are connected; their metadata comes first (decision 0043)."""
        nets = [shell.settings.net for shell in self.c.shells]
        one = [max(1, n.ko_count) * n.timeout_ms + n.ping_int_ms + n.ping_timeout_ms + n.connect_int_ms for n in nets]
        return 3 * max(one) + 5000 + max(0, round(self.slow_until_ms - self.c.now_ms))
