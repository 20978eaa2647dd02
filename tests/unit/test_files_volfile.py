# SPDX-License-Identifier: Apache-2.0
"""Volfiles: what the real parser accepts and refuses, and back to text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.errors import ConfigError
from repl.files.volfile import KEYWORDS, Volume, load, parse, render

TUTORIALS = Path(__file__).parents[1] / "vectors" / "volfiles"
POSIX = "volume a\n type storage/posix\n option directory /x\nend-volume\n"


@pytest.mark.parametrize("name", ["2x2-server", "2x2-client", "ha-node2", "ha-client"])
def test_tutorial_is_read_and_written_alike(name: str) -> None:
    volumes = load(TUTORIALS / f"tutorial-{name}.vol").volumes
    again = parse(render(volumes)).volumes
    assert [(v.name, v.type, v.options, v.subvolumes) for v in again] == [
        (v.name, v.type, v.options, v.subvolumes) for v in volumes
    ]


def test_line_wrap_blank_of_the_tutorial_is_refused_with_line_volume_and_hint() -> None:
    with pytest.raises(ConfigError, match=r"syntax error: line 35 \(volume 'server'\).*auth\.ip\.gfs-ds-.*stray blank"):
        load(TUTORIALS / "tutorial-ha-node1.vol")


def test_comment_begins_a_token_only_and_may_follow_a_value() -> None:
    (volume,) = parse("volume a # b\n type x/y\n option directory /ba#re # comment\nend-volume # end").volumes
    assert volume.options == {"directory": "/ba#re"}


def test_quoted_values_take_blanks_backslashes_and_keywords() -> None:
    (volume,) = parse(r'volume a type x/y option k "a \"b\" \\ end-volume" end-volume').volumes
    assert volume.options == {"k": r'a "b" \ end-volume'}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no volume"),
        ("VOLUME a type x end-volume", "line 1: 'VOLUME'"),
        ("volume a\ntype x/y\n", r"line 2 \(volume 'a'\): the end of the file"),
        ("volume a option k v type x end-volume", "'type' is expected"),
        ("volume a\n type x\n option k\nend-volume", "line 4.*value of option 'k' is missing"),
        ("volume a\n type x\n subvolumes\nend-volume", "names none"),
        (POSIX + POSIX, r":5: volume 'a' defined again"),
        ("volume b type x subvolumes a end-volume", "subvolume 'a' is not defined prior to usage"),
        ("volume a type `id` end-volume", "backquotes"),
        ('volume a type x option k "open\nend-volume', ":1: the quotation mark is never closed"),
        ("volume a type x option k a\\b end-volume", "quotation marks"),
        (POSIX + "volume b type x subvolumes a subvolumes a end-volume", "one line of subvolumes"),
        ("volume a type x option k one two end-volume", "An option has one value"),
    ],
)
def test_what_the_real_parser_refuses_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text, "v.vol")


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
plain = st.text("abcdefgh-/._#*,", min_size=1, max_size=10).filter(lambda word: word not in KEYWORDS)


@given(st.dictionaries(plain, words, max_size=4), plain)
def test_any_volume_survives_being_written_and_read(options: dict[str, str], name: str) -> None:
    volumes = [Volume("leaf", 1, "t"), Volume("x" + name, 1, "cluster/x", options, {}, ["leaf"])]
    again = parse(render(volumes)).volumes[1]
    assert (again.name, again.options, again.subvolumes) == ("x" + name, options, ["leaf"])
