# SPDX-License-Identifier: Apache-2.0
"""The disks of a resource that runs: attach, detach, resize."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from repl.cli import output
from repl.cli.grouping import command
from repl.cli.session import Session, Target
from repl.errors import UsageError

ATTACH_TIMEOUT_S = 600.0  # a large activity log may have to be applied to a slow disk
DETACH_TIMEOUT_S = 120.0
RESIZE_TIMEOUT_S = 300.0


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


@command("resize")
@click.option("--size", "size_text", metavar="SIZE", help="Not all there is but so much (1G, 500M, 2048s).")
@click.option("--assume-clean", is_flag=True, help="Do not copy the new part: it is the same on both.")
@click.option("--assume-peer-has-space", is_flag=True, help="Without the peer: its disk is large enough.")
@click.option("--force", is_flag=True, help="--size may be less than now: what lies behind is lost.")
def resize(
    session: Session, names: tuple[str, ...], size_text: str | None, assume_clean: bool, assume_peer_has_space: bool,
    force: bool,
) -> None:  # fmt: skip
    """After the backing devices have grown: use all of them."""
    given: dict[str, Any] = {
        name: True
        for name, is_set in (
            ("assume_clean", assume_clean), ("assume_peer_has_space", assume_peer_has_space), ("force", force)
        ) if is_set
    }  # fmt: skip
    if size_text is not None:
        given["size_sectors"] = _sectors(size_text)

    def work(target: Target) -> dict[str, Any]:
        with session.client(target.resource) as client:
            numbers = [target.volume]
            if target.volume is None:
                numbers = [v["volume"] for v in client.call("status").get("volumes", [])]
            answers = []
            for number in numbers:
                answer = client.call("resize", answer_timeout_s=RESIZE_TIMEOUT_S, volume=number, **given)
                if not session.is_json:
                    what = "resized to" if answer.get("has_changed") else "nothing more to use, it stays at"
                    output.print_line(f"{target.resource}/{number}: {what} {answer['size_bytes']} bytes")
                answers.append({"volume": number, **answer})
        return {"volumes": answers}

    session.each(session.targets(names, with_volume=True), work)


def _sectors(text: str) -> int:
    """DRBD's sizes: a number with s, K, M, G, T or P behind it; without a letter KiB."""
    found = re.fullmatch(r"(\d+)([sSkKmMgGtTpP]?)", text)
    if found is None or not int(found[1]):
        raise UsageError(f"'{text}' is not a size.", advice="Write it as 500M, 20G or 2048s (sectors).")
    unit = found[2].lower() or "k"
    return int(found[1]) if unit == "s" else int(found[1]) * 2 << 10 * "kmgtp".index(unit)


COMMANDS = (attach, detach, resize)
