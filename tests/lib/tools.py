# SPDX-License-Identifier: Apache-2.0
"""What a test needs from the machine.  Missing: skip and say what; under CI, where all is there, fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD_DIR = Path(os.environ.get("REPL_BUILD_DIR", ROOT / "build/dev"))
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SYSTEM_PYTHON = "/usr/bin/python3"

# Debian packages of the tools, so that a skip says what to install.
PACKAGES = {
    "linux.uml": "user-mode-linux",
    "modprobe": "kmod",
    "ip": "iproute2",
    "drbdadm": "drbd-utils",
    "drbdmeta": "drbd-utils",
    "nbd-client": "nbd-client",
    "nbd-server": "nbd-server",
    "nbdkit": "nbdkit",
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "nbdfuse": "libnbd-bin",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "fio": "fio",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "fusermount3": "fuse3",
    "clang": "clang",
    "lvcreate": "lvm2",
    "thin_check": "thin-provisioning-tools",
}


def is_ci() -> bool:
    return os.environ.get("CI", "") == "true"


def lacking(what: str) -> NoReturn:
    """The test cannot run here because of ``what``."""
    if is_ci():
        pytest.fail(f"needs {what}, which CI must have")
    pytest.skip(f"needs {what}")


def find_tool(name: str) -> str | None:
    """Absolute path; system administration folders are searched as well, .venv is not."""
    return shutil.which(name, path=SYSTEM_PATH)


def require(*names: str) -> None:
    """Skip (CI: fail) unless every program is installed."""
    missing = [n for n in names if find_tool(n) is None]
    if missing:
        lacking(", ".join(f"{n} (package {PACKAGES[n]})" if n in PACKAGES else n for n in missing))


def require_root() -> None:
    if os.geteuid() != 0:
        lacking("root")


@cache
def _libnbd_answers() -> bool:
    probe = [SYSTEM_PYTHON, "-I", "-c", "import nbd; nbd.NBD"]
    return subprocess.run(probe, cwd="/", capture_output=True).returncode == 0


def require_libnbd() -> None:
    """libnbd's Python module is called nbd, as one of our packages: it runs in another interpreter only."""
    if not _libnbd_answers():
        lacking("libnbd for Python (package python3-libnbd)")


def run_libnbd(script: str, *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a script with libnbd as ``nbd`` and an open handle class ``nbd.NBD``, outside our import path."""
    require_libnbd()
    argv = [SYSTEM_PYTHON, "-I", "-c", script, *args]
    return subprocess.run(argv, cwd="/", capture_output=True, text=True, timeout=timeout)


def require_sim() -> None:
    """The simulator module must have been built."""
    if not list((BUILD_DIR / "csrc").glob("_repl_sim.*.so")):
        lacking(f"_repl_sim in {BUILD_DIR} (make build)")


def require_engine() -> None:
    """The engine module must have been built and be importable."""
    try:
        import repl.engine._engine  # noqa: F401
    except ImportError as error:
        lacking(f"repl.engine._engine (make build): {error}")
