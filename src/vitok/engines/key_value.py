"""The protocol of a store of bytes by key, and the way to open one by its address."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from vitok import urls
from vitok.errors import InvalidInput

Write = tuple[str, bytes, bytes | None]


class KeyValueStore(Protocol):
    """Tables of bytes by key, written in atomic groups by one process, read by any."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """Returns the value of a key, or None."""
        ...

    def commit(self, writes: Iterable[Write]) -> None:
        """Writes (table, key, value) all or none; a value of None deletes the key."""
        ...

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yields the keys that start with `prefix`, in order of their bytes, with their values."""
        ...


def open_store(url: str) -> KeyValueStore:
    """Opens the store at an address.

    Args:
        url: `lmdb://folder`, or `memory://name` for a store that ends with the process.

    Raises:
        InvalidInput: If no engine has that scheme.
        StoreError: If the store cannot be opened.

    Example:
        >>> store = open_store("memory://example")
        >>> store.commit([("t", b"k", b"v")])
        >>> store.get("t", b"k")
        b'v'
    """
    address = urls.parse(url)
    if address.scheme == "lmdb":
        from vitok.engines.lmdb import LmdbStore

        return LmdbStore(address.location)
    if address.scheme == "memory":
        from vitok.engines.memory import MemoryStore

        return MemoryStore()
    raise InvalidInput("store address", url, "begin with lmdb:// or memory://")
