# SPDX-License-Identifier: Apache-2.0
"""Power is lost at every point of: attach, three writes to cold extents with eviction, detach.

One node without its peer on a recorded disk.  For every point of the disk's log, and for every subset of the writes
that were not surely stable then (all of them up to SUBSET_BITS, a bounded sample above; each also torn at 512 bytes):
the metadata attaches and replays, it covers every block in which the image differs from the peer's (P4), and our
reader can dump it (P12).  A few of the images are also given to drbdmeta.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from repl.drbd import dump, layout
from repl.node import disk as node_disk
from repl.node.disk import DiskPlace
from tests.lib.tools import find_tool, require, require_root, require_sim
from tests.sim.cluster import Cluster, Setup, covered
from tests.sim.world import BLOCK, MIB

EXTENT = 4 * MIB
SUBSET_BITS = 12
SAMPLES = 60
TORN = (0x01, 0x0F, 0xFE, 0x55)  # sectors that made it, of each 4 KiB
SLOTS = 2  # hot extents: the third write evicts one
WRITES = 3


class ImageFile:
    """A ``BlockFile`` in memory."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.size_bytes = len(data)
        self.name = "image"

    def pread(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def pwrite(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        pass


def record(cluster: Cluster) -> bytes:
    """The course of events on node 0; returns the peer's data (what both had before)."""
    world, shell = cluster.world, cluster.shells[0]
    cluster.connect_fresh()
    cluster.check_idle_pair()
    for node in (0, 1):
        cluster.ask(node, "down")
    cluster.until(lambda: not any(s.is_running for s in cluster.shells), 5000, "the end of both")
    peer = shell.data.content(0, cluster.device_bytes)
    shell.data.record(True)
    cluster.start(0)
    cluster.ask(0, "primary")
    app = cluster.serve(0)
    for extent in range(WRITES):
        app.write((extent * EXTENT + (3 + extent) * BLOCK) // BLOCK)
    app.stop()
    cluster.until(lambda: cluster.volume(0).open_count == 0, 5000, "the client's end")
    cluster.ask(0, "down")
    cluster.until(lambda: not shell.is_running, 5000, "the end")
    assert world.lib.re_sim_log_points(world.sim, shell.data.number) > 20
    return peer


def masks(candidates: int, rng: random.Random) -> Iterator[int]:
    """All subsets of few writes; of many: none, all, each alone, all but each, prefixes, some at random."""
    if candidates <= SUBSET_BITS:
        yield from range(1 << candidates)
        return
    every = (1 << candidates) - 1
    found = {0, every}
    found.update(1 << n for n in range(candidates))
    found.update(every ^ 1 << n for n in range(candidates))
    found.update((1 << n) - 1 for n in range(candidates))
    found.update(rng.randrange(every + 1) for _ in range(SAMPLES))
    yield from sorted(found)


class Sweep:
    """Makes the images and checks each."""

    def __init__(self, cluster: Cluster, peer: bytes) -> None:
        self.c, self.peer = cluster, peer
        self.disk = cluster.shells[0].data
        self.out = cluster.world.ffi.new("uint8_t[]", self.disk.size_bytes)
        self.images = self.dirty = 0
        self.seen: set[int] = set()
        self.kept: list[bytes] = []

    def run(self) -> None:
        world, rng = self.c.world, random.Random(1)
        indices = world.ffi.new("uint32_t[]", 63)
        for point in range(int(world.lib.re_sim_log_points(world.sim, self.disk.number)) + 1):
            count = world.lib.re_sim_log_candidates(world.sim, self.disk.number, point, indices, 63)
            assert count <= 63, "too many unflushed writes for a mask"
            for mask in masks(count, rng):
                self.check(point, mask, -1, 0)
            for torn in range(count):  # each of them torn, alone and with all the others
                for mask in {1 << torn, (1 << count) - 1}:
                    for sectors in TORN:
                        self.check(point, mask, torn, sectors * 0x0101010101010101)

    def check(self, point: int, mask: int, torn: int, sectors: int) -> None:
        world, number = self.c.world, self.disk.number
        if not world.lib.re_sim_log_image(world.sim, number, point, mask, torn, sectors, False, self.out):
            return  # no disk can look so
        data = bytearray(world.ffi.buffer(self.out))
        key = hash(bytes(data))
        if key in self.seen:
            return
        self.seen.add(key)
        self.images += 1
        image = ImageFile(data)
        place = DiskPlace(image, image, self.c.shells[0].place.kind)
        where = f"point {point}, mask {mask:b}, torn {torn} {sectors:x}"
        differing = _differing(data, self.peer)
        before = covered(place, image=image.pread)
        self.dirty += differing != 0
        if (differing and len(self.kept) < 6) or self.images % 40 == 1:
            self.kept.append(bytes(data))
        node_disk.prepare(place, data_fd=0, md_fd=0)  # raises where it cannot be attached
        found, there = node_disk.find_superblock(place)
        assert found.clean, where
        after = covered(place, image=image.pread)
        assert differing & ~before == 0, f"P4 before the replay at {where}: blocks {differing & ~before:b}"
        assert differing & ~after == 0, f"P4 after the replay at {where}"
        bitmap = image.pread(there.bitmap_byte, layout.bitmap_disk_bytes(found.la_size_sectors))
        assert "la-size-sect" in dump.dump_md(found, there, bitmap), where


def _differing(data: bytearray, peer: bytes) -> int:
    bits = 0
    view, other = memoryview(data), memoryview(peer)
    for start in range(0, len(peer), EXTENT // 8):  # nearly everything is equal
        end = min(start + EXTENT // 8, len(peer))
        if view[start:end] == other[start:end]:
            continue
        for at in range(start, end, BLOCK):
            stop = min(at + BLOCK, end)
            if view[at:stop] != other[at:stop]:
                bits |= 1 << at // BLOCK
    return bits


@pytest.fixture(scope="module")
def sweep() -> Iterator[Sweep]:
    require_sim()
    with Cluster(7, Setup(disk_bytes=WRITES * EXTENT + 64 * 1024, al_extents=SLOTS)) as cluster:
        done = Sweep(cluster, record(cluster))
        done.run()
        yield done


def test_every_crash_point_of_three_writes_attaches_and_covers_what_differs(sweep: Sweep) -> None:
    assert sweep.images > 50 and sweep.dirty > 20


def test_drbdmeta_reads_and_replays_images_of_crash_points(sweep: Sweep, tmp_path: Path) -> None:
    require("drbdmeta")
    require_root()
    assert sweep.kept
    for number, data in enumerate(sweep.kept[:5]):
        path = tmp_path / f"image{number}"
        path.write_bytes(data)
        for verb in (["apply-al"], ["dump-md"]):
            argv = [str(find_tool("drbdmeta")), "--force", "0", "v08", str(path), "internal", *verb]
            done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
            assert done.returncode == 0, f"image {number}: {' '.join(argv)}: {done.stdout} {done.stderr}"
        assert 'version "v08";' in done.stdout
