# SPDX-License-Identifier: Apache-2.0
"""A peer that says exactly what a test wants: raw bytes, nothing shared with the product.

What is common to the one in the simulator (tests/sim/scripted_peer.py) and the one on real sockets
(tests/lib/tcp_peer.py): packets, and a handshake that can be done wrong.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from tests.sim.protocol_tables import CODE_NAMES, CODES

SYNCER = (1 << 64) - 1
CONNECTED, DUNKNOWN, WF_CONNECTION, DISKLESS = 10, 6, 8, 0


def h80(name: str | int, body: bytes = b"") -> bytes:
    return struct.pack(">IHH", 0x83740267, _code(name), len(body)) + body


def h100(name: str | int, body: bytes = b"", volume: int = 0, pad: int = 0) -> bytes:
    return struct.pack(">IHHII", 0x8620EC20, volume, _code(name), len(body), pad) + body


def _code(name: str | int) -> int:
    return name if isinstance(name, int) else CODES[name]


def state_word(role: int, conn: int, disk: int, *, peer: int = 0, pdsk: int = DUNKNOWN) -> bytes:
    return struct.pack(">I", role | peer << 2 | conn << 4 | disk << 9 | pdsk << 13)


def data(sector: int, payload: bytes, *, block_id: int = 1, flags: int = 0x100, seq: int = 1) -> bytes:
    return struct.pack(">QQII", sector, block_id, seq, flags) + payload


def ack(sector: int, block_id: int, size: int, seq: int = 1) -> bytes:
    return struct.pack(">QQII", sector, block_id, size, seq)


def split(buffer: bytearray) -> list[tuple[str, int, bytes]]:
    """Whole packets (name, volume, body) at the beginning of ``buffer``, which are taken off."""
    found = []
    while len(buffer) >= 8:
        is_long = buffer[:4] == b"\x86\x20\xec\x20"
        head = 16 if is_long else 8
        if len(buffer) < head:
            break
        if is_long:
            volume, code, length = struct.unpack_from(">HHI", buffer, 4)
        else:
            volume, (code, length) = 0, struct.unpack_from(">HH", buffer, 4)
        if len(buffer) < head + length:
            break
        found.append((CODE_NAMES.get(code, hex(code)), volume, bytes(buffer[head : head + length])))
        del buffer[: head + length]
    return found


class PeerScript(ABC):
    """:meth:`take` has what the node sent."""

    def __init__(self) -> None:
        self.data: Any = -1
        self.meta: Any = -1
        self.packets: list[tuple[str, int, bytes]] = []

    @abstractmethod
    def connect(self) -> None:
        """Both sockets with their first packets."""

    @abstractmethod
    def send(self, content: bytes, socket: Any = None) -> None:
        """On the data socket unless said otherwise."""

    @abstractmethod
    def take(self, name: str, ms: float = 10_000) -> bytes:
        """The body of the next packet of this name; earlier ones are dropped."""

    @abstractmethod
    def wait_connected(self) -> None:
        """The node says so."""

    def say(self, name: str | int, body: bytes = b"", volume: int = 0) -> None:
        self.send(h100(name, body, volume))

    def say_meta(self, name: str | int, body: bytes = b"", volume: int = 0) -> None:
        self.send(h100(name, body, volume), self.meta)

    # ---- the handshake ----

    def features(self, low: int = 86, flags: int = 0xF, high: int = 101) -> None:
        self.send(h80("P_CONNECTION_FEATURES", struct.pack(">III", low, flags, high) + bytes(60)))
        self.take("P_CONNECTION_FEATURES")

    def authenticate(self, secret: bytes, challenge: bytes = bytes(range(64))) -> None:
        self.say("P_AUTH_CHALLENGE", challenge)
        self.say("P_AUTH_RESPONSE", hmac.new(secret, self.take("P_AUTH_CHALLENGE"), hashlib.sha1).digest())

    def protocol(self, **changes: Any) -> bytes:
        fields = {"protocol": 3, "after_0": 0, "after_1": 0, "after_2": 0, "flags": 0, "two": 0} | changes
        return struct.pack(">6I", *fields.values()) + b"\0"

    def parameters(
        self,
        *,
        role: int,
        disk: int,
        leave_out: str = "",
        meanwhile: Callable[[], None] | None = None,
        **bodies: bytes,
    ) -> None:
        """What a node of the same data as the real one says; ``bodies`` replace single ones (by name without P_).

        ``meanwhile``: done when the node has told its generations and knows nothing of the peer's.
        """
        sizes, uuids = self.take("P_SIZES"), self.take("P_UUIDS")
        if meanwhile is not None:
            meanwhile()
        if disk == DISKLESS:
            sizes, leave_out = bytes(16) + sizes[16:], "P_UUIDS"
        said = {
            "P_PROTOCOL": self.protocol(),
            "P_SYNC_PARAM89": struct.pack(">I", 250) + bytes(128) + struct.pack(">4I", 20, 10, 100, 102400),
            "P_SIZES": sizes,
            "P_UUIDS": uuids[:32] + bytes(16),
            "P_STATE": state_word(role, WF_CONNECTION, disk),
        }
        for name, body in said.items():
            if name != leave_out:
                self.say(name, bodies.get(name.removeprefix("P_").lower(), body))

    def meet(self, *, role: int = 2, disk: int = 8, node_role: int = 0, two: bool = False) -> None:
        """Everything up to Connected; ``two``: with allow-two-primaries."""
        self.connect()
        self.introduce(role=role, disk=disk, node_role=node_role, two=two)

    def introduce(self, *, role: int = 2, disk: int = 8, node_role: int = 0, two: bool = False) -> None:
        """The same on sockets that are there."""
        self.features()
        self.parameters(role=role, disk=disk, protocol=self.protocol(two=int(two)))
        self.take("P_STATE")
        self.say("P_STATE", state_word(role, CONNECTED, disk, peer=node_role or 3 - role, pdsk=8))
        self.wait_connected()
