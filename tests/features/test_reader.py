"""Online reads: the oracle is `latest_oracle`, row by row in plain Python; for windows, the packed state itself."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.engines.servers import valkey
from tests.features.latest_oracle import Failing, frame, history, latest

from vitok.clock import DAY, HOUR, MINUTE, SECOND, EventClock
from vitok.engines.memory import MemoryRows
from vitok.engines.row_store import Row, open_rows
from vitok.errors import InvalidInput
from vitok.features import Embedding, Entity, FeatureSet, Latest, OnDemand, Source
from vitok.features.embeddings import ArrayIndex
from vitok.features.materialise import materialise
from vitok.features.reader import FeatureReader
from vitok.features.rows import row_keys
from vitok.features.sources import SEPARATOR

CUSTOMER = Entity("customer", "customer_id")
ITEM = Entity("item", "item_id")
SOURCE = Source("accounts", ingest_time="known_at", deleted="gone")
ACCOUNT = Latest(
    name="account",
    entity=CUSTOMER,
    source=SOURCE,
    columns={"limit": "float64", "level": "int32", "vip": "bool"},
    ttl="2d",
)
PLAIN = Latest(name="plain", entity=CUSTOMER, source=SOURCE, columns=("limit",))
UNTIL = 130 * HOUR


def filled(features: FeatureSet, seed: int = 0, n: int = 80, **options: Any) -> tuple[Failing, list[dict[str, Any]]]:
    rows = history(seed, n)
    store = Failing(MemoryRows())
    materialise(features, {"accounts": frame(rows)}, store, until=UNTIL, **options)
    store.reads = store.writes = 0
    return store, rows


@pytest.mark.parametrize("seed", range(4))
def test_reads_equal_the_oracle_now_and_never_lie_about_the_past(seed: int) -> None:
    features = FeatureSet(views=(ACCOUNT, PLAIN))
    store, rows = filled(features, seed)
    reader = FeatureReader(features, store)
    keys = [f"c{place}" for place in range(7)]
    for time in (UNTIL, UNTIL + DAY, UNTIL + 40 * DAY):
        vectors = reader.read({"customer_id": keys}, time=time)
        for place, view in enumerate((ACCOUNT, PLAIN)):
            for row, key in enumerate(keys):
                values, status = latest(view, rows, key, time)
                np.testing.assert_array_equal(vectors.values[row, features.columns_of[view.name]], values)
                assert ("fresh", "stale", "missing")[vectors.status[row, place]] == status
    for time in range(0, UNTIL, 7 * HOUR):
        vectors = reader.read({"customer_id": keys}, time=time)
        for row, key in enumerate(keys):
            values, status = latest(ACCOUNT, rows, key, time)
            if vectors.status[row, 0] != 2:
                np.testing.assert_array_equal(vectors.values[row, :3], values)
                assert ("fresh", "stale")[vectors.status[row, 0]] == status
            else:
                assert np.isnan(vectors.values[row, :3]).all()


def test_many_views_are_one_round_trip_each_question_at_its_own_time() -> None:
    features = FeatureSet(views=(ACCOUNT, PLAIN))
    store, rows = filled(features)
    reader = FeatureReader(features, store)
    times = [UNTIL, UNTIL + 60 * DAY]
    vectors = reader.read({"customer_id": ["c1", "c1"]}, time=times)
    assert store.reads == 1
    assert vectors.status[1, 0] in {1, 2}
    np.testing.assert_array_equal(vectors.values[:, 3], [latest(PLAIN, rows, "c1", time)[0][0] for time in times])
    assert vectors.views == ("account", "plain")
    assert reader.counters.reads == 1


def test_the_model_gets_its_own_order_and_type() -> None:
    features = FeatureSet(
        request=("amount",),
        views=(ACCOUNT, PLAIN),
        on_demand=(OnDemand("share", lambda amount, plain_limit: amount / plain_limit),),
        select=("share", "account_vip", "amount"),
    )
    store, _ = filled(features)
    reader = FeatureReader(features, store, dtype=np.float32)
    vectors = reader.read({"customer_id": ["c0", "c9"]}, time=UNTIL, request={"amount": [3.0, None]})  # type: ignore[list-item]
    assert vectors.names == ("share", "account_vip", "amount")
    assert vectors.values.dtype == np.float32
    np.testing.assert_array_equal(vectors.values[:, 2], np.array([3.0, np.nan], np.float32))
    whole = FeatureReader(FeatureSet(views=(PLAIN,)), store).read({"customer_id": ["c0"]}, time=UNTIL)
    np.testing.assert_array_equal(vectors.values[0, 0], np.float32(3.0 / whole.values[0, 0]))


def test_keys_of_several_columns_and_whole_numbers() -> None:
    pair = Entity("card at terminal", ("card", "terminal"))
    view = Latest(name="pair", entity=pair, source=Source("pairs"), columns=("x",))
    rows = pl.DataFrame({"card": [1, 1], "terminal": ["a", "b"], "event_time": [1, 2], "x": [10.0, 20.0]})
    store = MemoryRows()
    rows = rows.with_columns(pl.col("event_time").cast(pl.Datetime("us")))
    materialise(view, {"pairs": rows}, store, until=HOUR)
    reader = FeatureReader(FeatureSet(views=(view,)), store)
    found = reader.read({"card": np.array([1, 1, 2]), "terminal": ["b", "a", "a"]}, time=HOUR)  # type: ignore[dict-item]
    np.testing.assert_array_equal(found.values[:, 0], [20.0, 10.0, np.nan])
    assert store.read(row_keys(view, [f"1{SEPARATOR}a"])) != [None]


def test_defaults_stand_in_for_missing_rows_only() -> None:
    features = FeatureSet(views=(ACCOUNT, PLAIN))
    rows = [dict(row, gone=False, limit=None) for row in history(1, 60)]
    store = MemoryRows()
    materialise(features, {"accounts": frame(rows)}, store, until=UNTIL)
    reader = FeatureReader(features, store, defaults={"account_limit": 50.0, "plain_limit": 60.0})
    vectors = reader.read({"customer_id": ["c1", "nobody"]}, time=UNTIL + 60 * DAY)
    np.testing.assert_array_equal(vectors.values[:, 0], [np.nan, 50.0])
    np.testing.assert_array_equal(vectors.values[:, 3], [np.nan, 60.0])
    assert vectors.source.tolist() == [[0, 0], [2, 2]]
    assert vectors.status.tolist() == [[1, 0], [2, 2]]
    assert reader.counters.default_answers == 2


def test_a_dead_store_is_answered_for_by_the_cache_and_left_alone() -> None:
    features = FeatureSet(views=(ACCOUNT, PLAIN))
    rows = [dict(row, gone=False, limit=1.5) for row in history(2, 80)]
    store = Failing(MemoryRows())
    materialise(features, {"accounts": frame(rows)}, store, until=UNTIL)
    store.reads = 0
    clock = EventClock(UNTIL)
    reader = FeatureReader(features, store, cooldown="30s", clock=clock, defaults={"plain_limit": 9.0})
    good = reader.read({"customer_id": ["c0", "c1"]})
    store.down = True
    clock.advance(UNTIL + SECOND)
    vectors = reader.read({"customer_id": ["c0", "c1", "c2"]})
    np.testing.assert_array_equal(vectors.values[:2], good.values)
    assert vectors.source.tolist() == [[1, 1], [1, 1], [2, 2]]
    assert vectors.source_of(0) == "cache"
    assert vectors.status_of(2) == "missing"
    np.testing.assert_array_equal(vectors.values[2], [np.nan, np.nan, np.nan, 9.0])
    for _ in range(5):
        reader.read({"customer_id": ["c0"]})
    assert store.reads == 2
    counters = reader.counters
    assert (counters.circuit, counters.store_errors, counters.cache_answers, counters.default_answers) == (
        "open",
        1,
        14,
        2,
    )
    assert counters.last_error == "the store does not answer"
    assert "circuit open until" in str(counters)

    # A probe that fails opens it for another while; one that succeeds closes it.
    clock.advance(UNTIL + 31 * SECOND)
    reader.read({"customer_id": ["c0"]})
    reader.read({"customer_id": ["c0"]})
    assert store.reads == 3
    store.down = False
    clock.advance(UNTIL + 62 * SECOND)
    assert reader.read({"customer_id": ["c2"]}).source_of(0) == "store"
    assert reader.counters.circuit == "closed"
    assert store.reads == 4

    # The TTL holds in the cache too.
    store.down = True
    clock.advance(UNTIL + 60 * DAY)
    late = reader.read({"customer_id": ["c0"]})
    assert late.status.tolist() == [[1, 0]]
    np.testing.assert_array_equal(late.values[0], [math.nan, math.nan, math.nan, 1.5])


def test_one_call_probes_while_the_others_go_on() -> None:
    features = FeatureSet(views=(PLAIN,))
    store, _ = filled(features)
    clock = EventClock(UNTIL)
    entered, leave = threading.Event(), threading.Event()

    class Slow(Failing):
        def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
            if not self.down and self.reads:
                entered.set()
                assert leave.wait(10)
            return super().read(keys)

    slow = Slow(store)
    reader = FeatureReader(features, slow, clock=clock, cooldown="30s")
    slow.down = True
    reader.read({"customer_id": ["c0"]})
    slow.down = False
    clock.advance(UNTIL + MINUTE)
    probe = threading.Thread(target=reader.read, args=({"customer_id": ["c0"]},))
    probe.start()
    assert entered.wait(10)
    assert reader.counters.circuit == "probing"
    assert reader.read({"customer_id": ["c1"]}).source_of(0) == "default"
    leave.set()
    probe.join(10)
    assert reader.counters.circuit == "closed"
    assert slow.reads == 2


def test_a_probe_that_is_broken_off_leaves_the_way_to_the_next() -> None:
    store, _ = filled(FeatureSet(views=(PLAIN,)))
    clock = EventClock(UNTIL)

    class Interrupted(Failing):
        interrupt = False

        def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
            if self.interrupt:
                raise KeyboardInterrupt
            return super().read(keys)

    once = Interrupted(store)
    once.down = True
    reader = FeatureReader(FeatureSet(views=(PLAIN,)), once, clock=clock)
    reader.read({"customer_id": ["c0"]})
    once.down, once.interrupt = False, True
    clock.advance(UNTIL + MINUTE)
    with pytest.raises(KeyboardInterrupt):
        reader.read({"customer_id": ["c0"]})
    once.interrupt = False
    assert reader.read({"customer_id": ["c0"]}).source_of(0) == "store"
    assert reader.counters.circuit == "closed"


def test_a_clock_that_goes_back_does_not_keep_the_circuit_open() -> None:
    class Back:
        moment = UNTIL

        def now(self) -> int:
            return self.moment

    clock = Back()
    store, _ = filled(FeatureSet(views=(PLAIN,)))
    reader = FeatureReader(FeatureSet(views=(PLAIN,)), store, clock=clock, cooldown="30s")
    store.down = True
    reader.read({"customer_id": ["c0"]})
    store.down = False
    clock.moment = UNTIL - DAY
    reader.read({"customer_id": ["c0"]})
    assert reader.counters.circuit == "closed"


def test_the_cache_is_bounded_and_keeps_what_is_asked_for() -> None:
    store, _ = filled(FeatureSet(views=(PLAIN,)), n=200)
    reader = FeatureReader(FeatureSet(views=(PLAIN,)), store, cache_entities=10)
    for place in range(200):
        reader.read({"customer_id": ["c0", f"c{place}"]}, time=UNTIL)
        assert len(reader._last) <= 11
    store.down = True
    vectors = reader.read({"customer_id": ["c0", "c199", "c1"]}, time=UNTIL)
    assert vectors.source[:, 0].tolist()[0] == 1
    assert vectors.source[2, 0] == 2
    without = FeatureReader(FeatureSet(views=(PLAIN,)), store, cache_entities=0)
    assert without.read({"customer_id": ["c0"]}, time=UNTIL).source_of(0) == "default"


def test_a_row_that_is_gone_is_gone_from_the_cache_too() -> None:
    features = FeatureSet(views=(PLAIN,))
    store, _ = filled(features)
    reader = FeatureReader(features, store)
    reader.read({"customer_id": ["c0", "c1"]}, time=UNTIL)
    assert store.erase(row_keys(PLAIN, ["c0"])) == 1
    reader.read({"customer_id": ["c0"]}, time=UNTIL)
    assert reader.forget("customer", {"customer_id": "c1"}) == 1
    assert reader.forget("customer", {"customer_id": "c1"}) == 0
    assert reader.forget("item", {"item_id": 1}) == 0
    store.down = True
    vectors = reader.read({"customer_id": ["c0", "c1"]}, time=UNTIL)
    assert np.isnan(vectors.values).all()


def test_damaged_rows_are_counted_and_the_others_served() -> None:
    features = FeatureSet(views=(PLAIN,))
    store, rows = filled(features)
    (key,) = row_keys(PLAIN, ["c0"])
    store.write([Row(key, (2 * UNTIL, 0), b"rubbish")])
    reader = FeatureReader(features, store)
    vectors = reader.read({"customer_id": ["c0", "c1"]}, time=3 * UNTIL)
    assert vectors.status[0, 0] == 2
    np.testing.assert_array_equal(vectors.values[1], latest(PLAIN, rows, "c1", 3 * UNTIL)[0])
    assert reader.counters.damaged_rows == 1
    assert reader.counters.circuit == "closed"


def test_embeddings_from_the_store_or_from_an_index() -> None:
    view = Embedding(name="item", entity=ITEM, index="items", index_version="2", dimension=2)
    index = ArrayIndex(["1", "2"], np.array([[0.1, 0.2], [0.3, 0.4]]))
    features, store = FeatureSet(views=(view,)), Failing(MemoryRows())
    materialise(features, {}, store, until=UNTIL, indexes={"items@2": index}, chunk_entities=1)
    stored = FeatureReader(features, store).read({"item_id": [2, 3, 1]}, time=5)
    asked = FeatureReader(features, store, indexes={"items@2": index})
    store.down = True
    direct = asked.read({"item_id": [2, 3, 1]}, time=5)
    np.testing.assert_array_equal(stored.values, direct.values)
    np.testing.assert_array_equal(stored.values[0], np.array([0.3, 0.4], np.float32))
    assert stored.status.tolist() == direct.status.tolist() == [[0], [2], [0]]
    assert stored.event_times.tolist() == direct.event_times.tolist() == [[0], [-1], [0]]
    wrong = FeatureReader(features, store, indexes={"items@2": ArrayIndex(["1"], np.zeros((1, 3)))})
    with pytest.raises(InvalidInput, match=r"have shape \(1, 2\)"):
        wrong.read({"item_id": [1]})


def test_no_questions_are_no_vectors() -> None:
    features = FeatureSet(views=(ACCOUNT, PLAIN))
    store, _ = filled(features)
    vectors = FeatureReader(features, store).read({"customer_id": []}, time=UNTIL)
    assert vectors.values.shape == (0, 4)
    assert store.reads == 0
    assert repr(vectors).startswith("0 vectors of 4 features")


@pytest.mark.parametrize(
    ("keys", "options", "rule"),
    [
        ({}, {}, "hold customer_id"),
        ({"customer_id": "c1"}, {}, "be a sequence of keys"),
        ({"customer_id": [1.5]}, {}, "customer_id: got 1.5, must be a text"),
        ({"customer_id": [True]}, {}, "customer_id: got True"),
        ({"customer_id": [None]}, {}, "customer_id: got None"),
        ({"customer_id": [""]}, {}, "customer_id: got ''"),
        ({"customer_id": ["a\x1fb"]}, {}, "be a text"),
        ({"customer_id": ["a"]}, {"time": -1}, "be microseconds since 1970"),
        ({"customer_id": ["a"]}, {"time": 1_700_000_000_000_000_000}, "Not seconds, not nanoseconds"),
        ({"customer_id": ["a"]}, {"time": [1, 2]}, "be one moment or 1"),
        ({"customer_id": ["a"]}, {"time": [-5]}, "be microseconds since 1970"),
        ({"customer_id": ["a"]}, {"time": 1.5}, "be whole microseconds"),
        ({"customer_id": ["a"]}, {"request": {}}, "hold amount"),
        ({"customer_id": ["a"]}, {"request": {"amount": ["7"]}}, "be 1 numbers"),
        ({"customer_id": ["a"]}, {"request": {"amount": [1.0, 2.0]}}, "be 1 numbers"),
    ],
)
def test_wrong_questions_are_named(keys: Any, options: dict[str, Any], rule: str) -> None:
    features = FeatureSet(request=("amount",), views=(PLAIN,))
    reader = FeatureReader(features, MemoryRows())
    with pytest.raises(InvalidInput, match=rule):
        reader.read(keys, **{"request": {"amount": [1.0]}, **options})


def test_wrong_settings_are_named() -> None:
    store = MemoryRows()
    features = FeatureSet(views=(PLAIN,))
    with pytest.raises(InvalidInput, match="name features of the views"):
        FeatureReader(features, store, defaults={"x": 1.0})
    with pytest.raises(InvalidInput, match="be among"):
        FeatureReader(features, store, indexes={"items@1": ArrayIndex([], np.zeros((0, 2)))})
    with pytest.raises(InvalidInput, match="hold a view"):
        FeatureReader(FeatureSet(request=("amount",)), store).read({}, request={"amount": [1.0]})
    with FeatureReader(features, "memory://settings") as reader:
        assert reader.counters.reads == 0


def test_a_redis_that_is_killed_mid_read_and_comes_back() -> None:
    features = FeatureSet(views=(ACCOUNT, PLAIN))
    rows = history(3, 80)
    clock = EventClock(UNTIL)
    with valkey() as server:
        store = open_rows(server.url)
        materialise(features, {"accounts": frame(rows)}, store, until=UNTIL, chunk_entities=2)
        reader = FeatureReader(features, store, clock=clock, cooldown="30s")
        keys = {"customer_id": [f"c{place}" for place in range(6)]}
        before = reader.read(keys)
        for place in range(6):
            np.testing.assert_array_equal(before.values[place, :3], latest(ACCOUNT, rows, f"c{place}", UNTIL)[0])
        server.process.kill()
        server.process.wait()
        for _ in range(3):
            down = reader.read(keys)
            np.testing.assert_array_equal(down.values, before.values)
            assert (down.source == 1).all()
        assert reader.counters.store_errors == 1
        clock.advance(UNTIL + MINUTE)
        assert reader.read(keys).source_of(0) == "cache"
        assert reader.counters.store_errors == 2
        reader.close()
