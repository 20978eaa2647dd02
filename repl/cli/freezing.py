# SPDX-License-Identifier: Apache-2.0
"""suspend-io, resume-io, and outdate (running or not)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from repl.cli.client import NotRunning
from repl.cli.grouping import command
from repl.cli.offline import volume_view
from repl.cli.session import Session, Target
from repl.daemon.disks import open_disk
from repl.daemon.run_dir import ResourceLock
from repl.drbd.superblock import MdFlag
from repl.errors import StateRefused
from repl.node.disk import find_superblock

LOWER_THAN_OUTDATED = -16


@command("suspend-io")
def suspend_io(session: Session, names: tuple[str, ...]) -> None:
    """Freeze application I/O: nothing is completed, nothing is lost."""
    session.each(session.targets(names), lambda target: session.call(target, "suspend-io"))


@command("resume-io")
def resume_io(session: Session, names: tuple[str, ...]) -> None:
    """Let application I/O go on, whatever it is suspended for; without the peer in a new generation."""
    session.each(session.targets(names), lambda target: session.call(target, "resume-io"))


@command("outdate")
def outdate(session: Session, names: tuple[str, ...]) -> None:
    """Mark this node's data as old (for fence scripts); works on a resource that is down as well."""

    def work(target: Target) -> dict[str, Any]:
        numbers = session.volumes(target)
        try:
            client = session.client(target.resource)
        except NotRunning:
            return _outdate_offline(session, target.resource, numbers)
        with client:
            for number in numbers:
                client.call("outdate", volume=number)
        return {"volumes": numbers}

    session.each(session.targets(names, with_volume=True), work)


def _outdate_offline(session: Session, resource: str, numbers: list[int]) -> dict[str, Any]:
    run_dir = session.run_dir(resource)
    run_dir.create()
    lock = ResourceLock(run_dir)
    lock.take()
    try:
        for number in numbers:
            _outdate_metadata(session, resource, number)
    finally:
        lock.release()
    return {"volumes": numbers}


def _outdate_metadata(session: Session, resource: str, number: int) -> None:
    disk = open_disk(volume_view(session, resource, number))
    try:
        found, layout = find_superblock(disk.place)
        if MdFlag.CONSISTENT not in found.flags:
            raise StateRefused(
                f"{resource}/{number}: the data is Inconsistent, which is lower than Outdated",
                number=LOWER_THAN_OUTDATED,
                advice="Nothing was changed: such a disk is not used anyway.",
            )
        changed = replace(found, flags=found.flags & ~MdFlag.WAS_UP_TO_DATE)
        disk.place.md.pwrite(layout.superblock_byte, changed.serialise())
        disk.place.md.flush()
    finally:
        disk.close()


COMMANDS = (suspend_io, resume_io, outdate)
