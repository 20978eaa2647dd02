# SPDX-License-Identifier: Apache-2.0
"""replctl imports a command's file when the command is called: the table of files has to be complete."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import repl.cli
from repl.cli.main import MODULES, cli


def test_every_command_of_every_file_can_be_called() -> None:
    found = {}
    for module in pkgutil.iter_modules(repl.cli.__path__):
        if module.name != "main":
            commands = getattr(importlib.import_module(f"repl.cli.{module.name}"), "COMMANDS", ())
            if commands:
                found[module.name] = tuple(command.name for command in commands)
    assert {name: set(words) for name, words in MODULES.items()} == {name: set(words) for name, words in found.items()}
    for words in MODULES.values():
        for word in words:
            command = cli.get_command(None, word)  # type: ignore[arg-type]
            assert command is not None and command.name == word


def test_a_command_imports_no_other_ones_file_and_no_daemon() -> None:
    script = "import sys; from repl.cli.main import main; main(['cstate', '--help']); print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    assert "repl.cli.look" in modules
    assert not {"repl.cli.volume", "repl.cli.metadata", "repl.daemon.service", "repl.daemon.main"} & set(modules)
