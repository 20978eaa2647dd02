# SPDX-License-Identifier: Apache-2.0
"""The operations on the wire: number, arguments and answer of each, in their order.

Input: a method of ``Translator`` by its name with positional and keyword arguments; output: the body of a frame and
its payloads, and back.  A call is ``[operation, caller, argument ...]``, a compound ``[0, caller, [operation, argument
...] ...]``; an answer is the packed result, of a compound ``[[result ...], None or [errno, detail]]``.
Errors: ``ProtocolError`` for anything else.

The table is the protocol: an operation never changes its number or its arguments, new ones get new numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack

from repl.errors import ProtocolError
from repl.files.rpc import packing as pk
from repl.files.translator import Step
from repl.files.values import Caller, Changed, Fd, FopError, Loc, LockCommand, LockType, Read, SyncKind, XattrOp
from repl.limits import RPC_COMPOUND_STEPS_MAX, RPC_ENDS_MAX, RPC_PAYLOAD_BYTES_MAX

I64_FIRST, U64_LAST = -(1 << 63), (1 << 64) - 1
WANT_MAX = 256
# msgpack's own errors are ValueErrors.
DECODE_ERRORS = (struct.error, ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError)

_packb = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def unpack_body(body: memoryview | bytes) -> Any:
    """Raises one of DECODE_ERRORS."""
    return msgpack.unpackb(body, raw=False, strict_map_key=False)


def pack_body(value: Any) -> bytes:
    body: bytes = _packb(value)
    return body


class Sender:
    """What an encoder needs of its end: numbers of open files, and whether the other end knows TRY_QUIETLY.
    ``payloads`` are what it has collected."""

    def __init__(self, number: Callable[[Fd], int], *, knows_quiet_try: bool = True) -> None:
        self.number = number
        self.knows_quiet_try = knows_quiet_try
        self.payloads: list[Any] = []


class Receiver:
    """What a decoder needs of its end: files by number.  A payload is taken out of ``payload`` piece by piece."""

    def __init__(
        self, payload: memoryview, *, is_lasting: bool, open_file: Callable[[int], Fd], new_file: Callable[[Any], Fd]
    ) -> None:
        self.open_file = open_file
        self.new_file = new_file
        self._payload = payload
        self._is_lasting = is_lasting
        self._at = 0

    def take(self, size: int) -> memoryview | bytes:
        begin, self._at = self._at, self._at + size
        if self._at > len(self._payload):
            raise ProtocolError("the payload is shorter than the frame says.")
        piece = self._payload[begin : self._at]
        return piece if self._is_lasting else bytes(piece)

    def finish(self) -> None:
        if self._at != len(self._payload):
            raise ProtocolError("the payload is longer than the frame says.")


@dataclass(frozen=True, slots=True)
class Shape:
    """How one argument or answer is packed and unpacked."""

    pack: Callable[[Any, Sender], Any]
    unpack: Callable[[Any, Receiver], Any]


def _plain(pack: Callable[[Any], Any], unpack: Callable[[Any], Any]) -> Shape:
    return Shape(lambda value, _: pack(value), lambda raw, _: unpack(raw))


def _same(value: Any, _: object = None) -> Any:
    """Packed as it is: whoever packs need not call it."""
    return value


def _int(raw: Any, _: object = None) -> int:
    if type(raw) is not int or not I64_FIRST <= raw <= U64_LAST:
        raise ProtocolError("a number is expected.")
    return raw


def _optional(shape: Shape) -> Shape:
    pack, unpack = shape.pack, shape.unpack
    return Shape(
        _same if pack is _same else lambda value, sender: None if value is None else pack(value, sender),
        lambda raw, receiver: None if raw is None else unpack(raw, receiver),
    )


def _none(value: Any, _: object = None) -> None:
    """What an operation tells only here."""


def _nothing(raw: Any, _: object = None) -> None:
    if raw is not None:
        raise ProtocolError("nothing is expected.")


def _bool(raw: Any) -> bool:
    if type(raw) is not bool:
        raise ProtocolError("a truth value is expected.")
    return raw


def _want(raw: Any) -> tuple[bytes, ...]:
    if len(pk.is_list(raw)) > WANT_MAX:
        raise ProtocolError(f"at most {WANT_MAX} attributes can be asked for.")
    return tuple(map(pk.is_bytes, raw))


def _pack_data(data: Any, sender: Sender) -> int:
    size = memoryview(data).nbytes
    if size:
        sender.payloads.append(data)
    return size


def _unpack_data(raw: Any, receiver: Receiver) -> memoryview | bytes:
    return receiver.take(pk.is_int(raw, 0, U64_LAST))


def _pack_read(read: Read, sender: Sender) -> list[Any]:
    return [_pack_data(read.data, sender), pk.pack_iatt(read.iatt)]


def _unpack_read(raw: Any, receiver: Receiver) -> Read:
    size, iatt = pk.is_list(raw)
    return Read(_unpack_data(size, receiver), pk.unpack_iatt(iatt))


def _pack_target(target: Loc | Fd, sender: Sender) -> Any:
    return sender.number(target) if isinstance(target, Fd) else pk.pack_loc(target)


def _pack_command(command: LockCommand, sender: Sender) -> int:
    is_unknown = command is LockCommand.TRY_QUIETLY and not sender.knows_quiet_try
    return int(LockCommand.TRY if is_unknown else command)


def _unpack_target(raw: Any, receiver: Receiver) -> Loc | Fd:
    return receiver.open_file(raw) if type(raw) is int else pk.unpack_loc(raw)


def _unpack_fd(raw: Any, receiver: Receiver) -> Fd:
    return receiver.open_file(pk.is_int(raw, 0, U64_LAST))


LOC = Shape(pk.pack_loc, pk.unpack_loc)
TARGET = Shape(_pack_target, _unpack_target)
FD = Shape(lambda fd, sender: sender.number(fd), _unpack_fd)
NEW_FD = Shape(lambda fd, sender: pk.pack_new_fd(sender.number(fd), fd), lambda raw, receiver: receiver.new_file(raw))
INT = Shape(_same, _int)
BOOL = _plain(bool, _bool)
BYTES = Shape(lambda value, _: bytes(value), pk.is_bytes)
TEXT = Shape(_same, pk.unpack_text)
GFID = Shape(_same, pk.unpack_gfid)
XATTRS = Shape(_same, pk.unpack_xattrs)
WANT = _plain(list, _want)
SETATTR = _plain(pk.pack_setattr, pk.unpack_setattr)
LOCK = _plain(pk.pack_lock, pk.unpack_lock)
DATA = Shape(_pack_data, _unpack_data)
COMMAND = Shape(_pack_command, lambda raw, _: LockCommand(raw))
LOCK_TYPE = _plain(int, LockType)
XATTR_OP = _plain(int, XattrOp)
SYNC = _plain(int, SyncKind)
NONE = Shape(_none, _nothing)
LOOKED = Shape(pk.pack_looked, pk.unpack_looked)
CHANGED = Shape(pk.pack_changed, pk.unpack_changed)
STATVFS = _plain(pk.pack_statvfs, pk.unpack_statvfs)
ENTRIES = _plain(pk.pack_entries, pk.unpack_entries)
READ = Shape(_pack_read, _unpack_read)

def _unpack_files(raw: Any, receiver: Receiver) -> list[Fd]:
    if len(pk.is_list(raw)) > RPC_ENDS_MAX:
        raise ProtocolError(f"at most {RPC_ENDS_MAX} files at a time.")
    return [_unpack_fd(number, receiver) for number in raw]


FILES = Shape(lambda fds, sender: [sender.number(fd) for fd in fds], _unpack_files)
ENDS = _plain(pk.pack_ends, pk.unpack_ends)


def _pack_outcomes(answers: Sequence[Any]) -> list[int]:
    """What each came to: 0 or an error number."""
    return [(a.errno or 5) if isinstance(a, OSError) else 0 for a in answers]


def _unpack_outcomes(raw: Any) -> list[FopError | None]:
    if len(pk.is_list(raw)) > RPC_ENDS_MAX:
        raise ProtocolError("too many outcomes.")
    return [FopError(pk.is_int(number, 1, 4095)) if number else None for number in raw]


OUTCOMES = _plain(_pack_outcomes, _unpack_outcomes)

REQUIRED = object()
OPENERS = frozenset(("create", "open", "opendir"))
_READS = {"readv": "size", "rchecksum": "length"}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a method of Translator.  ``is_keyword``: it can only be given by name."""

    name: str
    shape: Shape
    default: Any = REQUIRED
    is_keyword: bool = True


@dataclass(frozen=True)
class Operation:
    """One method of Translator on the wire."""

    number: int
    name: str
    arguments: tuple[Argument, ...]
    result: Shape
    packs: tuple[tuple[int, Any], ...] = field(init=False)  # of those arguments that are not packed as they are
    defaults: tuple[tuple[str, Any], ...] = field(init=False)
    unpacks: tuple[Any, ...] = field(init=False)
    positional: int = field(init=False)
    keywords: tuple[str, ...] = field(init=False)
    file_index: int | None = field(init=False)  # where an open file can stand among the arguments
    is_lock: bool = field(init=False)
    is_opener: bool = field(init=False)
    has_effect_here: bool = field(init=False)  # it changes what the client keeps about open files
    read_index: int | None = field(init=False)  # where it says how much is to be read
    offset_index: int | None = field(init=False)  # where it says from which byte on

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "packs", tuple((i, a.shape.pack) for i, a in enumerate(self.arguments) if a.shape.pack is not _same))
        put(self, "defaults", tuple((a.name, a.default) for a in self.arguments))
        put(self, "unpacks", tuple(a.shape.unpack for a in self.arguments))
        put(self, "keywords", tuple(a.name for a in self.arguments if a.is_keyword))
        put(self, "positional", len(self.arguments) - len(self.keywords))
        files = [index for index, a in enumerate(self.arguments) if a.shape in (TARGET, FD, NEW_FD)]
        put(self, "file_index", files[0] if files else None)
        names = [a.name for a in self.arguments]
        put(self, "read_index", names.index(_READS[self.name]) if self.name in _READS else None)
        put(self, "offset_index", names.index("offset") if self.name in ("writev", *_READS) else None)
        put(self, "is_opener", self.name in OPENERS)
        put(self, "is_lock", self.name in ("lk", "inodelk", "entrylk"))
        put(self, "has_effect_here", self.name in ("create", "open", "opendir", "release", "lk", "flush"))

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """All arguments in the order of the table.  Raises ``TypeError`` as a call would."""
        values = list(args)
        for name, default in self.defaults[len(args) :]:
            value = kwargs.get(name, default)
            if value is REQUIRED:
                raise TypeError(f"{self.name}: argument {name} is missing")
            values.append(value)
        return values

    def step(self, values: Sequence[Any]) -> Step:
        """As a method of Translator takes them."""
        at = self.positional
        return Step(self.name, tuple(values[:at]), dict(zip(self.keywords, values[at:], strict=True)))

    def pack_arguments(self, values: Sequence[Any], sender: Sender) -> list[Any]:
        packed = list(values)
        for index, pack in self.packs:
            packed[index] = pack(packed[index], sender)
        return packed

    def unpack_arguments(self, raw: Sequence[Any], receiver: Receiver) -> list[Any]:
        if len(raw) != len(self.unpacks):
            raise ProtocolError(f"{self.name} takes {len(self.unpacks)} arguments.")
        return [unpack(value, receiver) for unpack, value in zip(self.unpacks, raw, strict=True)]


def _place(name: str, shape: Shape, default: Any = REQUIRED) -> Argument:
    return Argument(name, shape, default, is_keyword=False)


_named = Argument
_LOC = _place("loc", LOC)
_TARGET = _place("target", TARGET)
_FD = _place("fd", FD)
_NEW_FD = _place("fd", NEW_FD)
_MAKE = (_named("gfid", GFID), _named("extra", _optional(XATTRS), None))
_WANT = _named("want", WANT, ())
_OFFSET = _named("offset", INT)

_TABLE: tuple[Operation, ...] = (
    Operation(1, "lookup", (_LOC, _WANT), LOOKED),
    Operation(2, "create", (_LOC, _NEW_FD, _named("flags", INT), _named("mode", INT), *_MAKE), LOOKED),
    Operation(3, "mknod", (_LOC, _named("mode", INT), _named("rdev", INT), *_MAKE), LOOKED),
    Operation(4, "mkdir", (_LOC, _named("mode", INT), *_MAKE), LOOKED),
    Operation(5, "symlink", (_LOC, _named("target", BYTES), *_MAKE), LOOKED),
    Operation(6, "link", (_place("source", LOC), _LOC), LOOKED),
    Operation(7, "unlink", (_LOC,), LOOKED),
    Operation(8, "rmdir", (_LOC, _named("recursive", BOOL, False)), LOOKED),
    Operation(9, "rename", (_place("source", LOC), _place("target", LOC), _named("flags", INT, 0)), LOOKED),
    Operation(10, "readlink", (_LOC,), BYTES),
    Operation(11, "stat", (_TARGET, _WANT), LOOKED),
    Operation(12, "access", (_LOC, _place("mask", INT)), NONE),
    Operation(13, "setattr", (_TARGET, _place("attributes", SETATTR)), CHANGED),
    Operation(14, "statfs", (_LOC,), STATVFS),
    Operation(15, "getxattr", (_TARGET, _place("name", _optional(BYTES), None)), XATTRS),
    Operation(16, "setxattr", (_TARGET, _place("values", XATTRS), _named("flags", INT, 0)), NONE),
    Operation(17, "removexattr", (_TARGET, _place("name", BYTES)), NONE),
    Operation(18, "xattrop", (_TARGET, _place("op", XATTR_OP), _place("values", XATTRS), _WANT), XATTRS),
    Operation(19, "open", (_LOC, _NEW_FD, _named("flags", INT)), NONE),
    Operation(20, "opendir", (_LOC, _NEW_FD), NONE),
    Operation(21, "readv", (_FD, _named("size", INT), _OFFSET), READ),
    Operation(22, "writev", (_FD, _place("data", DATA), _OFFSET, _named("flags", INT, 0)), CHANGED),
    Operation(23, "truncate", (_TARGET, _place("size", INT)), CHANGED),
    Operation(24, "fallocate", (_FD, _named("mode", INT), _OFFSET, _named("length", INT)), CHANGED),
    Operation(25, "seek", (_FD, _OFFSET, _named("what", INT)), INT),
    Operation(26, "flush", (_FD,), NONE),
    Operation(27, "fsync", (_FD, _place("kind", SYNC, SyncKind.ALL)), CHANGED),
    Operation(28, "fsyncdir", (_FD, _place("kind", SYNC, SyncKind.ALL)), NONE),
    Operation(29, "readdir", (_FD, _named("size", INT), _OFFSET, _named("is_plus", BOOL, False), _WANT), ENTRIES),
    Operation(30, "rchecksum", (_FD, _OFFSET, _named("length", INT)), BYTES),
    Operation(31, "lk", (_FD, _place("command", COMMAND), _place("lock", LOCK)), LOCK),
    Operation(32, "inodelk", (_place("domain", TEXT), _TARGET, _place("command", COMMAND), _place("lock", LOCK)), NONE),
    Operation(33, "entrylk", (_place("domain", TEXT), _LOC, _place("name", _optional(BYTES)),
                              _place("command", COMMAND), _place("type", LOCK_TYPE)), NONE),
    Operation(34, "release", (_FD,), NONE),  # within a compound only
    Operation(35, "sync_all", (_place("fds", FILES),), OUTCOMES),
    Operation(36, "end_all", (_place("domain", TEXT), _place("key", BYTES), _place("ends", ENDS)), OUTCOMES),
)  # fmt: skip
BY_NAME: dict[str, Operation] = {operation.name: operation for operation in _TABLE}
BY_NUMBER: dict[int, Operation] = {operation.number: operation for operation in _TABLE}
COMPOUND = 0
RELEASE = BY_NAME["release"]

Plan = list[tuple[Operation, list[Any]]]


def is_lock_wait(operation: Operation, values: Sequence[Any]) -> bool:
    """The call may take as long as somebody else pleases."""
    name = operation.name
    if name == "inodelk":
        return values[2] is LockCommand.WAIT and values[3].type is not LockType.UNLOCK
    if name == "lk":
        return values[1] is LockCommand.WAIT and values[2].type is not LockType.UNLOCK
    return name == "entrylk" and values[3] is LockCommand.WAIT and values[4] is not LockType.UNLOCK


def check_ranges(plan: Plan) -> None:
    """What a call reads has to fit into an answer, or a client could take all memory; an offset below zero means the
    file's position to some system calls.  Raises ``FopError`` EINVAL."""
    total = 0
    for operation, values in plan:
        if operation.offset_index is not None and values[operation.offset_index] < 0:
            raise FopError(22, f"{operation.name} at {values[operation.offset_index]}")
        if operation.read_index is not None:
            size = values[operation.read_index]
            total += size
            if size < 0 or total > RPC_PAYLOAD_BYTES_MAX:
                raise FopError(22, f"{operation.name} of {size} bytes: {RPC_PAYLOAD_BYTES_MAX} at most")


def unlock_of(operation: Operation, values: Sequence[Any]) -> list[Any] | None:
    """The arguments that undo a lock, None if the call takes none."""
    undone = list(values)
    at = {"inodelk": 2, "lk": 1, "entrylk": 3}.get(operation.name)
    if at is None or values[at] is LockCommand.GET:
        return None
    kind = values[at + 1] if operation.name == "entrylk" else values[at + 1].type
    if kind is LockType.UNLOCK:
        return None
    undone[at] = LockCommand.TRY
    undone[at + 1] = LockType.UNLOCK if operation.name == "entrylk" else replace(values[at + 1], type=LockType.UNLOCK)
    return undone


# ---- calls ----


def encode_call(operation: Operation, caller: int, values: Sequence[Any], sender: Sender) -> bytes:
    """Raises ``FopError`` EINVAL for values that no frame can carry."""
    try:
        body: bytes = _packb([operation.number, caller, *operation.pack_arguments(values, sender)])
    except (struct.error, OverflowError) as error:
        raise FopError(22, f"{operation.name}: {error}") from error
    return body


def encode_compound(plan: Plan, caller: int, sender: Sender) -> bytes:
    """Raises ``FopError`` EINVAL."""
    try:
        steps = [[operation.number, *operation.pack_arguments(values, sender)] for operation, values in plan]
        body: bytes = _packb([COMPOUND, caller, *steps])
    except (struct.error, OverflowError) as error:
        raise FopError(22, f"compound: {error}") from error
    return body


@dataclass(slots=True)
class Call:
    """A decoded call: one operation, or several if ``is_compound``."""

    caller: Caller
    plan: Plan
    is_compound: bool

    @property
    def waits_for_lock(self) -> bool:
        for operation, values in self.plan:
            if operation.is_lock and is_lock_wait(operation, values):
                return True
        return False


def decode_call(body: memoryview | bytes, receiver: Receiver, callers: Mapping[int, Caller]) -> Call:
    """Raises ``ProtocolError``, or ``FopError`` for a file that is not open."""
    try:
        number, caller_number, *raw = pk.is_list(unpack_body(body))
        caller = callers[caller_number]
        if type(number) is int and number != COMPOUND:
            operation = BY_NUMBER[number]
            if operation is RELEASE:
                raise ProtocolError("release is a step of a compound or a frame of its own.")
            plan = [(operation, operation.unpack_arguments(raw, receiver))]
        else:
            if len(raw) > RPC_COMPOUND_STEPS_MAX:
                raise ProtocolError(f"a compound of {len(raw)} steps.")
            plan = [_decode_step(pk.is_int(number, 0, 0), step, receiver) for step in raw]
        receiver.finish()
    except DECODE_ERRORS as error:
        raise ProtocolError(f"a call cannot be read: {error!r}.") from error
    return Call(caller, plan, is_compound=number == COMPOUND)


def _decode_step(_: int, raw: Any, receiver: Receiver) -> tuple[Operation, list[Any]]:
    number, *arguments = pk.is_list(raw)
    operation = BY_NUMBER[pk.is_int(number, 1, len(BY_NUMBER))]
    return operation, operation.unpack_arguments(arguments, receiver)


# ---- answers ----


def encode_answer(operation: Operation, result: Any, sender: Sender) -> bytes:
    body: bytes = _packb(operation.result.pack(result, sender))
    return body


def encode_error(error: OSError) -> bytes:
    body: bytes = _packb(_error(error))
    return body


def _error(error: OSError) -> list[Any]:
    detail = error.detail if isinstance(error, FopError) else str(error.strerror or "")
    return [error.errno or 5, detail[:1000]]


def encode_compound_answer(plan: Plan, results: Sequence[Any], sender: Sender) -> bytes:
    """``results`` as ``Translator.compound`` gives them: an error is the last."""
    failed = results[-1] if results and isinstance(results[-1], OSError) else None
    good = results[:-1] if failed is not None else results
    packed: list[Any] = []
    before: Any = None
    for (operation, _), result in zip(plan, good, strict=False):
        # Writes that were carried out together have one answer.
        is_again = result is before and type(result) is Changed
        packed.append(packed[-1] if is_again else operation.result.pack(result, sender))
        before = result
    body: bytes = _packb([packed, None if failed is None else _error(failed)])
    return body


def _no_file(_: Any) -> Fd:
    raise ProtocolError("there is no file in an answer.")


def _receiver(payload: memoryview, *, is_lasting: bool) -> Receiver:
    return Receiver(payload, is_lasting=is_lasting, open_file=_no_file, new_file=_no_file)


def decode_answer(
    operation: Operation, body: memoryview | bytes, payload: memoryview, *, is_lasting: bool = False
) -> Any:
    """Raises ``ProtocolError``."""
    receiver = _receiver(payload, is_lasting=is_lasting)
    try:
        result = operation.result.unpack(unpack_body(body), receiver)
        receiver.finish()
    except DECODE_ERRORS as error:
        raise ProtocolError(f"the answer to {operation.name} cannot be read: {error!r}.") from error
    return result


def decode_error(body: memoryview | bytes) -> FopError:
    """Raises ``ProtocolError``."""
    try:
        return _decode_error(unpack_body(body))
    except DECODE_ERRORS as error:
        raise ProtocolError(f"an error cannot be read: {error!r}.") from error


def _decode_error(raw: Any) -> FopError:
    number, detail = pk.is_list(raw)
    return FopError(pk.is_int(number, 1, 4095), pk.unpack_text(detail))


def decode_compound_answer(
    plan: Plan, body: memoryview | bytes, payload: memoryview, *, is_lasting: bool = False
) -> list[Any]:
    """Raises ``ProtocolError``."""
    receiver = _receiver(payload, is_lasting=is_lasting)
    try:
        packed, failed = pk.is_list(unpack_body(body))
        if len(pk.is_list(packed)) + (failed is not None) > len(plan) or (failed is None and len(packed) < len(plan)):
            raise ProtocolError("a compound has been answered with another number of results.")
        results = [op.result.unpack(raw, receiver) for (op, _), raw in zip(plan, packed, strict=False)]
        receiver.finish()
        if failed is not None:
            results.append(_decode_error(failed))
    except DECODE_ERRORS as error:
        raise ProtocolError(f"the answer to a compound cannot be read: {error!r}.") from error
    return results


def plan_of(steps: Sequence[Step]) -> Plan:
    """Raises ``FopError`` E2BIG for more steps than a frame takes."""
    if len(steps) > RPC_COMPOUND_STEPS_MAX:
        raise FopError(7, f"a compound of {len(steps)} steps")
    return [(op := BY_NAME[step.fop], op.bind(step.args, step.kwargs)) for step in steps]
