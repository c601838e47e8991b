"""What is refused of a batch and why, and what is made of bytes that were damaged."""

import math
import random
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from vitok.clock import DAY, HOUR, MINUTE
from vitok.errors import InvalidInput, StoreError
from vitok.features import Count, Entity, Mean, Source, View
from vitok.features.events import Events
from vitok.features.intake import Ingested, last_day, pack_ids, pack_journal, part, unpack_ids, unpack_journal

SOURCE = Source("payments", "id", ingest_time="seen_at")
PAIR = View(
    name="pair",
    entity=Entity("pair", ("card", "shop")),
    source=SOURCE,
    aggregations=(Count("1h"), Mean("amount", "1h", where=(("channel", "==", "web"),))),
)
CARD = View(name="card", entity=Entity("card", "card"), source=SOURCE, aggregations=(Count("1h"),))
NOW = 20_000 * DAY
NEVER = -(2**63)
GOOD = {"id": "p1", "event_time": NOW, "seen_at": NOW, "card": "c", "shop": "s", "amount": 1.0, "channel": "web"}
TEXTS = {"id": pl.String, "card": pl.String, "shop": pl.String, "channel": pl.String}
SCHEMA: dict[str, Any] = {**TEXTS, "event_time": pl.Int64, "seen_at": pl.Int64, "amount": pl.Float64}


def frame(*rows: dict[str, Any]) -> pl.DataFrame:
    whole = pl.DataFrame([{**GOOD, **row} for row in rows], schema=SCHEMA)
    return whole.with_columns(pl.col("event_time", "seen_at").cast(pl.Datetime("us", "UTC")))


def reasons(rows: pl.DataFrame, *, earliest: int = NEVER, latest: int | None = None) -> list[str]:
    good, bad = part(SOURCE, (PAIR, CARD), rows, earliest=earliest, latest=latest)
    assert len(good) + len(bad) == len(rows)
    assert "reason" not in good.columns
    # What is left can be counted.
    assert len(Events.of_frame(SOURCE, (PAIR, CARD), good)) == len(good)
    return bad["reason"].to_list()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": None}, "id: got null, must not be null"),
        ({"event_time": None}, "event_time: got null, must not be null"),
        ({"seen_at": None}, "seen_at: got null, must not be null"),
        ({"card": None}, "card: got null, must not be null"),
        ({"shop": None}, "shop: got null, must not be null"),
        ({"id": ""}, "id: got '', must not be empty"),
        ({"shop": ""}, "shop: got '', must not be empty"),
        ({"card": "a\x1fb"}, "card: must hold no unit separator (U+001F), which stands between the parts of a key"),
        ({"amount": math.inf}, "amount: got an infinite number, must be finite"),
        ({"amount": -math.inf}, "amount: got an infinite number, must be finite"),
        (
            {"event_time": NOW - DAY - 1},
            "event_time: must not be before 2024-10-03T00:00:00Z: so long ago duplicates cannot be told",
        ),
        (
            {"event_time": NOW + HOUR + 1},
            "event_time: must not lie in the future (after 2024-10-04T01:00:00Z)",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_alone(row: dict[str, Any], reason: str) -> None:
    rows = frame({"id": "a"}, row, {"id": "z"})
    assert reasons(rows, earliest=NOW - DAY, latest=NOW + HOUR) == [reason]


@pytest.mark.parametrize("row", [{"amount": None}, {"amount": math.nan}, {"channel": None}, {"event_time": NOW - DAY}])
def test_a_row_without_a_number_or_at_the_edge_counts(row: dict[str, Any]) -> None:
    assert reasons(frame(row), earliest=NOW - DAY, latest=NOW) == []


def test_the_first_reason_of_several_is_given() -> None:
    assert reasons(frame({"id": None, "amount": math.inf, "card": ""})) == ["id: got null, must not be null"]


def test_a_separator_in_a_key_of_one_column_mixes_nothing_up() -> None:
    rows = frame({"card": "a\x1fb"})
    assert len(part(SOURCE, (CARD,), rows, earliest=NEVER, latest=None)[0]) == 1


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["", "c", "a\x1fb"])])
def test_texts_of_other_types_keep_the_rules_of_texts(kind: pl.DataType) -> None:
    rows = frame({"id": "1"}, {"id": "2", "card": ""}, {"id": "3", "card": "a\x1fb"})
    found = reasons(rows.with_columns(pl.col("card").cast(kind)))
    assert found == ["card: got '', must not be empty", reasons(rows)[1]]


@pytest.mark.parametrize("name", ["id", "card", "event_time", "seen_at"])
def test_a_needed_column_of_nulls_alone_refuses_its_rows(name: str) -> None:
    rows = frame({}, {"id": "p2"}).with_columns(pl.lit(None).alias(name))
    assert rows.schema[name] == pl.Null
    assert reasons(rows) == [f"{name}: got null, must not be null"] * 2


@pytest.mark.parametrize("name", ["amount", "channel"])
def test_a_value_column_of_nulls_alone_counts(name: str) -> None:
    assert reasons(frame({}).with_columns(pl.lit(None).alias(name))) == []


def test_dates_are_midnights() -> None:
    rows = frame({}, {"id": "p2", "event_time": NOW - DAY}).with_columns(pl.col("event_time").cast(pl.Date))
    good, bad = part(SOURCE, (CARD,), rows, earliest=NOW, latest=NOW)
    assert bad["reason"].str.starts_with("event_time: must not be before").to_list() == [True]
    assert Events.of_frame(SOURCE, (CARD,), good).times.tolist() == [NOW]


@pytest.mark.parametrize("kind", [pl.Datetime("ms"), pl.Datetime("ns"), pl.Datetime("us", "Asia/Tokyo")])
def test_times_of_any_unit_and_zone_are_compared_as_moments(kind: pl.Datetime) -> None:
    rows = frame({}, {"id": "p2", "event_time": NOW + 2 * MINUTE}).with_columns(pl.col("event_time").cast(kind))
    good, bad = part(SOURCE, (CARD,), rows, earliest=NOW, latest=NOW + MINUTE)
    assert (len(bad), Events.of_frame(SOURCE, (CARD,), good).times.tolist()) == (1, [NOW])


def test_empty_batches_and_missing_columns() -> None:
    assert reasons(frame()) == []
    with pytest.raises(InvalidInput, match="hold id, amount"):
        part(SOURCE, (PAIR,), frame({}).drop("id", "amount"), earliest=NEVER, latest=None)


def test_what_became_of_a_batch_is_said_in_a_line() -> None:
    good, bad = part(SOURCE, (CARD,), frame({"id": None}), earliest=NEVER, latest=None)
    assert str(Ingested(n_new=1, n_duplicate=2, n_late=3, rejected=good)) == "1 new, 2 seen before, 3 late, 0 rejected"
    done = Ingested(n_new=0, n_duplicate=0, n_late=0, rejected=bad)
    assert str(done).endswith("1 rejected; first: id: got null, must not be null")


def test_a_journal_record_comes_back_as_it_was() -> None:
    rows = frame({}, {"id": "Ж", "amount": None})
    source, positions, found = unpack_journal(pack_journal("payments", {"0": 7, "next": "é"}, rows))
    assert (source, positions) == ("payments", {"0": 7, "next": "é"})
    assert found is not None
    assert_frame_equal(found, rows)
    assert unpack_journal(pack_journal("payments", {}, rows.clear())) == ("payments", {}, None)


def test_any_damage_of_a_journal_record_is_told() -> None:
    record = pack_journal("payments", {"0": 7}, frame({}, {"id": "p2"}))
    damaged = [record[:n] for n in range(len(record))] + [record + b"\0"]
    rng = random.Random(0)
    for place in range(len(record)):
        one = bytearray(record)
        one[place] ^= 1 << rng.randrange(8)
        damaged.append(bytes(one))
    for one in damaged:
        with pytest.raises(StoreError, match="not a record of its journal; fill it anew"):
            unpack_journal(one)


def test_packed_ids_come_back_and_damage_is_told() -> None:
    ids = [np.arange(2 * n, dtype=np.uint64).reshape(n, 2) for n in (3, 0, 2)]
    days = [np.array(some, np.int32) for some in ([5, -7, 6], [], [9, 1])]
    blob = pack_ids(list(zip(ids, days, strict=True)))
    found, found_days = unpack_ids(blob)
    np.testing.assert_array_equal(found, np.concatenate(ids))
    np.testing.assert_array_equal(found_days, [5, -7, 6, 9, 1])
    assert last_day(blob) == 9
    for one in [*(blob[:n] for n in range(len(blob))), blob + b"\0", bytes([blob[0] ^ 1]) + blob[1:]]:
        with pytest.raises(StoreError, match="are not event ids; fill the store anew"):
            unpack_ids(one)
