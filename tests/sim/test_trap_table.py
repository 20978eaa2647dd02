# SPDX-License-Identifier: Apache-2.0
"""The known traps of the wire protocol (docs/protocol.md), each with the tests that hold it, in both directions.

``to_us``: a peer does it and a real node copes.  ``by_us``: that we never do it to a peer; ``CHECKED`` is the protocol
checker, which judges every packet of every simulator run and is itself shown to see each of these.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache

import pytest

from tests.lib.tools import ROOT

TRAPS_KNOWN = 42
_T, _O = "tests/sim/test_traps.py::", "tests/sim/test_traps_in_order.py::"
_B, _A = "tests/integration/test_bad_input.py::", "tests/sim/test_acks_and_bits.py::"
_S, _P = "tests/guest/test_kernel_drbd_secondary.py::", "tests/guest/test_kernel_drbd_primary.py::"
CONNECTED = _T + "test_connected_peer_that_breaks_the_protocol_loses_the_connection"
HANDSHAKE = _T + "test_handshake_that_does_not_fit_is_refused"
CHECKED = "tests/sim/test_protocol_checker.py::test_wrong_packet_is_refused"


@dataclass(frozen=True)
class Trap:
    """What it is, and names of tests: FILE::FUNCTION, or FILE for all of it."""

    what: str
    to_us: tuple[str, ...]
    by_us: tuple[str, ...]


TRAPS = {
    1: Trap("P_CONNECTION_FEATURES of another length", (HANDSHAKE,), (CHECKED,)),
    2: Trap("header pads, and long headers from version 100 on", (CONNECTED,), (CHECKED,)),
    3: Trap("P_SIZES with or without the limits", (HANDSHAKE,), (CHECKED,)),
    4: Trap(
        "P_PROTOCOL's empty string, policies that differ",
        (HANDSHAKE,),
        ("tests/guest/test_kernel_net_options.py",),
    ),
    5: Trap(
        "algorithms that differ",
        (HANDSHAKE,),
        (_B + "test_peer_with_another_setting_is_refused_and_both_name_it",),
    ),
    6: Trap("no P_UUIDS", (HANDSHAKE,), (CHECKED,)),
    7: Trap("unrelated generations, split brain", (HANDSHAKE,), ("tests/guest/test_kernel_generations.py",)),
    8: Trap(
        "a smaller disk",
        (HANDSHAKE,),
        (
            _B + "test_smaller_disk_of_a_new_peer_is_refused_while_the_larger_one_is_in_use",
        ),
    ),
    9: Trap("unknown or misshapen data packets", (CONNECTED,), (CHECKED,)),
    10: Trap("unknown or misshapen meta packets", (CONNECTED,), (CHECKED,)),
    11: Trap("a write ack that names no write", (CONNECTED,), (CHECKED,)),
    12: Trap(
        "a barrier ack with another number or count",
        (_O + "test_barrier_ack_with_the_wrong_count_or_number_ends_the_connection",),
        (CHECKED,),
    ),
    13: Trap(
        "a barrier ack before its write acks",
        (_O + "test_barrier_ack_before_the_write_ack_does_not_complete_the_write",),
        (CHECKED,),
    ),
    14: Trap("waiting for the ack of an empty epoch", (_T + "test_what_means_nothing_is_ignored",), (CHECKED,)),
    15: Trap(
        "pings answered late",
        (_T + "test_peer_that_answers_no_ping_is_given_up",),
        (
            _B + "test_hanging_disk_of_the_primary_stops_neither_pings_nor_status_nor_new_clients",
        ),
    ),
    16: Trap(
        "garbage in unused fields",
        (_T + "test_largest_write_and_reused_ids_are_fine",),
        ("tests/wire/test_golden_wire.py",),
    ),
    17: Trap(
        "a bitmap in wrong pieces, or without its end",
        (
            _O + "test_bitmap_in_wrong_pieces_ends_the_connection",
            _O + "test_bitmap_without_its_end_is_waited_for_and_the_operator_is_obeyed",
        ),
        (CHECKED,),
    ),
    18: Trap("both bitmaps at once", (_O + "test_targets_bitmap_before_ours_is_complete_costs_no_bit",), (CHECKED,)),
    19: Trap(
        "P_SYNC_UUID that nobody waits for",
        (
            _T + "test_sync_uuid_out_of_place_changes_no_generation",
            _O + "test_sync_uuid_to_a_source_changes_no_generation",
            "tests/sim/test_resync_without_bitmap.py",
        ),
        (CHECKED,),
    ),
    20: Trap("P_BITMAP outside of the exchange", (CONNECTED,), (CHECKED,)),
    21: Trap(
        "the mirrored decision is not followed",
        (_T + "test_peer_that_only_says_connected_when_a_resync_is_due_is_waited_for",),
        ("tests/guest/test_kernel_generations.py",),
    ),
    22: Trap("P_WSAME", (CONNECTED,), ("tests/sim/protocol_tables.py::NEVER_SENT",)),
    23: Trap(
        "P_ZEROES with an integrity digest",
        (_O + "test_zeroes_while_an_integrity_digest_is_agreed_lose_nothing",),
        ("tests/guest/test_kernel_integrity.py",),
    ),
    24: Trap(
        "writes that are too long, odd, or past the end",
        (_T + "test_write_that_does_not_fit_is_refused",),
        (CHECKED,),
    ),
    25: Trap(
        "writes of 1 MiB and trims of 128 MiB are taken",
        (
            _O + "test_trim_of_128_mib_is_done_and_a_longer_one_refused",
            _T + "test_largest_write_and_reused_ids_are_fine",
        ),
        ("tests/sim/test_request_sizes.py::test_trim_and_zeroes_of_any_length_reach_every_peer",),
    ),
    26: Trap(
        "sequence numbers with a gap",
        (_O + "test_sequence_number_that_never_comes_ends_the_connection_after_the_ping_timeout",),
        (CHECKED,),
    ),
    27: Trap(
        "P_OV_REQUEST of another size",
        (_O + "test_verify_request_of_another_size_is_answered_right_or_ends_the_connection",),
        ("tests/guest/test_kernel_verify.py",),
    ),
    28: Trap("an unknown volume", (CONNECTED, _T + "test_what_means_nothing_is_ignored"), (CHECKED,)),
    29: Trap("writes of a Secondary", (CONNECTED,), ("tests/sim/test_protocol_checker.py::test_good_run_is_accepted",)),
    30: Trap("P_STATE_CHG_REPLY before or after P_PING_ACK", (_T + "test_what_means_nothing_is_ignored",), (CHECKED,)),
    31: Trap(
        "block ids that are used again",
        (_T + "test_largest_write_and_reused_ids_are_fine",),
        ("tests/wire/test_golden_wire.py",),
    ),
    32: Trap(
        "the digest's place and what it covers",
        ("tests/sim/test_integrity.py::test_integrity_keeps_damaged_payloads_from_every_disk",),
        ("tests/guest/test_kernel_integrity.py",),
    ),
    33: Trap(
        "a target that is done before its last acks",
        (_O + "test_target_that_says_it_is_done_before_its_last_acks_clears_no_bit",),
        (
            _A + "test_both_sides_of_a_resync_know_every_block_that_is_not_on_the_disk_of_the_target",
        ),
    ),
    34: Trap(
        "write acks of a resync in protocols A and B",
        ("tests/sim/test_old_versions.py::test_everything_a_link_does_works",),
        ("tests/guest/test_matrix.py",),
    ),
    35: Trap(
        "versions before 100 do not ask for acks",
        ("tests/sim/test_old_versions.py::test_everything_a_link_does_works",),
        ("tests/guest/test_kernel_old_versions.py",),
    ),
    36: Trap(
        "meta packets before the handshake's end, wrong header format",
        (_T + "test_packets_on_the_meta_socket_before_the_handshake_wait", CONNECTED),
        (CHECKED,),
    ),
    37: Trap(
        "cram-hmac on one side only",
        (_T + "test_wrong_secret_and_no_authentication_are_refused",),
        (_B + "test_peer_that_cannot_authenticate_is_refused_and_both_say_so",),
    ),
    38: Trap(
        "dialling although it was told to disconnect",
        (_T + "test_strangers_cannot_keep_the_peer_out",),
        (
            _S + "test_our_primary_parted_by_either_side_resyncs_only_what_it_wrote",
        ),
    ),
    39: Trap(
        "one socket closed alone",
        (CONNECTED, _T + "test_meta_socket_that_ends_before_the_link_is_up_blocks_no_later_connection"),
        (_P + "test_kernel_primary_resyncs_us_after_the_cable_was_pulled",),
    ),
    40: Trap(
        "P_OV_REQUEST without verify-alg",
        (
            _O + "test_verify_request_without_an_algorithm_ends_the_connection",
            "tests/sim/test_integrity.py::test_verify_request_without_algorithm_drops_the_link_and_nothing_else",
        ),
        ("tests/sim/test_verify.py::test_verify_without_algorithm_is_refused_and_sends_nothing",),
    ),
    41: Trap(
        "one socket is not drained",
        (_T + "test_peer_that_reads_nothing_holds_up_nobody_for_long",),
        (
            _S + "test_our_primary_whose_link_comes_and_goes_under_load_keeps_the_kernel_in_step",
        ),
    ),
    42: Trap(
        "a dial that is accepted by nobody",
        (HANDSHAKE, _T + "test_strangers_cannot_keep_the_peer_out"),
        (
            _B + "test_stranger_in_the_place_of_the_peer_is_left_and_the_peer_found_later",
        ),
    ),
}


@cache
def functions(path: str) -> frozenset[str]:
    """Names at the top of a file."""
    tree = ast.parse((ROOT / path).read_text())
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return frozenset(names | {t.id for t in targets if isinstance(t, ast.Name)})


def test_every_known_trap_has_tests_in_both_directions() -> None:
    assert sorted(TRAPS) == list(range(1, TRAPS_KNOWN + 1))
    assert all(trap.to_us and trap.by_us for trap in TRAPS.values())


@pytest.mark.parametrize("number", TRAPS)
def test_tests_of_a_trap_exist(number: int) -> None:
    trap = TRAPS[number]
    for name in trap.to_us + trap.by_us:
        path, _, function = name.partition("::")
        assert (ROOT / path).is_file(), f"trap {number} ({trap.what}): there is no {path}"
        assert not function or function in functions(path), f"trap {number} ({trap.what}): there is no {name}"
