# SPDX-License-Identifier: Apache-2.0
"""What several subvolumes answered to the same question.

An answer is what the subvolume returned or its ``OSError``, by the subvolume's number.
"""

from __future__ import annotations

import errno
from collections.abc import Container, Mapping, Sequence
from typing import Any, TypeAlias

Answers: TypeAlias = dict[int, Any]

GONE = frozenset((errno.ENOENT, errno.ESTALE))
AWAY = frozenset((errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTDOWN, errno.ESHUTDOWN))


def errors_of(answers: Mapping[int, Any]) -> dict[int, OSError]:
    return {i: a for i, a in answers.items() if isinstance(a, OSError)}


def good_of(answers: Mapping[int, Any]) -> Answers:
    return {i: a for i, a in answers.items() if not isinstance(a, OSError)}


def most_telling(errors: Mapping[int, OSError], first: Sequence[int], last: Container[int]) -> OSError:
    """Of several errors the one to tell: those of ``first`` in their order, then all others, then those of ``last``."""

    def rank(error: OSError) -> int:
        if error.errno in last:
            return len(first) + 1
        return first.index(error.errno) if error.errno in first else len(first)

    return min(errors.values(), key=rank)
