# SPDX-License-Identifier: Apache-2.0
"""DRBD configuration files: read, check, inherit, print.

``load`` reads a file, ``resource_for_node`` gives what one node needs, ``dump`` prints the normal form.
"""

from __future__ import annotations

from repl.config.model import Config, ConfigWarning, NodeView
from repl.config.render import dump, dump_resource
from repl.config.view import load, resource_for_node, resources_of_node

__all__ = [
    "Config",
    "ConfigWarning",
    "NodeView",
    "dump",
    "dump_resource",
    "load",
    "resource_for_node",
    "resources_of_node",
]
