# SPDX-License-Identifier: Apache-2.0
"""What the simulator reaches: every rule of the handshake decides on both nodes, and a gap is seen as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState, DiskState, Role
from repl.drbd.superblock import MdFlag
from repl.drbd.uuids import UUID_JUST_CREATED, Uuids, sync_uuid_after
from repl.node import disk as node_disk
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.node_shell import Script
from tests.sim.reach import ABSENT, EVENTS, REQUESTS, RULES, Reach, Watch, gaps, table
from tests.sim.reach_gaps import cannot_be, reason_of
from tests.sim.world import BLOCK

A, B, C, D, X, Y = (0x1111_0000_0000_0000 * n + 0x10 * n for n in range(1, 7))
GOOD = MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE | MdFlag.AL_CLEAN


@dataclass(frozen=True)
class Case:
    """Generations of two nodes, and the rule by which each of them decides."""

    mine: Uuids
    theirs: Uuids
    rule: int
    mirror: int
    flags: MdFlag = MdFlag.NONE  # of the first node


NEW = Uuids(UUID_JUST_CREATED)
CASES = (
    Case(NEW, NEW, 10, 10),
    Case(NEW, Uuids(A), 20, 30),
    Case(Uuids(A, B, C, D), Uuids(A, 0, B, C), 34, 35),
    Case(Uuids(A, B, C), Uuids(A, 0, X, Y), 36, 37),
    Case(Uuids(A), Uuids(A), 40, 40),
    Case(Uuids(A), Uuids(A), 40, 40, MdFlag.CRASHED_PRIMARY),
    Case(Uuids(A), Uuids(B, A), 50, 70),
    Case(Uuids(A, 0, X), Uuids(B, sync_uuid_after(A), A, Y), 51, 71),
    Case(Uuids(A), Uuids(B, C, A), 60, 80),
    Case(Uuids(A, C), Uuids(B, C), 90, 90),
    Case(Uuids(A, X, C), Uuids(B, Y, C), 100, 100),
    Case(Uuids(A, X, C), Uuids(B, Y, D), 100, 100),
)


def prepared(cluster: Cluster, index: int, uuids: Uuids, flags: MdFlag) -> None:
    """Metadata as after another life."""
    place = cluster.shells[index].place
    found, where = node_disk.find_superblock(place)
    if uuids != NEW:
        found = replace(found, uuids=uuids, flags=GOOD | flags, la_size_sectors=cluster.device_bytes // 512)
    place.md.pwrite(where.superblock_byte, found.serialise())
    place.md.flush()


def decided(case: Case, first: int, reach: Reach) -> dict[int, set[int]]:
    """The rules by node."""
    with Cluster(5, Setup()) as cluster:
        watch = Watch(cluster)
        prepared(cluster, first, case.mine, case.flags)
        prepared(cluster, 1 - first, case.theirs, MdFlag.NONE)
        cluster.start()
        cluster.until(lambda: all(cluster.events(n, "handshake") for n in (0, 1)), 30_000, "both decisions")
        cluster.run(500)
        watch.take(reach)
        return {n: {r for r, i, _ in reach.rules if i == n} for n in (0, 1)}


def rule_41(first: int, reach: Reach) -> None:
    """Two Primaries, one crashes, the other one is frozen: the same generation, and one of them is Primary."""
    net = replace(QUICK_NET, two_primaries=True, fencing="resource-and-stonith")
    with Cluster(6, Setup(net=net, handlers=("fence-peer",))) as cluster:
        watch = Watch(cluster)
        cluster.connect_fresh()
        for shell in cluster.shells:
            shell.scripts["fence-peer"] = Script(1)
        for node in (0, 1):
            cluster.serve(node).write(node)
        cluster.shells[first].crash()
        cluster.until(lambda: not cluster.node(1 - first).is_connected, 20_000, "the loss")
        cluster.restart(first)
        cluster.until(lambda: cluster.in_sync, 60_000, "both in sync")
        watch.take(reach)


def test_every_rule_decides_on_both_nodes() -> None:
    require_sim()
    reach = Reach()
    for case in CASES:
        for first in (0, 1):
            own = Reach()
            found = decided(case, first, own)
            assert case.rule in found[first] and case.mirror in found[1 - first], f"{case}: {found}"
            reach.add(own)
    for first in (0, 1):
        rule_41(first, reach)
    assert not [gap for gap in gaps(reach) if gap.startswith("rule")]


# ---- the list of gaps itself ----


@pytest.fixture
def everything() -> Iterator[Reach]:
    """As if all had been reached."""
    reach = Reach(scenarios=1)
    for rule in RULES:
        reach.rules.update({(rule, node, "none"): 1 for node in (0, 1)})
    for packet in Packet:
        slot = packet if packet < 64 else 63 if packet == Packet.FAREWELL else packet - 0xFFC0 + 64
        reach.sent[slot, 10] = reach.received[slot, 10] = 1
    states = [int(state) for state in ConnectionState]
    for state in states:
        for kind in range(len(REQUESTS)):
            reach.requests.update({(kind, event, state): 1 for event in range(len(EVENTS))})
        for disk in DiskState:
            reach.states.update({(int(role), int(disk), state): 1 for role in (Role.PRIMARY, Role.SECONDARY)})
    assert ABSENT not in states
    yield reach


def test_nothing_is_missing_when_everything_was_reached(everything: Reach) -> None:
    assert list(gaps(everything)) == []


@pytest.mark.parametrize(
    ("counter", "key", "gap"),
    [
        ("rules", (41, 1, "none"), "rule 41 on node 1"),
        ("sent", (3, 10), "packet BARRIER sent"),
        ("received", (63, 10), "packet FAREWELL received"),
        ("requests", (1, 1, 10), "request write done in Connected"),
    ],
)
def test_what_was_not_reached_is_named(everything: Reach, counter: str, key: tuple[object, ...], gap: str) -> None:
    del getattr(everything, counter)[key]
    assert list(gaps(everything)) == [gap]
    assert any(line.startswith("gap") and gap in line for line in table(everything))


def test_pair_of_states_that_was_not_reached_is_named(everything: Reach) -> None:
    for role in (Role.PRIMARY, Role.SECONDARY):
        del everything.states[int(role), int(DiskState.UP_TO_DATE), int(ConnectionState.SYNC_SOURCE)]
    assert list(gaps(everything)) == ["state UpToDate x SyncSource"]


@pytest.mark.parametrize(
    "gap",
    [
        "packet DATA sent",
        "packet WRITE_ACK received",
        "request write done in Connected",
        "state UpToDate x SyncSource",
        "state Primary/UpToDate",
        "state Secondary/SyncTarget",
    ],
)
def test_what_has_to_be_reached_has_no_excuse(gap: str) -> None:
    assert reason_of(gap) == ""


def test_what_cannot_be_is_never_reached() -> None:
    """The list of excuses against some scenarios."""
    require_sim()
    from tests.sim.scenario import run_seed

    reach = Reach()
    for seed in range(1, 9):
        run_seed(seed, reach=reach)
    impossible = {gap for gap in gaps(Reach()) if cannot_be(gap) and "DELAY_PROBE" not in gap}
    assert impossible <= set(gaps(reach))


def test_what_a_cluster_does_is_seen() -> None:
    require_sim()
    with Cluster(7, Setup()) as cluster:
        reach, watch = Reach(), Watch(cluster)
        cluster.connect_fresh()
        app = cluster.serve(0)
        assert app.do("write", 3 * BLOCK) == 0
        app.stop()
        watch.take(reach)
    assert reach.requests[1, 1, int(ConnectionState.CONNECTED)] == 1
    assert {"packet DATA sent", "packet DATA received"} & set(gaps(reach)) == set()
