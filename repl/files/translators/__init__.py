# SPDX-License-Identifier: Apache-2.0
"""The translators: one folder each.  Here is only who is who."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repl.files.translator import Translator

# Type -> folder and class; loaded when a volfile asks for it.
_CLASSES = {
    "storage/posix": ("posix", "Posix"),
    "features/locks": ("locks", "Locks"),
    "features/index": ("index", "Index"),
    "features/arbiter": ("arbiter", "Arbiter"),
    "features/upcall": ("upcall", "Upcall"),
    "performance/io-threads": ("io_threads", "IoThreads"),
    "performance/write-behind": ("write_behind", "WriteBehind"),
    "performance/io-cache": ("io_cache", "IoCache"),
    "performance/read-ahead": ("read_ahead", "ReadAhead"),
    "performance/quick-read": ("quick_read", "QuickRead"),
    "performance/md-cache": ("md_cache", "MdCache"),
    "protocol/server": ("server", "Server"),
    "protocol/client": ("client", "Client"),
    "cluster/replicate": ("replicate", "Replicate"),
    "cluster/distribute": ("distribute", "Distribute"),
    "debug/error-gen": ("error_gen", "ErrorGen"),
    "debug/delay-gen": ("delay_gen", "DelayGen"),
    "debug/trace": ("trace", "Trace"),
    "debug/io-stats": ("io_stats", "IoStats"),
}
_ALIASES = {
    "features/posix-locks": "features/locks",
    "cluster/afr": "cluster/replicate",
    "cluster/dht": "cluster/distribute",
    "performance/stat-prefetch": "performance/md-cache",
}


def known_types() -> list[str]:
    return [*_CLASSES, *_ALIASES]


def find_class(type_name: str) -> type[Translator] | None:
    """The class of a volfile's type, None if there is none."""
    place = _CLASSES.get(_ALIASES.get(type_name, type_name))
    if place is None:
        return None
    module = import_module(f"repl.files.translators.{place[0]}")
    found: type[Translator] = getattr(module, place[1])
    return found
