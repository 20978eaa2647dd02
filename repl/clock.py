# SPDX-License-Identifier: Apache-2.0
"""Where processes take the time of day from; everything else is given it."""

from __future__ import annotations

import time


def wall_ns() -> int:
    """Nanoseconds since 1970."""
    return time.time_ns()


def monotonic_ns() -> int:
    """Nanoseconds since some beginning, never set back."""
    return time.monotonic_ns()
