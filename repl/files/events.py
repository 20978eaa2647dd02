# SPDX-License-Identifier: Apache-2.0
"""What translators tell their parents without being asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from repl.files.values import Iatt


@dataclass(frozen=True, slots=True)
class ChildUp:
    """The subvolume can be used (again)."""


@dataclass(frozen=True, slots=True)
class ChildDown:
    """The subvolume answers nothing but ENOTCONN from now on."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Invalidated:
    """Another client has changed an inode: what is cached about it is old.

    ``iatt`` are its new attributes if the brick knows them; ``names`` are entries of the directory that changed;
    ``is_data``: contents, ``is_gone``: the inode is no more.  ``clients`` are to be told (``Caller.client``; empty:
    all), protocol/server sends it to them only.
    """

    gfid: bytes
    iatt: Iatt | None = None
    names: tuple[bytes, ...] = ()
    is_data: bool = False
    is_gone: bool = False
    clients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Contended:
    """Somebody waits for an internal lock that ``client`` holds; protocol/server tells that one only."""

    domain: str
    gfid: bytes
    name: bytes | None = None  # entry locks
    is_entry: bool = False
    client: str = ""


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The link was lost in between: byte-range locks held through it may be gone."""

    lost_locks: tuple[bytes, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Unwatched:
    """A brick that told us of changes is away, or one has come that did not: what is cached may be old without a word.
    ``is_partial``: a part of all names is not to be seen."""

    is_partial: bool = False


Event: TypeAlias = ChildUp | ChildDown | Invalidated | Contended | Reconnected | Unwatched
