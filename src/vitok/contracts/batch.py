"""Checks a table: everything is counted in one pass, and rows are read again only where a key is repeated."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from vitok.clock import DAY
from vitok.contracts import deliveries, measures
from vitok.contracts.columns import TYPES
from vitok.contracts.contract import Condition, Contract, Key, Query, Table
from vitok.contracts.plans import BROKEN, ROWS, Counted, Counts, Engine, Plan, collect, engine_for, metric_key
from vitok.contracts.references import key_frames, refuse_names
from vitok.contracts.report import CheckReport, RuleResult, Status, table_lines
from vitok.contracts.rules import Metric
from vitok.contracts.sources import Source, n_repeated, rejected_places, repeats_and_rejected
from vitok.errors import ContractBroken, InvalidInput, StoreError

if TYPE_CHECKING:
    from vitok.contracts.contract import Reference

MOST_READ_AT_ONCE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What is known of a delivery besides its rows.

    Attributes:
        now: Present time in microseconds, or None.
        arrived: When it arrived, or None.
        expected_rows: How many rows were to be expected, or None.
        basis: What that rests on, in words, or why it is not known.
    """

    now: int | None = None
    arrived: int | None = None
    expected_rows: float | None = None
    basis: str = ""

    @classmethod
    def expecting(
        cls,
        now: int | None,
        expected_rows: int | None,
        history: pl.DataFrame | None,
        day: dt.date | None,
        *,
        arrived: int | None = None,
    ) -> "Circumstances":
        """Says how many rows are to be expected; the arguments are those of `Contract.check`.

        Raises:
            InvalidInput: If one of them is wrong.
        """
        if expected_rows is not None and expected_rows < 1:
            raise InvalidInput("expected_rows", expected_rows, "be at least 1")
        if expected_rows is not None or history is None:
            return cls(now=now, arrived=arrived, expected_rows=expected_rows)
        if day is None:
            if now is None:
                raise InvalidInput("day", None, "be given with volume_history", "Or pass now")
            day = dt.date(1970, 1, 1) + dt.timedelta(days=now // DAY)
        count, basis = deliveries.expectation(history, day)
        return cls(now=now, arrived=arrived, expected_rows=count, basis=basis)


def check(
    contract: Contract,
    table: Table,
    frame: pl.DataFrame | pl.LazyFrame,
    *,
    now: int | None = None,
    expected_rows: int | None = None,
    volume_history: pl.DataFrame | None = None,
    day: dt.date | None = None,
    arrived: int | None = None,
    references: "Mapping[str, Reference] | None" = None,
) -> CheckReport:
    """Checks a table; see `Contract.check`."""
    if not isinstance(frame, pl.DataFrame | pl.LazyFrame):
        raise InvalidInput("frame", type(frame).__name__, "be a polars DataFrame or LazyFrame")
    moment("now", now)
    moment("arrived", arrived)
    given = references or {}
    refuse_names(contract.tables, given)
    plan = Plan(contract, table, dict(frame.lazy().collect_schema()), _keys(table, given, frame))
    engine, lazy = engine_for(frame), frame.lazy()
    known = Circumstances.expecting(now, expected_rows, volume_history, day, arrived=arrived)
    counted = plan.count(lazy, now, engine, most=MOST_READ_AT_ONCE)
    found = Repeats.in_data(plan, lazy, counted, engine)
    return report(plan, lazy, engine, counted.counts, found=found, known=known)


def moment(name: str, value: object) -> None:
    """Refuses what is not a time.

    Raises:
        InvalidInput: If it is neither None nor an int.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InvalidInput(name, value, "be microseconds since 1970-01-01 as an int")


def _keys(
    table: Table, references: "Mapping[str, Reference]", frame: pl.DataFrame | pl.LazyFrame
) -> dict[int, pl.DataFrame]:
    """The keys of other tables; a table that points to itself is its own other table."""
    own: Mapping[str, Reference] = {table.name: frame} if _points_to_itself(table, references, frame) else {}
    return key_frames(table, {**own, **references})


def _points_to_itself(table: Table, references: "Mapping[str, Reference]", frame: pl.DataFrame | pl.LazyFrame) -> bool:
    related = [item for item in table.relationships if item.table == table.name]
    names = set(frame.lazy().collect_schema())
    # Where a column is missing, the check of the schema says so in better words.
    return bool(related) and table.name not in references and set(table.names) <= names


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Rows that repeat a key.

    Attributes:
        keys: By the place of the key, the rows; only keys that have some.
        metrics: By the place of the metric, how many rows it counts.
        rejected: The rejected rows, where they were read in the same pass.
    """

    keys: Mapping[int, pl.DataFrame] = field(default_factory=dict)
    metrics: Mapping[int, int] = field(default_factory=dict)
    rejected: pl.DataFrame | None = None

    @classmethod
    def in_data(cls, plan: Plan, lazy: pl.LazyFrame, counted: Counted, engine: Engine) -> "Repeats":
        """Looks for repeats where the first pass does not rule them out."""
        counts, metrics = counted.counts, {}
        for index, metric in enumerate(plan.table.metrics):
            if metric.name == "duplicateValues":
                different = counts[f"metric_{index}_n"] != counts[f"metric_{index}_distinct"]
                metrics[index] = n_repeated(plan, lazy, metric_key(metric), engine) if different else 0
        keys, rejected = repeats_and_rejected(plan, lazy, counted, engine, most=MOST_READ_AT_ONCE)
        return cls(keys=keys, metrics=metrics, rejected=rejected)


def report(
    plan: Plan,
    lazy: pl.LazyFrame,
    engine: Engine,
    counts: Counts,
    *,
    found: Repeats,
    known: Circumstances,
    whole: bool = True,
) -> CheckReport:
    """Judges what was counted.

    Args:
        plan: The rules.
        lazy: The data.
        engine: What reads it.
        counts: What `Plan.count` counted.
        found: Rows that repeat a key.
        known: What is known besides.
        whole: Whether this is a whole delivery; otherwise only rules of rows are judged.

    Raises:
        ContractBroken: If a rule of severity `block` is broken.
        StoreError: If the data cannot be read, or changed meanwhile.
    """
    n_rows = int(counts[ROWS] or 0)
    dropped = {index: rows for index, rows in found.keys.items() if plan.table.keys[index].rule.severity != "warn"}
    n_rejected = int(counts[BROKEN] or 0) + rejected_places(dropped)
    results = [*_row_results(plan, counts, found)]
    if whole:
        results += _table_results(plan, lazy, engine, counts, found, known)
    made = CheckReport(
        contract=plan.contract.name,
        version=plan.contract.version,
        table=plan.table.name,
        n_rows=n_rows,
        n_rejected=n_rejected,
        results=tuple(results),
        not_checked=plan.contract.not_checked,
        source=Source(
            plan=plan,
            lazy=lazy,
            engine=engine,
            n_rows=n_rows,
            n_rejected=n_rejected,
            masks=plan.failing(counts),
            repeats=dropped,
            read=found.rejected,
        ),
    )
    stop_if_blocked(made)
    if n_rejected <= MOST_READ_AT_ONCE:
        # Read now: the evidence must not be gone when somebody asks for it.
        _ = made.rejected
    return made


def _row_results(plan: Plan, counts: Counts, found: Repeats) -> list[RuleResult]:
    results = []
    for mask in plan.masks:
        failed = int(counts[mask.name] or 0)
        results.append(
            RuleResult(
                field=mask.rule.field,
                rule=mask.rule.name,
                wanted=mask.rule.wanted,
                severity=mask.rule.severity,
                status="failed" if failed else "passed",
                n_checked=plan.checked(mask, counts),
                n_failed=failed,
            )
        )
    for index, item in enumerate(plan.table.relationships):
        if index not in plan.references:
            seen = f"pass references={{{item.table!r}: ...}} to judge it"
            rule = item.rule
            results.append(table_result(rule.field, rule.name, rule.wanted, rule.severity, "skipped", 0, 0, seen))
    for index, key in enumerate(plan.table.keys):
        failed = found.keys[index].height if index in found.keys else 0
        results.append(_key_result(key, int(counts[f"key_{index}_n"] or 0), failed))
    return results


def _key_result(key: Key, n_checked: int, n_failed: int) -> RuleResult:
    return RuleResult(
        field=key.rule.field,
        rule=key.rule.name,
        wanted=key.rule.wanted,
        severity=key.rule.severity,
        status="failed" if n_failed else "passed",
        n_checked=n_checked,
        n_failed=n_failed,
    )


def _table_results(
    plan: Plan, lazy: pl.LazyFrame, engine: Engine, counts: Counts, found: Repeats, known: Circumstances
) -> list[RuleResult]:
    table, n_rows = plan.table, int(counts[ROWS] or 0)
    results = []
    for index, metric in enumerate(table.metrics):
        if metric.name == "rowCount":
            continue
        count = found.metrics[index] if index in found.metrics else int(counts.get(f"metric_{index}") or 0)
        results.append(counted(metric, count, n_rows))
    for index, condition in enumerate(table.conditions):
        if condition.comparison is not None:
            results.append(fulfilled(condition, int(counts[f"condition_{index}"] or 0), n_rows))
    results.extend(_queried(plan, lazy, engine, query, n_rows) for query in table.queries)
    n_clean = n_rows - int(counts[BROKEN] or 0)
    for index, measure in enumerate(table.measures):
        holds, words = measures.judged(measure, measured(counts, index), n_clean)
        status: Status = "skipped" if holds is None else deliveries.held(holds)
        results.append(
            table_result(measure.field, measure.label, measure.wanted, measure.severity, status, n_clean, 0, words)
        )
    results.extend(deliveries.volume(table, n_rows, known.expected_rows, known.basis))
    for promise in plan.fresh:
        newest, future = _newest(counts, promise.field)
        results.append(deliveries.freshness(promise, newest, future, n_rows, known.now))
    for coming in plan.deliveries:
        newest, future = _newest(counts, coming.field)
        results.append(deliveries.delivery(coming, newest, future, n_rows, known.now, known.arrived))
    return results


def _newest(counts: Counts, field: str) -> tuple[int | None, int]:
    newest = counts[f"newest_{field}"]
    return (None if newest is None else int(newest)), int(counts[f"future_{field}"] or 0)


def measured(counts: Counts, index: int) -> dict[str, float | None]:
    """What was counted for one measure of the table, by the names that `measures.aggregates` gives."""
    prefix = f"measure_{index}_"
    return {name.removeprefix(prefix): value for name, value in counts.items() if name.startswith(prefix)}


def counted(metric: Metric, count: int, n_rows: int) -> RuleResult:
    """Judges a number that was counted over the whole table."""
    share = 100 * count / n_rows if n_rows else 0.0
    holds = metric.comparison.holds(share if metric.percent else count)
    seen = f"{share:.4g} percent" if metric.percent else f"{count:,} rows"
    fields = ",".join(metric.fields)
    status = deliveries.held(holds)
    return table_result(fields, metric.name, metric.wanted, metric.severity, status, n_rows, count, seen)


def fulfilled(item: Condition, count: int, n_rows: int) -> RuleResult:
    """Judges how many rows fulfil a condition."""
    comparison = item.comparison
    share = 100 * count / n_rows if n_rows else 0.0
    holds = comparison is None or comparison.holds(share if item.percent else count)
    seen = f"{share:.4g} percent" if item.percent else f"{count:,} rows"
    rule, status = item.rule, deliveries.held(holds)
    return table_result(rule.field, rule.name, item.wanted, rule.severity, status, n_rows, count, seen)


def _queried(plan: Plan, lazy: pl.LazyFrame, engine: Engine, query: Query, n_rows: int) -> RuleResult:
    """Runs a query over the rows as the contract reads them; a value that cannot be read is null."""
    names = (*plan.values, *(name for name in plan.schema if name not in plan.values))
    rows = plan.marked(lazy).select(
        plan.values[name].alias(name) if name in plan.values else pl.col(name) for name in names
    )
    status: Status = "skipped"
    try:
        found = collect(pl.SQLContext({plan.table.name: rows}).execute(query.text), engine)
    except (pl.exceptions.PolarsError, StoreError) as error:
        seen = f"the query cannot be run here: {str(error).splitlines()[0][:120]}"
    else:
        value = found.item() if found.shape == (1, 1) else None
        if isinstance(value, bool | int | float):
            status, seen = deliveries.held(query.comparison.holds(float(value))), f"{value:.6g}"
        else:
            seen = "the query gives no number" if found.shape == (1, 1) else "the query gives more than one value"
    return table_result(query.field, "sql", query.wanted, query.severity, status, n_rows, 0, seen)


def table_result(
    field: str, rule: str, wanted: str, severity: str, status: Status, n_checked: int, n_failed: int, observed: str
) -> RuleResult:
    """Writes what a rule of the whole table found."""
    return RuleResult(
        field=field,
        rule=rule,
        wanted=wanted,
        severity=severity,  # type: ignore[arg-type]  # it comes from a rule
        status=status,
        n_checked=n_checked,
        n_failed=n_failed,
        observed=observed,
    )


def query_problem(table: str, types: Mapping[str, str], text: str) -> str:
    """Says why a query cannot be run here, or "" where it can: it is tried on a table without rows."""
    empty = pl.LazyFrame(schema={name: TYPES[logical] for name, logical in types.items()})
    try:
        width = len(pl.SQLContext({table: empty}).execute(text).collect_schema())
    except (pl.exceptions.PolarsError, OSError) as error:
        return str(error).strip().splitlines()[0][:120]
    return "" if width == 1 else f"it gives {width} columns"


def stop_if_blocked(made: CheckReport) -> None:
    """Raises where a rule of severity `block` is broken.

    Raises:
        ContractBroken: With the results, the first such row, and the whole report as a note.
    """
    stopping: Sequence[RuleResult] = tuple(result for result in made.failed if result.severity == "block")
    if not stopping:
        return
    reason = made.source.first_reason({result.label for result in stopping})
    first = f"\nFirst such row: {reason}" if reason else ""
    error = ContractBroken(
        f"{made.contract} {made.version}, {made.table}: rules of severity block are broken. Mend the data, or "
        "give the rule another severity in the contract\n" + "\n".join(table_lines(tuple(stopping))) + first
    )
    error.add_note(str(made))
    raise error
