# SPDX-License-Identifier: Apache-2.0
"""What a client may open: an export, its entry in a listing, or the refusal of one.

Inputs: values of the owner of the volumes (sizes in bytes).  Outputs: transmission flags and names.
Errors: ``UsageError`` for an export that cannot be offered as it is described.
Facts: doc/proto.md of the NBD reference implementation ("Transmission flags", "Block size constraints").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from nbd.constants import (
    INTEROPERABLE_BLOCK_MAX,
    INTEROPERABLE_BLOCK_MIN,
    Reply,
    TransmissionFlag,
)
from repl.errors import UsageError
from repl.limits import (
    BLOCK_BYTES,
    NBD_REQUEST_BYTES_MAX,
    NBD_STRING_BYTES_MAX,
    SECTOR_BYTES,
    VOLUMES_MAX,
)

BLOCK_MIN_MAX = 64 * 1024
SIZE_BYTES_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Export:
    """One volume as a client sees it.  All sizes are bytes; ``can_*`` say what the engine supports."""

    name: str
    volume: int
    size_bytes: int
    block_min: int = SECTOR_BYTES
    block_preferred: int = BLOCK_BYTES
    block_max: int = NBD_REQUEST_BYTES_MAX
    read_only: bool = False
    description: str = ""
    can_flush: bool = True
    can_fua: bool = True
    can_trim: bool = True
    can_write_zeroes: bool = True
    can_fast_zero: bool = True
    can_multi_conn: bool = True
    can_cache: bool = True

    def __post_init__(self) -> None:
        _check_string(self.name, what="name")
        _check_string(self.description, what="description")
        low, preferred, high = self.block_min, self.block_preferred, self.block_max
        for is_right, what in (
            (0 <= self.volume < VOLUMES_MAX, f"volume {self.volume} is outside 0..{VOLUMES_MAX - 1}"),
            (_is_power_of_two(low) and SECTOR_BYTES <= low <= BLOCK_MIN_MAX,
             f"minimum block size {low} is not a power of two from {SECTOR_BYTES} to {BLOCK_MIN_MAX}"),
            (_is_power_of_two(preferred) and low <= preferred,
             f"preferred block size {preferred} is not a power of two from {low} up"),
            (preferred <= high <= NBD_REQUEST_BYTES_MAX and high % max(low, 1) == 0,
             f"maximum block size {high} is not a multiple of {low} up to {NBD_REQUEST_BYTES_MAX}"),
            (0 <= self.size_bytes <= SIZE_BYTES_MAX and self.size_bytes % max(low, 1) == 0,
             f"size {self.size_bytes} is not a multiple of {low} within 63 bits"),
        ):
            if not is_right:
                raise UsageError(f"export {self.name!r}: {what}.")

    def transmission_flags(self, *, structured: bool) -> TransmissionFlag:
        """The flags for a client that has (not) negotiated structured replies."""
        flags = TransmissionFlag.HAS_FLAGS
        writable = not self.read_only
        can_write_zeroes = writable and self.can_write_zeroes
        for is_set, flag in (
            (self.read_only, TransmissionFlag.READ_ONLY),
            (self.can_flush, TransmissionFlag.SEND_FLUSH),
            (self.can_fua, TransmissionFlag.SEND_FUA),
            (writable and self.can_trim, TransmissionFlag.SEND_TRIM),
            (can_write_zeroes, TransmissionFlag.SEND_WRITE_ZEROES),
            # The standard forbids FAST_ZERO where WRITE_ZEROES is not offered.
            (can_write_zeroes and self.can_fast_zero, TransmissionFlag.SEND_FAST_ZERO),
            (structured, TransmissionFlag.SEND_DF),
            (self.can_multi_conn, TransmissionFlag.CAN_MULTI_CONN),
            (self.can_cache, TransmissionFlag.SEND_CACHE),
        ):
            if is_set:
                flags |= flag
        return flags

    @property
    def needs_block_size(self) -> bool:
        """Whether a client has to know the block sizes: they are narrower than what any client may assume.

        The standard's own default minimum is 1 byte, but a client that wants to work everywhere stays within
        512 bytes … 32 MiB; the engine refuses the unaligned requests of one that does not.
        """
        return self.block_min > INTEROPERABLE_BLOCK_MIN or self.block_max < INTEROPERABLE_BLOCK_MAX


@dataclass(frozen=True, slots=True)
class ListedExport:
    """One line of a listing: the canonical name and a text for people."""

    name: str
    description: str = ""

    def __post_init__(self) -> None:
        _check_string(self.name, what="name")
        _check_string(self.description, what="description")


class RefusalKind(Enum):
    """Why an export is not given to a client; the value is the reply type that says so."""

    UNKNOWN = Reply.ERR_UNKNOWN
    POLICY = Reply.ERR_POLICY
    PLATFORM = Reply.ERR_PLATFORM
    TLS_REQUIRED = Reply.ERR_TLS_REQD
    SHUTDOWN = Reply.ERR_SHUTDOWN


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a client that does not get an export; ``message`` is shown to it."""

    kind: RefusalKind
    message: str


def resolve_export_name(name: str, exports: Sequence[ListedExport]) -> str | None:
    """The canonical name that a client means, or None.  An empty name means the only export there is."""
    if name == "" and len(exports) == 1:
        return exports[0].name
    return name if any(export.name == name for export in exports) else None


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _check_string(text: str, *, what: str) -> None:
    try:
        length_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"export {what} {text!r} is not valid Unicode.") from error
    if length_bytes > NBD_STRING_BYTES_MAX or "\0" in text:
        raise UsageError(f"export {what} {text[:64]!r} has a NUL or more than {NBD_STRING_BYTES_MAX} bytes.")
