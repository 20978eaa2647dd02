# SPDX-License-Identifier: Apache-2.0
"""What operators order while things go on: options, suspended I/O, connecting in special ways, other sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from repl.drbd.split_brain import AfterSplitBrain
from repl.drbd.states import ConnectionState, DiskState, Role
from tests.sim.faults import Faults
from tests.sim.world import SimFailure

FIRST_TO_TELL_OPTIONS = 100
STANDALONE = ConnectionState.STANDALONE
SECTOR = 512
SECTORS_8K = 16


class Orders(Faults):
    """One method per class; ``self.rng`` belongs to the step."""

    # ---- options at run time ----

    def fault_net_options(self) -> None:
        """The files change on both nodes, then each is told."""
        old = [shell.settings.net for shell in self.c.shells]
        if min(net.protocol_max for net in old) < FIRST_TO_TELL_OPTIONS:
            return
        values = self._new_net_options()
        self.c.log(f"options: {values}")
        self.oracle.net_changes(values)
        self.options_changed = True
        nodes = [0, 1]
        self.rng.shuffle(nodes)
        for node in nodes:
            shell = self.c.shells[node]
            shell.settings = replace(shell.settings, net=replace(shell.settings.net, **values))
        for node in nodes:
            if self.alive(node) and not self.try_ask(node, "net-options", **values) and self.alive(node):
                raise SimFailure(f"net-options refused on node {node}: {values} ({self.c.describe()})")
            self.pause(500)
        for node in nodes:  # a handshake may have met the old and the new
            refused = self.alive(node) and "Incompatible settings" in self.c.node(node).reason
            if self.c.state(node)[1] == STANDALONE and self.alive(node) and (refused or not self.oracle.both_alone):
                self.try_ask(node, "connect")

    def _new_net_options(self) -> dict[str, Any]:
        net, p = self.c.shells[0].settings.net, AfterSplitBrain
        if net.on_congestion == "pull-ahead":
            protocols: tuple[int, ...] = (1,)
        else:
            protocols = (2, 3) if net.fencing == "resource-and-stonith" else (1, 2, 3)
        every = {
            "protocol": self.rng.choice(protocols),
            "data_integrity_alg": self.rng.choice(("", "crc32c", "md5", "sha1")),
            "ping_int_ms": self.rng.choice((1000, 2000, 5000)),
            "ko_count": self.rng.choice((0, 1, 7)) if net.ko_count else 0,
            "max_epoch_size": self.rng.choice((1, 8, 2048)),
            "max_buffers": self.rng.choice((32, 131, 2048)),
            "after_sb_0pri": int(self.rng.choice((p.DISCONNECT, p.DISCARD_ZERO_CHANGES, p.DISCARD_YOUNGER_PRIMARY))),
            "rr_conflict": self.rng.choice(("disconnect", "call-pri-lost", "retry-connect")),
        }
        names = self.rng.sample(sorted(every), self.rng.randint(1, 3))
        return {name: every[name] for name in names if name != "data_integrity_alg" or net.data_integrity_alg}

    def fault_disk_options(self) -> None:
        """Another rate for a resync that runs or comes."""
        node, values = self.rng.randrange(2), {}
        if self.rng.random() < 0.3:
            values["priority"] = self.rng.choice(("background", "balanced", "fast", ""))
        values["resync_rate_kib"] = self.rng.choice((4000, 20_000, 100_000))
        values["plan_ahead"] = self.rng.choice((0, 20))
        values["min_rate_kib"] = self.rng.choice((0, 250, 4000))
        values["discard_granularity"] = self.rng.choice((0, 4096, 65536))
        if self.alive(node):
            self.try_ask(node, "disk-options", volume=self.rng.choice(self.c.numbers), **values)
        self.pause(1000)

    # ---- connecting ----

    def fault_discard(self) -> None:
        """connect --discard-my-data, where it has something to decide and where not."""
        node = self.rng.randrange(2)
        if not self.alive(node) or self.oracle.is_only_holder(node) or self.c.node(node).role == Role.PRIMARY:
            return
        if self.c.state(node)[1] != STANDALONE and not self.try_ask(node, "disconnect"):
            return
        self.pause(2000)
        if self.alive(node) and self.c.node(node).role != Role.PRIMARY and not self.oracle.is_only_holder(node):
            self.oracle.may_lose(node)
            self.try_ask(node, "connect", discard_my_data=True)
        if self.alive(1 - node) and self.c.state(1 - node)[1] == STANDALONE and not self.oracle.both_alone:
            self.try_ask(1 - node, "connect")
        self.pause(3000)

    def fault_tentative(self) -> None:
        """connect --tentative changes nothing on a Secondary and does no harm to its peer."""
        c, node = self.c, self.rng.randrange(2)
        if not self.alive(node) or c.node(node).role == Role.PRIMARY:
            return
        if c.state(node)[1] != STANDALONE and not self.try_ask(node, "disconnect"):
            return
        self.pause(1000)
        if not self.alive(node):
            return
        # What the peer still makes of the connection before is not an answer to this question.
        if self.alive(1 - node) and not c.wait(lambda: self._has_no_peer(1 - node), self.bound_ms()):
            raise SimFailure(f"node {1 - node} does not see that its peer has left ({c.describe()})")
        # Nor is what its own metadata has not been told yet (decision 0043).
        if not c.wait(lambda: self._owes_nothing(node), self.bound_ms()):
            raise SimFailure(f"the disks of node {node} do not come to rest ({c.describe()})")
        if not self.alive(node):
            return
        before = self._generations(node)
        waits = self.alive(1 - node) and c.state(1 - node)[1] != STANDALONE
        if not self.try_ask(node, "connect", tentative=True):
            return
        if waits and not c.wait(lambda: self._has_its_answer(node), self.bound_ms()):
            raise SimFailure(f"a tentative connect does not end ({c.describe()})")
        if not self.alive(node):
            return
        if self._generations(node) != before:
            raise SimFailure(f"a tentative connect has changed something: {before} -> {self._generations(node)}")
        if waits and self.alive(1 - node) and c.state(1 - node)[1] == STANDALONE and not self.oracle.both_alone:
            raise SimFailure(f"a tentative connect of node {node} has sent its peer away ({c.describe()})")
        if c.state(node)[1] != STANDALONE:
            self.try_ask(node, "disconnect", force=True)
        self.try_ask(node, "connect")

    def _has_no_peer(self, node: int) -> bool:
        return not self.alive(node) or self.c.state(node)[1] in (STANDALONE, ConnectionState.WF_CONNECTION)

    def _has_its_answer(self, node: int) -> bool:
        """It may be StandAlone as before for a moment, without a reason, when the order has been taken."""
        return not self.alive(node) or (self.c.state(node)[1] == STANDALONE and bool(self.c.node(node).reason_code))

    def _owes_nothing(self, node: int) -> bool:
        """No change of a Secondary without a peer is still to be written."""
        is_busy = any(disk.in_flight for disk in self.c.shells[node].disks)
        return not self.alive(node) or not (is_busy or self.c.node(node).late.numbers)

    def _generations(self, node: int) -> list[object]:
        volumes = self.c.node(node).volumes.values()
        return [(v.uuids, v.state.disk, self.c.dirty_bits(node, v.number)) for v in volumes]

    # ---- suspended I/O, no disk ----

    def fault_suspend(self) -> None:
        """suspend-io, something happens, resume-io; nothing is answered meanwhile (tests/sim/frozen.py)."""
        c, node = self.c, self.wanted
        if not self.alive(node) or not self.try_ask(node, "suspend-io"):
            return
        self.pause(1000)
        what = self.rng.choice(("nothing", "reset", "cut", "secondary", "primary"))
        if what == "reset":
            c.world.lib.re_sim_net_reset(c.world.sim, 0, 1)
        elif what == "cut":
            c.cut(silent=self.rng.random() < 0.5)
            c.wait(lambda: not c.connected, 20_000)
        elif what == "secondary":
            self.kill(1 - node)
        elif what == "primary":
            self.kill(node)
        self.pause(3000)
        order = [lambda: self.try_ask(node, "resume-io"), c.heal, self.back_all]
        self.rng.shuffle(order)
        for step in order:
            step()
            self.pause(1000)
        self.try_ask(node, "resume-io")

    def fault_diskless(self) -> None:
        """A Primary without its disk works through the peer, loses it as well, and gets both back."""
        c, node = self.c, self.wanted
        if not self.alive(node) or self.served_node != node or not c.in_sync or self.oracle.is_only_holder(node):
            return
        number = self.rng.choice(c.numbers)
        if not self.try_ask(node, "detach", volume=number):
            return
        self.pause(2000)
        if self.rng.random() < 0.5:
            c.cut(silent=self.rng.random() < 0.5)
            self.pause(5000)
            if self.rng.random() < 0.2:
                self.try_ask(node, "resume-io")
            c.heal()
        self.pause(2000)
        if self.alive(node) and c.state(node, number)[2] == DiskState.DISKLESS:
            self.try_ask(node, "attach", volume=number)
            if self.alive(node) and c.state(node, number)[2] == DiskState.DISKLESS:
                self.stale.add(node)  # its peer has gone on; the disk does not know that, as in DRBD
        self.pause(3000)

    # ---- sizes ----

    @property
    def _can_resize(self) -> bool:
        return bool(self.plan.setup.room_bytes) and self.c.in_sync and not self.excused and self.served_node >= 0

    def fault_resize(self) -> None:
        """Both disks grow, or one, or one while the peer is away; or the device shrinks."""
        if not self._can_resize:
            return
        way = self.rng.choice(("both", "both", "size", "away", "one", "shrink"))
        self.c.log(f"resize: {way}")
        self._configured_size(0)
        getattr(self, f"_resize_{way}")()
        self.adopt_size()

    def _configured_size(self, sectors: int) -> None:
        """In the files of both nodes."""
        for shell in self.c.shells:
            first = replace(shell.settings.volumes[0], size_sectors=sectors)
            shell.settings = replace(shell.settings, volumes=(first,))

    def _grow_disks(self, *nodes: int) -> None:
        most = self.plan.setup.disk_bytes + self.plan.setup.room_bytes
        for node in nodes:
            disk = self.c.shells[node].data
            room = (most - disk.size_bytes) // 4096
            if room:
                disk.size_bytes += 4096 * self.rng.choice((room, room // 2, self.rng.randint(1, room)))
                self.c.log(f"disk {disk.name}: {disk.size_bytes} bytes")

    def _resize_both(self, **order: int) -> None:
        c, asked = self.c, self.rng.randrange(2)
        self._grow_disks(0, 1)
        if self.rng.random() < 0.3:
            self.arm(self.rng.randrange(2), self.rng.randint(1, 40))
        elif self.rng.random() < 0.3:
            c.later(self.rng.randint(1, 60), lambda: c.world.lib.re_sim_net_reset(c.world.sim, 0, 1))
        answer = c.fire(asked, "resize", volume=0, **order)
        c.until(lambda: answer.is_done, 90_000, "the answer to resize")
        if all(self.alive(n) and c.volume(n).size_sectors == order.get("size_sectors") for n in (0, 1)):
            self._configured_size(order["size_sectors"])
        self.pause(2000)
        for node in (0, 1):
            self.disarm(node)
        self.back_all()

    def _resize_size(self) -> None:
        """To something between, and without a copy where nothing is to be copied."""
        c = self.c
        now = c.volume(0).size_sectors
        order: dict[str, int] = {"size_sectors": now + SECTORS_8K * self.rng.randint(1, 200)}
        if self._is_blank_behind():
            order["assume_clean"] = self.rng.random() < 0.5
        self._resize_both(**order)

    def _is_blank_behind(self) -> bool:
        """Nothing was ever written there, neither data nor metadata: equal on both."""
        begin = self.c.device_bytes
        length = self.plan.setup.disk_bytes + self.plan.setup.room_bytes - begin
        return self.plan.setup.external and not any(any(s.data.content(begin, length)) for s in self.c.shells)

    def _resize_one(self) -> None:
        node = self.rng.randrange(2)
        self._grow_disks(node)
        before = self.c.volume(node).size_sectors
        if self.try_ask(node, "resize", volume=0) and self.alive(node) and self.c.in_sync:
            room = [self._room(index) for index in (0, 1)]
            if self.c.volume(node).size_sectors > max(before, min(room)):
                raise SimFailure("the device became larger than one of the disks")
        self.pause(1000)

    def _room(self, node: int) -> int:
        prepared = self.c.volume(node).prepared
        return prepared.usable_sectors if prepared is not None else 0

    def _resize_away(self) -> None:
        """The peer is away while the Primary's device grows; its own disk has grown as well when it comes back."""
        c, node = self.c, self.wanted
        c.cut(silent=False)
        self.wait_calmly(lambda: not c.connected, 20_000)
        self._grow_disks(0, 1)
        size = max(shell.data.size_bytes for shell in c.shells)  # one may have grown before: disks do not shrink
        for shell in c.shells:
            shell.data.size_bytes = size
        if self.alive(node):
            is_alone = c.state(node)[1] < ConnectionState.CONNECTED
            if self.try_ask(node, "resize", volume=0) and is_alone and c.state(node)[1] < ConnectionState.CONNECTED:
                raise SimFailure("a resize without the peer was not refused")
            self.try_ask(node, "resize", volume=0, assume_peer_has_space=True)
        self.pause(1000)
        if self.alive(1 - node) and not self.down(1 - node):
            self.kill(1 - node)
        c.heal()
        self.back_all()
        self.pause(3000)

    def _resize_shrink(self) -> None:
        """Nobody uses the end any more; without --force it is refused."""
        c, node = self.c, self.served_node
        if any(shell.undo_facts for shell in c.shells):
            return
        sectors = c.device_bytes // SECTOR
        wanted = sectors - SECTORS_8K * self.rng.randint(1, sectors // SECTORS_8K // 4)
        if self.try_ask(node, "resize", volume=0, size_sectors=wanted):
            raise SimFailure("a device shrinks without --force")
        self.stop_app()
        if not c.wait(lambda: c.in_sync, 60_000) or not self.alive(node):
            return
        c.wait_idle()
        self.oracle.settled()
        c.device_bytes = wanted * SECTOR
        self.try_ask(node, "primary")
        if self.try_ask(node, "resize", volume=0, size_sectors=wanted, force=True):
            self._configured_size(wanted)
        self.pause(1000)

    def adopt_size(self) -> None:
        """The nodes agree on another size: from now on all of it counts, with what is there now."""
        c = self.c
        if c.setup.volumes > 1 or not self.plan.setup.room_bytes:
            return
        if not self.wait_calmly(lambda: c.in_sync, 60_000):
            return
        sizes = {c.volume(index).size_sectors for index in (0, 1)}
        if len(sizes) > 1:
            raise SimFailure(f"nodes in sync have different sizes: {sizes}")
        size = sizes.pop() * SECTOR
        if size == c.device_bytes:
            return
        self.stop_app()
        c.until(lambda: c.in_sync, 60_000, "both in sync")
        c.wait_idle()
        before = min(size, c.device_bytes)
        c.device_bytes = before
        self.oracle.settled()
        c.log(f"the device has {size} bytes")
        c.device_bytes = size
        c.check_equal()
        for shell in c.shells:  # what lay there before, old metadata perhaps, is nobody's write
            shell.data.load(before, bytes(size - before))
        c.rebase([0])
