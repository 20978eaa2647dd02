# SPDX-License-Identifier: Apache-2.0
"""Options of translators: values as Gluster spells them."""

from __future__ import annotations

from typing import Any

import pytest

from repl.errors import ConfigError
from repl.files.options import Kind, Option, Percent, parse_options


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Kind.SIZE, "512MB", 512 << 20),
        (Kind.SIZE, "64k", 64 << 10),
        (Kind.SIZE, "131072", 131072),
        (Kind.SIZE, "1.5GB", 3 << 29),
        (Kind.TIME, "5", 5.0),
        (Kind.TIME, "5sec", 5.0),
        (Kind.TIME, "2min", 120.0),
        (Kind.PERCENT, "10%", 10.0),
        (Kind.PERCENT_OR_SIZE, "10%", Percent(10.0)),
        (Kind.PERCENT_OR_SIZE, "5", Percent(5.0)),
        (Kind.PERCENT_OR_SIZE, "10GB", 10 << 30),
        (Kind.BOOL, "enable", True),
        (Kind.BOOL, "Off", False),
        (Kind.OCTAL, "0755", 0o755),
        (Kind.LIST, "10.0.0.*, 127.0.0.1", ("10.0.0.*", "127.0.0.1")),
    ],
)
def test_value_is_read_as_gluster_reads_it(kind: Kind, text: str, value: Any) -> None:
    assert parse_options([Option("k", kind, None, "")], {"k": text})["k"] == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Kind.SIZE, "many"),
        (Kind.BOOL, "perhaps"),
        (Kind.TIME, "5 apples"),
        (Kind.PERCENT, "101"),
        (Kind.OCTAL, "999"),
        (Kind.PATH, "x/y"),
    ],
)
def test_value_that_cannot_be_is_refused(kind: Kind, text: str) -> None:
    with pytest.raises(ConfigError, match=r"volume 'v': option k cannot be"):
        parse_options([Option("k", kind, None, "")], {"k": text}, where="v")


def test_limits_are_kept() -> None:
    declared = [Option("k", Kind.INT, 16, "", minimum=1, maximum=64)]
    with pytest.raises(ConfigError, match="at most 64"):
        parse_options(declared, {"k": "65"})


def test_unknown_option_is_a_warning_only(caplog: pytest.LogCaptureFixture) -> None:
    options = parse_options([Option("k", Kind.INT, 16, "")], {"cache-size": "64MB"}, where="gfs")
    assert options["k"] == 16
    assert "volume 'gfs': option 'cache-size' is not known here" in caplog.text


def test_option_with_a_word_of_the_users_keeps_that_word_and_its_old_spelling_works() -> None:
    allow = Option("auth.addr.*.allow", Kind.LIST, (), "", aliases=("auth.ip.*.allow",), is_pattern=True)
    options = parse_options([allow], {"auth.ip.gfs.allow": "10.0.0.*", "auth.addr.b.allow": "*"})
    assert options.matching("auth.addr.*.allow") == {"gfs": ("10.0.0.*",), "b": ("*",)}
