"""Checks a table in one pass: a mask a rule, all of them in one query, and the rows parted by them."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from vitok.clock import DAY, isoformat
from vitok.contracts import columns
from vitok.contracts.contract import Contract, Field, Freshness, Key, Table
from vitok.contracts.report import CheckReport, RuleResult, Status, table_lines
from vitok.contracts.rules import Comparison, Metric, Rule, Severity
from vitok.errors import ContractBroken, InvalidInput

VOLUME_TOLERANCE_PERCENT = 10
_ADDED = ("reason", "rules")


@dataclass(frozen=True)
class _Mask:
    """One rule as a column of booleans that are true where it is broken."""

    name: str
    rule: Rule
    broken: pl.Expr
    n_checked: pl.Expr


def check(
    contract: Contract,
    table: Table,
    frame: pl.DataFrame | pl.LazyFrame,
    *,
    now: int | None = None,
    expected_rows: int | None = None,
) -> CheckReport:
    """Checks a table; see `Contract.check`."""
    if not isinstance(frame, pl.DataFrame | pl.LazyFrame):
        raise InvalidInput("frame", type(frame).__name__, "be a polars DataFrame or LazyFrame")
    if now is not None and (isinstance(now, bool) or not isinstance(now, int)):
        raise InvalidInput("now", now, "be microseconds since 1970-01-01 as an int")
    if expected_rows is not None and expected_rows < 1:
        raise InvalidInput("expected_rows", expected_rows, "be at least 1")
    lazy = frame.lazy()
    schema = dict(lazy.collect_schema())
    for name in schema:
        if name in _ADDED or name.startswith(_PREFIX):
            raise InvalidInput("frame", name, "not be the name of a column", "The report adds it; rename the column")
    conversions = _conversions(contract, table, schema)

    values = {field.name: pl.col(_value(index)) for index, field in enumerate(table.fields)}
    row_masks = _row_masks(table, conversions, values)
    metric_masks = _metric_masks(table, values)
    rejecting = [mask.name for mask in row_masks if mask.rule.severity != "warn"]
    clean = ~pl.any_horizontal(rejecting) if rejecting else pl.lit(value=True)
    key_masks = [_key_mask(index, key, values, clean) for index, key in enumerate(table.keys)]
    marked = (
        lazy.with_columns(item.value.alias(_value(index)) for index, item in enumerate(conversions))
        .with_columns(mask.broken.alias(mask.name) for mask in (*row_masks, *metric_masks))
        .with_columns(mask.broken.alias(mask.name) for mask in key_masks)
        .collect()
    )

    masks = (*row_masks, *key_masks)
    dropping = [mask.name for mask in masks if mask.rule.severity != "warn"]
    marked = marked.with_columns((pl.any_horizontal(dropping) if dropping else pl.lit(value=False)).alias(_BROKEN))
    fresh = [item for item in contract.freshness if item.table == table.name]
    counts = _counts(marked, masks, metric_masks, fresh, values, now)
    _refuse_unreadable(contract, table, schema, row_masks, counts)
    results = [
        *(_row_result(mask, counts) for mask in masks),
        *(
            _metric_result(index, metric, counts, marked.height)
            for index, metric in enumerate(table.metrics)
            if metric.name != "rowCount"
        ),
        *_volume_results(table, marked.height, expected_rows),
        *(_freshness_result(index, item, counts, marked.height, now) for index, item in enumerate(fresh)),
    ]
    report = CheckReport(
        contract=contract.name,
        version=contract.version,
        table=table.name,
        n_rows=marked.height,
        results=tuple(results),
        not_checked=contract.not_checked,
        accepted=_accepted(marked, table, schema),
        rejected=_rejected(marked, masks, schema),
    )
    _stop_if_blocked(report)
    return report


_PREFIX = "__vitok_"
_BROKEN = f"{_PREFIX}broken"


def _value(index: int) -> str:
    return f"{_PREFIX}value_{index}"


def _conversions(contract: Contract, table: Table, schema: dict[str, pl.DataType]) -> list[columns.Conversion]:
    problems: list[str] = []
    found: list[columns.Conversion] = []
    for field in table.fields:
        dtype = schema.get(field.name)
        if dtype is None:
            spare = [name for name in schema if name not in table.names]
            problems.append(f"column {field.name!r} ({field.logical_type}) is missing. {_rename(field.name, spare)}")
            continue
        item = columns.conversion(field, dtype)
        if item is None:
            problems.append(
                f"column {field.name!r} is of type {dtype}; {field.logical_type} is wanted. {_convert(field, dtype)}, "
                f"map another column to {field.name!r}, or change logicalType in the contract"
            )
            continue
        found.append(item)
    if problems:
        raise ContractBroken(_broken_text(contract, table, problems))
    return found


def _broken_text(contract: Contract, table: Table, problems: Sequence[str]) -> str:
    head = f"the data does not fit contract {contract.name} {contract.version}, table {table.name}:"
    return "\n".join([head, *(f"- {problem}" for problem in problems)])


def _rename(name: str, spare: list[str]) -> str:
    if not spare:
        return "Add the column to the data, or take it out of the contract"
    lowered = {item.lower(): item for item in spare}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    example = lowered[close[0]] if close else "YOUR_COLUMN"
    listed = ", ".join(spare[:12])
    return (
        f"The data has besides: {listed}. Rename one with a column mapping such as {{{example!r}: {name!r}}}, "
        "or take the column out of the contract"
    )


def _convert(field: Field, dtype: pl.DataType) -> str:
    if field.logical_type == "timestamp" and dtype.is_integer():
        return "Say what the numbers count, such as pl.from_epoch(column, time_unit='s')"
    return "Convert it"


def _row_masks(table: Table, conversions: list[columns.Conversion], values: dict[str, pl.Expr]) -> list[_Mask]:
    masks: list[_Mask] = []
    for field, item in zip(table.fields, conversions, strict=True):
        raw, value = pl.col(field.name), values[field.name]
        known = value
        if field.logical_type == "number":
            known = pl.when(value.is_finite()).then(value)
        for rule in field.rules:
            name = f"{_PREFIX}mask_{len(masks)}"
            if rule.name == "type":
                broken = item.unreadable if item.unreadable is not None else pl.lit(value=False)
                masks.append(_Mask(name, rule, broken, raw.count()))
            elif rule.name == "required":
                masks.append(_Mask(name, rule, columns.broken(rule, raw, field.logical_type), pl.len()))
            elif rule.name == "finite":
                masks.append(_Mask(name, rule, columns.broken(rule, value, field.logical_type), value.count()))
            else:
                masks.append(_Mask(name, rule, columns.broken(rule, known, field.logical_type), known.count()))
    return masks


def _metric_masks(table: Table, values: dict[str, pl.Expr]) -> list[_Mask]:
    """Masks of what the metrics count; they take no row out."""
    masks: list[_Mask] = []
    types = {field.name: field.logical_type for field in table.fields}
    for index, metric in enumerate(table.metrics):
        name = f"{_PREFIX}metric_{index}"
        if metric.name == "duplicateValues":
            key = Key(fields=metric.fields, rule=_metric_rule(metric))
            masks.append(_Mask(name, key.rule, _repeated(key, values, pl.lit(value=True)), pl.len()))
        elif metric.rules:
            broken = pl.any_horizontal(
                columns.broken(
                    rule, pl.col(rule.field) if rule.name == "required" else values[rule.field], types[rule.field]
                )
                for rule in metric.rules
            )
            masks.append(_Mask(name, _metric_rule(metric), broken, pl.len()))
    return masks


def _metric_rule(metric: Metric) -> Rule:
    return Rule(field=",".join(metric.fields), name=metric.name, wanted=metric.wanted, severity="warn")


def _key_mask(index: int, key: Key, values: dict[str, pl.Expr], clean: pl.Expr) -> _Mask:
    """Looks for repeats among the rows that keep all other rules, so that a bad row never displaces a good one."""
    broken = _repeated(key, values, clean)
    compared = clean & pl.all_horizontal(values[name].is_not_null() for name in key.fields)
    return _Mask(f"{_PREFIX}key_{index}", key.rule, broken, compared.sum())


def _repeated(key: Key, values: dict[str, pl.Expr], clean: pl.Expr) -> pl.Expr:
    whole = values[key.fields[0]] if len(key.fields) == 1 else pl.struct(values[name] for name in key.fields)
    compared = clean & pl.all_horizontal(values[name].is_not_null() for name in key.fields)
    # Rows that are not compared all share the key null, of which the first is no repeat and the rest do not count.
    return compared & ~pl.when(compared).then(whole).is_first_distinct()


def _counts(
    marked: pl.DataFrame,
    masks: Sequence[_Mask],
    metric_masks: Sequence[_Mask],
    fresh: Sequence[Freshness],
    values: dict[str, pl.Expr],
    now: int | None,
) -> dict[str, int | None]:
    wanted = [pl.col(mask.name).sum().alias(mask.name) for mask in (*masks, *metric_masks)]
    wanted += [mask.n_checked.alias(f"{mask.name}_n") for mask in (*masks, *metric_masks)]
    for index, item in enumerate(fresh):
        moment = values[item.field].cast(pl.Datetime("us")).to_physical()
        usable = ~pl.col(_BROKEN) & (moment <= now if now is not None else pl.lit(value=True))
        wanted.append(moment.filter(usable).max().alias(f"fresh_{index}"))
        wanted.append((moment > now if now is not None else pl.lit(value=False)).sum().alias(f"future_{index}"))
    if not wanted:
        return {}
    return marked.select(wanted).row(0, named=True)


def _refuse_unreadable(
    contract: Contract,
    table: Table,
    schema: dict[str, pl.DataType],
    masks: Sequence[_Mask],
    counts: dict[str, int | None],
) -> None:
    """Most values of a column unreadable: it is the wrong column or the wrong format, not some bad rows."""
    types = {field.name: field.logical_type for field in table.fields}
    problems = []
    for mask in masks:
        failed, checked = counts.get(mask.name) or 0, counts.get(f"{mask.name}_n") or 0
        if mask.rule.name == "type" and failed * 2 > checked:
            name = mask.rule.field
            problems.append(
                f"column {name!r} is of type {schema[name]}; {types[name]} is wanted, and {failed:,} of {checked:,} "
                f"values cannot be read as such (each must {mask.rule.wanted}). Convert it, map another column to "
                f"{name!r}, or change logicalType in the contract"
            )
    if problems:
        raise ContractBroken(_broken_text(contract, table, problems))


def _row_result(mask: _Mask, counts: dict[str, int | None]) -> RuleResult:
    failed = counts[mask.name] or 0
    return RuleResult(
        field=mask.rule.field,
        rule=mask.rule.name,
        wanted=mask.rule.wanted,
        severity=mask.rule.severity,
        status="failed" if failed else "passed",
        n_checked=counts[f"{mask.name}_n"] or 0,
        n_failed=failed,
    )


def _metric_result(index: int, metric: Metric, counts: dict[str, int | None], n_rows: int) -> RuleResult:
    count = counts[f"{_PREFIX}metric_{index}"] or 0
    seen: float = count
    if metric.percent:
        seen = 100 * count / n_rows if n_rows else 0.0
    return RuleResult(
        field=",".join(metric.fields),
        rule=metric.name,
        wanted=metric.wanted,
        severity=metric.severity,
        status="passed" if metric.comparison.holds(seen) else "failed",
        n_checked=n_rows,
        n_failed=count,
        observed=f"{seen:.4g} percent" if metric.percent else f"{count:,} rows",
    )


def _volume_results(table: Table, n_rows: int, expected_rows: int | None) -> list[RuleResult]:
    volumes = [metric for metric in table.metrics if metric.name == "rowCount"]
    if expected_rows is not None and not any(metric.percent for metric in volumes):
        low, high = 100 - VOLUME_TOLERANCE_PERCENT, 100 + VOLUME_TOLERANCE_PERCENT
        around = Comparison(operator="mustBeBetween", low=low, high=high)
        volumes.append(Metric(name="rowCount", fields=(), comparison=around, percent=True, severity="warn"))
    found = []
    for metric in volumes:
        status: Status
        if not metric.percent:
            status, seen = _held(metric.comparison.holds(n_rows)), f"{n_rows:,} rows"
        elif expected_rows is None:
            status, seen = "skipped", "a share of the rows expected; pass expected_rows"
        else:
            share = 100 * n_rows / expected_rows
            status = _held(metric.comparison.holds(share))
            seen = f"{n_rows:,} rows, {share:.4g} percent of {expected_rows:,} expected"
        found.append(_table_result("", "rowCount", metric.wanted, metric.severity, status, n_rows, seen))
    return found


def _held(holds: bool) -> Status:  # noqa: FBT001
    return "passed" if holds else "failed"


def _table_result(
    field: str, rule: str, wanted: str, severity: Severity, status: Status, n_rows: int, observed: str
) -> RuleResult:
    return RuleResult(
        field=field,
        rule=rule,
        wanted=wanted,
        severity=severity,
        status=status,
        n_checked=n_rows,
        n_failed=0,
        observed=observed,
    )


def _freshness_result(
    index: int, item: Freshness, counts: dict[str, int | None], n_rows: int, now: int | None
) -> RuleResult:
    """A time in the future says nothing of how fresh the data is, so the newest is sought among the others."""
    newest, future = counts[f"fresh_{index}"], counts[f"future_{index}"] or 0
    status: Status
    if now is None:
        status, seen = "skipped", "pass now to judge it"
    elif newest is None:
        status, seen = "failed", f"no accepted row at or before {isoformat(now)}"
    else:
        status = _held(now - newest <= item.limit)
        seen = f"newest {isoformat(newest)}, {(now - newest) / DAY:.4g} days old"
    if future:
        seen += f"; {future:,} rows lie in the future"
    return _table_result(item.field, item.name, item.wanted, item.severity, status, n_rows, seen)


def _accepted(marked: pl.DataFrame, table: Table, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    places = {name: index for index, name in enumerate(table.names)}
    chosen = [pl.col(_value(places[name])).alias(name) if name in places else pl.col(name) for name in schema]
    return marked.lazy().filter(~pl.col(_BROKEN)).select(chosen).collect()


def _rejected(marked: pl.DataFrame, masks: Sequence[_Mask], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    dropping = [mask for mask in masks if mask.rule.severity != "warn"]
    reasons = [
        pl.when(pl.col(mask.name)).then(
            pl.concat_str(
                pl.lit(f"{mask.rule.field}: got "), _given(mask, schema), pl.lit(f", must {mask.rule.wanted}")
            )
        )
        for mask in dropping
    ]
    labels = [pl.when(pl.col(mask.name)).then(pl.lit(mask.rule.label)) for mask in dropping]
    reason = pl.coalesce(reasons) if reasons else pl.lit("")
    rules = pl.concat_list(labels).list.drop_nulls() if labels else pl.lit([], dtype=pl.List(pl.String))
    return (
        marked.lazy()
        .filter(pl.col(_BROKEN))
        .select(*schema, reason.cast(pl.String).alias("reason"), rules.cast(pl.List(pl.String)).alias("rules"))
        .collect()
    )


def _given(mask: _Mask, schema: dict[str, pl.DataType]) -> pl.Expr:
    names = [mask.rule.field] if mask.rule.field in schema else mask.rule.field.split(",")
    return pl.concat_str([columns.shown(name, schema[name]) for name in names], separator=", ")


def _stop_if_blocked(report: CheckReport) -> None:
    stopping = tuple(result for result in report.failed if result.severity == "block")
    if not stopping:
        return
    first = ""
    labels = {result.label for result in stopping}
    for reason, rules in report.rejected.select("reason", "rules").head(10_000).iter_rows():
        if labels.intersection(rules):
            first = f"\nFirst such row: {reason}"
            break
    error = ContractBroken(
        f"{report.contract} {report.version}, {report.table}: rules of severity block are broken. Mend the data, or "
        "give the rule another severity in the contract\n" + "\n".join(table_lines(stopping)) + first
    )
    error.add_note(str(report))
    raise error
