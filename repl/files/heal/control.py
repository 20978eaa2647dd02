# SPDX-License-Identifier: Apache-2.0
"""The heal daemon's socket: requests in, answers out, JSON, one a line.

Requests: ``{"do": "status"}``; ``{"do": "heal", "full": bool, "wait": bool}``; ``{"do": "info", "splits": bool}``;
``{"do": "explain", "path": "/..."}``; ``{"do": "resolve", "policy": "...", "path": "/...", "source": "CHILD"}``
(without a path: all, with source-brick); each takes ``"volume"``, the name of a replicate volume (without it all of
them, and for a path the first one that has it).
Answers: ``{"ok": ...}`` or ``{"error": "...", "advice": "..."}``.  Whoever may connect to the socket (mode 0600) may
ask all of it.  A request is bounded; one that is wrong closes nothing but gets an error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from repl.errors import ConfigError, ReplError, UsageError
from repl.files.heal.daemon import HealDaemon, VolumeHeals, describe
from repl.files.heal.explain import explain
from repl.files.heal.info import heal_info, summary
from repl.files.heal.resolve import HealRefused, Policy, resolve, resolve_all
from repl.files.values import ROOT_GFID, Loc
from repl.limits import HEAL_REQUEST_BYTES_MAX

log = logging.getLogger(__name__)

Request = dict[str, Any]


class Control:
    """Serves ``daemon()``, which another graph may replace."""

    def __init__(self, path: Path, daemon: Callable[[], HealDaemon]) -> None:
        self.path = path
        self._daemon = daemon
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(
                    self._connected, str(self.path), limit=HEAL_REQUEST_BYTES_MAX
                )
            finally:
                os.umask(before)
        except OSError as error:
            raise ConfigError(f"the control socket {self.path} cannot be made: {error.strerror}.") from error

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (ValueError, ConnectionError):
            log.info("a client of the control socket was dropped")
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return await answer(self._daemon(), json.loads(line))
        except ValueError as error:
            return {"error": f"no JSON: {error}", "advice": ""}


async def answer(daemon: HealDaemon, request: object) -> dict[str, Any]:
    """Also for those who ask without a daemon that runs, about a graph of their own."""
    try:
        if not isinstance(request, dict):
            raise UsageError("a request is an object.")
        work = _REQUESTS.get(str(request.get("do")))
        if work is None:
            words = ", ".join(_REQUESTS)
            raise UsageError(f"there is no request '{request.get('do')}'.", advice=f"There are {words}.")
        return {"ok": await work(daemon, request)}
    except KeyError as error:
        names = ", ".join(daemon.volumes)
        return {"error": f"there is no replicate volume {error}.", "advice": f"There are {names}."}
    except ReplError as error:
        return {"error": error.message, "advice": error.advice}
    except OSError as error:
        return {"error": str(error), "advice": ""}


def _volumes(daemon: HealDaemon, request: Request) -> list[VolumeHeals]:
    return daemon.chosen(str(request.get("volume") or ""))


async def _status(daemon: HealDaemon, request: Request) -> dict[str, Any]:
    found = {}
    for volume in _volumes(daemon, request):
        if volume.progress.is_running:
            await volume.sweeper.count_left()
        found[volume.afr.name] = describe(volume)
    return found


async def _heal(daemon: HealDaemon, request: Request) -> dict[str, Any]:
    volumes = _volumes(daemon, request)
    futures = [volume.want(is_full=bool(request.get("full"))) for volume in volumes]
    if not request.get("wait"):
        return {volume.afr.name: describe(volume) for volume in volumes}
    done = await asyncio.gather(*futures)
    return {v.afr.name: describe(v, progress) for v, progress in zip(volumes, done, strict=True)}


async def _info(daemon: HealDaemon, request: Request) -> list[dict[str, Any]]:
    bricks = []
    for volume in _volumes(daemon, request):
        for brick in await heal_info(volume.afr, only_splits=bool(request.get("splits"))):
            counts = summary(brick)
            items = None if brick.items is None else [
                {"path": i.path, "gfid": i.gfid.hex(), "state": i.state.value} for i in brick.items
            ]  # fmt: skip
            bricks.append({
                "volume": volume.afr.name, "brick": brick.name, "status": brick.status, "items": items,
                "total": counts.total if counts else None, "pending": counts.pending if counts else None,
                "split": counts.split if counts else None, "healing": counts.healing if counts else None,
            })  # fmt: skip
    return bricks


async def _find(daemon: HealDaemon, request: Request) -> tuple[VolumeHeals, bytes]:
    """The volume that has the path, and the gfid there."""
    path = str(request.get("path") or "/")
    for volume in _volumes(daemon, request):
        gfid: bytes | None = ROOT_GFID
        for name in (n for n in os.fsencode(path).split(b"/") if n):
            gfid = await _child(volume, gfid, name)
            if gfid is None:
                break
        if gfid is not None:
            return volume, gfid
    raise HealRefused(f"{path}: no such file or directory.")


async def _child(volume: VolumeHeals, parent: bytes | None, name: bytes) -> bytes | None:
    """From any copy: the name may be in split-brain."""
    afr, caller = volume.afr, volume.afr.owner()
    loc = Loc(parent=parent or ROOT_GFID, name=name)
    answers = await afr.ask(afr.up, lambda c: c.lookup(caller, loc))
    found = [a.iatt.gfid for a in answers.values() if not isinstance(a, OSError)]
    return found[0] if found else None


async def _explain(daemon: HealDaemon, request: Request) -> str:
    volume, gfid = await _find(daemon, request)
    return str(await explain(volume.afr, gfid))


async def _resolve(daemon: HealDaemon, request: Request) -> list[str]:
    try:
        policy = Policy(request.get("policy"))
    except ValueError:
        words = ", ".join(p.value for p in Policy)
        raise UsageError(f"there is no policy '{request.get('policy')}'.", advice=f"There are {words}.") from None
    source = str(request.get("source") or "")
    if not request.get("path"):
        if policy is not Policy.SOURCE_BRICK:
            raise UsageError(f"{policy.value} needs a file.")
        volumes = [v for v in _volumes(daemon, request) if source in v.afr.names]
        if not volumes:
            raise HealRefused(f"'{source}' is no brick here.")
        return await resolve_all(volumes[0].afr, source)
    volume, _ = await _find(daemon, request)
    return [await resolve(volume.afr, os.fsencode(str(request["path"])), policy, source)]


_REQUESTS: dict[str, Callable[[HealDaemon, Request], Coroutine[Any, Any, Any]]] = {
    "status": _status, "heal": _heal, "info": _info, "explain": _explain, "resolve": _resolve,
}  # fmt: skip
