"""Any SQL over both logs, read only, with DuckDB."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vitok.decisions.log import declared_schema
from vitok.decisions.reading import open_table
from vitok.decisions.schema import LogSchema, outcome_schema, readable_schema
from vitok.decisions.segments import segments
from vitok.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    import polars as pl

_LOGS = ("decisions", "outcomes")
_TRIES = 5


def query(folder: str | Path, sql: str) -> "pl.DataFrame":
    """Answers SQL (DuckDB's) over the views `decisions` and `outcomes`.

    The statement sees the log and nothing else: it reads no other file and changes nothing.

    Args:
        folder: The folder above both logs, such as `<home>/log`, with `decisions/` and `outcomes/` in it; a log
            that is not there yet is an empty view.
        sql: One statement that selects. `decision_id` is text in the view.

    Returns:
        The answer; times in UTC.

    Raises:
        NotFound: If the folder does not exist.
        InvalidInput: If the statement does more than select, or DuckDB cannot answer it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     query(folder, "SELECT count(*) AS n FROM decisions").item()
        0
    """
    import duckdb

    top = Path(folder)
    if not top.is_dir():
        raise NotFound("folder of logs", str(folder))
    for _ in range(_TRIES - 1):
        listed = _files(top)
        try:
            return _answer(top, sql)
        except (InvalidInput, duckdb.Error):
            # A segment may have gone, or been written anew without some rows, while it was read.
            if _files(top) == listed:
                raise
    return _answer(top, sql)


def _files(top: Path) -> list[tuple[str, int]]:
    found = []
    for segment in (one for name in _LOGS for one in segments(top / name)):
        with contextlib.suppress(FileNotFoundError):
            found.append((segment.name, segment.path.stat().st_ino))
    return found


def _answer(top: Path, sql: str) -> "pl.DataFrame":
    import duckdb
    import polars as pl

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, columns in (("decisions", readable_schema(LogSchema("none", (), (), ()))), ("outcomes", None)):
            _make_view(connection, name, top / name, columns or outcome_schema())
        allowed = ", ".join(_quoted(str(path)) for path in (top / "decisions", top / "outcomes"))
        connection.execute(f"SET allowed_directories = [{allowed}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        try:
            # The allowed folders may be written too as far as DuckDB is concerned, so only a SELECT gets in.
            if [statement.type.name for statement in duckdb.extract_statements(sql)] != ["SELECT"]:
                raise InvalidInput("sql", sql, "be one statement that only selects")
            table = connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise InvalidInput("sql", sql, "be a statement that DuckDB can answer", str(error)) from error
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101
    return frame


def _make_view(connection: Any, name: str, folder: Path, empty: pa.Schema) -> None:
    found = segments(folder) if folder.is_dir() else []
    declared = declared_schema(folder)
    tables = [(declared or empty).empty_table()]
    sealed = [segment.path for segment in found if segment.sealed]
    for segment in found:
        if not segment.sealed:
            table = open_table(segment)
            if isinstance(table, Path):
                sealed.append(table)
            elif table is not None:
                tables.append(table)
    parts = []
    for index, table in enumerate(tables):
        connection.register(f"{name}_open_{index}", table)
        parts.append(f"FROM {name}_open_{index}")
    if sealed:
        paths = ", ".join(_quoted(str(path)) for path in sealed)
        parts.append(f"FROM read_parquet([{paths}], union_by_name = true, hive_partitioning = false)")
    columns = "*"
    if "decision_id" in tables[0].schema.names:
        digits = "lower(hex(decision_id))"
        groups = ", ".join(
            f"{digits}[{first}:{last}]" for first, last in ((1, 8), (9, 12), (13, 16), (17, 20), (21, 32))
        )
        columns = f"* REPLACE (concat_ws('-', {groups}) AS decision_id)"
    union = " UNION ALL BY NAME ".join(parts)
    connection.execute(f"CREATE VIEW {name} AS SELECT {columns} FROM ({union})")  # noqa: S608


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
