# SPDX-License-Identifier: Apache-2.0
"""Two complete nodes under faults, one scenario a seed.

A failure prints the line that runs its seed again and the last events of both nodes.
"""

from __future__ import annotations

import pytest

from tests.conftest import sim_seeds
from tests.lib.tools import require_sim


def test_two_nodes_keep_their_promises_under_the_faults_of_a_seed(sim_seed: int) -> None:
    require_sim()
    from tests.sim.scenario import run_seed

    run_seed(sim_seed)


@pytest.mark.parametrize("kind", ["ahead", "pass_on"])
@pytest.mark.parametrize("seed", sim_seeds()[::4])
def test_so_they_do_where_one_kind_of_trouble_does_not_end(seed: int, kind: str) -> None:
    require_sim()
    from tests.sim.scenario import run_seed

    run_seed(seed, kind=kind)
