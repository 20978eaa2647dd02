# SPDX-License-Identifier: Apache-2.0
"""The engine in this process: commands down, events up, counters.

Inputs: commands of :mod:`repl.engine.commands`.  Outputs: :mod:`repl.engine.events`.
An engine runs in its own thread from its creation until :meth:`Engine.destroy`.  ``wake_fd`` is an eventfd that
becomes readable when events wait; whoever reads it then takes events until there are none.  Commands may come
from any thread, everything else belongs to one.
Errors: InternalError when the compiled module is missing or the engine is used after its end, ReplError when
the system has no memory, descriptors or threads for it, OverflowError for a number that fits no member.
Facts: csrc/include/repl_engine.h.  The compiled module is only imported when an engine is made.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import Any

from repl.engine.commands import VOLUMES_MAX, Command, Stop, encode_command
from repl.engine.events import (
    EVENT_BLOB_MAX,
    EngineStats,
    Event,
    VolumeStats,
    decode_engine_stats,
    decode_event,
    decode_volume_stats,
)
from repl.errors import InternalError, ReplError


def load_module() -> Any:
    """Import the compiled module, which has ``ffi`` and ``lib``."""
    try:
        return importlib.import_module("repl.engine._engine")
    except ImportError as error:
        raise InternalError(
            f"the engine cannot be loaded: {error}.", advice='Build it with "make build", or install the package.'
        ) from error


def digest(number: int, data: bytes) -> bytes:
    """The digest of ``data`` with the algorithm of that number; b"" when this build does not have it."""
    module = load_module()
    out = module.ffi.new("uint8_t[32]")
    length = module.lib.re_digest(number, module.ffi.from_buffer("uint8_t[]", data), len(data), out)
    return bytes(module.ffi.buffer(out, length))


class Engine:
    """One running engine.  ``busy_poll_us``: how long its thread may look for work before it blocks (0: not at all)."""

    def __init__(self, busy_poll_us: int = 0) -> None:
        module = load_module()
        self._ffi = module.ffi
        self._lib = module.lib
        self._event = self._ffi.new("struct re_event *")
        self._blob = self._ffi.new("uint8_t[]", EVENT_BLOB_MAX)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._handle = self._lib.re_engine_start(self._wake_fd, busy_poll_us)
        if not self._handle:
            os.close(self._wake_fd)
            raise ReplError(
                "the engine cannot be started: the system has no memory, file descriptors or threads for it.",
                advice='Look at the limits ("ulimit -a") and at the memory that is free.',
            )

    @property
    def wake_fd(self) -> int:
        """Readable when events wait.  Valid until :meth:`destroy`."""
        return self._wake_fd

    def command(self, command: Command, cookie: int = 0) -> bool:
        """Queue a command.  False: there is no room now; take events and try again.

        ``cookie`` comes back in the command's DONE event; 0: none is wanted.
        """
        encoded, blob = encode_command(self._ffi, command, cookie)
        # from_buffer: the bytes are copied once, by the engine.
        data = self._ffi.from_buffer("uint8_t[]", blob)
        return bool(self._lib.re_engine_command(self._alive(), encoded, data, len(blob)))

    def event(self) -> Event | None:
        """Take the oldest event; None when there is none."""
        if not self._lib.re_engine_event(self._alive(), self._event, self._blob):
            return None
        return decode_event(self._ffi, self._event, self._blob)

    def events(self) -> list[Event]:
        """Reset ``wake_fd`` and take all events that wait."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        taken = []
        while (event := self.event()) is not None:
            taken.append(event)
        return taken

    def volume_stats(self, volume: int) -> VolumeStats | None:
        """Read a volume's counters; None when it has never been attached."""
        if not 0 <= volume < VOLUMES_MAX:
            return None
        stats = self._lib.re_engine_volume_stats(self._alive(), volume)
        return decode_volume_stats(stats) if stats else None

    def engine_stats(self) -> EngineStats:
        """Read the counters of the whole engine."""
        return decode_engine_stats(self._lib.re_engine_stats(self._alive()))

    def stop(self) -> bool:
        """Queue the command that ends the engine; STOPPED is its last event.  False: there is no room now."""
        return self.command(Stop())

    def destroy(self) -> None:
        """Wait for the thread's end and free everything, ``wake_fd`` too.  Stops an engine that still runs.

        Waits a few seconds at most for disk operations in flight.  A second call does nothing.
        """
        if not self._handle:
            return
        handle, self._handle = self._handle, None
        self._lib.re_engine_destroy(handle)
        os.close(self._wake_fd)

    def _alive(self) -> Any:
        if not self._handle:
            raise InternalError("the engine was destroyed.")
        return self._handle
