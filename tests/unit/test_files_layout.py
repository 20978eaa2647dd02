# SPDX-License-Identifier: Apache-2.0
"""Hashes of names and layouts of directories, as real bricks of GlusterFS 10.3 have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.files.translators.distribute.layout import (
    LAST_HASH,
    Layout,
    Range,
    fixed_layout,
    new_layout,
    read_layout,
    unpack_range,
)
from repl.files.translators.distribute.name_hash import NameHash, hash_bytes

VECTORS = Path(__file__).parents[1] / "vectors"


def hashes() -> Iterator[tuple[bytes, int]]:
    for line in (VECTORS / "gluster-dht-hash.txt").read_text().splitlines():
        words = line.split()
        if line.startswith(("#", "sfh")) or len(words) < 2:
            continue
        yield b"" if words[0] == "-" else bytes.fromhex(words[0]), int(words[1], 16)


def layouts() -> dict[str, list[dict[int, bytes]]]:
    """Directory -> its layouts in the order of the file, only those of volumes of single bricks."""
    found: dict[str, list[dict[int, bytes]]] = {}
    part = 0
    last: tuple[str, int] = ("", 0)
    for line in (VECTORS / "gluster-dht-layout.txt").read_text().splitlines():
        part += line.startswith("# ---")
        words = line.split()
        if len(words) == 3 and words[1][0] == "b" and words[1][1:].isdigit():
            if last != (words[0], part):
                found.setdefault(words[0], []).append({})
            last = (words[0], part)
            found[words[0]][-1][int(words[1][1:])] = bytes.fromhex(words[2][2:])
    return found


def test_hash_of_every_name_is_the_librarys() -> None:
    names = list(hashes())
    assert len(names) > 40
    assert {name: hash_bytes(name) for name, _ in names} == dict(names)


@pytest.mark.parametrize(("directory", "path"), [("root", b"/"), ("/dir", b"/dir")])
def test_new_directory_gets_glusters_ranges(directory: str, path: bytes) -> None:
    real = {number: unpack_range(value) for number, value in layouts()[directory][0].items()}
    commit = 1 if directory == "root" else 0
    assert new_layout(path, range(4), commit=commit) == real


@pytest.mark.parametrize(("directory", "path"), [("root", b"/"), ("/dir", b"/dir")])
def test_fifth_brick_takes_the_ranges_that_gluster_gives_it(directory: str, path: bytes) -> None:
    before, after = layouts()[directory][:2]
    old = read_layout(before).ranges
    real = {number: (r.first, r.last) for number, r in read_layout(after).ranges.items()}
    assert len(real) == 5
    assert {number: (r.first, r.last) for number, r in fixed_layout(path, old, range(5)).items()} == real


@given(
    st.binary(min_size=1, max_size=20),
    st.lists(st.integers(1, 1000), min_size=1, max_size=40),
    st.integers(0, LAST_HASH),
)
def test_every_hash_has_exactly_one_owner(path: bytes, weights: list[int], value: int) -> None:
    made = new_layout(path, range(len(weights)), weights=dict(enumerate(weights)))
    layout = Layout(made)
    assert layout.anomalies().is_sound
    assert [n for n, r in made.items() if not r.is_empty and r.first <= value <= r.last] == [layout.owner(value)]


@given(st.integers(1, 8), st.integers(1, 8), st.binary(max_size=8))
def test_fixed_layout_is_sound_and_keeps_no_less_than_a_new_one(before: int, after: int, path: bytes) -> None:
    old = new_layout(path, range(before))
    fixed, fresh = fixed_layout(path, old, range(after)), new_layout(path, range(after))
    assert Layout(fixed).anomalies().is_sound

    def kept(made: dict[int, Range]) -> int:
        return sum(made[n].overlap(old[n]) for n in range(min(before, after)))

    assert kept(fixed) >= kept(fresh)


def test_hole_overlap_and_missing_copies_are_seen() -> None:
    layout = read_layout({0: Range(0, 99).pack(), 1: Range(50, LAST_HASH - 1).pack(), 2: None, 3: b"short"})
    found = layout.anomalies()
    assert (found.holes, found.overlaps, found.missing) == (1, 1, (2, 3))
    assert layout.owner(LAST_HASH) is None
    assert layout.commit() is None


def test_temporary_names_of_rsync_belong_where_the_file_will_be() -> None:
    assert NameHash()(b".file.txt.AbC123") == hash_bytes(b"file.txt")
    assert NameHash(rsync="none")(b".file.txt.AbC123") == hash_bytes(b".file.txt.AbC123")
    assert NameHash(extra=r"^(.+)\.tmp$")(b"a.tmp") == hash_bytes(b"a")
    assert NameHash()(b".hidden") == hash_bytes(b".hidden")
