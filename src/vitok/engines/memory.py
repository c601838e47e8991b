"""A store that lives and ends with the process: for tests, examples and trials."""

from collections.abc import Iterable, Iterator

from vitok.engines.key_value import Write


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
