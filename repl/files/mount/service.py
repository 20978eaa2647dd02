# SPDX-License-Identifier: Apache-2.0
"""A mount at work: graph, kernel, signals, and other graphs when the volfile changes.

Inputs: a volfile's path, the directory, options.  ``run`` returns when the file system is unmounted or a signal ends
it.
Errors: ``ReplError`` until it is mounted; a changed volfile that is wrong is logged, and the graph stays as it is.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import signal
import socket
import time
from collections.abc import Callable

from repl.errors import ReplError
from repl.files import process, volfile
from repl.files.graph import Graph
from repl.files.mount import device
from repl.files.mount.filesystem import Filesystem
from repl.files.mount.options import ParsedOptions
from repl.files.mount.reload import switch_graph
from repl.files.translator import Context
from repl.files.values import ROOT, Caller
from repl.limits import MOUNT_TRANSFER_BYTES_MAX

log = logging.getLogger(__name__)

RETRY_S = 0.1


class MountService:
    def __init__(
        self, volfile_path: str, path: str, options: ParsedOptions, guardian: device.Guardian, source: str = ""
    ) -> None:
        """``source``: what the kernel shows as what is mounted, if not the volfile."""
        self._volfile_path = os.path.abspath(volfile_path)
        self._source = source or self._volfile_path
        self._path = path
        self._options = options
        self._guardian = guardian
        self._random = random.Random()
        self._client = f"{socket.gethostname()}-{os.getpid()}-{self._random.randbytes(6).hex()}"
        self._reloading = asyncio.Lock()
        self._ending = asyncio.Event()
        self._is_over = False  # unmounted: nobody needs another graph
        self._graph: Graph
        self._filesystem: Filesystem
        self._tasks: set[asyncio.Task[None]] = set()

    def _new_graph(self) -> Graph:
        found = volfile.load(self._volfile_path)
        context = Context(host=socket.gethostname(), process=self._client, random=self._random, wall_ns=time.time_ns)
        return Graph(found, context, self._options.volume_name)

    async def run(self, ready: Callable[[], None]) -> None:
        """``ready`` is called once it is mounted."""
        self._graph = self._new_graph()
        await self._graph.start()
        try:
            await self._wait_for_root(self._graph)
            await self._serve(ready)
        finally:
            await self._graph.stop()

    async def _wait_for_root(self, graph: Graph) -> None:
        """The volume must answer before anybody sees it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._options.mount_timeout
        while True:
            try:
                await graph.top.lookup(Caller(client=self._client), ROOT)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTCONN, errno.EAGAIN) or loop.time() >= deadline or self._is_over:
                    advice = "Are the bricks running, and is nothing between?" if error.errno == errno.ENOTCONN else ""
                    raise ReplError(
                        f"cannot mount: the volume's root cannot be read: {error}.", advice=advice
                    ) from None
            await asyncio.sleep(RETRY_S)

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._filesystem = Filesystem(self._graph.top, self._graph.context, self._options.mount)
        fd = device.mount(self._path, self._source, self._options.kernel)
        self._guardian.watch(self._path)
        device.set_read_ahead(self._path, MOUNT_TRANSFER_BYTES_MAX)
        connection = self._filesystem.attach(fd)
        watch = process.VolfileWatch(self._volfile_path, self._reload_soon)
        self._handle_signals()
        log.info("mounted %s on %s", self._volfile_path, self._path)
        ready()
        try:
            ending = asyncio.ensure_future(self._ending.wait())
            await asyncio.wait([ending, asyncio.ensure_future(connection.closed.wait())],
                               return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
            connection.raise_failure()
            if not connection.closed.is_set():
                await self._unmount()
        finally:
            watch.stop()
            self._is_over = True
            async with self._reloading:
                await self._filesystem.detach()
            os.close(fd)
            log.info("unmounted %s", self._path)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        loop.add_signal_handler(signal.SIGUSR1, self._dump_state)

    async def _unmount(self) -> None:
        """The kernel writes what it holds and says goodbye; if somebody uses it still, it goes when they do."""
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(None, lambda: device.unmount(self._path)):
            log.warning("%s is in use: it is unmounted lazily", self._path)
            await loop.run_in_executor(None, lambda: device.unmount(self._path, is_lazy=True))

    def _dump_state(self) -> None:
        try:
            process.write_state(self._graph, "repl-mount", {"mount": self._filesystem.state()}, time.time_ns())
        except OSError as error:
            log.error("cannot dump the state: %s", error)

    # ---- another volfile ----

    def _reload_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        async with self._reloading:
            if self._is_over:
                return
            try:
                found = volfile.load(self._volfile_path)
                if self._graph.same_shape(found):
                    self._graph.reconfigure(found)
                    log.info("the volfile has changed: new options are in force")
                    return
                graph = self._new_graph()
                await graph.start()
            except ReplError as error:
                log.error("the changed volfile is not used: %s", error)
                return
            try:
                await self._wait_for_root(graph)
            except ReplError as error:
                log.error("the changed volfile is not used: %s", error)
                await graph.stop()
                return
            if self._is_over:
                await graph.stop()
                return
            before, self._graph = self._graph, graph
            await switch_graph(self._filesystem, before, graph)
            await before.stop()
            log.info("the volfile has changed: a new graph has taken over")
