"""The conformance suite of event streams: a new engine gets all of it by being listed in `STREAMS`.

`kafka` is Tansu, a broker of its own; `kafka-mock` is the broker inside librdkafka, which forms groups within seconds
and deletes old messages. Gaps: Tansu 0.6 does not say that a position is out of range, and has no retention in memory.
"""

import contextlib
import itertools
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engines.servers import PATIENCE, free_ports, make_topic, tansu, until

from vitok.clock import SystemClock
from vitok.engines import EventStream, Message, Outgoing, open_store, open_stream, publish
from vitok.engines.memory_topic import MemoryTopic
from vitok.errors import InvalidInput, StoreError

ROOT = Path(__file__).parent.parent.parent
STREAMS = ["memory", "kafka-mock", "kafka"]
RANGES = ["memory", "kafka-mock"]  # that know which offsets they keep
GROUPS = ["memory", pytest.param("kafka-mock", marks=pytest.mark.slow)]  # a rebalance of Tansu takes a minute
N = 4
TIME = 1_700_000_000_123_000
_numbers = itertools.count()


@dataclass
class Kit:
    """A kind of stream, and the way to a new topic of four partitions."""

    name: str
    fresh: Callable[[], str]


@pytest.fixture
def kit(request: pytest.FixtureRequest) -> Kit:
    name = request.param
    if name == "memory":
        return Kit(name, lambda: f"memory://topic-{next(_numbers)}?n_partitions={N}")
    server = request.getfixturevalue("mock_broker" if name == "kafka-mock" else "broker")
    # The option does nothing, but lets each test go on with &.
    return Kit(name, lambda: make_topic(server, f"topic-{next(_numbers)}") + "?timeout_ms=10000")


def each(names: Sequence[object]) -> Callable:
    return pytest.mark.parametrize("kit", names, indirect=True)


def quick(kit: Kit) -> str:
    """The option for a group of the mock to notice soon who left."""
    return "&session_ms=6000" if kit.name == "kafka-mock" else ""


def read(stream: EventStream, n: int) -> list[Message]:
    """Polls until there are `n` messages."""
    deadline = time.monotonic() + PATIENCE
    found: list[Message] = []
    while len(found) < n and time.monotonic() < deadline:
        found += stream.poll(1000, 1.0)
    assert len(found) == n
    return found


def keep_polling(stream: EventStream, found: list[Message], most: int = 100) -> None:
    """Polls as long as nothing is wrong."""
    deadline = time.monotonic() + 3 * PATIENCE
    while time.monotonic() < deadline:
        found += stream.poll(most, 0.2)


def by_partition(messages: Sequence[Message]) -> dict[int, list[Message]]:
    return {number: [m for m in messages if m.partition == number] for number in range(N)}


def numbered(n: int, partition: int = -1, first: int = 0) -> list[Outgoing]:
    return [Outgoing(b"k", b"%d" % i, TIME, partition) for i in range(first, first + n)]


@each(STREAMS)
def test_messages_come_whole_and_in_order(kit: Kit) -> None:
    url = kit.fresh()
    large = random.Random(0).randbytes(500_000)
    sent = [Outgoing(b"a", b"1", TIME, 2), Outgoing(None, b"\0\xff", TIME, 2), Outgoing(b"", b"", TIME, 2)]
    sent += [Outgoing(b"\0", large, TIME + 1000, 2), Outgoing(b"a", b"other partition", TIME, 0)]
    assert publish(url, sent) == 5
    stream = open_stream(url)
    found = by_partition(read(stream, 5))
    assert found[2] == [Message(2, i, sent[i].key, sent[i].value, sent[i].time) for i in range(4)]
    assert found[0] == [Message(0, 0, b"a", b"other partition", TIME)]
    stream.close()


@each(STREAMS)
def test_a_key_has_one_partition_and_keys_use_several(kit: Kit) -> None:
    url = kit.fresh()
    publish(url, [Outgoing(b"customer/%d" % (i % 20), b"%d" % i) for i in range(200)])
    stream = open_stream(url)
    found = read(stream, 200)
    places = {(message.key, message.partition) for message in found}
    assert len(places) == 20
    assert len({partition for _, partition in places}) > 1
    for key in {message.key for message in found}:
        values = [int(message.value) for message in found if message.key == key]
        assert values == sorted(values)
    assert all(abs(message.time - SystemClock().now()) < 60_000_000 for message in found)
    stream.close()


@each(STREAMS)
def test_a_poll_takes_no_more_than_asked(kit: Kit) -> None:
    url = kit.fresh()
    publish(url, numbered(10, 0))
    stream = open_stream(url)
    sizes = []
    while sum(sizes) < 10:
        sizes.append(len(stream.poll(3, 5.0)))
    assert max(sizes) <= 3
    with pytest.raises(InvalidInput, match="max_messages"):
        stream.poll(0, 0.0)
    stream.close()


@each(STREAMS)
def test_a_stream_knows_how_far_its_reader_is_behind(kit: Kit) -> None:
    publish(url := kit.fresh(), numbered(10, 0))
    with contextlib.closing(open_stream(url)) as stream:
        taken = len(stream.poll(3, PATIENCE))
        assert stream.behind()[0] == 10 - taken
        until(lambda: not stream.poll(10, 0.1) and set(stream.behind().values()) == {0})
        publish(url, numbered(5, 2))
        until(lambda: stream.poll(1, 0.1) and stream.behind()[2] == 4)


@each(STREAMS)
def test_an_empty_poll_ends_in_time_and_a_full_one_at_once(kit: Kit) -> None:
    url = kit.fresh()
    stream = open_stream(url)
    began = time.monotonic()
    assert stream.poll(10, 0.2) == []
    assert time.monotonic() - began < 2
    later = threading.Timer(0.2, publish, (url, numbered(1)))
    later.start()
    began = time.monotonic()
    assert len(stream.poll(1000, PATIENCE)) == 1
    assert time.monotonic() - began < PATIENCE / 2
    later.join()
    stream.close()


@each(STREAMS)
def test_seek_moves_only_the_partitions_it_names(kit: Kit) -> None:
    url = kit.fresh()
    publish(url, numbered(10, 0) + numbered(10, 1))
    stream = open_stream(url)
    stream.seek({0: 7})
    found = by_partition(read(stream, 13))
    assert [message.offset for message in found[0]] == [7, 8, 9]
    assert [message.offset for message in found[1]] == list(range(10))
    stream.seek({1: 8})
    assert [(message.partition, message.offset) for message in read(stream, 2)] == [(1, 8), (1, 9)]
    stream.seek({0: 10, 1: 10})
    assert stream.poll(10, 0.2) == []
    publish(url, numbered(1, 0))
    assert [(message.partition, message.offset) for message in read(stream, 1)] == [(0, 10)]
    stream.close()


@each(STREAMS)
def test_seek_in_the_middle_of_a_batch_loses_and_repeats_nothing(kit: Kit) -> None:
    url = kit.fresh()
    publish(url, [row for i in range(N) for row in numbered(300, i)])
    stream, order = open_stream(url), random.Random(0)
    expected = dict.fromkeys(range(N), 0)
    turns = 0
    while any(position < 300 for position in expected.values()):
        turns += 1
        assert turns < 2000
        for message in stream.poll(order.randrange(1, 80), 1.0):
            assert message.offset == expected[message.partition]
            expected[message.partition] += 1
        if turns < 30 and order.random() < 0.5:
            place = order.randrange(N)
            expected[place] = max(0, expected[place] - order.randrange(40))
            stream.seek({place: expected[place]})
    assert stream.poll(10, 0.2) == []
    stream.close()


@each(STREAMS)
def test_the_owner_says_where_to_begin(kit: Kit) -> None:
    url = kit.fresh()
    publish(url, numbered(5, 0) + numbered(5, 1) + numbered(5, 2))
    calls: list[tuple[str, Sequence[int]]] = []

    def assigned(partitions: Sequence[int]) -> dict[int, int]:
        calls.append(("assigned", partitions))
        return {0: 3, 1: 5}

    stream = open_stream(url, on_assign=assigned, on_revoke=lambda partitions: calls.append(("revoked", partitions)))
    assert calls == []
    found = by_partition(read(stream, 7))
    assert [message.offset for message in found[0]] == [3, 4]
    assert found[1] == []
    assert [message.offset for message in found[2]] == [0, 1, 2, 3, 4]
    stream.close()
    stream.close()
    assert calls == [("assigned", [0, 1, 2, 3]), ("revoked", [0, 1, 2, 3])]
    with pytest.raises(StoreError, match="closed"):
        stream.poll(1, 0.0)


@each(STREAMS)
def test_one_may_read_some_partitions(kit: Kit) -> None:
    url = kit.fresh()
    publish(url, [row for i in range(N) for row in numbered(3, i)])
    stream = open_stream(url + "&partitions=3,1")
    assert {message.partition for message in read(stream, 6)} == {1, 3}
    for positions, message in [({0: 1}, "now: 1, 3"), ({1: -1}, "at least 0")]:
        with pytest.raises(InvalidInput, match=message):
            stream.seek(positions)
    stream.close()
    for options, message in [
        ("&partitions=4", "0 to 3"),
        ("&partitions=x", "0 to 3"),
        ("&partitions=", "0 to 3"),
        ("&partitions=1&group=g", "not come with"),
        ("&start=noon", "earliest or latest"),
        ("&speed=9", "be one of"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            open_stream(url + options)


@each(RANGES)
def test_latest_begins_with_what_comes(kit: Kit) -> None:
    url = kit.fresh()
    publish(url, numbered(5, 0))
    stream = open_stream(url + "&start=latest")
    found: list[Message] = []

    def arrived() -> bool:
        found.extend(stream.poll(10, 0.2))
        publish(url, numbered(1, 0, first=77))
        return bool(found)

    until(arrived)
    assert {message.value for message in found} == {b"77"}
    stream.close()


@each(RANGES)
def test_a_position_past_the_end_is_an_error_until_one_seeks(kit: Kit) -> None:
    url = kit.fresh()
    publish(url, numbered(5, 0) + numbered(5, 1))
    stream = open_stream(url, on_assign=lambda _: {0: 50})
    found: list[Message] = []
    deadline = time.monotonic() + PATIENCE
    with pytest.raises(StoreError, match=r"partition 0: the next message to read is 50, but the topic ends before 5"):
        keep_polling(stream, found)
    with pytest.raises(StoreError, match="Rebuild the state"):
        stream.poll(100, 1.0)
    stream.seek({0: 4})
    # Nothing of the other partition was lost for it.
    while len(found) < 6 and time.monotonic() < deadline:
        found += stream.poll(100, 1.0)
    assert sorted((message.partition, message.offset) for message in found) == [(0, 4)] + [(1, i) for i in range(5)]
    stream.close()


@each(RANGES)
def test_deleted_messages_are_an_error_never_a_jump(kit: Kit) -> None:
    url = kit.fresh()
    publish(url, numbered(3, 0))
    stream = open_stream(url + "&partitions=0")
    assert len(read(stream, 3)) == 3
    stream.close()
    publish(url, [Outgoing(None, bytes(100_000), TIME, 0) for _ in range(100)])  # 10 MB; the mock keeps 5
    if kit.name == "memory":
        MemoryTopic.named(url).truncate(0, 40)
    stream = open_stream(url + "&partitions=0", on_assign=lambda _: {0: 3})
    found: list[Message] = []
    with pytest.raises(StoreError, match=r"oldest one kept is \d+: \d+ were deleted by retention") as caught:
        keep_polling(stream, found, 1)
    assert found == []
    first = int(str(caught.value).partition("oldest one kept is ")[2].partition(":")[0])
    assert first > 3
    stream.seek({0: first})
    assert read(stream, 103 - first)[0].offset == first
    stream.close()


@each(GROUPS)
def test_a_group_shares_partitions_and_hands_them_over_with_their_state(kit: Kit) -> None:
    url = kit.fresh()
    n = 200
    publish(url, [row for i in range(N) for row in numbered(n, i)])
    kept: dict[int, list[int]] = {number: [] for number in range(N)}  # the state where all readers keep it
    owned: dict[str, set[int]] = {"a": set(), "b": set()}
    held: dict[str, dict[int, list[int]]] = {"a": {}, "b": {}}

    def member(name: str) -> EventStream:
        def assigned(partitions: Sequence[int]) -> dict[int, int]:
            assert not owned["a"] & set(partitions)
            assert not owned["b"] & set(partitions)
            owned[name] |= set(partitions)
            held[name] |= {number: list(kept[number]) for number in partitions}
            return {number: len(kept[number]) for number in partitions}

        def revoked(partitions: Sequence[int]) -> None:
            owned[name] -= set(partitions)
            kept.update({number: held[name].pop(number) for number in partitions})

        return open_stream(f"{url}&group=g{quick(kit)}", on_assign=assigned, on_revoke=revoked)

    def turn(name: str, stream: EventStream) -> None:
        for message in stream.poll(7, 0.05):
            held[name][message.partition].append(message.offset)

    def total() -> int:
        working = [offsets for state in held.values() for offsets in state.values()]
        idle = [kept[number] for number in range(N) if number not in owned["a"] | owned["b"]]
        return sum(map(len, working + idle))

    deadline = time.monotonic() + 120
    a = member("a")
    while total() < 50 and time.monotonic() < deadline:
        turn("a", a)
    b = member("b")
    while not (owned["a"] and owned["b"]) and time.monotonic() < deadline:
        turn("a", a)
        turn("b", b)
    assert owned["a"]
    assert owned["b"]
    for _ in range(5):
        turn("a", a)
        turn("b", b)
    a.close()
    assert not owned["a"]
    publish(url, [row for i in range(N) for row in numbered(50, i, first=n)])
    while total() < N * (n + 50) and time.monotonic() < deadline:
        turn("b", b)
    b.close()
    assert kept == {number: list(range(n + 50)) for number in range(N)}


@pytest.mark.slow
@each(["kafka-mock"])
def test_a_reader_that_hangs_loses_its_partitions_and_is_told(kit: Kit) -> None:
    url = kit.fresh()
    publish(url, numbered(10, 0))
    told: list[tuple[str, Sequence[int]]] = []

    def member(name: str) -> EventStream:
        return open_stream(
            f"{url}&group=g{quick(kit)}&max_poll_ms=6000",
            on_assign=lambda partitions: told.append((name + " has", partitions)) or {},
            on_revoke=lambda partitions: told.append((name + " gives", partitions)),
            on_lost=lambda partitions: told.append((name + " lost", partitions)),
        )

    hangs = member("hangs")
    deadline = time.monotonic() + 60
    while not told and time.monotonic() < deadline:
        hangs.poll(1, 0.1)
    works = member("works")
    while len(told) < 2 and time.monotonic() < deadline:
        works.poll(1, 0.1)
    with pytest.raises(StoreError, match="poll more often or raise"):
        keep_polling(hangs, [])
    everything = [0, 1, 2, 3]
    assert told[:3] == [("hangs has", everything), ("works has", everything), ("hangs lost", everything)]
    hangs.close()
    works.close()


@pytest.mark.slow
@each(["kafka-mock", "kafka"])
def test_a_group_of_one_begins_where_its_state_says_and_reports(kit: Kit) -> None:
    import confluent_kafka as client

    url = kit.fresh()
    publish(url, [row for i in range(N) for row in numbered(10, i)])
    group = f"group-{next(_numbers)}"
    # The second time it begins before what the group was told, as its state says.
    for start in (4, 2) if kit.name == "kafka-mock" else (4,):
        stream = open_stream(
            f"{url}&group={group}{quick(kit)}", on_assign=lambda _, first=start: dict.fromkeys(range(N), first)
        )
        found: list[Message] = []
        deadline = time.monotonic() + 60
        while len(found) < N * (10 - start) and time.monotonic() < deadline:
            found += stream.poll(1000, 1.0)
        offsets = {number: [m.offset for m in kept] for number, kept in by_partition(found).items()}
        assert offsets == {number: list(range(start, 10)) for number in range(N)}
        stream.report()
        stream.close()
    servers = url.partition("://")[2].partition("/")[0]
    topic = url.rpartition("/")[2].partition("?")[0]
    reader = client.Consumer({"bootstrap.servers": servers, "group.id": group})
    places = [client.TopicPartition(topic, number) for number in range(N)]
    until(lambda: [place.offset for place in reader.committed(places, timeout=10)] == [10] * N)
    reader.close()


@pytest.mark.parametrize(
    ("kit", "options"),
    [
        ("memory", "&partitions=all"),
        ("memory", "&group=g"),
        ("kafka-mock", "&partitions=all"),
        pytest.param("kafka-mock", "&group=g", marks=pytest.mark.slow),
    ],
    indirect=["kit"],
)
def test_an_error_of_the_owner_comes_out_of_poll(kit: Kit, options: str) -> None:
    url = kit.fresh()
    publish(url, numbered(3, 0))

    def fails(_: Sequence[int]) -> dict[int, int]:
        raise StoreError("the state is locked")

    stream = open_stream(url + options, on_assign=fails)
    with pytest.raises(StoreError, match="the state is locked"):
        keep_polling(stream, [])
    stream.close()


@each(STREAMS)
def test_a_wrong_partition_is_refused(kit: Kit) -> None:
    url = kit.fresh()
    for partition in (-2, 4):
        with pytest.raises(InvalidInput, match="0 to 3"):
            publish(url, [Outgoing(b"k", b"v", TIME, partition)])
    assert publish(url, []) == 0


_CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, 3), st.integers(1, 5)),
        st.tuples(st.just("poll"), st.integers(1, 6), st.none()),
        st.tuples(st.just("seek"), st.integers(0, 3), st.integers(0, 5)),
    ),
    max_size=30,
)


@given(_CALLS)
def test_any_sequence_equals_four_lists(calls: list) -> None:
    url = f"memory://topic-{next(_numbers)}?n_partitions={N}"
    stream = open_stream(url)
    lists: list[list[bytes]] = [[] for _ in range(N)]
    positions = [0] * N
    for kind, one, two in calls:
        if kind == "publish":
            values = [b"%d" % (len(lists[one]) + i) for i in range(two)]
            publish(url, [Outgoing(None, value, TIME, one) for value in values])
            lists[one] += values
        elif kind == "seek":
            positions[one] = min(two, len(lists[one]))
            stream.seek({one: positions[one]})
        else:
            waiting = sum(len(kept) - position for kept, position in zip(lists, positions, strict=True))
            found = stream.poll(one, 0.0)
            assert len(found) == min(one, waiting)
            for message in found:
                assert message.offset == positions[message.partition]
                assert message.value == lists[message.partition][message.offset]
                positions[message.partition] += 1


_COUNTER = """
import sys
from vitok.engines import open_store, open_stream
store = open_store(sys.argv[2])
counts = {}
def assigned(partitions):
    counts.update({p: int(store.get("count", b"%d" % p) or 0) for p in partitions})
    return {p: int(store.get("next", b"%d" % p) or 0) for p in partitions}
stream = open_stream(sys.argv[1], on_assign=assigned)
print("ready", flush=True)
while True:
    sys.stdin.readline()
    follows = {}
    for message in stream.poll(50, 1.0):
        counts[message.partition] += int(message.value)
        follows[message.partition] = message.offset + 1
    names = {p: b"%d" % p for p in follows}
    store.commit([("count", names[p], b"%d" % counts[p]) for p in follows] +
                 [("next", names[p], b"%d" % offset) for p, offset in follows.items()])
    print("saved", flush=True)
"""


@each(["kafka"])
def test_a_reader_that_is_killed_goes_on_from_its_own_state(kit: Kit, tmp_path: Path) -> None:
    url, order = kit.fresh(), random.Random(0)
    publish(url, [row for i in range(N) for row in numbered(400, i)])
    place = f"lmdb://{tmp_path}/state"
    command = [sys.executable, "-c", _COUNTER, url, place]
    total, runs = -1, 0
    while total != N * sum(range(400)):
        runs += 1
        assert runs < 100
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            for _ in range(order.randrange(2, 14)):
                child.stdin.write("go on\n")
                assert child.stdout.readline() == "saved\n"
            child.stdin.write("go on\n")  # and is killed somewhere on its way
            child.kill()
        store = open_store(place)
        total = sum(int(store.get("count", b"%d" % p) or 0) for p in range(N))
        assert total <= N * sum(range(400))
        store.close()  # type: ignore[attr-defined]
    assert runs > 1


def test_a_topic_that_is_not_there(broker) -> None:
    for action in (open_stream, lambda url: publish(url, [])):
        with pytest.raises(StoreError, match=r"'nowhere' at 127\.0\.0\.1:.* is not there.*: create it"):
            action(f"{broker.url}/nowhere")


def test_a_message_that_is_too_large_is_told_with_the_count(broker) -> None:
    url = make_topic(broker, "large")
    with pytest.raises(StoreError, match="took 1 of 2 messages"):
        publish(url, [Outgoing(None, b"fits"), Outgoing(None, bytes(2_000_000))])


def test_a_broker_that_dies_is_an_error_in_bounded_time() -> None:
    with tansu() as server:
        url = make_topic(server, "t")
        publish(url, numbered(10, 0))
        stream = open_stream(url)
        assert len(read(stream, 10)) == 10
        server.process.kill()
        server.process.wait()
        for _ in range(3):
            found: list[Message] = []
            with pytest.raises(StoreError, match="no Kafka server"):
                keep_polling(stream, found)
            assert found == []
        began = time.monotonic()
        with contextlib.suppress(StoreError):
            stream.poll(10, 0.2)
        assert time.monotonic() - began < 2
        with pytest.raises(StoreError, match=r"no Kafka server at 127\.0\.0\.1"):
            publish(f"{url}?timeout_ms=300", numbered(1))
        began = time.monotonic()
        stream.close()
        assert time.monotonic() - began < 5


def test_a_port_where_nobody_listens_is_an_error_in_bounded_time() -> None:
    (port,) = free_ports(1)
    began = time.monotonic()
    with pytest.raises(StoreError, match=f"no Kafka server at 127.0.0.1:{port} can be reached"):
        open_stream(f"kafka://127.0.0.1:{port}/t?timeout_ms=300")
    assert time.monotonic() - began < 5


def test_addresses() -> None:
    for url, message in [
        ("tape://x", "kafka://host:port/topic or memory://topic"),
        ("kafka://host", "name a topic"),
        ("kafka://host/a b", "name a topic"),
        ("kafka:///topic", "host:port"),
        ("kafka://host/t?security=none", "plaintext, ssl"),
        ("kafka://host/t?security=ssl&ca=nowhere.pem", "suit the client"),
        ("kafka://me:secret@host/t?mechanism=HANDSHAKE", "suit the client"),
        ("memory://t?n_partitions=x", "whole number"),
    ]:
        with pytest.raises(InvalidInput, match=message) as caught:
            open_stream(url)
        assert "secret" not in str(caught.value)
    open_stream("memory://counted?n_partitions=2")
    with pytest.raises(InvalidInput, match="be 2, as the topic was made with"):
        open_stream("memory://counted?n_partitions=3")


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before
