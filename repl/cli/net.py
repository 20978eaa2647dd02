# SPDX-License-Identifier: Apache-2.0
"""The network options of a running resource: net-options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from repl.cli.grouping import command
from repl.cli.session import Session, Target
from repl.config.model import Option
from repl.config.options import TABLES, ValueRefused, parse_value
from repl.daemon.settings import NET_FIELDS, net_changes
from repl.errors import UsageError


def _settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """One option of the command line for each option of the configuration."""
    for name in reversed(NET_FIELDS):
        spec = TABLES["net"][name]
        what = ", ".join(spec.values) or spec.unit.value or ("yes or no" if isinstance(spec.default, bool) else "")
        text = f"{'One of' if spec.values else 'In' if spec.unit.value else ''} {what}".strip()
        function = click.option(f"--{name}", name.replace("-", "_"), metavar="VALUE", help=text)(function)
    return function


@command("net-options")
@_settings
@click.option("--set-defaults", is_flag=True, help="What is not named gets its default.")
def net_options(session: Session, names: tuple[str, ...], set_defaults: bool, **texts: str | None) -> None:
    """Change options of section net until the next start; the peer takes over what has to be equal."""
    options: dict[str, Option] = {}
    for name in NET_FIELDS:
        text, spec = texts[name.replace("-", "_")], TABLES["net"][name]
        if text is None:
            continue
        try:
            options[name] = Option(spec, name, text, parse_value(spec, text))
        except ValueRefused as error:
            raise UsageError(f"--{name} {text}: {error}") from None
    if not options and not set_defaults:
        raise UsageError("net-options: nothing to change.", advice='"replctl net-options --help" lists the options.')
    changes = net_changes(options, NET_FIELDS if set_defaults else options)

    def work(target: Target) -> dict[str, Any]:
        with session.client(target.resource) as client:
            client.call("net-options", **changes)
        return {"changed": sorted(changes)}

    session.each(session.targets(names), work)


COMMANDS = (net_options,)
