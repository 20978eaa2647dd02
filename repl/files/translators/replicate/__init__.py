# SPDX-License-Identifier: Apache-2.0
"""cluster/replicate: every child has a copy of everything (spec section 5).

Inputs: two children or more, each with features/locks below it.  What it does, by module: children and inodes
(base, inodes), transactions with pending counters and dirty marks (tenure, transactions), reads with retries (reads),
changes (writes, entries), lookups over all copies (lookups), applications' and DHT's locks (locking).
Errors: ENOTCONN without quorum or when only old copies are left, EIO for a split-brain, EOPNOTSUPP without
features/locks.
"""

from __future__ import annotations

from repl.files.translators.replicate.replicate import Replicate

__all__ = ["Replicate"]
