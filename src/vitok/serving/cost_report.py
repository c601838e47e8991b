"""What decisions have cost, read from their logs: by model, version, tenant, team, route or day."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitok import decisions
from vitok.clock import isoformat
from vitok.decisions.log import SCHEMA_FILE, declared_schema
from vitok.errors import InvalidInput, NotFound
from vitok.serving.costs import Prices

if TYPE_CHECKING:
    import polars as pl

By = Literal["model", "version", "tenant", "team", "route", "day"]
BY: tuple[By, ...] = ("model", "version", "tenant", "team", "route", "day")
_COLUMNS = ("event_time", "model_version", "route", "tenant", "team", "cost")
_DEPTH = 3


@dataclass(frozen=True, kw_only=True)
class CostLine:
    """What the decisions of one model, tenant, team, route or day have cost.

    Attributes:
        key: Of which; empty where the log does not say.
        decisions: How many there were.
        hits: How many cost nothing: a cache answered them, or, where no meter ran, rules did.
        unknown: How many have no cost in the log that is a number; they are not in the sum.
        seconds: Processor seconds, or what costs as much.
        money: What they cost; None where no price was given.
    """

    key: str
    decisions: int
    hits: int
    unknown: int
    seconds: float
    money: float | None

    @property
    def hit_share(self) -> float:
        """Share of the decisions that cost nothing; NaN where there are none."""
        return self.hits / self.decisions if self.decisions else math.nan

    @property
    def a_thousand(self) -> float:
        """What a thousand cost, in money where prices were given, else in processor seconds; NaN where there are none.

        Over all decisions, those from the cache among them.
        """
        known = self.decisions - self.unknown
        cost = self.seconds if self.money is None else self.money
        return 1000 * cost / known if known else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {
            "key": self.key,
            "decisions": self.decisions,
            "hits": self.hits,
            "hit_share": None if math.isnan(self.hit_share) else self.hit_share,
            "unknown": self.unknown,
            "cpu_seconds": self.seconds,
            "cost": self.money,
            "a_thousand": None if math.isnan(self.a_thousand) else self.a_thousand,
        }


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """What decisions have cost.

    Attributes:
        by: What the lines are told apart by.
        lines: The lines, the dearest first; by day in the order of time.
        total: All of them together.
        logs: The folders that were read.
        prices: What a processor second costs; None where only seconds are known.
    """

    by: By
    lines: tuple[CostLine, ...]
    total: CostLine
    logs: tuple[Path, ...]
    prices: Prices | None

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {
            "by": self.by,
            "currency": None if self.prices is None else self.prices.currency,
            "lines": [line.to_dict() for line in self.lines],
            "total": self.total.to_dict(),
            "logs": [str(log) for log in self.logs],
        }

    def __str__(self) -> str:
        currency = "CPU-s" if self.prices is None else self.prices.currency
        heads = [self.by, "decisions", "from cache", "CPU-s", *([] if self.prices is None else [currency])]
        rows = [[*heads, f"{currency} a 1,000"]]
        for line in (*self.lines, self.total):
            share = "" if math.isnan(line.hit_share) else f"{100 * line.hit_share:.3g} %"
            money = [] if line.money is None else [f"{line.money:,.4g}"]
            each = "" if math.isnan(line.a_thousand) else f"{line.a_thousand:,.4g}"
            rows.append([line.key or "(not said)", f"{line.decisions:,}", share, f"{line.seconds:,.4g}", *money, each])
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        told = [
            "  ".join(
                text.ljust(width) if place == 0 else text.rjust(width)
                for place, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        unknown = f"{self.total.unknown:,} decisions have no cost in the log" if self.total.unknown else ""
        return "\n".join([*told, *([unknown] if unknown else [])])


def log_folders(folder: str | Path) -> list[Path]:
    """Returns the decision logs at a folder and below it, such as one a model and worker.

    Raises:
        NotFound: If there is none.
    """
    top = Path(folder)
    if not top.is_dir():
        raise NotFound("folder of logs", str(folder))
    found = []
    for depth in range(_DEPTH + 1):
        for file in sorted(top.glob("/".join(["*"] * depth + [SCHEMA_FILE]))):
            declared = declared_schema(file.parent)
            if declared is not None and "decision_id" in declared.names:
                found.append(file.parent)
    if not found:
        raise NotFound("decision log", str(folder))
    return found


def read_columns(
    folder: Path, columns: Sequence[str], *, since: int | None = None, until: int | None = None
) -> "pl.DataFrame":
    """Reads columns of a log, with nulls for those that it does not have."""
    import polars as pl

    wanted = list(columns)
    while True:
        try:
            frame = decisions.read(folder, columns=wanted, since=since, until=until)
        except NotFound as error:
            if error.name not in wanted or len(wanted) == 1:
                raise
            wanted.remove(str(error.name))
        else:
            lacking = [pl.lit(None, pl.String).alias(name) for name in columns if name not in wanted]
            return frame.with_columns(lacking).select(list(columns))


def cost_report(
    folder: str | Path,
    *,
    by: By = "model",
    since: int | None = None,
    until: int | None = None,
    prices: Prices | None = None,
) -> CostReport:
    """Adds up what decisions have cost.

    Args:
        folder: A decision log, or a folder with several below it.
        by: What to tell apart.
        since: Event time of the earliest decision, in microseconds, inclusive.
        until: Event time at which the span ends, exclusive.
        prices: What a processor second costs.

    Raises:
        InvalidInput: If `by` is nothing that decisions can be told apart by.
        NotFound: If there is no log.
    """
    import polars as pl

    if by not in BY:
        raise InvalidInput("by", by, f"be one of {', '.join(BY)}")
    logs = log_folders(folder)
    parts = []
    for log in logs:
        frame = read_columns(log, _COLUMNS, since=since, until=until)
        parts.append(frame.with_columns(_key(by).fill_null("").alias("key")).group_by("key").agg(*_sums()))
    sums = pl.concat(parts).group_by("key").agg(pl.all().sum())
    order = sums.sort("key") if by == "day" else sums.sort("seconds", "key", descending=[True, False])
    lines = tuple(_line(row, prices) for row in order.iter_rows(named=True))
    total = {name: sum(row[name] for row in sums.iter_rows(named=True)) for name in sums.columns if name != "key"}
    return CostReport(by=by, lines=lines, total=_line({"key": "all", **total}, prices), logs=tuple(logs), prices=prices)


def _key(by: By) -> "pl.Expr":
    import polars as pl

    if by == "day":
        return pl.col("event_time").dt.strftime("%Y-%m-%d")
    if by == "model":
        # Rules have no number.
        return pl.col("model_version").str.replace(r"/[^/]*$", "")
    return pl.col("model_version" if by == "version" else by).cast(pl.String)


def _sums() -> "list[pl.Expr]":
    import polars as pl

    cost = pl.col("cost")
    known = cost.is_not_null() & cost.is_finite()
    return [
        pl.len().cast(pl.Int64).alias("decisions"),
        (known & (cost == 0)).sum().cast(pl.Int64).alias("hits"),
        (~known).sum().cast(pl.Int64).alias("unknown"),
        cost.filter(known).sum().alias("seconds"),
    ]


def _line(row: dict[str, Any], prices: Prices | None) -> CostLine:
    money = None if prices is None else prices.money(row["seconds"])
    return CostLine(
        key=row["key"],
        decisions=row["decisions"],
        hits=row["hits"],
        unknown=row["unknown"],
        seconds=float(row["seconds"]),
        money=money,
    )


def told_span(since: int | None, until: int | None) -> str:
    """Says which span of time a report is of.

    Example:
        >>> told_span(0, None), told_span(None, None)
        ('from 1970-01-01T00:00:00Z on', 'of all time')
    """
    if since is None and until is None:
        return "of all time"
    begin = "" if since is None else f"from {isoformat(since)}"
    end = " on" if until is None else f" until {isoformat(until)}"
    return f"{begin}{end}".strip()
