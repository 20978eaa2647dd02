# SPDX-License-Identifier: Apache-2.0
"""Option data and option replies ↔ bytes.

Inputs: the data of one option whose length the caller has bounded by ``NBD_OPTION_BYTES_MAX``.
Outputs: request values; reply packets ready to send (all integers big-endian).
Errors: ``OptionError`` with the reply type that the client gets; the stream stays in step after it.
Facts: doc/proto.md of the NBD reference implementation ("Option types", "Option reply types").
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from nbd.constants import (
    BASE_ALLOCATION,
    EXPORT_NAME_PADDING_BYTES,
    OPTION_REPLY_MAGIC,
    Info,
    Option,
    Reply,
)
from nbd.export import Export, ListedExport
from repl.errors import ProtocolError
from repl.limits import NBD_STRING_BYTES_MAX

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_REPLY_HEADER = struct.Struct(">QIII")
_SIZE_AND_FLAGS = struct.Struct(">QH")

ERROR_MESSAGE_BYTES_MAX = 1024


class OptionError(ProtocolError):
    """One option is refused.  ``reply`` is the reply type that tells the client."""

    code = "nbd-option"

    def __init__(self, reply: Reply, message: str) -> None:
        super().__init__(message)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class GoRequest:
    """Data of INFO and GO.  ``infos`` has the requested information types, unknown ones included."""

    name: str
    infos: frozenset[int]


@dataclass(frozen=True, slots=True)
class MetaContextRequest:
    """Data of LIST_META_CONTEXT and SET_META_CONTEXT."""

    name: str
    queries: tuple[str, ...]


class _Reader:
    """Takes fields off option data; running out of it is the client's mistake."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, length_bytes: int, what: str) -> bytes:
        end = self._offset + length_bytes
        if end > len(self._data):
            raise OptionError(Reply.ERR_INVALID, f"{what} reaches past the end of the option's data")
        taken = self._data[self._offset : end]
        self._offset = end
        return taken

    def take_u16(self, what: str) -> int:
        value: int = _U16.unpack(self.take(_U16.size, what))[0]
        return value

    def take_u32(self, what: str) -> int:
        value: int = _U32.unpack(self.take(_U32.size, what))[0]
        return value

    def take_string(self, what: str) -> str:
        return decode_string(self.take(self.take_u32(f"the length of {what}"), what), what)

    def expect_end(self) -> None:
        if self._offset != len(self._data):
            extra_bytes = len(self._data) - self._offset
            raise OptionError(Reply.ERR_INVALID, f"{extra_bytes} bytes too many in the option's data")


def decode_string(raw: bytes, what: str) -> str:
    """A protocol string: UTF-8 without NUL, at most ``NBD_STRING_BYTES_MAX`` bytes."""
    if len(raw) > NBD_STRING_BYTES_MAX:
        raise OptionError(Reply.ERR_TOO_BIG, f"{what} is longer than {NBD_STRING_BYTES_MAX} bytes")
    if b"\0" in raw:
        raise OptionError(Reply.ERR_INVALID, f"{what} contains a NUL")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise OptionError(Reply.ERR_INVALID, f"{what} is not valid UTF-8") from None


def parse_no_data(data: bytes) -> None:
    if data:
        raise OptionError(Reply.ERR_INVALID, "this option has no data")


def parse_go(data: bytes) -> GoRequest:
    reader = _Reader(data)
    name = reader.take_string("the export name")
    count = reader.take_u16("the number of information requests")
    # The standard forbids repeating a request; answering each type once is harmless and bounded.
    infos = struct.unpack(f">{count}H", reader.take(count * _U16.size, "the list of information requests"))
    reader.expect_end()
    return GoRequest(name=name, infos=frozenset(infos))


def parse_meta_context(data: bytes) -> MetaContextRequest:
    reader = _Reader(data)
    name = reader.take_string("the export name")
    count = reader.take_u32("the number of queries")
    if count * _U32.size > len(data):
        raise OptionError(Reply.ERR_INVALID, f"{count} queries do not fit into the option's data")
    queries = tuple(reader.take_string("a query") for _ in range(count))
    reader.expect_end()
    for query in queries:
        if ":" not in query:
            raise OptionError(Reply.ERR_INVALID, "a query has no namespace")
    return MetaContextRequest(name=name, queries=queries)


def is_base_allocation_listed(queries: Sequence[str]) -> bool:
    """Whether LIST_META_CONTEXT shows ``base:allocation``; no queries means everything."""
    return not queries or BASE_ALLOCATION in queries or "base:" in queries


def encode_reply(option: int, reply: Reply, payload: bytes = b"") -> bytes:
    return _REPLY_HEADER.pack(OPTION_REPLY_MAGIC, option, reply, len(payload)) + payload


def encode_error(option: int, reply: Reply, message: str) -> bytes:
    """An error reply; a message that is too long loses its end, never half a character."""
    raw = message.encode(errors="replace")[:ERROR_MESSAGE_BYTES_MAX]
    return encode_reply(option, reply, raw.decode(errors="ignore").encode())


def encode_server(export: ListedExport) -> bytes:
    name = export.name.encode()
    payload = _U32.pack(len(name)) + name + export.description.encode()
    return encode_reply(Option.LIST, Reply.SERVER, payload)


def encode_meta_context(option: int, context_id: int, name: str) -> bytes:
    return encode_reply(option, Reply.META_CONTEXT, _U32.pack(context_id) + name.encode())


def encode_infos(option: int, export: Export, infos: frozenset[int], *, structured: bool) -> bytes:
    """The INFO replies: EXPORT always, the others that we know on request."""
    payloads = [(Info.EXPORT, encode_size_and_flags(export, structured=structured))]
    if Info.NAME in infos:
        payloads.append((Info.NAME, export.name.encode()))
    if Info.DESCRIPTION in infos and export.description:
        payloads.append((Info.DESCRIPTION, export.description.encode()))
    if Info.BLOCK_SIZE in infos:
        payloads.append((Info.BLOCK_SIZE, _encode_block_size(export)))
    return b"".join(encode_reply(option, Reply.INFO, _U16.pack(kind) + payload) for kind, payload in payloads)


def encode_block_size_info(option: int, export: Export) -> bytes:
    return encode_reply(option, Reply.INFO, _U16.pack(Info.BLOCK_SIZE) + _encode_block_size(export))


def encode_export_name_reply(export: Export, *, structured: bool, no_zeroes: bool) -> bytes:
    padding = b"" if no_zeroes else bytes(EXPORT_NAME_PADDING_BYTES)
    return encode_size_and_flags(export, structured=structured) + padding


def encode_size_and_flags(export: Export, *, structured: bool) -> bytes:
    return _SIZE_AND_FLAGS.pack(export.size_bytes, export.transmission_flags(structured=structured))


def _encode_block_size(export: Export) -> bytes:
    return struct.pack(">III", export.block_min, export.block_preferred, export.block_max)
