# SPDX-License-Identifier: Apache-2.0
"""How one end of a connection sends: the frames of one turn of the loop together, in order, none lost at the end."""

from __future__ import annotations

import asyncio
from typing import Any

from repl.files.rpc import frames
from repl.files.rpc.connection import JOINED_BYTES_MAX, TURN_BYTES_MAX, Connection
from repl.files.rpc.frames import Frame, Kind


class Transport(asyncio.Transport):
    """Writes down what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.ended = ""

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def writelines(self, parts: Any) -> None:
        self.writes.append(b"".join(parts))

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return bool(self.ended)

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"


class Owner:
    def on_connected(self, connection: Connection) -> None:
        pass

    def on_frame(self, frame: Frame) -> None:
        pass

    def on_unsent(self, is_full: bool) -> None:
        pass

    def on_lost(self, reason: str) -> None:
        pass


def connected() -> tuple[Connection, Transport]:
    connection, transport = Connection(lambda _: Owner()), Transport()
    connection.connection_made(transport)
    return connection, transport


def frame(number: int, payload: bytes = b"") -> bytes:
    return frames.encode(Kind.CALL, number, b"body", len(payload)) + payload


def test_frames_of_one_turn_are_written_together_and_in_order() -> None:
    async def main() -> None:
        connection, transport = connected()
        connection.send(Kind.CALL, 1, b"body")
        connection.send(Kind.CALL, 2, b"body", [b"pay", memoryview(b"load")])
        connection.send(Kind.CALL, 3, b"body")
        expected = frame(1) + frame(2, b"payload") + frame(3)
        assert transport.writes == [] and connection.unsent_bytes == len(expected)
        await asyncio.sleep(0)
        assert transport.writes == [expected] and connection.unsent_bytes == 0
        connection.send(Kind.CALL, 4, b"body")
        await asyncio.sleep(0)
        assert transport.writes[1:] == [frame(4)]

    asyncio.run(main())


def test_answers_to_what_was_received_together_go_out_together_in_the_same_turn() -> None:
    class Answering(Owner):
        def on_frame(self, frame: Frame) -> None:
            connection.send(Kind.ANSWER, frame.call_id, b"")
            assert transport.writes == []

    connection: Connection
    transport = Transport()

    async def main() -> None:
        nonlocal connection
        connection = Connection(lambda _: Answering())
        connection.connection_made(transport)
        received = frames.encode(Kind.CALL, 1, b"") + frames.encode(Kind.CALL, 2, b"")
        connection.get_buffer(-1)[: len(received)] = received
        connection.buffer_updated(len(received))
        answers = frames.encode(Kind.ANSWER, 1, b"") + frames.encode(Kind.ANSWER, 2, b"")
        assert transport.writes == [answers] and connection.unsent_bytes == 0
        await asyncio.sleep(0)
        assert transport.writes == [answers]

    asyncio.run(main())


def test_many_bytes_do_not_wait_for_the_end_of_the_turn() -> None:
    async def main() -> None:
        connection, transport = connected()
        connection.send(Kind.CALL, 1, b"body", [bytes(JOINED_BYTES_MAX)])
        connection.send(Kind.CALL, 2, b"body", [bytes(TURN_BYTES_MAX)])
        assert len(transport.writes) == 1
        await asyncio.sleep(0)
        assert transport.writes == [frame(1, bytes(JOINED_BYTES_MAX)) + frame(2, bytes(TURN_BYTES_MAX))]

    asyncio.run(main())


def test_what_was_sent_before_the_end_goes_out_and_nothing_behind_it() -> None:
    async def main() -> None:
        for end in (Connection.close, Connection.abort):
            connection, transport = connected()
            connection.send(Kind.CALL, 1, b"body")
            end(connection, "enough")
            connection.send(Kind.CALL, 2, b"body")
            await asyncio.sleep(0)
            assert transport.writes == [frame(1)] and transport.ended

    asyncio.run(main())


def test_a_connection_that_is_lost_in_the_same_turn_writes_no_more() -> None:
    async def main() -> None:
        connection, transport = connected()
        connection.send(Kind.CALL, 1, b"body")
        connection.connection_lost(None)
        await asyncio.sleep(0)
        assert transport.writes == [] and connection.unsent_bytes == 0

    asyncio.run(main())
