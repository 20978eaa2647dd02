# SPDX-License-Identifier: Apache-2.0
"""The files of split-brain undos: ``RESOURCE-VOLUME.undo`` (sparse, old content) and ``.undo-map``.

The map begins with 4096 bytes of JSON (what the undo began with), then one bit for each block of 4 KiB, in whole
pages.  An undo exists when its map does; the map is made last and removed first.  Errors: OSError, ``MetadataError``.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from repl.errors import MetadataError
from repl.limits import BLOCK_BYTES
from repl.node.undo import UndoFound

HEADER_BYTES = 4096
PAGE_BYTES = 4096
FORMAT = "repl-undo-1"


class UndoStore:
    """Those of one resource; at most one for each volume."""

    def __init__(self, folder: Path, resource: str) -> None:
        self._folder = folder
        self._resource = resource
        self._open: dict[int, UndoFound] = {}

    @property
    def volumes(self) -> list[int]:
        """Those with an undo that is in use."""
        return sorted(self._open)

    def overlay(self, volume: int) -> Path:
        return self._folder / f"{self._resource}-{volume}.undo"

    def map(self, volume: int) -> Path:
        return self._folder / f"{self._resource}-{volume}.undo-map"

    def find(self, volume: int) -> UndoFound | None:
        """Open what is there."""
        path = self.map(volume)
        if not path.exists():
            return None
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
        try:
            facts = json.loads(header.rstrip(b"\0"))
            is_right = facts["format"] == FORMAT and facts["resource"] == self._resource
            is_right = is_right and int(facts["size_bytes"]) > 0
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            is_right = False
        if not is_right:
            raise MetadataError(
                f"{path} is damaged or not an undo of {self._resource}.", advice="Move it away if it is not needed."
            )
        return self._opened(volume, facts)

    def create(self, volume: int, facts: dict[str, Any], now_s: float) -> UndoFound:
        """Empty files, durable with their names."""
        size = int(facts["size_bytes"])
        facts = {**facts, "format": FORMAT, "created_s": now_s, "path": str(self.overlay(volume))}
        header = json.dumps(facts).encode()
        if len(header) > HEADER_BYTES:
            raise MetadataError(f"{self.map(volume)}: the description has {len(header)} bytes.")
        self._folder.mkdir(parents=True, exist_ok=True)
        if self.map(volume).exists():
            raise FileExistsError(17, os.strerror(17), str(self.map(volume)))
        blocks = -(-size // BLOCK_BYTES)
        pages = -(-blocks // (8 * PAGE_BYTES))
        _write(self.overlay(volume), b"", size)
        temporary = self.map(volume).with_suffix(".new")
        _write(temporary, header.ljust(HEADER_BYTES, b"\0"), HEADER_BYTES + pages * PAGE_BYTES)
        temporary.rename(self.map(volume))
        _sync_folder(self._folder)
        return self._opened(volume, facts)

    def close(self, volume: int, *, is_deleted: bool) -> None:
        found = self._open.pop(volume, None)
        if found is None:
            return
        os.close(found.overlay_fd)
        os.close(found.map_fd)
        if is_deleted:
            for path in (self.map(volume), self.overlay(volume)):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                _sync_folder(self._folder)

    def _opened(self, volume: int, facts: dict[str, Any]) -> UndoFound:
        overlay = os.open(self.overlay(volume), os.O_RDWR | os.O_CLOEXEC)
        try:
            map_fd = os.open(self.map(volume), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            os.close(overlay)
            raise
        found = UndoFound(overlay, map_fd, facts)
        self._open[volume] = found
        return found


def _write(path: Path, data: bytes, size: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        os.truncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
