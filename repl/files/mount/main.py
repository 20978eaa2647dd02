# SPDX-License-Identifier: Apache-2.0
"""``repl-mount``: mount a volume described by a volfile, or one that ``replctl volume`` knows.

usage: repl-mount -f client.vol /mnt [-o options]
       repl-mount [HOST:/]NAME /mnt [-o options]

The second form takes the volfile from the state directory; HOST is for fstab's sake, bricks are reached as the volfile
says.  As ``/sbin/mount.repl`` it is what mount(8) calls for ``mount -t repl HOST:/NAME /mnt``.

Goes to the background once the volume can be used; the exit status is 0 then.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import uvloop

from repl.errors import ConfigError, InternalError, ReplError, UsageError
from repl.files import process
from repl.files.mount import device
from repl.files.mount.options import ParsedOptions, parse_mount_options
from repl.files.mount.service import MountService
from repl.files.volume.store import client_volfile

log = logging.getLogger("repl.files.mount")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="repl-mount", description="Mount a volume.",
                     usage="repl-mount {-f FILE | [HOST:/]NAME} DIRECTORY [-o OPTIONS]")  # fmt: skip
    parser.add_argument("-f", "--volfile", default="", metavar="FILE", help="the volfile of the client")
    parser.add_argument("places", nargs="+", metavar="DIRECTORY",
                        help="where to mount it; without -f the volume's name in front of it")  # fmt: skip
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTION[,OPTION...]",
                        help="ro, acl, entry-timeout=S, attribute-timeout=S, negative-timeout=S, direct-io-mode, "
                        "kernel-writeback-cache, log-file=F, log-level=L ...")  # fmt: skip
    parser.add_argument("-N", "--no-daemon", action="store_true", help="stay in the foreground")
    parser.add_argument("-l", "--log-file", default="", metavar="FILE",
                        help="(standard error in the foreground, else REPL_RUN_DIR/MOUNT-POINT.log)")
    parser.add_argument("-L", "--log-level", default="", choices=process.LEVELS, type=str.lower)
    parser.add_argument("-p", "--pid-file", default="", metavar="FILE")
    parser.add_argument("--volume-name", default="", help="a volume of the volfile other than the last one")
    parser.add_argument("-n", "-s", "-v", action="store_true", dest="ignored", help=argparse.SUPPRESS)  # mount(8)'s
    given = parser.parse_intermixed_args(arguments)
    given.source = ""
    if not given.volfile and len(given.places) == 2:
        given.source = given.places.pop(0)
        given.volfile = _volfile_of(given.source)
    if not given.volfile or len(given.places) != 1:
        parser.error("a volfile (-f FILE) or the name of a volume, and a directory are expected")
    given.directory = given.places[0]
    return given


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}.", advice='"repl-mount --help" shows how.')


def _volfile_of(source: str) -> str:
    """A name, or for convenience the path of a volfile."""
    found = client_volfile(source)
    return str(found[0]) if found else source


def _words(given: Sequence[str]) -> list[str]:
    return [word.strip() for group in given for word in group.split(",") if word.strip()]


def main(arguments: Sequence[str] | None = None) -> int:
    background = process.Background()
    try:
        given = _parse(sys.argv[1:] if arguments is None else arguments)
        words = _words(given.options)
        for name in ("log_file", "log_level", "volume_name"):
            if getattr(given, name):
                words.append(f"{name.replace('_', '-')}={getattr(given, name)}")
        options = parse_mount_options(words)
        path = device.prepare(given.directory)
        if not given.no_daemon:
            background.detach()
        guardian = device.Guardian()
        process.keep_memory()
        process.set_up_logging(options.log_level, options.log_file or _usual_log(given))
        try:
            _run(given, path, options, guardian, background)
        finally:
            guardian.dismiss()
    except ReplError as error:
        if logging.getLogger().handlers:
            log.error("%s", error)
        background.failed(f"repl-mount: {error}", error.exit_status)
        return error.exit_status
    except Exception as error:
        log.exception("a bug")
        background.failed(f"repl-mount: internal error: {error!r}; the log says more.", InternalError.exit_status)
        return InternalError.exit_status
    return 0


def _usual_log(given: argparse.Namespace) -> str:
    """In the background: a file named by the mount point, as with Gluster.  Raises ``ConfigError``."""
    if given.no_daemon:
        return ""
    path = process.run_directory() / ("-".join(os.path.abspath(given.directory).strip("/").split("/")) + ".log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise ConfigError(f"the log {path} cannot be written: {error.strerror}.", advice="Name one with -l.") from error
    return str(path)


def _run(
    given: argparse.Namespace, path: str, options: ParsedOptions, guardian: device.Guardian,
    background: process.Background,
) -> None:  # fmt: skip
    def ready() -> None:
        if given.pid_file:
            with open(given.pid_file, "w") as file:
                file.write(f"{os.getpid()}\n")
        process.calm_collector()
        background.ready()

    async def serve() -> None:
        await MountService(given.volfile, path, options, guardian, given.source).run(ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    sys.exit(main())
