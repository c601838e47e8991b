"""LMDB: an embedded store, memory-mapped, with atomic commits and readers that never wait.

A commit survives the death of the process at once; it is forced to the disk by `sync`, which the owner calls when a
power cut must not cost it either.
"""

import errno
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vitok.clock import MINUTE, Clock, SystemClock
from vitok.engines.key_value import Write
from vitok.engines.row_store import HEADER, LONGEST_KEY, Row, packed
from vitok.errors import StoreError

GIB = 1 << 30
MAP_SIZE = 64 * GIB  # an address range, not space on the disk: the file grows as it is written
_NEVER = bytes(8)
_SLICE = 10_000


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
        self._lmdb = lmdb
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Without writemap and with sync off, pages reach the kernel by write(): a killed process loses no commit.
            self._env = lmdb.open(str(self.folder), map_size=MAP_SIZE, max_dbs=64, sync=False, writemap=False)
        except (lmdb.Error, OSError) as error:
            raise self._failed("opened", error) from error
        self._tables: dict[str, Any] = {}
        self._opening = threading.Lock()
        self._pid = os.getpid()

    def _table(self, name: str) -> Any:
        handle = self._tables.get(name)
        if handle is not None:
            return handle
        # `open_db` alone waits for the writer with the interpreter's lock in its hand, which the writer needs to end:
        # a table that is not there is looked up by reading, and one that is there is opened in a write of its own.
        with self._opening:
            if name not in self._tables and self._exists(name):
                with self._env.begin(write=True) as transaction:
                    found = self._env.open_db(name.encode(), txn=transaction, create=False)
                self._tables[name] = found
        return self._tables.get(name)

    def _exists(self, name: str) -> bool:
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            return bool(cursor.set_range(name.encode())) and cursor.key() == name.encode()

    def get(self, table: str, key: bytes) -> bytes | None:
        """Returns the value of a key, or None."""
        try:
            handle = self._table(table)
            if handle is None:
                return None
            with self._env.begin(db=handle) as transaction:
                return transaction.get(key)
        except self._error as error:
            raise self._failed("read", error) from error

    def commit(self, writes: Iterable[Write]) -> None:
        """Writes all or none.

        Raises:
            StoreError: If nothing could be written, for instance because the disk is full.
        """
        rows = list(writes)
        try:
            tables = {name: self._table(name) for name in dict.fromkeys(row[0] for row in rows)}
            with self._env.begin(write=True) as transaction:
                for name in [name for name, handle in tables.items() if handle is None]:
                    tables[name] = self._env.open_db(name.encode(), txn=transaction)
                for name, key, value in rows:
                    if value is None:
                        transaction.delete(key, db=tables[name])
                    else:
                        transaction.put(key, value, db=tables[name])
            self._tables.update(tables)
        except self._error as error:
            raise self._failed("written", error) from error

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yields the keys that start with `prefix`, in order, with their values."""
        try:
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
        except self._error as error:
            raise self._failed("read", error) from error

    def sync(self) -> None:
        """Forces everything committed to the disk."""
        self._env.sync(True)

    def _failed(self, verb: str, error: Exception) -> StoreError:
        remedy = _remedy(self._lmdb, error)
        if isinstance(error, self._lmdb.MapFullError):
            remedy = f"its map is full, which is {MAP_SIZE // GIB} GiB: forget what is not needed, or fill a new folder"
        return StoreError(f"the store at {self.folder} could not be {verb}: {remedy}")

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


class _Environment:
    # One open environment, shared by all that open its folder in this process: LMDB forbids a second one.
    def __init__(self, folder: Path, *, map_size: int, max_readers: int) -> None:
        import lmdb

        self.folder = folder
        self.errors = lmdb
        self.pid = os.getpid()
        self.users = 1
        self.writing = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # No spare transactions: a forked child that ends would give back the reader slots of its parent's.
            self.env = lmdb.open(
                str(folder), map_size=map_size, max_readers=max_readers, max_dbs=8, max_spare_txns=0, sync=False
            )
            self.env.reader_check()
            with self.env.begin(write=True) as transaction:
                self.rows = self.env.open_db(b"rows", txn=transaction)
        except (lmdb.Error, OSError) as error:
            raise self.failed("opened", error) from error
        self.file = self.identity()

    def identity(self) -> tuple[int, int] | None:
        try:
            status = (self.folder / "data.mdb").stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def failed(self, verb: str, error: Exception) -> StoreError:
        """Says what went wrong and what mends it."""
        return StoreError(f"the row store at {self.folder} could not be {verb}: {_remedy(self.errors, error)}")


def _remedy(lmdb: Any, error: Exception) -> str:
    # What went wrong and what mends it.
    text = str(error)
    code = getattr(error, "errno", None) or getattr(error, "code", 0)
    if isinstance(error, lmdb.MapFullError):
        return "its map is full: erase rows, or open it everywhere with a larger ?map_gib="
    if isinstance(error, lmdb.MapResizedError):
        return "another process opened it with a larger map: open it everywhere with the same ?map_gib="
    if isinstance(error, lmdb.ReadersFullError):
        return "all reader slots are taken: open it first with a larger ?max_readers="
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in text:
        return "the disk is full: free some space and write again; what was there before is whole"
    if code == errno.EIO or "Input/output" in text:
        # What LMDB makes of a write of which the disk took a part.
        return "the disk is full or failing: free some space and write again; what was there before is whole"
    if code in (errno.EEXIST, errno.ENOTDIR):
        return f"a file stands there, name a folder ({text})"
    if "already open" in text:
        return "another kind of store has that folder open in this process: give each a folder of its own"
    return text


class LmdbRows:
    """Rows in a folder: the embedded `RowStore`. Any number of processes may read and write it on one machine.

    A write is one transaction and in the hands of the kernel when it returns; `sync` forces it to the disk. A second
    store on the same folder in the same process shares the first one's environment, with its sizes.

    Args:
        folder: Made if it is not there.
        map_size: The most bytes the file may ever have; an address range, not space on the disk.
        max_readers: How many reads may run at one moment in all processes together.
        clock: Says when a row has expired.

    Raises:
        StoreError: If the folder cannot be used, or was opened by the process this one was forked from.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = LmdbRows(folder)
        ...     applied = store.write([Row(b"k", (2, 2), b"new"), Row(b"k", (1, 1), b"old")])
        ...     row = store.read([b"k"])[0]
        ...     store.close()
        >>> applied, row[HEADER:]
        (1, b'new')
    """

    _open: dict[Path, _Environment] = {}  # noqa: RUF012 - one for the process is what it is for
    _opening = threading.Lock()

    def __init__(
        self, folder: str | Path, *, map_size: int = MAP_SIZE, max_readers: int = 1024, clock: Clock | None = None
    ) -> None:
        self.folder = Path(folder)
        self._clock = clock or SystemClock()
        self._checked = self._clock.now()
        self._closed = False
        place = self.folder.resolve()
        with self._opening:
            known = self._open.get(place)
            if known is not None and known.pid != os.getpid():
                raise self._forked(known.pid)
            # A folder that was removed and made anew is another store.
            if known is not None and known.file == known.identity():
                known.users += 1
                self._shared = known
            else:
                self._shared = self._open[place] = _Environment(place, map_size=map_size, max_readers=max_readers)

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns version and value of each key as of one moment, None where there is none.

        Raises:
            StoreError: If the store cannot be read, is closed, or was opened before a fork.
        """
        shared = self._usable()
        now = struct.pack(">Q", self._clock.now())
        try:
            found = self._get(shared, keys)
        except shared.errors.ReadersFullError:
            # Slots of processes that were killed stay taken until somebody looks.
            shared.env.reader_check()
            try:
                found = self._get(shared, keys)
            except shared.errors.Error as error:
                raise shared.failed("read", error) from error
        except shared.errors.BadValsizeError:
            possible = [key for key in keys if 0 < len(key) <= LONGEST_KEY]
            rows = dict(zip(possible, self.read(possible), strict=True))
            return [rows.get(key) for key in keys]
        except shared.errors.Error as error:
            raise shared.failed("read", error) from error
        # Inline, as this is the hot path: 8 bytes of expiry, then the row.
        return [None if kept is None or (kept[:8] != _NEVER and kept[:8] <= now) else kept[8:] for kept in found]

    @staticmethod
    def _get(shared: _Environment, keys: Sequence[bytes]) -> list[bytes | None]:
        with shared.env.begin(db=shared.rows) as transaction:
            get = transaction.get
            return [get(key) for key in keys]

    def write(self, rows: Iterable[Row]) -> int:
        """Keeps each row whose version is newer than the one kept, all in one transaction.

        Returns:
            How many rows were applied.

        Raises:
            InvalidInput: If a key, version or expiry breaks its rule; then nothing was written.
            StoreError: If the map or the disk is full, or the store cannot be written; then nothing was written.
        """
        shared = self._usable()
        checked = packed(rows)
        # In the order of the keys neighbours share pages; the sort keeps the order given within a key.
        checked.sort(key=lambda row: row[0])
        try:
            return self._put(shared, checked)
        except shared.errors.MapFullError as error:
            # A reader that was killed may have kept old pages from being used again.
            if not shared.env.reader_check():
                raise shared.failed("written", error) from error
            try:
                return self._put(shared, checked)
            except shared.errors.Error as again:
                raise shared.failed("written", again) from again
        except shared.errors.Error as error:
            raise shared.failed("written", error) from error

    def _put(self, shared: _Environment, rows: list[tuple[bytes, bytes, int]]) -> int:
        if not rows:
            return 0
        applied = 0
        with shared.writing:
            moment = self._clock.now()
            if moment - self._checked > MINUTE:
                self._checked = moment
                shared.env.reader_check()
            now = struct.pack(">Q", moment)
            with shared.env.begin(write=True, db=shared.rows) as transaction:
                for key, blob, expires in rows:
                    kept = transaction.get(key)
                    if kept is None or kept[8:24] < blob[:HEADER] or (kept[:8] != _NEVER and kept[:8] <= now):
                        transaction.put(key, struct.pack(">Q", expires) + blob)
                        applied += 1
        return applied

    def erase(self, keys: Sequence[bytes]) -> int:
        """Removes keys in one transaction; returns how many were there.

        Raises:
            StoreError: If the store cannot be written.
        """
        shared = self._usable()
        now = struct.pack(">Q", self._clock.now())
        erased = 0
        try:
            with shared.writing, shared.env.begin(write=True, db=shared.rows) as transaction:
                for key in keys:
                    kept = transaction.pop(key) if 0 < len(key) <= LONGEST_KEY else None
                    erased += kept is not None and (kept[:8] == _NEVER or kept[:8] > now)
        except shared.errors.Error as error:
            raise shared.failed("written", error) from error
        return erased

    def sweep(self) -> int:
        """Removes the rows that have expired, some thousands a transaction; returns how many.

        Reads never show them; this gives their space back.

        Raises:
            StoreError: If the store cannot be written.
        """
        shared = self._usable()
        now = struct.pack(">Q", self._clock.now())
        swept, after = 0, b"\0"
        try:
            while after:
                with shared.writing, shared.env.begin(write=True, db=shared.rows) as transaction:
                    expired: list[bytes] = []
                    seen, position, after = 0, after, b""
                    with transaction.cursor() as cursor:
                        if cursor.set_range(position):
                            for key, kept in cursor:
                                if seen == _SLICE:
                                    after = key
                                    break
                                seen += 1
                                if kept[:8] != _NEVER and kept[:8] <= now:
                                    expired.append(key)
                    for key in expired:
                        transaction.delete(key)
                swept += len(expired)
        except shared.errors.Error as error:
            raise shared.failed("written", error) from error
        return swept

    def sync(self) -> None:
        """Forces everything written to the disk.

        Raises:
            StoreError: If the disk refuses.
        """
        shared = self._usable()
        try:
            shared.env.sync(True)
        except shared.errors.Error as error:
            raise shared.failed("written", error) from error

    def close(self) -> None:
        """Lets go of the folder; the last one in the process that does closes the environment."""
        if self._closed:
            return
        self._closed = True
        shared = self._shared
        with self._opening:
            shared.users -= 1
            if shared.users == 0 and shared.pid == os.getpid():
                place = self.folder.resolve()
                if self._open.get(place) is shared:
                    del self._open[place]
                shared.env.close()

    def _usable(self) -> _Environment:
        if self._closed:
            raise StoreError(f"the row store at {self.folder} is closed: open it again")
        if self._shared.pid != os.getpid():
            raise self._forked(self._shared.pid)
        return self._shared

    def _forked(self, pid: int) -> StoreError:
        return StoreError(
            f"the row store at {self.folder} was opened by process {pid}, from which this one was forked: LMDB does "
            "not survive a fork. Open it after the fork, or start processes with the method 'spawn'"
        )
