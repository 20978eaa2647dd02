# SPDX-License-Identifier: Apache-2.0
"""The other programs we compare with: plain NBD servers, and QEMU's two ways to replicate.

Each contender owns its disk files and processes: `start()` leaves a server listening on `uri`, `stop()` ends
exactly the processes it started. `missing()` says why it cannot run here. Raises `BenchError`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.measure import BenchError, GrowthMeter, SyncSample, cpu_seconds, fill_file, make_sparse_file

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
SYNC_TIMEOUT_S = 300.0
LOG_TAIL_BYTES = 2000


def free_port() -> int:
    """A TCP port on the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unix_uri(path: Path, export: str = "") -> str:
    return f"nbd+unix:///{quote(export)}?socket={quote(str(path))}"


class Contender(ABC):
    """One server under test."""

    name = ""
    tools: tuple[str, ...] = ()
    files = 1

    def __init__(self, disk_dir: Path, run_dir: Path, size_bytes: int) -> None:
        self.disk_dir = disk_dir
        self.run_dir = run_dir
        self.size_bytes = size_bytes
        self.processes: list[subprocess.Popen[bytes]] = []
        run_dir.mkdir(parents=True)
        disk_dir.mkdir(parents=True)

    def missing(self) -> str | None:
        """Why this contender cannot run here, or None."""
        absent = [tool for tool in self.tools if shutil.which(tool) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    @abstractmethod
    def start(self) -> None:
        """Creates the disk files and leaves the server listening."""

    @property
    @abstractmethod
    def uri(self) -> str:
        """What a client connects to."""

    def pids(self) -> list[int]:
        """The server processes; their descendants are found by the runner."""
        return [process.pid for process in self.processes]

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        shutil.rmtree(self.disk_dir, ignore_errors=True)
        shutil.rmtree(self.run_dir, ignore_errors=True)

    @property
    def log_path(self) -> Path:
        return self.run_dir / "log"

    def log_tail(self) -> str:
        if not self.log_path.exists():
            return ""
        return self.log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()

    def spawn(self, command: list[str]) -> None:
        with self.log_path.open("ab") as log:
            self.processes.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.run_dir)
            )

    def await_listening(self, address: Path | tuple[str, int]) -> None:
        """Waits until something accepts on a Unix path or a TCP address."""
        family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
        target = str(address) if isinstance(address, Path) else address
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            for process in self.processes:
                if process.poll() is not None:
                    raise BenchError(f"{self.name} ended with status {process.returncode}: {self.log_tail()}")
            with socket.socket(family) as probe:
                try:
                    probe.connect(target)
                    return
                except OSError as error:
                    if time.monotonic() > deadline_s:
                        raise BenchError(f"{self.name} does not listen on {target}: {error}; "
                                         f"{self.log_tail()}") from error  # fmt: skip
            time.sleep(0.01)


class _PlainServer(Contender):
    """A server that exports one file on a Unix socket."""

    @abstractmethod
    def command(self, disk: Path, socket_path: Path) -> list[str]:
        """The command line; it stays in the foreground."""

    def start(self) -> None:
        disk = self.disk_dir / "disk"
        fill_file(disk, self.size_bytes)
        self.spawn(self.command(disk, self.socket_path))
        self.await_listening(self.socket_path)

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "nbd.sock"

    @property
    def uri(self) -> str:
        return unix_uri(self.socket_path)


class Nbdkit(_PlainServer):
    """nbdkit's file plugin as it comes (16 threads)."""

    name = "nbdkit"
    tools = ("nbdkit",)

    def command(self, disk: Path, socket_path: Path) -> list[str]:
        return ["nbdkit", "-f", "-U", str(socket_path), "file", str(disk)]


class QemuNbd(_PlainServer):
    """qemu-nbd over a raw file in the page cache."""

    name = "qemu-nbd"
    tools = ("qemu-nbd",)

    def command(self, disk: Path, socket_path: Path) -> list[str]:
        return ["qemu-nbd", "-k", str(socket_path), "-t", "-f", "raw", "--cache=writeback", "--aio=threads",
                "-e", "16", str(disk)]  # fmt: skip


class NbdServer(_PlainServer):
    """The reference nbd-server; it always becomes a daemon and forks a process for each connection."""

    name = "nbd-server"
    tools = ("nbd-server",)

    def __init__(self, disk_dir: Path, run_dir: Path, size_bytes: int) -> None:
        super().__init__(disk_dir, run_dir, size_bytes)
        self._daemon_pid = 0

    def command(self, disk: Path, socket_path: Path) -> list[str]:
        config = self.run_dir / "nbd-server.conf"
        config.write_text(
            f"[generic]\nunixsock = {socket_path}\nport = {free_port()}\nlistenaddr = 127.0.0.1\n"
            f"[disk]\nexportname = {disk}\n"
        )
        return ["nbd-server", "-C", str(config), "-p", str(self.pid_path)]

    @property
    def pid_path(self) -> Path:
        return self.run_dir / "nbd-server.pid"

    def start(self) -> None:
        disk = self.disk_dir / "disk"
        fill_file(disk, self.size_bytes)
        with self.log_path.open("ab") as log:
            done = subprocess.run(
                self.command(disk, self.socket_path),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode != 0:
            raise BenchError(f"nbd-server ended with status {done.returncode}: {self.log_tail()}")
        self.await_listening(self.socket_path)
        self._daemon_pid = int(self.pid_path.read_text())

    def pids(self) -> list[int]:
        return [self._daemon_pid]

    def stop(self) -> None:
        if self._daemon_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._daemon_pid, signal.SIGTERM)
                deadline_s = time.monotonic() + STOP_TIMEOUT_S
                while time.monotonic() < deadline_s:
                    os.kill(self._daemon_pid, 0)
                    time.sleep(0.01)
                os.kill(self._daemon_pid, signal.SIGKILL)
            self._daemon_pid = 0
        super().stop()

    @property
    def uri(self) -> str:
        return unix_uri(self.socket_path, "disk")


class Qmp:
    """A QEMU monitor connection."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SYNC_TIMEOUT_S)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("r")
        self._events: list[dict[str, Any]] = []
        self._read()
        self.execute("qmp_capabilities")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise BenchError("QEMU closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(self, command: str, **arguments: Any) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            message = self._read()
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise BenchError(f"QEMU {command}: {message['error']['desc']}")
            else:
                return message["return"]

    def await_event(self, name: str) -> dict[str, Any]:
        while True:
            for message in self._events:
                if message["event"] == name:
                    self._events.remove(message)
                    return message
                if message["event"] in ("JOB_STATUS_CHANGE", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_ERROR"):
                    ended = message["data"].get("status") in ("aborting", "concluded", "null")
                    if ended or message["event"].startswith("BLOCK_JOB_"):
                        raise BenchError(f"QEMU job ended early: {message['data']}")
            self._events.clear()
            self._events.append(self._read())


class _QemuPair(Contender):
    """A local raw file and a remote NBD export on loopback TCP, joined in a qemu-storage-daemon."""

    tools = ("qemu-storage-daemon", "qemu-nbd")
    files = 2
    fill_target = True

    def __init__(self, disk_dir: Path, run_dir: Path, size_bytes: int) -> None:
        super().__init__(disk_dir, run_dir, size_bytes)
        self.qmp: Qmp | None = None

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "nbd.sock"

    @property
    def target_path(self) -> Path:
        return self.disk_dir / "target"

    @property
    def uri(self) -> str:
        return unix_uri(self.socket_path, "disk")

    def target_command(self, port: int) -> list[str]:
        """The remote NBD server, on loopback TCP with export name `disk`."""
        return ["qemu-nbd", "-p", str(port), "-b", "127.0.0.1", "-x", "disk", "-t", "-f", "raw", "-e", "16",
                "--cache=writeback", "--aio=threads", str(self.target_path)]  # fmt: skip

    def more_nodes(self) -> list[str]:
        return []

    @abstractmethod
    def join(self, qmp: Qmp) -> str:
        """Joins nodes `local` and `remote`; the name of the node to export."""

    def prepare(self) -> Qmp:
        """Disks, the remote server and the storage daemon with nodes `local` and `remote`."""
        source = self.disk_dir / "source"
        fill_file(source, self.size_bytes)
        (fill_file if self.fill_target else make_sparse_file)(self.target_path, self.size_bytes)
        port = free_port()
        self.spawn(self.target_command(port))
        self.await_listening(("127.0.0.1", port))
        qmp_path = self.run_dir / "qmp.sock"
        remote = f"server.type=inet,server.host=127.0.0.1,server.port={port}"
        self.spawn([
            "qemu-storage-daemon",
            "--chardev", f"socket,id=qmp,path={qmp_path},server=on,wait=off", "--monitor", "chardev=qmp",
            "--blockdev", f"file,node-name=local-file,filename={source},aio=threads",
            "--blockdev", "raw,node-name=local,file=local-file",
            "--blockdev", f"nbd,node-name=remote,export=disk,{remote}",
            *self.more_nodes(),
            "--nbd-server", f"addr.type=unix,addr.path={self.socket_path}",
        ])  # fmt: skip
        self.await_listening(self.socket_path)
        self.qmp = Qmp(qmp_path)
        return self.qmp

    def start(self) -> None:
        qmp = self.prepare()
        node = self.join(qmp)
        qmp.execute("block-export-add", type="nbd", id="export", writable=True, name="disk", **{"node-name": node})

    def stop(self) -> None:
        if self.qmp is not None:
            self.qmp.close()
            self.qmp = None
        super().stop()


class QemuMirror(_QemuPair):
    """blockdev-mirror in write-blocking mode: a write is done when both sides have it, as with protocol C.

    With QEMU 7.2 as the remote server, writes over TCP at depth 32 stall for 40 ms and more (the time of a
    delayed TCP ack); over a Unix socket, or with nbdkit as the server, they do not: see `QemuMirrorNbdkit`.
    """

    name = "qemu-mirror"

    def join(self, qmp: Qmp) -> str:
        names = {"job-id": "mirror", "copy-mode": "write-blocking", "filter-node-name": "mirror-top"}
        qmp.execute("blockdev-mirror", device="local", target="remote", sync="full", **names)
        qmp.await_event("BLOCK_JOB_READY")
        return "mirror-top"


class QemuMirrorNbdkit(QemuMirror):
    """The same mirror with nbdkit as the remote server: the best we got out of QEMU's mirror."""

    name = "qemu-mirror-nbdkit"
    tools = ("qemu-storage-daemon", "nbdkit")

    def target_command(self, port: int) -> list[str]:
        return [
            "nbdkit",
            "-f",
            "-p",
            str(port),
            "-i",
            "127.0.0.1",
            "-e",
            "disk",
            "file",
            str(self.target_path),
        ]


class QemuMirrorSync(QemuMirrorNbdkit):
    """The mirror's initial copy, measured like a resync."""

    fill_target = False

    def measure_sync(self) -> SyncSample:
        qmp = self.prepare()
        pids = self.pids()
        before_s = cpu_seconds(pids)
        with GrowthMeter(self.target_path) as meter:
            started_s = time.monotonic()
            self.join(qmp)
            wall_s = time.monotonic() - started_s
        used_s = cpu_seconds(pids) - before_s
        return SyncSample(meter.mb_per_s(), wall_s, used_s / (self.size_bytes / 1e9))


class QemuQuorum(_QemuPair):
    """The quorum driver over both nodes; both must have a write, reads go to the first."""

    name = "qemu-quorum"

    def more_nodes(self) -> list[str]:
        return ["--blockdev", "quorum,node-name=quorum,vote-threshold=2,read-pattern=fifo,"
                "children.0=local,children.1=remote"]  # fmt: skip

    def join(self, qmp: Qmp) -> str:
        return "quorum"


def tool_versions() -> dict[str, str]:
    """First version line of each tool that is installed."""
    versions = {}
    for tool in ("nbdkit", "qemu-nbd", "qemu-storage-daemon", "nbd-server"):
        if shutil.which(tool) is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False, timeout=10)
                lines = (done.stdout + done.stderr).splitlines()
                versions[tool] = lines[0].strip() if lines else "unknown"
    return versions
