# SPDX-License-Identifier: Apache-2.0
"""The first frame of each side: who wants what, and what holds on this connection.

HELLO is a msgpack map of the client, WELCOME one of the server, REFUSED ``[errno, reason]``.  Keys that are not known
are ignored, so that either side can say more later; a feature counts when both name it.  Versions: the server takes
the highest that both have.  Errors: ``ProtocolError``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import msgpack

from repl.errors import ProtocolError
from repl.files.rpc.frames import Limits
from repl.files.rpc.operations import DECODE_ERRORS, decode_error, unpack_body
from repl.files.rpc.packing import is_bytes, is_int, is_list, unpack_text
from repl.limits import RPC_ANSWER_BODY_BYTES_MAX, RPC_CALL_BODY_BYTES_MAX, RPC_PAYLOAD_BYTES_MAX

PROTOCOL = "repl-files"
VERSIONS = (1, 1)  # lowest and highest
FEATURES: tuple[str, ...] = ("compound", "events", "ends", "quiet-try")
TOLD_ONCE = "told-once"  # a client that keeps no names: one word of a change is enough until it asks again
CHARS_MAX = 1024
FEATURES_MAX = 64
SESSION_BYTES = 16
PING_TIMEOUT_S_MAX = 3600.0


@dataclass(slots=True)
class Hello:
    """``session`` is the client's random name for itself as long as it runs: a new connection with the same one takes
    the place of the old.  ``ping_timeout_s``: how soon the client wants a dead link noticed, 0: not at all."""

    volume: str
    process: str
    session: bytes
    username: str = ""
    password: str = field(default="", repr=False)
    ping_timeout_s: float = 0.0
    versions: tuple[int, int] = VERSIONS
    features: tuple[str, ...] = FEATURES


@dataclass(slots=True)
class Welcome:
    """What the server grants.  ``outstanding_max``: calls that it works on at a time."""

    version: int
    process: str
    features: tuple[str, ...] = FEATURES
    outstanding_max: int = 64
    body_bytes_max: int = RPC_CALL_BODY_BYTES_MAX
    payload_bytes_max: int = RPC_PAYLOAD_BYTES_MAX


# What the client takes from a server, and the server from a client.
ANSWER_LIMITS = Limits(RPC_ANSWER_BODY_BYTES_MAX, RPC_PAYLOAD_BYTES_MAX)
CALL_LIMITS = Limits(RPC_CALL_BODY_BYTES_MAX, RPC_PAYLOAD_BYTES_MAX)


def _text(raw: Any) -> str:
    if len(unpack_text(raw)) > CHARS_MAX:
        raise ProtocolError("a name in the handshake is too long.")
    return str(raw)


def _features(raw: Any) -> tuple[str, ...]:
    if len(is_list(raw)) > FEATURES_MAX:
        raise ProtocolError("too many features.")
    return tuple(map(_text, raw))


def _map(body: memoryview | bytes) -> dict[str, Any]:
    raw = unpack_body(body)
    if type(raw) is not dict or raw.get("protocol") != PROTOCOL:
        raise ProtocolError("the other end speaks another protocol.")
    return raw


def encode_hello(hello: Hello) -> bytes:
    body: bytes = msgpack.packb({"protocol": PROTOCOL, **asdict(hello)})
    return body


def decode_hello(body: memoryview | bytes) -> Hello:
    try:
        raw = _map(body)
        lowest, highest = is_list(raw["versions"])
        timeout = float(raw["ping_timeout_s"])
        if len(is_bytes(raw["session"])) != SESSION_BYTES or not 0 <= timeout <= PING_TIMEOUT_S_MAX:
            raise ProtocolError("the session or the ping timeout cannot be.")
        return Hello(
            _text(raw["volume"]), _text(raw["process"]), raw["session"], _text(raw["username"]),
            _text(raw["password"]), timeout, (is_int(lowest, 0, 1 << 16), is_int(highest, 0, 1 << 16)),
            _features(raw["features"]),
        )  # fmt: skip
    except DECODE_ERRORS as error:
        raise ProtocolError(f"the handshake cannot be read: {error!r}.") from error


def agree_version(theirs: tuple[int, int]) -> int:
    """The highest version that both have, 0 if there is none."""
    version = min(theirs[1], VERSIONS[1])
    return version if version >= max(theirs[0], VERSIONS[0]) else 0


def encode_welcome(welcome: Welcome) -> bytes:
    body: bytes = msgpack.packb({"protocol": PROTOCOL, **asdict(welcome)})
    return body


def decode_welcome(body: memoryview | bytes) -> Welcome:
    try:
        raw = _map(body)
        return Welcome(
            is_int(raw["version"], *VERSIONS), _text(raw["process"]), _features(raw["features"]),
            is_int(raw["outstanding_max"], 1, 1 << 20), is_int(raw["body_bytes_max"], 4096, 1 << 30),
            is_int(raw["payload_bytes_max"], 4096, 1 << 30),
        )  # fmt: skip
    except DECODE_ERRORS as error:
        raise ProtocolError(f"the server's handshake cannot be read: {error!r}.") from error


def encode_refusal(number: int, reason: str) -> bytes:
    body: bytes = msgpack.packb([number, reason[:CHARS_MAX]])
    return body


def decode_refusal(body: memoryview | bytes) -> tuple[int, str]:
    """errno and reason."""
    error = decode_error(body)
    return error.errno or 0, error.detail
