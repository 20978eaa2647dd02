# SPDX-License-Identifier: Apache-2.0
"""Getting the two sockets of a connection: dial and accept at the same time, as DRBD 8.4 does.

The first successful dial becomes the data socket, the next one the meta socket; what the peer dials becomes what its
first packet says.  The node that accepted the meta socket holds the resolve-conflicts flag.
differs: when both nodes dial the same socket at once, DRBD always keeps the accepted one and lets chance decide whether
to try again; two of our nodes would drop both.  The node whose name comes first keeps its own, which agrees with a
DRBD peer as well; the other keeps the accepted one and, like DRBD, tosses a coin (decision 0005).
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from repl.drbd.packets import Packet, encode
from repl.engine import commands as ec
from repl.engine.events import Event, EventType
from repl.node import actions as act
from repl.node.flow import Promise

if TYPE_CHECKING:
    from repl.node.node import Node

PEER_STREAMS_MAX = 16
PEER_SOCKETS_MAX = 12  # without the two of a link: some numbers are always free
FIRST_PACKET_PING_TIMEOUTS = 4


@dataclass(slots=True)
class PeerSocket:
    """A socket to the peer that is not part of a link yet."""

    stream: int
    is_accepted: bool
    source: str = ""  # address of an accepted one, "" for the configured peer's
    kind: Packet | None = None  # INITIAL_DATA or INITIAL_META
    is_closed: bool = False
    early: list[Event] = field(default_factory=list)  # packets behind the first one


@dataclass(slots=True)
class Pair:
    """Both sockets."""

    data: PeerSocket
    meta: PeerSocket

    @property
    def resolve_conflicts(self) -> bool:
        return self.meta.is_accepted


class PairMaker:
    """Owns every socket until a pair is complete."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._sockets: dict[int, PeerSocket] = {}
        self._ready: deque[PeerSocket] = deque()  # accepted, first packet seen
        self._arrival: Promise[None] = Promise()
        self._dials: dict[int, Promise[int | None]] = {}
        self._next_dial = 1
        self.last_dial_error = ""
        self.is_open = False
        self._next_stream = 0

    # ---- the shell's and the engine's side ----

    def accepted(self, fd: int, source: str = "") -> None:
        if not self.is_open:
            self._node.act(act.CloseFd(fd))
            return
        socket = self._add(fd, is_accepted=True, source=source)
        if socket is not None:
            self._node.start(self._await_first_packet(socket), "first packet")

    def dialled(self, dial_id: int, fd: int) -> None:
        promise = self._dials.pop(dial_id, None)
        if promise is None:
            self._node.act(act.CloseFd(fd))
        else:
            promise.keep(fd)

    def dial_failed(self, dial_id: int, reason: str) -> None:
        self.last_dial_error = reason
        promise = self._dials.pop(dial_id, None)
        if promise is not None:
            promise.keep(None)

    def engine_event(self, event: Event) -> bool:
        """True if the event belonged to a socket of ours."""
        socket = self._sockets.get(event.stream)
        if socket is None:
            return False
        if event.type is EventType.STREAM_CLOSED:
            socket.is_closed = True
            if socket.is_accepted and socket.kind is None:
                self._drop(socket)
            return True
        if event.type is EventType.PACKET and socket.is_accepted and socket.kind is None:
            if event.packet in (Packet.INITIAL_DATA, Packet.INITIAL_META) and not event.blob:
                socket.kind = Packet(event.packet)
                self._replace_ready(socket)
                self._ready.append(socket)
                self._arrival.keep(None)
            else:
                self._drop(socket)
            return True
        if event.type is EventType.PACKET:
            socket.early.append(event)
            return True
        return False

    # ---- the procedure ----

    async def make(self) -> Pair:
        """Dial and accept until both sockets stand."""
        node, net = self._node, self._node.settings.net
        data: PeerSocket | None = None
        meta: PeerSocket | None = None
        waits = False  # after a crossing: let the peer dial
        while True:
            if not waits and not self._ready and not (data and meta):
                dialled = await self._dial()
                if dialled is not None:
                    dialled.kind = Packet.INITIAL_DATA if data is None else Packet.INITIAL_META
                    node.send(ec.StreamSend(dialled.stream, encode(dialled.kind, b"", version=80)))
                    if data is None:
                        data = dialled
                    else:
                        meta = dialled
            # A pair has to last for a while; what the peer dials meanwhile has crossed ours.
            is_pair = data is not None and meta is not None
            wait_ms = net.ping_timeout_ms if is_pair else self._accept_wait_ms(net.connect_int_ms)
            socket = await self._next_accepted(wait_ms)
            if socket is None:
                waits = waits and is_pair
            elif socket.kind is Packet.INITIAL_DATA:
                data, waits = self._take(data, socket)
            else:
                meta, waits = self._take(meta, socket)
            data, meta = self._open_only(data), self._open_only(meta)
            if socket is None and is_pair and data and meta:
                self._forget(data, meta)
                return Pair(data, meta)

    def close(self) -> None:
        """Drop everything that is not part of a pair."""
        self.is_open = False
        for socket in list(self._sockets.values()):
            self._drop(socket)
        self._ready.clear()
        for dial in self._dials.values():
            dial.keep(None)
        self._dials.clear()

    def open(self) -> None:
        self.is_open = True

    # ---- details ----

    def _accept_wait_ms(self, connect_int_ms: int) -> int:
        seventh = connect_int_ms // 7
        return connect_int_ms + (seventh if self._coin() else -seventh)

    def _coin(self) -> bool:
        return bool(self._node.random() & 1)

    def _keeps_own(self) -> bool:
        settings = self._node.settings
        # Names first: through a proxy each node sees another pair of addresses.
        return (settings.node, settings.my_address) < (settings.peer, settings.peer_address)

    def _rank(self, socket: PeerSocket) -> int:
        """Where anybody may connect, nobody takes the place of the configured peer."""
        return 0 if socket.is_accepted and socket.source else 1

    def _replace_ready(self, new: PeerSocket) -> None:
        """Who dials again has given up what was dialled before: only the newest of each source counts."""
        for old in list(self._ready):
            if old.kind == new.kind and old.source == new.source:
                self._drop(old)

    def _open_only(self, socket: PeerSocket | None) -> PeerSocket | None:
        if socket is not None and socket.is_closed:
            self._drop(socket)
            return None
        return socket

    def _take(self, own: PeerSocket | None, new: PeerSocket) -> tuple[PeerSocket, bool]:
        """The socket to go on with, and whether to let the peer dial next."""
        self._node.send(ec.StreamResume(new.stream))
        own = self._open_only(own)
        if own is None:
            return new, False
        if (not own.is_accepted and self._keeps_own()) or self._rank(new) < self._rank(own):
            self._drop(new)
            return own, False
        self._drop(own)
        return new, not own.is_accepted and self._coin()

    async def _dial(self) -> PeerSocket | None:
        node = self._node
        dial_id = self._next_dial
        self._next_dial += 1
        promise: Promise[int | None] = Promise()
        self._dials[dial_id] = promise
        node.act(act.Dial(dial_id, node.settings.net.connect_int_ms))
        fd = await promise
        return None if fd is None else self._add(fd, is_accepted=False)

    async def _next_accepted(self, wait_ms: int) -> PeerSocket | None:
        if not self._ready:
            self._arrival = Promise()
            await self._node.within(self._arrival, wait_ms)
        return self._ready.popleft() if self._ready else None

    async def _await_first_packet(self, socket: PeerSocket) -> None:
        await self._node.pause(self._node.settings.net.ping_timeout_ms * FIRST_PACKET_PING_TIMEOUTS)
        if socket.kind is None and self._sockets.get(socket.stream) is socket:
            self._drop(socket)

    def _add(self, fd: int, *, is_accepted: bool, source: str = "") -> PeerSocket | None:
        if len(self._sockets) >= PEER_SOCKETS_MAX:
            self._make_room()
        # In turn: an event of a socket that was just closed must not be taken for one of its successor.
        for number in range(self._next_stream, self._next_stream + PEER_STREAMS_MAX):
            stream = number % PEER_STREAMS_MAX
            if stream not in self._sockets and not self._node.connection.uses_stream(stream):
                self._next_stream = stream + 1
                socket = PeerSocket(stream, is_accepted, source)
                self._sockets[stream] = socket
                self._node.send(ec.StreamAdd(stream, fd))
                return socket
        self._node.act(act.CloseFd(fd))  # too many at once: a real peer dials again
        return None

    def _make_room(self) -> None:
        """Whoever has waited longest without saying who he is goes, of the address that has most of them."""
        waiting = [s for s in self._sockets.values() if s.is_accepted and s.kind is None]
        waiting = waiting or [s for s in self._ready if not self._rank(s)]
        if waiting:
            count = Counter(s.source for s in waiting)
            self._drop(max(waiting, key=lambda s: (-self._rank(s), count[s.source])))

    def _drop(self, socket: PeerSocket) -> None:
        if self._sockets.get(socket.stream) is socket:
            del self._sockets[socket.stream]
            self._node.send(ec.StreamClose(socket.stream))
        if socket in self._ready:
            self._ready.remove(socket)

    def _forget(self, *sockets: PeerSocket) -> None:
        """They belong to the link from now on."""
        for socket in sockets:
            self._sockets.pop(socket.stream, None)
