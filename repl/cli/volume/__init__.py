# SPDX-License-Identifier: Apache-2.0
"""``replctl volume ...``: volumes of files, in the words of Gluster's command line."""

from __future__ import annotations

import click

from repl.cli.volume import bricks, create, files, heal, life, look, options, rebalance, top


@click.group("volume")
def volume() -> None:
    """Volumes of replicated and distributed files (with Gluster's words)."""


for _group in (create, life, look, options, bricks, heal, rebalance, top, files):
    for _command in _group.COMMANDS:
        volume.add_command(_command)

COMMANDS = (volume,)
