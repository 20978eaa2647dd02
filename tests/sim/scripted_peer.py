# SPDX-License-Identifier: Apache-2.0
"""A peer that says exactly what a test wants, in the simulator, against a real node: raw bytes from the protocol's
description, nothing shared with the product.

Node 0 of a cluster is the real one, node 1 is this.  It dials both sockets, as the kernel accepts it too; or it lets
the node dial, and then holds the resolve-conflicts flag itself.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Any

from tests.sim.cluster import Cluster
from tests.sim.node_shell import PORT
from tests.sim.protocol_tables import CODE_NAMES, CODES
from tests.sim.world import Notice

READ_BYTES = 1 << 16
SYNCER = (1 << 64) - 1
CONNECTED, DUNKNOWN, WF_CONNECTION = 10, 6, 8


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


class ScriptedPeer:
    """Connects when told; :meth:`take` has what the node sent."""

    def __init__(self, cluster: Cluster) -> None:
        self._c = cluster
        self._lib, self._sim, self._ffi = cluster.world.lib, cluster.world.sim, cluster.world.ffi
        self._memory = self._ffi.new("uint8_t[]", READ_BYTES)
        self._dialled: dict[int, int] = {}
        self._accepted: list[int] = []
        self.data = self.meta = -1
        self._buffers: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.packets: list[tuple[str, int, bytes]] = []
        self.answers_pings = False
        cluster.judge(0)
        cluster.shells[1].notice = self._notice  # type: ignore[method-assign]

    def _notice(self, n: Notice) -> None:
        if n.kind == self._lib.RE_SIM_NOTICE_DIALED:
            self._dialled[n.id] = n.fd if not n.error else -1
        elif n.kind == self._lib.RE_SIM_NOTICE_ACCEPTED:
            self._accepted.append(n.fd)

    # ---- sockets ----

    def dial(self) -> int:
        """A connection to the node's port; it must listen."""
        while True:
            number = self._lib.re_sim_dial(self._sim, 1, 0, PORT)
            self._c.until(lambda n=number: n in self._dialled, 10_000, "the end of a dial")
            if (fd := self._dialled.pop(number)) >= 0:
                self._buffers[fd] = bytearray()
                return int(fd)
            self._c.run(100)

    def connect(self) -> None:
        """Both sockets with their first packets."""
        self.data = self.dial()
        self.send(h80("P_INITIAL_DATA"))
        self.meta = self.dial()
        self.send(h80("P_INITIAL_META"), self.meta)

    def accept(self) -> None:
        """Both sockets, dialled by the node."""
        listener = self._lib.re_sim_listen(self._sim, 1, PORT)
        self._c.until(lambda: len(self._accepted) == 2, 20_000, "both sockets of the node")
        self.data, self.meta = self._accepted
        self._buffers |= {fd: bytearray() for fd in self._accepted}
        self._lib.re_sim_unlisten(self._sim, listener)

    def send(self, content: bytes, fd: int | None = None) -> None:
        """Until all of it is sent or the connection has ended."""
        target = self.data if fd is None else fd
        while content and target not in self.ended:
            sent = self._lib.re_sim_socket_write(self._sim, target, content, len(content))
            if sent > 0:
                content = content[sent:]
            elif sent == -11:
                self._c.run(1)
                self.read()
            else:
                self.ended.add(target)

    def say(self, name: str | int, body: bytes = b"", volume: int = 0) -> None:
        self.send(h100(name, body, volume))

    def say_meta(self, name: str | int, body: bytes = b"", volume: int = 0) -> None:
        self.send(h100(name, body, volume), self.meta)

    def close(self, *fds: int) -> None:
        for fd in fds or (self.data, self.meta):
            self._lib.re_sim_socket_close(self._sim, fd)
            self.ended.add(fd)

    def read(self) -> None:
        for fd in (self.data, self.meta):
            while fd >= 0 and fd not in self.ended:
                got = self._lib.re_sim_socket_read(self._sim, fd, self._memory, READ_BYTES)
                if got <= 0:
                    if got != -11:
                        self.ended.add(fd)
                    break
                self._buffers[fd] += bytes(self._ffi.buffer(self._memory, got))
            self._parse(self._buffers.get(fd, bytearray()))

    def _parse(self, buffer: bytearray) -> None:
        while len(buffer) >= 8:
            is_long = buffer[:4] == b"\x86\x20\xec\x20"
            head = 16 if is_long else 8
            if len(buffer) < head:
                return
            if is_long:
                volume, code, length = struct.unpack_from(">HHI", buffer, 4)
            else:
                volume, (code, length) = 0, struct.unpack_from(">HH", buffer, 4)
            if len(buffer) < head + length:
                return
            name = CODE_NAMES.get(code, hex(code))
            self.packets.append((name, volume, bytes(buffer[head : head + length])))
            del buffer[: head + length]
            if name == "P_PING" and self.answers_pings:
                self.say_meta("P_PING_ACK")

    # ---- waiting ----

    def take(self, name: str, ms: float = 10_000) -> bytes:
        """The body of the next packet of this name; earlier ones are dropped."""
        found: list[bytes] = []

        def look() -> bool:
            self.read()
            while self.packets and not found:
                got, _, body = self.packets.pop(0)
                if got == name:
                    found.append(body)
            return bool(found)

        self._c.until(look, ms, f"{name} from the node")
        return found[0]

    def has_ended(self) -> bool:
        self.read()
        return self.data in self.ended

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

    def parameters(self, *, role: int, disk: int, leave_out: str = "", **bodies: bytes) -> None:
        """What a node of the same data as the real one says; ``bodies`` replace single ones (by name without P_)."""
        sizes, uuids = self.take("P_SIZES"), self.take("P_UUIDS")
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

    def meet(self, *, role: int = 2, disk: int = 8, node_role: int = 0, dials: bool = True, two: bool = False) -> None:
        """Everything up to Connected; ``two``: with allow-two-primaries."""
        if dials:
            self.connect()
        else:
            self.accept()
        self.features()
        self.parameters(role=role, disk=disk, protocol=self.protocol(two=int(two)))
        self.take("P_STATE")
        self.say("P_STATE", state_word(role, CONNECTED, disk, peer=node_role or 3 - role, pdsk=8))
        self._c.until(lambda: self._c.node(0).is_connected, 10_000, "the connection")
