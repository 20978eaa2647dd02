# SPDX-License-Identifier: Apache-2.0
"""Strangers among the sockets that are accepted: the configured peer always finds a place, whoever else is there."""

from __future__ import annotations

from repl.drbd.packets import Packet
from repl.engine import commands as ec
from repl.engine.events import Event, EventType
from repl.node import actions as act
from repl.node.pair import PEER_SOCKETS_MAX
from tests.fuzz.fake_node import FakeShell, settings_of

PEER = ""


class Watcher(FakeShell):
    """Knows which descriptors the node still holds."""

    def __init__(self) -> None:
        super().__init__(settings_of(0))
        self.held: dict[int, int] = {}  # stream -> fd
        self.command("up")

    def _carry_out(self, action: act.Action) -> None:
        match action:
            case act.EngineCommand(command=ec.StreamAdd(stream=stream, fd=fd)):
                self.held[stream] = fd
            case act.EngineCommand(command=ec.StreamClose(stream=stream)):
                self.held.pop(stream, None)
            case act.Dial():
                return  # nobody answers
            case _:
                pass
        super()._carry_out(action)

    def accept(self, fd: int, source: str, first: Packet | None = None) -> None:
        self.node.accepted(fd, source)
        self.run()
        if first is not None:
            stream = next((s for s, held in self.held.items() if held == fd), None)
            assert stream is not None, "closed at once"
            self.node.engine_event(Event(EventType.PACKET, volume=0, stream=stream, packet=int(first), blob=b""))
            self.run()

    def holds(self, fd: int) -> bool:
        return fd in self.held.values()




def test_hundred_silent_strangers_hold_few_places_and_the_peer_gets_one() -> None:
    shell = Watcher()
    for number in range(100):
        shell.accept(1000 + number, "192.0.2.66")
    assert len(shell.held) <= PEER_SOCKETS_MAX
    shell.accept(1, PEER)
    assert shell.holds(1)
    for number in range(100):
        shell.accept(2000 + number, "192.0.2.66")
    assert shell.holds(1), "a stranger took the peer's place"


def test_one_address_with_many_sockets_does_not_drive_out_another() -> None:
    shell = Watcher()
    shell.accept(1, "192.0.2.1")
    for number in range(100):
        shell.accept(1000 + number, "192.0.2.66")
    assert shell.holds(1)


def test_strangers_that_name_a_socket_never_take_the_place_of_the_peers() -> None:
    shell = Watcher()
    for number in range(50):
        shell.accept(1000 + number, "192.0.2.66", Packet.INITIAL_DATA)
        shell.accept(2000 + number, "192.0.2.66", Packet.INITIAL_META)
    shell.accept(1, PEER, Packet.INITIAL_DATA)
    shell.accept(2, PEER, Packet.INITIAL_META)
    for number in range(50):
        shell.accept(3000 + number, "192.0.2.67", Packet.INITIAL_DATA)
        shell.accept(4000 + number, "192.0.2.67", Packet.INITIAL_META)
    assert shell.holds(1) and shell.holds(2)
    assert len(shell.held) <= PEER_SOCKETS_MAX + 2


def test_peer_that_dials_again_replaces_what_it_dialled_before() -> None:
    shell = Watcher()
    shell.accept(1, PEER, Packet.INITIAL_DATA)
    shell.accept(2, PEER, Packet.INITIAL_DATA)
    assert shell.holds(2) and not shell.holds(1)
