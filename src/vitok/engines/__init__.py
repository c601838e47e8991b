"""Stores and streams that other people run, each behind a small protocol: one file an engine.

Only the protocol's methods are used by other rooms, and each engine passes the same conformance suite
(`tests/engines`). What is kept in a store, and when, is decided above.
"""

from vitok.engines.clickhouse import ClickHouseLog
from vitok.engines.duckdb import DuckDBLog
from vitok.engines.event_stream import EventStream, Message, Outgoing, open_stream, publish
from vitok.engines.kafka import KafkaStream
from vitok.engines.key_value import KeyValueStore, open_store
from vitok.engines.lmdb import LmdbRows, LmdbStore
from vitok.engines.log_store import LogStore, open_log_store
from vitok.engines.memory import MemoryRows, MemoryStore
from vitok.engines.memory_topic import MemoryStream, MemoryTopic
from vitok.engines.redis import RedisRows
from vitok.engines.row_store import HEADER, Row, RowStore, open_rows, pack_version, unpack_version

__all__ = [
    "HEADER",
    "ClickHouseLog",
    "DuckDBLog",
    "EventStream",
    "KafkaStream",
    "KeyValueStore",
    "LmdbRows",
    "LmdbStore",
    "LogStore",
    "MemoryRows",
    "MemoryStore",
    "MemoryStream",
    "MemoryTopic",
    "Message",
    "Outgoing",
    "RedisRows",
    "Row",
    "RowStore",
    "open_log_store",
    "open_rows",
    "open_store",
    "open_stream",
    "pack_version",
    "publish",
    "unpack_version",
]
