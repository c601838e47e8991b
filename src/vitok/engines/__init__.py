"""Stores and streams that other people run, each behind a small protocol: one file an engine.

Only the protocol's methods are used by other rooms, and each engine passes the same conformance suite
(`tests/engines`). What is kept in a store, and when, is decided above.
"""

from vitok.engines.key_value import KeyValueStore, open_store
from vitok.engines.lmdb import LmdbStore
from vitok.engines.memory import MemoryStore

__all__ = ["KeyValueStore", "LmdbStore", "MemoryStore", "open_store"]
