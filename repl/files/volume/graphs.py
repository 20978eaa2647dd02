# SPDX-License-Identifier: Apache-2.0
"""From a volume to its volfiles: one for each brick, one for its clients.

Layers and names as GlusterFS's own tools arrange them, so that what lies on the bricks means the same to both.
Bricks, bottom first: posix, arbiter (where it is one), locks, upcall, io-threads, index, io-stats (named by the brick's
directory, which is what clients attach to), server.  Clients: client, replicate, distribute, write-behind, read-ahead,
io-cache, quick-read, md-cache, io-threads, io-stats (named as the volume).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from repl.files import volfile
from repl.files.volume import settings
from repl.files.volume.model import Brick, BrickSet, Volume

LOOPBACK = ("127.*", "::1")
# Every brick has features/upcall and tells of changes: caches need not ask every second (decision 0093).
_TRUST = {
    "performance/md-cache": {"md-cache-timeout": "600"}, "performance/quick-read": {"cache-timeout": "60"},
    "performance/io-cache": {"cache-timeout": "60"},
}  # fmt: skip


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "localhost.localdomain", "ip6-localhost")


class _Text:
    """Collects the volumes of a file, and gives each the options that the administrator set."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._parts: list[volfile.Volume] = []
        self._set: dict[str, dict[str, str]] = {}
        for key, text in volume.options.items():
            found = settings.find(key)
            for kind, option in found.targets if found else ():
                self._set.setdefault(kind, {})[option.name] = text

    def add(self, name: str, kind: str, children: Sequence[str] = (), **options: object) -> str:
        """``name`` again.  An underscore stands for a dash, two for a dot."""
        own = {key.replace("__", ".").replace("_", "-"): str(value) for key, value in options.items()}
        return self.add_with(name, kind, children, own)

    def add_with(self, name: str, kind: str, children: Sequence[str], own: dict[str, str]) -> str:
        part = volfile.Volume(name, 0, kind, {**own, **self._set.get(kind, {})}, subvolumes=list(children))
        self._parts.append(part)
        return name

    def render(self) -> str:
        head = f"# Volume {self._volume.name}, written by replctl: it is written anew with every change.\n\n"
        return head + volfile.render(self._parts)


def brick_volfile(volume: Volume, brick: Brick, *, sharing: int = 1) -> str:
    """``sharing``: bricks of the volume on the same file system of this host."""
    text, v = _Text(volume), volume.name
    top = text.add(f"{v}-posix", "storage/posix", directory=brick.path, volume_id=volume.id,
                   shared_brick_count=sharing)  # fmt: skip
    if brick.is_arbiter:
        top = text.add(f"{v}-arbiter", "features/arbiter", [top])
    top = text.add(f"{v}-locks", "features/locks", [top])
    top = text.add(f"{v}-upcall", "features/upcall", [top])
    top = text.add(f"{v}-io-threads", "performance/io-threads", [top])
    top = text.add(f"{v}-index", "features/index", [top], index_base=f"{brick.path}/.glusterfs/indices",
                   xattrop_pending_watchlist=f"trusted.afr.{v}-",
                   xattrop_dirty_watchlist="trusted.afr.dirty")  # fmt: skip
    top = text.add(brick.path, "debug/io-stats", [top], count_fop_hits="off", latency_measurement="off")
    server = {
        "transport-type": "tcp",
        "transport.socket.listen-port": str(brick.port),
        "transport.socket.bind-address": bind_address(brick.host),
        f"auth.addr.{brick.path}.allow": volume.options.get("auth.allow", default_allow(volume)),
    }
    if reject := volume.options.get("auth.reject"):
        server[f"auth.addr.{brick.path}.reject"] = reject
    if names := volume.options.get("auth.ssl-allow"):
        server[f"auth.login.{brick.path}.ssl-allow"] = names
    text.add_with(f"{v}-server", "protocol/server", [top], server)
    return text.render()


def bind_address(host: str) -> str:
    """Where a brick listens: on loopback or the very address if its host is given so, else everywhere."""
    if is_loopback(host):
        return "127.0.0.1" if host.startswith("localhost") else host
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "*"


def default_allow(volume: Volume) -> str:
    if all(is_loopback(brick.host) for brick in volume.bricks):
        return ",".join(LOOPBACK)
    return "*"


def client_volfile(volume: Volume) -> str:
    text, v = _Text(volume), volume.name
    tops = [_brick_set(text, volume, one) for one in volume.sets]
    leaving = " ".join(volume.set_name(one) for one in volume.leaving)
    own = {"decommissioned-bricks": leaving} if leaving else {}
    top = text.add_with(volume.distribute_name, "cluster/distribute", tops, own)
    for key, kind, _ in settings.LAYERS:
        if settings.is_on(volume.options, key) and settings.is_there(kind):
            top = text.add_with(f"{v}-{kind.rpartition('/')[2]}", kind, [top], _TRUST.get(kind, {}))
    text.add(v, "debug/io-stats", [top], count_fop_hits="off", latency_measurement="off")
    return text.render()


def links_volfile(volume: Volume, bricks: Sequence[Brick]) -> str:
    """Links to single bricks and nothing above them."""
    text = _Text(volume)
    for brick in bricks:
        _link(text, volume, brick)
    return text.render()


def _link(text: _Text, volume: Volume, brick: Brick) -> str:
    return text.add(volume.client_name(brick), "protocol/client", transport_type="tcp", remote_host=brick.host,
                    remote_port=brick.port, remote_subvolume=brick.path)  # fmt: skip


def _brick_set(text: _Text, volume: Volume, one: BrickSet) -> str:
    names = [_link(text, volume, brick) for brick in one.bricks]
    if volume.replica == 1:
        return names[0]
    own = {"afr-pending-xattr": ",".join(names), "volume-id": volume.id}
    if volume.has_arbiter:
        own["arbiter-count"] = "1"
    return text.add_with(volume.set_name(one), "cluster/replicate", names, own)
