# SPDX-License-Identifier: Apache-2.0
"""What a broken or hostile peer may do to a node: lose its connection, with the reason kept; nothing else.

Each trap of the wire protocol's description, done to us by a scripted peer.  Afterwards the node still serves its
application, its data is what the application wrote, and it has sent nothing wrong itself (the protocol checker); that
we never do any of it to a peer is the checker's business in every simulator test.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from repl.drbd.states import ConnectionState
from tests.sim.peer_stage import PRIMARY, SECONDARY, PeerStage, made_stages
from tests.sim.scripted_peer import SYNCER, ScriptedPeer, ack, data, h80, h100, state_word

SECRET = b"right"
BLOCK = bytes(4096)
Act = Callable[[ScriptedPeer], None]


@pytest.fixture
def stages() -> Iterator[list[PeerStage]]:
    yield from made_stages()


def check(stages: list[PeerStage], stage: PeerStage, why: str, *, is_final: bool) -> None:
    stages.append(stage)
    cluster = stage.cluster
    cluster.until(stage.peer.has_ended, 20_000, "the end of the connection")
    cluster.run(200)
    said = cluster.node(0).reason + "".join(cluster.events(0))
    assert why in said, said
    stands_alone = cluster.node(0).cstate == ConnectionState.STANDALONE
    assert stands_alone == is_final, cluster.describe()
    stage.node_goes_on()


# ---- once connected, the peer a Secondary and the node serving ----


def bitmap_of_a_few_bits() -> bytes:
    return bytes((0x42, 0x97, 0x7C))


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (lambda p: p.send(h100("P_PING", pad=1), p.meta), "bad header"),
        (lambda p: p.send(h100("P_UNPLUG_REMOTE", pad=1 << 24)), "bad header"),
        (lambda p: p.send(h80("P_UNPLUG_REMOTE") + bytes(8)), "bad header"),
        (lambda p: p.send(b"GET / HTTP/1.1\r\n\r\n"), "bad header"),
        (lambda p: p.say(0x105), "unexpected"),
        (lambda p: p.say(0x05, bytes(8)), "unexpected"),
        (lambda p: p.say("P_WSAME", bytes(540)), "unexpected"),
        (lambda p: p.say_meta(0x105), "unexpected"),
        (lambda p: p.say_meta("P_DATA", data(0, BLOCK)), "unexpected"),
        (lambda p: p.say("P_PING"), "unexpected"),
        (lambda p: p.say("P_UNPLUG_REMOTE", bytes(4)), "wrong length"),
        (lambda p: p.say("P_BARRIER", bytes(4)), "wrong length"),
        (lambda p: p.say("P_STATE", bytes(8)), "wrong length"),
        (lambda p: p.say("P_DATA", bytes(16)), "wrong length"),
        (lambda p: p.say_meta("P_WRITE_ACK", bytes(16)), "wrong length"),
        (lambda p: p.say_meta("P_PING", bytes(4)), "wrong length"),
        (lambda p: p.say("P_DATA", data(0, BLOCK)), "not now"),
        (lambda p: p.say("P_TRIM", data(0, b"", flags=0x140) + struct.pack(">I", 4096)), "not now"),
        (lambda p: p.say("P_DATA", data(0, BLOCK), volume=5), "unknown volume"),
        (lambda p: p.say("P_DATA_REQUEST", ack(0, 1, 4096), volume=63), "unknown volume"),
        (lambda p: p.say("P_DATA_REQUEST", ack(0, 1, 4096), volume=64), "unknown volume"),
        (lambda p: p.say("P_DATA_REQUEST", ack(0, 1, 4096), volume=65535), "unknown volume"),
        (lambda p: p.say("P_DATA_REQUEST", ack(0, 1, 0)), "beyond the device"),
        (lambda p: p.say("P_DATA_REQUEST", ack(0, 1, 513)), "beyond the device"),
        (lambda p: p.say("P_DATA_REQUEST", ack(1 << 40, 1, 4096)), "beyond the device"),
        (lambda p: p.say("P_DATA_REQUEST", ack((1 << 64) - 8, 1, 4096)), "beyond the device"),
        (lambda p: p.say("P_DATA_REQUEST", ack(0, 1, 1 << 31)), "beyond the device"),
        (lambda p: p.say("P_RS_DATA_REQUEST", ack(1 << 55, SYNCER, 4096)), "beyond the device"),
        (lambda p: p.say("P_OUT_OF_SYNC", struct.pack(">QII", 1 << 60, 4096, 0)), "beyond the device"),
        (lambda p: p.say("P_OV_REQUEST", ack(0, SYNCER, 4096)), "P_OV_REQUEST"),
        (lambda p: p.say("P_DATA_REPLY", data(0, BLOCK, block_id=77)), "unknown block id"),
        (lambda p: p.say("P_RS_DATA_REPLY", data(0, BLOCK, block_id=SYNCER)), "unknown block id"),
        (lambda p: p.say("P_BITMAP", bytes(4080)), "P_BITMAP"),
        (lambda p: p.say("P_COMPRESSED_BITMAP", bitmap_of_a_few_bits()), "P_COMPRESSED_BITMAP"),
        (lambda p: p.say_meta("P_WRITE_ACK", ack(8, 0x1234, 4096)), "unknown block id"),
        (lambda p: p.say_meta("P_RECV_ACK", ack(8, 0, 4096)), "unknown block id"),
        (lambda p: p.say_meta("P_BARRIER_ACK", struct.pack("<I", 1) + struct.pack(">I", 1)), "barrier"),
        (lambda p: p.say_meta("P_NEG_DREPLY", ack(8, 5, 4096)), "unknown block id"),
        (lambda p: p.say_meta("P_NEG_RS_DREPLY", ack(1 << 50, SYNCER, 4096)), "beyond the device"),
        (lambda p: p.say_meta("P_WRITE_ACK", ack(8, 1, 4096), volume=9), "unknown volume"),
        (lambda p: p.say("P_PROTOCOL", p.protocol()), "P_PROTOCOL"),
        (lambda p: p.say("P_AUTH_CHALLENGE", bytes(64)), "0x10"),
        (lambda p: p.close(p.meta), ""),
        (lambda p: p.close(p.data), ""),
    ],
)  # fmt: skip
def test_connected_peer_that_breaks_the_protocol_loses_the_connection(
    stages: list[PeerStage], act: Act, why: str
) -> None:
    stage = PeerStage(serves=True)
    stage.peer.meet(role=SECONDARY)
    act(stage.peer)
    check(stages, stage, why, is_final=False)


@pytest.mark.parametrize("word", [0x0000C883, 0x00001EA2, 0xFF8110A2, 0x000111F2, 0x000193A2])
def test_state_packets_that_claim_the_impossible_end_the_connection_or_nothing(
    stages: list[PeerStage], word: int
) -> None:
    stage = PeerStage(serves=True)
    stages.append(stage)
    stage.peer.meet(role=SECONDARY)
    stage.peer.say("P_STATE", struct.pack(">I", word))
    stage.cluster.run(1000)
    stage.peer.close()
    stage.node_goes_on()


@pytest.mark.parametrize(
    "act",
    [
        lambda p: p.say("P_BARRIER", bytes(8)),  # an epoch without writes
        lambda p: p.say_meta("P_PING_ACK"),
        lambda p: p.say_meta("P_STATE_CHG_REPLY", struct.pack(">i", 1)),
        lambda p: p.say("P_UNPLUG_REMOTE"),
        lambda p: p.say("P_DELAY_PROBE", bytes(8)),
        lambda p: p.say("P_SIZES", bytes(56), volume=7),
        lambda p: p.say("P_STATE", bytes(4), volume=7),
        lambda p: p.say("P_UUIDS", bytes(48), volume=60),
    ],
)
def test_what_means_nothing_is_ignored(stages: list[PeerStage], act: Act) -> None:
    stage = PeerStage(serves=False)
    stages.append(stage)
    peer, cluster = stage.peer, stage.cluster
    peer.meet(role=SECONDARY)
    act(peer)
    peer.say_meta("P_PING")
    peer.take("P_PING_ACK")
    assert cluster.node(0).is_connected
    assert not [name for name, *_ in peer.packets if name == "P_BARRIER_ACK"]


def test_sync_uuid_out_of_place_changes_no_generation(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=False)
    stages.append(stage)
    stage.peer.meet(role=SECONDARY)
    before = stage.cluster.volume(0).uuids
    stage.peer.say("P_SYNC_UUID", struct.pack(">Q", 0xDEAD))
    stage.cluster.run(1000)
    assert stage.cluster.volume(0).uuids == before
    stage.peer.close()
    stage.node_goes_on()


# ---- the peer is Primary and writes to us ----


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (data(0, bytes(513)), "beyond the device"),
        (data(0, b""), "beyond the device"),
        (data(1 << 40, BLOCK), "beyond the device"),
        (data((1 << 64) - 1, BLOCK), "beyond the device"),
        (data(0, bytes((1 << 20) + 512)), "wrong length"),
        (data((1 << 55) - 1, b"", flags=0x120), "beyond the device"),
    ],
)
def test_write_that_does_not_fit_is_refused(stages: list[PeerStage], body: bytes, why: str) -> None:
    stage = PeerStage(serves=False)
    content = stage.cluster.shells[0].data.content(0, stage.cluster.device_bytes)
    stage.peer.meet(role=PRIMARY)
    stage.peer.say("P_DATA", body)
    stages.append(stage)
    stage.cluster.until(stage.peer.has_ended, 20_000, "the end of the connection")
    stage.cluster.run(200)
    assert why in stage.cluster.node(0).reason + "".join(stage.cluster.events(0))
    assert stage.cluster.shells[0].data.content(0, stage.cluster.device_bytes) == content


def test_largest_write_and_reused_ids_are_fine(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=False)
    stages.append(stage)
    peer = stage.peer
    peer.meet(role=PRIMARY)
    for turn in range(3):
        peer.say("P_DATA", data(0, bytes((turn + 1,)) * (1 << 20), block_id=7, seq=turn + 1))
        assert peer.take("P_WRITE_ACK")[:20] == ack(0, 7, 1 << 20)[:20]
        peer.say("P_BARRIER", struct.pack(">I", 5) + bytes(4))  # the same number again and again
        assert peer.take("P_BARRIER_ACK") == struct.pack(">II", 5, 1)
    assert stage.cluster.shells[0].data.content(0, 1 << 20) == b"\3" * (1 << 20)


# ---- the handshake ----


def parameters(**changes: bytes) -> Act:
    def act(peer: ScriptedPeer) -> None:
        peer.features()
        peer.parameters(role=SECONDARY, disk=8, **changes)

    return act


def short_sizes(peer: ScriptedPeer) -> None:
    peer.features()
    peer.parameters(role=SECONDARY, disk=8, sizes=bytes(32))


def other_algorithms(peer: ScriptedPeer) -> None:
    peer.features()
    peer.parameters(role=SECONDARY, disk=8, sync_param89=struct.pack(">I", 250) + b"md5".ljust(64, b"\0") + bytes(80))


def without_uuids(peer: ScriptedPeer) -> None:
    peer.features()
    peer.parameters(role=SECONDARY, disk=8, leave_out="P_UUIDS")


@pytest.mark.parametrize(
    ("act", "why", "is_final"),
    [
        (lambda p: p.send(h80("P_CONNECTION_FEATURES", struct.pack(">III", 86, 15, 101) + bytes(68))), "80", True),
        (lambda p: p.send(h80("P_CONNECTION_FEATURES", struct.pack(">III", 110, 15, 120) + bytes(60))), "110", True),
        (lambda p: p.send(h80("P_PROTOCOL", p.protocol())), "P_CONNECTION_FEATURES", True),
        (lambda p: None, "did not answer", False),
        (short_sizes, "P_SIZES", False),
        (other_algorithms, "verify-alg", True),
        (without_uuids, "P_UUIDS", False),
        (parameters(protocol=struct.pack(">6I", 1, 0, 0, 0, 0, 0) + b"\0"), "protocol", True),
        (parameters(protocol=struct.pack(">6I", 9, 0, 0, 0, 0, 0) + b"\0"), "protocol", False),
        (parameters(protocol=struct.pack(">6I", 3, 0, 0, 0, 0, 0)), "P_PROTOCOL", False),
        (parameters(protocol=struct.pack(">6I", 3, 0, 0, 0, 0, 1) + b"\0"), "two-primaries", True),
        (parameters(uuids=struct.pack(">6Q", 0x1110, 0x2220, 0x3330, 0x4440, 0, 0)), "nrelated", True),
        (parameters(sizes=struct.pack(">QQQI", 64, 0, 64, 4096) + bytes(28)), "too small", True),
        (parameters(state=struct.pack(">I", 0x00001E82)), "State word", False),
    ],
)  # fmt: skip
def test_handshake_that_does_not_fit_is_refused(stages: list[PeerStage], act: Act, why: str, is_final: bool) -> None:
    stage = PeerStage(serves=True)
    stage.peer.connect()
    act(stage.peer)
    check(stages, stage, why, is_final=is_final)


def test_echo_of_our_own_challenge_is_refused(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=True, secret="right")
    peer = stage.peer
    peer.connect()
    peer.features()
    peer.say("P_AUTH_CHALLENGE", peer.take("P_AUTH_CHALLENGE"))
    check(stages, stage, "our own challenge", is_final=True)


@pytest.mark.parametrize("secret", [b"wrong", b""])
def test_wrong_secret_and_no_authentication_are_refused(stages: list[PeerStage], secret: bytes) -> None:
    stage = PeerStage(serves=True, secret="right")
    stage.peer.connect()
    stage.peer.features()
    if secret:
        stage.peer.authenticate(secret)
    else:
        stage.peer.say("P_PROTOCOL", stage.peer.protocol())
    check(stages, stage, "uthenticat", is_final=True)


def test_packets_on_the_meta_socket_before_the_handshake_wait(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=False)
    stages.append(stage)
    peer = stage.peer
    stage.cluster.judge()  # nobody has a version to speak yet
    peer.connect()
    peer.say_meta("P_PING")
    peer.features()
    peer.parameters(role=SECONDARY, disk=8)
    peer.take("P_PING_ACK")


# ---- pings, silence, strangers ----


def test_peer_that_answers_no_ping_is_given_up(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=True)
    stage.peer.meet()
    check(stages, stage, "ping", is_final=False)


def test_peer_that_reads_nothing_holds_up_nobody_for_long(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=True)
    stages.append(stage)
    stage.peer.meet()
    for _ in range(200):
        stage.peer.send(h100("P_PING") * 100, stage.peer.meta)
        if stage.peer.meta in stage.peer.ended:
            break
    stage.node_goes_on()


def test_strangers_cannot_keep_the_peer_out(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=False)
    stages.append(stage)
    peer = stage.peer
    for number in range(100):
        fd = peer.dial()
        if number % 3 == 1:
            peer.send(h80("P_INITIAL_DATA")[: 1 + number % 7], fd)
        elif number % 3 == 2:
            peer.send(b"GET / HTTP/1.1\r\n\r\n", fd)
    peer.meet()
    assert stage.cluster.node(0).is_connected


def test_meta_socket_that_ends_before_the_link_is_up_blocks_no_later_connection(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=False)
    stages.append(stage)
    first = stage.peer
    first.connect()
    first.take("P_CONNECTION_FEATURES")
    first.close(first.meta)
    first.send(h80("P_CONNECTION_FEATURES", struct.pack(">III", 86, 15, 101) + bytes(60)))
    stage.cluster.until(first.has_ended, 20_000, "the end of the first connection")
    first.packets.clear()
    first.meet()
    assert stage.cluster.node(0).is_connected


def test_peer_that_only_says_connected_when_a_resync_is_due_is_waited_for(stages: list[PeerStage]) -> None:
    """The mirrored decision is not followed: we wait, serve, and send nothing wrong."""
    stage = PeerStage(serves=True)
    stages.append(stage)
    peer = stage.peer
    peer.connect()
    peer.features()
    current, bitmap, *rest = struct.unpack(">6Q", peer.take("P_UUIDS"))
    older = struct.pack(">6Q", bitmap, 0, 0, 0, 0, 0) if bitmap > 4 else struct.pack(">6Q", 4, 0, 0, 0, 0, 4)
    sizes = struct.pack(">QQQI", stage.cluster.device_bytes // 512, 0, 0, 1 << 20) + bytes(28)
    for name, body in (
        ("P_PROTOCOL", peer.protocol()),
        ("P_SYNC_PARAM89", struct.pack(">I", 250) + bytes(144)),
        ("P_SIZES", sizes),
        ("P_UUIDS", older),
        ("P_STATE", state_word(SECONDARY, 8, 4)),
    ):
        peer.say(name, body)
    peer.say("P_STATE", state_word(SECONDARY, 10, 4, peer=1, pdsk=8))
    stage.cluster.run(500)
    assert stage.app is not None and stage.app.do("write", 8 * 4096, ms=60_000) == 0
    peer.close()
    stage.node_goes_on()
