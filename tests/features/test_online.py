"""The table and the stream are checked against each other and against a brute-force oracle written in plain Python."""

import math
import random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok.clock import DAY, HOUR, MINUTE
from vitok.engines import MemoryStore
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.features import (
    Count,
    Distinct,
    Entity,
    FeatureSet,
    Mean,
    OnDemand,
    OnlineFeatures,
    Source,
    Sum,
    View,
    compare,
    table,
)

CUSTOMER, TERMINAL = Entity("customer", "customer_id"), Entity("terminal", "terminal_id")
PAYMENTS = Source("payments", "payment_id")
SPANS = ("15m", "6h", "1d", "7d", "30d")


def feature_set(*, exact: bool = False) -> FeatureSet:
    return FeatureSet(
        request=("amount",),
        views=(
            View(
                name="customer",
                entity=CUSTOMER,
                source=PAYMENTS,
                exact=exact,
                aggregations=(Count(SPANS), Sum("amount", SPANS), Mean("amount", SPANS)),
            ),
            View(
                name="terminal",
                entity=TERMINAL,
                source=PAYMENTS,
                exact=exact,
                aggregations=(Count(("1h", "12d")), Distinct("customer_id", ("1h", "1d", "30d"), name="customers")),
            ),
        ),
        on_demand=(OnDemand("ratio", lambda amount, customer_amount_mean_30d: amount / customer_amount_mean_30d),),
    )


def oracle(features: FeatureSet, rows: list[dict], asked: dict) -> list[float]:
    values = [asked["amount"]]
    for view in features.views:
        for item in view.aggregations:
            for span in item.over:
                window = next(w for w in view.windows if w.label == span)
                t = asked["event_time"]
                inside = [
                    row
                    for row in rows
                    if row[view.entity.key] == asked[view.entity.key]
                    and (t - window.span) // window.hop * window.hop <= row["event_time"] < t
                ]
                if item.kind == "count":
                    values.append(len(inside))
                elif item.kind == "distinct":
                    values.append(len({row[item.column] for row in inside}))
                else:
                    total = math.fsum(row[item.column] for row in inside)
                    if item.kind == "sum":
                        values.append(total)
                    else:
                        values.append(total / len(inside) if inside else math.nan)
    mean = values[features.names.index("customer_amount_mean_30d")]
    return [*values, asked["amount"] / mean]


def make_rows(seed: int, n: int, days: int, step: int = MINUTE) -> list[dict]:
    rng = random.Random(seed)
    times = sorted(rng.randrange(-5 * DAY, days * DAY, step) for _ in range(n))
    return [
        {
            "payment_id": f"p{i}",
            "event_time": time,
            "customer_id": f"c{rng.randrange(4)}",
            "terminal_id": f"t{rng.randrange(3)}",
            "amount": round(rng.uniform(0, 100), 2),
        }
        for i, time in enumerate(times)
    ]


def frame(rows: list[dict]) -> pl.DataFrame:
    schema = {
        "payment_id": pl.String,
        "event_time": pl.Int64,
        "customer_id": pl.String,
        "terminal_id": pl.String,
        "amount": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))


def stream(online: OnlineFeatures, rows: list[dict], every: int = 50) -> np.ndarray:
    out = np.full((len(rows), len(online.features.names)), np.nan)
    for i, row in enumerate(rows):
        out[i, 0] = row["amount"]
        online.read(row, row["event_time"], out[i])
        assert online.add("payments", row["payment_id"], row["event_time"], row)
        if i % every == every - 1:
            online.checkpoint({"row": i})
    online.features.add_on_demand(out, np.array([row["event_time"] for row in rows], np.int64))
    return out


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_table_and_stream_equal_the_oracle(seed: int, exact: bool) -> None:
    rows = make_rows(seed, 400, 50, step=7 * MINUTE)
    features = feature_set(exact=exact)
    expected = np.array([oracle(features, rows, row) for row in rows])
    computed = table(frame(rows), features, {"payments": frame(rows)})
    assert len(computed) == len(rows)
    assert compare(features, computed.select(features.names).to_numpy(), expected).n_differing_rows == 0
    streamed = stream(OnlineFeatures(features, MemoryStore()), rows)
    assert compare(features, streamed, expected).n_differing_rows == 0


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 120), st.integers(1, 60))
def test_any_stream_equals_its_table(seed: int, n: int, days: int) -> None:
    rows = make_rows(seed, n, days)
    features = feature_set()
    computed = table(frame(rows), features, {"payments": frame(rows)}).select(features.names).to_numpy()
    streamed = stream(OnlineFeatures(features, MemoryStore()), rows, every=7)
    assert compare(features, streamed, computed.reshape(streamed.shape)).n_differing_rows == 0


def test_busy_key_is_merged_and_still_exact() -> None:
    rows = make_rows(1, 6000, 40, step=MINUTE)
    for row in rows:
        row["customer_id"] = "c0"
    features = feature_set()
    online = OnlineFeatures(features, MemoryStore(), lateness="10m")
    streamed = stream(online, rows)
    computed = table(frame(rows), features, {"payments": frame(rows)}).select(features.names).to_numpy()
    assert compare(features, streamed, computed).n_differing_rows == 0
    assert online._lanes[0].state._main.n.max() < 1500


def test_order_within_the_lateness_and_duplicates_change_nothing() -> None:
    rows = make_rows(3, 300, 40)
    features = feature_set()
    rng = random.Random(0)
    shuffled = sorted(rows, key=lambda row: row["event_time"] + rng.randrange(0, 50 * MINUTE))
    online = OnlineFeatures(features, MemoryStore())
    for i, row in enumerate(shuffled):
        assert online.add("payments", row["payment_id"], row["event_time"], row)
        assert not online.add("payments", row["payment_id"], row["event_time"], row)
        if i % 20 == 0:
            online.checkpoint()
    asked = [{**row, "event_time": rows[-1]["event_time"] + HOUR} for row in rows[-10:]]
    out = np.full((10, len(features.names)), np.nan)
    for i, row in enumerate(asked):
        out[i, 0] = row["amount"]
        online.read(row, row["event_time"], out[i])
    features.add_on_demand(out, np.array([row["event_time"] for row in asked], np.int64))
    expected = np.array([oracle(features, rows, row) for row in asked])
    assert compare(features, out, expected).n_differing_rows == 0


def test_backfill_leaves_the_state_of_the_stream() -> None:
    rows = make_rows(5, 800, 60)
    features = feature_set()
    until = rows[600]["event_time"]
    store = MemoryStore()
    online = OnlineFeatures(features, store)
    online.backfill({"payments": frame(rows)}, until=until)
    with pytest.raises(Conflict):
        online.backfill({"payments": frame(rows)}, until=until)
    rest = [row for row in rows if row["event_time"] >= until]
    streamed = stream(OnlineFeatures(features, store), rest)
    computed = table(frame(rest), features, {"payments": frame(rows)}).select(features.names).to_numpy()
    assert compare(features, streamed, computed).n_differing_rows == 0


def test_restart_reads_on_from_the_checkpoint() -> None:
    rows = make_rows(7, 400, 40)
    features = feature_set()
    whole = stream(OnlineFeatures(features, MemoryStore()), rows)
    store = MemoryStore()
    out = np.full_like(whole, np.nan)
    at = 0
    rng = random.Random(1)
    while at < len(rows):
        online = OnlineFeatures(features, store)
        done = online.positions().get("row", -1) + 1
        for row in rows[done:at]:
            online.add("payments", row["payment_id"], row["event_time"], row)
        for _ in range(rng.randrange(1, 60)):
            if at == len(rows):
                break
            out[at, 0] = rows[at]["amount"]
            online.read(rows[at], rows[at]["event_time"], out[at])
            online.add("payments", rows[at]["payment_id"], rows[at]["event_time"], rows[at])
            at += 1
            if rng.random() < 0.1:
                online.checkpoint({"row": at - 1})
    features.add_on_demand(out, np.array([row["event_time"] for row in rows], np.int64))
    assert compare(features, out, whole).n_differing_rows == 0


def test_events_added_while_a_checkpoint_is_saved_belong_to_the_next() -> None:
    rows = make_rows(9, 200, 20)
    features = feature_set()
    store = MemoryStore()
    online = OnlineFeatures(features, store)
    for row in rows[:100]:
        online.add("payments", row["payment_id"], row["event_time"], row)
    taken = online.begin_checkpoint({"row": 99})
    for row in rows[100:]:
        online.add("payments", row["payment_id"], row["event_time"], row)
    assert online.seen("payments", rows[0]["payment_id"])
    online.save(taken)
    again = OnlineFeatures(features, store)
    assert again.positions() == {"row": 99}
    out, expected = np.zeros(len(features.names)), np.zeros(len(features.names))
    moment = rows[-1]["event_time"] + MINUTE
    again.read(rows[0], moment, out)
    only = OnlineFeatures(features, MemoryStore())
    for row in rows[:100]:
        only.add("payments", row["payment_id"], row["event_time"], row)
    only.read(rows[0], moment, expected)
    np.testing.assert_array_equal(out, expected)


def test_a_checkpoint_that_fails_is_made_up_for_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(11, 300, 30)
    features = feature_set()
    store = MemoryStore()
    online = OnlineFeatures(features, store)

    def full(_: object) -> None:
        raise StoreError("the disk is full")

    for i, row in enumerate(rows):
        online.add("payments", row["payment_id"], row["event_time"], row)
        if i == 100:
            with monkeypatch.context() as patch:
                patch.setattr(store, "commit", full)
                with pytest.raises(StoreError):
                    online.checkpoint({"row": i})
            assert not online.add("payments", rows[0]["payment_id"], rows[0]["event_time"], rows[0])
    online.checkpoint({"row": len(rows) - 1})
    again = OnlineFeatures(features, store)
    assert again.positions() == {"row": len(rows) - 1}
    assert all(again.seen("payments", row["payment_id"]) for row in rows)
    moment = rows[-1]["event_time"] + MINUTE
    out, expected = np.full(len(features.names), np.nan), np.full(len(features.names), np.nan)
    again.read(rows[0], moment, out)
    online.read(rows[0], moment, expected)
    np.testing.assert_array_equal(out, expected)


def test_old_event_ids_are_forgotten() -> None:
    store = MemoryStore()
    online = OnlineFeatures(feature_set(), store, keep_events="2d")
    row = {"customer_id": "c", "terminal_id": "t", "amount": 1.0}
    for day in range(8):
        online.add("payments", f"p{day}", day * DAY, row, note=b"noted")
        online.checkpoint()
    assert online.note("payments", "p0") is None
    assert online.note("payments", "p7") == b"noted"
    online.expire()
    assert not online.seen("payments", "p0")
    assert online.seen("payments", "p7")


def test_wrong_input_is_named() -> None:
    rows = frame(make_rows(0, 5, 3))
    features = feature_set()
    with pytest.raises(InvalidInput, match="hold amount"):
        table(rows, features, {"payments": rows.drop("amount")})
    with pytest.raises(InvalidInput, match="amount: got inf, must be finite"):
        table(rows, features, {"payments": rows.with_columns(amount=pl.lit(math.inf))})
    with pytest.raises(InvalidInput, match="not be null"):
        table(rows, features, {"payments": rows.with_columns(customer_id=pl.lit(None, pl.String))})
    with pytest.raises(InvalidInput, match="hold 'payments'"):
        table(rows, features, {})
    with pytest.raises(InvalidInput, match="be unique"):
        FeatureSet(request=("amount", "amount"))
