# SPDX-License-Identifier: Apache-2.0
"""The same seed always takes the same course."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.lib.tools import ROOT, require_sim

SEEDS = range(1, 11)
PROGRAM = """
import sys
from tests.sim.scenario import Scenario
for seed in map(int, sys.argv[1:]):
    print(Scenario(seed).run())
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_run_twice_has_the_same_trace(seed: int) -> None:
    require_sim()
    from tests.sim.scenario import Scenario

    assert Scenario(seed).run() == Scenario(seed).run()


def test_another_process_with_other_hashes_and_addresses_sees_the_same_traces() -> None:
    require_sim()

    def run(hash_seed: str) -> str:
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT), "MALLOC_PERTURB_": hash_seed}
        argv = [sys.executable, "-c", PROGRAM, *map(str, SEEDS)]
        return subprocess.run(argv, env=env, cwd=ROOT, check=True, capture_output=True, text=True, timeout=600).stdout

    first = run("1")
    assert len(first.split()) == len(SEEDS)
    assert first == run("77")


def test_different_seeds_take_different_courses() -> None:
    require_sim()
    from tests.sim.scenario import Scenario

    assert len({Scenario(seed).run() for seed in SEEDS}) == len(SEEDS)
