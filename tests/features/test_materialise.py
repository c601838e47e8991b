"""From files to the store: the oracle is `latest_oracle`, row by row in plain Python."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.features.latest_oracle import TIMES, Failing, frame, history, latest

from vitok.clock import DAY, HOUR, MINUTE, EventClock
from vitok.engines.lmdb import LmdbRows
from vitok.engines.memory import MemoryRows
from vitok.engines.row_store import HEADER, Row, RowStore, unpack_version
from vitok.errors import InvalidInput, StoreError
from vitok.features import Categories, Count, Embedding, Entity, FeatureSet, Latest, Max, Mean, Source, View
from vitok.features.embeddings import ArrayIndex
from vitok.features.materialise import Progress, known_views, materialise, progress_key, watermark
from vitok.features.notes import read_note
from vitok.features.reader import FeatureReader
from vitok.features.rows import row_keys

CUSTOMER = Entity("customer", "customer_id")
COLUMNS = {"limit": "float64", "level": "int32", "vip": "bool"}
KNOWN = Source("accounts", ingest_time="known_at", deleted="gone")
UNKNOWN = Source("accounts", deleted="gone")
KEYS = [f"c{place}" for place in range(6)]
UNTIL = 140 * HOUR


def view_of(source: Source = KNOWN, **options: Any) -> Latest:
    return Latest(name="account", entity=CUSTOMER, source=source, columns=COLUMNS, **options)


def check(view: Latest, store: RowStore, rows: list[dict[str, Any]], time: int) -> None:
    vectors = FeatureReader(FeatureSet(views=(view,)), store).read({"customer_id": KEYS}, time=time)
    for place, key in enumerate(KEYS):
        values, status = latest(view, rows, key, time)
        np.testing.assert_array_equal(vectors.values[place], values)
        assert vectors.status_of(place) == status


def content(view: Latest, store: RowStore) -> list[bytes | None]:
    return store.read(row_keys(view, KEYS))


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(0, 60),
    untils=st.lists(st.integers(0, 140), min_size=1, max_size=4),
    ttl=st.sampled_from(["", "1d"]),
)
def test_runs_one_after_the_other_leave_what_one_run_would(seed: int, n: int, untils: list[int], ttl: str) -> None:
    rows = history(seed, n)
    view = view_of(ttl=ttl)
    store = MemoryRows()
    # Whatever the order of the runs, the store is right for the latest one; each run sees what was known by then only.
    for hours in untils:
        known = [row for row in rows if row["known_at"] <= hours * HOUR]
        materialise(view, {"accounts": frame(known)}, store, until=hours * HOUR, chunk_entities=2)
    check(view, store, rows, max(untils) * HOUR)
    assert watermark(store, view) == max(untils) * HOUR
    whole = MemoryRows()
    materialise(view, {"accounts": frame(rows)}, whole, until=max(untils) * HOUR)
    assert content(view, store) == content(view, whole)


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 60), lag=st.sampled_from(["0s", "2h"]))
def test_without_an_ingest_time_late_rows_are_met_within_the_overlap(seed: int, cut: int, lag: str) -> None:
    rows = history(seed, 60)
    view = view_of(UNKNOWN, lag=lag)
    store = MemoryRows()
    for landed in (cut, 60):
        materialise(view, {"accounts": frame(rows[:landed])}, store, until=UNTIL - DAY + landed * HOUR, overlap="10d")
    check(view, store, rows, UNTIL - DAY + 60 * HOUR)


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), untils=st.lists(st.integers(0, 140), min_size=1, max_size=4))
def test_a_lag_decides_even_where_there_is_an_ingest_time(seed: int, untils: list[int]) -> None:
    rows = history(seed, 60)
    view, store = view_of(lag="2h"), MemoryRows()
    for hours in sorted(untils):
        landed = [row for row in rows if row["known_at"] <= hours * HOUR]
        materialise(view, {"accounts": frame(landed)}, store, until=hours * HOUR)
        check(view, store, landed, hours * HOUR)


def test_two_runs_at_once_do_no_harm() -> None:
    rows = history(9, 80)
    view, store, whole = view_of(), MemoryRows(), MemoryRows()
    runs = [
        threading.Thread(
            target=materialise,
            args=(view, {"accounts": frame(rows)}, store),
            kwargs={"until": (130 + place) * HOUR, "chunk_entities": 1},
        )
        for place in range(3)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(20)
    materialise(view, {"accounts": frame(rows)}, store, until=UNTIL)
    materialise(view, {"accounts": frame(rows)}, whole, until=UNTIL)
    assert content(view, store) == content(view, whole)


def test_a_late_row_is_met_by_its_ingest_time_though_its_event_is_long_past() -> None:
    base = {"customer_id": "c0", "gone": False, "level": 1, "vip": True}
    early = {**base, "event_time": 0, "known_at": 0, "limit": 1.0}
    late = {**base, "event_time": HOUR, "known_at": 50 * HOUR, "limit": 2.0}
    view, store = view_of(), MemoryRows()
    materialise(view, {"accounts": frame([early, late])}, store, until=40 * HOUR)
    check(view, store, [early, late], 40 * HOUR)
    report = materialise(view, {"accounts": frame([early, late])}, store, until=60 * HOUR)
    assert (report.views[0].since, report.views[0].entities, report.written) == (40 * HOUR, 1, 1)
    check(view, store, [early, late], 60 * HOUR)


def test_a_row_of_the_future_waits_for_its_time() -> None:
    row = {"customer_id": "c0", "gone": False, "level": 1, "vip": True, "limit": 1.0}
    rows = [{**row, "event_time": 0, "known_at": 0}, {**row, "event_time": 50 * HOUR, "known_at": 0, "limit": 2.0}]
    view, store = view_of(), MemoryRows()
    for hours in (40, 50, 51):
        materialise(view, {"accounts": frame(rows)}, store, until=hours * HOUR)
        check(view, store, rows, hours * HOUR)


def test_a_backfill_never_replaces_newer_rows() -> None:
    rows = history(1, 80)
    view, store = view_of(), MemoryRows()
    materialise(view, {"accounts": frame(rows)}, store, until=UNTIL)
    before = content(view, store)
    report = materialise(view, {"accounts": frame(rows[:40])}, store, since=0, until=60 * HOUR)
    assert report.written == 0
    assert report.views[0].entities > 0
    assert content(view, store) == before
    assert watermark(store, view) == UNTIL


def test_a_backfill_that_leaves_a_gap_does_not_move_the_watermark() -> None:
    rows = history(2, 80)
    view, store = view_of(), MemoryRows()
    materialise(view, {"accounts": frame(rows)}, store, since=50 * HOUR, until=60 * HOUR)
    assert watermark(store, view) is None
    materialise(view, {"accounts": frame(rows)}, store, until=20 * HOUR)
    materialise(view, {"accounts": frame(rows)}, store, since=50 * HOUR, until=60 * HOUR)
    assert watermark(store, view) == 20 * HOUR
    materialise(view, {"accounts": frame(rows)}, store, since=10 * HOUR, until=60 * HOUR)
    assert watermark(store, view) == 60 * HOUR
    check(view, store, rows, 60 * HOUR)


@pytest.mark.parametrize("since", [None, 0])
def test_a_run_that_dies_at_any_write_goes_on_and_ends_the_same(since: int | None) -> None:
    rows = history(3, 80)
    view, whole = view_of(), MemoryRows()
    materialise(view, {"accounts": frame(rows)}, whole, until=UNTIL)
    for place in range(1, 13):
        store = Failing(MemoryRows())
        store.fails_at_write = place
        options: dict[str, Any] = {"until": UNTIL, "since": since, "chunk_entities": 2}
        try:
            materialise(view, {"accounts": frame(rows)}, store, **options)
        except StoreError:
            told: list[Progress] = []
            report = materialise(view, {"accounts": frame(rows)}, store, **options, progress=told.append)
            # The views' record, then by chunk rows and record: what was recorded is not written again.
            done = max(0, (place - 2) // 2)
            assert report.views[0].resumed == (done > 0)
            assert sum(item.entities for item in report.views) == max(0, 6 - 2 * done)
            assert told[-1].done == told[-1].of if told else done >= 3
        assert content(view, store) == content(view, whole)
        assert "leg" not in read_note(store, progress_key(view))[0]


def test_a_later_run_first_finishes_the_one_that_died() -> None:
    rows = history(4, 80)
    view, store = view_of(), Failing(MemoryRows())
    store.fails_at_write = 4
    with pytest.raises(StoreError):
        materialise(view, {"accounts": frame(rows)}, store, until=60 * HOUR, chunk_entities=2)
    report = materialise(view, {"accounts": frame(rows)}, store, until=UNTIL, chunk_entities=2)
    assert [(item.since, item.until, item.resumed) for item in report.views] == [
        (None, 60 * HOUR, True),
        (60 * HOUR, UNTIL, False),
    ]
    check(view, store, rows, UNTIL)


def test_kill_9_in_the_middle_and_once_more(tmp_path: Path) -> None:
    rows = history(5, 300, customers=40)
    frame(rows).write_parquet(tmp_path / "rows.parquet")
    program = textwrap.dedent("""
        import os, signal, sys
        from vitok.engines.lmdb import LmdbRows
        from vitok.features import Entity, Latest, Source
        from vitok.features.materialise import materialise
        folder, until, die = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        source = Source("accounts", ingest_time="known_at", deleted="gone")
        columns = {"limit": "float64", "level": "int32", "vip": "bool"}
        view = Latest(name="account", entity=Entity("customer", "customer_id"), source=source, columns=columns)
        class Dying(LmdbRows):
            left = die
            def write(self, rows):
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().write(rows)
        store = Dying(folder + "/store")
        materialise(view, {"accounts": folder + "/rows.parquet"}, store, until=until, chunk_entities=4)
    """)
    for die in (9, 8):
        command = [sys.executable, "-c", program, str(tmp_path), str(UNTIL), str(die)]
        assert subprocess.run(command, env=os.environ, check=False).returncode == -signal.SIGKILL
    view, store = view_of(), LmdbRows(tmp_path / "store")
    report = materialise(view, {"accounts": tmp_path / "rows.parquet"}, store, until=UNTIL, chunk_entities=4)
    assert report.views[0].resumed
    assert 0 < report.views[0].entities < 40
    whole = MemoryRows()
    materialise(view, {"accounts": frame(rows)}, whole, until=UNTIL)
    keys = row_keys(view, [f"c{place}" for place in range(40)])
    assert store.read(keys) == whole.read(keys)
    store.close()


def test_a_full_store_says_so_and_loses_nothing(tmp_path: Path) -> None:
    n = 4000
    rows = pl.DataFrame({"customer_id": range(n), "event_time": [1] * n, "limit": np.arange(n) + 0.5})
    rows = rows.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
    view = Latest(name="account", entity=CUSTOMER, source=Source("accounts"), columns=("limit",))
    store = LmdbRows(tmp_path / "store", map_size=256 << 10)
    with pytest.raises(StoreError, match=r"[Ff]ull"):
        materialise(view, {"accounts": rows}, store, until=HOUR, chunk_entities=500)
    kept = [row for row in store.read(row_keys(view, [str(place) for place in range(n)])) if row is not None]
    assert 0 < len(kept) < n
    store.close()
    store = LmdbRows(tmp_path / "store", map_size=64 << 20)
    report = materialise(view, {"accounts": rows}, store, until=HOUR, chunk_entities=500)
    assert report.views[0].resumed
    reader = FeatureReader(FeatureSet(views=(view,)), store)
    np.testing.assert_array_equal(reader.read({"customer_id": range(n)}, time=HOUR).values[:, 0], np.arange(n) + 0.5)
    store.close()


def test_files_folders_and_patterns_are_one_source(tmp_path: Path) -> None:
    rows = history(6, 90)
    # Rows of the same moment: the file that comes later in order has the last word.
    for row in rows:
        row["known_at"] = row["event_time"]
    for place in range(3):
        (tmp_path / f"day={place}").mkdir()
        part = frame(rows[30 * place : 30 * place + 30])
        part = part.with_columns(pl.col(TIMES).cast(pl.Datetime("ns" if place == 1 else "ms")))
        part.write_parquet(tmp_path / f"day={place}" / "rows.parquet")
    files = sorted(tmp_path.glob("*/*.parquet"))
    for location in (tmp_path, str(tmp_path / "*" / "rows.parquet"), files):
        view, store = view_of(), MemoryRows()
        materialise(view, {"accounts": location}, store, until=UNTIL)
        check(view, store, rows, UNTIL)


def test_a_set_is_taken_view_by_view_and_known_views_are_remembered() -> None:
    old = view_of(ttl="1d")
    new = view_of(ttl="2d")
    item = Embedding(name="item", entity=Entity("item", "id"), index="items", index_version="1", dimension=1)
    store, rows = MemoryRows(), frame(history(7, 20))
    materialise(old, {"accounts": rows}, store, until=UNTIL)
    index = ArrayIndex(["a", "b"], np.ones((2, 1)))
    report = materialise(
        FeatureSet(views=(new, item)), {"accounts": rows}, store, until=UNTIL, indexes={"items@1": index}
    )
    assert [item.view for item in report.views] == ["account", "item"]
    assert known_views(store, "customer") == (("account", old.version), ("account", new.version))
    assert known_views(store, "nobody") == ()
    assert str(report).count("rows written") == 2


def test_rows_can_expire() -> None:
    clock = EventClock(0)
    view, store = view_of(), MemoryRows(clock=clock)
    rows = [dict(row, gone=False) for row in history(8, 40)]
    materialise(view, {"accounts": frame(rows)}, store, until=UNTIL, keep="10d")
    assert any(row is not None for row in content(view, store))
    clock.advance(UNTIL + 10 * DAY)
    assert content(view, store) == [None] * 6


def test_text_is_encoded_and_whole_numbers_keep_their_digits() -> None:
    source = Source("accounts", encode={"tier": Categories(("basic", "gold"))})
    view = Latest(name="a", entity=CUSTOMER, source=source, columns={"tier": "int32", "big": "int64"})
    rows = pl.DataFrame(
        {"customer_id": [1, 2], "event_time": [1, 1], "tier": ["gold", "lead"], "big": [2**60 + 1, None]}
    )
    rows = rows.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
    store = MemoryRows()
    materialise(view, {"accounts": rows}, store, until=HOUR)
    vectors = FeatureReader(FeatureSet(views=(view,)), store).read({"customer_id": [1, 2]}, time=HOUR)
    np.testing.assert_array_equal(vectors.values, [[1.0, float(2**60 + 1)], [-1.0, np.nan]])
    (row,) = store.read(row_keys(view, ["1"]))
    assert row is not None
    assert unpack_version(row) == (1, HOUR)
    assert (2**60 + 1).to_bytes(8, "little") in row[HEADER:]


def with_column(**columns: Any) -> pl.DataFrame:
    return frame(history(0, 4)).with_columns(**columns)


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        (with_column(customer_id=pl.lit(None, pl.String)), "customer_id: got None, must not be null"),
        (with_column(customer_id=pl.lit("")), "customer_id: got None, must not be null"),
        (with_column(customer_id=pl.lit(1.5)), "be text or whole numbers"),
        (with_column(event_time=pl.lit(None, pl.Datetime("us"))), "event_time: got None, must not be null"),
        (with_column(known_at=pl.lit(None, pl.Datetime("us"))), "known_at: got None, must not be null"),
        (with_column(event_time=pl.lit(5)), "event_time: got 'INTEGER', must be a time"),
        (with_column(limit=pl.lit(float("inf"))), "limit: got inf, must be finite"),
        (with_column(limit=pl.lit("high")), "must be numeric where a number is wanted"),
        (with_column(level=pl.lit(1.5)), "level: got 1.5, must be a whole number"),
        (frame(history(0, 4)).drop("vip"), "hold vip"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(rows: pl.DataFrame, rule: str) -> None:
    store = MemoryRows()
    rows = rows if "gone" not in rows.columns else rows.with_columns(gone=pl.lit(value=False))
    with pytest.raises(InvalidInput, match=rule):
        materialise(view_of(), {"accounts": rows}, store, until=UNTIL)
    assert content(view_of(), store) == [None] * 6


def test_wrong_calls_are_named(tmp_path: Path) -> None:
    view, store, rows = view_of(), MemoryRows(), frame(history(0, 4))
    with pytest.raises(InvalidInput, match="not after the present"):
        materialise(view, {"accounts": rows}, store, until=UNTIL, clock=EventClock(UNTIL - 1))
    with pytest.raises(InvalidInput, match="be between 0 and until"):
        materialise(view, {"accounts": rows}, store, until=5, since=6)
    with pytest.raises(InvalidInput, match="chunk_entities"):
        materialise(view, {"accounts": rows}, store, until=5, chunk_entities=0)
    with pytest.raises(InvalidInput, match="hold 'accounts'"):
        materialise(view, {}, store, until=5)
    with pytest.raises(InvalidInput, match="be a Parquet file"):
        materialise(view, {"accounts": tmp_path / "none.parquet"}, store, until=5)
    (tmp_path / "bad.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(InvalidInput, match="be a Parquet file"):
        materialise(view, {"accounts": tmp_path / "bad.parquet"}, store, until=5)
    item = Embedding(name="item", entity=Entity("item", "id"), index="items", index_version="1", dimension=1)
    with pytest.raises(InvalidInput, match="hold 'items@1'"):
        materialise(item, {}, store, until=5)


def test_a_damaged_record_says_what_to_do() -> None:
    view, store = view_of(), MemoryRows()
    store.write([Row(progress_key(view), (1, 0), b"{")])
    with pytest.raises(StoreError, match="erase it and run the job again"):
        materialise(view, {"accounts": frame([])}, store, until=5)
    store.erase([progress_key(view)])
    assert materialise(view, {"accounts": frame([])}, store, until=5).written == 0
    assert json.loads(store.read([progress_key(view)])[0][HEADER:])["watermark"] == 5  # type: ignore[index]


def payments(seed: int, n: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for place in range(n):
        event = int(rng.integers(0, 120)) * HOUR + int(rng.integers(0, 3)) * HOUR // 7
        rows.append(
            {
                "id": f"p{place}",
                "customer_id": f"c{rng.integers(0, 4)}",
                "event_time": event,
                "known_at": event + int(rng.choice([0, 1, 30 * HOUR])),
                "amount": float(rng.integers(0, 100)) / 4,
            }
        )
    rows.sort(key=lambda row: int(row["known_at"]))  # type: ignore[call-overload]
    return rows


def payment_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    schema = {"id": pl.String, "customer_id": pl.String, "event_time": pl.Int64, "known_at": pl.Int64}
    whole = pl.DataFrame(rows, schema={**schema, "amount": pl.Float64})
    return whole.with_columns(pl.col(TIMES).cast(pl.Datetime("us", "UTC")))


SPEND = View(
    name="spend",
    entity=CUSTOMER,
    source=Source("payments", "id", ingest_time="known_at"),
    aggregations=(Count(("6h", "7d")), Max("amount", ("2d",)), Mean("amount", ("7d",))),
)


def spent(rows: list[dict[str, Any]], key: str, time: int, until: int, lag: int | None) -> list[float]:
    seen = [
        row
        for row in rows
        if row["customer_id"] == key
        and (
            row["event_time"] + lag < time if lag is not None else max(row["event_time"] + 1, row["known_at"]) <= until
        )
        and row["event_time"] < time
    ]

    def window(hours: int, minutes: int) -> list[float]:
        hop = minutes * MINUTE
        begin = (time - hours * HOUR) // hop * hop
        return [row["amount"] for row in seen if row["event_time"] >= begin]

    short, middle, long = window(6, 5), window(48, 60), window(168, 60)
    mean = sum(long) / len(long) if long else math.nan
    return [float(len(short)), float(len(long)), max(middle, default=math.nan), mean]


@pytest.mark.parametrize("seed", range(3))
def test_windows_equal_the_oracle_run_after_run(seed: int) -> None:
    rows = payments(seed, 150)
    store = MemoryRows()
    reader = FeatureReader(FeatureSet(views=(SPEND,)), store)
    keys = [f"c{place}" for place in range(5)]
    for hours in (40, 41, 90, 200):
        until = hours * HOUR
        twice = payment_frame([*rows, *rows[:20]])
        report = materialise(SPEND, {"payments": twice}, store, until=until, chunk_entities=2)
        assert report.views[0].entities <= 4
        for time in (until, until + 5 * HOUR):
            vectors = reader.read({"customer_id": keys}, time=time)
            expected = [spent(rows, key, time, until, None) for key in keys]
            np.testing.assert_allclose(vectors.values, expected, rtol=1e-12)
            assert vectors.status[:, 0].tolist() == [0 if store.read(row_keys(SPEND, [key]))[0] else 2 for key in keys]


def test_windows_with_a_lag_hold_events_that_are_not_visible_yet() -> None:
    view = dataclasses.replace(SPEND, lag="2h")
    rows = payments(4, 150)
    store = MemoryRows()
    materialise(view, {"payments": payment_frame(rows)}, store, until=100 * HOUR)
    reader = FeatureReader(FeatureSet(views=(view,)), store)
    happened = [row for row in rows if row["event_time"] < 100 * HOUR]
    for time in (100 * HOUR, 101 * HOUR + 1, 103 * HOUR):
        found = reader.read({"customer_id": ["c0", "c1"]}, time=time).values[:, 0]
        begin = (time - 6 * HOUR) // (5 * MINUTE) * 5 * MINUTE
        for place in range(2):
            count = sum(
                row["customer_id"] == f"c{place}"
                and begin <= row["event_time"]
                and row["event_time"] + 2 * HOUR <= time
                for row in happened
            )
            assert found[place] == count


def test_windows_go_on_after_a_death_and_do_not_answer_what_they_cannot_know() -> None:
    rows = payments(5, 150)
    whole = MemoryRows()
    materialise(SPEND, {"payments": payment_frame(rows)}, whole, until=UNTIL)
    keys = [f"c{place}" for place in range(4)]
    for place in range(1, 10):
        store = Failing(MemoryRows())
        store.fails_at_write = place
        try:
            materialise(SPEND, {"payments": payment_frame(rows)}, store, until=UNTIL, chunk_entities=1)
        except StoreError:
            materialise(SPEND, {"payments": payment_frame(rows)}, store, until=UNTIL, chunk_entities=1)
        assert store.read(row_keys(SPEND, keys)) == whole.read(row_keys(SPEND, keys))
    reader = FeatureReader(FeatureSet(views=(SPEND,)), store, clock=EventClock(UNTIL))
    past = reader.read({"customer_id": ["c0"]}, time=HOUR)
    assert past.status_of(0) == "missing"
    assert np.isnan(past.values).all()
    nobody = reader.read({"customer_id": ["nobody"]}, time=UNTIL)
    np.testing.assert_array_equal(nobody.values, [[0.0, 0.0, np.nan, np.nan]])
    good = reader.read({"customer_id": ["c0"]}, time=UNTIL)
    store.down = True
    down = reader.read({"customer_id": ["c0", "nobody", "c3"]}, time=UNTIL)
    np.testing.assert_array_equal(down.values[0], good.values[0])
    # That nobody has no row was the store's own word; of c3 it never said a thing.
    assert down.source.tolist() == [[1], [1], [2]]
    np.testing.assert_array_equal(down.values[1], nobody.values[0])
    assert np.isnan(down.values[2]).all()


def test_a_damaged_state_does_not_take_the_others_with_it() -> None:
    rows = payments(6, 60)
    store = MemoryRows()
    materialise(SPEND, {"payments": payment_frame(rows)}, store, until=UNTIL)
    first, second = row_keys(SPEND, ["c0", "c1"])
    store.write([Row(first, (UNTIL, UNTIL), b"1234567"), Row(second, (UNTIL, UNTIL), b"")])
    reader = FeatureReader(FeatureSet(views=(SPEND,)), store)
    vectors = reader.read({"customer_id": ["c0", "c1", "c2"]}, time=UNTIL)
    assert vectors.status[:, 0].tolist() == [2, 2, 0]
    assert np.isnan(vectors.values[:2]).all()
    assert reader.counters.damaged_rows == 2
