# SPDX-License-Identifier: Apache-2.0
"""Metadata: create-md (while the resource is down or the disk detached) and new-current-uuid (while it runs)."""

from __future__ import annotations

import secrets
from typing import Any

import click

from repl.cli import output
from repl.cli.grouping import command
from repl.cli.offline import volume_view
from repl.cli.session import Session, Target
from repl.config.model import MetaDiskKind, VolumeView
from repl.daemon.disks import OpenedDisk, metadata_path, open_disk
from repl.daemon.run_dir import ResourceLock
from repl.drbd.dump import Finding, FindingKind, recognise
from repl.drbd.layout import superblock_position
from repl.errors import ReplError, RequestRefused
from repl.node.disk import create_metadata

DEVICE_UUID_BITS = 64


class WouldOverwrite(ReplError):
    """There is something on the device that nobody said to overwrite."""

    code = "would-overwrite"
    exit_status = 1


@command("create-md")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
def create_md(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Write fresh metadata; the volume's data is then "never synced"."""

    def work(target: Target) -> list[dict[str, Any]]:
        run_dir = session.run_dir(target.resource)
        run_dir.create()
        numbers = session.volumes(target)
        status = session.status(target)
        if status is not None:
            _refuse_attached(target, numbers, status)  # (an attach that comes just now finds the disk locked)
            return [_create(session, target.resource, number, is_forced=force) for number in numbers]
        lock = ResourceLock(run_dir)
        lock.take()  # repld does not run, and does not start meanwhile
        try:
            return [_create(session, target.resource, number, is_forced=force) for number in numbers]
        finally:
            lock.release()

    session.each(session.targets(names, with_volume=True), work)


def _refuse_attached(target: Target, numbers: list[int], status: dict[str, Any]) -> None:
    for volume in status.get("volumes", []):
        if volume["volume"] in numbers and volume["disk"] != "Diskless":
            name = f"{target.resource}/{volume['volume']}"
            raise RequestRefused(
                f"{name}: its disk is attached",
                number=124,
                advice=f'"replctl detach {name}" or "replctl down {target.resource}" first.',
            )


def _create(session: Session, resource: str, number: int, *, is_forced: bool) -> dict[str, Any]:
    view = volume_view(session, resource, number)
    disk = open_disk(view)
    try:
        findings = _findings(disk, view)
        if findings and not is_forced:
            raise WouldOverwrite(
                f"{resource}/{number}: {disk.md.name} holds {'; '.join(str(found) for found in findings)}.",
                advice=_advice(f"{resource}/{number}", view, findings),
            )
        made = create_metadata(disk.place, device_uuid=secrets.randbits(DEVICE_UUID_BITS) or 1)
    finally:
        disk.close()
    if not session.is_json:
        output.print_line(f"{resource}/{number}: new metadata on {metadata_path(view)} (md_size {made.md_size_sectors} "
                          "sectors)")
    return {
        "volume": number,
        "path": metadata_path(view),
        "md_size_sectors": made.md_size_sectors,
        "overwritten": [str(found) for found in findings],
    }


def _findings(disk: OpenedDisk, view: VolumeView) -> list[Finding]:
    found = recognise(disk.md.pread, disk.md.size_bytes)
    if view.meta_disk.kind is MetaDiskKind.INDEXED:  # the other slots are other volumes' metadata
        kind = disk.place.kind
        mine = superblock_position(kind, disk.md.size_bytes, view.meta_disk.index)
        found = [one for one in found if one.kind is not FindingKind.DRBD or one.offset_bytes == mine]
    return found


def _advice(name: str, view: VolumeView, findings: list[Finding]) -> str:
    parts = []
    is_internal = view.meta_disk.kind is MetaDiskKind.INTERNAL
    if is_internal and any(found.kind is not FindingKind.DRBD for found in findings):
        parts.append(
            "Internal metadata takes the end of the disk: shrink what is there first or use an external meta-disk."
        )
    parts.append(f'"replctl create-md --force {name}" overwrites it.')
    return " ".join(parts)


@command("new-current-uuid")
@click.option("--clear-bitmap", is_flag=True, help="Of two fresh, connected nodes: skip the first full sync.")
def new_current_uuid(session: Session, names: tuple[str, ...], clear_bitmap: bool) -> None:
    """Begin a new generation of the data."""

    def work(target: Target) -> dict[str, Any]:
        numbers = session.volumes(target)
        with session.client(target.resource) as client:
            for number in numbers:
                client.call("new-current-uuid", volume=number, clear_bitmap=clear_bitmap)
        return {"volumes": numbers}

    session.each(session.targets(names, with_volume=True), work)


COMMANDS = (create_md, new_current_uuid)
