# SPDX-License-Identifier: Apache-2.0
"""What every command needs: the configuration, the node, the run directory, and which resources are meant.

Errors: ``UsageError`` for names that do not exist, ``ConfigError`` for the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from repl import config
from repl.cli import output
from repl.cli.client import Client, NotRunning
from repl.config.model import Config, NodeView, Resource
from repl.daemon.addresses import own_addresses
from repl.daemon.given import DEFAULT_CONFIG, given_config, given_node
from repl.daemon.nbd_file import with_lower_devices
from repl.daemon.run_dir import RunDir, default_run_dir
from repl.errors import ConfigError, ReplError, UsageError

ALL = "all"


@dataclass(frozen=True, slots=True)
class Target:
    """A resource, or one volume of it."""

    resource: str
    volume: int | None = None

    def __str__(self) -> str:
        return self.resource if self.volume is None else f"{self.resource}/{self.volume}"


def parse_target(text: str) -> Target:
    """``RES`` or ``RES/VOL``."""
    resource, slash, volume = text.partition("/")
    if not resource or (slash and not volume.isdecimal()):
        raise UsageError(f"'{text}' is neither RESOURCE nor RESOURCE/VOLUME.")
    return Target(resource, int(volume) if slash else None)


class CommandFailed(Exception):
    """Everything has been said already; only the exit status is left."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status


@dataclass
class Session:
    """The global options and what follows from them."""

    config_path: Path | None = None
    node_name: str | None = None
    run_folder: Path | None = None
    is_json: bool = False
    is_debug: bool = False
    is_script: bool = False  # nobody is asked anything
    warned: set[str] = field(default_factory=set)

    @cached_property
    def node(self) -> str:
        return given_node(self.node_name)[0]

    @cached_property
    def addresses(self) -> tuple[str, ...]:
        """Local addresses find ``floating`` sections, unless the node was named."""
        return () if given_node(self.node_name)[1] else own_addresses()

    @cached_property
    def config_file(self) -> Path:
        path = given_config(self.config_path)
        if path == DEFAULT_CONFIG and not path.exists():
            raise ConfigError(
                f"no configuration was given and {DEFAULT_CONFIG} does not exist.",
                advice="Name one with --config FILE or REPL_CONFIG.",
            )
        return path

    @cached_property
    def config(self) -> Config:
        return config.load(self.config_file)

    def run_dir(self, resource: str) -> RunDir:
        return RunDir((self.run_folder or default_run_dir()).absolute(), resource)

    def view(self, resource: str) -> NodeView:
        view = config.resource_for_node(self.config, resource, self.node, addresses=self.addresses)
        return with_lower_devices(view, self.run_dir(resource).folder)

    def volumes(self, target: Target) -> list[int]:
        """The volume that is meant, or all of the resource."""
        numbers = [volume.number for volume in self.view(target.resource).volumes]
        if target.volume is None:
            return numbers
        if target.volume not in numbers:
            known = ", ".join(f"{target.resource}/{number}" for number in numbers)
            raise UsageError(f"'{target}' not defined in your config.", advice=f"There is {known}.")
        return [target.volume]

    def targets(self, names: Sequence[str], *, with_volume: bool = False) -> list[Target]:
        """What the arguments mean; "all" is every resource of this node."""
        if not names:
            raise UsageError("Which resource?", advice='Name one, or "all".')
        found: list[Target] = []
        for name in names:
            if name == ALL:
                found += [Target(resource.name) for resource in self.own_resources()]
                continue
            target = parse_target(name)
            if target.volume is not None and not with_volume:
                raise UsageError(
                    f"'{name}': this command works on a whole resource.", advice=f"Use '{target.resource}'."
                )
            self._check(target)
            found.append(target)
        return list(dict.fromkeys(found))

    def own_resources(self) -> tuple[Resource, ...]:
        return config.resources_of_node(self.config, self.node, addresses=self.addresses)

    def _check(self, target: Target) -> None:
        """A running resource can be reached whatever the configuration says now."""
        if not self.run_dir(target.resource).control.exists():
            self.volumes(target)

    def client(self, resource: str) -> Client:
        return Client(self.run_dir(resource).control, resource)

    def call(self, target: Target, verb: str, /, **args: Any) -> dict[str, Any]:
        with self.client(target.resource) as client:
            return client.call(verb, **args)

    def running_volumes(self, target: Target) -> list[int]:
        return [int(volume["volume"]) for volume in self.call(target, "status").get("volumes", [])]

    def status(self, target: Target) -> dict[str, Any] | None:
        """None if it does not run."""
        try:
            return self.call(target, "status")
        except NotRunning:
            return None

    def each(self, targets: Sequence[Target], work: Callable[[Target], Any], *, is_printed: bool = False) -> None:
        """Do the work for each target; one failure makes the command fail, after the others had their turn.

        With --json there is one object: the data of the only target, or a list of answers.
        """
        answers: list[dict[str, Any]] = []
        exit_status = 0
        for target in targets:
            try:
                data = work(target)
            except ReplError as error:
                if len(targets) == 1 or self.is_debug:
                    raise
                exit_status = exit_status or error.exit_status
                answers.append({"target": str(target), **output.error_map(error)})
                if not self.is_json:
                    output.print_error(error)
            else:
                answers.append({"target": str(target), "ok": True, "data": data})
        if self.is_json and not is_printed:
            if len(targets) == 1:
                output.print_json({"ok": True, "data": answers[0]["data"]})
            else:
                output.print_json({"ok": exit_status == 0, "data": answers})
        if exit_status:
            raise CommandFailed(exit_status)


pass_session = click.make_pass_decorator(Session)
