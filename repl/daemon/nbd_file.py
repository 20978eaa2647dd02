# SPDX-License-Identifier: Apache-2.0
"""A disk that is an NBD export: another resource's device (stacking), or any server's.

``NbdBlockFile`` is what :class:`repl.daemon.block_file.FdBlockFile` is for a device; its connection is handed to the
engine.  Stacked resources get the address of the lower resource's server here.  Errors: ``DiskFailed``,
``RequestRefused`` with DRBD's code 104.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from nbd.client import NbdClient, NbdRequestError
from nbd.uri import build_unix_uri
from repl.config.model import STACKED_PREFIX, NodeView
from repl.errors import DiskFailed, PeerLost, ReplError, RequestRefused
from repl.limits import SECTOR_BYTES

NBD_SCHEMES = ("nbd://", "nbd+unix://")
REQUEST_BYTES_MAX = 1 << 20

T = TypeVar("T")


def is_nbd(path: str) -> bool:
    return path.startswith(NBD_SCHEMES)


def with_lower_devices(view: NodeView, run_folder: Path) -> NodeView:
    """Disks that are devices of other resources of this node become the addresses of their servers."""

    def resolved(path: str | None) -> str | None:
        if path is None or not path.startswith(STACKED_PREFIX):
            return path
        export = path.removeprefix(STACKED_PREFIX)
        return build_unix_uri(str(run_folder / f"{export.partition('/')[0]}.nbd"), export)

    return replace(view, volumes=tuple(replace(v, disk_path=resolved(v.disk_path)) for v in view.volumes))


class NbdBlockFile:
    """Owns its connection; ``close`` ends it."""

    is_direct = False
    is_nbd = True

    def __init__(self, uri: str) -> None:
        self.name = uri
        self._uri = uri
        try:
            self._client = NbdClient(uri)
        except (OSError, ReplError) as error:
            raise RequestRefused(
                f"{uri}: the disk cannot be opened: {error}",
                number=104,
                advice="Its resource has to be up and able to become Primary on this node.",
            ) from error
        self._client.wait_without_limit()
        self.fd = self._client.fileno()
        self.size_bytes = self._client.size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        """Fewer bytes only at the end."""
        end = min(offset + length, self.size_bytes)
        first, last = offset - offset % SECTOR_BYTES, -(-end // SECTOR_BYTES) * SECTOR_BYTES
        parts = []
        for at in range(first, last, REQUEST_BYTES_MAX):
            part = min(REQUEST_BYTES_MAX, last - at)
            parts.append(self._do(lambda at=at, part=part: self._client.read(at, part)))  # type: ignore[misc]
        return b"".join(parts)[offset - first : max(offset, end) - first]

    def pwrite(self, offset: int, data: bytes) -> None:
        if (offset | len(data)) % SECTOR_BYTES:
            raise ValueError(f"pwrite of {len(data)} bytes at {offset}")
        for at in range(0, len(data), REQUEST_BYTES_MAX):
            part = data[at : at + REQUEST_BYTES_MAX]
            self._do(lambda at=at, part=part: self._client.write(offset + at, part))  # type: ignore[misc]

    def flush(self) -> None:
        self._do(self._client.flush)

    def refresh_size(self) -> None:
        """The size of this connection is that of its beginning: another one is asked."""
        try:
            with NbdClient(self._uri) as client:
                self.size_bytes = client.size_bytes
        except (OSError, ReplError) as error:
            raise DiskFailed(f"{self.name}: its size cannot be read: {error}", errno=errno.EIO) from error

    def close(self) -> None:
        if self.fd >= 0:
            self.fd = -1
            self._client.close()

    def _do(self, request: Callable[[], T]) -> T:
        try:
            return request()
        except NbdRequestError as error:
            raise DiskFailed(f"{self.name}: {error.message}", errno=error.errno) from error
        except (OSError, PeerLost) as error:
            raise DiskFailed(f"{self.name}: the connection broke: {error}", errno=errno.EIO) from error
