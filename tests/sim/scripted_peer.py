# SPDX-License-Identifier: Apache-2.0
"""The scripted peer (tests/lib/peer_script.py) in the simulator, against a real node.

Node 0 of a cluster is the real one, node 1 is this.  It dials both sockets, as the kernel accepts it too; or it lets
the node dial, and then holds the resolve-conflicts flag itself.
"""

from __future__ import annotations

from typing import Any

from repl.drbd.states import ConnectionState
from tests.lib.peer_script import SYNCER, PeerScript, ack, data, h80, h100, split, state_word
from tests.sim.cluster import Cluster
from tests.sim.node_shell import PORT
from tests.sim.world import Notice

__all__ = ["SYNCER", "ScriptedPeer", "ack", "data", "h80", "h100", "state_word"]

READ_BYTES = 1 << 16


class ScriptedPeer(PeerScript):
    """Connects when told."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._c = cluster
        self._lib, self._sim, self._ffi = cluster.world.lib, cluster.world.sim, cluster.world.ffi
        self._memory = self._ffi.new("uint8_t[]", READ_BYTES)
        self._dialled: dict[int, int] = {}
        self._accepted: list[int] = []
        self._buffers: dict[int, bytearray] = {}
        self.ended: set[int] = set()
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

    def send(self, content: bytes, socket: Any = None) -> None:
        """Until all of it is sent or the connection has ended."""
        target = self.data if socket is None else socket
        while content and target not in self.ended:
            sent = self._lib.re_sim_socket_write(self._sim, target, content, len(content))
            if sent > 0:
                content = content[sent:]
            elif sent == -11:
                self._c.run(1)
                self.read()
            else:
                self.ended.add(target)

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
            for packet in split(self._buffers.get(fd, bytearray())):
                self.packets.append(packet)
                if packet[0] == "P_PING" and self.answers_pings:
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

    def wait_connected(self) -> None:
        """The engine knows it as well: a write goes to the peer from now on."""
        volumes = self._c.node(0).volumes.values()
        wanted = ConnectionState.CONNECTED
        self._c.until(lambda: all(v.state.conn >= wanted for v in volumes), 10_000, "the connection")
