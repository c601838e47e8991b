import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.conftest import SCHEMA, frame

from vitok import contracts
from vitok.clock import DAY, parse_time
from vitok.contracts.files import scan, typed
from vitok.contracts.guesses import Seen, is_unique, limits, pattern
from vitok.errors import InvalidInput, NotFound


def test_draft_states_what_was_seen() -> None:
    data = pl.DataFrame(
        {
            "id": ["a", "b"],
            "amount": [1.5, float("inf")],
            "count": [3, None],
            "time": [dt.datetime(2018, 4, 1), dt.datetime(2018, 4, 2)],
            "day": [dt.date(2018, 4, 1)] * 2,
            "online": [True, False],
            "kind": pl.Series(["x", "x"], dtype=pl.Categorical),
            "price": pl.Series(["1.10", "2.20"]).cast(pl.Decimal(8, 2)),
        }
    )
    contract = contracts.infer(data, name="продажи")
    table = contract.table("продажи")
    types = [field.logical_type for field in table.fields]
    assert types == ["string", "number", "integer", "timestamp", "date", "boolean", "string", "number"]
    assert [field.required for field in table.fields] == [True, True, False, True, True, True, True, True]
    assert [key.fields for key in table.keys] == [("id",)]
    assert "be at least 2017-01-01T00:00:00Z" in str(contract)
    assert contract.status == "draft"
    assert contracts.load(contract.text) == contract
    assert contract.check(data).n_rejected == 0
    assert contract.check(data).failed[0].label == "amount.finite"


def test_every_guess_is_marked() -> None:
    contract = contracts.infer(shop(0), name="orders")
    document = yaml.safe_load(contract.text)
    assert contract.text.startswith("# A draft")
    for column in document["schema"][0]["properties"]:
        noted = {item["property"]: item["value"] for item in column["customProperties"]}
        said = noted["vitok.draft"]
        assert ("required" in column) == ("required:" in said)
        assert ("unique" in column) == ("unique:" in said)
        assert ("pattern" in column.get("logicalTypeOptions", {})) == ("pattern:" in said)
    for promise in (*document["schema"][0]["quality"], *document["slaProperties"]):
        assert promise["description"].startswith("Draft:")


def shop(week: int, n: int = 2000) -> pl.DataFrame:
    """A week of orders as a shop may have them, growing identifiers and a long tail of amounts included."""
    rng = np.random.default_rng(week)
    start = dt.datetime(2018, 4, 1) + dt.timedelta(weeks=week)
    return pl.DataFrame(
        {
            "order_id": [f"T{week * n + i}" for i in range(n)],
            "customer_id": [f"C{number:06d}" for number in rng.integers(0, 3000, n)],
            "event_time": [start + dt.timedelta(minutes=5 * i) for i in range(n)],
            "amount": np.round(rng.lognormal(3, 1, n), 2),
            "balance": rng.normal(0, 100, n),
            "items": rng.poisson(3, n) + 1,
            "country": rng.choice(["DE", "FR", "IT"], n).tolist(),
            "is_gift": (rng.random(n) < 0.1).astype(int),
            "note": [None if chance < 0.3 else f"note {chance}" for chance in rng.random(n)],
            "sequence": [week * n + i for i in range(n)],
            "session_key": [str(rng.bytes(16).hex()) for _ in range(n)],
        }
    )


def test_next_weeks_data_keeps_the_draft() -> None:
    contract = contracts.infer(shop(0), name="orders", now=parse_time("2018-04-08"))
    text = str(contract)
    assert "match ^T[0-9]+$" in text
    assert "match ^C[0-9]{6}$" in text
    assert "be one of 'DE', 'FR', 'IT'" in text
    assert "be one of 0, 1" in text
    assert "unique: order_id" in text
    assert "unique: session_key" in text
    for week in range(1, 13):
        now = parse_time("2018-04-08") + 7 * week * DAY
        report = contract.check(shop(week), now=now)
        assert report.n_rejected == 0, str(report)
        assert not report.failed, str(report)


def test_what_a_draft_is_for_it_finds() -> None:
    contract = contracts.infer(shop(0), name="orders")
    bad = shop(1).with_columns(
        pl.when(pl.col("order_id") == "T2000").then(pl.lit("2000")).otherwise("order_id").alias("order_id"),
        pl.when(pl.col("order_id") == "T2001").then(-5.0).otherwise("amount").alias("amount"),
        pl.when(pl.col("order_id") == "T2002").then(pl.lit("Germany")).otherwise("country").alias("country"),
        pl.when(pl.col("order_id") == "T2003").then(None).otherwise("is_gift").alias("is_gift"),
    )
    report = contract.check(bad)
    assert {result.label for result in report.failed} == {
        "order_id.pattern",
        "amount.minimum",
        "country.validValues",
        "is_gift.required",
    }
    assert report.n_rejected == 4


def test_no_single_key() -> None:
    data = pl.DataFrame({"user_id": ["a", "a", "b"], "item_id": [1, 2, 1], "clicks": [4, 4, 4]})
    contract = contracts.infer(data, name="clicks")
    (key,) = contract.table().keys
    assert key.fields == ("user_id", "item_id")
    assert key.rule.severity == "warn"


@pytest.mark.parametrize(
    ("now", "wanted"),
    [
        (None, "be at most 10 d old"),  # twice the gap of five days
        ("2018-04-14", "be at most 14 d old"),  # seven days old
        ("2026-01-01", "be at most 10 d old"),  # an archive
        ("2018-04-01", "be at most 10 d old"),  # a clock that is wrong
    ],
)
def test_freshness(now: str | None, wanted: str) -> None:
    days = [1, 2, 7]
    data = pl.DataFrame({"other": ["x"] * 3, "day": [dt.date(2018, 4, day) for day in days]})
    contract = contracts.infer(data, name="t", now=None if now is None else parse_time(now))
    assert [item.wanted for item in contract.freshness] == [wanted]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "amount": st.none() | st.floats(),
                "id": st.none() | st.text(st.characters(codec="utf-8"), max_size=3),
                "count": st.none() | st.integers(-(2**63), 2**63 - 1),
                "time": st.none() | st.datetimes().map(lambda moment: moment.replace(tzinfo=dt.UTC)),
                "day": st.none() | st.dates(),
            }
        ),
        max_size=6,
    )
)
def test_data_keeps_its_own_draft(rows: list[dict[str, object]]) -> None:
    names = ("amount", "id", "count", "time", "day")
    data = pl.DataFrame(rows, schema={name: SCHEMA[name] for name in names})
    contract = contracts.infer(data.lazy(), name="draft")
    assert contract.check(data).n_rejected == 0
    assert contracts.load(contract.text) == contract


def test_no_rows_and_no_columns() -> None:
    contract = contracts.infer(frame(), name="empty")
    assert not any(field.required for field in contract.table().fields)
    assert not contract.table().metrics
    with pytest.raises(InvalidInput, match="at least one column"):
        contracts.infer(pl.DataFrame(), name="nothing")
    assert contracts.infer(pl.DataFrame({"x": [None]}), name="nulls").table().fields[0].logical_type == "string"


def test_types_that_a_contract_cannot_state() -> None:
    with pytest.raises(InvalidInput, match="tags"):
        contracts.infer(pl.DataFrame({"tags": [["a"]]}), name="lists")
    with pytest.raises(InvalidInput, match="DataFrame"):
        contracts.infer([1], name="list")  # type: ignore[arg-type]


def numbers(low: float, high: float, kind: str = "number", **more: object) -> Seen:
    return Seen(name="x", logical_type=kind, rows=100, nulls=0, low=low, high=high, **more)  # type: ignore[arg-type]


def test_ranges_leave_room_and_stay_in_their_type() -> None:
    assert limits(numbers(0.0, 1.0)) == (0, 2.0)
    assert limits(numbers(-1.0, 1.0)) == (-3.0, 3.0)
    assert limits(numbers(-5.0, -4.0)) == (-6.0, 0)
    assert limits(numbers(7.0, 7.0)) == (0, 14.0)
    assert limits(numbers(-1e308, 1e308)) == (None, None)
    assert limits(numbers(5e-324, 5e-324))[1] == 1e-323
    assert limits(numbers(-(2**63), 2**63 - 1, "integer")) == (None, None)
    assert limits(numbers(1, 6, "integer")) == (0, 11)
    assert limits(Seen(name="x", logical_type="number", rows=3, nulls=3)) == (None, None)


def test_patterns_and_keys() -> None:
    assert pattern(["A", "a"], [], []) is None
    assert pattern(["a.9"], [(1, 4), (3, 3)], [None, None]) == r"^[a-z]+\.[0-9]+$"
    assert pattern(["A9"], [(2, 2), (2, 2)], [None, "0"]) == "^[A-Z]{2}[0-9]{2}$"
    assert not is_unique(Seen(name="id", logical_type="string", rows=1, nulls=0, distinct=1))
    assert not is_unique(Seen(name="comment", logical_type="string", rows=900, nulls=0, distinct=900))


def test_text_is_read_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "code,count,share,flag,day,time,empty,almost,word\n"
        "007,1,0.5,true,2018-04-01,2018-04-01T10:00:00Z,,2018-02-30,a\n"
        "010,-2,1e3,False,2018-04-02,2018-04-02 11:30,,2018-02-28,\n"
    )
    read = typed(scan(path)).collect()
    assert read.schema == {
        "code": pl.String(),
        "count": pl.Int64(),
        "share": pl.Float64(),
        "flag": pl.Boolean(),
        "day": pl.Date(),
        "time": pl.Datetime("us", "UTC"),
        "empty": pl.String(),
        "almost": pl.String(),
        "word": pl.String(),
    }
    assert read["share"].to_list() == [0.5, 1000.0]
    assert read["word"].to_list() == ["a", None]


def test_files(tmp_path: Path) -> None:
    rows = pl.DataFrame({"a": [1, 2]})
    rows.write_parquet(tmp_path / "a.parquet")
    rows.write_ndjson(tmp_path / "a.jsonl")
    rows.write_csv(tmp_path / "a.tsv", separator="\t")
    for name in ("a.parquet", "a.jsonl", "a.tsv"):
        assert typed(scan(tmp_path / name)).collect().equals(rows)
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(3):
        rows.write_parquet(folder / f"{number}.parquet")
    assert scan(folder).collect().height == 6
    (folder / "b.csv").write_text("a\n1\n")
    with pytest.raises(InvalidInput, match="one kind"):
        scan(folder)
    with pytest.raises(NotFound, match=r"a\.parquet"):
        scan(tmp_path / "b.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "bad.jsonl").write_text("{")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "notes.txt").write_text("a")
    for name in ("bad.parquet", "empty.csv", "notes.txt", "bad.jsonl"):
        with pytest.raises(InvalidInput, match="data"):
            scan(tmp_path / name)
