# SPDX-License-Identifier: Apache-2.0
"""How large a disk with internal metadata was at its last use: ``RESOURCE-VOLUME.disk`` in the lasting folder.

A device that grew while nobody looked has its metadata where it ended before.  Errors of the file are only logged: it
is needed again by ``replctl check-resize`` at most.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from repl.drbd.layout import MetadataKind
from repl.node.disk import DiskPlace
from repl.node.moved import LastDisk

BYTES_MAX = 4096
FORMAT = "repl-disk-1"

_log = logging.getLogger("repl.daemon")


class DiskRecords:
    """Those of one resource."""

    def __init__(self, folder: Path, resource: str) -> None:
        self._folder = folder
        self._resource = resource

    def path(self, volume: int) -> Path:
        return self._folder / f"{self._resource}-{volume}.disk"

    def last(self, volume: int) -> LastDisk | None:
        """None if nothing is known."""
        path = self.path(volume)
        try:
            with path.open("rb") as file:
                found = json.loads(file.read(BYTES_MAX))
            if found["format"] != FORMAT:
                raise ValueError("another format")
            return LastDisk(int(found["size_bytes"]), int(found["device_uuid"], 16))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            _log.warning("%s: it cannot be read: %s", path, error)
            return None

    def keep(self, volume: int, place: DiskPlace, device_bytes: int, device_uuid: int) -> None:
        """After an attach, and whenever the size has changed.  ``device_bytes``: the size that its metadata is for."""
        if place.kind is MetadataKind.INTERNAL:
            self.keep_last(volume, LastDisk(device_bytes, device_uuid), place.md.name)

    def keep_last(self, volume: int, last: LastDisk, name: str) -> None:
        """``name``: of the disk, for people."""
        if self.last(volume) == last:
            return
        path = self.path(volume)
        new = path.with_name(path.name + ".new")
        text = json.dumps(
            {
                "format": FORMAT,
                "path": name,
                "size_bytes": last.size_bytes,
                "device_uuid": f"{last.device_uuid:016x}",
            }
        )
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with new.open("w", encoding="ascii") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        except OSError as error:
            _log.warning("%s: it cannot be written: %s", path, error)
