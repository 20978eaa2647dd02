# SPDX-License-Identifier: Apache-2.0
"""A mount inside the test process: translators of the test's own, served by a thread with its own loop.

Only for plain calls from the test's thread: a page fault on a mapped file of such a mount would wait for the very
process that waits.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from repl.files.mount import device
from repl.files.mount.filesystem import Filesystem, MountOptions
from repl.files.translator import Context, Translator


class LocalMount:
    """``with LocalMount(path, make) as mount``; ``make`` builds the top translator inside the loop."""

    def __init__(
        self, path: Path, make: Callable[[Context], Translator], options: MountOptions | None = None, client: str = "a"
    ) -> None:
        self.path = path
        self.top: Translator
        self.filesystem: Filesystem
        self._make = make
        self._options = options or MountOptions()
        self._context = Context(process=client, wall_ns=time.time_ns)
        self._loop = asyncio.new_event_loop()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> LocalMount:
        self.path.mkdir(exist_ok=True)
        self._thread.start()
        self._ready.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        device.unmount(str(self.path), is_lazy=True)
        self._thread.join(20)

    def call(self, work: Awaitable[Any]) -> Any:
        """Run a coroutine in the mount's loop."""

        async def main() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(main(), self._loop).result(20)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        try:
            self.top = self._make(self._context)
            self.filesystem = Filesystem(self.top, self._context, self._options)
            path = str(self.path)
            fd = device.mount(path, "test", ["allow_other", "default_permissions"])
            connection = self.filesystem.attach(fd)
            self._ready.set_result(None)
        except BaseException as error:
            self._ready.set_exception(error)
            raise
        await connection.closed.wait()
        await self.filesystem.detach()
        os.close(fd)
