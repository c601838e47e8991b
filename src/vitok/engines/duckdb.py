"""A store of logs in a DuckDB file: one machine, one process at a time."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from vitok.engines import address
from vitok.engines.log_store import SEGMENT, check_types, checked
from vitok.errors import InvalidInput, StoreError

_KINDS = {
    pa.string(): "VARCHAR",
    pa.float64(): "DOUBLE",
    pa.int64(): "BIGINT",
    pa.int32(): "INTEGER",
    pa.bool_(): "BOOLEAN",
    pa.timestamp("us", tz="UTC"): "TIMESTAMP WITH TIME ZONE",
}


class DuckDBLog:
    """A `LogStore` in a file.

    Args:
        url: `duckdb://file`.

    Raises:
        InvalidInput: If the address names no file.
        StoreError: If the file cannot be opened, as when another process has it.
    """

    def __init__(self, url: str) -> None:
        import duckdb

        self._path = address.embedded(url).path
        self._error = duckdb.Error
        with self._told():
            self._connection: Any = duckdb.connect(self._path)
            self._connection.execute("SET TimeZone = 'UTC'")

    def put(self, table: str, segment: str, rows: pa.Table) -> None:
        """Makes these the rows of the segment."""
        given = checked(table, segment, rows)
        wanted = {one.name: _KINDS[one.type] for one in given.schema}
        with self._told():
            self._connection.begin()
            try:
                columns = ", ".join(f'"{name}" {kind}' for name, kind in wanted.items())
                self._connection.execute(f'CREATE TABLE IF NOT EXISTS "{table}" ({columns})')
                found = self._connection.execute(f"SELECT name, type FROM pragma_table_info('{table}')").fetchall()  # noqa: S608
                for name in check_types(table, wanted, dict(found)):
                    self._connection.execute(f'ALTER TABLE "{table}" ADD COLUMN "{name}" {wanted[name]}')
                self._connection.execute(f'DELETE FROM "{table}" WHERE "{SEGMENT}" = ?', [segment])  # noqa: S608
                if given.num_rows:
                    self._connection.register("given", given)
                    self._connection.execute(f'INSERT INTO "{table}" BY NAME SELECT * FROM given')  # noqa: S608
                    self._connection.unregister("given")
                self._connection.commit()
            except BaseException:
                self._connection.rollback()
                raise

    def query(self, sql: str) -> pa.Table:
        """Answers one SELECT."""
        import duckdb

        try:
            if [one.type.name for one in duckdb.extract_statements(sql)] != ["SELECT"]:
                raise InvalidInput("sql", sql, "be one statement that only selects")
            return self._connection.sql(sql).to_arrow_table()
        except self._error as error:
            raise InvalidInput("sql", sql, "be a statement that DuckDB can answer", str(error)) from error

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise StoreError(f"DuckDB file {self._path!r}: {error}") from error
