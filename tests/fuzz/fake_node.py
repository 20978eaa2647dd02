# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of a node's control plane: the real state machine, a shell without a world, a peer that says anything.

Input: two bytes of settings, then events: one byte kind, two bytes length, bytes.  Timers run out when nothing else
happens, disks and the engine always succeed.  Checked: no error but those that a connection is meant to end with,
bounded work, and afterwards the node still answers its operator and writes metadata that can be read.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from dataclasses import replace

from repl.drbd import auth, superblock
from repl.drbd import packets as pk
from repl.drbd.layout import MetadataKind
from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState, DiskState, Role
from repl.engine import commands as ec
from repl.engine.events import EngineStats, Event, EventType, Lost, VolumeStats
from repl.errors import ReplError
from repl.node import actions as act
from repl.node import disk as node_disk
from repl.node.disk import DiskPlace
from repl.node.node import Node
from repl.node.settings import NetSettings, NodeSettings, VolumeSettings
from tests.fuzz.images import MemoryFile

EVENTS_MAX = 200
ACTIONS_MAX = 20_000
TIMERS_MAX = 60
SECRET = "correct horse"
PACKETS = [*Packet]


class Stats:
    def __init__(self) -> None:
        self.dirty = 0

    def volume_stats(self, volume: int) -> VolumeStats:
        return VolumeStats(out_of_sync_bits=self.dirty)

    def engine_stats(self) -> EngineStats:
        return EngineStats()


@functools.cache
def fresh_disk() -> MemoryFile:
    disk = MemoryFile(1 << 20)
    node_disk.create_metadata(DiskPlace(disk, disk, MetadataKind.INTERNAL), device_uuid=77)
    return disk


class FakeShell:
    """Carries out every action at once; what the node sent to its peer is kept."""

    def __init__(self, settings: NodeSettings) -> None:
        draw = random.Random(1)
        self.stats = Stats()
        self.node = Node(settings, random=lambda: draw.getrandbits(64), random_bytes=draw.randbytes,
                         stats=self.stats, clock_ms=lambda: 0)  # fmt: skip
        self.timers: list[int] = []
        self.events: deque[Event] = deque()
        self.challenge = b""
        self.replies: dict[str, act.Reply] = {}
        self.data_stream = self.meta_stream = -1
        self.is_linked = False
        self.actions = 0
        self._next_fd = 100

    def command(self, verb: str, **args: object) -> None:
        self.node.command(verb, verb, args)
        self.run()

    def run(self) -> None:
        while actions := self.node.take_actions():
            for action in actions:
                self.actions += 1
                assert self.actions <= ACTIONS_MAX, "the node does not come to rest"
                self._carry_out(action)
            while self.events:
                self.node.engine_event(self.events.popleft())

    def time_passes(self) -> bool:
        """The oldest timer runs out; False if there is none."""
        if not self.timers:
            return False
        self.node.timer(self.timers.pop(0))
        self.run()
        return True

    def _carry_out(self, action: act.Action) -> None:
        match action:
            case act.EngineCommand(command=command, cookie=cookie):
                self._engine(command)
                if cookie:
                    self.events.append(Event(EventType.DONE, cookie=cookie))
            case act.SetTimer(timer_id=timer_id):
                self.timers.append(timer_id)
            case act.CancelTimer(timer_id=timer_id):
                if timer_id in self.timers:
                    self.timers.remove(timer_id)
            case act.Dial(dial_id=dial_id):
                self._next_fd += 1
                self.node.dialled(dial_id, self._next_fd)
            case act.OpenDisk(volume=volume):
                disk = fresh_disk().copy()
                place = DiskPlace(disk, disk, MetadataKind.INTERNAL)
                self.node.disk_opened(volume, node_disk.prepare(place, data_fd=1, md_fd=1))
            case act.CloseDisk(volume=volume):
                self.node.disk_closed(volume)
            case act.RunHandler(handler_id=handler_id):
                self.node.handler_done(handler_id, 0)
            case act.Reply(token=token):
                self.replies[str(token)] = action
            case act.StateEvent(kind=kind, message=message):
                assert kind != "bug", message
            case _:
                pass

    def _engine(self, command: ec.Command) -> None:
        match command:
            case ec.StreamSend(stream=stream, data=data):
                self._sent(stream, data)
            case ec.LinkUp():
                self.is_linked = True
            case ec.LinkDown() | ec.LinkResolve():
                self.is_linked = False
            case ec.MdWrite(data=data):
                superblock.parse(data, where="what the node writes")
            case ec.BitmapSetAll():
                self.stats.dirty = 200
            case ec.BitmapClearAll():
                self.stats.dirty = 0
            case ec.VolumeState(state=state):
                assert 0 <= state.connection <= 23 and 0 <= state.disk <= 8 and 0 <= state.peer_disk <= 8
            case _:
                pass

    def _sent(self, stream: int, data: bytes) -> None:
        header = pk.decode_header(data)
        body = data[header.format.size_bytes :]
        assert len(body) == header.length
        if header.packet is Packet.INITIAL_DATA:
            self.data_stream = stream
        elif header.packet is Packet.INITIAL_META:
            self.meta_stream = stream
        elif header.packet is Packet.AUTH_CHALLENGE:
            self.challenge = body


def settings_of(mode: int) -> NodeSettings:
    algorithm = ("", "", "sha1", "sha256")[mode & 3]
    net = NetSettings(cram_hmac_alg=algorithm, shared_secret=SECRET if algorithm else "", protocol=1 + (mode >> 2) % 3)
    volumes = [VolumeSettings(0, has_disk=not mode & 16)]
    if mode & 32:
        volumes.append(VolumeSettings(3))
    return NodeSettings("r0", "a", "b", "10.0.0.1:1", "10.0.0.2:1", tuple(volumes), net)


def fuzz_session(data: bytes) -> None:
    if len(data) < 2:
        return
    shell = FakeShell(settings_of(data[0]))
    shell.command("up")
    if data[1] & 1:
        shell.command("primary", force=True)
    meet(shell)
    at = 2
    for _ in range(EVENTS_MAX):
        if at + 3 > len(data):
            break
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        one_event(shell, data[at], data[at + 3 : at + 3 + length])
        at += 3 + length
    afterwards(shell)


def meet(shell: FakeShell) -> None:
    """Until both sockets stand: our dials have succeeded, nobody dialled us."""
    for _ in range(TIMERS_MAX):
        if shell.node.cstate == ConnectionState.WF_REPORT_PARAMS or not shell.time_passes():
            break


def one_event(shell: FakeShell, kind: int, body: bytes) -> None:
    node = shell.node
    if node.cstate < ConnectionState.WF_REPORT_PARAMS:
        meet(shell)
    if kind >= 0xF8:
        _other_event(shell, kind, body)
    elif kind & 0x40:
        node.engine_event(_packet(shell, kind, body, shell.meta_stream))
    elif shell.data_stream >= 0:
        node.engine_event(_packet(shell, kind, body, shell.data_stream))
    shell.run()


def _packet(shell: FakeShell, kind: int, body: bytes, stream: int) -> Event:
    packet = PACKETS[(kind & 0x3F) % len(PACKETS)]
    volume = 3 if kind & 0x80 else 0
    if packet is Packet.AUTH_RESPONSE and body[:1] == b"\0" and shell.node.settings.net.cram_hmac_alg:
        body = auth.respond(shell.node.settings.net.cram_hmac_alg, SECRET.encode(), shell.challenge)
    if packet is Packet.STATE_CHG_REPLY or packet is Packet.CONN_ST_CHG_REPLY:
        body = body[:4].ljust(4, b"\0")  # the engine has checked the length
    return Event(EventType.PACKET, volume=volume, stream=stream, packet=int(packet), blob=body[:4096])


def _other_event(shell: FakeShell, kind: int, body: bytes) -> None:
    node = shell.node
    number = body[0] if body else 0
    if kind == 0xF8 and shell.is_linked:
        shell.is_linked = False
        reason = Lost(1 + number % 7)
        node.engine_event(Event(EventType.LINK_LOST, reason=reason, detail=number, value=number % 11))
    elif kind == 0xF9:
        shell.time_passes()
    elif kind == 0xFA and shell.is_linked:
        node.engine_event(Event(EventType.BITMAP_RECEIVED, volume=0, value=number))
    elif kind == 0xFB and shell.is_linked:
        shell.stats.dirty = number & 1
        node.engine_event(Event(EventType.RESYNC_FINISHED, volume=0, value=number & 1))
    elif kind == 0xFC:
        verbs = ("secondary", "primary", "disconnect", "connect", "invalidate", "new-current-uuid", "nbd-open", "down")
        node.command(f"operator {number}", verbs[number % 7], {"volume": 0, "force": bool(number & 8)})
    elif kind == 0xFD:
        stream = shell.data_stream if number & 1 else shell.meta_stream
        if not shell.is_linked:
            node.engine_event(Event(EventType.STREAM_CLOSED, stream=stream))
    elif kind == 0xFE:
        node.accepted(500 + number)


def afterwards(shell: FakeShell) -> None:
    """The peer is gone: the node settles, has sensible states and obeys."""
    node = shell.node
    if shell.is_linked:
        shell.is_linked = False
        node.engine_event(Event(EventType.LINK_LOST, reason=Lost.EOF))
        shell.run()
    for _ in range(8):
        shell.time_passes()
    assert isinstance(node.status(), dict)
    for volume in node.volumes.values():
        assert 0 <= volume.size_sectors <= 1 << 33, f"a device of {volume.size_sectors} sectors"
        assert not (node.role == Role.PRIMARY and volume.state.disk in (DiskState.OUTDATED,))
        if volume.superblock is not None:
            superblock.parse(replace(volume.superblock).serialise(), where="at the end")
    shell.command("disconnect", force=True)
    for _ in range(TIMERS_MAX):
        if "disconnect" in shell.replies or not shell.time_passes():
            break
    reply = shell.replies.get("disconnect")
    assert reply is not None, f"no answer to disconnect ({node.cstate})"
    assert reply.error is None or isinstance(reply.error, ReplError)
    assert node.cstate == ConnectionState.STANDALONE
