# SPDX-License-Identifier: Apache-2.0
"""The faults of a soak, done to two real nodes.

Each takes a ``Step``, does what its name says, undoes it and returns what a reader of the log wants to know.  A fault
that would lose data by itself, as killing the Primary for good, first waits until both disks are good: that this
happens in time is a promise of its own (P10).  To sleep is here how long a
fault lasts; what has to become true is waited for.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from repl.errors import ReplError
from tests.lib.chaos_proxy import Direction, Mode
from tests.lib.cluster import ALICE, BOB, NODES, Cluster
from tests.lib.load import TaggedRegion
from tests.soak import clients
from tests.soak.plan import Step

WHOLE_S = 90.0  # with load on a busy machine; P10 itself would be 3 x (timeout + ping + connect-int), plus the resync
GONE_S = 30.0
MID_PACKET_BYTES_MAX = 1 << 20
OPERATORS = 3
ORDERS_S = 60.0
ORDERS = ("connect", "disconnect", "pause-sync", "resume-sync", "verify", "verify-abort", "suspend-io", "resume-io",
          "secondary", "status", "attach")  # fmt: skip
ORDERS_OF_A_SECONDARY = ("detach", "attach", "invalidate", "outdate")  # who is promoted alone makes a split brain
AT_LAST = ("resume-io", "resume-sync", "connect")


class Faults:
    """``primary``: the node that serves; the clients look there, None while nobody does."""

    def __init__(self, cluster: Cluster, vanishing: TaggedRegion, users: list[clients.SoakClient], seed: int) -> None:
        self.cluster = cluster
        self.serving: str | None = ALICE
        self.primary = ALICE
        self._vanishing = vanishing
        self._users = users
        self._random = random.Random(seed)
        self._faults: dict[str, Callable[[Step], str]] = {
            "cut": self._cut,
            "drop": lambda step: self._mode(step, Mode.DROP, None),
            "drop-one-way": lambda step: self._mode(step, Mode.DROP, self._direction(step)),
            "hold": lambda step: self._mode(step, Mode.HOLD, None),
            "hold-one-way": lambda step: self._mode(step, Mode.HOLD, self._direction(step)),
            "split": lambda step: self._mode(step, Mode.SPLIT, None),
            "reset": self._reset,
            "reset-mid-packet": self._reset_mid_packet,
            "kill-secondary": self._kill_secondary,
            "kill-primary-and-promote": self._kill_and_promote,
            "kill-primary-and-return": self._kill_and_return,
            "kill-both": self._kill_both,
            "freeze-secondary": lambda step: self._freeze(step, self.secondary),
            "freeze-primary": lambda step: self._freeze(step, self.primary),
            "restart-secondary": self._restart_secondary,
            "switch-roles": self._switch_roles,
            "disconnect": self._disconnect,
            "detach-secondary": lambda step: self._detach(step, self.secondary),
            "detach-primary": lambda step: self._detach(step, self.primary),
            "invalidate-secondary": self._invalidate,
            "pause-sync": self._pause_sync,
            "verify": self._verify,
            "suspend-io": self._suspend_io,
            "many-orders": self._many_orders,
            "vanish": self._vanish,
            "flush-storm": self._flush_storm,
        }

    @property
    def secondary(self) -> str:
        return BOB if self.primary == ALICE else ALICE

    def url(self) -> str | None:
        return None if self.serving is None else self.cluster.url(self.serving)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._faults)

    def provoke(self, step: Step) -> str:
        return self._faults[step.fault.name](step)

    # ---- states ----

    def is_whole(self) -> bool:
        """Both disks are good and hold the same, but for what is on its way."""
        status = self.cluster.status(self.primary)
        volume = status["volumes"][0]
        return status["connection"] == "Connected" and volume["disk"] == volume["peer_disk"] == "UpToDate"

    def wait_whole(self) -> None:
        self.cluster.wait("both UpToDate again", self.is_whole, WHOLE_S)

    def _states(self) -> str:
        return f"{self.primary}: {self.cluster.states(self.primary)}"

    def _wait_alone(self, name: str) -> None:
        self.cluster.wait(f"{name} alone", lambda: self.cluster.status(name)["connection"] != "Connected", GONE_S)

    # ---- link ----

    def _cut(self, step: Step) -> str:
        for proxy in self.cluster.proxies.values():
            proxy.cut()
        time.sleep(step.seconds)
        for proxy in self.cluster.proxies.values():
            proxy.mend()
        return self._states()

    def _direction(self, step: Step) -> Direction:
        return Direction.THERE if step.pick < 0.5 else Direction.BACK

    def _mode(self, step: Step, mode: Mode, direction: Direction | None) -> str:
        for proxy in self.cluster.proxies.values():
            proxy.set(mode, direction)
        time.sleep(step.seconds)
        states = self._states()
        for proxy in self.cluster.proxies.values():
            proxy.set(Mode.PASS)
        return states

    def _reset(self, step: Step) -> str:
        for proxy in self.cluster.proxies.values():
            proxy.reset()
        return self._states()

    def _reset_mid_packet(self, step: Step) -> str:
        for proxy in self.cluster.proxies.values():
            proxy.reset_within(1 + int(step.pick * MID_PACKET_BYTES_MAX))
        time.sleep(step.seconds)
        return self._states()

    # ---- nodes ----

    def _start(self, name: str) -> None:
        self.cluster.start(name)

    def _kill_secondary(self, step: Step) -> str:
        name = self.secondary
        self.cluster.kill(name)
        time.sleep(step.seconds)
        self._start(name)
        return f"{name} was away"

    def _kill_and_promote(self, step: Step) -> str:
        self.wait_whole()
        dead = self.primary
        self.serving = None
        self.cluster.kill(dead)
        self.primary = self.secondary
        self._wait_alone(self.primary)
        self.cluster.call(self.primary, "primary")
        self.serving = self.primary
        time.sleep(step.seconds)
        self._start(dead)
        return f"{self.primary} took over from {dead}"

    def _kill_and_return(self, step: Step) -> str:
        self.serving = None
        self.cluster.kill(self.primary)
        time.sleep(step.seconds)
        self._start(self.primary)
        self.cluster.wait("a good disk", lambda: self._may_promote(self.primary), WHOLE_S)
        self.cluster.call(self.primary, "primary")
        self.serving = self.primary
        return f"{self.primary} was away"

    def _may_promote(self, name: str) -> bool:
        """Its own disk is good.  Who comes back may be a target first: its peer was told of more than it."""
        return bool(self.cluster.volume(name)["disk"] == "UpToDate")

    def _kill_both(self, step: Step) -> str:
        self.serving = None
        for name in (self.primary, self.secondary) if step.pick < 0.5 else (self.secondary, self.primary):
            self.cluster.kill(name)
        time.sleep(step.seconds)
        self.cluster.start()
        self.wait_whole()
        if step.pick < 0.25:
            self.primary = self.secondary
        self.cluster.call(self.primary, "primary")
        self.serving = self.primary
        return f"{self.primary} serves"

    def _freeze(self, step: Step, name: str) -> str:
        process = self.cluster.nodes[name].process
        assert process is not None
        process.freeze()
        time.sleep(step.seconds)
        process.thaw()
        return f"{name} stood for {step.seconds:.1f} s"

    def _restart_secondary(self, step: Step) -> str:
        name = self.secondary
        status = self.cluster.stop(name)
        assert status == 0, f"repld of {name} ended with {status}"
        time.sleep(step.seconds)
        self._start(name)
        return f"{name} was restarted"

    # ---- operator ----

    def _switch_roles(self, step: Step) -> str:
        self.wait_whole()
        self.serving = None
        for client in self._users:
            client.pause(WHOLE_S)
        before = self.primary
        self.cluster.wait(f"{before} is not used", lambda: not self.cluster.volume(before)["open"], GONE_S)
        self.wait_whole()
        self.cluster.call(before, "secondary")
        self.primary = self.secondary
        self.cluster.call(self.primary, "primary")
        self.serving = self.primary
        for client in self._users:
            client.resume()
        return f"{before} handed over to {self.primary}"

    def _disconnect(self, step: Step) -> str:
        name = self.primary if step.pick < 0.5 else self.secondary
        self.wait_whole()
        self.cluster.call(name, "disconnect")
        time.sleep(step.seconds)
        self.cluster.call(name, "connect")
        return f"{name} was StandAlone"

    def _detach(self, step: Step, name: str) -> str:
        self.wait_whole()
        self.cluster.call(name, "detach")
        time.sleep(step.seconds)
        states = self._states()
        self.cluster.call(name, "attach")
        return states

    def _invalidate(self, step: Step) -> str:
        self.wait_whole()
        self.cluster.call(self.secondary, "invalidate")
        return f"{self.secondary} gets everything anew"

    def _pause_sync(self, step: Step) -> str:
        name = self.primary if step.pick < 0.5 else self.secondary
        self.cluster.call(name, "pause-sync")
        time.sleep(step.seconds)
        states = self._states()
        self.cluster.call(name, "resume-sync")
        return states

    def _verify(self, step: Step) -> str:
        self.wait_whole()
        return f"{self.verify()} blocks, no difference"

    def verify(self) -> int:
        """An online verify of everything, which must come to its end and find nothing; how many blocks it read."""
        self.cluster.call(self.primary, "verify", start_sector=0)
        found = self.cluster.call(self.primary, "wait-verify")
        assert found["state"] == "complete" and found["differing_blocks"] == 0, f"online verify: {found}"
        return int(found["blocks"])

    def _suspend_io(self, step: Step) -> str:
        self.cluster.call(self.primary, "suspend-io")
        time.sleep(step.seconds)
        self.cluster.call(self.primary, "resume-io")
        return f"{self.primary} was suspended"

    def _many_orders(self, step: Step) -> str:
        """Several operators at once, each with an order that the state may or may not allow."""
        self.wait_whole()
        until = time.monotonic() + step.seconds
        answers: list[Counter[str]] = [Counter() for _ in range(OPERATORS)]
        chances = [random.Random(f"{step.pick} {number}") for number in range(OPERATORS)]
        threads = [
            threading.Thread(target=self._operate, args=(until, *one)) for one in zip(chances, answers, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(ORDERS_S)
            assert not thread.is_alive(), f"an order is not answered; {self._states()}"
        for name, verb in ((self.secondary, "attach"), *((n, v) for n in NODES for v in AT_LAST)):
            with contextlib.suppress(ReplError):  # most of it is so already
                self.cluster.call(name, verb)
        done = sum(answers, Counter())
        return f"{done['done']} orders carried out, {done['refused']} refused"

    def _operate(self, until: float, chance: random.Random, answers: Counter[str]) -> None:
        while time.monotonic() < until:
            name = chance.choice(NODES)
            verb = chance.choice(ORDERS if name == self.primary else (*ORDERS, *ORDERS_OF_A_SECONDARY))
            try:
                self.cluster.call(name, verb)
                answers["done"] += 1
            except ReplError:
                answers["refused"] += 1

    # ---- clients ----

    def _vanish(self, step: Step) -> str:
        count = clients.vanish(self.cluster.url(self.primary), self._vanishing, self._random, step.seconds)
        return f"{count} clients vanished"

    def _flush_storm(self, step: Step) -> str:
        return f"{clients.flush_storm(self.cluster.url(self.primary), step.seconds)} flushes"
