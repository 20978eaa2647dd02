# SPDX-License-Identifier: Apache-2.0
"""What every translator does unless it says otherwise."""

from __future__ import annotations

import asyncio
import errno
import uuid
from typing import Any

import pytest

from repl.files.options import parse_options
from repl.files.translator import Context, Step, Translator
from repl.files.values import ROOT, Caller, Fd, FopError, Loc, Looked, gfid_from_text, gfid_text


class Recorder(Translator):
    """A leaf that writes down what it is asked."""

    def __init__(self) -> None:
        super().__init__("leaf", parse_options((), {}), (), Context())
        self.calls: list[Any] = []

    async def lookup(self, caller: Caller, loc: Loc, *, want: tuple[bytes, ...] = ()) -> Looked:
        raise FopError(errno.ENOENT)

    async def readlink(self, caller: Caller, loc: Loc) -> bytes:
        self.calls.append("readlink")
        return b"there"

    async def release(self, fd: Fd) -> None:
        self.calls.append(("release", fd))

    def client_gone(self, client: str) -> None:
        self.calls.append(("gone", client))


def test_compound_ends_with_its_first_error_but_releases_what_it_was_to_release() -> None:
    leaf = Recorder()
    middle = Translator("middle", parse_options((), {}), [leaf], Context())
    fd = Fd(bytes(16))
    steps = [Step("readlink", (ROOT,)), Step("lookup", (ROOT,)), Step("readlink", (ROOT,)), Step("release", (fd,))]
    answers = asyncio.run(middle.compound(Caller(), steps))
    assert answers[0] == b"there" and isinstance(answers[1], FopError) and len(answers) == 2
    assert leaf.calls == ["readlink", ("release", fd)]


def test_end_of_a_client_reaches_the_leaves() -> None:
    leaf = Recorder()
    Translator("middle", parse_options((), {}), [leaf], Context()).client_gone("mount-1")
    assert leaf.calls == [("gone", "mount-1")]


def test_gfids_are_spelled_as_uuids() -> None:
    for number in range(64):
        gfid = uuid.UUID(int=0x0123456789ABCDEF << number).bytes
        assert gfid_text(gfid) == str(uuid.UUID(bytes=gfid))
        assert gfid_from_text(gfid_text(gfid)) == gfid
    with pytest.raises(ValueError):
        gfid_text(bytes(15))
