import datetime as dt
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from vitok import contracts
from vitok.errors import ContractBroken, InvalidInput

TEXT = """\
apiVersion: v3.1.0
kind: DataContract
id: shop
version: 1.0.0
status: active
schema:
  - name: orders
    id: orders_tbl
    properties:
      - {name: id, logicalType: string, id: order_id}
      - name: customer
        logicalType: integer
        relationships: [{to: customers.id}]
      - {name: parent, logicalType: string, relationships: [{to: schema/orders_tbl/properties/order_id}]}
      - {name: shop, logicalType: string}
      - {name: day, logicalType: date}
    relationships:
      - {type: foreignKey, from: [orders.shop, orders.day], to: [openings.shop, openings.day]}
  - name: customers
    properties:
      - {name: id, logicalType: integer}
  - name: openings
    properties:
      - {name: shop, logicalType: string}
      - {name: day, logicalType: date}
"""
DAY, NEXT = dt.date(2018, 4, 1), dt.date(2018, 4, 2)
ORDERS = pl.DataFrame(
    {
        "id": ["a", "b", "c", "d"],
        "customer": [1, 2, None, 9],
        "parent": [None, "a", "z", "b"],
        "shop": ["x", "x", None, "x"],
        "day": [DAY, NEXT, NEXT, NEXT],
    }
)
CUSTOMERS = pl.DataFrame({"id": ["1", "2", "2", None], "name": ["ann", "bob", "bob", "eve"]})
OPENINGS = pl.DataFrame({"day": [dt.datetime(2018, 4, 1), dt.datetime(2018, 4, 1)], "shop": ["x", "y"]})
GIVEN: dict[str, Any] = {"customers": CUSTOMERS, "openings": OPENINGS.lazy()}


def labels(report: contracts.CheckReport) -> dict[str, list[str]]:
    return dict(zip(report.rejected["id"].to_list(), report.rejected["rules"].to_list(), strict=True))


def test_rows_that_point_nowhere_are_rejected() -> None:
    contract = contracts.load(TEXT)
    report = contract.check(ORDERS, schema="orders", references=GIVEN)
    assert labels(report) == {
        "b": ["shop,day.relationship"],
        "c": ["parent.relationship"],
        "d": ["customer.relationship", "shop,day.relationship"],
    }
    assert report.rejected["reason"].to_list()[2] == "customer: got 9, must be there in customers.id"
    assert report.accepted["id"].to_list() == ["a"]
    assert [item.n_checked for item in report.results if item.rule == "relationship"] == [3, 3, 3]
    assert "shop, day must be there in openings.shop,day" in str(contract)
    assert contract.not_checked == ()


def test_lazy_frames_and_files(tmp_path: Path) -> None:
    CUSTOMERS.write_csv(tmp_path / "customers.csv")
    ORDERS.write_parquet(tmp_path / "orders.parquet")
    report = contracts.load(TEXT).check(
        pl.scan_parquet(tmp_path / "orders.parquet"),
        schema="orders",
        references={**GIVEN, "customers": tmp_path / "customers.csv"},
    )
    assert report.n_rejected == 3


def test_a_table_that_is_not_given_is_skipped() -> None:
    report = contracts.load(TEXT).check(ORDERS, schema="orders")
    skipped = [item for item in report.results if item.status == "skipped"]
    assert [item.label for item in skipped] == ["customer.relationship", "shop,day.relationship"]
    assert skipped[0].observed == "pass references={'customers': ...} to judge it"
    assert labels(report) == {"c": ["parent.relationship"]}


def test_single_requests_agree() -> None:
    contract = contracts.load(TEXT)
    orders = ORDERS.select("id", "customer", "parent", "shop", "day")
    check = contract.row_checker("orders", references={**GIVEN, "orders": ORDERS})
    expected = labels(contract.check(ORDERS, schema="orders", references=GIVEN))
    for row in orders.iter_rows(named=True):
        assert [f"{item.field}.{item.rule}" for item in check(row)] == expected.get(row["id"], [])
    without = contract.row_checker("orders")
    assert without(orders.row(3, named=True)) == []


def test_severities() -> None:
    custom = "{to: customers.id, customProperties: [{property: vitok.severity, value: warn}]}"
    contract = contracts.load(TEXT.replace("{to: customers.id}", custom))
    report = contract.check(ORDERS.filter(pl.col("id") == "d"), schema="orders", references={"customers": CUSTOMERS})
    assert labels(report) == {"d": ["parent.relationship"]}
    assert [item.label for item in report.failed] == ["customer.relationship", "parent.relationship"]
    check = contract.row_checker("orders", references={"customers": CUSTOMERS})
    assert check(ORDERS.row(3, named=True)) == []


def test_blocking() -> None:
    custom = "{to: customers.id, customProperties: [{property: vitok.severity, value: block}]}"
    contract = contracts.load(TEXT.replace("{to: customers.id}", custom))
    with pytest.raises(ContractBroken, match="First such row: customer: got 9"):
        contract.check(ORDERS, schema="orders", references=GIVEN)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({"customer": CUSTOMERS}, "got 'customer', must be a table that a relationship points to"),
        ({"customers": CUSTOMERS.drop("id")}, "have the column id"),
        ({"customers": pl.DataFrame({"id": [dt.date(2018, 1, 1)]})}, "readable as integer"),
        ({"customers": [1, 2]}, "polars frame or a file"),
    ],
)
def test_wrong_references(references: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        contracts.load(TEXT).check(ORDERS, schema="orders", references=references)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("to: customers.id", "to: customers.key", "There is: orders.id"),
        ("{to: customers.id}", "{to: customers.id, from: orders.customer}", "left out under a property"),
        ("{to: customers.id}", "{to: [customers.id, openings.day]}", "as many columns"),
        ("to: [openings.shop, openings.day]", "to: [openings.shop, customers.id]", "of one table"),
        ("from: [orders.shop, orders.day]", "from: [customers.id, orders.day]", "a column of orders"),
        ("to: customers.id", "to: openings.day", "be of type integer"),
        ("{to: customers.id}", "{too: customers.id}", "Did you mean 'to'"),
    ],
)
def test_relationships_that_cannot_be(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(InvalidInput, match=message):
        contracts.load(TEXT.replace(old, new, 1))


def test_other_contracts() -> None:
    external = contracts.load(TEXT.replace("to: customers.id", 'to: "https://example.com/crm.yaml#people.id"'))
    report = external.check(ORDERS, schema="orders", references={"people": CUSTOMERS})
    assert labels(report)["d"] == ["customer.relationship"]
    unnamed = contracts.load(TEXT.replace("to: customers.id", 'to: "crm.yaml#/schema/p/properties/i"'))
    assert unnamed.not_checked == (
        "customer: relationship to crm.yaml#/schema/p/properties/i, which another contract names",
    )


def test_empty_frames() -> None:
    empty = contracts.load(TEXT).check(ORDERS.head(0), schema="orders", references=GIVEN)
    assert (empty.n_rows, empty.n_rejected) == (0, 0)
    nobody = contracts.load(TEXT).check(ORDERS, schema="orders", references={"customers": CUSTOMERS.head(0)})
    assert [rules[0] for rules in nobody.rejected["rules"]].count("customer.relationship") == 3
