# SPDX-License-Identifier: Apache-2.0
"""drbd-utils' drbdmeta judges what we leave on disk, and we attach what it made.

The flags that it prints for v08 metadata are not compared (9.22 prints 0).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd.client import NbdClient
from tests.integration.conftest import MakeCluster
from tests.lib.cluster import ALICE, BOB, MIB, NODES, Cluster
from tests.lib.load import Load, TaggedRegion, writing
from tests.lib.tools import find_tool, lacking, require, require_root

MINOR = "974"
EXTENT_BYTES = 4 * MIB
BLOCK_BYTES = 4096

pytestmark = pytest.mark.usefixtures("drbdmeta_here")


@pytest.fixture
def drbdmeta_here() -> None:
    require("drbdmeta")
    require_root()  # it wants its lock in /var/run and the device's minor


def drbdmeta(file: Path, kind: str, *command: str) -> str:
    """Its standard output; every other status than 0 is a failure."""
    done = subprocess.run(
        [find_tool("drbdmeta") or "", "--force", MINOR, "v08", str(file), kind, *command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def place(cluster: Cluster, name: str) -> tuple[Path, str]:
    node = cluster.nodes[name]
    return (node.metadata, "flex-external") if node.metadata else (node.image, "internal")


def judge(cluster: Cluster, name: str, *command: str) -> str:
    return drbdmeta(*place(cluster, name), *command)


def dirty_bits(dump: str) -> int:
    found = re.search(r"# bits-set (\d+);", dump)
    assert found, dump
    return int(found[1])


def uuids(gi: str) -> list[str]:
    return gi.strip().split(":")[:4]


@pytest.fixture(params=["internal", "flexible"])
def pair(request: pytest.FixtureRequest, make_cluster: MakeCluster) -> Cluster:
    cluster = make_cluster(size_mib=128, is_flexible=request.param == "flexible")
    cluster.start_pair()
    cluster.call(ALICE, "primary")
    return cluster


def test_metadata_after_a_clean_stop_is_clean_and_equal_on_both_nodes(pair: Cluster) -> None:
    region = TaggedRegion(run=1, writer=1, offset_sectors=0, blocks=4096)
    with writing(region, pair.url(ALICE)) as load:
        load.wait_writes(300)
    pair.wait_synced()
    assert pair.stop(ALICE) == 0
    assert pair.stop(BOB) == 0
    identifiers = []
    for name in NODES:
        dump = judge(pair, name, "dump-md")
        assert dirty_bits(dump) == 0
        gi = judge(pair, name, "get-gi")
        fields = gi.strip().split(":")
        assert fields[4:6] == ["1", "1"], "consistent and was up to date"
        identifiers.append(uuids(gi))
        ours = pair.ctl(name, "get-gi", "r0").stdout
        assert ours == gi
        assert judge(pair, name, "dstate").strip().split("/")[0] == "Consistent"
    assert int(identifiers[0][0], 16) | 1 == int(identifiers[1][0], 16) | 1
    assert identifiers[0][1] == identifiers[1][1] == "0000000000000000"


def test_activity_log_of_a_killed_primary_is_applied_and_covers_every_write(pair: Cluster) -> None:
    region = TaggedRegion(run=2, writer=1, offset_sectors=0, blocks=80 * MIB // BLOCK_BYTES)
    load = Load(region, pair.url(ALICE)).start()
    load.wait_writes(200)
    pair.kill(ALICE)
    load.join()
    touched = {block * BLOCK_BYTES // EXTENT_BYTES for block in (*region.acknowledged, *region.unanswered)}
    file, kind = place(pair, ALICE)
    copy = pair.folder / "copy"
    copy.write_bytes(file.read_bytes())
    drbdmeta(copy, kind, "apply-al")
    dump = drbdmeta(copy, kind, "dump-md")
    assert dirty_bits(dump) >= len(touched) * EXTENT_BYTES // BLOCK_BYTES * 0.9
    gi = drbdmeta(copy, kind, "get-gi").strip().split(":")
    assert gi[4:6] == ["1", "1"]
    # What the tool has applied and what we apply ourselves attach to the same state.
    pair.wait("bob alone", lambda: pair.status(BOB)["connection"] != "Connected")
    pair.call(BOB, "primary")
    pair.start(ALICE)
    pair.wait_synced()
    assert pair.resynced_bytes(BOB) >= dirty_bits(dump) * BLOCK_BYTES
    pair.compare_disks()


def test_disk_whose_log_drbdmeta_has_applied_is_attached_and_resynced(pair: Cluster) -> None:
    region = TaggedRegion(run=3, writer=1, offset_sectors=0, blocks=40 * MIB // BLOCK_BYTES)
    load = Load(region, pair.url(ALICE)).start()
    load.wait_writes(150)
    pair.kill(ALICE)
    load.join()
    pair.wait("bob alone", lambda: pair.status(BOB)["connection"] != "Connected")
    pair.call(BOB, "primary")
    with NbdClient(pair.url(BOB)) as client:
        assert not region.problems(client.read)
        client.write(100 * MIB, b"b" * MIB)
    judge(pair, ALICE, "apply-al")
    bits = dirty_bits(judge(pair, ALICE, "dump-md"))
    pair.start(ALICE)
    pair.wait_synced()
    assert bits * BLOCK_BYTES <= pair.resynced_bytes(BOB) <= (bits + MIB // BLOCK_BYTES) * BLOCK_BYTES
    pair.compare_disks()


def test_dirty_blocks_of_a_node_that_was_alone_are_counted_by_drbdmeta(pair: Cluster) -> None:
    assert pair.stop(BOB) == 0
    with NbdClient(pair.url(ALICE)) as client:
        for number in range(50):
            client.write(number * MIB, b"%d" % (number % 10) * BLOCK_BYTES)
    assert pair.volume(ALICE)["out_of_sync_bytes"] == 50 * BLOCK_BYTES
    assert pair.stop(ALICE) == 0
    assert dirty_bits(judge(pair, ALICE, "dump-md")) == 50
    mine, theirs = uuids(judge(pair, ALICE, "get-gi")), uuids(judge(pair, BOB, "get-gi"))
    assert int(mine[1], 16) | 1 == int(theirs[0], 16) | 1, "alice's bitmap UUID is bob's generation"


def test_secondary_killed_by_sigkill_leaves_metadata_that_drbdmeta_reads(pair: Cluster) -> None:
    region = TaggedRegion(run=4, writer=1, offset_sectors=0, blocks=4096)
    with writing(region, pair.url(ALICE)) as load:
        load.wait_writes(100)
        pair.kill(BOB)
        load.wait_writes(100)
    file, kind = place(pair, BOB)
    copy = pair.folder / "copy"
    copy.write_bytes(file.read_bytes())
    drbdmeta(copy, kind, "apply-al")
    assert drbdmeta(copy, kind, "get-gi").strip().split(":")[4:6] == ["1", "1"]


@pytest.mark.parametrize("kind", ["internal", "flexible"])
@pytest.mark.parametrize("stripes", [(1, 32), (3, 64)])
def test_metadata_made_by_drbdmeta_is_attached_and_synced(
    make_cluster: MakeCluster, kind: str, stripes: tuple[int, int]
) -> None:
    cluster = make_cluster(size_mib=32, is_flexible=kind == "flexible")
    for name in NODES:
        striping = ["--al-stripes", str(stripes[0]), "--al-stripe-size-kB", str(stripes[1])]
        judge(cluster, name, "create-md", *striping)
    cluster.start()
    cluster.wait_connected()
    cluster.call(ALICE, "primary", force=True)
    region = TaggedRegion(run=5, writer=1, offset_sectors=0, blocks=2048)
    with writing(region, cluster.url(ALICE)) as load:
        load.wait_writes(100)
    cluster.wait_synced()
    size = cluster.size_bytes()
    for name in NODES:
        assert cluster.stop(name) == 0
        assert dirty_bits(judge(cluster, name, "dump-md")) == 0
    cluster.compare_disks(size)


def test_generation_set_by_drbdmeta_counts_at_the_next_start(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=32)
    generation = "6442B1E53EA1E1E2"
    for name in NODES:
        judge(cluster, name, "create-md")
        judge(cluster, name, "set-gi", f"{generation}:0:0:0:1:1")
        assert uuids(cluster.ctl(name, "get-gi", "r0").stdout)[0] == generation
    cluster.start()
    cluster.wait_synced()
    assert "by rule 40" in cluster.log(ALICE)
    cluster.compare_disks()


# --- block devices ---


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Two loop devices."""
    require("losetup")
    require_root()
    devices: dict[str, Path] = {}
    try:
        for name in NODES:
            file = tmp_path / f"{name}.loop"
            with file.open("wb") as handle:
                handle.truncate(64 * MIB)
            done = subprocess.run(
                [find_tool("losetup") or "", "--find", "--show", str(file)], capture_output=True, text=True
            )
            if done.returncode:
                lacking(f"loop devices ({done.stderr.strip()})")
            devices[name] = Path(done.stdout.strip())
        yield devices
    finally:
        for device in devices.values():
            subprocess.run([find_tool("losetup") or "", "--detach", str(device)], check=True)


def test_block_devices_are_replicated_directly_and_read_by_drbdmeta(
    make_cluster: MakeCluster, loops: dict[str, Path]
) -> None:
    cluster = make_cluster(images=loops)
    cluster.start_pair()
    cluster.call(ALICE, "primary")
    region = TaggedRegion(run=6, writer=1, offset_sectors=0, blocks=4096)
    with writing(region, cluster.url(ALICE), flush_every=20) as load:
        load.wait_writes(200)
        busy = subprocess.run(["mkfs.ext4", "-q", "-F", str(loops[BOB])], capture_output=True, text=True)
        assert busy.returncode != 0, "nobody else may take the device"
        cluster.kill(BOB)
        load.wait_writes(100)
        cluster.start(BOB)
        cluster.wait_synced()
    size = cluster.size_bytes()
    with NbdClient(cluster.url(ALICE)) as client:
        assert not region.problems(client.read)
    for name in NODES:
        assert cluster.stop(name) == 0
        assert dirty_bits(judge(cluster, name, "dump-md")) == 0
    cluster.compare_disks(size)
