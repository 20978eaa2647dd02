# SPDX-License-Identifier: Apache-2.0
"""A peer and strangers that do what they must not, on real sockets, against a real daemon.

What single packets lead to is tested in the simulator (tests/sim/test_traps*.py).  Here: whatever comes, the daemon
stays, its client is served, and the real peer gets in.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from nbd.client import NbdClient
from tests.integration.conftest import MakeCluster
from tests.lib.cluster import ALICE, BOB, Cluster, at_most
from tests.lib.peer_script import DISKLESS, SYNCER, ack, data, h80, h100, state_word
from tests.lib.tcp_peer import LOOPBACK, TcpPeer
from tests.lib.tools import require_engine

SECRET = "swordfish"
QUICK = {"ping-int": "1", "ping-timeout": "5", "connect-int": "1", "timeout": "10"}
PRIMARY, SECONDARY = 1, 2
CROWD = 100
ADMITTED_S = 4.0  # two dials and the handshake, with the pause that tells crossed dials apart


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    require_engine()
    with Cluster(size_mib=16, net=QUICK) as found:
        found.expect(".")
        found.start_single()
        yield found


@pytest.fixture(scope="module")
def secret() -> Iterator[Cluster]:
    require_engine()
    with Cluster(size_mib=16, net=QUICK | {"cram-hmac-alg": "sha1", "shared-secret": SECRET}) as found:
        found.expect(".")
        found.start_single()
        yield found


def peer_of(cluster: Cluster, stack: contextlib.ExitStack) -> TcpPeer:
    """Whatever was before: the node waits for its peer."""
    if cluster.status(ALICE)["connection"] == "StandAlone":
        cluster.call(ALICE, "connect")
    peer = TcpPeer(cluster.nodes[ALICE].port, lambda: cluster.status(ALICE)["connection"] == "Connected")
    stack.callback(peer.close)
    return peer


def serves(cluster: Cluster) -> None:
    with at_most(5, "a client's write and read"), NbdClient(cluster.url(ALICE)) as client:
        client.write(0, b"served" + bytes(506))
        assert client.read(0, 512) == b"served" + bytes(506)


# ---- the handshake ----


@pytest.mark.parametrize("answer", ["wrong", "none", "echo"])
def test_peer_without_the_secret_is_refused_for_good(secret: Cluster, answer: str) -> None:
    with contextlib.ExitStack() as stack:
        peer = peer_of(secret, stack)
        peer.connect()
        peer.features()
        if answer == "wrong":
            peer.authenticate(b"another")
        elif answer == "echo":
            peer.say("P_AUTH_CHALLENGE", peer.take("P_AUTH_CHALLENGE"))
        else:
            peer.say("P_PROTOCOL", peer.protocol())
        peer.wait_ended()
        serves(secret)
    secret.wait("StandAlone", lambda: secret.status(ALICE)["connection"] == "StandAlone")
    assert SECRET not in secret.log(ALICE)


def test_peer_with_the_secret_gets_in_after_those_without(secret: Cluster) -> None:
    with contextlib.ExitStack() as stack:
        peer = peer_of(secret, stack)
        peer.connect()
        peer.features()
        peer.authenticate(SECRET.encode())
        peer.take("P_AUTH_RESPONSE")
        peer.parameters(role=SECONDARY, disk=DISKLESS)
        peer.take("P_STATE")
        peer.say("P_STATE", state_word(SECONDARY, 10, DISKLESS, peer=PRIMARY, pdsk=8))
        peer.wait_connected()


@pytest.mark.parametrize("steps", [0, 2, 3, 4])
def test_handshake_that_stops_half_way_is_given_up_and_tried_again(shared: Cluster, steps: int) -> None:
    with contextlib.ExitStack() as stack:
        peer = peer_of(shared, stack)
        peer.data = peer.dial()
        if steps >= 2:
            peer.send(h80("P_INITIAL_DATA"))
            peer.meta = peer.dial()
            peer.send(h80("P_INITIAL_META"), peer.meta)
        else:
            peer.meta = peer.data
        if steps >= 3:
            peer.features()
        if steps >= 4:
            peer.say("P_PROTOCOL", peer.protocol())
        serves(shared)
        peer.wait_ended(20)
        serves(shared)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 65536,
        h80("P_CONNECTION_FEATURES", struct.pack(">III", 86, 15, 101) + bytes(68)),
        h100("P_CONNECTION_FEATURES", struct.pack(">III", 86, 15, 101) + bytes(60)),
        struct.pack(">IHH", 0x83740267, 0xFFFE, 0xFFFF),
        struct.pack(">IHHII", 0x8620EC20, 0, 0xFFFE, 0xFFFFFFFF, 0),
    ],
    ids=["ones", "80-bytes", "long-header", "64-KiB", "4-GiB"],
)
def test_garbage_instead_of_the_features_ends_the_connection(shared: Cluster, content: bytes) -> None:
    with contextlib.ExitStack() as stack:
        peer = peer_of(shared, stack)
        peer.connect()
        peer.send(content)
        peer.wait_ended()
        serves(shared)


def test_handshake_a_byte_at_a_time_is_waited_for_a_while_and_not_for_ever(shared: Cluster) -> None:
    with contextlib.ExitStack() as stack:
        peer = peer_of(shared, stack)
        peer.connect()
        with at_most(20, "a peer that dawdles"):
            for byte in h80("P_CONNECTION_FEATURES", struct.pack(">III", 86, 15, 101) + bytes(60)) * 10:
                if peer.data in peer.ended:
                    break
                peer.send(bytes((byte,)))
                peer.read(0.1)
            assert peer.data in peer.ended
        serves(shared)


# ---- once connected ----


@pytest.mark.parametrize(
    ("on_meta", "packet"),
    [
        (False, struct.pack(">IHHII", 0x8620EC20, 0, 0, 0xFFFFFFFF, 0)),
        (False, struct.pack(">IHHII", 0x8620EC20, 0, 0, (1 << 20) + 25 + 512, 0)),
        (False, h100("P_DATA", data(0, bytes(4096)))),
        (False, h100("P_BITMAP", bytes(4080))),
        (False, h100("P_OV_REQUEST", ack(0, SYNCER, 4096))),
        (False, h100("P_DATA_REQUEST", ack(1 << 50, 1, 4096))),
        (False, h100("P_RS_DATA_REPLY", data(0, bytes(4096), block_id=SYNCER))),
        (False, b"GET / HTTP/1.1\r\n\r\n"),
        (True, struct.pack(">IHHII", 0x8620EC20, 0, 0x16, 0xFFFFFFFF, 0)),
        (True, h100("P_WRITE_ACK", ack(8, 0x1234, 4096))),
        (True, h100("P_BARRIER_ACK", struct.pack(">II", 1, 1))),
        (True, h100(0x105)),
    ],
)
def test_connected_peer_that_breaks_the_protocol_is_dropped_at_once(
    shared: Cluster, on_meta: bool, packet: bytes
) -> None:
    with contextlib.ExitStack() as stack:
        peer = peer_of(shared, stack)
        peer.meet(role=SECONDARY, disk=DISKLESS)
        peer.send(packet, peer.meta if on_meta else peer.data)
        assert peer.wait_ended() < 5
        serves(shared)


def generations(cluster: Cluster) -> list[str]:
    """Without the flags, which tell of the connection."""
    return cluster.ctl(ALICE, "show-gi", "r0").stdout.split(":")[:4]


def test_poisonous_sync_uuid_changes_no_generation(shared: Cluster) -> None:
    with contextlib.ExitStack() as stack:
        peer = peer_of(shared, stack)
        peer.meet(role=SECONDARY, disk=DISKLESS)
        before = generations(shared)
        peer.say("P_SYNC_UUID", struct.pack(">Q", 0xDEAD))
        peer.wait_ended()  # it answers no ping
        assert generations(shared) == before
    assert generations(shared) == before
    serves(shared)


def test_peer_that_is_silent_once_connected_is_given_up(shared: Cluster) -> None:
    with contextlib.ExitStack() as stack:
        peer = peer_of(shared, stack)
        peer.meet(role=SECONDARY, disk=DISKLESS)
        with at_most(10, "giving the peer up"), NbdClient(shared.url(ALICE)) as client:
            client.write(0, bytes(4096))
        peer.wait_ended()


def test_flood_of_pings_that_reads_nothing_is_cut_off_and_costs_the_client_little(shared: Cluster) -> None:
    with contextlib.ExitStack() as stack:
        peer = peer_of(shared, stack)
        peer.meet(role=SECONDARY, disk=DISKLESS)
        peer.meta.settimeout(0.5)
        for _ in range(2000):
            peer.send(h100("P_PING") * 1000, peer.meta)
            if peer.meta in peer.ended:
                break
        with at_most(15, "a write"), NbdClient(shared.url(ALICE)) as client:
            client.write(0, bytes(4096))
        peer.wait_ended(20)


# ---- strangers in the way ----


def crowd(cluster: Cluster, stack: contextlib.ExitStack, first: bytes, count: int = CROWD) -> list[socket.socket]:
    sockets = []
    for _ in range(count):
        sock = stack.enter_context(socket.create_connection((LOOPBACK, cluster.nodes[ALICE].port), timeout=10))
        with contextlib.suppress(OSError):
            sock.sendall(first)
        sockets.append(sock)
    return sockets


@pytest.mark.parametrize(
    ("first", "limit_s"),
    [
        (b"", ADMITTED_S),
        (h80("P_INITIAL_DATA")[:5], ADMITTED_S),
        (h80("P_INITIAL_DATA"), ADMITTED_S),
        # From the peer's own address, as here, this one may be paired with our data socket: then it is tried again.
        (h80("P_INITIAL_META"), 30.0),
    ],
    ids=["silent", "half-a-header", "data-socket", "meta-socket"],
)
def test_real_peer_gets_in_at_once_past_a_hundred_strangers(
    make_cluster: MakeCluster, first: bytes, limit_s: float
) -> None:
    cluster = make_cluster(size_mib=16, net=QUICK)
    cluster.expect(".")
    cluster.start_single()
    cluster.create_metadata(BOB)
    with contextlib.ExitStack() as stack:
        crowd(cluster, stack, first)
        begin = time.monotonic()
        cluster.start(BOB)
        cluster.wait("the connection", lambda: cluster.status(ALICE)["connection"] == "Connected")
        took = time.monotonic() - begin
        print(f"connected after {took:.2f} s past {CROWD} strangers")
        assert took < limit_s
        serves(cluster)
    cluster.wait_synced()
