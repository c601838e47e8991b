"""Relationships to other tables: read from a contract, and the keys of those tables read from their data."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok.contracts import document as read
from vitok.contracts.contract import Field, Relationship, Table
from vitok.contracts.rules import Severity, rule
from vitok.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl

    from vitok.contracts.contract import Reference

_KEYS = read.keys("id type from to description customProperties authoritativeDefinitions tags")
_NUMERIC = frozenset({"integer", "number"})


class Elements:
    """Tables and columns of a document by the two notations of the standard: `table.column` and paths of ids."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._columns: dict[str, tuple[str, str]] = {}
        for item in read.entries(document.get("schema"), "schema"):
            for entry in read.entries(item.get("properties"), "schema") if isinstance(item, dict) else ():
                if not isinstance(entry, dict):
                    continue
                found = (str(item.get("name")), str(entry.get("name")))
                self._columns[".".join(found)] = found
                self._columns[f"schema/{item.get('id')}/properties/{entry.get('id')}"] = found

    def find(self, text: str, where: str) -> tuple[str, str] | None:
        """Finds what a reference points to, or None where only another contract could say it.

        Raises:
            InvalidInput: If this contract has no such column.
        """
        contract, _, path = text.rpartition("#")
        path = path.strip("/")
        if contract:
            table, _, column = path.partition(".")
            return (table, column) if column and "/" not in path else None
        found = self._columns.get(path)
        if found is None:
            names = [name for name in self._columns if "/" not in name]
            raise InvalidInput(where, text, "be a column of the contract", f"There is: {', '.join(names[:12])}")
        return found


def relationships(
    value: object,
    where: str,
    table: str,
    column: str,
    types: Mapping[str, str],
    elements: Elements,
    severity: Mapping[str, Severity],
    not_checked: list[str],
) -> list[Relationship]:
    """Reads the relationships of a property, or of a table.

    Args:
        value: The list as the contract has it.
        where: Its path, for messages.
        table: The table it stands in.
        column: The property it stands under, or "" for the table.
        types: Logical types of the table's columns.
        elements: What references point to.
        severity: Severity of each entry by its path.
        not_checked: Gets a sentence for each that cannot be checked here.

    Raises:
        InvalidInput: If an entry is not what the standard says.
    """
    found = []
    for position, item in enumerate(read.entries(value, where)):
        inner = f"{where}[{position}]"
        entry = read.mapping(item, inner)
        read.known_keys(entry, _KEYS, inner)
        if entry.get("type", "foreignKey") != "foreignKey":
            not_checked.append(f"{column or table}: relationship of type {entry['type']}")
            continue
        if column and "from" in entry:
            raise InvalidInput(f"{inner}.from", entry["from"], "be left out under a property, which it is")
        sources: Sequence[str] = [column]
        targets = _texts(entry.get("to"), f"{inner}.to")
        if not column:
            sources = [
                _source(text, table, types, elements, f"{inner}.from")
                for text in _texts(entry.get("from"), f"{inner}.from")
            ]
        if len(sources) != len(targets) or (not column and type(entry["from"]) is not type(entry["to"])):
            raise InvalidInput(inner, entry, "have as many columns in from as in to")
        places = [elements.find(text, f"{inner}.to") for text in targets]
        known = [place for place in places if place is not None]
        if len(known) != len(places):
            not_checked.append(f"{column or table}: relationship to {', '.join(targets)}, which another contract names")
            continue
        if len({name for name, _ in known}) != 1:
            raise InvalidInput(f"{inner}.to", targets, "be columns of one table")
        other = known[0][0]
        target = f"{other}.{','.join(name for _, name in known)}"
        found.append(
            Relationship(
                fields=tuple(sources),
                table=other,
                columns=tuple(name for _, name in known),
                rule=rule(",".join(sources), "relationship", target, severity=severity.get(inner, "quarantine")),
            )
        )
    return found


def _texts(value: object, where: str) -> list[str]:
    return [read.text(item, where) for item in (value if isinstance(value, list) and value else [value])]


def _source(text: str, table: str, types: Mapping[str, str], elements: Elements, where: str) -> str:
    found = elements.find(text, where) if "." in text or "/" in text else (table, text)
    if found is None or found[0] != table or found[1] not in types:
        raise InvalidInput(where, text, f"be a column of {table}")
    return found[1]


def refuse_types(tables: Sequence[Table]) -> None:
    """Refuses a relationship between columns of which no value can be the same.

    Raises:
        InvalidInput: If the types of two related columns of the contract differ.
    """
    types = {table.name: table.types for table in tables}
    for table in tables:
        for item in table.relationships:
            for name, column in zip(item.fields, item.columns, strict=True):
                pair = {table.types[name], types.get(item.table, {}).get(column, table.types[name])}
                if len(pair) > 1 and not pair <= _NUMERIC:
                    where = f"schema.{table.name}.{name}.relationships"
                    raise InvalidInput(where, f"{item.table}.{column}", f"be of type {table.types[name]}")


def refuse_names(tables: Sequence[Table], references: Collection[str]) -> None:
    """Refuses data of a table that no relationship points to: it is misspelt.

    Raises:
        InvalidInput: If there is such data.
    """
    known = sorted({item.table for table in tables for item in table.relationships})
    for name in references:
        if name not in known:
            fix = f"The contract points to {', '.join(known) or 'no other table'}"
            raise InvalidInput("references", name, "be a table that a relationship points to", fix)


def key_frames(table: Table, references: "Mapping[str, Reference]") -> "dict[int, pl.DataFrame]":
    """Reads the keys that relationships point to.

    Args:
        table: The table that points to them.
        references: Data by table.

    Returns:
        By the place of the relationship, each key once, in columns named by their place and of the types of the
        fields that point to them.

    Raises:
        InvalidInput: If a column is not there or of another type.
    """
    from vitok.contracts.columns import conversion

    found = {}
    for index, item in enumerate(table.relationships):
        if item.table not in references:
            continue
        frame = _opened(references[item.table], item.table)
        schema = frame.collect_schema()
        chosen = []
        for place, (name, column) in enumerate(zip(item.fields, item.columns, strict=True)):
            if column not in schema:
                listed = ", ".join(list(schema)[:12])
                raise InvalidInput(f"references.{item.table}", listed, f"have the column {column}")
            read_as = conversion(
                Field(name=column, logical_type=table.fields[table.names.index(name)].logical_type), schema[column]
            )
            if read_as is None:
                rule = f"be readable as {table.types[name]}, as {name} is"
                raise InvalidInput(f"references.{item.table}.{column}", str(schema[column]), rule)
            chosen.append(read_as.value.alias(str(place)))
        found[index] = frame.select(chosen).drop_nulls().unique().collect(engine="streaming")
    return found


def _opened(value: object, name: str) -> "pl.LazyFrame":
    import polars as pl

    if isinstance(value, str | Path):
        from vitok.contracts.files import scan

        return scan(value)
    if isinstance(value, pl.DataFrame | pl.LazyFrame):
        return value.lazy()
    raise InvalidInput(f"references.{name}", type(value).__name__, "be a polars frame or a file")


def key_sets(table: Table, references: "Mapping[str, Reference]") -> dict[int, frozenset[Any]]:
    """Reads the keys that relationships point to as single rows compare them: times as microseconds, dates as days.

    Returns:
        By the place of the relationship; of several columns, tuples.
    """
    import polars as pl

    refuse_names([table], references)
    found: dict[int, frozenset[Any]] = {}
    for index, frame in key_frames(table, references).items():
        plain = frame.select(pl.all().to_physical())
        found[index] = frozenset(plain.to_series() if plain.width == 1 else plain.iter_rows())
    return found
