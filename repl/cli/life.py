# SPDX-License-Identifier: Apache-2.0
"""Start, stop, roles, connection: up, down, primary, secondary, connect, disconnect, invalidate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import click

from repl.cli.client import Client, NotRunning
from repl.cli.grouping import command
from repl.cli.session import Session, Target
from repl.cli.starting import start_daemon, wait_for_end
from repl.daemon.run_dir import running_pid
from repl.errors import PeerLost, ReplError, RequestRefused

UP_TIMEOUT_S = 600.0  # a large activity log may have to be applied to a slow disk
DOWN_TIMEOUT_S = 120.0
UP_FAILED_STATUS = 1


@command("up")
def up(session: Session, names: tuple[str, ...]) -> None:
    """Start the resource: its repld, its disks, its connection."""
    session.each(session.targets(names), lambda target: _up(session, target))


def _up(session: Session, target: Target) -> dict[str, Any]:
    name = target.resource
    session.view(name)  # what is wrong with the configuration is said here, not in a log
    try:
        return _start(session, name)
    except ReplError as error:
        if not error.message.startswith(name):
            error.message = f"{name}: it cannot be brought up: {error.message}"
        error.exit_status = UP_FAILED_STATUS  # as drbdadm, whatever the step was that failed
        raise


def _start(session: Session, name: str) -> dict[str, Any]:
    client, is_new = _daemon(session, name)
    with client:
        if not is_new and client.call("status").get("up"):
            raise RequestRefused(f"{name}: it is up already", number=124, advice=f'See "replctl status {name}".')
        try:
            return client.call("up", answer_timeout_s=UP_TIMEOUT_S)
        except ReplError:
            if is_new:  # leave nothing half started behind
                with contextlib.suppress(ReplError):
                    client.call("down", answer_timeout_s=DOWN_TIMEOUT_S, force=True)
                wait_for_end(session, name)
            raise


def _daemon(session: Session, name: str) -> tuple[Client, bool]:
    with contextlib.suppress(NotRunning):
        return session.client(name), False
    return start_daemon(session, name), True


@command("down")
@click.option("--force", is_flag=True, help="Also with clients connected: their I/O fails.")
def down(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Stop the resource; fine if it does not run."""
    session.each(session.targets(names), lambda target: _down(session, target, force))


def _down(session: Session, target: Target, force: bool) -> dict[str, Any]:
    name = target.resource
    try:
        client = session.client(name)
    except NotRunning:
        if running_pid(session.run_dir(name)) is not None:  # it starts or ends just now
            wait_for_end(session, name)
        return {}
    with client:
        try:
            client.call("down", answer_timeout_s=DOWN_TIMEOUT_S, **({"force": True} if force else {}))
        except PeerLost:  # it ended while we asked
            pass
    wait_for_end(session, name)
    return {}


def _verb(verb: str, *, answer_timeout_s: float = DOWN_TIMEOUT_S) -> Callable[..., None]:
    def work(session: Session, names: tuple[str, ...], **args: Any) -> None:
        given = {name: value for name, value in args.items() if value}

        def call(target: Target) -> dict[str, Any]:
            with session.client(target.resource) as client:
                return client.call(verb, answer_timeout_s=answer_timeout_s, **given)

        session.each(session.targets(names), call)

    return work


@command("primary")
@click.option("--force", is_flag=True, help="Declare this node's data good; the peer's is overwritten.")
def primary(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Make this node Primary: it may write."""
    _verb("primary")(session, names, force=force)


@command("secondary")
def secondary(session: Session, names: tuple[str, ...]) -> None:
    """Make this node Secondary."""
    _verb("secondary")(session, names)


@command("connect")
@click.option("--discard-my-data", is_flag=True, help="After a split brain: this node's changes are lost.")
@click.option("--tentative", is_flag=True, help="Only find out what would happen; status and why tell it.")
def connect(session: Session, names: tuple[str, ...], discard_my_data: bool, tentative: bool) -> None:
    """Look for the peer (again)."""
    _verb("connect")(session, names, discard_my_data=discard_my_data, tentative=tentative)


@command("disconnect")
@click.option("--force", is_flag=True, help="Also when the peer does not agree.")
def disconnect(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Cut the connection and stay StandAlone."""
    _verb("disconnect")(session, names, force=force)


@command("invalidate")
def invalidate(session: Session, names: tuple[str, ...]) -> None:
    """Declare this node's data bad: everything is copied from the peer."""

    def work(target: Target) -> dict[str, Any]:
        numbers = [target.volume] if target.volume is not None else session.running_volumes(target)
        with session.client(target.resource) as client:
            for number in numbers:
                client.call("invalidate", volume=number)
        return {"volumes": numbers}

    session.each(session.targets(names, with_volume=True), work)


COMMANDS = (up, down, primary, secondary, connect, disconnect, invalidate)
