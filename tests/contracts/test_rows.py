import datetime as dt
import math
import re
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.conftest import CORPUS, GOOD, NO_TIMES, NOW, SCHEMA, TEXT, TIMES

from vitok import contracts
from vitok.contracts.rules import patterns
from vitok.errors import InvalidInput

CONTRACT = contracts.load(TEXT)
CHECK = CONTRACT.row_checker()
REQUEST = {**GOOD, "time": "2018-04-01T00:00:00Z", "day": "2018-04-01"}


def labels(row: Any) -> list[str]:
    return [f"{item.field}.{item.rule}" for item in CHECK(row)]


@pytest.mark.parametrize(("change", "rules"), CORPUS)
def test_corpus(change: dict[str, Any], rules: list[str]) -> None:
    assert labels({**GOOD, **change}) == rules


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"id": 17}, "id.type"),
        ({"id": ["a"]}, "id.type"),
        ({"id": "\ud800"}, "id.type"),
        ({"amount": "12.5"}, "amount.type"),
        ({"amount": True}, "amount.type"),
        ({"amount": {}}, "amount.type"),
        ({"amount": 2**53 + 1}, "amount.type"),
        ({"amount": 10**400}, "amount.type"),
        ({"amount": math.nan}, "amount.finite"),
        ({"amount": -5}, "amount.minimum"),
        ({"count": 2.5}, "count.type"),
        ({"count": math.nan}, "count.type"),
        ({"count": math.inf}, "count.type"),
        ({"count": 1e300}, "count.type"),
        ({"count": 2**63}, "count.type"),
        ({"count": "3"}, "count.type"),
        ({"online": "true"}, "online.type"),
        ({"online": 2}, "online.type"),
        ({"time": 1_522_540_800}, "time.type"),
        ({"day": "2018-04-01T00:00:00"}, "day.type"),
        ({"day": dt.datetime(2018, 4, 1, 1)}, "day.type"),
        ({"day": 17}, "day.type"),
        ({"day": "2018-02-30"}, "day.type"),
        ({"extra": 1}, "extra.unknown"),
    ],
)
def test_bad_requests(change: dict[str, Any], rule: str) -> None:
    (found,) = CHECK({**REQUEST, **change})
    assert f"{found.field}.{found.rule}" == rule
    assert found.field in found.message
    found.message.encode()
    assert str(found) == found.message


@pytest.mark.parametrize(
    "change",
    [{"amount": 0}, {"count": 3.0}, {"count": True}, {"online": 1}, {"day": dt.datetime(2018, 4, 1)}, {"day": None}],
)
def test_good_requests(change: dict[str, Any]) -> None:
    assert CHECK({**REQUEST, **change}) == []


def test_a_key_that_is_not_there_is_null() -> None:
    row = dict(REQUEST)
    del row["amount"], row["count"]
    assert labels(row) == ["amount.required"]
    assert labels({}) == ["id.required", "time.required", "amount.required"]


@pytest.mark.parametrize("row", [None, [], "text", 3])
def test_a_request_that_is_no_object(row: Any) -> None:
    (found,) = CHECK(row)
    assert (found.field, found.rule) == ("row", "type")


def test_further_keys_may_be_ignored() -> None:
    assert CONTRACT.row_checker(extra="ignore")({**REQUEST, "extra": 1}) == []
    with pytest.raises(InvalidInput):
        CONTRACT.row_checker(extra="keep")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", TIMES)
def test_times(text: str) -> None:
    assert CHECK({**REQUEST, "time": text}) == []


@pytest.mark.parametrize("text", NO_TIMES)
def test_no_times(text: str) -> None:
    assert labels({**REQUEST, "time": text}) == ["time.type"]


def test_words_are_those_of_the_batch_check() -> None:
    rows = [{**GOOD, "amount": -3.0}, {**GOOD, "currency": "x" * 99, "id": "b"}, {**GOOD, "id": None}]
    report = CONTRACT.check(pl.DataFrame(rows, schema=SCHEMA), now=NOW)
    assert report.rejected["reason"].to_list() == [CHECK(row)[0].message for row in rows]


ANY_ROW = st.fixed_dictionaries(
    {
        "id": st.none() | st.text(st.characters(codec="utf-8"), max_size=10),
        "time": st.none() | st.datetimes(dt.datetime(2017, 6, 1), dt.datetime(2019, 1, 1), timezones=st.just(dt.UTC)),
        "amount": st.none() | st.floats() | st.floats(-10, 2e6) | st.sampled_from([0.0, 1e6]),
        "count": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 12),
        "currency": st.none() | st.sampled_from(["EUR", "GBP", "XX", "EUR\n"]) | st.text("ABé\n", max_size=4),
        "online": st.none() | st.booleans(),
        "day": st.none() | st.dates(dt.date(2029, 12, 1), dt.date(2030, 2, 1)),
    }
)


@given(st.lists(ANY_ROW, max_size=12))
def test_table_and_rows_agree(rows: list[dict[str, Any]]) -> None:
    data = pl.DataFrame(rows, schema=SCHEMA).with_row_index("place")
    report = CONTRACT.check(data, now=NOW)
    assert report.n_accepted + report.n_rejected == len(rows)
    places = [*report.accepted["place"].to_list(), *report.rejected["place"].to_list()]
    assert sorted(places) == list(range(len(rows)))
    seen: set[str] = set()
    judged = dict(zip(report.rejected["place"].to_list(), report.rejected["rules"].to_list(), strict=True))
    for place, row in enumerate(rows):
        expected = labels(row)
        if not expected and row["id"] in seen:
            expected = ["id.unique"]
        elif not expected:
            seen.add(row["id"])
        assert judged.get(place, []) == expected


@given(st.lists(st.text("0123456789-+.eE naif", max_size=6), min_size=1, max_size=8))
def test_text_is_read_or_refused_and_never_lost(texts: list[str]) -> None:
    rows = [{**GOOD, "id": f"r{index}"} for index in range(len(texts) * 2)]
    data = pl.DataFrame(rows, schema=SCHEMA).with_columns(amount=pl.Series(["1.5"] * len(texts) + texts))
    report = CONTRACT.check(data, now=NOW)
    assert report.n_accepted + report.n_rejected == data.height
    for value in report.accepted["amount"].to_list():
        assert 0 <= value < 1e6


SAMPLES = ["", "a", "A1", "é", "٣", "a\n", "\n", "x_y", "-", "a-b", "$", "12", "]"]


@pytest.mark.parametrize(
    "pattern", [r"^\d+$", r"^\w+$", r"a$", r"[\d\w]", r"^[^\d]$", r"\W", r"\D", r"\$", "[$]", r"[\]$]", "^.$", "a|1$"]
)
def test_patterns_mean_the_same_to_both_engines(pattern: str) -> None:
    rust, python = patterns(pattern, "pattern")
    table = pl.Series(SAMPLES).str.contains(rust).to_list()
    assert table == [re.search(python, sample) is not None for sample in SAMPLES]


def test_pattern_is_read_as_ecma_262_does() -> None:
    # Oracle: ECMA-262, 22.2: \d is [0-9], and $ without the flag m is the end of the input.
    rust, _ = patterns(r"^\d$", "pattern")
    assert pl.Series(["1", "٣", "1\n"]).str.contains(rust).to_list() == [True, False, False]


def test_json_schema() -> None:
    schema = CONTRACT.json_schema()
    assert schema["required"] == ["id", "time", "amount"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["amount"] == {"type": "number", "minimum": 0, "exclusiveMaximum": 1e6}
    assert schema["properties"]["count"]["type"] == ["integer", "null"]
    assert schema["properties"]["currency"]["enum"] == ["EUR", "USD", "XX", None]
    assert schema["properties"]["time"]["format"] == "date-time"
    assert "2018-01-01" in schema["properties"]["time"]["description"]
