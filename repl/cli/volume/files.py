# SPDX-License-Identifier: Apache-2.0
"""volfile: where the volfiles of a volume are, for those who start processes themselves."""

from __future__ import annotations

import click

from repl.cli import output
from repl.cli.volume.context import Volumes
from repl.cli.volume.words import Words, command


@command("volfile", "NAME [HOST:/DIR]")
def volfile(volumes: Volumes, words: Words) -> None:
    """Print the client's volfile, or that of a brick of this host."""
    volume = volumes.load(words.next("the volume's name"))
    file = volumes.client_volfile(volume.name)
    if words.peek():
        brick = volume.find(words.place())[1]
        file = volumes.store.path(volume.name, volumes.brick_file(brick))
    words.end()
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": {"file": str(file)}})
        return
    click.echo(file.read_text(errors="surrogateescape"), nl=False)


COMMANDS = (volfile,)
