# SPDX-License-Identifier: Apache-2.0
"""A private network: a namespace with a bridge for the host's side and taps for guests.

The namespace is held by one child process and vanishes with it, even when the test process is killed; so
there are no names to collide and nothing to clean up.  Without root it is made inside a user namespace.

    with NetNamespace(taps=2) as net:
        Process(["nbdkit", "-f", "-i", net.HOST, ...], log, prefix=net.prefix)
        listener = net.call(lambda: socket.create_server((net.HOST, 7788)))
        Guest(nics=[net.nic(0)], netns=net)

Linux binds a socket to the namespace of the thread that creates it; ``call`` runs a function
in a thread inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

from tests.lib.process import die_with_parent
from tests.lib.tools import find_tool, lacking, require

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class NetNamespace:
    HOST = "10.9.0.1"  # the bridge: the host's address as guests see it
    PREFIX_LENGTH = 24

    def __init__(self, *, taps: int = 1) -> None:
        """Guests get ``nic(0)``, ``nic(1)``, ...; ``taps`` says how many."""
        require("ip", "unshare", "nsenter")
        if taps and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            lacking("/dev/net/tun")
        self.is_user_namespace = os.geteuid() != 0
        self.taps = taps
        self._net_fd = -1
        unshare = ["unshare", "--net", *(["--user", "--map-root-user"] if self.is_user_namespace else [])]
        # The holder says when it is inside and then waits for the end of its input.
        self._holder = subprocess.Popen(
            [*unshare, "sh", "-c", "echo in; exec cat >/dev/null"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=die_with_parent,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"in\n":
            error = self._holder.communicate()[1].decode(errors="replace").strip()
            lacking(f"network namespaces ({error})")
        try:
            self._net_fd = os.open(f"/proc/{self._holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self._set_up()
        except BaseException:
            self.close()
            raise

    def _set_up(self) -> None:
        lines = [
            "link set lo up",
            "link add br0 type bridge",
            f"addr add {self.HOST}/{self.PREFIX_LENGTH} dev br0",
            "link set br0 up",
        ]
        for index in range(self.taps):
            lines += [f"tuntap add t{index} mode tap", f"link set t{index} master br0 up"]
        self.run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")

    @property
    def prefix(self) -> list[str]:
        """In front of a command line: run it inside."""
        user = ["--user", "--preserve-credentials"] if self.is_user_namespace else []
        return [find_tool("nsenter") or "nsenter", f"--target={self._holder.pid}", "--net", *user, "--"]

    def run(
        self, argv: Sequence[str], *, stdin: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A command inside, to its end."""
        done = subprocess.run([*self.prefix, *argv], input=stdin, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: status {done.returncode}: {done.stderr.strip()}")
        return done

    def call(self, function: Callable[[], T]) -> T:
        """Run in a thread inside the namespace; sockets it makes stay there.  Needs root."""
        if self.is_user_namespace:
            lacking("root (to enter a network namespace from a thread)")
        results: list[T] = []
        errors: list[BaseException] = []

        def inside() -> None:
            try:
                if _libc.setns(self._net_fd, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
                results.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=inside, name="inside-namespace")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def listen(self, port: int, *, host: str = HOST) -> socket.socket:
        """A listening TCP socket inside, for a server in the test process."""
        return self.call(lambda: socket.create_server((host, port)))

    def connect(self, port: int, *, host: str = HOST, timeout: float = 10) -> socket.socket:
        return self.call(lambda: socket.create_connection((host, port), timeout))

    def guest_address(self, index: int) -> str:
        return f"10.9.0.{index + 2}"

    def nic(self, index: int) -> tuple[str, str]:
        """Tap and address of guest ``index``, as ``Guest`` takes them."""
        assert 0 <= index < self.taps
        return f"t{index}", f"{self.guest_address(index)}/{self.PREFIX_LENGTH}"

    def link(self, index: int, *, up: bool) -> None:
        """Plug guest ``index`` in or out."""
        self.run(["ip", "link", "set", f"t{index}", "up" if up else "down"])

    def close(self) -> None:
        if self._net_fd >= 0:
            os.close(self._net_fd)
            self._net_fd = -1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._holder.pid, signal.SIGKILL)
        self._holder.wait()
        for pipe in (self._holder.stdin, self._holder.stdout, self._holder.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> NetNamespace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
