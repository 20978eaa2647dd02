# SPDX-License-Identifier: Apache-2.0
"""Run length coding of bitmaps and the exchange as a whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl.drbd import bitmap_code, packets
from repl.drbd.bitmap_code import LEVELS, Merger, decode_run, encode_run
from repl.drbd.packets import Agreed, CompressedBitmap, Packet
from repl.errors import ProtocolError

DOCUMENTED = [
    (1, 2, 2),
    (3, 4, 3),
    (5, 8, 5),
    (9, 16, 7),
    (17, 48, 10),
    (49, 304, 14),
    (305, 8496, 21),
    (8497, 2105648, 29),
    (2105649, 17181974832, 42),
    (17181974833, 72057611219902768, 64),
]


def test_levels_have_the_documented_ranges() -> None:
    assert [(level.first, level.last, level.total_bits) for level in LEVELS] == DOCUMENTED


@pytest.mark.parametrize("length", [end for first, last, _ in DOCUMENTED for end in (first, last)])
def test_run_at_the_end_of_a_level_survives_a_round_trip(length: int) -> None:
    code, bits = encode_run(length)
    assert decode_run(code | (((1 << 8) - 1) << bits), bits) == (length, bits)


@pytest.mark.parametrize("length", [0, -1, bitmap_code.RUN_BITS_MAX + 1])
def test_run_that_cannot_be_coded_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError):
        encode_run(length)


@given(
    runs=st.lists(st.integers(1, bitmap_code.RUN_BITS_MAX), min_size=1, max_size=60), starts_set=st.booleans()
)
def test_runs_encoded_and_decoded_are_identical(runs: list[int], starts_set: bool) -> None:
    packet = bitmap_code.encode_runs(runs, starts_set=starts_set)
    assert packet.starts_set == starts_set
    assert bitmap_code.decode_runs(packet) == runs


@st.composite
def bitmaps(draw: st.DrawFn) -> tuple[bytearray, int]:
    bits = draw(st.integers(1, 120_000))
    bitmap = bytearray(bitmap_code.bitmap_bytes(bits))
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, bits - 1))
        length = draw(st.integers(1, bits - start))
        if draw(st.booleans()):
            bitmap_code.set_range(bitmap, start, length)
        else:
            noise = draw(st.randoms(use_true_random=False))
            for bit in range(start, min(start + length, start + 20_000)):
                if noise.random() < 0.5:
                    bitmap[bit >> 3] |= 1 << (bit & 7)
    return bitmap, bits


@settings(max_examples=60, deadline=None)
@given(sent=bitmaps(), use_rle=st.booleans(), header_bytes=st.sampled_from([8, 16]))
def test_bitmap_sent_and_merged_is_identical(
    sent: tuple[bytearray, int], use_rle: bool, header_bytes: int
) -> None:
    bitmap, bits = sent
    agreed = Agreed(version=101 if header_bytes == 16 else 99)
    merger = Merger(bytearray(len(bitmap)), bits, header_bytes=header_bytes)
    for packet, body in bitmap_code.split(bitmap, bits, header_bytes=header_bytes, use_rle=use_rle):
        assert not merger.complete
        assert len(body) <= 4096 - header_bytes
        decoded = packets.decode_body(packet, body, agreed)
        if isinstance(decoded, CompressedBitmap):
            merger.compressed(decoded)
        else:
            assert packet is Packet.BITMAP
            merger.plain(body)
    assert merger.complete
    assert merger.bitmap == bitmap


def test_merged_bitmap_keeps_own_bits_and_masks_the_tail() -> None:
    merger = Merger(bytearray(b"\x01" + bytes(7)), 20, header_bytes=16)
    merger.plain(b"\x02" + b"\xff" * 7)
    assert merger.bitmap == b"\x03\xff\x0f" + bytes(5)
    merger.plain(b"")
    assert merger.complete


@pytest.mark.parametrize("size", [0, 8, 24, 4080])
def test_plain_chunk_of_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError):
        Merger(bytearray(16), 128, header_bytes=16).plain(bytes(size))


def test_set_run_beyond_the_last_bit_is_refused() -> None:
    with pytest.raises(ProtocolError):
        Merger(bytearray(8), 10, header_bytes=16).compressed(bitmap_code.encode_runs([11], starts_set=True))


@pytest.mark.parametrize("body", [b"\x72\x00", b"\x02\xff", b"\x02\x3f\x00", b"\x03\x00"])
def test_damaged_stream_never_decodes_beyond_its_bits(body: bytes) -> None:
    packet = CompressedBitmap(body[0], body[1:])
    try:
        runs = bitmap_code.decode_runs(packet)
    except ProtocolError:
        return
    assert sum(encode_run(run)[1] for run in runs) == 8 * len(packet.stream) - packet.pad_bits


@given(bits=st.integers(1, 300), data=st.data())
def test_range_set_is_the_range_and_nothing_else(bits: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, bits - 1))
    length = data.draw(st.integers(0, bits - start))
    bitmap = bytearray(bitmap_code.bitmap_bytes(bits))
    bitmap_code.set_range(bitmap, start, length)
    assert int.from_bytes(bitmap, "little") == ((1 << length) - 1) << start
    assert bitmap_code.count_bits(bitmap) == length
