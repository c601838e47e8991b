"""Windows read where they are filled: equal to the stream's own reads and to a store's, also while they change."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok.clock import DAY, HOUR, MINUTE, EventClock
from vitok.engines import LmdbStore, MemoryStore, Outgoing, publish
from vitok.engines.memory import MemoryRows
from vitok.engines.row_store import Row
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.features import (
    Count,
    Distinct,
    Entity,
    FeatureReader,
    FeatureSet,
    Last,
    Latest,
    Mean,
    OnDemand,
    OnlineFeatures,
    Source,
    StreamWorker,
    Sum,
    View,
    materialise,
)
from vitok.features.live import Follower, KeptWindows, owned, windows_of
from vitok.features.vectors import FRESH, MISSING

START = 20_000 * DAY
CARD, SHOP = Entity("card", "card"), Entity("shop", "shop")
PAID = Source("payments", "id")
CARDS = View(
    name="card",
    entity=CARD,
    source=PAID,
    aggregations=(Count(("1h", "1d")), Mean("amount", "1d"), Last("amount", "1d")),
)
SHOPS = View(name="shop", entity=SHOP, source=PAID, aggregations=(Distinct("card", "1h"), Sum("amount", "7d")))
LIMITS = Latest(name="limit", entity=CARD, source=Source("limits"), columns=("amount",))
FEATURES = FeatureSet(
    request=("amount",),
    views=(CARDS, LIMITS, SHOPS),
    on_demand=(OnDemand("of_limit", lambda amount, limit_amount: amount / limit_amount),),
    select=(
        "shop_amount_sum_7d",
        "of_limit",
        "card_count_1h",
        "card_count_1d",
        "card_amount_mean_1d",
        "amount",
        "card_amount_last_1d",
        "limit_amount",
        "shop_card_distinct_1h",
    ),
)
WINDOWS = FeatureSet(views=(CARDS, SHOPS))


def events(seed: int, n: int, *, first: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "id": [f"{seed}-{first + i}" for i in range(n)],
            "event_time": START + np.arange(n) * MINUTE + rng.integers(0, 8 * MINUTE, n),
            "card": [f"c{i}" for i in rng.integers(0, 6, n)],
            "shop": [f"s{i}" for i in rng.integers(0, 3, n)],
            "amount": rng.integers(1, 50, n) / 4,
        }
    ).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))


def limits() -> pl.DataFrame:
    rows = pl.DataFrame({"card": ["c0", "c1", "c2"], "event_time": [START - DAY] * 3, "amount": [100.0, 200.0, 300.0]})
    return rows.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))


def outgoing(frame: pl.DataFrame) -> list[Outgoing]:
    moment = pl.col("event_time").dt.epoch("us")
    return [
        Outgoing(row["card"].encode(), json.dumps(row).encode())
        for row in frame.with_columns(moment).iter_rows(named=True)
    ]


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(0, 150), st.integers(-20, 90))
def test_live_windows_equal_the_stream_and_the_store(seed: int, n: int, minutes: int) -> None:
    rows = MemoryRows()
    materialise(LIMITS, {"limits": limits()}, rows, until=START, clock=EventClock(START))
    online = OnlineFeatures(WINDOWS, MemoryStore(), journal=True)
    frame = events(seed, n)
    for part in (frame[: n // 2], frame[n // 2 :]):
        if len(part):
            online.ingest("payments", part)
    online.publish(rows, now=START + DAY)
    live = FeatureReader(FEATURES, rows, windows=online, defaults={"limit_amount": 50.0})
    stored = FeatureReader(FEATURES, rows, defaults={"limit_amount": 50.0})
    keys = {"card": [f"c{i}" for i in range(8)], "shop": [f"s{i % 4}" for i in range(8)]}
    times = np.full(8, max(online.newest, START) + minutes * MINUTE)
    request = {"amount": [25.0] * 8}
    one, other = (reader.read(keys, time=times, request=request) for reader in (live, stored))
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.event_times, other.event_times)
    np.testing.assert_array_equal(one.status, other.status)
    np.testing.assert_array_equal(one.source, other.source)
    out = np.empty((8, len(WINDOWS.computed)))
    newest = online.read_many(keys, times, out)
    exact = times[:, None] >= newest - online.lateness
    for place, view in enumerate(WINDOWS.windowed):
        columns = [one.names.index(name) for name in view.feature_names]
        mine = out[:, WINDOWS.columns_of[view.name]]
        np.testing.assert_array_equal(one.values[exact[:, place]][:, columns], mine[exact[:, place]])
        assert np.isnan(one.values[~exact[:, place]][:, columns]).all()


def test_a_reader_of_windows_alone_needs_no_store() -> None:
    online = OnlineFeatures(WINDOWS, MemoryStore())
    reader = FeatureReader(FeatureSet(views=(SHOPS,)), windows=[online])
    online.ingest("payments", events(1, 50))
    vectors = reader.read({"shop": ["s0", "nobody"]}, time=online.newest + 1)
    assert vectors.status.tolist() == [[FRESH], [MISSING]]
    assert vectors.values[1].tolist() == [0.0, 0.0]
    assert reader.read({"shop": []}, time=START).values.shape == (0, 2)
    with pytest.raises(InvalidInput, match=r"store: got None, must be given: limit must be read from one"):
        FeatureReader(FEATURES, windows=online)
    with pytest.raises(InvalidInput, match=r"store: got None, must be given: card, limit, shop"):
        FeatureReader(FEATURES)


def test_windows_of_other_definitions_are_refused() -> None:
    other = View(name="shop", entity=SHOP, source=PAID, aggregations=(Sum("amount", "1d"),))
    with pytest.raises(InvalidInput, match="version of view 'shop'"):
        FeatureReader(FEATURES, MemoryRows(), windows=OnlineFeatures(FeatureSet(views=(other,)), MemoryStore()))
    twice = [OnlineFeatures(WINDOWS, MemoryStore()) for _ in range(2)]
    with pytest.raises(InvalidInput, match="be kept in one place"):
        FeatureReader(FEATURES, MemoryRows(), windows=twice)
    with pytest.raises(InvalidInput, match="be the same in all feature sets"):
        windows_of([WINDOWS, FeatureSet(views=(other,))], "payments")
    with pytest.raises(InvalidInput, match="be one that views of windows read: payments"):
        windows_of([FEATURES], "limits")


def test_what_is_forgotten_is_gone_from_live_windows() -> None:
    online = OnlineFeatures(WINDOWS, MemoryStore(), journal=True)
    online.ingest("payments", events(2, 80))
    reader = FeatureReader(FeatureSet(views=(CARDS,)), windows=online)
    before = reader.read({"card": ["c1", "c2"]}, time=online.newest + 1)
    assert before.values[0, 1] > 0
    assert reader.forget("card", {"card": "c1"}) == 1
    after = reader.read({"card": ["c1", "c2"]}, time=online.newest + 1)
    assert after.status.tolist() == [[MISSING], [FRESH]]
    assert after.values[0, :2].tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(after.values[1], before.values[1])


def test_readers_see_whole_batches_while_another_thread_writes() -> None:
    # Each batch holds one event of each of two cards and one shop: whoever reads between two batches sees equal counts.
    both = FeatureSet(
        views=(
            View(name="card", entity=CARD, source=PAID, aggregations=(Count("30d"),)),
            View(name="shop", entity=SHOP, source=PAID, aggregations=(Count("30d"),)),
        )
    )
    online = OnlineFeatures(both, MemoryStore(), journal=True, max_cached=1)
    n_batches = 60

    def write() -> None:
        for number in range(n_batches):
            rows = {"id": [f"{number}"], "event_time": [START + number], "card": ["c"], "shop": ["s"]}
            frame = pl.DataFrame(rows).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
            online.ingest("payments", frame)
            if number % 20 == 19:
                online.checkpoint()
                online.publish(rows_store, now=START + number)

    rows_store = MemoryRows()
    reader = FeatureReader(both, windows=online)
    writer = threading.Thread(target=write)
    writer.start()
    seen: list[float] = []
    while not seen or seen[-1] < n_batches:
        is_writing = writer.is_alive()
        (pair,) = reader.read({"card": ["c"], "shop": ["s"]}, time=START + DAY).values.tolist()
        assert pair[0] == pair[1]
        seen.append(pair[0])
        assert is_writing or seen[-1] == n_batches
    writer.join()
    assert seen == sorted(seen)


# Followers


class Rows(MemoryRows):
    """A store that can be down."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False

    def write(self, rows: Iterator[Row]) -> int:  # type: ignore[override]
        if self.down:
            raise StoreError("the store is down")
        return super().write(rows)


def stop_when_idle(follower: Follower) -> str:
    stop = threading.Event()
    follower.run(stop, after_step=lambda n: None if n else stop.set())
    return str(follower.report)


def test_a_follower_goes_on_where_it_was(tmp_path: Path) -> None:
    url, rows = "memory://live-goes-on", MemoryRows()
    publish(url + "?n_partitions=2", outgoing(events(3, 70)[:60]))
    follower = Follower([FEATURES], "payments", url, tmp_path, rows=rows)
    assert stop_when_idle(follower).startswith("60 messages: 60 new")
    with pytest.raises(Conflict, match="followed by another process"):
        Follower([FEATURES], "payments", url, tmp_path)
    follower.close()
    publish(url, [*outgoing(events(3, 70))[55:], Outgoing(None, b"{"), Outgoing(None, b'{"id": "x", "amount": "?"}')])
    follower = Follower([FEATURES, WINDOWS], "payments", url, tmp_path, rows=rows, publish_every=1)
    assert stop_when_idle(follower) == "17 messages: 10 new, 5 seen before, 0 late, 2 rejected"
    reasons = [json.loads(line)["reason"] for line in follower.rejected.read_text().splitlines()]
    assert "not a JSON object" in reasons[0]
    assert reasons[1] == "amount: got '?', must be a number"
    alone = OnlineFeatures(WINDOWS, MemoryStore())
    alone.ingest("payments", events(3, 70))
    keys = {"card": [f"c{i}" for i in range(6)], "shop": ["s0"] * 6}
    readers = [FeatureReader(WINDOWS, windows=follower.windows), FeatureReader(WINDOWS, rows)]
    wanted = FeatureReader(WINDOWS, windows=alone).read(keys, time=alone.newest + 1)
    for reader in readers:
        np.testing.assert_array_equal(reader.read(keys, time=alone.newest + 1).values, wanted.values)
    follower.close()
    changed = View(name="card", entity=CARD, source=PAID, aggregations=(Count("2h"),))
    with pytest.raises(Conflict, match="kept by other definitions of what reads payments"):
        Follower([FeatureSet(views=(changed,))], "payments", url, tmp_path)


def test_nothing_is_saved_that_was_not_published(tmp_path: Path) -> None:
    # The store is down while events come and the process dies: the next one publishes them.
    url, rows = "memory://live-published", Rows()
    publish(url, outgoing(events(4, 40)))
    rows.down, told, stop = True, [], threading.Event()
    follower = Follower(
        [WINDOWS], "payments", url, tmp_path, rows=rows, publish_every=1, patience="1s", tell=told.append
    )
    with pytest.raises(StoreError, match="the store is down"):
        follower.run(stop)
    assert told == ["the store is down; trying again"]
    follower.close()
    rows.down = False
    follower = Follower([WINDOWS], "payments", url, tmp_path, rows=rows)
    assert stop_when_idle(follower).startswith("0 messages")
    keys = {"card": ["c0", "c1"], "shop": ["s0", "s1"]}
    live, stored = FeatureReader(WINDOWS, windows=follower.windows), FeatureReader(WINDOWS, rows)
    moment = follower.windows.newest + 1
    np.testing.assert_array_equal(stored.read(keys, time=moment).values, live.read(keys, time=moment).values)
    assert stored.read(keys, time=moment).status.max() == 0
    follower.close()


def test_a_store_that_comes_back_is_told_of(tmp_path: Path) -> None:
    url, rows, told, stop = "memory://live-back", Rows(), [], threading.Event()
    publish(url, outgoing(events(5, 20)))
    rows.down = True

    def tell(text: str) -> None:
        told.append(text)
        rows.down = False

    def after_step(n: int) -> None:
        if len(told) == 2 and not n:
            stop.set()

    follower = Follower([WINDOWS], "payments", url, tmp_path, rows=rows, publish_every=1, tell=tell)
    assert follower.run(stop, after_step=after_step).n_new == 20
    assert told == ["the store is down; trying again", "working again"]
    follower.close()


def test_rows_that_cannot_be_taken_in_come_again(tmp_path: Path) -> None:
    url = "memory://live-again"
    publish(url, outgoing(events(8, 5)))
    online, bad = OnlineFeatures(WINDOWS, MemoryStore(), journal=True), [True]

    def check(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        return frame.drop("amount") if bad else frame, frame.clear().with_columns(pl.lit("").alias("reason"))

    worker = StreamWorker("payments", url, online, check=check, rejected=tmp_path / "bad.jsonl")
    for _ in range(2):
        with pytest.raises(InvalidInput, match="hold amount"):
            worker.step(0.1)
    bad.clear()
    assert worker.step(0.1) == 5
    assert worker.report.n_new == 5
    worker.close()


def test_followers_of_a_group_share_partitions(tmp_path: Path) -> None:
    url = "memory://live-group"
    publish(url + "?n_partitions=2", outgoing(events(6, 62)[:60]))
    first = Follower([FeatureSet(views=(CARDS,))], "payments", url + "?group=g", tmp_path)
    assert stop_when_idle(first).startswith("60 messages: 60 new")
    with pytest.raises(InvalidInput, match="not be there where all keys are to be read"):
        _ = first.windows
    assert sorted(path.name for path in (tmp_path / "payments").iterdir()) == ["partition-0", "partition-1"]
    first.close()
    publish(url, outgoing(events(6, 62))[60:])
    second = Follower([FeatureSet(views=(CARDS,))], "payments", url + "?group=g", tmp_path)
    assert stop_when_idle(second).startswith("2 messages: 2 new")
    second.close()


def test_the_windows_of_a_follower_that_stopped_can_be_forgotten(tmp_path: Path) -> None:
    url = "memory://live-forget"
    publish(url, [*outgoing(events(7, 30)), Outgoing(None, b'{"card": "c1", "id": "bad"}'), Outgoing(None, b"{")])
    follower = Follower([WINDOWS], "payments", url, tmp_path)
    stop_when_idle(follower)
    kept = KeptWindows([FEATURES], tmp_path)
    with pytest.raises(Conflict, match="followed by another process"):
        kept.forget("card", {"card": "c1"})
    follower.close()
    assert kept.forget("card", {"card": "c1"}) == 2
    assert kept.forget("card", {"card": "c1"}) == 0
    assert kept.forget("card", {"card": "nobody"}) == 0
    online = OnlineFeatures(WINDOWS, store := LmdbStore(tmp_path / "payments" / "windows"))
    vectors = FeatureReader(FeatureSet(views=(CARDS,)), windows=online).read({"card": ["c1", "c2"]}, time=START + HOUR)
    assert vectors.status.tolist() == [[MISSING], [FRESH]]
    assert (tmp_path / "payments" / "rejected.jsonl").read_text().count("\n") == 1
    store.close()


def test_a_folder_that_cannot_be_made_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        Follower([WINDOWS], "payments", "memory://live-file", tmp_path / "file")
    with owned(tmp_path / "folder"), pytest.raises(Conflict), owned(tmp_path / "folder", patience_s=0.1):
        pass
