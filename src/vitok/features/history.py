"""What a table reads: frames, lazy frames, and files of Parquet or CSV, all as batches of rows in one order.

Parquet is read by Arrow, with one thread and a small buffer a column: a third of the CPU that DuckDB takes, and a few
MiB whatever the row groups are. Everything else (CSV, places on the network, files that do not have the same columns)
is made one Parquet file by DuckDB first.
"""

# ruff: noqa: S608 - names are quoted, and values are whole numbers or quoted
import contextlib
import glob
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vitok.errors import InvalidInput, StoreError
from vitok.features.sources import unique

if TYPE_CHECKING:
    import duckdb
    import polars as pl
    import pyarrow as pa

BATCH = 16_384  # rows that are read at a time
_BUFFER = 64 * 2**10  # bytes a column
_LEAST_FOR_READING = 200 * 2**20
_FOR_A_THREAD = 256 * 2**20
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_CSV = (".csv", ".csv.gz", ".tsv", ".csv.zst")


class Input(Protocol):
    """Rows that can be read more than once, in the same order each time."""

    schema: "Mapping[str, pl.DataType]"
    height: int

    def batches(self, columns: Sequence[str]) -> "Iterator[pl.DataFrame]":
        """Yields some columns of all rows."""
        ...


class FrameInput:
    """Rows of a frame in memory.

    Args:
        frame: The frame.
    """

    def __init__(self, frame: "pl.DataFrame") -> None:
        self.frame = frame
        self.schema: Mapping[str, pl.DataType] = frame.schema
        self.height = len(frame)

    def batches(self, columns: Sequence[str]) -> "Iterator[pl.DataFrame]":
        """Yields some columns of all rows, in order."""
        for part in self.frame.select(columns).iter_slices(BATCH):
            yield plain(part)


class FilesInput:
    """Rows of Parquet files that have the same columns, in the order of the files.

    Args:
        files: Their paths.
        where: Named in an error.

    Attributes:
        files: Their paths.
        schema: Types of the columns; where a later file has more of them, theirs too.
        height: How many rows.

    Raises:
        InvalidInput: If a file is not Parquet, or has a column twice.
    """

    def __init__(self, files: Sequence[str], where: str) -> None:
        import pyarrow as pa

        self.files, self._where = tuple(files), where
        self._schemas: list[pa.Schema] = []
        self.height = 0
        for path in files:
            with _reading(where, path), _opened(path) as file:
                found = file.schema_arrow
                self.height += file.metadata.num_rows
            if len(set(found.names)) < len(found):
                raise InvalidInput(where, found.names, "have each column once", f"Look at {path}.")
            self._schemas.append(found)
        self._types: dict[str, pa.DataType] = {}
        for field in (field for found in self._schemas for field in found):
            self._types.setdefault(field.name, _in_utc(field.type))
        nothing = pa.Table.from_batches([], pa.schema(self._types.items()))
        self.schema: Mapping[str, pl.DataType] = _frame(nothing).schema

    def is_one(self, columns: Sequence[str] | None) -> bool:
        """Returns whether all files have these columns (all columns where None), each in one type."""
        kinds = [{field.name: _kind(field) for field in schema} for schema in self._schemas]
        wanted = list(self.schema) if columns is None else columns
        return all(name in kind and kind[name] == kinds[0][name] for kind in kinds for name in wanted)

    def batches(self, columns: Sequence[str]) -> "Iterator[pl.DataFrame]":
        """Yields some columns of all rows, in order.

        Raises:
            InvalidInput: If a file is damaged.
            StoreError: If a disk cannot be read.
        """
        import pyarrow as pa

        schema = pa.schema([(name, self._types[name]) for name in columns])
        for batch in self.arrow(BATCH, columns):
            yield plain(_frame(batch.select(list(columns)).cast(schema)))

    def frame(self) -> "pl.DataFrame":
        """Reads all rows and columns, with errors as of `batches`."""
        import pyarrow as pa

        first = self._schemas[0]
        schema = pa.schema([field.with_type(_in_utc(field.type, offsets_only=True)) for field in first])
        batches = [batch.select(schema.names).cast(schema) for batch in self.arrow(BATCH)]
        return _frame(pa.Table.from_batches(batches, schema))

    def arrow(self, n: int, columns: Sequence[str] | None = None) -> "Iterator[pa.RecordBatch]":
        """Yields all rows, `n` at a time, with at least these columns; errors as of `batches`."""
        for path in self.files:
            with _reading(self._where, path), _opened(path) as file:
                yield from file.iter_batches(n, columns=columns, use_threads=False)


class Session:
    """One call's files and memory: a folder for what does not fit, and DuckDB where files are not plain Parquet.

    Args:
        memory_limit: Such as `"2GB"` or `"512MiB"`, or bytes.

    Raises:
        InvalidInput: If the limit cannot be understood.
    """

    def __init__(self, memory_limit: str | int) -> None:
        self.limit = _bytes(memory_limit)
        self._resources = contextlib.ExitStack()
        self._connection: Any = None
        self._folder: Path | None = None
        self._n_files = 0

    def __enter__(self) -> "Session":
        """Returns the session."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes what it opened and removes its folder."""
        self._resources.close()

    @property
    def connection(self) -> "duckdb.DuckDBPyConnection":
        """DuckDB, opened when first asked for."""
        if self._connection is None:
            import duckdb

            self._connection = self._resources.enter_context(duckdb.connect())
            memory = max(self.limit // 3, _LEAST_FOR_READING)
            self.run(f"SET memory_limit = '{memory}B'")
            self.run(f"SET threads = {max(1, min(os.cpu_count() or 1, memory // _FOR_A_THREAD))}")
            self.run(f"SET temp_directory = {_text(str(self.folder))}")
            # What has no zone is taken as UTC, whatever the machine's own zone is.
            self.run("SET TimeZone = 'UTC'")
        return self._connection

    @property
    def folder(self) -> Path:
        """A folder for this call alone."""
        if self._folder is None:
            self._folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="vitok-table-")))
        return self._folder

    def run(self, query: str) -> list[tuple[Any, ...]]:
        """Runs a statement to its end."""
        return self.connection.execute(query).fetchall()

    def open(self, data: Any, where: str, columns: Sequence[str] | None = None, texts: Sequence[str] = ()) -> Input:
        """Opens a frame, a lazy frame, or files.

        Args:
            data: A polars frame, or a path, folder, pattern or list of them, of Parquet or CSV.
            where: Named in an error.
            columns: What is needed of it; everything where None.
            texts: Columns that CSV files are read as text for, as keys and ids are: 007 is not 7.

        Raises:
            InvalidInput: If there are no such files, they cannot be read, or a column is missing.
        """
        import polars as pl

        if isinstance(data, pl.LazyFrame):
            names = data.collect_schema().names()
            _check_columns(names, columns, where)
            path = self._new_file()
            (data if columns is None else data.select(unique(columns))).sink_parquet(path)
            return FilesInput([str(path)], where)
        if isinstance(data, pl.DataFrame):
            _check_columns(data.columns, columns, where)
            return FrameInput(data if columns is None else data.select(unique(columns)))
        files = _files(data, where)
        if any("://" in path or _is_csv(path) for path in files):
            return FilesInput([str(self._as_parquet(files, where, columns, texts))], where)
        opened = FilesInput(files, where)
        _check_columns(list(opened.schema), columns, where)
        if opened.is_one(columns):
            return opened
        return FilesInput([str(self._as_parquet(files, where, columns, texts))], where)

    def _new_file(self) -> Path:
        self._n_files += 1
        return self.folder / f"input-{self._n_files}.parquet"

    def _as_parquet(
        self, files: Sequence[str], where: str, columns: Sequence[str] | None, texts: Sequence[str]
    ) -> Path:
        # CSV is typed and parsed once, a place on the network is read once, and files that differ become one.
        path = self._new_file()
        names = ", ".join(_text(file) for file in files)
        with _converting(where, files):
            if _is_csv(files[0]):
                read = f"read_csv([{names}], union_by_name = true"
                found = [str(row[0]) for row in self.run(f"DESCRIBE SELECT * FROM {read})")]
                as_text = ", ".join(f"{_text(name)}: 'VARCHAR'" for name in unique(texts) if name in found)
                read += f", types = {{{as_text}}})" if as_text else ")"
            else:
                read = f"read_parquet([{names}], union_by_name = true)"
                found = [str(row[0]) for row in self.run(f"DESCRIBE SELECT * FROM {read}")]
            _check_columns(found, columns, where)
            kept = ", ".join(_name(name) for name in unique(columns)) if columns is not None else "*"
            self.run(f"COPY (SELECT {kept} FROM {read}) TO {_text(str(path))} (FORMAT parquet)")
        return path


def plain(frame: "pl.DataFrame") -> "pl.DataFrame":
    """Turns categories into the texts that they stand for."""
    import polars as pl

    names = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Categorical | pl.Enum)]
    return frame.with_columns(pl.col(names).cast(pl.String)) if names else frame


def _check_columns(found: Sequence[str], columns: Sequence[str] | None, where: str) -> None:
    missing = [name for name in unique(columns or ()) if name not in found]
    if missing:
        raise InvalidInput(f"{where}: columns", list(found), f"hold {', '.join(missing)}")


def _files(data: Any, where: str) -> list[str]:
    if not isinstance(data, str | Path):
        try:
            listed = [path for item in data for path in _files(item, where)]
        except TypeError:
            raise InvalidInput(where, type(data).__name__, "be a polars frame, or a path of Parquet or CSV") from None
        if not listed or len({_is_csv(file) for file in listed}) > 1:
            raise InvalidInput(where, listed, "be files of one kind, Parquet or CSV")
        return listed
    text = str(data)
    if "://" in text:
        return [text]
    path = Path(text)
    if path.is_dir():
        found = sorted(str(item) for item in path.rglob("*.parquet"))
        found = found or sorted(str(item) for item in path.rglob("*") if _is_csv(item.name))
    else:
        found = [text] if path.is_file() else sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - the pattern may begin anywhere
    if not found:
        raise InvalidInput(where, text, "be a file of Parquet or CSV, or a folder or pattern of such files")
    if len({_is_csv(file) for file in found}) > 1:
        raise InvalidInput(where, text, "be files of one kind, Parquet or CSV")
    return found


def _is_csv(path: str) -> bool:
    return path.lower().endswith(_CSV)


@contextlib.contextmanager
def _reading(where: str, path: str) -> Iterator[None]:
    # Turns Arrow's errors into ours; damage comes as an OSError without a number.
    import pyarrow as pa

    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError):
            raise _unreadable(where, path, error) from error
        raise StoreError(f"{where}: reading {path} stopped: {_said(error)}") from error
    except pa.ArrowException as error:
        raise _unreadable(where, path, error) from error


@contextlib.contextmanager
def _converting(where: str, files: Sequence[str]) -> Iterator[None]:
    # Turns DuckDB's errors into ours.
    import duckdb

    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        if "No such file" in str(error) or "No files found" in str(error):
            raise _unreadable(where, ", ".join(files), error) from error
        raise StoreError(f"{where}: reading {', '.join(files)} stopped: {_said(error)}") from error
    except duckdb.Error as error:
        raise _unreadable(where, ", ".join(files), error) from error


def _unreadable(where: str, path: str, error: Exception) -> InvalidInput:
    return InvalidInput(where, path, "be whole Parquet or CSV", f"Reading it said: {_said(error)}")


def _said(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _opened(path: str) -> Any:
    import pyarrow.parquet as pq

    # Reading ahead would hold all columns of a row group at once.
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER, coerce_int96_timestamp_unit="us")


def _in_utc(kind: "pa.DataType", *, offsets_only: bool = False) -> "pa.DataType":
    # A moment is the same in all zones, and polars does not know those that are an offset, such as +05:30.
    import pyarrow as pa

    if not pa.types.is_timestamp(kind) or not kind.tz or (offsets_only and kind.tz[0] not in "+-"):
        return kind
    return pa.timestamp(kind.unit, "UTC")


def _kind(field: "pa.Field") -> "tuple[pa.DataType, Any]":
    # Which categories an Enum has stands beside its type.
    import pyarrow as pa

    return field.type, field.metadata if pa.types.is_dictionary(field.type) else None


def _frame(batch: Any) -> "pl.DataFrame":
    import polars as pl

    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101 - a batch of columns makes a frame
    return frame


def _bytes(limit: str | int) -> int:
    if isinstance(limit, int) and not isinstance(limit, bool):
        value = limit
    else:
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", str(limit).upper())
        if found is None or found[2] not in _UNITS:
            raise InvalidInput("memory_limit", limit, "be bytes, or such as '2GB' or '512MiB'")
        value = int(float(found[1]) * _UNITS[found[2]])
    if value <= 0:
        raise InvalidInput("memory_limit", limit, "be more than nothing")
    return value


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
