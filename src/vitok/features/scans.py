"""What a batch job reads of a source: files or a frame as one relation of DuckDB, and the newest row of each entity.

A row is available from the later of two moments on: just after its event time, and when it became known (its ingest
time, or its event time and the view's lag). Rows are picked by when they became available, never by event time alone:
else a row that comes late would be missed for ever.
"""

# ruff: noqa: S608 - names are quoted, and values are whole numbers or quoted
import contextlib
import glob
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok.errors import InvalidInput, StoreError, VitokError
from vitok.features.sources import SEPARATOR, Entity, Source, unique
from vitok.features.views import Latest, View

if TYPE_CHECKING:
    import polars as pl

_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
_PARQUET, _ENCRYPTED = b"PAR1", b"PARE"
_EVENTS_A_PART = 2_000_000


class Scan:
    """One source, ready to be asked for the rows of one view.

    Args:
        source: The source.
        view: The view.
        location: A frame, a Parquet file, a folder or pattern of such files, or a list of them.

    Raises:
        InvalidInput: If there are no such files, a column is missing or of the wrong type.
    """

    def __init__(self, source: Source, view: Latest | View, location: Any) -> None:
        import duckdb

        self.source, self.view = source, view
        self._where = f"source {source.name!r}"
        self._error, self._exhausted = duckdb.Error, duckdb.OutOfMemoryException
        with contextlib.ExitStack() as resources:
            spill = resources.enter_context(tempfile.TemporaryDirectory(prefix="vitok-scan-"))
            self._connection = resources.enter_context(duckdb.connect())
            self._run(f"SET TimeZone = 'UTC'; SET temp_directory = {_text(spill)}")
            self._prepare(location)
            self._resources = resources.pop_all()

    def _prepare(self, location: Any) -> None:
        source, entity = self.source, self.view.entity
        columns = unique((source.event_id, *entity.keys, *self._times, source.deleted, *self.view.columns))
        self._relation = self._open(location, columns)
        types = {str(name): str(kind) for name, kind, *_ in self._run(f"DESCRIBE SELECT * FROM {self._relation}")}
        for name in columns:
            if name not in types:
                raise InvalidInput(f"{self._where}: columns", sorted(types), f"hold {name}")
        self._check_types(entity, types)
        self._key = _key_of(entity)
        moments = [f"epoch_us(CAST({_name(name)} AS {_moment(types[name])}))" for name in self._times]
        self._event, self._ingest = moments[0], moments[1] if source.ingest_time else "NULL"

    @property
    def _times(self) -> tuple[str, ...]:
        return (self.source.event_time, *((self.source.ingest_time,) if self.source.ingest_time else ()))

    def __enter__(self) -> "Scan":
        """Returns the scan."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it and removes what it spilled to disk."""
        self._resources.close()

    def newest(self, since: int | None, until: int, *, after: str | None, chunk: int) -> "Iterator[pl.DataFrame]":
        """Yields the newest row of each entity that has one that became available in `(since, until]`, by key.

        Args:
            since: In microseconds; None for all that became available until then.
            until: In microseconds.
            after: Only entities whose key comes after this one; None for all.
            chunk: Rows a frame.

        Returns:
            Frames of `__key`, `__event`, `__ingest`, `__deleted` and the columns of the view, none of them empty.

        Raises:
            InvalidInput: If a key or time is null, or a file cannot be read.
        """
        view = self.view
        deleted = f"coalesce(CAST({_name(self.source.deleted)} AS BOOLEAN), false)" if self.source.deleted else "false"
        values = "".join(f", {_name(name)}" for name in view.columns)
        skipped = "" if after is None else f" AND (__key IS NULL OR __key > {_text(after)})"
        self._run(
            f"""CREATE OR REPLACE TEMP TABLE picked AS
            SELECT __key, __event, __ingest, __deleted{values}
            FROM (
                SELECT {self._key} AS __key, {self._event} AS __event, {self._ingest} AS __ingest,
                       {deleted} AS __deleted, __arrival{values}
                FROM {self._relation}
            )
            WHERE ({self._is_new(since, until)}){skipped}
            QUALIFY row_number() OVER (
                PARTITION BY __key ORDER BY __event DESC NULLS FIRST, __ingest DESC NULLS FIRST, __arrival DESC
            ) = 1
            ORDER BY __key NULLS FIRST"""
        )
        self._refuse_nulls("picked")
        yield from self._chunks("picked", chunk)

    def count(self) -> int:
        """How many entities the last scan picked."""
        return int(self._run("SELECT count(*) FROM picked")[0][0])

    def parts(self, since: int | None, until: int, reach: int) -> int:
        """Picks the events that the windows of the entities with news need; returns in how many parts to read them.

        Args:
            since: As for `newest`.
            until: As for `newest`.
            reach: How far before `until` an event can matter, in microseconds.

        Raises:
            InvalidInput: If a key or time is null, or a file cannot be read.
        """
        columns = unique((*self.view.entity.keys, self.source.event_id, *self._times, *self.view.columns))
        values = ", ".join(map(_name, columns))
        self._run(
            f"""CREATE OR REPLACE TEMP VIEW timed AS
            SELECT {self._key} AS __key, {self._event} AS __event, {self._ingest} AS __ingest, __arrival, {values}
            FROM {self._relation}"""
        )
        self._run(
            f"CREATE OR REPLACE TEMP TABLE asked AS SELECT DISTINCT __key FROM timed WHERE {self._is_new(since, until)}"
        )
        self._run(
            f"""CREATE OR REPLACE TEMP VIEW needed AS
            SELECT timed.* FROM timed SEMI JOIN asked USING (__key)
            WHERE {self._is_known(until)} AND __event >= {until - reach}"""
        )
        self._refuse_nulls("timed")
        return max(1, math.ceil(int(self._run("SELECT count(*) FROM needed")[0][0]) / _EVENTS_A_PART))

    def events(self, part: int, parts: int) -> "pl.DataFrame":
        """Returns the events of one part of the entities, in the order of their arrival, each event id once."""
        whole = self._frame(f"SELECT * FROM needed WHERE hash(__key) % {parts} = {part} ORDER BY __arrival")
        return whole.unique(self.source.event_id, keep="first", maintain_order=True).drop(
            "__key", "__event", "__ingest", "__arrival"
        )

    def _is_known(self, until: int) -> str:
        # Of windows: the lag is kept by the state itself, so that an event counts from then on.
        known = "__event" if self.view.available_after is not None else "greatest(__event + 1, __ingest)"
        sign = "<" if self.view.available_after is not None else "<="
        return f"({known} {sign} {until})"

    def _is_new(self, since: int | None, until: int) -> str:
        after = self.view.available_after
        if isinstance(self.view, View) and after is not None:
            after = 0
        available = "greatest(__event + 1, __ingest)" if after is None else f"__event + {max(after, 1)}"
        nulls = "__event IS NULL" + (" OR __ingest IS NULL" if self.source.ingest_time else "")
        if since is None:
            return f"{nulls} OR {available} <= {until}"
        news = f"{available} > {since}"
        if after is not None and self.source.ingest_time:
            # With a lag, a row that comes late is visible at once, and at the first run that meets it.
            news = f"({news} OR __ingest > {since})"
        return f"{nulls} OR ({available} <= {until} AND {news})"

    def _refuse_nulls(self, table: str) -> None:
        asked = {"__key": " and ".join(self.view.entity.keys), "__event": self.source.event_time}
        if self.source.ingest_time:
            asked["__ingest"] = self.source.ingest_time
        found = self._run(
            f"SELECT {', '.join(f'coalesce(bool_or({name} IS NULL), false)' for name in asked)} FROM {table}"
        )
        for name, is_null in zip(asked.values(), found[0], strict=True):
            if is_null:
                raise InvalidInput(
                    f"{self._where}: {name}", None, "not be null", "Let the contract keep such rows out."
                )

    def _chunks(self, table: str, chunk: int) -> "Iterator[pl.DataFrame]":
        n = int(self._run(f"SELECT count(*) FROM {table}")[0][0])
        for at in range(0, n, chunk):
            yield self._frame(f"SELECT * FROM {table} WHERE rowid >= {at} AND rowid < {at + chunk} ORDER BY rowid")

    def _frame(self, query: str) -> "pl.DataFrame":
        import polars as pl

        try:
            return pl.DataFrame(self._connection.sql(query).to_arrow_table())
        except self._error as error:
            raise self._unreadable(error) from error

    def _run(self, query: str) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query).fetchall()
        except self._error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> VitokError:
        said = str(error).splitlines()[0]
        if isinstance(error, self._exhausted):
            return StoreError(f"{self._where} needs more memory, or more room for temporary files: {said}")
        return InvalidInput(self._where, "its files", f"be readable ({said})", "Write the file that it names anew.")

    def _open(self, location: Any, columns: Sequence[str]) -> str:
        import polars as pl

        if isinstance(location, pl.DataFrame):
            for name in columns:
                if name not in location.columns:
                    raise InvalidInput(f"{self._where}: columns", location.columns, f"hold {name}")
            self._connection.register("frame", location.select(columns).with_row_index("__arrival").to_arrow())
            return "frame"
        files = ", ".join(_text(path) for path in parquet_files(location, self._where))
        # The place of a file among the others, then of a row in it: the order in which rows arrived.
        return (
            "(SELECT *, CAST(file_index AS HUGEINT) * 1099511627776 + file_row_number AS __arrival "
            f"FROM read_parquet([{files}], union_by_name = true))"
        )

    def _check_types(self, entity: Entity, types: dict[str, str]) -> None:
        for name in entity.keys:
            if types[name] != "VARCHAR" and types[name] not in _WHOLE and not types[name].startswith("ENUM"):
                rule = "be text or whole numbers"
                raise InvalidInput(f"{self._where}: {name}", types[name], rule, "Cast it to text first.")
        for name in self._times:
            if not types[name].startswith("TIMESTAMP") and types[name] != "DATE":
                raise InvalidInput(f"{self._where}: {name}", types[name], "be a time or a date")


def parquet_files(location: Any, where: str) -> list[str]:
    """Lists the Parquet files at a location: a file, a folder with all below it, a pattern, or a list of these.

    Args:
        location: Paths; what has `://` in it is left to DuckDB as it is.
        where: Named in an error.

    Raises:
        InvalidInput: If there is no such file, or one of them is no Parquet.
    """
    if not isinstance(location, str | Path | Iterable):
        raise InvalidInput(where, location, "be a frame, a Parquet file, or a folder, pattern or list of such files")
    if not isinstance(location, str | Path):
        return [path for item in location for path in parquet_files(item, where)]
    text = str(location)
    if "://" in text:
        return [text]
    path = Path(text)
    found = sorted(str(item) for item in path.rglob("*.parquet")) if path.is_dir() else sorted(glob.glob(text))  # noqa: PTH207
    if path.is_file():
        found = [text]
    if not found:
        raise InvalidInput(where, text, "be a Parquet file, or a folder or pattern of such files")
    for name in found:
        _check_parquet(name, where)
    return found


def _check_parquet(name: str, where: str) -> None:
    try:
        with Path(name).open("rb") as file:
            begin = file.read(len(_PARQUET))
    except OSError as error:
        raise InvalidInput(where, name, f"be readable ({error.strerror})") from error
    # An empty file, or one cut short, is told by whoever reads it.
    if len(begin) == len(_PARQUET) and begin not in (_PARQUET, _ENCRYPTED):
        fix = "Write it as one first, such as polars.read_csv(FILE, try_parse_dates=True).write_parquet(FILE)."
        raise InvalidInput(where, name, "be a Parquet file", fix)


def _key_of(entity: Entity) -> str:
    parts = [f"CAST({_name(name)} AS VARCHAR)" for name in entity.keys]
    # Of a text that is empty, as of null, nobody can say who it is.
    parts = [f"nullif({part}, '')" for part in parts]
    return parts[0] if len(parts) == 1 else f" || chr({ord(SEPARATOR)}) || ".join(parts)


def _moment(kind: str) -> str:
    return kind if kind == "TIMESTAMP WITH TIME ZONE" else "TIMESTAMP"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
