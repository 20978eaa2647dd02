# SPDX-License-Identifier: Apache-2.0
"""The decorators that all commands share: names of resources, and --json behind the verb as well as before it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from repl.cli.session import Session

F = TypeVar("F", bound=Callable[..., Any])


def command(name: str, *, has_names: bool = True) -> Callable[[Callable[..., Any]], click.Command]:
    """A command that gets the session, and with ``has_names`` the names of resources as ``names``."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        @click.pass_obj
        def run(session: Session, /, *args: Any, is_json: bool, **kwargs: Any) -> Any:
            session.is_json = session.is_json or is_json
            return function(session, *args, **kwargs)

        made: Callable[..., Any] = run
        if has_names:
            made = click.argument("names", nargs=-1, metavar="RESOURCE...")(made)
        made = click.option("--json", "is_json", is_flag=True, help="Print one JSON value.")(made)
        return click.command(name)(made)

    return decorate
