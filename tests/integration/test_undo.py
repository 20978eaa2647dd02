# SPDX-License-Identifier: Apache-2.0
"""``replctl undo`` with real nodes: the loser's image, bit for bit, while the winner's data goes on being written."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from nbd.client import NbdClient
from repl.errors import ReplError
from tests.integration.conftest import MakeCluster
from tests.lib.cluster import ALICE, BOB, NODES, Cluster

MIB = 1 << 20
LOSER, WINNER = ALICE, BOB


def scribble(cluster: Cluster, name: str, seed: int, count: int = 300) -> None:
    """Writes, zeroes and trims all over the device, through NBD."""
    rng = random.Random(seed)
    with cluster.client(name) as client:
        for _ in range(count):
            offset = rng.randrange(client.size_bytes // 512 - 64) * 512
            length = rng.randrange(1, 64) * 512
            kind = rng.randrange(8)
            if kind == 0:
                client.zero(offset, length)
            elif kind == 1:
                client.trim(offset, length)
            else:
                client.write(offset, rng.randbytes(length))
        client.flush()
    cluster.wait("the demotion", lambda: cluster.status(name)["role"] == "Secondary")


def read_all(url: str) -> bytes:
    with NbdClient(url) as client:
        return b"".join(
            client.read(at, min(MIB, client.size_bytes - at)) for at in range(0, client.size_bytes, MIB)
        )


def undo_image(cluster: Cluster) -> bytes:
    return read_all(cluster.ctl(LOSER, "undo", "export", "r0").stdout.strip())


@pytest.fixture
def solved(make_cluster: MakeCluster) -> tuple[Cluster, bytes]:
    """A split brain that the loser has given in to, and the loser's device as it was."""
    cluster = make_cluster(size_mib=24, disk={"split-brain-undo": "yes"})
    cluster.start_pair()
    for name in NODES:
        cluster.call(name, "disconnect", force=True)
    for seed, name in enumerate(NODES):
        scribble(cluster, name, seed)
    size = cluster.volume(LOSER)["size_bytes"]
    before = cluster.nodes[LOSER].image.read_bytes()[:size]
    cluster.call(WINNER, "connect")
    cluster.call(LOSER, "connect", discard_my_data=True)
    cluster.wait_synced()
    return cluster, before


def test_export_is_the_losers_image_while_writes_go_on_and_after_a_restart(solved: tuple[Cluster, bytes]) -> None:
    cluster, before = solved
    assert cluster.nodes[LOSER].image.read_bytes()[: len(before)] != before
    assert undo_image(cluster) == before
    scribble(cluster, WINNER, 7)
    assert undo_image(cluster) == before
    scribble(cluster, LOSER, 8)
    assert undo_image(cluster) == before
    listed = cluster.ctl(LOSER, "undo", "list").stdout
    assert "blocks" in listed and WINNER in listed and "Split-Brain" in listed
    cluster.kill(LOSER)
    cluster.start(LOSER)
    cluster.wait_synced()
    assert undo_image(cluster) == before
    scribble(cluster, WINNER, 9)
    cluster.ctl(LOSER, "down", "r0")
    cluster.start(LOSER)
    cluster.wait_synced()
    scribble(cluster, LOSER, 10)
    assert undo_image(cluster) == before
    cluster.compare_disks()


def test_undo_can_be_read_only_and_is_gone_when_dropped(solved: tuple[Cluster, bytes]) -> None:
    cluster, before = solved
    url = cluster.ctl(LOSER, "undo", "export", "r0/0").stdout.strip()
    with NbdClient(url) as client:
        assert client.size_bytes == len(before)
        with pytest.raises(ReplError):
            client.write(0, bytes(4096))
    folder = cluster.nodes[LOSER].run_dir.folder
    assert {path.name for path in Path(folder).glob("*.undo*")} == {"r0-0.undo", "r0-0.undo-map"}
    used = os.stat(folder / "r0-0.undo")
    assert used.st_blocks * 512 < used.st_size
    cluster.ctl(LOSER, "undo", "drop", "r0")
    assert not list(Path(folder).glob("*.undo*"))
    assert cluster.ctl(LOSER, "undo", "list", "r0").stdout == ""
    cluster.ctl(LOSER, "undo", "export", "r0", status=1)
    with pytest.raises((ReplError, OSError)):
        read_all(url)
    cluster.ctl(WINNER, "undo", "drop", "r0", status=1)
    scribble(cluster, LOSER, 11)
    cluster.compare_disks()
