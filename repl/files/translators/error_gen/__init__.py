# SPDX-License-Identifier: Apache-2.0
"""debug/error-gen: operations fail at random before they reach the child."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from repl.errors import ConfigError
from repl.files.every_fop import Around, around, define_fops
from repl.files.options import Kind, Option, Options
from repl.files.translator import Context, Translator
from repl.files.values import Caller, End, Fd, FopError

# What a disk or a file system may well answer.
PLAUSIBLE = (errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.ESTALE, errno.EACCES, errno.ENOTCONN)
RANDOM_EVERY_MAX = 64


@define_fops(around)
class ErrorGen(Around):
    TYPE = "debug/error-gen"
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option("failure", Kind.PERCENT, 10.0, "share of operations that fail"),
        Option("error-no", Kind.STRING, "", "the error by its name (ENOSPC); empty: one of several at random"),
        Option("enable", Kind.LIST, (), "operations that may fail; empty: all"),
        Option("random-failure", Kind.BOOL, False, "every so many operations one fails, the number changing at random, "
               "instead of a share"),
    )  # fmt: skip

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self.failed = 0
        self._until_next = 0
        self._apply(options)

    def _apply(self, options: Options) -> None:
        word = options["error-no"]
        number = getattr(errno, word.upper(), None) if word else 0
        if number is None:
            raise ConfigError(f"error-no: there is no error '{word}'.", advice="A name such as EIO is expected.")
        self._number: int = number
        self._enabled = frozenset(options["enable"])

    def reconfigure(self, options: Options) -> None:
        self._apply(options)
        super().reconfigure(options)

    async def around(self, fop: str, caller: Caller, args: Sequence[Any], call: Callable[[], Any]) -> Any:
        if (not self._enabled or fop in self._enabled) and self._is_hit():
            self.failed += 1
            number = self._number or self.context.random.choice(PLAUSIBLE)
            raise FopError(number, f"{self.name}: {fop} fails by order")
        return await call()

    def _is_hit(self) -> bool:
        if not self.options["random-failure"]:
            return bool(self.context.random.random() * 100 < self.options["failure"])
        self._until_next -= 1
        if self._until_next >= 0:
            return False
        self._until_next = self.context.random.randrange(1, RANDOM_EVERY_MAX)
        return True

    async def compound(self, caller: Caller, steps: Sequence[Any]) -> list[Any]:
        """Step by step, so that each of them may fail."""
        return await Translator.compound(self, caller, steps)

    async def sync_all(self, caller: Caller, fds: Sequence[Fd]) -> list[OSError | None]:
        return await Translator.sync_all(self, caller, fds)

    async def end_all(
        self, caller: Caller, domain: str, key: bytes, ends: Sequence[End]
    ) -> list[bytes | OSError | None]:
        return await Translator.end_all(self, caller, domain, key, ends)

    def state(self) -> dict[str, object]:
        return {"failed": self.failed}
