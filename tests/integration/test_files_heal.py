# SPDX-License-Identifier: Apache-2.0
"""repl-heald with real bricks and real links: kills, returns, sweeps, and equal bricks in Gluster's format."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from repl.files import volfile
from repl.files.events import Contended
from repl.files.graph import Graph
from repl.files.translator import Context
from repl.files.values import ROOT_GFID, Caller, Fd, FopError, Loc, SetAttr
from tests.lib.ports import free_port
from tests.lib.process import Process
from tests.lib.wait import wait_for, wait_for_async

BRICK = """
volume posix
  type storage/posix
  option directory {directory}
  option reserve 0
end-volume
volume locks
  type features/locks
  subvolumes posix
end-volume
volume index
  type features/index
  option index-base {directory}/.glusterfs/indices
  option xattrop-pending-watchlist trusted.afr.
  subvolumes locks
end-volume
volume brick
  type performance/io-threads
  subvolumes index
end-volume
volume server
  type protocol/server
  option transport.socket.listen-port {port}
  option auth.addr.brick.allow 127.0.0.1
  subvolumes brick
end-volume
"""
CLIENT = """
volume c{i}
  type protocol/client
  option remote-host 127.0.0.1
  option remote-port {port}
  option remote-subvolume brick
  option ping-timeout 5
end-volume
"""


class Bricks:
    """Processes that can be killed and come back, a volfile for clients, and a heal daemon."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.ports = [free_port() for _ in range(count)]
        self.directories = [folder / f"brick{i}" for i in range(count)]
        self.running: list[Process | None] = [None] * count
        self.daemon: Process | None = None
        self.control = folder / "heald.sock"
        text = ""
        for i, (port, directory) in enumerate(zip(self.ports, self.directories, strict=True)):
            directory.mkdir()
            (folder / f"brick{i}.vol").write_text(BRICK.format(directory=directory, port=port))
            text += CLIENT.format(i=i, port=port)
        names = " ".join(f"c{i}" for i in range(count))
        heals = "".join(f"  option {k}-self-heal off\n" for k in ("data", "metadata", "entry"))
        heals += "  option granular-entry-heal on\n"
        text += f"volume replicate\n  type cluster/replicate\n{heals}  subvolumes {names}\nend-volume\n"
        self.volfile = folder / "client.vol"
        self.volfile.write_text(text)
        for i in range(count):
            self.start(i)

    def _run(self, module: str, *arguments: object, log: str) -> Process:
        command: list[Any] = [sys.executable, "-m", module, "-N", *arguments]
        return Process(command, self.folder / log, env={"REPL_RUN_DIR": str(self.folder / "run")})

    def start(self, index: int) -> None:
        found = self._run("repl.files.brick", "-f", self.folder / f"brick{index}.vol", log=f"brick{index}.log")
        found.wait_log("serving", 20)
        self.running[index] = found

    def kill(self, index: int) -> None:
        found = self.running[index]
        assert found is not None
        found.popen.send_signal(signal.SIGKILL)
        found.popen.wait(10)
        self.running[index] = None

    def heal(self) -> None:
        self.daemon = self._run("repl.files.heal.main", "-f", self.volfile, "-s", self.control, log="heald.log")
        self.daemon.wait_log("healing", 20)

    def ask(self, **request: object) -> Any:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(self.control))
            sock.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(sock.makefile().readline())
        assert "ok" in answer, answer
        return answer["ok"]

    def is_healed(self) -> bool:
        """Nobody is accused any more; what is only being written does not count."""
        status = self.ask(do="heal", wait=True)["replicate"]
        left = set(status["undone"]) - {"it is being written", "something else has to be healed first"}
        return len(status["up"]) == len(self.ports) and not left

    def stop(self) -> None:
        for process in (self.daemon, *self.running):
            if process is not None:
                process.popen.terminate()
                process.popen.wait(20)

    def tree(self, index: int) -> dict[str, tuple[Any, ...]]:
        """Everything but .glusterfs: type and mode, owner, content, user's attributes, gfid."""
        root = self.directories[index]
        found = {}
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            if name.startswith(".glusterfs"):
                continue
            st = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            user = {k: os.getxattr(path, k) for k in os.listxattr(path, follow_symlinks=False) if k.startswith("user.")}
            gfid = os.getxattr(path, "trusted.gfid", follow_symlinks=False)
            found[name] = (st.st_mode, st.st_uid, content, user, gfid)
        return found

    def pending(self, index: int) -> list[str]:
        root = self.directories[index]
        return [
            f"{path} {key}"
            for path in [root, *root.rglob("*")]
            if ".glusterfs/indices" not in str(path)
            for key in os.listxattr(path, follow_symlinks=False)
            if key.startswith("trusted.afr.") and any(os.getxattr(path, key, follow_symlinks=False))
        ]


@pytest.fixture
def bricks(tmp_path: Path) -> Iterator[Bricks]:
    if os.geteuid() != 0:
        pytest.skip("needs root: trusted attributes")
    found = Bricks(tmp_path, 2)
    try:
        yield found
    finally:
        found.stop()


class Volume:
    """A client of the bricks in this process."""

    def __init__(self, bricks: Bricks) -> None:
        context = Context(process="test-client", random=random.Random(1), wall_ns=time.time_ns)
        self.context = context
        self.graph = Graph(volfile.load(str(bricks.volfile)), context)
        self.top: Any = self.graph.top
        self.caller = Caller(client="test-client", lock_owner=b"1")

    async def start(self, up: int) -> None:
        await self.graph.start()
        await wait_for_async(lambda: self.top.up.bit_count() == up, 20, f"{up} bricks")

    async def make(self, name: bytes, data: bytes, parent: bytes = ROOT_GFID) -> bytes:
        gfid = self.context.new_gfid()
        fd = Fd(gfid, os.O_RDWR)
        loc = Loc(parent=parent, name=name)
        await self.top.create(self.caller, loc, fd, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=gfid)
        await self.top.writev(self.caller, fd, data, offset=0)
        await self.top.flush(self.caller, fd)
        await self.top.release(fd)
        return gfid

    async def mkdir(self, name: bytes) -> bytes:
        gfid = self.context.new_gfid()
        await self.top.mkdir(self.caller, Loc(parent=ROOT_GFID, name=name), mode=0o755, gfid=gfid)
        return gfid

    async def write(self, gfid: bytes, data: bytes, offset: int) -> None:
        fd = Fd(gfid, os.O_WRONLY)
        await self.top.open(self.caller, Loc(gfid=gfid), fd, flags=os.O_WRONLY)
        await self.top.writev(self.caller, fd, data, offset=offset)
        await self.top.release(fd)


def test_a_brick_that_was_killed_is_made_equal_by_the_daemon(bricks: Bricks) -> None:
    async def change() -> None:
        volume = Volume(bricks)
        await volume.start(2)
        one, two = await volume.mkdir(b"one"), await volume.mkdir(b"two")
        sub = await volume.mkdir(b"sub")
        await volume.make(b"inside", b"z" * 5000, sub)
        big = await volume.make(b"big", random.Random(2).randbytes(5 << 20))
        for i in range(20):
            await volume.make(b"old%d" % i, b"x" * i * 100, one)
        bricks.kill(1)
        await wait_for_async(lambda: volume.top.up == 1, 20, "the link to end")
        await volume.write(big, b"changed", 3_000_000)
        for i in range(60):
            gfid = await volume.make(b"new%d" % i, b"y" * i * 100, two)
            await volume.top.setattr(volume.caller, Loc(gfid=gfid), SetAttr(mode=0o600, uid=i))
            await volume.top.setxattr(volume.caller, Loc(gfid=gfid), {b"user.n": b"%d" % i})
        for i in range(10):
            source, target = Loc(parent=one, name=b"old%d" % i), Loc(parent=two, name=b"moved%d" % i)
            await volume.top.rename(volume.caller, source, target)
        await volume.top.rename(volume.caller, Loc(parent=ROOT_GFID, name=b"sub"), Loc(parent=two, name=b"sub"))
        link = volume.context.new_gfid()
        await volume.top.symlink(volume.caller, Loc(parent=two, name=b"link"), target=b"../big", gfid=link)
        await volume.top.unlink(volume.caller, Loc(parent=one, name=b"old15"))
        await volume.graph.stop()

    asyncio.run(change())
    bricks.heal()
    info = bricks.ask(do="info")
    assert info[0]["total"] > 60 and info[1]["items"] is None
    bricks.start(1)
    wait_for(lambda: len(bricks.ask(do="status")["replicate"]["up"]) == 2, 20, "the brick to be seen")
    status = bricks.ask(do="heal", wait=True)["replicate"]
    assert status["undone"] == {}, status
    assert bricks.tree(0) == bricks.tree(1)
    assert bricks.pending(0) == bricks.pending(1) == []
    assert [b["total"] for b in bricks.ask(do="info")] == [0, 0]
    changes = bricks.directories[0] / ".glusterfs/indices/entry-changes"
    assert [p.name for p in changes.iterdir() if p.is_dir()] == []
    total = status["copied_bytes"]
    assert total < 2 << 20, "of the large file only what changed travels"


def test_sweeps_ask_nobody_to_let_go_of_what_is_only_being_written(bricks: Bricks) -> None:
    """Decision 0148; who is asked needs twice the frames for each new file."""

    async def load() -> tuple[int, list[Contended]]:
        volume = Volume(bricks)
        asked: list[Contended] = []
        await volume.start(2)
        contended = volume.top._contended
        volume.top._contended = lambda event: (asked.append(event), contended(event))
        directory = await volume.mkdir(b"one")
        bricks.heal()
        sweep = asyncio.ensure_future(asyncio.to_thread(bricks.ask, do="heal", wait=True))
        count = 0
        while not sweep.done() or count < 20:
            await volume.make(b"f%d" % count, b"x" * 1000, directory)
            count += 1
        in_use = (await sweep)["replicate"]["undone"].get("it is being written", 0)
        await volume.graph.stop()
        return in_use, asked

    in_use, asked = asyncio.run(load())
    assert in_use > 0
    assert asked == []
    wait_for(lambda: bricks.is_healed() and not bricks.pending(0) + bricks.pending(1), 30, "nothing left to heal")


def test_an_empty_brick_is_filled_by_a_full_heal(bricks: Bricks) -> None:
    async def change() -> None:
        volume = Volume(bricks)
        await volume.start(2)
        one = await volume.mkdir(b"one")
        for i in range(30):
            await volume.make(b"f%d" % i, b"x" * i * 1000, one)
        await volume.graph.stop()

    asyncio.run(change())
    bricks.kill(1)
    os.rename(bricks.directories[1], bricks.folder / "lost")
    bricks.directories[1].mkdir()
    bricks.start(1)
    bricks.heal()
    wait_for(lambda: len(bricks.ask(do="status")["replicate"]["up"]) == 2, 20, "both bricks")
    bricks.ask(do="heal", full=True, wait=True)
    assert bricks.tree(0) == bricks.tree(1)
    assert len(bricks.tree(1)) == 31
    assert bricks.pending(0) == bricks.pending(1) == []


def test_a_split_brain_is_listed_explained_and_ended(bricks: Bricks) -> None:
    async def change(alive: int, data: bytes) -> None:
        volume = Volume(bricks)
        await volume.start(1 if alive < 2 else 2)
        if alive == 2:
            await volume.make(b"f", b"same")
        else:
            found = await volume.top.lookup(volume.caller, Loc(parent=ROOT_GFID, name=b"f"))
            await volume.write(found.iatt.gfid, data, 0)
        await volume.graph.stop()

    asyncio.run(change(2, b""))
    for alive in (0, 1):
        bricks.kill(1 - alive)
        asyncio.run(change(alive, b"side %d" % alive))
        bricks.start(1 - alive)
    bricks.heal()
    wait_for(lambda: len(bricks.ask(do="status")["replicate"]["up"]) == 2, 20, "both bricks")
    splits = bricks.ask(do="info", splits=True)
    assert [[i["path"] for i in b["items"]] for b in splits] == [["/f"], ["/f"]]
    assert "bytes 0 to 5 differ" in bricks.ask(do="explain", path="/f")
    assert bricks.ask(do="resolve", policy="source-brick", source="c1", path="/f") == ["Healed /f."]
    assert bricks.tree(0) == bricks.tree(1)
    assert bricks.tree(0)["f"][2] == b"side 1"
    assert bricks.pending(0) == bricks.pending(1) == []


def test_a_directory_that_one_side_removed_comes_back_with_what_the_other_one_made_in_it(bricks: Bricks) -> None:
    """One in which nobody has made anything does not, and nobody can any more who sees both sides."""

    async def go_on(removed: bytes) -> None:
        volume = Volume(bricks)
        await volume.start(2)
        with pytest.raises(FopError) as caught:
            await volume.make(b"f", b"", removed)
        assert caught.value.errno == errno.ESTALE
        await volume.graph.stop()

    async def change(alive: int) -> bytes:
        volume, removed = Volume(bricks), b""
        await volume.start(1 if alive < 2 else 2)
        if alive == 2:
            await volume.mkdir(b"d")
            removed = await volume.mkdir(b"gone")
        elif alive == 0:
            found = await volume.top.lookup(volume.caller, Loc(parent=ROOT_GFID, name=b"d"))
            await volume.make(b"f", b"acknowledged", found.iatt.gfid)
        else:
            for name in (b"d", b"gone"):
                await volume.top.rmdir(volume.caller, Loc(parent=ROOT_GFID, name=name))
        await volume.graph.stop()
        return removed

    removed = asyncio.run(change(2))
    for alive in (0, 1):
        bricks.kill(1 - alive)
        asyncio.run(change(alive))
        bricks.start(1 - alive)
    asyncio.run(go_on(removed))
    bricks.heal()
    wait_for(bricks.is_healed, 30, "the heal")
    assert bricks.tree(0) == bricks.tree(1)
    assert set(bricks.tree(1)) == {"d", "d/f"}
    assert bricks.tree(1)["d/f"][2] == b"acknowledged"
    assert bricks.pending(0) == bricks.pending(1) == []


async def wait_for_async_call(call: Callable[[], bool], what: str) -> None:
    """In a thread, because the condition waits for an answer itself."""
    await asyncio.to_thread(wait_for, call, 30, what)


ROUNDS = int(os.environ.get("REPL_KILL_ROUNDS", "4"))


def test_rounds_of_kills_under_load_end_with_equal_bricks_and_all_that_was_acknowledged(bricks: Bricks) -> None:
    """REPL_KILL_ROUNDS=50 for the long run."""
    chance = random.Random(7)
    written: dict[bytes, set[bytes]] = {}  # name -> contents that are possible

    async def load(volume: Volume, is_over: asyncio.Event) -> None:
        gfids: dict[bytes, bytes] = {}
        count = 0
        while not is_over.is_set():
            count += 1
            data = b"%08d" % count * chance.choice((1, 10, 30_000))
            name = b"f%d" % chance.randrange(40)
            possible = written.setdefault(name, set())
            possible.add(data)
            try:
                if name not in gfids:
                    gfids[name] = await volume.make(name, data)
                else:
                    await volume.top.truncate(volume.caller, Loc(gfid=gfids[name]), len(data))
                    await volume.write(gfids[name], data, 0)
                written[name] = {data}
            except OSError:
                await asyncio.sleep(0.05)

    async def rounds() -> None:
        volume = Volume(bricks)
        await volume.start(2)
        is_over = asyncio.Event()
        task = asyncio.ensure_future(load(volume, is_over))
        for _ in range(ROUNDS):
            index = chance.randrange(2)
            before = len(written)
            bricks.kill(index)
            await wait_for_async(lambda: volume.top.up.bit_count() == 1, 20, "the link to end")
            await wait_for_async(lambda n=before: len(written) > n or n >= 40, 20, "load on one brick")
            bricks.start(index)  # not in a thread: it would end with it
            await wait_for_async(lambda: volume.top.up == 3, 20, "the brick to be back")
            # Without a quorum the other one may only go when this one has everything.
            await wait_for_async_call(bricks.is_healed, "the brick to be healed")
        is_over.set()
        await task
        await volume.graph.stop()

    bricks.heal()
    asyncio.run(rounds())
    wait_for(lambda: bricks.is_healed() and not bricks.pending(0) + bricks.pending(1), 30, "nothing left to heal")
    assert bricks.pending(0) == bricks.pending(1) == []
    assert bricks.tree(0) == bricks.tree(1)
    for name, possible in written.items():
        found = (bricks.directories[0] / os.fsdecode(name)).read_bytes()
        assert len(possible) > 1 or {found} == possible, name
