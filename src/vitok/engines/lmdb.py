"""LMDB: an embedded store, memory-mapped, with atomic commits and readers that never wait.

A commit survives the death of the process at once; it is forced to the disk by `sync`, which the owner calls when a
power cut must not cost it either.
"""

import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vitok.engines.key_value import Write
from vitok.errors import StoreError

MAP_SIZE = 64 << 30  # an address range, not space on the disk: the file grows as it is written


class LmdbStore:
    """A folder with one LMDB environment.

    Args:
        folder: Made if it is not there.

    Raises:
        StoreError: If the folder cannot be used.
    """

    def __init__(self, folder: str | Path) -> None:
        import lmdb

        self._error = lmdb.Error
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Without writemap and with sync off, pages reach the kernel by write(): a killed process loses no commit.
            self._env = lmdb.open(str(self.folder), map_size=MAP_SIZE, max_dbs=64, sync=False, writemap=False)
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"the store at {self.folder} cannot be opened: {error}") from error
        self._tables: dict[str, Any] = {}
        self._opening = threading.Lock()
        self._pid = os.getpid()

    def _table(self, name: str) -> Any:
        handle = self._tables.get(name)
        if handle is None:
            with self._opening:
                try:
                    handle = self._env.open_db(name.encode(), create=False)
                except self._error:
                    return None
                self._tables[name] = handle
        return handle

    def get(self, table: str, key: bytes) -> bytes | None:
        """Returns the value of a key, or None."""
        handle = self._table(table)
        if handle is None:
            return None
        try:
            with self._env.begin(db=handle) as transaction:
                return transaction.get(key)
        except self._error as error:
            raise StoreError(f"the store at {self.folder} could not be read: {error}") from error

    def commit(self, writes: Iterable[Write]) -> None:
        """Writes all or none.

        Raises:
            StoreError: If nothing could be written, for instance because the disk is full.
        """
        rows = list(writes)
        try:
            for name in dict.fromkeys(row[0] for row in rows):
                if self._table(name) is None:
                    self._tables[name] = self._env.open_db(name.encode())
            with self._env.begin(write=True) as transaction:
                for name, key, value in rows:
                    if value is None:
                        transaction.delete(key, db=self._tables[name])
                    else:
                        transaction.put(key, value, db=self._tables[name])
        except self._error as error:
            raise StoreError(f"the store at {self.folder} could not be written: {error}") from error

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yields the keys that start with `prefix`, in order, with their values."""
        handle = self._table(table)
        if handle is None:
            return
        with self._env.begin(db=handle) as transaction, transaction.cursor() as cursor:
            if not cursor.set_range(prefix):
                return
            for key, value in cursor:
                if not key.startswith(prefix):
                    return
                yield key, value

    def sync(self) -> None:
        """Forces everything committed to the disk."""
        self._env.sync(True)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()
