# SPDX-License-Identifier: Apache-2.0
"""``replctl verify`` with real daemons: what it prints, its exit statuses, repair, and results that are kept."""

from __future__ import annotations

import os

from tests.integration.conftest import MakeCluster
from tests.lib.cluster import ALICE, BOB, RESOURCE, Cluster

NET = {"verify-alg": "crc32c"}
BLOCK = 4096


def plant(cluster: Cluster, node: str, *blocks: int) -> None:
    with cluster.nodes[node].image.open("r+b") as file:
        for block in blocks:
            file.seek(block * BLOCK)
            file.write(os.urandom(BLOCK))


def test_verify_command_lists_differences_and_repair_removes_them(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(net=NET)
    cluster.start_pair()
    assert "no difference" in cluster.ctl(ALICE, "verify", "--wait", RESOURCE).stdout
    plant(cluster, BOB, 5, 6, 4000)
    found = cluster.ctl(ALICE, "verify", "--wait", f"{RESOURCE}/0", status=2).stdout
    assert "Out of sync: start=40, size=16 (sectors)" in found
    assert "Out of sync: start=32000, size=8 (sectors)" in found
    assert "differing-blocks:3" in cluster.ctl(BOB, "status", RESOURCE).stdout
    refused = cluster.ctl(ALICE, "verify", "--repair", RESOURCE, status=1).stderr
    assert f"--from {ALICE}" in refused
    repaired = cluster.ctl(BOB, "verify", "--from", ALICE, RESOURCE).stdout
    assert f"repaired from {ALICE}" in repaired
    cluster.wait_synced()
    assert "no difference" in cluster.ctl(BOB, "verify", "--wait", RESOURCE).stdout


def test_verify_result_and_position_are_kept_over_a_restart(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(net=NET, disk={"resync-rate": "2M"})
    cluster.start_pair()
    cluster.ctl(ALICE, "verify", "--start", "1M", "--stop", "2M", "--wait", RESOURCE)
    cluster.ctl(ALICE, "verify", "--start", "8M", RESOURCE)
    (stopped,) = cluster.ctl_json(ALICE, "verify", "--abort", RESOURCE)["data"]
    assert stopped["state"] == "stopped" and stopped["position_sector"] >= 16384
    cluster.stop(ALICE)
    cluster.start(ALICE)
    cluster.wait_connected()
    kept = cluster.call(ALICE, "status")["volumes"][0]["verify"]
    assert kept["position_sector"] == stopped["position_sector"] and kept["age_s"] >= 0
    cluster.ctl(ALICE, "verify", RESOURCE)
    assert cluster.call(ALICE, "status")["volumes"][0]["verify"]["start_sector"] == stopped["position_sector"]


def test_verify_command_without_algorithm_says_what_to_do(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    cluster.start_pair()
    said = cluster.ctl(ALICE, "verify", RESOURCE, status=11).stderr
    assert "(-14)" in said and "verify-alg crc32c" in said
