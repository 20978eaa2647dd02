# SPDX-License-Identifier: Apache-2.0
"""Mounts of volfiles by the real program, in the foreground, gone at the end of the test."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lib.process import Process

BRICK = """
volume posix
  type storage/posix
  option directory {directory}
end-volume

volume brick
  type features/locks
  subvolumes posix
end-volume
"""


def needs_fuse() -> pytest.MarkDecorator:
    usable = os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)
    return pytest.mark.skipif(not usable, reason="needs root and /dev/fuse")


def volume(name: str, kind: str, child: str, **options: object) -> str:
    """One volume above another, as text."""
    lines = [f"  option {key.replace('_', '-')} {value}" for key, value in options.items()]
    return "\n".join([f"volume {name}", f"  type {kind}", *lines, f"  subvolumes {child}", "end-volume", ""])


def local_volfile(folder: Path, layers: Sequence[str] = ()) -> Path:
    """A volfile of one brick in this process and translators above it (``performance/...``), bottom first."""
    directory = folder / "brick"
    directory.mkdir(exist_ok=True)
    text, below = BRICK.format(directory=directory), "brick"
    for layer in layers:
        name = layer.rpartition("/")[2]
        text += volume(name, layer, below)
        below = name
    path = folder / "client.vol"
    path.write_text(text)
    return path


class Mount:
    """``path`` is where it is mounted, ``process`` the program."""

    def __init__(self, folder: Path, volfile: Path, options: Sequence[str] = (), name: str = "mnt") -> None:
        self.path = folder / name
        with contextlib.suppress(FileExistsError):  # it may be a dead mount
            self.path.mkdir()
        self.volfile = volfile
        command = [sys.executable, "-m", "repl.files.mount.main", "-N", "-f", volfile, self.path]
        for option in options:
            command += ["-o", option]
        log = folder / f"{name}.log"
        log.unlink(missing_ok=True)
        self.process = Process(command, log, env={"REPL_RUN_DIR": str(folder / "run")})
        self.process.wait_log("service: mounted", 60)

    def unmount(self) -> None:
        self.process.popen.terminate()
        self.process.popen.wait(20)


@contextmanager
def mounted(folder: Path, volfile: Path, options: Sequence[str] = (), name: str = "mnt") -> Iterator[Mount]:
    mount = Mount(folder, volfile, options, name)
    try:
        yield mount
    finally:
        mount.unmount()
    log = mount.process.log()
    assert "Traceback" not in log, log
