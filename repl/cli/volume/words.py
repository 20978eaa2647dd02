# SPDX-License-Identifier: Apache-2.0
"""The words of a command, taken one after another; and the decorator of all commands of ``replctl volume``.

Gluster's command line has words, not options: ``replica 3 arbiter 1 HOST:/DIR ... force``.  Errors: ``UsageError`` that
shows the usage.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from repl.cli.session import Session
from repl.cli.volume.context import Volumes
from repl.errors import ReplError, UsageError
from repl.files.volume.model import Place


class Declined(UsageError):
    """Asked whether to go on, somebody said no."""

    code = "declined"


class Words:
    def __init__(self, words: Sequence[str], usage: str) -> None:
        self._words = list(words)
        self.usage = usage

    def wrong(self, text: str) -> UsageError:
        return UsageError(text, advice=f"\nUsage: {self.usage}")

    def next(self, what: str) -> str:
        if not self._words:
            raise self.wrong(f"{what} is missing.")
        return self._words.pop(0)

    def peek(self) -> str:
        return self._words[0] if self._words else ""

    def take(self, *choices: str) -> str:
        """The next word if it is one of these, else ""."""
        return self._words.pop(0) if self._words and self._words[0] in choices else ""

    def take_last(self, *choices: str) -> str:
        return self._words.pop() if self._words and self._words[-1] in choices else ""

    def number(self, what: str) -> int:
        text = self.next(what)
        if not text.isdecimal():
            raise self.wrong(f"{what}: '{text}' is no number.")
        return int(text)

    def positive(self, what: str) -> int:
        text = self.next(what)
        if not text.isdecimal() or not int(text):
            raise self.wrong(f"{what} should be an integer greater than zero.")
        return int(text)

    def places(self) -> list[Place]:
        """All that is left."""
        found = [self._place(word) for word in self._words]
        self._words = []
        return found

    def place(self) -> Place:
        return self._place(self.next("HOST:/DIRECTORY"))

    def _place(self, word: str) -> Place:
        host, colon, path = word.partition(":/")
        if not colon or not host or any(c in host for c in "/ \\\"'`#"):
            raise self.wrong(f"Wrong brick type: {word}, use <HOSTNAME>:<export-dir-abs-path>.")
        path = "/" + "/".join(part for part in path.split("/") if part)
        if path == "/" or "/.." in path + "/" and ".." in path.split("/"):
            raise self.wrong(f"{word}: a brick is a directory of its own.")
        return Place(host.strip("[]"), path)

    def end(self) -> None:
        if self._words:
            raise self.wrong(f"'{self._words[0]}' does not fit here.")


def command(name: str, usage: str, *, has_session: bool = False) -> Callable[[Callable[..., Any]], click.Command]:
    """A command that gets the volumes of this host and its words."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        line = f"replctl volume {name} {usage}".rstrip()

        @functools.wraps(function)
        @click.pass_obj
        def run(session: Session, /, words: tuple[str, ...], is_json: bool, mode: str, **more: Any) -> Any:
            session.is_json = session.is_json or is_json
            session.is_script = session.is_script or mode == "script"
            try:
                return function(Volumes(session), Words(words, line), **more)
            except ReplError as error:
                head = f"volume {name}: "
                if not error.message.startswith(("volume ", head)):
                    error.message = f"{head}{error.message}"
                raise

        made: Callable[..., Any] = run
        made = click.argument("words", nargs=-1, metavar=usage or "")(made)
        made = click.option("--json", "is_json", is_flag=True, help="Print one JSON value.")(made)
        made = click.option("--mode", type=click.Choice(("script", "interactive")), default="interactive",
                            help="script: never ask.")(made)  # fmt: skip
        return click.command(name)(made)

    return decorate


def confirm(volumes: Volumes, question: str) -> None:
    """Ask at a terminal, as Gluster does; scripts are not asked."""
    if volumes.session.is_script or volumes.session.is_json or not sys.stdin.isatty():
        return
    said = str(click.prompt(f"{question} (y/n)", prompt_suffix=" ", default="n", show_default=False))
    if said.lower() not in ("y", "yes"):
        raise Declined("nothing was changed.")
