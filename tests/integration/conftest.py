# SPDX-License-Identifier: Apache-2.0
"""Clusters for tests of real processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.lib.cluster import Cluster
from tests.lib.tools import require_engine

MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make_cluster(request: pytest.FixtureRequest) -> Iterator[MakeCluster]:
    """Makes clusters that end with the test; their logs are judged then."""
    require_engine()
    with ExitStack() as stack:

        def make(**options: Any) -> Cluster:
            return stack.enter_context(Cluster(**options))

        yield make
