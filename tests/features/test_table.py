"""Windows in a table: the oracle is `table_oracle` (plain Python), DuckDB's SQL, and what is known by hand."""

import math
import random
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.features.table_oracle import frame, history, questions, windowed

from vitok.clock import DAY, HOUR, MINUTE
from vitok.errors import InvalidInput
from vitok.features import (
    Buckets,
    Categories,
    Count,
    Distinct,
    Entity,
    FeatureSet,
    First,
    Last,
    Max,
    Mean,
    Min,
    OnDemand,
    Rate,
    Ratio,
    Recent,
    Source,
    Std,
    Sum,
    TopK,
    View,
    compare,
    table,
)

CUSTOMER, PAIR = Entity("customer", "customer"), Entity("pair", ("customer", "terminal"))
CHANNELS = {"channel": Categories(("web", "shop"))}
KNOWN = Source("known", "id", ingest_time="seen_at", encode=CHANNELS)
LOADED = Source("loaded", "id", encode=CHANNELS)
WEB = (("channel", "==", "web"),)


def every_kind(spans: tuple[str, ...]) -> tuple:
    return (
        Count(spans),
        Count(spans, name="of_web", where=WEB),
        Count(spans, name="of_large", where=(("amount", ">", 0.0), ("pieces", "in", (1, 2)))),
        Sum("amount", spans),
        Mean("amount", spans),
        Mean("pieces", spans, where=(("city", "!=", "Riga"),)),
        Min("amount", spans),
        Max("amount", spans),
        Std("amount", spans),
        First("pieces", spans),
        Last("pieces", spans),
        Last("channel", spans, where=(("city", "not in", ("Riga",)),)),
        Distinct("city", spans),
        Distinct("amount", spans, where=WEB, name="amounts"),
        TopK("pieces", spans, k=3),
        TopK("channel", spans, k=2),
        Recent("pieces", "30h", n=4),
        Recent("amount", "2d", n=2, where=WEB),
        Ratio(Count(spans, where=WEB), Count(spans), name="web_share"),
        Ratio(Sum("pieces", spans), Sum("amount", spans)),
        Rate(spans, per="1h"),
        Rate(spans, per="1d", where=WEB, name="web_rate"),
    )


VIEWS = {
    "by ingest time": View(name="a", entity=CUSTOMER, source=KNOWN, aggregations=every_kind(("15m", "6h", "2d"))),
    "two keys, exact": View(name="b", entity=PAIR, source=KNOWN, aggregations=every_kind(("6h", "13d")), exact=True),
    "a lag": View(name="c", entity=CUSTOMER, source=KNOWN, aggregations=every_kind(("1h", "2d")), lag="3h"),
    "no lag": View(name="d", entity=CUSTOMER, source=KNOWN, aggregations=every_kind(("12h",)), lag="0s"),
    "no ingest time": View(name="e", entity=CUSTOMER, source=LOADED, aggregations=every_kind(("5m", "1d"))),
}


def expected(features: FeatureSet, events: list[dict], spine: list[dict]) -> np.ndarray:
    return np.array([[x for view in features.windowed for x in windowed(view, events, row)] for row in spine])


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 70), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from(sorted(VIEWS)))
def test_every_kind_equals_the_oracle(seed: int, n: int, late: float, name: str) -> None:
    events, asks = history(seed, n, late=late), questions(seed + 1, 12)
    features = FeatureSet(views=(VIEWS[name],))
    source = VIEWS[name].source.name
    result = table(frame(asks), features, {source: frame(events)})
    assert result.height == 12
    assert result.columns == [*frame(asks).columns, *features.names]
    comparison = compare(features, result, expected(features, events, asks).reshape(12, -1))
    assert comparison.n_differing_rows == 0, comparison


@settings(max_examples=5)
@given(st.integers(0, 10_000), st.sampled_from([20_000, 100_000]))
def test_out_of_core_equals_in_memory(seed: int, memory: int) -> None:
    events, asks = history(seed, 400, keys=30), questions(seed, 90, keys=30)
    features = FeatureSet(views=tuple(VIEWS.values()))
    sources = {"known": frame(events), "loaded": frame(events)}
    whole = table(frame(asks), features, sources)
    assert table(frame(asks), features, sources, memory_limit=memory).equals(whole)


def test_a_file_written_out_of_core_equals_the_frame(tmp_path: Path) -> None:
    events, asks = history(3, 500, keys=20), questions(3, 300, keys=20)
    features = FeatureSet(views=tuple(VIEWS.values()))
    frame(events).write_parquet(tmp_path / "events.parquet", row_group_size=64)
    frame(asks)[:100].write_parquet(tmp_path / "asks-1.parquet")
    frame(asks)[100:].write_parquet(tmp_path / "asks-2.parquet")
    files = {"known": tmp_path / "events.parquet", "loaded": str(tmp_path / "events.parquet")}
    whole = table(frame(asks), features, {"known": frame(events), "loaded": frame(events)})
    for memory in (1, "100KB", "2GB"):
        out = table(tmp_path / "asks-*.parquet", features, files, into=tmp_path / "out.parquet", memory_limit=memory)
        assert out == tmp_path / "out.parquet"
        assert pl.read_parquet(out).equals(whole)
    assert table(tmp_path / "asks-*.parquet", features, files).equals(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "asks-1.parquet",
        "asks-2.parquet",
        "events.parquet",
        "out.parquet",
    ]


def test_counts_sums_and_extremes_equal_sql() -> None:
    # Oracle: DuckDB, a join with every event of the window and an aggregate.
    rng = np.random.default_rng(0)
    n, m = 40_000, 5_000
    events = pl.DataFrame(
        {
            "id": np.arange(n),
            "customer": rng.integers(0, 300, n),
            "event_time": rng.integers(0, 20 * DAY, n),
            "amount": rng.gamma(2.0, 50.0, n),
        }
    ).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
    asks = pl.DataFrame(
        {"row": np.arange(m), "customer": rng.integers(0, 310, m), "event_time": rng.integers(0, 21 * DAY, m)}
    ).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
    kinds = (Count("3d"), Sum("amount", "3d"), Min("amount", "3d"), Max("amount", "3d"), Std("amount", "3d"))
    view = View(name="c", entity=CUSTOMER, source=Source("events", "id"), aggregations=kinds, exact=True)
    found = table(asks, FeatureSet(views=(view,)), {"events": events})
    with duckdb.connect() as connection:
        connection.register("asks", asks.to_arrow())
        connection.register("events", events.to_arrow())
        sql = """
            select row, count(id), coalesce(sum(amount), 0), min(amount), max(amount), stddev_samp(amount)
            from asks left join events on asks.customer = events.customer
              and events.event_time < asks.event_time and events.event_time >= asks.event_time - interval 3 day
            group by row order by row"""
        rows = np.array(connection.execute(sql).fetchall(), np.float64)
    comparison = compare(FeatureSet(views=(view,)), found, rows[:, 1:])
    assert comparison.n_differing_rows == 0, comparison
    assert found["row"].to_list() == list(range(m))


def test_the_head_is_open_and_the_tail_closed() -> None:
    events = frame([_event("a", HOUR), _event("b", 2 * HOUR)])
    asks = frame([_event("", time) for time in (HOUR, HOUR + 1, 2 * HOUR, 2 * HOUR + 1, 3 * HOUR, 3 * HOUR + 1)])
    exact = View(name="x", entity=CUSTOMER, source=LOADED, aggregations=(Count("1h"),), exact=True)
    hops = View(name="h", entity=CUSTOMER, source=LOADED, aggregations=(Count("1h"),))
    found = table(asks, FeatureSet(views=(exact, hops)), {"loaded": events})
    assert found["x_count_1h"].to_list() == [0, 1, 1, 1, 1, 0]
    assert found["h_count_1h"].to_list() == [0, 1, 1, 2, 1, 1]


def test_a_late_event_counts_from_its_ingest_time_on() -> None:
    events = frame([_event("a", HOUR, seen_at=3 * HOUR), _event("b", 2 * HOUR)])
    asks = frame([_event("", time) for time in (2 * HOUR + 1, 3 * HOUR - 1, 3 * HOUR)])
    view = View(name="v", entity=CUSTOMER, source=KNOWN, aggregations=(Count("1d"), First("amount", "1d")))
    found = table(asks, FeatureSet(views=(view,)), {"known": events})
    assert found["v_count_1d"].to_list() == [1, 1, 2]


def test_sums_stay_right_beside_huge_numbers() -> None:
    # 1e17 swallows what is added to it; the window after it must not notice.
    rows = [_event("0", 0, amount=1e17)] + [_event(str(i), 2 * DAY + i, amount=0.1) for i in range(1, 2001)]
    view = View(
        name="v", entity=CUSTOMER, source=LOADED, aggregations=(Sum("amount", "1d"), Std("amount", "1d")), exact=True
    )
    found = table(frame([_event("", 2 * DAY + HOUR)]), FeatureSet(views=(view,)), {"loaded": frame(rows)})
    assert found["v_amount_sum_1d"].item() == math.fsum([0.1] * 2000)
    assert found["v_amount_std_1d"].item() == 0.0


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e6])
def test_deviations_far_from_zero(scale: float) -> None:
    # Mean a million times the deviation. Oracle: exact fractions.
    rng = random.Random(1)
    rows = [_event(str(i), i * MINUTE, amount=scale * rng.gauss(1e6, 1.0)) for i in range(3000)]
    asks = [_event("", i * 7 * MINUTE) for i in range(2, 400, 29)]
    features = FeatureSet(
        views=(View(name="v", entity=CUSTOMER, source=LOADED, aggregations=(Std("amount", ("6h", "1d")),)),)
    )
    found = table(frame(asks), features, {"loaded": frame(rows)}).select(features.names).to_numpy()
    np.testing.assert_allclose(found, expected(features, rows, asks), rtol=1e-9)


def test_the_most_frequent_of_many_values() -> None:
    # Oracle: plain Python.
    rng = random.Random(5)
    rows = [_event(str(i), i * MINUTE, pieces=int(rng.paretovariate(0.7)) % 90) for i in range(1500)]
    asks = [_event("", rng.randrange(2000) * MINUTE) for _ in range(40)]
    view = View(name="v", entity=CUSTOMER, source=LOADED, aggregations=(TopK("pieces", ("1h", "12h"), k=64),))
    features = FeatureSet(views=(view,))
    found = table(frame(asks), features, {"loaded": frame(rows)})
    assert compare(features, found, expected(features, rows, asks)).n_differing_rows == 0


def test_all_events_loaded_in_one_go_long_after() -> None:
    rows = [{**row, "seen_at": 10 * DAY} for row in history(4, 300)]
    asks = [{**row, "event_time": row["event_time"] + shift} for row in questions(4, 20) for shift in (0, 9 * DAY)]
    view = View(name="v", entity=CUSTOMER, source=KNOWN, aggregations=every_kind(("2d", "20d")))
    features = FeatureSet(views=(view,))
    found = table(frame(asks), features, {"known": frame(rows)})
    assert compare(features, found, expected(features, rows, asks)).n_differing_rows == 0


def test_the_current_event_joins_its_own_windows() -> None:
    kinds = (Count("1h"), Sum("amount", "1h"), Mean("amount", "1h"))
    view = View(name="v", entity=CUSTOMER, source=LOADED, aggregations=kinds, include_current=True, exact=True)
    events = frame([_event("a", 0, amount=10.0), _event("b", MINUTE, amount=None), _event("c", MINUTE, amount=4.0)])
    found = table(events, FeatureSet(views=(view,)), {"loaded": events})
    assert found["v_count_1h"].to_list() == [1, 2, 2]
    assert found["v_amount_sum_1h"].to_list() == [10, 10, 14]
    assert found["v_amount_mean_1h"].to_list() == [10, 10, 7]


def test_only_what_is_asked_for_is_computed() -> None:
    ratio = OnDemand("ratio", lambda amount, v_amount_sum_1d, event_time: amount / v_amount_sum_1d + event_time)
    view = View(name="v", entity=CUSTOMER, source=LOADED, aggregations=(Sum("amount", "1d"), Count("1d")))
    unused = View(name="u", entity=CUSTOMER, source=KNOWN, aggregations=(Count("1d"),))
    features = FeatureSet(
        request=("amount",), views=(view, unused), on_demand=(ratio,), select=("ratio", "amount", "v_count_1d")
    )
    asks = frame([_event("", 3, amount=6.0)]).with_columns(v_count_1d=pl.lit("kept"))
    found = table(asks, features, {"loaded": frame([_event("a", 1, amount=2.0)]), "known": frame([])})
    assert found.columns == [*asks.columns, "ratio"]
    assert found["ratio"].to_list() == [6.0]
    assert found["v_count_1d"].to_list() == ["kept"]


def test_texts_counted_and_encoded() -> None:
    source = Source("loaded", "id", encode={"city": Buckets(1000)})
    view = View(
        name="v", entity=CUSTOMER, source=source, aggregations=(Distinct("channel", "1d"), TopK("city", "1d", k=1))
    )
    rows = [_event(str(i), i, city=city, channel=city) for i, city in enumerate(["Riga", "Tartu", "Riga", None])]
    found = table(frame([_event("", 9)]), FeatureSet(views=(view,)), {"loaded": frame(rows)})
    assert found["v_channel_distinct_1d"].item() == 2
    assert found["v_city_top1_1d"].item() == Buckets(1000).code("Riga")


@pytest.mark.parametrize("column", ["city", "wide"])
def test_the_most_frequent_of_what_is_no_number_is_refused(column: str) -> None:
    view = View(name="v", entity=CUSTOMER, source=LOADED, aggregations=(TopK(column, "1d"),))
    rows = frame([_event("a", 1, city="Riga")]).with_columns(wide=pl.lit(2**60))
    with pytest.raises(InvalidInput, match=f"TopK of {column}"):
        table(frame([_event("", 9)]), FeatureSet(views=(view,)), {"loaded": rows})


@pytest.mark.parametrize("span", ["0s", "-1h", "", "1.5h", "1 hour", "200000d", "99999999999999d"])
def test_windows_that_make_no_sense_are_refused(span: str) -> None:
    with pytest.raises(InvalidInput, match=r"longer than zero|a whole number and a unit|a hundred years"):
        View(name="v", entity=CUSTOMER, source=LOADED, aggregations=(Count(span),))


def test_a_window_longer_than_time_holds_all_that_came_before() -> None:
    kinds = (Count("36500d"), Count("1m"), Sum("amount", "36500d"), Last("pieces", "36500d"))
    views = tuple(
        View(name=name, entity=CUSTOMER, source=LOADED, aggregations=kinds, exact=exact)
        for name, exact in (("v", False), ("x", True))
    )
    rows = [_event(str(i), time, pieces=i) for i, time in enumerate((-50 * 365 * DAY, 0, 5, 40 * 365 * DAY))]
    asks = [_event("", time) for time in (-51 * 365 * DAY, 0, 6, 40 * 365 * DAY + 1)]
    features = FeatureSet(views=views)
    found = table(frame(asks), features, {"loaded": frame(rows)})
    assert found["x_count_36500d"].to_list() == found["v_count_36500d"].to_list() == [0, 1, 3, 4]
    assert found["x_count_1m"].to_list() == [0, 0, 2, 1]
    assert compare(features, found, expected(features, rows, asks)).n_differing_rows == 0


def test_events_of_the_future_are_for_those_who_ask_then() -> None:
    late = 2**62
    rows = [_event("a", 1), _event("b", late), _event("c", 2**63 - 2), _event("d", -(2**63) + 2)]
    asks = [_event("", time) for time in (2, late, late + 1, 2**63 - 1)]
    view = View(name="v", entity=CUSTOMER, source=LOADED, aggregations=(Count("1d"),), exact=True)
    found = table(frame(asks), FeatureSet(views=(view,)), {"loaded": frame(rows)})
    assert found["v_count_1d"].to_list() == [1, 0, 1, 1]


def _event(name: str, time: int, **values: object) -> dict:
    row = {"id": name, "event_time": time, "seen_at": time, "customer": "c", "terminal": 0, "amount": 1.0}
    return {"pieces": 1, "channel": "web", "city": "Riga", "gone": False, **row, **values}
