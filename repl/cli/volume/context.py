# SPDX-License-Identifier: Apache-2.0
"""The volumes of this host: their descriptions, their files, and which bricks are ours.

A brick is ours if its host is the name given with --node, or else the host's name, one of its addresses, or a name that
leads to one.  Outputs of a change: the description, the client's volfile, the volfiles of our bricks.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from repl.cli.session import Session
from repl.daemon.addresses import own_addresses
from repl.daemon.given import given_node
from repl.daemon.run_dir import default_run_dir
from repl.errors import ConfigError, UsageError
from repl.files.volume.graphs import brick_volfile, client_volfile, is_loopback
from repl.files.volume.model import Brick, Status, Volume
from repl.files.volume.store import CLIENT_VOLFILE, Store, state_folder

BASE_PORT = 24009  # below the kernel's own range for outgoing connections (decision 0090)
PORT_MAX = 32767
VOLUME_ID_KEY = "trusted.glusterfs.volume-id"


class Volumes:
    def __init__(self, session: Session) -> None:
        self.session = session
        self.store = Store(state_folder(session.run_folder))

    def run_folder(self, name: str) -> Path:
        """Pid files, sockets, logs."""
        return (self.session.run_folder or default_run_dir()).absolute() / "volumes" / name

    @cached_property
    def _own_names(self) -> set[str]:
        node, is_given = given_node(self.session.node_name)
        if is_given:
            return {node}
        with contextlib.suppress(OSError):
            return {node, node.partition(".")[0], socket.getfqdn(), *own_addresses()}
        return {node, *own_addresses()}

    def is_own(self, host: str) -> bool:
        if host in self._own_names:
            return True
        if given_node(self.session.node_name)[1]:
            return False
        return is_loopback(host) or self._leads_here(host)

    def _leads_here(self, host: str) -> bool:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return False
        addresses = {str(entry[4][0]) for entry in found}
        return any(address in self._own_names or is_loopback(address) for address in addresses)

    def own_bricks(self, volume: Volume) -> list[Brick]:
        own = {host: self.is_own(host) for host in {brick.host for brick in volume.bricks}}
        return [brick for brick in volume.bricks if own[brick.host]]

    def other_hosts(self, volume: Volume) -> list[str]:
        hosts = dict.fromkeys(brick.host for brick in volume.bricks)
        return [host for host in hosts if not self.is_own(host)]

    def load(self, name: str) -> Volume:
        return self.store.load(name)

    def need_started(self, volume: Volume) -> None:
        if volume.status is not Status.STARTED:
            raise UsageError(f"Volume {volume.name} is not started.", advice=f'"replctl volume start {volume.name}".')

    # ---- ports ----

    def ports(self, name: str, base: int | None, count: int) -> Iterator[int]:
        """``count`` in a row that no volume here uses; from ``base`` on, or the first that are free."""
        used = {brick.port: volume.name for volume in self.store.volumes() for brick in volume.bricks}
        if base is not None:
            for port in range(base, base + count):
                if port in used:
                    raise UsageError(f"port {port} belongs to a brick of volume {used[port]}.",
                                     advice="Choose another --base-port, the same on every host.")  # fmt: skip
                if not 0 < port < 65536:
                    raise UsageError(f"port {port} cannot be.")
            return iter(range(base, base + count))
        own = [port for port, user in used.items() if user == name]
        for first in itertools.count(max(own) + 1 if own else BASE_PORT):
            if first + count > PORT_MAX:
                raise UsageError(f"no {count} ports in a row are free.", advice="Give --base-port.")
            if not any(port in used for port in range(first, first + count)):
                return iter(range(first, first + count))
        raise AssertionError

    # ---- files ----

    def brick_file(self, brick: Brick) -> str:
        return f"brick-{brick.number}.vol"

    def save(self, volume: Volume) -> None:
        """Description and volfiles; running processes see the change within two seconds."""
        self.store.save(volume)
        self.save_bricks(volume)
        self.store.write(volume.name, CLIENT_VOLFILE, client_volfile(volume))

    def save_bricks(self, volume: Volume) -> None:
        """Only the volfiles of our bricks."""
        own = self.own_bricks(volume)
        sharing = _sharing(own)
        for brick in own:
            text = brick_volfile(volume, brick, sharing=sharing.get(brick.path, 1))
            self.store.write(volume.name, self.brick_file(brick), text)

    def client_volfile(self, name: str) -> Path:
        return self.store.path(name, CLIENT_VOLFILE)


def _sharing(bricks: list[Brick]) -> dict[str, int]:
    """Path -> how many bricks of the volume share its file system."""
    devices: dict[str, int] = {}
    for brick in bricks:
        with contextlib.suppress(OSError):
            devices[brick.path] = os.stat(brick.path).st_dev
    numbers = list(devices.values())
    return {path: numbers.count(device) for path, device in devices.items()}


def claim(volume: Volume, brick: Brick) -> None:
    """Make the directory a brick of this volume.  Raises ``ConfigError``, ``UsageError``."""
    path = Path(brick.path)
    try:
        path.mkdir(exist_ok=True)
        found = os.getxattr(path, VOLUME_ID_KEY) if VOLUME_ID_KEY in os.listxattr(path) else None
        wanted = bytes.fromhex(volume.id.replace("-", ""))
        if found == wanted:
            return
        if found is not None:
            raise UsageError(
                f"{brick} is already part of a volume.",
                advice=f"If that volume is gone for good: setfattr -x {VOLUME_ID_KEY} {path}; rm -r {path}/.glusterfs",
            )
        os.setxattr(path, VOLUME_ID_KEY, wanted)
    except FileNotFoundError:
        raise ConfigError(f"brick {brick}: the directory {path.parent} does not exist.",
                          advice="Make it, or mount the brick's disk there.") from None  # fmt: skip
    except OSError as error:
        advice = "trusted.* attributes need root, and ext4 or XFS (not tmpfs)." if error.errno in (1, 95) else ""
        raise ConfigError(f"brick {brick} cannot be used: {error.strerror}.", advice=advice) from error
