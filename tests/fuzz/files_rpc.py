# SPDX-License-Identifier: Apache-2.0
"""Fuzz target of what goes between bricks and clients: frames and all that stands in them (repl/files/rpc).

The first byte: the size of the pieces that arrive, the second: the operation that answers belong to.  Checked: only
``ProtocolError`` and the errors that the session turns into it come out, frames are within the limits, and a call
that could be read is written and read again as the same.
"""

from __future__ import annotations

from typing import Any

from repl.errors import ProtocolError
from repl.files.rpc import handshake
from repl.files.rpc import operations as ops
from repl.files.rpc.frames import Frame, FrameReader, Kind
from repl.files.rpc.packing import is_list, unpack_caller, unpack_event, unpack_new_fd, unpack_text
from repl.files.values import Caller, Fd, FopError

CALLERS = {1: Caller(), 2: Caller(uid=1000, client="x")}
FRAMES_MAX = 64


class _Files:
    """The open files of an imagined client."""

    def __init__(self) -> None:
        self._by_number: dict[int, Fd] = {}

    def open_file(self, number: int) -> Fd:
        if number > 1 << 20:
            raise FopError(9, "not open")
        return self._by_number.setdefault(number, Fd(bytes(16)))

    def new_file(self, raw: Any) -> Fd:
        number, fd = unpack_new_fd(raw)
        if number in self._by_number:
            raise ProtocolError("open already")
        self._by_number[number] = fd
        return fd

    def number(self, fd: Fd) -> int:
        return next(number for number, known in self._by_number.items() if known is fd)

    def receiver(self, payload: memoryview | bytes) -> ops.Receiver:
        view = memoryview(payload)
        return ops.Receiver(view, is_lasting=True, open_file=self.open_file, new_file=self.new_file)


def fuzz_files_rpc(data: bytes) -> None:
    if len(data) < 2:
        return
    piece, operation = 1 + data[0] * 5, list(ops.BY_NUMBER.values())[data[1] % len(ops.BY_NUMBER)]
    reader = FrameReader(handshake.CALL_LIMITS)
    at, count = 2, 0
    while at < len(data) and count < FRAMES_MAX:
        room = reader.buffer()
        assert len(room), "no room for what comes"
        size = min(piece, len(room), len(data) - at)
        room[:size] = data[at : at + size]
        reader.received(size)
        at += size
        try:
            while (frame := reader.next()) is not None:
                count += 1
                _judge(frame, operation)
        except ProtocolError as error:
            assert error.message
            return


def _judge(frame: Frame, operation: ops.Operation) -> None:
    limits = handshake.CALL_LIMITS
    assert len(frame.body) <= limits.body_bytes and len(frame.payload) <= limits.payload_bytes
    try:
        _DECODERS[Kind(frame.kind)](frame, operation)
    except ops.DECODE_ERRORS as error:
        assert frame.kind in _WRAPPED, f"{Kind(frame.kind).name}: {error!r}"  # the session wraps those of these
    except (ProtocolError, FopError):
        pass


def _call(frame: Frame, _: ops.Operation) -> None:
    files = _Files()
    call = ops.decode_call(frame.body, files.receiver(frame.payload), CALLERS)
    assert len(call.plan) <= ops.RPC_COMPOUND_STEPS_MAX
    ops.check_ranges(call.plan)
    for operation, values in call.plan:
        ops.is_lock_wait(operation, values)
        ops.unlock_of(operation, values)
        operation.step(values)
    first = _encode(call, files)
    others = _Files()
    again = ops.decode_call(first[0], others.receiver(first[1]), CALLERS)
    assert _encode(again, others) == first


def _encode(call: ops.Call, files: _Files) -> tuple[bytes, bytes]:
    sender = ops.Sender(files.number)
    if call.is_compound:
        body = ops.encode_compound(call.plan, 1, sender)
    else:
        body = ops.encode_call(call.plan[0][0], 1, call.plan[0][1], sender)
    return body, b"".join(map(bytes, sender.payloads))


def _answer(frame: Frame, operation: ops.Operation) -> None:
    ops.decode_answer(operation, frame.body, frame.payload)


def _compound_answer(frame: Frame, operation: ops.Operation) -> None:
    plan = [(operation, [])] * (1 + frame.call_id % 3)
    results = ops.decode_compound_answer(plan, frame.body, frame.payload)
    assert len(results) <= len(plan)


def _either_answer(frame: Frame, operation: ops.Operation) -> None:
    (_compound_answer if frame.call_id & 1 << 31 else _answer)(frame, operation)


_DECODERS = {
    Kind.HELLO: lambda frame, _: handshake.encode_hello(handshake.decode_hello(frame.body)),
    Kind.WELCOME: lambda frame, _: handshake.encode_welcome(handshake.decode_welcome(frame.body)),
    Kind.REFUSED: lambda frame, _: handshake.decode_refusal(frame.body),
    Kind.CALLER: lambda frame, _: unpack_caller(ops.unpack_body(frame.body)),
    Kind.CALL: _call,
    Kind.ANSWER: _either_answer,
    Kind.ERROR: lambda frame, _: ops.decode_error(frame.body),
    Kind.CANCEL: lambda frame, _: None,
    Kind.RELEASE: lambda frame, _: is_list(ops.unpack_body(frame.body)),
    Kind.GONE: lambda frame, _: unpack_text(ops.unpack_body(frame.body)),
    Kind.EVENT: lambda frame, _: unpack_event(ops.unpack_body(frame.body)),
    Kind.PING: lambda frame, _: None,
    Kind.PONG: lambda frame, _: None,
    Kind.FAREWELL: lambda frame, _: None,
}  # fmt: skip
_WRAPPED = {Kind.CALLER, Kind.RELEASE, Kind.GONE, Kind.EVENT}
assert set(_DECODERS) == set(Kind)
