# SPDX-License-Identifier: Apache-2.0
"""How things are called on a brick: handles, gfid2path keys, names that clients may use.

Source of the facts: bricks of GlusterFS 10.3 (spec section 3.2 and its vectors).
"""

from __future__ import annotations

import errno
import re
import uuid

import xxhash

from repl.files.values import ROOT_GFID, FopError, gfid_text

HIDDEN = ".glusterfs"
HIDDEN_NAME = HIDDEN.encode()
UNFINISHED = f"{HIDDEN}/unfinished"  # what is being made, and handles that are about to change
UNLINKED = f"{HIDDEN}/unlink"  # files without a name that are still open
LANDFILL = f"{HIDDEN}/landfill"  # trees to be removed
ANONYMOUS = b".glusterfs-anonymous-inode-"  # where Gluster's heal keeps inodes whose new name it has not found yet
NAME_BYTES_MAX = 255

DHT_LINKTO = b"trusted.glusterfs.dht.linkto"
GFID_KEY = "trusted.gfid"
PRECONDITION = b"glusterfs.preop."  # in ``extra``, before a key: the directory must have this value
GFID2PATH_PREFIX = "trusted.gfid2path."
VOLUME_ID_KEY = "trusted.glusterfs.volume-id"

_DIRECTORY_HANDLE = re.compile(rb"\.\./\.\./[0-9a-f]{2}/[0-9a-f]{2}/([0-9a-f-]{36})/([^/]+)", re.DOTALL)


def handle_path(gfid: bytes) -> str:
    """Below the brick's root."""
    text = gfid_text(gfid)
    return f"{HIDDEN}/{text[:2]}/{text[2:4]}/{text}"


def directory_handle(parent: bytes, name: bytes) -> bytes:
    """What the handle of a directory points to."""
    text = gfid_text(parent)
    return f"../../{text[:2]}/{text[2:4]}/{text}/".encode() + name


def parse_directory_handle(target: bytes) -> tuple[bytes, bytes] | None:
    """Parent's gfid and name, None if it is no such handle."""
    match = _DIRECTORY_HANDLE.fullmatch(target)
    if not match:
        return None
    try:
        return uuid.UUID(match[1].decode()).bytes, match[2]
    except ValueError:
        return None


def gfid2path(parent: bytes, name: bytes) -> tuple[str, bytes]:
    """Key and value that note one name of a file."""
    value = gfid_text(parent).encode() + b"/" + name
    return GFID2PATH_PREFIX + xxhash.xxh64_hexdigest(value), value


def parse_gfid2path(value: bytes) -> tuple[bytes, bytes] | None:
    """Parent's gfid and name."""
    parent, slash, name = value.partition(b"/")
    try:
        return (uuid.UUID(parent.decode()).bytes, name) if slash and name else None
    except ValueError:
        return None


def check_name(parent: bytes, name: bytes) -> None:
    """Only a single component may pass: resolution never leaves the directory.  Raises ``FopError``."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise FopError(errno.EINVAL, f"{name!r} is no name")
    if len(name) > NAME_BYTES_MAX:
        raise FopError(errno.ENAMETOOLONG)
    if parent == ROOT_GFID and name == HIDDEN_NAME:
        raise FopError(errno.EPERM, f"{HIDDEN} belongs to the brick")


def is_hidden(parent: bytes, name: bytes) -> bool:
    return parent == ROOT_GFID and (name == HIDDEN_NAME or name.startswith(ANONYMOUS))


def gfid_of_foreign(parent: bytes, name: bytes) -> bytes:
    """For what was put into the brick by hand: the same on every replica."""
    return uuid.uuid5(uuid.UUID(bytes=parent), name.hex()).bytes


def is_internal(key: bytes) -> bool:
    """Not shown to users and not for them to write."""
    return key.startswith((b"trusted.gfid", b"trusted.afr.", b"trusted.glusterfs.", b"trusted.repl."))
