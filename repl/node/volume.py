# SPDX-License-Identifier: Apache-2.0
"""One volume as the node sees it: states, generation UUIDs, the superblock that belongs to them.

Plain data and pure functions; the node decides when anything changes.  Sizes in 512-byte sectors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd import superblock as sb
from repl.drbd.packets import Sizes, UuidReport
from repl.drbd.states import ConnectionState, DiskState, Role, StateWord
from repl.drbd.superblock import Superblock
from repl.drbd.uuids import Uuids, base, sync_had_begun
from repl.engine.commands import Attach, AttachFlags
from repl.errors import ReplError
from repl.node.attaching import AttachSerials
from repl.node.disk import Prepared, mark_attached
from repl.node.flow import Promise
from repl.node.settings import VolumeSettings

if TYPE_CHECKING:
    from repl.node.undo import UndoFound

CONTEXT_PER_TRANSACTION = 919  # slots that one transaction describes
READ_BALANCING = {
    "prefer-local": 0,
    "prefer-remote": 1,
    "round-robin": 2,
    "least-pending": 3,
    "when-congested-remote": 4,
    "32K-striping": 15,
    "64K-striping": 16,
    "128K-striping": 17,
    "256K-striping": 18,
    "512K-striping": 19,
    "1M-striping": 20,
}


class Volume:
    """Mutable; changed only by the node, inside a transition."""

    def __init__(self, settings: VolumeSettings, *, has_fencing: bool = False) -> None:
        self.settings = settings
        self.has_fencing = has_fencing  # alone it is not sure to have the newest data
        self.number = settings.number
        self.state = StateWord()
        self.prepared: Prepared | None = None
        self.superblock: Superblock | None = None
        self.written: bytes = b""  # superblock as it was last made stable
        self.needs_replay = False  # the bitmap could not be written when the activity log was to be done with
        self.has_lost_metadata = False  # or was not: the peer must not hear of what it should have said
        self.uuids = Uuids(0, 0, 0, 0)
        self.corrected: Uuids | None = None  # verdict of rules 34 and 71, kept in memory until the resync has started
        self.crashed_primary = False
        self.has_left_over = False  # dirty bits that a DRBD peer resyncs only if this node says that it crashed
        self.is_discarded = False  # --discard-my-data is to be carried out by the resync that begins
        self.generation_due = False  # the peer was lost, and the new generation waits for the end of a suspension
        self.generation_keeps_bitmap = False
        self.peer_may_have_finished = False  # the connection broke when nothing was left to resync
        self.peer_may_be_equal = False  # this process has not seen what became of a resync to the peer
        self.size_sectors = 0
        self.open_count = 0
        self.resync = settings.resync  # in force now
        self.resync_priority = settings.resync_priority
        self.uses_csums = False  # of the resync that began last, as its target
        self.undo: UndoFound | None = None  # what a split brain's loser had is kept
        self.undo_open_count = 0
        self.user_sectors = settings.size_sectors  # size that an operator has asked for, 0 = none
        self.new_part_is_clean = False  # of a resize under way
        self.disk_error = ""
        self.exposed = 0  # current UUID of the data that the device presented before this disk was attached
        self.detached = 0  # current UUID of the disk that was detached last
        self.peer_may_lack = False  # this Primary lost its disk, then a peer that had not confirmed every write
        self.presented = 0  # generation of the peer's data that this Primary shows while its own disk is not good
        self.peer_may_have = 0  # the generation that the peer's disk has, unless it has got our sync UUID since
        self.moved_before = (0, 0, 0)  # what the engine had counted when the present resync began
        self.peer_may_serve = False  # the peer was lost as a Primary; what it has shown may be this disk's data
        self.peer_served = False  # this Primary worked on the peer's disk alone: no other one has all of it
        self.attach_refusal: ReplError | None = None  # verdict of the handshake on a disk that is Negotiating
        self.attach_serials = AttachSerials()
        # of the present connection
        self.peer_report: UuidReport | None = None
        self.peer_sizes: Sizes | None = None
        self.peer_verify_alg: str | None = None  # None: too old to say
        self.is_evaluated = False
        self.decided = StateWord()  # the peer's state, with the connection state that follows for us
        self.sent_dirty_bits = 0
        self.sent_role = Role.UNKNOWN  # in the handshake: a demotion may come before the decision
        self.peer_lags = False  # it was Behind, and has not caught up since
        self.peer_noted_behind = False  # its metadata said so then
        self.skip_is_unanswered = False  # the order to skip the initial sync is on its way to the peer
        self.is_skipping = False  # the peer has agreed that this node does that
        self.peer_skips = False  # this node has agreed that the peer does it
        self.expects_sync_uuid = False  # a full sync was agreed with the peer as its source
        self.waiting_for_sync_uuid: Promise[None] = Promise()
        self.has_sources_bitmap = False  # of this exchange, all of it

    @property
    def attached(self) -> bool:
        return self.superblock is not None

    @property
    def claims_crash(self) -> bool:
        """The flag "crashed as Primary" of P_UUIDS."""
        return self.crashed_primary or self.has_left_over

    @property
    def backing_sectors(self) -> int:
        """Usable sectors of the own disk, 0 without one."""
        return self.prepared.usable_sectors if self.prepared and self.attached else 0

    @property
    def write_ordering(self) -> str:
        """How writes of different epochs are kept apart on disk: DRBD's wo."""
        return "flush" if self.settings.disk_flushes else "drain" if self.settings.disk_drain else "none"

    @property
    def has_unused_room(self) -> bool:
        """The disk could hold more than the device has."""
        return self.backing_sectors > self.size_sectors

    def new_connection(self) -> None:
        """Forget what the last connection said."""
        self.peer_report = None
        self.peer_sizes = None
        self.peer_verify_alg = None
        self.is_evaluated = False
        self.is_discarded = False
        self.corrected = None
        self.peer_lags = self.peer_noted_behind = False
        self.skip_is_unanswered = self.peer_skips = False
        self.expects_sync_uuid = False
        self.waiting_for_sync_uuid = Promise()
        self.attach_serials.new_connection()

    def peer_has_our_uuids(self) -> None:
        """Both are of one generation now; neither says so to the other."""
        if self.peer_report is not None:
            self.peer_report = replace(self.peer_report, uuids=self.uuids)

    def attach_disk(self, prepared: Prepared, size_sectors: int) -> None:
        """Take over what was found on disk; the state follows with the transition."""
        found = prepared.superblock
        self.prepared = prepared
        self.size_sectors = size_sectors
        self.exposed = self.uuids.current
        self.uuids = found.uuids
        self.peer_may_be_equal = sync_had_begun(self.uuids)
        self.peer_may_serve = True
        self.crashed_primary = sb.crashed_primary_at_attach(found.flags)
        self.superblock = mark_attached(
            found,
            size_sectors=size_sectors,
            al_extents=self.settings.al_extents,
            al_updates=self.settings.al_updates,
        )
        self.written = found.serialise()
        self.has_lost_metadata = self.needs_replay = False
        self.disk_error = ""
        self.attach_refusal = None
        self.attach_serials.attached()

    @property
    def al_extents(self) -> int:
        """Slots of the activity log: as configured, but never more than the ring can hold with one torn block."""
        assert self.prepared is not None
        blocks = self.prepared.layout.al_blocks
        return min(self.settings.al_extents, CONTEXT_PER_TRANSACTION * (blocks - 1))

    def disk_state_found(self) -> DiskState:
        assert self.prepared is not None
        return sb.disk_state_after_attach(self.prepared.superblock.flags, fencing=self.has_fencing)

    @property
    def peer_was_outdated(self) -> bool:
        """As far as the disk knows the peer's data is older."""
        assert self.prepared is not None
        return sb.MdFlag.PEER_OUTDATED in self.prepared.superblock.flags

    @property
    def falls_to(self) -> DiskState:
        """What becomes of a Negotiating disk when the connection is lost."""
        known = self.attached and self.exposed
        return self.disk_state_found() if known and not self.is_older_than_exposed else DiskState.DISKLESS

    @property
    def is_older_than_exposed(self) -> bool:
        """The attached disk may lack what applications have seen on the peer's."""
        return self.exposed != 0 and (self.peer_served or base(self.exposed) != base(self.uuids.current))

    @property
    def is_left_behind(self) -> bool:
        """The attached disk comes back as it went, and the peer has gone on from its data meanwhile."""
        left, exposed = base(self.detached), base(self.exposed)
        return left != 0 and left == base(self.uuids.current) and exposed not in (0, left)

    def follow_service(self) -> None:
        """Whose disk do applications see?  The peer makes a new generation then, but the news of it may get lost."""
        state = self.state
        self.peer_may_lack = self.peer_may_lack and state.role == Role.PRIMARY and state.disk != DiskState.UP_TO_DATE
        if state.role != Role.PRIMARY or state.disk == DiskState.UP_TO_DATE:
            self.presented = 0
        elif state.conn >= ConnectionState.CONNECTED and state.pdsk == DiskState.UP_TO_DATE and self.peer_report:
            self.presented = base(self.peer_report.uuids.current)
        if state.role != Role.PRIMARY or state.disk >= DiskState.INCONSISTENT:
            self.peer_served = False
        elif state.conn >= ConnectionState.CONNECTED and state.pdsk == DiskState.UP_TO_DATE:
            self.peer_served = True

    @property
    def is_negotiating(self) -> bool:
        return self.attached and self.state.disk == DiskState.NEGOTIATING

    def attach_command(self, prepared: Prepared, size_sectors: int, *, all_bits: bool) -> Attach:
        layout, settings = prepared.layout, self.settings
        flags = AttachFlags(prepared.flags)
        if all_bits:
            flags |= AttachFlags.BITMAP_ALL_SET
        if not settings.disk_flushes:
            flags |= AttachFlags.NO_DISK_FLUSHES
        if not settings.md_flushes:
            flags |= AttachFlags.NO_MD_FLUSHES
        if settings.on_io_error == "pass_on":
            flags |= AttachFlags.PASS_ON
        if not settings.al_updates:
            flags |= AttachFlags.NO_AL
        stripes, stripe_size = prepared.superblock.stripes
        return Attach(
            data_fd=prepared.data_fd,
            md_fd=prepared.md_fd,
            size_bytes=size_sectors * 512,
            superblock_offset=layout.superblock_byte,
            al_offset=layout.al_byte,
            bitmap_offset=layout.bitmap_byte,
            bitmap_bytes=layout.bitmap_bytes,
            al_extents=settings.al_extents,
            al_stripes=stripes,
            al_stripe_size_4k=stripe_size,
            flags=flags,
            disk_timeout_ms=settings.disk_timeout_ms,
            read_balancing=READ_BALANCING[settings.read_balancing],
            discard_granularity=prepared.discard_granularity if settings.discard_zeroes_if_aligned else 0,
        )

    def superblock_for(self, state: StateWord, uuids: Uuids, *, full_sync: bool | None = None) -> Superblock | None:
        """The superblock that this state and these UUIDs ask for; None without a disk that is in use."""
        if self.superblock is None or state.disk < DiskState.INCONSISTENT:
            return None  # an attach that comes to nothing leaves it as it was
        flags = sb.flags_from_state(self.superblock.flags, state, crashed_primary=self.crashed_primary)
        if self.needs_replay:
            flags |= sb.MdFlag.PRIMARY_IND
        if full_sync is not None:
            flags = flags | sb.MdFlag.FULL_SYNC if full_sync else flags & ~sb.MdFlag.FULL_SYNC
        return replace(self.superblock, flags=flags, uuids=uuids)

    def forget_disk(self) -> None:
        """It is detached: what the device presents from now on is the peer's data, if that is good.

        Otherwise applications have seen nothing newer than what is lost: a target that comes back may not know that it
        was one, and take what it had before for good.
        """
        report = self.peer_report
        self.detached = self.uuids.current
        is_served = self.state.conn >= ConnectionState.CONNECTED and self.state.pdsk == DiskState.UP_TO_DATE
        if is_served and report is not None and report.uuids.current:
            self.uuids = replace(self.uuids, current=report.uuids.current)
        self.prepared = None
        self.superblock = None
        self.written = b""

    @property
    def is_syncing(self) -> bool:
        return self.state.conn > ConnectionState.CONNECTED

    @property
    def is_in_sync(self) -> bool:
        """Both copies are good and nothing is going on."""
        return (
            self.state.conn == ConnectionState.CONNECTED
            and self.state.disk == DiskState.UP_TO_DATE
            and self.state.pdsk == DiskState.UP_TO_DATE
        )

    @property
    def is_ahead_of_generation(self) -> bool:
        """The peer lacks writes, and no generation says so yet."""
        return self.state.conn == ConnectionState.AHEAD and self.attached and self.uuids.bitmap == 0

    @property
    def loses_peer_data(self) -> bool:
        """A Primary whose peer is lost now has to start a new generation."""
        return (
            self.state.role == Role.PRIMARY
            and self.state.disk == DiskState.UP_TO_DATE
            and self.uuids.bitmap == 0
            and not self.uuids.just_created
        )
