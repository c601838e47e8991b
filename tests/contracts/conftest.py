"""A contract that uses every rule, and good and bad data, for the tests of this room."""

import datetime as dt
from typing import Any

import polars as pl
import pytest

from vitok import contracts
from vitok.clock import parse_time

TEXT = """\
apiVersion: v3.1.0
kind: DataContract
id: payments
name: payments
version: 1.2.0
status: active
tenant: bank  # kept, not interpreted
description: {purpose: Payments to learn from}
team:
  name: data
  members:
    - {username: ann, role: engineer}
    - {username: bob, name: Bob, role: Data Owner}
schema:
  - name: payments
    description: One payment.
    properties:
      - {name: id, logicalType: string, primaryKey: true, logicalTypeOptions: {minLength: 1, maxLength: 8}}
      - {name: time, logicalType: timestamp, required: true, logicalTypeOptions: {minimum: "2018-01-01"}}
      - {name: amount, logicalType: number, required: true, logicalTypeOptions: {minimum: 0, exclusiveMaximum: 1e6}}
      - {name: count, logicalType: integer, logicalTypeOptions: {exclusiveMinimum: 0, maximum: 10}}
      - name: currency
        logicalType: string
        logicalTypeOptions: {pattern: "^[A-Z]{3}$"}
        quality:
          - {metric: invalidValues, arguments: {validValues: [EUR, USD, XX]}, mustBe: 0}
      - {name: online, logicalType: boolean}
      - {name: day, logicalType: date, logicalTypeOptions: {maximum: 2030-01-01}}
    quality:
      - {metric: rowCount, mustBeBetween: [1, 1000]}
slaProperties:
  - {property: latency, value: 2, unit: d, element: payments.time}
"""


NOW = parse_time("2018-04-02T00:00:00Z")
GOOD: dict[str, Any] = {
    "id": "a",
    "time": dt.datetime(2018, 4, 1, tzinfo=dt.UTC),
    "amount": 12.5,
    "count": 3,
    "currency": "EUR",
    "online": True,
    "day": dt.date(2018, 4, 1),
}
SCHEMA = {
    "id": pl.String(),
    "time": pl.Datetime("us", "UTC"),
    "amount": pl.Float64(),
    "count": pl.Int64(),
    "currency": pl.String(),
    "online": pl.Boolean(),
    "day": pl.Date(),
}


def frame(*changes: dict[str, Any]) -> pl.DataFrame:
    """A row for each change of the good row, with ids of their own."""
    rows = [{**GOOD, "id": f"r{index}", **change} for index, change in enumerate(changes)]
    return pl.DataFrame(rows, schema=SCHEMA)


# Changes of the good row, and the rules that each of them breaks.
CORPUS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"count": None, "currency": None, "online": None, "day": None}, []),
    ({"amount": 0.0}, []),
    ({"amount": -0.0}, []),
    ({"amount": 999_999.999}, []),
    ({"count": 1}, []),
    ({"count": 10}, []),
    ({"time": dt.datetime(2018, 1, 1, tzinfo=dt.UTC)}, []),
    ({"day": dt.date(2030, 1, 1)}, []),
    ({"id": "ключ€😀"}, []),
    ({"id": None}, ["id.required"]),
    ({"id": ""}, ["id.minLength"]),
    ({"id": "123456789"}, ["id.maxLength"]),
    ({"time": None}, ["time.required"]),
    ({"time": dt.datetime(2017, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC)}, ["time.minimum"]),
    ({"amount": None}, ["amount.required"]),
    ({"amount": float("nan")}, ["amount.finite"]),
    ({"amount": float("inf")}, ["amount.finite"]),
    ({"amount": -float("inf")}, ["amount.finite"]),
    ({"amount": -0.01}, ["amount.minimum"]),
    ({"amount": 1e6}, ["amount.exclusiveMaximum"]),
    ({"count": 0}, ["count.exclusiveMinimum"]),
    ({"count": 11}, ["count.maximum"]),
    ({"count": -(2**63)}, ["count.exclusiveMinimum"]),
    ({"currency": "XX"}, ["currency.pattern"]),
    ({"currency": "GBP"}, ["currency.validValues"]),
    ({"currency": "EUR\n"}, ["currency.pattern", "currency.validValues"]),
    ({"currency": ""}, ["currency.pattern", "currency.validValues"]),
    ({"day": dt.date(2030, 1, 2)}, ["day.maximum"]),
    (
        {"amount": -1.0, "count": 0, "currency": "E"},
        ["amount.minimum", "count.exclusiveMinimum", "currency.pattern", "currency.validValues"],
    ),
]


TIMES = [
    "2018-04-01",
    "2018-04-01T10:20",
    "2018-04-01 10:20:30",
    "2018-04-01T10:20:30Z",
    "2018-04-01T10:20:30.5",
    "2018-04-01T10:20:30.123456+02:00",
    "2018-04-01T10:20:30-0530",
    "2024-02-29T23:59:59.999999Z",
]
NO_TIMES = ["", "now", "2018-4-1", "2018-02-30", "2018-04-01T", "2018-04-01T24:00", "2018-04-01T10:20:60", "0000-01-01"]


@pytest.fixture
def text() -> str:
    return TEXT


@pytest.fixture
def contract() -> contracts.Contract:
    return contracts.load(TEXT)
