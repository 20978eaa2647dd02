# SPDX-License-Identifier: Apache-2.0
"""Look without changing anything: status, role, cstate, dstate, show-gi, get-gi, proc, events, nbd-url."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from nbd.uri import build_unix_uri
from repl.cli import offline, output, proc_text, states, status_json, status_text
from repl.cli.client import NotRunning
from repl.cli.grouping import command
from repl.cli.session import ALL, Session, Target
from repl.config.model import NodeView
from repl.errors import ReplError

STATUS_EVENTS_INTERVAL_S = 0.5


@command("status")
@click.option("-v", "--verbose", "is_verbose", is_flag=True, help="Leave nothing out.")
@click.option("-s", "--statistics", "has_statistics", is_flag=True, help="With counters.")
@click.option("-w", "--watch", "is_watched", is_flag=True, help="Go on until interrupted.")
@click.option("--interval", "interval_s", type=click.FloatRange(0.1), default=1.0, show_default=True,
              help="Seconds between two looks with --watch.")
def status(session: Session, names: tuple[str, ...], is_verbose: bool, has_statistics: bool, is_watched: bool,
           interval_s: float) -> None:  # fmt: skip
    """State of the resources; of all of them if none is named."""

    def text() -> str:
        found, missing = _statuses(session, names)
        blocks = [status_text.render(one, is_verbose=is_verbose, has_statistics=has_statistics) for one in found]
        return "".join(blocks) + "".join(f"{name}: not running\n" for name in missing)

    if is_watched and not session.is_json:
        _watch(text, interval_s)
        return
    found, missing = _statuses(session, names)
    if session.is_json:
        output.print_json([status_json.resource_object(one, _view(session, one)) for one in found])
    else:
        for one in found:
            click.echo(status_text.render(one, is_verbose=is_verbose, has_statistics=has_statistics), nl=False)
    for name in missing:
        output.print_note(f'{name}: not running ("replctl up {name}" starts it)')


def _statuses(session: Session, names: tuple[str, ...]) -> tuple[list[dict[str, Any]], list[str]]:
    """(status of what runs, what does not).  A resource that was named has to run."""
    is_all = not names or ALL in names
    found: list[dict[str, Any]] = []
    missing: list[str] = []
    for target in session.targets(names or (ALL,)):
        one = session.status(target)
        if one is not None:
            found.append(one)
        elif is_all:
            missing.append(target.resource)
        else:
            raise _no_such_resource(target.resource)
    return found, missing


def _no_such_resource(name: str, number: int = 158) -> NotRunning:
    return NotRunning(f"{name}: No such resource: it is not up on this node", number=number,
                      advice=f'"replctl up {name}" starts it.')


def _view(session: Session, found: dict[str, Any]) -> NodeView | None:
    try:
        return session.view(str(found["resource"]))
    except ReplError:
        return None


def _watch(text: Callable[[], str], interval_s: float) -> None:
    if not output.is_terminal():
        while True:
            click.echo(text(), nl=False)
            time.sleep(interval_s)
    with Live(Text(text()), console=Console(), auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            live.update(Text(text()), refresh=True)


def _lines_of_volumes(
    session: Session, names: tuple[str, ...], line: Callable[[dict[str, Any], dict[str, Any]], str],
    when_down: Callable[[Target], list[str]],
) -> None:
    """8.4's way: one line for each volume."""

    def work(target: Target) -> list[str]:
        found = session.status(target)
        if found is None:
            lines = when_down(target)
        else:
            lines = [
                line(found, volume)
                for volume in found["volumes"]
                if target.volume is None or volume["volume"] == target.volume
            ]
        if not session.is_json:
            for one in lines:
                output.print_line(one)
        return lines

    session.each(session.targets(names, with_volume=True), work)


def _refuse_down(target: Target) -> list[str]:
    raise _no_such_resource(target.resource, 127)


@command("role")
def role(session: Session, names: tuple[str, ...]) -> None:
    """Own and peer's role."""
    _lines_of_volumes(session, names, lambda found, volume: states.roles(found), _refuse_down)


@command("cstate")
def cstate(session: Session, names: tuple[str, ...]) -> None:
    """State of the connection, or of the resync on it."""
    _lines_of_volumes(session, names, states.cstate_84, _refuse_down)


@command("dstate")
def dstate(session: Session, names: tuple[str, ...]) -> None:
    """Own and peer's disk; of a resource that is down what its metadata says."""

    def when_down(target: Target) -> list[str]:
        return [offline.disk_state(session, target.resource, number) for number in session.volumes(target)]

    _lines_of_volumes(session, names, lambda found, volume: states.disks(volume), when_down)


def _generation(session: Session, target: Target, number: int) -> offline.Generation:
    try:
        result = session.call(target, "show-gi", volume=number)
    except NotRunning:
        return offline.generation(session, target.resource, number)
    return offline.Generation(str(result["gi"]), int(result.get("size_sectors", 0)))


def _generations(session: Session, names: tuple[str, ...], text: Callable[[offline.Generation], str]) -> None:
    def work(target: Target) -> list[dict[str, Any]]:
        answers = []
        for number in session.volumes(target):
            found = _generation(session, target, number)
            if not session.is_json:
                output.print_line(text(found))
            answers.append({"volume": number, "gi": found.gi, "is_clean": found.is_clean,
                            "size_sectors": found.size_sectors})
        return answers

    session.each(session.targets(names, with_volume=True), work)


@command("get-gi")
def get_gi(session: Session, names: tuple[str, ...]) -> None:
    """Generation identifiers on one line."""
    _generations(session, names, lambda found: found.gi)


@command("show-gi")
def show_gi(session: Session, names: tuple[str, ...]) -> None:
    """Generation identifiers with explanations."""
    _generations(session, names, offline.Generation.explained)


@command("proc")
def proc(session: Session, names: tuple[str, ...]) -> None:
    """The text of /proc/drbd."""
    text = proc_text.render(_statuses(session, names)[0])
    if session.is_json:
        output.print_json({"ok": True, "data": text})
    else:
        click.echo(text, nl=False)


@command("events")
@click.option("--now", "is_once", is_flag=True, help="Print what is known and end.")
def events(session: Session, names: tuple[str, ...], is_once: bool) -> None:
    """What happened, oldest first; goes on until interrupted."""
    targets = session.targets(names)
    last = dict.fromkeys(targets, 0)
    while True:
        is_more = False
        for target in targets:
            for event in session.call(target, "events", after=last[target])["events"]:
                last[target] = int(event["sequence"])
                is_more = True
                _print_event(session, target, event)
        if is_more:
            continue
        if is_once:
            return
        time.sleep(STATUS_EVENTS_INTERVAL_S)


def _print_event(session: Session, target: Target, event: dict[str, Any]) -> None:
    if session.is_json:
        output.print_json_line({"resource": target.resource, **event})
        return
    when = datetime.fromtimestamp(event["time_s"]).astimezone().isoformat(timespec="microseconds")
    place = target.resource if event["volume"] < 0 else f"{target.resource}/{event['volume']}"
    output.print_line(f"{when} {place}: {event['message']}")


@command("nbd-url")
def nbd_url(session: Session, names: tuple[str, ...]) -> None:
    """The address to give to an NBD client on this machine."""

    def work(target: Target) -> list[str]:
        socket_path = str(session.run_dir(target.resource).nbd)
        urls = [build_unix_uri(socket_path, f"{target.resource}/{number}") for number in session.volumes(target)]
        if not session.is_json:
            for url in urls:
                output.print_line(url)
        return urls

    session.each(session.targets(names, with_volume=True), work)


COMMANDS = (status, role, cstate, dstate, get_gi, show_gi, proc, events, nbd_url)
