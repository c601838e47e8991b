"""Reads one value of a request as the type that a contract gives it; `conversion` does the same for a column."""

import datetime as dt
import re
from collections.abc import Callable
from typing import Any, Final

from vitok.contracts.rules import LogicalType

UNREADABLE: Final = object()

# The same two patterns read the texts of a column, so they keep to what Rust's and Python's engines have in common.
DATE = "[1-9][0-9]{3}-(?:0[1-9]|1[0-2])-[0-3][0-9]"
TIME = (
    r"(?:[T ]([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9])(?:\.([0-9]{1,6}))?)?"
    r"(?:Z|([+-])([01][0-9]|2[0-3]):?([0-5][0-9]))?)?"
)
_TIMESTAMP = re.compile(rf"{DATE}{TIME}")
_DATE = re.compile(DATE)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
_EXACT = 2**53
_LARGEST = 2**63


def _string(value: object) -> Any:
    if not isinstance(value, str):
        return UNREADABLE
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            # JSON can escape half of a surrogate pair, which no table, file or answer can hold.
            return UNREADABLE
    return value


def _number(value: object) -> Any:
    if isinstance(value, float):
        return value
    if type(value) is not int:
        return UNREADABLE
    if -_EXACT <= value <= _EXACT:
        return value
    return value if -_LARGEST <= value < _LARGEST and int(float(value)) == value else UNREADABLE


def _integer(value: object) -> Any:
    if isinstance(value, float):
        if not value.is_integer():
            return UNREADABLE
        value = int(value)
    if not isinstance(value, int):
        return UNREADABLE
    return value if -_LARGEST <= value < _LARGEST else UNREADABLE


def _boolean(value: object) -> Any:
    if isinstance(value, bool):
        return value
    return value == 1 if type(value) is int and value in (0, 1) else UNREADABLE


def _timestamp(value: object) -> Any:
    """Microseconds since 1970-01-01 UTC; a time without an offset is in UTC."""
    if isinstance(value, str):
        if _TIMESTAMP.fullmatch(value) is None:
            return UNREADABLE
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError:
            return UNREADABLE
    elif isinstance(value, dt.datetime):
        moment = value
    elif isinstance(value, dt.date):
        moment = dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    else:
        return UNREADABLE
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _date(value: object) -> Any:
    """Days since 1970-01-01; a moment is a date where it is midnight."""
    if isinstance(value, str):
        if _DATE.fullmatch(value) is None:
            return UNREADABLE
        try:
            return dt.date.fromisoformat(value).toordinal() - _EPOCH_DAY
        except ValueError:
            return UNREADABLE
    if isinstance(value, dt.datetime):
        midnight = value.timetz().replace(tzinfo=None) == dt.time.min
        return value.toordinal() - _EPOCH_DAY if midnight else UNREADABLE
    return value.toordinal() - _EPOCH_DAY if isinstance(value, dt.date) else UNREADABLE


READERS: dict[LogicalType, Callable[[object], Any]] = {
    "string": _string,
    "number": _number,
    "integer": _integer,
    "boolean": _boolean,
    "timestamp": _timestamp,
    "date": _date,
}
