# SPDX-License-Identifier: Apache-2.0
"""The protocol checker bites: a run that it accepts, with one packet changed, is refused with the right words."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from tests.sim.app import Load
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.protocol_checker import ProtocolChecker, Volume, Wrong, take_resync
from tests.sim.protocol_tables import CODES

_RECORD = struct.Struct("<Qiii7I")


@dataclass(frozen=True)
class Record:
    fields: tuple[int, ...]
    body: bytes

    @property
    def command(self) -> int:
        return self.fields[4]

    def change(self, **changes: int) -> Record:
        names = ("at_ns", "node", "socket", "peer_socket", "command", "volume", "format", "pad", "length", "kept", "_")
        values = dict(zip(names, self.fields, strict=True)) | changes
        return Record(tuple(values.values()), self.body)

    def with_body(self, body: bytes) -> Record:
        return replace(self.change(length=self.fields[8] + len(body) - len(self.body), kept=len(body)), body=body)

    def flip(self, at: int, bits: int = 1) -> Record:
        return replace(self, body=self.body[:at] + bytes((self.body[at] ^ bits,)) + self.body[at + 1 :])

    def encode(self) -> bytes:
        return _RECORD.pack(*self.fields) + self.body


@functools.cache
def good_run() -> tuple[Record, ...]:
    """A first sync with authentication, writes with flushes and trims, a cut, a resync."""
    records = bytearray()
    net = replace(QUICK_NET, cram_hmac_alg="sha1", shared_secret="right")
    with Cluster(3, Setup(net=net)) as cluster:
        tapped = cluster.world.tapped

        def keep() -> bytes:
            taken = tapped()
            records.extend(taken)
            return taken

        cluster.world.tapped = keep  # type: ignore[method-assign]
        cluster.connect_fresh(skip_initial_sync=False)
        app = cluster.serve(0)
        app.load(Load(ops=200, think_max_ms=2, trim_percent=5, flush_percent=10))
        cluster.until(lambda: app.is_idle, 60_000, "the writes")
        cluster.cut(silent=False)
        cluster.run(500)
        app.write(3, 4, 5)
        cluster.heal()
        cluster.until(lambda: cluster.in_sync, 60_000, "both nodes in sync")
        app.write(7)
        cluster.run(100)
    found, at = [], 0
    while at < len(records):
        fields = _RECORD.unpack_from(records, at)
        at += _RECORD.size
        found.append(Record(fields, bytes(records[at : at + fields[9]])))
        at += fields[9]
    return tuple(found)


def problems(records: list[Record]) -> str:
    checker = ProtocolChecker()
    checker.feed(b"".join(r.encode() for r in records))
    return "\n".join(checker.problems)


def test_good_run_is_accepted() -> None:
    assert problems(list(good_run())) == ""
    assert len({r.command for r in good_run()}) > 20


Edit = Callable[[Record], list[Record]]


def changed(edit: Callable[[Record], Record]) -> Edit:
    return lambda record: [edit(record)]


@pytest.mark.parametrize(
    ("packet", "edit", "words"),
    [
        ("P_DATA", changed(lambda r: r.change(pad=1)), "pad"),
        ("P_DATA", changed(lambda r: r.change(format=80)), "h80"),
        ("P_DATA", changed(lambda r: r.flip(0, 0x40)), "sector"),
        ("P_DATA", changed(lambda r: r.change(length=r.fields[8] + 1)), "bytes"),
        ("P_DATA", changed(lambda r: r.flip(22, 0x80)), "dp_flags"),
        ("P_DATA", lambda r: [r, r], "seq_num"),
        ("P_WRITE_ACK", changed(lambda r: r.flip(15)), "names no write"),
        ("P_WRITE_ACK", changed(lambda r: r.flip(18, 2)), "not the write's"),
        ("P_WRITE_ACK", changed(lambda r: r.change(command=0x15)), "not asked for"),
        ("P_WRITE_ACK", lambda r: [], "before the ack"),
        ("P_BARRIER", lambda r: [r, r], "without writes"),
        ("P_BARRIER", changed(lambda r: r.flip(0)), "the oldest is"),
        ("P_BARRIER_ACK", changed(lambda r: r.flip(7)), "writes, there were"),
        ("P_BARRIER_ACK", lambda r: [r, r], "no barrier waits"),
        ("P_UUIDS", lambda r: [], "no P_UUIDS"),
        ("P_SIZES", changed(lambda r: r.with_body(r.body[:32])), "32 bytes"),
        ("P_STATE", changed(lambda r: r.flip(0, 0x80)), "upper bits"),
        ("P_PROTOCOL", lambda r: [r, r], "twice"),
        ("P_PROTOCOL", changed(lambda r: r.change(volume=1)), "volume 1"),
        ("P_SYNC_UUID", lambda r: [r, r], "nobody waits"),
        ("P_RS_THIN_REQ", changed(lambda r: r.flip(19, 2)), "bytes"),
        ("P_RS_DATA_REPLY", lambda r: [r, r], "nobody asked"),
        ("P_RS_WRITE_ACK", lambda r: [r, r], "seq_num"),
        ("P_COMPRESSED_BITMAP", lambda r: [r, r], "after its end"),
        ("P_PING_ACK", lambda r: [r, r, r], "without a ping"),
        ("P_AUTH_CHALLENGE", lambda r: [r, r], "one challenge"),
        ("P_STATE_CHG_REPLY", lambda r: [r, r], "nobody asked"),
        ("P_CONNECTION_FEATURES", changed(lambda r: r.with_body(r.body + bytes(8))), "80 bytes"),
        ("P_INITIAL_DATA", lambda r: [], "not on a data socket"),
    ],
)
def test_wrong_packet_is_refused(packet: str, edit: Edit, words: str) -> None:
    records = list(good_run())
    at = next((i for i, r in enumerate(records) if r.command == CODES[packet]), -1)
    assert at >= 0, f"the run has no {packet}"
    records[at : at + 1] = edit(records[at])
    assert words in problems(records)


def test_full_sync_may_begin_when_its_answer_is_stuck_on_the_other_socket() -> None:
    """The node that was asked does not know yet that the socket for its answers is broken."""
    with Cluster(1, Setup(wake_max_us=30_000, latency_max_us=300)) as cluster:
        cluster.connect_fresh()
        cluster.ask(0, "primary")
        meta = cluster.checker.meta_connection(0)
        (socket,) = (fd for fd in cluster.world.streams(0) if fd // 2 == meta // 2)
        cluster.fire(1, "invalidate", volume=0)
        cluster.world.lib.re_sim_socket_reset(cluster.world.sim, socket)
        sent = cluster.world.lib.re_sim_packets_sent
        cluster.until(lambda: sent(cluster.world.sim, 0, CODES["P_SYNC_UUID"]), 5000, "the full sync's beginning")
        cluster.until(lambda: cluster.in_sync, 60_000, "both in sync again")
        cluster.run(10)


def test_request_that_was_asked_again_is_answered_in_parts_twice() -> None:
    """The cancellation of the first one was late on the other socket: both are answered, nothing a third time."""
    asked = Volume(resync={0: (262144, 0x32)}, cancelled=[(0, 262144, 0x32)])
    for _ in range(2):
        for sector, size in ((0, 225280), (440, 36864)):
            assert take_resync(asked, sector, size, in_parts=True) == 0x32
    with pytest.raises(Wrong, match="nobody asked"):
        take_resync(asked, 0, 225280, in_parts=True)


def test_only_a_node_that_writes_or_is_ahead_marks_blocks() -> None:
    """A node that was demoted while it was Ahead marks what late acks of a resync name (decision 0032)."""
    records = list(good_run())
    state = next(r for r in reversed(records) if r.command == CODES["P_STATE"] and r.fields[1] == 1)
    word = int.from_bytes(state.body, "big")
    assert word & 3 == 2, "a Secondary's"
    ahead = state.with_body((word & ~(31 << 4) | 22 << 4).to_bytes(4, "big"))
    marks = state.change(command=CODES["P_OUT_OF_SYNC"]).with_body(struct.pack(">QII", 8, 4096, 0))
    assert "from a Secondary" in problems([*records, marks])
    assert problems([*records, ahead, marks]) == ""
