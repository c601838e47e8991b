"""Checks one request against a table of a contract, in a few microseconds, and writes the table as a JSON Schema."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from vitok.contracts import predicates
from vitok.contracts.contract import Field, Table
from vitok.contracts.readers import READERS, UNREADABLE
from vitok.contracts.rules import Rule, patterns
from vitok.errors import InvalidInput

LONGEST_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule that one value breaks.

    Attributes:
        field: Name of the field.
        value: The value that was given; None where there was none.
        rule: Name of the rule, such as `"minimum"`; `"unknown"` for a key that the contract does not have.
        message: Field, value and rule in a sentence.
    """

    field: str
    value: object
    rule: str
    message: str

    def __str__(self) -> str:
        return self.message


def violation(rule: Rule, value: object) -> Violation:
    """States that a value breaks a rule."""
    return Violation(rule.field, value, rule.name, f"{rule.field}: got {shown(value)}, must {rule.wanted}")


def shown(value: object) -> str:
    """Writes a value for a message: quoted where it is text, cut where it is long.

    Example:
        >>> shown("x" * 100) == "'" + "x" * 60 + "...'"
        True
    """
    if value is None:
        return "null"
    if isinstance(value, str):
        text = value[:LONGEST_SHOWN].encode("utf-8", "backslashreplace").decode()
        return f"'{text}'" if len(value) <= LONGEST_SHOWN else f"'{text}...'"
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def test(rule: Rule) -> Callable[[Any], bool]:
    """Compiles a rule into a function that says of a readable, finite value whether it breaks it."""
    bound: Any = rule.bound
    match rule.name:
        case "minimum":
            return lambda value: bool(value < bound)
        case "exclusiveMinimum":
            return lambda value: bool(value <= bound)
        case "maximum":
            return lambda value: bool(value > bound)
        case "exclusiveMaximum":
            return lambda value: bool(value >= bound)
        case "minLength":
            return lambda value: len(value) < bound
        case "maxLength":
            return lambda value: len(value) > bound
        case "pattern":
            search = re.compile(patterns(bound, rule.label)[1]).search
            return lambda value: search(value) is None
        case "validValues":
            allowed = frozenset(bound)
            return lambda value: value not in allowed
        case _:
            missing = frozenset(bound)
            return lambda value: value in missing


def compile_checker(
    table: Table,
    *,
    extra: Literal["reject", "ignore"] = "reject",
    references: Mapping[int, frozenset[Any]] | None = None,
) -> Callable[[Mapping[str, Any]], list[Violation]]:
    """Compiles a table into a function that checks one request; see `Contract.row_checker`.

    Args:
        table: The table.
        extra: What to do about keys that it does not know.
        references: Keys of other tables by the place of the relationship, as `references.key_sets` reads them.

    Raises:
        InvalidInput: If `extra` is not one of the two words.
    """
    if extra not in ("reject", "ignore"):
        raise InvalidInput("extra", extra, "be 'reject' or 'ignore'")
    checks = tuple((field.name, _field_checker(field)) for field in table.fields)
    across = _across(table, references or {})
    names = frozenset(table.names)
    reject = extra == "reject"

    def check(row: Mapping[str, Any]) -> list[Violation]:
        found: list[Violation] = []
        if type(row) is not dict and not isinstance(row, Mapping):
            return [
                Violation("row", row, "type", f"row: got {shown(row)}, must be an object with the contract's fields")
            ]
        get = row.get
        if across:
            known = {name: one(get(name), found) for name, one in checks}
            for rule in across:
                rule(row, known, found)
        else:
            for name, one in checks:
                one(get(name), found)
        if reject and not row.keys() <= names:
            listed = ", ".join(table.names)
            for key in row:
                if key not in names:
                    name = shown(str(key))[1:-1]
                    message = f"{name}: got {shown(row[key])}, must not be given; the contract has {listed}"
                    found.append(Violation(name, row[key], "unknown", message))
        return found

    return check


def _across(
    table: Table, references: Mapping[int, frozenset[Any]]
) -> tuple[Callable[[Mapping[str, Any], Mapping[str, Any], list[Violation]], None], ...]:
    """Compiles the rules that look at several fields, or at other tables."""
    found = [
        _across_one(item.rule, item.rule.field.split(","), predicates.parse(item.text, table.types).value)
        for item in table.conditions
        if item.comparison is None and item.rule.severity != "warn"
    ]
    for index, keys in references.items():
        related = table.relationships[index]
        if related.rule.severity != "warn":
            found.append(_across_one(related.rule, related.fields, _missing(related.fields, keys)))
    return tuple(found)


def _across_one(
    rule: Rule, fields: Sequence[str], broken: Callable[[Mapping[str, Any]], Any]
) -> Callable[[Mapping[str, Any], Mapping[str, Any], list[Violation]], None]:
    def check(row: Mapping[str, Any], known: Mapping[str, Any], found: list[Violation]) -> None:
        if broken(known):
            given = tuple(row.get(name) for name in fields)
            said = ", ".join(map(shown, given))
            message = f"{rule.field}: got {said}, must {rule.wanted}"
            found.append(Violation(rule.field, given if len(given) > 1 else given[0], rule.name, message))

    return check


def _missing(fields: Sequence[str], keys: frozenset[Any]) -> Callable[[Mapping[str, Any]], bool]:
    if len(fields) == 1:
        name = fields[0]
        return lambda known: known[name] is not None and known[name] not in keys
    return lambda known: None not in (key := tuple(known[name] for name in fields)) and key not in keys


def _field_checker(field: Field) -> Callable[[Any, list[Violation]], Any]:
    """Returns a function that checks a value, and gives it back as it was read; None where it was not."""
    strict = {rule.name: rule for rule in field.rules if rule.severity != "warn"}
    required, finite, type_rule = strict.get("required"), strict.get("finite"), strict["type"]
    guarded = field.logical_type == "number"
    read = READERS[field.logical_type]
    tests = tuple(
        (test(rule), rule)
        for rule in field.rules
        if rule.severity != "warn" and rule.name not in {"required", "type", "finite"}
    )

    def check(value: Any, found: list[Violation]) -> Any:
        if value is None:
            if required is not None:
                found.append(violation(required, value))
            return None
        known = read(value)
        if known is UNREADABLE:
            found.append(violation(type_rule, value))
            return None
        if guarded and not isfinite(known):
            if finite is not None:
                found.append(violation(finite, value))
            return None
        for broken, rule in tests:
            if broken(known):
                found.append(violation(rule, value))
        return known

    return check


_JSON_TYPES: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "number": {"type": "number"},
    "integer": {"type": "integer", "format": "int64"},
    "boolean": {"type": "boolean"},
    "timestamp": {"type": "string", "format": "date-time"},
    "date": {"type": "string", "format": "date"},
}
_SAME_IN_JSON = {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minLength", "maxLength", "pattern"}


def json_schema(table: Table) -> dict[str, Any]:
    """Writes a table as a JSON Schema (2020-12); see `Contract.json_schema`."""
    properties: dict[str, Any] = {}
    for field in table.fields:
        schema = dict(_JSON_TYPES[field.logical_type])
        if field.description:
            schema["description"] = field.description
        timed = field.logical_type in {"timestamp", "date"}
        for rule in field.rules:
            if rule.severity == "warn":
                continue
            if rule.name in _SAME_IN_JSON and not timed:
                schema[rule.name] = rule.bound
            elif rule.name in _SAME_IN_JSON or (rule.name == "validValues" and timed):
                # JSON Schema has no ranges of times.
                schema["description"] = f"{schema.get('description', '')} Must {rule.wanted}.".strip()
            elif rule.name == "validValues" and isinstance(rule.bound, tuple):
                schema["enum"] = list(rule.bound)
            elif rule.name == "missingValues" and isinstance(rule.bound, tuple) and not timed:
                schema["not"] = {"enum": list(rule.bound)}
        if not field.required:
            schema["type"] = [schema["type"], "null"]
            if "enum" in schema:
                schema["enum"].append(None)
        properties[field.name] = schema
    schema = {
        "type": "object",
        "title": table.name,
        "properties": properties,
        "required": [field.name for field in table.fields if field.required],
        "additionalProperties": False,
    }
    if table.description:
        schema["description"] = table.description
    return schema
