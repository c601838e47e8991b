import datetime as dt
import sqlite3
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok import contracts
from vitok.contracts.predicates import UnsupportedError, parse
from vitok.errors import ContractBroken, InvalidInput

TYPES = {
    "a": "number",
    "b": "number",
    "i": "integer",
    "s": "string",
    "u": "string",
    "o": "boolean",
    "at": "timestamp",
    "day": "date",
}
NUMBERS = st.sampled_from(["a", "b", "i", "0", "1", "-2.5", "1e300", "9007199254740993"])
SUMS = st.recursive(
    NUMBERS,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner)
        | st.builds("ABS({})".format, inner)
        | st.builds("COALESCE({}, {})".format, inner, inner)
        | st.builds("-({})".format, inner)
    ),
    max_leaves=4,
)
SIGNS = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="])
TEXTS = st.sampled_from(["s", "u", "'x'", "''", "'it''s'"])
ATOMS = (
    st.builds("{} {} {}".format, SUMS, SIGNS, SUMS)
    | st.builds("{} {} {}".format, TEXTS, SIGNS, TEXTS)
    | st.builds("{} IS {}NULL".format, SUMS | TEXTS, st.sampled_from(["", "NOT "]))
    | st.builds("{} {}BETWEEN {} AND {}".format, SUMS, st.sampled_from(["", "NOT "]), SUMS, SUMS)
    | st.builds("{} {}IN ({}, {})".format, TEXTS, st.sampled_from(["", "NOT "]), TEXTS, TEXTS)
    | st.builds("s {}LIKE {}".format, st.sampled_from(["", "NOT "]), st.sampled_from(["'x%'", "'_'", "'%.%'", "'-'"]))
    | st.builds("LENGTH(s) {} {}".format, SIGNS, SUMS)
    | st.builds("at {} {}".format, SIGNS, st.sampled_from(["'2018-04-01T10:00:00Z'", "day", "DATE '2018-04-01'"]))
    | st.builds("day {} '2018-04-01'".format, SIGNS)
    | st.sampled_from(["o", "NULL", "TRUE", "i = NULL"])
)
CONDITIONS = st.recursive(
    ATOMS,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["AND", "OR"]), inner)
        | st.builds("NOT ({})".format, inner)
    ),
    max_leaves=5,
)
FLOATS = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, 1e308])
ROWS = st.fixed_dictionaries(
    {
        "a": FLOATS,
        "b": FLOATS,
        "i": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3),
        "s": st.none() | st.text("x.é\n'-%", max_size=3),
        "u": st.none() | st.sampled_from(["x", "", "it's"]),
        "o": st.none() | st.booleans(),
        "at": st.none() | st.sampled_from([1_522_540_800_000_000, 1_522_576_800_000_000, 0]),
        "day": st.none() | st.sampled_from([17_621, 17_622, 17_623]),
    }
)
SCHEMA = {
    "a": pl.Float64(),
    "b": pl.Float64(),
    "i": pl.Int64(),
    "s": pl.String(),
    "u": pl.String(),
    "o": pl.Boolean(),
    "at": pl.Int64(),
    "day": pl.Int64(),
}


@settings(max_examples=300)
@given(CONDITIONS, st.lists(ROWS, min_size=1, max_size=6))
def test_columns_and_single_rows_agree(condition: str, rows: list[dict[str, Any]]) -> None:
    node = parse(condition, TYPES)
    frame = pl.DataFrame(rows, schema=SCHEMA)
    found = frame.with_columns(node.column({name: pl.col(name) for name in TYPES}).alias("x"))
    assert found["x"].to_list() == [node.value(row) for row in rows]


PLAIN = st.builds("{} {} {}".format, st.sampled_from(["i", "s"]), SIGNS, st.sampled_from(["i", "s"])).filter(
    lambda text: text.split()[0] == text.split()[2]
) | st.sampled_from(
    [
        "i IN (1, 2)",
        "i NOT IN (1, 2)",
        "i BETWEEN 1 AND 2",
        "NOT i = 1",
        "NOT i = 1 AND s IS NULL",
        "i = 1 OR i = 2 AND s = 'x'",
        "s LIKE 'x%'",
        "s IS NOT NULL OR i > 1",
        "i = NULL OR s = 'x'",
        "LENGTH(s) > 1",
        "COALESCE(i, 7) = 7",
        "i + 1 = 2 * 1",
        "-i < 0",
    ]
)


@given(PLAIN, st.none() | st.integers(-3, 3), st.none() | st.sampled_from(["x", "xy", "", "'"]))
def test_means_what_sql_means(condition: str, i: int | None, s: str | None) -> None:
    # Oracle: SQLite, whose comparison of texts is by bytes; LIKE is made to tell cases apart, as the standard has it.
    with sqlite3.connect(":memory:") as connection:
        connection.execute("PRAGMA case_sensitive_like = 1")
        (expected,) = connection.execute(f"SELECT {condition} FROM (SELECT ? AS i, ? AS s)", (i, s)).fetchone()
    connection.close()
    found = parse(condition, {"i": "integer", "s": "string"}).value({"i": i, "s": s})
    assert found == (None if expected is None else bool(expected))


@pytest.mark.parametrize(
    "condition",
    [
        "",
        "a",
        "a <",
        "a < b c",
        "a < 's'",
        "missing < 1",
        "at < 'noon'",
        "at - at > 1",
        "s LIKE u",
        "LOWER(s) = 'x'",
        "a NOT 1",
        "a = (SELECT 1)",
        "a IN ()",
        "a; DROP TABLE t",
        "(" * 200 + "a" + ")" * 200,
        "DATE 7 = day",
        "a < 1 AND",
        "s LIKE 'a\\%'",
    ],
)
def test_what_is_not_understood_is_said(condition: str) -> None:
    with pytest.raises(UnsupportedError):
        parse(condition, TYPES)


TEXT = """\
apiVersion: v3.1.0
kind: DataContract
id: orders
version: 1.0.0
status: active
schema:
  - name: orders
    properties:
      - {name: ordered, logicalType: timestamp}
      - {name: delivered, logicalType: timestamp}
      - {name: amount, logicalType: number}
      - {name: fee, logicalType: integer}
    quality:
      - {type: sql, mustBe: 0, query: "SELECT COUNT(*) FROM {object} WHERE delivered < ordered"}
      - {type: sql, mustBe: 0, query: "select count(*) from orders where amount < fee", severity: quarantine}
"""
DATA: dict[str, list[Any]] = {
    "ordered": [dt.datetime(2018, 4, 2), dt.datetime(2018, 4, 2), dt.datetime(2018, 4, 2), None],
    "delivered": [dt.datetime(2018, 4, 3), dt.datetime(2018, 4, 1), None, dt.datetime(2018, 4, 1)],
    "amount": [3.0, 1.0, float("nan"), 1.0],
    "fee": [2, 2, 2, None],
}


def test_rules_across_columns_take_rows_out() -> None:
    contract = contracts.load(TEXT)
    report = contract.check(pl.DataFrame(DATA))
    assert report.rejected["rules"].to_list() == [["delivered,ordered.sql", "amount,fee.sql"], ["amount.finite"]]
    assert report.rejected["reason"][0] == (
        "delivered,ordered: got 2018-04-01T00:00:00, 2018-04-02T00:00:00, must not have delivered < ordered"
    )
    check = contract.row_checker()
    rows = pl.DataFrame(DATA).rows(named=True)
    assert [[f"{v.field}.{v.rule}" for v in check(row)] for row in rows] == [
        [],
        ["delivered,ordered.sql", "amount,fee.sql"],
        ["amount.finite"],
        [],
    ]
    (found,) = check({"ordered": None, "delivered": None, "amount": 1, "fee": 2})
    assert found.message == "amount,fee: got 1, 2, must not have amount < fee"
    assert found.value == (1, 2)


def changed(old: str, new: str) -> contracts.Contract:
    assert old in TEXT
    return contracts.load(TEXT.replace(old, new, 1))


def test_severity_of_a_condition() -> None:
    frame = pl.DataFrame({**DATA, "amount": [3.0, 3.0, 3.0, 3.0]})
    warned = changed('delivered < ordered"', 'delivered < ordered", severity: warning')
    report = warned.check(frame)
    assert (report.n_rejected, [item.label for item in report.failed]) == (0, ["delivered,ordered.sql"])
    assert warned.row_checker()(frame.row(1, named=True)) == []
    blocking = changed('delivered < ordered"', 'delivered < ordered", severity: error')
    with pytest.raises(ContractBroken, match="First such row: delivered,ordered: got"):
        blocking.check(frame)


def test_a_condition_with_tolerance_judges_the_table() -> None:
    some = 'mustBeLessThan: 30, unit: percent, query: "SELECT'
    contract = changed('mustBe: 0, query: "SELECT', some)
    report = contract.check(pl.DataFrame(DATA))
    (found,) = [item for item in report.results if item.label == "delivered,ordered.sql"]
    assert (found.status, found.n_failed, found.observed) == ("passed", 1, "25 percent")
    assert found.wanted == "be less than 30 percent with delivered < ordered"
    assert "rows must be less than 30 percent with delivered < ordered" in str(contract)
    with pytest.raises(InvalidInput, match="warn or block"):
        changed('mustBe: 0, query: "select', 'mustBeLessThan: 5, query: "select')


def test_queries_give_a_number() -> None:
    query = "- {type: sql, query: 'SELECT AVG(amount) FROM ${object}', mustBeBetween: [1, 2]}"
    contract = changed("quality:\n", f"quality:\n      {query}\n")
    frame = pl.DataFrame({**DATA, "amount": ["3", "2", "x", "1"]})
    (found,) = [item for item in contract.check(frame).results if item.field == "" and item.rule == "sql"]
    assert (found.status, found.observed, found.wanted) == ("passed", "2", "be between 1 and 2")
    assert contract.not_checked == ()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("{type: sql, query: 'SELECT PERCENTILE_APPROX(amount) FROM orders', mustBe: 1}", "cannot be run here"),
        ("{type: sql, query: 'SELECT amount, fee FROM orders', mustBe: 1}", "it gives 2 columns"),
        ("{type: sql, query: 'SELECT 1 FROM elsewhere', mustBe: 1}", "cannot be run here"),
        ("{type: sql, query: 'SELECT 1'}", "it has no operator"),
    ],
)
def test_queries_that_cannot_be_run_are_named(query: str, said: str) -> None:
    (found,) = changed("quality:\n", f"quality:\n      - {query}\n").not_checked
    assert said in found


def test_a_query_that_fails_on_the_data_is_skipped() -> None:
    contract = changed("quality:\n", "quality:\n      - {type: sql, query: 'SELECT amount FROM orders', mustBe: 1}\n")
    (found,) = [item for item in contract.check(pl.DataFrame(DATA)).results if item.field == "" and item.rule == "sql"]
    assert (found.status, found.observed) == ("skipped", "the query gives more than one value")
