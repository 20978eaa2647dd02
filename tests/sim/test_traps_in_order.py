# SPDX-License-Identifier: Apache-2.0
"""Traps that need more than one packet: what a peer may do wrong in the middle of a write, a resync, two Primaries.

As tests/sim/test_traps.py: the node loses the connection or waits for its operator; its data and its dirty bits are
right afterwards, and its application goes on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from repl.drbd.states import ConnectionState
from tests.sim.cluster import Setup
from tests.sim.peer_stage import NET, PRIMARY, SECONDARY, PeerStage, made_stages
from tests.sim.scripted_peer import SYNCER, ScriptedPeer, ack, data, state_word

BLOCK = 4096
WF_BITMAP_T, SYNC_TARGET, CONNECTED = 14, 17, 10
INCONSISTENT, UP_TO_DATE = 4, 8
LONG_CHUNK = 4096 - 16


@pytest.fixture
def stages() -> Iterator[list[PeerStage]]:
    yield from made_stages()


def ended(stage: PeerStage, why: str) -> None:
    cluster = stage.cluster
    cluster.until(stage.peer.has_ended, 20_000, "the end of the connection")
    cluster.run(200)
    said = cluster.node(0).reason + "".join(cluster.events(0))
    assert why in said, said
    assert cluster.node(0).cstate != ConnectionState.STANDALONE


# ---- our writes ----


def a_write(stage: PeerStage) -> tuple[int, bytes]:
    """The application writes a block: its operation, and the sub-header that the peer got."""
    assert stage.app is not None
    return stage.app.submit("write", 3 * BLOCK), stage.peer.take("P_DATA")[:24]


def write_ack(sub: bytes) -> bytes:
    return sub[:16] + struct.pack(">II", BLOCK, 0)


def barrier_ack(number: bytes, count: int) -> bytes:
    return number + struct.pack(">I", count)


@pytest.mark.parametrize(
    "answer",
    [
        lambda number: barrier_ack(number, 0),
        lambda number: barrier_ack(number, 2),
        lambda number: barrier_ack(number, 1 << 31),
        lambda number: barrier_ack(bytes((number[0] ^ 1, *number[1:])), 1),
    ],
    ids=["none", "one-more", "many", "another-number"],
)
def test_barrier_ack_with_the_wrong_count_or_number_ends_the_connection(
    stages: list[PeerStage], answer: Callable[[bytes], bytes]
) -> None:
    stage = PeerStage(serves=True)
    stages.append(stage)
    stage.peer.meet(role=SECONDARY)
    _, sub = a_write(stage)
    stage.peer.say_meta("P_WRITE_ACK", write_ack(sub))
    number = stage.peer.take("P_BARRIER")[:4]
    stage.peer.say_meta("P_BARRIER_ACK", answer(number))
    ended(stage, "barrier")
    assert stage.cluster.dirty_bits(0) >= 1, "what the peer did not confirm is marked"
    stage.node_goes_on()


def test_barrier_ack_before_the_write_ack_does_not_complete_the_write(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=True)
    stages.append(stage)
    peer, cluster = stage.peer, stage.cluster
    peer.meet(role=SECONDARY)
    op, sub = a_write(stage)
    # No barrier is out yet for a write that is not completed: whatever number is acked, it is none of ours.
    peer.say_meta("P_BARRIER_ACK", barrier_ack(bytes(4), 1))
    ended(stage, "barrier")
    cluster.until(lambda: cluster.op(op).state != 0, 10_000, "the write's end without the peer")
    assert cluster.dirty_bits(0) >= 1
    peer.say_meta("P_WRITE_ACK", write_ack(sub))  # into the closed socket
    stage.node_goes_on()


def test_what_is_written_while_the_nodes_agree_that_nothing_differs_is_resynced(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=True)
    stages.append(stage)
    peer, cluster, app = stage.peer, stage.cluster, stage.app
    assert app is not None
    peer.connect()
    peer.features()
    written: list[int] = []
    peer.parameters(role=SECONDARY, disk=UP_TO_DATE, meanwhile=lambda: written.append(app.do("write", 3 * BLOCK)))
    assert written == [0]
    ended(stage, "1 blocks were written while the nodes connected")
    assert cluster.dirty_bits(0) == 1
    peer.connect()
    peer.features()
    uuids = peer.take("P_UUIDS")
    assert struct.unpack_from(">Q", uuids, 32) == (1,), "the next handshake tells"
    stage.node_goes_on()


# ---- a resync from us: the peer is the target ----


def meet_as_target(stage: PeerStage) -> None:
    """The peer has what it had when it left; the node has written since: it waits for the peer's bitmap or sends it."""
    peer, cluster = stage.peer, stage.cluster
    assert stage.app is not None
    for block in (2, 5):
        assert stage.app.do("write", block * BLOCK, ms=60_000) == 0
    peer.connect()
    peer.features()
    sizes, uuids = peer.take("P_SIZES"), peer.take("P_UUIDS")
    bitmap = uuids[8:16]
    for name, body in (
        ("P_PROTOCOL", peer.protocol()),
        ("P_SYNC_PARAM89", struct.pack(">I", 250) + bytes(128) + struct.pack(">4I", 20, 10, 100, 102400)),
        ("P_SIZES", sizes),
        ("P_UUIDS", bitmap + bytes(40)),
        ("P_STATE", state_word(SECONDARY, 8, UP_TO_DATE)),
    ):
        peer.say(name, body)
    cluster.until(lambda: cluster.volume(0).state.conn == ConnectionState.WF_BITMAP_S, 10_000, "WFBitMapS")


def say_target(peer: ScriptedPeer, conn: int, disk: int = INCONSISTENT) -> None:
    peer.say("P_STATE", state_word(SECONDARY, conn, disk, peer=PRIMARY, pdsk=UP_TO_DATE))


def begin_as_target(stage: PeerStage) -> None:
    """WFBitMapT, and the node's bitmap is here."""
    meet_as_target(stage)
    say_target(stage.peer, WF_BITMAP_T)
    stage.peer.take("P_COMPRESSED_BITMAP")


def empty_bitmap(stage: PeerStage) -> list[bytes]:
    """A plain bitmap without a bit, in chunks of the right size, with its end mark."""
    bits = -(-stage.cluster.device_bytes // BLOCK)
    left = -(-bits // 64) * 8
    chunks = []
    while left:
        chunks.append(bytes(min(left, LONG_CHUNK)))
        left -= len(chunks[-1])
    return [*chunks, b""]


def until_source(stage: PeerStage) -> None:
    cluster = stage.cluster
    cluster.until(lambda: cluster.volume(0).state.conn == ConnectionState.SYNC_SOURCE, 10_000, "SyncSource")


def sync_as_target(stage: PeerStage) -> list[int]:
    """All of the bitmap exchange done right; the sectors that the node has marked."""
    peer = stage.peer
    begin_as_target(stage)
    for chunk in empty_bitmap(stage):
        peer.say("P_BITMAP", chunk)
    peer.take("P_SYNC_UUID")
    until_source(stage)
    say_target(peer, SYNC_TARGET)
    return [2 * 8, 5 * 8]


def test_resync_that_is_done_right_ends_connected(stages: list[PeerStage]) -> None:
    """The script itself is good: what the other tests see is their own wrong packet."""
    stage = PeerStage(serves=True)
    stages.append(stage)
    peer, cluster = stage.peer, stage.cluster
    for sector in sync_as_target(stage):
        peer.say("P_RS_DATA_REQUEST", ack(sector, SYNCER, BLOCK))
        peer.take("P_RS_DATA_REPLY")
        peer.say_meta("P_RS_WRITE_ACK", ack(sector, SYNCER, BLOCK))
    cluster.until(lambda: cluster.dirty_bits(0) == 0, 10_000, "all bits cleared")
    say_target(peer, CONNECTED, UP_TO_DATE)
    cluster.until(lambda: cluster.volume(0).state.conn == ConnectionState.CONNECTED, 10_000, "Connected")


def test_target_that_says_it_is_done_before_its_last_acks_clears_no_bit(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=True)
    stages.append(stage)
    peer, cluster = stage.peer, stage.cluster
    first, second = sync_as_target(stage)
    for sector in (first, second):
        peer.say("P_RS_DATA_REQUEST", ack(sector, SYNCER, BLOCK))
        peer.take("P_RS_DATA_REPLY")
    peer.say_meta("P_RS_WRITE_ACK", ack(first, SYNCER, BLOCK))
    cluster.until(lambda: cluster.dirty_bits(0) == 1, 10_000, "the first block's bit")
    say_target(peer, CONNECTED, UP_TO_DATE)
    cluster.run(1000)
    assert cluster.dirty_bits(0) == 1
    peer.close()
    cluster.run(1000)
    assert cluster.dirty_bits(0) == 1, "the next connection has to copy it"
    stage.node_goes_on()


@pytest.mark.parametrize(
    "chunks",
    [
        lambda good: [good[0][:-8], *good[1:]],
        lambda good: [good[0] + bytes(8), *good[1:]],
        lambda good: [b""],
        lambda good: [good[0], bytes(8)],
        lambda good: [*good, b""],
    ],
    ids=["short-chunk", "long-chunk", "only-the-end", "no-end-but-more", "two-ends"],
)
def test_bitmap_in_wrong_pieces_ends_the_connection(
    stages: list[PeerStage], chunks: Callable[[list[bytes]], list[bytes]]
) -> None:
    stage = PeerStage(serves=True)
    stages.append(stage)
    begin_as_target(stage)
    dirty = stage.cluster.dirty_bits(0)
    for chunk in chunks(empty_bitmap(stage)):
        stage.peer.say("P_BITMAP", chunk)
    ended(stage, "P_BITMAP")
    assert stage.cluster.dirty_bits(0) >= dirty
    stage.node_goes_on()


def test_bitmap_without_its_end_is_waited_for_and_the_operator_is_obeyed(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=True)
    stages.append(stage)
    peer, cluster, app = stage.peer, stage.cluster, stage.app
    assert app is not None
    begin_as_target(stage)
    dirty = cluster.dirty_bits(0)
    for chunk in empty_bitmap(stage)[:-1]:
        peer.say("P_BITMAP", chunk)
    for _ in range(4):
        cluster.run(500)
        peer.read()
        peer.say_meta("P_PING_ACK")
    assert cluster.volume(0).state.conn == ConnectionState.WF_BITMAP_S and cluster.dirty_bits(0) >= dirty
    assert app.do("read", 3 * BLOCK) == 0
    cluster.ask(0, "disconnect", force=True)
    assert cluster.dirty_bits(0) >= dirty
    stage.node_goes_on()


def test_targets_bitmap_before_ours_is_complete_costs_no_bit(stages: list[PeerStage]) -> None:
    """Both bitmaps cross: the union is what has to be copied, whichever comes first."""
    stage = PeerStage(serves=True)
    stages.append(stage)
    peer, cluster = stage.peer, stage.cluster
    meet_as_target(stage)
    before = cluster.dirty_bits(0)
    own = empty_bitmap(stage)
    own[0] = b"\1" + own[0][1:]  # the peer's own bit: block 0
    for chunk in own:  # before it has even said that it is WFBitMapT
        peer.say("P_BITMAP", chunk)
    say_target(peer, WF_BITMAP_T)
    cluster.run(2000)
    assert cluster.volume(0).state.conn == ConnectionState.SYNC_SOURCE
    assert cluster.dirty_bits(0) == before + 1
    peer.close()
    stage.node_goes_on()


# ---- the peer is Primary ----

TRIM_BYTES_MAX = 128 << 20


def trim(sector: int, length: int, *, flags: int = 0x140) -> bytes:
    return data(sector, b"", flags=flags) + struct.pack(">I", length)


def test_trim_of_128_mib_is_done_and_a_longer_one_refused(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=False, setup=Setup(net=NET, disk_bytes=132 << 20))
    stages.append(stage)
    peer, cluster = stage.peer, stage.cluster
    peer.meet(role=PRIMARY)
    peer.say("P_DATA", data(8, b"x" * BLOCK, seq=1))
    peer.take("P_WRITE_ACK")
    peer.say("P_TRIM", data(0, b"", flags=0x140, seq=2) + struct.pack(">I", TRIM_BYTES_MAX))
    assert peer.take("P_WRITE_ACK", 60_000)[:20] == ack(0, 1, TRIM_BYTES_MAX)[:20]
    assert cluster.shells[0].data.content(0, 1 << 20) == bytes(1 << 20)
    peer.say("P_TRIM", data(0, b"", flags=0x140, seq=3) + struct.pack(">I", TRIM_BYTES_MAX + 512))
    ended(stage, "beyond the device")


def test_zeroes_while_an_integrity_digest_is_agreed_lose_nothing(stages: list[PeerStage]) -> None:
    """There is no payload that a digest could protect; the kernel module refuses it, and it is never sent by us."""
    stage = PeerStage(serves=False, setup=Setup(net=replace(NET, data_integrity_alg="crc32c")))
    stages.append(stage)
    peer, cluster = stage.peer, stage.cluster
    before = cluster.shells[0].data.content(0, cluster.device_bytes)
    peer.connect()
    peer.features()
    peer.parameters(role=PRIMARY, disk=8, protocol=peer.protocol()[:-1] + b"crc32c\0")
    peer.take("P_STATE")
    peer.say("P_STATE", state_word(PRIMARY, CONNECTED, 8, peer=SECONDARY, pdsk=8))
    peer.wait_connected()
    peer.say("P_ZEROES", trim(0, 2 * BLOCK, flags=0x500))
    cluster.run(2000)
    after = cluster.shells[0].data.content(0, cluster.device_bytes)
    assert after in (before, bytes(2 * BLOCK) + before[2 * BLOCK :])


def test_sequence_number_that_never_comes_ends_the_connection_after_the_ping_timeout(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=True, setup=Setup(net=replace(NET, two_primaries=True)))
    stages.append(stage)
    peer, cluster = stage.peer, stage.cluster
    content = cluster.shells[0].data.content(0, BLOCK)
    peer.connect()
    peer.features()
    peer.parameters(role=PRIMARY, disk=8, protocol=peer.protocol(two=1))
    peer.take("P_STATE")
    peer.say("P_STATE", state_word(PRIMARY, CONNECTED, 8, peer=PRIMARY, pdsk=8))
    peer.wait_connected()
    peer.say("P_DATA", data(0, b"g" * BLOCK, seq=5))
    for _ in range(4):
        cluster.run(300)
        peer.read()
        peer.say_meta("P_PING_ACK")
    ended(stage, "sequence numbers")
    assert cluster.shells[0].data.content(0, BLOCK) == content, "a write out of order was done"
    stage.node_goes_on()


# ---- the named poisonous ones, in the middle of things ----


@pytest.mark.parametrize("state", ["connected", "source"])
def test_verify_request_without_an_algorithm_ends_the_connection(stages: list[PeerStage], state: str) -> None:
    stage = PeerStage(serves=True)
    stages.append(stage)
    if state == "source":
        sync_as_target(stage)
    else:
        stage.peer.meet(role=SECONDARY)
    stage.peer.say("P_OV_REQUEST", ack(0, SYNCER, BLOCK))
    ended(stage, "P_OV_REQUEST")
    stage.node_goes_on()


@pytest.mark.parametrize(("sector", "size"), [(0, 2 * BLOCK), (0, 512), (4, BLOCK), (0, 0), (1 << 50, BLOCK)])
def test_verify_request_of_another_size_is_answered_right_or_ends_the_connection(
    stages: list[PeerStage], sector: int, size: int
) -> None:
    stage = PeerStage(serves=True, setup=Setup(net=replace(NET, verify_alg="crc32c")))
    stages.append(stage)
    peer, cluster = stage.peer, stage.cluster
    peer.connect()
    peer.features()
    params = struct.pack(">I", 250) + b"crc32c".ljust(128, b"\0") + struct.pack(">4I", 20, 10, 100, 102400)
    peer.parameters(role=SECONDARY, disk=8, sync_param89=params)
    peer.take("P_STATE")
    peer.say("P_STATE", state_word(SECONDARY, CONNECTED, 8, peer=PRIMARY, pdsk=8))
    peer.wait_connected()
    peer.say("P_STATE_CHG_REQ", struct.pack(">II", 0x1F0, 18 << 4))
    peer.say("P_OV_REQUEST", ack(sector, SYNCER, size))
    cluster.run(1000)
    peer.read()
    for name, _, body in peer.packets:
        if name == "P_OV_REPLY":
            assert struct.unpack_from(">Q", body)[0] == sector and struct.unpack_from(">I", body, 16)[0] == size
    peer.close()
    stage.node_goes_on()


def test_sync_uuid_to_a_source_changes_no_generation(stages: list[PeerStage]) -> None:
    stage = PeerStage(serves=True)
    stages.append(stage)
    sync_as_target(stage)
    before = stage.cluster.volume(0).uuids
    stage.peer.say("P_SYNC_UUID", struct.pack(">Q", 0xDEAD))
    stage.cluster.run(500)
    assert stage.cluster.volume(0).uuids == before
    stage.peer.close()
    stage.cluster.run(500)
    assert 0xDEAD not in vars_of(stage), "the peer's word became a generation"
    stage.node_goes_on()


def vars_of(stage: PeerStage) -> tuple[int, ...]:
    uuids = stage.cluster.volume(0).uuids
    return uuids.current, uuids.bitmap, uuids.history1, uuids.history2
