"""What a table takes: frames and files, keys and times of every kind, copies; and what it refuses."""

import datetime as dt
import errno
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.features.table_oracle import SCHEMA, frame, history, known_once, questions

from vitok.clock import DAY, HOUR
from vitok.errors import InvalidInput, StoreError
from vitok.features import Count, Entity, FeatureSet, Last, Latest, Mean, Source, Sum, View, table
from vitok.features.history import FilesInput, FrameInput, Session
from vitok.features.repeats import repeated_rows

CUSTOMER = Entity("customer", "customer")
EVENTS = Source("events", "id")


def counting(source: Source = EVENTS, entity: Entity = CUSTOMER) -> FeatureSet:
    view = View(name="v", entity=entity, source=source, aggregations=(Count("1d"), Sum("amount", "1d")))
    return FeatureSet(views=(view,))


def events_of(**columns: object) -> pl.DataFrame:
    n = max(len(values) for values in columns.values())  # type: ignore[arg-type]
    whole = {"id": list(range(n)), "customer": ["c"] * n, "event_time": [HOUR] * n, "amount": [1.0] * n, **columns}
    found = pl.DataFrame(whole)
    return found.with_columns(pl.col(pl.Int64).name.keep()).with_columns(
        pl.col("event_time").cast(pl.Datetime("us", "UTC")) if found["event_time"].dtype == pl.Int64 else "event_time"
    )


def asks_of(**columns: object) -> pl.DataFrame:
    return events_of(**columns).drop("id", "amount")


def test_lazy_frames_and_files_give_what_frames_give(tmp_path: Path) -> None:
    events, asks = frame(history(1, 300)), frame(questions(1, 80))
    latest = Latest(name="l", entity=CUSTOMER, source=EVENTS, columns=("amount",), ttl="1d")
    pair = Entity("pair", ("customer", "terminal"))
    of_pair = View(name="p", entity=pair, source=EVENTS, aggregations=(Mean("amount", "2d"), Last("pieces", "2d")))
    features = FeatureSet(views=(*counting().views, latest, of_pair))
    whole = table(asks, features, {"events": events})
    (tmp_path / "parts").mkdir()
    for part in range(3):
        events[part * 150 : part * 150 + 150].write_parquet(tmp_path / "parts" / f"{part}.parquet")
    events.write_csv(tmp_path / "events.csv")
    asks.write_csv(tmp_path / "asks.csv")
    for given_events in (
        events.lazy(),
        tmp_path / "parts",
        str(tmp_path / "parts" / "*.parquet"),
        tmp_path / "events.csv",
    ):
        assert table(asks.lazy(), features, {"events": given_events}).equals(whole)
    found = table(tmp_path / "asks.csv", features, {"events": [tmp_path / "events.csv"]})
    # Empty texts in CSV are nulls, and keys stay text.
    assert found.select(features.names).equals(whole.select(features.names))
    assert found["terminal"].dtype == pl.String
    out = table(asks.lazy(), features, {"events": tmp_path / "parts"}, into=tmp_path / "out.parquet")
    assert pl.read_parquet(out).equals(whole)


def test_files_are_read_in_order(tmp_path: Path) -> None:
    n = 300_000
    rows = pl.DataFrame({"a": np.arange(n), "b": np.random.default_rng(0).random(n)})
    for part in range(3):
        rows[part * 100_000 :][:100_000].write_parquet(tmp_path / f"{part}.parquet", row_group_size=30_001)
    with Session("2GB") as session:
        opened = session.open(tmp_path, "rows")
        assert isinstance(opened, FilesInput)
        assert opened.height == n
        assert pl.concat(opened.batches(["b", "a"])).equals(rows.select("b", "a"))


def test_seven_and_the_text_7_are_one_entity_and_007_is_another(tmp_path: Path) -> None:
    events = events_of(customer=[7, 7, 8])
    for kind in (pl.String, pl.Int32, pl.UInt64, pl.Categorical):
        asks = asks_of(customer=["7", "8", "9"], event_time=[2 * HOUR] * 3)
        asks = asks.with_columns(pl.col("customer").cast(pl.String if kind == pl.Categorical else pl.Int64).cast(kind))
        assert table(asks, counting(), {"events": events})["v_count_1d"].to_list() == [2, 1, 0]
    (tmp_path / "asks.csv").write_text("customer,event_time\n007,1970-01-01T02:00:00Z\n7,1970-01-01T02:00:00Z\n")
    found = table(tmp_path / "asks.csv", counting(), {"events": events})
    assert found["customer"].to_list() == ["007", "7"]
    assert found["v_count_1d"].to_list() == [0, 2]


def test_keys_of_several_columns_do_not_run_together() -> None:
    entity = Entity("pair", ("a", "b"))
    for kinds in ((str, str), (str, int), (int, int), (int, str)):
        rows = [("1", "23"), ("12", "3"), ("1", "23")]
        keys = {
            name: [kind(row[place]) for row in rows] for place, (name, kind) in enumerate(zip("ab", kinds, strict=True))
        }
        found = table(
            asks_of(event_time=[2 * HOUR] * 3, **keys), counting(entity=entity), {"events": events_of(**keys)}
        )
        assert found["v_count_1d"].to_list() == [2, 1, 2]


def test_keys_of_three_columns_and_null_parts() -> None:
    entity = Entity("three", ("a", "b", "c"))
    keys = {"a": [1, 1], "b": [2, 2], "c": [3, 4]}
    asks = asks_of(event_time=[2 * HOUR] * 4, a=[1, 1, None, 1], b=[2, 2, 2, 2], c=[3, None, 3, 4])
    found = table(asks, counting(entity=entity), {"events": events_of(**keys)})
    assert found["v_count_1d"].to_list() == [1, 0, 0, 1]
    assert found.select("a", "b", "c").equals(asks.select("a", "b", "c"))


@pytest.mark.parametrize("unit", ["ns", "us", "ms"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Riga", "America/New_York"])
@pytest.mark.parametrize("in_files", [False, True])
def test_moments_are_moments_in_any_unit_and_zone(unit: str, zone: str | None, in_files: bool, tmp_path: Path) -> None:
    # The night of the change to summer time in Riga, 2024-03-31 01:00 UTC: local clocks jump from 3:00 to 4:00.
    base = dt.datetime(2024, 3, 31, 0, 30, tzinfo=dt.UTC)
    moments = pl.Series([base, base + dt.timedelta(minutes=40), base + dt.timedelta(minutes=90)])
    moments = moments.cast(pl.Datetime("us", "UTC"))
    events = events_of(event_time=[0, 0, 0]).with_columns(event_time=moments)
    view = View(name="v", entity=CUSTOMER, source=EVENTS, aggregations=(Count("1h"),), exact=True)
    moved = moments.dt.convert_time_zone(zone) if zone else moments.dt.replace_time_zone(None)
    asks = asks_of(event_time=[0, 0, 0]).with_columns(event_time=moved.cast(pl.Datetime(unit, zone)))  # type: ignore[arg-type]
    source: object = events.with_columns(event_time=asks["event_time"])
    if in_files:
        asks.write_parquet(tmp_path / "asks.parquet")
        events.with_columns(event_time=asks["event_time"]).write_parquet(tmp_path / "events.parquet")
        source = tmp_path / "events.parquet"
    found = table(asks, FeatureSet(views=(view,)), {"events": source})
    assert found["v_count_1h"].to_list() == [0, 1, 1]
    assert found["event_time"].dtype == pl.Datetime(unit, zone)  # type: ignore[arg-type]
    if in_files:
        written = table(
            tmp_path / "asks.parquet", FeatureSet(views=(view,)), {"events": source}, into=tmp_path / "o.parquet"
        )
        assert pl.read_parquet(written).equals(found)


def test_dates_are_their_first_moment() -> None:
    days = [dt.date(2024, 1, 1), dt.date(2024, 1, 2), dt.date(2024, 1, 3)]
    events = events_of(event_time=days)
    exact = View(name="v", entity=CUSTOMER, source=EVENTS, aggregations=(Count("1d"),), exact=True)
    assert table(events, FeatureSet(views=(exact,)), {"events": events})["v_count_1d"].to_list() == [0, 1, 1]


def test_moments_before_1970_and_far_ahead() -> None:
    events = events_of(event_time=[-40 * DAY, -40 * DAY + 5, 400_000 * DAY])
    asks = asks_of(event_time=[-40 * DAY + 5, -40 * DAY + 6, 400_000 * DAY, 400_000 * DAY + 1])
    assert table(asks, counting(), {"events": events})["v_count_1d"].to_list() == [1, 2, 0, 1]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 80), st.booleans(), st.booleans(), st.sampled_from([1, 10_000]))
def test_copies_are_found_by_any_memory(seed: int, n: int, numbers: bool, has_ingest: bool, memory: int) -> None:
    rows = [{**row, "place": place} for place, row in enumerate(history(seed, n))]
    source = Source("s", "id", ingest_time="seen_at" if has_ingest else "")
    given_rows = pl.DataFrame(rows, schema={**SCHEMA, "place": pl.Int64})
    given_rows = given_rows.with_columns(pl.col("seen_at").cast(pl.Datetime("us", "UTC")))
    if numbers:
        given_rows = given_rows.with_columns(pl.col("id").str.strip_prefix("e").cast(pl.Int64))
    kept = {row["place"] for row in known_once(source, rows)}
    found = repeated_rows(FrameInput(given_rows), source, memory)
    assert found.tolist() == [place for place in range(len(rows)) if place not in kept]


def test_a_copy_under_another_key_changes_nothing() -> None:
    events = events_of(id=["a", "a", "b"], customer=["c", "d", "d"], event_time=[1, 2, 3])
    asks = asks_of(customer=["c", "d"], event_time=[9, 9])
    assert table(asks, counting(), {"events": events})["v_count_1d"].to_list() == [1, 1]


@given(st.integers(0, 1000), st.integers(0, 30))
@settings(max_examples=20)
def test_rows_in_are_rows_out(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    asks = frame(questions(seed, 10))[rng.integers(0, 10, n)].with_columns(place=pl.Series(rng.random(n)))
    found = table(asks, counting(), {"events": frame(history(seed, 20))})
    assert found.drop(counting().names).equals(asks)
    assert found.columns == [*asks.columns, *counting().names]


def test_nothing_asked_and_nothing_known(tmp_path: Path) -> None:
    events, asks = frame(history(0, 10)), frame(questions(0, 3))
    nobody = asks.with_columns(customer=pl.lit(None))
    features = FeatureSet(
        views=(*counting().views, Latest(name="l", entity=CUSTOMER, source=EVENTS, columns=("pieces",)))
    )
    assert table(asks.clear(), features, {"events": events}).height == 0
    assert table(asks, features, {"events": events.clear()})["v_count_1d"].to_list() == [0, 0, 0]
    assert table(asks, features, {"events": pl.DataFrame(schema=events.columns)})["l_pieces"].to_list() == [None] * 3
    assert table(nobody, features, {"events": events})["v_amount_sum_1d"].to_list() == [0, 0, 0]
    assert table(asks, FeatureSet(request=("amount",)), {}).equals(asks)
    asks.clear().write_parquet(tmp_path / "none.parquet")
    out = table(tmp_path / "none.parquet", features, {"events": events}, into=tmp_path / "out.parquet")
    assert pl.read_parquet(out).columns == [*asks.columns, *features.names]
    assert table(asks[:1], features, {"events": events[:1]}).height == 1


BAD = [
    ({"customer": None}, "source 'events': customer", "null"),
    ({"customer": ""}, "source 'events': customer", "empty"),
    ({"id": None}, "source 'events': id", "null"),
    ({"event_time": None}, "source 'events': event_time", "null"),
    ({"amount": float("inf")}, "source 'events': amount", "finite"),
]


@pytest.mark.parametrize(("change", "field", "rule"), BAD)
@pytest.mark.parametrize("in_file", [False, True])
def test_a_source_that_breaks_its_rules_is_refused(
    change: dict[str, object], field: str, rule: str, in_file: bool, tmp_path: Path
) -> None:
    rows = frame(history(0, 30)).unique("id", maintain_order=True)
    name, value = next(iter(change.items()))
    bad = pl.Series([*rows[name].to_list()[:-1], value], dtype=rows[name].dtype) if value is not None else None
    rows = rows.with_columns(
        pl.when(pl.int_range(pl.len()) == 4).then(None).otherwise(pl.col(name)).alias(name)
        if bad is None
        else bad.alias(name)
    )
    if in_file:
        rows.write_parquet(tmp_path / "rows.parquet")
    asks = frame(questions(0, 3)).with_columns(event_time=pl.lit(dt.datetime(1970, 1, 4, tzinfo=dt.UTC)))
    view = View(name="v", entity=CUSTOMER, source=EVENTS, aggregations=(Sum("amount", "30d"),))
    with pytest.raises(InvalidInput, match=rule) as raised:
        table(asks, FeatureSet(views=(view,)), {"events": tmp_path / "rows.parquet" if in_file else rows})
    assert raised.value.field == field


def test_wrong_types_and_names_are_refused_with_their_fix(tmp_path: Path) -> None:
    events, asks = frame(history(0, 5)), frame(questions(0, 3))

    def refused(spine: object, sources: object, features: FeatureSet | None = None, **options: object) -> str:
        with pytest.raises(InvalidInput) as raised:
            table(spine, features or counting(), sources, **options)  # type: ignore[call-overload]
        return str(raised.value)

    whole = {"events": events}
    assert "pl.from_epoch" in refused(asks.with_columns(pl.col("event_time").to_physical()), whole)
    assert "pl.from_epoch" in refused(asks, {"events": events.with_columns(pl.col("event_time").to_physical())})
    assert "spine: event_time: got None" in refused(
        asks.with_columns(event_time=pl.lit(None, asks.schema["event_time"])), whole
    )
    assert "Cast it to text" in refused(asks, {"events": events.with_columns(customer=pl.lit(1.5))})
    assert "Cast it to text" in refused(asks.with_columns(customer=pl.lit(True)), whole)
    assert "Categories" in refused(asks, {"events": events.with_columns(amount=pl.lit("x"))})
    assert "hold customer" in refused(asks.drop("customer"), whole)
    assert "hold amount" in refused(asks, {"events": events.drop("amount")})
    assert "hold 'events'" in refused(asks, {"other": events})
    assert "hold score" in refused(asks, whole, FeatureSet(request=("score",)))
    assert "spine: city: got 'String', must be numeric" in refused(asks, whole, FeatureSet(request=("city",)))
    assert "memory_limit" in refused(asks, whole, memory_limit="much")
    assert "memory_limit" in refused(asks, whole, memory_limit=0)
    assert "be a polars frame, or a path" in refused(asks, {"events": 7})
    assert "be a file of Parquet or CSV" in refused(tmp_path / "none-*.parquet", whole)
    assert "be a file in a folder that exists" in refused(asks, whole, into=tmp_path / "no" / "out.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    assert "be whole Parquet or CSV" in refused(asks, {"events": tmp_path / "broken.parquet"})
    (tmp_path / "mixed").mkdir()
    events.write_csv(tmp_path / "mixed" / "a.csv")
    events.write_parquet(tmp_path / "mixed" / "b.parquet")
    assert "one kind" in refused(asks, {"events": str(tmp_path / "mixed" / "*")})
    pair = counting(entity=Entity("pair", ("customer", "city")))
    assert "unit separator" in refused(asks, {"events": events.with_columns(city=pl.lit("a\x1fb"))}, pair)


def test_a_null_of_a_row_that_breaks_nothing_is_absent() -> None:
    view = View(name="v", entity=CUSTOMER, source=EVENTS, aggregations=(Mean("amount", "1d"),))
    events = events_of(amount=[1.0, None, float("nan"), 3.0])
    found = table(asks_of(event_time=[2 * HOUR]), FeatureSet(views=(view,)), {"events": events})
    assert found["v_amount_mean_1d"].to_list() == [2.0]


def test_a_table_may_replace_its_own_spine(tmp_path: Path) -> None:
    asks = frame(questions(0, 30))
    asks.write_parquet(tmp_path / "asks.parquet")
    table(tmp_path / "asks.parquet", counting(), {"events": frame(history(0, 30))}, into=tmp_path / "asks.parquet")
    assert pl.read_parquet(tmp_path / "asks.parquet").columns == [*asks.columns, *counting().names]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.parquet").write_text("before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vitok.features.spine.TableWriter.write", full)
    with pytest.raises(StoreError, match="No space left on device"):
        table(frame(questions(0, 3)), counting(), {"events": frame(history(0, 9))}, into=tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    assert (tmp_path / "out.parquet").read_text() == "before"


def test_a_disk_full_of_partitions_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vitok.features.answers.Partitions.put", full)
    with pytest.raises(StoreError, match="free some space"):
        table(frame(questions(0, 3)), counting(), {"events": frame(history(0, 9))}, memory_limit=1)
