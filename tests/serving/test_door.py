"""The door by itself, with a loop that is turned by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.serving import Door, HotRequest, Later, Reply
from vitok.serving.door import RELEASED_AT_ONCE, Pending


class HandLoop:
    def __init__(self) -> None:
        self.due: list[Callable[[], object]] = []

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        self.due.append(lambda: callback(*args))

    def turn(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


class Sink:
    def __init__(self) -> None:
        self.writes: list[tuple[bytes, int, bool]] = []

    def deliver(self, data: bytes, count: int, *, close: bool) -> None:
        self.writes.append((data, count, close))


class Numbers:
    def __init__(self, path: str = "/n") -> None:
        self.path = path
        self.lists: list[list[bytes]] = []

    def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
        self.lists.append([request.body for request in requests])
        return [Reply(200, request.body) for request in requests]


def pending(sink: Sink, endpoint: Any, body: bytes, *, keep: bool = True) -> Pending:
    return Pending(sink, endpoint, HotRequest(body, 0, []), Reply(200, b""), keep)


def test_one_turn_is_one_list() -> None:
    loop, endpoint, sinks = HandLoop(), Numbers(), [Sink(), Sink()]
    door = Door([endpoint])
    for i in range(6):
        door.add(pending(sinks[i % 2], endpoint, b"%d" % i), loop)
    assert endpoint.lists == []
    loop.turn()
    assert endpoint.lists == [[b"0", b"1", b"2", b"3", b"4", b"5"]]
    for offset, sink in enumerate(sinks):
        ((data, count, close),) = sink.writes
        assert count == 3
        assert not close
        assert [part.rpartition(b"\r\n\r\n")[2] for part in data.split(b"HTTP/1.1 ")[1:]] == [
            b"%d" % i for i in range(offset, 6, 2)
        ]
    assert (door.requests, door.batches, door.faults) == (6, 1, 0)
    assert loop.due == []


def test_what_is_too_much_waits_for_the_next_turn() -> None:
    loop, endpoint, sink = HandLoop(), Numbers(), Sink()
    door = Door([endpoint], max_batch=4)
    for i in range(9):
        door.add(pending(sink, endpoint, b"%d" % i), loop)
    for turns in (1, 2, 3):
        loop.turn()
        assert len(endpoint.lists) == turns
    assert [len(batch) for batch in endpoint.lists] == [4, 4, 1]
    assert loop.due == []
    door.add(pending(sink, endpoint, b"later"), loop)
    loop.turn()
    assert endpoint.lists[-1] == [b"later"]


def test_two_endpoints_keep_the_order_of_arrival() -> None:
    loop, sink, order = HandLoop(), Sink(), []

    class Noted(Numbers):
        def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
            order.append((self.path, len(requests)))
            return super().handle(requests)

    a, b = Noted("/a"), Noted("/b")
    door = Door([a, b])
    for endpoint in (a, a, b, a):
        door.add(pending(sink, endpoint, b""), loop)
    loop.turn()
    assert order == [("/a", 2), ("/b", 1), ("/a", 1)]
    assert len(sink.writes) == 1


class Raises(Numbers):
    def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
        raise KeyError("amount")


class TooFew(Numbers):
    def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
        return [Reply(200, b"")] * (len(requests) - 1)


class NoReplies(Numbers):
    def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
        return [{"status": 200} for _ in requests]  # type: ignore[misc]


class NoBytes(Numbers):
    def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
        return [Reply(200, "text") for _ in requests]  # type: ignore[arg-type]


class NoContent(Numbers):
    def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
        return [Reply(204, b"") for _ in requests]


@pytest.mark.parametrize("kind", [Raises, TooFew, NoReplies, NoBytes, NoContent])
def test_a_fault_is_500_for_its_own_requests_only(kind: type[Numbers], caplog: pytest.LogCaptureFixture) -> None:
    loop, sink, good, bad = HandLoop(), Sink(), Numbers("/good"), kind("/bad")
    door = Door([good, bad])
    for endpoint in (good, bad, bad, good):
        door.add(pending(sink, endpoint, b"x"), loop)
    loop.turn()
    statuses = [part[:3] for part in sink.writes[0][0].split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"500", b"500", b"200"]
    assert door.faults == 2
    assert "Traceback" in caplog.text
    assert "/bad failed on 2 requests" in caplog.text
    door.add(pending(sink, good, b"x"), loop)
    loop.turn()
    assert b"200 OK" in sink.writes[-1][0]


def test_rendered_reply() -> None:
    door = Door()
    assert door.render(Reply(200, b"{}"), keep=True) == (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    )
    door.use_headers([(b"date", b"today")])
    assert door.render(Reply(503, b"", b"retry-after: 1\r\n"), keep=False) == (
        b"HTTP/1.1 503 Service Unavailable\r\ndate: today\r\ncontent-type: application/problem+json\r\n"
        b"content-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
    )


@pytest.mark.parametrize("path", ["hot", "", "/hot?x=1", "/a b", "/a#b", "/%61", "/ä"])
def test_wrong_paths(path: str) -> None:
    with pytest.raises(InvalidInput, match="path: got"):
        Door([Numbers(path)])


def test_wrong_arguments() -> None:
    with pytest.raises(InvalidInput, match="one endpoint only"):
        Door([Numbers(), Numbers()])
    with pytest.raises(InvalidInput, match="max_body: got 0, must be at least 1"):
        Door(max_body=0)
    with pytest.raises(InvalidInput, match="max_batch"):
        Door(max_batch=0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=60),
    st.integers(1, 8),
)
def test_every_request_is_answered_once_and_in_order(plan: list[tuple[int, int, bool]], max_batch: int) -> None:
    loop, sinks = HandLoop(), [Sink() for _ in range(4)]
    endpoints = [Numbers("/0"), Numbers("/1"), Raises("/2")]
    door = Door(endpoints, max_batch=max_batch)
    expected: list[list[bytes]] = [[] for _ in sinks]
    for i, (place, endpoint, turn) in enumerate(plan):
        door.add(pending(sinks[place], endpoints[endpoint], b"=%d=" % i), loop)
        expected[place].append(b"500" if endpoint == 2 else b"=%d=" % i)
        if turn:
            loop.turn()
    while loop.due:
        loop.turn()
    for sink, wanted in zip(sinks, expected, strict=True):
        parts = b"".join(data for data, _, _ in sink.writes).split(b"HTTP/1.1 ")[1:]
        assert [b"500" if part[:3] == b"500" else part.rpartition(b"\r\n")[2] for part in parts] == wanted
        assert sum(count for _, count, _ in sink.writes) == len(wanted)


class Slow:
    path = "/slow"

    def __init__(self) -> None:
        self.owed: list[Later] = []

    def handle(self, requests: Sequence[HotRequest]) -> list[Reply | Later]:
        out: list[Reply | Later] = [Later() for _ in requests]
        self.owed.extend(later for later in out if isinstance(later, Later))
        return out


def bodies(sink: Sink) -> list[bytes]:
    return [part.rpartition(b"\r\n\r\n")[2] for data, _, _ in sink.writes for part in data.split(b"HTTP/1.1 ")[1:]]


def test_a_later_reply_keeps_its_place_on_the_connection_and_holds_up_no_other() -> None:
    loop, slow, quick = HandLoop(), Slow(), Numbers()
    door, one, other = Door([slow, quick]), Sink(), Sink()
    for sink, endpoint, body in ((one, quick, b"0"), (one, slow, b""), (one, quick, b"2"), (other, quick, b"3")):
        door.add(pending(sink, endpoint, body), loop)
    loop.turn()
    assert (bodies(one), bodies(other)) == ([b"0"], [b"3"])
    door.add(pending(one, quick, b"4"), loop)
    loop.turn()
    assert bodies(one) == [b"0"]
    slow.owed[0].give(Reply(200, b"1"))
    slow.owed[0].give(Reply(200, b"twice"))
    loop.turn()
    assert bodies(one) == [b"0", b"1", b"2", b"4"]
    assert sum(count for _, count, _ in one.writes) == 4
    door.add(pending(one, quick, b"5"), loop)
    loop.turn()
    assert bodies(one)[-1] == b"5"


def test_later_replies_given_together_leave_in_one_write() -> None:
    loop, slow = HandLoop(), Slow()
    door, sink = Door([slow]), Sink()
    for keep in (True, True, False):
        door.add(pending(sink, slow, b"", keep=keep), loop)
    loop.turn()
    slow.owed[1].give(Reply(200, b"b"))
    loop.turn()
    assert sink.writes == []
    slow.owed[0].give(Reply(200, b"a"))
    slow.owed[2].give(Reply(200, b"c"))
    loop.turn()
    ((_, count, close),) = sink.writes
    assert (bodies(sink), count, close) == ([b"a", b"b", b"c"], 3, True)
    assert loop.due == []


def test_who_asks_meanwhile_waits_for_a_few_of_those_that_were_owed_only() -> None:
    loop, slow, quick = HandLoop(), Slow(), Numbers()
    door, sinks, other = Door([slow, quick]), [Sink() for _ in range(50)], Sink()
    for sink in sinks:
        door.add(pending(sink, slow, b""), loop)
    loop.turn()
    for place, later in enumerate(slow.owed):
        later.give(Reply(200, b"%d" % place))
    loop.turn()
    assert sum(len(sink.writes) for sink in sinks) == RELEASED_AT_ONCE
    door.add(pending(other, quick, b"x"), loop)
    late = Sink()
    door.add(pending(late, slow, b""), loop)
    loop.turn()
    assert bodies(other) == [b"x"]
    slow.owed[-1].give(Reply(200, b"late"))
    for _ in range(4):
        loop.turn()
    assert [bodies(sink) for sink in sinks] == [[b"%d" % place] for place in range(50)]
    assert bodies(late) == [b"late"]
    assert loop.due == []


def test_a_later_reply_that_is_none_is_a_fault_of_ours() -> None:
    loop, slow = HandLoop(), Slow()
    door, sink = Door([slow]), Sink()
    door.add(pending(sink, slow, b""), loop)
    loop.turn()
    slow.owed[0].give(Reply(99, b"a"))
    loop.turn()
    assert sink.writes[0][0].startswith(b"HTTP/1.1 500 ")
    assert door.faults == 1


def test_a_media_type_of_its_own() -> None:
    door = Door()
    assert b"content-type: application/octet-stream\r\n" in door.render(
        Reply(200, b"", media_type=b"application/octet-stream"), keep=True
    )
    assert b"content-type: application/json\r\n" in door.render(Reply(200, b""), keep=True)
