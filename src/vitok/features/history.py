"""What a table reads: frames, lazy frames, and files of Parquet or CSV, all as batches of rows in one order."""

# ruff: noqa: S608 - names are quoted, and values are whole numbers or quoted
import contextlib
import glob
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

BATCH = 16_384  # rows; the row group of DuckDB
_LEAST_FOR_READING = 200 * 2**20
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
    """Rows of Parquet files, read by DuckDB a batch at a time.

    Args:
        session: The session.
        files: Their paths, in order.
        where: Named in an error.
    """

    def __init__(self, session: "Session", files: Sequence[str], where: str) -> None:
        import polars as pl

        self.files = tuple(files)
        self._session, self._where = session, where
        names = ", ".join(_text(path) for path in files)
        self._from = f"read_parquet([{names}], union_by_name = true)"
        with session.reading(where):
            empty = _arrow(session.connection.sql(f"SELECT * FROM {self._from} LIMIT 0"), 1).read_all()
            self.height = int(session.run(f"SELECT count(*) FROM {self._from}")[0][0])
        self.schema: Mapping[str, pl.DataType] = _frame(empty).schema

    def batches(self, columns: Sequence[str]) -> "Iterator[pl.DataFrame]":
        """Yields some columns of all rows, in order.

        Raises:
            InvalidInput: If a file cannot be read.
        """
        names = ", ".join(_name(name) for name in columns)
        with self._session.reading(self._where):
            for batch in _arrow(self._session.connection.sql(f"SELECT {names} FROM {self._from}"), BATCH):
                yield _frame(batch)


class Session:
    """One call's files and memory: a folder for what does not fit, and DuckDB where there are files to read.

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
            self.run(f"SET temp_directory = {_text(str(self.folder))}")
            # What has no zone is taken as UTC, whatever the machine's own zone is.
            self.run("SET TimeZone = 'UTC'")
            self.run("SET threads = 1")
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
            return FilesInput(self, [str(path)], where)
        if isinstance(data, pl.DataFrame):
            _check_columns(data.columns, columns, where)
            return FrameInput(data if columns is None else data.select(unique(columns)))
        files = _files(data, where)
        if any("://" in path or _is_csv(path) for path in files):
            files = [str(self._as_parquet(files, where, columns, texts))]
        opened = FilesInput(self, files, where)
        _check_columns(list(opened.schema), columns, where)
        return opened

    @contextlib.contextmanager
    def reading(self, where: str) -> Iterator[None]:
        """Turns DuckDB's errors into ours."""
        import duckdb

        try:
            yield
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            if "No such file" in str(error) or "No files found" in str(error):
                raise self._unreadable(where, error) from error
            raise StoreError(f"{where}: reading stopped: {str(error).splitlines()[0]}") from error
        except duckdb.Error as error:
            raise self._unreadable(where, error) from error

    def _unreadable(self, where: str, error: Exception) -> InvalidInput:
        return InvalidInput(where, str(error).splitlines()[0], "be readable", "Its files must be whole Parquet or CSV.")

    def _new_file(self) -> Path:
        self._n_files += 1
        return self.folder / f"input-{self._n_files}.parquet"

    def _as_parquet(
        self, files: Sequence[str], where: str, columns: Sequence[str] | None, texts: Sequence[str]
    ) -> Path:
        # CSV is typed and parsed once, and a place on the network is read once.
        path = self._new_file()
        names = ", ".join(_text(file) for file in files)
        with self.reading(where):
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
            return [path for item in data for path in _files(item, where)]
        except TypeError:
            raise InvalidInput(where, type(data).__name__, "be a polars frame, or a path of Parquet or CSV") from None
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


def _arrow(relation: Any, rows: int) -> Any:
    # The method's name differs between DuckDB 1 and 2.
    read = relation.to_arrow_reader if hasattr(relation, "to_arrow_reader") else relation.fetch_record_batch
    return read(rows)


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
