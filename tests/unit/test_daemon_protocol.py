# SPDX-License-Identifier: Apache-2.0
"""Frames, requests and errors of the control socket."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.daemon import protocol
from repl.errors import ProtocolError, StateRefused
from repl.limits import CONTROL_FRAME_BYTES_MAX


def body_of(frame: bytes) -> bytes:
    size = protocol.HEADER.size
    assert protocol.frame_length(frame[:size]) == len(frame) - size
    return frame[size:]


def test_frame_round_trip_keeps_the_message() -> None:
    message = {"id": 3, "verb": "primary", "args": {"force": True}}
    assert protocol.decode_body(body_of(protocol.encode_frame(message))) == message


@pytest.mark.parametrize("length", [0, CONTROL_FRAME_BYTES_MAX + 1, 0xFFFFFFFF])
def test_frame_length_outside_the_limit_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError):
        protocol.frame_length(protocol.HEADER.pack(length))


@given(st.binary(max_size=200))
def test_body_of_any_bytes_is_a_map_or_a_protocol_error(body: bytes) -> None:
    try:
        assert isinstance(protocol.decode_body(body), dict)
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"id": 1},
        {"id": "1", "verb": "status"},
        {"id": True, "verb": "status"},
        {"id": 1, "verb": 5},
        {"id": 1, "verb": ""},
        {"id": 1, "verb": "x" * 65},
        {"id": 1, "verb": "status", "args": []},
        {"id": 1, "verb": "status", "args": {"a": [1]}},
        {"id": 1, "verb": "status", "args": {7: 1}},
        {"id": 1, "verb": "status", "args": {str(n): n for n in range(33)}},
    ],
)
def test_request_of_wrong_shape_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        protocol.parse_request(message)


def test_error_keeps_code_advice_and_exit_status_over_the_socket() -> None:
    error = StateRefused("web: no data", number=-2, advice="Connect first.")
    answer = protocol.decode_body(body_of(protocol.encode_answer(7, {}, error)))
    assert answer["id"] == 7 and answer["ok"] is False
    remote = protocol.error_from_map(answer["error"])
    assert (remote.message, remote.advice, remote.code, remote.exit_status) == (
        "web: no data (-2)", "Connect first.", "state-refused", 17,
    )  # fmt: skip


def test_error_of_a_bug_is_reported_as_internal() -> None:
    found = protocol.error_to_map(KeyError("x"))
    assert found["code"] == "internal" and "KeyError" in found["message"]


@pytest.mark.parametrize("found", [None, 5, {}, {"exit_status": 0}, {"exit_status": "x"}])
def test_error_from_nonsense_is_still_an_error(found: object) -> None:
    assert protocol.error_from_map(found).exit_status == 20


def test_body_with_nested_number_keys_is_accepted() -> None:
    assert protocol.decode_body(msgpack.packb({"volumes": {0: "x"}})) == {"volumes": {0: "x"}}
