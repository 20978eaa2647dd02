# SPDX-License-Identifier: Apache-2.0
"""debug/delay-gen: operations take longer at random."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from repl.files.every_fop import Around, around, define_fops
from repl.files.options import Kind, Option
from repl.files.values import Caller


@define_fops(around)
class DelayGen(Around):
    TYPE = "debug/delay-gen"
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option("delay-percentage", Kind.PERCENT, 10.0, "share of operations that are delayed"),
        Option("delay-duration", Kind.INT, 100_000, "microseconds", minimum=0),
        Option("enable", Kind.LIST, (), "operations that may be delayed (a compound is one); empty: all"),
    )
    delayed = 0

    async def around(self, fop: str, caller: Caller, args: Sequence[Any], call: Callable[[], Any]) -> Any:
        enabled = self.options["enable"]
        if not enabled or fop in enabled:
            if self.context.random.random() * 100 < self.options["delay-percentage"]:
                self.delayed += 1
                await asyncio.sleep(self.options["delay-duration"] / 1e6)
        return await call()

    def state(self) -> dict[str, object]:
        return {"delayed": self.delayed}
