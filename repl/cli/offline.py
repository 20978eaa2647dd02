# SPDX-License-Identifier: Apache-2.0
"""What the metadata of a resource says while it is down.  Nothing is written, nothing is locked.

Errors: ``MetadataError``, ``RequestRefused`` when the disk cannot be opened.
"""

from __future__ import annotations

from dataclasses import dataclass

from repl.cli.session import Session
from repl.config.model import VolumeView
from repl.daemon.disks import open_disk
from repl.drbd import superblock as sb
from repl.errors import UsageError
from repl.node.disk import find_superblock

_FLAGS = (
    ("Consistent", "NOT consistent"),
    ("UpToDate", "not UpToDate"),
    ("Primary", "Secondary"),
    ("Connected", "not connected"),
    ("full sync bits being set", ""),
    ("peer outdated or inconsistent", ""),
    ("crashed Primary", ""),
)
_SLOTS = ("current data generation", "base of the bitmap (0: none kept)", "history, younger", "history, older")


@dataclass(frozen=True, slots=True)
class Generation:
    """Generation identifiers as get-gi prints them.  ``is_clean`` False: the activity log is to be applied."""

    gi: str
    size_sectors: int
    is_clean: bool = True

    def explained(self) -> str:
        parts = self.gi.split(":")
        lines = [f"  {value}  {meaning}" for value, meaning in zip(parts[:4], _SLOTS, strict=True)]
        flags = [set_ if bit == "1" else clear for bit, (set_, clear) in zip(parts[4:], _FLAGS, strict=True)]
        lines.append(f"  flags: {', '.join(flag for flag in flags if flag)}")
        lines.append(f"  meta-data: {'clean' if self.is_clean else 'need apply-al'}")
        lines.append(f"  last agreed size: {self.size_sectors // 2} KiB")
        return "\n".join([self.gi, *lines])


def volume_view(session: Session, resource: str, number: int) -> VolumeView:
    for view in session.view(resource).volumes:
        if view.number == number:
            return view
    raise UsageError(f"'{resource}/{number}' not defined in your config.")


def read_superblock(session: Session, resource: str, number: int) -> sb.Superblock:
    disk = open_disk(volume_view(session, resource, number), read_only=True)
    try:
        return find_superblock(disk.place)[0]
    finally:
        disk.close()


def generation(session: Session, resource: str, number: int) -> Generation:
    found = read_superblock(session, resource, number)
    return Generation(sb.get_gi_text(found), found.la_size_sectors, found.clean)


def disk_state(session: Session, resource: str, number: int) -> str:
    """As drbdmeta prints it, the peer being unknown."""
    return f"{sb.disk_state_text(read_superblock(session, resource, number).flags)}/DUnknown"
