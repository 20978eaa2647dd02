# SPDX-License-Identifier: Apache-2.0
"""``replctl why``: what the state of a resource means, what happened, and the next step."""

from __future__ import annotations

from typing import Any

from repl.cli import output
from repl.cli.grouping import command
from repl.cli.session import Session, Target
from repl.errors import ReplError


@command("why")
def why(session: Session, names: tuple[str, ...]) -> None:
    """What is the matter, and what to do next."""

    def work(target: Target) -> list[dict[str, Any]]:
        if session.status(target) is None:
            step = f'"replctl up {target.resource}"'
            found = [{"code": "down", "text": f"{target.resource} is not up.", "next": step, "volume": -1}]
        else:
            try:
                found = list(session.call(target, "why")["findings"])
            except ReplError as error:
                raise ReplError(f"{target}: {error.message}", advice=error.advice) from None
        if not session.is_json:
            for one in found:
                output.print_line(f"{target.resource}: {one['text']} [{one['code']}]")
                if one["next"]:
                    output.print_line(f"    next: {one['next']}")
        return found

    session.each(session.targets(names), work)


COMMANDS = (why,)
