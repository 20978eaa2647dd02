# SPDX-License-Identifier: Apache-2.0
"""Random scenarios of two Primaries (tests/sim/primaries.py); many of them: tools/seeds.py --scenario primaries."""

from __future__ import annotations

import pytest

from tests.lib.tools import require_sim


@pytest.mark.parametrize("frozen", [False, True], ids=["any", "frozen"])
def test_two_primaries_whatever_happens(sim_seed: int, frozen: bool) -> None:
    require_sim()
    from tests.sim.primaries import run_primaries

    run_primaries(sim_seed, frozen=frozen)


@pytest.mark.parametrize(("seed", "frozen"), [(35, False), (222, False), (20552, True)])
def test_seeds_that_have_found_something(seed: int, frozen: bool) -> None:
    """A ring of waiting writes; a power loss of the only good copy; a write that stepped back and was started twice."""
    require_sim()
    from tests.sim.primaries import run_primaries

    run_primaries(seed, frozen=frozen)
