"""A SQLite file for the room's own small state: transactions that are kept whole or not at all."""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitok.errors import StoreError

BUSY_MS = 30_000


class Database:
    """One SQLite file (write-ahead log) for any number of threads and processes.

    What was committed survives `kill -9`; after a power cut the last transactions may be missing, but never a part
    of one. That suffices here: sketches come again from the log, and observations from the sketches.

    Args:
        path: The file; it and its folder are made where they do not exist.
        schema: Statements that make the tables.
        kind: What the file holds, in a word, for errors and to recognise it again.
        version: Number of the schema, at least 1.

    Raises:
        StoreError: If the file cannot be opened, or holds something else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     schema = "CREATE TABLE note (text TEXT NOT NULL) STRICT;"
        ...     notes = Database(Path(folder) / "notes.sqlite", schema=schema, kind="notes", version=1)
        ...     with notes.writing() as transaction:
        ...         _ = transaction.execute("INSERT INTO note VALUES ('kept')")
        ...     found = notes.read("SELECT text FROM note")
        ...     notes.close()
        >>> found
        [('kept',)]
    """

    def __init__(self, path: str | Path, *, schema: str, kind: str, version: int) -> None:
        self.path = Path(path)
        self._kind = kind
        self._lock = threading.RLock()
        self._pid = os.getpid()
        # SQLite forbids using or closing a connection that came over a fork; kept, it is left alone.
        self._inherited: list[sqlite3.Connection] = []
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._connect()
            try:
                self._create(schema, version)
            except BaseException:
                self._connection.close()
                raise

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Returns the rows of a query."""
        with self._lock, self._errors():
            return self._opened().execute(sql, parameters).fetchall()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Opens a transaction beside which no other process can write.

        Raises:
            StoreError: If the disk is full, the file damaged, or another process has been writing all the time.
        """
        with self._lock, self._errors():
            connection = self._opened()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Closes the file; it cannot be used any more."""
        with self._lock:
            if self._pid == os.getpid():
                self._connection.close()

    def _opened(self) -> sqlite3.Connection:
        if self._pid != os.getpid():
            self._inherited.append(self._connection)
            self._connection, self._pid = self._connect(), os.getpid()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def _create(self, schema: str, version: int) -> None:
        # Most openings find the file made, and then need not wait for who writes.
        found = self._contents(self._connection)
        if found is None:
            with self.writing() as transaction:
                found = self._contents(transaction)
                if found is None:
                    transaction.execute("CREATE TABLE contents (kind TEXT NOT NULL) STRICT")
                    transaction.execute("INSERT INTO contents VALUES (?)", (self._kind,))
                    for statement in schema.split(";"):
                        if statement.strip():
                            transaction.execute(statement)
                    transaction.execute(f"PRAGMA user_version = {int(version)}")
                    found = (self._kind, version)
        if found != (self._kind, version):
            raise StoreError(
                f"{self.path} does not hold {self._kind} of version {version}; name another file, or move this one away"
            )

    @staticmethod
    def _contents(connection: sqlite3.Connection) -> tuple[str, int] | None:
        """Returns kind and version of what the file holds; None where it is new."""
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return None
        kind = connection.execute("SELECT kind FROM contents").fetchone()[0] if "contents" in tables else ""
        return kind, connection.execute("PRAGMA user_version").fetchone()[0]

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._kind} in {self.path}: {error}") from error
