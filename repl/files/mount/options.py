# SPDX-License-Identifier: Apache-2.0
"""The options of a mount, as fstab and ``-o`` spell them.

Input: words such as ``ro``, ``acl``, ``attribute-timeout=2``; those of mount.glusterfs keep their names.  Output:
``MountOptions`` and the words for the kernel.  An unknown word is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from repl.errors import UsageError
from repl.files.mount.filesystem import MountOptions
from repl.files.options import Kind, Option

DECLARED = (
    Option("entry-timeout", Kind.TIME, 1.0, "how long the kernel trusts a name", minimum=0, maximum=3600),
    Option("attribute-timeout", Kind.TIME, 1.0, "how long the kernel trusts attributes", minimum=0, maximum=3600),
    Option("negative-timeout", Kind.TIME, 0.0, "how long the kernel trusts that a name is not there", minimum=0,
           maximum=3600),
    Option("direct-io-mode", Kind.BOOL, False, "no page cache: every read and write goes to the volume"),
    Option("acl", Kind.BOOL, False, "POSIX access control lists"),
    Option("kernel-writeback-cache", Kind.BOOL, False,
           "the kernel collects writes (for one mount of the volume only)", aliases=("writeback-cache",)),
    Option("background-qlen", Kind.INT, 64, "requests that the kernel keeps in the background", minimum=1,
           maximum=65535),
    Option("log-level", Kind.STRING, "info", "debug, info, warning, error or critical"),
    Option("log-file", Kind.STRING, "", "where to log to"),
    Option("volume-name", Kind.STRING, "", "the volume of the volfile to mount; the last one otherwise",
           aliases=("xlator-name",)),
    Option("mount-timeout", Kind.TIME, 10.0, "how long to wait for bricks before giving up", minimum=0),
)  # fmt: skip
# For mount(8), fstab and the kernel.
KERNEL_WORDS = {"rw", "ro", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "sync", "async", "dirsync", "atime",
                "noatime", "nodiratime", "relatime", "allow_other", "default_permissions"}  # fmt: skip
_IGNORED = {"defaults", "_netdev", "nofail", "auto", "noauto", "user", "nouser", "users", "owner", "group"}


@dataclass(frozen=True, slots=True)
class ParsedOptions:
    mount: MountOptions
    kernel: tuple[str, ...]
    log_level: str
    log_file: str
    volume_name: str
    mount_timeout: float


def parse_mount_options(words: Sequence[str]) -> ParsedOptions:
    """Raises ``UsageError``."""
    values = {option.name: option.default for option in DECLARED}
    kernel = {"allow_other": True, "default_permissions": True}
    for word in words:
        if word in KERNEL_WORDS:
            kernel[word] = True
        elif word in ("noallow_other", "nodefault_permissions"):
            kernel[word[2:]] = False
        elif word not in _IGNORED and not word.startswith("x-"):
            name, value = _parse(word)
            values[name] = value
    mount = MountOptions(
        entry_timeout=values["entry-timeout"],
        attribute_timeout=values["attribute-timeout"],
        negative_timeout=values["negative-timeout"],
        is_read_only="ro" in kernel,
        is_direct=values["direct-io-mode"],
        has_acl=values["acl"],
        has_writeback=values["kernel-writeback-cache"],
        background=values["background-qlen"],
    )
    return ParsedOptions(
        mount, tuple(word for word, is_on in kernel.items() if is_on), values["log-level"], values["log-file"],
        values["volume-name"], values["mount-timeout"],
    )  # fmt: skip


def _parse(word: str) -> tuple[str, object]:
    name, equals, text = word.partition("=")
    spelled = name.replace("_", "-")
    for option in DECLARED:
        if spelled in (option.name, *option.aliases):
            if not equals and option.kind is not Kind.BOOL:
                raise UsageError(f"option {name} takes a value: {name}=...")
            try:
                return option.name, option.parse(text if equals else "on")
            except ValueError as error:
                raise UsageError(f"option {name} cannot be {text!r}: {error} is expected.") from None
    known = [option.name for option in DECLARED] + sorted(KERNEL_WORDS)
    close = difflib.get_close_matches(name, known, 1)
    advice = f"Did you mean {close[0]}?" if close else "Known: " + ", ".join(known) + "."
    raise UsageError(f"there is no mount option {name}.", advice=advice)
