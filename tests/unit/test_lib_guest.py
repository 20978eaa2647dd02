# SPDX-License-Identifier: Apache-2.0
"""The mark behind the output of a guest's command is found wherever the reads cut it, and nothing else is held back."""

from __future__ import annotations

import pytest

from tests.lib.guest import Marked

MARK = b"\0end 7\0"


@pytest.mark.parametrize("text", [b"", b"words\n", b"\0", b"a\0end 6\0b", b"\0end", b"\0\0end \0"])
def test_output_is_passed_on_whatever_the_cuts_and_the_mark_is_not(text: bytes) -> None:
    stream = text + MARK
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            got = bytearray()
            marked = Marked(MARK, got.extend)
            for part in (stream[:first], stream[first:second], stream[second:]):
                assert not marked.is_complete or not part
                marked.feed(part)
            assert marked.is_complete and bytes(got) == text


def test_output_without_zeroes_is_passed_on_at_once() -> None:
    got = bytearray()
    marked = Marked(MARK, got.extend)
    marked.feed(b"line\n")
    assert bytes(got) == b"line\n" and not marked.is_complete
