# SPDX-License-Identifier: Apache-2.0
"""A soak of files: a volume of real bricks, three mounts of it under load, one fault after the other, and audits.

At an audit the clients stand still.  Then heals come to an end, nobody is accused, the bricks are as ``audit.py``
says, every mount shows what every client knows, and no process has grown or written a traceback.  At the end all
bricks and mounts are killed, return, and are audited once more.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lib.wait import WaitTimedOut, wait_for
from tests.soak.plan import Step, steps
from tests.soak.row import Result, Row, Timing
from tests.soak.watch import Watch
from tests.soak_files import audit
from tests.soak_files.blocks import Blocks
from tests.soak_files.faults import Faults
from tests.soak_files.plan import FAMILIES, Shape, faults_of, shape_of
from tests.soak_files.shared import LOGS, Appender, Counter, Exclusive, Reader, Winners, log_problems
from tests.soak_files.tree import Tree
from tests.soak_files.volume import MOUNTS, SoakVolume, View
from tests.soak_files.weather import Weather
from tests.soak_files.worker import STALE_S, FileWorker, World, read_whole

TREES = 3
OPEN_FILES = 2
FAILURES_TOLD = 20
DESCRIPTORS_MORE_MAX = 40  # bricks keep directories open that they may need again


@dataclass(frozen=True)
class Settings(Timing):
    """``shape``: empty: by the seed; ``pace_s``: of each client between two operations; ``healed_s`` and ``stale_s``:
    how long an audit waits for heals, and for mounts to show what is."""

    families: Sequence[str] = FAMILIES
    shape: str = ""
    pace_s: float = 0.02
    mounts: Sequence[str] = MOUNTS
    healed_s: float = 180.0
    stale_s: float = STALE_S

    def found_shape(self) -> Shape:
        return shape_of(self.seed, self.shape)


class SoakFiles(Row):
    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        super().__init__(settings, say)
        self.settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="repl-soak-files-"))
        self.shape = settings.found_shape()
        self.volume = SoakVolume(self.folder, self.shape, settings.seed, mounts=settings.mounts)
        self.volume.is_used = lambda view: any(worker.is_using(view) for worker in self.clients)
        self.weather = Weather()
        self.watch = Watch(self.volume.pids, self.volume.log_bytes, DESCRIPTORS_MORE_MAX)
        self.clients: list[FileWorker] = []

    def run(self) -> Result:
        self._prepare()
        self._began_s = time.monotonic()  # however long a busy machine took until here
        self._tell(f"{self.shape.name}: {len(self.volume.bricks)} bricks, {len(self.clients)} clients")
        try:
            self._resume()
            self._until_over()
            self._audit()
            self._after_a_crash()
        finally:
            self._close_workers()
        self._check(self.watch.problems(self._elapsed_s / 60, sum(self.result.faults.values())))
        return self.result

    def close(self) -> None:
        self.volume.stop()

    def kill(self) -> None:
        self.volume.kill_all()

    def remarks(self) -> list[str]:
        """Asked for before everything is killed."""
        self.volume.dump_states()
        return [failure for client in self.clients for failure in client.failures[-FAILURES_TOLD:]]

    def _schedule(self) -> Iterator[Step]:
        return steps(self.settings.seed, faults_of(self.shape, self.settings.families), self.settings.pause_s)

    def _do(self, step: Step) -> str:
        return self._faults.provoke(step)

    def _prepare(self) -> None:
        self.volume.start()
        self.volume.heal()
        self.volume.mount_all()
        self.volume.wait_whole()
        self._begin_clients()
        self._faults = Faults(self.volume, self.weather, self.settings.seed)

    # ---- clients ----

    def _begin_clients(self) -> None:
        world, seed = World(self.volume, self.weather, self.settings.pace_s), self.settings.seed
        self.trees = [Tree(world, f"tree{number}", seed) for number in range(TREES)]
        self.clients += self.trees
        self.clients += [Blocks(world, f"blocks{number}", seed, number + 1) for number in range(OPEN_FILES)]
        winners = Winners()
        self.appenders: list[Appender] = []
        for at, home in enumerate(self.settings.mounts):
            for log in range(LOGS):
                self.appenders.append(Appender(world, f"append{home}{log}", seed, home, f"log{log}"))
            self.clients.append(Counter(world, f"count-{home}", seed, home, "fcntl", is_flock=False))
            self.clients.append(Counter(world, f"flock-{home}", seed, home, "flock", is_flock=True))
            self.clients.append(Exclusive(world, f"excl-{home}", seed, home, winners))
            self.clients.append(Reader(world, f"reader-{at}", seed, self.trees, home))
        self.clients += self.appenders
        self.workers = [*self.clients]
        root = next(iter(self.volume.views.values())).root
        for client in self.clients:
            client.prepare(root)

    # ---- audits ----

    def _audit(self) -> None:
        begin = self._elapsed_s
        self._stand_still()
        self._check_everything()
        self.watch.sample(self._elapsed_s)
        result = self.result
        result.audits += 1
        result.writes = sum(client.acknowledged for client in self.clients)
        result.reads = sum(client.reads for client in self.clients)
        result.slowest_s = max(client.slowest_s for client in self.clients)
        result.rss_max_bytes = self.watch.rss_max_bytes()
        failures = sum(len(client.failures) for client in self.clients)
        self._tell(f"audit {result.audits} ({self._elapsed_s - begin:.1f} s): all copies equal, {result.writes} "
                   f"operations, {result.reads} looks, {failures} failures excused, "
                   f"slowest {result.slowest_s:.1f} s")  # fmt: skip

    def _check_everything(self) -> None:
        self._check(self.findings())
        root = next(iter(self.volume.views.values())).root
        for tree in self.trees:
            tree.settle(root)

    def findings(self) -> list[str]:
        """All that is wrong, on the mounts that were worked on and on one that has seen nothing.  The clients stand."""
        found = []
        try:
            self.volume.wait_whole()
            self.volume.wait_healed(self.settings.healed_s)
        except WaitTimedOut as late:
            found.append(str(late))
        for view in self.volume.views.values():
            found += self._lasting_problems(view)
        with self.volume.fresh_view() as view:
            found += self._lasting_problems(view)
            found += self._lasting_links(view)
        return [*found, *self._brick_problems(), *self.volume.bad_log_lines()]

    def _lasting_links(self, view: View) -> list[str]:
        """Link files that lead nowhere go when their names are looked up, if not before."""
        def left() -> list[str]:
            names = audit.dangling(self._sets())
            for name in names:
                os.path.lexists(view.root / name)
            return names

        with contextlib.suppress(WaitTimedOut):
            wait_for(lambda: not left(), self.settings.stale_s, interval=0.5)
        return [f"{name}: a link file that leads nowhere" for name in left()]

    def _sets(self) -> list[list[Path]]:
        count, found = self.volume.replica, self.volume.directories
        return [found[at : at + count] for at in range(0, len(found), count)]

    def _brick_problems(self) -> list[str]:
        return audit.brick_problems(self._sets(), has_arbiter=self.shape.has_arbiter)

    def _lasting_problems(self, view: View) -> list[str]:
        """What others have changed is seen after a while at the latest, and what was healed."""
        with contextlib.suppress(WaitTimedOut):
            wait_for(lambda: not self._view_problems(view), self.settings.stale_s, interval=0.2)
            return []
        return self._view_problems(view)

    def _view_problems(self, view: View) -> list[str]:
        found = [f"{client.name} on {view.name}: {one}" for client in self.clients if not isinstance(client, Appender)
                 for one in client.final_problems(view.root)]  # fmt: skip
        for tree in self.trees:
            found += tree.half_problems(view.root)
        for number in range(LOGS):
            log = f"log{number}"
            mine = [one for one in self.appenders if one.log == log]
            found += [f"{view.name}: {one}" for one in log_problems(read_whole(view.root / log), log, mine)]
        return found

    def _after_a_crash(self) -> None:
        for name in list(self.volume.views):
            self.volume.kill_mount(name)
        for number in range(len(self.volume.bricks)):
            self.volume.kill(number)
        self.volume.start()
        self.volume.mount_all()
        self._check_everything()
        self._tell("everything was killed and returned: all copies equal, every name as it was")
