"""The tables of MLflow in PostgreSQL, copied out and in by COPY."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitok.engines.address import hidden
from vitok.engines.postgres import connect, store_errors
from vitok.errors import Conflict, StoreError

# Where MLflow keeps whole addresses: elsewhere there are other ones.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
_LAYOUT = "tables.json"
_REVISION = "SELECT version_num FROM alembic_version"


def dump_runs(connection: Any, folder: Path, *, roots: Sequence[str]) -> None:
    """Writes each table of MLflow into a file, as the connection's transaction sees it.

    Args:
        connection: A connection of psycopg, within a transaction.
        folder: Where the files will lie.
        roots: Where artifacts and packages lie; written down, so that other stores can take their place.

    Raises:
        psycopg.Error: If a table cannot be read.
        OSError: If a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = {}
    for table in _tables():
        columns = _columns(connection, table)
        if columns:
            tables[table] = columns
            _copy_out(connection, table, columns, folder)
    revision = connection.execute(_REVISION).fetchone()[0]
    told = {"revision": revision, "tables": tables, "roots": list(roots)}
    (folder / _LAYOUT).write_text(json.dumps(told, indent=1), encoding="utf-8")


def fill_runs(database: str, folder: Path, *, roots: Sequence[str]) -> int:
    """Fills the tables of MLflow from such files, in one transaction; returns how many runs there are then.

    Args:
        database: Address of the database, with MLflow's tables and no run in them.
        folder: Where the files lie.
        roots: What takes the place of the roots that were written down.

    Raises:
        Conflict: If there are runs.
        StoreError: If the tables are of another MLflow, or cannot be written.
    """
    told = json.loads((folder / _LAYOUT).read_text(encoding="utf-8"))
    what = f"runs in {hidden(database)}"
    with store_errors(what), contextlib.closing(connect(database)) as connection, connection.transaction():
        revision = connection.execute(_REVISION).fetchone()[0]
        if revision != told["revision"]:
            raise StoreError(
                f"{what}: MLflow's tables are of revision {revision}, and of {told['revision']} in the backup; restore "
                "with the MLflow that made it, then run: mlflow db upgrade"
            )
        if connection.execute("SELECT count(*) FROM runs").fetchone()[0]:
            raise Conflict(f"{what}: there are some already; a backup never goes over what is there")
        # A new store has a default experiment; the backup has its own.
        connection.execute(f"TRUNCATE {', '.join(told['tables'])} CASCADE")
        for table, columns in told["tables"].items():
            _copy_in(connection, table, columns, folder)
            _count_on(connection, table, columns)
        for before, after in zip(told["roots"], roots, strict=True):
            for table, column in ADDRESSES:
                if column in told["tables"].get(table, ()):
                    connection.execute(
                        f"UPDATE {table} SET {column} = %s || substr({column}, %s) WHERE starts_with({column}, %s)",  # noqa: S608
                        (after, len(before) + 1, f"{before}/"),
                    )
        return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])


def _tables() -> list[str]:
    """Gives MLflow's tables, each after those that it refers to."""
    from mlflow.store.db.base_sql_model import Base

    return [table.name for table in Base.metadata.sorted_tables]


def _columns(connection: Any, table: str) -> list[str]:
    query = (
        "SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = %s "
        "AND is_generated = 'NEVER' ORDER BY ordinal_position"
    )
    return [row[0] for row in connection.execute(query, (table,)).fetchall()]


def _copy_out(connection: Any, table: str, columns: list[str], folder: Path) -> None:
    statement = f"COPY {table} ({_quoted(columns)}) TO STDOUT"
    with (
        (folder / f"{table}.copy").open("wb") as file,
        connection.cursor() as cursor,
        cursor.copy(statement) as copy,
    ):
        for part in copy:
            file.write(part)


def _copy_in(connection: Any, table: str, columns: list[str], folder: Path) -> None:
    statement = f"COPY {table} ({_quoted(columns)}) FROM STDIN"
    with (
        (folder / f"{table}.copy").open("rb") as file,
        connection.cursor() as cursor,
        cursor.copy(statement) as copy,
    ):
        while part := file.read(1 << 20):
            copy.write(part)


def _count_on(connection: Any, table: str, columns: list[str]) -> None:
    """Lets columns that count by themselves go on after what was copied."""
    for column in columns:
        sequence = connection.execute("SELECT pg_get_serial_sequence(%s, %s)", (table, column)).fetchone()[0]
        if sequence is not None:
            connection.execute(
                f'SELECT setval(%s, max("{column}")) FROM {table} HAVING max("{column}") IS NOT NULL',  # noqa: S608
                (sequence,),
            )


def _quoted(columns: list[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
