# SPDX-License-Identifier: Apache-2.0
"""The classes of faults that a seed may switch on; each is one method and leaves both nodes alive or on their way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from repl.drbd.states import ConnectionState, DiskState, Role
from repl.drbd.uuids import base
from repl.errors import MetadataError
from repl.node import disk as node_disk
from repl.node.disk import DiskPlace
from tests.sim.stage import Stage
from tests.sim.world import MIB, MS, SECOND, SimDisk, SimFailure

ENOSPC, EIO = 28, 5
READ, WRITE, FLUSH = 0, 1, 2
FIRST_WITH_INTEGRITY, FIRST_TO_VERIFY = 87, 88


class Faults(Stage):
    """One method per class of fault; ``self.rng`` belongs to the step."""

    # ---- network ----

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

    def fault_silence(self) -> None:
        """A little shorter or longer than one of the timers."""
        net = self.c.shells[0].settings.net
        timer = self.rng.choice(
            (net.timeout_ms, net.ping_int_ms, net.ping_timeout_ms, net.connect_int_ms, net.ping_int_ms + net.timeout_ms)
        )
        self.c.cut(silent=True, direction=self.rng.choice((-1, -1, 0, 1)))
        self.c.run(timer * self.rng.choice((0.5, 0.95, 1.05, 2)))
        self.c.heal()
        self.pause(1000)

    def fault_one_socket(self) -> None:
        """One of the two connections of the link breaks or takes nothing any more."""
        world, node = self.c.world, self.rng.randrange(2)
        fds = world.streams(node)
        if not fds:
            return
        fd = self.rng.choice(fds)
        if self.rng.random() < 0.5:
            self.c.log(f"node {node}: socket {fd} is reset")
            world.lib.re_sim_socket_reset(world.sim, fd)
            self.pause(2000)
            return
        self.c.log(f"node {node}: what socket {fd} sends does not arrive")
        world.lib.re_sim_socket_hold(world.sim, fd, True)
        self.pause(12_000)
        world.lib.re_sim_socket_hold(world.sim, fd, False)

    def fault_slow_link(self) -> None:
        """Another bandwidth or delay for a while, in one direction or both."""
        world = self.c.world
        rate = self.rng.choice((0, 1024, 20_000, MIB))
        delay = self.rng.choice((0, 100 * MS, 2 * SECOND, 30 * SECOND)) if rate == 0 or self.rng.random() < 0.3 else 0
        direction = self.rng.choice(((-1, -1), (0, 1), (1, 0)))
        self.c.log(f"network: {rate} bytes/s, {delay / MS:g} ms more, {direction}")
        latency = self.plan.setup.latency_max_us * 1000
        world.net(*direction, bytes_per_second=rate, latency_min_ns=delay // 2, latency_max_ns=delay + latency)
        self.pause(10_000)
        self.usual_net()
        self.pause(1000)

    def fault_tiny(self) -> None:
        """Segments of one byte; others coalesce."""
        self.c.world.net(tiny_ppm=300_000, partial_ppm=600_000, latency_max_ns=20 * MS)
        self.pause(2000)
        self.usual_net()

    def fault_flip(self) -> None:
        """Single bits of payloads flip: no disk ever gets them, as long as digests go with the data."""
        nets = [shell.settings.net for shell in self.c.shells]
        nets += [shell.node.settings.net for shell in self.c.shells if shell.node is not None]
        if not all(n.data_integrity_alg and n.protocol_max >= FIRST_WITH_INTEGRITY for n in nets) or not self.c.in_sync:
            return
        self.c.world.net(flip_payload_ppm=self.rng.choice((10_000, 100_000)))
        self.pause(4000)
        self.c.world.net(flip_payload_ppm=0)
        self.pause(1000)

    def usual_net(self) -> None:
        setup = self.plan.setup
        self.c.world.net(latency_min_ns=20_000, latency_max_ns=setup.latency_max_us * 1000,
                         bytes_per_second=self.link_rate,
                         partial_ppm=setup.partial_ppm, tiny_ppm=setup.tiny_ppm)  # fmt: skip

    def set_link_rate(self, bytes_per_second: int) -> None:
        if bytes_per_second != self.link_rate:
            self.link_rate = bytes_per_second
            self.usual_net()

    # ---- nodes ----

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
        self.apps = []
        self.pause(4000)
        self.back(self.wanted)
        if self.rng.random() < 0.5:
            self.pause(4000)

    def fault_primary_power(self) -> None:
        self.power(self.wanted)
        self.apps = []
        self.pause(8000)
        self.back(self.wanted)
        if self.rng.random() < 0.5:
            self.pause(4000)

    def fault_both_power(self) -> None:
        self._both(power=True)

    def fault_both_crash(self) -> None:
        self._both(power=False)

    def _both(self, *, power: bool) -> None:
        nodes = [0, 1]
        self.rng.shuffle(nodes)
        if power:
            self.power(*nodes)
        else:
            self.crash(*nodes)
        self.apps = []
        self.rng.shuffle(nodes)
        self.back(nodes[0])
        self.pause(3000)
        self.back(nodes[1])

    def fault_double_death(self) -> None:
        """Both die, by power or not; only the old Secondary comes back and serves what it has."""
        old, other = self.wanted, self.secondary
        if self.rng.random() < 0.5:  # what it has acknowledged was on its way to the platter
            disk = self.c.shells[other].data
            disk.settings(write_min_ns=30 * MS, write_max_ns=400 * MS, flush_max_ns=600 * MS)
            self.pause(500)
            disk.settings(write_min_ns=20_000, write_max_ns=self.plan.setup.write_max_us * 1000,
                          flush_max_ns=self.plan.setup.flush_max_us * 1000)  # fmt: skip
        self.kill(old)
        self.kill(other)
        self.apps = []
        self.back(other)
        self.serve(other)
        self.pause(3000)
        self.back(old)
        self.pause(3000)

    def fault_failover(self) -> None:
        """The Primary's machine or process dies, the other one takes over, the first comes back."""
        old = self.wanted
        self.kill(old)
        self.apps = []
        self.pause(3000)
        if self.alive(1 - old):
            self.serve(1 - old)
        self.pause(3000)
        self.back(old)
        self.pause(3000)

    def fault_crash_point(self) -> None:
        """Death at a submission or completion of a disk operation."""
        node = self.rng.randrange(2)
        self.arm(node, self.rng.choice((1, 2, 3, self.rng.randint(1, 30), self.rng.randint(1, 200))))
        if self.rng.random() < 0.3:  # while much is going on
            self.c.world.lib.re_sim_net_reset(self.c.world.sim, 0, 1)
        self.c.wait(lambda: node in self.crashed_at_point, 4000)
        self.disarm(node)
        if not self.alive(node):
            if self.rng.random() < 0.4 and node == self.wanted and self.alive(1 - node):
                self.serve(1 - node)
            self.pause(2000)
            self.back(node)

    def fault_crash_loop(self) -> None:
        """Death in the recovery from a death, again and again."""
        node = self.rng.choice((self.wanted, self.secondary))
        self.kill(node)
        for _ in range(self.rng.randint(1, 4)):
            shell = self.c.shells[node]
            if not shell.is_powered:
                shell.power_on()
            self.arm(node, self.rng.choice((1, 2, 3, self.rng.randint(1, 12), self.rng.randint(1, 60))))
            self.back(node)
            self.c.wait(lambda: node in self.crashed_at_point, 1500)
            if node not in self.crashed_at_point:
                break
        self.disarm(node)
        self.back_all()
        self.pause(2000)

    def fault_resync_cut(self) -> None:
        """A resync of something, and then whatever can happen in the middle of it."""
        self.c.cut(silent=False)
        self.wait_calmly(lambda: not self.c.connected, 20_000)
        self.pause(1500)
        self.c.heal()
        both = (0, 1)
        running = (ConnectionState.SYNC_TARGET, ConnectionState.PAUSED_SYNC_T)
        self.c.wait(lambda: any(self.c.state(i)[1] in running for i in both), 8000)
        target = next((i for i in both if self.c.state(i)[1] in running), -1)
        if target < 0:
            return
        disk = self.c.shells[target].data
        if self.rng.random() < 0.4:
            disk.settings(write_min_ns=20 * MS, write_max_ns=300 * MS)
        if self.rng.random() < 0.3:
            disk.hold()
            self.c.run(self.rng.choice((20, 300, 1300)))
            self.c.check_each_side("the target's disk hangs")
            disk.release()
        self.pause(800)
        self.c.check_each_side("in a resync")
        what = self.rng.choice(("target", "target", "source", "both", "reset", "nothing"))
        if what == "reset":
            self.c.world.lib.re_sim_net_reset(self.c.world.sim, 0, 1)
        elif what != "nothing":
            nodes = {"target": (target,), "source": (1 - target,), "both": (target, 1 - target)}[what]
            if self.rng.random() < 0.7:
                self.power(*nodes)
            else:
                self.crash(*nodes)
            if self.served_node in nodes:
                self.apps = []
        self.pause(2000)
        disk.settings(write_min_ns=20_000, write_max_ns=self.plan.setup.write_max_us * 1000)
        self.back_all()

    def fault_old_disk(self) -> None:
        """The Secondary's machine comes back with its disk as it was two generations ago."""
        node, c = self.secondary, self.c
        disks = c.shells[node].disks
        self.power(node)
        snapshots = [c.world.lib.re_sim_disk_snapshot(c.world.sim, disk.number) for disk in disks]
        generations = self._on_disk(node)
        self.pause(2000)
        self.back(node)
        for _ in range(self.rng.choice((1, 1, 2, 3))):  # generations come and go
            if not self.wait_calmly(lambda: c.in_sync, 20_000):
                break
            c.cut(silent=False)
            self.wait_calmly(lambda: not c.connected, 20_000)
            self.pause(1000)
            c.heal()
        if self.wait_calmly(lambda: c.in_sync, 20_000) and self.oracle.primary == 1 - node and self.alive(1 - node):
            self.power(node)
            self.pause(2000)
            # A resync after a crash leaves the generation as it is: nobody could tell the old disk from the new one.
            # Metadata that has moved since is not where the node looks for it.
            if not any(old in (0, new) for old, new in zip(generations, self._on_disk(node), strict=True)):
                self._put_back(node, disks, snapshots)
        self.back_all()
        for snapshot in snapshots:
            c.world.lib.re_sim_snapshot_free(c.world.sim, snapshot)

    def _on_disk(self, node: int) -> list[int]:
        """The generations that a node without power has, by volume; 0 while a grown disk has it elsewhere."""

        def generation(place: DiskPlace) -> int:
            try:
                return base(node_disk.find_superblock(place)[0].uuids.current)
            except MetadataError:
                return 0

        return [generation(place) for place in self.c.shells[node].places]

    def _put_back(self, node: int, disks: list[SimDisk], snapshots: list[int]) -> None:
        c = self.c
        c.log(f"node {node}: its disk is the old one again")
        for disk, snapshot in zip(disks, snapshots, strict=True):
            c.world.lib.re_sim_disk_restore(c.world.sim, disk.number, snapshot)
        for number in c.numbers:
            self.oracle.disk_fault(node, number)
        self.oracle.may_lose(node)
        self.stale.add(node)
        self.undo.forget(node)
        self.excused = True
        self.back(node)
        if self.wait_calmly(lambda: c.in_sync, 60_000):
            self.oracle.disk_healed(node)
            self.excused = False

    def fault_freeze(self) -> None:
        """A process stands still and goes on as if nothing had been."""
        node = self.rng.randrange(2)
        shell = self.c.shells[node]
        if not self.alive(node):
            return
        shell.freeze(True)
        if self.rng.random() < 0.1:
            self.wait_calmly(lambda: False, self.rng.randint(1, 600) * 1000)
        else:
            self.pause(9000)
        shell.freeze(False)
        self.pause(1000)

    # ---- disks ----

    def _some_disk(self, node: int) -> tuple[SimDisk, int]:
        number = self.rng.choice(self.c.numbers)
        place = self.c.shells[node].places[number]
        return (place.data if self.rng.random() < 0.8 else place.md), number  # type: ignore[return-value]

    def fault_disk_error(self) -> None:
        """One operation fails."""
        node = self.rng.randrange(2)
        disk, number = self._some_disk(node)
        kind = self.rng.choice((READ, WRITE, WRITE, FLUSH, FLUSH))
        error = ENOSPC if kind == WRITE and self.rng.random() < 0.3 else EIO
        self.c.log(f"disk {disk.name}: the next operation of kind {kind} fails with {error}")
        self.oracle.disk_fault(node, number)
        disk.fail_next(kind, 1, error)
        self._wait_for_failure(node, disk)

    def fault_disk_range(self) -> None:
        """Sectors that cannot be read nor written; now and then all of them."""
        node = self.rng.randrange(2)
        disk, number = self._some_disk(node)
        length = self.rng.choice((512, 65536, MIB, disk.size_bytes))
        begin = self.rng.randrange(max(1, (disk.size_bytes - length) // 512 + 1)) * 512
        self.c.log(f"disk {disk.name}: {length} bytes at {begin} are bad")
        self.oracle.disk_fault(node, number)
        disk.settings(bad_offset=begin, bad_length=length)
        self._wait_for_failure(node, disk)

    def _wait_for_failure(self, node: int, disk: SimDisk) -> None:
        def failed() -> bool:
            return any(self.c.state(node, n)[2] < DiskState.INCONSISTENT for n in self.c.numbers)

        self.c.wait(failed, 3000)
        disk.heal()
        if self.c.wait(failed, 200):
            self.pause(3000)
            self.bring_disk_back(node)
        self.oracle.disk_healed(node)

    def fault_disk_stuck(self) -> None:
        node = self.rng.randrange(2)
        disk, number = self._some_disk(node)
        self.c.log(f"disk {disk.name}: hangs")
        if self._times_out:
            self.oracle.disk_fault(node, number)
        disk.hold()
        self.pause(8000)
        self.c.log(f"disk {disk.name}: goes on")
        disk.release()
        if self._times_out:
            self._wait_for_failure(node, disk)

    @property
    def _times_out(self) -> bool:
        return any(v.disk_timeout_ms for v in self.c.shells[0].settings.volumes)

    def fault_slow(self) -> None:
        """Now and then an operation takes long, up to a minute."""
        node = self.rng.randrange(2)
        disk, number = self._some_disk(node)
        most = 60_000 if not self._times_out else 900
        slow_ms = self.rng.choice((50, 900, 900, most))
        self.slow_down(disk, 100_000, slow_ms)
        self.pause(4000)
        self.no_longer_slow(disk, slow_ms)

    def slow_down(self, disk: SimDisk, ppm: int, slow_ms: int) -> None:
        disk.settings(slow_ppm=ppm, slow_ns=slow_ms * MS)

    def no_longer_slow(self, disk: SimDisk, slow_ms: int) -> None:
        """New operations are as fast as ever; those before them are not."""
        disk.settings(slow_ppm=0)
        self.slow_until_ms = max(self.slow_until_ms, self.c.now_ms + slow_ms)

    # ---- verify ----

    @property
    def _can_verify(self) -> bool:
        net = self.plan.setup.net
        return bool(net.verify_alg) and net.protocol_max >= FIRST_TO_VERIFY

    def _verify(self, node: int, **args: object) -> dict[str, Any] | None:
        """The report of a verify that ran to its end, None if it was refused or interrupted."""
        if not self.try_ask(node, "verify", volume=0, **args):
            return None
        report = self.wait_report(node)
        return report if report is not None and report.get("state") == "complete" else None

    def wait_report(self, node: int) -> dict[str, Any] | None:
        answer = self.c.fire(node, "wait-verify", volume=0)
        self.wait_calmly(lambda: answer.is_done, 120_000)
        if not answer.is_done:
            raise SimFailure(f"P10: a verify does not end ({self.c.describe()})")
        return None if answer.error is not None else answer.result

    def fault_verify(self) -> None:
        """An online verify beside the application finds nothing; now and then something happens to it."""
        node = self.rng.randrange(2)
        if not self._can_verify or not self.c.in_sync or self.excused:
            return
        if self.rng.random() < 0.4:
            self.c.later(self.rng.randint(1, 400), lambda: self.c.world.lib.re_sim_net_reset(self.c.world.sim, 0, 1))
        report = self._verify(node)
        if report is not None and report["differing_blocks"]:
            raise SimFailure(f"P5: a verify of equal disks finds differences: {report['ranges']}")

    def fault_rot(self) -> None:
        """The Secondary's disk lies: bits rot, writes are lost or go astray.  A verify with repair puts it right."""
        c, node = self.c, self.secondary
        if not self._can_verify or not c.in_sync or self.excused or self.served_node != 1 - node:
            return
        if self.plan.setup.overrides["read_balancing"] != "prefer-local":
            return  # somebody would read it
        disk, sim, lib = c.shells[node].data, c.world.sim, c.world.lib
        kind = self.rng.choice(("rot", "rot", lib.RE_SIM_MISHAP_LOST, lib.RE_SIM_MISHAP_MISDIRECTED))
        c.log(f"disk {disk.name}: {kind}")
        self.undo.forget(node)
        if kind == "rot":
            for _ in range(self.rng.randint(1, 5)):
                lib.re_sim_disk_flip_bit(sim, disk.number, self.rng.randrange(c.device_bytes), self.rng.randrange(8))
        else:
            lib.re_sim_disk_mishap(sim, disk.number, kind, self.rng.randint(1, 3), c.device_bytes)
            c.run(self.rng.randint(1, 500))
            lib.re_sim_disk_mishap(sim, disk.number, kind, 0, 0)
        for attempt in range(4):  # the first may be refused: a state change is under way
            if attempt:  # or the link cannot carry the load within ko-count x timeout, and falls again and again
                self.end_load()
                c.wait(lambda: c.in_sync and all(app.is_idle or app.is_closed for app in self.apps), 60_000)
            report = self._verify(1 - node, repair=True, start_sector=0)
            if report is not None and not report["differing_blocks"]:
                break
            self.wait_calmly(lambda: c.in_sync, 60_000)
        if report is None or report["differing_blocks"]:
            raise SimFailure(f"P5: a verify with repair does not put it right: {report} ({c.describe()})")
        if not self.wait_calmly(lambda: c.in_sync, 60_000):
            raise SimFailure(f"P10: not in sync after a repair ({c.describe()})")
        self.stop_app()
        c.wait_idle()
        c.check_equal()

    # ---- operators ----

    def fault_pause_resync(self) -> None:
        """A resync, paused from either side and resumed."""
        both, c = (0, 1), self.c
        c.cut(silent=False)
        self.wait_calmly(lambda: not c.connected, 20_000)
        self.pause(1000)
        c.heal()
        c.wait(lambda: self.is_syncing, 5000)
        paused = [node for node in both if self.rng.random() < 0.6 and self.alive(node)]
        for node in paused:
            self.try_ask(node, "pause-sync", volume=0)
            self.pause(500)
        if self.rng.random() < 0.3:
            c.world.lib.re_sim_net_reset(c.world.sim, 0, 1)
            self.pause(3000)
        self.rng.shuffle(paused)
        for node in paused:
            if self.alive(node):
                self.try_ask(node, "resume-sync", volume=0)
                self.pause(500)

    def fault_detach(self) -> None:
        """A disk is taken away in order and comes back, with the peer there or not."""
        node = self.secondary if self.rng.random() < 0.7 else self.wanted
        if not self.alive(node) or self.oracle.is_only_holder(node) or not (self.c.in_sync or self.is_ahead()):
            return
        number = self.rng.choice(self.c.numbers)
        if not self.try_ask(node, "detach", volume=number):
            return
        self.coverage("detached", 0)
        self.pause(3000)
        if self.rng.random() < 0.2:
            self.c.world.lib.re_sim_net_reset(self.c.world.sim, 0, 1)
        if self.alive(node) and not self.try_ask(node, "attach", volume=number):
            self.pause(3000)
        self.pause(2000)

    def fault_invalidate_remote(self) -> None:
        node = self.wanted
        if self.alive(node) and self.c.in_sync:
            self.oracle.may_lose(1 - node)
            self.try_ask(node, "invalidate-remote", volume=self.rng.choice(self.c.numbers))
            self.pause(2000)

    def fault_down_up(self) -> None:
        node = self.secondary if self.rng.random() < 0.8 else self.wanted
        if node == self.wanted:
            self.stop_app()
        if self.down(node):
            self.coverage("after down", 1)
            self.pause(3000)
        self.back(*(n for n in (node,) if not self.alive(n)))

    def fault_upgrade(self) -> None:
        """A node comes back with another version and other options that need not be equal."""
        node = self.secondary
        if self.alive(node) and self.down(node):
            shell = self.c.shells[node]
            net = replace(
                shell.settings.net,
                protocol_max=self.rng.choice((100, 101)) if shell.settings.net.protocol_max >= 100 else 97,
                use_rle=self.rng.random() < 0.5,
                max_buffers=self.rng.choice((32, 2048)),
                max_epoch_size=self.rng.choice((1, 64)),
                ping_int_ms=self.rng.choice((1000, 10_000)),
            )
            shell.settings = replace(shell.settings, net=net)
            self.pause(1000)
        self.back_all()

    def fault_switch(self) -> None:
        """A planned change of roles; now and then somebody tries it while the application is there."""
        old = self.wanted
        if self.apps and self.alive(old) and self.rng.random() < 0.3:
            busy = sum(v.open_count for v in self.c.node(old).volumes.values())
            if self.try_ask(old, "secondary") and busy and self.alive(old):
                raise AssertionError(f"node {old} was demoted under {busy} clients")
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
            self.oracle.may_lose(self.secondary)
            self.try_ask(self.secondary, "invalidate", volume=self.rng.choice(self.c.numbers))
            self.pause(2000)

    def fault_operators(self) -> None:
        """Several people at once."""
        verbs = ("disconnect", "connect", "primary", "secondary", "invalidate", "status", "down", "wait-connect",
                 "pause-sync", "resume-sync", "verify", "attach", "why", "suspend-io", "resume-io")  # fmt: skip
        answers = []
        self.stop_app()
        for _ in range(self.rng.randint(2, 4)):
            node = self.rng.randrange(2)
            verb = self.rng.choice(verbs)
            if verb == "invalidate" and (node == self.wanted or self.oracle.is_only_holder(node)):
                continue  # nobody gets back what he throws away himself
            if self.alive(node):
                args: dict[str, object] = {"timeout_s": 2} if verb.startswith("wait") else {}
                if verb in ("pause-sync", "resume-sync", "verify", "attach"):
                    args = {"volume": 0}
                if verb == "invalidate":
                    args = {"volume": self.rng.choice(self.c.numbers)}
                    self.oracle.may_lose(node)
                answers.append(self.c.fire(node, verb, **args))
            if self.rng.random() < 0.5:
                self.pause(200)
        if not self.c.wait(lambda: all(a.is_done for a in answers), 60_000):
            for node in (0, 1):  # a demotion waits for what somebody has suspended meanwhile
                self.try_ask(node, "resume-io")
        self.c.until(lambda: all(a.is_done for a in answers), 60_000, "the answers to concurrent commands")
        self.c.run(50)
        if self.oracle.primary >= 0 and not self.alive(self.oracle.primary):
            self.oracle.process_ended(self.oracle.primary)
        self.back_all()
        for node in (0, 1):
            self.try_ask(node, "resume-sync", volume=0)
            self.try_ask(node, "resume-io")
            if self.c.node(node).cstate == ConnectionState.STANDALONE and not self.oracle.both_alone:
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
        for app in self.apps:
            app.leave(orderly=False)
        self.pause(1000)
        self.apps = []
