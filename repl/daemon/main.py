# SPDX-License-Identifier: Apache-2.0
"""``repld RESOURCE``: serve one resource until it is taken down.

It stays in the foreground; ``replctl up`` starts it detached, systemd as a service (tools/systemd/repl@.service).
Exit status: 0 after "down", 1 forced end or wrong usage, 10 the configuration, 20 an internal error.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import repl
from repl import config
from repl.daemon.addresses import own_addresses
from repl.daemon.given import DEFAULT_CONFIG, given_config, given_node
from repl.daemon.nbd_file import with_lower_devices
from repl.daemon.production import make_service, run_loop
from repl.daemon.run_dir import RunDir, default_run_dir
from repl.daemon.service import Service
from repl.errors import ReplError, UsageError

EXIT_USAGE = 1

_LEVELS = ("debug", "info", "warning", "error")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"repld: {message}.", advice='"repld --help" shows the options.')


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="repld", description="Serves one replicated resource.")
    parser.add_argument("resource", metavar="RESOURCE")
    parser.add_argument("--config", type=Path, default=None, metavar="FILE",
                        help=f"configuration (REPL_CONFIG, {DEFAULT_CONFIG})")
    parser.add_argument("--node", default=None, metavar="NAME",
                        help="which node this is (REPL_NODE, the host's name)")
    parser.add_argument("--run-dir", type=Path, default=None, metavar="DIR",
                        help="for sockets, lock and log (REPL_RUN_DIR, /run/repl)")
    parser.add_argument("--up", action="store_true", help="bring the resource up before being ready")
    parser.add_argument("--foreground", action="store_true",
                        help="accepted for service files; repld always stays in the foreground")
    parser.add_argument("--log-level", choices=_LEVELS, default="info")
    parser.add_argument("--version", action="version", version=f"repld {repl.__version__}")
    return parser.parse_args(argv)


def set_up_logging(level: str) -> None:
    # journald and other collectors put their own time in front.
    is_collected = "JOURNAL_STREAM" in os.environ
    form = "%(levelname)s %(message)s" if is_collected else "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=level.upper(), format=form, stream=sys.stderr)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def run(argv: Sequence[str]) -> int:
    options = parse_arguments(argv)
    set_up_logging(options.log_level)
    os.umask(0o077)
    node, is_chosen = given_node(options.node)
    config_file = given_config(options.config)
    read = config.load(config_file)
    for warning in read.warnings:
        logging.getLogger("repl.daemon").warning("%s", warning)
    addresses = () if is_chosen else own_addresses()
    view = config.resource_for_node(read, options.resource, node, addresses=addresses)
    folder = options.run_dir or default_run_dir()
    view = with_lower_devices(view, folder.absolute())
    service = make_service(view, RunDir(folder.absolute(), view.name), config_file)
    return run_loop(run_to_the_end(service, up=options.up))


async def run_to_the_end(service: Service, *, up: bool) -> int:
    """Once everything is down, a late signal no longer turns an orderly end into a killed process."""
    status = await service.run(up=up)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except ReplError as error:
        print(f"repld: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
