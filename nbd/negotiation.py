# SPDX-License-Identifier: Apache-2.0
"""The server's side of the NBD handshake as a machine without I/O.

Inputs: bytes of the client (in any pieces) and the caller's answers.  Outputs: bytes for the client
(``take_output``, to be sent before the event is acted upon) and at most one event per call:

* ``NeedExports``: call ``answer_list`` with what may be listed;
* ``NeedExport``: open or look up an export, then call ``answer_export``.  The machine stands still meanwhile;
* ``Finished``: hand the connection over.  ``leftover`` was received behind the final option and belongs to
  the transmission phase;
* ``Aborted``: send what output there is and close.

No bytes of a client raise an exception.  ``InternalError``: the caller used the machine out of turn.
A broken frame (wrong magic, unknown client flags, too many or far too long options) ends the negotiation;
a broken option in an intact frame gets an error reply and the client may go on.
Facts: doc/proto.md of the NBD reference implementation.  Deliberately missing: TLS, extended headers
(both ERR_UNSUP), oldstyle.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType

from nbd import options
from nbd.constants import (
    BASE_ALLOCATION,
    IHAVEOPT,
    NBDMAGIC,
    ClientFlag,
    HandshakeFlag,
    Info,
    Option,
    Reply,
)
from nbd.export import Export, ListedExport, Refusal, resolve_export_name
from nbd.options import GoRequest, MetaContextRequest, OptionError
from repl.errors import InternalError
from repl.limits import (
    NBD_OPTION_BYTES_MAX,
    NBD_OPTIONS_MAX,
    NBD_STRING_BYTES_MAX,
    VOLUMES_MAX,
)

_CLIENT_FLAGS = struct.Struct(">I")
_OPTION_HEADER = struct.Struct(">QII")

# An option above NBD_OPTION_BYTES_MAX is read past and refused; above this size the client is cut off.
OPTION_DRAIN_BYTES_MAX = 2 * NBD_OPTION_BYTES_MAX
# What a client may send while the machine waits for its caller.
PIPELINED_BYTES_MAX = 2 * NBD_OPTION_BYTES_MAX

BASE_ALLOCATION_ID = 1

_NO_CONTEXTS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class NeedExports:
    """The caller has to say which exports there are."""


@dataclass(frozen=True, slots=True)
class NeedExport:
    """The caller has to describe the export ``name``; with ``for_go`` the client goes on to use it."""

    name: str
    for_go: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """The client enters the transmission phase."""

    export: Export
    structured: bool
    meta_contexts: Mapping[str, int]
    leftover: bytes
    no_zeroes: bool


@dataclass(frozen=True, slots=True)
class Aborted:
    """The connection has to be closed.  ``is_clean``: the client said goodbye as the standard wants it."""

    reason: str
    is_clean: bool = False


Event = NeedExports | NeedExport | Finished | Aborted


class _State(Enum):
    CLIENT_FLAGS = auto()
    OPTION_HEADER = auto()
    OPTION_DATA = auto()
    WAIT_EXPORT = auto()
    WAIT_EXPORTS = auto()
    FINISHED = auto()
    ABORTED = auto()


@dataclass(frozen=True, slots=True)
class _ExportNameRequest:
    name: str


_Request = _ExportNameRequest | GoRequest | MetaContextRequest | None


class Negotiation:
    """One connection's handshake, from the greeting to ``Finished`` or ``Aborted``."""

    def __init__(self) -> None:
        self._state = _State.CLIENT_FLAGS
        self._input = bytearray()
        self._output = bytearray(
            struct.pack(">QQH", NBDMAGIC, IHAVEOPT, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
        )
        self._client_flags = ClientFlag(0)
        self._option_count = 0
        self._option = 0  # the option in work: its number …
        self._option_bytes = 0  # … the length of its data …
        self._drain_bytes = 0  # … how much of it is still to be thrown away, if it is too long …
        self._request: _Request = None  # … and its data while the caller works for it
        self._is_structured = False
        # Meta contexts are bound to the name under which the client asked for them.
        self._contexts = _NO_CONTEXTS
        self._contexts_name: str | None = None

    def receive(self, data: bytes) -> Event | None:
        """Takes bytes of the client.  After ``Aborted`` they are ignored."""
        if self._state is _State.FINISHED:
            raise InternalError("NBD negotiation was given bytes of the transmission phase.")
        if self._state is _State.ABORTED:
            return None
        self._input += data
        if self._state in (_State.WAIT_EXPORT, _State.WAIT_EXPORTS):
            if len(self._input) > PIPELINED_BYTES_MAX:
                return self._abort(f"the client sent more than {PIPELINED_BYTES_MAX} bytes ahead of a reply")
            return None
        return self._advance()

    def receive_end(self) -> Event | None:
        """The client has closed its sending side."""
        if self._state in (_State.FINISHED, _State.ABORTED):
            return None
        return self._abort("the client closed the connection during negotiation")

    def take_output(self) -> bytes:
        """The bytes to send now; each is given out once."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def answer_exports(self, exports: Sequence[ListedExport]) -> Event | None:
        """The answer to ``NeedExports``."""
        if self._state is not _State.WAIT_EXPORTS:
            raise InternalError("NBD negotiation did not ask for a list of exports.")
        if len(exports) > VOLUMES_MAX:
            raise InternalError(f"NBD negotiation was given {len(exports)} exports, more than {VOLUMES_MAX}.")
        self._state = _State.OPTION_HEADER
        request = self._take_request()
        if isinstance(request, MetaContextRequest):
            self._answer_meta_context(request, exports)
        else:
            for export in exports:
                self._output += options.encode_server(export)
            self._ack()
        return self._advance()

    def answer_export(self, answer: Export | Refusal) -> Event | None:
        """The answer to ``NeedExport``.  Without ``Finished`` the export was opened in vain."""
        if self._state is not _State.WAIT_EXPORT:
            raise InternalError("NBD negotiation did not ask for an export.")
        self._state = _State.OPTION_HEADER
        request = self._take_request()
        if isinstance(request, GoRequest):
            return self._answer_go(request, answer)
        assert isinstance(request, _ExportNameRequest)
        return self._answer_export_name(request, answer)

    # Frames

    def _advance(self) -> Event | None:
        """Works through the input until it runs out or there is an event."""
        event: Event | None = None
        while event is None:
            if self._state is _State.CLIENT_FLAGS:
                if len(self._input) < _CLIENT_FLAGS.size:
                    return None
                event = self._take_client_flags()
            elif self._state is _State.OPTION_HEADER:
                if len(self._input) < _OPTION_HEADER.size:
                    return None
                event = self._take_option_header()
            elif self._state is _State.OPTION_DATA:
                if not self._is_option_complete():
                    return None
                event = self._take_option()
            else:
                raise InternalError(f"NBD negotiation cannot go on in state {self._state.name}.")
        return event

    def _take_client_flags(self) -> Event | None:
        flags = _CLIENT_FLAGS.unpack(self._take_input(_CLIENT_FLAGS.size))[0]
        # As a plain number: the complement of an IntFlag has no bits that the flag class does not know.
        known = int(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)
        if flags & ~known:
            return self._abort(f"the client has unknown flags {flags:#010x}")
        self._client_flags = ClientFlag(flags)
        self._state = _State.OPTION_HEADER
        return None

    def _take_option_header(self) -> Event | None:
        magic, option, length_bytes = _OPTION_HEADER.unpack(self._take_input(_OPTION_HEADER.size))
        if magic != IHAVEOPT:
            return self._abort(f"an option starts with {magic:#018x} instead of IHAVEOPT")
        self._option_count += 1
        if self._option_count > NBD_OPTIONS_MAX:
            return self._abort(f"the client sent more than {NBD_OPTIONS_MAX} options")
        self._option = option
        if option == Option.EXPORT_NAME:
            if length_bytes > NBD_STRING_BYTES_MAX:  # this option has no error reply
                return self._abort(f"the export name has {length_bytes} bytes")
        elif ClientFlag.FIXED_NEWSTYLE not in self._client_flags:
            # A client without fixed newstyle does not know what an option reply looks like.
            return self._abort(f"option {option} without fixed newstyle")
        if length_bytes > OPTION_DRAIN_BYTES_MAX:
            self._error(Reply.ERR_TOO_BIG, f"{length_bytes} bytes of data are too many")
            return self._abort(f"option {option} has {length_bytes} bytes of data")
        self._option_bytes = length_bytes
        self._drain_bytes = length_bytes if length_bytes > NBD_OPTION_BYTES_MAX else 0
        self._state = _State.OPTION_DATA
        return None

    def _is_option_complete(self) -> bool:
        """Whether all data is here (or, for an option that is too long, has gone by)."""
        if self._option_bytes <= NBD_OPTION_BYTES_MAX:
            return len(self._input) >= self._option_bytes
        drained_bytes = min(self._drain_bytes, len(self._input))
        del self._input[:drained_bytes]
        self._drain_bytes -= drained_bytes
        return self._drain_bytes == 0

    def _take_option(self) -> Event | None:
        """Answers one whole option, or asks the caller for what the answer needs."""
        self._state = _State.OPTION_HEADER
        is_too_long = self._option_bytes > NBD_OPTION_BYTES_MAX
        data = b"" if is_too_long else self._take_input(self._option_bytes)
        if self._option == Option.SET_META_CONTEXT:
            # Even a failing request replaces what was set before.
            self._contexts, self._contexts_name = _NO_CONTEXTS, None
        try:
            if is_too_long and self._option in _ANSWERED_OPTIONS:
                raise OptionError(Reply.ERR_TOO_BIG, f"{self._option_bytes} bytes of data are too many")
            return self._dispatch(data)
        except OptionError as error:
            if self._option == Option.EXPORT_NAME:
                return self._abort(f"EXPORT_NAME: {error}")
            self._error(error.reply, str(error))
            return None

    # Options

    def _dispatch(self, data: bytes) -> Event | None:
        match self._option:
            case Option.EXPORT_NAME:
                return self._need_export(_ExportNameRequest(options.decode_string(data, "the export name")))
            case Option.ABORT:
                self._ack()
                return self._abort("the client ended the negotiation", is_clean=True)
            case Option.LIST:
                options.parse_no_data(data)
                return self._need_exports(None)
            case Option.INFO | Option.GO:
                return self._need_export(options.parse_go(data))
            case Option.STRUCTURED_REPLY:
                options.parse_no_data(data)
                self._is_structured = True
                self._ack()
                return None
            case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT:
                if not self._is_structured:
                    raise OptionError(Reply.ERR_INVALID, "structured replies have to be negotiated first")
                return self._need_exports(options.parse_meta_context(data))
            case _:
                raise OptionError(Reply.ERR_UNSUP, f"option {self._option} is not supported")

    def _need_export(self, request: _ExportNameRequest | GoRequest) -> Event:
        self._request = request
        self._state = _State.WAIT_EXPORT
        return NeedExport(name=request.name, for_go=self._option != Option.INFO)

    def _need_exports(self, request: MetaContextRequest | None) -> Event:
        self._request = request
        self._state = _State.WAIT_EXPORTS
        return NeedExports()

    def _answer_meta_context(self, request: MetaContextRequest, exports: Sequence[ListedExport]) -> None:
        if resolve_export_name(request.name, exports) is None:
            self._error(Reply.ERR_UNKNOWN, "there is no such export")
            return
        if self._option == Option.LIST_META_CONTEXT:
            if options.is_base_allocation_listed(request.queries):
                self._output += options.encode_meta_context(self._option, 0, BASE_ALLOCATION)
        elif BASE_ALLOCATION in request.queries:
            self._contexts = MappingProxyType({BASE_ALLOCATION: BASE_ALLOCATION_ID})
            self._contexts_name = request.name
            self._output += options.encode_meta_context(self._option, BASE_ALLOCATION_ID, BASE_ALLOCATION)
        self._ack()

    def _answer_go(self, request: GoRequest, answer: Export | Refusal) -> Event | None:
        if isinstance(answer, Refusal):
            self._error(answer.kind.value, answer.message)
            return self._advance()
        if answer.needs_block_size and Info.BLOCK_SIZE not in request.infos:
            # Sent before the error, so that the client need not ask a second time.
            self._output += options.encode_block_size_info(self._option, answer)
            self._error(Reply.ERR_BLOCK_SIZE_REQD, f"requests have to be {answer.block_min} to "
                                                   f"{answer.block_max} bytes: ask for the block sizes")
            return self._advance()
        self._output += options.encode_infos(
            self._option, answer, request.infos, structured=self._is_structured
        )
        self._ack()
        return self._finish(answer, request.name) if self._option == Option.GO else self._advance()

    def _answer_export_name(self, request: _ExportNameRequest, answer: Export | Refusal) -> Event:
        if isinstance(answer, Refusal):
            return self._abort(f"EXPORT_NAME: {answer.message}")
        if answer.needs_block_size:
            return self._abort("EXPORT_NAME cannot tell the client about the export's block sizes")
        self._output += options.encode_export_name_reply(
            answer, structured=self._is_structured, no_zeroes=self._has_no_zeroes
        )
        return self._finish(answer, request.name)

    # Ends and small steps

    @property
    def _has_no_zeroes(self) -> bool:
        return ClientFlag.NO_ZEROES in self._client_flags

    def _finish(self, export: Export, name: str) -> Finished:
        self._state = _State.FINISHED
        return Finished(
            export=export,
            structured=self._is_structured,
            meta_contexts=self._contexts if name == self._contexts_name else _NO_CONTEXTS,
            leftover=self._take_input(len(self._input)),
            no_zeroes=self._has_no_zeroes,
        )

    def _abort(self, reason: str, *, is_clean: bool = False) -> Aborted:
        self._state = _State.ABORTED
        self._input.clear()
        self._request = None
        return Aborted(reason=reason, is_clean=is_clean)

    def _ack(self) -> None:
        self._output += options.encode_reply(self._option, Reply.ACK)

    def _error(self, reply: Reply, message: str) -> None:
        self._output += options.encode_error(self._option, reply, message)

    def _take_input(self, length_bytes: int) -> bytes:
        taken = bytes(self._input[:length_bytes])
        del self._input[:length_bytes]
        return taken

    def _take_request(self) -> _Request:
        request, self._request = self._request, None
        return request


# The options that get another answer than ERR_UNSUP and whose data means something.
_ANSWERED_OPTIONS = frozenset({
    Option.LIST,
    Option.INFO,
    Option.GO,
    Option.STRUCTURED_REPLY,
    Option.LIST_META_CONTEXT,
    Option.SET_META_CONTEXT,
})
