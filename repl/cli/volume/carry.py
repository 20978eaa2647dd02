# SPDX-License-Identifier: Apache-2.0
"""export, import, adopt: volumes that are described elsewhere, on another host or by glusterd."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from repl.cli import output
from repl.cli.volume import processes
from repl.cli.volume.bricks import stop_bricks, take_in
from repl.cli.volume.context import Volumes
from repl.cli.volume.create import check_bricks_are_free, done, install
from repl.cli.volume.words import Words, command
from repl.errors import UsageError
from repl.files.volume import model, store
from repl.files.volume.gluster import GLUSTERD, read_gluster
from repl.files.volume.model import Status, Volume


@command("export", "NAME")
def export(volumes: Volumes, words: Words) -> None:
    """Print what another host needs to know of a volume: for "replctl volume import" there."""
    volume = volumes.load(words.next("the volume's name"))
    words.end()
    click.echo(store.render(volume), nl=False)


@command("import", "[FILE]")
def import_(volumes: Volumes, words: Words) -> None:
    """Take over what "replctl volume export" printed elsewhere: a new volume, or its changes."""
    file = words.take(words.peek()) or "-"
    words.end()
    text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    volume = store.parse(text, "standard input" if file == "-" else file)
    model.check_name(volume.name)
    with volumes.store.changing():
        if volume.name not in volumes.store.names():
            volume.status = Status.CREATED
            install(volumes, volume)
        else:
            _change(volumes, volumes.load(volume.name), volume)
    done(volumes, f"volume import: {volume.name}: success")


def _change(volumes: Volumes, known: Volume, volume: Volume) -> None:
    """From one description to the next, as the command did on the host where it was typed."""
    if known.id != volume.id:
        raise UsageError(f"{volume.name}: there is another volume of that name here.")
    volume.status = known.status
    before = {brick.number: brick for brick in known.bricks}
    new, moved = [], []
    for brick in volume.bricks:
        old = before.pop(brick.number, None)
        if old is not None and old.place == brick.place:
            brick.is_fresh = brick.is_fresh and old.is_fresh
        else:
            new.append(brick)
            moved += [old] if old is not None else []
    for old in moved:  # both have one name in the counters
        processes.brick_daemon(volumes, known, old).stop()
    take_in(volumes, volume, new)
    stop_bricks(volumes, volume, list(before.values()))


@command("adopt", "NAME")
@click.option("--from", "folder", type=click.Path(path_type=Path), default=GLUSTERD, show_default=True,
              metavar="DIR", help="glusterd's directory, or a copy of it.")
@click.option("--base-port", type=int, metavar="PORT", help="The first brick's port (24009, or the next that is free).")
def adopt(volumes: Volumes, words: Words, folder: Path, base_port: int | None) -> None:
    """Take over a volume of GlusterFS with its bricks as they are; glusterd and its bricks have to be stopped."""
    name = words.next("the volume's name")
    words.end()
    with volumes.store.changing():
        if name in volumes.store.names():
            raise UsageError(f"{name}: failed: Volume {name} already exists.")
        found = read_gluster(folder, name)
        check_bricks_are_free(volumes, found.places)
        volume = model.create(name, found.places, volumes.ports(name, base_port, len(found.places)),
                              replica=found.replica, arbiter=found.has_arbiter, volume_id=found.id)  # fmt: skip
        volume.options = found.options
        install(volumes, volume)
    for key, reason in found.left_out.items():
        output.print_note(f"option {key} is left out: {reason}")
    done(volumes, f"volume adopt: {name}: success: please start the volume to access data")


COMMANDS = (export, import_, adopt)
