"""Reads quality entries in SQL: a condition that rows must not fulfil, or a query that gives one number."""

import re
from collections.abc import Mapping
from typing import Any

from vitok.contracts import document as read
from vitok.contracts import predicates
from vitok.contracts.contract import Condition, Query
from vitok.contracts.measures import comparison_of
from vitok.contracts.rules import Comparison, Severity, rule, severity_of
from vitok.errors import InvalidInput

_PLACES = re.compile(r"\$?\{(object|table|schema|property|column|field)\}")
_COUNTED = re.compile(
    r"\s*SELECT\s+COUNT\s*\(\s*(?:\*|1)\s*\)(?:\s+(?:AS\s+)?\w+)?\s+FROM\s+(?P<table>[\w.\"`]+)\s+WHERE\s+(?P<condition>.+)",
    re.IGNORECASE | re.DOTALL,
)
_LATER = re.compile(r"\b(GROUP\s+BY|ORDER\s+BY|HAVING|LIMIT|UNION)\b|\bSELECT\b", re.IGNORECASE)


def statement(
    entry: Mapping[str, Any], where: str, table: str, column: str, types: Mapping[str, str]
) -> Condition | Query | str:
    """Reads one entry of type sql.

    `SELECT COUNT(*) FROM {object} WHERE condition` with `mustBe: 0` is a rule of rows, where the condition can be
    run on one row; all else is a query over the table.

    Args:
        entry: The entry.
        where: Its path, for messages.
        table: The table it is about.
        column: The property it stands under, or "".
        types: Logical types of the columns.

    Returns:
        What it states, or a sentence that says why it cannot be run here: it is kept, and not checked.

    Raises:
        InvalidInput: If it has no query, or an operator or a severity that it cannot have.
    """
    written = read.text(entry.get("query"), f"{where}.query")
    names = {"property": column, "column": column, "field": column}
    text = " ".join(_PLACES.sub(lambda found: names.get(found[1], table) or found[0], written).split())
    named = f"{column or 'table'}: quality rule of type sql {_said(entry, text)}"
    comparison = _comparison(entry, where)
    if comparison is None:
        return f"{named} (it has no operator such as mustBe)"
    given = severity_of(entry["severity"], f"{where}.severity") if entry.get("severity") is not None else None
    percent = entry.get("unit") == "percent"
    counted = _COUNTED.fullmatch(text)
    if counted is not None and counted["table"].strip('"`').rpartition(".")[2] == table:
        condition = counted["condition"].strip().removesuffix(";").rstrip()
        try:
            node = predicates.parse(condition, types)
        except predicates.UnsupportedError as problem:
            if percent:
                return f"{named} ({problem})"
        else:
            if node.fields:
                return _condition(condition, node.fields, comparison, where, given, percent=percent)
    if given == "quarantine":
        fix = "Write SELECT COUNT(*) FROM {object} WHERE condition, with mustBe: 0, to take out each such row"
        raise InvalidInput(f"{where}.severity", given, "be warn or block: this judges the whole table", fix)
    from vitok.contracts.batch import query_problem

    problem_text = query_problem(table, types, text)
    if problem_text:
        return f"{named} (cannot be run here: {problem_text})"
    return Query(text=text, field=column, wanted=str(comparison), comparison=comparison, severity=given or "warn")


def _said(entry: Mapping[str, Any], text: str) -> str:
    return str(entry.get("description") or entry.get("name") or text).strip()[:80]


def _comparison(entry: Mapping[str, Any], where: str) -> Comparison | None:
    plain = {name: int(value) if isinstance(value, bool) else value for name, value in entry.items()}
    return comparison_of(plain, where)


def _condition(
    text: str, fields: tuple[str, ...], comparison: Comparison, where: str, given: Severity | None, *, percent: bool
) -> Condition:
    none_allowed = comparison.holds(0) and not comparison.holds(1e-9 if percent else 1)
    severity: Severity = given or ("quarantine" if none_allowed else "warn")
    if not none_allowed and severity == "quarantine":
        fix = "Write mustBe: 0 to take out each such row"
        raise InvalidInput(f"{where}.severity", severity, "be warn or block: this judges the whole table", fix)
    made = rule(",".join(fields), "sql", text, severity=severity)
    return Condition(text=text, rule=made, comparison=None if none_allowed else comparison, percent=percent)
