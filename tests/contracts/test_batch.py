import datetime as dt
import json
from typing import Any

import polars as pl
import pytest
from tests.contracts.conftest import CORPUS, GOOD, NO_TIMES, NOW, SCHEMA, TIMES, frame

from vitok import contracts
from vitok.clock import DAY, parse_time
from vitok.errors import ContractBroken, InvalidInput


def result(report: contracts.CheckReport, label: str) -> contracts.RuleResult:
    return next(item for item in report.results if item.label == label)


def with_contract(text: str, old: str, new: str) -> contracts.Contract:
    assert old in text
    return contracts.load(text.replace(old, new, 1))


def test_corpus(contract: contracts.Contract) -> None:
    data = frame(*(change for change, _ in CORPUS))
    report = contract.check(data, now=NOW)
    expected = [rules for _, rules in CORPUS if rules]
    assert report.rejected["rules"].to_list() == expected
    assert report.accepted.equals(data.filter(pl.Series([not rules for _, rules in CORPUS])))
    assert report.rejected.columns == [*data.columns, "reason", "rules"]
    assert report.n_rows == len(CORPUS) == report.n_accepted + report.n_rejected
    assert result(report, "amount.finite").n_failed == 3
    # Oracle: what pandera and Great Expectations count; a null is no failure of a range.
    assert result(report, "amount.minimum").n_checked == len(CORPUS) - 4


def test_reason_names_field_value_and_rule(contract: contracts.Contract) -> None:
    report = contract.check(frame({"amount": -3.0}, {"id": None}, {"currency": "x" * 99}), now=NOW)
    assert report.rejected["reason"].to_list() == [
        "amount: got -3.0, must be at least 0",
        "id: got null, must be given and not null",
        f"currency: got '{'x' * 60}...', must match ^[A-Z]{{3}}$",
    ]


def test_the_first_of_equal_keys_is_kept(contract: contracts.Contract) -> None:
    report = contract.check(frame({"id": "a", "count": 1}, {"id": "a", "count": 2}, {"id": "b"}), now=NOW)
    assert report.accepted["count"].to_list() == [1, 3]
    assert report.rejected["rules"].to_list() == [["id.unique"]]
    assert report.rejected["reason"][0] == "id: got 'a', must be unique; the first row with it is kept"


def test_a_bad_row_does_not_displace_a_good_one_of_its_key(contract: contracts.Contract) -> None:
    report = contract.check(frame({"id": "a", "amount": -1.0}, {"id": "a"}, {"id": "a"}), now=NOW)
    assert report.accepted.height == 1
    assert report.rejected["rules"].to_list() == [["amount.minimum"], ["id.unique"]]


def test_key_of_two_fields(text: str) -> None:
    contract = with_contract(text, "name: count, logicalType", "name: count, primaryKey: true, logicalType")
    report = contract.check(frame({"id": "a", "count": 1}, {"id": "a", "count": 2}, {"id": "a", "count": 2}), now=NOW)
    assert (report.n_accepted, report.rejected["rules"].to_list()) == (2, [["id,count.unique"]])


def test_lazy_frame_and_further_columns(contract: contracts.Contract) -> None:
    data = frame({}, {"amount": -1.0}).with_columns(note=pl.lit("x")).select("note", pl.exclude("note"))
    report = contract.check(data.lazy(), now=NOW)
    assert report.accepted.columns == data.columns
    assert report.rejected["note"].to_list() == ["x"]


def test_empty_frame(contract: contracts.Contract) -> None:
    report = contract.check(frame(), now=NOW)
    assert (report.n_accepted, report.n_rejected) == (0, 0)
    assert [item.label for item in report.failed] == ["rowCount", "time.latency"]
    assert report.accepted.schema == SCHEMA


def test_all_rows_bad(contract: contracts.Contract) -> None:
    report = contract.check(frame({"amount": -1.0}), now=NOW)
    assert (report.n_accepted, report.n_rejected) == (0, 1)
    assert "no accepted row" in result(report, "time.latency").observed


def test_missing_and_wrong_columns_are_told_at_once(contract: contracts.Contract) -> None:
    data = frame({}).rename({"amount": "TX_AMOUNT"}).with_columns(pl.col("time").to_physical(), online=pl.lit(0.5))
    with pytest.raises(ContractBroken) as error:
        contract.check(data, now=NOW)
    message = str(error.value)
    assert "'amount' (number) is missing" in message
    assert "{'TX_AMOUNT': 'amount'}" in message
    assert "'time' is of type Int64; timestamp is wanted. Say what the numbers count" in message
    assert "'online' is of type Float64; boolean is wanted" in message


def test_no_column_at_all(contract: contracts.Contract) -> None:
    with pytest.raises(ContractBroken, match="'id'"):
        contract.check(pl.DataFrame(), now=NOW)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("id", pl.Series([1, 2, None], dtype=pl.UInt32), ["1", "2", None]),
        ("id", pl.Series(["a", "b", None], dtype=pl.Categorical), ["a", "b", None]),
        ("amount", pl.Series([1, 2, None], dtype=pl.Int32), [1.0, 2.0, None]),
        ("amount", pl.Series([1.5, 2, None], dtype=pl.Float32), [1.5, 2.0, None]),
        ("amount", pl.Series(["1.50", "2.25", None]).cast(pl.Decimal(12, 2)), [1.5, 2.25, None]),
        ("amount", pl.Series(["1.5", " 1e2", None]), [1.5, 100.0, None]),
        ("count", pl.Series([1.0, 2.0, None]), [1, 2, None]),
        ("count", pl.Series([True, True, None]), [1, 1, None]),
        ("count", pl.Series(["1", "2", None]), [1, 2, None]),
        ("online", pl.Series([0, 1, None]), [False, True, None]),
        ("online", pl.Series(["False", "true", None]), [False, True, None]),
        ("day", pl.Series(["2018-04-01", "2020-02-29", None]), [dt.date(2018, 4, 1), dt.date(2020, 2, 29), None]),
        ("day", pl.Series([dt.datetime(2018, 4, 1), None, None]), [dt.date(2018, 4, 1), None, None]),
        ("currency", pl.Series([None, None, None]), [None, None, None]),
    ],
)
def test_types_that_lose_nothing_are_cast(
    contract: contracts.Contract, column: str, values: pl.Series, expected: list[Any]
) -> None:
    data = frame({}, {}, {}).with_columns(values.alias(column))
    report = contract.check(data, now=NOW)
    kept = [value for value in expected if value is not None or column in {"count", "online", "day", "currency"}]
    assert report.accepted[column].to_list() == kept
    assert report.accepted.schema[column] == SCHEMA[column]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("amount", pl.Series([1, 2, 2**53 + 1])),
        ("amount", pl.Series(["1.5", "2", "a lot"])),
        ("count", pl.Series([1.0, 2.0, 2.5])),
        ("count", pl.Series([1, 2, 2**64 - 1], dtype=pl.UInt64)),
        ("count", pl.Series([1.0, 2.0, 2.0**63])),
        ("count", pl.Series([1.0, 2.0, float("nan")])),
        ("online", pl.Series([0, 1, 2])),
        ("day", pl.Series(["2018-04-01", "2018-04-02", "2018-02-30"])),
        ("day", pl.Series([dt.datetime(2018, 4, 1), dt.datetime(2018, 4, 1), dt.datetime(2018, 4, 1, 12)])),
        ("time", pl.Series([1_522_540_800_000_000_000] * 2 + [1_522_540_800_000_000_001]).cast(pl.Datetime("ns"))),
        ("time", pl.Series(["2018-04-01", "2018-04-01 10:00", "2018-04-01 24:00"])),
    ],
)
def test_values_that_do_not_fit_go_to_quarantine(contract: contracts.Contract, column: str, values: pl.Series) -> None:
    data = frame({}, {}, {}).with_columns(values.alias(column))
    report = contract.check(data, now=NOW)
    assert report.rejected["rules"].to_list() == [[f"{column}.type"]]
    assert report.rejected[column].equals(data[column][2:])


def test_a_column_of_unreadable_text_is_a_broken_schema(contract: contracts.Contract) -> None:
    data = frame({}, {}, {}).with_columns(amount=pl.Series(["1", "x", "y"]))
    with pytest.raises(ContractBroken, match="2 of 3 values cannot be read"):
        contract.check(data, now=NOW)


def test_times_as_text(contract: contracts.Contract) -> None:
    # Oracle: datetime.fromisoformat of Python 3.11.
    data = pl.concat([frame(*({} for _ in TIMES))]).with_columns(time=pl.Series(TIMES))
    report = contract.check(data, now=NOW)
    assert report.accepted["time"].to_physical().to_list() == [parse_time(item) for item in TIMES]
    mixed = [*NO_TIMES, *TIMES]
    report = contract.check(frame(*({} for _ in mixed)).with_columns(time=pl.Series(mixed)), now=NOW)
    assert report.rejected["time"].to_list() == NO_TIMES


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_times_of_any_unit_and_zone_become_utc(contract: contracts.Contract, unit: Any, zone: str | None) -> None:
    moments = pl.Series([dt.datetime(2018, 4, 1, 10)]).cast(pl.Datetime(unit)).dt.replace_time_zone(zone)
    report = contract.check(frame({}).with_columns(time=moments), now=NOW)
    hours = 8 if zone == "Europe/Berlin" else 10
    assert report.accepted["time"].to_list() == [dt.datetime(2018, 4, 1, hours, tzinfo=dt.UTC)]
    assert report.accepted.schema["time"] == pl.Datetime("us", "UTC")


def test_freshness(contract: contracts.Contract) -> None:
    data = frame({}, {"time": dt.datetime(2030, 1, 1, tzinfo=dt.UTC)})
    fresh = result(contract.check(data, now=NOW + DAY), "time.latency")
    assert fresh.status == "passed"
    assert "1 rows lie in the future" in fresh.observed
    assert result(contract.check(data, now=NOW + DAY + 1), "time.latency").status == "failed"
    assert result(contract.check(data), "time.latency").status == "skipped"


def test_volume(contract: contracts.Contract, text: str) -> None:
    assert result(contract.check(frame({}), now=NOW), "rowCount").status == "passed"
    beside = [item for item in contract.check(frame({}), now=NOW, expected_rows=2).results if item.rule == "rowCount"]
    assert [item.status for item in beside] == ["passed", "failed"]
    assert beside[1].observed == "1 rows, 50 percent of 2 expected"
    percent = with_contract(text, "mustBeBetween: [1, 1000]", "mustBeBetween: [50, 150], unit: percent")
    assert result(percent.check(frame({}), now=NOW, expected_rows=2), "rowCount").status == "passed"
    assert result(percent.check(frame({}), now=NOW), "rowCount").status == "skipped"


@pytest.mark.parametrize(
    ("quality", "failed", "n_failed"),
    [
        ("{metric: nullValues, mustBeLessThan: 3}", False, 2),
        ("{metric: nullValues, mustBeLessThan: 2}", True, 2),
        ("{metric: nullValues, mustBeLessOrEqualTo: 40, unit: percent}", False, 2),
        ("{metric: nullValues, mustBeLessThan: 40, unit: percent}", True, 2),
        ("{metric: duplicateValues, mustBeLessThan: 1, unit: percent}", True, 1),
        ("{metric: invalidValues, arguments: {validValues: [EUR]}, mustBeLessThan: 2}", False, 1),
        ("{metric: missingValues, arguments: {missingValues: [null, USD]}, mustBeBetween: [0, 2]}", True, 3),
    ],
)
def test_metrics_with_tolerance_judge_the_table(text: str, quality: str, failed: bool, n_failed: int) -> None:
    contract = with_contract(
        text, "{metric: invalidValues, arguments: {validValues: [EUR, USD, XX]}, mustBe: 0}", quality
    )
    data = frame({"currency": "EUR"}, {"currency": "EUR"}, {"currency": "USD"}, {"currency": None}, {"currency": None})
    report = contract.check(data, now=NOW)
    found = next(item for item in report.results if item.field == "currency" and item.observed)
    assert (found.status == "failed", found.n_failed) == (failed, n_failed)
    assert report.n_rejected == 0


@pytest.mark.parametrize(
    ("quality", "rules"),
    [
        ("{metric: nullValues, mustBe: 0}", [["currency.required"], ["currency.required"]]),
        ("{metric: duplicateValues, mustBe: 0}", [["currency.unique"]]),
        ("{metric: missingValues, arguments: {missingValues: ['USD']}, mustBe: 0}", [["currency.missingValues"]]),
        ("{metric: invalidValues, arguments: {pattern: '^E'}, mustBeLessThan: 1}", [["currency.pattern"]]),
    ],
)
def test_metrics_without_tolerance_take_rows_out(text: str, quality: str, rules: list[list[str]]) -> None:
    contract = with_contract(
        text, "{metric: invalidValues, arguments: {validValues: [EUR, USD, XX]}, mustBe: 0}", quality
    )
    data = frame({"currency": "EUR"}, {"currency": "EUR"}, {"currency": "USD"}, {"currency": None}, {"currency": None})
    assert contract.check(data, now=NOW).rejected["rules"].to_list() == rules


def test_keys_of_the_table(text: str) -> None:
    rule = "{metric: duplicateValues, arguments: {properties: [amount, count]}, mustBe: 0}"
    contract = with_contract(text, "- {metric: rowCount,", f"- {rule}\n      - {{metric: rowCount,")
    report = contract.check(frame({}, {}, {"count": None}, {"count": None}), now=NOW)
    assert report.rejected["rules"].to_list() == [["amount,count.unique"]]
    with pytest.raises(InvalidInput, match="one of id"):
        with_contract(
            text,
            "- {metric: rowCount,",
            "- {metric: duplicateValues, arguments: {properties: [x]}, mustBe: 0}\n      - {metric: rowCount,",
        )


def test_severities(text: str) -> None:
    def severe(value: str) -> contracts.Contract:
        custom = f"customProperties: [{{property: vitok.severity.minimum, value: {value}}}], "
        return with_contract(text, "{name: amount, ", "{name: amount, " + custom)

    data = frame({}, {"amount": -1.0})
    warned = severe("warn").check(data, now=NOW)
    assert (warned.n_accepted, result(warned, "amount.minimum").status) == (2, "failed")
    assert severe("warn").row_checker()({**GOOD, "amount": -1.0}) == []
    with pytest.raises(ContractBroken, match=r"amount.minimum.*\n.*got -1.0") as error:
        severe("block").check(data, now=NOW)
    assert "2 rows, 1 accepted" in error.value.__notes__[0]
    assert severe("block").check(frame({}), now=NOW).n_accepted == 1
    with pytest.raises(InvalidInput, match="name a rule that the field has"):
        with_contract(
            text, "{name: amount, ", "{name: amount, customProperties: [{property: vitok.severity.x, value: warn}], "
        )


def test_blocking_volume(text: str) -> None:
    contract = with_contract(text, "mustBeBetween: [1, 1000]", "mustBeGreaterThan: 1, severity: error")
    with pytest.raises(ContractBroken, match="rowCount"):
        contract.check(frame({}), now=NOW)


def test_report_prints_and_becomes_json(contract: contracts.Contract) -> None:
    report = contract.check(frame({}, {"amount": -1.0}), now=NOW)
    assert "payments 1.2.0, payments: 2 rows, 1 accepted, 1 rejected" in str(report)
    assert "amount.minimum" in str(report)
    told = json.loads(json.dumps(report.to_dict()))
    assert told["n_rejected"] == 1
    assert len(told["results"]) == len(report.results)
    with pytest.raises(AttributeError):
        report.n_rows = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "arguments"),
    [
        ([1, 2], {}),
        (frame({}), {"now": 1.5}),
        (frame({}), {"expected_rows": 0}),
        (frame({}).with_columns(reason=pl.lit(1)), {}),
    ],
)
def test_wrong_arguments(contract: contracts.Contract, data: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        contract.check(data, **arguments)


@pytest.mark.parametrize(
    ("old", "new", "label"),
    [
        ("{name: id,", "{name: id, customProperties: [{property: vitok.severity.unique, value: block}],", "id.unique"),
        ("{name: day,", "{name: day, customProperties: [{property: vitok.severity, value: block}],", "day.maximum"),
        (
            "element: payments.time",
            "customProperties: [{property: vitok.severity, value: block}], element: payments.time",
            "time.latency",
        ),
        ("mustBeBetween: [1, 1000]", "mustBeBetween: [1, 2], severity: error", "rowCount"),
        ("[EUR, USD, XX]}, mustBe: 0", "[USD]}, mustBe: 0, severity: error", "currency.validValues"),
        (
            "{metric: rowCount,",
            "{type: sql, query: 'SELECT MAX(amount) FROM payments', mustBe: 0, severity: error}\n"
            "      - {metric: rowCount,",
            "sql",
        ),
        (
            "{name: online, logicalType: boolean}",
            "{name: online, logicalType: boolean, quality: "
            "[{metric: nullValues, mustBeGreaterThan: 7, severity: error}]}",
            "online.nullValues",
        ),
    ],
)
def test_every_kind_of_rule_can_block(text: str, old: str, new: str, label: str) -> None:
    data = frame({"id": "a"}, {"id": "a"}, {"id": "b", "day": dt.date(2031, 1, 1)})
    with pytest.raises(ContractBroken, match="severity block are broken") as error:
        with_contract(text, old, new).check(data, now=NOW + 9 * DAY)
    assert f"\n{label} " in str(error.value)
    warned = with_contract(text, old, new.replace("block", "warn").replace("severity: error", "severity: warning"))
    report = warned.check(data, now=NOW + 9 * DAY)
    assert result(report, label).status == "failed"
