"""Values put right later: table and stream against each other and against windows counted in plain Python."""

import math
import random

import numpy as np
import polars as pl
import pytest

from vitok.clock import DAY, HOUR, MINUTE
from vitok.engines import MemoryStore
from vitok.errors import InvalidInput
from vitok.features import (
    Count,
    Distinct,
    Embedding,
    Entity,
    FeatureSet,
    Latest,
    Max,
    Mean,
    OnlineFeatures,
    Rate,
    Ratio,
    Source,
    Sum,
    View,
    rebuild,
    table,
)
from vitok.features.corrections import with_corrections

SHOP = Entity("shop", "shop")
PAID = Source("paid", "id")
KNOWN = Source("paid", "id", ingest_time="seen_at")
SPANS = ("1h", "1d", "30d")
WEB = (("channel", "==", "web"),)
VALUES = (
    Count(SPANS),
    Sum("euro", SPANS),
    Mean("euro", SPANS),
    Count(SPANS, where=WEB, name="web"),
    Mean("euro", SPANS, where=WEB, name="web_mean"),
    Rate(SPANS, per="1h"),
    Ratio(Sum("euro", SPANS), Count(SPANS), name="each"),
)


def features(source: Source = PAID) -> FeatureSet:
    return FeatureSet(views=(View(name="shop", entity=SHOP, source=source, aggregations=VALUES),))


def frame(rows: list[dict], *times: str) -> pl.DataFrame:
    kinds = {"id": pl.String, "shop": pl.String, "euro": pl.Float64, "channel": pl.String}
    return pl.DataFrame(rows, schema=kinds | dict.fromkeys(times, pl.Int64)).with_columns(
        pl.col(times).cast(pl.Datetime("us", "UTC"))
    )


def history(seed: int, n: int, days: int) -> tuple[list[dict], list[dict], list[dict]]:
    """Events, corrections in the order in which they are learned, and questions; no two at one moment."""
    rng = random.Random(seed)
    moments = rng.sample(range(days * DAY), 4 * n)
    events, corrections, questions = [], [], []
    for place in range(n):
        euro = rng.choice([None, *range(5)])
        about = {"id": f"e{place}", "shop": str(rng.randrange(3)), "channel": rng.choice(["web", "shop"])}
        begin = moments[place]
        events.append({**about, "event_time": begin, "euro": euro})
        for learned in sorted(moments[n + 2 * place : n + 2 * place + 2]):
            if euro is not None and learned > begin and rng.random() < 0.5:
                new = rng.randrange(5)
                right = {"event_time": begin, "known_time": learned, "euro": new - euro}
                corrections.append({**about, **right})
                euro = new
    questions = [{"event_time": at, "shop": str(rng.randrange(3))} for at in sorted(moments[3 * n :])]
    return events, sorted(corrections, key=lambda row: row["known_time"]), questions


def windows(view: View, events: list[dict], corrections: list[dict], asked: dict) -> list[float]:
    out = []
    for item in view.aggregations:
        for window in view.windows_of(item):
            start = window.start(asked["event_time"])
            inside = [row for row in events if start <= row["event_time"] < asked["event_time"]]
            inside = [row for row in inside if row["shop"] == asked["shop"]]
            inside = [row for row in inside if not item.where or row["channel"] == "web"]
            right = {
                row["id"]: sum(
                    c["euro"] for c in corrections if c["id"] == row["id"] and c["known_time"] <= asked["event_time"]
                )
                for row in inside
            }
            values = [row["euro"] + right[row["id"]] for row in inside if row["euro"] is not None]
            if isinstance(item, Count):
                out.append(len(inside))
            elif isinstance(item, Rate):
                out.append(len(inside) * (HOUR / window.span))
            elif isinstance(item, Sum):
                out.append(sum(values))
            elif isinstance(item, Mean):
                out.append(sum(values) / len(values) if values else math.nan)
            else:
                out.append(sum(values) / len(inside) if inside else math.nan)
    return out


def streamed(
    definitions: FeatureSet, events: list[dict], corrections: list[dict], questions: list[dict], store
) -> np.ndarray:
    """Everything in the order in which it became known; the process dies and begins anew on the way."""
    told = [(row["event_time"], "event", row) for row in events]
    told += [(row["known_time"], "correction", row) for row in corrections]
    told += [(row["event_time"], "question", row) for row in questions]
    online, out = OnlineFeatures(definitions, store, lateness="10m", keep_events="90d"), []
    for place, (moment, kind, row) in enumerate(sorted(told, key=lambda item: item[0])):
        if kind == "event":
            online.add("paid", row["id"], moment, row, note=b"first")
        elif kind == "correction":
            online.correct("paid", [row["id"]], [row["event_time"]], [row], notes=[b"put right"])
        else:
            values = np.zeros((1, len(definitions.names)))
            online.read_many({"shop": [row["shop"]]}, np.array([moment]), values)
            out.append(values[0])
        if place % 97 == 96:
            online.checkpoint({})
            online = OnlineFeatures(definitions, store, lateness="10m", keep_events="90d")
    corrected = {row["id"] for row in corrections}
    for row in events[:50]:
        assert online.note("paid", row["id"]) == (b"put right" if row["id"] in corrected else b"first")
    return np.array(out)


@pytest.mark.parametrize(("seed", "n", "days"), [(1, 400, 3), (2, 700, 70), (3, 150, 70), (4, 1, 2)])
def test_a_table_a_stream_and_plain_python_say_the_same(seed: int, n: int, days: int) -> None:
    events, corrections, questions = history(seed, n, days)
    assert corrections or n == 1
    definitions = features()
    made = with_corrections(
        definitions,
        {"paid": frame(events, "event_time")},
        {"paid": frame(corrections, "event_time", "known_time")},
    )
    asked = pl.DataFrame(questions).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
    rows = table(asked, *made).select(definitions.names).to_numpy()
    seen = streamed(definitions, events, corrections, questions, MemoryStore())
    np.testing.assert_array_equal(seen, rows)
    [view] = definitions.windowed
    expected = np.array([windows(view, events, corrections, one) for one in questions], np.float64)
    np.testing.assert_array_equal(rows, expected)
    for place in range(0, len(questions), 40):
        one = questions[place]
        again = rebuild(*made, keys={"shop": one["shop"]}, time=one["event_time"])
        np.testing.assert_array_equal(again, rows[place])


def test_without_corrections_the_features_are_those_of_before() -> None:
    events, _, questions = history(5, 200, 40)
    # Of one id the first row counts, though a later one has an earlier time.
    events.append({**events[0], "event_time": events[0]["event_time"] - HOUR, "euro": 9})
    asked = pl.DataFrame(questions).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
    sources = {"paid": frame(events, "event_time")}
    made, merged = with_corrections(features(), sources, {"paid": frame([], "event_time", "known_time")})
    assert made.names == features().names
    np.testing.assert_array_equal(
        table(asked, made, merged).select(made.names).to_numpy(),
        table(asked, features(), sources).select(made.names).to_numpy(),
    )
    same, untouched = with_corrections(features(), sources, {})
    assert same == features()
    assert untouched == sources


def test_a_source_with_a_time_of_ingest_keeps_it() -> None:
    events = [{"id": "a", "shop": "1", "euro": 4.0, "channel": "web", "event_time": 10, "seen_at": 30}]
    right = [{"id": "a", "shop": "1", "euro": -3.0, "channel": "web", "event_time": 10, "seen_at": 50}]
    made = with_corrections(
        features(KNOWN),
        {"paid": frame(events, "event_time", "seen_at")},
        {"paid": frame(right, "event_time", "seen_at")},
    )
    asked = pl.DataFrame({"event_time": [20, 40, 60], "shop": ["1"] * 3}).with_columns(
        pl.col("event_time").cast(pl.Datetime("us", "UTC"))
    )
    rows = table(asked, *made)
    assert rows["shop_euro_sum_1h"].to_list() == [0.0, 4.0, 1.0]
    assert rows["shop_count_1h"].to_list() == [0.0, 1.0, 1.0]
    # Where the source has no such time, a column of that name says it all the same.
    renamed = [
        {**{k: v for k, v in row.items() if k != "seen_at"}, "known_time": row["seen_at"]} for row in (*events, *right)
    ]
    late, later = (frame([row], "event_time", "known_time") for row in renamed)
    again = table(asked, *with_corrections(features(), {"paid": late}, {"paid": later}))
    assert again.equals(rows)


def test_what_a_difference_cannot_put_right_is_refused() -> None:
    events = frame([{"id": "a", "shop": "1", "euro": 4.0, "channel": "web", "event_time": 10}], "event_time")
    right = frame(
        [{"id": "a", "shop": "1", "euro": 1.0, "channel": "web", "event_time": 10, "known_time": 20}],
        "event_time",
        "known_time",
    )
    refused = [
        View(name="shop", entity=SHOP, source=PAID, aggregations=(Max("euro", "1d"),)),
        View(name="shop", entity=SHOP, source=PAID, aggregations=(Distinct("euro", "1d"),)),
        View(name="shop", entity=SHOP, source=PAID, aggregations=(Sum("euro", "1d"),), lag="1h"),
        View(name="shop", entity=SHOP, source=PAID, aggregations=(Sum("euro", "1d"),), include_current=True),
        Latest(name="shop", entity=SHOP, source=PAID, columns=("euro",)),
    ]
    for view in refused:
        with pytest.raises(InvalidInput, match="view 'shop'"):
            with_corrections(FeatureSet(views=(view,)), {"paid": events}, {"paid": right})
    online = OnlineFeatures(FeatureSet(views=(refused[0],)), MemoryStore())
    online.add("paid", "a", 10, {"shop": "1", "euro": 4.0})
    with pytest.raises(InvalidInput, match="counts, sums and means"):
        online.correct("paid", ["a"], [10], [{"shop": "1", "euro": 1.0}])
    with pytest.raises(InvalidInput, match="corrections"):
        with_corrections(features(), {"paid": events}, {"other": right})
    with pytest.raises(InvalidInput, match="known_time"):
        with_corrections(features(), {"paid": events}, {"paid": right.drop("known_time")})
    with pytest.raises(InvalidInput, match="channel"):
        with_corrections(features(), {"paid": events}, {"paid": right.drop("channel")})
    beside = Embedding(name="near", entity=SHOP, index="shops", index_version="1", dimension=2)
    both = FeatureSet(views=(*features().views, beside))
    assert with_corrections(both, {"paid": events}, {"paid": right})[0].names == both.names


def test_only_what_counts_is_put_right() -> None:
    online = OnlineFeatures(features(), MemoryStore(), keep_events="60d")
    row = {"shop": "1", "euro": 1.0, "channel": "web"}
    with pytest.raises(InvalidInput, match="have been seen before"):
        online.correct("paid", ["a"], [10], [row])
    online.correct("paid", [], [], [])
    online.add("paid", "a", 10, row)
    online.forget("shop", {"shop": "1"})
    online.correct("paid", ["a"], [10], [{**row, "euro": -1.0}])
    online.add("paid", "b", 20, row)
    values = np.zeros((1, len(features().names)))
    online.read_many({"shop": ["1"]}, np.array([MINUTE]), values)
    found = dict(zip(features().names, values[0].tolist(), strict=True))
    assert (found["shop_count_1d"], found["shop_euro_sum_1d"]) == (1.0, 1.0)
