"""Reads what the values of a field are compared with: ranges, lengths, patterns, lists of values."""

import datetime as dt
from typing import Any

from vitok.clock import DAY, parse_time
from vitok.contracts import document as read
from vitok.contracts.rules import Bound, Rule, patterns, rule
from vitok.errors import InvalidInput


def allowed_values(values: list[Any], where: str, field: str, logical_type: str, name: str = "validValues") -> Rule:
    """Makes the rule of a list of allowed (or, as `missingValues`, of disallowed) values, each of the field's type."""
    bounds: list[Bound] = []
    for value in values:
        if value is None and name == "missingValues":
            bounds.append(None)
        elif logical_type == "string":
            bounds.append(value if value == "" else read.text(value, where))
        elif logical_type == "boolean":
            if not isinstance(value, bool):
                raise InvalidInput(where, value, "be true or false, as the field is")
            bounds.append(value)
        else:
            bounds.append(bound_of(value, "validValues", logical_type, where))
    if not bounds:
        raise InvalidInput(where, values, "list at least one value")
    return rule(field, name, tuple(bounds), logical_type=logical_type)


def bound_of(value: object, key: str, logical_type: str, where: str) -> Bound:
    """Reads what a rule compares with: times become microseconds, dates days since 1970-01-01."""
    if key == "pattern":
        pattern = read.text(value, where)
        patterns(pattern, where)
        return pattern
    if key in {"minLength", "maxLength"}:
        return read.whole(value, where)
    if logical_type in {"timestamp", "date"}:
        if isinstance(value, dt.date):
            value = value.isoformat()
        moment = parse_time(read.text(value, where))
        return moment if logical_type == "timestamp" else moment // DAY
    return read.number(value, where)


def contradictions(rules: list[Rule], where: str) -> None:
    """Refuses a range that no value lies in: it would send every row to quarantine."""
    bounds = {item.name: item.bound for item in rules}
    for low, high, open_ended in (
        ("minimum", "maximum", False),
        ("minimum", "exclusiveMaximum", True),
        ("exclusiveMinimum", "maximum", True),
        ("exclusiveMinimum", "exclusiveMaximum", True),
        ("minLength", "maxLength", False),
    ):
        first, last = bounds.get(low), bounds.get(high)
        if not isinstance(first, int | float) or not isinstance(last, int | float):
            continue
        if first > last or (open_ended and first == last):
            raise InvalidInput(where, f"{low} {first}, {high} {last}", "leave room for a value")
