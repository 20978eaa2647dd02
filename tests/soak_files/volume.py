# SPDX-License-Identifier: Apache-2.0
"""The volume of a soak: real bricks, mounts that each reach every brick through a proxy of their own, a heal daemon.

Each mount has a volfile of its own because of the proxies; heals and rebalances go to the bricks directly.  Volfiles
are replaced as a whole: the processes look at them all the time.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repl.files.volume import graphs
from repl.files.volume.model import Place
from tests.lib.chaos_proxy import ChaosProxy
from tests.lib.mounts import Mount
from tests.lib.ports import free_port
from tests.lib.process import Process
from tests.lib.volumes import VolumeProcesses
from tests.lib.wait import WaitTimedOut, wait_for
from tests.soak_files.plan import Shape

SETS = 2
MOUNTS = ("a", "b", "c")
WHOLE_S = 180.0  # until everything is connected and healed, with load on a busy machine
REBALANCE_S = 400.0
PING_S = 4
DUMPED_S = 5.0
PATIENT = ("mount-timeout=50",)  # with the machine full of other work
_LINK = re.compile(r"child '(?P<child>[^']+)' is (?P<state>up|down)")
OPTIONS = {"network.ping-timeout": str(PING_S), "client.strict-locks": "on"}
UNAVAILABLE = 5  # its exit status when a brick is away
LINKTO = "trusted.glusterfs.dht.linkto"
BAD_WORDS = ("Traceback", "never awaited", "a bug", "internal error")


class View:
    """A mount as clients use it.  ``root`` stays on this mount when it dies and another one takes its place: a path
    would lead below the mount point then."""

    def __init__(self, name: str, mount: Mount) -> None:
        self.name = name
        self.mount = mount
        self.fd = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
        self.root = Path(f"/proc/self/fd/{self.fd}")
        self.is_alive = True

    def close(self) -> None:
        self.is_alive = False
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1


class SoakVolume(VolumeProcesses):
    """``views``: the mounts by name, those that are dead left out."""

    def __init__(self, folder: Path, shape: Shape, seed: int, *, mounts: Sequence[str] = MOUNTS, sets: int = SETS,
                 options: dict[str, str] | None = None) -> None:  # fmt: skip
        self.shape = shape
        self.seed = seed
        self.mount_names = tuple(mounts)
        self.proxies: dict[str, list[ChaosProxy]] = {name: [] for name in mounts}
        self.views: dict[str, View] = {}
        self.rebalances = 0
        self.made = 0  # bricks that have ever been added
        self.is_used: Callable[[View], bool] = lambda view: False
        self._lives = 0  # of mounts
        self._dead: list[View] = []  # clients may be about to use them still
        self._changed: dict[str, tuple[int, int]] = {}  # mount -> process, and how often it had read its volfile
        own = OPTIONS | ({"cluster.quorum-type": shape.quorum} if shape.quorum else {}) | (options or {})
        super().__init__(folder, sets * shape.replica, replica=shape.replica, arbiter=shape.has_arbiter, options=own)

    # ---- volfiles ----

    def write_volfiles(self, ports: Sequence[int] = ()) -> None:
        for number in range(len(self.volume.bricks)):
            self.write_brick_volfile(number)
        self._replace(self.volfile, graphs.client_volfile(self.volume))
        self._changed.clear()
        for name, proxies in self.proxies.items():
            for brick in self.volume.bricks[len(proxies) :]:
                proxies.append(ChaosProxy(brick.port, seed=self.seed))
            seen = copy.deepcopy(self.volume)
            for brick, proxy in zip(seen.bricks, proxies, strict=False):
                brick.port = proxy.port
            view = self.views.get(name)
            before = (view.mount.process.pid, self._reloads(view)) if view else (0, 0)
            if self._replace(self.mount_volfile(name), graphs.client_volfile(seen)) and view:
                self._changed[name] = before

    def mount_volfile(self, name: str) -> Path:
        return self.folder / f"client-{name}.vol"

    def write_brick_volfile(self, number: int, options: dict[str, str] | None = None) -> bool:
        """``options``: of this brick only."""
        seen = copy.deepcopy(self.volume)
        seen.options |= options or {}
        text = graphs.brick_volfile(seen, seen.bricks[number])
        return self._replace(self.folder / f"brick{number}.vol", text)

    def _reloads(self, view: View) -> int:
        return view.mount.process.log().count("the volfile has changed: ")

    def wait_reloaded(self) -> None:
        """Every mount goes by its volfile as it was written last."""
        def is_done(name: str, pid: int, count: int) -> bool:
            view = self.views.get(name)
            return view is None or view.mount.process.pid != pid or self._reloads(view) > count

        for name, (pid, count) in self._changed.items():
            wait_for(lambda n=name, p=pid, c=count: is_done(n, p, c), 40, f"mount {name} with its new volfile")
        self._changed.clear()

    def change_brick(self, number: int, options: dict[str, str]) -> None:
        """Options of one brick; without any it is as the others again.  Returns when they are in force."""
        process = self.brick(number)
        before = process.log().count(" taken over")
        if self.write_brick_volfile(number, options):
            wait_for(lambda: process.log().count(" taken over") > before, 30, f"brick {number} with other options")

    def _replace(self, path: Path, text: str) -> bool:
        """Whether that is something new."""
        if path.exists() and path.read_text() == text:
            return False
        beside = path.with_name(f"{path.name}.new")
        beside.write_text(text)
        os.replace(beside, path)
        return True

    # ---- mounts ----

    def mount_all(self) -> None:
        for name in self.mount_names:
            self.mount_view(name)

    def mount_view(self, name: str) -> View:
        self._lives += 1
        log = self.folder / f"{name}.log"
        if log.exists():  # what the one before has written stays
            log.rename(self.folder / f"{name}.{self._lives}.log")
        found = View(name, Mount(self.folder, self.mount_volfile(name), PATIENT, name))
        self.views[name] = found
        return found

    @contextmanager
    def fresh_view(self) -> Iterator[View]:
        """A mount that has seen nothing, of the bricks themselves."""
        view = View("fresh", Mount(self.folder, self.volfile, PATIENT, "fresh"))
        try:
            yield view
        finally:
            view.close()
            view.mount.unmount()
            self.wait_unmounted(view)

    def kill_mount(self, name: str) -> None:
        view = self.views.pop(name)
        view.is_alive = False
        view.mount.process.kill()
        self.wait_unmounted(view)
        self._dead.append(view)

    def retire(self, name: str) -> None:
        """Clients leave it, then it is unmounted."""
        view = self.views[name]
        view.is_alive = False
        wait_for(lambda: not self.is_used(view), WHOLE_S, f"clients that leave mount {name}")
        self.unmount(name)

    def unmount(self, name: str) -> None:
        """As umount does, with everything closed before."""
        view = self.views.pop(name)
        view.close()
        view.mount.unmount()
        self.wait_unmounted(view)

    def wait_unmounted(self, view: View) -> None:
        place = f" {view.mount.path} "
        wait_for(lambda: place not in Path("/proc/self/mountinfo").read_text(), 20, f"the end of mount {view.name}")

    # ---- what everybody sees ----

    def links(self, log: str) -> dict[str, str]:
        """The last that a mount or the heal daemon has written about each child."""
        return {found["child"]: found["state"] for found in _LINK.finditer(log)}

    def is_connected(self) -> bool:
        """Every mount has every brick."""
        names = [self.volume.client_name(brick) for brick in self.volume.bricks]
        for view in self.views.values():
            states = self.links(view.mount.process.log())
            if any(states.get(name) != "up" for name in names):
                return False
        return True

    def wait_whole(self) -> None:
        """Everybody sees all bricks and no copy is old, but for what is being written."""
        wait_for(lambda: self.is_connected() and self.is_healed(), WHOLE_S, "all bricks connected and healed",
                 interval=0.2, ignore=(OSError, KeyError), describe=self.describe)  # fmt: skip

    def is_healed(self) -> bool:
        """See ``VolumeProcesses``; every set has all its bricks in the daemon's eyes."""
        found = self.ask(do="heal", wait=True)
        return len(found) == len(self.volume.sets) and super().is_healed()

    def describe(self) -> str:
        links = {name: self.links(view.mount.process.log()) for name, view in self.views.items()}
        try:
            healing: Any = self.ask(do="heal", wait=True)
        except OSError as error:
            healing = error
        return f"{links}\n{healing}\n{self.pending()[:10]}"

    # ---- bricks, heal daemon ----

    def set_of(self, number: int) -> list[int]:
        """The bricks that have the same files."""
        first = number // self.replica * self.replica
        return list(range(first, first + self.replica))

    def kill_heald(self) -> None:
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon = None

    def grow(self) -> list[int]:
        """One more set, started; nothing is moved yet.  The new bricks."""
        places = []
        for _ in range(self.replica):
            directory = self.folder / f"more{self.made}"
            self.made += 1
            directory.mkdir()
            os.setxattr(directory, "trusted.glusterfs.volume-id", uuid.UUID(self.volume.id).bytes)
            self.directories.append(directory)
            self.bricks.append(None)
            places.append(Place("127.0.0.1", str(directory)))
        self.volume.add_sets(places, iter(lambda: free_port(), 0))
        added = list(range(len(self.bricks) - self.replica, len(self.bricks)))
        for number in added:
            self.write_brick_volfile(number)
        self.start(*added)
        self.write_volfiles()
        return added

    def leave(self) -> None:
        """The last set is to be emptied."""
        self.volume.sets[-1].is_leaving = True
        self.write_volfiles()

    def stay(self) -> None:
        """It is not to be emptied after all."""
        self.volume.sets[-1].is_leaving = False
        self.write_volfiles()
        self.wait_reloaded()

    def shrink(self) -> list[Path]:
        """The last set goes, its processes when no mount uses them any more.  Where it was."""
        self.volume.drop_sets([self.volume.sets[-1]])
        self.write_volfiles()
        count = len(self.volume.bricks)
        gone = self.directories[count:]
        del self.directories[count:]
        going, self.bricks = self.bricks[count:], self.bricks[:count]
        old = {name: proxies[count:] for name, proxies in self.proxies.items()}
        for proxies in self.proxies.values():
            del proxies[count:]
        wait_for(lambda: not any(p.connection_count for proxies in old.values() for p in proxies), 30,
                 "mounts without the bricks that left")  # fmt: skip
        for process in going:
            if process is not None:
                process.stop(20)
        for proxies in old.values():
            for proxy in proxies:
                proxy.close()
        return gone

    def files_of_last_set(self) -> list[str]:
        """Those of users, what leads elsewhere left out."""
        found = []
        for directory in self.directories[-self.replica :]:
            for path in directory.rglob("*"):
                if ".glusterfs" in path.parts or path.is_dir() and not path.is_symlink():
                    continue
                if LINKTO not in os.listxattr(path, follow_symlinks=False):
                    found.append(str(path))
        return found

    # ---- rebalance ----

    @contextmanager
    def rebalancing(self, mode: str = "start", progress: str = "") -> Iterator[Process]:
        """A rebalance that runs; killed at the end if it still does."""
        self.rebalances += 1
        path = self.folder / (progress or f"progress{self.rebalances}")
        process = self._run("repl.files.rebalance.main", "-f", self.volfile, "-P", path, "-m", mode,
                            log=f"rebalance{self.rebalances}.log")  # fmt: skip
        try:
            yield process
        finally:
            process.kill()

    def rebalance(self, mode: str = "start", progress: str = "") -> dict[str, Any]:
        """Until it is through; what it says about itself."""
        for _ in range(3):
            with self.rebalancing(mode, progress) as process:
                status = process.wait_exit(REBALANCE_S)
            if status != UNAVAILABLE:  # on a busy machine a brick does not answer in time
                break
        assert status == 0, f"rebalance ended with {status}:\n{process.log()[-4000:]}"
        path = self.folder / (progress or f"progress{self.rebalances}")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    # ---- the whole ----

    def pids(self) -> dict[str, int]:
        found = {f"brick {number}": brick.pid for number, brick in enumerate(self.bricks) if brick is not None}
        found |= {f"mount {name}": view.mount.process.pid for name, view in self.views.items()}
        if self.daemon is not None:
            found["heald"] = self.daemon.pid
        return found

    def logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))

    def log_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.logs())

    def bad_log_lines(self) -> list[str]:
        found = []
        for path in self.logs():
            text = path.read_text(errors="replace")
            for word in BAD_WORDS:
                if (at := text.find(word)) >= 0:
                    found.append(f"{path.name}: {text[max(0, at - 500) : at + 3000]}")
                    break
        return found

    def dump_states(self) -> None:
        """Of all that answers, into ``run``: who holds which lock, what is under way."""
        asked = {process.pid: process for process in self.everything() if process.is_running}
        for process in asked.values():
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGUSR1)
        run = self.folder / "run"
        with contextlib.suppress(WaitTimedOut):
            wait_for(lambda: all(list(run.glob(f"*.{pid}.dump.*")) for pid in asked), DUMPED_S, "state dumps")

    def kill_all(self) -> None:
        """Nothing of it runs any more, nothing is mounted."""
        for process in self.everything():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
            process.kill()
        for view in self.views.values():
            view.close()
            with contextlib.suppress(AssertionError):
                self.wait_unmounted(view)
        self._close_dead()
        self._close_proxies()

    def everything(self) -> list[Process]:
        found = [view.mount.process for view in self.views.values()]
        return [*found, *(process for process in (self.daemon, *self.bricks) if process is not None)]

    def _close_proxies(self) -> None:
        for proxies in self.proxies.values():
            for proxy in proxies:
                proxy.close()
            proxies.clear()

    def stop(self) -> None:
        for name in list(self.views):
            self.unmount(name)
        self._close_dead()
        super().stop()
        self._close_proxies()

    def _close_dead(self) -> None:
        for view in self._dead:
            view.close()
        self._dead.clear()
