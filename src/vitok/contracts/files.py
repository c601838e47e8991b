"""Opens a file of data as a lazy frame: CSV, Parquet, or JSON Lines."""

from pathlib import Path
from typing import TYPE_CHECKING

from vitok.contracts.readers import DATE, TIME
from vitok.contracts.rules import LogicalType
from vitok.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    import polars as pl

_CSV, _PARQUET, _LINES = (".csv", ".tsv"), (".parquet", ".pq"), (".jsonl", ".ndjson")
KNOWN = (*_CSV, *_PARQUET, *_LINES)
# The first that all values of a column match is its type.
_PATTERNS: dict[LogicalType, str] = {
    "integer": "-?(?:0|[1-9][0-9]{0,17})",
    "number": r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?",
    "boolean": "[Tt]rue|TRUE|[Ff]alse|FALSE",
    "date": DATE,
    "timestamp": f"{DATE}{TIME}",
}


def scan(path: str | Path) -> "pl.LazyFrame":
    r"""Opens a file, or a folder of files of one kind, without reading more than its columns.

    The columns of a CSV file are read as text: the contract says what they are, so that a value which cannot be read
    becomes a rejected row and not a failed run, and "007" stays as it is. An empty cell is null.

    Args:
        path: A `.csv`, `.tsv`, `.parquet` or `.jsonl` file, or a folder of such.

    Raises:
        NotFound: If it does not exist.
        InvalidInput: If it is of another kind, empty, or damaged.

    Example:
        >>> _ = Path("sales.csv").write_text("id,amount\n007,12.5\n")
        >>> scan("sales.csv").collect().row(0)
        ('007', '12.5')
    """
    import polars as pl

    path = Path(path)
    if not path.exists():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        raise NotFound("data", str(path), sorted(item.name for item in beside if item.suffix.lower() in KNOWN))
    files = sorted(item for item in path.iterdir() if item.suffix.lower() in KNOWN) if path.is_dir() else [path]
    kinds = {_kind(item.suffix.lower()) for item in files}
    if len(kinds) != 1 or "" in kinds:
        found = sorted({item.suffix for item in files})
        raise InvalidInput("data", str(path), f"be {', '.join(KNOWN)}, or a folder of one kind; found {found}")
    kind = kinds.pop()
    try:
        if kind == "csv":
            separators = {"\t" if item.suffix.lower() == ".tsv" else "," for item in files}
            frame = pl.scan_csv(files, infer_schema=False, separator=separators.pop(), encoding="utf8")
        elif kind == "lines":
            frame = pl.scan_ndjson(files, infer_schema_length=None)
        else:
            frame = pl.scan_parquet(files, hive_partitioning=False)
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        problem = str(error).strip().splitlines()[0][:200]
        raise InvalidInput("data", str(path), f"be a readable {kind} file ({problem})") from None
    return frame


def _kind(suffix: str) -> str:
    if suffix in _CSV:
        return "csv"
    if suffix in _LINES:
        return "lines"
    return "parquet" if suffix in _PARQUET else ""


def typed(frame: "pl.LazyFrame") -> "pl.LazyFrame":
    """Reads each text column as the type that all its values can be read as: whole numbers, numbers, times, flags.

    A number with a leading zero is a code and stays text.

    Args:
        frame: Such as `scan` returns of a CSV file; read once to look at the texts.

    Example:
        >>> import polars as pl
        >>> data = pl.LazyFrame({"code": ["007"], "count": ["7"], "day": ["2018-04-01"], "note": ["-"]})
        >>> typed(data).collect_schema().dtypes()
        [String, Int64, Date, String]
    """
    import polars as pl

    from vitok.contracts.columns import conversion
    from vitok.contracts.contract import Field

    texts = [name for name, dtype in frame.collect_schema().items() if dtype == pl.String()]
    if not texts:
        return frame
    wanted = []
    for index, name in enumerate(texts):
        text = pl.col(name).drop_nulls()
        wanted.append(text.len().alias(f"{index} values"))
        for logical_type, pattern in _PATTERNS.items():
            wanted.append(text.str.contains(f"^(?:{pattern})$").all().alias(f"{index} {logical_type}"))
    found = frame.select(wanted).collect(engine="streaming").row(0, named=True)
    read = []
    for index, name in enumerate(texts):
        fits = [logical_type for logical_type in _PATTERNS if found[f"{index} {logical_type}"]]
        if found[f"{index} values"] and fits:
            # A day such as 2018-02-30 has the form of a date and is none, so the column stays text.
            item = conversion(Field(name=name, logical_type=fits[0]), pl.String())
            if item is not None:
                read.append((name, item))
    if read:
        lost = frame.select(
            item.unreadable.any().alias(name) for name, item in read if item.unreadable is not None
        ).collect(engine="streaming")
        bad = {name for name in lost.columns if lost[name][0]}
        frame = frame.with_columns(item.value.alias(name) for name, item in read if name not in bad)
    return frame
