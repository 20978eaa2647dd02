# SPDX-License-Identifier: Apache-2.0
"""Resync with real files and daemons: sparse files stay sparse, resources wait for each other, replctl's verbs."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any

import pytest

from repl import config
from repl.cli.client import Client
from repl.daemon.disks import open_disk
from repl.errors import ReplError
from repl.node.disk import create_metadata
from tests.integration.conftest import MakeCluster
from tests.lib.cluster import ALICE, BOB, MIB, NODES, Cluster
from tests.lib.ports import free_port
from tests.lib.process import Process
from tests.lib.tools import ROOT

GIB = 1 << 30
OTHER = "r1"


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def data_ranges(path: Path) -> list[tuple[int, int]]:
    """What of a file is not a hole."""
    found: list[tuple[int, int]] = []
    with path.open("rb") as file:
        at, size = 0, path.stat().st_size
        while at < size:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            found.append((begin, at))
    return found


def assert_same(cluster: Cluster, size: int) -> None:
    """Both disks hold the same bytes; holes of both are not read."""
    paths = [cluster.nodes[name].image for name in NODES]
    with paths[0].open("rb") as a, paths[1].open("rb") as b:
        for begin, end in sorted({*data_ranges(paths[0]), *data_ranges(paths[1])}):
            for at in range(begin, min(end, size), MIB):
                count = min(MIB, end - at, size - at)
                left, right = os.pread(a.fileno(), count, at), os.pread(b.fileno(), count, at)
                assert left == right, f"the disks differ at about byte {at}"


def test_full_sync_of_a_sparse_file_with_1_percent_of_data_moves_1_percent(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=10 * 1024, disk={"resync-priority": "fast"})
    image = cluster.nodes[ALICE].image
    data = 0
    with image.open("r+b") as file:
        for n in range(100):  # clusters of 1 MiB and single blocks
            os.pwrite(file.fileno(), os.urandom(MIB), n * 100 * MIB + 4096 * (n % 7))
            os.pwrite(file.fileno(), os.urandom(4096), n * 100 * MIB + 50 * MIB + 4096 * n)
            data += MIB + 4096
    before = allocated(image)
    cluster.create_metadata()
    cluster.start()
    cluster.wait_connected()
    cluster.call(ALICE, "primary", force=True)
    cluster.wait_synced()
    size = cluster.size_bytes()
    target, source = cluster.volume(BOB)["counters"], cluster.volume(ALICE)["counters"]
    assert target["resync_total_bits"] == -(-size // 4096)
    assert data <= target["resync_payload_bytes"] <= data + MIB
    assert source["resync_disk_bytes"] < 4 * data  # with what stands beside it in the same requests
    slack = 4 * MIB  # metadata: the bitmap was written
    assert allocated(cluster.nodes[BOB].image) <= before + slack
    assert allocated(image) <= before + slack
    assert_same(cluster, size)


def test_file_that_was_fully_allocated_stays_so(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=64)
    for name in NODES:
        with cluster.nodes[name].image.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, 64 * MIB)
    cluster.create_metadata()
    cluster.start()
    cluster.wait_connected()
    cluster.call(ALICE, "primary", force=True)
    cluster.wait_synced()
    assert allocated(cluster.nodes[BOB].image) >= 64 * MIB
    cluster.compare_disks()


def test_replctl_pauses_resumes_sets_the_pace_and_shows_the_limit(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=64, disk={"c-plan-ahead": "0", "resync-rate": "2M"})
    with cluster.nodes[ALICE].image.open("r+b") as file:
        file.write(os.urandom(60 * MIB))
    cluster.create_metadata()
    cluster.start()
    cluster.wait_connected()
    cluster.call(ALICE, "primary", force=True)
    cluster.wait("a resync", lambda: cluster.volume(BOB)["resync"])
    for name in NODES:
        cluster.wait("the limit", lambda name=name: cluster.volume(name)["resync"]["limited_by"] == "resync-rate")
    assert "limited-by:resync-rate" in cluster.ctl(ALICE, "status", "r0").stdout
    cluster.ctl(BOB, "pause-sync", "r0")
    cluster.wait("alice paused", lambda: cluster.volume(ALICE)["replication"] == "PausedSyncS")
    assert "resync-suspended:peer" in cluster.ctl(ALICE, "status", "r0").stdout
    assert cluster.ctl(BOB, "pause-sync", "r0", status=None).returncode != 0
    cluster.ctl(BOB, "resume-sync", "r0")
    cluster.ctl(ALICE, "disk-options", "r0", "--resync-rate", "900M")
    cluster.wait_synced()
    cluster.compare_disks()
    cluster.ctl(ALICE, "invalidate-remote", "r0")
    cluster.wait_synced()
    assert cluster.resynced_bytes(BOB) > 60 * MIB


# ---- two resources on one host ----


class Second:
    """Another resource of the same two hosts that is to resync after r0."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.processes: list[Process] = []
        ports = {name: free_port() for name in NODES}
        hosts = "".join(
            f"on {name} {{ address 127.0.0.1:{ports[name]}; device minor {7 + n}; meta-disk internal;"
            f" disk {cluster.folder / name}.r1; }}\n"
            for n, name in enumerate(NODES)
        )
        for name in NODES:
            with open(cluster.folder / f"{name}.r1", "wb") as file:
                file.write(os.urandom(8 * MIB))
            with cluster.nodes[name].config.open("a") as file_:
                file_.write(
                    f"resource {OTHER} {{ net {{ connect-int 1; ping-timeout 5; }}"
                    f" disk {{ resync-after r0; c-plan-ahead 0; resync-rate 400M; }}\n{hosts}}}\n"
                )

    def start(self) -> None:
        for name in NODES:
            node = self.cluster.nodes[name]
            view = config.resource_for_node(config.load(node.config), OTHER, name, addresses=())
            disk = open_disk(view.volumes[0])
            create_metadata(disk.place, device_uuid=secrets.randbits(63) | 1)
            disk.close()
            argv = [sys.executable, "-P", "-m", "repl.daemon.main", *self.cluster.options(name, OTHER), "--up"]
            log = self.cluster.folder / f"{name}-r1.log"
            self.processes.append(Process(argv, log, env={"PYTHONPATH": str(ROOT)}))

    def call(self, name: str, verb: str, **args: Any) -> dict[str, Any]:
        with Client(self.cluster.nodes[name].run_dir.folder / f"{OTHER}.sock", OTHER) as client:
            return client.call(verb, answer_timeout_s=30, **args)

    def volume(self, name: str) -> dict[str, Any]:
        volume: dict[str, Any] = self.call(name, "status")["volumes"][0]
        return volume

    def close(self) -> None:
        for process in self.processes:
            process.stop(15)


def test_resource_waits_for_the_one_it_is_to_resync_after(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=64, disk={"c-plan-ahead": "0", "resync-rate": "3M"})
    with cluster.nodes[ALICE].image.open("r+b") as file:
        file.write(os.urandom(60 * MIB))
    second = Second(cluster)
    try:
        cluster.create_metadata()
        cluster.start()
        cluster.wait_connected()
        cluster.call(ALICE, "primary", force=True)
        cluster.wait("r0's resync", lambda: cluster.volume(BOB)["resync"])
        second.start()
        cluster.wait("r1", lambda: second.call(ALICE, "status")["connection"] == "Connected")
        cluster.wait("r1 waits", lambda: second.volume(ALICE)["resync_suspended"])
        second.call(ALICE, "primary", force=True)
        cluster.wait("r1 paused", lambda: second.volume(BOB)["replication"] == "PausedSyncT")
        assert "dependency" in second.volume(ALICE)["resync_suspended"]
        assert second.volume(BOB)["resync"]["done_bytes"] == 0
        with pytest.raises(ReplError, match="waits for r0/0"):
            second.call(ALICE, "resume-sync")
        assert cluster.volume(BOB)["resync"]
        cluster.call(BOB, "disk-options", resync_rate_kib=1 << 20)
        cluster.wait_synced()
        cluster.wait("r1 in sync", lambda: second.volume(BOB)["disk"] == "UpToDate")
    finally:
        second.close()


def test_circle_of_resync_after_is_refused_by_up(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=8, disk={"resync-after": "r1"})
    Second(cluster)
    done = cluster.ctl(ALICE, "up", "r0", status=None)
    assert done.returncode != 0 and "makes a circle" in done.stderr
