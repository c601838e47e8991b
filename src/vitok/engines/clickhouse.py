"""A store of logs in ClickHouse, over its HTTP interface: many machines, many readers.

Source: ClickHouse documentation, "HTTP interface", "ArrowStream", "MergeTree", "Mutations".
"""

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa

from vitok.engines import address
from vitok.engines.log_store import SEGMENT, check_types, checked
from vitok.errors import InvalidInput, StoreError

_KINDS = {
    pa.string(): "Nullable(String)",
    pa.float64(): "Nullable(Float64)",
    pa.int64(): "Nullable(Int64)",
    pa.int32(): "Nullable(Int32)",
    pa.bool_(): "Nullable(Bool)",
    pa.timestamp("us", tz="UTC"): "Nullable(DateTime64(6, 'UTC'))",
}
_OPTIONS = ("timeout_ms", "secure")
_NO_OPTIONS: Mapping[str, str] = {}
# Rows of one block are in the table at once or not at all; a segment has a tenth of these.
_ONE_BLOCK = 10_000_000


class ClickHouseLog:
    """A `LogStore` in a database of ClickHouse.

    A put that was cut off between the removal of a segment's old rows and the insertion of the new ones is mended by
    putting the segment again.

    Args:
        url: `clickhouse://user:password@host:8123/database`; the database is `default` where none is named.

    Raises:
        InvalidInput: If the address is wrong.
        StoreError: If no server answers.
    """

    def __init__(self, url: str) -> None:
        self._place = address.remote(url, 8123, _OPTIONS)
        self._connection: http.client.HTTPConnection | None = None
        try:
            self._ask("SELECT 1")
        except StoreError:
            self.close()
            raise

    def put(self, table: str, segment: str, rows: pa.Table) -> None:
        """Makes these the rows of the segment."""
        given = checked(table, segment, rows)
        wanted = {one.name: _KINDS[one.type] for one in given.schema} | {SEGMENT: "LowCardinality(String)"}
        columns = ", ".join(f"`{name}` {kind}" for name, kind in wanted.items())
        self._ask(f"CREATE TABLE IF NOT EXISTS `{table}` ({columns}) ENGINE = MergeTree ORDER BY `{SEGMENT}`")
        own = f"database = currentDatabase() AND table = '{table}'"
        found = self._ask(f"SELECT name, type FROM system.columns WHERE {own} FORMAT JSON")  # noqa: S608
        there = {row["name"]: row["type"] for row in json.loads(found)["data"]}
        for name in check_types(table, wanted, there):
            self._ask(f"ALTER TABLE `{table}` ADD COLUMN IF NOT EXISTS `{name}` {wanted[name]}")
        where = f"WHERE `{SEGMENT}` = '{segment}'"
        count = int(self._ask(f"SELECT count() FROM `{table}` {where}"))  # noqa: S608
        if count:
            self._ask(f"ALTER TABLE `{table}` DELETE {where}", options={"mutations_sync": "2"})
        if given.num_rows:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, given.schema) as stream:
                stream.write_table(given.combine_chunks())
            names = ", ".join(f"`{name}`" for name in given.schema.names)
            options = {"min_insert_block_size_rows": str(_ONE_BLOCK), "max_insert_block_size": str(_ONE_BLOCK)}
            self._ask(
                f"INSERT INTO `{table}` ({names}) FORMAT ArrowStream", sink.getvalue().to_pybytes(), options=options
            )

    def query(self, sql: str) -> pa.Table:
        """Answers one SELECT."""
        try:
            options = {"readonly": "1", "output_format_arrow_string_as_string": "1"}
            data = self._ask(sql.rstrip().rstrip(";") + "\nFORMAT ArrowStream", options=options)
        except _RefusedError as error:
            raise InvalidInput("sql", sql, "be a statement that ClickHouse can answer", str(error)) from error
        found = pa.ipc.open_stream(pa.py_buffer(data)).read_all()
        schema = pa.schema([pa.field(one.name, _plain(one.type)) for one in found.schema])
        return found.cast(schema)

    def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, sql: str, data: bytes | None = None, options: Mapping[str, str] = _NO_OPTIONS) -> bytes:
        place = self._place
        asked = {"database": place.path or "default", **options}
        body = sql.encode()
        if data is not None:
            asked["query"], body = sql, data
        headers = {"X-ClickHouse-User": place.user or "default", "X-ClickHouse-Key": place.password}
        for attempt in range(2):
            connection = self._connected()
            try:
                connection.request("POST", "/?" + urlencode(asked), body, headers)
                answer = connection.getresponse()
                content = answer.read()
                break
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # A kept connection may have been closed by the server meanwhile; a second fault is the server's.
                if attempt:
                    raise StoreError(f"ClickHouse at {place.servers} cannot be reached: {error!r}") from error
        if answer.status != 200:
            raise _RefusedError(
                f"ClickHouse at {place.servers} refused: {content[:500].decode(errors='replace').strip()}"
            )
        return content

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            host, port = self._place.hosts[0]
            secure = self._place.options.get("secure") == "1"
            kind: Any = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            seconds = self._place.whole_number("timeout_ms", 30_000) / 1000
            self._connection = kind(host, port, timeout=seconds)
        assert self._connection is not None  # noqa: S101
        return self._connection


class _RefusedError(StoreError):
    # The server answered, and said no.
    pass


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", tz="UTC")
    if pa.types.is_binary(kind):
        return pa.string()
    return kind
