# SPDX-License-Identifier: Apache-2.0
"""The language of the control socket: frames, requests, answers, errors.

A frame is a big-endian u32 (length of the rest) and a msgpack map.  Request: ``{id, verb, args}``; answer:
``{id, ok, result}`` or ``{id, ok, error: {code, message, advice, exit_status}}``.  Errors: ``ProtocolError``
for bytes that are no such frame; a :class:`RemoteError` carries the other side's error over.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import msgpack

from repl.errors import InternalError, ProtocolError, ReplError
from repl.limits import CONTROL_FRAME_BYTES_MAX

HEADER = struct.Struct(">I")
VERB_CHARS_MAX = 64
ARGS_MAX = 32
ARG_NAME_CHARS_MAX = 64


class RemoteError(ReplError):
    """An error that came over the control socket, with its own code and exit status."""

    def __init__(self, message: str, *, code: str, exit_status: int, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.code = code
        self.exit_status = exit_status


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for.  ``request_id`` is the client's own number and comes back in the answer."""

    request_id: int
    verb: str
    args: dict[str, Any]


def encode_frame(message: dict[str, Any]) -> bytes:
    body: bytes = msgpack.packb(message, use_bin_type=True)
    if len(body) > CONTROL_FRAME_BYTES_MAX:
        raise InternalError(f"a control message of {len(body)} bytes is above {CONTROL_FRAME_BYTES_MAX}.")
    return HEADER.pack(len(body)) + body


def frame_length(header: bytes) -> int:
    """The length of the body that follows these four bytes."""
    length = int(HEADER.unpack(header)[0])
    if not 0 < length <= CONTROL_FRAME_BYTES_MAX:
        raise ProtocolError(f"a control frame of {length} bytes; 1 to {CONTROL_FRAME_BYTES_MAX} are allowed.")
    return length


def decode_body(body: bytes) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=False, max_ext_len=0)
    except (ValueError, TypeError, RecursionError) as error:  # msgpack's own errors are ValueErrors
        raise ProtocolError(f"a control frame that is not msgpack: {error}.") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise ProtocolError("a control frame that is not a map with text keys.")
    return message


def parse_request(message: dict[str, Any]) -> Request:
    request_id, verb, args = message.get("id"), message.get("verb"), message.get("args", {})
    if not isinstance(request_id, int) or isinstance(request_id, bool):
        raise ProtocolError("a request without a number 'id'.")
    if not isinstance(verb, str) or not 0 < len(verb) <= VERB_CHARS_MAX:
        raise ProtocolError("a request without a text 'verb'.")
    if not isinstance(args, dict) or len(args) > ARGS_MAX:
        raise ProtocolError(f"the 'args' of {verb} are not a map of at most {ARGS_MAX} entries.")
    for name, value in args.items():
        if not isinstance(name, str) or len(name) > ARG_NAME_CHARS_MAX:
            raise ProtocolError(f"an argument of {verb} has no usable name.")
        if not isinstance(value, bool | int | float | str | None):
            raise ProtocolError(f"argument '{name}' of {verb} is neither a number nor a text nor yes/no.")
    return Request(request_id, verb, args)


def encode_answer(request_id: int | None, result: dict[str, Any], error: Exception | None) -> bytes:
    if error is not None:
        return encode_frame({"id": request_id, "ok": False, "error": error_to_map(error)})
    return encode_frame({"id": request_id, "ok": True, "result": result})


def error_to_map(error: Exception) -> dict[str, Any]:
    """What goes over the socket.  Anything but a ``ReplError`` is a bug of ours and says so."""
    if not isinstance(error, ReplError):
        text = f"{type(error).__name__}: {error}"
        error = InternalError(f"internal error: {text}.", advice="See the log of repld.")
    return {
        "code": error.code,
        "message": error.message,
        "advice": error.advice,
        "exit_status": error.exit_status,
    }


def error_from_map(found: object) -> RemoteError:
    fields = found if isinstance(found, dict) else {}
    status = fields.get("exit_status")
    return RemoteError(
        str(fields.get("message") or "repld refused without a reason."),
        code=str(fields.get("code") or "error"),
        exit_status=status if isinstance(status, int) and 0 < status < 256 else RemoteError.exit_status,
        advice=str(fields.get("advice") or ""),
    )
