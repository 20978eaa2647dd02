# SPDX-License-Identifier: Apache-2.0
"""Which place in a directory's layout a name has.

Input: the bytes of a name; output: a number of 32 bits.  Gluster's function (Davies-Meyer over TEA), so that existing
bricks are found as they are.  Facts: described in docs/files, checked with names placed by GlusterFS 10.3
(tests/vectors/gluster-dht-hash.txt), the sign extension of the last bytes included.
"""

from __future__ import annotations

import re
from functools import lru_cache

_MASK = 0xFFFFFFFF
_DELTA = 0x9E3779B9
_FULL_ROUNDS, _LAST_ROUNDS = 6, 10
_BLOCK_BYTES = 16
# rsync writes .NAME.XXXXXX first: it belongs where NAME will be.
RSYNC_PATTERN = r"^\.(.+)\.[^.]+$"


def _mix(h0: int, h1: int, key: tuple[int, int, int, int], rounds: int) -> tuple[int, int]:
    k0, k1, k2, k3 = key
    b0, b1, total = h0, h1, 0
    for _ in range(rounds):
        total = total + _DELTA & _MASK
        b0 = b0 + (((b1 << 4) + k0) ^ (b1 + total) ^ ((b1 >> 5) + k1)) & _MASK
        b1 = b1 + (((b0 << 4) + k2) ^ (b0 + total) ^ ((b0 >> 5) + k3)) & _MASK
    return h0 + b0 & _MASK, h1 + b1 & _MASK


def _last_key(rest: bytes, length: int) -> tuple[int, int, int, int]:
    pad = length | length << 8
    pad = (pad | pad << 16) & _MASK
    words = [int.from_bytes(rest[at : at + 4], "little") for at in range(0, len(rest) & ~3, 4)]
    if len(words) < 4:
        word = pad
        for byte in rest[len(rest) & ~3 :]:
            signed = byte - 256 if byte >= 128 else byte
            word = (word << 8 | signed) & _MASK
        words.append(word)
    words += [pad] * (4 - len(words))
    return words[0], words[1], words[2], words[3]


def hash_bytes(name: bytes) -> int:
    """Of the name as it is."""
    h0, h1 = 0x9464A485, 0x542E1A94
    whole = len(name) & ~(_BLOCK_BYTES - 1)
    for at in range(0, whole, _BLOCK_BYTES):
        block = name[at : at + _BLOCK_BYTES]
        key = tuple(int.from_bytes(block[n : n + 4], "little") for n in (0, 4, 8, 12))
        h0, h1 = _mix(h0, h1, (key[0], key[1], key[2], key[3]), _FULL_ROUNDS)
    h0, h1 = _mix(h0, h1, _last_key(name[whole:], len(name)), _LAST_ROUNDS)
    return h0 ^ h1


class NameHash:
    """The hash with the patterns of temporary names applied first.

    ``extra`` is tried before ``rsync``; each takes its first group.  "none" switches a pattern off.
    """

    def __init__(self, *, rsync: str = RSYNC_PATTERN, extra: str = "") -> None:
        """Raises ``re.error`` for a pattern that is none."""
        texts = [text for text in (extra, rsync) if text and text != "none"]
        self._patterns = [re.compile(text.encode()) for text in texts]
        self._cached = lru_cache(4096)(self._hash)

    def _hash(self, name: bytes) -> int:
        for pattern in self._patterns:
            match = pattern.search(name)
            if match and match.lastindex:
                return hash_bytes(match[1])
        return hash_bytes(name)

    def __call__(self, name: bytes) -> int:
        return self._cached(name)
