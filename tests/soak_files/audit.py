# SPDX-License-Identifier: Apache-2.0
"""What has to be true of the bricks when nothing is going on: read behind everybody's back, by nothing of the product.

Copies of a set have the same names, types, modes, owners, contents, attributes and gfids; nobody accuses anybody;
every file's gfid leads to it, and nothing is left that no name leads to; a directory is on every set, with ranges that
cover everything once; a file's data are on one set, and what else has its name leads there.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GFID = "trusted.gfid"
LINKTO = "trusted.glusterfs.dht.linkto"
MIGRATION = "trusted.glusterfs.dht.migration"  # the data are here still
LAYOUT = "trusted.glusterfs.dht"
# Of one brick alone, or of the machinery that is judged by itself.
OWN = ("trusted.afr.", "trusted.glusterfs.volume-id", "trusted.glusterfs.mdata", "trusted.repl.brick-id")
LINK_MODE = stat.S_ISVTX
PROBLEMS_MAX = 40
ASIDE = ".glusterfs-anonymous-inode-"  # where heals put what they take away, until nobody needs it


@dataclass
class Item:
    """What lies under one name on one brick."""

    mode: int
    owner: tuple[int, int]
    links: int
    inode: int
    size: int
    content: bytes
    attributes: dict[str, bytes] = field(default_factory=dict)

    @property
    def gfid(self) -> str:
        return self.attributes.get(GFID, b"").hex()

    @property
    def is_link_file(self) -> bool:
        return LINKTO in self.attributes and MIGRATION not in self.attributes and stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def differences(self, other: Item, *, has_data: bool) -> list[str]:
        found = [what for what in ("mode", "owner", "attributes") if getattr(self, what) != getattr(other, what)]
        if not self.is_directory and self.links != other.links:
            found.append("links")
        if has_data and (self.size != other.size and not self.is_directory or self.content != other.content):
            found.append("content")
        return found


class Brick:
    """``items`` by name, the root is ``.``; ``store`` are the gfids of .glusterfs and what they lead to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.items: dict[str, Item] = {}
        self.store: dict[str, os.stat_result] = {}
        for path in self._paths():
            self.items[str(path.relative_to(root))] = self._item(path)
        for path in root.glob(".glusterfs/[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/*"):
            self.store[path.name.replace("-", "")] = path.lstat()

    def _paths(self) -> Iterator[Path]:
        yield self.root
        for path in sorted(self.root.rglob("*")):
            if path.relative_to(self.root).parts[0] not in (".glusterfs", "lost+found"):
                yield path

    def _item(self, path: Path) -> Item:
        st = path.lstat()
        content = b""
        if stat.S_ISREG(st.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(st.st_mode):
            content = os.fsencode(os.readlink(path))
        keys = [key for key in os.listxattr(path, follow_symlinks=False) if not key.startswith(OWN)]
        attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in keys}
        return Item(st.st_mode, (st.st_uid, st.st_gid), st.st_nlink, st.st_ino, st.st_size, content, attributes)

    def store_problems(self) -> list[str]:
        found = []
        inodes = {item.inode for item in self.items.values()}
        for name, item in self.items.items():
            there = self.store.get(item.gfid)
            if name == ".":
                continue
            if len(item.gfid) != 32 or there is None:
                found.append(f"{name}: no gfid, or it is not in .glusterfs ({item.gfid})")
            elif not item.is_directory and there.st_ino != item.inode:
                found.append(f"{name}: {item.gfid} leads elsewhere")
        found += [f"{name} was put aside and is still there" for name in self.items if name.startswith(ASIDE)
                  and "/" in name]  # fmt: skip
        gfids = {item.gfid for item in self.items.values()}
        for gfid, st in self.store.items():
            if stat.S_ISLNK(st.st_mode) and st.st_ino not in inodes:
                if gfid not in gfids:
                    found.append(f".glusterfs: directory {gfid} has no name")
            elif st.st_ino not in inodes:
                found.append(f".glusterfs: {gfid} has no name ({st.st_nlink} links, {st.st_size} bytes)")
        return found


def brick_problems(sets: Sequence[Sequence[Path]], *, has_arbiter: bool) -> list[str]:
    """``sets``: the directories of each set of copies."""
    bricks = [[Brick(path) for path in one] for one in sets]
    found = []
    for number, copies in enumerate(bricks):
        for brick in copies:
            found += [f"{brick.root.name}: {one}" for one in brick.store_problems()]
        for at, copy in enumerate(copies[1:], 1):
            has_data = not (has_arbiter and at == len(copies) - 1)
            found += [f"set {number}: {one}" for one in _differences(copies[0], copy, has_data=has_data)]
    found += _distribution_problems([copies[0] for copies in bricks])
    return found[:PROBLEMS_MAX] + ([f"... and {len(found) - PROBLEMS_MAX} more"] if len(found) > PROBLEMS_MAX else [])


def dangling(sets: Sequence[Sequence[Path]]) -> list[str]:
    """Names that have link files only."""
    bricks = [Brick(copies[0]) for copies in sets]
    names = {name for brick in bricks for name in brick.items}
    return sorted(name for name in names
                  if all(brick.items[name].is_link_file for brick in bricks if name in brick.items))  # fmt: skip


def _differences(one: Brick, other: Brick, *, has_data: bool) -> Iterator[str]:
    for name in sorted(name for name in {*one.items, *other.items} if not name.startswith(ASIDE)):
        a, b = one.items.get(name), other.items.get(name)
        if a is None or b is None:
            yield f"{name} is on {(one if b is None else other).root.name} only"
        elif differing := a.differences(b, has_data=has_data):
            yield (f"{name} differs on {one.root.name} and {other.root.name}: "
                   + "; ".join(f"{what} {_told(a, what)} {_told(b, what)}" for what in differing))  # fmt: skip


def _told(item: Item, what: str) -> str:
    value = {"content": item.content, "links": item.links}.get(what) or getattr(item, what, None)
    return repr(value)[:300]


def _distribution_problems(bricks: Sequence[Brick]) -> list[str]:
    found = []
    for name in sorted({name for brick in bricks for name in brick.items}):
        if name.startswith(ASIDE):  # each set's own
            continue
        here = [(at, brick.items[name]) for at, brick in enumerate(bricks) if name in brick.items]
        if any(item.is_directory for _, item in here):
            found += [f"{name}: {one}" for one in _directory_problems([item for _, item in here], len(bricks))]
            continue
        data = [(at, item) for at, item in here if not item.is_link_file]
        if len(data) > 1:
            found.append(f"{name}: data on sets {[at for at, _ in data]}, links on {_linking(here)}")
        elif data and any(item.gfid != data[0][1].gfid for _, item in here):
            found.append(f"{name}: link files of another file: {[(at, item.gfid) for at, item in here]}")
        elif data and MIGRATION in data[0][1].attributes:
            found.append(f"{name}: a file that is being moved, mode {oct(data[0][1].mode)}, on set {data[0][0]}, "
                         f"links on {_linking(here)}")  # fmt: skip
    return found


def _linking(here: Sequence[tuple[int, Item]]) -> list[tuple[int, bytes]]:
    return [(at, item.attributes[LINKTO]) for at, item in here if item.is_link_file]


def _directory_problems(items: Sequence[Item], sets: int) -> Iterator[str]:
    if len(items) != sets:
        yield f"directory on {len(items)} of {sets} sets"
        return
    for what in ("gfid", "mode", "owner"):
        if len({getattr(item, what) for item in items}) > 1:
            yield f"{what} differs between sets: {[getattr(item, what) for item in items]}"
    users = [{key: value for key, value in item.attributes.items() if key.startswith("user.")} for item in items]
    if any(one != users[0] for one in users):
        yield f"attributes differ between sets: {users}"
    layouts = [item.attributes.get(LAYOUT, b"") for item in items]
    ranges = sorted(r for r in map(_range, layouts) if r is not None)
    covered = 0
    for first, last in ranges:
        if first != covered:
            yield f"ranges {ranges}"
            return
        covered = last + 1
    if covered != 1 << 32:
        yield f"ranges {ranges}"


def _range(layout: bytes) -> tuple[int, int] | None:
    """First and last hash; None: none."""
    if len(layout) != 16:
        return None
    _, _, first, last = struct.unpack(">IIII", layout)
    return None if first == last == 0 else (first, last)

