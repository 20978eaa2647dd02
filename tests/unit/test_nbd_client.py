# SPDX-License-Identifier: Apache-2.0
"""A server that answers wrongly: the client ends with an error of its own kind, and takes no memory for it."""

from __future__ import annotations

import struct

import pytest

from nbd.client import NbdClient, NbdRequestError
from nbd.constants import Info, Reply
from repl.errors import PeerLost, ReplError, UsageError
from tests.fuzz.fake_server import ScriptedSocket, client_of

GREETING = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)


def option_reply(kind: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack(">QIII", 0x0003E889045565A9, 7, kind, len(payload) if length is None else length) + payload


EXPORT = option_reply(Reply.INFO, struct.pack(">HQH", Info.EXPORT, 1 << 20, 1))


def connect(answers: bytes) -> NbdClient:
    return client_of(ScriptedSocket(answers))


def test_export_is_described_and_read() -> None:
    client = connect(GREETING + EXPORT + option_reply(Reply.ACK) + struct.pack(">IIQ", 0x67446698, 0, 1) + b"data")
    assert client.size_bytes == 1 << 20
    assert client.read(0, 4) == b"data"


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (b"", PeerLost),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", UsageError),
        (GREETING + b"\xff" * 20, PeerLost),
        (GREETING + option_reply(Reply.INFO, b"", 0xFFFFFFFF), PeerLost),
        (GREETING + option_reply(Reply.INFO, b"\0\0"), PeerLost),
        (GREETING + option_reply(Reply.INFO, struct.pack(">HQH", 0, (1 << 64) - 1, 0)), PeerLost),
        (GREETING + option_reply(Reply.INFO, b"\0\3") * 1000, PeerLost),
        (GREETING + option_reply(Reply.ERR_UNKNOWN, b"\xff no such export"), UsageError),
    ],
)
def test_wrong_negotiation_is_an_error(answers: bytes, kind: type[ReplError]) -> None:
    with pytest.raises(kind):
        connect(answers)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (struct.pack(">IIQ", 0x67446698, 5, 1), NbdRequestError),
        (struct.pack(">IIQ", 0x67446698, 0xFFFFFFFF, 1), NbdRequestError),
        (struct.pack(">IIQ", 0x67446698, 0, 2), PeerLost),
        (struct.pack(">IIQ", 0x12345678, 0, 1), PeerLost),
        (b"", PeerLost),
    ],
)
def test_wrong_reply_is_an_error(reply: bytes, kind: type[ReplError]) -> None:
    client = connect(GREETING + EXPORT + option_reply(Reply.ACK) + reply)
    with pytest.raises(kind):
        client.read(0, 512)
