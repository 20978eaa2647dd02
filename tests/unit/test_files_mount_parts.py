# SPDX-License-Identifier: Apache-2.0
"""The mount's parts that need no kernel: options, the table of inodes, encodings, the process equipment."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from repl.errors import UsageError
from repl.files.mount import wire
from repl.files.mount.inodes import InodeTable
from repl.files.mount.options import parse_mount_options
from repl.files.process import VolfileWatch
from repl.files.values import ROOT_GFID, Fd, Iatt
from tests.lib.wait import wait_for_async

GFID = bytes(range(16))


def test_mount_options_keep_the_names_of_gluster() -> None:
    found = parse_mount_options(
        ["ro", "acl", "attribute-timeout=2", "negative_timeout=5sec", "_netdev", "log-level=debug"]
    )
    assert found.mount.is_read_only and found.mount.has_acl
    assert (found.mount.attribute_timeout, found.mount.negative_timeout) == (2, 5)
    assert set(found.kernel) == {"ro", "allow_other", "default_permissions"}
    assert found.log_level == "debug"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("atribute-timeout=2", "Did you mean attribute-timeout?"),
        ("entry-timeout", "takes a value"),
        ("entry-timeout=soon", "a time such as"),
    ],
)
def test_mount_options_that_are_wrong_say_how(word: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mount_options([word])
    assert says in str(caught.value)


def test_inode_lives_until_the_kernel_forgets_each_lookup() -> None:
    table = InodeTable()
    inode = table.remember(Iatt(GFID), 1, b"a")
    assert table.remember(Iatt(GFID), 1, b"b") is inode
    assert table.path(inode) == b"/b"
    assert table.forget(inode.nodeid, 1) is None
    handle = table.open(inode, Fd(GFID))
    assert table.forget(inode.nodeid, 1) is None, "it is still open"
    table.close(handle.number)
    assert table.forget(inode.nodeid, 0) == GFID
    again = table.remember(Iatt(GFID))
    assert again.nodeid != inode.nodeid


def test_inode_numbers_are_never_zero_and_root_is_one() -> None:
    assert wire.inode_number(ROOT_GFID) == 1
    assert wire.inode_number(bytes(16)) > 0
    assert wire.inode_number(b"\xff" * 8 + bytes(8)) < 1 << 63


def test_attributes_before_1970_wrap_as_the_kernel_expects() -> None:
    found = wire.attributes(Iatt(GFID, mtime_ns=-1))
    assert found[4] == (1 << 64) - 1 and found[7] == 999_999_999


def test_volfile_watch_waits_until_the_writer_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repl.files.process.WATCH_INTERVAL_S", 0.01)
    path = tmp_path / "v"
    path.write_text("a")
    seen: list[int] = []

    async def scenario() -> None:
        watch = VolfileWatch(str(path), lambda: seen.append(1))
        path.write_text("other")
        await wait_for_async(lambda: seen, what="the change")
        path.unlink()
        os.replace(_written(tmp_path / "w"), path)
        await wait_for_async(lambda: len(seen) == 2, what="the replacement")
        watch.stop()

    asyncio.run(scenario())


def _written(path: Path) -> Path:
    path.write_text("new file")
    return path
