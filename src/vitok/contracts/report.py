"""What a check found: a frozen report that prints itself and becomes JSON."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from vitok.clock import isoformat
from vitok.contracts.rules import Severity

if TYPE_CHECKING:
    import polars as pl

    from vitok.contracts.sources import Source

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class RuleResult:
    """What one rule found.

    Attributes:
        field: The field it is about, several joined by commas, or "" for the whole table.
        rule: Name of the rule, such as `"minimum"` or `"rowCount"`.
        wanted: The rule as a phrase that follows "must".
        severity: What breaking it does.
        status: `"skipped"` where it could not be judged, and `observed` says why.
        n_checked: How many values it looked at.
        n_failed: How many of them break it; for a rule of the whole table, the rows that it counted against it.
        observed: What was seen, in words; "" where the counts say it all.
    """

    field: str
    rule: str
    wanted: str
    severity: Severity
    status: Status
    n_checked: int
    n_failed: int
    observed: str = ""

    @property
    def label(self) -> str:
        """Field and rule in one word, such as `"amount.minimum"`."""
        return f"{self.field}.{self.rule}" if self.field else self.rule

    def to_dict(self) -> dict[str, object]:
        """Returns the result as what JSON can hold."""
        return {
            "field": self.field,
            "rule": self.rule,
            "wanted": self.wanted,
            "severity": self.severity,
            "status": self.status,
            "n_checked": self.n_checked,
            "n_failed": self.n_failed,
            "observed": self.observed,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckReport:
    """What a contract says of one table of data.

    Attributes:
        contract: Name of the contract.
        version: Version of the contract.
        table: Name of the table in the contract.
        n_rows: Rows that came in.
        n_rejected: Rows that break at least one rule of rows that is more than a warning.
        results: One result a rule, in the order of the contract.
        not_checked: What the contract says and was not checked, a sentence each.
    """

    contract: str
    version: str
    table: str
    n_rows: int
    n_rejected: int
    results: tuple[RuleResult, ...]
    not_checked: tuple[str, ...]
    source: "Source" = field(repr=False)

    @property
    def n_accepted(self) -> int:
        """Rows that keep all rules of rows."""
        return self.n_rows - self.n_rejected

    @cached_property
    def accepted(self) -> "pl.DataFrame":
        """Rows that keep all rules of rows, cast to the contract's types; other columns as they came.

        They are read when they are first asked for, so that a check that only judges costs one pass.

        Raises:
            StoreError: If the data cannot be read any more, or has changed since it was checked.
        """
        return self.source.accepted()

    @cached_property
    def rejected(self) -> "pl.DataFrame":
        """The other rows as they came, with `reason` (the first broken rule in a sentence) and `rules`.

        `rules` are the labels of all broken ones, such as `"amount.minimum"`. Up to a million rows are read with the
        check; of more than that, when they are first asked for.

        Raises:
            StoreError: If the data cannot be read any more, or has changed since it was checked.
        """
        return self.source.rejected()

    def scan_accepted(self) -> "pl.LazyFrame":
        """`accepted` without reading it: for what is larger than memory, such as `.sink_parquet(path)`."""
        return self.source.scan_accepted()

    def scan_rejected(self) -> "pl.LazyFrame":
        """`rejected` without reading it."""
        return self.source.scan_rejected()

    @property
    def failed(self) -> tuple[RuleResult, ...]:
        """The results of the rules that are broken, warnings included."""
        return tuple(result for result in self.results if result.status == "failed")

    def to_dict(self) -> dict[str, object]:
        """Returns all but the rows as what JSON can hold."""
        return {
            "contract": self.contract,
            "version": self.version,
            "table": self.table,
            "n_rows": self.n_rows,
            "n_accepted": self.n_accepted,
            "n_rejected": self.n_rejected,
            "results": [result.to_dict() for result in self.results],
            "not_checked": list(self.not_checked),
        }

    def __str__(self) -> str:
        head = (
            f"{self.contract} {self.version}, {self.table}: {self.n_rows:,} rows, {self.n_accepted:,} accepted, "
            f"{self.n_rejected:,} rejected"
        )
        told = tuple(result for result in self.results if result.status != "passed" or result.observed)
        rest = len(self.results) - len(told)
        lines = [head, *table_lines(told)]
        if rest:
            lines.append(f"{rest} other rules hold" if told else f"all {rest} rules hold")
        return "\n".join([*lines, *(f"not checked: {item}" for item in self.not_checked)])


@dataclass(frozen=True, kw_only=True)
class PeriodReport:
    """What a contract says of a stream over one period.

    Attributes:
        contract: Name of the contract.
        version: Version of the contract.
        table: Name of the table in the contract.
        start: When the period begins, in microseconds since 1970-01-01 UTC.
        end: When it ends; it belongs to the next one.
        n_rows: Rows that came.
        n_rejected: Rows that break a rule of rows that is more than a warning.
        results: One result a rule of the whole table.
    """

    contract: str
    version: str
    table: str
    start: int
    end: int
    n_rows: int
    n_rejected: int
    results: tuple[RuleResult, ...]

    @property
    def failed(self) -> tuple[RuleResult, ...]:
        """The results of the rules that are broken, warnings included."""
        return tuple(result for result in self.results if result.status == "failed")

    def to_dict(self) -> dict[str, object]:
        """Returns the report as what JSON can hold."""
        return {
            "contract": self.contract,
            "version": self.version,
            "table": self.table,
            "start": isoformat(self.start),
            "end": isoformat(self.end),
            "n_rows": self.n_rows,
            "n_rejected": self.n_rejected,
            "results": [result.to_dict() for result in self.results],
        }

    def __str__(self) -> str:
        head = (
            f"{self.contract} {self.version}, {self.table}, {isoformat(self.start)} to {isoformat(self.end)}: "
            f"{self.n_rows:,} rows, {self.n_rejected:,} rejected"
        )
        return "\n".join([head, *table_lines(self.results)])


def table_lines(results: tuple[RuleResult, ...]) -> list[str]:
    """Writes results as the lines of a table."""
    if not results:
        return []
    width = max(len("rule"), *(len(result.label) for result in results))
    lines = [f"{'rule':<{width}}  {'status':<7}  {'checked':>9}  {'failed':>9}  {'severity':<10}  must"]
    for result in results:
        seen = f" ({result.observed})" if result.observed else ""
        lines.append(
            f"{result.label:<{width}}  {result.status:<7}  {result.n_checked:>9,}  {result.n_failed:>9,}  "
            f"{result.severity:<10}  {result.wanted}{seen}"
        )
    return lines
