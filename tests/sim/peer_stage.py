# SPDX-License-Identifier: Apache-2.0
"""A node that has been in sync and whose peer the test plays from now on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.sim.app import App
from tests.sim.cluster import QUICK_NET, Cluster, Setup
from tests.sim.scripted_peer import ScriptedPeer

NET = replace(QUICK_NET, ko_count=3, timeout_ms=600)
PRIMARY, SECONDARY = 1, 2  # roles on the wire


class PeerStage:
    """A node with good data and the peer."""

    def __init__(self, *, serves: bool, secret: str = "", setup: Setup | None = None) -> None:
        net = replace(NET, cram_hmac_alg="sha1", shared_secret=secret) if secret else NET
        self.cluster = Cluster(11, setup or Setup(net=net))
        cluster = self.cluster
        cluster.connect_fresh()
        cluster.ask(1, "down")
        cluster.until(lambda: not cluster.shells[1].is_running, 5000, "the end of the node that the peer plays")
        cluster.until(lambda: not cluster.node(0).is_connected, 5000, "the end of the connection")
        self.peer = ScriptedPeer(cluster)
        self.app: App | None = cluster.serve(0) if serves else None

    def node_goes_on(self) -> None:
        """It serves its application, which finds what it wrote."""
        cluster = self.cluster
        if self.app is None:
            cluster.until(lambda: not cluster.node(0).is_connected, 10_000, "the end of the connection")
            cluster.ask(0, "primary")
            self.app = cluster.serve(0)
        for block in (3, 4):
            assert self.app.do("write", block * 4096, ms=60_000) == 0
        assert self.app.do("read", 3 * 4096) == 0 and self.app.do("flush") == 0
        cluster.check_audit(0)


def made_stages() -> Iterator[list[PeerStage]]:
    """For a fixture: those that a test puts into the list are closed at its end."""
    made: list[PeerStage] = []
    yield made
    for stage in made:
        stage.cluster.close()
