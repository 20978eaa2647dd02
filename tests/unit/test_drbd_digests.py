# SPDX-License-Identifier: Apache-2.0
"""Digests of blocks: names and numbers, and the engine's values against Python's own."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from repl.config import load, resource_for_node
from repl.drbd.digests import DIGESTS, Digest, digest_number
from repl.engine.binding import digest
from repl.errors import ConfigError
from repl.limits import BLOCK_BYTES

HASHLIB: dict[str, Callable[[bytes], bytes]] = {
    "md5": lambda data: hashlib.md5(data, usedforsecurity=False).digest(),
    "sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}


def crc32c(data: bytes) -> bytes:
    """Bit by bit, after the polynomial; little-endian as DRBD sends it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "little")


@pytest.mark.parametrize("length", [0, 1, 31, 32, 511, 512, BLOCK_BYTES, 3 * BLOCK_BYTES + 512])
def test_digest_of_any_length_is_the_reference_one(length: int) -> None:
    data = random.Random(length).randbytes(length)
    for name, reference in {**HASHLIB, "crc32c": crc32c}.items():
        assert digest(DIGESTS[name], data) == reference(data), name


def test_digest_xxhash64_of_the_empty_text_is_the_published_one_in_little_endian() -> None:
    assert digest(Digest.XXHASH64, b"") == (0xEF46DB3751D8E999).to_bytes(8, "little")


def test_digest_of_an_unknown_number_is_empty() -> None:
    assert digest(77, b"abc") == b""


def test_digest_names_are_the_kernels() -> None:
    assert sorted(DIGESTS) == ["crc32c", "md5", "sha1", "sha256", "xxhash64"]
    assert digest_number("") is Digest.NONE


def test_digest_name_that_is_unknown_tells_what_can_be_used() -> None:
    with pytest.raises(ConfigError, match="verify-alg 'sha3' is not known here.*crc32c"):
        digest_number("sha3", "verify-alg")


@pytest.mark.parametrize("option", ["verify-alg", "csums-alg"])
def test_configuration_with_an_unknown_algorithm_is_refused_with_its_line(option: str, tmp_path: Path) -> None:
    file = tmp_path / "x.res"
    file.write_text(
        f"resource x {{\n net {{ {option} sha3; }}\n"
        " on alpha { device minor 1; disk /dev/null; meta-disk internal; address 10.0.0.1:7000; }\n"
        " on bravo { device minor 1; disk /dev/null; meta-disk internal; address 10.0.0.2:7000; }\n}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="'sha3' is not known here") as caught:
        resource_for_node(load(file), "x", "alpha")
    assert caught.value.line == 2
