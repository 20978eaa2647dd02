# SPDX-License-Identifier: Apache-2.0
"""P_FAREWELL, a packet of ours: why a node gives the connection up for good.

DRBD's protocol has nothing for it, so the other node only sees a broken connection.  It is sent only to a node that has
offered our feature flag.  Body: reason code, text and advice in UTF-8, each ended by a NUL.
"""

from __future__ import annotations

from dataclasses import dataclass

from repl.errors import ProtocolError

BYTES_MAX = 2048
CODE_CHARS_MAX = 40
_FIELDS = 3


@dataclass(frozen=True, slots=True)
class Farewell:
    """What the other node is told."""

    reason: str
    text: str
    advice: str

    def encode(self) -> bytes:
        room = (BYTES_MAX - _FIELDS) // _FIELDS
        parts = (part.encode().replace(b"\0", b" ")[:room] for part in (self.reason, self.text, self.advice))
        return b"".join(part + b"\0" for part in parts)

    @classmethod
    def decode(cls, body: bytes) -> Farewell:
        """What cannot be printed is replaced; the peer may be anything."""
        parts = body.split(b"\0")
        if len(body) > BYTES_MAX or len(parts) != _FIELDS + 1 or parts[-1]:
            raise ProtocolError(f"P_FAREWELL of {len(body)} bytes is malformed.")
        reason, text, advice = (_printable(part) for part in parts[:_FIELDS])
        if not reason or len(reason) > CODE_CHARS_MAX:
            raise ProtocolError("P_FAREWELL has no reason.")
        return cls(reason, text, advice)


def _printable(part: bytes) -> str:
    return "".join(c if c.isprintable() else "?" for c in part.decode(errors="replace"))
