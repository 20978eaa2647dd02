# SPDX-License-Identifier: Apache-2.0
"""A crash at every point of a resize whose metadata moves: the next attach finds metadata that forgets nothing.

A Primary alone has written blocks that its peer lacks; its disk has grown.  Of every point of the record every legal
subset of the unflushed writes (sampled above twelve) becomes an image, is attached and judged; drbdmeta reads a sample.
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from repl.errors import ReplError
from repl.node import disk as node_disk
from repl.node.disk import DiskPlace
from repl.node.moved import LastDisk
from tests.lib.tools import find_tool, require, require_root, require_sim
from tests.sim.cluster import Cluster, Setup
from tests.sim.test_metadata_sweep import Image, replay_images, subsets
from tests.sim.world import BLOCK, MIB

MINOR = "974"
IMAGES_MAX = 60
BEFORE = MIB
BLOCKS = (0, 3, 40, 41, 100, 239)


def run_resize(after: int) -> Any:
    """The cluster after the resize, with the record of node 0's disk."""
    cluster = Cluster(17, Setup(disk_bytes=max(after, BEFORE), has_metadata=False, write_max_us=300))
    for shell in cluster.shells:
        shell.data.size_bytes = BEFORE
        node_disk.create_metadata(shell.place, device_uuid=5)
    cluster.device_bytes = node_disk.usable_sectors(
        cluster.shells[0].place, node_disk.find_superblock(cluster.shells[0].place)[1]
    ) * 512
    cluster.history = int(cluster.world.lib.re_sim_history_create(cluster.world.sim, after))
    cluster.connect_fresh()
    app = cluster.serve(0)
    cluster.shells[1].crash()
    cluster.until(lambda: not cluster.node(0).is_connected, 20_000, "the loss of the peer")
    app.write(*BLOCKS)
    cluster.shells[0].data.size_bytes = after
    cluster.until(lambda: cluster.shells[0].data.in_flight == 0, 5000, "an idle disk")
    cluster.shells[0].data.record(True)
    cluster.ask(0, "resize", assume_peer_has_space=True)
    app.write(1)
    cluster.shells[0].data.record(False)
    return cluster


def images(cluster: Any, after: int) -> Any:
    world, lib, disk, rng = cluster.world, cluster.world.lib, cluster.shells[0].data, random.Random(3)
    out = world.ffi.new("uint8_t[]", int(lib.re_sim_disk_size(world.sim, disk.number)))
    indices = world.ffi.new("uint32_t[]", 63)
    seen: set[bytes] = set()
    for point in range(int(lib.re_sim_log_points(world.sim, disk.number)) + 1):
        count = lib.re_sim_log_candidates(world.sim, disk.number, point, indices, 63)
        for mask in subsets(count, rng):
            if not lib.re_sim_log_image(world.sim, disk.number, point, mask, -1, 0, False, out):
                continue
            image = bytes(world.ffi.buffer(out, after))
            if image not in seen:
                seen.add(image)
                yield point, image


def judge(image: bytes, after: int, kind: Any, sizes: tuple[int, ...], what: str) -> Image:
    """Attach it; nothing may be forgotten."""
    disk = Image(bytearray(image), after, what)
    place = DiskPlace(disk, disk, kind)
    try:
        node_disk.prepare(place, data_fd=3, md_fd=4, last=LastDisk(BEFORE, 5))
    except ReplError as error:
        raise AssertionError(f"{what}: {error}") from error
    found, where = node_disk.find_superblock(place)
    assert where.device_bytes == after and found.clean and found.la_size_sectors in sizes, what
    bits = int.from_bytes(disk.pread(where.bitmap_byte, where.bitmap_bytes), "little")
    for block in BLOCKS:
        assert found.all_dirty or bits >> block & 1, f"{what}: block {block} is forgotten"
    return disk


AFTER = (2 * MIB, BEFORE + 16384, BEFORE + BLOCK, BEFORE + 80 * 512)


@pytest.mark.parametrize("after", AFTER)
def test_metadata_that_moves_is_found_after_a_crash_at_any_point(after: int, tmp_path: Path) -> None:
    require_sim()
    cluster, count = run_resize(after), 0
    try:
        kind = cluster.shells[0].place.kind
        sizes = (cluster.device_bytes // 512, cluster.volume(0).size_sectors)
        for point, image in images(cluster, after):
            disk = judge(image, after, kind, sizes, f"point {point}")
            count += 1
            if count % 5 == 1:
                judged_by_drbdmeta(tmp_path / "image", disk.tail)
        assert count > 8
        assert not node_disk.find_superblock(cluster.shells[0].place)[0].all_dirty
    finally:
        cluster.close()


@pytest.mark.parametrize("after", AFTER)
def test_move_at_attach_may_be_interrupted_anywhere(after: int, tmp_path: Path) -> None:
    require_sim()
    cluster, count = run_resize(after), 0
    try:
        kind, sizes = cluster.shells[0].place.kind, (cluster.device_bytes // 512,)
        _, image = next(images(cluster, after))  # the disk has grown, nothing is done yet
        disk = judge(image, after, kind, sizes, "before")
        for interrupted in dict.fromkeys(replay_images(0, image, disk.log)):
            judged_by_drbdmeta(tmp_path / "image", judge(interrupted, after, kind, sizes, f"image {count}").tail)
            count += 1
            if count == IMAGES_MAX:
                break
        assert count > 8
    finally:
        cluster.close()


def judged_by_drbdmeta(path: Path, image: bytes) -> None:
    require("drbdmeta")
    require_root()
    path.write_bytes(image)
    done = subprocess.run(
        [find_tool("drbdmeta") or "", "--force", MINOR, "v08", str(path), "internal", "dump-md"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert "la-size-sect" in done.stdout
