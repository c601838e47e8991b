"""Pieces of SQL text: names as Spark and Flink read them; values, conditions and lengths of time as Flink does."""

from collections.abc import Mapping
from typing import Any

from vitok.clock import DAY, HOUR, MINUTE, SECOND
from vitok.errors import InvalidInput
from vitok.features.aggregations import Condition

_OPERATORS = {"==": "=", "!=": "<>"}


def quoted(name: str) -> str:
    """Returns a name as SQL reads it, whatever stands in it.

    Example:
        >>> quoted("or`der")
        '`or``der`'
    """
    return "`" + name.replace("`", "``") + "`"


def literal(value: str | float) -> str:
    """Returns a value as SQL reads it; a float as DOUBLE, not as DECIMAL.

    Example:
        >>> literal("it's"), literal(True), literal(3), literal(0.5)
        ("'it''s'", 'TRUE', '3', '0.5e0')
    """
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, int):
        return str(value)
    text = repr(value)
    return text if "e" in text else f"{text}e0"


def condition(where: Condition) -> str:
    """Returns a condition; a null meets none, as it is neither true nor false there.

    Example:
        >>> condition(("channel", "not in", ("web", "shop")))
        "`channel` NOT IN ('web', 'shop')"
    """
    name, operator, value = where
    if operator in {"in", "not in"}:
        return f"{quoted(name)} {operator.upper()} ({', '.join(literal(one) for one in value)})"
    return f"{quoted(name)} {_OPERATORS.get(operator, operator)} {literal(value)}"


def type_of(value: Any) -> str:
    """Returns the type of column that a condition's value is compared with."""
    one = value[0] if isinstance(value, tuple) else value
    return "STRING" if isinstance(one, str) else "BOOLEAN" if isinstance(one, bool) else "DOUBLE"


def interval(microseconds: int) -> str:
    """Returns a length of time.

    Raises:
        InvalidInput: If it is not of whole seconds.

    Example:
        >>> interval(90 * 60_000_000), interval(400 * DAY)
        ("INTERVAL '90' MINUTE", "INTERVAL '400' DAY(3)")
    """
    for unit, name in ((DAY, "DAY"), (HOUR, "HOUR"), (MINUTE, "MINUTE"), (SECOND, "SECOND")):
        if microseconds % unit == 0:
            count = str(microseconds // unit)
            return f"INTERVAL '{count}' {name}" + (f"({len(count)})" if len(count) > 2 else "")
    raise InvalidInput("length of time", microseconds, "be whole seconds")


def options(given: Mapping[str, str]) -> str:
    """Returns what stands in the brackets of `WITH (...)`."""
    return ", ".join(f"{literal(name)} = {literal(value)}" for name, value in given.items())
