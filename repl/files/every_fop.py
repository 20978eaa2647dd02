# SPDX-License-Identifier: Apache-2.0
"""One way to write down what a translator does with every operation alike.

Input: a translator class and a function that makes the method for an operation's name; the class gets those that it
does not define itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from repl.files.translator import FOPS, Step, Translator
from repl.files.values import Caller, End, Fd

Kind = TypeVar("Kind", bound=type[Translator])
_AROUND: set[Any] = set()  # methods that ``around`` has made


def define_fops(make: Callable[[str], Callable[..., Any]]) -> Callable[[Kind], Kind]:
    """A class decorator."""

    def define(kind: Kind) -> Kind:
        for name in FOPS:
            if name not in kind.__dict__:
                method = make(name)
                method.__name__ = name
                method.__qualname__ = f"{kind.__qualname__}.{name}"
                setattr(kind, name, method)
        return kind

    return define


class Around(Translator):
    """Does one thing around every operation: ``around`` is given its name and what to await.

    A compound stays one operation, named ``compound``, and so do ``sync_all`` and ``end_all``.  Nothing is done while
    ``is_idle``.
    """

    is_idle = False

    def _passes_on(self, fop: str) -> bool:
        """What is defined here, and not by the class itself, does nothing while it is idle."""
        return self.is_idle and getattr(type(self), fop) in _AROUND

    async def around(self, fop: str, caller: Caller, args: Sequence[Any], call: Callable[[], Any]) -> Any:
        return await call()

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        if self.is_idle:
            return await self.child.compound(caller, steps)
        result: list[Any] = await self.around("compound", caller, (steps,), lambda: self.child.compound(caller, steps))
        return result

    async def sync_all(self, caller: Caller, fds: Sequence[Fd]) -> list[OSError | None]:
        if self.is_idle:
            return await self.child.sync_all(caller, fds)
        found: list[OSError | None] = await self.around(
            "sync_all", caller, (fds,), lambda: self.child.sync_all(caller, fds)
        )
        return found

    async def end_all(
        self, caller: Caller, domain: str, key: bytes, ends: Sequence[End]
    ) -> list[bytes | OSError | None]:
        if self.is_idle:
            return await self.child.end_all(caller, domain, key, ends)
        found: list[bytes | OSError | None] = await self.around(
            "end_all", caller, (domain, key, ends), lambda: self.child.end_all(caller, domain, key, ends)
        )
        return found


def around(name: str) -> Callable[..., Any]:
    """For ``define_fops``: the method that calls ``around``."""

    async def fop(self: Around, caller: Caller, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self.subvolumes[0], name)
        if self.is_idle:
            return await method(caller, *args, **kwargs)
        return await self.around(name, caller, args, lambda: method(caller, *args, **kwargs))

    _AROUND.add(fop)
    return fop
