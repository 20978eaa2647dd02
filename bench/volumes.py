# SPDX-License-Identifier: Apache-2.0
"""The volumes that the file benchmark compares: ours, GlusterFS's and a bare directory, each with a mount.

A volume is two pairs of replicas under distribute (2x2), everything on this machine, bricks in directories of one disk
file system.  ``start`` makes and mounts it, ``remount`` leaves the mount without anything cached.  Of a ``Replicated``
one ``kill_brick`` and ``return_brick`` take one brick away and bring it back, ``wait_healed`` waits until nothing is
pending.  ``pids`` are its processes, for their CPU time.  Errors: ``BenchError``.
"""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from bench.measure import BenchError

WAIT_S = 60.0
HEAL_WAIT_S = 600.0
BRICKS = 4


def wait(predicate: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    until = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > until:
            raise BenchError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.05)


def run(*command: str | Path, timeout_s: float = WAIT_S) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False,
                          timeout=timeout_s, stdin=subprocess.DEVNULL)  # fmt: skip
    if done.returncode != 0:
        raise BenchError(f"{' '.join(str(word) for word in command)}: {done.stdout}{done.stderr}".strip())
    return done.stdout


class Volume:
    """A bare directory; the others mount something over it."""

    name = "bare"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "mnt"

    def missing(self) -> str | None:
        """Why it cannot be measured here."""
        return None

    def start(self) -> None:
        self.path.mkdir(parents=True)

    def stop(self) -> None:
        """May be called at any time."""

    def pids(self) -> list[int]:
        return []

    def mount(self) -> None:
        """See ``remount``."""

    def unmount(self) -> None:
        """See ``remount``."""

    def remount(self) -> None:
        self.unmount()
        self.mount()


class Replicated(Volume, abc.ABC):
    """Every file is on two of its bricks."""

    @abc.abstractmethod
    def kill_brick(self) -> None:
        """The first one."""

    @abc.abstractmethod
    def return_brick(self) -> None:
        """It serves, or is about to."""

    def brick(self, number: int) -> Path:
        return self.folder / f"brick{number}"

    def pending(self) -> int:
        """What the indices of all bricks say is to be healed."""
        return sum(index_entries(self.brick(number), "xattrop") for number in range(BRICKS))

    def changing(self) -> int:
        """What a client has marked as being changed, on the bricks that are never killed."""
        return sum(index_entries(self.brick(number), "dirty") for number in range(1, BRICKS))

    def wait_healed(self) -> None:
        wait(lambda: self.pending() == 0, f"{self.name}: a heal", HEAL_WAIT_S)


def index_entries(brick: Path, kind: str) -> int:
    folder = brick / ".glusterfs/indices" / kind
    return sum(1 for name in os.listdir(folder) if not name.startswith(f"{kind}-")) if folder.is_dir() else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def volume_text(name: str, kind: str, children: Sequence[str] = (), **options: object) -> str:
    lines = [f"volume {name}", f"  type {kind}"]
    lines += [f"  option {key.replace('__', '.').replace('_', '-')} {value}" for key, value in options.items()]
    if children:
        lines.append("  subvolumes " + " ".join(children))
    return "\n".join([*lines, "end-volume", "", ""])


class OurVolume(Replicated):
    """repl-brickd and repl-mount, with hand-written volfiles as ``replctl volume create`` makes them."""

    name = "ours"
    caches: tuple[str, ...] = ("write-behind", "quick-read", "md-cache")  # as replctl volume create
    # Bricks with features/upcall tell of changes, so what is cached need not be asked for every second.
    options: ClassVar[dict[str, dict[str, object]]] = {
        "io-cache": {"cache_timeout": 60}, "quick-read": {"cache_timeout": 60}, "md-cache": {"md_cache_timeout": 600},
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._ports: list[int] = []
        self._bricks: dict[int, subprocess.Popen[bytes]] = {}
        self._mount: subprocess.Popen[bytes] | None = None
        self._healer: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.path.mkdir(parents=True)
        (self.folder / "run").mkdir()
        self._ports = [_free_port() for _ in range(BRICKS)]
        for number in range(BRICKS):
            self.brick(number).mkdir()
            (self.folder / f"brick{number}.vol").write_text(self._brick_volfile(number))
            self._start_brick(number)
        (self.folder / "client.vol").write_text(self._client_volfile())
        self._healer = self._spawn("heal", "-N", "-f", self.folder / "client.vol", "-s", self.folder / "heal.socket")
        self.mount()

    def _brick_volfile(self, number: int) -> str:
        pair = f"pair{number // 2}"
        index = f"{self.brick(number)}/.glusterfs/indices"
        return (
            volume_text("posix", "storage/posix", directory=self.brick(number))
            + volume_text("locks", "features/locks", ["posix"])
            + volume_text("upcall", "features/upcall", ["locks"])
            + volume_text("io-threads", "performance/io-threads", ["upcall"])
            + volume_text("index", "features/index", ["io-threads"], index_base=index,
                          xattrop_pending_watchlist=f"trusted.afr.{pair}-")
            + volume_text("brick", "debug/io-stats", ["index"], count_fop_hits="off", latency_measurement="off")
            + volume_text("server", "protocol/server", ["brick"], transport__socket__listen_port=self._ports[number],
                          transport__socket__bind_address="127.0.0.1", auth__addr__brick__allow="127.0.0.1")
        )  # fmt: skip

    def _client_volfile(self) -> str:
        text = ""
        for number in range(BRICKS):
            text += volume_text(f"client{number}", "protocol/client", remote_host="127.0.0.1",
                                remote_port=self._ports[number], remote_subvolume="brick")  # fmt: skip
        for pair in range(BRICKS // 2):
            text += volume_text(f"pair{pair}", "cluster/replicate", [f"client{2 * pair}", f"client{2 * pair + 1}"],
                                afr_pending_xattr=f"pair{pair}-0,pair{pair}-1")  # fmt: skip
        text += volume_text("dht", "cluster/distribute", [f"pair{pair}" for pair in range(BRICKS // 2)])
        below = "dht"
        for kind in self.caches:
            text += volume_text(kind, f"performance/{kind}", [below], **self.options.get(kind, {}))
            below = kind
        return text + volume_text("vol", "debug/io-stats", [below], count_fop_hits="off", latency_measurement="off")

    def _spawn(self, program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        names = {"brick": "repl.files.brick", "heal": "repl.files.heal.main", "mount": "repl.files.mount.main"}
        command = [sys.executable, "-m", names[program], *(str(word) for word in arguments)]
        with (self.folder / f"{program}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    env=os.environ | {"REPL_RUN_DIR": str(self.folder / "run")})  # fmt: skip

    def _start_brick(self, number: int) -> None:
        self._bricks[number] = self._spawn("brick", "-N", "-f", self.folder / f"brick{number}.vol")
        wait(lambda: _accepts(self._ports[number]), f"our brick {number}")

    def mount(self) -> None:
        self._mount = self._spawn("mount", "-N", "-f", self.folder / "client.vol", self.path)
        wait(lambda: os.path.ismount(self.path), "our mount")

    def unmount(self) -> None:
        if self._mount is not None:
            self._mount.terminate()
            self._mount.wait(WAIT_S)
            self._mount = None

    def kill_brick(self) -> None:
        self._bricks[0].kill()
        self._bricks.pop(0).wait()

    def return_brick(self) -> None:
        self._start_brick(0)

    def pids(self) -> list[int]:
        processes = [*self._bricks.values(), self._mount, self._healer]
        return [process.pid for process in processes if process is not None]

    def stop(self) -> None:
        self.unmount()
        for process in [self._healer, *self._bricks.values()]:
            if process is not None:
                process.kill()
                process.wait()
        self._bricks.clear()


class OursWithoutCaches(OurVolume):
    """Shows what the performance translators are good for."""

    name = "ours-bare"
    caches = ()


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class GlusterVolume(Replicated):
    """glusterd, its bricks, heal daemon and mount, in a network of their own so that ports and names are free.

    A volume as ``gluster volume create`` makes it: every option as it comes.
    """

    name = "gluster"
    ADDRESS = "10.253.253.1"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._daemon: subprocess.Popen[bytes] | None = None

    def missing(self) -> str | None:
        for program in ("glusterd", "gluster", "unshare", "nsenter", "ip"):
            if shutil.which(program) is None:
                return f"{program} is not installed (apt-get install glusterfs-server)"
        return None

    def start(self) -> None:
        self.path.mkdir(parents=True)
        work = self.folder / "glusterd"
        (work / "run").mkdir(parents=True)
        volfile = self.folder / "glusterd.vol"
        volfile.write_text(volume_text(
            "management", "mgmt/glusterd", working_directory=work, transport_type="socket", run_directory=work / "run",
            transport__socket__listen_port=24007, glusterd_sockfile=work / "socket",
        ))  # fmt: skip
        begin = (
            f"ip link set lo up && ip addr add {self.ADDRESS}/32 dev lo && "
            f"exec glusterd -N -f {volfile} -l {self.folder}/glusterd.log -p {work}/pid"
        )
        self._daemon = subprocess.Popen(["unshare", "-n", "sh", "-c", begin], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        wait(lambda: (work / "socket").exists(), "glusterd")
        for number in range(BRICKS):
            self.brick(number).mkdir()
        wait(self._answers, "glusterd's answer")
        bricks = [f"{self.ADDRESS}:{self.brick(number)}" for number in range(BRICKS)]
        self.tell("volume", "create", "bench", "replica", "2", *bricks, "force")
        self.tell("volume", "start", "bench")
        self.mount()

    def _answers(self) -> bool:
        with contextlib.suppress(BenchError):
            self.tell("pool", "list")
            return True
        return False

    def tell(self, *words: str) -> str:
        socket_path = self.folder / "glusterd/socket"
        return self._inside("gluster", "--mode=script", f"--glusterd-sock={socket_path}", *words)

    def _inside(self, *command: str | Path) -> str:
        assert self._daemon is not None
        return run("nsenter", "-t", str(self._daemon.pid), "-n", *command)

    def mount(self) -> None:
        self._inside("glusterfs", f"--volfile-server={self.ADDRESS}", "--volfile-id=bench",
                     "-l", self.folder / "mount.log", self.path)  # fmt: skip
        wait(lambda: os.path.ismount(self.path), "GlusterFS's mount")

    def unmount(self) -> None:
        if os.path.ismount(self.path):
            run("umount", self.path)

    def kill_brick(self) -> None:
        for pid in self.pids():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"glusterfsd") and str(self.brick(0)).encode() in words:
                os.kill(pid, signal.SIGKILL)
                wait(lambda pid=pid: pid not in self.pids(), "the brick's end")  # type: ignore[misc]

    def return_brick(self) -> None:
        self.tell("volume", "start", "bench", "force")

    def pids(self) -> list[int]:
        """All processes in its network."""
        if self._daemon is None:
            return []
        try:
            mine = os.readlink(f"/proc/{self._daemon.pid}/ns/net")
        except OSError:
            return []
        if mine == os.readlink("/proc/self/ns/net"):
            return []
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/ns/net") == mine:
                    found.append(int(entry))
        return found

    def stop(self) -> None:
        with contextlib.suppress(BenchError):
            self.unmount()
        for pid in self.pids():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if self._daemon is not None:
            self._daemon.wait()
