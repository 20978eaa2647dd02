# SPDX-License-Identifier: Apache-2.0
"""The options of features/locks, with Gluster's names and defaults."""

from __future__ import annotations

from repl.files.options import Kind, Option

OPTIONS = (
    Option("mandatory-locking", Kind.CHOICE, "off",
           "Byte-range locks bind even those that do not ask: file (those with set-group-id and without group "
           "execute), forced (all files), optimal (as off), off.",
           choices=("off", "file", "forced", "optimal")),
    Option("enforce-mandatory-lock", Kind.BOOL, False, "As mandatory-locking forced, for all files of the brick."),
    Option("notify-contention", Kind.BOOL, True, "Ask the holder of an internal lock to let go when somebody waits."),
    Option("notify-contention-delay", Kind.TIME, 5.0, "Least seconds between two such requests for one lock.",
           minimum=0),
    Option("revocation-secs", Kind.TIME, 0.0,
           "An internal lock that is in somebody's way for so long is taken away; 0: never.", minimum=0),
    Option("revocation-clear-all", Kind.BOOL, False, "A revocation also clears everybody else who waits (EAGAIN)."),
    Option("revocation-max-blocked", Kind.INT, 0,
           "When more than so many wait for an internal lock it is taken away; 0: never.", minimum=0),
    Option("trace", Kind.BOOL, False, "Log every request for a lock."),
    Option("monkey-unlocking", Kind.BOOL, False, "Lose every second release of an internal lock (for tests)."),
)  # fmt: skip
