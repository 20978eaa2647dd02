# SPDX-License-Identifier: Apache-2.0
"""Generation UUIDs: rotation, and comparison at the handshake (what follows from it: ``repl.drbd.decision``).

Everything is a pure function of 64-bit integers; the random source is passed in (a callable that returns any
64-bit number).  Bit 0 of a UUID is the owner's Primary mark and never takes part in a comparison.
Raises ``InternalError`` if the random source is broken.
Facts: DRBD 8.4's generation identifiers, rule numbers as its driver logs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntFlag

from repl.drbd.states import DiskState, Role
from repl.errors import InternalError

UUID_JUST_CREATED = 4
UUID_SYNC_STEP = 1 << 48
UUID_MASK = (1 << 64) - 1
PRIMARY_BIT = 1
RANDOM_TRIES_MAX = 64

RandomU64 = Callable[[], int]


def base(uuid: int) -> int:
    """The UUID without its Primary mark."""
    return uuid & UUID_MASK & ~PRIMARY_BIT


def with_primary_bit(uuid: int, primary: bool) -> int:
    """The UUID with bit 0 set according to the owner's role."""
    return base(uuid) | (PRIMARY_BIT if primary else 0)


def sync_uuid_after(uuid: int) -> int:
    """``uuid`` + 2^48, in 64 bits."""
    return (uuid + UUID_SYNC_STEP) & UUID_MASK


def random_uuid(random: RandomU64) -> int:
    """A new random UUID with bit 0 clear; never "none" (0) and never "just created" (4)."""
    for _ in range(RANDOM_TRIES_MAX):
        uuid = base(random())
        if uuid not in (0, UUID_JUST_CREATED):
            return uuid
    raise InternalError(f"The random source gave no usable UUID in {RANDOM_TRIES_MAX} tries.")


@dataclass(frozen=True, slots=True)
class Uuids:
    """The four slots of one volume on one node; history1 is younger than history2."""

    current: int = UUID_JUST_CREATED
    bitmap: int = 0
    history1: int = 0
    history2: int = 0

    @property
    def just_created(self) -> bool:
        return base(self.current) == UUID_JUST_CREATED

    def same_generation(self, other: Uuids) -> bool:
        """True if both current UUIDs name the same data."""
        return base(self.current) == base(other.current)

    def __str__(self) -> str:
        return f"{self.current:016X}:{self.bitmap:016X}:{self.history1:016X}:{self.history2:016X}"


# --- changes ----------------------------------------------


def rotate_bitmap_into_history(uuids: Uuids) -> Uuids:
    """Push the bitmap UUID into the history (nothing happens if it is 0); the bitmap slot keeps its value."""
    if uuids.bitmap == 0:
        return uuids
    return replace(uuids, history1=uuids.bitmap, history2=uuids.history1)


def set_primary(uuids: Uuids, primary: bool) -> Uuids:
    """Role change: only bit 0 of the current UUID follows the role."""
    return replace(uuids, current=with_primary_bit(uuids.current, primary))


def new_current(uuids: Uuids, random: RandomU64, *, primary: bool, keep_bitmap: bool = False) -> Uuids:
    """A new generation starts; the bitmap is relative to the former one.

    ``keep_bitmap``: an old bitmap UUID goes to the history first (the ``new-current-uuid`` command does
    that); otherwise it is overwritten, which callers avoid by not calling while it is set.
    """
    rotated = rotate_bitmap_into_history(uuids) if keep_bitmap else uuids
    current = with_primary_bit(random_uuid(random), primary)
    return replace(rotated, bitmap=uuids.current, current=current)


def clear_bitmap_uuid(uuids: Uuids) -> Uuids:
    """The bitmap was cleared by order: nothing differs any more, no history is written."""
    return replace(uuids, bitmap=0)


def adopt_current(uuids: Uuids, current: int, *, primary: bool) -> Uuids:
    """Take over the peer's current UUID without resync (skip-initial-sync)."""
    return replace(uuids, current=with_primary_bit(current, primary), bitmap=0)


def first_sync_uuid(current: int) -> int:
    """Of a resync that no bitmap UUID precedes (a full one by order): looks random, follows from the generation."""
    mixed = (base(current) + 0x9E3779B97F4A7C15) & UUID_MASK
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & UUID_MASK
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & UUID_MASK
    return base(mixed ^ mixed >> 31)


def start_source_sync_uuid(uuids: Uuids, random: RandomU64) -> Uuids:
    """Become resync source.  The new bitmap UUID of the result is what P_SYNC_UUID carries."""
    old = uuids.bitmap
    # differs: without a bitmap UUID the driver takes a random one; ours is recognized later (decision 0036).
    new = first_sync_uuid(uuids.current) if base(old) in (0, UUID_JUST_CREATED) else sync_uuid_after(old)
    # differs: 2^48 after the last possible value is 0 (or 4); those two have a meaning of their own, so
    # random (decision 0044).
    if base(new) in (0, UUID_JUST_CREATED):
        new = random_uuid(random)
    return replace(rotate_bitmap_into_history(uuids), bitmap=new)


def sync_had_begun(uuids: Uuids) -> bool:
    """A resync to the peer has begun under the current generation, and its end was not seen."""
    sync_uuid = base(uuids.bitmap)
    after_bitmap = base(uuids.history1) != 0 and sync_uuid == base(sync_uuid_after(base(uuids.history1)))
    return sync_uuid != 0 and (after_bitmap or sync_uuid == first_sync_uuid(uuids.current))


def new_beside_sync(uuids: Uuids, random: RandomU64, *, primary: bool) -> Uuids:
    """A new generation while the peer may have the current one, or be on its way to it.

    The bitmap UUID stays, so a resync that was interrupted goes on; a peer that has finished is recognized by the
    history.
    """
    current = with_primary_bit(random_uuid(random), primary)
    return Uuids(current, uuids.bitmap, history1=uuids.current, history2=uuids.history1)


def new_past_sync(uuids: Uuids, random: RandomU64, *, primary: bool) -> Uuids:
    """A new generation while the target of a resync may have the current one, or only the sync UUID that leads there.

    The bitmap is relative to both.  That the history names the current one a second time, behind the sync UUID, says
    so: no other course of events leaves that (decision 0143).  A target that may also have what the sync UUID was made
    from has to find that there instead.
    """
    if uuids.bitmap == 0 or base(uuids.bitmap) != first_sync_uuid(uuids.current):
        return new_current(uuids, random, primary=primary, keep_bitmap=True)
    current = with_primary_bit(random_uuid(random), primary)
    return Uuids(current, bitmap=uuids.current, history1=uuids.bitmap, history2=uuids.current)


def replace_current(uuids: Uuids, random: RandomU64, *, primary: bool) -> Uuids:
    """A new generation while nobody has the current one: the peer knows what it lacks by the bitmap UUID."""
    return replace(uuids, current=with_primary_bit(random_uuid(random), primary))


def target_accept_sync_uuid(uuids: Uuids, sync_uuid: int) -> Uuids:
    """Become resync target: the data is now an incomplete copy named by the sync UUID."""
    return replace(uuids, current=base(sync_uuid), bitmap=0)


def finish_source(uuids: Uuids) -> Uuids:
    """The resync ended without failed blocks, source side."""
    return replace(rotate_bitmap_into_history(uuids), bitmap=0)


def finish_target(uuids: Uuids, peer_at_handshake: Uuids, *, primary: bool) -> Uuids:
    """The resync ended without failed blocks, target side.

    ``peer_at_handshake``: the source's UUIDs as last received before the resync, with the corrections of the
    verdict applied.  The result equals the source's own result except for bit 0 of the current UUID.
    """
    sync_uuid = uuids.current
    copied = rotate_bitmap_into_history(peer_at_handshake)
    return Uuids(
        current=with_primary_bit(peer_at_handshake.current, primary),
        bitmap=0,
        history1=sync_uuid,
        history2=copied.history1,
    )


# --- comparison ----------------------------------------------


class Feature(IntFlag):
    """feature_flags of P_CONNECTION_FEATURES."""

    NONE = 0
    TRIM = 1
    THIN_RESYNC = 2
    WSAME = 4
    WZEROES = 8
    KERNEL = 15


class UuidFlag(IntFlag):
    """Flags of P_UUIDS."""

    NONE = 0
    DISCARD_MY_DATA = 1
    CRASHED_PRIMARY = 2
    INCONSISTENT = 4
    SKIP_INITIAL_SYNC = 8


CODE_NONE = 0
CODE_BITMAP = 1
CODE_FULL = 2
CODE_SPLIT_BRAIN = 100
CODE_UNRELATED = -1000
CODE_NEEDS_VERSION = -1091
CODE_NEEDS_WSAME = -1001
PROTOCOL_CORRECTIONS = 91
PROTOCOL_SYNC_STEP = 96


@dataclass(frozen=True, slots=True)
class Side:
    """What one node brings into the handshake of one volume: its P_UUIDS and P_STATE, nothing else.

    Both nodes must feed the values that went over the wire, otherwise the results are not mirror images.
    """

    uuids: Uuids
    role: Role = Role.SECONDARY
    disk: DiskState = DiskState.CONSISTENT
    dirty_bits: int = 0
    crashed_primary: bool = False
    discard_my_data: bool = False
    attaching: bool = False  # the disk is not in use yet: a Primary whose disk becomes target loses nothing

    @property
    def primary(self) -> bool:
        return self.role == Role.PRIMARY


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of the UUID comparison as seen by self: code > 0 self is source, < 0 target.

    ``self_corrected`` / ``peer_corrected``: UUIDs to go on with instead of the given ones.
    differs: they are to be kept in memory until the resync has started, the driver writes them at once
    (decision 0007).
    """

    rule: int
    code: int
    text: str
    self_corrected: Uuids | None = None
    peer_corrected: Uuids | None = None


def _end_missed(uuids: Uuids) -> Uuids:
    return replace(rotate_bitmap_into_history(uuids), bitmap=0)


def _start_undone(uuids: Uuids) -> Uuids:
    return replace(uuids, bitmap=uuids.history1, history1=uuids.history2)


def _anew(uuids: Uuids, peer_current: int) -> Uuids:
    """Before a full resync of a peer that has an older generation: that one is the youngest in the history.

    differs: DRBD goes on from the bitmap UUID, which has nothing to do with this peer.  It pushes the peer's generation
    out of the history, and so it needs no more than two interruptions for "unrelated data" (decision 0036).
    """
    slots = (uuids.bitmap, uuids.history1, uuids.history2)
    others = [slot for slot in slots if base(slot) not in (0, base(peer_current))]
    return Uuids(uuids.current, 0, base(peer_current), others[0] if others else 0)


def after_split_brain(winner: Uuids, loser_current: int) -> Uuids:
    """Before a resync that throws away what a split brain's loser has: as if the winner had gone on from that.

    differs: DRBD goes on from the generation that both changed.  A loser that dies before it has its P_SYNC_UUID is
    another split brain then, and unrelated the next time; so it is found by rule 51 or 71 (decision 0140).
    """
    slots = (winner.bitmap, winner.history1, winner.history2)
    others = [slot for slot in slots if base(slot) not in (0, base(loser_current))]
    return Uuids(winner.current, base(loser_current), *[*others, 0, 0][:2])


def _needs_version(rule: int, version: int) -> Verdict:
    return Verdict(
        rule,
        CODE_NEEDS_VERSION,
        f"This resync decision needs protocol {PROTOCOL_CORRECTIONS}, the peer agreed only to {version}.",
    )


def _compare_equal(
    me: Side, peer: Side, *, version: int, features: Feature, resolve_conflicts: bool
) -> Verdict:
    mine, theirs = me.uuids, peer.uuids
    if base(mine.bitmap) != 0 and base(theirs.bitmap) == 0:
        missed = base(mine.bitmap) == base(theirs.history1) and base(mine.history1) == base(theirs.history2)
        rule = 34 if missed else 36
        if version < PROTOCOL_CORRECTIONS:
            return _needs_version(rule, version)
        if missed:
            return Verdict(34, 1, "This node missed the end of its resync as source.", _end_missed(mine))
        return Verdict(36, 1, "The peer did not record the start of its resync as target.")
    if base(mine.bitmap) == 0 and base(theirs.bitmap) != 0:
        missed = base(theirs.bitmap) == base(mine.history1) and base(theirs.history1) == base(mine.history2)
        rule = 35 if missed else 37
        if version < PROTOCOL_CORRECTIONS:
            return _needs_version(rule, version)
        if missed:
            text = "The peer missed the end of its resync as source."
            return Verdict(35, -1, text, None, _end_missed(theirs))
        return Verdict(37, -1, "This node did not record the start of its resync as target.")
    if not (me.crashed_primary or peer.crashed_primary):
        return Verdict(40, CODE_NONE, "Both nodes have the same data.")
    if me.primary or peer.primary:
        if Feature.WSAME not in features:
            text = (
                "A node crashed as Primary and one is Primary now; the peer is too old to decide that alike."
            )
            return Verdict(41, CODE_NEEDS_WSAME, text)
        if me.primary and peer.primary:
            return Verdict(41, -CODE_SPLIT_BRAIN, "A node crashed as Primary and both are Primary now.")
        code = CODE_BITMAP if me.primary else -CODE_BITMAP
        return Verdict(41, code, "A node crashed as Primary; the one that is Primary now has the good data.")
    if me.crashed_primary and peer.crashed_primary:
        code = -CODE_BITMAP if resolve_conflicts else CODE_BITMAP
        return Verdict(40, code, "Both nodes crashed as Primary.")
    if me.crashed_primary:
        return Verdict(40, CODE_BITMAP, "This node crashed as Primary and is ahead of the peer.")
    return Verdict(40, -CODE_BITMAP, "The peer crashed as Primary and is ahead of this node.")


def _start_lost(ahead: Uuids, behind: Uuids, version: int) -> bool:
    """``ahead`` generated a sync UUID that ``behind`` never got."""
    if base(behind.current) != base(ahead.history1):
        return False
    if version >= PROTOCOL_SYNC_STEP:
        return base(ahead.bitmap) == sync_uuid_after(base(ahead.history1))
    return base(behind.history1) == base(ahead.history2)


def _is_past_sync(ahead: Uuids, behind: Uuids) -> bool:
    """``behind`` got the sync UUID of the resync that ``ahead`` has broken off with :func:`new_past_sync`."""
    marked = base(ahead.bitmap) != 0 and base(ahead.bitmap) == base(ahead.history2)
    return marked and base(behind.current) == base(ahead.history1)


def _resumed(uuids: Uuids) -> Uuids:
    return replace(uuids, bitmap=uuids.history1, history1=uuids.bitmap)


def compare(
    me: Side, peer: Side, *, version: int, features: Feature, resolve_conflicts: bool, peer_is_ours: bool = False
) -> Verdict:
    """Compare the generations of both sides; first rule that matches wins.

    ``version`` and ``features`` are the agreed ones, ``resolve_conflicts`` is the flag of this node.
    ``peer_is_ours``: it knows what the driver does not.
    """
    mine, theirs = me.uuids, peer.uuids
    my_current, peer_current = base(mine.current), base(theirs.current)
    my_history = (base(mine.history1), base(mine.history2))
    peer_history = (base(theirs.history1), base(theirs.history2))
    if my_current == UUID_JUST_CREATED and peer_current == UUID_JUST_CREATED:
        return Verdict(10, CODE_NONE, "Both nodes have just created metadata.")
    if my_current == 0 and peer_current == 0:
        # differs: both drivers would wait for the other one as its target (decision 0044).
        return Verdict(20, CODE_UNRELATED, "Neither node has a generation.")
    if my_current in (0, UUID_JUST_CREATED) and peer_current != UUID_JUST_CREATED:
        return Verdict(20, -CODE_FULL, "This node has no data yet.")
    if peer_current in (0, UUID_JUST_CREATED):
        return Verdict(30, CODE_FULL, "The peer has no data yet.")
    if my_current == peer_current:
        return _compare_equal(
            me, peer, version=version, features=features, resolve_conflicts=resolve_conflicts
        )
    if my_current == base(theirs.bitmap):
        return Verdict(50, -CODE_BITMAP, "The peer went on from the data of this node.")
    if _start_lost(theirs, mine, version):
        if version < PROTOCOL_CORRECTIONS:
            return _needs_version(51, version)
        text = "This node never got the last sync UUID of the peer."
        return Verdict(51, -CODE_BITMAP, text, None, _start_undone(theirs))
    if peer_is_ours and _is_past_sync(theirs, mine):
        text = "The peer broke off its resync to this node and went on alone."
        return Verdict(51, -CODE_BITMAP, text, None, _resumed(theirs))
    if my_current in peer_history:
        text = "The data of this node is an older generation of the peer's."
        return Verdict(60, -CODE_FULL, text, None, _anew(theirs, my_current))
    if base(mine.bitmap) == peer_current:
        return Verdict(70, CODE_BITMAP, "This node went on from the data of the peer.")
    if _start_lost(mine, theirs, version):
        if version < PROTOCOL_CORRECTIONS:
            return _needs_version(71, version)
        text = "The peer never got the last sync UUID of this node."
        return Verdict(71, CODE_BITMAP, text, _start_undone(mine))
    if peer_is_ours and _is_past_sync(mine, theirs):
        text = "This node broke off its resync to the peer and went on alone."
        return Verdict(71, CODE_BITMAP, text, _resumed(mine))
    if peer_current in my_history:
        text = "The data of the peer is an older generation of this node's."
        return Verdict(80, CODE_FULL, text, _anew(mine, peer_current))
    if base(mine.bitmap) != 0 and base(mine.bitmap) == base(theirs.bitmap):
        return Verdict(90, CODE_SPLIT_BRAIN, "Both nodes changed the data after the same generation.")
    # Empty slots count as equal, as they do for the driver: both nodes have to see the same thing.
    if set(my_history) & set(peer_history):
        return Verdict(100, -CODE_SPLIT_BRAIN, "Both nodes changed the data after a generation long ago.")
    return Verdict(100, CODE_UNRELATED, "The nodes have never had the same data.")
