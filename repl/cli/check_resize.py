# SPDX-License-Identifier: Apache-2.0
"""check-resize: where the internal metadata of a disk is that changed its size while the resource was down."""

from __future__ import annotations

from typing import Any

import click

from repl.cli import output
from repl.cli.grouping import command
from repl.cli.offline import volume_view
from repl.cli.session import Session, Target
from repl.config.model import MetaDiskKind
from repl.daemon.disk_records import DiskRecords
from repl.daemon.disks import open_disk
from repl.errors import MetadataError, RequestRefused, UsageError
from repl.node.disk import DiskPlace, find_superblock
from repl.node.moved import LastDisk, at_last_size, search


@command("check-resize")
@click.option("--from", "from_bytes", type=click.IntRange(min=1), metavar="BYTES", help="How large it was before.")
def check_resize(session: Session, names: tuple[str, ...], from_bytes: int | None) -> None:
    """Say where a disk's metadata is; --from: take those at the end of what was BYTES large at the next attach."""

    def work(target: Target) -> list[dict[str, Any]]:
        numbers = session.volumes(target)
        if from_bytes is not None and len(numbers) != 1:
            raise UsageError("--from is for one volume: name it as RESOURCE/VOLUME.")
        return [_check(session, target.resource, number, from_bytes) for number in numbers]

    session.each(session.targets(names, with_volume=True), work)


def _check(session: Session, resource: str, number: int, from_bytes: int | None) -> dict[str, Any]:
    view = volume_view(session, resource, number)
    name = f"{resource}/{number}"
    if view.meta_disk.kind is not MetaDiskKind.INTERNAL:
        return _say(session, name, "external", "its metadata is not on this disk; nothing to do")
    records = DiskRecords(session.run_dir(resource).lasting, resource)
    disk = open_disk(view, read_only=from_bytes is None)
    try:
        if from_bytes is not None:
            return _take(session, name, records, number, disk.place, from_bytes)
        try:
            find_superblock(disk.place)
        except MetadataError:
            return _missing(session, name, records.last(number), disk.place)
        return _say(session, name, "in-place", f"the metadata is at the end ({disk.place.md.size_bytes} bytes)")
    finally:
        disk.close()


def _missing(session: Session, name: str, last: LastDisk | None, place: DiskPlace) -> dict[str, Any]:
    size = place.md.size_bytes
    if last is not None and at_last_size(place, last) is not None:
        return _say(session, name, "moves", f"it was {last.size_bytes} bytes large and has {size} now; the next attach "
                                            "moves the metadata to the end")
    found = search(place) if last is None else None
    if found is not None:
        old = found[1].device_bytes
        return _say(session, name, "unsure",
                    f"it has {size} bytes and no metadata at its end; there is a superblock of one of {old} bytes. "
                    f'If it was exactly that large: "replctl check-resize --from {old} {name}".')
    return _say(session, name, "missing", f"it has {size} bytes and no metadata at its end")


def _take(
    session: Session, name: str, records: DiskRecords, number: int, place: DiskPlace, from_bytes: int
) -> dict[str, Any]:
    try:
        find_superblock(place)
    except MetadataError:
        pass
    else:
        raise RequestRefused(f"{name}: {place.md.name} has its metadata at the end", advice="There is nothing to move.")
    found = at_last_size(place, LastDisk(from_bytes))
    if found is None:
        raise MetadataError(
            f"{name}: {place.md.name} has no metadata at the end of its first {from_bytes} bytes.",
            advice="Give the exact size that it had when it was used last.",
        )
    records.keep_last(number, LastDisk(from_bytes, found[0].device_uuid), place.md.name)
    return _say(session, name, "moves", "the next attach moves the metadata to the end")


def _say(session: Session, name: str, state: str, text: str) -> dict[str, Any]:
    if not session.is_json:
        output.print_line(f"{name}: {text}")
    return {"volume": int(name.rpartition("/")[2]), "metadata": state}


COMMANDS = (check_resize,)
