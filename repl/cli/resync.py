# SPDX-License-Identifier: Apache-2.0
"""Resync: pause-sync, resume-sync, invalidate-remote, and the controller's settings while it runs (disk-options)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from repl.cli.grouping import command
from repl.cli.session import Session, Target
from repl.config.options import TABLES, ValueRefused, parse_value
from repl.errors import UsageError

# Options of the configuration and what the node calls them; all count in the node's units already.
_FIELDS = {
    "resync-rate": "resync_rate_kib",
    "c-plan-ahead": "plan_ahead",
    "c-delay-target": "delay_target",
    "c-fill-target": "fill_target",
    "c-max-rate": "max_rate_kib",
    "c-min-rate": "min_rate_kib",
    "rs-discard-granularity": "discard_granularity",
}
_PRIORITIES = ("background", "balanced", "fast")


def _each_volume(session: Session, names: tuple[str, ...], verb: str, **args: Any) -> None:
    def work(target: Target) -> dict[str, Any]:
        numbers = [target.volume] if target.volume is not None else session.running_volumes(target)
        with session.client(target.resource) as client:
            for number in numbers:
                client.call(verb, volume=number, **args)
        return {"volumes": numbers}

    session.each(session.targets(names, with_volume=True), work)


@command("pause-sync")
def pause_sync(session: Session, names: tuple[str, ...]) -> None:
    """Pause resyncs with the peer, until resume-sync on this node."""
    _each_volume(session, names, "pause-sync")


@command("resume-sync")
def resume_sync(session: Session, names: tuple[str, ...]) -> None:
    """Let resyncs go on that were paused on this node."""
    _each_volume(session, names, "resume-sync")


@command("invalidate-remote")
def invalidate_remote(session: Session, names: tuple[str, ...]) -> None:
    """Declare the peer's data bad: everything is copied from this node."""
    _each_volume(session, names, "invalidate-remote")


def _settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """One option of the command line for each option of the configuration."""
    for name in reversed(_FIELDS):
        unit = TABLES["disk"][name].unit.value
        function = click.option(f"--{name}", name.replace("-", "_"), metavar="VALUE", help=f"In {unit}.")(function)
    return function


@command("disk-options")
@click.option("--resync-priority", type=click.Choice(_PRIORITIES), help="One knob instead of the numbers below.")
@_settings
@click.option("--set-defaults", is_flag=True, help="What is not named gets its default.")
def disk_options(
    session: Session, names: tuple[str, ...], resync_priority: str | None, set_defaults: bool, **texts: str | None
) -> None:
    """Change the resync controller until the next start; the peer takes the numbers over."""
    values: dict[str, int] = {}
    for name, field in _FIELDS.items():
        text = texts[name.replace("-", "_")]
        if text is None:
            continue
        try:
            values[field] = int(parse_value(TABLES["disk"][name], text))
        except ValueRefused as error:
            raise UsageError(f"--{name} {text}: {error}") from None
    if not values and resync_priority is None and not set_defaults:
        raise UsageError("disk-options: nothing to change.", advice='"replctl disk-options --help" lists the options.')
    args: dict[str, Any] = dict(values)
    if set_defaults:
        args["reset"] = True
    if resync_priority is not None:
        args["priority"] = resync_priority
    _each_volume(session, names, "disk-options", **args)


COMMANDS = (pause_sync, resume_sync, invalidate_remote, disk_options)
