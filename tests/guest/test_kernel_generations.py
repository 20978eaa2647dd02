# SPDX-License-Identifier: Apache-2.0
"""The same superblocks, judged by us and by the kernel's DRBD: every rule, from both sides, and what follows from it.

Both disks start with random data, all of it marked as different, and the generations of a case; then the nodes meet.
The kernel's own words (rule, code) are compared with ours and with the table, the disks with who had to win.
Cases: tests/vectors/handshake-decisions.txt and those that it lacks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from repl import config
from repl.daemon.disks import open_disk
from repl.drbd.decision import Decision, DecisionKind, decide
from repl.drbd.packets import PROTOCOL_MAX
from repl.drbd.split_brain import AfterSplitBrain, Policies, ResyncConflict
from repl.drbd.states import DiskState, Role
from repl.drbd.superblock import GI_FLAGS, MdFlag
from repl.drbd.uuids import PRIMARY_BIT, UUID_SYNC_STEP, Feature, Side, Uuids
from repl.node.disk import create_metadata, find_superblock, usable_sectors
from tests.lib.interop import LINK_LOST, MIB, KernelPair, PairMaker
from tests.wire.vector_files import handshake_cases

A, B, C, D, E, F = (0x1111111111111110 * factor for factor in range(1, 7))
BLOCK = 4096
CAUSES = re.compile(LINK_LOST + "|incompatible|Split-Brain|error receiving|nrelated")
ALLOWED = LINK_LOST + "|incompatible|error receiving|meta connection shut down"


@dataclass(frozen=True)
class Case:
    """``a`` and ``b``: superblocks as drbdmeta set-gi takes them; ``net``: options of a, ``other``: of b.

    ``primary``: who is promoted before they meet; ``discard``: who is told to discard its data; ``clean``: whose
    bitmap is empty (the other's is full).
    """

    name: str
    a: str
    b: str
    net: str = ""
    other: str | None = None
    primary: str = ""
    discard: str = ""
    clean: str = ""

    def turned(self) -> Case:
        """The same with the other one as our node."""
        swap = str.maketrans("ab", "ba")
        return replace(
            self, name=f"{self.name}-turned", a=self.b, b=self.a, net=self.net if self.other is None else self.other,
            other=self.net, primary=self.primary.translate(swap), discard=self.discard.translate(swap),
            clean=self.clean.translate(swap),
        )  # fmt: skip


def gi(*slots: int, flags: str = "1:1:0:0:0:0:0") -> str:
    padded = (*slots, 0, 0, 0)[:4]
    return ":".join(f"{slot:016X}" for slot in padded) + ":" + flags


CRASHED, OUTDATED, INCONSISTENT = "1:1:0:0:0:0:1", "1:0:0:0:0:0:0", "0:0:0:0:0:0:0"
LEAST, ZERO = "after-sb-0pri discard-least-changes;", "after-sb-0pri discard-zero-changes;"
TWO = "allow-two-primaries yes;"
NINETY = (gi(A, C), gi(B, C))
HUNDRED = (gi(A, 0, C, D), gi(B, 0, D, E))


def from_vectors() -> list[Case]:
    cases = []
    for vector in handshake_cases():
        if vector.name == "r10":
            continue  # both just created and UpToDate all the same: no history leads there
        net, other, discard = "", None, ""
        options = vector.options.partition(": ")[2]
        if "discard-my-data" in options:
            discard = "ab" if vector.options.startswith("both") else "a"
        elif "B: discard-remote" in options:
            net, other = "after-sb-0pri discard-local;", "after-sb-0pri discard-remote;"
        elif options:
            net = "".join(f"{option};" for option in options.split(", "))
        cases.append(Case(vector.name, vector.side_a, vector.side_b, net, other, discard=discard))
    return cases


def primary_cases() -> list[Case]:
    """Policies with Primaries; who is Primary has a new generation of its own."""
    sides = {"a": Case("", gi(A, C), gi(B, C), primary="a"), "b": Case("", gi(A, C), gi(B, C), primary="b")}
    found = []
    for who, base in sides.items():
        for policy in ("disconnect", "consensus", "discard-secondary", "violently-as0p", "call-pri-lost-after-sb"):
            for clean in "ab":
                net = f"{LEAST} after-sb-1pri {policy};"
                found.append(replace(base, name=f"1pri-{policy}-primary-{who}-less-{clean}", net=net, clean=clean))
        net = f"{LEAST} after-sb-1pri violently-as0p; rr-conflict violently;"
        found.append(replace(base, name=f"rr-violently-primary-{who}", net=net, clean=who))
    return found


def two_primaries_cases() -> list[Case]:
    """Both are Primary and stay so, or who loses is demoted, or the decision is refused by who would lose."""
    found = []
    base = Case("", *NINETY, primary="ab")
    for policy in ("violently-as0p", "call-pri-lost-after-sb"):
        for conflict in ("disconnect", "violently"):
            tail = f"after-sb-2pri {policy}; rr-conflict {conflict};"
            name = f"2pri-{policy}-{conflict}"
            for clean in "ab":
                found.append(replace(base, name=f"{name}-less-{clean}", net=f"{TWO} {LEAST} {tail}", clean=clean))
            found.append(replace(base, name=f"{name}-undecided", net=f"{TWO} {ZERO} {tail}"))
            mine, theirs = (f"{TWO} after-sb-0pri discard-{who}; {tail}" for who in ("local", "remote"))
            found.append(replace(base, name=f"{name}-local-remote", net=mine, other=theirs))
            always = f"{TWO} {LEAST} always-asbp yes; {tail}"
            found.append(Case(f"{name}-100", *HUNDRED, net=always, primary="ab", clean="a"))
    return found


MORE = [
    Case("r37", gi(A), gi(A, B)),
    Case("r34-other-history", gi(A, B, C, D), gi(A, 0, B, C)),
    Case("r36-history-differs", gi(A, B, C, 0), gi(A, 0, B, D)),
    # A node that is promoted alone starts a new generation, unless its bitmap has a UUID already.
    Case("r41-crashed-a-primary-a", gi(A, B, flags=CRASHED), gi(A, C), primary="a"),
    Case("r41-crashed-b-primary-a", gi(A, B), gi(A, C, flags=CRASHED), primary="a"),
    Case("r41-crashed-both-primary-a", gi(A, B, flags=CRASHED), gi(A, B, flags=CRASHED), primary="a"),
    Case("r41-two-primaries", gi(A, B, flags=CRASHED), gi(A, C), primary="ab", net=TWO),
    Case("r50-promoted-a-crashed-b", gi(A), gi(A, flags=CRASHED), primary="a"),
    Case("2pri-disconnect", *NINETY, primary="ab", net=TWO + LEAST),
    Case("r40-crashed-both-bitmaps", gi(A, B, flags=CRASHED), gi(A, C)),
    Case("r51-71-longer", gi(A, 0, D), gi(B, A + UUID_SYNC_STEP, A, C)),
    Case("r51-71-wrong-step", gi(A, 0, C), gi(B, D, A, C)),
    Case("r60-80-h2", gi(A, 0, 0, 0), gi(B, C, D, A)),
    Case("r71-before-r80", gi(B, A + UUID_SYNC_STEP, A, C), gi(A, 0, D, E)),
    Case("r80-h1", gi(B, 0, A, C), gi(A, 0, D, E)),
    Case("r90-primary-marks", gi(A, C | PRIMARY_BIT), gi(B, C)),
    Case("left-over-primary-a", gi(A, B), gi(A, C), primary="a"),
    Case("left-over-primary-b", gi(A, B), gi(A, B), primary="b", clean="b"),
    Case("left-over-clean-a", gi(A), gi(A), clean="a"),
    Case("left-over-clean-b", gi(A), gi(A), clean="b"),
    Case("left-over-outdated-b", gi(A), gi(A, flags=OUTDATED), clean="a"),
    Case("left-over-bitmaps", gi(A, B), gi(A, C), clean="a"),
    Case("both-inconsistent-50", gi(A, flags=INCONSISTENT), gi(B, A, flags=INCONSISTENT)),
    Case("rr-disconnect-primary-a", gi(A), gi(B, A), primary="a", net=""),
    Case("sb-zero-a", *NINETY, net=ZERO, clean="a"),
    Case("sb-zero-none", *NINETY, net=ZERO),
    Case("sb-zero-both", *NINETY, net=ZERO, clean="ab"),
    Case("sb-least-a", *NINETY, net=LEAST, clean="a"),
    Case("sb-least-equal", *NINETY, net=LEAST),
    Case("sb-younger-undecided", *NINETY, net="after-sb-0pri discard-younger-primary;", clean="b"),
    Case("sb-older-undecided", *NINETY, net="after-sb-0pri discard-older-primary;", clean="a"),
    Case("sb-local-remote", *NINETY, net="after-sb-0pri discard-remote;", other="after-sb-0pri discard-local;"),
    Case("sb-100-no-asbp", *HUNDRED, net=LEAST),
    Case("sb-policy-before-discard", *NINETY, net=LEAST, clean="a", discard="b"),
    Case("sb-discard-b", *NINETY, discard="b"),
    *primary_cases(),
    *two_primaries_cases(),
]
CASES = {case.name: case for each in (*from_vectors(), *MORE) for case in (each, each.turned())}
ALWAYS = ["r34-35", "r51-71-turned", "r41-crashed-b-primary-a", "left-over-clean-a", "sb-100disc", "sb-younger",
          "1pri-discard-secondary-primary-b-less-b"]  # fmt: skip


@pytest.mark.parametrize("name", ALWAYS)
def test_generations_are_judged_alike(make_pair: PairMaker, name: str) -> None:
    Meeting(make_pair, CASES[name]).run()


@pytest.mark.interop
@pytest.mark.parametrize("name", [name for name in CASES if name not in ALWAYS])
def test_more_generations_are_judged_alike(make_pair: PairMaker, name: str) -> None:
    Meeting(make_pair, CASES[name]).run()


# ---- dry runs ----


def parted(make_pair: PairMaker) -> KernelPair:
    """Both wrote alone and are StandAlone."""
    pair = make_pair(allowed=ALLOWED)
    pair.our_primary()
    pair.our_secondary()
    pair.wait_kernel(peer_role="Secondary")
    pair.ours.call("disconnect")
    pair.kernel.adm("disconnect")
    with pair.ours.client() as client:
        client.write(MIB, os.urandom(65536))
    pair.our_secondary()
    pair.kernel.adm("primary")
    pair.kernel.write(2048, 64)
    pair.kernel.adm("secondary")
    return pair


def test_our_dry_run_tells_the_verdict_and_changes_nothing_on_either_side(make_pair: PairMaker) -> None:
    pair = parted(make_pair)
    before = pair.ours.uuids(), pair.kernel.uuids()
    pair.kernel.adm("connect")
    pair.ours.call("connect", tentative=True)
    pair.wait_stand_alone()
    assert pair.ours.status()["reason_code"] == "tentative"
    assert "rule 90" in pair.ours.status()["reason"]
    assert (pair.ours.uuids(), pair.kernel.uuids()) == before
    assert "Began resync" not in pair.kernel.log().split("uuid_compare()=100")[-1]
    pair.wait_kernel(cstate="StandAlone|WFConnection")


def test_the_kernels_dry_run_is_judged_and_ends_without_a_change(make_pair: PairMaker) -> None:
    pair = parted(make_pair)
    before = pair.ours.uuids(), pair.kernel.uuids()
    pair.ours.call("connect")
    pair.kernel.adm("connect --tentative")
    said = "only asked what would happen. rule 90"
    pair.wait(
        lambda: any(said in event["message"] for event in pair.ours.call("events", after=0)["events"]), "our verdict"
    )
    pair.kernel.adm("disconnect --force", check=False)
    assert pair.ours.status()["connection"] != "StandAlone"
    assert (pair.ours.uuids(), pair.kernel.uuids()) == before


class Meeting:
    """One case: our node is a, the kernel is b."""

    def __init__(self, make_pair: PairMaker, case: Case) -> None:
        self.case = case
        self.pair: KernelPair = make_pair(
            net=case.net, other_net=case.other, protocol="C", allowed=ALLOWED, rate="2G"
        )
        self.data: dict[str, str] = {}

    def run(self) -> None:
        case, pair = self.case, self.pair
        self._prepare_ours()
        self._prepare_kernel()
        pair.ours.start()
        pair.wait_ours(connection="WFConnection")
        pair.ours.call("disconnect")
        size = pair.ours.size_bytes
        if "a" in case.primary:
            pair.ours.call("primary")
        self.data["a"] = pair.ours.digest(size)
        if "b" in case.primary:
            pair.kernel.adm("primary")
        self.data["b"] = pair.kernel.digest(size)
        mine, theirs = self._side("a"), self._side("b")
        pair.kernel.adm("connect --discard-my-data" if "b" in case.discard else "connect")
        pair.ours.call("connect", **({"discard_my_data": True} if "a" in case.discard else {}))
        self._wait_verdicts()
        self._check(mine, theirs, size)

    # ---- before ----

    def _prepare_ours(self) -> None:
        ours = self.pair.ours
        view = config.resource_for_node(config.load(ours.conf), "r0", "here", addresses=()).volumes[0]
        disk = open_disk(view)
        try:
            place = disk.place
            place.data.pwrite(0, os.urandom(MIB) * 8)
            create_metadata(place, device_uuid=1)
            block, layout = find_superblock(place)
            parts = self.case.a.split(":")
            flags = MdFlag.AL_CLEAN
            for flag, is_set in zip(GI_FLAGS, parts[4:], strict=False):
                flags |= flag if is_set == "1" else MdFlag.NONE
            block = replace(block, uuids=Uuids(*(int(part, 16) for part in parts[:4])), flags=flags)
            if "a" in self.case.clean:  # a bitmap counts once the device has had a size
                block = replace(block, la_size_sectors=usable_sectors(place, layout))
            place.md.pwrite(layout.superblock_byte, block.serialise())
            place.md.flush()
        finally:
            disk.close()

    def _prepare_kernel(self) -> None:
        kernel, case = self.pair.kernel, self.case
        adm = f"drbdadm -c {kernel.conf}"
        meta = f"drbdmeta --force {kernel.minor} v08 {kernel.disk} internal"
        kernel.guest.run(
            f"dd if=/dev/urandom of={kernel.disk} bs=1M count=8 2>/dev/null; {adm} create-md --force r0"
        )
        if "b" in case.clean:
            kernel.guest.run(
                f"{adm} up r0 && {adm} disconnect r0 && {adm} new-current-uuid --clear-bitmap r0 && {adm} down r0"
            )
        kernel.guest.run(f"{meta} set-gi {case.b} && {adm} up r0 && {adm} disconnect r0")

    def _side(self, who: str) -> Side:
        """What this node will bring into the handshake, as it says itself just before."""
        case, pair = self.case, self.pair
        text = pair.ours.call("show-gi")["gi"] if who == "a" else pair.kernel.adm("show-gi")
        slots = [int(word, 16) for word in re.findall(r"\b[0-9A-F]{16}\b", text)[:4]]
        flags = (case.a if who == "a" else case.b).split(":")[4:]
        consistent, up_to_date, primary, crashed = (flags[n] == "1" for n in (0, 1, 2, 6))
        disk = DiskState.INCONSISTENT
        if consistent:
            disk = DiskState.UP_TO_DATE if up_to_date else DiskState.OUTDATED
        bits = pair.ours.status()["volumes"][0]["out_of_sync_bytes"] if who == "a" else self._kernel_dirty()
        return Side(
            Uuids(*slots),
            role=Role.PRIMARY if who in case.primary else Role.SECONDARY,
            disk=disk,
            dirty_bits=bits // BLOCK,
            crashed_primary=crashed or primary,
            discard_my_data=who in case.discard,
        )

    def _kernel_dirty(self) -> int:
        return self.pair.kernel.state().out_of_sync_kib * 1024

    # ---- after ----

    def _our_decisions(self) -> list[dict[str, Any]]:
        events: Sequence[dict[str, Any]] = self.pair.ours.call("events", after=0)["events"]
        return [event["fields"] for event in events if event["kind"] == "handshake"]

    def _kernel_decisions(self) -> list[tuple[int, int]]:
        found = re.findall(
            rf"drbd{self.pair.kernel.minor}: uuid_compare\(\)=(-?\d+) by rule (\d+)", self.pair.kernel.log()
        )
        return [(int(code), int(rule)) for code, rule in found]

    def _wait_verdicts(self) -> None:
        def has_ended() -> bool:
            ours = self.pair.ours.status()
            refused = ours["connection"] in ("StandAlone", "WFConnection", "Unconnected") and bool(ours["reason"])
            refused = refused and ours["reason_code"] != "left-over-differences"
            return refused or (self.pair.ours.is_in_sync and self.pair.kernel.state().is_in_sync)

        self.pair.wait(has_ended, "a verdict")

    def _policies(self, text: str) -> Policies:
        found = dict(re.findall(r"(after-sb-.pri|always-asbp|rr-conflict) (\S+);", text))
        by_name = {policy.option: policy for policy in AfterSplitBrain}
        return Policies(
            *(by_name[found.get(f"after-sb-{n}pri", "disconnect")] for n in range(3)),
            always_asbp=found.get("always-asbp") == "yes",
            rr_conflict=ResyncConflict(found.get("rr-conflict", "disconnect")),
        )

    def _check(self, mine: Side, theirs: Side, size: int) -> None:
        case = self.case
        if case.name in ("sb-localmis", "sb-localmis-turned"):
            assert self.pair.ours.status()["reason_code"] == "settings-differ"
            return
        ours, kernel = self._our_decisions(), self._kernel_decisions()
        assert ours, "we did not decide"
        holds = bool(ours[0]["resolve_conflicts"])
        expected = self._decide(mine, theirs, case.net, holds=holds)
        mirrored = self._decide(theirs, mine, case.net if case.other is None else case.other, holds=not holds)
        assert (ours[0]["rule"], ours[0]["code"]) == (expected.rule, expected.verdict.code)
        if expected.left_over:  # in the handshake that follows; the first one it may not have decided at all
            assert kernel[-1][1] in (40, 41)
        elif kernel:  # it may have lost the connection before it decided; its state below says the same
            assert kernel[0] == (mirrored.verdict.code, mirrored.rule)
        if expected.kind is DecisionKind.REFUSE:
            self._check_refused(expected)
        elif expected.demote_first or expected.doubt:
            self._check_doubtful(expected, size)
        else:
            self._check_joined(expected, size)

    @staticmethod
    def _decide(me: Side, peer: Side, options: str, *, holds: bool) -> Decision:
        policies = Meeting._policies(Meeting, options)  # type: ignore[arg-type]
        return decide(
            me, peer, version=PROTOCOL_MAX, features=Feature.KERNEL, resolve_conflicts=holds, policies=policies
        )

    def _check_refused(self, expected: Decision) -> None:
        """Neither disk has changed, and both know that it is over."""
        self.pair.wait_stand_alone()
        status = self.pair.ours.status()
        assert expected.refusal is not None
        assert status["reason_code"] == expected.refusal.value and status["advice"]
        self.pair.wait_kernel(cstate="StandAlone|WFConnection")
        self._check_data(a="a", b="b")

    def _check_doubtful(self, expected: Decision, size: int) -> None:
        """A Primary that is to lose its data: what it does is its own affair."""
        if expected.demote_first:  # nobody uses it: we are demoted and follow
            self._check_joined(expected, size)
            assert self.pair.ours.status()["role"] == "Secondary"
            return
        kernel = self.pair.kernel
        if "rr-conflict violently" in self.case.net and not expected.peer_demotes:
            self._check_joined(expected, size)
            return
        self.pair.wait_kernel(cstate="StandAlone")
        self.pair.wait(lambda: self.pair.ours.status()["reason_code"] == "peer-refused", "the reason")
        assert "Primary" in self.pair.ours.status()["reason"]
        assert kernel.state().role == "Primary"
        self._check_data(b="b")

    def _check_joined(self, expected: Decision, size: int) -> None:
        self.pair.wait_in_sync()
        if expected.kind is DecisionKind.NONE:
            self._check_data(a="a", b="b")
            return
        if len(self.case.clean) == 2:
            self._check_data(a="a", b="b")  # the bitmaps say that nothing is different
            return
        winner = "a" if expected.kind is DecisionKind.SOURCE else "b"
        if expected.left_over:  # told to a kernel peer as a crash: the Primary, or the Outdated node's peer, or we
            winner = "b" if "b" in self.case.primary or self._is_outdated("a") else "a"
        self._check_data(a=winner, b=winner)
        self.pair.compare()

    def _is_outdated(self, who: str) -> bool:
        return (self.case.a if who == "a" else self.case.b).endswith(OUTDATED)

    def _check_data(self, **whose: str) -> None:
        size = self.pair.ours.size_bytes
        for who, original in whose.items():
            disk = self.pair.ours if who == "a" else self.pair.kernel
            assert disk.digest(size) == self.data[original], f"{who} should have the data of {original}"
