# SPDX-License-Identifier: Apache-2.0
"""Algorithms of data-integrity-alg, verify-alg and csums-alg: names of the configuration, numbers of the engine.

Errors: ``ConfigError`` for a name that is unknown here.  Facts: csrc/base/digest.h, the kernel's crypto API names.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from repl.errors import ConfigError


class Digest(enum.IntEnum):
    """``enum digest_alg``."""

    NONE = 0
    CRC32C = 1
    XXHASH64 = 2
    MD5 = 3
    SHA1 = 4
    SHA256 = 5


DIGESTS: Mapping[str, Digest] = MappingProxyType({d.name.lower(): d for d in Digest if d is not Digest.NONE})
ADVICE = f"Use one of {', '.join(DIGESTS)} on both nodes."
# What the module's crypto library has to provide; the others are always there.
NEED_LIBCRYPTO = frozenset((Digest.MD5, Digest.SHA1, Digest.SHA256))


def digest_number(name: str, option: str = "the algorithm") -> Digest:
    """The number of an algorithm's name; "" is NONE."""
    if not name:
        return Digest.NONE
    if name not in DIGESTS:
        raise ConfigError(f"{option} '{name}' is not known here.", advice=ADVICE)
    return DIGESTS[name]
