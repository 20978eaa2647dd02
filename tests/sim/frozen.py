# SPDX-License-Identifier: Apache-2.0
"""Nothing is answered while a node's application I/O is suspended, whatever the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tests.sim.world import SimFailure

if TYPE_CHECKING:
    from tests.sim.app import App
    from tests.sim.cluster import Cluster


class FrozenWatch:
    """Of one cluster and those applications that there are."""

    def __init__(self, cluster: Cluster, apps: Callable[[], Sequence[App]]) -> None:
        self._c = cluster
        self._apps = apps
        self._hears_ms = 20 + 4 * cluster.setup.wake_max_us / 1000  # the engine, and what is on its way to the client
        self._since_ms: float | None = None
        self._answered: dict[int, int] = {}
        self.checks = 0
        cluster.observers.append(self.look)

    def look(self, index: int) -> None:
        """After each event of a node."""
        apps = [app for app in self._apps() if app.is_open and not app.is_closed and app.node == index]
        node = self._c.shells[index].node
        if not apps:
            return
        if node is None or not all(v.state.suspended for v in node.volumes.values()):
            self._since_ms, self._answered = None, {}
        elif self._since_ms is None:
            self._since_ms = self._c.now_ms
        elif self._c.now_ms > self._since_ms + self._hears_ms:
            self._check(index, apps)

    def _check(self, index: int, apps: Sequence[App]) -> None:
        for app in apps:
            stats = app.stats
            now = int(stats.completed + stats.failed)
            self.checks += 1
            if self._answered.setdefault(app.number, now) != now:
                raise SimFailure(f"node {index} answers a client while its I/O is suspended ({self._c.describe()})")
