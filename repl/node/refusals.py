# SPDX-License-Identifier: Apache-2.0
"""From DRBD's state codes to the error that an operator sees: who refused, why, what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repl.drbd.states import state_code_text
from repl.errors import StateRefused

if TYPE_CHECKING:
    from repl.node.node import Node


def refusal(node: Node, what: str, code: int) -> StateRefused:
    """The peer answered a state change request with ``code`` (below 1)."""
    name, peer = node.settings.resource, node.settings.peer
    advice = {
        -1: f'{peer} is Primary: "replctl secondary {name}" there first.',
        -2: f"{peer} would lose its only good data; --force cuts it off all the same.",
        -7: "Outdate the peer first (fencing).",
        -8: "Wait until the running resync has ended (replctl wait-sync).",
        -18: "Try again in a moment.",
        -19: "Both nodes changed state at once; try again.",
    }.get(code, "")
    return StateRefused(f"{name}: {what} was refused by {peer}: {state_code_text(code)}", number=code, advice=advice)
