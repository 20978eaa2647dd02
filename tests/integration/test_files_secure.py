# SPDX-License-Identifier: Apache-2.0
"""Real bricks and mounts with TLS, and a real brick that somebody wants to make fall over."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

import msgpack
import pytest

from repl.files.rpc import frames
from repl.files.rpc import operations as ops
from repl.files.rpc.frames import Kind
from repl.files.rpc.handshake import Hello, encode_hello
from repl.files.rpc.packing import pack_caller
from repl.files.values import Caller, Fd, Loc
from repl.limits import RPC_PAYLOAD_BYTES_MAX
from tests.lib.certificates import Authority, needs_openssl
from tests.lib.mounts import needs_fuse
from tests.lib.volumes import VolumeProcesses, running_volume
from tests.lib.wait import wait_for

pytestmark = needs_fuse()
THREADS = 16  # operations of io-threads under way at a time, each with an answer of the largest size
GREEDY = 3
MEMORY_KB_MAX = GREEDY * (THREADS + 4) * (RPC_PAYLOAD_BYTES_MAX >> 10)  # 4: sent, not taken; of the 2,000 asked for


@needs_openssl()
def test_volume_over_tls_works_heals_and_refuses_others(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    made = authority.sign("node1")
    options = {f"ssl.{word}": made[f"transport.socket.ssl-{word}"] for word in ("own-cert", "private-key", "ca-list")}
    options |= {"client.ssl": "on", "server.ssl": "on", "auth.ssl-allow": "node1"}
    with running_volume(tmp_path, 2, options=options) as volume:
        mount = volume.mount().path
        data = os.urandom(3 << 20)
        (mount / "f").write_bytes(data)
        volume.kill(1)
        (mount / "g").write_bytes(data[:100_000])
        volume.start(1)
        volume.heal()
        volume.wait_healed()
        volume.assert_equal()
        assert (mount / "f").read_bytes() == data
        with socket.create_connection(("127.0.0.1", volume.volume.bricks[0].port)) as plain:
            plain.settimeout(10)
            plain.sendall(frames.encode(Kind.HELLO, 0, encode_hello(Hello("vol", "x", bytes(16)))))
            with contextlib.suppress(ConnectionError):
                while answer := plain.recv(1000):
                    assert answer[12] != Kind.WELCOME
        assert (mount / "g").read_bytes() == data[:100_000]


def _attach(volume: VolumeProcesses, session: bytes) -> socket.socket:
    brick = volume.volume.bricks[0]
    sock = socket.create_connection(("127.0.0.1", brick.port))
    sock.settimeout(20)
    sock.sendall(frames.encode(Kind.HELLO, 0, encode_hello(Hello(brick.path, "hostile", session))))
    header = sock.recv(frames.HEADER_BYTES, socket.MSG_WAITALL)
    size, _, _, kind, _, _ = frames.HEADER.unpack(header)
    assert kind == Kind.WELCOME, sock.recv(size)
    sock.recv(size, socket.MSG_WAITALL)
    sock.sendall(frames.encode(Kind.CALLER, 1, msgpack.packb(pack_caller(Caller(client="hostile"), ""))))
    return sock


def _call(number: int, name: str, *values: object) -> bytes:
    """Every file has number 1."""
    return frames.encode(Kind.CALL, number, ops.encode_call(ops.BY_NAME[name], 1, values, ops.Sender(lambda fd: 1)))


def _peak_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_greedy_clients_cost_a_brick_bounded_memory(tmp_path: Path) -> None:
    with running_volume(tmp_path, 2) as volume:
        mount = volume.mount().path
        (mount / "f").write_bytes(bytes(RPC_PAYLOAD_BYTES_MAX))
        gfid = os.getxattr(volume.directories[0] / "f", "trusted.gfid")
        pid = volume.brick(0).pid
        before = _peak_kb(pid)
        for number in range(GREEDY):
            with _attach(volume, bytes([number]) * 16) as sock:
                sock.sendall(_call(1, "open", Loc(gfid=gfid), Fd(gfid, os.O_RDONLY), os.O_RDONLY))
                sock.settimeout(1)
                with contextlib.suppress(OSError):  # it is sent away, or not read any further
                    for call in range(2000):
                        sock.sendall(_call(2 + call, "readv", Fd(gfid), RPC_PAYLOAD_BYTES_MAX, 0))
        (mount / "g").write_bytes(b"others are served")
        assert _peak_kb(pid) - before < MEMORY_KB_MAX
        print(f"{before >> 10} MiB before, at most {_peak_kb(pid) >> 10} MiB")


@pytest.mark.parametrize("announced", [0, 1 << 20, RPC_PAYLOAD_BYTES_MAX, 0xFFFFFFFF])
def test_half_frames_and_rubbish_leave_the_brick_to_the_others(tmp_path: Path, announced: int) -> None:
    with running_volume(tmp_path, 2) as volume:
        mount = volume.mount().path
        sockets = [_attach(volume, struct.pack(">IIII", n, 1, 2, announced)) for n in range(8)]
        for number, sock in enumerate(sockets):
            sock.sendall(frames.HEADER.pack(100, announced, number, Kind.CALL, 0, frames.MAGIC) + b"\x93\x01")
            with contextlib.suppress(OSError):
                sock.sendall(os.urandom(100_000))
        (mount / "f").write_bytes(b"served")
        for sock in sockets:
            sock.close()
        assert (mount / "f").read_bytes() == b"served"
        wait_for(lambda: (volume.folder / "brick0.log").read_text().count("is gone") >= 8, 20, "their end")
        assert volume.brick(0).is_running
