# SPDX-License-Identifier: Apache-2.0
"""The kernel's asynchronous I/O of a brick: one system call for many, room, errors, and what is given up."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repl.files.translators.posix.aio import Aio
from repl.limits import POSIX_AIO_MAX

BLOCK = 4096


def forget_pages(path: Path) -> None:
    """Nothing of it is in the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """64 blocks that are on the disk, opened past the page cache."""
    path = tmp_path / "file"
    path.write_bytes(b"".join(bytes([n]) * BLOCK for n in range(64)))
    forget_pages(path)
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError:
        pytest.skip("this file system has no direct I/O")
    yield fd
    os.close(fd)


def counted(aio: Aio) -> list[int]:
    """How many operations each system call takes."""
    counts: list[int] = []
    submit = aio._submit_some

    def count(some: int, pointers: Any) -> int:
        counts.append(some)
        return submit(some, pointers)

    aio._submit_some = count  # type: ignore[assignment]
    return counts


async def until_settled(aio: Aio, file: int) -> None:
    async with asyncio.timeout(20):
        while aio._waiting or aio._queue:
            await aio.sync(file, is_data=True)


def test_reads_of_one_turn_go_with_one_system_call(file: int) -> None:
    async def main() -> None:
        aio = Aio()
        counts = counted(aio)
        read = await asyncio.gather(*(aio.read(file, BLOCK, n * BLOCK) for n in range(16)))
        assert [data[:1] for data in read] == [bytes([n]) for n in range(16)]
        assert counts == [16]
        aio.close()

    asyncio.run(main())


def test_more_than_there_is_room_for_waits_its_turn(file: int) -> None:
    async def main() -> None:
        aio = Aio()
        counts = counted(aio)
        many = POSIX_AIO_MAX + 100
        read = await asyncio.gather(*(aio.read(file, BLOCK, n % 64 * BLOCK) for n in range(many)))
        assert [data[0] for data in read] == [n % 64 for n in range(many)]
        assert sum(counts) == many and max(counts) <= POSIX_AIO_MAX
        assert aio._room == POSIX_AIO_MAX and not aio._line
        aio.close()

    asyncio.run(main())


def test_several_writes_and_a_sync_are_on_the_disk(file: int) -> None:
    async def main() -> None:
        aio = Aio()
        pieces = [(bytes([200 + n]) * BLOCK, n * 2 * BLOCK) for n in range(8)]
        assert await aio.write(file, [(memoryview(data), offset) for data, offset in pieces]) == []
        await aio.sync(file, is_data=False)
        for data, offset in pieces:
            assert await aio.read(file, BLOCK, offset) == data
            assert (await aio.read(file, BLOCK, offset + BLOCK))[0] == offset // BLOCK + 1
        aio.close()

    asyncio.run(main())


def test_a_read_at_the_end_is_short(file: int) -> None:
    async def main() -> None:
        aio = Aio()
        assert len(await aio.read(file, 4 * BLOCK, 62 * BLOCK)) == 2 * BLOCK
        assert await aio.read(file, BLOCK, 64 * BLOCK) == b""
        aio.close()

    asyncio.run(main())


def test_an_error_is_that_of_its_operation_alone(file: int, tmp_path: Path) -> None:
    async def main() -> None:
        aio = Aio()
        closed = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
        os.close(closed)
        results = await asyncio.gather(
            aio.read(file, BLOCK, 0), aio.read(closed, BLOCK, 0), aio.read(file, BLOCK, 5 * BLOCK),
            return_exceptions=True,
        )  # fmt: skip
        assert results[0] == b"\0" * BLOCK and results[2] == b"\x05" * BLOCK
        assert isinstance(results[1], OSError) and results[1].errno == errno.EBADF
        assert aio._room == POSIX_AIO_MAX
        aio.close()

    asyncio.run(main())


def test_what_is_given_up_before_it_was_submitted_never_meets_another_file(file: int, tmp_path: Path) -> None:
    """A number of a descriptor that is closed after the cancellation may be that of another file at once."""

    async def main() -> None:
        aio = Aio()
        victim = tmp_path / "victim"
        victim.write_bytes(b"v" * BLOCK)
        other = os.dup(file)
        writing = asyncio.ensure_future(aio.write(other, [(b"w" * BLOCK, 0)]))
        asyncio.get_running_loop().call_soon(writing.cancel)
        with pytest.raises(asyncio.CancelledError):
            await writing
        os.close(other)
        again = os.open(victim, os.O_RDWR | os.O_DIRECT)
        assert again == other  # the same number
        await until_settled(aio, file)
        assert victim.read_bytes() == b"v" * BLOCK
        os.close(again)
        aio.close()

    asyncio.run(main())


def test_who_waits_for_room_and_is_given_up_leaves_it_to_others(file: int) -> None:
    async def main() -> None:
        aio = Aio()
        running = [asyncio.ensure_future(aio.read(file, BLOCK, 0)) for _ in range(POSIX_AIO_MAX)]
        await asyncio.sleep(0)
        late = [asyncio.ensure_future(aio.read(file, BLOCK, n * BLOCK)) for n in range(3)]
        await asyncio.sleep(0)
        late[0].cancel()
        assert (await late[1])[0] == 1 and (await late[2])[0] == 2
        await asyncio.gather(*running)
        assert aio._room == POSIX_AIO_MAX and not aio._line
        aio.close()

    asyncio.run(main())


def test_pieces_that_would_wait_are_told_and_the_others_are_written(file: int, tmp_path: Path) -> None:
    """Pages in the cache make a direct write wait."""

    async def main() -> None:
        aio = Aio()
        cached = os.open(tmp_path / "file", os.O_RDONLY)
        os.posix_fadvise(cached, 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        os.pread(cached, BLOCK, 0)
        os.close(cached)
        forgotten = 40
        late = await aio.write(file, [(b"x" * BLOCK, 0), (b"y" * BLOCK, forgotten * BLOCK)])
        assert late in ([0], [])  # a kernel that does not wait is as good
        assert (await aio.read(file, BLOCK, forgotten * BLOCK)) == b"y" * BLOCK
        assert (await aio.read(file, BLOCK, 0)) == (b"\0" if late else b"x") * BLOCK
        aio.close()

    asyncio.run(main())
