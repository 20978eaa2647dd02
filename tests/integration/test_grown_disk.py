# SPDX-License-Identifier: Apache-2.0
"""A disk that grew while its resource was down: attached if its last size is known, by order if not."""

from __future__ import annotations

import os
from pathlib import Path

from tests.integration.conftest import MakeCluster
from tests.lib.cluster import ALICE, MIB, Cluster


def started_and_stopped(make_cluster: MakeCluster) -> Cluster:
    cluster = make_cluster(size_mib=32, is_flexible=False)
    cluster.start_single()
    assert cluster.stop(ALICE) == 0
    return cluster


def record(cluster: Cluster) -> Path:
    return cluster.nodes[ALICE].run_dir.lasting / "r0-0.disk"


def test_disk_that_grew_is_attached_and_its_room_used_by_resize(make_cluster: MakeCluster) -> None:
    cluster = started_and_stopped(make_cluster)
    os.truncate(cluster.nodes[ALICE].image, 48 * MIB)
    assert "moves the metadata" in cluster.ctl(ALICE, "check-resize", "r0").stdout
    cluster.ctl(ALICE, "up", "r0")
    assert cluster.volume(ALICE)["disk"] == "UpToDate"
    cluster.ctl(ALICE, "primary", "r0")
    cluster.ctl(ALICE, "resize", "--assume-peer-has-space", "r0")
    assert cluster.size_bytes() > 47 * MIB
    assert f'"size_bytes": {48 * MIB}' in record(cluster).read_text()
    cluster.ctl(ALICE, "down", "r0")


def test_disk_that_grew_without_a_record_needs_the_operators_word(make_cluster: MakeCluster) -> None:
    cluster = started_and_stopped(make_cluster)
    record(cluster).unlink()
    os.truncate(cluster.nodes[ALICE].image, 48 * MIB)
    done = cluster.ctl(ALICE, "up", "r0", status=1)
    assert f"check-resize --from {32 * MIB}" in done.stderr
    assert f"of one of {32 * MIB} bytes" in cluster.ctl(ALICE, "check-resize", "r0").stdout
    done = cluster.ctl(ALICE, "check-resize", "--from", str(31 * MIB), "r0/0", status=None)
    assert done.returncode and "exact size" in done.stderr
    cluster.ctl(ALICE, "check-resize", "--from", str(32 * MIB), "r0/0")
    cluster.ctl(ALICE, "up", "r0")
    assert cluster.volume(ALICE)["disk"] == "UpToDate"
    cluster.ctl(ALICE, "down", "r0")
