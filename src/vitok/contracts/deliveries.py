"""Judges a delivery as a whole: how fresh it is, whether it came in time, and whether it is as large as expected."""

import datetime as dt
import re
import zoneinfo
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitok.clock import DAY, HOUR, MINUTE, SECOND, isoformat
from vitok.contracts.contract import Delivery, Freshness, Table
from vitok.contracts.report import RuleResult, Status
from vitok.contracts.rules import Comparison, Metric
from vitok.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl

VOLUME_TOLERANCE_PERCENT = 10
FEWEST_DAYS = 3
_OFFSET = re.compile(r"[+-](?:[01][0-9]|2[0-3]):?[0-5][0-9]")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_TIME_OF_DAY = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?(Z|[+-](?:[01][0-9]|2[0-3]):?[0-5][0-9])?")


def time_of_day(value: object, where: str) -> tuple[int, str]:
    """Reads a time of day such as `06:00`, `09:00-08:00` or `06:00:30Z`.

    Returns:
        Microseconds after midnight, and the offset from UTC, "" where none is written.

    Raises:
        InvalidInput: If it is none.

    Example:
        >>> time_of_day("09:30-08:00", "value")
        (34200000000, '-08:00')
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 24 * 60:
        # YAML 1.1 reads 12:30 without quotes as a number to the base of sixty.
        value = f"{value // 60:02}:{value % 60:02}"
    found = _TIME_OF_DAY.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidInput(where, value, "be a time of day such as '06:00' or '09:00-08:00'", "Quote it")
    hours, minutes, seconds, offset = found.groups()
    return int(hours) * HOUR + int(minutes) * MINUTE + int(seconds or 0) * SECOND, offset or ""


def zone_of(name: str, where: str = "timezone") -> dt.tzinfo:
    """Finds a time zone by its name or its offset.

    Raises:
        InvalidInput: If there is none of that name.
    """
    if name in {"Z", "UTC"}:
        return dt.UTC
    if _OFFSET.fullmatch(name):
        digits = name[1:].replace(":", "")
        length = dt.timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
        return dt.timezone(-length if name[0] == "-" else length)
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInput(where, name, "be a time zone such as 'Europe/Berlin' or '+02:00'") from None


def due(item: Delivery, newest: int, *, periods: int = 1) -> int:
    """When data must be there, in microseconds since 1970-01-01 UTC.

    Data of a day is due at the time of day that is promised on the next one; of a period of several days, when it is
    over.

    Args:
        item: The promise.
        newest: A time of the data, in microseconds.
        periods: How many periods later than that the data in question is; 1 for what follows it.

    Example:
        >>> item = Delivery(table="t", field="time", name="timeOfAvailability", every=DAY, due=6 * HOUR, wanted="")
        >>> due(item, 10 * DAY + 5) == 12 * DAY + 6 * HOUR
        True
    """
    zone = zone_of(item.zone)
    moment = dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=newest)
    day = moment.astimezone(zone).date() + dt.timedelta(days=(1 + periods) * (item.every // DAY))
    # On the wall clock: where the clocks change, six in the morning is still six in the morning.
    local = dt.datetime.combine(day, dt.time(), tzinfo=zone) + dt.timedelta(microseconds=item.due)
    return (local - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(microseconds=1)


def freshness(item: Freshness, newest: int | None, future: int, n_rows: int, now: int | None) -> RuleResult:
    """Judges how old the newest row is.

    A time in the future says nothing of how fresh the data is, so the newest is sought among the others.

    Args:
        item: The promise.
        newest: The newest time of the rows that keep all rules of single rows, not after now; None without one.
        future: Rows after now.
        n_rows: All rows.
        now: Present time in microseconds, or None.
    """
    status: Status
    if now is None:
        status, seen = "skipped", "pass now to judge it"
    elif newest is None:
        status, seen = "failed", f"no accepted row at or before {isoformat(now)}"
    else:
        status = held(now - newest <= item.limit)
        seen = f"newest {isoformat(newest)}, {(now - newest) / DAY:.4g} days old"
    if future:
        seen += f"; {future:,} rows lie in the future"
    return _promise(item, status, n_rows, seen)


def delivery(
    item: Delivery, newest: int | None, future: int, n_rows: int, now: int | None, arrived: int | None
) -> RuleResult:
    """Judges whether data came in time, by two clocks: what it is about, and when it arrived.

    Args:
        item: The promise.
        newest: As `freshness` takes it.
        future: Rows after now.
        n_rows: All rows.
        now: Present time in microseconds, or None.
        arrived: When the delivery arrived, in microseconds, or None.
    """
    status: Status
    if now is None:
        status, seen = "skipped", "pass now to judge it"
    elif item.name == "frequency":
        if arrived is None:
            status, seen = "skipped", "pass arrived to judge it"
        else:
            status = held(now - arrived <= item.every)
            seen = f"the last delivery arrived {isoformat(arrived)}, {(now - arrived) / DAY:.4g} days ago"
    elif newest is None:
        status, seen = "failed", f"no accepted row at or before {isoformat(now)}"
    else:
        following, own = due(item, newest), due(item, newest, periods=0)
        status, seen = "passed", f"newest {isoformat(newest)}; what follows is due {isoformat(following)}"
        if now >= following:
            status, seen = "failed", f"newest {isoformat(newest)}; what follows was due {isoformat(following)}"
        elif arrived is not None and arrived > own:
            status, seen = "failed", f"newest {isoformat(newest)}, due {isoformat(own)}; arrived {isoformat(arrived)}"
    if future:
        seen += f"; {future:,} rows lie in the future"
    return _promise(item, status, n_rows, seen)


def _promise(item: Freshness | Delivery, status: Status, n_rows: int, seen: str) -> RuleResult:
    return RuleResult(
        field=item.field,
        rule=item.name,
        wanted=item.wanted,
        severity=item.severity,
        status=status,
        n_checked=n_rows,
        n_failed=0,
        observed=seen,
    )


def volume(
    table: Table, n_rows: int, expected_rows: float | None, basis: str = "", *, running: bool = False
) -> list[RuleResult]:
    """Judges how many rows came.

    Args:
        table: Its metrics `rowCount` say what is wanted.
        n_rows: How many came.
        expected_rows: How many were expected, or None; where the table says no share of it, 10 % are tolerated.
        basis: What the expectation rests on, in words, or why there is none.
        running: Whether more may come: then too few are no fault yet.
    """
    volumes = [metric for metric in table.metrics if metric.name == "rowCount"]
    # A history that was given and says nothing is told too: nobody should take it for a rule that holds.
    if (expected_rows is not None or basis) and not any(metric.percent for metric in volumes):
        low, high = 100 - VOLUME_TOLERANCE_PERCENT, 100 + VOLUME_TOLERANCE_PERCENT
        around = Comparison(operator="mustBeBetween", low=low, high=high)
        volumes.append(Metric(name="rowCount", fields=(), comparison=around, percent=True, severity="warn"))
    found = []
    for metric in volumes:
        status: Status
        if not metric.percent:
            share = float(n_rows)
            status, seen = held(metric.comparison.holds(n_rows)), f"{n_rows:,} rows"
        elif expected_rows is None:
            share, status = 0.0, "skipped"
            seen = basis or "a share of the rows expected; pass expected_rows or volume_history"
        else:
            share = 100 * n_rows / expected_rows
            status = held(metric.comparison.holds(share))
            seen = f"{n_rows:,} rows, {share:.4g} percent of {expected_rows:,.10g} expected{basis and f' ({basis})'}"
        if status == "failed" and running and metric.comparison.attainable(share):
            status, seen = "skipped", f"{seen} so far; more may come"
        found.append(
            RuleResult(
                field="",
                rule="rowCount",
                wanted=metric.wanted,
                severity=metric.severity,
                status=status,
                n_checked=n_rows,
                n_failed=0,
                observed=seen,
            )
        )
    return found


def held(holds: bool) -> Status:  # noqa: FBT001
    """Names the outcome of a rule."""
    return "passed" if holds else "failed"


def expectation(history: "pl.DataFrame", day: dt.date) -> tuple[float | None, str]:
    """Says how many rows are to be expected on a day: the median of the same day of the week.

    Args:
        history: Columns `day` (dates, each once) and `count` (at least 0). The day itself and later ones are left out.
        day: The day.

    Returns:
        The number, None where fewer than three such days are known or their median is 0, and what it rests on.

    Raises:
        InvalidInput: If the columns are not as said.

    Example:
        >>> import polars as pl
        >>> days = pl.date_range(dt.date(2018, 4, 2), dt.date(2018, 4, 29), eager=True)
        >>> history = pl.DataFrame({"day": days, "count": [50 if d.weekday() == 6 else 100 for d in days]})
        >>> expectation(history, dt.date(2018, 5, 6))
        (50.0, 'median of 4 Sundays')
    """
    import polars as pl

    missing = [name for name in ("day", "count") if name not in history.columns]
    if missing:
        raise InvalidInput("volume_history", history.columns, "have the columns day and count")
    dtypes: Mapping[str, Any] = history.schema
    if dtypes["day"] != pl.Date():
        raise InvalidInput("volume_history.day", str(dtypes["day"]), "be dates", "Cast it: pl.col('day').cast(pl.Date)")
    if not dtypes["count"].is_numeric():
        raise InvalidInput("volume_history.count", str(dtypes["count"]), "be numbers")
    known = history.filter(pl.col("day") < day, pl.col("count").is_not_null())
    if known["day"].is_duplicated().any():
        twice = known.filter(known["day"].is_duplicated())["day"][0]
        raise InvalidInput("volume_history.day", str(twice), "be given once", "Add up the counts of a day")
    if (known["count"] < 0).any():
        raise InvalidInput("volume_history.count", known["count"].min(), "be at least 0")
    alike = known.filter(pl.col("day").dt.weekday() == day.isoweekday())["count"]
    named = f"{_DAYS[day.weekday()]}s"
    if len(alike) < FEWEST_DAYS:
        few = named if len(alike) != 1 else named[:-1]
        return None, f"volume_history knows {len(alike)} {few}, and {FEWEST_DAYS} are needed"
    middle = float(alike.cast(pl.Float64).median())  # type: ignore[arg-type]  # it is a number
    if middle <= 0:
        return None, f"volume_history has no rows on most {named}"
    return middle, f"median of {len(alike)} {named}"
