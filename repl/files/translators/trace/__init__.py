# SPDX-License-Identifier: Apache-2.0
"""debug/trace: writes down every operation with its arguments, its answer and how long it took.

To the log, and the last ones to state dumps.  Contents of files and values of attributes are never written.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from repl.files.every_fop import Around, around, define_fops
from repl.files.options import Kind, Option, Options
from repl.files.translator import Context, Step, Translator
from repl.files.values import Caller, Fd, Loc, gfid_text

log = logging.getLogger(__name__)

_LEVELS = ("debug", "info", "warning", "error", "critical")


@define_fops(around)
class Trace(Around):
    TYPE = "debug/trace"
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option("include-ops", Kind.LIST, (), "only these operations (compound is one); empty: all",
               aliases=("include",)),
        Option("exclude-ops", Kind.LIST, (), "all but these operations", aliases=("exclude",)),
        Option("history-size", Kind.INT, 1024, "operations that a state dump shows", minimum=0, maximum=65536),
        Option("log-file", Kind.BOOL, True, "write to the log.  differs: off in Gluster, where a trace shows nothing "
               "without it"),
        Option("log-history", Kind.BOOL, False, "keep the last operations for state dumps"),
        Option("force-log-level", Kind.CHOICE, "info", "the level of the log's lines", choices=_LEVELS),
    )  # fmt: skip

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._history: deque[str] = deque(maxlen=options["history-size"])

    async def around(self, fop: str, caller: Caller, args: Sequence[Any], call: Callable[[], Any]) -> Any:
        options = self.options
        included = options["include-ops"]
        if (included and fop not in included) or fop in options["exclude-ops"]:
            return await call()
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = "?"
        try:
            result = await call()
            answer = _text(result)
        except BaseException as error:
            answer = repr(error) if not isinstance(error, OSError) else f"error {error.errno}"
            raise
        finally:
            self._write(caller, fop, args, answer, (loop.time() - began) * 1e6)
        return result

    def _write(self, caller: Caller, fop: str, args: Sequence[Any], answer: str, duration_us: float) -> None:
        words = ", ".join(map(_text, args))
        line = f"{self.name}: {fop}({words}) = {answer} uid={caller.uid} pid={caller.pid} duration_us={duration_us:.0f}"
        if self.options["log-file"]:
            log.log(getattr(logging, self.options["force-log-level"].upper()), "%s", line)
        if self.options["log-history"]:
            self._history.append(line)

    def state(self) -> dict[str, object]:
        return {f"last[{index}]": line for index, line in enumerate(self._history)}


def _text(value: Any) -> str:
    """Short, and without anybody's data."""
    if isinstance(value, Loc | Fd):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return "{" + ", ".join(map(repr, value)) + "}"
    if isinstance(value, Step):
        return value.fop
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value[:16])) + "]"
    if (iatt := getattr(value, "iatt", None) or getattr(value, "after", None)) is not None:
        return f"<gfid {gfid_text(iatt.gfid)} mode {iatt.mode:o} size {iatt.size}>"
    return str(value)
