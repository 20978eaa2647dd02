# SPDX-License-Identifier: Apache-2.0
"""What a copy may lack: follows who has every acknowledged write, and answers how strictly a copy is to be audited.

Inputs: the nodes' states after each of their events, and what the scenario does to them.  The rules are the table of
allowed losses by protocol and event; every content that is taken over after an event that may lose writes becomes the
new base of the history.
"""

from __future__ import annotations

from repl.drbd.states import ConnectionState, DiskState, Role
from tests.sim.cluster import Cluster
from tests.sim.world import ACKED, CAUSAL, FLUSHED, STRICT, TAGS, SimFailure


class Oracle:
    """Observes one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._c = cluster
        self._net = cluster.setup.net
        self.primary = -1  # who served the application last
        self.holders = {0, 1}  # nodes that have every acknowledged write
        self.primary_died = False  # and nobody has been served since
        self.merged = False  # they agreed on one content after that
        self.drained = False  # the last Primary was demoted in order
        self.lost_power = [False, False]  # since they were holders
        self.crashed = [False, False]
        self.suspect = [False, False]  # its disk may have failed unseen
        self.diverged = [False, False]  # it may have writes that the base of the history lacks
        self.degraded: int | None = None  # audit mode after the only holder, not the Primary, has lost something
        self.alone = [False, False]  # it was Primary on its own since the nodes were in sync
        cluster.observers.append(self.observe)

    # ---- what happens ----

    def observe(self, index: int) -> None:
        role, conn, disk, peer_disk = self._c.state(index)
        connected = conn >= ConnectionState.CONNECTED
        good, peer_good = disk == DiskState.UP_TO_DATE, connected and peer_disk == DiskState.UP_TO_DATE
        if self.suspect[index] and disk < DiskState.INCONSISTENT:
            self.suspect[index] = False  # it is out of the game until it is attached again
        if role == Role.PRIMARY:
            if good and not (connected and peer_disk >= DiskState.INCONSISTENT):
                self.alone[index] = True
            elif disk < DiskState.INCONSISTENT and peer_good:
                self.alone[1 - index] = True  # a diskless Primary writes to its peer's disk only
            if index == self.primary and not self.primary_died:
                self._follow_primary(index, good=good, peer_good=peer_good)
        elif index == self.primary and not self.primary_died and role == Role.SECONDARY and not self.drained:
            self.drained = True
        if self._c.in_sync:
            self.alone = [False, False]
            if self.primary_died:
                self.merged = True

    def _follow_primary(self, index: int, *, good: bool, peer_good: bool) -> None:
        now = {index} if good and not self.suspect[index] else set()
        if peer_good and not self.suspect[1 - index]:
            now.add(1 - index)
        if not now and good and not peer_good:
            now = {index}  # alone: a write that its disk fails is not acknowledged
        if not now or now == self.holders:
            return
        for node in now - self.holders:
            self.lost_power[node] = self.crashed[node] = self.diverged[node] = False
        self.holders = now

    def process_died(self, index: int) -> None:
        self.crashed[index] = True
        self._degrade(index)
        if index == self.primary:
            self.primary_died = True
            self.merged = False

    def power_lost(self, index: int) -> None:
        self.process_died(index)
        self.lost_power[index] = True
        self._degrade(index)

    def _degrade(self, index: int) -> None:
        """A Primary without good data of its own is as safe as the one node that has it."""
        if index != self.primary and self.holders == {index}:
            self.degraded = self.allowed(index)

    def disk_fault(self, index: int) -> None:
        """From now on it may lack writes, until it is seen without its disk or :meth:`disk_healed`."""
        self.suspect[index] = True
        if self.holders - {index}:
            self.holders = self.holders - {index}

    def disk_healed(self, index: int) -> None:
        self.suspect[index] = False
        if self.primary >= 0 and self._c.shells[self.primary].is_running:
            self.observe(self.primary)

    # ---- what may be missing ----

    def allowed(self, index: int) -> int:
        """The audit mode for this node's own copy."""
        if index not in self.holders:
            return TAGS if self.diverged[index] or self.suspect[index] else CAUSAL
        power = self.lost_power[index]
        if index == self.primary or self.primary == -1:
            return FLUSHED if power else STRICT
        if self.drained:
            return FLUSHED if power else STRICT
        if self._net.protocol == 3:
            return (FLUSHED if self._net.strict_flush else CAUSAL) if power else ACKED
        if self._net.protocol == 2 and not power and not self.crashed[index]:
            return ACKED
        return CAUSAL

    def source(self) -> int:
        """Whose content a pair in sync has."""
        if self.primary in self.holders or self.primary == -1:
            return self.primary if self.primary >= 0 else 0
        return 1 - self.primary

    def mode(self, index: int) -> int:
        """The audit mode for what this node would serve."""
        if self.degraded is not None:
            return self.degraded
        if self.merged or self._c.in_sync and self.primary_died:
            return self.allowed(self.source())
        return self.allowed(index)

    # ---- checks ----

    def take_over(self, server: int) -> None:
        """An application is about to be served by this node, which has just been promoted."""
        c = self._c
        _, _, disk, peer_disk = c.state(server)
        copy = server if disk == DiskState.UP_TO_DATE else 1 - server
        if copy != server and peer_disk != DiskState.UP_TO_DATE:
            raise SimFailure(f"P8: node {server} was promoted without good data ({c.describe()})")
        mode = self.mode(copy)
        c.log(f"oracle: node {server} serves node {copy}'s copy, audit {mode}, holders {sorted(self.holders)}")
        c.check_audit(copy, mode, f"taken over by node {server}")
        if mode != STRICT:
            c.world.rebase(c.history, c.shells[copy].data.number)
        if self.primary != server or mode != STRICT:
            for node in (0, 1):
                if node != copy and not c.in_sync:
                    self.diverged[node] = self.diverged[node] or node == self.primary or mode != STRICT
        self.primary = server
        self.primary_died = self.merged = self.drained = False
        self.degraded = None
        self.holders = {copy}
        for node in self.holders:
            self.lost_power[node] = self.crashed[node] = self.diverged[node] = False
        self.observe(server)

    def settled(self) -> None:
        """Both nodes are in sync and idle: audit the one content."""
        c = self._c
        mode = self.mode(self.source())
        c.log(f"oracle: in sync, audit {mode}")
        c.check_audit(0, mode, "in sync")
        if mode != STRICT:
            c.world.rebase(c.history, c.shells[0].data.number)
        self.holders = {0, 1}
        self.degraded = None
        self.lost_power, self.crashed = [False, False], [False, False]
        self.diverged, self.alone = [False, False], [False, False]
        if self.primary_died:
            self.primary, self.primary_died, self.drained, self.merged = -1, False, False, False
