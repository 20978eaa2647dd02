# SPDX-License-Identifier: Apache-2.0
"""The values of operations as they stand in a frame: fixed records as packed bytes, the rest as msgpack knows it.

``pack_*`` gives something msgpack takes, ``unpack_*`` is strict: anything but what ``pack_*`` makes raises
``ProtocolError``, ``struct.error``, ``ValueError`` or ``TypeError``, which the caller turns into the first.
Numbers are big-endian; flags, modes and error numbers are Linux' own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from repl.errors import ProtocolError
from repl.files.events import Contended, Event, Invalidated, Unwatched
from repl.files.values import (
    GFID_BYTES,
    Caller,
    Changed,
    End,
    Entry,
    Fd,
    Iatt,
    Loc,
    Lock,
    LockType,
    Looked,
    SetAttr,
    StatVfs,
    Xattrs,
)
from repl.limits import RPC_ENDS_MAX

_IATT = struct.Struct(">16sIIIIQQQIqqq")
_LOC = struct.Struct(">16s16sH")
_LOCK = struct.Struct(">BBQQi")
_FD = struct.Struct(">Q16sIB")
_SETATTR = struct.Struct(">BIIIqqq")
_STATVFS = struct.Struct(">IQQQQQQII")
_ENTRY = struct.Struct(">q16sI")
_END = struct.Struct(">16sBB12s")  # gfid, for all names, bytes of the delta, delta

NO_INT = 0xFFFFFFFF
GROUPS_MAX = 65536  # NGROUPS_MAX
CLIENT_CHARS_MAX = 512
LOCK_OWNER_BYTES_MAX = 1024


def is_int(value: Any, first: int, last: int) -> int:
    """A whole number within bounds; True is none."""
    if type(value) is not int or not first <= value <= last:
        raise ProtocolError(f"a number from {first} to {last} is expected.")
    return value


def is_bytes(value: Any, _: object = None) -> bytes:
    if type(value) is not bytes:
        raise ProtocolError("bytes are expected.")
    return value


def is_list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ProtocolError("a list is expected.")
    return value


# ---- inodes ----


def pack_iatt(iatt: Iatt) -> bytes:
    return _IATT.pack(
        iatt.gfid, iatt.mode, iatt.nlink, iatt.uid, iatt.gid, iatt.rdev, iatt.size, iatt.blocks, iatt.block_size,
        iatt.atime_ns, iatt.mtime_ns, iatt.ctime_ns,
    )  # fmt: skip


def unpack_iatt(raw: bytes) -> Iatt:
    return Iatt(*_IATT.unpack(raw))


def unpack_xattrs(raw: Any, _: object = None) -> Xattrs:
    if type(raw) is not dict:
        raise ProtocolError("extended attributes are expected.")
    for name, value in raw.items():
        if type(name) is not bytes or type(value) is not bytes:
            raise ProtocolError("names and values of extended attributes are bytes.")
    return raw


def pack_looked(looked: Looked, _: object = None) -> list[Any]:
    parent = looked.parent
    return [pack_iatt(looked.iatt), None if parent is None else pack_iatt(parent), looked.xattrs]


def unpack_looked(raw: Any, _: object = None) -> Looked:
    iatt, parent, xattrs = is_list(raw)
    unpack = _IATT.unpack
    above = None if parent is None else Iatt(*unpack(parent))
    return Looked(Iatt(*unpack(iatt)), above, xattrs if xattrs == {} else unpack_xattrs(xattrs))


def pack_changed(changed: Changed, _: object = None) -> list[Any]:
    return [pack_iatt(changed.before), pack_iatt(changed.after), changed.xattrs]


def unpack_changed(raw: Any, _: object = None) -> Changed:
    before, after, xattrs = is_list(raw)
    unpack = _IATT.unpack
    return Changed(Iatt(*unpack(before)), Iatt(*unpack(after)), xattrs if xattrs == {} else unpack_xattrs(xattrs))


def pack_entries(entries: list[Entry]) -> list[Any]:
    return [
        [
            _ENTRY.pack(entry.offset, entry.gfid, entry.kind),
            entry.name,
            None if entry.iatt is None else pack_iatt(entry.iatt),
            entry.xattrs or None,
        ]
        for entry in entries
    ]


def unpack_entries(raw: Any) -> list[Entry]:
    entries = []
    for packed, name, iatt, xattrs in is_list(raw):
        offset, gfid, kind = _ENTRY.unpack(packed)
        entries.append(
            Entry(
                is_bytes(name),
                offset,
                gfid,
                kind,
                None if iatt is None else unpack_iatt(iatt),
                {} if xattrs is None else unpack_xattrs(xattrs),
            )
        )
    return entries


# ---- where ----


def pack_loc(loc: Loc, _: object = None) -> bytes:
    return _LOC.pack(loc.gfid, loc.parent, len(loc.name)) + loc.name + loc.path


def unpack_loc(raw: Any, _: object = None) -> Loc:
    gfid, parent, name_bytes = _LOC.unpack_from(is_bytes(raw))
    path_at = _LOC.size + name_bytes
    if path_at > len(raw):
        raise ProtocolError("a name reaches beyond its record.")
    return Loc(gfid, parent, raw[_LOC.size : path_at], raw[path_at:])


def pack_new_fd(number: int, fd: Fd) -> bytes:
    return _FD.pack(number, fd.gfid, fd.flags, fd.is_directory) + fd.path


def unpack_new_fd(raw: Any) -> tuple[int, Fd]:
    number, gfid, flags, is_directory = _FD.unpack_from(is_bytes(raw))
    return number, Fd(gfid, flags, is_directory=bool(is_int(is_directory, 0, 1)), path=raw[_FD.size :])


# ---- what changes ----


def pack_setattr(a: SetAttr) -> bytes:
    fields = (a.mode, a.uid, a.gid, a.atime_ns, a.mtime_ns, a.ctime_ns)
    mask = sum(1 << bit for bit, value in enumerate(fields) if value is not None)
    return _SETATTR.pack(mask, *(value or 0 for value in fields))


def unpack_setattr(raw: Any) -> SetAttr:
    mask, *fields = _SETATTR.unpack(is_bytes(raw))
    is_int(mask, 0, 63)
    return SetAttr(*(value if mask >> bit & 1 else None for bit, value in enumerate(fields)))


def pack_lock(lock: Lock) -> bytes:
    return _LOCK.pack(lock.type, lock.is_flock, lock.first, lock.last, lock.pid)


def unpack_lock(raw: Any) -> Lock:
    kind, is_flock, first, last, pid = _LOCK.unpack(is_bytes(raw))
    if first > last:
        raise ProtocolError("a lock ends before it begins.")
    return Lock(LockType(kind), first, last, bool(is_int(is_flock, 0, 1)), pid)


def pack_statvfs(s: StatVfs) -> bytes:
    return _STATVFS.pack(s.block_size, s.blocks, s.blocks_free, s.blocks_available, s.files, s.files_free,
                         s.files_available, s.name_bytes_max, s.flags)  # fmt: skip


def unpack_statvfs(raw: Any) -> StatVfs:
    return StatVfs(*_STATVFS.unpack(is_bytes(raw)))


# ---- ends of transactions ----


def pack_ends(ends: Sequence[End]) -> bytes:
    return b"".join([_END.pack(end.gfid, end.is_entry, len(end.delta), end.delta) for end in ends])


def unpack_ends(raw: Any) -> list[End]:
    if len(is_bytes(raw)) > RPC_ENDS_MAX * _END.size:
        raise ProtocolError(f"at most {RPC_ENDS_MAX} transactions end at a time.")
    ends = []
    for gfid, is_entry, size, delta in _END.iter_unpack(raw):
        if size not in (0, len(delta)):
            raise ProtocolError("counters have three numbers, or there are none.")
        ends.append(End(gfid, delta[:size], bool(is_int(is_entry, 0, 1))))
    return ends


# ---- who ----


def pack_caller(caller: Caller, client: str) -> list[Any]:
    """``client``: on whose behalf the sender calls, "" for itself."""
    return [caller.uid, caller.gid, list(caller.groups), caller.pid, client, caller.lock_owner, caller.is_internal]


def unpack_caller(raw: Any) -> Caller:
    uid, gid, groups, pid, client, lock_owner, is_internal = is_list(raw)
    if len(is_list(groups)) > GROUPS_MAX:
        raise ProtocolError("too many groups.")
    if type(client) is not str or len(client) > CLIENT_CHARS_MAX or len(is_bytes(lock_owner)) > LOCK_OWNER_BYTES_MAX:
        raise ProtocolError("the name of a client or a lock's owner is too long.")
    if type(is_internal) is not bool:
        raise ProtocolError("a truth value is expected.")
    return Caller(
        is_int(uid, 0, NO_INT), is_int(gid, 0, NO_INT), tuple(is_int(g, 0, NO_INT) for g in groups),
        is_int(pid, -(1 << 31), (1 << 31) - 1), client, lock_owner, is_internal,
    )  # fmt: skip


# ---- events ----

_INVALIDATED, _CONTENDED, _UNWATCHED = 1, 2, 3


def pack_event(event: Event, clients: tuple[str, ...]) -> list[Any] | None:
    """``clients``: who is meant, as the receiver knows them; None: no event for the wire."""
    if isinstance(event, Invalidated):
        iatt = None if event.iatt is None else pack_iatt(event.iatt)
        return [_INVALIDATED, event.gfid, iatt, list(event.names), event.is_data, event.is_gone, list(clients)]
    if isinstance(event, Contended):
        return [_CONTENDED, event.domain, event.gfid, event.name, event.is_entry, clients[0] if clients else ""]
    if isinstance(event, Unwatched):
        return [_UNWATCHED, event.is_partial]
    return None


def unpack_event(raw: Any) -> Event:
    kind, *rest = is_list(raw)
    if kind == _INVALIDATED:
        gfid, iatt, names, is_data, is_gone, clients = rest
        return Invalidated(_gfid(gfid), None if iatt is None else unpack_iatt(iatt), tuple(map(is_bytes, names)),
                           bool(is_data), bool(is_gone), tuple(map(_text, clients)))  # fmt: skip
    if kind == _CONTENDED:
        domain, gfid, name, is_entry, client = rest
        return Contended(_text(domain), _gfid(gfid), None if name is None else is_bytes(name), bool(is_entry),
                         _text(client))  # fmt: skip
    if kind == _UNWATCHED:
        (is_partial,) = rest
        return Unwatched(bool(is_partial))
    raise ProtocolError(f"there is no event {kind!r}.")


def _gfid(raw: Any, _: object = None) -> bytes:
    if len(is_bytes(raw)) != GFID_BYTES:
        raise ProtocolError("a gfid has 16 bytes.")
    return bytes(raw)


def _text(raw: Any, _: object = None) -> str:
    if type(raw) is not str:
        raise ProtocolError("text is expected.")
    return raw


unpack_gfid = _gfid
unpack_text = _text
