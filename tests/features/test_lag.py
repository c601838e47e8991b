"""How far a follower is behind: by hand, over a topic in memory, and over a real broker's protocol."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.engines.servers import make_topic, mock_kafka

from vitok.clock import HOUR, SECOND, EventClock
from vitok.engines import Message, Outgoing, open_stream, publish
from vitok.features import Count, Entity, FeatureSet, Source, View
from vitok.features.lag import Lag, LagMeter
from vitok.features.live import Follower

CARD = View(name="card", entity=Entity("card", "card"), source=Source("payments", "id"), aggregations=(Count("1h"),))
FEATURES = FeatureSet(views=(CARD,))


class Seconds:
    """A clock that never goes back, and is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def meter() -> tuple[LagMeter, EventClock, Seconds]:
    clock, seconds = EventClock(HOUR), Seconds()
    return LagMeter("payments", clock=clock, monotonic=seconds), clock, seconds


def message(partition: int, time: int) -> Message:
    return Message(partition, 0, None, b"{}", time)


def test_nothing_is_known_before_the_first_read() -> None:
    found, _, _ = meter()
    assert found.lag() == Lag(source="payments", messages=None, seconds=None)
    assert found.lag().too_far(60.0) == "payments has not been read yet"
    assert found.lag().too_far(None) == ""
    found.stepped({0: None, 1: 0})
    assert found.lag().seconds is None
    found.failed("no server")
    assert found.lag().too_far(1.0) == "payments has not been read yet; it fails: no server"


def test_at_the_end_and_behind_it() -> None:
    found, clock, seconds = meter()
    found.took([message(0, HOUR - 300 * SECOND)])
    found.stepped({0: 40, 1: 0}, n=1)
    assert found.lag() == Lag(source="payments", messages=40, seconds=300.0)
    assert found.lag().too_far(60) == "payments is 300 s behind (40 messages), more than 60 s"
    assert found.lag().too_far(300) == ""
    found.took([message(0, HOUR)])
    found.stepped({0: 0, 1: 0}, n=40)
    assert str(found.lag()) == "payments is at its end"
    # An hour of quiet, then a message: the windows lack it since the last look, not for an hour.
    for _ in range(36):
        seconds.now += 100.0
        found.stepped({0: 0, 1: 0})
    clock.advance(2 * HOUR)
    seconds.now += 0.2
    found.stepped({0: 1, 1: 0})
    assert found.lag().seconds == pytest.approx(0.2)
    seconds.now += 4.0
    assert found.lag().seconds == pytest.approx(4.2)


def test_a_reader_that_hangs_or_fails_falls_behind() -> None:
    found, _, seconds = meter()
    found.stepped({0: 0})
    seconds.now += 0.5
    assert found.lag().seconds == 0.0
    seconds.now += 90.0
    assert found.lag().seconds == 90.5
    found.failed("no server at x")
    assert found.lag() == Lag(source="payments", messages=None, seconds=90.5, failing="no server at x")
    assert found.lag().too_far(60) == "payments is 90.5 s behind, more than 60 s; it fails: no server at x"
    found.stepped({0: 0})
    assert found.lag() == Lag(source="payments", messages=0, seconds=0.0)


def test_the_partition_that_is_furthest_behind_counts() -> None:
    found, _, _ = meter()
    found.took([message(0, HOUR - SECOND), message(1, HOUR - 50 * SECOND), message(2, 1)])
    found.stepped({0: 5, 1: 5, 2: 0}, n=3)
    assert found.lag() == Lag(source="payments", messages=10, seconds=50.0)


def test_what_never_comes_is_no_message() -> None:
    # The markers of transactions take offsets too.
    found, _, seconds = meter()
    found.took([message(0, HOUR)])
    found.stepped({0: 1}, n=1)
    for _ in range(4):
        seconds.now += 1.0
        found.stepped({0: 1})
        assert found.lag().messages == 1
    seconds.now += 1.0
    found.stepped({0: 1})
    assert found.lag() == Lag(source="payments", messages=0, seconds=0.0)
    found.stepped({0: 4})
    assert found.lag().messages == 4


def test_a_member_without_partitions_lacks_nothing() -> None:
    found, _, _ = meter()
    found.stepped({})
    assert found.lag().seconds == 0.0


def event(number: int) -> Outgoing:
    row = {"id": str(number), "event_time": "2026-01-01T10:00", "card": str(number % 7)}
    return Outgoing(row["card"].encode(), json.dumps(row).encode())


def followed(url: str, folder: Path, done: Callable[[Follower], bool]) -> tuple[Lag, list[Lag]]:
    follower, stop, seen = Follower([FEATURES], "payments", url, folder), threading.Event(), list[Lag]()
    assert follower.lag.seconds is None

    def after_step(_: int) -> None:
        seen.append(follower.lag)
        if done(follower):
            stop.set()

    follower.run(stop, after_step=after_step)
    found = follower.lag
    follower.close()
    return found, seen


def test_a_follower_says_how_far_it_is(tmp_path: Path) -> None:
    url = "memory://lag-follower"
    publish(url + "?n_partitions=2", [event(number) for number in range(12_000)])
    found, seen = followed(url, tmp_path, lambda one: one.report.n_messages == 12_000 and one.lag.seconds == 0.0)
    assert found.messages == 0
    assert seen[0].messages == 2_000
    assert seen[0].seconds is not None
    assert 0 <= seen[0].seconds < 60


def test_a_follower_of_kafka_says_how_far_it_is(tmp_path: Path) -> None:
    with mock_kafka() as broker:
        url = make_topic(broker, "lag")
        publish(url, [event(number) for number in range(50)])
        found, seen = followed(url, tmp_path, lambda one: one.report.n_messages == 50 and one.lag.seconds == 0.0)
        assert found.messages == 0
        assert all(item.seconds is None or item.seconds < 60 for item in seen)
        # A new reader at the beginning has all before it.
        stream = open_stream(url)
        left: set[int] = set()
        for _ in range(100):
            if stream.poll(1, 0.1):
                left.add(sum(count or 0 for count in stream.behind().values()))
                break
        assert left
        assert max(left) <= 49
        stream.close()
        stream = open_stream(url + "?start=latest")
        stream.poll(1, 0.1)
        assert set(stream.behind().values()) == {0}
        stream.close()
