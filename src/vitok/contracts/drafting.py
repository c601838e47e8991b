"""Drafts a contract from data: what holds of it today, for its owner to read, mend and sign."""

import datetime as dt
from typing import TYPE_CHECKING, Any

import yaml

from vitok.contracts.contract import Contract
from vitok.contracts.interpretation import interpret
from vitok.contracts.rules import LogicalType
from vitok.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl


def infer(frame: "pl.DataFrame | pl.LazyFrame", *, name: str, version: str = "0.1.0") -> Contract:
    """Drafts a contract from data.

    Types are those of the columns. A column without nulls is required, a text or integer column without repeats is
    unique, and numbers and times get the range they have today. A draft says what was seen, not what must be: ranges
    and uniqueness are to be read by somebody who knows.

    Args:
        frame: The data; NaN and infinities are left out of ranges.
        name: Name of the contract and of its table.
        version: Version of the contract.

    Raises:
        InvalidInput: If a column is of a type that a contract cannot state, or there is none.

    Example:
        >>> import polars as pl
        >>> print(infer(pl.DataFrame({"amount": [1.5, 20.0], "country": ["DE", None]}), name="sales"))
        sales 0.1.0 (draft), owner: not named
        sales:
          amount               number     required; be at least 1.5; be at most 20.0
          country              string     optional
    """
    import polars as pl

    if not isinstance(frame, pl.DataFrame | pl.LazyFrame):
        raise InvalidInput("frame", type(frame).__name__, "be a polars DataFrame or LazyFrame")
    lazy = frame.lazy()
    types = {column: _logical_type(column, dtype) for column, dtype in lazy.collect_schema().items()}
    if not types:
        raise InvalidInput("frame", frame, "have at least one column")
    wanted: list[pl.Expr] = [pl.len().alias("rows")]
    for index, (column, logical_type) in enumerate(types.items()):
        values = pl.col(column)
        wanted.append(values.null_count().alias(f"nulls_{index}"))
        if logical_type in {"string", "integer"}:
            wanted.append(values.drop_nulls().n_unique().alias(f"distinct_{index}"))
        if logical_type in {"number", "integer", "timestamp", "date"}:
            finite = values
            if logical_type == "number":
                number = values.cast(pl.Float64)
                finite = number.filter(number.is_finite())
            wanted += [finite.min().alias(f"low_{index}"), finite.max().alias(f"high_{index}")]
    seen = lazy.select(wanted).collect().row(0, named=True)
    properties = [_property(index, column, types[column], seen) for index, column in enumerate(types)]
    document = {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": name,
        "name": name,
        "version": version,
        "status": "draft",
        "schema": [{"name": name, "logicalType": "object", "properties": properties}],
    }
    return interpret(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def _logical_type(column: str, dtype: "pl.DataType") -> LogicalType:
    import polars as pl

    if dtype == pl.String() or isinstance(dtype, pl.Categorical | pl.Enum):
        return "string"
    if dtype.is_integer():
        return "integer"
    if dtype.is_float() or dtype.is_decimal():
        return "number"
    if dtype == pl.Boolean():
        return "boolean"
    if isinstance(dtype, pl.Datetime):
        return "timestamp"
    if dtype == pl.Date():
        return "date"
    fix = "Convert the column, or leave it out"
    raise InvalidInput(column, dtype, "be of a type that a contract can state", fix)


def _property(index: int, column: str, logical_type: LogicalType, seen: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": column, "logicalType": logical_type}
    rows, nulls = seen["rows"], seen[f"nulls_{index}"]
    if rows and not nulls:
        found["required"] = True
    if rows - nulls > 1 and seen.get(f"distinct_{index}") == rows - nulls:
        found["unique"] = True
    low, high = seen.get(f"low_{index}"), seen.get(f"high_{index}")
    if low is not None and high is not None:
        found["logicalTypeOptions"] = {"minimum": _plain(low), "maximum": _plain(high)}
    return found


def _plain(value: Any) -> int | float | str:
    if isinstance(value, dt.datetime):
        moment = value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)
        return moment.isoformat().replace("+00:00", "Z")
    if isinstance(value, dt.date):
        return value.isoformat()
    return value if isinstance(value, int) else float(value)
