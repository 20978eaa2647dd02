# SPDX-License-Identifier: Apache-2.0
"""The files of an undo: made, found again, refused when damaged, removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from repl.daemon.undo_store import HEADER_BYTES, UndoStore
from repl.errors import MetadataError

FACTS = {"resource": "r0", "volume": 0, "generation": "A:B:C:D", "peer": "bob", "why": "because", "size_bytes": 5 << 20}


def test_undo_is_found_again_with_its_facts_and_content(tmp_path: Path) -> None:
    first = UndoStore(tmp_path / "made", "r0")
    assert first.find(0) is None
    made = first.create(0, FACTS, 1234.5)
    os.pwrite(made.overlay_fd, b"old", 8192)
    os.pwrite(made.map_fd, b"\x04", HEADER_BYTES)
    first.close(0, is_deleted=False)
    found = UndoStore(tmp_path / "made", "r0").find(0)
    assert found is not None
    assert found.facts["created_s"] == 1234.5 and found.facts["peer"] == "bob"
    assert os.pread(found.overlay_fd, 3, 8192) == b"old"
    assert os.fstat(found.overlay_fd).st_size == 5 << 20
    assert os.fstat(found.map_fd).st_size == HEADER_BYTES + 4096


def test_map_has_a_whole_page_for_each_128_mib(tmp_path: Path) -> None:
    made = UndoStore(tmp_path, "r0").create(0, {**FACTS, "size_bytes": (128 << 20) + 512}, 0.0)
    assert os.fstat(made.map_fd).st_size == HEADER_BYTES + 2 * 4096


def test_second_undo_of_a_volume_is_refused(tmp_path: Path) -> None:
    store = UndoStore(tmp_path, "r0")
    store.create(0, FACTS, 0.0)
    with pytest.raises(FileExistsError):
        store.create(0, FACTS, 0.0)
    assert store.volumes == [0]


def test_deleted_undo_leaves_nothing_behind(tmp_path: Path) -> None:
    store = UndoStore(tmp_path, "r0")
    store.create(0, FACTS, 0.0)
    store.close(0, is_deleted=True)
    assert store.find(0) is None and not list(tmp_path.iterdir())
    store.close(0, is_deleted=True)


@pytest.mark.parametrize("header", [b"", b"no json", b"[]", b'{"format": "repl-undo-1", "resource": "other"}',
                                    b"[" * 4000, b'{"format": "repl-undo-1", "resource": "r0", "size_bytes": "x"}'])
def test_damaged_or_foreign_map_is_refused(tmp_path: Path, header: bytes) -> None:
    store = UndoStore(tmp_path, "r0")
    store.map(0).write_bytes(header)
    with pytest.raises(MetadataError):
        store.find(0)


def test_description_that_does_not_fit_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(MetadataError):
        UndoStore(tmp_path, "r0").create(0, {**FACTS, "why": "x" * 5000}, 0.0)
    assert not list(tmp_path.iterdir())
