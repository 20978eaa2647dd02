# SPDX-License-Identifier: Apache-2.0
"""The configuration: dump, config check."""

from __future__ import annotations

import click

from repl import config
from repl.cli import output
from repl.cli.grouping import command
from repl.cli.session import ALL, Session
from repl.daemon.settings import node_settings
from repl.errors import UsageError


@command("dump")
def dump(session: Session, names: tuple[str, ...]) -> None:
    """Print the configuration in normal form (shared secrets included)."""
    if not names or ALL in names:
        text = config.dump(session.config, session.node, addresses=session.addresses)
    else:
        text = "\n".join(_dump_one(session, target.resource) for target in session.targets(names))
    if session.is_json:
        output.print_json({"ok": True, "data": text})
    else:
        click.echo(text, nl=False)


def _dump_one(session: Session, name: str) -> str:
    resource = session.config.resources.get(name)
    if resource is None:
        raise UsageError(f"'{name}' not defined in your config.")
    return config.dump_resource(resource)


@command("check", has_names=False)
@click.option("--strict", is_flag=True, help="Refuse what drbdadm lets pass although it is a mistake.")
def check(session: Session, strict: bool) -> None:
    """Read the configuration as every resource of this node would."""
    read = config.load(session.config_file, strict=strict)
    own = config.resources_of_node(read, session.node, addresses=session.addresses)
    for resource in own:
        node_settings(config.resource_for_node(read, resource.name, session.node, addresses=session.addresses))
    warnings = [str(warning) for warning in read.warnings]
    if session.is_json:
        names = [resource.name for resource in own]
        output.print_json({"ok": True, "data": {"resources": names, "warnings": warnings}})
        return
    for warning in warnings:
        output.print_note(f"warning: {warning}")
    listed = ", ".join(resource.name for resource in own) or "none"
    output.print_line(f"{session.config_file}: correct; resources of node {session.node}: {listed}")


@click.group("config")
def config_group() -> None:
    """Look at the configuration."""


config_group.add_command(check)

COMMANDS = (dump, config_group)
