"""Reads the `quality` entries of ODCS: library metrics become rules of rows or numbers of the table.

A metric of which there must be none (`mustBe: 0`) is a rule that each row keeps or breaks; a metric with some
tolerance (`mustBeLessThan: 5`, `unit: percent`) is a number of the table, which takes no row out. Entries in SQL are
read by `statements`, bounds of distributions by `measures`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vitok.contracts import document as read
from vitok.contracts.bounds import allowed_values, bound_of
from vitok.contracts.contract import Condition, Query
from vitok.contracts.measures import ENGINE, Measure, comparison_of, measure
from vitok.contracts.rules import OPERATORS, Comparison, Metric, Rule, Severity, rule, severity_of
from vitok.contracts.statements import statement
from vitok.errors import InvalidInput

_KEYS = read.keys(
    "id authoritativeDefinitions businessImpact customProperties description dimension method name schedule scheduler "
    "severity tags type unit metric rule arguments query engine implementation validValues"
) | frozenset(OPERATORS)
_FIELD_METRICS = ("nullValues", "missingValues", "invalidValues", "duplicateValues")
_TABLE_METRICS = ("rowCount", "duplicateValues")
# The words of v3.0, where `rule` stood for `metric`.
_FORMER = {"duplicateCount": "duplicateValues", "validValues": "invalidValues"}


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What a list of quality entries states.

    Attributes:
        rules: Rules that each row keeps or breaks.
        unique: Rules `unique`, whose `field` is one name or several joined by commas.
        metrics: Numbers of the table.
        conditions: Conditions on one row, in SQL.
        queries: Queries over the table, in SQL.
        measures: Bounds of the column's distribution.
    """

    rules: tuple[Rule, ...] = ()
    unique: tuple[Rule, ...] = ()
    metrics: tuple[Metric, ...] = ()
    conditions: tuple[Condition, ...] = ()
    queries: tuple[Query, ...] = ()
    measures: tuple[Measure, ...] = ()


def quality(
    value: object,
    where: str,
    column: str,
    not_checked: list[str],
    *,
    table: str,
    types: Mapping[str, str],
) -> Statement:
    """Reads the quality entries of one property, or of a table.

    Args:
        value: The list as the contract has it.
        where: Path of the list in the contract, for messages.
        column: The property they are about, or "" for a table.
        not_checked: Gets a sentence for each entry that cannot be run here: text, rules of other engines, and SQL
            that is not understood.
        table: Name of the table.
        types: Logical types of its columns.

    Raises:
        InvalidInput: If a metric, an argument or an operator is not known.
    """
    rules: list[Rule] = []
    unique: list[Rule] = []
    metrics: list[Metric] = []
    conditions: list[Condition] = []
    queries: list[Query] = []
    bounds: list[Measure] = []
    logical_type = types.get(column, "")
    for position, item in enumerate(read.entries(value, where)):
        inner = f"{where}[{position}]"
        entry = read.mapping(item, inner)
        read.known_keys(entry, _KEYS, inner)
        kind = entry.get("type", "library")
        if kind == "sql":
            stated = statement(entry, inner, table, column, types)
            if isinstance(stated, Condition):
                conditions.append(stated)
            elif isinstance(stated, Query):
                queries.append(stated)
            else:
                not_checked.append(stated)
            continue
        if kind == "custom" and entry.get("engine") == ENGINE:
            bounds.append(measure(entry, inner, column, logical_type))
            continue
        if kind in {"text", "custom"}:
            said = entry.get("description") or entry.get("name") or entry.get("query") or entry.get("engine") or ""
            not_checked.append(f"{column or 'table'}: quality rule of type {kind} {str(said).strip()[:80]}".rstrip())
            continue
        if kind != "library":
            raise InvalidInput(f"{inner}.type", kind, "be library, text, sql or custom")
        metric = _metric(entry, inner, known=_FIELD_METRICS if column else _TABLE_METRICS)
        arguments = read.mapping(entry.get("arguments") or {}, f"{inner}.arguments")
        broken = _broken_rules(metric, entry, arguments, inner, column, logical_type)
        fields = _fields(metric, arguments, inner, column, types)
        comparison, percent = comparison_of(entry, inner), _percent(entry, inner)
        if comparison is None and metric != "invalidValues":
            raise InvalidInput(inner, metric, f"come with one of {', '.join(OPERATORS)}")
        # v3.0 writes validValues without an operator and means that there are no others.
        comparison = comparison or Comparison(operator="mustBe", low=0)
        none_allowed = comparison.holds(0) and not comparison.holds(1e-9 if percent else 1)
        if metric != "rowCount" and none_allowed:
            severity = _severity(entry, inner, "quarantine")
            if metric == "duplicateValues":
                unique.append(rule(",".join(fields), "unique", severity=severity))
            rules.extend(
                Rule(field=one.field, name=one.name, wanted=one.wanted, severity=severity, bound=one.bound)
                for one in broken
            )
            continue
        severity = _severity(entry, inner, "warn")
        if severity == "quarantine":
            fix = "Write mustBe: 0 to take out each row that breaks it"
            raise InvalidInput(f"{inner}.severity", "quarantine", "be warn or block: this judges the whole table", fix)
        metrics.append(
            Metric(
                name=metric,
                fields=fields,
                comparison=comparison,
                percent=percent,
                severity=severity,
                rules=tuple(broken),
            )
        )
    return Statement(
        rules=tuple(rules),
        unique=tuple(unique),
        metrics=tuple(metrics),
        conditions=tuple(conditions),
        queries=tuple(queries),
        measures=tuple(bounds),
    )


def _metric(entry: dict[str, Any], where: str, *, known: tuple[str, ...]) -> str:
    written = entry.get("metric", entry.get("rule"))
    metric = _FORMER.get(written, written) if isinstance(written, str) else written
    if metric not in known:
        fix = f"Here the library rules {', '.join(known)} can be checked"
        raise InvalidInput(f"{where}.metric", written, "be a library rule that is supported", fix)
    return str(metric)


def _broken_rules(
    metric: str, entry: dict[str, Any], arguments: dict[str, Any], where: str, column: str, logical_type: str
) -> list[Rule]:
    """What a value breaks that the metric counts."""
    if metric == "nullValues":
        read.known_keys(arguments, (), f"{where}.arguments")
        return [rule(column, "required")]
    if metric == "missingValues":
        read.known_keys(arguments, ("missingValues",), f"{where}.arguments")
        listed = read.entries(arguments.get("missingValues"), f"{where}.arguments.missingValues")
        found = [rule(column, "required")] if None in listed else []
        values = [item for item in listed if item is not None]
        if values:
            found.append(allowed_values(values, f"{where}.arguments", column, logical_type, "missingValues"))
        if not found:
            raise InvalidInput(f"{where}.arguments.missingValues", listed, "list at least one value")
        return found
    if metric == "invalidValues":
        read.known_keys(arguments, ("validValues", "pattern"), f"{where}.arguments")
        found = []
        values = read.entries(entry.get("validValues", arguments.get("validValues")), f"{where}.validValues")
        if values:
            found.append(allowed_values(values, f"{where}.validValues", column, logical_type))
        if "pattern" in arguments:
            if logical_type != "string":
                raise InvalidInput(f"{where}.arguments.pattern", arguments["pattern"], "be of a field of type string")
            pattern = bound_of(arguments["pattern"], "pattern", logical_type, f"{where}.arguments.pattern")
            found.append(rule(column, "pattern", pattern))
        if not found:
            raise InvalidInput(f"{where}.arguments", arguments, "have validValues or a pattern")
        return found
    return []


def _fields(
    metric: str, arguments: dict[str, Any], where: str, column: str, columns: Collection[str]
) -> tuple[str, ...]:
    if column:
        return (column,)
    if metric == "rowCount":
        read.known_keys(arguments, (), f"{where}.arguments")
        return ()
    read.known_keys(arguments, ("properties",), f"{where}.arguments")
    named = read.entries(arguments.get("properties"), f"{where}.arguments.properties")
    for name in named:
        if name not in columns:
            raise InvalidInput(f"{where}.arguments.properties", name, f"be one of {', '.join(columns)}")
    if not named:
        raise InvalidInput(f"{where}.arguments.properties", named, "list the properties that are unique together")
    return tuple(named)


def _percent(entry: dict[str, Any], where: str) -> bool:
    unit = entry.get("unit", "rows")
    if unit not in {"rows", "percent"}:
        raise InvalidInput(f"{where}.unit", unit, "be rows or percent")
    return bool(unit == "percent")


def _severity(entry: dict[str, Any], where: str, default: Severity) -> Severity:
    if entry.get("severity") is None:
        return default
    return severity_of(entry["severity"], f"{where}.severity")
