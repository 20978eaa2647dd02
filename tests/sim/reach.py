# SPDX-License-Identifier: Apache-2.0
"""What the scenarios have reached: rules of the handshake, packets, events of requests, pairs of states.

A :class:`Reach` is a sum over scenarios; sums of several processes are added with :meth:`add`.  What nothing has
reached is a gap of the tests and is printed as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState, DiskState, Role
from repl.engine.commands import State

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

RULES = (10, 20, 30, 34, 35, 36, 37, 40, 41, 50, 51, 60, 70, 71, 80, 90, 100)
PACKETS, STATES, ABSENT = 128, 32, 31
REQUESTS = ("read", "write", "flush", "zero", "trim")
EVENTS = ("begins", "done", "failed", "cut off")
DISK = ("read", "write", "flush", "zero", "extents")
ENDS = ("done", "failed")
ACKS = (Packet.RECV_ACK, Packet.WRITE_ACK, Packet.RS_WRITE_ACK, Packet.NEG_ACK, Packet.NEG_DREPLY,
        Packet.NEG_RS_DREPLY, Packet.BARRIER_ACK)  # fmt: skip


@dataclass
class Reach:
    """Counts."""

    scenarios: int = 0
    rules: Counter[tuple[int, int, str]] = field(default_factory=Counter)  # rule, node, what follows
    states: Counter[tuple[int, int, int]] = field(default_factory=Counter)  # role, disk, connection
    sent: Counter[tuple[int, int]] = field(default_factory=Counter)  # slot of the packet, state of the sender
    received: Counter[tuple[int, int]] = field(default_factory=Counter)
    requests: Counter[tuple[int, int, int]] = field(default_factory=Counter)  # kind, event, state
    disk: Counter[tuple[int, int, int]] = field(default_factory=Counter)

    def add(self, other: Reach) -> None:
        self.scenarios += other.scenarios
        for name in ("rules", "states", "sent", "received", "requests", "disk"):
            getattr(self, name).update(getattr(other, name))


class Watch:
    """Follows one cluster; :meth:`take` adds what was seen to a sum."""

    def __init__(self, cluster: Cluster) -> None:
        self._c = cluster
        self._states: Counter[tuple[int, int, int]] = Counter()
        for shell in cluster.shells:
            shell.on_engine_state = self._state_of(shell.index)

    def _state_of(self, index: int) -> Callable[[int, State], None]:
        world = self._c.world

        def follow(volume: int, state: State) -> None:
            self._states[state.role, state.disk, state.connection] += 1
            if volume == 0:
                world.lib.re_sim_reach_state(world.sim, index, state.connection)

        return follow

    def absent(self, index: int) -> None:
        """The node does not run."""
        self._c.world.lib.re_sim_reach_state(self._c.world.sim, index, ABSENT)

    def take(self, reach: Reach) -> None:
        """Before the cluster is closed."""
        world = self._c.world
        reach.scenarios += 1
        reach.states.update(self._states)
        for shell in self._c.shells:
            for event in shell.state_events:
                if event.kind == "handshake" and "rule" in event.fields:
                    what = event.message.split()[1]
                    reach.rules[int(event.fields["rule"]), shell.index, what] += 1
        sums = world.ffi.new("struct re_sim_reach *")
        world.lib.re_sim_reach_add(world.sim, sums)
        for name, table in (("sent", sums.sent), ("received", sums.received)):
            cells = world.ffi.unpack(world.ffi.cast("uint32_t *", table), PACKETS * STATES)
            getattr(reach, name).update({divmod(at, STATES): n for at, n in enumerate(cells) if n})
        for name, table, width in (("requests", sums.requests, 4), ("disk", sums.disk, 2)):
            cells = world.ffi.unpack(world.ffi.cast("uint32_t *", table), 5 * width * STATES)
            found = {(at // STATES // width, at // STATES % width, at % STATES): n for at, n in enumerate(cells) if n}
            getattr(reach, name).update(found)


# ---- the table ----


def packet_of(slot: int) -> int:
    """csrc/sim/sniff.c, packet_slot()."""
    if slot == 63:
        return int(Packet.FAREWELL)
    return slot if slot < 64 else slot - 64 + 0xFFC0


def state_name(state: int) -> str:
    return "absent" if state == ABSENT else str(ConnectionState(state))


def gaps(reach: Reach) -> Iterator[str]:
    """The names of what was not reached, one for each thing."""
    rules = {(rule, node) for rule, node, _ in reach.rules}
    yield from (f"rule {rule} on node {node}" for rule in RULES for node in (0, 1) if (rule, node) not in rules)
    for what, counted in (("sent", reach.sent), ("received", reach.received)):
        seen = {packet_of(slot) for slot, _ in counted}
        yield from (f"packet {packet.name} {what}" for packet in Packet if packet not in seen)
    used = sorted({state for _, event, state in reach.requests if event == 0 and state < ABSENT})
    for kind, name in enumerate(REQUESTS):
        for event, what in enumerate(EVENTS):
            yield from (
                f"request {name} {what} in {state_name(s)}" for s in used if not reach.requests[kind, event, s]
            )
    by_disk, by_conn = {(r, d) for r, d, _ in reach.states}, {(r, c) for r, _, c in reach.states}
    both = {(d, c) for _, d, c in reach.states}
    for role in (Role.PRIMARY, Role.SECONDARY):
        yield from (f"state {role}/{disk}" for disk in DiskState if (role, disk) not in by_disk)
        yield from (f"state {role}/{conn}" for conn in ConnectionState if (role, conn) not in by_conn)
    yield from (f"state {disk} x {conn}" for disk in DiskState for conn in ConnectionState if (disk, conn) not in both)


def table(reach: Reach) -> Iterator[str]:
    """Lines of text; one that begins with "gap" says what was not reached and why."""
    yield f"reached in {reach.scenarios} scenarios"
    yield "rule   node 0   node 1   what followed"
    for rule in RULES:
        counts = [sum(n for (r, i, _), n in reach.rules.items() if r == rule and i == index) for index in (0, 1)]
        what = sorted({w for r, _, w in reach.rules if r == rule})
        yield f"{rule:4} {counts[0]:8} {counts[1]:8}   {', '.join(what)}"
    yield from _packets(reach)
    yield from _requests(reach)
    yield from _pairs(reach)
    yield from reasons(reach)


def _packets(reach: Reach) -> Iterator[str]:
    numbers = sorted(int(packet) for packet in Packet)
    sent: Counter[int] = Counter()
    received: Counter[int] = Counter()
    for (slot, _), count in reach.sent.items():
        sent[packet_of(slot)] += count
    for (slot, _), count in reach.received.items():
        received[packet_of(slot)] += count
    yield "packet                       sent   received   in states (received)"
    for number in numbers:
        if sent[number] or received[number]:
            states = sorted({s for slot, s in reach.received if packet_of(slot) == number})
            where = ", ".join(map(state_name, states))
            yield f"{Packet(number).name:24} {sent[number]:9}  {received[number]:9}   {where}"


def _requests(reach: Reach) -> Iterator[str]:
    """Which events a request met in which connection state of its node."""
    used = sorted({state for _, event, state in reach.requests if event == 0})
    yield "request events by connection state: " + ", ".join(map(state_name, used))
    for kind, name in enumerate(REQUESTS):
        for event, what in enumerate(EVENTS):
            counts = [reach.requests[kind, event, state] for state in used]
            yield f"{name:6} {what:8} " + " ".join(f"{count:8}" for count in counts)
    for kind, name in enumerate(DISK):
        for event, what in enumerate(ENDS):
            states = sorted(state for k, e, state in reach.disk if (k, e) == (kind, event))
            yield f"disk {name} {what}: {', '.join(map(state_name, states)) or '-'}"
    for ack in ACKS:
        states = sorted({s for slot, s in reach.received if packet_of(slot) == ack})
        yield f"{ack.name} in: {', '.join(map(state_name, states)) or '-'}"


def _pairs(reach: Reach) -> Iterator[str]:
    seen = reach.states
    by_disk = {(r, d) for r, d, _ in seen}
    by_conn = {(r, c) for r, _, c in seen}
    both = {(d, c) for _, d, c in seen}
    yield (
        f"states: {len(by_disk)} pairs of role and disk, {len(by_conn)} of role and connection, "
        f"{len(both)} of disk and connection, {len(seen)} triples"
    )


def reasons(reach: Reach) -> Iterator[str]:
    """Each gap's reason with the things that it explains; "no reason known" is what the tests should reach."""
    from tests.sim.reach_gaps import reason_of

    by_reason: dict[str, list[str]] = {}
    for gap in gaps(reach):
        by_reason.setdefault(reason_of(gap) or "no reason known", []).append(gap)
    for reason, names in sorted(by_reason.items()):
        yield f"gap: {reason}: {', '.join(names)}"
