# SPDX-License-Identifier: Apache-2.0
"""The exceptions of the product.

Every class carries a stable ``code`` string and the exit status that ``replctl`` ends with
(numbers as drbdadm uses them).  A message says what was attempted, on what, what happened and
what to do next.
"""

from __future__ import annotations


class ReplError(Exception):
    """Root of all errors that the product raises on purpose.

    ``advice`` is the next step for the person who reads the message ("" if there is none).
    """

    code = "error"
    exit_status = 20

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".rstrip() if self.advice else self.message


class UsageError(ReplError):
    """The caller asked for something that cannot be (unknown resource, missing argument)."""

    code = "usage"
    exit_status = 1


class ConfigError(ReplError):
    """A configuration file is wrong.  ``file`` and ``line`` (1-based, 0 = unknown) say where."""

    code = "config"
    exit_status = 10

    def __init__(self, message: str, *, file: str = "", line: int = 0, advice: str = "") -> None:
        where = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
        super().__init__(where + message, advice=advice)
        self.file = file
        self.line = line
        self.text = message


class ProtocolError(ReplError):
    """The other end of a connection (peer or NBD client) sent something illegal."""

    code = "protocol"
    exit_status = 20


class MetadataError(ReplError):
    """The on-disk metadata is missing, damaged or does not fit the device."""

    code = "metadata"
    exit_status = 20


class StateRefused(ReplError):
    """A state change was refused.  ``number`` is DRBD's negative state code (0 if none)."""

    code = "state-refused"
    exit_status = 11

    def __init__(self, message: str, *, number: int = 0, advice: str = "") -> None:
        super().__init__(f"{message} ({number})" if number else message, advice=advice)
        self.number = number
        if number == -2:
            self.exit_status = 17
        elif number == -16:
            self.exit_status = 5


class RequestRefused(ReplError):
    """A command was refused before any state change was tried.  ``number``: DRBD's code, 0 if none."""

    code = "refused"
    exit_status = 10

    def __init__(self, message: str, *, number: int = 0, advice: str = "") -> None:
        super().__init__(f"{message} ({number})" if number else message, advice=advice)
        self.number = number


class PeerLost(ReplError):
    """The connection to the peer broke while something was waiting for it."""

    code = "peer-lost"


class DiskFailed(ReplError):
    """The backing disk reported an error.  ``errno`` is the operating system's number."""

    code = "disk-failed"

    def __init__(self, message: str, *, errno: int = 0, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.errno = errno


class WaitTimedOut(ReplError):
    """A waiting command (wait-connect, wait-sync) reached its time limit."""

    code = "timeout"
    exit_status = 5


class InternalError(ReplError):
    """A bug of ours.  Never caught except to log it and stop."""

    code = "internal"
