# SPDX-License-Identifier: Apache-2.0
"""A volume of four bricks on this machine: write a source tree, kill a brick under load, bring it back, lose nothing.

Every step is an ordinary command, printed as it is run; every claim is checked, and the exit status is 1 if one does
not hold, 2 if something is missing here.  Needs root and /dev/fuse.  Whatever ends it, an interruption too, mount,
processes and files are gone afterwards (--keep keeps the files).
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
TREES = ("repl", "nbd", "csrc", "docs", "tests/unit", "tests/sim", "tests/lib", "tools")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.so", "*.so.new")
BRICKS = 4
KILLED = 1  # brick2, of the first pair
KILL_AFTER = 0.3  # of the second copy
FIRST_PORT = 28000
COMMAND_TIMEOUT_S = 180
VOLUME = "demo"

console = Console(highlight=False)


class CheckFailed(Exception):
    """Something that the demo claims does not hold."""


class Missing(Exception):
    """The demo cannot run here; says what to do."""


def say(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def check(condition: object, text: str) -> None:
    console.print(f"  [green]ok[/green] {text}" if condition else f"  [red]FAILED[/red] {text}")
    if not condition:
        raise CheckFailed(text)


# ---- what it needs ----


def find_home() -> Path:
    """A new directory whose file system keeps trusted.* attributes."""
    if os.geteuid() != 0:
        raise Missing("it needs root: bricks keep trusted.* attributes. Try: sudo make demo-files")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        raise Missing(
            f"/dev/fuse cannot be opened ({error.strerror}). On a host: modprobe fuse. In a container: "
            "docker run --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined ..."
        ) from None
    reasons = []
    (ROOT / "build").mkdir(exist_ok=True)
    for base in (Path("/var/tmp"), ROOT / "build"):
        try:
            home = Path(tempfile.mkdtemp(prefix="repl-demo-", dir=base))
        except OSError as error:
            reasons.append(f"{base}: {error.strerror}")
            continue
        try:
            os.setxattr(home, "trusted.repl-demo", b"1")
            os.removexattr(home, "trusted.repl-demo")
            return home
        except OSError as error:
            home.rmdir()
            reasons.append(f"{base}: {error.strerror}")
    raise Missing(
        f"no place for bricks: {'; '.join(reasons)}. They need a file system with extended attributes (ext4, XFS) and, "
        "in a container, the capability SYS_ADMIN."
    )


def free_base_port() -> int:
    for base in range(FIRST_PORT, FIRST_PORT + 1000, BRICKS):
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(base, base + BRICKS):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return base
    raise Missing(f"no {BRICKS} TCP ports in a row are free from {FIRST_PORT} on")


# ---- the volume ----


class Volume:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.mount_point = home / "mnt"
        self.mount_point.mkdir()
        self.bricks = [home / f"brick{number}" for number in range(1, BRICKS + 1)]
        self._environment = {**os.environ, "REPL_RUN_DIR": str(home)}
        self._environment.pop("REPL_STATE_DIR", None)
        self._environment.pop("REPL_NODE", None)

    def _run(self, program: str, words: tuple[str, ...], *, is_shown: bool, is_quiet: bool) -> str:
        if is_shown:
            console.print(f"  [cyan]#[/cyan] {program} {' '.join(words)}", soft_wrap=True)
        pipe = subprocess.PIPE if is_quiet else None
        process = subprocess.Popen([str(BIN / program), *words], env=self._environment, text=True, stdout=pipe,
                                   stderr=pipe, start_new_session=is_quiet)  # fmt: skip
        try:
            out, errors = process.communicate(timeout=COMMAND_TIMEOUT_S)
        except BaseException:
            if not is_quiet:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=COMMAND_TIMEOUT_S)  # what it starts has to be there to be stopped
            raise
        if process.returncode:
            raise CheckFailed(f"{program} {' '.join(words)} ended with {process.returncode}: {errors or ''}".strip())
        return out or ""

    def ctl(self, *words: str, is_shown: bool = True, is_quiet: bool = True) -> str:
        """``replctl volume ...``; without ``is_quiet`` it prints for itself (progress bars)."""
        return self._run("replctl", ("volume", *words), is_shown=is_shown, is_quiet=is_quiet)

    def mount(self) -> None:
        self._run("repl-mount", (f"127.0.0.1:/{VOLUME}", str(self.mount_point)), is_shown=True, is_quiet=True)

    def status(self) -> list[dict[str, Any]]:
        found = json.loads(self.ctl("status", VOLUME, "--json", is_shown=False))
        bricks: list[dict[str, Any]] = found["data"][0]["bricks"]
        return bricks

    def pending(self) -> dict[str, int | None]:
        found = json.loads(self.ctl("heal", VOLUME, "statistics", "heal-count", "--json", is_shown=False))
        counts: dict[str, int | None] = found["data"]
        return counts

    def clean_up(self, *, keeps_files: bool) -> None:
        """Whatever there is of it."""
        for words in (["umount", str(self.mount_point)], ["umount", "-l", str(self.mount_point)]):
            if os.path.ismount(self.mount_point):
                subprocess.run(words, check=False, capture_output=True)
        if (self.home / "volumes" / VOLUME).exists():
            command = [str(BIN / "replctl"), "--mode=script", "volume", "stop", VOLUME, "force"]
            subprocess.run(command, env=self._environment, check=False, capture_output=True, start_new_session=True)
        if not keeps_files:
            shutil.rmtree(self.home, ignore_errors=True)


# ---- trees ----


def source_files() -> list[tuple[Path, str]]:
    found = []
    for tree in TREES:
        for here, folders, names in os.walk(ROOT / tree):
            ignored = LEFT_OUT(here, [*folders, *names])
            folders[:] = [name for name in folders if name not in ignored]
            for name in names:
                path = Path(here, name)
                if name not in ignored and path.is_file() and not path.is_symlink():
                    found.append((path, str(path.relative_to(ROOT))))
    return found


class Copier:
    """Copies the tree file by file, in a thread of its own if asked; knows how long the slowest file took."""

    def __init__(self, files: list[tuple[Path, str]], target: Path) -> None:
        self.files = files
        self.target = target
        self.done = 0
        self.size = 0
        self.slowest_s = 0.0
        self.seconds = 0.0
        self.error: OSError | None = None
        self.is_stopping = False

    def run(self) -> None:
        began = time.monotonic()
        try:
            for path, name in self.files:
                if self.is_stopping:
                    return
                start = time.monotonic()
                target = self.target / name
                target.parent.mkdir(parents=True, exist_ok=True)
                data = path.read_bytes()
                target.write_bytes(data)
                target.chmod(stat.S_IMODE(path.stat().st_mode))
                self.slowest_s = max(self.slowest_s, time.monotonic() - start)
                self.done += 1
                self.size += len(data)
        except OSError as error:
            self.error = error
        finally:
            self.seconds = time.monotonic() - began

    @contextlib.contextmanager
    def in_background(self) -> Iterator[threading.Thread]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield thread
        finally:
            self.is_stopping = thread.is_alive()
            thread.join()


def follow(copier: Copier, thread: threading.Thread, title: str, until: int | None = None) -> None:
    """A bar until the copy has come so far."""
    goal = len(copier.files) if until is None else until
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=len(copier.files), completed=copier.done)
        while copier.done < goal and thread.is_alive():
            progress.update(task, completed=copier.done)
            thread.join(0.05)  # the pace of the display
        progress.update(task, completed=copier.done)
    if copier.error is not None:
        raise CheckFailed(f"writing failed: {copier.error}")


def differences(files: list[tuple[Path, str]], root: Path) -> list[str]:
    """Of a copy from what was copied."""
    wrong = [name for path, name in files if not _is_same(path, root / name)]
    there = {str(Path(here, name).relative_to(root)) for here, _, names in os.walk(root) for name in names}
    return wrong + sorted(there - {name for _, name in files})


def _is_same(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False) and one.stat().st_mode == other.stat().st_mode
    except OSError:
        return False


def brick_entries(brick: Path) -> dict[str, tuple[Any, ...]]:
    """Every name on a brick: kind and mode, owner, link target or digest of the contents."""
    found: dict[str, tuple[Any, ...]] = {}
    for here, folders, names in os.walk(brick):
        folders[:] = [name for name in folders if not name.startswith(".glusterfs")]
        for name in [*folders, *names]:
            path = Path(here, name)
            st = path.lstat()
            what: Any = None
            if path.is_symlink():
                what = os.readlink(path)
            elif path.is_file():
                what = path.read_bytes()
            found[str(path.relative_to(brick))] = (st.st_mode, st.st_uid, st.st_gid, what)
    return found


# ---- the story ----


def story(volume: Volume) -> list[str]:
    """The lines of the summary."""
    files = source_files()
    summary = []

    say("1. A volume of four bricks, two pairs of copies, on this machine")
    places = [f"127.0.0.1:{brick}" for brick in volume.bricks]
    port = str(free_base_port())
    volume.ctl("create", VOLUME, "replica", "2", *places, "--base-port", port)
    volume.ctl("start", VOLUME)
    console.print(volume.ctl("status", VOLUME).rstrip())
    check(all(brick["online"] for brick in volume.status()), "four bricks and a heal daemon run")

    say("2. Mounted, and a source tree written to it")
    volume.mount()
    first = Copier(files, volume.mount_point / "first")
    with first.in_background() as thread:
        follow(first, thread, "writing")
    rate = first.done / first.seconds
    summary.append(f"{first.done} files, {first.size / 1e6:.1f} MB written at {rate:.0f} files/s, each to two bricks")
    check(not differences(files, first.target), f"{first.done} files read back as they were written")
    counts = [sum(len(n) for h, _, n in os.walk(brick) if ".glusterfs" not in h) for brick in volume.bricks]
    check(counts[0] == counts[1] and counts[2] == counts[3], f"files on the bricks: {counts}")

    say("3. A brick is killed while a second tree is being written")
    second = Copier(files, volume.mount_point / "second")
    with second.in_background() as thread:
        follow(second, thread, "writing", int(len(files) * KILL_AFTER))
        pid = volume.status()[KILLED]["pid"]
        os.kill(pid, signal.SIGKILL)
        console.print(f"  [red]kill -9 {pid}[/red]: brick{KILLED + 1} is dead, {second.done} files were written")
        follow(second, thread, "writing goes on")
    check(second.done == len(files), "no write failed")
    summary.append(f"a brick killed under load: no error, the slowest file took {second.slowest_s:.2f} s")

    say("4. Reading and changing go on with one copy")
    check(not differences(files, first.target), "the first tree reads as it was")
    check(not differences(files, second.target), "the second tree reads as it was written")
    change(volume.mount_point)
    shown = {Path(name).name: count for name, count in volume.pending().items()}
    console.print(f"  names removed, moved, made, a file changed; entries to be healed: {shown}")

    say("5. The brick comes back and is healed")
    began = time.monotonic()
    volume.ctl("start", VOLUME, "force")
    volume.ctl("heal", VOLUME, "wait", is_quiet=False)
    summary.append(f"healed in {time.monotonic() - began:.1f} s, from the start of the brick on")
    check(not any(volume.pending().values()), "nothing is pending")

    say("6. Everything is compared")
    for left, right in ((0, 1), (2, 3)):
        one, other = brick_entries(volume.bricks[left]), brick_entries(volume.bricks[right])
        check(one == other, f"brick{left + 1} and brick{right + 1} are equal: {len(one)} names")
    check(not differences(files, first.target), "the first tree is as it was")
    check_changed(volume.mount_point, files)
    summary.append("both bricks of each pair are equal, and equal to what was written")
    return summary


def change(root: Path) -> None:
    second = root / "second"
    shutil.rmtree(second / "nbd")
    os.rename(second / "docs", second / "pages")
    (second / "tools/new").mkdir()
    (second / "tools/new/file").write_text("made while a brick was away\n")
    os.symlink("new/file", second / "tools/link")
    os.link(second / "tools/new/file", second / "tools/other-name")
    with open(second / "repl/errors.py", "a") as file:
        file.write("# changed while a brick was away\n")


def check_changed(root: Path, files: list[tuple[Path, str]]) -> None:
    second = root / "second"
    kept = [(path, name) for path, name in files if name.split("/")[0] in ("csrc", "tests")]
    there = [(path, name.replace("docs/", "pages/", 1)) for path, name in files if name.startswith("docs/")]
    check(not (second / "nbd").exists() and all(_is_same(path, second / name) for path, name in [*kept, *there])
          and (second / "tools/link").read_text() == "made while a brick was away\n"
          and (second / "tools/other-name").stat().st_nlink == 2
          and (second / "repl/errors.py").read_text().endswith("# changed while a brick was away\n"),
          "the second tree is as it was changed")  # fmt: skip


def interrupted(number: int, _: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Exit status: 0 if every check held, 1 if not, 2 if it cannot run here, 130 if it was interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep bricks and logs")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        home = find_home()
    except Missing as missing:
        console.print(f"[red]The demo cannot run here:[/red] {missing}", soft_wrap=True)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    volume = Volume(home)
    keeps_files = options.keep
    try:
        summary = story(volume)
    except (CheckFailed, OSError, subprocess.SubprocessError) as error:
        console.print(f"\n[red]The demo failed:[/red] {error}")
        for log in sorted(home.rglob("*.log")):
            console.print(f"--- {log.name}, last lines\n" + "\n".join(log.read_text().splitlines()[-8:]), markup=False)
        return 1
    except Missing as missing:
        console.print(f"[red]The demo cannot run here:[/red] {missing}", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("\n[red]Interrupted[/red]: taking everything down")
        return 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        volume.clean_up(keeps_files=keeps_files)
    say(f"Nothing was lost. ({time.monotonic() - started:.0f} s)")
    for line in summary:
        console.print(f"  {line}")
    console.print(f"  files kept in {home}" if keeps_files else "  mount, processes and files are gone again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
