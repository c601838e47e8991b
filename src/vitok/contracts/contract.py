"""A contract as it is used: tables with their fields, rules, promises of volume and of freshness."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitok.contracts.rules import LogicalType, Metric, Rule, Severity
from vitok.errors import InvalidInput, NotFound, StoreError

if TYPE_CHECKING:
    import polars as pl

    from vitok.contracts.report import CheckReport
    from vitok.contracts.rows import Violation


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
class Table:
    """One schema object of a contract.

    Attributes:
        name: Its name.
        description: What a row is.
        fields: The fields in the order of the contract.
        keys: What must be unique.
        metrics: Numbers counted over the whole table.
    """

    name: str
    description: str = ""
    fields: tuple[Field, ...] = ()
    keys: tuple[Key, ...] = ()
    metrics: tuple[Metric, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(item.name for item in self.fields)


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
    ) -> "CheckReport":
        """Checks a table in one pass and parts its rows into accepted and rejected.

        Args:
            frame: The data. Columns that the contract does not know are kept as they are.
            now: Present time in microseconds; without it freshness is reported as skipped.
            schema: Name of the table in the contract; may be left out where there is one only.
            expected_rows: How many rows were to be expected, at least 1. A `rowCount` in percent is a share of
                it; where the contract has none, a count more than 10 % off is reported.

        Returns:
            The report with the accepted rows, cast to the contract's types, and the rejected ones with reasons.

        Raises:
            ContractBroken: If a column is missing or of another type, more than half of a column's texts cannot be
                read as its type, or a rule of severity `block` is broken.
            InvalidInput: If an argument is wrong.
        """
        from vitok.contracts.batch import check

        return check(self, self.table(schema), frame, now=now, expected_rows=expected_rows)

    def row_checker(
        self, table: str | None = None, *, extra: Literal["reject", "ignore"] = "reject"
    ) -> "Callable[[Mapping[str, Any]], list[Violation]]":
        """Compiles the rules of a table into a function that checks one request.

        It says the same as `check` says of a table, but for uniqueness, volume and freshness, which one row cannot
        show, and rules of severity `warn`, which refuse nothing. A request is typed by JSON: where a file may have
        numbers as text, a request may not.

        Args:
            table: Name of the table; may be left out where there is one only.
            extra: What to do about keys that the contract does not know.

        Returns:
            A function from a request to its violations, none where it is good. A key that is not there counts as
            null.
        """
        from vitok.contracts.rows import compile_checker

        return compile_checker(self.table(table), extra=extra)

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
        return "\n".join(lines)
