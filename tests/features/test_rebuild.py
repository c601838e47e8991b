"""Vectors computed again: the oracle is the point-in-time table, and a stream stopped at the moment of the decision."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok.clock import DAY, HOUR, MINUTE
from vitok.engines import MemoryStore
from vitok.errors import InvalidInput
from vitok.features import (
    ArrayIndex,
    Count,
    Distinct,
    Embedding,
    Entity,
    FeatureSet,
    Last,
    Latest,
    Mean,
    OnDemand,
    OnlineFeatures,
    Source,
    Sum,
    View,
    compare,
    table,
)
from vitok.features.rebuild import rebuild

START = 20_000 * DAY
CARD, PAIR = Entity("card", "card"), Entity("card at shop", ("card", "shop"))
PAID = Source("payments", "id", ingest_time="known_at")
LIMITS = Source("limits", ingest_time="known_at")
CARDS = View(name="card", entity=CARD, source=PAID, aggregations=(Count(("1h", "1d")), Mean("amount", "1d")))
PAIRS = View(name="pair", entity=PAIR, source=PAID, aggregations=(Sum("amount", "1d"), Distinct("shop", "1d")))
LAGGED = View(name="lagged", entity=CARD, source=PAID, aggregations=(Count("1d"), Last("amount", "1d")), lag="30m")
LIMIT = Latest(name="limit", entity=CARD, source=LIMITS, columns={"amount": "float32", "is_vip": "bool"}, ttl="2d")
FEATURES = FeatureSet(
    request=("amount",),
    views=(CARDS, PAIRS, LAGGED, LIMIT),
    on_demand=(OnDemand("of_mean", lambda amount, card_amount_mean_1d: amount / card_amount_mean_1d),),
)


def moments(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("event_time", "known_at").cast(pl.Datetime("us", "UTC")))


def events(seed: int, n: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    times = START + rng.integers(0, DAY, n)
    return moments(
        pl.DataFrame(
            {
                # Some events come twice, the second time about somebody else.
                "id": [f"p{i}" for i in rng.integers(0, max(1, n - n // 10), n)],
                "event_time": times,
                "known_at": times + np.where(rng.random(n) < 0.2, rng.integers(0, 6 * HOUR, n), 0),
                "card": rng.integers(0, 4, n),
                "shop": [f"s{i}" for i in rng.integers(0, 2, n)],
                "amount": rng.integers(1, 50, n) / 4,
            }
        )
    )


def limits(seed: int, n: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    times = START - DAY + rng.integers(0, 2 * DAY, n)
    rows = {
        "event_time": times,
        "known_at": times + rng.integers(0, 3 * HOUR, n),
        "card": rng.integers(0, 4, n),
        "amount": rng.integers(1, 50, n) / 3,
        "is_vip": rng.random(n) < 0.5,
    }
    return moments(pl.DataFrame(rows))


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(0, 80))
def test_as_of_its_own_time_it_is_a_row_of_the_table(seed: int, n: int) -> None:
    sources = {"payments": events(seed, n), "limits": limits(seed, n // 3)}
    asked = pl.DataFrame(
        {
            "event_time": [START + 20 * HOUR, START + 9 * HOUR],
            "card": ["1", "2"],
            "shop": ["s0"] * 2,
            "amount": [5.0, None],
        }
    ).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
    rows = table(asked, FEATURES, sources)
    made = [
        rebuild(
            FEATURES,
            sources,
            keys={"card": row["card"], "shop": row["shop"]},
            request={"amount": row["amount"]},
            time=int(row["event_time"].timestamp() * 1e6),
        )
        for row in asked.iter_rows(named=True)
    ]
    assert compare(FEATURES, np.array(made), rows).n_differing_rows == 0


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 80), st.integers(0, 5 * 60))
def test_late_events_count_from_when_they_were_known(seed: int, n: int, minutes: int) -> None:
    # Oracle: a stream that takes events in as they become known, asked at that moment about an earlier time.
    features = FeatureSet(views=(CARDS, PAIRS, LAGGED))
    rows = events(seed, n).unique("id", keep="first", maintain_order=True).sort("known_at")
    time = START + 15 * HOUR
    known_at = time + minutes * MINUTE
    moment = pl.lit(known_at).cast(pl.Datetime("us", "UTC"))
    online = OnlineFeatures(features, MemoryStore(), lateness="2d", keep_events="30d")
    came = rows.filter(pl.col("known_at") <= moment)
    if len(came):
        online.ingest("payments", came)
    out = np.empty((1, len(features.computed)))
    online.read_many({"card": [1], "shop": ["s1"]}, np.array([time]), out)
    made = rebuild(features, {"payments": rows}, keys={"card": 1, "shop": "s1"}, time=time, known_at=known_at)
    # What a lag makes known depends on event times alone, so the stream lacks what had not come by then.
    own = [name for name in features.names if not name.startswith("lagged")]
    chosen = FeatureSet(views=(CARDS, PAIRS))
    columns = [features.names.index(name) for name in own]
    assert compare(chosen, made[None, columns], out[:, columns]).n_differing_rows == 0


def test_a_row_that_was_not_known_yet_is_not_seen() -> None:
    rows = moments(
        pl.DataFrame(
            {"event_time": [START], "known_at": [START + HOUR], "card": [1], "amount": [9.0], "is_vip": [True]}
        )
    )
    features, keys = FeatureSet(views=(LIMIT,)), {"card": 1}
    time = START + 30 * MINUTE
    before, after = (
        rebuild(features, {"limits": rows}, keys=keys, time=time, known_at=at).tolist()
        for at in (time, START + 2 * HOUR)
    )
    assert np.isnan(before).all()
    assert after == [9.0, 1.0]


def test_files_of_parquet_and_csv(tmp_path: Path) -> None:
    rows, limited = events(1, 60), limits(1, 20)
    (tmp_path / "limits").mkdir()
    rows.write_csv(tmp_path / "payments.csv")
    limited[:10].write_parquet(tmp_path / "limits" / "a.parquet")
    limited[10:].write_parquet(tmp_path / "limits" / "b.parquet")
    asked = {"keys": {"card": "2", "shop": "s0"}, "time": START + 20 * HOUR, "request": {"amount": 3}}
    of_frames = rebuild(FEATURES, {"payments": rows, "limits": limited}, **asked)
    of_files = rebuild(FEATURES, {"payments": tmp_path / "payments.csv", "limits": str(tmp_path / "limits")}, **asked)
    of_lazy = rebuild(FEATURES, {"payments": rows.lazy(), "limits": limited.lazy()}, **asked)
    np.testing.assert_array_equal(of_files, of_frames)
    np.testing.assert_array_equal(of_lazy, of_frames)


def test_embeddings_and_the_models_own_order() -> None:
    item = Embedding(name="item", entity=CARD, index="items", index_version="3", dimension=2)
    features = FeatureSet(request=("amount",), views=(item,), select=("item_1", "amount"))
    index = ArrayIndex(["7"], np.array([[1.0, 2.0]]))
    made = rebuild(features, {}, keys={"card": 7}, time=START, request={"amount": 4.0}, indexes={"items@3": index})
    assert made.tolist() == [2.0, 4.0]


def test_what_is_wrong_is_named() -> None:
    rows, limited = events(2, 10), limits(2, 5)
    sources = {"payments": rows, "limits": limited}
    keys, request = {"card": 1, "shop": "s0"}, {"amount": 1.0}
    with pytest.raises(InvalidInput, match=r"keys: got \['card'\], must hold shop"):
        rebuild(FEATURES, sources, keys={"card": 1}, time=START, request=request)
    with pytest.raises(InvalidInput, match=r"request: got .*, must hold amount"):
        rebuild(FEATURES, sources, keys=keys, time=START)
    with pytest.raises(InvalidInput, match="must hold 'limits', which view 'limit' reads"):
        rebuild(FEATURES, {"payments": rows}, keys=keys, time=START, request=request)
    with pytest.raises(InvalidInput, match=r"source 'payments': columns: .* hold known_at"):
        rebuild(FEATURES, {**sources, "payments": rows.drop("known_at")}, keys=keys, time=START, request=request)
    bad = rows.with_columns(amount=pl.lit("much"))
    with pytest.raises(InvalidInput, match="source 'payments': amount"):
        rebuild(FEATURES, {**sources, "payments": bad}, keys=keys, time=START + DAY, request=request)
    with pytest.raises(InvalidInput, match="must be a file of Parquet or CSV"):
        rebuild(FEATURES, {**sources, "payments": "nowhere.parquet"}, keys=keys, time=START, request=request)
    with pytest.raises(InvalidInput, match="card: got None"):
        rebuild(FEATURES, sources, keys={"card": None, "shop": "s0"}, time=START, request=request)  # type: ignore[dict-item]
