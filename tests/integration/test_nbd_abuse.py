# SPDX-License-Identifier: Apache-2.0
"""NBD clients that do what they must not, against a real daemon: each ends alone, nobody else notices.

Most of these have ended or blocked a server that is in use somewhere.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd.client import NbdClient
from nbd.constants import (
    IHAVEOPT,
    NBDMAGIC,
    OPTION_REPLY_MAGIC,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    ClientFlag,
    Command,
    CommandFlag,
    Errno,
    Option,
    Reply,
)
from repl.errors import PeerLost
from repl.limits import NBD_CLIENTS_MAX, NBD_REQUEST_BYTES_MAX
from tests.integration.conftest import MakeCluster
from tests.lib.cluster import ALICE, MIB, Cluster, at_most
from tests.lib.load import TaggedRegion, writing
from tests.lib.tools import require_engine, run_libnbd
from tests.lib.wait import wait_for

SIZE_MIB = 64
RSS_GROWTH_BYTES_MAX = 128 * MIB
REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")
runs = itertools.count(1)


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    require_engine()
    with Cluster(size_mib=SIZE_MIB) as found:
        found.start_single()
        yield found


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """After each test the daemon is the same process, has no client left and serves a new one."""
    process = shared.nodes[ALICE].process
    assert process is not None
    pid = process.pid
    yield shared
    shared.wait("no client left", lambda: shared.volume(ALICE)["open"] == 0)
    assert process.is_running and process.pid == pid
    with NbdClient(shared.url(ALICE)) as client:
        client.write(0, b"alive" + bytes(507))
        assert client.read(0, 5 + 507)[:5] == b"alive"
    shared.wait("it left", lambda: shared.volume(ALICE)["open"] == 0)
    assert not shared.bad_log_lines()


class Raw:
    """A socket on which anything can be said."""

    def __init__(self, cluster: Cluster, *, receive_buffer: int = 0) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(20)
        self.sock.connect(str(cluster.nodes[ALICE].run_dir.nbd))
        self.size_bytes = 0

    def greet(self, flags: int = ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES) -> None:
        assert struct.unpack(">QQ", self.receive(18)[:16]) == (NBDMAGIC, IHAVEOPT)
        self.send(struct.pack(">I", flags))

    def option(self, number: int, data: bytes, length: int | None = None) -> None:
        self.send(struct.pack(">QII", IHAVEOPT, number, len(data) if length is None else length) + data)

    def option_reply(self) -> tuple[int, bytes]:
        magic, _option, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == OPTION_REPLY_MAGIC
        return kind, self.receive(length)

    def go(self, *, structured: bool = False) -> None:
        self.greet()
        if structured:
            self.option(Option.STRUCTURED_REPLY, b"")
            assert self.option_reply()[0] == Reply.ACK
        self.option(Option.GO, struct.pack(">I", 4) + b"r0/0" + struct.pack(">H", 0))
        while True:
            kind, data = self.option_reply()
            if kind == Reply.ACK:
                return
            assert kind == Reply.INFO
            self.size_bytes = struct.unpack(">Q", data[2:10])[0]

    def request(self, command: int, offset: int, length: int, *, flags: int = 0, cookie: int = 1) -> None:
        self.send(REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length))

    def reply(self, payload_bytes: int = 0) -> tuple[int, int]:
        """(error, cookie) of a simple reply."""
        magic, error, cookie = REPLY.unpack(self.receive(REPLY.size))
        assert magic == SIMPLE_REPLY_MAGIC
        if not error:
            self.receive(payload_bytes)
        return error, cookie

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            data = self.sock.recv(min(length - len(parts), MIB))
            if not data:
                raise EOFError(f"the end after {len(parts)} of {length} bytes")
            parts += data
        return bytes(parts)

    def wait_cut(self) -> None:
        """The server has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while self.sock.recv(MIB):
                pass

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def memory_bytes(cluster: Cluster) -> int:
    """Resident set of the daemon."""
    process = cluster.nodes[ALICE].process
    assert process is not None
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def bystander(cluster: Cluster) -> Iterator[None]:
    """Another client, connected and busy during the block, gets all its answers at once."""
    region = TaggedRegion(run=next(runs), writer=1, offset_sectors=32 * MIB // 512, blocks=64)
    with NbdClient(cluster.url(ALICE)) as client:
        client.zero(32 * MIB, 64 * 4096)
    with writing(region, cluster.url(ALICE)) as load:
        load.wait_writes(20)
        yield
        load.wait_writes(20)
    assert load.slowest_s < 5, f"another client waited {load.slowest_s:.1f} s"
    with NbdClient(cluster.url(ALICE)) as client:
        assert not region.problems(client.read)


# --- negotiation ---


def test_unknown_client_flags_end_that_client(cluster: Cluster) -> None:
    with bystander(cluster), Raw(cluster) as raw:
        raw.greet(0xFFFFFFFF)
        raw.wait_cut()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0\0\0",
        struct.pack(">I", 4) + b"r0",
        struct.pack(">I", 0xFFFFFFFF) + b"r0/0" + bytes(2),
        struct.pack(">I", 4) + b"r0/0",
        struct.pack(">I", 4) + b"r0/0" + struct.pack(">H", 1),
        struct.pack(">I", 4) + b"r0/0" + struct.pack(">H", 0xFFFF),
        struct.pack(">I", 4) + b"r0/0" + struct.pack(">H", 0) + b"more",
    ],
)
def test_short_or_long_go_is_answered_with_an_error_and_the_client_may_try_again(cluster: Cluster, data: bytes) -> None:
    with Raw(cluster) as raw:
        raw.greet()
        raw.option(Option.GO, data)
        assert raw.option_reply()[0] == Reply.ERR_INVALID
        raw.option(Option.GO, struct.pack(">I", 0) + struct.pack(">H", 0))
        assert raw.option_reply()[0] == Reply.INFO


def test_option_of_four_gigabytes_ends_the_client_without_taking_memory(cluster: Cluster) -> None:
    before = memory_bytes(cluster)
    with Raw(cluster) as raw:
        raw.greet()
        raw.option(Option.GO, b"x" * 100_000, length=0xFFFFFFFF)
        with contextlib.suppress(OSError, EOFError):
            raw.wait_cut()
    assert memory_bytes(cluster) - before < RSS_GROWTH_BYTES_MAX


def test_endless_options_end_the_client(cluster: Cluster) -> None:
    with Raw(cluster) as raw:
        raw.greet()
        with contextlib.suppress(OSError):
            for _ in range(1000):
                raw.option(Option.LIST, b"")
        raw.wait_cut()


@pytest.mark.parametrize("with_greeting", [False, True])
def test_hundred_megabytes_of_garbage_are_cut_off_at_once(cluster: Cluster, with_greeting: bool) -> None:
    before = memory_bytes(cluster)
    sent = 0
    with at_most(5, "cutting the client off"), Raw(cluster) as raw:
        if with_greeting:
            raw.greet()
        with contextlib.suppress(OSError):
            while sent < 100 * MIB:
                raw.send(b"\xa5" * MIB)
                sent += MIB
    assert sent < 8 * MIB, f"{sent} bytes were taken"
    assert memory_bytes(cluster) - before < RSS_GROWTH_BYTES_MAX


def test_garbage_after_the_negotiation_is_cut_off_at_once(cluster: Cluster) -> None:
    sent = 0
    with bystander(cluster), Raw(cluster) as raw:
        raw.go()
        with contextlib.suppress(OSError):
            while sent < 100 * MIB:
                raw.send(b"\xa5" * MIB)
                sent += MIB
    assert sent < 8 * MIB


def test_silent_and_dripping_clients_are_dropped_after_the_configured_time(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=48, nbd="negotiation-timeout 2;")
    cluster.start_single()
    with bystander(cluster), Raw(cluster) as silent, Raw(cluster) as dripping:
        begin = time.monotonic()
        dripping.greet()
        name = struct.pack(">QII", IHAVEOPT, Option.GO, 10)
        is_cut = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                for byte in name:
                    dripping.send(bytes((byte,)))
                    if is_cut.wait(0.3):
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        silent.wait_cut()
        dripping.wait_cut()
        is_cut.set()
        thread.join()
        took = time.monotonic() - begin
        assert 1.5 < took < 6


def test_client_above_the_limit_is_turned_away_and_welcome_later(cluster: Cluster) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Raw(cluster)) for _ in range(NBD_CLIENTS_MAX)]
        for raw in clients:
            raw.go()
        with Raw(cluster) as late:
            late.wait_cut()
        for number, raw in enumerate(clients):
            raw.request(Command.WRITE, number * 4096, 4096, cookie=number)
            raw.send(bytes([number]) * 4096)
        for number, raw in enumerate(clients):
            assert raw.reply() == (0, number)
        clients[0].request(Command.DISC, 0, 0)
        cluster.wait("a place", lambda: cluster.volume(ALICE)["open"] < NBD_CLIENTS_MAX)
        with NbdClient(cluster.url(ALICE)) as client:
            assert client.read(63 * 4096, 4096) == bytes([63]) * 4096
    assert "64 clients are connected" in cluster.log(ALICE)


def test_lower_limit_of_the_configuration_counts(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16, nbd="max-clients 2;")
    cluster.start_single()
    with NbdClient(cluster.url(ALICE)), NbdClient(cluster.url(ALICE)):
        with pytest.raises((PeerLost, OSError)):
            NbdClient(cluster.url(ALICE))


def test_crowd_that_connects_and_leaves_leaves_nothing_behind(cluster: Cluster) -> None:
    process = cluster.nodes[ALICE].process
    assert process is not None
    descriptors = Path(f"/proc/{process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    with bystander(cluster):
        for turn in range(300):
            raw = Raw(cluster)
            if turn % 3 == 1:
                raw.greet()
            elif turn % 3 == 2:
                raw.go()
                raw.request(Command.READ, 0, MIB)
            raw.close()
    wait_for(lambda: len(list(descriptors.iterdir())) <= before + 2, 15, "descriptors are closed")


# --- requests ---


def test_bad_request_magic_ends_only_that_client(cluster: Cluster) -> None:
    with bystander(cluster), Raw(cluster) as raw:
        raw.go()
        raw.request(Command.READ, 0, 512, cookie=7)
        raw.send(REQUEST.pack(0xDEADBEEF, 0, 0, 8, 0, 512))
        with contextlib.suppress(EOFError, ConnectionError):
            raw.reply(512)
        raw.wait_cut()


@pytest.mark.parametrize("command", [8, 9, 100, 0xFFFF])
def test_unknown_command_is_refused_and_the_client_goes_on(cluster: Cluster, command: int) -> None:
    with Raw(cluster) as raw:
        raw.go()
        raw.request(command, 0, 512, cookie=3)
        assert raw.reply() == (Errno.EINVAL, 3)
        raw.request(Command.READ, 0, 512, cookie=4)
        assert raw.reply(512) == (0, 4)


def test_fast_zero_is_done_or_refused_but_never_ends_the_client(cluster: Cluster) -> None:
    with Raw(cluster) as raw:
        raw.go()
        raw.request(Command.WRITE, MIB, 4096)
        raw.send(b"f" * 4096)
        assert raw.reply() == (0, 1)
        raw.request(Command.WRITE_ZEROES, MIB, 4096, flags=CommandFlag.FAST_ZERO)
        error, _ = raw.reply()
        assert error in (0, Errno.ENOTSUP)
        raw.request(Command.READ, MIB, 4096)
        magic, read_error, _ = REPLY.unpack(raw.receive(16))
        assert (magic, read_error) == (SIMPLE_REPLY_MAGIC, 0)
        assert raw.receive(4096) == (bytes(4096) if error == 0 else b"f" * 4096)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (Command.READ, CommandFlag.FAST_ZERO),
        (Command.WRITE, CommandFlag.FAST_ZERO),
        (Command.TRIM, CommandFlag.NO_HOLE),
        (Command.FLUSH, CommandFlag.REQ_ONE),
        (Command.READ, CommandFlag.DF),
        (Command.WRITE_ZEROES, 0x8000),
        (Command.BLOCK_STATUS, 0),
    ],
)
def test_flag_that_was_never_advertised_is_refused_and_the_client_goes_on(
    cluster: Cluster, command: int, flags: int
) -> None:
    with Raw(cluster) as raw:
        raw.go()
        length = 0 if command == Command.FLUSH else 512
        raw.request(command, 0, length, flags=flags, cookie=5)
        if command == Command.WRITE:
            raw.send(bytes(512))
        assert raw.reply() == (Errno.EINVAL, 5)
        raw.request(Command.READ, 0, 512, cookie=6)
        assert raw.reply(512) == (0, 6)


@pytest.mark.parametrize(
    ("command", "offset", "length", "error"),
    [
        (Command.READ, 0, 0xFFFFFE00, Errno.EINVAL),
        (Command.READ, 0, NBD_REQUEST_BYTES_MAX + 512, Errno.EINVAL),
        (Command.READ, 2**64 - 512, 512, Errno.EINVAL),
        (Command.READ, 2**63, 512, Errno.EINVAL),
        (Command.READ, 2**64 - 512, 0xFFFFFE00, Errno.EINVAL),
        (Command.TRIM, 0, 0xFFFFFE00, Errno.EINVAL),
        (Command.TRIM, 2**64 - 512, 1024, Errno.EINVAL),
        (Command.WRITE_ZEROES, 0, 0xFFFFFE00, Errno.ENOSPC),
        (Command.CACHE, 2**64 - 512, 1024, Errno.EINVAL),
        (Command.READ, 0, 0, Errno.EINVAL),
        (Command.READ, 1, 512, Errno.EINVAL),
        (Command.READ, 0, 511, Errno.EINVAL),
    ],
)
def test_range_that_cannot_be_is_refused_and_the_client_goes_on(
    cluster: Cluster, command: int, offset: int, length: int, error: int
) -> None:
    with Raw(cluster) as raw:
        raw.go()
        raw.request(command, offset, length, cookie=9)
        assert raw.reply() == (error, 9)
        raw.request(Command.READ, 0, 512, cookie=10)
        assert raw.reply(512) == (0, 10)


def test_write_of_four_gigabytes_is_refused_without_reading_it(cluster: Cluster) -> None:
    before = memory_bytes(cluster)
    with bystander(cluster), Raw(cluster) as raw:
        raw.go()
        raw.request(Command.WRITE, 0, 0xFFFFFE00, cookie=11)
        assert raw.reply()[0] in (Errno.EINVAL, Errno.ENOSPC)
        raw.wait_cut()
    assert memory_bytes(cluster) - before < RSS_GROWTH_BYTES_MAX


def test_write_beyond_the_end_is_read_past_and_refused(cluster: Cluster) -> None:
    with Raw(cluster) as raw:
        raw.go()
        raw.request(Command.WRITE, raw.size_bytes, 8 * MIB, cookie=12)
        raw.send(b"?" * (8 * MIB))
        assert raw.reply() == (Errno.ENOSPC, 12)
        raw.request(Command.READ, 0, 512, cookie=13)
        assert raw.reply(512) == (0, 13)


# --- clients that vanish or dawdle ---


@pytest.mark.parametrize("structured", [False, True])
def test_client_gone_with_replies_pending_disturbs_nobody(cluster: Cluster, structured: bool) -> None:
    with bystander(cluster):
        for _ in range(20):
            raw = Raw(cluster)
            raw.go(structured=structured)
            for number in range(64):
                raw.request(Command.READ, number * MIB % (48 * MIB), MIB, cookie=number)
            raw.close()


def test_client_gone_in_the_middle_of_a_write_disturbs_nobody(cluster: Cluster) -> None:
    with bystander(cluster):
        for turn in range(20):
            raw = Raw(cluster)
            raw.go()
            raw.request(Command.WRITE, 0, MIB)
            raw.send(b"w" * (turn * 50_000))
            raw.close()


def test_client_gone_in_the_middle_of_a_header_disturbs_nobody(cluster: Cluster) -> None:
    with bystander(cluster):
        for cut in range(1, REQUEST.size):
            raw = Raw(cluster)
            raw.go()
            raw.send(REQUEST.pack(REQUEST_MAGIC, 0, Command.READ, 1, 0, 512)[:cut])
            raw.close()


def test_write_that_stalls_in_its_payload_blocks_nobody(cluster: Cluster) -> None:
    with Raw(cluster) as raw:
        raw.go()
        raw.request(Command.WRITE, 32 * MIB, MIB)
        raw.send(b"s" * 1000)
        with bystander(cluster):
            pass
        raw.send(b"s" * (MIB - 1000))
        assert raw.reply() == (0, 1)


def test_ten_thousand_pipelined_requests_are_all_answered_once(cluster: Cluster) -> None:
    count = 10_000
    with Raw(cluster) as raw:
        raw.go()

        def send() -> None:
            for number in range(count):
                block = number % 1000 * 4096
                if number % 3 == 0:
                    header = REQUEST.pack(REQUEST_MAGIC, 0, Command.WRITE, number, block, 4096)
                    raw.send(header + number.to_bytes(4, "big") * 1024)
                elif number % 3 == 1:
                    raw.request(Command.READ, block, 4096, cookie=number)
                else:
                    raw.request(Command.FLUSH, 0, 0, cookie=number)

        thread = threading.Thread(target=send)
        with at_most(30, "ten thousand requests"):
            thread.start()
            seen = set()
            for _ in range(count):
                magic, error, cookie = REPLY.unpack(raw.receive(16))
                assert (magic, error) == (SIMPLE_REPLY_MAGIC, 0)
                if cookie % 3 == 1:
                    raw.receive(4096)
                assert cookie not in seen
                seen.add(cookie)
            thread.join()
        assert len(seen) == count


def test_reader_that_does_not_read_slows_nobody_down_and_costs_little_memory(cluster: Cluster) -> None:
    before = memory_bytes(cluster)
    with Raw(cluster, receive_buffer=4096) as raw:
        raw.go()
        raw.sock.settimeout(0.2)
        asked = 0
        with contextlib.suppress(TimeoutError):
            while asked < 4000:
                raw.request(Command.READ, asked % 32 * MIB, MIB, cookie=asked)
                asked += 1
        with bystander(cluster):
            pass
        grown = memory_bytes(cluster) - before
        assert grown < RSS_GROWTH_BYTES_MAX, f"{grown} bytes for a client that does not read"
        raw.sock.settimeout(20)
        for number in range(20):
            assert raw.reply(MIB) == (0, number)


def test_all_clients_but_one_do_not_read_and_the_one_is_served(cluster: Cluster) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            raw = stack.enter_context(Raw(cluster, receive_buffer=4096))
            raw.go()
            raw.sock.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                for number in range(100):
                    raw.request(Command.READ, 0, 32 * MIB, cookie=number)
        region = TaggedRegion(run=next(runs), writer=1, offset_sectors=40 * MIB // 512, blocks=64)
        with writing(region, cluster.url(ALICE)) as load:
            load.wait_writes(200)
        with NbdClient(cluster.url(ALICE)) as client:
            assert not region.problems(client.read)


def slow_readers(cluster: Cluster, stack: contextlib.ExitStack, count: int = 3) -> list[Raw]:
    """Clients that have asked for 32 MiB each and take none of it; together they hold the engine's whole memory."""
    readers = [stack.enter_context(Raw(cluster, receive_buffer=4096)) for _ in range(count)]
    for raw in readers:
        raw.go()
        raw.request(Command.READ, 0, 32 * MIB, cookie=7)
    return readers


def test_clients_that_never_read_hold_up_a_large_request_for_less_than_a_second(cluster: Cluster) -> None:
    with NbdClient(cluster.url(ALICE)) as client:
        client.write(5 * MIB, b"mark" * 128)
    with contextlib.ExitStack() as stack:
        readers = slow_readers(cluster, stack)
        with NbdClient(cluster.url(ALICE)) as client:
            for turn in range(3):
                with at_most(1, f"read number {turn} of 32 MiB"):
                    data = client.read(0, 32 * MIB)
                assert data[5 * MIB : 5 * MIB + 512] == b"mark" * 128
        for raw in readers:  # late, and complete
            assert REPLY.unpack(raw.receive(REPLY.size)) == (SIMPLE_REPLY_MAGIC, 0, 7)
            late = raw.receive(32 * MIB)
            assert late[5 * MIB : 5 * MIB + 512] == b"mark" * 128


def test_clients_that_read_a_byte_now_and_then_hold_up_nobody(cluster: Cluster) -> None:
    with contextlib.ExitStack() as stack:
        readers = slow_readers(cluster, stack, 6)
        is_over = threading.Event()

        def sip() -> None:
            while not is_over.wait(0.02):
                for raw in readers:
                    raw.receive(1)

        thread = threading.Thread(target=sip)
        thread.start()
        try:
            with NbdClient(cluster.url(ALICE)) as client:
                for turn in range(3):
                    with at_most(1.5, f"read number {turn} of 32 MiB"):
                        client.read(0, 32 * MIB)
        finally:
            is_over.set()
            thread.join()


@pytest.mark.parametrize("count", [1, 8])
def test_client_with_endless_tiny_requests_leaves_the_others_their_turn(cluster: Cluster, count: int) -> None:
    """Answered without any work each (CACHE, refused ones), 28 bytes at a time, as fast as they can be sent."""
    flood = b"".join(
        REQUEST.pack(REQUEST_MAGIC, 0, Command.CACHE, number, 0, 512 if number % 2 else 511) for number in range(30_000)
    )
    is_over = threading.Event()

    def send(raw: Raw) -> None:
        with contextlib.suppress(OSError):
            while not is_over.is_set():
                raw.sock.sendall(flood)

    def drop(raw: Raw) -> None:
        with contextlib.suppress(OSError):
            while raw.sock.recv(MIB):
                pass

    with contextlib.ExitStack() as stack:
        threads = []
        for _ in range(count):
            raw = stack.enter_context(Raw(cluster))
            raw.go()
            threads += [threading.Thread(target=target, args=(raw,)) for target in (send, drop)]
        for thread in threads:
            thread.start()
        try:
            with bystander(cluster):
                pass
        finally:
            is_over.set()
            stack.close()
            for thread in threads:
                thread.join()


def test_client_that_half_closes_gets_its_answers_or_the_end(cluster: Cluster) -> None:
    with Raw(cluster) as raw:
        raw.go()
        raw.request(Command.WRITE, 0, 4096, cookie=1)
        raw.send(b"h" * 4096)
        raw.sock.shutdown(socket.SHUT_WR)
        raw.wait_cut()


def test_libnbd_client_killed_by_sigkill_in_full_flight_leaves_the_others_alone(cluster: Cluster) -> None:
    script = """
import sys, os, nbd
h = nbd.NBD(); h.connect_uri(sys.argv[1])
for n in range(200):
    h.aio_pread(nbd.Buffer(1 << 20), (n % 32) << 20)
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(65536)), n * 65536)
for _ in range(5):
    h.poll(1)
os.kill(os.getpid(), 9)
"""
    with bystander(cluster):
        for _ in range(5):
            done = run_libnbd(script, cluster.url(ALICE))
            assert done.returncode == -9, done.stderr
