"""Compiles a table of a contract for data of certain columns: what is read of it, and what is counted in one pass."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl

from vitok.contracts import columns, measures, predicates
from vitok.contracts.contract import Contract, Delivery, Field, Freshness, Key, Table
from vitok.contracts.rules import Metric, Rule
from vitok.errors import ContractBroken, InvalidInput, StoreError

Engine = Literal["streaming", "in-memory"]
Counts = dict[str, int | float | None]
PREFIX = "__vitok_"
BROKEN = f"{PREFIX}broken"
PLACE = f"{PREFIX}place"
ADDED = ("reason", "rules")
ROWS = "rows"
# Below it the streaming engine takes longer to start than to run.
_SMALL = 200_000


@dataclass(frozen=True)
class Mask:
    """One rule as a column of booleans that are true where it is broken.

    Attributes:
        name: Name of the column.
        rule: The rule.
        broken: The column; it may be null where nothing is known, which is not true.
        checked: Names of the counts that add up to how many values it looked at; a minus takes one away.
    """

    name: str
    rule: Rule
    broken: pl.Expr
    checked: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What one pass over the data found.

    Attributes:
        counts: Numbers by name.
        twice: By the place of the key, hashes that more than one row has; only keys that have some.
        suspects: The places of the rows that have such a hash, in order.
        broken: Rows that break a rule of single rows, as they came, with their place; None where they are too many.
    """

    counts: Counts
    twice: dict[int, pl.Series]
    suspects: pl.Series
    broken: pl.DataFrame | None


class Plan:
    """The rules of a table over columns of certain types.

    Args:
        contract: The contract.
        table: One of its tables.
        schema: Names and types of the columns that come.
        keys: Keys of other tables, by the place of the relationship.

    Raises:
        ContractBroken: If a column is missing or cannot be read as its type.
        InvalidInput: If a column has a name that the report adds.
    """

    def __init__(
        self,
        contract: Contract,
        table: Table,
        schema: Mapping[str, pl.DataType],
        keys: Mapping[int, pl.DataFrame] | None = None,
    ) -> None:
        for name in schema:
            if name in ADDED or name.startswith(PREFIX):
                raise InvalidInput(
                    "frame", name, "not be the name of a column", "The report adds it; rename the column"
                )
        self.contract, self.table, self.schema = contract, table, dict(schema)
        self.references = dict(keys or {})
        self.conversions = _conversions(contract, table, schema)
        self.values: dict[str, pl.Expr] = {}
        self.known: dict[str, pl.Expr] = {}
        self._read: list[pl.Expr] = []
        self._finite: list[pl.Expr] = []
        for index, (field, item) in enumerate(zip(table.fields, self.conversions, strict=True)):
            value = pl.col(field.name)
            if schema[field.name] != columns.TYPES[field.logical_type]:
                self._read.append(item.value.alias(f"{PREFIX}value_{index}"))
                value = pl.col(f"{PREFIX}value_{index}")
            self.values[field.name] = self.known[field.name] = value
            if field.logical_type == "number":
                self._finite.append(pl.when(value.is_finite()).then(value).alias(f"{PREFIX}known_{index}"))
                self.known[field.name] = pl.col(f"{PREFIX}known_{index}")
        self.masks = [*self._field_masks(), *self._condition_masks(), *self._relationship_masks()]

    @property
    def fresh(self) -> list[Freshness]:
        """What the contract says of how old this table may be."""
        return [item for item in self.contract.freshness if item.table == self.table.name]

    @property
    def deliveries(self) -> list[Delivery]:
        """What the contract says of when this table must be there."""
        return [item for item in self.contract.deliveries if item.table == self.table.name]

    @property
    def promised(self) -> tuple[str, ...]:
        """The times of which the newest one is looked for."""
        names = [item.field for item in self.fresh] + [item.field for item in self.deliveries]
        return tuple(dict.fromkeys(names))

    def _field_masks(self) -> list[Mask]:
        masks: list[Mask] = []
        for index, (field, item) in enumerate(zip(self.table.fields, self.conversions, strict=True)):
            raw, value, known = pl.col(field.name), self.values[field.name], self.known[field.name]
            readable = (f"given_{index}",) if item.unreadable is None else (f"value_{index}",)
            finite: tuple[str, ...] = ()
            for rule in field.rules:
                name = f"{PREFIX}mask_{len(masks)}"
                if rule.name == "type":
                    broken = item.unreadable if item.unreadable is not None else pl.lit(value=False)
                    masks.append(Mask(name, rule, broken, (f"given_{index}",)))
                elif rule.name == "required":
                    masks.append(Mask(name, rule, raw.is_null(), (ROWS,)))
                elif rule.name == "finite":
                    masks.append(Mask(name, rule, ~value.is_finite(), readable))
                    finite = (f"-{name}",)
                else:
                    broken = columns.broken(rule, known, field.logical_type)
                    masks.append(Mask(name, rule, broken, (*readable, *finite)))
        return masks

    def _condition_masks(self) -> list[Mask]:
        return [
            Mask(f"{PREFIX}condition_{index}", item.rule, self._condition(item.text), (ROWS,))
            for index, item in enumerate(self.table.conditions)
            if item.comparison is None
        ]

    def _condition(self, text: str) -> pl.Expr:
        return predicates.parse(text, self.table.types).column(self._plain).fill_null(value=False)

    @cached_property
    def _plain(self) -> dict[str, pl.Expr]:
        """Known values as conditions compare them: times as microseconds, dates as days."""
        timed = {"timestamp", "date"}
        return {
            name: known.to_physical().cast(pl.Int64) if self.table.types[name] in timed else known
            for name, known in self.known.items()
        }

    def _relationship_masks(self) -> list[Mask]:
        masks = []
        for index in self.references:
            item = self.table.relationships[index]
            complete = pl.all_horizontal(self.known[name].is_not_null() for name in item.fields)
            broken = complete & pl.col(f"{PREFIX}there_{index}").is_null()
            masks.append(Mask(f"{PREFIX}relation_{index}", item.rule, broken, (f"related_{index}",)))
        return masks

    def _metric_mask(self, metric: Metric) -> pl.Expr:
        return pl.any_horizontal(
            columns.broken(
                rule,
                pl.col(rule.field) if rule.name == "required" else self.known[rule.field],
                self.table.types[rule.field],
            )
            for rule in metric.rules
        )

    def marked(self, lazy: pl.LazyFrame, masks: Collection[Mask] | None = None) -> pl.LazyFrame:
        """Adds what is read of each column, a mask for each rule of single rows, and which rows break one of them.

        Args:
            lazy: The data.
            masks: The rules that are looked at; all of them by default.
        """
        return self.judged(self.valued(lazy), self.masks if masks is None else masks)

    def valued(self, lazy: pl.LazyFrame) -> pl.LazyFrame:
        """Adds what is read of each column."""
        return lazy.with_columns(self._read).with_columns(self._finite)

    def judged(self, lazy: pl.LazyFrame, masks: Collection[Mask]) -> pl.LazyFrame:
        """Adds to `valued` a mask for each of some rules, and which rows break one of them."""
        names_of_masks = {mask.name for mask in masks}
        for index, keys in self.references.items():
            if f"{PREFIX}relation_{index}" not in names_of_masks:
                continue
            names = self.table.relationships[index].fields
            there = f"{PREFIX}there_{index}"
            lazy = lazy.join(
                keys.lazy().with_columns(pl.lit(value=True).alias(there)),
                left_on=[self.known[name] for name in names],
                right_on=[pl.col(str(place)) for place in range(len(names))],
                how="left",
                maintain_order="left",
            )
        rejecting = [mask.name for mask in masks if mask.rule.severity != "warn"]
        broken = pl.any_horizontal(rejecting) if rejecting else pl.lit(value=False)
        return lazy.with_columns(mask.broken.alias(mask.name) for mask in masks).with_columns(
            broken.fill_null(value=False).alias(BROKEN)
        )

    def complete(self, key: Key) -> pl.Expr:
        """True for the rows in which no part of a key is null."""
        return pl.all_horizontal(self.values[name].is_not_null() for name in key.fields)

    def compared(self, key: Key) -> pl.Expr:
        """True for the rows whose key is compared: no part is null, and the row keeps all other rules.

        A bad row never displaces a good one of its key.
        """
        return self.complete(key) & ~pl.col(BROKEN)

    def hashed(self, key: Key) -> pl.Expr:
        """64 bits of each key; equal keys have equal bits, and bits that differ prove that the keys do."""
        return self.whole(key).hash()

    def whole(self, key: Key) -> pl.Expr:
        """The key as one column."""
        if len(key.fields) == 1:
            return self.values[key.fields[0]]
        return pl.struct(self.values[name] for name in key.fields)

    def aggregates(self, now: int | None) -> list[pl.Expr]:
        """Writes everything that is counted, as expressions over `marked`."""
        wanted = {ROWS: pl.len(), BROKEN: pl.col(BROKEN).sum()}
        for index, (field, item) in enumerate(zip(self.table.fields, self.conversions, strict=True)):
            wanted[f"given_{index}"] = pl.col(field.name).count()
            if item.unreadable is not None:
                wanted[f"value_{index}"] = self.values[field.name].count()
        wanted |= {mask.name: pl.col(mask.name).sum() for mask in self.masks}
        for index in self.references:
            names = self.table.relationships[index].fields
            wanted[f"related_{index}"] = pl.all_horizontal(self.known[name].is_not_null() for name in names).sum()
        wanted |= {f"key_{index}_n": self.compared(key).sum() for index, key in enumerate(self.table.keys)}
        for index, metric in enumerate(self.table.metrics):
            if metric.name == "duplicateValues":
                key = metric_key(metric)
                compared = self.complete(key)
                wanted[f"metric_{index}_n"] = compared.sum()
                wanted[f"metric_{index}_distinct"] = self.hashed(key).filter(compared).n_unique()
            elif metric.rules:
                wanted[f"metric_{index}"] = self._metric_mask(metric).sum()
        for index, condition in enumerate(self.table.conditions):
            if condition.comparison is not None:
                wanted[f"condition_{index}"] = self._condition(condition.text).sum()
        for index, measure in enumerate(self.table.measures):
            members = columns.members(measure.values, self.table.types[measure.field])
            value, clean = self.values[measure.field], ~pl.col(BROKEN)
            found = measures.aggregates(measure, self._plain[measure.field], clean, members)
            if self.table.types[measure.field] == "number" and measure.name == "psi":
                found |= measures.special(value, clean)
            wanted |= {f"measure_{index}_{name}": item for name, item in found.items()}
        for name in self.promised:
            moment = self.values[name].cast(pl.Datetime("us")).to_physical()
            usable = ~pl.col(BROKEN) & (moment <= now if now is not None else pl.lit(value=True))
            wanted[f"newest_{name}"] = moment.filter(usable).max()
            wanted[f"future_{name}"] = (moment > now if now is not None else pl.lit(value=False)).sum()
        return [item.alias(name) for name, item in wanted.items()]

    def count(self, lazy: pl.LazyFrame, now: int | None, engine: Engine, *, most: int) -> Counted:
        """Counts everything in one pass, which also brings the broken rows.

        Of each key the hashes are kept, eight bytes a row, until they are compared.

        Args:
            lazy: The data.
            now: Present time in microseconds, or None.
            engine: What runs it.
            most: More broken rows than these are not kept.

        Raises:
            ContractBroken: If most values of a column cannot be read as its type.
            StoreError: If the data cannot be read.
        """
        marked = self.marked(lazy.with_row_index(PLACE))
        numbers, broken, *keys = collect_all(
            [
                marked.select(self.aggregates(now)),
                marked.filter(pl.col(BROKEN)).select(PLACE, *self.schema).head(most),
                # Null where the row is not compared, so that the place of a hash is the place of its row.
                *(marked.select(pl.when(self.compared(key)).then(self.hashed(key))) for key in self.table.keys),
            ],
            engine,
        )
        counts = numbers.row(0, named=True)
        self._refuse_unreadable(counts)
        twice: dict[int, pl.Series] = {}
        places = [pl.Series(dtype=pl.UInt32)]
        for index, frame in enumerate(keys):
            hashes = frame.to_series()
            ordered = np.sort(hashes.drop_nulls().to_numpy())
            repeated = ordered[1:][ordered[1:] == ordered[:-1]]
            if repeated.size:
                twice[index] = pl.Series(np.unique(repeated))
                places.append(hashes.is_in(twice[index].implode()).arg_true())
        suspects = places[-1] if len(places) < 3 else pl.concat(places).unique().sort()
        kept = broken if int(counts[BROKEN] or 0) <= most else None
        return Counted(counts=counts, twice=twice, suspects=suspects, broken=kept)

    def count_marked(self, marked: pl.DataFrame, now: int) -> Counts:
        """Counts everything but keys in rows that `marked` has marked.

        Raises:
            ContractBroken: If most values of a column cannot be read as its type.
        """
        counts = marked.select(self.aggregates(now)).row(0, named=True)
        self._refuse_unreadable(counts)
        return counts

    def failing(self, counts: Counts) -> list[Mask]:
        """The rules that some rows break and that take rows out: all that a second read has to look at."""
        return [mask for mask in self.masks if counts[mask.name] and mask.rule.severity != "warn"]

    def checked(self, mask: Mask, counts: Counts) -> int:
        """How many values a rule looked at."""
        total = 0
        for name in mask.checked:
            total += int(-(counts[name[1:]] or 0) if name.startswith("-") else counts[name] or 0)
        return total

    def _refuse_unreadable(self, counts: Counts) -> None:
        """Most values of a column unreadable: it is the wrong column or the wrong format, not some bad rows."""
        problems = []
        for mask in self.masks:
            failed, checked = counts[mask.name] or 0, self.checked(mask, counts)
            if mask.rule.name == "type" and failed * 2 > checked:
                name = mask.rule.field
                problems.append(
                    f"column {name!r} is of type {self.schema[name]}; {self.table.types[name]} is wanted, and "
                    f"{failed:,} of {checked:,} values cannot be read as such (each must {mask.rule.wanted}). Convert "
                    f"it, map another column to {name!r}, or change logicalType in the contract"
                )
        if problems:
            raise ContractBroken(_broken_text(self.contract, self.table, problems))


def metric_key(metric: Metric) -> Key:
    """The columns of which a metric counts repeats, as a key."""
    return Key(
        fields=metric.fields,
        rule=Rule(field=",".join(metric.fields), name=metric.name, wanted=metric.wanted, severity="warn"),
    )


def engine_for(frame: pl.DataFrame | pl.LazyFrame) -> Engine:
    """The streaming engine for what may be larger than memory, the other one for what is small."""
    return "in-memory" if isinstance(frame, pl.DataFrame) and frame.height < _SMALL else "streaming"


def collect(lazy: pl.LazyFrame, engine: Engine) -> pl.DataFrame:
    """Runs a query.

    Raises:
        StoreError: If the data cannot be read.
    """
    return collect_all([lazy], engine)[0]


def collect_all(lazy: Sequence[pl.LazyFrame], engine: Engine) -> list[pl.DataFrame]:
    """Runs queries together: what they share is read and computed once.

    Raises:
        StoreError: If the data cannot be read.
    """
    try:
        return pl.collect_all(lazy, engine=engine)
    except (pl.exceptions.PolarsError, OSError) as error:
        problem = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise StoreError(f"the data cannot be read: {problem}") from error


def _conversions(contract: Contract, table: Table, schema: Mapping[str, pl.DataType]) -> list[columns.Conversion]:
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
