# SPDX-License-Identifier: Apache-2.0
"""``replctl volume ...``: volumes of files, in the words of Gluster's command line."""

from __future__ import annotations

import click

from repl.cli.session import Session
from repl.cli.volume import bricks, carry, create, files, heal, life, look, options, rebalance, top


@click.group("volume")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON value.")
@click.option("--mode", type=click.Choice(("script", "interactive")), default="interactive", help="script: never ask.")
@click.pass_obj
def volume(session: Session, is_json: bool, mode: str) -> None:
    """Volumes of replicated and distributed files (with Gluster's words)."""
    session.is_json = session.is_json or is_json
    session.is_script = session.is_script or mode == "script"


for _group in (create, carry, life, look, options, bricks, heal, rebalance, top, files):
    for _command in _group.COMMANDS:
        volume.add_command(_command)

COMMANDS = (volume,)
