# SPDX-License-Identifier: Apache-2.0
"""Two nodes, tagged writes, and everything that happens to nodes: killed, promoted, brought back, split.

What was acknowledged has to be found, what is resynced has to be little, and both disks have to end up equal.
"""

from __future__ import annotations

import os
import re
import threading

import pytest

from nbd.client import NbdClient
from repl.errors import PeerLost, ReplError, UsageError
from tests.integration.conftest import MakeCluster
from tests.lib.chaos_proxy import Direction, Mode
from tests.lib.cluster import ALICE, BOB, MIB, NODES, Cluster, at_most
from tests.lib.load import Load, TaggedRegion, writing
from tests.lib.wait import wait_for

RUN = 8404
SECTORS_PER_MIB = MIB // 512


def region(writer: int = 1, *, offset_mib: int = 0, blocks: int = 512, in_order: bool = False) -> TaggedRegion:
    return TaggedRegion(
        run=RUN, writer=writer, offset_sectors=offset_mib * SECTORS_PER_MIB, blocks=blocks, in_order=in_order
    )


def pair(make_cluster: MakeCluster, **options: object) -> Cluster:
    """Connected, UpToDate, alice Primary."""
    cluster = make_cluster(**options)
    cluster.start_pair()
    cluster.call(ALICE, "primary")
    return cluster


def assert_found(cluster: Cluster, name: str, *regions: TaggedRegion) -> None:
    with cluster.client(name) as client:
        for one in regions:
            assert not one.problems(client.read)


def come_back(cluster: Cluster, name: str) -> None:
    """A node that had died starts again."""
    cluster.start(name)
    cluster.wait_synced()


# --- a node dies ---


@pytest.mark.parametrize("protocol", ["B", "C"])
def test_primary_killed_during_writes_leaves_every_acknowledged_write_on_the_other(
    make_cluster: MakeCluster, protocol: str
) -> None:
    cluster = pair(make_cluster, size_mib=256, net={"protocol": protocol})
    regions = [region(n, offset_mib=20 * n) for n in range(1, 4)]
    url = cluster.url(ALICE)
    loads = [
        Load(regions[0], url).start(),
        Load(regions[1], url, flush_every=10).start(),
        Load(regions[2], url, fua_every=3).start(),
    ]
    for load in loads:
        load.wait_writes(200)
    cluster.kill(ALICE)
    for load in loads:
        load.join()
        assert load.is_lost
    cluster.wait("bob alone", lambda: cluster.status(BOB)["connection"] != "Connected")
    cluster.call(BOB, "primary")
    assert_found(cluster, BOB, *regions)
    with writing(regions[0], cluster.url(BOB)) as load:
        load.wait_writes(100)
    come_back(cluster, ALICE)
    moved = cluster.resynced_bytes(BOB)
    assert 0 < moved < 200 * MIB, f"{moved} bytes resynced"
    assert cluster.status(ALICE)["role"] == "Secondary"
    assert_found(cluster, BOB, *regions)
    cluster.compare_disks()


def test_primary_killed_with_protocol_a_leaves_a_prefix_of_its_writes_on_the_other(make_cluster: MakeCluster) -> None:
    cluster = pair(make_cluster, net={"protocol": "A"})
    one = region(blocks=8192, in_order=True)
    load = Load(one, cluster.url(ALICE)).start()
    load.wait_writes(1000)
    cluster.kill(ALICE)
    load.join()
    cluster.wait("bob alone", lambda: cluster.status(BOB)["connection"] != "Connected")
    cluster.call(BOB, "primary")
    with cluster.client(BOB) as client:
        found = one.found_blocks(client.read)
    assert 500 < found <= one.acknowledged_count + 1
    cluster.start(ALICE)
    cluster.wait_synced()
    cluster.compare_disks()


def test_primary_killed_returns_as_primary_and_its_disk_wins(make_cluster: MakeCluster) -> None:
    cluster = pair(make_cluster, size_mib=128)
    one = region(blocks=2048)
    load = Load(one, cluster.url(ALICE)).start()
    load.wait_writes(300)
    cluster.kill(ALICE)
    load.join()
    cluster.start(ALICE)
    cluster.wait_synced()
    cluster.call(ALICE, "primary")
    assert_found(cluster, ALICE, one)
    cluster.wait_synced()
    cluster.compare_disks()


def test_secondary_killed_during_writes_stops_nobody_and_catches_up(make_cluster: MakeCluster) -> None:
    cluster = pair(make_cluster, size_mib=256)
    one = region(blocks=1024)
    with writing(one, cluster.url(ALICE), flush_every=20) as load:
        load.wait_writes(200)
        cluster.kill(BOB)
        load.wait_writes(300)
        assert cluster.volume(ALICE)["out_of_sync_bytes"] > 0
        cluster.start(BOB)
        cluster.wait_connected()
        load.wait_writes(200)
        cluster.wait_synced()
        load.wait_writes(100)
    assert cluster.resynced_bytes(ALICE) < 32 * MIB
    assert_found(cluster, ALICE, one)
    cluster.wait_synced()
    cluster.compare_disks()


def test_both_nodes_killed_return_with_every_acknowledged_write(make_cluster: MakeCluster) -> None:
    cluster = pair(make_cluster, size_mib=128)
    one = region(blocks=1024)
    load = Load(one, cluster.url(ALICE)).start()
    load.wait_writes(300)
    cluster.kill(BOB)
    cluster.kill(ALICE)
    load.join()
    cluster.start()
    cluster.wait_synced()
    cluster.call(ALICE, "primary")
    assert_found(cluster, ALICE, one)
    cluster.wait_synced()
    cluster.compare_disks()


def test_roles_changed_again_and_again_lose_nothing(make_cluster: MakeCluster) -> None:
    cluster = pair(make_cluster, size_mib=128)
    one = region(blocks=256)
    for turn in range(3):
        here, there = (NODES[turn % 2], NODES[1 - turn % 2])
        load = Load(one, cluster.url(here), fua_every=5).start()
        load.wait_writes(100)
        cluster.kill(here)
        load.join()
        cluster.wait("the other alone", lambda there=there: cluster.status(there)["connection"] != "Connected")
        cluster.call(there, "primary")
        assert_found(cluster, there, one)
        come_back(cluster, here)
    cluster.compare_disks()


# --- resyncs that are broken off ---

SLOW = {"c-plan-ahead": "0", "resync-rate": "4M"}


def test_initial_sync_goes_on_by_bitmap_after_either_node_was_killed(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=32, disk=SLOW)
    with cluster.nodes[ALICE].image.open("r+b") as image:
        image.write(os.urandom(30 * MIB))  # holes would be told in no time
    cluster.start_pair(is_synced=False)
    cluster.call(ALICE, "primary", force=True)
    size = cluster.size_bytes()
    left = size
    for victim in (BOB, ALICE):
        goal = left - 8 * MIB
        cluster.wait("some of it", lambda goal=goal: 0 < cluster.volume(ALICE)["out_of_sync_bytes"] < goal)
        cluster.kill(victim)
        cluster.start(victim)
        if victim == ALICE:
            cluster.call(ALICE, "primary")
        cluster.wait("the resync", lambda: cluster.volume(ALICE)["resync"] is not None)
        left = cluster.volume(ALICE)["resync"]["total_bytes"]
        assert left < size - MIB, "it began anew"
    cluster.wait_synced(60)
    cluster.compare_disks()


def test_resync_killed_on_both_sides_ends_with_equal_disks(make_cluster: MakeCluster) -> None:
    cluster = pair(make_cluster, size_mib=64, disk=SLOW)
    cluster.kill(BOB)
    one = region(blocks=4096)
    with cluster.client(ALICE) as client:
        for number in range(12):
            client.write((20 + number) * MIB, bytes([number + 1]) * MIB)
    with writing(one, cluster.url(ALICE)) as load:
        load.wait_writes(200)
    cluster.start(BOB)
    cluster.wait("the resync", lambda: cluster.volume(ALICE)["resync"] is not None)
    cluster.kill(BOB)
    with writing(one, cluster.url(ALICE)) as load:
        load.wait_writes(100)
    cluster.start(BOB)
    cluster.wait("the resync", lambda: cluster.volume(ALICE)["resync"] is not None)
    assert cluster.volume(BOB)["disk"] == "Inconsistent"
    cluster.kill(ALICE)
    cluster.wait("bob alone", lambda: cluster.status(BOB)["connection"] != "Connected")
    with pytest.raises(ReplError) as refused:
        cluster.call(BOB, "primary")
    assert refused.value.exit_status == 17
    cluster.start(ALICE)
    cluster.wait_synced(60)
    cluster.call(ALICE, "primary")
    assert_found(cluster, ALICE, one)
    cluster.wait_synced()
    cluster.compare_disks()


def test_writes_during_a_resync_reach_both_disks(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=48, disk={"c-plan-ahead": "0", "resync-rate": "20M"})
    cluster.start_pair(is_synced=False)
    cluster.call(ALICE, "primary", force=True)
    regions = [region(1, offset_mib=2, blocks=2048), region(2, offset_mib=30, blocks=2048)]
    with (
        writing(regions[0], cluster.url(ALICE)) as first,
        writing(regions[1], cluster.url(ALICE), flush_every=9) as second,
    ):
        cluster.wait_synced()
        first.wait_writes(100)
        second.wait_writes(100)
    assert_found(cluster, ALICE, *regions)
    cluster.wait_synced()
    cluster.compare_disks()


# --- the network ---


def test_link_reset_in_the_middle_of_packets_again_and_again_loses_nothing(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=64, has_proxy=True, seed=5)
    cluster.expect("broke the protocol")
    cluster.start_pair()
    cluster.call(ALICE, "primary")
    one = region(blocks=1024)
    with writing(one, cluster.url(ALICE)) as load:
        for _ in range(4):
            load.wait_writes(50)
            for proxy in cluster.proxies.values():
                proxy.reset_within(100_000)
            load.wait_writes(50)
            cluster.wait_connected()
        cluster.wait_synced()
    assert_found(cluster, ALICE, one)
    cluster.wait_synced()
    cluster.compare_disks()


def test_link_in_segments_of_single_bytes_carries_writes_and_a_resync(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16, has_proxy=True, net={"ping-timeout": "20"}, seed=6)
    for proxy in cluster.proxies.values():
        proxy.set(Mode.SPLIT)
    cluster.start_pair()
    cluster.call(ALICE, "primary")
    one = region(blocks=64)
    with writing(one, cluster.url(ALICE)) as load:
        load.wait_writes(30)
    cluster.call(BOB, "disconnect")
    with writing(one, cluster.url(ALICE)) as load:
        load.wait_writes(20)
    cluster.call(BOB, "connect")
    cluster.wait_synced(60)
    assert_found(cluster, ALICE, one)
    cluster.wait_synced()
    cluster.compare_disks()


def test_half_open_link_is_noticed_by_ping_timeout_and_writes_go_on(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=32, has_proxy=True, net={"ping-int": "1", "ko-count": "0"})
    cluster.start_pair()
    cluster.call(ALICE, "primary")
    one = region()
    with writing(one, cluster.url(ALICE)) as load:
        load.wait_writes(50)
        for proxy in cluster.proxies.values():
            proxy.set(Mode.DROP)
        with at_most(6, "noticing a dead peer"):
            for name in NODES:
                cluster.wait("it noticed", lambda name=name: cluster.status(name)["connection"] != "Connected", 6)
        load.wait_writes(50)
        assert load.slowest_s < 6
        for proxy in cluster.proxies.values():
            proxy.set(Mode.PASS)
        cluster.wait_synced()
    assert "no answer to a ping" in cluster.log(ALICE)
    assert_found(cluster, ALICE, one)
    cluster.wait_synced()
    cluster.compare_disks()


def test_one_dead_direction_is_noticed_by_both_nodes(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16, has_proxy=True, net={"ping-int": "1"})
    cluster.start_pair()
    for proxy in cluster.proxies.values():
        proxy.set(Mode.DROP, Direction.THERE)
    for name in NODES:
        cluster.wait("it noticed", lambda name=name: cluster.status(name)["connection"] != "Connected", 8)
    for proxy in cluster.proxies.values():
        proxy.set(Mode.PASS)
    cluster.wait_synced()


def test_frozen_peer_is_given_up_after_ko_count_and_no_write_waits_for_ever(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=32, net={"timeout": "5", "ko-count": "2", "ping-int": "60", "connect-int": "1"})
    cluster.start_pair()
    cluster.call(ALICE, "primary")
    one = region()
    bob = cluster.nodes[BOB].process
    assert bob is not None
    with writing(one, cluster.url(ALICE)) as load:
        load.wait_writes(50)
        bob.freeze()
        try:
            cluster.wait("given up", lambda: cluster.status(ALICE)["connection"] != "Connected", 10)
            load.wait_writes(50)
        finally:
            bob.thaw()
        assert load.slowest_s < 8
        cluster.wait_synced()
    assert_found(cluster, ALICE, one)
    cluster.wait_synced()
    cluster.compare_disks()


def test_held_link_holds_writes_back_but_loses_none(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=32, has_proxy=True, net={"ping-timeout": "50", "ping-int": "10"})
    cluster.start_pair()
    cluster.call(ALICE, "primary")
    one = region()
    with writing(one, cluster.url(ALICE)) as load:
        load.wait_writes(20)
        for proxy in cluster.proxies.values():
            proxy.set(Mode.HOLD)
        wait_for(lambda: load.waiting_s > 1, 10, "a write that waits")
        held = one.acknowledged_count
        for proxy in cluster.proxies.values():
            proxy.set(Mode.PASS)
        load.wait_writes(20)
    assert one.acknowledged_count > held
    assert cluster.resync_count(ALICE) == 0
    assert "lost the peer" not in cluster.log(ALICE)
    cluster.wait_synced()
    cluster.compare_disks()


# --- roles ---


def test_client_that_opens_a_secondary_promotes_it_until_it_leaves(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.start_pair()
    with NbdClient(cluster.url(BOB)) as client:
        assert cluster.status(BOB)["role"] == "Primary"
        assert cluster.status(ALICE)["peer"]["role"] == "Primary"
        client.write(0, b"p" * 4096)
        with pytest.raises(UsageError, match="Primary"):
            NbdClient(cluster.url(ALICE))
    cluster.wait("demoted", lambda: cluster.status(BOB)["role"] == "Secondary")
    with NbdClient(cluster.url(ALICE)) as client:
        assert client.read(0, 4096) == b"p" * 4096
    cluster.wait("demoted", lambda: cluster.status(ALICE)["role"] == "Secondary")


def test_clients_that_come_and_go_at_once_are_always_served_by_a_primary(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.start_pair()
    failures: list[BaseException] = []

    def come_and_go(writer: int) -> None:
        try:
            for turn in range(40):
                data = b"%d %d" % (writer, turn) * 64
                with NbdClient(cluster.url(ALICE)) as client:
                    client.write(writer * MIB, data.ljust(1024, b"."))
                    assert client.read(writer * MIB, 1024) == data.ljust(1024, b".")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=come_and_go, args=(writer,)) for writer in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    cluster.wait("demoted", lambda: cluster.status(ALICE)["role"] == "Secondary")
    cluster.wait_synced()
    cluster.compare_disks()


def test_node_promoted_by_the_operator_stays_primary_when_clients_leave(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.start_single()
    with NbdClient(cluster.url(ALICE)):
        pass
    cluster.wait("nobody there", lambda: cluster.volume(ALICE)["open"] == 0)
    assert cluster.status(ALICE)["role"] == "Primary"


def test_client_is_refused_by_a_secondary_without_auto_promote(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16, options={"auto-promote": "no"})
    cluster.start_pair()
    with pytest.raises(UsageError, match="Secondary"):
        NbdClient(cluster.url(ALICE))


def test_demotion_with_a_client_connected_is_refused_with_the_reason(make_cluster: MakeCluster) -> None:
    cluster = pair(make_cluster, size_mib=16)
    with cluster.client(ALICE) as client:
        done = cluster.ctl(ALICE, "secondary", "r0", status=11)
        assert "1 NBD client is connected" in done.stderr
        assert "(-12)" in done.stderr
        client.write(0, b"d" * 512)
    cluster.wait("nobody there", lambda: cluster.volume(ALICE)["open"] == 0)
    cluster.ctl(ALICE, "secondary", "r0")
    assert cluster.status(ALICE)["role"] == "Secondary"


def test_down_with_a_client_connected_is_refused_without_force(make_cluster: MakeCluster) -> None:
    cluster = pair(make_cluster, size_mib=16)
    with cluster.client(ALICE) as client:
        cluster.ctl(ALICE, "down", "r0", status=11)
        client.write(0, b"d" * 512)
        cluster.ctl(ALICE, "down", "--force", "r0")
        with pytest.raises((PeerLost, ReplError)):
            client.write(0, b"d" * 512)


def test_second_primary_is_refused_and_the_first_named(make_cluster: MakeCluster) -> None:
    cluster = pair(make_cluster, size_mib=16)
    done = cluster.ctl(BOB, "primary", "r0", status=11)
    assert "alice is Primary" in done.stderr
    assert cluster.status(BOB)["role"] == "Secondary"
    cluster.ctl(ALICE, "secondary", "r0")
    cluster.ctl(BOB, "primary", "r0")


def test_inconsistent_node_is_not_promoted_without_force(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.create_metadata(ALICE)
    cluster.start(ALICE)
    done = cluster.ctl(ALICE, "primary", "r0", status=17)
    assert "--force" in done.stderr
    with pytest.raises(UsageError, match="UpToDate"):
        NbdClient(cluster.url(ALICE))


# --- connections by order ---


def test_disconnected_node_stands_alone_until_connect_and_resyncs_only_the_difference(
    make_cluster: MakeCluster,
) -> None:
    cluster = pair(make_cluster, size_mib=128)
    cluster.ctl(BOB, "disconnect", "r0")
    assert cluster.status(BOB)["connection"] == "StandAlone"
    cluster.wait_connection(ALICE, "WFConnection")
    one = region(blocks=128)
    with writing(one, cluster.url(ALICE)) as load:
        load.wait_writes(200)
    dirty = cluster.volume(ALICE)["out_of_sync_bytes"]
    assert 0 < dirty <= 128 * 4096
    cluster.ctl(BOB, "connect", "r0")
    cluster.wait_synced()
    assert cluster.resynced_bytes(ALICE) == dirty
    cluster.compare_disks()


def test_secondary_with_the_only_good_data_is_not_disconnected_without_force(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=32, disk={"c-plan-ahead": "0", "resync-rate": "1M"})
    with cluster.nodes[BOB].image.open("r+b") as image:
        image.write(os.urandom(30 * MIB))  # holes would be told in no time
    cluster.start_pair(is_synced=False)
    cluster.call(BOB, "primary", force=True)
    cluster.call(BOB, "secondary")
    cluster.wait("the resync", lambda: cluster.volume(ALICE)["resync"] is not None)
    cluster.call(ALICE, "primary")  # refused before alice knows of bob's data
    done = cluster.ctl(ALICE, "disconnect", "r0", status=17)
    assert "only good data" in done.stderr
    cluster.ctl(ALICE, "disconnect", "--force", "r0")
    assert cluster.status(ALICE)["connection"] == "StandAlone"
    with NbdClient(cluster.url(ALICE)) as client, pytest.raises(ReplError):
        client.read(cluster.size_bytes() - 4096, 4096)


def test_invalidate_copies_everything_from_the_peer(make_cluster: MakeCluster) -> None:
    cluster = pair(make_cluster, size_mib=32)
    one = region()
    with writing(one, cluster.url(ALICE)) as load:
        load.wait_writes(100)
    with cluster.nodes[BOB].image.open("r+b") as image:  # rot on the Secondary
        image.seek(3 * MIB)
        image.write(b"rotten" * 1000)
    assert cluster.first_difference() is not None
    cluster.ctl(BOB, "invalidate", "r0")
    cluster.ctl(BOB, "wait-sync", "--timeout", "30", "r0")
    cluster.wait_synced()
    assert cluster.resynced_bytes(BOB) == cluster.size_bytes()
    cluster.compare_disks()


def test_invalidate_of_a_primary_is_refused(make_cluster: MakeCluster) -> None:
    cluster = pair(make_cluster, size_mib=16)
    cluster.ctl(ALICE, "invalidate", "r0", status=11)


def test_first_sync_of_two_fresh_disks_is_skipped_by_clear_bitmap(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=64)
    cluster.start_pair(is_synced=False)
    cluster.ctl(BOB, "new-current-uuid", "--clear-bitmap", "r0")
    cluster.wait_synced()
    assert cluster.resync_count(ALICE) == cluster.resync_count(BOB) == 0
    for name in NODES:
        assert cluster.stop(name) == 0
    cluster.start()
    cluster.wait_synced()
    assert cluster.resync_count(ALICE) == 0


def test_new_current_uuid_of_a_connected_node_is_refused(make_cluster: MakeCluster) -> None:
    cluster = pair(make_cluster, size_mib=16)
    with pytest.raises(ReplError, match="StandAlone") as refused:
        cluster.call(ALICE, "new-current-uuid", clear_bitmap=True)
    assert refused.value.exit_status == 10


# --- split brain ---


def split(cluster: Cluster) -> tuple[TaggedRegion, TaggedRegion]:
    """Both nodes were Primary alone and wrote; both are Secondary and StandAlone now."""
    mine, theirs = region(1, offset_mib=1, blocks=64), region(2, offset_mib=10, blocks=64)
    for name in NODES:
        if cluster.status(name)["connection"] != "StandAlone":
            cluster.call(name, "disconnect")
    for name, one in ((ALICE, mine), (BOB, theirs)):
        cluster.call(name, "primary")
        with writing(one, cluster.url(name)) as load:
            load.wait_writes(80)
        cluster.call(name, "secondary")
    return mine, theirs


def connect_both(cluster: Cluster, discard: str = "") -> None:
    for name in NODES:
        if cluster.status(name)["connection"] == "StandAlone":
            cluster.call(name, "connect", discard_my_data=name == discard)


def test_split_brain_leaves_both_nodes_standalone_with_the_reason(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=32)
    cluster.expect("Split-Brain detected")
    cluster.start_pair()
    split(cluster)
    connect_both(cluster)
    for name in NODES:
        cluster.wait_connection(name, "StandAlone")
        assert re.search("split.brain", cluster.status(name)["reason"], re.IGNORECASE)
        assert "--discard-my-data" in cluster.ctl(name, "status", "r0").stdout
        assert cluster.volume(name)["disk"] == "UpToDate"


@pytest.mark.parametrize("loser", NODES)
def test_discard_my_data_gives_up_exactly_the_losers_writes(make_cluster: MakeCluster, loser: str) -> None:
    cluster = make_cluster(size_mib=128)
    cluster.expect("Split-Brain detected")
    cluster.start_pair()
    regions = dict(zip(NODES, split(cluster), strict=True))
    connect_both(cluster, discard=loser)
    cluster.wait_synced()
    winner = next(name for name in NODES if name != loser)
    assert cluster.resynced_bytes(winner) < 32 * MIB
    cluster.compare_disks()
    with cluster.client(loser) as client:
        assert not regions[winner].problems(client.read)
        assert client.read(regions[loser].offset_sectors * 512, 4096) == bytes(4096)


def test_discard_my_data_on_a_primary_is_refused(make_cluster: MakeCluster) -> None:
    cluster = pair(make_cluster, size_mib=16)
    cluster.ctl(ALICE, "disconnect", "r0")
    cluster.ctl(ALICE, "connect", "--discard-my-data", "r0", status=10)


# --- waiting ---


def test_wait_connect_for_a_node_that_is_not_there_ends_with_5(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.start_single()
    with at_most(6, "wait-connect --timeout 1"):
        done = cluster.ctl(ALICE, "wait-connect", "--timeout", "1", "r0", status=5)
    assert "connecting took longer" in done.stderr


def test_wait_sync_that_is_too_short_ends_with_5_and_a_longer_one_with_0(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=32, disk={"c-plan-ahead": "0", "resync-rate": "10M"})
    with cluster.nodes[ALICE].image.open("r+b") as image:
        image.write(os.urandom(30 * MIB))
    cluster.start_pair(is_synced=False)
    cluster.call(ALICE, "primary", force=True)
    cluster.ctl(BOB, "wait-sync", "--timeout", "0.5", "r0", status=5)
    cluster.ctl(BOB, "wait-sync", "--timeout", "30", "r0")
    cluster.wait_synced()
    cluster.compare_disks()


def test_wait_connect_of_a_node_that_stands_alone_ends_at_once(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.start_single()
    cluster.call(ALICE, "disconnect")
    cluster.ctl(ALICE, "wait-connect", "--timeout", "30", "r0", status=10)


# --- an orderly life through replctl ---


def test_resource_brought_up_and_down_by_replctl_needs_no_resync(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=32, is_flexible=True)
    for name in NODES:
        cluster.ctl(name, "create-md", "r0")
        cluster.ctl(name, "up", "r0")
    cluster.ctl(ALICE, "wait-connect", "--timeout", "20", "r0")
    cluster.ctl(ALICE, "new-current-uuid", "--clear-bitmap", "r0")
    cluster.ctl(ALICE, "primary", "r0")
    one = region()
    with writing(one, cluster.ctl(ALICE, "nbd-url", "r0").stdout.strip(), flush_every=10) as load:
        load.wait_writes(100)
    for name in NODES:
        cluster.ctl(name, "down", "r0")
    cluster.compare_disks(30 * MIB)
    for name in NODES:
        cluster.ctl(name, "up", "r0")
    cluster.ctl(BOB, "wait-sync", "--timeout", "20", "r0")
    assert cluster.resync_count(ALICE) == cluster.resync_count(BOB) == 0
    assert cluster.ctl(BOB, "dstate", "r0").stdout == "UpToDate/UpToDate\n"
    assert_found(cluster, BOB, one)
    for name in NODES:
        cluster.ctl(name, "down", "r0")
        cluster.ctl(name, "status", "r0", status=10)
