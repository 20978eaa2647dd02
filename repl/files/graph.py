# SPDX-License-Identifier: Apache-2.0
"""From a volfile to running translators, and back.

Input: ``Volfile``; output: ``Graph`` with its ``top``.  Children start before their parents and stop after them.
Errors: ``ConfigError`` naming file, line and volume: unknown type, wrong number of subvolumes, a value that cannot be.
"""

from __future__ import annotations

import asyncio
import difflib
import logging

from repl.errors import ConfigError
from repl.files.options import Options, parse_options
from repl.files.translator import Context, Translator
from repl.files.translators import find_class, known_types
from repl.files.volfile import Volfile, Volume

log = logging.getLogger(__name__)


class Graph:
    """The translators of one volfile, by name."""

    def __init__(self, volfile: Volfile, context: Context, top: str = "") -> None:
        self.volfile = volfile
        self.context = context
        self.translators: dict[str, Translator] = {}
        for volume in volfile.volumes:
            self.translators[volume.name] = self._make(volume)
        name = top or volfile.top.name
        if name not in self.translators:
            raise ConfigError(f"volume '{name}' is not described.", file=volfile.path)
        self.top = self.translators[name]
        self._started: list[Translator] = []

    def _make(self, volume: Volume) -> Translator:
        kind = _class_of(volume, self.volfile.path)
        fewest, most = kind.SUBVOLUMES
        if not fewest <= len(volume.subvolumes) <= most:
            wanted = f"{fewest}" if fewest == most else f"at least {fewest}"
            raise ConfigError(
                f"volume '{volume.name}': {volume.type} takes {wanted} subvolumes, {len(volume.subvolumes)} are given.",
                file=self.volfile.path, line=volume.line)  # fmt: skip
        options = self._options(volume, kind)
        children = [self.translators[name] for name in volume.subvolumes]
        try:
            return kind(volume.name, options, children, self.context)
        except ConfigError as error:
            if error.line:
                raise
            raise ConfigError(f"volume '{volume.name}': {error.text}", file=self.volfile.path, line=volume.line,
                              advice=error.advice) from error  # fmt: skip

    def _options(self, volume: Volume, kind: type[Translator]) -> Options:
        try:
            return parse_options(kind.OPTIONS, volume.options, where=volume.name, lines=volume.lines)
        except ConfigError as error:
            raise ConfigError(error.text, file=self.volfile.path, line=error.line, advice=error.advice) from None

    async def start(self) -> None:
        """Start all; if one cannot, those that have started are stopped again."""
        self.context.bind(asyncio.get_running_loop())
        try:
            for translator in self.translators.values():
                await translator.start()
                self._started.append(translator)
            self._shorten()
        except BaseException:
            await self.stop()
            raise

    def _shorten(self) -> None:
        for translator in (*self.translators.values(), *self.top.parents):
            translator.shorten()

    async def stop(self) -> None:
        while self._started:
            await self._started.pop().stop()
        tasks = list(self.context.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def finish(self) -> None:
        """Before another graph takes over."""
        for translator in reversed(self._started):
            await translator.finish()

    def same_shape(self, other: Volfile) -> bool:
        """Only options differ: no new graph is needed."""
        return [(v.name, v.type, v.subvolumes) for v in self.volfile.volumes] == [
            (v.name, v.type, v.subvolumes) for v in other.volumes
        ]

    def reconfigure(self, volfile: Volfile) -> None:
        """Take over the options of a volfile of the same shape; nothing changes if one of them is wrong."""
        before, self.volfile = self.volfile, volfile
        try:
            parsed = [(self.translators[v.name], self._options(v, _class_of(v, volfile.path))) for v in volfile.volumes]
        except ConfigError:
            self.volfile = before
            raise
        for translator, options in parsed:
            translator.reconfigure(options)
        self._shorten()


def _class_of(volume: Volume, path: str) -> type[Translator]:
    found = find_class(volume.type)
    if found is None:
        close = difflib.get_close_matches(volume.type, known_types(), 1)
        raise ConfigError(f"volume '{volume.name}': there is no type '{volume.type}'.", file=path, line=volume.line,
                          advice=f"Did you mean {close[0]}?" if close else "")  # fmt: skip
    return found
