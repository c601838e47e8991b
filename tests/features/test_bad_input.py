"""Bad input at the doors of definitions, runs and reads: a clear error, and nothing that stood there is lost."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.features.latest_oracle import Failing

from vitok.clock import DAY, HOUR
from vitok.engines.lmdb import LmdbRows
from vitok.engines.memory import MemoryRows
from vitok.engines.row_store import RowStore, open_rows
from vitok.errors import InvalidInput, StoreError
from vitok.features import Count, Entity, FeatureReader, FeatureSet, Latest, Rate, Source, View, forget, materialise
from vitok.features.flink import job

CARD = Entity("card", "card_id")
PAYMENTS = Source("payments", "payment_id")
LIMIT = Latest(name="limit", entity=CARD, source=Source("limits"), columns=("amount",))
FEATURES = FeatureSet(views=(LIMIT,))
NOW = 10 * DAY

ABSURD: list[tuple[Any, str]] = [
    ("0h", "be longer than zero"),
    (-1, "be longer than zero"),
    ("-1h", "be a whole number and a unit"),
    ("1x", "be a whole number and a unit"),
    ("1.5h", "be a whole number and a unit"),
    (" 1h", "be a whole number and a unit"),
    ("90000d", "be at most a hundred years"),
    (10**30, "be at most a hundred years"),
    (1.5, "be a text such as '7d'"),
    (float("nan"), "be a text such as '7d'"),
    (True, "be a text such as '7d'"),
]


def rows(**columns: Any) -> pl.DataFrame:
    plain = {"card_id": ["7", "8"], "event_time": [DAY, DAY], "amount": [100.0, 50.0]} | columns
    return pl.DataFrame(plain).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))


def filled() -> MemoryRows:
    store = MemoryRows()
    materialise(FEATURES, {"limits": rows()}, store, until=NOW)
    return store


def amounts(store: RowStore) -> list[float]:
    return FeatureReader(FEATURES, store).read({"card_id": ["7", "8"]}, time=NOW).values[:, 0].tolist()


def counted(over: Any, **options: Any) -> View:
    return View(name="card", entity=CARD, source=PAYMENTS, aggregations=(Count((over,)),), **options)


def latest(**options: Any) -> Latest:
    return Latest(name="limit", entity=CARD, source=PAYMENTS, columns=("amount",), **options)


# Definitions


@pytest.mark.parametrize(("length", "rule"), ABSURD)
@pytest.mark.parametrize(
    ("field", "declare"),
    [
        ("window", counted),
        ("view 'card': lag", lambda length: counted("1h", lag=length)),
        ("view 'card': fresh_within", lambda length: counted("1h", fresh_within=length)),
        ("view 'card': refresh", lambda length: counted("1h", refresh=length)),
        ("view 'limit': ttl", lambda length: latest(ttl=length)),
        ("view 'limit': lag", lambda length: latest(lag=length)),
        ("Rate: per", lambda length: Rate(("1h",), per=length)),
    ],
)
def test_absurd_lengths_name_their_field(field: str, declare: Callable[[Any], Any], length: Any, rule: str) -> None:
    with pytest.raises(InvalidInput) as error:
        declare(length)
    assert error.value.field == field
    assert error.value.rule.startswith(rule)


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: Count(()), "must hold a window, such as '7d'"),
        (lambda: counted("30s"), "must be whole minutes. Ask for exact=True"),
        (lambda: View(name="a b", entity=CARD, source=PAYMENTS, aggregations=(Count("1h"),)), "letters, digits"),
        (lambda: View(name="card", entity=CARD, source=PAYMENTS, aggregations=()), "hold at least one"),
        (lambda: FeatureSet(views=(LIMIT, LIMIT)), "must be unique"),
        (lambda: FeatureSet(views=(LIMIT,), select=("nobody",)), "must name features of the set"),
        (lambda: Entity("card", ""), "must name one column or several"),
        (lambda: Count("1h", where=(("channel", "~", "web"),)), "must use one of =="),
        (lambda: latest().__class__(name="x", entity=CARD, source=PAYMENTS, columns={"a": "text"}), "must be one of"),
    ],
)
def test_wrong_definitions_say_what_is_right(declare: Callable[[], Any], words: str) -> None:
    with pytest.raises(InvalidInput) as error:
        declare()
    assert words in str(error.value)


@pytest.mark.parametrize("location", ["payments.parquet", "redis://host", "nothing", "kafka://", "kafka://host"])
def test_a_job_for_flink_names_the_source_that_is_no_stream(location: str) -> None:
    source = Source("payments", "payment_id", location=location)
    view = View(name="card", entity=CARD, source=source, aggregations=(Count("1h"),))
    with pytest.raises(InvalidInput, match="kafka://"):
        job(FeatureSet(views=(view,)), sink="file:///tiles")


# Runs to the store


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (rows(amount=["much", "more"]), "amount: got 'String', must be numeric"),
        (rows(amount=[float("inf"), 1.0]), "amount: got inf, must be finite"),
        (rows(card_id=[1.5, 2.5]), "card_id: got 'DOUBLE', must be text or whole numbers"),
        (rows(card_id=["7", None]), "card_id: got None, must not be null"),
        (rows(card_id=["7", ""]), "card_id: got None, must not be null"),
        (rows(event_time=[DAY, None]), "event_time: got None, must not be null"),
        (rows().with_columns(event_time=pl.lit("yesterday")), "must be a time or a date"),
        (rows().with_columns(event_time=pl.lit(1)), "must be a time or a date"),
        (rows().drop("amount"), "must hold amount"),
        (None, "must be a frame, a Parquet file"),
        (5, "must be a frame, a Parquet file"),
        ("/nowhere/*.parquet", "must be a Parquet file, or a folder or pattern"),
    ],
)
def test_a_wrong_source_is_named_and_the_store_keeps_what_it_has(bad: Any, words: str) -> None:
    store = filled()
    with pytest.raises(InvalidInput) as error:
        materialise(FEATURES, {"limits": bad}, store, until=NOW + 1, since=0)
    assert str(error.value).startswith("source 'limits'") or "view 'limit'" in str(error.value)
    assert words in str(error.value)
    assert amounts(store) == [100.0, 50.0]


@pytest.mark.parametrize("content", [b"", b"PAR", b"card_id,amount\n7,100\n", b'{"card_id": 7}', b"PAR1cut short"])
def test_a_file_of_another_kind_is_named(content: bytes, tmp_path: Path) -> None:
    store, path = filled(), tmp_path / "limits.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"source 'limits'.*limits\.csv"):
        materialise(FEATURES, {"limits": path}, store, until=NOW + 1)
    assert amounts(store) == [100.0, 50.0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "limits.parquet"
    rows().write_parquet(path)
    path.chmod(0)
    with pytest.raises(InvalidInput, match=r"limits\.parquet.*Permission denied"):
        materialise(FEATURES, {"limits": path}, filled(), until=NOW + 1)


def test_a_row_of_the_future_is_not_served_and_not_lost() -> None:
    store = filled()
    late = {"limits": pl.concat([rows(), rows(event_time=[NOW + HOUR] * 2, amount=[1.0, 2.0])])}
    materialise(FEATURES, late, store, until=NOW + 1)
    assert amounts(store) == [100.0, 50.0]
    materialise(FEATURES, late, store, until=NOW + 2 * HOUR)
    reader = FeatureReader(FEATURES, store)
    assert reader.read({"card_id": ["7"]}, time=NOW + 2 * HOUR).values.tolist() == [[1.0]]


@pytest.mark.parametrize("moment", [1.5, "2026-01-01", float("nan"), True, -1, 10**30])
@pytest.mark.parametrize("name", ["until", "since"])
def test_absurd_moments_of_a_run_are_named(name: str, moment: Any) -> None:
    store = filled()
    with pytest.raises(InvalidInput) as error:
        materialise(FEATURES, {"limits": rows()}, store, **{"until": NOW, name: moment})
    assert error.value.field == name
    assert amounts(store) == [100.0, 50.0]


def test_a_full_disk_keeps_the_rows_that_were_there(tmp_path: Path) -> None:
    store = LmdbRows(tmp_path / "rows", map_size=1 << 18)
    materialise(FEATURES, {"limits": rows()}, store, until=NOW)
    many = rows(card_id=[f"{n}" for n in range(20_000)], event_time=[2 * DAY] * 20_000, amount=[1.0] * 20_000)
    with pytest.raises(StoreError, match=r"[Ff]ull"):
        materialise(FEATURES, {"limits": many}, store, until=NOW + 1, since=0)
    # One of them may have been replaced before the disk was full; neither is gone.
    assert set(amounts(store)) <= {100.0, 50.0, 1.0}
    store.close()


# Reads


@pytest.mark.parametrize("key", [None, "", 1.5, True, float("nan"), [], b"7", {"card_id": "7"}])
def test_a_key_that_cannot_be_one_is_named(key: Any) -> None:
    with pytest.raises(InvalidInput, match=r"card_id: .*must be a text that is not empty, or a whole number"):
        FeatureReader(FEATURES, filled()).read({"card_id": [key]}, time=NOW)


@pytest.mark.parametrize("key", ["nobody", "7 ", "x" * 100_000, "\ud800", "\0", -1])
def test_an_unknown_entity_is_missing_and_the_known_one_beside_it_answered(key: Any) -> None:
    vectors = FeatureReader(FEATURES, filled()).read({"card_id": [key, "7"]}, time=NOW)
    np.testing.assert_array_equal(vectors.values[:, 0], [np.nan, 100.0])
    assert [vectors.status_of(row) for row in range(2)] == ["missing", "fresh"]


@pytest.mark.parametrize("time", [-1, 2**63 - 1, 10**30, 1.5, "now", float("nan"), np.array([1, 2, 3])])
def test_an_absurd_time_is_named(time: Any) -> None:
    with pytest.raises(InvalidInput) as error:
        FeatureReader(FEATURES, filled()).read({"card_id": ["7"]}, time=time)
    assert error.value.field == "time"


@pytest.mark.parametrize("keys", [{}, {"customer_id": ["7"]}])
def test_a_question_without_its_key_says_which(keys: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="must hold card_id"):
        FeatureReader(FEATURES, filled()).read(keys, time=NOW)


def test_a_store_that_dies_between_reads_loses_nothing() -> None:
    store = Failing(filled())
    reader = FeatureReader(FEATURES, store, cooldown=1)
    before = reader.read({"card_id": ["7", "8"]}, time=NOW).values
    store.down = True
    during = reader.read({"card_id": ["7", "8", "9"]}, time=NOW)
    np.testing.assert_array_equal(during.values[:2], before)
    assert [during.source_of(row) for row in range(3)] == ["cache", "cache", "default"]
    assert reader.counters.last_error == "the store does not answer"
    with pytest.raises(StoreError, match="does not answer"):
        materialise(FEATURES, {"limits": rows(amount=[1.0, 2.0])}, store, until=NOW + 1, since=0)
    store.down = False
    assert amounts(store) == [100.0, 50.0]


# Engines and forgetting


@pytest.mark.parametrize("address", ["/tmp/rows", "foo://x", "redis://host:port", "redis://", "", "lmdb://"])
def test_an_address_of_no_store_is_named(address: str) -> None:
    with pytest.raises(InvalidInput, match="address"):
        open_rows(address)


def test_a_store_in_the_place_of_a_file_is_an_error_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "limits.csv"
    path.write_text("mine")
    with pytest.raises(StoreError, match=r"limits\.csv could not be opened"):
        open_rows(f"lmdb://{path}")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("key", [{"customer_id": "7"}, {}, {"card_id": "7", "shop_id": "x"}])
def test_forgetting_by_another_column_forgets_nobody(key: dict[str, Any]) -> None:
    store = filled()
    with pytest.raises(InvalidInput, match="must be by column: card_id"):
        forget(FEATURES, "card", key, store=store)
    assert amounts(store) == [100.0, 50.0]
