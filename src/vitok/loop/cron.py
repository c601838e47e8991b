"""Times of a schedule in the five fields of cron, in UTC, where no hour is missing or comes twice."""

import datetime as dt
from dataclasses import dataclass

from vitok.clock import DAY, HOUR, MINUTE
from vitok.errors import InvalidInput

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NAMES = {
    "month": {name: number for number, name in enumerate(_MONTHS, start=1)},
    "weekday": {name: number for number, name in enumerate(_WEEKDAYS)},
}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# 29 February comes again after at most eight years.
_FARTHEST = 8 * 366 + 1


@dataclass(frozen=True)
class Cron:
    """A schedule such as `"30 2 * * mon-fri"`: minute, hour, day of the month, month, day of the week.

    A field is `*`, a number, a range `1-5`, a step `*/15` or `0-30/10`, or a list of these; months and days of the
    week have English names too, and Sunday is 0 or 7. Where both days are given, either is enough, as in cron.

    Source: POSIX.1-2017, crontab.

    Args:
        text: The five fields.

    Raises:
        InvalidInput: If it is not of that form, or never comes.

    Example:
        >>> from vitok.clock import isoformat
        >>> isoformat(Cron("30 2 * * mon").after(0))
        '1970-01-05T02:30:00Z'
    """

    text: str

    def __post_init__(self) -> None:
        fields = self.text.split() if isinstance(self.text, str) else []
        if len(fields) != len(_FIELDS):
            raise InvalidInput("schedule", self.text, "have five fields: minute, hour, day, month, day of the week")
        for field, (name, low, high) in zip(fields, _FIELDS, strict=True):
            _values(field, name, low, high)
        self.after(0)

    def after(self, time: int) -> int:
        """Returns the first time after another one, in microseconds.

        Args:
            time: In microseconds.

        Raises:
            InvalidInput: If it never comes, such as on 30 February.
        """
        minutes, hours, days, months, weekdays = (
            _values(field, name, low, high) for field, (name, low, high) in zip(self.text.split(), _FIELDS, strict=True)
        )
        by_day, by_weekday = (not field.startswith("*") for field in (self.text.split()[2], self.text.split()[4]))
        moment = (time // MINUTE + 1) * MINUTE
        day = moment // DAY
        for _ in range(_FARTHEST):
            date = _EPOCH + dt.timedelta(days=day)
            on_day, on_weekday = date.day in days, (date.isoweekday() % 7) in {one % 7 for one in weekdays}
            fits = (on_day or on_weekday) if by_day and by_weekday else (on_day and on_weekday)
            if date.month in months and fits:
                for hour in sorted(hours):
                    for minute in sorted(minutes):
                        found = day * DAY + (hour * 60 + minute) * MINUTE
                        if found >= moment:
                            return found
            day += 1
        raise InvalidInput("schedule", self.text, "come at some time")

    def before(self, time: int, *, since: int) -> int | None:
        """Returns the last time up to and with another one, but after `since`; None where there is none."""
        # From near to far, since a schedule of every minute may have been missed for a year.
        for span in (HOUR, 2 * DAY, 40 * DAY, time - since):
            found, moment = None, max(since, time - span)
            while (moment := self.after(moment)) <= time:
                found = moment
            if found is not None:
                break
        return found


def _values(field: str, name: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for part in field.lower().split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        if span == "*":
            begin, end = low, high - (name == "weekday")
        else:
            begin = _number(first, field, name)
            end = _number(last, field, name) if dash else (high if slash else begin)
        width = _number(step, field, name) if slash else 1
        if not low <= begin <= end <= high or width < 1:
            raise InvalidInput(f"schedule: {name}", field, f"be within {low} and {high}")
        found.update(range(begin, end + 1, width))
    return frozenset(found)


def _number(text: str, field: str, name: str) -> int:
    value = _NAMES.get(name, {}).get(text)
    if value is not None:
        return value
    if not text.isdecimal() or len(text) > 4:
        raise InvalidInput(f"schedule: {name}", field, "be *, numbers, ranges, steps and lists of these")
    return int(text)
