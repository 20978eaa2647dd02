# SPDX-License-Identifier: Apache-2.0
"""Who may connect to the replication port."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from repl.config.model import Address, AddressFamily
from repl.daemon.link import LinkPlaces, LinkSockets
from tests.lib.ports import free_port


def accepted(peer_host: str, *, accepts_any: bool = False) -> tuple[int, bytes]:
    """How many connections from 127.0.0.1 get through, and what a refused one reads (nothing, the end)."""

    async def run() -> tuple[int, bytes]:
        count = 0

        def on_accepted(fd: int, source: str) -> None:
            nonlocal count
            count += 1
            assert source == ("" if peer_host == "127.0.0.1" else "127.0.0.1")
            os.close(fd)

        mine = Address(AddressFamily.IPV4, "127.0.0.1", str(free_port()))
        places = LinkPlaces(mine, Address(AddressFamily.IPV4, peer_host, "7789"), accepts_any=accepts_any)
        link = LinkSockets(
            places,
            on_accepted=on_accepted,
            on_dialled=lambda dial, fd: None,
            on_dial_failed=lambda dial, reason: None,
            on_listen_failed=lambda reason: pytest.fail(reason),
        )
        link.listen(True)
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, (mine.host, mine.port))
            got = await asyncio.wait_for(loop.sock_recv(client, 1), 10)
        await link.close()
        return count, got

    return asyncio.run(run())


def test_configured_peer_is_accepted() -> None:
    assert accepted("127.0.0.1") == (1, b"")


def test_stranger_is_refused_and_never_reaches_the_node() -> None:
    assert accepted("192.0.2.7") == (0, b"")


def test_anybody_is_accepted_where_the_configuration_says_so() -> None:
    assert accepted("192.0.2.7", accepts_any=True) == (1, b"")
