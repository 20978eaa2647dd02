# SPDX-License-Identifier: Apache-2.0
"""What an export says about itself."""

from __future__ import annotations

import pytest

from nbd.constants import TransmissionFlag
from nbd.export import Export, ListedExport, resolve_export_name
from repl.errors import UsageError


def make_export(
    *,
    name: str = "r0/0",
    volume: int = 0,
    size_bytes: int = 1 << 20,
    block_min: int = 512,
    block_preferred: int = 4096,
    block_max: int = 32 << 20,
    description: str = "",
) -> Export:
    return Export(
        name=name, volume=volume, size_bytes=size_bytes, block_min=block_min, block_preferred=block_preferred,
        block_max=block_max, description=description,
    )


def test_default_export_offers_everything_but_df() -> None:
    assert make_export().transmission_flags(structured=False) == (
        TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA
        | TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.CAN_MULTI_CONN
        | TransmissionFlag.SEND_CACHE | TransmissionFlag.SEND_FAST_ZERO
    )


def test_df_is_offered_with_structured_replies() -> None:
    assert TransmissionFlag.SEND_DF in make_export().transmission_flags(structured=True)


def test_read_only_export_offers_nothing_that_writes() -> None:
    flags = Export(name="r0/0", volume=0, size_bytes=512, read_only=True).transmission_flags(structured=False)
    assert TransmissionFlag.READ_ONLY in flags
    assert not flags & (TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES
                        | TransmissionFlag.SEND_FAST_ZERO)


def test_fast_zero_is_not_offered_without_write_zeroes() -> None:
    export = Export(name="r0/0", volume=0, size_bytes=512, can_write_zeroes=False)
    assert TransmissionFlag.SEND_FAST_ZERO not in export.transmission_flags(structured=False)


@pytest.mark.parametrize(("export", "needs"), [
    (make_export(), False), (make_export(block_min=4096), True), (make_export(block_max=1 << 20), True),
])
def test_client_needs_block_sizes_when_narrower_than_it_may_assume(export: Export, needs: bool) -> None:
    assert export.needs_block_size == needs


@pytest.mark.parametrize("size_bytes", [-512, 1, 511, 1 << 63])
def test_export_with_an_impossible_size_is_a_usage_error(size_bytes: int) -> None:
    with pytest.raises(UsageError, match="size"):
        make_export(size_bytes=size_bytes)


@pytest.mark.parametrize("block_min", [-1, 0, 1, 256, 513, 3 * 512, 1 << 17])
def test_export_with_an_impossible_minimum_block_is_a_usage_error(block_min: int) -> None:
    with pytest.raises(UsageError, match="minimum block size"):
        make_export(block_min=block_min)


@pytest.mark.parametrize(("block_preferred", "block_max"), [
    (256, 1 << 20), (5000, 1 << 20), (4096, 2048), (4096, 4097), (4096, (32 << 20) + 512),
])
def test_export_with_impossible_blocks_is_a_usage_error(block_preferred: int, block_max: int) -> None:
    with pytest.raises(UsageError, match="block size"):
        make_export(block_preferred=block_preferred, block_max=block_max)


@pytest.mark.parametrize("text", ["a\0b", "x" * 4097, "\ud800"])
def test_export_with_an_impossible_string_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        make_export(name=text)
    with pytest.raises(UsageError):
        make_export(description=text)
    with pytest.raises(UsageError):
        ListedExport(text)


@pytest.mark.parametrize("volume", [-1, 64])
def test_export_with_an_impossible_volume_is_a_usage_error(volume: int) -> None:
    with pytest.raises(UsageError, match="volume"):
        make_export(volume=volume)


@pytest.mark.parametrize(("name", "listed", "resolved"), [
    ("", [], None), ("", ["r0/0"], "r0/0"), ("", ["r0/0", "r0/1"], None), ("r0/1", ["r0/0", "r0/1"], "r0/1"),
    ("r0/2", ["r0/0", "r0/1"], None), ("r0", ["r0/0"], None), ("R0/0", ["r0/0"], None),
])
def test_export_name_is_resolved_exactly_or_by_default(
    name: str, listed: list[str], resolved: str | None
) -> None:
    assert resolve_export_name(name, [ListedExport(entry) for entry in listed]) == resolved
