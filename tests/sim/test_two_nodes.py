# SPDX-License-Identifier: Apache-2.0
"""Two complete nodes under faults, one scenario a seed.

A failure prints the line that runs its seed again and the last events of both nodes.
"""

from __future__ import annotations

from tests.lib.tools import require_sim


def test_two_nodes_keep_their_promises_under_the_faults_of_a_seed(sim_seed: int) -> None:
    require_sim()
    from tests.sim.scenario import run_seed

    run_seed(sim_seed)
