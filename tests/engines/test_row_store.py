"""The conformance suite of row stores: a new engine gets all of it by being listed in `STORES`."""

import contextlib
import itertools
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engines.servers import Server, until

from vitok.clock import DAY, SECOND, EventClock, SystemClock
from vitok.engines import (
    HEADER,
    LmdbRows,
    MemoryRows,
    Row,
    RowStore,
    open_rows,
    open_stream,
    pack_version,
    publish,
    unpack_version,
)
from vitok.errors import InvalidInput, MissingExtra, StoreError

SLOW = pytest.mark.slow
STORES = ["memory", "lmdb", "redis", pytest.param("redis-cluster", marks=SLOW)]
SHARED = ["lmdb", "redis", pytest.param("redis-cluster", marks=SLOW)]  # by more than one process
ROOT = Path(__file__).parent.parent.parent
_numbers = itertools.count()


@dataclass
class Kit:
    """A kind of store, and the way to a new and empty one."""

    name: str
    fresh: Callable[[], str]

    def open(self) -> RowStore:
        return open_rows(self.fresh())


def emptied(server: Server) -> str:
    import redis

    for port in server.ports:
        with redis.Redis(port=port) as client:
            client.flushall()
    return server.url


@pytest.fixture
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    name = request.param
    if name == "memory":
        yield Kit(name, lambda: f"memory://test-{next(_numbers)}")
    elif name == "lmdb":
        yield Kit(name, lambda: f"lmdb://{tmp_path}/{next(_numbers)}")
    else:
        server = request.getfixturevalue("redis_cluster" if name == "redis-cluster" else "redis_server")
        yield Kit(name, lambda: emptied(server))


def any_store(function):
    return pytest.mark.parametrize("kit", STORES, indirect=True)(function)


def value_of(row: bytes | None) -> bytes | None:
    return None if row is None else row[HEADER:]


@any_store
def test_what_was_written_is_read_in_the_order_asked(kit: Kit) -> None:
    store = kit.open()
    assert store.write([Row(b"a", (1, 2), b"A"), Row(b"b", (3, 4), b"B")]) == 2
    rows = store.read([b"b", b"nothing", b"a", b"b"])
    assert [value_of(row) for row in rows] == [b"B", None, b"A", b"B"]
    assert rows[2] == pack_version(1, 2) + b"A"
    assert unpack_version(rows[0]) == (3, 4)


@any_store
def test_the_newest_version_wins_whatever_the_order(kit: Kit) -> None:
    store = kit.open()
    assert store.write([Row(b"k", (10, 5), b"first")]) == 1
    assert store.write([Row(b"k", (9, 99), b"older event")]) == 0
    assert store.write([Row(b"k", (10, 4), b"same event, known earlier")]) == 0
    assert store.write([Row(b"k", (10, 6), b"same event, corrected")]) == 1
    assert value_of(store.read([b"k"])[0]) == b"same event, corrected"
    assert store.write([Row(b"k", (11, 0), b"newer"), Row(b"k", (12, 0), b"newest"), Row(b"k", (11, 5), b"late")]) == 2
    assert value_of(store.read([b"k"])[0]) == b"newest"


@any_store
def test_a_duplicate_changes_nothing(kit: Kit) -> None:
    store = kit.open()
    row = Row(b"k", (10, 5), b"v")
    assert store.write([row, row]) == 1
    assert store.write([row]) == 0
    assert store.write([Row(b"k", (10, 5), b"other contents")]) == 0
    assert value_of(store.read([b"k"])[0]) == b"v"


@any_store
def test_versions_are_compared_as_numbers(kit: Kit) -> None:
    store = kit.open()
    # Bytes above 127 and zero bytes: text comparison by a locale, or of C strings, gets these wrong.
    steps = [0, 1, 127, 128, 255, 256, 0x80FF, 0xFF00, 1 << 31, (1 << 32) + 128, 1 << 53, (1 << 53) + 1, (1 << 63) - 1]
    versions = list(itertools.product(steps, [0, 200, (1 << 63) - 1]))
    rows = [Row(b"%d" % i, version, b"") for i, version in enumerate(versions)]
    store.write(rows)
    for later in (1, 7):
        # Row i gets the version of row i + later, which is newer, and then that of an older one, which is not.
        moved = [Row(row.key, versions[i + later], b"") for i, row in enumerate(rows[:-later])]
        assert store.write(moved) == len(moved)
        assert store.write(rows) == 0
    found = store.read([row.key for row in rows[:-7]])
    assert [unpack_version(row) for row in found] == versions[7:]


VERSIONS = st.tuples(st.integers(0, 3), st.integers(0, 3))
WRITES = st.lists(st.lists(st.tuples(st.integers(0, 4), VERSIONS, st.binary(max_size=3)), max_size=6), max_size=8)


@any_store
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WRITES)
def test_any_sequence_equals_a_dictionary(kit: Kit, calls: list) -> None:
    store = kit.open()
    kept: dict[bytes, tuple[tuple[int, int], bytes]] = {}
    for call in calls:
        expected = 0
        rows = [Row(b"{%d}%d" % (number % 2, number), version, value) for number, version, value in call]
        for row in rows:
            if row.key not in kept or kept[row.key][0] < row.version:
                kept[row.key] = row.version, row.value
                expected += 1
        assert store.write(rows) == expected
    keys = [b"{%d}%d" % (number % 2, number) for number in range(5)]
    expected_rows = [pack_version(*kept[key][0]) + kept[key][1] if key in kept else None for key in keys]
    assert store.read(keys) == expected_rows
    assert store.erase(keys) == len(kept)
    assert store.read(keys) == [None] * 5


@any_store
def test_nothing_asked_and_nothing_written(kit: Kit) -> None:
    store = kit.open()
    assert store.read([]) == []
    assert store.write([]) == 0
    assert store.erase([]) == 0


@any_store
def test_erased_rows_are_gone_with_their_version(kit: Kit) -> None:
    store = kit.open()
    store.write([Row(b"a", (9, 9), b"A"), Row(b"b", (9, 9), b"B"), Row(b"c", (9, 9), b"C")])
    assert store.erase([b"a", b"never", b"b", b"a"]) == 2
    assert [value_of(row) for row in store.read([b"a", b"b", b"c"])] == [None, None, b"C"]
    assert store.write([Row(b"a", (1, 1), b"again")]) == 1


@any_store
def test_any_bytes_make_a_key_and_a_value(kit: Kit) -> None:
    store = kit.open()
    keys = [bytes([byte]) for byte in range(256)] + [b"\0" * 511, b"\xff" * 511, b"{}", b"{", b"a{b}c{d}", b"\r\n$3 *"]
    store.write([Row(key, (1, 1), key) for key in keys])
    assert [value_of(row) for row in store.read(keys)] == keys


@any_store
def test_values_of_no_byte_and_of_a_million(kit: Kit) -> None:
    store = kit.open()
    large = random.Random(0).randbytes(1_000_000)
    values = [b"", large, b"", large[::-1], large[:500_000]]
    assert store.write([Row(b"%d" % i, (1, 1), value) for i, value in enumerate(values)]) == 5
    assert [value_of(row) for row in store.read([b"%d" % i for i in range(5)])] == values


@any_store
def test_ten_thousand_keys_in_one_call(kit: Kit) -> None:
    store = kit.open()
    rows = [Row(b"{%d}view" % i, (i, i), b"%d" % i) for i in range(10_000)]
    random.Random(0).shuffle(rows)
    assert store.write(rows) == 10_000
    assert store.write(rows) == 0
    keys = [row.key for row in rows] + [b"{%d}other" % i for i in range(100)]
    assert [value_of(row) for row in store.read(keys)] == [row.value for row in rows] + [None] * 100
    assert store.erase(keys) == 10_000


@any_store
def test_a_row_that_breaks_a_rule_is_refused_and_nothing_is_written(kit: Kit) -> None:
    store = kit.open()
    good = Row(b"good", (1, 1), b"v")
    for bad, message in [
        (Row(b"", (1, 1), b""), "1 to 511 bytes"),
        (Row(b"x" * 512, (1, 1), b""), "1 to 511 bytes"),
        (Row(b"k", (-1, 1), b""), "from 1970 on"),
        (Row(b"k", (1, 1 << 63), b""), "from 1970 on"),
        (Row(b"k", (1, 1), b"", -1), "0 for never"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            store.write([good, bad])
    assert store.read([b"good", b"", b"x" * 512]) == [None, None, None]
    assert store.erase([b"", b"x" * 512]) == 0


@any_store
def test_a_row_expires(kit: Kit) -> None:
    store = kit.open()
    now = SystemClock().now()
    rows = [
        Row(b"later", (1, 1), b"v", now + DAY),
        Row(b"soon", (1, 1), b"v", now + SECOND // 2),
        Row(b"past", (1, 1), b"v", 1),
        Row(b"never", (1, 1), b"v"),
    ]
    assert store.write(rows) == 4
    assert [value_of(row) for row in store.read([b"later", b"past", b"never"])] == [b"v", None, b"v"]
    until(lambda: store.read([b"soon"]) == [None])
    assert SystemClock().now() >= now + SECOND // 2 - 2000  # Redis counts milliseconds
    assert store.erase([b"soon", b"past"]) == 0
    assert store.write([Row(b"soon", (0, 0), b"older, but there is nothing")]) == 1


@any_store
def test_an_expired_row_that_is_newer_takes_the_older_away(kit: Kit) -> None:
    store = kit.open()
    store.write([Row(b"k", (1, 1), b"old", SystemClock().now() + DAY)])
    assert store.write([Row(b"k", (2, 2), b"new", 1)]) == 1
    assert store.read([b"k"]) == [None]


@any_store
def test_a_newer_row_takes_the_expiry_away(kit: Kit) -> None:
    store = kit.open()
    soon = SystemClock().now() + SECOND // 5
    store.write([Row(b"k", (1, 1), b"old", soon), Row(b"other", (1, 1), b"", soon)])
    store.write([Row(b"k", (2, 2), b"new")])
    until(lambda: store.read([b"other"]) == [None])
    assert value_of(store.read([b"k"])[0]) == b"new"


@any_store
def test_threads_that_race_leave_the_newest(kit: Kit) -> None:
    url = kit.fresh()
    failures: list[BaseException] = []

    def write(seed: int) -> None:
        try:
            store, order = open_rows(url), random.Random(seed)
            for _ in range(40):
                store.write([Row(b"%d" % k, (v := order.randrange(1000), 0), b"%d" % v) for k in range(5)])
            store.write([Row(b"%d" % k, (1000 + seed, 0), b"%d" % (1000 + seed)) for k in range(5)])
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [value_of(row) for row in open_rows(url).read([b"%d" % k for k in range(5)])] == [b"1003"] * 5


@any_store
def test_threads_share_one_store(kit: Kit) -> None:
    store = kit.open()
    store.write([Row(b"%d" % k, (0, 0), b"0") for k in range(50)])
    keys = [b"%d" % k for k in range(50)]
    wrong: list[object] = []

    def read() -> None:
        last = 0
        for _ in range(60):
            versions = {unpack_version(row)[0] if row else None for row in store.read(keys)}
            if None in versions or min(versions) < last:
                wrong.append(versions)
            last = min(version or 0 for version in versions)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for version in range(1, 40):
        store.write([Row(key, (version, 0), b"") for key in keys])
    for reader in readers:
        reader.join()
    assert not wrong


def writes_of(seed: int) -> Iterator[list[Row]]:
    """The same calls in every process that asks for them."""
    order = random.Random(seed)
    for _ in range(100):
        yield [Row(b"%d" % k, (v := order.randrange(10_000), seed), b"%d/%d" % (v, seed)) for k in range(20)]


_PROCESS = """
import sys
from tests.engines.test_row_store import writes_of
from vitok.engines import open_rows
store = open_rows(sys.argv[1])
for rows in writes_of(int(sys.argv[2])):
    store.write(rows)
"""


@pytest.mark.parametrize("kit", SHARED, indirect=True)
def test_processes_that_race_leave_the_newest(kit: Kit) -> None:
    url = kit.fresh()
    store = open_rows(url)
    keys = [b"%d" % k for k in range(20)]
    seen = [(-1, -1)] * 20
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(subprocess.Popen([sys.executable, "-c", _PROCESS, url, str(seed)], cwd=ROOT))
            for seed in (1, 2)
        ]
        while any(child.poll() is None for child in children):
            # Read here while they write there: a version never goes back.
            found = [unpack_version(row) if row else (-1, -1) for row in store.read(keys)]
            assert all(now >= before for now, before in zip(found, seen, strict=True))
            seen = found
    assert [child.returncode for child in children] == [0, 0]
    newest = {row.key: row for row in sorted(row for seed in (1, 2) for rows in writes_of(seed) for row in rows)}
    assert store.read(keys) == [pack_version(*newest[key].version) + newest[key].value for key in keys]


@pytest.mark.parametrize("kit", ["memory", "lmdb"], indirect=True)
def test_the_same_address_is_the_same_store(kit: Kit) -> None:
    url = kit.fresh()
    one, two = open_rows(url), open_rows(url)
    one.write([Row(b"k", (1, 1), b"v")])
    assert value_of(two.read([b"k"])[0]) == b"v"


def test_addresses() -> None:
    for url, message in [
        ("cassette://tape", "lmdb://folder or redis://"),
        ("lmdb", "look like"),
        ("memory://", "name something"),
        ("lmdb://x?colour=red", "one of map_gib, max_readers"),
        ("lmdb://x?map_gib=few", "whole number of at least 1"),
        ("memory://x?colour=red", "this engine has none"),
        ("redis://", "host:port"),
        ("redis://host:port", "host:port"),
        ("redis://host:0", "host:port"),
        ("redis://host/name", "number of a database"),
        ("redis://one,two", "redis-cluster://"),
        ("redis-cluster://one,two/3", "0 for a cluster"),
        ("redis://host?timeout_ms=0", "at least 1"),
        ("redis://host?retries=9", "one of timeout_ms"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            open_rows(url)


def test_an_error_never_shows_the_password() -> None:
    for url in ("redis://me:secret@host:x", "cassette://me:secret@tape", "redis://me:secret@one,two"):
        with pytest.raises(InvalidInput) as caught:
            open_rows(url)
        assert "secret" not in str(caught.value)


def test_a_damaged_row_is_refused() -> None:
    with pytest.raises(StoreError, match="not written by vitok"):
        unpack_version(b"short")


def test_a_row_expires_at_its_very_microsecond(tmp_path: Path) -> None:
    clock = EventClock(100)
    stores = [MemoryRows(clock=clock), LmdbRows(tmp_path, clock=clock)]
    for store in stores:
        store.write([Row(b"k", (1, 1), b"v", 200)])
    clock.advance(199)
    assert all(store.read([b"k"]) != [None] for store in stores)
    clock.advance(200)
    assert all(store.read([b"k"]) == [None] for store in stores)


@pytest.mark.parametrize(
    ("package", "action", "extra"),
    [
        ("redis", lambda: open_rows("redis://localhost"), "redis"),
        ("confluent_kafka", lambda: open_stream("kafka://localhost/t"), "kafka"),
        ("confluent_kafka", lambda: publish("kafka://localhost/t", []), "kafka"),
    ],
)
def test_a_missing_client_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, package: str, action: Callable[[], object], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'vitok\[{extra}\]'"):
        action()
