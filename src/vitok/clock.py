"""Time as whole microseconds since 1970-01-01 UTC, and the clocks that give it.

A clock is passed in, never looked up: a test or a replay of last month passes its own.
"""

import datetime as dt
import time
from typing import Protocol

from vitok.errors import InvalidInput

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_UNITS = {"s": SECOND, "m": MINUTE, "min": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}


class Clock(Protocol):
    """Tells the time in microseconds since 1970-01-01 UTC."""

    def now(self) -> int:
        """Returns the present, in microseconds."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        """Returns the present, in microseconds."""
        return time.time_ns() // 1000


class EventClock:
    """A clock that events move: it shows the latest time it was told, and never goes back.

    Example:
        >>> clock = EventClock()
        >>> clock.advance(5 * DAY)
        >>> clock.advance(3 * DAY)
        >>> clock.now() == 5 * DAY
        True
    """

    def __init__(self, now: int = 0) -> None:
        self._now = now

    def now(self) -> int:
        """Returns the latest time seen, in microseconds."""
        return self._now

    def advance(self, to: int) -> None:
        """Moves the clock to `to` (microseconds) unless it is already later."""
        self._now = max(self._now, to)


def duration(text: str | int) -> int:
    """Reads a length of time such as `"15m"`, `"6h"`, `"30d"` into microseconds.

    Args:
        text: A whole number and a unit of s, m, h, d or w; an int is taken as microseconds.

    Returns:
        Microseconds, at least 1.

    Raises:
        InvalidInput: If the text is not of that form.

    Example:
        >>> duration("15m")
        900000000
    """
    if isinstance(text, int):
        value = text
    else:
        digits = text.rstrip("abcdefghijklmnopqrstuvwxyz")
        unit = _UNITS.get(text[len(digits) :])
        if unit is None or not digits.isdigit():
            raise InvalidInput("duration", text, "be a whole number and a unit of s, m, h, d or w, such as '7d'")
        value = int(digits) * unit
    if value <= 0:
        raise InvalidInput("duration", text, "be longer than zero")
    return value


def isoformat(microseconds: int) -> str:
    """Writes a time as ISO 8601 in UTC, without a fraction where there is none.

    Example:
        >>> isoformat(0)
        '1970-01-01T00:00:00Z'
    """
    moment = dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=microseconds)
    return moment.isoformat().replace("+00:00", "Z")


def parse_time(text: str) -> int:
    """Reads an ISO 8601 time into microseconds; without an offset it is taken as UTC.

    Raises:
        InvalidInput: If the text is not an ISO 8601 date or time.

    Example:
        >>> parse_time("1970-01-02") == DAY
        True
    """
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput("time", text, "be ISO 8601, such as 2018-08-08T12:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return (moment - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(microseconds=1)
