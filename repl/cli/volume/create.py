# SPDX-License-Identifier: Apache-2.0
"""create and delete: volumes come and go."""

from __future__ import annotations

import click

from repl.cli import output
from repl.cli.volume.context import Volumes, claim
from repl.cli.volume.words import Words, command, confirm
from repl.errors import UsageError
from repl.files.volume import model
from repl.files.volume.graphs import default_allow, is_loopback
from repl.files.volume.model import Place, Status, Volume

SAME_SERVER = (
    "Multiple bricks of a replicate volume are present on the same server. This setup is not optimal. "
    "Bricks should be on different nodes to have best fault tolerant configuration. "
    "Use 'force' at the end of the command if you want to override this behavior."
)


@command("create", "NAME [replica N [arbiter 1]] [transport tcp] HOST:/DIR... [force]")
@click.option("--base-port", type=int, metavar="PORT", help="The first brick's port (24009, or the next that is free).")
def create(volumes: Volumes, words: Words, base_port: int | None) -> None:
    """Make a volume of brick directories.  The same command on every host; each one serves its own bricks."""
    name = words.next("the volume's name")
    replica, arbiter = take_replica(words)
    if words.take("transport") and words.next("the transport") not in ("tcp", "socket"):
        raise words.wrong("bricks are reached over tcp only.")
    is_forced = bool(words.take_last("force"))
    places = words.places()
    with volumes.store.changing():
        if name in volumes.store.names():
            raise UsageError(f"{name}: failed: Volume {name} already exists.",
                             advice=f'"replctl volume info {name}" shows it.')  # fmt: skip
        check_bricks_are_free(volumes, places)
        ports = volumes.ports(name, base_port, len(places))
        volume = model.create(name, places, ports, replica=replica, arbiter=arbiter)
        if not is_forced:
            _check_hosts(volume)
        install(volumes, volume)
    _say_created(volumes, volume)


def take_replica(words: Words) -> tuple[int, bool]:
    replica, arbiter = 1, False
    while word := words.take("replica", "arbiter", "stripe", "disperse", "disperse-data", "redundancy", "thin-arbiter"):
        count = words.number(f"the number behind {word}")
        if word == "replica":
            replica = count
        elif word == "arbiter" and count == 1:
            arbiter = True
        else:
            raise words.wrong(f"{word} {count} is not there: a volume is distributed, replicated, or both.")
    return (3 if arbiter and replica == 2 else replica), arbiter


def check_bricks_are_free(volumes: Volumes, places: list[Place]) -> None:
    for other in volumes.store.volumes():
        for brick in other.bricks:
            if brick.place in places:
                raise UsageError(f"{brick} is already part of volume {other.name}.")


def _check_hosts(volume: Volume) -> None:
    """A set of copies on one machine protects from little.  On loopback that is plain to see for who types it."""
    if volume.replica == 1:
        return
    for one in volume.sets:
        hosts = [brick.host for brick in one.bricks if not is_loopback(brick.host)]
        if len(set(hosts)) < len(hosts):
            raise UsageError(f"{volume.name}: failed: {SAME_SERVER}")


def install(volumes: Volumes, volume: Volume) -> None:
    for brick in volumes.own_bricks(volume):
        claim(volume, brick)
    volumes.save(volume)


def _say_created(volumes: Volumes, volume: Volume) -> None:
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": {"name": volume.name, "id": volume.id}})
        return
    output.print_line(f"volume create: {volume.name}: success: please start the volume to access data")
    if volume.replica == 2 and not volume.has_arbiter:
        output.print_note("replica 2 is prone to split-brain: without the other copy each one goes on alone. "
                          "replica 3 arbiter 1 prevents that.")
    if others := volumes.other_hosts(volume):
        hosts = ", ".join(others)
        output.print_note(f'bricks of {hosts} are started there: "replctl volume export {volume.name}" here, '
                          f'"replctl volume import" there, or the same command with --base-port '
                          f"{volume.bricks[0].port}.")  # fmt: skip
    if default_allow(volume) == "*" and "auth.allow" not in volume.options:
        output.print_note(f"everybody who reaches ports {_ports(volume)} may attach; "
                          f'"replctl volume set {volume.name} auth.allow 192.0.2.0/24" says who may.')


def _ports(volume: Volume) -> str:
    ports = sorted(brick.port for brick in volume.bricks)
    return f"{ports[0]}-{ports[-1]}" if len(ports) > 1 else str(ports[0])


@command("delete", "NAME")
def delete(volumes: Volumes, words: Words) -> None:
    """Forget a volume that is stopped.  What is in its bricks stays there."""
    name = words.next("the volume's name")
    words.end()
    volume = volumes.load(name)
    if volume.status is Status.STARTED:
        raise UsageError(f"{name}: failed: Volume {name} has been started. Volume needs to be stopped before deletion.")
    confirm(volumes, "Deleting volume will erase all information about the volume. Do you want to continue?")
    with volumes.store.changing():
        volumes.store.remove(name)
    done(volumes, f"volume delete: {name}: success")


def done(volumes: Volumes, text: str) -> None:
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": {}})
    else:
        output.print_line(text)


COMMANDS = (create, delete)
