# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests, and where tests find what was built.

Environment: ``REPL_BUILD_DIR`` (build/dev) has ``_repl_sim``; ``REPL_SIM_SEEDS`` (20) seeds are simulated,
from ``REPL_SIM_FIRST_SEED`` (1) on; ``HYPOTHESIS_PROFILE`` is dev or ci; ``CI=true``: what is missing fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.lib.netns import NetNamespace
from tests.lib.ports import free_port
from tests.lib.process import Processes
from tests.lib.tools import BUILD_DIR, is_ci

SIM_SEEDS_DEFAULT = 20

# The simulator is imported from where it was built, under its own name.
sys.path.append(str(BUILD_DIR / "csrc"))

hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if is_ci() else "dev"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--interop", action="store_true", help="run the long tests against the kernel module as well")
    parser.addoption("--files-long", action="store_true", help="run the tests of volumes of files at full length")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "guest" in item.path.parts:
            item.add_marker(pytest.mark.guest)
    for option, marker in (("--interop", "interop"), ("--files-long", "files_long")):
        if not config.getoption(option):
            long = [item for item in items if item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=long)
            items[:] = [item for item in items if item not in long]


def sim_seeds() -> range:
    first = int(os.environ.get("REPL_SIM_FIRST_SEED", "1"))
    return range(first, first + int(os.environ.get("REPL_SIM_SEEDS", SIM_SEEDS_DEFAULT)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument ``sim_seed`` runs once for each seed."""
    if "sim_seed" in metafunc.fixturenames:
        metafunc.parametrize("sim_seed", sim_seeds())


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts programs, stops them at the end; their logs are printed when the test fails."""
    group = Processes(tmp_path)
    try:
        yield group
    finally:
        group.stop_all()
        print(group.logs())


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> int:
    """How many times as long as in `make test` a test of volumes of files is."""
    return 10 if request.config.getoption("--files-long") else 1


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def network() -> Iterator[NetNamespace]:
    """A namespace with a bridge (the host's side, 10.9.0.1) and taps for two guests."""
    with NetNamespace(taps=2) as net:
        yield net
