# SPDX-License-Identifier: Apache-2.0
"""``replctl undo list|export|drop``: the version of a disk that lost a split brain."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from nbd.uri import build_unix_uri
from repl.cli import output
from repl.cli.grouping import command
from repl.cli.output import size_text
from repl.cli.session import ALL, Session, Target
from repl.errors import UsageError

UNDO_SUFFIX = "@undo"


@click.group("undo")
def undo() -> None:
    """What was overwritten after a split brain (disk { split-brain-undo yes; })."""


def _found(session: Session, target: Target) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = session.call(target, "undo-list")["undos"]
    return [one for one in found if target.volume is None or one["volume"] == target.volume]


def _one(session: Session, target: Target) -> dict[str, Any]:
    found = _found(session, target)
    if not found:
        raise UsageError(f"{target} has no undo.", advice='"replctl undo list" shows those that there are.')
    if len(found) > 1:
        raise UsageError(f"{target} has {len(found)} undos.", advice=f"Name the volume: {target.resource}/0.")
    return found[0]


@command("list")
def list_(session: Session, names: tuple[str, ...]) -> None:
    """The undos that are kept, since when and how much."""

    def work(target: Target) -> list[dict[str, Any]]:
        found = _found(session, target)
        for one in found if not session.is_json else []:
            when = datetime.fromtimestamp(one["created_s"]).astimezone().isoformat(timespec="seconds")
            blocks, size = one["saved_bytes"] // 4096, size_text(one["saved_bytes"])
            output.print_line(
                f"{target.resource}/{one['volume']}: kept since {when}, {blocks} blocks ({size}), "
                f"generation {one['generation'].split(':')[0]}, replaced by that of {one['peer']}: {one['why']}"
            )
        return found

    session.each(session.targets(names or (ALL,), with_volume=True), work)


@command("export")
def export(session: Session, names: tuple[str, ...]) -> None:
    """The address where an NBD client on this machine can read it."""

    def work(target: Target) -> str:
        one = _one(session, target)
        name = f"{target.resource}/{one['volume']}{UNDO_SUFFIX}"
        url = build_unix_uri(str(session.run_dir(target.resource).nbd), name)
        if not session.is_json:
            output.print_line(url)
        return url

    session.each(session.targets(names, with_volume=True), work)


@command("drop")
def drop(session: Session, names: tuple[str, ...]) -> None:
    """Forget it: the space is given back, and the next split brain can be kept."""

    def work(target: Target) -> dict[str, Any]:
        return session.call(target, "undo-drop", volume=_one(session, target)["volume"])

    session.each(session.targets(names, with_volume=True), work)


for _command in (list_, export, drop):
    undo.add_command(_command)
COMMANDS = (undo,)
