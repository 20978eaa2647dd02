# SPDX-License-Identifier: Apache-2.0
"""Why a connection is given up: the exceptions that end one, and the reason codes that outlive it.

A reason code is stable (programs may compare it); text and next step are for people.  ``replctl why`` shows all three.
"""

from __future__ import annotations

from repl.errors import ReplError


class Drop(ReplError):
    """The connection is given up.  ``reason`` is a stable code."""

    def __init__(self, message: str, *, reason: str = "refused", advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.reason = reason


class FinalDrop(Drop):
    """The nodes do not fit together; trying again would not help: StandAlone."""


class RetryDrop(Drop):
    """This attempt failed; another one may not.  With a ``reason`` other than "" it is shown meanwhile."""

    def __init__(self, message: str, *, reason: str = "", advice: str = "") -> None:
        super().__init__(message, reason=reason, advice=advice)
