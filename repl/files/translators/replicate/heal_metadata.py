# SPDX-License-Identifier: Apache-2.0
"""Metadata heal: owner, mode, times and extended attributes of the good copy onto the others (spec 5.7).

Copies that nobody accuses can still differ: a client that died between two bricks.  Then the attributes that changed
last win.  It all happens under the inode's lock, which the caller holds.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Sequence
from typing import Any

from repl.files.answers import good_of
from repl.files.translator import Step
from repl.files.translators.replicate.base import bits
from repl.files.translators.replicate.changelog import Kind
from repl.files.translators.replicate.decide import Verdict, owners_differ
from repl.files.translators.replicate.heal_locks import send
from repl.files.translators.replicate.heal_run import Run
from repl.files.translators.replicate.healing import Status
from repl.files.values import Iatt, SetAttr, Xattrs

# What belongs to a brick and not to the inode.
_OWN = (
    b"trusted.gfid", b"trusted.afr.", b"trusted.pgfid.", b"trusted.repl.", b"trusted.glusterfs.volume-id",
    b"trusted.glusterfs.quota", b"trusted.glusterfs.pathinfo",
)  # fmt: skip


def belongs_to_inode(key: bytes) -> bool:
    return not key.startswith(_OWN)


async def read_xattrs(run: Run) -> dict[int, Xattrs]:
    """What copies have to agree on, by child; a child that does not answer is left out."""
    answers = good_of(await run.afr.ask(run.mask, lambda c: c.getxattr(run.caller, run.loc, None)))
    return {i: {k: v for k, v in found.items() if belongs_to_inode(k)} for i, found in answers.items()}


async def heal_metadata(run: Run) -> None:
    is_pending = run.has_counters(Kind.METADATA)
    if not is_pending and not run.how.is_full and not owners_differ([w.iatt for w in run.copies.values()]):
        return
    xattrs = await read_xattrs(run)
    if set(xattrs) != set(run.copies):
        run.note(Status.AWAY, "extended attributes cannot be read")
        return

    async def are_equal() -> bool:
        return len({_shape(w.iatt, xattrs[i]) for i, w in run.copies.items()}) == 1

    verdict = await run.decide(Kind.METADATA, are_equal)
    if verdict is None:
        return
    good = bits(verdict.equals or verdict.sources)
    verdict = await _agree(run, verdict, good, xattrs)
    source = bits(verdict.sources)[0]
    done = await asyncio.gather(*(_copy(run, source, i, xattrs) for i in bits(verdict.sinks)))
    failed = sum(1 << i for i, is_done in zip(bits(verdict.sinks), done, strict=True) if not is_done)
    if is_pending or verdict.sinks:
        run.plan_undo(Kind.METADATA, verdict.sources, run.mask & ~failed)


async def _agree(run: Run, verdict: Verdict, good: Sequence[int], xattrs: dict[int, Xattrs]) -> Verdict:
    """Copies that nobody accuses: equal ones are all good, else one of them is chosen and accuses the rest."""
    equals = sum(1 << i for i in good)
    others = verdict.sinks & ~equals
    if len({_shape(run.iatt(i), xattrs[i]) for i in good}) == 1:
        return Verdict(equals, others)
    winner = max(good, key=lambda i: (run.iatt(i).ctime_ns, -i))
    await run.accuse(Kind.METADATA, run.afr.everyone & ~(1 << winner))
    return Verdict(1 << winner, run.mask & ~(1 << winner))


def _shape(iatt: Iatt, xattrs: Xattrs) -> tuple[Any, ...]:
    return iatt.uid, iatt.gid, iatt.mode, tuple(sorted(xattrs.items()))


async def _copy(run: Run, source: int, sink: int, xattrs: dict[int, Xattrs]) -> bool:
    iatt = run.iatt(source)
    mode = None if stat.S_ISLNK(iatt.mode) else stat.S_IMODE(iatt.mode)
    times = SetAttr(mode, iatt.uid, iatt.gid, iatt.atime_ns, iatt.mtime_ns)
    changed = {k: v for k, v in xattrs[source].items() if xattrs[sink].get(k) != v}
    steps = [Step("removexattr", (run.loc, key)) for key in xattrs[sink] if key not in xattrs[source]]
    if changed:
        steps.append(Step("setxattr", (run.loc, changed)))
    steps.append(Step("setattr", (run.loc, times)))
    answer = (await send(run.afr, 1 << sink, run.caller, steps))[sink]
    if isinstance(answer[-1], OSError):
        run.note(Status.FAILED, f"{run.afr.names[sink]}: {answer[-1]}")
        return False
    return True
