# SPDX-License-Identifier: Apache-2.0
"""The tagged sectors of tests/lib: an oracle that is wrong finds nothing."""

from __future__ import annotations

import pytest

from tests.lib.tagged import SECTOR_BYTES, Kind, TaggedWriter, decode, decode_sector

RUN = 77


@pytest.fixture
def writer() -> TaggedWriter:
    return TaggedWriter(run=RUN, writer=3)


def test_tagged_payload_read_back_tells_writer_request_and_generation(writer: TaggedWriter) -> None:
    writer.payload(offset_sectors=0, sectors=1)
    writer.flushed()
    sectors = decode(writer.payload(offset_sectors=100, sectors=8), offset_sectors=100, run=RUN)
    assert [s.kind for s in sectors] == [Kind.TAGGED] * 8
    assert [s.position for s in sectors] == list(range(100, 108))
    assert {(s.tag.writer, s.tag.request, s.tag.generation) for s in sectors if s.tag} == {(3, 2, 1)}


def test_tagged_sector_never_written_is_zero() -> None:
    assert decode_sector(bytes(SECTOR_BYTES), position=0, run=RUN).kind is Kind.ZERO


@pytest.mark.parametrize("at", [8, 47, 48, 60, 256, 511])
def test_tagged_sector_with_one_flipped_bit_is_torn(writer: TaggedWriter, at: int) -> None:
    data = bytearray(writer.payload(offset_sectors=5, sectors=1))
    data[at] ^= 1
    assert decode_sector(bytes(data), position=5, run=RUN).kind is Kind.TORN


def test_tagged_sector_made_of_two_writes_is_torn(writer: TaggedWriter) -> None:
    first, second = (writer.payload(offset_sectors=5, sectors=1) for _ in range(2))
    assert decode_sector(second[:256] + first[256:], position=5, run=RUN).kind is Kind.TORN


def test_tagged_sector_in_another_place_is_misdirected(writer: TaggedWriter) -> None:
    sector = decode_sector(writer.payload(offset_sectors=5, sectors=1), position=6, run=RUN)
    assert sector.kind is Kind.MISDIRECTED
    assert sector.tag is not None and sector.tag.sector == 5


def test_tagged_sector_of_another_run_is_foreign(writer: TaggedWriter) -> None:
    data = writer.payload(offset_sectors=5, sectors=1)
    assert decode_sector(data, position=5, run=RUN + 1).kind is Kind.FOREIGN


def test_sector_without_tag_is_alien() -> None:
    assert decode_sector(b"x" * SECTOR_BYTES, position=0, run=RUN).kind is Kind.ALIEN
