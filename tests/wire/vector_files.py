# SPDX-License-Identifier: Apache-2.0
"""Readers for the files in tests/vectors: wire captures, metadata images, handshake decisions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

VECTORS = Path(__file__).resolve().parent.parent / "vectors"

METADATA_PREFIXES = ("fresh-", "crash-", "handmade-", "restored-")


def wire_files() -> list[Path]:
    return sorted(VECTORS.glob("drbd-*.txt"))


def metadata_files() -> list[Path]:
    return sorted(path for path in VECTORS.glob("*.txt") if path.name.startswith(METADATA_PREFIXES))


@dataclass
class CapturedPacket:
    """One packet of a capture; ``payload_bytes`` replaces that many bytes at the end of the body."""

    number: int
    direction: str
    socket: str
    name: str
    header_format: str
    volume: int
    length: int
    fields: str = ""
    header: bytes = b""
    body: bytes = b""
    payload_bytes: int = 0

    @property
    def whole_body(self) -> bytes:
        """The body with zeroes for the bytes that the file leaves out."""
        return self.body + bytes(self.payload_bytes)


_PACKET = re.compile(
    r"\[(\d+)\] t=\S+ (\S+) (\S+) tcp\d+ P_(\S+) cmd=0x[0-9a-f]+ header=(\S+)(?: vol=(\d+))? length=(\d+)"
)


def captured_packets(path: Path) -> Iterator[CapturedPacket]:
    packet: CapturedPacket | None = None
    for line in path.read_text().splitlines():
        match = _PACKET.match(line)
        if match:
            if packet is not None:
                yield packet
            number, direction, socket, name, header_format, volume, length = match.groups()
            packet = CapturedPacket(
                int(number), direction, socket, name, header_format, int(volume or 0), int(length)
            )
        elif packet is not None and line.startswith("    "):
            kind, _, text = line.strip().partition(":")
            if kind == "fields":
                packet.fields = text.strip()
            elif kind == "hex":
                header, _, body = text.strip().partition(" ")
                packet.header, packet.body = bytes.fromhex(header), bytes.fromhex(body)
            elif kind == "payload":
                packet.payload_bytes = int(text.split()[0])
            else:
                raise AssertionError(f"{path.name}: unknown line {line!r}")
    if packet is not None:
        yield packet


@dataclass
class MetadataImage:
    """A metadata image: the bytes of its regions and the tool's opinions."""

    name: str
    device_bytes: int = 0
    layout: str = ""
    index: int = 0
    superblock_at: int = 0
    al_at: int = 0
    bitmap_at: int = 0
    superblock: bytearray = field(default_factory=bytearray)
    activity_log: bytearray = field(default_factory=bytearray)
    bitmap: bytearray = field(default_factory=bytearray)
    dump: str = ""
    get_gi: str = ""
    dstate: str = ""

    @property
    def al_blocks(self) -> list[bytes]:
        log = bytes(self.activity_log)
        return [log[offset : offset + 4096] for offset in range(0, len(log), 4096)]


def metadata_image(name: str) -> MetadataImage:
    image = MetadataImage(name)
    section = ""
    regions: dict[str, tuple[bytearray, int]] = {}
    dump_lines = []
    for line in (VECTORS / name).read_text().splitlines():
        if line.startswith("# get-gi: "):
            image.get_gi = line[10:]
        elif line.startswith("# dstate: "):
            image.dstate = line[10:]
        elif section == "dump-md":
            dump_lines.append(line)
        elif line.startswith("["):
            section = line.strip("[]")
        elif line.startswith("#"):
            continue
        elif section:
            data, start = regions[section]
            offset_text, content, *times = line.split()
            offset = int(offset_text, 16) - start
            repeated = bytes.fromhex(content) * (int(times[0][1:]) if times else 1)
            assert offset >= 0 and offset + len(repeated) <= len(data), line
            data[offset : offset + len(repeated)] = repeated
        else:
            key, value, *rest = line.split()
            if key == "device-bytes":
                image.device_bytes = int(value)
            elif key == "layout":
                image.layout, image.index = value, int(rest[0]) if rest else 0
            elif key == "superblock-at":
                image.superblock_at, image.superblock = int(value), bytearray(4096)
                regions["superblock"] = (image.superblock, image.superblock_at)
            elif key == "activity-log-at":
                image.al_at, image.activity_log = int(value), bytearray(int(rest[1]))
                regions["activity-log"] = (image.activity_log, image.al_at)
            elif key == "bitmap-at":
                image.bitmap_at, image.bitmap = int(value), bytearray(int(rest[1]))
                regions["bitmap"] = (image.bitmap, image.bitmap_at)
            else:
                raise AssertionError(f"{name}: unknown line {line!r}")
    image.dump = "\n".join(dump_lines) + "\n"
    return image


@dataclass
class HandshakeCase:
    """One case of handshake-decisions.txt; results are (code, rule, text) or None."""

    name: str
    side_a: str = ""
    side_b: str = ""
    options: str = ""
    result_a: tuple[int, int, str] | None = None
    result_b: tuple[int, int, str] | None = None


def handshake_cases() -> list[HandshakeCase]:
    cases: list[HandshakeCase] = []
    for line in (VECTORS / "handshake-decisions.txt").read_text().splitlines():
        key, _, text = line.partition(" ")
        if key == "case":
            cases.append(HandshakeCase(text))
        elif key == "A":
            cases[-1].side_a = text
        elif key == "B":
            cases[-1].side_b = text
        elif key == "options":
            cases[-1].options = text
        elif key in ("A-result", "B-result"):
            numbers, _, rest = text.partition(" ")
            result = None
            if numbers != "-":
                code, rule = numbers.split("/")
                result = (int(code), int(rule), rest)
            if key == "A-result":
                cases[-1].result_a = result
            else:
                cases[-1].result_b = result
    return cases
