# SPDX-License-Identifier: Apache-2.0
"""The boundary between control plane and engine: the Python mirror of the header, encoding, a running engine."""

from __future__ import annotations

import dataclasses
import enum
import os
import select
import socket
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repl.engine import binding, commands, events
from repl.engine.commands import CommandType, encode_command
from repl.engine.events import Event, EventType, Result, decode_event
from repl.errors import InternalError

PATIENCE_S = 20.0
ENUMS = [
    ("re_command_type", "RE_CMD_", commands.CommandType),
    ("re_attach_flags", "RE_ATTACH_", commands.AttachFlags),
    ("re_nbd_flags", "RE_NBD_", commands.NbdFlags),
    ("re_event_type", "RE_EV_", events.EventType),
    ("re_result", "RE_RESULT_", events.Result),
    ("re_lost", "RE_LOST_", events.Lost),
    ("re_disk_op", "RE_DISK_", events.DiskOp),
    ("re_nbd_end", "RE_NBD_END_", events.NbdEnd),
    ("re_resync_limit", "RE_LIMIT_", events.ResyncLimit),
]
STRUCTS = [
    ("re_attach", commands.Attach),
    ("re_state", commands.State),
    ("re_resync", commands.Resync),
    ("re_link", commands.Link),
    ("re_nbd", commands.Nbd),
    ("re_verify", commands.Verify),
    ("re_volume_stats", events.VolumeStats),
    ("re_engine_stats", events.EngineStats),
]


@pytest.fixture(scope="module")
def module() -> Any:
    try:
        return binding.load_module()
    except InternalError as error:
        pytest.skip(str(error))


@pytest.fixture(params=[0, 200], ids=["blocking", "busy-poll"])
def engine(module: Any, request: pytest.FixtureRequest) -> Iterator[binding.Engine]:
    running = binding.Engine(request.param)
    yield running
    running.destroy()


def wait_event(engine: binding.Engine) -> Event:
    while (event := engine.event()) is None:
        ready, _, _ = select.select([engine.wake_fd], [], [], PATIENCE_S)
        assert ready, "no event came"
        os.eventfd_read(engine.wake_fd)
    return event


def members(ffi: Any, struct: str) -> list[str]:
    return [name for name, _ in ffi.typeof(f"struct {struct}").fields if name != "pad"]


@pytest.mark.parametrize(("name", "prefix", "mirror"), ENUMS)
def test_enum_of_the_header_has_the_same_members_and_values_in_python(
    module: Any, name: str, prefix: str, mirror: type[enum.IntEnum]
) -> None:
    in_header = module.ffi.typeof(f"enum {name}").relements
    assert in_header == {prefix + member.name: member.value for member in mirror}


def test_sizes_of_the_header_are_the_same_in_python(module: Any) -> None:
    assert module.lib.RE_VOLUMES_MAX == commands.VOLUMES_MAX
    assert module.lib.RE_STREAMS_MAX == commands.STREAMS_MAX
    assert module.lib.RE_SUPERBLOCK_BYTES == commands.SUPERBLOCK_BYTES
    assert module.lib.RE_EVENT_BLOB_MAX == events.EVENT_BLOB_MAX


@pytest.mark.parametrize(("struct", "mirror"), STRUCTS)
def test_struct_of_the_header_has_the_same_fields_in_python(module: Any, struct: str, mirror: type) -> None:
    assert sorted(members(module.ffi, struct)) == sorted(field.name for field in dataclasses.fields(mirror))


def test_event_of_the_header_has_the_same_fields_in_python(module: Any) -> None:
    expected = {field.name for field in dataclasses.fields(Event)} - {"blob"} | {"blob_length"}
    assert set(members(module.ffi, "re_event")) == expected


def sample(hint: Any) -> Any:
    """A value of a field's type whose parts all differ from zero and from each other where they can."""
    if hint is int:
        return 1
    if hint is bool:
        return True
    if hint is bytes:
        return bytes(4096)
    if isinstance(hint, type) and issubclass(hint, enum.IntFlag):
        return hint(3)
    hints = typing.get_type_hints(hint)
    wanted = {field.name: hints[field.name] for field in dataclasses.fields(hint)}
    return hint(**{name: n + 2 if t is int else sample(t) for n, (name, t) in enumerate(wanted.items())})


COMMANDS = typing.get_args(commands.Command)


def test_command_classes_cover_every_command_of_the_header() -> None:
    assert {cls.type for cls in COMMANDS} == set(CommandType) - {CommandType.NONE}


@pytest.mark.parametrize("cls", COMMANDS)
def test_command_of_every_class_is_encoded_field_by_field(module: Any, cls: Any) -> None:
    command = sample(cls)
    encoded, blob = encode_command(module.ffi, command, cookie=77)
    assert (encoded.type, encoded.cookie) == (cls.type, 77)
    assert encoded.volume == getattr(command, "volume", -1)
    assert encoded.stream == getattr(command, "stream", -1)
    assert encoded.fd == getattr(command, "fd", -1)
    assert encoded.value == getattr(command, "value", 0)
    given = {field.name: getattr(command, field.name) for field in dataclasses.fields(command)}
    assert blob == b"".join(value for value in given.values() if isinstance(value, bytes))
    for struct in ("attach", "state", "resync", "link", "nbd", "verify"):
        nested = getattr(encoded, struct)
        for name in members(module.ffi, f"re_{struct}"):
            expected = getattr(given[struct], name) if struct in given else 0
            assert getattr(nested, name) == expected, (struct, name)


def test_command_with_a_number_that_fits_no_member_is_refused(module: Any) -> None:
    with pytest.raises(OverflowError):
        encode_command(module.ffi, commands.VolumeState(0, commands.State(256, 0, 0, 0, 0)))


def test_md_write_with_a_short_superblock_is_refused() -> None:
    with pytest.raises(ValueError, match="4096"):
        commands.MdWrite(0, b"short")


def test_event_is_decoded_field_by_field(module: Any) -> None:
    encoded = module.ffi.new(
        "struct re_event *",
        {
            "type": EventType.LINK_LOST,
            "volume": 2,
            "stream": 3,
            "status": Result.CANCELED,
            "error": 5,
            "packet": 6,
            "reason": events.Lost.KO,
            "detail": 8,
            "cookie": 1 << 63,
            "value": 10,
            "blob_length": 3,
        },
    )
    blob = module.ffi.new("uint8_t[]", b"abcdef")
    event = decode_event(module.ffi, encoded, blob)
    assert event == Event(EventType.LINK_LOST, 2, 3, Result.CANCELED, 5, 6, 4, 8, 1 << 63, 10, b"abc")
    assert event.lost is events.Lost.KO


def test_commands_and_events_are_importable_without_the_compiled_module() -> None:
    code = (
        "import sys; sys.modules['repl.engine._engine'] = None\n"
        "import repl.engine.commands, repl.engine.events, repl.engine.binding\n"
        "from repl.errors import InternalError\n"
        "try: repl.engine.binding.Engine()\n"
        "except InternalError as error: print(error.code)\n"
    )
    root = Path(binding.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "internal\n"


def test_engine_stop_ends_with_stopped_and_destroy_frees_everything(module: Any) -> None:
    before = len(os.listdir("/proc/self/fd"))
    engine = binding.Engine()
    assert engine.stop()
    assert wait_event(engine).type is EventType.STOPPED
    engine.destroy()
    engine.destroy()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(InternalError):
        engine.event()


def test_engine_destroy_without_stop_ends_it(module: Any) -> None:
    binding.Engine().destroy()


def test_engine_command_ends_with_done_and_its_cookie(engine: binding.Engine) -> None:
    assert engine.command(commands.Ping(), cookie=41)
    event = wait_event(engine)
    assert (event.type, event.cookie) == (EventType.DONE, 41)
    assert event.status is not Result.OK  # there is no link


def test_engine_events_takes_everything_and_resets_the_wake_fd(engine: binding.Engine) -> None:
    for cookie in range(1, 101):
        assert engine.command(commands.Ping(), cookie=cookie)
    cookies: list[int] = []
    while len(cookies) < 100:
        assert select.select([engine.wake_fd], [], [], PATIENCE_S)[0]
        cookies += [event.cookie for event in engine.events()]
    assert cookies == list(range(1, 101))


def test_engine_stream_sends_what_it_is_told_and_reports_the_peers_end(engine: binding.Engine) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        engine.command(commands.StreamAdd(7, ours.detach()))
        engine.command(commands.StreamSend(7, b"packet of some bytes"))
        theirs.settimeout(PATIENCE_S)
        assert theirs.recv(100) == b"packet of some bytes"
    event = wait_event(engine)
    assert (event.type, event.stream) == (EventType.STREAM_CLOSED, 7)


@pytest.mark.parametrize("flags", [commands.AttachFlags(0), commands.AttachFlags.INLINE])
def test_engine_superblock_written_by_command_is_in_the_file(
    engine: binding.Engine, tmp_path: Path, flags: commands.AttachFlags
) -> None:
    size, bitmap_bytes = 1 << 20, 4096
    path = tmp_path / "disk"
    path.write_bytes(bytes(size + 65536))
    fd = os.open(path, os.O_RDWR)
    attach = commands.Attach(
        data_fd=fd,
        md_fd=fd,
        size_bytes=size,
        superblock_offset=size,
        al_offset=size + 4096,
        bitmap_offset=size + 4096 + 32768,
        bitmap_bytes=bitmap_bytes,
        flags=flags | commands.AttachFlags.BITMAP_EMPTY,
    )
    superblock = bytes(range(256)) * 16
    orders: list[commands.Command] = [
        commands.VolumeAttach(0, attach),
        commands.MdWrite(0, superblock),
        commands.VolumeDetach(0),
    ]
    for cookie, command in enumerate(orders, 1):
        assert engine.command(command, cookie)
        event = wait_event(engine)
        assert (event.type, event.cookie, event.status) == (EventType.DONE, cookie, Result.OK)
    os.close(fd)
    assert path.read_bytes()[size : size + 4096] == superblock
    assert engine.volume_stats(0) is not None


def test_engine_counters_are_readable_while_it_runs(engine: binding.Engine) -> None:
    engine.command(commands.Ping(), cookie=1)
    wait_event(engine)
    stats = engine.engine_stats()
    assert stats.ticks >= 1
    assert stats.requests_total > 0
    assert engine.volume_stats(0) is None
    assert engine.volume_stats(commands.VOLUMES_MAX) is None
    assert engine.volume_stats(-1) is None
