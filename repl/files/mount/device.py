# SPDX-License-Identifier: Apache-2.0
"""Mounting and unmounting: /dev/fuse and mount(2) as root, fusermount3 for everybody else.

Inputs: a directory, mount options.  Outputs: the descriptor to serve.
A guardian, a tiny process of its own, takes the mount away when we end in whatever way, so that no mount point stays
behind that answers "Transport endpoint is not connected".
Errors: ``ReplError`` with what to do.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from repl.errors import ReplError
from repl.limits import MOUNT_TRANSFER_BYTES_MAX

MNT_DETACH = 2
_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128, "noatime": 1024,
          "nodiratime": 2048, "relatime": 1 << 21}  # fmt: skip
_OPPOSITES = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "async": "sync", "atime": "noatime"}
_KERNEL_OPTIONS = ("allow_other", "default_permissions")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _unescaped(text: str) -> str:
    return text.encode().decode("unicode_escape").encode("latin-1").decode(errors="surrogateescape")


def mounted_id(path: str) -> str:
    """The kernel's device number of the topmost FUSE mount on a directory, "" if there is none."""
    found = ""
    with open("/proc/self/mountinfo", errors="surrogateescape") as table:
        for line in table:
            fields = line.split(" ")
            if _unescaped(fields[4]) == path:
                kind = fields[fields.index("-") + 1]
                found = fields[2] if kind.startswith("fuse") else ""
    return found


def set_read_ahead(path: str, size_bytes: int) -> None:
    """How far the kernel reads on by itself, where it lets us say so (root, a writable /sys)."""
    with contextlib.suppress(OSError):
        Path(f"/sys/class/bdi/{mounted_id(path)}/read_ahead_kb").write_text(str(size_bytes // 1024))


def prepare(path: str) -> str:
    """The absolute directory to mount on; a dead mount left on it is taken away.  Raises ``ReplError``."""
    path = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path.rstrip("/")))
    for _ in range(8):
        try:
            os.statvfs(path)  # unlike stat, nothing cached answers it
            is_directory = os.path.isdir(path)
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                unmount(path, is_lazy=True)
                continue
            advice = "Create the directory first." if error.errno == errno.ENOENT else ""
            raise ReplError(f"cannot mount on {path}: {error.strerror}.", advice=advice) from None
        if not is_directory:
            raise ReplError(f"cannot mount on {path}: it is no directory.")
        return path
    raise ReplError(f"cannot mount on {path}: dead mounts on it cannot be taken away.", advice=f"Run umount -l {path}.")


def mount(path: str, source: str, options: Sequence[str]) -> int:
    """The descriptor of the connection.  ``options`` are the kernel's (ro, nosuid, allow_other ...)."""
    if os.geteuid() == 0:
        return _mount_as_root(path, source, options)
    return _mount_as_user(path, source, options)


def _mount_as_root(path: str, source: str, options: Sequence[str]) -> int:
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ReplError(f"cannot open /dev/fuse: {error.strerror}.", advice="Load the kernel module fuse.") from error
    flags = 0
    for word in options:
        flags |= _FLAGS.get(word, 0)
        flags &= ~_FLAGS.get(_OPPOSITES.get(word, ""), 0)
    data = [f"fd={fd}", "rootmode=40000", "user_id=0", "group_id=0", f"max_read={MOUNT_TRANSFER_BYTES_MAX}"]
    data += [word for word in options if word in _KERNEL_OPTIONS]
    done = _libc().mount(os.fsencode(source), os.fsencode(path), b"fuse.repl", ctypes.c_ulong(flags),
                         ",".join(data).encode())  # fmt: skip
    if done != 0:
        number = ctypes.get_errno()
        os.close(fd)
        raise ReplError(f"cannot mount on {path}: {os.strerror(number)}.")
    return fd


def _mount_as_user(path: str, source: str, options: Sequence[str]) -> int:
    program = _fusermount()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = [word for word in options if word in _FLAGS or word in _OPPOSITES or word in _KERNEL_OPTIONS]
        words += [f"max_read={MOUNT_TRANSFER_BYTES_MAX}", "subtype=repl", "fsname=" + source.replace(",", "\\,")]
        environment = os.environ | {"_FUSE_COMMFD": str(theirs.fileno())}
        done = subprocess.run([program, "-o", ",".join(words), "--", path], env=environment,
                              pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, check=False)  # fmt: skip
        if done.returncode != 0:
            text = done.stderr.decode(errors="replace").strip().removeprefix("fusermount3: ")
            advice = ""
            if "allow_other" in text:
                advice = "Put user_allow_other into /etc/fuse.conf, or mount with -o noallow_other."
            raise ReplError(f"cannot mount on {path}: {text}.", advice=advice)
        fds = array.array("i")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_LEN(fds.itemsize))
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: fds.itemsize])
    if not fds:
        raise ReplError(f"cannot mount on {path}: {program} gave no descriptor.")
    os.set_inheritable(fds[0], False)
    return fds[0]


def _fusermount() -> str:
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise ReplError("only root can mount without fusermount3.", advice="Install the package fuse3.")
    return program


def unmount(path: str, *, is_lazy: bool = False) -> bool:
    """False: it is in use, or not mounted."""
    if os.geteuid() == 0:
        return bool(_libc().umount2(os.fsencode(path), MNT_DETACH if is_lazy else 0) == 0)
    with contextlib.suppress(ReplError):
        command = [_fusermount(), "-u", *(["-z"] if is_lazy else []), "--", path]
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    return False


class Guardian:
    """The process that unmounts when its starter is gone.  Start it before threads, loops and /dev/fuse."""

    def __init__(self) -> None:
        reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._writer)
            _guard(reader)
        os.close(reader)

    def watch(self, path: str) -> None:
        """From now on the mount on ``path`` goes with us."""
        os.write(self._writer, os.fsencode(path) + b"\0" + mounted_id(path).encode() + b"\n")

    def dismiss(self) -> None:
        """It is unmounted already, or shall be now."""
        os.close(self._writer)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _guard(reader: int) -> None:
    """Never returns."""
    try:
        os.setsid()
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE):
            signal.signal(ignored, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text("repl-guardian")
        os.chdir("/")
        _close_all_but(reader)
        told = b""
        while part := os.read(reader, 8192):
            told += part
        path, _, number = told.rstrip(b"\n").rpartition(b"\n")[2].partition(b"\0")
        if path and number and mounted_id(os.fsdecode(path)) == number.decode():
            unmount(os.fsdecode(path), is_lazy=True)
    finally:
        os._exit(0)


def _close_all_but(kept: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != kept:
            with contextlib.suppress(OSError):
                os.close(int(name))
