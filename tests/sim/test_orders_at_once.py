# SPDX-License-Identifier: Apache-2.0
"""Orders that come while an earlier one is still being carried out: refused, or in turn, never half and half."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from repl.drbd.states import ConnectionState, DiskState, Role
from repl.errors import ReplError, RequestRefused
from tests.lib.tools import require_sim
from tests.sim.cluster import QUICK_NET, Cluster, Setup

C, D = ConnectionState, DiskState
SLOW_NS = 300_000_000


@pytest.fixture
def pair() -> Iterator[Cluster]:
    require_sim()
    with Cluster(11, Setup(external=True, net=QUICK_NET)) as cluster:
        cluster.connect_fresh()
        yield cluster


def slow_metadata(pair: Cluster, node: int) -> None:
    pair.shells[node].md.settings(write_min_ns=SLOW_NS, write_max_ns=SLOW_NS)


def number(error: ReplError | Exception | None) -> int:
    assert isinstance(error, RequestRefused), error
    return error.number


def begun_to_connect(pair: Cluster, **args: bool) -> None:
    """Node 0 is told to connect while the metadata holds up every change of state."""
    for node in (0, 1):
        pair.ask(node, "disconnect", force=True)
    slow_metadata(pair, 0)
    outdate = pair.fire(0, "outdate")
    first = pair.fire(0, "connect", **args)
    assert first.is_done and first.error is None and not outdate.is_done
    assert pair.state(0)[1] == C.STANDALONE


def test_second_connect_is_refused_before_the_first_one_has_begun(pair: Cluster) -> None:
    begun_to_connect(pair)
    assert number(pair.fire(0, "connect").error) == 125
    pair.ask(1, "connect")
    pair.until(lambda: pair.in_sync, 20_000, "in sync")
    assert number(pair.fire(0, "connect").error) == 125


def test_second_connect_does_not_forget_what_the_first_one_was_told(pair: Cluster) -> None:
    begun_to_connect(pair, discard_my_data=True)
    assert number(pair.fire(0, "connect").error) == 125
    assert pair.node(0).connection.discard_my_data


def test_connect_that_has_not_begun_can_be_taken_back_and_given_again(pair: Cluster) -> None:
    begun_to_connect(pair)
    pair.ask(0, "disconnect")
    assert pair.state(0)[1] == C.STANDALONE
    pair.ask(0, "connect")
    pair.ask(1, "connect")
    pair.until(lambda: pair.in_sync, 20_000, "in sync")


@pytest.mark.parametrize("clear", [False, True])
def test_connect_waits_for_a_new_generation_that_is_being_made(pair: Cluster, clear: bool) -> None:
    """The peer would be compared with the old one, and the marks of what differs may be gone already."""
    pair.ask(0, "disconnect")
    pair.cut(silent=False)
    slow_metadata(pair, 0)
    before = pair.volume(0).uuids.current
    renewal = pair.fire(0, "new-current-uuid", clear_bitmap=clear)
    connect = pair.fire(0, "connect")
    pair.until(lambda: pair.state(0)[1] > C.STANDALONE, 10_000, "the connection's start")
    assert renewal.is_done and renewal.error is None and pair.volume(0).uuids.current != before
    assert connect.is_done and connect.error is None


@pytest.mark.parametrize("force", [False, True])
def test_connect_right_behind_a_disconnect(pair: Cluster, force: bool) -> None:
    slow_metadata(pair, 0)
    pair.ask(0, "disconnect", force=force)
    assert pair.state(0)[1] == C.STANDALONE
    pair.ask(0, "connect")
    pair.until(lambda: pair.in_sync, 20_000, "in sync")


def test_connect_before_the_disconnect_is_answered_is_refused(pair: Cluster) -> None:
    slow_metadata(pair, 0)
    leaving = pair.fire(0, "disconnect")
    assert number(pair.fire(0, "connect").error) == 125
    pair.until(lambda: leaving.is_done, 10_000, "the disconnect")
    assert leaving.error is None and pair.state(0)[1] == C.STANDALONE


def test_second_up_is_refused_and_takes_nothing_down(pair: Cluster) -> None:
    pair.ask(0, "down")
    pair.until(lambda: not pair.shells[0].is_running, 10_000, "the end of the process")
    pair.shells[0].start()
    first = pair.fire(0, "up")
    assert number(pair.fire(0, "up").error) == 124 and not first.is_done
    pair.until(lambda: first.is_done, 10_000, "up")
    assert first.error is None
    pair.until(lambda: pair.in_sync, 20_000, "in sync")
    assert number(pair.fire(0, "up").error) == 124 and pair.in_sync


def test_up_leaves_an_order_to_connect_that_came_before_as_it_is(pair: Cluster) -> None:
    pair.ask(0, "down")
    pair.until(lambda: not pair.shells[0].is_running, 10_000, "the end of the process")
    pair.shells[0].start()
    up = pair.fire(0, "up")
    assert pair.fire(0, "connect", discard_my_data=True).error is None and not up.is_done
    pair.until(lambda: up.is_done and pair.node(0).volumes[0].attached, 10_000, "up")
    assert pair.node(0).connection.discard_my_data


@pytest.mark.parametrize(("verb", "args"), [("connect", {}), ("attach", {}), ("primary", {}), ("up", {})])
def test_nothing_begins_while_it_goes_down(pair: Cluster, verb: str, args: dict[str, bool]) -> None:
    slow_metadata(pair, 0)
    down = pair.fire(0, "down")
    pair.until(lambda: pair.state(0)[1] == C.STANDALONE, 10_000, "the end of the connection")
    assert not down.is_done and pair.shells[0].is_running
    assert number(pair.fire(0, verb, **args).error) == (124 if verb == "up" else 127)
    pair.until(lambda: down.is_done, 10_000, "down")
    assert down.error is None


def test_down_that_is_refused_leaves_everything_possible(pair: Cluster) -> None:
    app = pair.serve(0)
    down = pair.fire(0, "down")
    pair.until(lambda: down.is_done, 10_000, "the answer")
    assert down.error is not None
    pair.ask(0, "disconnect", force=True)
    pair.ask(0, "connect")
    app.write(1)
    app.stop()
    pair.check_idle_pair()


def test_second_attach_is_refused_before_and_after_the_first_one_is_done(pair: Cluster) -> None:
    pair.ask(0, "detach")
    first = pair.fire(0, "attach")
    assert number(pair.fire(0, "attach").error) == 162 and not first.is_done
    pair.until(lambda: first.is_done, 10_000, "the attach")
    assert first.error is None
    assert number(pair.fire(0, "attach").error) == 124
    pair.until(lambda: pair.in_sync, 20_000, "in sync")


def test_attach_right_behind_a_detach(pair: Cluster) -> None:
    slow_metadata(pair, 0)
    detach = pair.fire(0, "detach")
    assert number(pair.fire(0, "attach").error) == 124
    pair.until(lambda: detach.is_done, 10_000, "the detach")
    pair.ask(0, "attach")
    pair.until(lambda: pair.in_sync, 20_000, "in sync")


def test_second_promotion_ends_with_the_first_one(pair: Cluster) -> None:
    """Its answer says that the node is Primary; so does the metadata."""
    slow_metadata(pair, 0)
    answers = [pair.fire(0, "primary") for _ in range(2)]
    assert not any(answer.is_done for answer in answers)
    pair.until(lambda: answers[1].is_done, 10_000, "the second answer")
    assert answers[0].is_done and not any(answer.error for answer in answers)
    assert pair.state(0)[0] == Role.PRIMARY and pair.volume(0).uuids.current & 1


def test_demotion_behind_a_promotion_that_is_under_way_has_the_last_word(pair: Cluster) -> None:
    slow_metadata(pair, 0)
    promotion, demotion = (pair.fire(0, verb) for verb in ("primary", "secondary"))
    pair.until(lambda: promotion.is_done and demotion.is_done, 10_000, "both answers")
    assert promotion.error is None and demotion.error is None
    assert pair.state(0)[0] == Role.SECONDARY
