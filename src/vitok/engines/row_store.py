"""The protocol of the online store of feature rows, and the way to open one by its address.

A row has a key, a value and a version: the event time and the ingest time of what it says. The newest version wins in
whatever order rows are written, so that a replay, a late row or a second writer never sets a store back.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from vitok.engines import address
from vitok.errors import InvalidInput, StoreError

HEADER = 16
LONGEST_KEY = 511  # the longest that LMDB takes; the same everywhere, so that an address may change
_VERSION = struct.Struct(">QQ")
_LATEST = (1 << 63) - 1

_ADDRESSES = {
    "lmdb": "lmdb://folder",
    "redis": "redis://host:port/db",
    "rediss": "rediss://host:port/db",
    "redis-cluster": "redis-cluster://host:port,host:port",
    "rediss-cluster": "rediss-cluster://host:port,host:port",
    "memory": "memory://name",
}


class Row(NamedTuple):
    """One value of one key, as of one version.

    Attributes:
        key: 1 to 511 bytes, any.
        version: Event time and ingest time, in microseconds since 1970-01-01 UTC, from 0 on.
        value: Any bytes.
        expires: When the row is to be as if it had never been, in microseconds since 1970-01-01 UTC; 0 for never.
            Of two versions of a key the newer must not expire earlier, or their order of arrival shows.
    """

    key: bytes
    version: tuple[int, int]
    value: bytes
    expires: int = 0


class RowStore(Protocol):
    """Rows by key, of which the newest version stays; many processes may read and write at once.

    A row is read as one piece of bytes: 16 bytes of version, then the value. `unpack_version` reads the first.
    """

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns version and value of each key in the order asked, None where there is none; one round trip.

        Raises:
            StoreError: If the store cannot be read; it never returns a part.
        """
        ...

    def write(self, rows: Iterable[Row]) -> int:
        """Keeps each row whose version is newer than the one kept; the other rows change nothing.

        Rows of one key are taken in the order given. All have reached the store when the call returns, and writing
        them again is harmless.

        Returns:
            How many rows were applied.

        Raises:
            InvalidInput: If a key, version or expiry breaks its rule; then nothing was written.
            StoreError: If the store cannot be written.
        """
        ...

    def erase(self, keys: Sequence[bytes]) -> int:
        """Removes keys with their versions; returns how many were there.

        What was erased leaves no trace, so an old row that is written again afterwards is a new row.
        """
        ...


def pack_version(event_time: int, ingest_time: int) -> bytes:
    """Writes a version as 16 bytes that sort as the pair of times does.

    Raises:
        InvalidInput: If a time is before 1970 or needs more than 63 bits.

    Example:
        >>> pack_version(1, 2).hex()
        '00000000000000010000000000000002'
        >>> pack_version(7, 9) < pack_version(8, 0) < pack_version(256, 0)
        True
    """
    if not (0 <= event_time <= _LATEST and 0 <= ingest_time <= _LATEST):
        raise InvalidInput("version", (event_time, ingest_time), "be two times in microseconds from 1970 on")
    return _VERSION.pack(event_time, ingest_time)


def unpack_version(row: bytes) -> tuple[int, int]:
    """Reads the event time and the ingest time, in microseconds, from a row as `RowStore.read` returns it.

    Raises:
        StoreError: If the row is too short to have a version.

    Example:
        >>> row = pack_version(5, 6) + b"value"
        >>> unpack_version(row), row[HEADER:]
        ((5, 6), b'value')
    """
    if len(row) < HEADER:
        raise StoreError(f"a row of {len(row)} bytes was not written by vitok: erase its key and write it again")
    event_time, ingest_time = _VERSION.unpack_from(row)
    return event_time, ingest_time


def packed(rows: Iterable[Row]) -> list[tuple[bytes, bytes, int]]:
    """Checks rows before any is written; returns key, version and value as one, and expiry of each.

    Raises:
        InvalidInput: If a key, version or expiry breaks its rule.
    """
    checked = []
    for key, (event_time, ingest_time), value, expires in rows:
        if not 0 < len(key) <= LONGEST_KEY:
            raise InvalidInput("key", key, f"have 1 to {LONGEST_KEY} bytes", "Hash the part that is long")
        if not 0 <= expires <= _LATEST:
            raise InvalidInput("expires", expires, "be a time in microseconds from 1970 on, or 0 for never")
        checked.append((key, pack_version(event_time, ingest_time) + value, expires))
    return checked


def open_rows(url: str) -> RowStore:
    """Opens the row store at an address.

    Args:
        url: `lmdb://folder`, `redis://host:port/db`, `rediss://` (TLS), `redis-cluster://host:port,host:port`, or
            `memory://name`, which is one store wherever the process opens that name. Options follow a `?`; the page
            on engines lists them.

    Raises:
        InvalidInput: If no engine has that scheme, or an option does not exist.
        StoreError: If the store cannot be opened. Redis is not asked before the first read or write.

    Example:
        >>> store = open_rows("memory://example")
        >>> store.write([Row(b"customer/7", (20, 21), b"new"), Row(b"customer/7", (10, 99), b"old")])
        1
        >>> row, nothing = store.read([b"customer/7", b"customer/8"])
        >>> unpack_version(row), row[HEADER:], nothing
        ((20, 21), b'new', None)
    """
    scheme = address.scheme_of(url, _ADDRESSES)
    if scheme == "lmdb":
        from vitok.engines.lmdb import GIB, MAP_SIZE, LmdbRows

        place = address.embedded(url, ("map_gib", "max_readers"))
        map_size = place.whole_number("map_gib", MAP_SIZE // GIB) * GIB
        return LmdbRows(place.path, map_size=map_size, max_readers=place.whole_number("max_readers", 1024))
    if scheme == "memory":
        from vitok.engines.memory import MemoryRows

        return MemoryRows.named(address.embedded(url).path)
    from vitok.engines.redis import RedisRows

    return RedisRows(url)
