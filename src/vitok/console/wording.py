"""How numbers, times and lengths of time are written for people, on pages and on the command line alike."""

import datetime as dt
import math

from vitok.clock import DAY, HOUR, MINUTE, SECOND

NOTHING = "–"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_UNITS = ((DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (SECOND, "s"))
# Outside of these a moment has no date; a log that holds one is damaged, and the page about it should still open.
_FIRST, _LAST = -62_135_596_800_000_000, 253_402_300_799_999_999


def _moment(microseconds: int) -> dt.datetime:
    clipped = min(max(microseconds, _FIRST), _LAST)
    return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=clipped)


def day(microseconds: int | None) -> str:
    """Writes a day, UTC.

    Example:
        >>> day(0)
        '1 Jan 1970'
    """
    if microseconds is None:
        return NOTHING
    moment = _moment(microseconds)
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}"


def short_day(microseconds: int) -> str:
    """Writes a day without its year, for axes."""
    moment = _moment(microseconds)
    return f"{moment.day} {_MONTHS[moment.month - 1]}"


def iso_day(microseconds: int) -> str:
    """Writes a day as ISO 8601 does, for addresses.

    Example:
        >>> iso_day(0)
        '1970-01-01'
    """
    return _moment(microseconds).date().isoformat()


def iso_time(microseconds: int) -> str:
    """Writes a day and an hour as ISO 8601 does, for addresses.

    Example:
        >>> iso_time(3_600_000_000)
        '1970-01-01T01:00'
    """
    return f"{iso_day(microseconds)}T{_moment(microseconds):%H:%M}"


def time(microseconds: int | None) -> str:
    """Writes a day and a time to the minute, UTC.

    Example:
        >>> time(90_000_000)
        '1 Jan 1970 00:01'
    """
    return NOTHING if microseconds is None else f"{day(microseconds)} {_moment(microseconds):%H:%M}"


def exact_time(microseconds: int | None) -> str:
    """Writes a day and a time to the second, UTC."""
    return NOTHING if microseconds is None else f"{day(microseconds)} {_moment(microseconds):%H:%M:%S}"


def length(microseconds: int | None) -> str:
    """Writes a length of time in its largest unit, or two.

    Example:
        >>> length(3 * DAY + 4 * HOUR), length(90 * MINUTE), length(1_500), length(0)
        ('3 d 4 h', '1 h 30 min', '1.5 ms', '0 s')
    """
    if microseconds is None:
        return NOTHING
    left = abs(microseconds)
    sign = "−" if microseconds < 0 else ""
    if left == 0:
        return "0 s"
    if left < 1000:
        return f"{sign}{left} µs"
    if left < SECOND:
        return f"{sign}{left / 1000:.3g} ms"
    for index, (unit, name) in enumerate(_UNITS):
        if left >= unit:
            text = f"{sign}{left // unit} {name}"
            rest = left % unit
            if index + 1 < len(_UNITS):
                smaller, smaller_name = _UNITS[index + 1]
                if rest >= smaller and left < 10 * unit:
                    text += f" {rest // smaller} {smaller_name}"
            return text
    raise AssertionError(microseconds)


def seconds(number: float | None) -> str:
    """Writes processor seconds in the unit that needs the fewest digits; a large sum in groups of three.

    Example:
        >>> seconds(0.0098284), seconds(3.2e-06), seconds(7.0)
        ('9.83 ms', '3.2 µs', '7 s')
        >>> seconds(-60_000.0) == "−60\N{NARROW NO-BREAK SPACE}000 s"
        True
    """
    if number is None or math.isnan(number):
        return NOTHING
    size = abs(number)
    if size >= 10_000:
        return f"{count(number)} s".replace("-", "−")
    scale, unit = (1.0, "s") if size >= 1 or not size else (1e3, "ms") if size >= 1e-3 else (1e6, "µs")
    return f"{scale * number:.{4 if size >= 1 else 3}g} {unit}".replace("-", "−", 1)


def count(number: float | None) -> str:
    """Writes a whole number with thin groups of three digits.

    Example:
        >>> count(206302) == "206\N{NARROW NO-BREAK SPACE}302"
        True
    """
    return NOTHING if number is None or math.isnan(number) else f"{round(number):,}".replace(",", "\u202f")


def money(number: float | None) -> str:
    """Writes an amount in whole units of the amounts' currency, with a true minus sign."""
    if number is None or math.isnan(number):
        return NOTHING
    if abs(number) < 10:
        return f"{number:.2f}".replace("-", "−")
    return count(number).replace("-", "−")


def amount(number: float | None) -> str:
    """Writes an amount to the hundredth."""
    if number is None or math.isnan(number):
        return NOTHING
    return f"{number:,.2f}".replace(",", "\u202f").replace("-", "−")


def share(number: float | None) -> str:
    """Writes a share as a percentage with two telling digits.

    Example:
        >>> share(0.1), share(0.0042), share(1.0), share(0.99999)
        ('10 %', '0.42 %', '100 %', '99.999 %')
    """
    if number is None or math.isnan(number):
        return NOTHING
    percent = 100 * number
    if percent == 0:
        return "0 %"
    if 99 < percent < 100:
        return f"{percent:.{1 if percent < 99.9 else 3}f} %"
    if abs(percent) < 0.01:
        return f"{percent:.1g} %".replace("-", "−")
    return f"{percent:.{2 if abs(percent) < 1 else 1 if abs(percent) < 10 else 0}f} %".replace(".0 %", " %")


def figure(number: float | None) -> str:
    """Writes a measure with four telling digits.

    Example:
        >>> figure(0.65422), figure(412.0), figure(float("nan")), figure(1e-9)
        ('0.6542', '412', '–', '1e-09')
    """
    if number is None or math.isnan(number):
        return NOTHING
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    if number == int(number) and abs(number) < 1e6:
        return str(int(number)).replace("-", "−")
    return f"{number:.4g}".replace("-", "−", 1) if abs(number) >= 1e-4 else f"{number:.2g}"


def three(number: float | None) -> str:
    """Writes a measure to the thousandth.

    Example:
        >>> three(0.06324), three(None)
        ('0.063', '–')
    """
    return NOTHING if number is None or math.isnan(number) else f"{number:.3f}".replace("-", "−")


def signed(number: float) -> str:
    """Writes a change with its sign.

    Example:
        >>> signed(0.18), signed(-1.184)
        ('+0.18', '−1.18')
    """
    return f"{number:+.2f}".replace("-", "−")


def interval(lower: float | None, upper: float | None) -> str:
    """Writes an interval; nothing where it has no ends."""
    if lower is None or upper is None or math.isnan(lower) or math.isnan(upper):
        return ""
    return f"{figure(lower)} to {figure(upper)}"


def plural(number: int, one: str, many: str = "") -> str:
    """Writes a number with its noun.

    Example:
        >>> plural(1, "alert"), plural(0, "alert"), plural(3, "entry", "entries")
        ('1 alert', '0 alerts', '3 entries')
    """
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def shortened(text: str, most: int = 110) -> str:
    """Cuts a long text at a word."""
    if len(text) <= most:
        return text
    return text[:most].rsplit(" ", 1)[0].rstrip(" ;,:") + " …"


def spoken(name: str) -> str:
    """Writes a name of code as words.

    Example:
        >>> spoken("average_precision"), spoken("canary_started")
        ('average precision', 'canary started')
    """
    return name.replace("_", " ")
