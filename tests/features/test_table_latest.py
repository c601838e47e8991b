"""Latest values in a table: the oracle is `table_oracle` (plain Python) and pandas' merge_asof."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.features.table_oracle import frame, history, newest, questions

from vitok.clock import DAY, HOUR, MINUTE
from vitok.errors import InvalidInput
from vitok.features import (
    ArrayIndex,
    Categories,
    Embedding,
    Entity,
    FeatureSet,
    Latest,
    OnDemand,
    Source,
    table,
)

CUSTOMER, PAIR = Entity("customer", "customer"), Entity("pair", ("terminal", "customer"))
ENCODE = {"channel": Categories(("web", "shop"))}
KNOWN = Source("known", ingest_time="seen_at", deleted="gone", encode=ENCODE)
NAMED = Source("named", "id", ingest_time="seen_at", encode=ENCODE)
LOADED = Source("loaded", deleted="gone", encode=ENCODE)
ALL = {"amount": "float64", "pieces": "int32", "gone": "bool", "channel": "int64"}
VIEWS = (
    Latest(name="a", entity=CUSTOMER, source=KNOWN, columns=ALL),
    Latest(name="b", entity=CUSTOMER, source=KNOWN, columns=("pieces", "channel"), ttl="6h"),
    Latest(name="c", entity=PAIR, source=KNOWN, columns={"pieces": "float32"}, ttl="2d", lag="3h"),
    Latest(name="d", entity=CUSTOMER, source=KNOWN, columns=("amount",), lag="0s"),
    Latest(name="e", entity=CUSTOMER, source=NAMED, columns=ALL, ttl="3d"),
    Latest(name="f", entity=PAIR, source=LOADED, columns=ALL, ttl="1d"),
)


def rows_of(view: Latest, result: pl.DataFrame) -> list[list[object]]:
    return [list(row) for row in result.select(view.feature_names).rows()]


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 60), st.sampled_from([0.0, 0.4, 1.0]))
def test_every_view_equals_the_oracle(seed: int, n: int, late: float) -> None:
    events, asks = history(seed, n, late=late), questions(seed + 1, 15)
    sources = dict.fromkeys(("known", "named", "loaded"), frame(events))
    result = table(frame(asks), FeatureSet(views=VIEWS), sources)
    assert result.select(frame(asks).columns).equals(frame(asks))
    for view in VIEWS:
        expected = [newest(view, events, row) for row in asks]
        assert rows_of(view, result) == expected, view.name


@settings(max_examples=5)
@given(st.integers(0, 10_000), st.sampled_from([10_000, 100_000]))
def test_out_of_core_equals_in_memory(seed: int, memory: int) -> None:
    events, asks = frame(history(seed, 300, keys=20)), frame(questions(seed, 60, keys=20))
    sources = dict.fromkeys(("known", "named", "loaded"), events)
    whole = table(asks, FeatureSet(views=VIEWS), sources)
    assert table(asks, FeatureSet(views=VIEWS), sources, memory_limit=memory).equals(whole)


def test_types_are_the_declared_ones() -> None:
    columns = {"a": "float64", "b": "float32", "c": "int64", "d": "int32", "e": "bool"}
    rows = pl.DataFrame({"customer": ["c", "d"], "a": [0.1, None], "b": [0.1, None], "c": [2**53 + 1, None]})
    rows = rows.with_columns(d=pl.Series([7, None]), e=pl.Series([1, None]), event_time=_moments([1, 1]))
    view = Latest(name="v", entity=CUSTOMER, source=Source("s"), columns=columns)
    found = table(
        pl.DataFrame({"customer": ["c", "d", "x"], "event_time": _moments([2, 2, 2])}),
        FeatureSet(views=(view,)),
        {"s": rows},
    )
    assert found.select(view.feature_names).dtypes == [pl.Float64, pl.Float32, pl.Int64, pl.Int32, pl.Boolean]
    assert rows_of(view, found)[0] == [0.1, float(np.float32(0.1)), 2**53 + 1, 7, True]
    assert rows_of(view, found)[1:] == [[None] * 5] * 2


def test_a_row_as_old_as_the_ttl_counts_and_no_older_one() -> None:
    view = Latest(name="v", entity=CUSTOMER, source=Source("s"), columns=("x",), ttl="1h")
    asks = pl.DataFrame({"customer": ["c"] * 3, "event_time": _moments([0, HOUR, HOUR + 1])})
    rows = pl.DataFrame({"customer": ["c"], "event_time": _moments([0]), "x": [1.0]})
    assert table(asks, FeatureSet(views=(view,)), {"s": rows})["v_x"].to_list() == [None, 1.0, None]


def test_a_correction_wins_once_it_is_known_and_a_late_row_never_leaks() -> None:
    view = Latest(name="v", entity=CUSTOMER, source=Source("s", ingest_time="known_at"), columns=("x",))
    rows = pl.DataFrame(
        {
            "customer": ["c"] * 4,
            "event_time": _moments([10, 20, 20, 15]),
            "known_at": _moments([10, 20, 40, 60]),
            "x": [1.0, 2.0, 3.0, 4.0],
        }
    )
    asks = pl.DataFrame({"customer": ["c"] * 6, "event_time": _moments([10, 20, 39, 40, 60, 100])})
    found = table(asks, FeatureSet(views=(view,)), {"s": rows})["v_x"].to_list()
    assert found == [None, 1.0, 2.0, 3.0, 3.0, 3.0]


def test_of_equals_the_last_to_arrive_wins() -> None:
    view = Latest(name="v", entity=CUSTOMER, source=Source("s"), columns=("x",))
    rows = pl.DataFrame({"customer": ["c"] * 3, "event_time": _moments([5, 5, 1]), "x": [1.0, 2.0, 3.0]})
    asks = pl.DataFrame({"customer": ["c"], "event_time": _moments([6])})
    assert table(asks, FeatureSet(views=(view,)), {"s": rows})["v_x"].to_list() == [2.0]


def test_a_deleted_entity_has_no_values_until_the_next_row() -> None:
    view = Latest(name="v", entity=CUSTOMER, source=Source("s", deleted="gone"), columns={"x": "int64"})
    rows = pl.DataFrame(
        {
            "customer": ["c"] * 3,
            "event_time": _moments([1, 2, 3]),
            "x": [1, 2, 3],
            "gone": [None, True, False],
        }
    )
    asks = pl.DataFrame({"customer": ["c"] * 4, "event_time": _moments([1, 2, 3, 4])})
    assert table(asks, FeatureSet(views=(view,)), {"s": rows})["v_x"].to_list() == [None, 1, None, 3]


def test_many_rows_equal_pandas() -> None:
    # Oracle: pandas.merge_asof, with a tolerance for the TTL.
    rng = np.random.default_rng(1)
    n, m = 40_000, 30_000
    times = rng.permutation(30 * DAY // MINUTE)[:n] * MINUTE
    rows = pl.DataFrame({"customer": rng.integers(0, 500, n), "event_time": _moments(times), "x": rng.random(n)})
    asks = pl.DataFrame(
        {"customer": rng.integers(0, 510, m), "event_time": _moments(rng.integers(0, 30 * DAY, m) // MINUTE * MINUTE)}
    )
    view = Latest(name="v", entity=CUSTOMER, source=Source("s"), columns=("x",), ttl="2d")
    found = table(asks, FeatureSet(views=(view,)), {"s": rows})["v_x"].to_numpy()
    left = pd.DataFrame({"customer": asks["customer"], "t": asks["event_time"].dt.epoch("us"), "row": np.arange(m)})
    right = pd.DataFrame({"customer": rows["customer"], "t": rows["event_time"].dt.epoch("us"), "x": rows["x"]})
    merged = pd.merge_asof(
        left.sort_values("t"),
        right.sort_values("t"),
        on="t",
        by="customer",
        tolerance=2 * DAY,
        allow_exact_matches=False,
    )
    np.testing.assert_array_equal(found, merged.sort_values("row")["x"].to_numpy())


def test_values_feed_functions_as_numbers() -> None:
    view = Latest(name="v", entity=CUSTOMER, source=Source("s"), columns={"level": "int64", "vip": "bool"})
    both = OnDemand("both", lambda v_level, v_vip: v_level + v_vip)
    rows = pl.DataFrame({"customer": ["c"], "event_time": _moments([1]), "level": [3], "vip": [True]})
    asks = pl.DataFrame({"customer": ["c", "d"], "event_time": _moments([2, 2])})
    found = table(asks, FeatureSet(views=(view,), on_demand=(both,), select=("both",)), {"s": rows})
    assert found.columns == ["customer", "event_time", "both"]
    assert found["both"][0] == 4.0
    assert np.isnan(found["both"][1])


@pytest.mark.parametrize(
    ("dtype", "values", "rule"),
    [
        ("int32", [2**31], "fits int32"),
        ("int64", [0.5], "whole number"),
        ("bool", [2], "true or false"),
        ("float32", [1e300], "fit float32"),
        ("float64", [float("inf")], "finite"),
        ("float64", ["x"], "numeric"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(dtype: str, values: list[object], rule: str) -> None:
    view = Latest(name="v", entity=CUSTOMER, source=Source("s"), columns={"x": dtype})
    rows = pl.DataFrame({"customer": ["c"], "event_time": _moments([1]), "x": values})
    asks = pl.DataFrame({"customer": ["c"], "event_time": _moments([2])})
    with pytest.raises(InvalidInput, match=rule) as raised:
        table(asks, FeatureSet(views=(view,)), {"s": rows})
    assert raised.value.field.startswith("source 's': x")


@pytest.mark.parametrize("how", ["mapping", "function", "index"])
def test_embeddings_come_from_their_index(how: str) -> None:
    view = Embedding(name="item", entity=Entity("item", "item_id"), index="items", index_version="3", dimension=2)
    asks = pl.DataFrame({"item_id": [7, 8, None, 7], "event_time": _moments([1, 1, 1, 1])})
    vectors = {"7": [1.0, 2.0]}
    asked: list[list[str]] = []

    def look_up(keys: list[str]) -> np.ndarray:
        asked.append(keys)
        return np.array([vectors.get(key, [np.nan, np.nan]) for key in keys])

    index = {"mapping": vectors, "function": look_up, "index": ArrayIndex(["7"], np.array([[1.0, 2.0]]))}[how]
    found = table(asks, FeatureSet(views=(view,)), {}, indexes={"items@3": index})
    np.testing.assert_array_equal(found["item_1"].to_numpy(), [2.0, np.nan, np.nan, 2.0])
    assert asked in ([], [["7", "8"]])


def test_an_index_that_is_missing_or_of_another_shape_is_refused() -> None:
    view = Embedding(name="item", entity=Entity("item", "item_id"), index="items", index_version="3", dimension=2)
    asks = pl.DataFrame({"item_id": ["7"], "event_time": _moments([1])})
    with pytest.raises(InvalidInput, match="items@3"):
        table(asks, FeatureSet(views=(view,)), {}, indexes={"items@2": {}})
    with pytest.raises(InvalidInput, match=r"give vectors of shape \(1, 2\)"):
        table(asks, FeatureSet(views=(view,)), {}, indexes={"items@3": {"7": [1.0, 2.0, 3.0]}})


def _moments(microseconds: object) -> pl.Series:
    return pl.Series(np.asarray(microseconds, np.int64)).cast(pl.Datetime("us", "UTC"))
