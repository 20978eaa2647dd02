# SPDX-License-Identifier: Apache-2.0
"""On whose behalf calls are made, once the server's own rules are applied: squashing and groups looked up here."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace

from repl.files.options import Options
from repl.files.translator import Context
from repl.files.values import Caller

GROUPS_REMEMBERED_MAX = 4096


class Identity:
    """Applies root-squash, all-squash and manage-gids."""

    def __init__(self, options: Options, context: Context) -> None:
        self._context = context
        self._squash_root: bool = options["root-squash"] or options["all-squash"]
        self._squash_all: bool = options["all-squash"]
        self._anonymous: tuple[int, int] = (options["anonuid"], options["anongid"])
        self._manage_groups: bool = options["manage-gids"]
        self._groups_timeout_s: float = options["gid-timeout"]
        self._groups: dict[int, tuple[float, tuple[int, ...]]] = {}

    def apply(self, caller: Caller, *, is_trusted: bool) -> Caller:
        """Our own work (heals, rebalance) has to see everything and is not squashed, if its client ``is_trusted``: on
        this host, or logged in with a password."""
        if caller.is_internal and is_trusted:
            return caller
        if self._squash_all or (self._squash_root and caller.uid == 0):
            return replace(caller, uid=self._anonymous[0], gid=self._anonymous[1], groups=())
        if self._squash_root and (caller.gid == 0 or 0 in caller.groups):
            gid = self._anonymous[1] if caller.gid == 0 else caller.gid
            return replace(caller, gid=gid, groups=tuple(g for g in caller.groups if g))
        if self._manage_groups:
            return replace(caller, groups=self._groups_of(caller.uid, caller.gid))
        return caller

    def _groups_of(self, uid: int, gid: int) -> tuple[int, ...]:
        now = self._context.now()
        known = self._groups.get(uid)
        if known is not None and known[0] > now:
            return known[1]
        try:
            groups = tuple(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
        except KeyError:
            groups = ()
        if len(self._groups) >= GROUPS_REMEMBERED_MAX:
            self._groups.clear()
        self._groups[uid] = (now + self._groups_timeout_s, groups)
        return groups
