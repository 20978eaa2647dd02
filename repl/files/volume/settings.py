# SPDX-License-Identifier: Apache-2.0
"""The option names of ``volume set``, and which option of which translators each one means.

Input: a key such as ``performance.cache-size``; output: a ``Setting`` with its targets.  The part before the dot names
a group of translators; the rest is an option of theirs as its table spells it, unless ``_NAMES`` says otherwise.
``features`` that are switched on and off as a whole are in ``SWITCHES``.
Errors: ``UsageError`` as Gluster words it, with the nearest key that exists.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from repl.errors import UsageError
from repl.files.options import Kind, Option
from repl.files.translators import find_class

_GROUPS: dict[str, tuple[str, ...]] = {
    "cluster": ("cluster/replicate", "cluster/distribute"),
    "performance": ("performance/io-threads", "performance/write-behind", "performance/read-ahead",
                    "performance/io-cache", "performance/quick-read", "performance/md-cache"),
    "network": ("protocol/client",),
    "client": ("protocol/client",),
    "server": ("protocol/server",),
    "storage": ("storage/posix",),
    "features": ("features/upcall", "features/locks"),
    "locks": ("features/locks",),
    "diagnostics": ("debug/io-stats",),
}  # fmt: skip
# Key -> (type, option) ...
_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "performance.io-thread-count": (("performance/io-threads", "thread-count"),),
    "performance.cache-size": (("performance/io-cache", "cache-size"), ("performance/quick-read", "cache-size")),
    "performance.io-cache-size": (("performance/io-cache", "cache-size"),),
    "performance.quick-read-cache-size": (("performance/quick-read", "cache-size"),),
    "performance.cache-max-file-size": (("performance/io-cache", "max-file-size"),),
    "performance.cache-min-file-size": (("performance/io-cache", "min-file-size"),),
    "performance.cache-refresh-timeout": (("performance/io-cache", "cache-timeout"),),
    "performance.qr-cache-timeout": (("performance/quick-read", "cache-timeout"),),
    "performance.quick-read-cache-timeout": (("performance/quick-read", "cache-timeout"),),
    "performance.write-behind-window-size": (("performance/write-behind", "window-size"),),
    "performance.write-behind-trickling-writes": (("performance/write-behind", "trickling-writes"),),
    "performance.strict-o-direct": (("performance/write-behind", "strict-O_DIRECT"),),
    "performance.read-ahead-page-count": (("performance/read-ahead", "page-count"),),
    "performance.cache-invalidation": (("performance/md-cache", "cache-invalidation"),),
    "network.inode-lru-limit": (("protocol/server", "inode-lru-limit"),),
    "network.remote-dio": (("protocol/client", "filter-O_DIRECT"),),
    "network.tcp-window-size": (("protocol/client", "tcp-window-size"),),
    "transport.address-family": (("protocol/client", "transport.address-family"),),
    "client.ssl": (("protocol/client", "transport.socket.ssl-enabled"),),
    "server.ssl": (("protocol/server", "transport.socket.ssl-enabled"),),
    **{f"ssl.{word}": tuple((f"protocol/{side}", f"transport.socket.ssl-{word}") for side in ("client", "server"))
       for word in ("own-cert", "private-key", "ca-list", "cert-depth", "cipher-list")},
    "server.bind-address": (("protocol/server", "transport.socket.bind-address"),),
    "server.outstanding-rpc-limit": (("protocol/server", "rpc.outstanding-rpc-limit"),),
    "server.allow-insecure": (("protocol/server", "rpc-auth-allow-insecure"),),
    "server.tcp-user-timeout": (("protocol/server", "transport.tcp-user-timeout"),),
    "server.keepalive-time": (("protocol/server", "transport.socket.keepalive-time"),),
    "server.keepalive-interval": (("protocol/server", "transport.socket.keepalive-interval"),),
    "server.keepalive-count": (("protocol/server", "transport.socket.keepalive-count"),),
    "storage.owner-uid": (("storage/posix", "brick-uid"),),
    "storage.owner-gid": (("storage/posix", "brick-gid"),),
    "features.lock-heal": (),
}  # fmt: skip
# What belongs to the place of a translator in its volume, not to anybody's taste.
_OWN = {
    "storage/posix": {"directory", "volume-id", "shared-brick-count", "node-uuid"},
    "features/index": {"index-base"},
    "protocol/client": {"remote-host", "remote-port", "remote-subvolume", "transport-type",
                        "transport.socket.connect-path", "username", "password"},
    "protocol/server": {"transport-type", "transport.socket.listen-port", "transport.socket.listen-path"},
    "cluster/replicate": {"afr-pending-xattr", "arbiter-count", "iam-self-heal-daemon", "iam-nfs-daemon", "volume-id",
                          "node-uuid"},
    "cluster/distribute": {"decommissioned-bricks", "commit-hash", "node-uuid", "xattr-name"},
    "debug/io-stats": {"volume-id", "unique-id"},
}  # fmt: skip
# Layers of the client's graph that can be left out, bottom first: key, type, whether a new volume has it.
LAYERS = (
    ("performance.write-behind", "performance/write-behind", True),
    ("performance.read-ahead", "performance/read-ahead", False),
    ("performance.io-cache", "performance/io-cache", False),
    ("performance.quick-read", "performance/quick-read", True),
    ("performance.stat-prefetch", "performance/md-cache", True),
    ("performance.client-io-threads", "performance/io-threads", False),
)
SWITCHES = {key: default for key, _, default in LAYERS}
# Set by Gluster on new volumes, or by its users; what they switch is not here.
WITHOUT_EFFECT = (
    "nfs.disable", "performance.open-behind", "performance.readdir-ahead", "performance.nl-cache",
    "performance.parallel-readdir", "performance.global-cache-invalidation", "config.client-threads",
    "config.brick-threads", "config.global-threading", "cluster.server-quorum-type", "cluster.server-quorum-ratio",
)  # fmt: skip
AUTH = {
    "auth.allow": Option("auth.allow", Kind.LIST, (), "addresses that may attach (wildcards, networks)"),
    "auth.reject": Option("auth.reject", Kind.LIST, (), "addresses that may not"),
    "auth.ssl-allow": Option("auth.ssl-allow", Kind.LIST, (), "common names of certificates that may attach"),
}
_SWITCH = Option("switch", Kind.BOOL, False, "")


@dataclass(frozen=True, slots=True)
class Setting:
    """A key and what it means.  Without targets it is a switch of the graph, of ``auth``, or has no effect."""

    key: str
    targets: tuple[tuple[str, Option], ...] = ()
    option: Option | None = None  # how its value is checked
    has_effect: bool = True

    @property
    def default(self) -> Any:
        if self.key in SWITCHES:
            return SWITCHES[self.key]
        found = self.targets[0][1] if self.targets else self.option
        return found.default if found else None


def _options(type_name: str) -> tuple[Option, ...]:
    try:
        found = find_class(type_name)
    except ModuleNotFoundError:
        return ()
    return tuple(found.OPTIONS) if found else ()


def is_there(type_name: str) -> bool:
    """Whether this installation has that translator."""
    try:
        return find_class(type_name) is not None
    except ModuleNotFoundError:
        return False


def _named(type_name: str, name: str) -> Option | None:
    own = _OWN.get(type_name, set())
    for option in _options(type_name):
        if name.lower() in (word.lower() for word in (option.name, *option.aliases)):
            return None if option.name in own or option.is_pattern else option
    return None


def find(key: str) -> Setting | None:
    """What a key means, None if there is no such key."""
    if key in SWITCHES:
        return Setting(key, option=_SWITCH)
    if key in AUTH:
        return Setting(key, option=AUTH[key])
    if key in WITHOUT_EFFECT:
        return Setting(key, has_effect=False)
    if key in _NAMES:
        named = ((kind, _named(kind, name)) for kind, name in _NAMES[key])
        targets = tuple((kind, option) for kind, option in named if option is not None)
        return Setting(key, targets, has_effect=bool(targets))
    group, _, name = key.partition(".")
    found = tuple((kind, option) for kind in _GROUPS.get(group, ()) if (option := _named(kind, name)) is not None)
    return Setting(key, found[:1]) if found and name else None


@cache
def known() -> tuple[str, ...]:
    """Every key, in the order of ``volume get NAME all``."""
    taken = {(kind, name) for targets in _NAMES.values() for kind, name in targets}

    def generic() -> Iterator[str]:
        for group, kinds in _GROUPS.items():
            for kind in kinds if group != "client" and group != "locks" else ():
                for option in _options(kind):
                    if (kind, option.name) not in taken and find(f"{group}.{option.name}"):
                        yield f"{group}.{option.name}"

    keys = [*generic(), *SWITCHES, *(key for key in _NAMES if find(key)), *AUTH]
    return tuple(dict.fromkeys(keys))


def need(key: str) -> Setting:
    found = find(key)
    if found is None:
        candidates: Iterable[str] = [*known(), *WITHOUT_EFFECT]
        close = difflib.get_close_matches(key, candidates, 1)
        if not close and "." not in key:
            close = [name for name in candidates if name.partition(".")[2] == key][:1]
        advice = f"Did you mean {close[0]}?" if close else '"replctl volume get NAME all" lists the options.'
        raise UsageError(f"option : {key} does not exist.", advice=advice)
    return found


def check(key: str, text: str) -> Setting:
    """Raises ``UsageError`` for a value that cannot be."""
    found = need(key)
    options = [option for _, option in found.targets] or ([found.option] if found.option else [])
    for option in options:
        try:
            option.parse(text)
        except ValueError as error:
            raise UsageError(f"option {key} cannot be '{text}': {error} is expected.") from None
    return found


def is_on(options: dict[str, str], key: str) -> bool:
    """Of a switch."""
    text = options.get(key)
    return SWITCHES[key] if text is None else bool(_SWITCH.parse(text))
