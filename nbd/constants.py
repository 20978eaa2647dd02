# SPDX-License-Identifier: Apache-2.0
"""The numbers of the NBD protocol, under the names of the standard (doc/proto.md of the reference
implementation), without their ``NBD_`` prefixes.

Holds no behaviour.  The transmission phase's numbers are here for tests; the engine has its own copy in C.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

DEFAULT_PORT = 10809

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

EXPORT_NAME_PADDING_BYTES = 124

BASE_ALLOCATION = "base:allocation"

# What a client may assume that did not ask for block sizes ("Block size constraints" of the standard).
INTEROPERABLE_BLOCK_MIN = 512
INTEROPERABLE_BLOCK_MAX = 32 * 1024 * 1024


class HandshakeFlag(IntFlag):
    """Server → client, 16 bits."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class ClientFlag(IntFlag):
    """Client → server, 32 bits."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class TransmissionFlag(IntFlag):
    """Properties of an export, 16 bits."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    PEEK_EXPORT = 4
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


REPLY_ERROR_BIT = 1 << 31


class Reply(IntEnum):
    """Reply types of option haggling."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = REPLY_ERROR_BIT + 1
    ERR_POLICY = REPLY_ERROR_BIT + 2
    ERR_INVALID = REPLY_ERROR_BIT + 3
    ERR_PLATFORM = REPLY_ERROR_BIT + 4
    ERR_TLS_REQD = REPLY_ERROR_BIT + 5
    ERR_UNKNOWN = REPLY_ERROR_BIT + 6
    ERR_SHUTDOWN = REPLY_ERROR_BIT + 7
    ERR_BLOCK_SIZE_REQD = REPLY_ERROR_BIT + 8
    ERR_TOO_BIG = REPLY_ERROR_BIT + 9
    ERR_EXT_HEADER_REQD = REPLY_ERROR_BIT + 10


class Info(IntEnum):
    """Information types of INFO and GO."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7
    RESIZE = 8


class CommandFlag(IntFlag):
    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class Chunk(IntEnum):
    """Structured reply chunk types."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


class ChunkFlag(IntFlag):
    DONE = 1 << 0


class Errno(IntEnum):
    """Error values of the transmission phase."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


class BlockState(IntFlag):
    """Status flags of ``base:allocation``."""

    HOLE = 1 << 0
    ZERO = 1 << 1
