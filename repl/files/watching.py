# SPDX-License-Identifier: Apache-2.0
"""What all caching translators share: they hear of every change, and keep no answer that a change may have overtaken.

Inputs: events from below and our own changes (``changed``).  An answer is asked for within ``watch()``; it may be kept
only if ``is_fresh`` says afterwards that the inode has not changed meanwhile.  Bricks tell of other clients' changes
(features/upcall); when one that did is lost, everything goes.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from types import TracebackType

from repl.files.events import ChildDown, ChildUp, Event, Invalidated, Reconnected, Unwatched
from repl.files.options import Options
from repl.files.translator import Context, Translator
from repl.files.values import Iatt


class Watch:
    """The time during which something is asked for."""

    __slots__ = ("_changed", "_is_void", "_watches")

    def __init__(self, watches: set[Watch]) -> None:
        self._watches = watches
        self._changed: set[bytes] | None = None
        self._is_void = False

    def __enter__(self) -> Watch:
        self._watches.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watches.discard(self)

    def note(self, key: bytes | None) -> None:
        if key is None:
            self._is_void = True
        elif self._changed is None:
            self._changed = {key}
        else:
            self._changed.add(key)

    def is_fresh(self, gfid: bytes) -> bool:
        return not self._is_void and (self._changed is None or gfid not in self._changed)

    def is_name_fresh(self, parent: bytes, name: bytes) -> bool:
        if self._is_void:
            return False
        changed = self._changed
        return changed is None or name_key(parent, name) not in changed and name_key(parent, b"") not in changed


class Watching(Translator, abc.ABC):
    """``invalidate`` and ``clear`` are the cache's own."""

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._watches: set[Watch] = set()

    def watch(self) -> Watch:
        return Watch(self._watches)

    def note_change(self, key: bytes | None) -> None:
        """Answers that are on their way may be older than this (a gfid, a ``name_key``; None: everything)."""
        for watch in self._watches:
            watch.note(key)

    def notify(self, event: Event, child: Translator | None) -> None:
        if isinstance(event, Invalidated):
            self.note_change(event.gfid)
            for name in event.names or ((b"",) if event.is_data or event.is_gone else ()):
                self.note_change(name_key(event.gfid, name))
            self.invalidate(event)
        elif isinstance(event, ChildDown | ChildUp | Reconnected | Unwatched):
            self.note_change(None)
            self.clear()
        self.notify_parents(event)

    @abc.abstractmethod
    def invalidate(self, event: Invalidated) -> None:
        """Another client has changed something."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Nothing is known to be true any more."""


def name_key(parent: bytes, name: bytes) -> bytes:
    """Of a name in a directory; without a name: of all."""
    return parent + b"/" + name


def copy_of(iatt: Iatt) -> Iatt:
    return Iatt(
        iatt.gfid, iatt.mode, iatt.nlink, iatt.uid, iatt.gid, iatt.rdev, iatt.size, iatt.blocks, iatt.block_size,
        iatt.atime_ns, iatt.mtime_ns, iatt.ctime_ns,
    )  # fmt: skip


def version_of(iatt: Iatt) -> tuple[int, int, int]:
    """Differs after every change of the data."""
    return iatt.size, iatt.mtime_ns, iatt.ctime_ns
