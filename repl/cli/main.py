# SPDX-License-Identifier: Apache-2.0
"""``replctl``: parse the command line, run a command, turn errors into one message and an exit status.

Exit statuses are drbdadm's: 0 done, 1 usage, 5 timeout, 10 configuration or request refused, 11 state change
refused, 16/17 no (good) data, 20 cannot execute.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

import repl
from repl.cli import output
from repl.cli.session import CommandFailed, Session
from repl.errors import InternalError, ReplError, UsageError

EXIT_INTERRUPTED = 130
MODULES = {
    "life": ("up", "down", "primary", "secondary", "connect", "disconnect", "invalidate"),
    "disks": ("attach", "detach", "resize"),
    "freezing": ("suspend-io", "resume-io", "outdate"),
    "net": ("net-options",),
    "resync": ("pause-sync", "resume-sync", "invalidate-remote", "disk-options"),
    "verify": ("verify",),
    "waiting": ("wait-connect", "wait-sync"),
    "look": ("status", "role", "cstate", "dstate", "get-gi", "show-gi", "proc", "events", "nbd-url"),
    "why": ("why",),
    "undo": ("undo",),
    "metadata": ("create-md", "new-current-uuid"),
    "check_resize": ("check-resize",),
    "configuration": ("dump", "config"),
    "volume": ("volume",),
}


class _Commands(click.Group):
    """Imports the file of the command that is meant and no other: half of a short command's time went into those."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(name for names in MODULES.values() for name in names)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        for module, names in MODULES.items():
            if name in names:
                commands: Sequence[click.Command] = importlib.import_module(f"repl.cli.{module}").COMMANDS
                return next(command for command in commands if command.name == name)
        return None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--config", "config_path", type=click.Path(path_type=Path), metavar="FILE",
              help="Configuration (REPL_CONFIG, /etc/drbd.conf).")
@click.option("--node", "node_name", metavar="NAME", help="Which node this is (REPL_NODE, the host's name).")
@click.option("--run-dir", "run_folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Where repld's sockets are (REPL_RUN_DIR, /run/repl).")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON value.")
@click.option("--mode", type=click.Choice(("script", "interactive")), default="interactive",
              help="script: ask nothing (volume commands).")
@click.option("--debug", "is_debug", is_flag=True, help="With tracebacks.")
@click.version_option(repl.__version__, prog_name="replctl")
@click.pass_context
def cli(context: click.Context, config_path: Path | None, node_name: str | None, run_folder: Path | None,
        is_json: bool, mode: str, is_debug: bool) -> None:  # fmt: skip
    """Administer replicated block devices, and volumes of replicated files."""
    context.obj = Session(config_path, node_name, run_folder, is_json, is_debug, mode == "script")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_json, is_debug = "--json" in arguments, "--debug" in arguments
    try:
        cli.main(args=arguments, prog_name="replctl", standalone_mode=False)
    except CommandFailed as failed:
        return failed.exit_status
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        return _fail(_usage_error(error), is_json=is_json, is_debug=is_debug)
    except ReplError as error:
        return _fail(error, is_json=is_json, is_debug=is_debug)
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_INTERRUPTED
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        return _fail(ReplError(f"{what}{error.strerror or error}."), is_json=is_json, is_debug=is_debug)
    except Exception as error:
        bug = InternalError(f"internal error: {type(error).__name__}: {error}.", advice="--debug shows where.")
        return _fail(bug, is_json=is_json, is_debug=is_debug)
    return 0


def _usage_error(error: click.ClickException) -> UsageError:
    path = "replctl"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        path = error.ctx.command_path
    return UsageError(error.format_message(), advice=f'"{path} --help" shows how.')


def _fail(error: ReplError, *, is_json: bool, is_debug: bool) -> int:
    if is_debug:
        traceback.print_exc()
    if is_json:
        output.print_json(output.error_map(error))
    else:
        output.print_error(error)
    return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
