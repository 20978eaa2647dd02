# SPDX-License-Identifier: Apache-2.0
"""The state directory: one folder for each volume, with its description and the volfiles made from it.

    STATE/volumes/NAME/volume.json        what ``replctl volume`` knows; the same on every host of the volume
    STATE/volumes/NAME/client.vol         for repl-mount, repl-heald, repl-rebalance
    STATE/volumes/NAME/brick-N.vol        for repl-brickd, of the bricks of this host
    STATE/volumes/NAME/rebalance.json     how far a rebalance is

STATE is REPL_STATE_DIR, or the run directory that was chosen, else /var/lib/repl for root and ~/.local/state/repl.
Files are replaced as a whole: whoever watches them never reads half of one.
Errors: ``ConfigError`` for what cannot be read or written, ``NoVolume``.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from repl.errors import ConfigError, UsageError
from repl.files.volume.model import Brick, BrickSet, Status, Volume
from repl.limits import VOLUME_FILE_BYTES_MAX

FORMAT = 1
SYSTEM_RUN = Path("/run/repl")
CLIENT_VOLFILE = "client.vol"


class NoVolume(UsageError):
    """There is none of that name."""

    code = "no-volume"


def state_folder(run_folder: Path | None = None) -> Path:
    """``run_folder``: the run directory somebody named."""
    if given := os.environ.get("REPL_STATE_DIR"):
        return Path(given)
    chosen = run_folder or (Path(run) if (run := os.environ.get("REPL_RUN_DIR")) else None)
    if chosen is not None and chosen != SYSTEM_RUN:
        return chosen.absolute()
    return Path("/var/lib/repl") if os.geteuid() == 0 else Path.home() / ".local/state/repl"


class Store:
    """All volumes that this host knows."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "volumes"

    def path(self, name: str, file: str = "") -> Path:
        return self.folder / name / file if file else self.folder / name

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One change at a time, whatever volume it is of (ports are given out for all of them)."""
        try:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"the state directory {self.folder} cannot be used: {error.strerror}.",
                              advice="Run as root, or choose another one with REPL_STATE_DIR.") from error  # fmt: skip
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(entry.name for entry in self.folder.iterdir() if (entry / "volume.json").exists())

    def load(self, name: str) -> Volume:
        path = self.path(name, "volume.json")
        try:
            with open(path, "rb") as file:
                text = file.read(VOLUME_FILE_BYTES_MAX)
        except (FileNotFoundError, NotADirectoryError):
            close = difflib.get_close_matches(name, self.names(), 1)
            advice = f"Did you mean {close[0]}?" if close else f"Volumes here ({self.folder}): {self._listed()}."
            raise NoVolume(f"Volume {name} does not exist.", advice=advice) from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
        return parse(text, str(path))

    def _listed(self) -> str:
        return ", ".join(self.names()) or "none"

    def volumes(self) -> list[Volume]:
        return [self.load(name) for name in self.names()]

    def save(self, volume: Volume) -> None:
        self.write(volume.name, "volume.json", render(volume))

    def write(self, name: str, file: str, text: str) -> Path:
        """Nothing happens if that is what the file says already."""
        path = self.path(name, file)
        data = text.encode(errors="surrogateescape")
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if path.exists() and path.read_bytes() == data:
                return path
            beside = path.with_name(path.name + ".new")
            with open(beside, "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(beside, path)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written: {error.strerror}.",
                advice="Run as root, or choose another directory with REPL_STATE_DIR.",
            ) from error
        return path

    def remove_file(self, name: str, file: str) -> None:
        self.path(name, file).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """The folder; bricks stay as they are."""
        self.path(name, "volume.json").unlink(missing_ok=True)
        shutil.rmtree(self.path(name), ignore_errors=True)


def render(volume: Volume) -> str:
    return json.dumps({"format": FORMAT, **asdict(volume)}, indent=1) + "\n"


def parse(text: bytes | str, where: str) -> Volume:
    try:
        raw: dict[str, Any] = json.loads(text)
        if raw.pop("format") != FORMAT:
            raise ValueError("another format")
        sets = [
            BrickSet(one["number"], [Brick(**brick) for brick in one["bricks"]], one["is_leaving"])
            for one in raw.pop("sets")
        ]
        return Volume(**{**raw, "sets": sets, "status": Status(raw["status"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{where} does not describe a volume: {error}.",
            advice='Take what "replctl volume export NAME" prints on another host.',
        ) from None


def client_volfile(source: str, state: Path | None = None) -> tuple[Path, str] | None:
    """The volfile that ``HOST:/NAME``, ``HOST:NAME`` or ``NAME`` means, and the volume's name; None: it is a path."""
    if source.startswith(("/", ".")):
        return None
    name = source.rpartition(":")[2].strip("/")
    if not name or "/" in name:
        return None
    store = Store(state or state_folder())
    store.load(name)
    return store.path(name, CLIENT_VOLFILE), name
