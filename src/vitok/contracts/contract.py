"""A contract as it is used: tables with their fields, rules, promises of volume and of freshness."""

import datetime as dt
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitok.contracts.measures import Measure
from vitok.contracts.rules import Comparison, LogicalType, Metric, Rule, Severity
from vitok.errors import InvalidInput, NotFound, StoreError

if TYPE_CHECKING:
    import polars as pl

    from vitok.contracts.keys import KeyMemory
    from vitok.contracts.matrices import MatrixChecker
    from vitok.contracts.report import CheckReport
    from vitok.contracts.rows import Violation
    from vitok.contracts.streams import BatchChecker

    Reference = pl.DataFrame | pl.LazyFrame | str | Path


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a table.

    Attributes:
        name: Name of the column, and of the key in a request.
        logical_type: Type in the words of ODCS.
        required: True where a null is not allowed.
        description: What it means.
        rules: What a value must be, in the order in which it is checked; `unique` is a matter of the table.
    """

    name: str
    logical_type: LogicalType
    required: bool = False
    description: str = ""
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Key:
    """Fields whose values together belong to one row only.

    Attributes:
        fields: Their names; a row with a null in one of them is not compared.
        rule: The rule `unique`.
    """

    fields: tuple[str, ...]
    rule: Rule


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """How old the newest value of a time may be.

    Attributes:
        table: Name of the table.
        field: A field of type timestamp or date.
        name: `"freshness"` or `"latency"`, as the contract calls it.
        limit: Greatest age in microseconds.
        wanted: The promise as a phrase that follows "must".
        severity: `warn` or `block`.
    """

    table: str
    field: str
    name: str
    limit: int
    wanted: str
    severity: Severity = "warn"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """When data must be there: by a time of the day, or every so often.

    Attributes:
        table: Name of the table.
        field: A field of type timestamp or date.
        name: `"timeOfAvailability"` or `"frequency"`.
        every: Length of a period in microseconds: each of them brings data of its own.
        due: For `timeOfAvailability` the time of day, in microseconds after midnight.
        zone: The time zone of that day: a name such as `"Europe/Berlin"`, or an offset such as `"-08:00"`.
        wanted: The promise as a phrase that follows "must".
        severity: `warn` or `block`.
    """

    table: str
    field: str
    name: str
    every: int
    due: int = 0
    zone: str = "UTC"
    wanted: str
    severity: Severity = "warn"


@dataclass(frozen=True, kw_only=True)
class Relationship:
    """Fields whose values must be there in another table; a row with a null in one of them is not compared.

    Attributes:
        fields: The fields of this table.
        table: Name of the other table, by which its data is given; it may be this one.
        columns: The columns there, in the order of `fields`.
        rule: The rule `relationship`.
    """

    fields: tuple[str, ...]
    table: str
    columns: tuple[str, ...]
    rule: Rule


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A condition on one row, in SQL, that no row may fulfil, or only so many.

    Attributes:
        text: The condition; see `vitok.contracts.predicates`.
        rule: The rule `sql`.
        comparison: How many rows may fulfil it; None where each that does breaks the rule.
        percent: True where that is a share of the rows, in percent.
    """

    text: str
    rule: Rule
    comparison: Comparison | None = None
    percent: bool = False

    @property
    def wanted(self) -> str:
        """The condition as a phrase that follows "must"."""
        if self.comparison is None:
            return self.rule.wanted
        return f"{self.comparison} {'percent' if self.percent else 'rows'} with {self.text}"


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query in SQL that gives one number, and what it must be.

    Attributes:
        text: The query, with the names of the table and the column filled in.
        field: The property it stands under, or "" for the table.
        wanted: What the number must be, as a phrase that follows "must".
        comparison: The same to calculate with.
        severity: `warn` or `block`.
    """

    text: str
    field: str
    wanted: str
    comparison: Comparison
    severity: Severity = "warn"


@dataclass(frozen=True, kw_only=True)
class Table:
    """One schema object of a contract.

    Attributes:
        name: Its name.
        description: What a row is.
        fields: The fields in the order of the contract.
        keys: What must be unique.
        metrics: Numbers counted over the whole table.
        relationships: What must be there in other tables.
        conditions: Conditions on one row, in SQL.
        queries: Queries over the whole table, in SQL.
        measures: Bounds of the distributions of its columns.
    """

    name: str
    description: str = ""
    fields: tuple[Field, ...] = ()
    keys: tuple[Key, ...] = ()
    metrics: tuple[Metric, ...] = ()
    relationships: tuple[Relationship, ...] = ()
    conditions: tuple[Condition, ...] = ()
    queries: tuple[Query, ...] = ()
    measures: tuple[Measure, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(item.name for item in self.fields)

    @property
    def types(self) -> dict[str, str]:
        """Logical types of the fields, by name."""
        return {item.name: item.logical_type for item in self.fields}

    @property
    def row_rules_only(self) -> "Table":
        """The same table without what judges a whole delivery: for rows that are only a part of one."""
        conditions = tuple(item for item in self.conditions if item.comparison is None)
        return replace(self, metrics=(), queries=(), measures=(), conditions=conditions)


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What some data must be, who owns it, and what is promised of it; made by `load` or `infer`.

    Attributes:
        id: Identifier of the contract.
        name: Its name, or its identifier where it has none.
        version: Version of the contract.
        status: Such as `"active"`.
        api_version: Version of the Open Data Contract Standard it is written in.
        owner: Who answers for the data, or "".
        description: What the data is for, or "".
        tables: The schema objects.
        freshness: How old the data may be.
        deliveries: When data must be there.
        not_checked: What the contract says and this room keeps but does not check, a sentence each.
        text: The contract as it was written; `dump` writes it back.
    """

    id: str
    name: str
    version: str
    status: str
    api_version: str
    owner: str
    description: str
    tables: tuple[Table, ...]
    freshness: tuple[Freshness, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    not_checked: tuple[str, ...] = ()
    text: str = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the text in hexadecimal: what a training run notes down as its contract."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def table(self, name: str | None = None) -> Table:
        """Returns a schema object by its name; without one, the only one there is.

        Raises:
            NotFound: If there is none of that name.
            InvalidInput: If no name is given and there are several.
        """
        if name is None:
            if len(self.tables) > 1:
                names = ", ".join(table.name for table in self.tables)
                raise InvalidInput("schema", None, f"name one of the tables of {self.name}: {names}")
            return self.tables[0]
        for table in self.tables:
            if table.name == name:
                return table
        raise NotFound(f"table in contract {self.name}:", name, [table.name for table in self.tables])

    def check(
        self,
        frame: "pl.DataFrame | pl.LazyFrame",
        *,
        now: int | None = None,
        schema: str | None = None,
        expected_rows: int | None = None,
        volume_history: "pl.DataFrame | None" = None,
        day: dt.date | None = None,
        arrived: int | None = None,
        references: "Mapping[str, Reference] | None" = None,
    ) -> "CheckReport":
        """Checks a table in one pass and parts its rows into accepted and rejected.

        A lazy frame is read once, and a second time where a key is there twice; what it reads must not change
        meanwhile. It may be larger than memory: held are eight bytes a row for each key, the keys of other tables,
        and up to a million rejected rows.

        Args:
            frame: The data. Columns that the contract does not know are kept as they are.
            now: Present time in microseconds; without it freshness is reported as skipped.
            schema: Name of the table in the contract; may be left out where there is one only.
            expected_rows: How many rows were to be expected, at least 1. A `rowCount` in percent is a share of
                it; where the contract has none, a count more than 10 % off is reported.
            volume_history: How many rows came on other days, as columns `day` (dates) and `count`: rows are expected
                as on the same day of the week. Only where `expected_rows` is not given.
            day: The day that this delivery is counted for in `volume_history`; by default that of `now`, in UTC.
            arrived: When this delivery arrived, in microseconds: the second clock of `timeOfAvailability`, and that
                of `frequency`.
            references: Data of the tables that relationships point to, by name: a frame, or a file that
                `vitok.contracts.files.scan` can open. A table may point to itself without it.

        Returns:
            The report with the accepted rows, cast to the contract's types, and the rejected ones with reasons.

        Raises:
            ContractBroken: If a column is missing or of another type, more than half of a column's texts cannot be
                read as its type, or a rule of severity `block` is broken.
            InvalidInput: If an argument is wrong.
            StoreError: If the data cannot be read, or changed while it was.
        """
        from vitok.contracts.batch import check

        return check(
            self,
            self.table(schema),
            frame,
            now=now,
            expected_rows=expected_rows,
            volume_history=volume_history,
            day=day,
            arrived=arrived,
            references=references,
        )

    def batch_checker(
        self,
        table: str | None = None,
        *,
        keys: "KeyMemory | None" = None,
        references: "Mapping[str, Reference] | None" = None,
    ) -> "BatchChecker":
        """Compiles the rules of a table for the batches of a stream, which share one memory.

        Args:
            table: Name of the table; may be left out where there is one only.
            keys: Remembers accepted keys and counts for a period, also over restarts; by default it remembers a day
                and ends with the process.
            references: As `check` takes them; read once, when they are first needed.

        Returns:
            A checker; see `BatchChecker`.
        """
        from vitok.contracts.streams import BatchChecker

        return BatchChecker(self, self.table(table), keys=keys, references=references)

    def row_checker(
        self,
        table: str | None = None,
        *,
        extra: Literal["reject", "ignore"] = "reject",
        references: "Mapping[str, Reference] | None" = None,
    ) -> "Callable[[Mapping[str, Any]], list[Violation]]":
        """Compiles the rules of a table into a function that checks one request.

        It says the same as `check` says of a table, but for uniqueness, volume and freshness, which one row cannot
        show, and rules of severity `warn`, which refuse nothing. A request is typed by JSON: where a file may have
        numbers as text, a request may not.

        Args:
            table: Name of the table; may be left out where there is one only.
            extra: What to do about keys that the contract does not know.
            references: As `check` takes them; read now, and held in memory. A relationship to a table that is not
                given is not checked.

        Returns:
            A function from a request to its violations, none where it is good. A key that is not there counts as
            null.
        """
        from vitok.contracts.rows import compile_checker

        chosen = self.table(table)
        known: dict[int, frozenset[Any]] = {}
        if references:
            from vitok.contracts.references import key_sets

            known = key_sets(chosen, references)
        return compile_checker(chosen, extra=extra, references=known)

    def matrix_checker(self, names: Sequence[str], table: str | None = None) -> "MatrixChecker":
        """Compiles the rules of a table for rows of numbers, such as the features that a model is asked about.

        Args:
            names: Fields of the columns, in order; the table's other fields are not looked at.
            table: Name of the table; may be left out where there is one only.

        Returns:
            A checker from a matrix of shape (n, number of names) to the violations of its rows.

        Raises:
            InvalidInput: If a column is no field of the table, or no number.
        """
        from vitok.contracts.matrices import MatrixChecker

        return MatrixChecker(self.table(table), names)

    def json_schema(self, table: str | None = None) -> dict[str, Any]:
        """Writes a table as a JSON Schema (2020-12), as an OpenAPI 3.1 document wants it.

        Args:
            table: Name of the table; may be left out where there is one only.
        """
        from vitok.contracts.rows import json_schema

        return json_schema(self.table(table))

    def dump(self, path: str | Path) -> None:
        """Writes the contract to a file, whole or not at all, byte for byte as it was read.

        Raises:
            StoreError: If the file cannot be written.
        """
        target = Path(path)
        draft = target.with_name(target.name + ".part")
        try:
            draft.write_bytes(self.text.encode())
            draft.replace(target)
        except OSError as error:
            raise StoreError(f"contract {target} cannot be written: {error}") from error

    def __str__(self) -> str:
        lines = [f"{self.name} {self.version} ({self.status}), owner: {self.owner or 'not named'}"]
        for table in self.tables:
            lines.append(f"{table.name}:")
            for item in table.fields:
                words = [rule.wanted for rule in item.rules if rule.name not in {"required", "type", "finite"}]
                need = "required" if item.required else "optional"
                lines.append(f"  {item.name:<20} {item.logical_type:<10} {need}" + "".join(f"; {w}" for w in words))
            lines.extend(f"  unique: {', '.join(key.fields)}" for key in table.keys)
            lines.extend(f"  {m.name} {' '.join(m.fields)}".rstrip() + f" must {m.wanted}" for m in table.metrics)
            fresh = [item for item in self.freshness if item.table == table.name]
            lines.extend(f"  {item.name} of {item.field} must {item.wanted}" for item in fresh)
            lines.extend(f"  {', '.join(r.fields)} must {r.rule.wanted}" for r in table.relationships)
            lines.extend(f"  rows must {item.wanted}" for item in table.conditions)
            lines.extend(f"  {item.text} must {item.wanted}" for item in table.queries)
            lines.extend(f"  {item.label} of {item.field} must {item.wanted}" for item in table.measures)
            coming = [item for item in self.deliveries if item.table == table.name]
            lines.extend(f"  {item.name} of {item.field} must {item.wanted}" for item in coming)
        return "\n".join(lines)
