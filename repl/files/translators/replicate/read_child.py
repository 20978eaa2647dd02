# SPDX-License-Identifier: Apache-2.0
"""Which copy to read from.  Facts: spec 5.4."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

_PAIR = struct.Struct("<HH")


@lru_cache(8192)
def super_fast_hash(data: bytes) -> int:
    """Paul Hsieh's hash of whole 32-bit words (a gfid has four)."""
    value: int = len(data)
    for low, high in _PAIR.iter_unpack(data):
        value = (value + int(low)) & 0xFFFFFFFF
        value = ((value << 16) ^ (int(high) << 11) ^ value) & 0xFFFFFFFF
        value = (value + (value >> 11)) & 0xFFFFFFFF
    value ^= value << 3 & 0xFFFFFFFF
    value = (value + (value >> 5)) & 0xFFFFFFFF
    value ^= value << 4 & 0xFFFFFFFF
    value = (value + (value >> 17)) & 0xFFFFFFFF
    value ^= value << 25 & 0xFFFFFFFF
    return (value + (value >> 6)) & 0xFFFFFFFF


class Load:
    """What is known of a child's speed: reads under way and the mean time of the last ones."""

    __slots__ = ("latency_s", "pending")

    def __init__(self) -> None:
        self.pending = 0
        self.latency_s = 0.0

    def done(self, seconds: float) -> None:
        self.latency_s += (seconds - self.latency_s) / 8


def choose(mode: int, gfid: bytes, pid: int, readable: int, loads: Sequence[Load]) -> int:
    """A child of the mask ``readable`` (not empty), by ``read-hash-mode``."""
    count = len(loads)
    if mode in (1, 2):
        if not readable & (readable - 1):
            return readable.bit_length() - 1
        start = super_fast_hash(gfid if mode == 1 else _with_pid(gfid, pid)) % count
        while not readable >> start & 1:
            start = (start + 1) % count
        return start
    candidates = [i for i in range(count) if readable >> i & 1]
    if mode == 0:
        return candidates[0]
    if mode == 3:
        return min(candidates, key=lambda i: loads[i].pending)
    if mode == 4:
        return min(candidates, key=lambda i: loads[i].latency_s)
    return min(candidates, key=lambda i: (loads[i].pending + 1) * loads[i].latency_s)


def _with_pid(gfid: bytes, pid: int) -> bytes:
    head = int.from_bytes(gfid[:4], "little") ^ (pid & 0xFFFFFFFF)
    return head.to_bytes(4, "little") + gfid[4:]
