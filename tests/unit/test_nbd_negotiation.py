# SPDX-License-Identifier: Apache-2.0
"""The NBD handshake machine, byte by byte, and what hostile bytes can do to it (nothing)."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbd.constants import (
    EXPORT_NAME_PADDING_BYTES,
    IHAVEOPT,
    NBDMAGIC,
    OPTION_REPLY_MAGIC,
    ClientFlag,
    Info,
    Option,
    Reply,
    TransmissionFlag,
)
from nbd.export import Export, ListedExport, Refusal, RefusalKind, resolve_export_name
from nbd.negotiation import (
    BASE_ALLOCATION_ID,
    OPTION_DRAIN_BYTES_MAX,
    PIPELINED_BYTES_MAX,
    Aborted,
    Event,
    Finished,
    NeedExport,
    NeedExports,
    Negotiation,
)
from repl.errors import InternalError
from repl.limits import NBD_OPTION_BYTES_MAX, NBD_OPTIONS_MAX, NBD_STRING_BYTES_MAX

GREETING = bytes.fromhex("4e42444d41474943 49484156454f5054 0003")
FIXED_NO_ZEROES = struct.pack(">I", ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)
FIXED = struct.pack(">I", ClientFlag.FIXED_NEWSTYLE)
NO_FLAGS = bytes(4)

DISK = Export(name="r0/0", volume=0, size_bytes=1 << 30, description="data of r0")
OTHER = Export(name="r0/1", volume=1, size_bytes=1 << 20)
DIRECT = Export(name="r0/2", volume=2, size_bytes=1 << 20, block_min=4096)
EXPORTS = (DISK, OTHER, DIRECT)

# HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE, FAST_ZERO
FLAGS_SIMPLE = 0x0D6D
FLAGS_STRUCTURED = FLAGS_SIMPLE | TransmissionFlag.SEND_DF


def option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">QII", IHAVEOPT, number, len(data)) + data


def reply(number: int, kind: int, payload: bytes = b"") -> bytes:
    return struct.pack(">QIII", OPTION_REPLY_MAGIC, number, kind, len(payload)) + payload


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(raw)) + raw


def go_data(name: str | bytes, *infos: int) -> bytes:
    return string(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def meta_data(name: str, *queries: str | bytes) -> bytes:
    return string(name) + struct.pack(">I", len(queries)) + b"".join(string(query) for query in queries)


def info_export(number: int, export: Export, flags: int) -> bytes:
    return reply(number, Reply.INFO, struct.pack(">HQH", Info.EXPORT, export.size_bytes, flags))


def meta_reply(number: int, context_id: int, name: str = "base:allocation") -> bytes:
    return reply(number, Reply.META_CONTEXT, struct.pack(">I", context_id) + name.encode())


STRUCTURED = option(Option.STRUCTURED_REPLY)
STRUCTURED_ACK = reply(Option.STRUCTURED_REPLY, Reply.ACK)


class Session:
    """A client's side of one negotiation, with a caller that answers at once."""

    def __init__(self, *, exports: Sequence[Export] = EXPORTS, refusal: Refusal | None = None) -> None:
        self.machine = Negotiation()
        self.exports = exports
        self.refusal = refusal
        self.output = b""
        self.end: Finished | Aborted | None = None
        self.asked: list[NeedExport] = []
        self.rest = b""
        assert self._take() == GREETING

    def send(self, *pieces: bytes) -> bytes:
        """Sends pieces and returns what came back for them."""
        before_bytes = len(self.output)
        for piece in pieces:
            if isinstance(self.end, Finished):
                self.rest += piece
                continue
            self._handle(self.machine.receive(piece))
        return self.output[before_bytes:]

    def _handle(self, event: Event | None) -> None:
        while event is not None:
            self.output += self._take()
            match event:
                case NeedExports():
                    listed = [ListedExport(export.name, export.description) for export in self.exports]
                    event = self.machine.answer_exports(listed)
                case NeedExport():
                    self.asked.append(event)
                    event = self.machine.answer_export(self._find(event.name))
                case Finished() | Aborted():
                    self.end = event
                    event = None
        self.output += self._take()

    def _find(self, name: str) -> Export | Refusal:
        if self.refusal:
            return self.refusal
        resolved = resolve_export_name(name, [ListedExport(export.name) for export in self.exports])
        for export in self.exports:
            if export.name == resolved:
                return export
        return Refusal(RefusalKind.UNKNOWN, "no such export")

    def _take(self) -> bytes:
        return self.machine.take_output()

    def finished(self) -> Finished:
        assert isinstance(self.end, Finished), self.end
        return self.end

    def aborted(self) -> Aborted:
        assert isinstance(self.end, Aborted), self.end
        return self.end


def session(flags: bytes = FIXED_NO_ZEROES, *, refusal: Refusal | None = None) -> Session:
    opened = Session(refusal=refusal)
    assert opened.send(flags) == b""
    return opened


def replies(output: bytes) -> list[tuple[int, int, bytes]]:
    """Splits option replies; anything that is not one fails."""
    found = []
    while output:
        magic, number, kind, length_bytes = struct.unpack_from(">QIII", output)
        assert magic == OPTION_REPLY_MAGIC
        assert len(output) >= 20 + length_bytes
        found.append((number, kind, output[20 : 20 + length_bytes]))
        output = output[20 + length_bytes :]
    return found


def assert_error(output: bytes, number: int, kind: Reply) -> None:
    (only,) = replies(output)
    assert only[:2] == (number, kind)
    assert only[2].decode()


def assert_still_negotiating(opened: Session) -> None:
    assert opened.send(option(Option.LIST))[-20:] == reply(Option.LIST, Reply.ACK)
    assert opened.end is None


# Greeting and client flags


def test_greeting_offers_fixed_newstyle_and_no_zeroes() -> None:
    assert Negotiation().take_output() == struct.pack(">QQH", NBDMAGIC, IHAVEOPT, 3)


@pytest.mark.parametrize("flags", [4, 7, 0x80000000, 0xFFFFFFFF])
def test_unknown_client_flag_drops_the_client(flags: int) -> None:
    opened = Session()
    assert opened.send(struct.pack(">I", flags)) == b""
    assert "flags" in opened.aborted().reason
    assert not opened.aborted().is_clean


def test_wrong_option_magic_drops_the_client() -> None:
    opened = session()
    assert opened.send(b"IHAVEOPX" + bytes(8)) == b""
    assert "IHAVEOPT" in opened.aborted().reason


@pytest.mark.parametrize("number", [n for n in Option if n != Option.EXPORT_NAME])
def test_any_other_option_without_fixed_newstyle_drops_the_client(number: Option) -> None:
    opened = session(NO_FLAGS)
    assert opened.send(option(number)) == b""
    assert "fixed newstyle" in opened.aborted().reason


def test_client_that_closes_early_aborts_the_negotiation() -> None:
    opened = session()
    event = opened.machine.receive_end()
    assert isinstance(event, Aborted)
    assert opened.machine.receive_end() is None


# EXPORT_NAME


def test_export_name_is_answered_with_size_and_flags() -> None:
    opened = session()
    assert opened.send(option(Option.EXPORT_NAME, b"r0/0")) == bytes.fromhex("0000000040000000 0d6d")
    assert opened.finished() == Finished(
        export=DISK, structured=False, meta_contexts={}, leftover=b"", no_zeroes=True
    )
    assert opened.asked == [NeedExport("r0/0", for_go=True)]


@pytest.mark.parametrize("flags", [FIXED, NO_FLAGS])
def test_export_name_without_no_zeroes_is_padded(flags: bytes) -> None:
    opened = session(flags)
    answer = opened.send(option(Option.EXPORT_NAME, b"r0/0"))
    assert answer == struct.pack(">QH", 1 << 30, FLAGS_SIMPLE) + bytes(EXPORT_NAME_PADDING_BYTES)
    assert not opened.finished().no_zeroes


def test_export_name_after_structured_reply_offers_df() -> None:
    opened = session()
    assert opened.send(STRUCTURED) == STRUCTURED_ACK
    assert opened.send(option(Option.EXPORT_NAME, b"r0/0")) == struct.pack(">QH", 1 << 30, FLAGS_STRUCTURED)
    assert opened.finished().structured


@pytest.mark.parametrize(
    "name", [b"nope", b"", b"r0/0\0", b"\xff\xfe", b"r0/2", b"x" * NBD_STRING_BYTES_MAX],
    ids=["unknown", "no default", "NUL", "not UTF-8", "needs block sizes", "longest"],
)
def test_export_name_that_cannot_be_served_closes_without_a_byte(name: bytes) -> None:
    opened = session()
    assert opened.send(option(Option.EXPORT_NAME, name)) == b""
    assert opened.aborted().reason.startswith("EXPORT_NAME")


def test_export_name_that_is_too_long_is_cut_off_at_its_header() -> None:
    opened = session()
    header = struct.pack(">QII", IHAVEOPT, Option.EXPORT_NAME, NBD_STRING_BYTES_MAX + 1)
    assert opened.send(header) == b""
    assert "4097" in opened.aborted().reason


def test_empty_export_name_means_the_only_volume() -> None:
    opened = Session(exports=(OTHER,))
    opened.send(FIXED_NO_ZEROES, option(Option.EXPORT_NAME, b""))
    assert opened.finished().export is OTHER


# ABORT, LIST, unknown options


@pytest.mark.parametrize("data", [b"", b"bye", bytes(NBD_OPTION_BYTES_MAX + 1)])
def test_abort_is_acknowledged_and_clean_whatever_its_data(data: bytes) -> None:
    opened = session()
    assert opened.send(option(Option.ABORT, data)) == reply(Option.ABORT, Reply.ACK)
    assert opened.aborted().is_clean


def test_list_names_every_export_with_its_description() -> None:
    opened = session()
    assert opened.send(option(Option.LIST)) == (
        reply(Option.LIST, Reply.SERVER, string("r0/0") + b"data of r0")
        + reply(Option.LIST, Reply.SERVER, string("r0/1"))
        + reply(Option.LIST, Reply.SERVER, string("r0/2"))
        + reply(Option.LIST, Reply.ACK)
    )


def test_list_of_nothing_is_an_acknowledgement() -> None:
    opened = Session(exports=())
    assert opened.send(FIXED, option(Option.LIST)) == reply(Option.LIST, Reply.ACK)


def test_list_with_data_is_invalid_and_negotiation_goes_on() -> None:
    opened = session()
    assert_error(opened.send(option(Option.LIST, b"x")), Option.LIST, Reply.ERR_INVALID)
    assert_still_negotiating(opened)


@pytest.mark.parametrize("number", [0, Option.PEEK_EXPORT, Option.STARTTLS, Option.EXTENDED_HEADERS, 12,
                                    0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("data", [b"", b"data", bytes(NBD_OPTION_BYTES_MAX), bytes(NBD_OPTION_BYTES_MAX + 1)],
                         ids=["no data", "data", "much data", "too much data"])
def test_option_that_is_not_supported_is_answered_unsup(number: int, data: bytes) -> None:
    opened = session()
    assert_error(opened.send(option(number, data)), number, Reply.ERR_UNSUP)
    assert_still_negotiating(opened)


# INFO and GO


@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
def test_info_and_go_send_the_export_and_an_acknowledgement(number: Option) -> None:
    opened = session()
    assert opened.send(option(number, go_data("r0/0"))) == (
        info_export(number, DISK, FLAGS_SIMPLE) + reply(number, Reply.ACK)
    )
    assert opened.asked == [NeedExport("r0/0", for_go=number == Option.GO)]
    assert (opened.end is None) == (number == Option.INFO)


def test_info_leaves_the_client_negotiating_and_go_finishes() -> None:
    opened = session()
    request = go_data("r0/0", Info.BLOCK_SIZE)
    info = opened.send(option(Option.INFO, request))
    go = opened.send(option(Option.GO, request))
    assert [found[1:] for found in replies(info)] == [found[1:] for found in replies(go)]
    assert opened.finished().export is DISK


def test_go_sends_every_known_information_that_was_asked_for_once() -> None:
    opened = session()
    infos = (Info.BLOCK_SIZE, Info.DESCRIPTION, Info.NAME, Info.EXPORT, Info.NAME, 77, 0xFFFF)
    assert opened.send(option(Option.GO, go_data("r0/0", *infos))) == (
        info_export(Option.GO, DISK, FLAGS_SIMPLE)
        + reply(Option.GO, Reply.INFO, b"\0\1r0/0")
        + reply(Option.GO, Reply.INFO, b"\0\2data of r0")
        + reply(Option.GO, Reply.INFO, struct.pack(">HIII", 3, 512, 4096, 32 << 20))
        + reply(Option.GO, Reply.ACK)
    )


def test_info_of_the_default_export_tells_its_canonical_name() -> None:
    opened = Session(exports=(OTHER,))
    answer = opened.send(FIXED, option(Option.INFO, go_data("", Info.NAME)))
    assert reply(Option.INFO, Reply.INFO, b"\0\1r0/1") in answer


def test_go_after_structured_reply_offers_df() -> None:
    opened = session()
    opened.send(STRUCTURED)
    assert info_export(Option.GO, OTHER, FLAGS_STRUCTURED) in opened.send(option(Option.GO, go_data("r0/1")))
    assert opened.finished().structured


@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
def test_go_with_an_unknown_name_may_be_tried_again(number: Option) -> None:
    opened = session()
    assert_error(opened.send(option(number, go_data("r9/0"))), number, Reply.ERR_UNKNOWN)
    opened.send(option(Option.GO, go_data("r0/0")))
    assert opened.finished().export is DISK


@pytest.mark.parametrize(("kind", "code"), [
    (RefusalKind.UNKNOWN, Reply.ERR_UNKNOWN), (RefusalKind.POLICY, Reply.ERR_POLICY),
    (RefusalKind.PLATFORM, Reply.ERR_PLATFORM), (RefusalKind.TLS_REQUIRED, Reply.ERR_TLS_REQD),
    (RefusalKind.SHUTDOWN, Reply.ERR_SHUTDOWN),
])
def test_go_that_is_refused_carries_the_reason_and_its_text(kind: RefusalKind, code: Reply) -> None:
    opened = session(refusal=Refusal(kind, "r0 is Secondary: promote it first"))
    assert opened.send(option(Option.GO, go_data("r0/0"))) == (
        reply(Option.GO, code, b"r0 is Secondary: promote it first")
    )
    assert opened.end is None


def test_refusal_with_an_endless_text_is_shortened_between_characters() -> None:
    opened = session(refusal=Refusal(RefusalKind.POLICY, "x" + "é" * 5000))
    ((_, _, text),) = replies(opened.send(option(Option.GO, go_data("r0/0"))))
    assert text.decode() == "x" + "é" * 511


@pytest.mark.parametrize("data", [
    b"", b"\0", b"\0\0\0", b"\0\0\0\4r0/0", b"\0\0\0\4r0/0\0",  # too short
    struct.pack(">I", 5) + b"r0/0" + b"\0\0",  # the name swallows the count
    struct.pack(">I", 0xFFFFFFFF) + b"r0/0\0\0",
    string("r0/0") + b"\0\1", string("r0/0") + b"\0\2\0\0",  # fewer requests than promised
    string("r0/0") + b"\xff\xff",
    go_data("r0/0") + b"x", go_data("r0/0", Info.NAME) + b"\0\1",  # more than promised
    go_data(b"r0\x000"), go_data(b"\xc3\x28"),  # no protocol string
])
@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
def test_malformed_go_is_invalid_and_negotiation_goes_on(number: Option, data: bytes) -> None:
    opened = session()
    assert_error(opened.send(option(number, data)), number, Reply.ERR_INVALID)
    assert opened.asked == []
    assert_still_negotiating(opened)


def test_go_with_a_name_that_is_too_long_is_too_big() -> None:
    opened = session()
    long_name = "x" * (NBD_STRING_BYTES_MAX + 1)
    assert_error(opened.send(option(Option.GO, go_data(long_name))), Option.GO, Reply.ERR_TOO_BIG)
    assert_still_negotiating(opened)


@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
def test_export_with_wide_blocks_requires_the_client_to_ask_for_them(number: Option) -> None:
    opened = session()
    sizes, error = replies(opened.send(option(number, go_data("r0/2"))))
    assert sizes == (number, Reply.INFO, struct.pack(">HIII", Info.BLOCK_SIZE, 4096, 4096, 32 << 20))
    assert error[:2] == (number, Reply.ERR_BLOCK_SIZE_REQD)
    assert opened.end is None
    opened.send(option(Option.GO, go_data("r0/2", Info.BLOCK_SIZE)))
    assert opened.finished().export is DIRECT


# Structured replies and metadata contexts


def test_structured_reply_with_data_is_invalid_and_not_negotiated() -> None:
    opened = session()
    assert_error(opened.send(option(Option.STRUCTURED_REPLY, b"x")), Option.STRUCTURED_REPLY,
                 Reply.ERR_INVALID)
    opened.send(option(Option.GO, go_data("r0/0")))
    assert not opened.finished().structured


@pytest.mark.parametrize("number", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
def test_meta_context_before_structured_reply_is_invalid(number: Option) -> None:
    opened = session()
    assert_error(opened.send(option(number, meta_data("r0/0", "base:allocation"))), number, Reply.ERR_INVALID)
    assert_still_negotiating(opened)


@pytest.mark.parametrize(
    "queries", [(), ("base:",), ("base:allocation",), ("x:y", "base:", "base:allocation")]
)
def test_list_meta_context_shows_base_allocation_once(queries: tuple[str, ...]) -> None:
    opened = session()
    opened.send(STRUCTURED)
    number = Option.LIST_META_CONTEXT
    assert opened.send(option(number, meta_data("r0/0", *queries))) == (
        meta_reply(number, 0) + reply(number, Reply.ACK)
    )
    opened.send(option(Option.GO, go_data("r0/0")))
    assert opened.finished().meta_contexts == {}


@pytest.mark.parametrize(
    "queries", [("x:",), ("base:nothing",), ("base:allocation:x",), ("qemu:dirty-bitmap:a",)]
)
@pytest.mark.parametrize("number", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
def test_meta_context_queries_for_what_we_have_not_are_ignored(
    number: Option, queries: tuple[str, ...]
) -> None:
    opened = session()
    opened.send(STRUCTURED)
    assert opened.send(option(number, meta_data("r0/0", *queries))) == reply(number, Reply.ACK)


@pytest.mark.parametrize("queries", [(), ("base:",)])
def test_set_meta_context_without_a_full_name_selects_nothing(queries: tuple[str, ...]) -> None:
    opened = session()
    opened.send(STRUCTURED)
    number = Option.SET_META_CONTEXT
    assert opened.send(option(number, meta_data("r0/0", *queries))) == reply(number, Reply.ACK)
    opened.send(option(Option.GO, go_data("r0/0")))
    assert opened.finished().meta_contexts == {}


def select_base_allocation(opened: Session, name: str) -> None:
    number = Option.SET_META_CONTEXT
    opened.send(STRUCTURED)
    assert opened.send(option(number, meta_data(name, "x:y", "base:allocation", "base:allocation"))) == (
        meta_reply(number, BASE_ALLOCATION_ID) + reply(number, Reply.ACK)
    )


@pytest.mark.parametrize("final", [option(Option.GO, go_data("r0/0")), option(Option.EXPORT_NAME, b"r0/0")])
def test_set_meta_context_is_active_for_the_export_it_names(final: bytes) -> None:
    opened = session()
    select_base_allocation(opened, "r0/0")
    opened.send(final)
    assert opened.finished().meta_contexts == {"base:allocation": BASE_ALLOCATION_ID}


def test_set_meta_context_is_not_active_for_another_export() -> None:
    opened = session()
    select_base_allocation(opened, "r0/0")
    opened.send(option(Option.GO, go_data("r0/1")))
    assert opened.finished().meta_contexts == {}


def test_set_meta_context_survives_other_options_in_between() -> None:
    opened = session()
    select_base_allocation(opened, "r0/0")
    opened.send(option(Option.GO, go_data("nope")), option(Option.LIST), option(99))
    opened.send(option(Option.LIST_META_CONTEXT, meta_data("r0/1")))
    opened.send(option(Option.GO, go_data("r0/0")))
    assert opened.finished().meta_contexts == {"base:allocation": BASE_ALLOCATION_ID}


@pytest.mark.parametrize(("data", "code"), [
    (b"", Reply.ERR_INVALID), (string("r0/0"), Reply.ERR_INVALID),
    (string("r0/0") + b"\0\0\0\1", Reply.ERR_INVALID),
    (string("r0/0") + b"\xff\xff\xff\xff" + string("base:allocation"), Reply.ERR_INVALID),
    (string("r0/0") + b"\0\0\0\1" + b"\0\0\1\0base:", Reply.ERR_INVALID),
    (meta_data("r0/0", "base:") + b"x", Reply.ERR_INVALID),
    (meta_data("r0/0", "base"), Reply.ERR_INVALID), (meta_data("r0/0", ""), Reply.ERR_INVALID),
    (meta_data("r0/0", b"x:\xff"), Reply.ERR_INVALID), (meta_data("r0/0", b"x:\0"), Reply.ERR_INVALID),
    (meta_data("r0/0", "x:" + "y" * NBD_STRING_BYTES_MAX), Reply.ERR_TOO_BIG),
    (bytes(NBD_OPTION_BYTES_MAX + 1), Reply.ERR_TOO_BIG),
    (meta_data("r9/9", "base:allocation"), Reply.ERR_UNKNOWN), (meta_data(""), Reply.ERR_UNKNOWN),
])
def test_failing_set_meta_context_forgets_what_was_set_before(data: bytes, code: Reply) -> None:
    opened = session()
    select_base_allocation(opened, "r0/0")
    assert_error(opened.send(option(Option.SET_META_CONTEXT, data)), Option.SET_META_CONTEXT, code)
    opened.send(option(Option.GO, go_data("r0/0")))
    assert opened.finished().meta_contexts == {}


# Limits


def test_negotiation_ends_at_the_option_after_the_last_allowed_one() -> None:
    opened = session()
    for _ in range(NBD_OPTIONS_MAX):
        assert_error(opened.send(option(99)), 99, Reply.ERR_UNSUP)
    assert opened.send(option(99)) == b""
    assert str(NBD_OPTIONS_MAX) in opened.aborted().reason


@pytest.mark.parametrize("length_bytes", [NBD_OPTION_BYTES_MAX + 1, OPTION_DRAIN_BYTES_MAX])
def test_option_that_is_too_long_is_skipped_and_negotiation_goes_on(length_bytes: int) -> None:
    opened = session()
    assert_error(opened.send(option(Option.GO, bytes(length_bytes))), Option.GO, Reply.ERR_TOO_BIG)
    assert_still_negotiating(opened)


@pytest.mark.parametrize("length_bytes", [OPTION_DRAIN_BYTES_MAX + 1, 0xFFFFFFFF])
def test_option_that_is_far_too_long_ends_the_negotiation_at_its_header(length_bytes: int) -> None:
    opened = session()
    header = struct.pack(">QII", IHAVEOPT, Option.GO, length_bytes)
    assert_error(opened.send(header), Option.GO, Reply.ERR_TOO_BIG)
    assert not opened.aborted().is_clean


def test_stream_of_garbage_is_cut_within_its_first_piece() -> None:
    opened = Session()
    piece = b"\xa5" * (1 << 20)
    consumed_pieces = 0
    for _ in range(100):
        opened.send(piece)
        consumed_pieces += opened.end is None
    assert consumed_pieces == 0
    assert opened.output == b""


def test_stream_of_valid_frames_with_garbage_ends_with_bounded_output() -> None:
    opened = session()
    sent_bytes = 0
    while opened.end is None:
        sent_bytes += OPTION_DRAIN_BYTES_MAX
        opened.send(option(99, bytes(OPTION_DRAIN_BYTES_MAX)))
    assert sent_bytes <= (NBD_OPTIONS_MAX + 1) * OPTION_DRAIN_BYTES_MAX
    assert len(opened.output) < 4096


# Pauses, pipelining, misuse


@pytest.mark.parametrize("final", [option(Option.GO, go_data("r0/0")), option(Option.EXPORT_NAME, b"r0/0")])
def test_requests_behind_the_final_option_are_left_over(final: bytes) -> None:
    opened = session()
    opened.send(final + b"first requests")
    assert opened.finished().leftover == b"first requests"


def test_negotiation_stands_still_until_its_export_is_answered() -> None:
    machine = Negotiation()
    machine.take_output()
    info = option(Option.INFO, go_data("r0/0"))
    assert machine.receive(FIXED + info + info + b"\x49") == NeedExport("r0/0", for_go=False)
    assert machine.receive(b"\x48") is None
    assert machine.take_output() == b""
    assert machine.answer_export(DISK) == NeedExport("r0/0", for_go=False)
    assert replies(machine.take_output())[-1][1] == Reply.ACK
    assert machine.answer_export(DISK) is None
    assert machine.receive(option(Option.GO, go_data("r0/0"))[2:]) == NeedExport("r0/0", for_go=True)
    assert isinstance(machine.answer_export(DISK), Finished)


def test_client_that_floods_a_paused_negotiation_is_dropped() -> None:
    machine = Negotiation()
    flood = bytes(PIPELINED_BYTES_MAX)
    assert isinstance(machine.receive(FIXED + option(Option.GO, go_data("r0/0"))), NeedExport)
    assert machine.receive(flood) is None
    assert isinstance(machine.receive(b"x"), Aborted)
    assert machine.receive(flood) is None


def test_answers_out_of_turn_are_our_own_bug() -> None:
    machine = Negotiation()
    with pytest.raises(InternalError):
        machine.answer_export(DISK)
    with pytest.raises(InternalError):
        machine.answer_exports([])
    machine.receive(FIXED + option(Option.LIST))
    with pytest.raises(InternalError):
        machine.answer_exports([ListedExport(f"r0/{number}") for number in range(65)])


def test_bytes_after_the_finish_are_our_own_bug() -> None:
    opened = session()
    opened.send(option(Option.GO, go_data("r0/0")))
    with pytest.raises(InternalError):
        opened.machine.receive(b"x")


# Properties

_names = st.sampled_from(["r0/0", "r0/1", "r0/2", "", "r9/9", "é"])
_queries = st.sampled_from(["base:allocation", "base:", "x:y", "broken", "base:other"])
_infos = st.lists(st.integers(0, 5), max_size=4)
_options = st.one_of(
    st.sampled_from([STRUCTURED, option(Option.LIST), option(Option.LIST, b"x"), option(Option.STARTTLS)]),
    st.builds(lambda name, infos: option(Option.INFO, go_data(name, *infos)), _names, _infos),
    st.builds(lambda name, infos: option(Option.GO, go_data(name, *infos)), _names, _infos),
    st.builds(lambda number, name, queries: option(number, meta_data(name, *queries)),
              st.sampled_from([9, 10]), _names, st.lists(_queries, max_size=3)),
    st.builds(lambda name: option(Option.EXPORT_NAME, name.encode()), _names),
    st.builds(option, st.integers(0, 20), st.binary(max_size=40)),
    st.builds(lambda size: option(Option.LIST, bytes(size)),
              st.integers(NBD_OPTION_BYTES_MAX - 1, NBD_OPTION_BYTES_MAX + 2)),
)
_streams = st.builds(
    lambda flags, found, tail: flags + b"".join(found) + tail,
    st.sampled_from([FIXED_NO_ZEROES, FIXED, NO_FLAGS]),
    st.lists(_options, max_size=40),
    st.binary(max_size=30),
)


def run_client(pieces: Iterable[bytes]) -> tuple[bytes, object, bytes]:
    """Output, end and the bytes for the transmission phase of one client."""
    opened = Session()
    opened.send(*pieces)
    if isinstance(opened.end, Finished):
        end = opened.end
        kept = (end.export, end.structured, dict(end.meta_contexts), end.no_zeroes)
        return opened.output, kept, end.leftover + opened.rest
    return opened.output, opened.end, b""


@settings(deadline=None)
@given(stream=_streams, data=st.data())
def test_any_chunking_of_a_stream_gives_the_same_result(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=30)))
    pieces = [stream[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(stream)])]
    assert run_client(pieces) == run_client([stream])


@settings(deadline=None, max_examples=25)
@given(stream=_streams.filter(lambda stream: len(stream) < 4000))
def test_single_bytes_give_the_same_result(stream: bytes) -> None:
    assert run_client(bytes([byte]) for byte in stream) == run_client([stream])


@settings(deadline=None, max_examples=300)
@given(garbage=st.one_of(
    st.binary(max_size=400),
    st.builds(lambda tail: FIXED + tail, st.binary(max_size=400)),
    st.builds(lambda found: FIXED_NO_ZEROES + b"".join(option(*pair) for pair in found),
              st.lists(st.tuples(st.integers(0, 12), st.binary(max_size=60)), max_size=40)),
))
def test_garbage_never_raises_and_never_gets_much_of_an_answer(garbage: bytes) -> None:
    output, end, _ = run_client([garbage])
    assert end is None or isinstance(end, Aborted | tuple)
    assert len(output) <= (NBD_OPTIONS_MAX + 1) * 512
