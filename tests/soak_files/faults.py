# SPDX-License-Identifier: Apache-2.0
"""The faults of a soak of files, done to real processes.

Each takes a ``Step``, does what its name says, undoes it and returns what a reader of the log wants to know.  Before
one that takes a brick away from somebody, everything is whole: with two copies and no quorum the next fault would
otherwise take the only good one.  To sleep is here how long a fault lasts; what has to become true is waited for.

A brick that is away is no reason for an error, unless a quorum counts it: ``_storm`` says when operations may fail.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from repl.files.volume import settings
from tests.lib.chaos_proxy import ChaosProxy, Direction, Mode
from tests.lib.wait import wait_for
from tests.soak.plan import Step
from tests.soak_files.volume import SETS, SoakVolume
from tests.soak_files.weather import Weather

MID_PACKET_BYTES_MAX = 1 << 18
TAKEN_OVER_S = 30.0
BACK_S = 180.0
FULL = {"storage.reserve": "100%"}
OPTIONS = (
    {"cluster.post-op-delay-secs": "0"}, {"cluster.post-op-delay-secs": "1"}, {"cluster.eager-lock": "off"},
    {"cluster.eager-lock": "on"}, {"cluster.ensure-durability": "off"}, {"cluster.ensure-durability": "on"},
    {"network.ping-timeout": "6"}, {"network.ping-timeout": "4"}, {"cluster.data-self-heal": "off"},
    {"cluster.data-self-heal": "on"}, {"performance.flush-behind": "off"}, {"cluster.choose-local": "off"},
    {"performance.md-cache-timeout": "1"}, {"performance.md-cache-timeout": "600"},
    {"performance.write-behind-window-size": "512KB"}, {"performance.write-behind-window-size": "1MB"},
)  # fmt: skip


class Faults:
    def __init__(self, volume: SoakVolume, weather: Weather, seed: int) -> None:
        self.volume = volume
        self.weather = weather
        self._chance = random.Random(seed)
        self._progress = ""  # of a rebalance that was killed

    def provoke(self, step: Step) -> str:
        return _FAULTS[step.fault.name](self, step)

    # ---- what they share ----

    def _brick(self, step: Step) -> int:
        return int(step.pick * len(self.volume.bricks))

    def _mount(self, step: Step) -> str:
        return self.volume.mount_names[int(step.pick * 997) % len(self.volume.mount_names)]

    def _direction(self, step: Step) -> Direction:
        return Direction.THERE if int(step.pick * 1009) % 2 else Direction.BACK

    def _needs(self, number: int) -> bool:
        """Without this brick alone its set may not be changed."""
        shape = self.volume.shape
        return shape.replica == 2 and bool(shape.quorum) and number % 2 == 0

    @contextmanager
    def _storm(self, why: str, mount: str = "", *, unless: bool = False) -> Iterator[None]:
        """It is over when everything is connected and healed again."""
        with ExitStack() as stack:
            if not unless:
                stack.enter_context(self.weather.storm(why, mount))
            yield
            self.volume.wait_whole()

    def _proxies(self, number: int, mounts: Sequence[str] = ()) -> list[ChaosProxy]:
        return [self.volume.proxies[name][number] for name in mounts or self.volume.mount_names]

    # ---- bricks ----

    def _kill_brick(self, step: Step) -> str:
        number = self._brick(step)
        self.volume.wait_whole()
        with self._storm(step.fault.name, unless=not self._needs(number)):
            self.volume.kill(number)
            time.sleep(step.seconds)
            self.volume.start(number)
        return f"brick {number}"

    def _restart_brick(self, step: Step) -> str:
        number = self._brick(step)
        self.volume.wait_whole()
        with self._storm(step.fault.name, unless=not self._needs(number)):
            self.volume.brick(number).stop(20)
            self.volume.bricks[number] = None
            time.sleep(step.seconds)
            self.volume.start(number)
        return f"brick {number}"

    def _freeze_brick(self, step: Step) -> str:
        number = self._brick(step)
        self.volume.wait_whole()
        with self._storm(step.fault.name, unless=not self._needs(number)):
            self.volume.brick(number).freeze()
            time.sleep(step.seconds)
            self.volume.brick(number).thaw()
        return f"brick {number}"

    def _kill_set(self, step: Step) -> str:
        """All copies of some files, one by one."""
        numbers = self.volume.set_of(self._brick(step))
        with self._storm(step.fault.name):
            for number in numbers:
                self.volume.kill(number)
            time.sleep(step.seconds)
            self._chance.shuffle(numbers)
            for number in numbers:
                self.volume.start(number)
        return f"bricks {numbers}"

    def _freeze_set(self, step: Step) -> str:
        numbers = self.volume.set_of(self._brick(step))
        with self._storm(step.fault.name):
            for number in numbers:
                self.volume.brick(number).freeze()
            time.sleep(step.seconds)
            self._chance.shuffle(numbers)
            for number in numbers:
                self.volume.brick(number).thaw()
        return f"bricks {numbers}"

    def _kill_another(self, step: Step) -> str:
        numbers = self.volume.set_of(self._brick(step))
        self._chance.shuffle(numbers)
        with self._storm(step.fault.name):
            for number in numbers:
                self.volume.kill(number)
                time.sleep(step.seconds)
                self.volume.start(number)
        return f"bricks {numbers}"

    def _kill_all(self, step: Step) -> str:
        numbers = list(range(len(self.volume.bricks)))
        with self._storm(step.fault.name):
            self._chance.shuffle(numbers)
            for number in numbers:
                self.volume.kill(number)
            time.sleep(step.seconds)
            self.volume.start()
        return f"bricks {numbers}"

    # ---- links ----

    def _link(self, step: Step, mode: Mode, direction: Direction | None) -> str:
        """Between a brick and all mounts."""
        number = self._brick(step)
        self.volume.wait_whole()
        with self._storm(step.fault.name, unless=not self._needs(number)):
            for proxy in self._proxies(number):
                proxy.set(mode, direction)
            time.sleep(step.seconds)
            for proxy in self._proxies(number):
                proxy.set(Mode.PASS)
        return f"brick {number}, {direction or 'both ways'}"

    def _split(self, step: Step) -> str:
        for number in range(len(self.volume.bricks)):
            for proxy in self._proxies(number):
                proxy.set(Mode.SPLIT)
        time.sleep(step.seconds)
        for number in range(len(self.volume.bricks)):
            for proxy in self._proxies(number):
                proxy.set(Mode.PASS)
        return "segments of one to three bytes"

    def _reset(self, step: Step) -> str:
        number = self._brick(step)
        self.volume.wait_whole()
        with self._storm(step.fault.name, unless=not self._needs(number)):
            for proxy in self._proxies(number):
                proxy.reset()
        return f"brick {number}"

    def _reset_mid_packet(self, step: Step) -> str:
        number = self._brick(step)
        self.volume.wait_whole()
        with self._storm(step.fault.name, unless=not self._needs(number)):
            for proxy in self._proxies(number):
                proxy.reset_within(1 + int(self._chance.random() * MID_PACKET_BYTES_MAX))
            time.sleep(step.seconds)
            for proxy in self._proxies(number):
                proxy.reset()
        return f"brick {number}"

    def _cut_one_mount(self, step: Step) -> str:
        number, mount = self._brick(step), self._mount(step)
        self.volume.wait_whole()
        with self._storm(step.fault.name, mount, unless=not self._needs(number)):
            (proxy,) = self._proxies(number, [mount])
            proxy.set(Mode.DROP, None if step.pick < 0.3 else self._direction(step))
            time.sleep(step.seconds)
            proxy.set(Mode.PASS)
        return f"mount {mount} from brick {number}"

    def _cut_one_from_all(self, step: Step) -> str:
        mount = self._mount(step)
        with self._storm(step.fault.name, mount):
            for proxy in self.volume.proxies[mount]:
                proxy.set(Mode.DROP)
            time.sleep(step.seconds)
            for proxy in self.volume.proxies[mount]:
                proxy.set(Mode.PASS)
        return f"mount {mount}"

    def _cut_mounts_differently(self, step: Step) -> str:
        """Each mount loses another copy of the same files."""
        numbers = self.volume.set_of(self._brick(step))
        pairs = [(name, numbers[at % len(numbers)]) for at, name in enumerate(self.volume.mount_names)]
        with self._storm(step.fault.name):
            for name, number in pairs:
                self.volume.proxies[name][number].set(Mode.DROP)
            time.sleep(step.seconds)
            for name, number in pairs:
                self.volume.proxies[name][number].set(Mode.PASS)
        return str(pairs)

    # ---- mounts ----

    def _kill_mount(self, step: Step) -> str:
        name = self._mount(step)
        self.volume.kill_mount(name)
        time.sleep(step.seconds)
        self.volume.mount_view(name)
        return f"mount {name}"

    def _freeze_mount(self, step: Step) -> str:
        name = self._mount(step)
        process = self.volume.views[name].mount.process
        with self.weather.storm(step.fault.name, name):
            process.freeze()
            time.sleep(step.seconds)
            process.thaw()
            wait_for(self.volume.is_connected, BACK_S, "a mount that was frozen", describe=self.volume.describe)
        return f"mount {name}"

    def _remount(self, step: Step) -> str:
        name = self._mount(step)
        self.volume.retire(name)
        self.volume.mount_view(name)
        return f"mount {name}"

    # ---- heals ----

    def _kill_heald(self, step: Step) -> str:
        self.volume.kill_heald()
        time.sleep(step.seconds)
        self.volume.heal()
        return ""

    def _heal_full(self, step: Step) -> str:
        self.volume.ask(do="heal", full=True)
        return ""

    def _kill_while_healing(self, step: Step) -> str:
        """The same brick goes again as soon as it is back, and the daemon with it."""
        number = self._brick(step)
        self.volume.wait_whole()
        with self._storm(step.fault.name, unless=not self._needs(number)):
            self.volume.kill(number)
            time.sleep(step.seconds)
            self.volume.start(number)
            time.sleep(self._chance.uniform(0, 0.6))
            self.volume.kill(number)
            if step.pick < 0.5:
                self.volume.kill_heald()
            self.volume.start(number)
            if self.volume.daemon is None:
                self.volume.heal()
        return f"brick {number}"

    # ---- the volume changes ----

    def _rebalance(self, mode: str) -> str:
        self.volume.wait_whole()
        done = self.volume.rebalance(mode)
        assert done["state"] == "completed", done
        return f"{mode}: {done['files']} moved, {done['skipped']} skipped, {done['failures']} failures"

    def _kill_rebalance(self, step: Step) -> str:
        """Once started again it goes on where it was."""
        self.volume.wait_whole()
        progress = f"killed{step.number}"
        with self.volume.rebalancing("force", progress) as process, contextlib.suppress(AssertionError):
            process.wait_exit(step.seconds)
        self.volume.wait_whole()
        done = self.volume.rebalance("force", progress)
        assert done["state"] == "completed", done
        return f"{done['files']} moved, {done['skipped']} skipped, {done['failures']} failures"

    def _rebalance_and_kill(self, step: Step) -> str:
        number = self._brick(step)
        with self._storm(step.fault.name):
            with self.volume.rebalancing("force") as process:
                time.sleep(step.seconds)
                self.volume.kill(number)
                time.sleep(step.seconds)
                self.volume.start(number)
                self.volume.wait_whole()
                status = process.wait_exit(BACK_S)
        return f"brick {number}, the rebalance ended with {status}"

    def _add_set(self, step: Step) -> str:
        if len(self.volume.volume.sets) > SETS:
            return self._remove_set(step)
        self.volume.wait_whole()
        added = self.volume.grow()
        self.volume.wait_whole()
        return f"bricks {added}; {self._rebalance('force')}"

    def _remove_set(self, step: Step) -> str:
        if len(self.volume.volume.sets) <= SETS:
            return self._add_set(step)
        self.volume.wait_whole()
        self.volume.leave()
        self.volume.wait_reloaded()
        said = []
        for _ in range(5):  # what is locked cannot be moved, as the administrator is told
            done = self.volume.rebalance("start")
            said.append(f"{done['files']} moved, {done['skipped']} skipped, {done['failures']} failures")
            if not done["failures"]:
                break
        else:
            self.volume.stay()
            return f"taken back, files are in use all the time: {said}"
        left = self.volume.files_of_last_set()
        assert not left, f"remove-brick is through without a failure and has left {left[:10]}; {said}"
        self.volume.wait_whole()
        self.volume.shrink()
        self.volume.wait_whole()
        return "; ".join(said)

    def _options(self, step: Step) -> str:
        chosen = OPTIONS[int(step.pick * len(OPTIONS))]
        self.volume.volume.options |= chosen
        self.volume.write_volfiles()
        self.volume.wait_reloaded()
        return str(chosen)

    def _layers(self, step: Step) -> str:
        """Caches come and go: another graph in every mount."""
        key, _, _ = settings.LAYERS[int(step.pick * len(settings.LAYERS))]
        now = settings.is_on(self.volume.volume.options, key)
        self.volume.volume.options[key] = "off" if now else "on"
        self.volume.write_volfiles()
        self.volume.wait_reloaded()
        return f"{key} {self.volume.volume.options[key]}"

    def _reload(self, step: Step) -> str:
        for process in self.volume.everything():
            process.signal(signal.SIGHUP)
        return "SIGHUP to all"

    # ---- disks ----

    def _full_brick(self, step: Step) -> str:
        number = self._brick(step)
        self.volume.wait_whole()
        with self._storm(step.fault.name):
            self.volume.change_brick(number, FULL)
            time.sleep(step.seconds)
            self.volume.change_brick(number, {})
        return f"brick {number}"

    def _full_volume(self, step: Step) -> str:
        with self._storm(step.fault.name):
            for number in range(len(self.volume.bricks)):
                self.volume.change_brick(number, FULL)
            time.sleep(step.seconds)
            for number in range(len(self.volume.bricks)):
                self.volume.change_brick(number, {})
        return "all bricks"


_FAULTS: dict[str, Callable[[Faults, Step], str]] = {
    "kill-brick": Faults._kill_brick,
    "freeze-brick": Faults._freeze_brick,
    "restart-brick": Faults._restart_brick,
    "cut-brick": lambda faults, step: faults._link(step, Mode.DROP, None),
    "cut-brick-one-way": lambda faults, step: faults._link(step, Mode.DROP, faults._direction(step)),
    "hold-brick": lambda faults, step: faults._link(step, Mode.HOLD, None),
    "reset": Faults._reset,
    "reset-mid-packet": Faults._reset_mid_packet,
    "split": Faults._split,
    "cut-one-mount-from-a-brick": Faults._cut_one_mount,
    "kill-mount": Faults._kill_mount,
    "freeze-mount": Faults._freeze_mount,
    "remount": Faults._remount,
    "kill-heald": Faults._kill_heald,
    "heal-full": Faults._heal_full,
    "kill-brick-while-healing": Faults._kill_while_healing,
    "fix-layout": lambda faults, step: faults._rebalance("fix-layout"),
    "rebalance": lambda faults, step: faults._rebalance("force" if step.pick < 0.5 else "start"),
    "kill-rebalance": Faults._kill_rebalance,
    "add-set": Faults._add_set,
    "remove-set": Faults._remove_set,
    "options": Faults._options,
    "layers": Faults._layers,
    "reload": Faults._reload,
    "full-brick": Faults._full_brick,
    "full-volume": Faults._full_volume,
    "kill-set": Faults._kill_set,
    "freeze-set": Faults._freeze_set,
    "kill-another-before-it-is-healed": Faults._kill_another,
    "kill-all-bricks": Faults._kill_all,
    "cut-mounts-from-different-bricks": Faults._cut_mounts_differently,
    "cut-one-mount-from-all": Faults._cut_one_from_all,
    "rebalance-and-kill-brick": Faults._rebalance_and_kill,
}
NAMES = frozenset(_FAULTS)
