# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets of the Python code: each takes any bytes and raises only when something is wrong.

Checked: only the errors that a module announces come out, what was decoded is encoded to the same bytes, the work
stays within bounds, and where C reads the same format both readings agree.  ``tests/fuzz/test_corpus.py`` replays
the corpus, ``tools/fuzz_python.py`` runs a target under atheris.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbd.export import Export, ListedExport, Refusal, RefusalKind
from nbd.negotiation import Aborted, Finished, NeedExport, NeedExports, Negotiation
from repl.config import dump, load
from repl.daemon import protocol
from repl.daemon.disk_records import DiskRecords
from repl.daemon.undo_store import UndoStore
from repl.drbd import activity_log, bitmap_code
from repl.drbd import packets as pk
from repl.drbd.bitmap_code import Merger
from repl.drbd.layout import MetadataKind
from repl.drbd.uuids import Feature
from repl.errors import ConfigError, MetadataError, ProtocolError, ReplError
from repl.files import volfile
from repl.limits import NBD_OPTION_BYTES_MAX
from repl.node.disk import DiskPlace
from repl.node.moved import at_last_size
from tests.fuzz.fake_node import fuzz_session
from tests.fuzz.fake_server import ScriptedSocket, client_of
from tests.fuzz.files_rpc import fuzz_files_rpc
from tests.fuzz.images import MemoryFile, fuzz_attach

Target = Callable[[bytes], None]
OUTPUT_BYTES_MAX = 1 << 20
RES_FILE = Path("fuzz.res")

EXPORTS = (
    Export(name="r0/0", volume=0, size_bytes=1 << 30, description="data of r0"),
    Export(name="r0/1", volume=1, size_bytes=1 << 20, block_min=4096),
)


@functools.cache
def sim() -> Any:
    from tests.sim.world import load as load_sim

    return load_sim()


# ---- NBD ----


def fuzz_negotiation(data: bytes) -> None:
    """The first byte is the size of the pieces; behind the end of the negotiation there are no more events."""
    if not data:
        return
    piece, data = 1 + data[0] * 7, data[1:]
    machine = Negotiation()
    sent = len(machine.take_output())
    asked = 0
    for at in range(0, len(data), piece):
        event = machine.receive(data[at : at + piece])
        while event is not None:
            asked += 1
            assert asked <= len(data) // 4 + 2, "more events than options"
            sent += len(machine.take_output())
            if isinstance(event, NeedExports):
                event = machine.answer_exports([ListedExport(e.name, e.description) for e in EXPORTS])
            elif isinstance(event, NeedExport):
                event = machine.answer_export(_export(event.name))
            else:
                _negotiation_ended(machine, event, at + piece)
                return
        sent += len(machine.take_output())
        assert sent <= OUTPUT_BYTES_MAX
    end = machine.receive_end()
    assert isinstance(end, Aborted)


def _export(name: str) -> Export | Refusal:
    found = next((e for e in EXPORTS if e.name == name), None)
    return found or Refusal(RefusalKind.UNKNOWN, "there is no such export")


def _negotiation_ended(machine: Negotiation, event: Finished | Aborted, received: int) -> None:
    if isinstance(event, Finished):
        assert len(event.leftover) <= received and event.export in EXPORTS
        assert not event.meta_contexts or event.structured
        return
    assert event.reason
    assert machine.receive(b"x" * 64) is None
    assert machine.receive_end() is None
    machine.take_output()
    assert machine.receive(bytes(NBD_OPTION_BYTES_MAX)) is None and not machine.take_output()


# ---- packets ----


def fuzz_packets(data: bytes) -> None:
    """Two bytes: version and features; then packets as they stand on a socket."""
    if len(data) < 2:
        return
    agreed = pk.Agreed(version=86 + data[0] % 16, features=Feature(data[1] & 15))
    at = 2
    while at < len(data):
        header = _same_header(data[at:])
        if header is None:
            return
        at += header.format.size_bytes
        body = data[at : at + header.length]
        at += header.length
        if len(body) < header.length:
            return
        try:
            packet = header.packet
            decoded = pk.decode_body(packet, body, agreed)
        except ProtocolError as error:
            assert error.message
            continue
        assert pk.encode_body(decoded, agreed) == body, f"{packet} is not the same again"


def _same_header(data: bytes) -> pk.Header | None:
    """The header as Python reads it; C has to read it the same way."""
    module = sim()
    found = module.ffi.new("struct re_sim_header *")
    result = module.lib.re_sim_decode_header(data, len(data), found)
    try:
        header = pk.decode_header(data)
    except ProtocolError:
        assert result != 0, "only C takes this header"
        return None
    assert result == 0, "only Python takes this header"
    assert (found.command, found.volume, found.length) == (header.command, header.volume, header.length)
    assert found.header_bytes == header.format.size_bytes
    return header


# ---- bitmaps ----


def fuzz_bitmap_code(data: bytes) -> None:
    """Two bytes of size, two of position, then a body: Python's and C's decoders give the same bitmap."""
    if len(data) < 6:
        return
    bits = 1 + int.from_bytes(data[:2], "big")
    position = int.from_bytes(data[2:4], "big") % (bits + 1)
    body = data[4 : 4 + 4080]
    module = sim()
    memory = module.ffi.new("uint8_t[]", bitmap_code.bitmap_bytes(bits))
    at = module.ffi.new("uint64_t *", position)
    result = module.lib.re_sim_decode_runs(body, len(body), bits, at, memory)
    merger = Merger(bytearray(bitmap_code.bitmap_bytes(bits)), bits, header_bytes=16)
    merger.position = position
    try:
        merger.compressed(pk.CompressedBitmap.decode(body, pk.Agreed()))
    except ProtocolError:
        assert result != 0, "only C takes this body"
        return
    assert result == 0, "only Python takes this body"
    assert bytes(module.ffi.buffer(memory)) == bytes(merger.bitmap) and at[0] == merger.position
    bitmap = bytes(merger.bitmap)
    again = Merger(bytearray(len(bitmap)), bits, header_bytes=16)
    for packet, chunk in bitmap_code.split(bitmap, bits, header_bytes=16, use_rle=True):
        if packet is pk.Packet.BITMAP:
            again.plain(chunk)
        else:
            again.compressed(pk.CompressedBitmap.decode(chunk, pk.Agreed()))
    assert again.complete and bytes(again.bitmap) == bitmap


# ---- activity log ----


def fuzz_activity_log(data: bytes) -> None:
    """Blocks of 4 KiB (the last one filled with zeroes); the first byte: make checksums good, was Primary."""
    if not data:
        return
    mode, data = data[0], data[1 : 1 + 8 * 4096]
    count = max(1, -(-len(data) // 4096))
    padded = data.ljust(count * 4096, b"\0")
    blocks = [_log_block(padded[at : at + 4096], repair=bool(mode & 1)) for at in range(0, len(padded), 4096)]
    for block in blocks:
        _same_block(block)
    try:
        result = activity_log.replay(blocks, al_stripes=1, al_stripe_size_4k=count, primary_ind=bool(mode & 2))
    except MetadataError as error:
        assert error.message and mode & 2
        return
    marks = activity_log.apply(result, bitmap_bits=1 << 20, primary_ind=bool(mode & 2))
    assert all(0 <= begin and length > 0 and begin + length <= 1 << 17 for begin, length in marks.ranges)


def _log_block(block: bytes, *, repair: bool) -> bytes:
    if not repair:
        return block
    block = activity_log.AL_MAGIC.to_bytes(4, "big") + block[4:8] + bytes(4) + block[12:]
    return block[:8] + activity_log.crc32c(block).to_bytes(4, "big") + block[12:]


def _same_block(block: bytes) -> None:
    module = sim()
    found = module.ffi.new("struct re_sim_log_block *")
    result = module.lib.re_sim_decode_log_block(block, found)
    try:
        mine = activity_log.decode(block)
    except MetadataError:
        assert result != 0, "only C takes this block"
        return
    assert result == 0, "only Python takes this block"
    assert (found.number, found.type) == (mine.number, mine.type)
    if mine.type is activity_log.TransactionType.UPDATE:
        assert (found.context_size, found.context_start) == (mine.context_size, mine.context_start)
        assert [(found.slots[i], found.extents[i]) for i in range(found.updates)] == list(mine.updates)
        assert list(found.context) == list(mine.context)
        # The window may end before the block does, and unused fields may hold anything: a second round is exact.
        again = activity_log.decode(mine.encode())
        assert again.encode() == mine.encode()


# ---- configuration, control socket ----

_READS_FILES = re.compile(rb"include|template-file")


def fuzz_config(data: bytes) -> None:
    """A .res file; what is printed reads the same."""
    if _READS_FILES.search(data) or len(data) > 65536:
        return
    text = data.decode("utf-8", "surrogateescape")
    try:
        config = load(RES_FILE, text=text, strict=len(data) % 2 == 1)
    except ConfigError as error:
        assert error.message
        return
    assert load(RES_FILE, text=dump(config, "alpha")) == config


def fuzz_volfile(data: bytes) -> None:
    """A volfile; what is written from it reads the same."""
    try:
        found = volfile.parse(data[:65536].decode(), "fuzz.vol")
    except UnicodeDecodeError:  # volfile.load refuses it
        return
    except ConfigError as error:
        assert error.message
        return
    again = volfile.parse(volfile.render(found.volumes), "fuzz.vol")
    assert [_facts(v) for v in again.volumes] == [_facts(v) for v in found.volumes]


def _facts(volume: volfile.Volume) -> tuple[object, ...]:
    return volume.name, volume.type, volume.options, volume.subvolumes


def fuzz_control(data: bytes) -> None:
    """Frames of the control socket, both directions."""
    at = 0
    while at + protocol.HEADER.size <= len(data):
        try:
            length = protocol.frame_length(data[at : at + protocol.HEADER.size])
        except ProtocolError:
            return
        body = data[at + protocol.HEADER.size : at + protocol.HEADER.size + length]
        at += protocol.HEADER.size + length
        if len(body) < length:
            return
        try:
            message = protocol.decode_body(body)
        except ProtocolError:
            continue
        error = protocol.error_from_map(message.get("error"))
        assert 0 < error.exit_status < 256
        try:
            request = protocol.parse_request(message)
        except ProtocolError:
            continue
        protocol.encode_answer(request.request_id, {}, error)
        assert len(request.verb) <= protocol.VERB_CHARS_MAX and len(request.args) <= protocol.ARGS_MAX


# ---- a disk that is another server's export, files of ours that were damaged ----


def fuzz_nbd_client(data: bytes) -> None:
    """Two bytes of offset, then all that a server says: the client has its own errors only."""
    if len(data) < 2:
        return
    try:
        client = client_of(ScriptedSocket(data[2:]))
        assert 0 <= client.size_bytes < 1 << 63
        for _ in range(8):
            client.read(data[0] * 512, 512)
            client.write(data[1] * 512, bytes(512))
            client.flush()
    except ReplError as error:
        assert error.message


def fuzz_records(data: bytes) -> None:
    """What is kept of a disk's last use, and the description of an undo."""
    with tempfile.TemporaryDirectory() as folder:
        records, undos = DiskRecords(Path(folder), "r0"), UndoStore(Path(folder), "r0")
        records.path(0).write_bytes(data)
        undos.map(0).write_bytes(data)
        undos.overlay(0).write_bytes(b"")
        last = records.last(0)
        if last is not None:
            disk = MemoryFile(1 << 20)
            at_last_size(DiskPlace(disk, disk, MetadataKind.INTERNAL), last)
        try:
            found = undos.find(0)
        except MetadataError:
            return
        assert found is not None and int(found.facts["size_bytes"]) > 0
        undos.close(0, is_deleted=True)


TARGETS: dict[str, Target] = {
    "py_negotiation": fuzz_negotiation,
    "py_packets": fuzz_packets,
    "py_session": fuzz_session,
    "py_bitmap_code": fuzz_bitmap_code,
    "py_activity_log": fuzz_activity_log,
    "py_attach": fuzz_attach,
    "py_config": fuzz_config,
    "py_control": fuzz_control,
    "py_nbd_client": fuzz_nbd_client,
    "py_records": fuzz_records,
    "py_files_rpc": fuzz_files_rpc,
    "py_volfile": fuzz_volfile,
}
