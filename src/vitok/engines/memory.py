"""Stores that live and end with the process: for tests, examples and trials."""

import threading
from collections.abc import Iterable, Iterator, Sequence

from vitok.clock import Clock, SystemClock
from vitok.engines.key_value import Write
from vitok.engines.row_store import HEADER, Row, packed


class MemoryStore:
    """Keeps everything in dictionaries.

    Example:
        >>> store = MemoryStore()
        >>> store.commit([("t", b"b", b"2"), ("t", b"a", b"1")])
        >>> list(store.scan("t"))
        [(b'a', b'1'), (b'b', b'2')]
    """

    def __init__(self) -> None:
        self._tables: dict[str, dict[bytes, bytes]] = {}

    def get(self, table: str, key: bytes) -> bytes | None:
        """Returns the value of a key, or None."""
        return self._tables.get(table, {}).get(key)

    def commit(self, writes: Iterable[Write]) -> None:
        """Writes all or none."""
        for table, key, value in list(writes):
            if value is None:
                self._tables.get(table, {}).pop(key, None)
            else:
                self._tables.setdefault(table, {})[key] = value

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yields the keys that start with `prefix`, in order, with their values."""
        rows = self._tables.get(table, {})
        for key in sorted(rows):
            if key.startswith(prefix):
                yield key, rows[key]


class MemoryRows:
    """Keeps rows in a dictionary; the whole `RowStore` for tests and examples.

    Args:
        clock: Says when a row has expired.

    Example:
        >>> store = MemoryRows()
        >>> store.write([Row(b"k", (1, 1), b"v")]), store.write([Row(b"k", (1, 1), b"v")])
        (1, 0)
        >>> store.erase([b"k", b"k"])
        1
    """

    _opened: dict[str, "MemoryRows"] = {}  # noqa: RUF012 - one for the process is what it is for
    _opening = threading.Lock()

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._rows: dict[bytes, tuple[bytes, int]] = {}
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()

    @classmethod
    def named(cls, name: str) -> "MemoryRows":
        """Returns the store of that name, the same one for the whole process."""
        with cls._opening:
            return cls._opened.setdefault(name, cls())

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns version and value of each key, None where there is none."""
        now = self._clock.now()
        with self._lock:
            return [self._live(key, now) for key in keys]

    def write(self, rows: Iterable[Row]) -> int:
        """Keeps each row whose version is newer than the one kept; returns how many were applied."""
        checked = packed(rows)
        now = self._clock.now()
        applied = 0
        with self._lock:
            for key, blob, expires in checked:
                kept = self._live(key, now)
                if kept is None or kept[:HEADER] < blob[:HEADER]:
                    self._rows[key] = blob, expires
                    applied += 1
        return applied

    def erase(self, keys: Sequence[bytes]) -> int:
        """Removes keys; returns how many were there."""
        now = self._clock.now()
        with self._lock:
            live = {key for key in keys if self._live(key, now) is not None}
            for key in keys:
                self._rows.pop(key, None)
        return len(live)

    def _live(self, key: bytes, now: int) -> bytes | None:
        kept = self._rows.get(key)
        if kept is None or 0 < kept[1] <= now:
            return None
        return kept[0]
