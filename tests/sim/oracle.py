# SPDX-License-Identifier: Apache-2.0
"""What a copy may lack: follows who has every acknowledged write, and answers how strictly a copy is to be audited.

Inputs: the nodes' states after each of their events, and what the scenario does to them.  The rules are the table of
allowed losses by protocol and event; every content that is taken over after an event that may lose writes becomes the
new base of the history.  Two promises are checked as they happen: nobody becomes Primary without good data (P8), and
no node gives up what it alone has acknowledged unless somebody has said so (P7).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from repl.drbd.states import ConnectionState, DiskState, Role
from tests.sim.cluster import Cluster
from tests.sim.world import ACKED, CAUSAL, FLUSHED, STRICT, TAGS, SimFailure

SOURCES = (ConnectionState.WF_BITMAP_S, ConnectionState.SYNC_SOURCE)
TARGETS = (ConnectionState.WF_BITMAP_T, ConnectionState.SYNC_TARGET)


class Copies:
    """One volume."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self._c = cluster
        self._number = number
        self._net = cluster.setup.net
        self.primary = -1  # who served the application last
        self.holders = {0, 1}  # nodes that have every acknowledged write
        self.primary_died = False  # and nobody has been served since
        self.merged = False  # they agreed on one content after that
        self._died_whole = False  # it had everything then; its disk failed after that
        self._last_source = -1  # of a resync since it died, until both had the same
        self.drained = False  # the last Primary was demoted in order
        self.lost_power = [False, False]  # since they were holders
        self.crashed = [False, False]
        self.suspect = [False, False]  # its disk may have failed unseen
        self.faulty = [False, False]  # it may have failed since the nodes were in sync
        self.diverged = [False, False]  # it may have writes that the base of the history lacks
        self.degraded: int | None = None  # audit mode after the only holder, not the Primary, has lost something
        self._degraded_holder = -1
        self.alone = [False, False]  # it was Primary on its own since the nodes were in sync
        self.reads_ahead = False  # a Primary without a good copy shows writes that its peer may lack (decision 0015)
        self.won: int | None = None  # whose content a policy has chosen after both went on alone
        self._is_won_base = False  # that content is the base of the history since
        self.may_lose = [False, False]  # somebody has said that its writes may go, or broke its disk
        self._alone_from = [-1, -1]  # first operation of the present time alone
        self._exposed = [False, False]  # it acknowledged a write that the other one lacks
        self._exposures = [0, 0]
        self._died_as_target = [-1, -1]  # with so many exposures of its source
        self._is_target = [False, False]
        self._roles = [Role.SECONDARY, Role.SECONDARY]
        self._was_good = [False, False]
        self._has_policy = bool(self._net.after_sb_0pri or self._net.after_sb_1pri or self._net.after_sb_2pri)
        self.is_forced = True  # somebody declares data good

    # ---- what happens ----

    def observe(self, index: int) -> None:
        role, conn, disk, peer_disk = self._c.state(index, self._number)
        connected = conn >= ConnectionState.CONNECTED
        good, peer_good = disk == DiskState.UP_TO_DATE, connected and peer_disk == DiskState.UP_TO_DATE
        self._check_promotion(index, role, good=good, peer_good=peer_good)
        self._follow_time_alone(index, role, good=good, peer_there=connected and peer_disk >= DiskState.INCONSISTENT)
        if conn in SOURCES and all(self.alone) and self.won != index:
            self.won, self._is_won_base = index, False
        if conn in SOURCES and self.primary_died and not self.merged:
            self._last_source = index
        if conn in TARGETS:
            self._check_target(index)
        self._follow_target(index, conn, good=good)
        if self.suspect[index] and disk < DiskState.INCONSISTENT:
            self.suspect[index] = False  # it is out of the game until it is attached again
        if role == Role.PRIMARY:
            if good and not (connected and peer_disk >= DiskState.INCONSISTENT):
                self.alone[index] = True
            elif disk < DiskState.INCONSISTENT and peer_good:
                self.alone[1 - index] = True  # a diskless Primary writes to its peer's disk only
            if index == self.primary and not good:
                self.reads_ahead = True
            if index == self.primary and not self.primary_died:
                self._follow_primary(index, good=good, peer_good=peer_good)
        elif index == self.primary and not self.primary_died and role == Role.SECONDARY and not self.drained:
            self.drained = True
        if conn == ConnectionState.CONNECTED and good and peer_good:
            self._exposed = [False, False]  # who knows it first may be the only one who ever does
        if self._c.volume_in_sync(self._number):
            self.alone, self.may_lose, self._exposed = [False, False], [False, False], [False, False]
            if self.primary_died:
                self.merged = True

    def _check_promotion(self, index: int, role: Role, *, good: bool, peer_good: bool) -> None:
        before, self._roles[index] = self._roles[index], role
        was_good, self._was_good[index] = self._was_good[index], good or peer_good
        if role != Role.PRIMARY or before == Role.PRIMARY or good or peer_good or was_good or self.is_forced:
            return  # what it had when it was asked may be lost in the same moment
        if self._c.state(index, self._number)[2] >= DiskState.INCONSISTENT:
            raise SimFailure(f"P8: node {index} became Primary without good data ({self._c.describe()})")

    def _follow_time_alone(self, index: int, role: Role, *, good: bool, peer_there: bool) -> None:
        operations = int(self._c.world.lib.re_sim_op_count(self._c.world.sim))
        is_alone = role == Role.PRIMARY and good and not peer_there
        begin = self._alone_from[index]
        if is_alone and begin < 0:
            self._alone_from[index] = operations
        elif not is_alone and begin >= 0:
            self._alone_from[index] = -1
            self._expose(index, begin, operations)

    def _expose(self, index: int, begin: int, end: int) -> None:
        if self._has_written(index, begin, end):
            self._exposed[index] = True
            self._exposures[index] += 1

    def _follow_target(self, index: int, conn: ConnectionState, *, good: bool) -> None:
        """A target that dies may have ended its resync already: then it comes back with everything."""
        if good and self._died_as_target[index] == self._exposures[1 - index]:
            self._exposed[1 - index] = False
        if good or conn >= ConnectionState.CONNECTED:
            self._died_as_target[index] = -1
        self._is_target[index] = conn in (ConnectionState.SYNC_TARGET, ConnectionState.PAUSED_SYNC_T)

    def _has_written(self, index: int, begin: int, end: int) -> bool:
        """Has an operation of this range put anything on this node's disk, by its own word?"""
        c = self._c
        kinds = (c.world.lib.RE_SIM_NBD_WRITE, c.world.lib.RE_SIM_NBD_ZERO)
        for number in range(begin, end):
            op = c.op(number)
            if op.kind in kinds and op.state == c.world.lib.RE_SIM_OP_DONE and c.apps[op.client].node == index:
                return True
        return False

    def _check_target(self, index: int) -> None:
        if self._exposed[index] and not self.may_lose[index] and not (self._has_policy and all(self.alone)):
            raise SimFailure(f"P7: node {index} gives up writes that it alone has acknowledged ({self._c.describe()})")

    def _follow_primary(self, index: int, *, good: bool, peer_good: bool) -> None:
        now = {index} if good and not self.suspect[index] else set()
        if peer_good and not self.suspect[1 - index]:
            now.add(1 - index)
        if not now and good and not peer_good:
            now = {index}  # alone: a write that its disk fails is not acknowledged
        if not now or now == self.holders:
            return
        for node in now - self.holders:
            self.diverged[node] = False
            if self._c.state(node, self._number)[1] >= ConnectionState.CONNECTED:  # a Primary may learn of a death late
                self.lost_power[node] = self.crashed[node] = False
        self.holders = now

    def net_changes(self, values: dict[str, Any]) -> None:
        self._net = replace(self._net, protocol=min(self._net.protocol, values.get("protocol", 3)))
        self._has_policy = self._has_policy or bool(values.get("after_sb_0pri"))

    def process_died(self, index: int) -> None:
        self.ends_undrained(index)
        self._roles[index] = Role.SECONDARY

    def ends_undrained(self, index: int) -> None:
        """As if it died: nothing more is written."""
        if self._alone_from[index] >= 0:
            self._expose(index, self._alone_from[index], int(self._c.world.lib.re_sim_op_count(self._c.world.sim)))
            self._alone_from[index] = -1
        if self._is_target[index]:
            self._is_target[index] = False
            self._died_as_target[index] = self._exposures[1 - index]
        self.crashed[index] = True
        self._degrade(index)
        if index == self.primary and not self.primary_died:  # a second time it takes nothing back from its peer
            self.primary_died = True
            self.merged = self._died_whole = False
            self._last_source = -1

    def power_lost(self, index: int) -> None:
        self.process_died(index)
        self.cache_lost(index)

    def cache_lost(self, index: int) -> None:
        self.lost_power[index] = True
        self._degrade(index)

    def _degrade(self, index: int) -> None:
        """A Primary without good data of its own is as safe as the one node that has it."""
        was_overwritten = self.merged and self._is_primary_back
        if index != self.primary and self.holders == {index} and not was_overwritten:
            self.degraded = self.allowed(index)
            self._degraded_holder = index

    def disk_fault(self, index: int) -> None:
        """From now on it may lack writes, until it is seen without its disk or :meth:`disk_healed`."""
        self.suspect[index] = self.faulty[index] = True
        if self.primary_died and index == self.primary and index in self.holders:
            self._died_whole = True  # as a crashed Primary it is still the source
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
            if index == self.primary and self.lost_power[index]:
                return TAGS  # its cache had no order
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

    @property
    def _is_primary_back(self) -> bool:
        """A pair in sync has what the dead Primary's disk kept: the one that alone had everything was its target."""
        return self._died_whole and self._last_source == self.primary

    def source(self) -> int:
        """Whose content a pair in sync has."""
        if self.primary in self.holders or self.primary == -1:
            return self.primary if self.primary >= 0 else 0
        return 1 - self.primary

    def mode(self, index: int) -> int:
        """The audit mode for what this node would serve."""
        merged = self.merged or (self._c.volume_in_sync(self._number) and self.primary_died)
        if self.degraded is not None and (merged or index == self._degraded_holder or index in self.holders):
            if merged and self._is_primary_back:
                return TAGS  # blocks that the source's disk had lost are the other one's
            return self.degraded  # but one that has lost its disk before and nothing was resynced to since
        if self.won is not None and (self.won != self.source() or not (self._is_won_base or self.won == self.primary)):
            return TAGS  # who was served last has lost, even if it is Primary again and reads from the winner already
        if any(self.faulty) and self._net.protocol < 3 and (self.merged or self.primary_died):
            return TAGS  # a Primary without its disk and without its link has nothing, whoever is the source then
        found = self.allowed((self.primary if self._is_primary_back else self.source()) if merged else index)
        return ACKED if found == STRICT and self.reads_ahead else found

    # ---- checks ----

    def served_copy(self, server: int) -> int:
        """Whose disk the application would read."""
        c = self._c
        _, _, disk, peer_disk = c.state(server, self._number)
        copy = server if disk == DiskState.UP_TO_DATE else 1 - server
        if copy != server and peer_disk != DiskState.UP_TO_DATE:
            raise SimFailure(f"P8: node {server} was promoted without good data ({c.describe()})")
        return copy

    def taken_over(self, server: int, copy: int, mode: int) -> None:
        if self.primary != server or mode != STRICT:
            for node in (0, 1):
                if node != copy and not self._c.volume_in_sync(self._number):
                    self.diverged[node] = self.diverged[node] or node == self.primary or mode != STRICT
        self.primary = server
        self._is_won_base = self.won == copy
        self.reads_ahead = False
        self.primary_died = self.merged = self.drained = self._died_whole = False
        self.degraded = None
        self.holders = {copy}
        for node in self.holders:
            self.lost_power[node] = self.crashed[node] = self.diverged[node] = False
        self.observe(server)

    def settled(self) -> None:
        self.holders = {0, 1}
        self.degraded = None
        self.lost_power, self.crashed = [False, False], [False, False]
        self.diverged, self.alone = [False, False], [False, False]
        self.faulty = list(self.suspect)
        self.won, self._is_won_base = None, False
        self.reads_ahead = False
        self.may_lose, self._exposed = [False, False], [False, False]
        if self.primary_died:
            self.primary, self.primary_died, self.drained, self.merged = -1, False, False, False


class Oracle:
    """Observes one cluster: all its volumes."""

    def __init__(self, cluster: Cluster) -> None:
        self._c = cluster
        self.volumes = [Copies(cluster, number) for number in cluster.numbers]
        cluster.observers.append(self.observe)

    # ---- what happens ----

    def observe(self, index: int) -> None:
        for copies in self.volumes:
            copies.observe(index)

    def process_died(self, index: int) -> None:
        for copies in self.volumes:
            copies.process_died(index)

    def ends_undrained(self, index: int) -> None:
        for copies in self.volumes:
            copies.ends_undrained(index)

    def process_ended(self, index: int) -> None:
        """In order; nobody is served by it any more."""
        for copies in self.volumes:
            if index == copies.primary:
                copies.primary_died = True

    def power_lost(self, index: int) -> None:
        for copies in self.volumes:
            copies.power_lost(index)

    def disk_fault(self, index: int, number: int) -> None:
        self.volumes[number].disk_fault(index)

    def disk_healed(self, index: int) -> None:
        for copies in self.volumes:
            copies.disk_healed(index)

    def cache_lost(self, index: int) -> None:
        for copies in self.volumes:
            copies.cache_lost(index)

    def may_lose(self, index: int) -> None:
        """Somebody throws away what this node has, or his orders may lead to that."""
        for copies in self.volumes:
            copies.may_lose[index] = True

    def net_changes(self, values: dict[str, Any]) -> None:
        """Network options, at run time: the weaker promise counts from now on."""
        for copies in self.volumes:
            copies.net_changes(values)

    # ---- looking ----

    @property
    def primary(self) -> int:
        return self.volumes[0].primary

    def begin(self) -> None:
        """The first data is there."""
        for copies in self.volumes:
            copies.is_forced = False

    @property
    def both_alone(self) -> bool:
        """On some volume both nodes went on without each other."""
        return any(all(copies.alone) for copies in self.volumes)

    def is_only_holder(self, index: int) -> bool:
        return any(copies.holders == {index} for copies in self.volumes)

    def source(self) -> int:
        """Whose content should win."""
        return self.volumes[0].source()

    # ---- checks ----

    def take_over(self, server: int) -> None:
        """Applications are about to be served by this node, which has just been promoted."""
        c = self._c
        copies = [volume.served_copy(server) for volume in self.volumes]
        modes = [volume.mode(copy) for volume, copy in zip(self.volumes, copies, strict=True)]
        c.log(f"oracle: node {server} serves copies {copies}, audit {modes}")
        self._audit(copies, modes, f"taken over by node {server}")
        for volume, copy, mode in zip(self.volumes, copies, modes, strict=True):
            volume.taken_over(server, copy, mode)

    def settled(self) -> None:
        """Both nodes are in sync and idle: audit the one content."""
        modes = [volume.mode(volume.source()) for volume in self.volumes]
        self._c.log(f"oracle: in sync, audit {modes}")
        self._audit([0] * len(modes), modes, "in sync")
        for volume in self.volumes:
            volume.settled()

    def _audit(self, copies: list[int], modes: list[int], what: str) -> None:
        for number, (copy, mode) in enumerate(zip(copies, modes, strict=True)):
            self._c.check_audit(copy, mode, what, number=number)
        # A disk that fails takes what was in its cache with it, and the other volumes go on.
        whole = not any(volume.faulty[copy] for volume, copy in zip(self.volumes, copies, strict=True))
        if whole and len(set(copies)) == 1 and all(mode in (CAUSAL, ACKED) for mode in modes):
            self._c.check_order(copies)
        if any(mode != STRICT for mode in modes):
            self._c.rebase(copies)
