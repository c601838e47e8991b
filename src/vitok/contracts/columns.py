"""Reads a column as the type that a contract gives it, and states each rule as an expression over the column."""

from dataclasses import dataclass

import polars as pl

from vitok.contracts.contract import Field
from vitok.contracts.readers import DATE, TIME
from vitok.contracts.rows import LONGEST_SHOWN
from vitok.contracts.rules import Rule, patterns

_FEW_TEXTS = 6
_UTC_TIME = pl.Datetime("us", "UTC")
TYPES: dict[str, pl.DataType] = {
    "string": pl.String(),
    "number": pl.Float64(),
    "integer": pl.Int64(),
    "boolean": pl.Boolean(),
    "timestamp": _UTC_TIME,
    "date": pl.Date(),
}


@dataclass(frozen=True)
class Conversion:
    """A column read as another type.

    Attributes:
        value: The column in the contract's type; null also where it cannot be read.
        unreadable: True where a value is there and cannot be read; None where every value can.
    """

    value: pl.Expr
    unreadable: pl.Expr | None = None


def conversion(field: Field, dtype: pl.DataType) -> Conversion | None:
    """Says how a column of type `dtype` becomes the field's type without losing anything, or None if it cannot."""
    column = pl.col(field.name)
    wanted = TYPES[field.logical_type]
    if dtype == wanted:
        return Conversion(column)
    if dtype == pl.Null():
        return Conversion(column.cast(wanted))
    text = dtype == pl.String() or isinstance(dtype, pl.Categorical | pl.Enum)
    if text:
        column = column.cast(pl.String)
    match field.logical_type:
        case "string":
            return Conversion(column.cast(pl.String)) if text or dtype.is_integer() else None
        case "number":
            return _number(column, dtype, text=text)
        case "integer":
            return _integer(column, dtype, text=text)
        case "boolean":
            return _boolean(column, dtype, text=text)
        case "timestamp":
            return _timestamp(column, dtype, text=text)
        case _:
            return _date(column, dtype, text=text)


def _checked(column: pl.Expr, value: pl.Expr, same: pl.Expr) -> Conversion:
    readable = value.is_not_null() & same.fill_null(value=False)
    return Conversion(pl.when(readable).then(value), column.is_not_null() & ~readable)


def _parsed(column: pl.Expr, value: pl.Expr) -> Conversion:
    return Conversion(value, column.is_not_null() & value.is_null())


def _number(column: pl.Expr, dtype: pl.DataType, *, text: bool) -> Conversion | None:
    if text:
        return _parsed(column, column.str.strip_chars().cast(pl.Float64, strict=False))
    value = column.cast(pl.Float64)
    if dtype.is_float() or dtype in (pl.Int8(), pl.Int16(), pl.Int32(), pl.UInt8(), pl.UInt16(), pl.UInt32()):
        return Conversion(value)
    if dtype.is_integer() or dtype.is_decimal():
        return _checked(column, value, value.cast(dtype, strict=False) == column)
    return None


def _integer(column: pl.Expr, dtype: pl.DataType, *, text: bool) -> Conversion | None:
    value = column.cast(pl.Int64, strict=False)
    if text:
        return _parsed(column, column.str.strip_chars().cast(pl.Int64, strict=False))
    if dtype == pl.Boolean() or (dtype.is_signed_integer() and dtype != pl.Int128()):
        return Conversion(value)
    if dtype.is_integer():
        return _parsed(column, value)
    if dtype.is_float() or dtype.is_decimal():
        return _checked(column, value, value.cast(dtype, strict=False) == column)
    return None


def _boolean(column: pl.Expr, dtype: pl.DataType, *, text: bool) -> Conversion | None:
    if text:
        word = column.str.to_lowercase()
        return _parsed(column, pl.when(word == "true").then(statement=True).when(word == "false").then(statement=False))
    if dtype.is_integer():
        return _parsed(column, pl.when(column == 1).then(statement=True).when(column == 0).then(statement=False))
    return None


def _timestamp(column: pl.Expr, dtype: pl.DataType, *, text: bool) -> Conversion | None:
    if text:
        return _parsed(column, _timestamp_of_text(column))
    if dtype == pl.Date():
        return Conversion(column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC"))
    if not isinstance(dtype, pl.Datetime):
        return None
    zoned = column.dt.replace_time_zone("UTC") if dtype.time_zone is None else column.dt.convert_time_zone("UTC")
    value = zoned.cast(_UTC_TIME)
    if dtype.time_unit != "ns":
        return Conversion(value)
    return _checked(column, value, zoned.to_physical() % 1000 == 0)


def _timestamp_of_text(column: pl.Expr) -> pl.Expr:
    parts = column.str.extract_groups(f"^({DATE}){TIME}$")

    def part(number: int) -> pl.Expr:
        return parts.struct.field(str(number))

    def whole(number: int) -> pl.Expr:
        return part(number).cast(pl.Int64, strict=False).fill_null(0)

    days = part(1).str.to_date("%Y-%m-%d", strict=False).to_physical().cast(pl.Int64)
    fraction = part(5).str.pad_end(6, "0").cast(pl.Int64, strict=False).fill_null(0)
    seconds = days * 86_400 + whole(2) * 3600 + whole(3) * 60 + whole(4)
    offset = (whole(7) * 60 + whole(8)) * 60
    seconds = seconds - pl.when(part(6) == "-").then(-offset).otherwise(offset)
    return (seconds * 1_000_000 + fraction).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _date(column: pl.Expr, dtype: pl.DataType, *, text: bool) -> Conversion | None:
    if text:
        readable = column.str.contains(f"^{DATE}$")
        return _parsed(column, pl.when(readable).then(column.str.to_date("%Y-%m-%d", strict=False)))
    if isinstance(dtype, pl.Datetime):
        value = column.cast(pl.Date)
        same = column.dt.replace_time_zone(None) == value.cast(pl.Datetime(dtype.time_unit))
        return _checked(column, value, same)
    return None


def broken(rule: Rule, value: pl.Expr, logical_type: str) -> pl.Expr:
    """Returns an expression that is true where a readable value breaks a rule, and false at nulls.

    Args:
        rule: Any rule but `type` and `unique`, which are no matter of one readable value.
        value: The column in the contract's type; for all rules but `required` and `finite` without NaN and infinity.
        logical_type: The field's type.
    """
    if rule.name == "required":
        return value.is_null()
    if rule.name == "finite":
        return (~value.is_finite()).fill_null(value=False)
    comparable = value.to_physical() if logical_type in {"timestamp", "date"} else value
    return _judged(rule, comparable, logical_type).fill_null(value=False)


def _judged(rule: Rule, value: pl.Expr, logical_type: str) -> pl.Expr:
    bound = rule.bound
    # An integer beyond 64 bits is no literal of polars.
    limit = pl.lit(float(bound) if isinstance(bound, int) and abs(bound) >= 2**63 else bound)
    match rule.name:
        case "minimum":
            return value < limit
        case "exclusiveMinimum":
            return value <= limit
        case "maximum":
            return value > limit
        case "exclusiveMaximum":
            return value >= limit
        case "minLength":
            return value.str.len_chars() < limit
        case "maxLength":
            return value.str.len_chars() > limit
        case "pattern":
            return ~value.str.contains(patterns(str(bound), rule.label)[0])
        case _:
            listed = members(rule.bound if isinstance(rule.bound, tuple) else (rule.bound,), logical_type)
            among = _among(value, listed)
            return ~among if rule.name == "validValues" else among


def _among(value: pl.Expr, listed: list[object]) -> pl.Expr:
    """True where a value is listed; a few texts are compared one after another, which is faster than a set of them."""
    if 0 < len(listed) <= _FEW_TEXTS and all(isinstance(item, str) for item in listed):
        return pl.any_horizontal(value == pl.lit(item) for item in listed)
    return value.is_in(listed)


def members(values: tuple[object, ...], logical_type: str) -> list[object]:
    """Returns listed values in the type of the column; 1.0 is the integer 1, and 1.5 is no integer at all."""
    if logical_type == "number":
        return [float(value) for value in values if isinstance(value, int | float)]
    if logical_type == "integer":
        return [int(value) for value in values if isinstance(value, int | float) and value == int(value)]
    return list(values)


def shown(name: str, dtype: pl.DataType) -> pl.Expr:
    """Writes the values of a column for messages, as `rows.shown` writes a single one."""
    column = pl.col(name)
    if dtype == pl.String() or isinstance(dtype, pl.Categorical | pl.Enum):
        text = column.cast(pl.String)
        cut = pl.when(text.str.len_chars() > LONGEST_SHOWN).then(text.str.head(LONGEST_SHOWN) + "...").otherwise(text)
        written = pl.concat_str(pl.lit("'"), cut, pl.lit("'"))
    elif isinstance(dtype, pl.Datetime):
        written = column.dt.to_string("%Y-%m-%dT%H:%M:%S%.f") + (
            pl.lit("") if dtype.time_zone is None else column.dt.to_string("%:z")
        )
    elif dtype == pl.Boolean():
        written = pl.when(column).then(pl.lit("True")).otherwise(pl.lit("False"))
    elif dtype == pl.Null():
        written = pl.lit(None, dtype=pl.String)
    else:
        written = column.cast(pl.String)
    return pl.when(column.is_null()).then(pl.lit("null")).otherwise(written)
