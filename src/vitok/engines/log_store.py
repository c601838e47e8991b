"""The protocol of a store that holds rows of logs beyond one machine, and the way to open one."""

from typing import Protocol

import pyarrow as pa

from vitok.engines import address
from vitok.errors import InvalidInput

SEGMENT, FILE = "_segment", "_file"
"""Columns that every table has: which segment a row came from, and which file of it."""

_ADDRESSES = {"duckdb": "duckdb://file", "clickhouse": "clickhouse://user:password@host:8123/database"}
_KINDS = (pa.string(), pa.float64(), pa.int64(), pa.int32(), pa.bool_(), pa.timestamp("us", tz="UTC"))


class LogStore(Protocol):
    """Tables of rows that came in segments, and SQL over them; one thread uses it."""

    def put(self, table: str, segment: str, rows: pa.Table) -> None:
        """Makes these the rows of the segment, all of them or none, whatever was there of it.

        A table that is not there is made; columns that it lacks are added, null in older rows; columns that the
        rows lack are null. Putting the same again changes nothing.

        Args:
            table: Its name: small letters, digits and `_`.
            segment: Its name.
            rows: Columns of texts, float64, int32, int64, truth values and times in microseconds UTC. No rows remove
                the segment.

        Raises:
            InvalidInput: If a name does not fit, a type is another one, or a column has another type than before.
            StoreError: If the store cannot be reached or refuses.
        """
        ...

    def query(self, sql: str) -> pa.Table:
        """Answers one SELECT; times are in UTC.

        Raises:
            InvalidInput: If the store cannot answer it.
            StoreError: If it cannot be reached.
        """
        ...

    def close(self) -> None:
        """Lets the store go; a second call does nothing."""
        ...


def open_log_store(url: str) -> LogStore:
    """Opens a store of logs.

    Args:
        url: `duckdb://file` for one machine and one process, or `clickhouse://user:password@host:8123/database` for
            many; `?timeout_ms=` (30,000) says how long a request may take, `?secure=1` asks over TLS.

    Raises:
        InvalidInput: If the address is wrong.
        StoreError: If the store cannot be opened.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = open_log_store(f"duckdb://{folder}/log.duckdb")
        ...     store.put("decisions", "segment-00000001", pa.table({"action": ["allow", "block"]}))
        ...     print(store.query("SELECT count(*) AS n FROM decisions").to_pylist())
        ...     store.close()
        [{'n': 2}]
    """
    if address.scheme_of(url, _ADDRESSES) == "duckdb":
        from vitok.engines.duckdb import DuckDBLog

        return DuckDBLog(url)
    from vitok.engines.clickhouse import ClickHouseLog

    return ClickHouseLog(url)


def checked(table: str, segment: str, rows: pa.Table) -> pa.Table:
    """Checks what `put` is given, and adds the name of the segment; all columns may be null.

    Raises:
        InvalidInput: If a name does not fit or a type is another one.
    """
    if not table or not all(c.isascii() and (c.islower() or c.isdigit() or c == "_") for c in table):
        raise InvalidInput("table", table, "be small letters, digits and '_'")
    if not segment or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in segment):
        raise InvalidInput("segment", segment, "be letters, digits, '-', '_' and '.'")
    for one in rows.schema:
        if one.type not in _KINDS:
            raise InvalidInput(f"column {one.name}", str(one.type), "be one of " + ", ".join(map(str, _KINDS)))
        if '"' in one.name or "`" in one.name or "\\" in one.name or one.name == SEGMENT:
            raise InvalidInput("column", one.name, f"have no quotes or backslashes and not be {SEGMENT}")
    columns = [pa.repeat(segment, rows.num_rows), *(column.combine_chunks() for column in rows.columns)]
    names = [SEGMENT, *rows.schema.names]
    return pa.table(columns, schema=pa.schema([pa.field(n, c.type) for n, c in zip(names, columns, strict=True)]))


def check_types(table: str, wanted: dict[str, str], there: dict[str, str]) -> list[str]:
    """Compares columns with those that a table has.

    Returns:
        The names of the columns that it lacks.

    Raises:
        InvalidInput: If one has another type there.
    """
    for name, kind in wanted.items():
        if there.get(name, kind) != kind:
            raise InvalidInput(
                f"column {name}", kind, f"be {there[name]} as in the table {table!r}", "Use another table"
            )
    return [name for name in wanted if name not in there]
