# SPDX-License-Identifier: Apache-2.0
"""The disks of a resource that runs: attach, detach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from repl.cli.grouping import command
from repl.cli.session import Session, Target

ATTACH_TIMEOUT_S = 600.0  # a large activity log may have to be applied to a slow disk
DETACH_TIMEOUT_S = 120.0


@command("attach")
def attach(session: Session, names: tuple[str, ...]) -> None:
    """Take the disk into use; while connected the nodes first compare their data."""
    _each_volume(session, names, "attach", ATTACH_TIMEOUT_S, only=lambda disk: disk == "Diskless")


@command("detach")
@click.option("--force", is_flag=True, help="Do not wait for a disk that hangs, and do not ask the peer.")
def detach(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Put the disk out of use; reads and writes go to the peer."""
    _each_volume(session, names, "detach", DETACH_TIMEOUT_S, only=lambda disk: disk != "Diskless", force=force)


def _each_volume(
    session: Session, names: tuple[str, ...], verb: str, timeout_s: float, *, only: Callable[[str], bool], **args: bool
) -> None:
    """The named volume, or those of the resource that the verb makes sense for (all, where it does for none)."""
    given = {name: value for name, value in args.items() if value}

    def work(target: Target) -> dict[str, Any]:
        with session.client(target.resource) as client:
            numbers = [target.volume]
            if target.volume is None:
                volumes = client.call("status").get("volumes", [])
                numbers = [v["volume"] for v in volumes if only(v["disk"])] or [v["volume"] for v in volumes]
            for number in numbers:
                client.call(verb, answer_timeout_s=timeout_s, volume=number, **given)
        return {"volumes": numbers}

    session.each(session.targets(names, with_volume=True), work)


COMMANDS = (attach, detach)
