"""Drafts a contract from data: what holds of it today, with room for tomorrow, for its owner to read, mend and sign."""

import datetime as dt
import math
from typing import TYPE_CHECKING, Any

import yaml

from vitok.clock import DAY
from vitok.contracts import guesses
from vitok.contracts.contract import Contract
from vitok.contracts.guesses import Seen
from vitok.contracts.interpretation import interpret
from vitok.contracts.rules import LogicalType
from vitok.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl

_HEAD = """\
# A draft, made from data: what each guess rests on stands under vitok.draft and in the descriptions.
# Confirm or mend the guesses, say what the columns mean and who answers for them, then set status: active.
"""
_NOTE = "vitok.draft"
# Columns have a name, so what is no matter of one of them is kept under none.
_GAP, _PAIR = ("gap",), ("pair",)


def infer(
    frame: "pl.DataFrame | pl.LazyFrame", *, name: str, version: str = "0.1.0", now: int | None = None
) -> Contract:
    """Drafts a contract from data.

    Every guess leaves room, so that next week's data does not break it: a range reaches as far again as the values
    span, a time has no upper end, a list of words is guessed only where each came several times, and volume,
    freshness and shares of nulls only warn. The property `vitok.draft` of a column says what its guesses rest on.
    Types are those of the columns; for a file of text see `files.typed`.

    Args:
        frame: The data; read twice where it is lazy.
        name: Name of the contract and of its table.
        version: Version of the contract.
        now: Present time in microseconds; without it the freshness is guessed from the gaps in the data alone.

    Raises:
        InvalidInput: If a column is of a type that a contract cannot state, or there is none.

    Example:
        >>> import polars as pl
        >>> print(infer(pl.DataFrame({"sale_id": ["a", "b"], "amount": [1.5, 20.0]}), name="sales"))
        sales 0.1.0 (draft), owner: not named
        sales:
          sale_id              string     required; have a length of at least 1; have a length of at most 16
          amount               number     required; be at least 0; be at most 39.0
          unique: sale_id
          rowCount must be between 1 and 4 rows
    """
    import polars as pl

    if not isinstance(frame, pl.DataFrame | pl.LazyFrame):
        raise InvalidInput("frame", type(frame).__name__, "be a polars DataFrame or LazyFrame")
    lazy = frame.lazy()
    types = {column: _logical_type(column, dtype) for column, dtype in lazy.collect_schema().items()}
    if not types:
        raise InvalidInput("frame", frame, "have at least one column")
    columns = _seen(lazy, types)
    closer = _closer(lazy, columns)
    key = guesses.primary_key(columns, name)
    table: dict[str, Any] = {"name": name, "logicalType": "object"}
    table["properties"] = [_property(seen, closer, is_key=seen is key) for seen in columns]
    table["quality"] = _of_table(columns, closer)
    if not table["quality"]:
        del table["quality"]
    document = {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": name,
        "name": name,
        "version": version,
        "status": "draft",
        "schema": [table],
    }
    levels = _freshness(columns, closer, name, now)
    if levels:
        document["slaProperties"] = levels
    return interpret(_HEAD + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110))


def _logical_type(column: str, dtype: "pl.DataType") -> LogicalType:
    import polars as pl

    if dtype == pl.String() or isinstance(dtype, pl.Categorical | pl.Enum) or dtype == pl.Null():
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


def _seen(lazy: "pl.LazyFrame", types: dict[str, LogicalType]) -> list[Seen]:
    """Counts, ranges and lengths of all columns in one pass."""
    import polars as pl

    wanted: list[pl.Expr] = [pl.len().alias("rows")]
    for index, (column, logical_type) in enumerate(types.items()):
        values = pl.col(column)
        wanted.append(values.null_count().alias(f"nulls_{index}"))
        if logical_type in {"string", "integer"}:
            wanted.append(values.drop_nulls().n_unique().alias(f"distinct_{index}"))
        if logical_type == "string":
            lengths = values.cast(pl.String).str.len_chars()
            wanted += [lengths.min().alias(f"shortest_{index}"), lengths.max().alias(f"longest_{index}")]
        elif logical_type == "number":
            number = values.cast(pl.Float64)
            finite = number.filter(number.is_finite())
            strange = (~number.is_finite()).sum()
            wanted += [finite.min().alias(f"low_{index}"), finite.max().alias(f"high_{index}")]
            wanted.append(strange.alias(f"strange_{index}"))
        elif logical_type != "boolean":
            wanted += [values.min().alias(f"low_{index}"), values.max().alias(f"high_{index}")]
        if logical_type in {"number", "integer"}:
            number = values.cast(pl.Float64)
            wanted.append(number.filter(number.is_finite()).median().alias(f"middle_{index}"))
    found = lazy.select(wanted).collect(engine="streaming").row(0, named=True)

    def told(index: int, name: str) -> Any:
        return found.get(f"{name}_{index}")

    return [
        Seen(
            name=column,
            logical_type=logical_type,
            rows=found["rows"],
            nulls=told(index, "nulls"),
            distinct=told(index, "distinct"),
            low=told(index, "low"),
            middle=told(index, "middle"),
            high=told(index, "high"),
            strange=told(index, "strange") or 0,
            shortest=told(index, "shortest"),
            longest=told(index, "longest"),
        )
        for index, (column, logical_type) in enumerate(types.items())
    ]


def _closer(lazy: "pl.LazyFrame", columns: list[Seen]) -> dict[Any, Any]:
    """The second pass: lists of words, shapes of identifiers, and the largest gap in time, by column."""
    import polars as pl

    wanted: dict[str, pl.Expr] = {}
    for index, seen in enumerate(columns):
        values = pl.col(seen.name).drop_nulls()
        if guesses.may_be_list(seen):
            wanted[f"list_{index}"] = values.value_counts(name="count").implode()
        elif guesses.may_have_pattern(seen):
            text = values.cast(pl.String)
            shape = text.str.replace_all("[0-9]+", "9").str.replace_all("[A-Z]+", "A").str.replace_all("[a-z]+", "a")
            wanted[f"shapes_{index}"] = shape.unique().head(2).implode()
            wanted[f"uuid_{index}"] = text.str.contains(f"^{guesses.UUID}$").all()
            wanted[f"first_{index}"] = text.first()
    clock = guesses.event_time(columns)
    if clock is not None:
        wanted["gap"] = pl.col(clock.name).sort().diff().max()
    if guesses.primary_key(columns, "") is None:
        for one, two in guesses.pairs(columns):
            wanted[f"pair {one.name} {two.name}"] = pl.struct(one.name, two.name).n_unique()
    if not wanted:
        return {}
    found = lazy.select(value.alias(name) for name, value in wanted.items()).collect(engine="streaming")
    closer: dict[Any, Any] = {}
    row = found.row(0, named=True)
    for index, seen in enumerate(columns):
        counted = row.get(f"list_{index}")
        if counted is not None and guesses.is_list([item["count"] for item in counted]):
            closer[seen.name] = sorted(item[seen.name] for item in counted)
        shapes = row.get(f"shapes_{index}")
        if row.get(f"uuid_{index}"):
            closer[seen.name] = f"^{guesses.UUID}$"
        elif shapes is not None and len(shapes) == 1:
            closer[seen.name] = _pattern(lazy, seen.name, shapes[0])
    if clock is not None:
        closer[_GAP] = row["gap"]
    for one, two in guesses.pairs(columns):
        if row.get(f"pair {one.name} {two.name}") == one.rows:
            closer[_PAIR] = [one.name, two.name]
            break
    return closer


def _pattern(lazy: "pl.LazyFrame", column: str, shape: str) -> str | None:
    """Measures the runs of texts that all have one shape."""
    import polars as pl

    kinds = {"9": "([0-9]+)", "A": "([A-Z]+)", "a": "([a-z]+)"}
    runs = [letter for letter in shape if letter in kinds]
    if not runs or len(runs) > 12:
        return None
    searched = "".join(kinds.get(letter, "." if not letter.isspace() else r"\s") for letter in shape)
    groups = pl.col(column).drop_nulls().cast(pl.String).str.extract_groups(f"(?s)^{searched}$")
    wanted: list[pl.Expr] = []
    for place in range(1, len(runs) + 1):
        run = groups.struct.field(str(place))
        wanted += [
            run.str.len_chars().min().alias(f"least_{place}"),
            run.str.len_chars().max().alias(f"most_{place}"),
            run.n_unique().alias(f"texts_{place}"),
            run.first().alias(f"text_{place}"),
            run.str.starts_with("0").any().alias(f"filled_{place}"),
        ]
    row = lazy.select(wanted).collect(engine="streaming").row(0, named=True)
    literals = [
        ("0" if row[f"filled_{place}"] else None)
        if letter == "9"
        else (row[f"text_{place}"] if row[f"texts_{place}"] == 1 else None)
        for place, letter in enumerate(runs, start=1)
    ]
    widths = [(row[f"least_{place}"], row[f"most_{place}"]) for place in range(1, len(runs) + 1)]
    return guesses.pattern([shape], widths, literals)


def _property(seen: Seen, closer: dict[Any, Any], *, is_key: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"name": seen.name, "logicalType": seen.logical_type}
    notes: list[str] = []
    custom: list[dict[str, Any]] = []
    quality: list[dict[str, Any]] = []
    if seen.rows and not seen.nulls:
        found["required"] = True
        notes.append(f"required: no null in {seen.rows:,} rows")
    elif seen.nulls and (limit := guesses.null_limit(seen)) is not None:
        quality.append({"metric": "nullValues", "mustBeLessOrEqualTo": limit, "unit": "percent", "severity": "warning"})
        notes.append(f"nulls: {100 * seen.nulls / seen.rows:.3g} percent of {seen.rows:,} rows")
    if guesses.is_unique(seen):
        found["unique"] = True
        notes.append(f"unique: {seen.known:,} values, no repeat")
        if is_key:
            found |= {"primaryKey": True, "primaryKeyPosition": 1}
    if seen.logical_type in {"number", "integer"}:
        options = _range(seen, closer, notes)
    elif seen.logical_type in {"timestamp", "date"}:
        options = _beginning(seen, notes)
    else:
        options = _text(seen, closer, notes)
    if options:
        found["logicalTypeOptions"] = options
    listed = closer.get(seen.name)
    if isinstance(listed, list):
        quality.append({"metric": "invalidValues", "arguments": {"validValues": listed}, "mustBe": 0})
        notes.append(f"values: these {len(listed)} are all there were in {seen.known:,}")
    if seen.strange:
        custom.append({"property": "vitok.severity.finite", "value": "warn"})
        notes.append(f"finite only warns: {seen.strange:,} of {seen.known:,} are NaN or infinite")
    if quality:
        found["quality"] = quality
    if notes:
        custom.append({"property": _NOTE, "value": "; ".join(notes)})
    if custom:
        found["customProperties"] = custom
    return found


def _range(seen: Seen, closer: dict[Any, Any], notes: list[str]) -> dict[str, Any]:
    if isinstance(closer.get(seen.name), list):
        return {}
    low, high = guesses.limits(seen)
    if low is not None or high is not None:
        notes.append(f"range: seen {_plain(seen.low)} to {_plain(seen.high)}")
    return {name: bound for name, bound in (("minimum", low), ("maximum", high)) if bound is not None}


def _beginning(seen: Seen, notes: list[str]) -> dict[str, Any]:
    """Times have a beginning, a year or their own span before the first one, and no end."""
    if seen.low is None:
        return {}
    span = seen.high - seen.low
    year = seen.low.year - max(1, math.ceil(span.days / 365))
    if year < 1000:
        return {}
    notes.append(f"beginning: seen {_plain(seen.low)} to {_plain(seen.high)}")
    return {"minimum": f"{year}-01-01" + ("T00:00:00Z" if seen.logical_type == "timestamp" else "")}


def _text(seen: Seen, closer: dict[Any, Any], notes: list[str]) -> dict[str, Any]:
    guess = closer.get(seen.name)
    if isinstance(guess, list) or seen.longest is None:
        return {}
    options: dict[str, Any] = {}
    if seen.shortest:
        options["minLength"] = 1
    options["maxLength"] = guesses.longest(seen)
    notes.append(f"length: seen {seen.shortest} to {seen.longest}")
    if isinstance(guess, str):
        options["pattern"] = guess
        notes.append(f"pattern: the shape of all {seen.known:,}")
    return options


def _of_table(columns: list[Seen], closer: dict[Any, Any]) -> list[dict[str, Any]]:
    rows = columns[0].rows
    found: list[dict[str, Any]] = []
    if rows:
        found.append(
            {
                "metric": "rowCount",
                "description": f"Draft: half to twice the {rows:,} rows that were seen; is a delivery always as large?",
                "mustBeBetween": [max(1, rows // 2), 2 * rows],
                "severity": "warning",
            }
        )
    if _PAIR in closer:
        found.append(
            {
                "metric": "duplicateValues",
                "description": f"Draft: no pair comes twice in {rows:,} rows; is this the key?",
                "arguments": {"properties": closer[_PAIR]},
                "mustBe": 0,
                "severity": "warning",
            }
        )
    return found


def _freshness(columns: list[Seen], closer: dict[Any, Any], table: str, now: int | None) -> list[dict[str, Any]]:
    """Twice the largest gap between two rows, or twice the age of live data, whichever is longer; in whole days."""
    clock, gap = guesses.event_time(columns), closer.get(_GAP)
    if clock is None or gap is None or clock.high <= clock.low:
        return []
    limit = 2 * _micros(gap)
    said = f"the largest gap between two rows was {_micros(gap) / DAY:.3g} days"
    newest = _moment(clock.high)
    # Data much older than it is long is an archive, whose age says nothing of how it is delivered.
    age = None if now is None else now - newest
    if age is not None and 0 <= age <= max(_moment(clock.high) - _moment(clock.low), 7 * DAY):
        limit = max(limit, 2 * age)
        said += f", and the newest row was {age / DAY:.3g} days old"
    days = max(1, math.ceil(limit / DAY))
    description = f"Draft: {said}; how late may the data be?"
    element = f"{table}.{clock.name}"
    return [{"property": "freshness", "value": days, "unit": "d", "element": element, "description": description}]


def _micros(length: dt.timedelta) -> int:
    return length // dt.timedelta(microseconds=1)


def _moment(value: dt.datetime | dt.date) -> int:
    moment = value if isinstance(value, dt.datetime) else dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return _micros(moment - dt.datetime.fromtimestamp(0, dt.UTC))


def _plain(value: Any) -> str:
    if isinstance(value, dt.datetime):
        moment = value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)
        return moment.isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, dt.date) else f"{value:,}"
