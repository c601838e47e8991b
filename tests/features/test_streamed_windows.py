"""Every aggregation kept on a stream, against `table_oracle`: any order, duplicates, restarts, refusals."""

import math
import random

import numpy as np
import polars as pl
import pytest
from tests.features.table_oracle import windowed

from vitok.clock import DAY, HOUR, MINUTE, EventClock
from vitok.engines import MemoryStore
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.features import (
    Count,
    Distinct,
    Entity,
    FeatureSet,
    First,
    Last,
    Max,
    Mean,
    Min,
    OnlineFeatures,
    Rate,
    Ratio,
    Recent,
    Source,
    Std,
    Sum,
    TopK,
    View,
)

LATENESS = 10 * MINUTE
BASE = 17_000 * DAY
WEB = (("channel", "==", "web"),)
SCHEMA = {
    "id": pl.String,
    "event_time": pl.Int64,
    "key": pl.String,
    "x": pl.Float64,
    "shop": pl.String,
    "z": pl.Float64,
    "channel": pl.String,
}


def view(*, exact: bool = False, lag: str | None = None) -> View:
    return View(
        name="c",
        entity=Entity("customer", "key"),
        source=Source("tx", "id"),
        exact=exact,
        lag=lag,
        aggregations=(
            Count(("1h", "1d", "30d")),
            Count("1d", where=WEB, name="web"),
            Sum("x", ("1h", "13h", "30d")),
            Mean("x", ("7d", "1h")),
            Std("x", ("7d", "1h")),
            Min("x", ("1d", "15m")),
            Max("x", ("1d", "15m")),
            First("x", ("1d", "7d")),
            Last("x", "1d"),
            Distinct("shop", ("1d", "1h")),
            TopK("z", ("7d", "1h"), k=2),
            Recent("x", ("3d",), n=3),
            Ratio(Count("1d", where=WEB), Count("1d")),
            Rate(("1h",), per="1m"),
        ),
    )


def frame(rows: list[dict]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))


def events(rng: random.Random, n: int) -> list[dict]:
    span, grain = rng.choice([3 * HOUR, 2 * DAY, 40 * DAY]), rng.choice([1, MINUTE])
    rows = [
        {
            "id": f"e{i}",
            "event_time": BASE + rng.randrange(span) // grain * grain,
            "key": f"k{rng.randrange(4)}",
            "x": rng.choice([None, round(rng.gauss(10, 5), 2), float(rng.randrange(4))]),
            "shop": rng.choice(["a", "b", "c", None]),
            "z": float(rng.randrange(5)),
            "channel": rng.choice(["web", "app", None]),
        }
        for i in range(n)
    ]
    return sorted(rows, key=lambda row: row["event_time"] + rng.randrange(LATENESS))


@pytest.mark.parametrize(("exact", "lag"), [(False, None), (False, "20m"), (True, None)])
@pytest.mark.parametrize("seed", range(3))
def test_any_order_and_restarts_equal_the_oracle(seed: int, exact: bool, lag: str | None) -> None:
    rng = random.Random(seed)
    asked = view(exact=exact, lag=lag)
    features = FeatureSet(views=(asked,))
    rows, store = events(rng, 400), MemoryStore()

    def opened() -> OnlineFeatures:
        return OnlineFeatures(features, store, lateness=LATENESS, journal=True, max_cached=2)

    online, at = opened(), 0
    while at < len(rows):
        step = rng.choice([1, 3, 50])
        batch, at = rows[at : at + step], at + step
        again = [rng.choice(rows[:at])] if rng.random() < 0.3 and at <= len(rows) else []
        done = online.ingest("tx", frame([*batch, *again]), positions={"at": at})
        assert done.n_new + done.n_duplicate == len(batch) + len(again)
        if rng.random() < 0.15:
            online.checkpoint()
        if rng.random() < 0.15:
            online = opened()
            assert online.positions() == {"at": at}
        seen = rows[:at]
        key = f"k{rng.randrange(5)}"
        newest = max((row["event_time"] for row in seen if row["key"] == key), default=BASE)
        time = newest - rng.randrange(LATENESS) + rng.choice([0, LATENESS, DAY])
        out = np.zeros((1, len(features.computed)))
        online.read_many({"key": [key]}, np.array([time]), out)
        wanted = np.array(windowed(asked, seen, {"event_time": time, "key": key}))
        np.testing.assert_array_equal(out[0, asked.plan.is_exact], wanted[asked.plan.is_exact])
        np.testing.assert_allclose(out[0, ~asked.plan.is_exact], wanted[~asked.plan.is_exact], rtol=1e-9, atol=1e-9)


def small() -> FeatureSet:
    return FeatureSet(views=(view(),))


def row(number: int, time: int, **changes: object) -> dict:
    usual = {"id": f"e{number}", "event_time": time, "key": "k", "x": 1.0, "shop": "a", "z": 1.0, "channel": "web"}
    return {**usual, **changes}


def test_rows_that_cannot_count_are_returned_with_the_reason() -> None:
    online = OnlineFeatures(small(), MemoryStore(), keep_events="40d", clock=EventClock(BASE))
    bad = [
        row(1, BASE, key=None),
        row(2, BASE, key=""),
        row(3, BASE, id=None),
        row(4, None),  # type: ignore[arg-type]
        row(5, BASE, x=math.inf),
        row(6, BASE + DAY),
    ]
    kept: list[pl.DataFrame] = []
    done = online.ingest("tx", frame([row(0, BASE), *bad]), keep_rejected=kept.append)
    assert (done.n_new, len(done.rejected)) == (1, 6)
    reasons = done.rejected["reason"].to_list()
    for reason, words in zip(
        reasons,
        ["key: got null", "not be empty", "id: got null", "event_time: got null", "finite", "future"],
        strict=True,
    ):
        assert words in reason
    assert kept[0].equals(done.rejected)
    late = online.ingest("tx", frame([row(7, BASE - 41 * DAY)]))
    assert "duplicates cannot be told" in late.rejected["reason"][0]
    assert "1 rejected" in str(late)


def test_wrong_batches_change_nothing() -> None:
    online = OnlineFeatures(small(), MemoryStore(), journal=True)
    with pytest.raises(InvalidInput, match="be one of tx"):
        online.ingest("other", frame([]))
    with pytest.raises(InvalidInput, match="hold x"):
        online.ingest("tx", frame([row(0, BASE)]).drop("x"))
    with pytest.raises(InvalidInput, match="be numeric"):
        online.ingest("tx", frame([row(0, BASE)]).with_columns(x=pl.lit("much")))
    assert online.ingest("tx", frame([])).n_new == 0
    assert online.ingest("tx", frame([row(0, BASE)])).n_new == 1


def test_a_journal_that_cannot_be_written_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    online = OnlineFeatures(small(), store, journal=True)
    online.ingest("tx", frame([row(0, BASE)]), positions={"0": 1})

    def full(_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "commit", full)
        with pytest.raises(StoreError, match="full"):
            online.ingest("tx", frame([row(1, BASE)]), positions={"0": 2})
    assert online.positions() == {"0": 1}
    assert not online.seen("tx", "e1")
    assert online.ingest("tx", frame([row(1, BASE)]), positions={"0": 2}).n_new == 1
    out = np.zeros((1, len(online.features.computed)))
    online.read_many({"key": ["k"]}, np.array([BASE + MINUTE]), out)
    assert out[0, 0] == 2


def test_other_definitions_need_another_store() -> None:
    store = MemoryStore()
    OnlineFeatures(small(), store, journal=True).ingest("tx", frame([row(0, BASE)]))
    with pytest.raises(Conflict, match="fill an empty store"):
        OnlineFeatures(FeatureSet(views=(view(exact=True),)), store)


def test_damaged_windows_are_said_to_be_so() -> None:
    store = MemoryStore()
    online = OnlineFeatures(small(), store)
    online.ingest("tx", frame([row(0, BASE)]))
    online.checkpoint()
    store.commit([("state:c", b"k", b"not windows")])
    out = np.zeros((1, len(online.features.computed)))
    with pytest.raises(StoreError, match="fill the store anew"):
        OnlineFeatures(small(), store).read_many({"key": ["k"]}, np.array([BASE]), out)


def test_a_question_is_late_only_behind_the_lateness_of_its_key() -> None:
    online = OnlineFeatures(small(), MemoryStore(), lateness=LATENESS)
    online.ingest("tx", frame([row(0, BASE)]))
    out = np.zeros(len(online.features.computed))
    assert online.read({"key": "k"}, BASE - LATENESS, out) == "fresh"
    assert online.read({"key": "k"}, BASE - LATENESS - 1, out) == "late"
    assert online.read({"key": "other"}, BASE, out) == "missing"


def test_a_forgotten_entity_does_not_come_back() -> None:
    store = MemoryStore()
    online = OnlineFeatures(small(), store, journal=True)
    online.ingest("tx", frame([row(0, BASE), row(1, BASE, key="other")]))
    assert online.forget("customer", {"key": "k"}) == 1
    for opened in (online, OnlineFeatures(small(), store, journal=True)):
        out = np.zeros((2, len(opened.features.computed)))
        opened.read_many({"key": ["k", "other"]}, np.full(2, BASE + MINUTE), out)
        assert out[:, 0].tolist() == [0.0, 1.0]
