# SPDX-License-Identifier: Apache-2.0
"""``repl-mount``: mount a volume described by a volfile.

usage: repl-mount -f client.vol /mnt [-o options]

Goes to the background once the volume can be used; the exit status is 0 then.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
from collections.abc import Sequence

import uvloop

from repl.errors import InternalError, ReplError
from repl.files import process
from repl.files.mount import device
from repl.files.mount.options import ParsedOptions, parse_mount_options
from repl.files.mount.service import MountService

log = logging.getLogger("repl.files.mount")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="repl-mount", description="Mount a volume described by a volfile.")
    parser.add_argument("-f", "--volfile", required=True, metavar="FILE", help="the volfile of the client")
    parser.add_argument("directory", help="where to mount it")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTION[,OPTION...]",
                        help="ro, acl, entry-timeout=S, attribute-timeout=S, negative-timeout=S, direct-io-mode, "
                        "kernel-writeback-cache, log-file=F, log-level=L ...")  # fmt: skip
    parser.add_argument("-N", "--no-daemon", action="store_true", help="stay in the foreground")
    parser.add_argument("-l", "--log-file", default="", metavar="FILE")
    parser.add_argument("-L", "--log-level", default="", choices=process.LEVELS, type=str.lower)
    parser.add_argument("-p", "--pid-file", default="", metavar="FILE")
    parser.add_argument("--volume-name", default="", help="a volume of the volfile other than the last one")
    return parser.parse_args(arguments)


def _words(given: Sequence[str]) -> list[str]:
    return [word.strip() for group in given for word in group.split(",") if word.strip()]


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    background = process.Background()
    try:
        words = _words(given.options)
        for name in ("log_file", "log_level", "volume_name"):
            if getattr(given, name):
                words.append(f"{name.replace('_', '-')}={getattr(given, name)}")
        options = parse_mount_options(words)
        path = device.prepare(given.directory)
        if not given.no_daemon:
            background.detach()
        guardian = device.Guardian()
        process.set_up_logging(options.log_level, options.log_file)
        try:
            _run(given, path, options, guardian, background)
        finally:
            guardian.dismiss()
    except ReplError as error:
        log.error("%s", error)
        background.failed(f"repl-mount: {error}", error.exit_status)
        return error.exit_status
    except Exception as error:
        log.exception("a bug")
        background.failed(f"repl-mount: internal error: {error!r}; the log says more.", InternalError.exit_status)
        return InternalError.exit_status
    return 0


def _run(
    given: argparse.Namespace, path: str, options: ParsedOptions, guardian: device.Guardian,
    background: process.Background,
) -> None:  # fmt: skip
    def ready() -> None:
        if given.pid_file:
            with open(given.pid_file, "w") as file:
                file.write(f"{os.getpid()}\n")
        gc.freeze()  # what lives from the start on is not looked at again
        background.ready()

    async def serve() -> None:
        await MountService(given.volfile, path, options, guardian).run(ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    sys.exit(main())
