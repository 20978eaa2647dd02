# SPDX-License-Identifier: Apache-2.0
"""The initial sync is skipped by order while the peer's last P_STATE of the handshake is still on its way (0141)."""

from __future__ import annotations

import pytest

from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Cluster, Setup


@pytest.mark.parametrize("seed", [0, 1, 64, 67, 124])
def test_what_is_written_at_once_gets_to_the_peer(seed: int) -> None:
    require_sim()
    with Cluster(seed, Setup(wake_max_us=10, latency_max_us=20_000, net=QUICK_NET)) as pair:
        pair.connect_fresh()
        app = pair.serve(0)
        for block in range(8):
            app.write(block)
        app.stop()
        pair.check_idle_pair()
        assert not pair.events(0, text="UpToDate -> Inconsistent")
