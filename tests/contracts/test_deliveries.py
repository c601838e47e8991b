import datetime as dt
from typing import Any

import polars as pl
import pytest

from vitok import contracts
from vitok.clock import DAY, HOUR, MINUTE, isoformat, parse_time
from vitok.contracts.deliveries import due, expectation, time_of_day, zone_of
from vitok.errors import ContractBroken, InvalidInput

TEXT = """\
apiVersion: v3.1.0
kind: DataContract
id: d
version: 1.0.0
status: active
schema:
  - name: d
    properties:
      - {name: at, logicalType: timestamp}
      - {name: x, logicalType: integer, logicalTypeOptions: {minimum: 0}}
slaProperties:
"""
BY_SIX = '  - {property: timeOfAvailability, value: "06:00", element: d.at%s}\n'
BERLIN = ", valueExt: Europe/Berlin"


def loaded(*lines: str) -> contracts.Contract:
    return contracts.load((TEXT if lines else TEXT.removesuffix("slaProperties:\n")) + "".join(lines))


def frame(*times: str, x: int = 1) -> pl.DataFrame:
    moments = [dt.datetime.fromisoformat(time) for time in times]
    return pl.DataFrame({"at": moments, "x": [x] * len(times)}, schema_overrides={"at": pl.Datetime("us")})


def told(contract: contracts.Contract, data: pl.DataFrame, **known: Any) -> tuple[str, str]:
    result = contract.check(data, **known).results[-1]
    return result.status, result.observed


@pytest.mark.parametrize(
    ("newest", "now", "status"),
    [
        ("2018-04-01 00:00", "2018-04-02T06:00:00Z", "passed"),
        ("2018-04-01 23:59", "2018-04-03T05:59:59Z", "passed"),
        ("2018-04-01 23:59", "2018-04-03T06:00:00Z", "failed"),
        ("2018-03-31 23:59", "2018-04-02T06:00:00Z", "failed"),
        ("2018-04-02 03:00", "2018-04-03T06:00:00Z", "passed"),
    ],
)
def test_by_six_in_the_morning(newest: str, now: str, status: str) -> None:
    assert told(loaded(BY_SIX % ""), frame(newest), now=parse_time(now))[0] == status


def test_the_second_clock_is_the_arrival() -> None:
    contract = loaded(BY_SIX % "")
    data, now = frame("2018-04-01 12:00"), parse_time("2018-04-02T12:00:00Z")
    assert told(contract, data, now=now, arrived=parse_time("2018-04-02T06:00:00Z"))[0] == "passed"
    late = told(contract, data, now=now, arrived=parse_time("2018-04-02T06:00:01Z"))
    assert late == (
        "failed",
        "newest 2018-04-01T12:00:00Z, due 2018-04-02T06:00:00Z; arrived 2018-04-02T06:00:01Z",
    )
    assert told(contract, data)[0] == "skipped"
    assert told(contract, frame("2018-04-01 12:00", x=-1), now=now)[0] == "failed"
    assert told(contract, data.head(0), now=now)[0] == "failed"


@pytest.mark.parametrize(
    ("newest", "expected"),
    [
        # Oracle: the rules of the European Union; clocks change on 2018-03-25 and 2018-10-28 at 01:00 UTC.
        ("2018-03-22T12:00:00Z", "2018-03-24T05:00:00Z"),
        ("2018-03-23T12:00:00Z", "2018-03-25T04:00:00Z"),
        ("2018-03-24T23:30:00Z", "2018-03-27T04:00:00Z"),
        ("2018-10-26T12:00:00Z", "2018-10-28T05:00:00Z"),
    ],
)
def test_six_in_the_morning_where_clocks_change(newest: str, expected: str) -> None:
    item = loaded(BY_SIX % BERLIN).deliveries[0]
    assert isoformat(due(item, parse_time(newest))) == expected
    assert item.wanted == "have the data of a day by 06:00 Europe/Berlin on the day after"


def test_data_of_a_week() -> None:
    weekly = loaded(BY_SIX % "", "  - {property: frequency, value: 7, unit: d, element: d.at}\n")
    by_six = next(item for item in weekly.deliveries if item.name == "timeOfAvailability")
    assert (due(by_six, 10 * DAY), due(by_six, 10 * DAY, periods=0)) == (24 * DAY + 6 * HOUR, 17 * DAY + 6 * HOUR)


def test_frequency_is_of_the_arrival() -> None:
    contract = loaded("  - {property: frequency, value: 2, unit: h, element: d.at}\n")
    data = frame("2018-04-01 00:00")
    now = parse_time("2018-04-02T06:00:00Z")
    assert told(contract, data, now=now, arrived=now - 2 * HOUR)[0] == "passed"
    assert told(contract, data, now=now, arrived=now - 2 * HOUR - 1)[0] == "failed"
    assert told(contract, data, now=now) == ("skipped", "pass arrived to judge it")


def test_blocking_delivery() -> None:
    contract = loaded(BY_SIX % ", customProperties: [{property: vitok.severity, value: block}]")
    with pytest.raises(ContractBroken, match="timeOfAvailability"):
        contract.check(frame("2018-04-01 00:00"), now=parse_time("2019-01-01"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("06:00", (6 * HOUR, "")),
        ("09:30-08:00", (9 * HOUR + 30 * MINUTE, "-08:00")),
        ("00:00:01Z", (1_000_000, "Z")),
        (750, (12 * HOUR + 30 * MINUTE, "")),
    ],
)
def test_times_of_day(value: object, expected: tuple[int, str]) -> None:
    assert time_of_day(value, "value") == expected


@pytest.mark.parametrize("value", ["24:00", "6", "6:00 am", True, 1440, -1, None, "06:00+1"])
def test_no_times_of_day(value: object) -> None:
    with pytest.raises(InvalidInput, match="time of day"):
        time_of_day(value, "value")


def test_zones() -> None:
    assert zone_of("-08:00") == dt.timezone(-dt.timedelta(hours=8))
    for name in ("Europe/Nowhere", "../etc/passwd", ""):
        with pytest.raises(InvalidInput, match="time zone"):
            zone_of(name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('  - {property: timeOfAvailability, value: "06:00", element: d.x}\n', "a timestamp or a date"),
        ("  - {property: frequency, value: 0, unit: d, element: d.at}\n", "longer than zero"),
        ("  - {property: frequency, value: 1, unit: moon, element: d.at}\n", "be one of s"),
        (BY_SIX % ", customProperties: [{property: vitok.severity, value: quarantine}]", "warn or block"),
        (BY_SIX % ", valueExt: Mars", "time zone"),
    ],
)
def test_promises_that_cannot_be(line: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        loaded(line)


def test_a_promise_without_an_element_is_named() -> None:
    contract = loaded('  - {property: timeOfAvailability, value: "06:00"}\n')
    assert contract.not_checked == ("slaProperties: timeOfAvailability 06:00 (it names no element)",)


DAYS = pl.date_range(dt.date(2018, 4, 1), dt.date(2018, 4, 30), eager=True)
HISTORY = pl.DataFrame({"day": DAYS, "count": [50 if day.weekday() > 4 else 200 for day in DAYS]})


def test_volume_is_that_of_the_day_of_the_week() -> None:
    contract = contracts.load(TEXT.removesuffix("slaProperties:\n"))
    data = pl.DataFrame({"at": [dt.datetime(2018, 5, 6)] * 52, "x": [1] * 52})
    sunday = contract.check(data, volume_history=HISTORY, day=dt.date(2018, 5, 6)).results[-1]
    assert (sunday.status, sunday.observed) == (
        "passed",
        "52 rows, 104 percent of 50 expected (median of 5 Sundays)",
    )
    monday = contract.check(data, volume_history=HISTORY, now=parse_time("2018-05-07")).results[-1]
    assert (monday.status, monday.severity) == ("failed", "warn")
    assert contract.check(data, volume_history=HISTORY, expected_rows=52, now=0).results[-1].status == "passed"


def test_too_little_history_says_so() -> None:
    assert expectation(HISTORY.head(10), dt.date(2018, 5, 6)) == (
        None,
        "volume_history knows 2 Sundays, and 3 are needed",
    )
    # The day itself and what follows it say nothing of what was to be expected.
    assert expectation(HISTORY, dt.date(2018, 4, 15))[0] is None
    assert expectation(HISTORY.with_columns(count=pl.lit(0)), dt.date(2018, 5, 6))[0] is None
    band = TEXT.replace("slaProperties:\n", "").replace(
        "    properties:", "    quality: [{metric: rowCount, mustBeBetween: [90, 110], unit: percent}]\n    properties:"
    )
    data = pl.DataFrame({"at": [dt.datetime(2018, 5, 6)], "x": [1]})
    found = contracts.load(band).check(data, volume_history=HISTORY.head(3), now=parse_time("2018-05-06")).results[-1]
    assert (found.status, found.observed) == ("skipped", "volume_history knows 1 Sunday, and 3 are needed")


@pytest.mark.parametrize(
    "history",
    [
        pl.DataFrame({"date": [1]}),
        HISTORY.cast({"day": pl.Datetime("us")}),
        HISTORY.cast({"count": pl.String()}),
        pl.concat([HISTORY, HISTORY]),
        HISTORY.with_columns(count=pl.lit(-1)),
    ],
)
def test_wrong_history(history: pl.DataFrame) -> None:
    with pytest.raises(InvalidInput, match="volume_history"):
        expectation(history, dt.date(2018, 5, 6))


def test_history_needs_a_day() -> None:
    with pytest.raises(InvalidInput, match="day"):
        loaded().check(frame("2018-04-01 00:00"), volume_history=HISTORY)
