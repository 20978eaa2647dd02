# SPDX-License-Identifier: Apache-2.0
"""A real Linux kernel as ordinary processes: a User-mode Linux guest on the host's own files.

    with Guest(modules=["drbd:usermode_helper=/bin/true"]) as guest:
        print(guest.run("cat /proc/drbd").out)

The guest's root is an overlay: it sees every host file, its writes vanish with it; folders given as ``rw``
are the host's own.  Commands run under sh, in the folder of the test process.  One CPU, no O_DIRECT on host
files, Unix sockets do not cross: use TCP through a tap (``netns.NetNamespace``).  Needs user-mode-linux and
kmod; taps need root or a user namespace.  Raises GuestDied (panic, oops) and GuestTimedOut (the guest is
killed then).

From a shell: python -m tests.lib.guest -M nbd,drbd -- 'cat /proc/drbd'
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.lib.netns import NetNamespace
from tests.lib.process import die_with_parent
from tests.lib.tools import ROOT, find_tool, require

INIT = ROOT / "tests/guest/guest-init"
BOOT_TIMEOUT_S = 60
CLOSE_TIMEOUT_S = 10
LOG_TAIL = 3000
READ_BYTES = 1 << 16
SHM = "/dev/shm"

Sink = Callable[[bytes], object]
_turn = itertools.count(os.getpid())


class GuestDied(RuntimeError):
    """The guest's kernel ended by itself; the message has the end of its log."""


class GuestTimedOut(RuntimeError):
    """A command or the boot took too long; the guest was killed."""


@dataclass(frozen=True, slots=True)
class Result:
    status: int
    out: str
    err: str


class CommandFailed(AssertionError):
    """A command in the guest ended with a status other than 0."""

    def __init__(self, name: str, command: str, result: Result) -> None:
        super().__init__(f"{name}: status {result.status} from: {command}\n{result.out}{result.err}")
        self.result = result


def memory_folder(memory_mib: int) -> str:
    """The guest's memory is a file: best on a tmpfs with room."""
    if os.access(SHM, os.W_OK) and shutil.disk_usage(SHM).free > 2 * memory_mib << 20:
        return SHM
    return tempfile.gettempdir()


def next_cpu() -> int:
    """Guests take the CPUs by turns: pinned to one, system calls are 2-4 times faster than free on two."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[next(_turn) % len(cpus)]


class Marked:
    """One stream of a command: passes on what comes before the mark that the guest sets behind it."""

    def __init__(self, mark: bytes, sink: Sink | None) -> None:
        self.is_complete = False
        self._mark = mark
        self._sink = sink
        self._held = b""  # may be the mark's beginning

    def feed(self, data: bytes) -> None:
        data = self._held + data
        text, self.is_complete = data, self._mark in data
        if self.is_complete:
            text = data[: data.index(self._mark)]
        elif (at := data.find(b"\0", max(0, len(data) - len(self._mark) + 1))) >= 0:
            text = data[:at]
        self._held = data[len(text) :]
        if text and self._sink is not None:
            self._sink(text)


class Guest:
    def __init__(
        self,
        *,
        modules: Sequence[str] = (),
        nics: Sequence[tuple[str, str]] = (),
        netns: NetNamespace | None = None,
        rw: Sequence[os.PathLike[str] | str] = (),
        disks: Sequence[os.PathLike[str] | str] = (),
        memory_mib: int = 512,
        name: str = "guest",
        cpu: int | None = None,
        vector: str = "",
        arguments: Sequence[str] = (),
    ) -> None:
        """Boots; returns when the guest takes commands.

        ``modules``: with options as ``name:option=value``.  ``nics``: what NetNamespace.nic gives.
        ``rw``: host folders to share writable.  ``disks``: host files, become /dev/ubda, /dev/ubdb, ...
        ``name``: the guest's host name (DRBD's ``on`` section).  ``vector``: options of the fast network
        driver ("depth=128,gro=1"); empty is the old driver: slower in bulk, steadier, never seen to hang.
        """
        require("linux.uml", "modprobe", "taskset", "ip")
        self.name = name
        self.commands = 0
        folder = memory_folder(memory_mib)
        self.dir = Path(tempfile.mkdtemp(prefix="guest-", dir=folder))
        self.log_path = self.dir / "log"
        self._write_conf(modules, nics, rw)
        begin = time.monotonic()
        pin = ["taskset", "-c", str(next_cpu() if cpu is None else cpu)]
        self._spawn(
            folder,
            [f"mem={memory_mib}M", *self._nic_words(nics, vector)]
            + [f"ubd{i}={os.path.abspath(d)}" for i, d in enumerate(disks)]
            + list(arguments),
            prefix=[*(netns.prefix if netns else ()), *pin],
        )
        try:
            self._wait_status(BOOT_TIMEOUT_S, {})
            self.boot_seconds = time.monotonic() - begin
            if lacking := re.findall(r"guest-init: no module (\S+)", self.log()):
                raise GuestDied(f"{name}: no module {', '.join(lacking)}:\n{self.log()[-LOG_TAIL:]}")
        except BaseException:
            self.close()
            raise

    # --- boot ---

    def _write_conf(
        self,
        modules: Sequence[str],
        nics: Sequence[tuple[str, str]],
        rw: Sequence[os.PathLike[str] | str],
    ) -> None:
        conf = {
            "HOSTNAME": self.name,
            "MODULES": " ".join(modules),
            "RW": " ".join(os.path.abspath(d) for d in rw),
            "ADDRS": " ".join(address for _, address in nics),
        }
        text = "".join(f"{key}={shlex.quote(value)}\n" for key, value in conf.items())
        (self.dir / "conf").write_text(text)

    def _nic_words(self, nics: Sequence[tuple[str, str]], vector: str) -> list[str]:
        words = []
        for index, (tap, address) in enumerate(nics):
            octets = [int(x) for x in address.split("/")[0].split(".")]
            mac = "02:00:" + ":".join(f"{o:02x}" for o in octets)  # must differ between guests
            if vector:
                words.append(f"vec{index}:transport=tap,ifname={tap},mac={mac},{vector}")
            else:
                words.append(f"eth{index}=tuntap,{tap},{mac}")
        return words

    def _spawn(self, folder: str, words: Sequence[str], *, prefix: Sequence[str]) -> None:
        """Start the kernel with its consoles on pipes."""
        control_read, self._control = os.pipe()
        self._pipes: dict[str, int] = {}
        theirs = []
        for key in ("done", "out", "err"):
            read, write = os.pipe()
            os.set_blocking(read, False)
            self._pipes[key] = read
            theirs.append(write)
        done, out, err = theirs
        with open(self.log_path, "wb") as log:
            argv = [
                *prefix,
                find_tool("linux.uml") or "linux.uml",
                *("rootfstype=hostfs", "rootflags=/", "ro", f"init={INIT}", f"guestdir={self.dir}"),
                *(f"uml_dir={self.dir}", "umid=u", "panic=-1", "oops=panic", "noreboot"),
                *("con=null", "ssl=null", f"con0=null,fd:{log.fileno()}"),
                f"con1=fd:{control_read},fd:{done}",
                *(f"con2=null,fd:{out}", f"con3=null,fd:{err}"),
                *words,
            ]
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(os.environ, TMPDIR=folder),
                pass_fds=[log.fileno(), control_read, *theirs],
                preexec_fn=die_with_parent,
            )
        for fd in (control_read, *theirs):
            os.close(fd)

    # --- use ---

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Kernel log so far; also after the end."""
        return self._last_log if self._process is None else self.log_path.read_text(errors="replace")

    def run(
        self,
        command: str | Sequence[str],
        timeout: float = 60,
        *,
        stdin: bytes = b"",
        check: bool = True,
        sinks: dict[str, Sink] | None = None,
    ) -> Result:
        """Run a shell command (or argv) to its end.  ``sinks`` get "out" and "err" as they come."""
        if self._process is None:
            raise GuestDied(f"{self.name}: is not running")
        self.commands += 1
        text = command if isinstance(command, str) else shlex.join(command)
        (self.dir / f"in.{self.commands}").write_bytes(stdin)
        (self.dir / f"cmd.{self.commands}").write_text(f"cd {shlex.quote(os.getcwd())}\n{text}\n")
        return self._carry_out("", timeout, text, check=check, sinks=sinks)

    def read_file(self, path: str, timeout: float = 60, *, check: bool = True) -> str:
        """Text, without a process in the guest: for what is asked again and again."""
        self.commands += 1
        return self._carry_out(path, timeout, f"read {path}", check=check, sinks=None).out

    def _carry_out(self, path: str, timeout: float, text: str, *, check: bool, sinks: dict[str, Sink] | None) -> Result:
        """Give the guest the command's number, collect what it writes."""
        if self._process is None:
            raise GuestDied(f"{self.name}: is not running")
        got = {"out": bytearray(), "err": bytearray()}
        try:
            os.write(self._control, f"{self.commands} {path}\n".encode())
        except BrokenPipeError:
            raise GuestDied(self._obituary()) from None
        into = sinks or {key: value.extend for key, value in got.items()}
        mark = b"\0end %d\0" % self.commands
        status = self._wait_status(timeout, {key: Marked(mark, into.get(key)) for key in ("out", "err")})
        result = Result(status, got["out"].decode(errors="replace"), got["err"].decode(errors="replace"))
        if check and status:
            raise CommandFailed(self.name, text, result)
        return result

    def write_file(self, path: str, text: str) -> None:
        """A file in the guest (on its overlay, gone with it)."""
        folder = shlex.quote(os.path.dirname(path) or ".")
        self.run(f"mkdir -p {folder} && cat >{shlex.quote(path)}", stdin=text.encode())

    def _wait_status(self, timeout: float, streams: dict[str, Marked]) -> int:
        """Collect output until the guest reports the end of the command; its status."""
        assert self._process is not None
        end = time.monotonic() + timeout
        report = b""
        with selectors.DefaultSelector() as selector:
            for key, fd in self._pipes.items():
                selector.register(fd, selectors.EVENT_READ, key)
            while b"\n" not in report or not all(stream.is_complete for stream in streams.values()):
                left = end - time.monotonic()
                if left <= 0:
                    text = f"{self.name}: no answer in {timeout:g} s, log ends:\n{self.log()[-LOG_TAIL:]}"
                    self.kill()
                    raise GuestTimedOut(text)
                events = selector.select(min(left, 1))
                for ready, _ in events:
                    data = os.read(ready.fd, READ_BYTES)
                    if ready.data == "done":
                        report += data
                    elif ready.data in streams:
                        streams[ready.data].feed(data)
                    if not data:
                        selector.unregister(ready.fd)
                if not events and self._process.poll() is not None:
                    raise GuestDied(self._obituary())
        return int(report.split()[-1])

    def _obituary(self) -> str:
        return f"{self.name}: kernel gone, log ends:\n{self.log()[-LOG_TAIL:]}"

    # --- end ---

    def kill(self) -> None:
        """Power cut: no sync, no shutdown.  Guest disks (``disks``) keep what their host files have."""
        self._end()

    def freeze(self) -> None:
        """The whole machine stands still."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """Orderly power off (end of input on the control console), then whatever it takes."""
        if self._process is None:
            return
        os.close(self._control)
        self._control = -1
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_TIMEOUT_S)
        self._end()

    _last_log = ""

    def _end(self) -> None:
        """The kernel and its helpers are one group: SIGKILL of the kernel alone would leave helpers."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._last_log = self.log()
        self._process = None
        for fd in (*self._pipes.values(), *((self._control,) if self._control >= 0 else ())):
            os.close(fd)
        self._control = -1
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="run a command under a User-mode Linux kernel")
    parser.add_argument("-m", "--memory", type=int, default=512, help="MiB")
    parser.add_argument("-M", "--modules", default="", help="comma-separated, options as name:option=value")
    parser.add_argument("-w", "--rw", action="append", default=[], metavar="DIR", help="share writable")
    parser.add_argument("-d", "--disk", action="append", default=[], metavar="FILE")
    parser.add_argument("-n", "--net", action="store_true", help="a network: host 10.9.0.1, guest 10.9.0.2")
    parser.add_argument("-t", "--timeout", type=float, default=300)
    parser.add_argument("-k", "--klog", action="store_true", help="print the kernel log at the end")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()

    def writer(stream: int) -> Sink:
        return lambda data: os.write(stream, data)

    with contextlib.ExitStack() as stack:
        net = stack.enter_context(NetNamespace(taps=1)) if options.net else None
        guest = stack.enter_context(
            Guest(
                modules=[m for m in options.modules.split(",") if m],
                nics=[net.nic(0)] if net else [],
                netns=net,
                rw=options.rw,
                disks=options.disk,
                memory_mib=options.memory,
            )
        )
        command = options.command[0] if len(options.command) == 1 else options.command
        sinks = {"out": writer(1), "err": writer(2)}
        status = guest.run(command, options.timeout, check=False, sinks=sinks).status
        if options.klog:
            sys.stderr.write(guest.log())
        return status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
