# SPDX-License-Identifier: Apache-2.0
"""State words, state changes and implied states."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.drbd import states
from repl.drbd.states import ConnectionState, DiskState, Role, StateChange, StateWord
from repl.errors import ProtocolError

WORDS = st.builds(
    StateWord,
    role=st.sampled_from(Role),
    peer=st.sampled_from(Role),
    conn=st.sampled_from(ConnectionState),
    disk=st.sampled_from(DiskState),
    pdsk=st.sampled_from(DiskState),
    susp=st.booleans(),
    aftr_isp=st.booleans(),
    peer_isp=st.booleans(),
    user_isp=st.booleans(),
    susp_nod=st.booleans(),
    susp_fen=st.booleans(),
    pad=st.integers(0, 511),
)


@given(word=WORDS)
def test_state_word_packed_and_unpacked_is_identical(word: StateWord) -> None:
    assert StateWord.unpack(word.pack()) == word


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (0x0000C882, "cs:WFConnection ro:Secondary/Unknown ds:Inconsistent/DUnknown ----"),
        (0x000110A9, "cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate ----"),
        (0x00010AE6, "cs:WFBitMapT ro:Secondary/Primary ds:Outdated/UpToDate ----"),
        (0x0000F169, "cs:Ahead ro:Primary/Secondary ds:UpToDate/Consistent ----"),
    ],
)
def test_captured_state_word_reads_as_documented(word: int, text: str) -> None:
    assert str(StateWord.unpack(word)) == text


@pytest.mark.parametrize("word", [0x3, 0xC, 24 << 4, 9 << 9, 15 << 13, -1, 1 << 32])
def test_undefined_state_word_is_a_protocol_error(word: int) -> None:
    with pytest.raises(ProtocolError):
        StateWord.unpack(word)


@pytest.mark.parametrize(
    ("change", "mask", "value"),
    [
        (StateChange.of(role=Role.PRIMARY), 0x3, 0x1),
        (StateChange.of(role=Role.PRIMARY, disk=DiskState.UP_TO_DATE), 0x1E03, 0x1001),
        (StateChange.of(disk=DiskState.FAILED), 0x1E00, 0x400),
        (StateChange.of(conn=ConnectionState.VERIFY_S), 0x1F0, 0x120),
        (StateChange.of(conn=ConnectionState.DISCONNECTING), 0x1F0, 0x10),
        (StateChange.of(conn=ConnectionState.DISCONNECTING, disk=DiskState.OUTDATED), 0x1FF0, 0xA10),
    ],
)
def test_state_change_of_names_has_the_documented_numbers(change: StateChange, mask: int, value: int) -> None:
    assert (change.mask, change.value) == (mask, value)


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        (ConnectionState.DISCONNECTING, ConnectionState.TEAR_DOWN),
        (ConnectionState.STARTING_SYNC_S, ConnectionState.STARTING_SYNC_T),
        (ConnectionState.STARTING_SYNC_T, ConnectionState.STARTING_SYNC_S),
        (ConnectionState.VERIFY_S, ConnectionState.VERIFY_T),
        (ConnectionState.CONNECTED, ConnectionState.CONNECTED),
        (ConnectionState.WF_REPORT_PARAMS, ConnectionState.WF_REPORT_PARAMS),
    ],
)
def test_connection_of_a_request_is_mirrored_for_the_receiver(
    asked: ConnectionState, seen: ConnectionState
) -> None:
    assert StateChange.of(conn=asked).peer_view() == StateChange.of(conn=seen)


@pytest.mark.parametrize(
    "asked", [ConnectionState.SYNC_SOURCE, ConnectionState.STANDALONE, ConnectionState.VERIFY_T]
)
def test_connection_that_no_peer_may_ask_for_is_a_protocol_error(asked: ConnectionState) -> None:
    with pytest.raises(ProtocolError):
        StateChange.of(conn=asked).peer_view()


def test_role_disk_and_pause_of_a_request_are_swapped_for_the_receiver() -> None:
    change = StateChange.of(
        role=Role.PRIMARY, disk=DiskState.UP_TO_DATE, flags={"user_isp": True}
    ).peer_view()
    assert change == StateChange.of(peer=Role.PRIMARY, pdsk=DiskState.UP_TO_DATE, flags={"peer_isp": True})


def test_state_change_applied_touches_only_its_fields() -> None:
    before = StateWord.unpack(0x000110A9)
    after = StateChange.of(role=Role.SECONDARY).apply(before)
    assert after == replace(before, role=Role.SECONDARY)


@given(word=WORDS)
def test_sanitized_state_sanitized_again_is_the_same(word: StateWord) -> None:
    once = states.sanitize(word)
    assert states.sanitize(once) == once


def _state(conn: ConnectionState, disk: DiskState, pdsk: DiskState, *, user_isp: bool = False) -> StateWord:
    return StateWord(Role.PRIMARY, Role.SECONDARY, conn, disk, pdsk, user_isp=user_isp)


UP, OUT, INC = DiskState.UP_TO_DATE, DiskState.OUTDATED, DiskState.INCONSISTENT


@pytest.mark.parametrize(
    ("conn", "disk", "pdsk", "expected"),
    [
        (ConnectionState.WF_CONNECTION, UP, UP, (ConnectionState.WF_CONNECTION, UP, DiskState.UNKNOWN)),
        (ConnectionState.WF_CONNECTION, UP, INC, (ConnectionState.WF_CONNECTION, UP, INC)),
        (ConnectionState.WF_CONNECTION, UP, OUT, (ConnectionState.WF_CONNECTION, UP, OUT)),
        (ConnectionState.CONNECTED, OUT, DiskState.CONSISTENT, (ConnectionState.CONNECTED, UP, UP)),
        (ConnectionState.WF_BITMAP_T, UP, UP, (ConnectionState.WF_BITMAP_T, OUT, UP)),
        (ConnectionState.WF_BITMAP_S, UP, UP, (ConnectionState.WF_BITMAP_S, UP, DiskState.CONSISTENT)),
        (ConnectionState.SYNC_TARGET, OUT, UP, (ConnectionState.SYNC_TARGET, INC, UP)),
        (ConnectionState.SYNC_SOURCE, UP, DiskState.CONSISTENT, (ConnectionState.SYNC_SOURCE, UP, INC)),
        (
            ConnectionState.SYNC_SOURCE,
            DiskState.FAILED,
            INC,
            (ConnectionState.CONNECTED, DiskState.FAILED, INC),
        ),
        (
            ConnectionState.VERIFY_S,
            UP,
            DiskState.DISKLESS,
            (ConnectionState.CONNECTED, UP, DiskState.DISKLESS),
        ),
        (ConnectionState.AHEAD, UP, OUT, (ConnectionState.AHEAD, UP, OUT)),
        (ConnectionState.BEHIND, UP, UP, (ConnectionState.BEHIND, OUT, UP)),
    ],
)
def test_sanitize_of_a_combination_implies_what_the_driver_shows(
    conn: ConnectionState,
    disk: DiskState,
    pdsk: DiskState,
    expected: tuple[ConnectionState, DiskState, DiskState],
) -> None:
    after = states.sanitize(_state(conn, disk, pdsk))
    assert (after.conn, after.disk, after.pdsk) == expected


def test_pause_reason_stops_a_resync_and_no_reason_resumes_it() -> None:
    paused = states.sanitize(_state(ConnectionState.SYNC_SOURCE, UP, INC, user_isp=True))
    assert paused.conn is ConnectionState.PAUSED_SYNC_S
    assert states.sanitize(replace(paused, user_isp=False)).conn is ConnectionState.SYNC_SOURCE


def test_lost_connection_forgets_the_role_of_the_peer() -> None:
    assert states.sanitize(_state(ConnectionState.BROKEN_PIPE, UP, UP)).peer is Role.UNKNOWN


def test_lost_connection_while_negotiating_ends_in_the_given_disk_state() -> None:
    state = _state(ConnectionState.BROKEN_PIPE, DiskState.NEGOTIATING, UP)
    assert states.sanitize(state).disk is DiskState.DISKLESS
    assert states.sanitize(state, negotiating_falls_to=OUT).disk is OUT


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        (ConnectionState.NETWORK_FAILURE, ConnectionState.UNCONNECTED, True),
        (ConnectionState.NETWORK_FAILURE, ConnectionState.CONNECTED, False),
        (ConnectionState.DISCONNECTING, ConnectionState.STANDALONE, True),
        (ConnectionState.DISCONNECTING, ConnectionState.UNCONNECTED, False),
        (ConnectionState.WF_CONNECTION, ConnectionState.CONNECTED, False),
        (ConnectionState.WF_REPORT_PARAMS, ConnectionState.CONNECTED, True),
        (ConnectionState.CONNECTED, ConnectionState.CONNECTED, True),
    ],
)
def test_connection_change_follows_the_rules(
    old: ConnectionState, new: ConnectionState, allowed: bool
) -> None:
    assert states.connection_change_allowed(old, new) is allowed


def test_state_codes_all_have_a_text() -> None:
    assert set(states.STATE_CODE_TEXT) == set(states.StateCode)
    assert states.state_code_text(-99) == "Unknown state code -99"
