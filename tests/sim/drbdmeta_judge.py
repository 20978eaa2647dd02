# SPDX-License-Identifier: Apache-2.0
"""The real drbdmeta reads, replays and dumps metadata that a crash has left; its verdict beside ours.

drbdmeta works on files by name, one a call, so a few run at the same time, each with a minor number of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from repl.drbd import superblock
from repl.drbd.layout import Layout, MetadataKind
from repl.drbd.superblock import MdFlag
from repl.errors import ReplError
from repl.node import disk as node_disk
from repl.node.disk import BlockFile, DiskPlace
from tests.lib.tools import find_tool

BLOCK = 4096
MINORS = range(960, 960 + max(2, os.cpu_count() or 2))
_UUIDS = re.compile(r"uuid \{\s*0x([0-9A-F]+); 0x([0-9A-F]+); 0x([0-9A-F]+); 0x([0-9A-F]+);")
KEPT = MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE | MdFlag.PRIMARY_IND | MdFlag.FULL_SYNC


class File:
    """A ``BlockFile`` of a file's range that may be read and written."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.name, self.size_bytes = path.name, size_bytes
        self._fd = os.open(path, os.O_RDWR)
        self.writes = 0

    def pread(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset).ljust(length, b"\0")

    def pwrite(self, offset: int, data: bytes) -> None:
        self.writes += 1
        os.pwrite(self._fd, data, offset)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Case:
    """Metadata as it was left, where it begins on its disk, and the blocks that have to be marked in the end."""

    name: str
    tail: bytes
    begin: int
    size_bytes: int
    kind: MetadataKind
    layout: Layout
    required: int
    data: BlockFile | None = None  # external metadata: of this size


def drbdmeta(minor: int, file: Path, kind: MetadataKind, *command: str) -> str:
    argv = [find_tool("drbdmeta") or "", "--force", str(minor), "v08", str(file), kind.value, *command]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
    if done.returncode:
        raise AssertionError(f"drbdmeta {' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def _bits(file: File, layout: Layout) -> int:
    return int.from_bytes(file.pread(layout.bitmap_byte, layout.bitmap_bytes), "little")


def _attach(case: Case, file: File) -> superblock.Superblock:
    place = DiskPlace(case.data or file, file, case.kind)
    return node_disk.prepare(place, data_fd=0, md_fd=1).superblock


def _problems(case: Case, minor: int, folder: Path) -> Iterator[str]:
    theirs, ours = folder / f"theirs{minor}", folder / f"ours{minor}"
    for path in (theirs, ours):
        with path.open("wb") as out:
            out.truncate(case.size_bytes)
            out.seek(case.begin)
            out.write(case.tail)
    before = superblock.parse(case.tail[case.layout.superblock_byte - case.begin :][:BLOCK])
    drbdmeta(minor, theirs, case.kind, "dump-md")  # it reads what a crash has left
    drbdmeta(minor, theirs, case.kind, "apply-al")
    dump = drbdmeta(minor, theirs, case.kind, "dump-md")
    found = _UUIDS.search(dump)
    uuids = before.uuids
    if found is None or [int(found[n], 16) for n in range(1, 5)] != [
        uuids.current, uuids.bitmap, uuids.history1, uuids.history2,
    ]:  # fmt: skip
        yield f"drbdmeta sees other UUIDs than {uuids}"
    if f"la-size-sect {before.la_size_sectors};" not in dump:
        yield "drbdmeta sees another size"
    their_file, our_file = File(theirs, case.size_bytes), File(ours, case.size_bytes)
    try:
        _attach(case, our_file)
        after = superblock.parse(their_file.pread(case.layout.superblock_byte, BLOCK))
        if after.flags & KEPT != before.flags & KEPT:
            yield f"drbdmeta makes flags {after.flags!r} of {before.flags!r}"
        verdict, own = _bits(their_file, case.layout), _bits(our_file, case.layout)
        if not before.all_dirty and case.required & ~verdict:
            yield "drbdmeta's bits do not cover what the peer may lack"
        # A log that its own replay has begun to reset may give us more (decision 0010), never less.
        if verdict & ~own or (own != verdict and "replay" not in case.name):
            yield f"{(verdict & ~own).bit_count()} bits are drbdmeta's alone, {(own & ~verdict).bit_count()} ours"
        written = their_file.writes
        left = _attach(case, their_file)  # the other way round: what drbdmeta leaves, we attach
        if left.uuids != uuids or _bits(their_file, case.layout) != verdict:
            yield "attaching what drbdmeta has left changes it"
        if their_file.writes != written and before.clean:
            yield "attaching clean metadata writes to it"
    except ReplError as error:
        yield f"we refuse it: {error}"
    finally:
        their_file.close()
        our_file.close()


def judge(cases: Iterable[Case], folder: Path) -> list[str]:
    """What drbdmeta and we see differently, by case."""
    minors: SimpleQueue[int] = SimpleQueue()
    for minor in MINORS:
        minors.put(minor)

    def one(case: Case) -> list[str]:
        minor = minors.get()
        try:
            return [f"{case.name}: {text}" for text in _problems(case, minor, folder)]
        except AssertionError as error:
            return [f"{case.name}: {error}"]
        finally:
            minors.put(minor)

    with ThreadPoolExecutor(len(MINORS)) as pool:
        return [text for found in pool.map(one, list(cases)) for text in found]
