"""Small state that changes, in one SQLite file for any number of threads and processes of a machine.

Budgets, keys, the ledger, sketches and alerts lie in such files. What each of them means is decided above; here is
how a file is made, recognised, shared and written, and what its errors say.
"""

import contextlib
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vitok.errors import Conflict, StoreError

Journal = Literal["wal", "rollback"]

_PAUSE_SECONDS = 0.01
_TABLE = re.compile(r"\bCREATE TABLE (?:IF NOT EXISTS )?(\w+)", re.IGNORECASE)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_NEXT_STEP = {
    sqlite3.SQLITE_FULL: "make room and try again; nothing was changed",
    sqlite3.SQLITE_IOERR: "look at the disk and its mount; nothing was changed",
    sqlite3.SQLITE_READONLY: "whoever changes it needs the right to write the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "look whether it is there, and whether file and folder may be read and written",
    sqlite3.SQLITE_PERM: "look whether file and folder may be read and written",
    sqlite3.SQLITE_NOTADB: "name another file, or move this one away",
    sqlite3.SQLITE_CORRUPT: "put a copy of it back from before",
}


class _Connections:
    """One connection to read and one to write, each with its lock, of one process."""

    def __init__(self, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        self.pid = os.getpid()
        self.reader = reader
        self.writer = writer
        self.read_lock = threading.RLock()
        self.write_lock = threading.RLock()
        reader.execute("PRAGMA query_only = ON")

    def close(self) -> None:
        with self.read_lock, self.write_lock:
            self.reader.close()
            self.writer.close()


class Database:
    """One SQLite file that is made where it does not exist and recognised where it does.

    A transaction is kept whole or not at all, also by `kill -9`. After a fork the child opens the file anew: SQLite
    forbids using a connection that came over one.

    Args:
        path: The file; it and its folder are made where they do not exist.
        schema: Statements that make its tables; what holds none of them is refused and left alone.
        kind: What the file holds, in a word, for errors.
        version: Number of the schema, at least 1; a file of another one is refused, unless `migrations` leads here.
        migrations: Statements that turn a file of a version into one of the next, by the version that they begin
            with. They run once, together, in one transaction.
        durable: Whether what was committed is on the disk when the call returns. Else a power cut may lose the last
            transactions, but never a part of one.
        wait_seconds: How long to wait for another process that writes.
        journal: `"wal"` keeps connections open, and reading never waits for writing. `"rollback"` opens one for each
            use and leaves no files beside this one: it may then lie where it can only be read, and another copy may
            be put in its place at any time.

    Raises:
        StoreError: If the file cannot be opened, holds something else, or was made with another schema.
        Conflict: If others have been writing it all the time.

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

    def __init__(
        self,
        path: str | Path,
        *,
        schema: str,
        kind: str,
        version: int,
        migrations: Mapping[int, str] | None = None,
        durable: bool = False,
        wait_seconds: float = 30.0,
        journal: Journal = "wal",
    ) -> None:
        self.path = Path(path)
        self._kind = kind
        self._version = version
        self._migrations = dict(migrations or {})
        self._tables = frozenset(_TABLE.findall(schema))
        self._synchronous = "FULL" if durable else "NORMAL"
        self._wait_seconds = wait_seconds
        self._journal = journal
        self._lock = threading.Lock()
        # A connection that came over a fork must not even be closed; kept, nothing closes it.
        self._inherited: list[_Connections] = []
        self._connections: _Connections | None = None
        with self._errors(wait_seconds):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._connect(wait_seconds, mode="rwc")) as connection:
                self._make(connection, schema)
                if journal == "wal":
                    self._keep_ahead(connection)
            if journal == "wal":
                self._connections = self._both()

    def __repr__(self) -> str:
        return f"Database({str(self.path)!r}, kind={self._kind!r})"

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Returns the rows of one query. Within `writing`, read by the transaction: it alone sees what it wrote.

        Raises:
            StoreError: If the file cannot be read, is damaged, or is closed.
        """
        with self._reader(self._wait_seconds) as connection:
            return connection.execute(sql, parameters).fetchall()

    @contextlib.contextmanager
    def reading(self, *, wait_seconds: float | None = None) -> Iterator[sqlite3.Connection]:
        """Lets several queries see the file as of one moment.

        Args:
            wait_seconds: How long to wait for who writes, where the journal is `"rollback"`; None as ever.

        Raises:
            Conflict: If others are writing.
            StoreError: If the file cannot be read, is damaged, or is closed.
        """
        with self._reader(self._wait_seconds if wait_seconds is None else wait_seconds) as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Opens a transaction beside which nobody else can write; an error in the block undoes all of it.

        Raises:
            Conflict: If others have been writing all the time.
            StoreError: If the disk is full, the file may only be read, is damaged, or is closed.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._errors(self._wait_seconds))
            if self._journal == "wal":
                connections = self._opened()
                stack.enter_context(connections.write_lock)
                connection = connections.writer
            else:
                connection = stack.enter_context(contextlib.closing(self._connect(self._wait_seconds)))
            with _transaction(connection):
                yield connection

    def close(self) -> None:
        """Closes the file; it cannot be used any more."""
        with self._lock:
            connections = self._connections
            if connections is not None and connections.pid == os.getpid():
                connections.close()

    @contextlib.contextmanager
    def _reader(self, wait_seconds: float) -> Iterator[sqlite3.Connection]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._errors(wait_seconds))
            if self._journal == "wal":
                connections = self._opened()
                stack.enter_context(connections.read_lock)
                yield connections.reader
            else:
                connection = stack.enter_context(contextlib.closing(self._connect(wait_seconds)))
                connection.execute("PRAGMA query_only = ON")
                yield connection

    def _opened(self) -> _Connections:
        connections = self._connections
        if connections is not None and connections.pid == os.getpid():
            return connections
        with self._lock:
            if self._connections is None or self._connections.pid != os.getpid():
                if self._connections is not None:
                    self._inherited.append(self._connections)
                self._connections = self._both()
            return self._connections

    def _both(self) -> _Connections:
        reader = self._connect(self._wait_seconds)
        try:
            return _Connections(reader, self._connect(self._wait_seconds))
        except BaseException:
            reader.close()
            raise

    def _connect(self, wait_seconds: float, *, mode: str = "rw") -> sqlite3.Connection:
        # By its address, as only that can say that a file which has gone is not to be made anew, empty.
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=wait_seconds,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        return connection

    def _make(self, connection: sqlite3.Connection, schema: str) -> None:
        # Most find the file made, and then need neither wait for who writes nor be allowed to write.
        if self._is_made(connection):
            return
        with _transaction(connection):
            if self._is_made(connection):
                return
            older = connection.execute("PRAGMA user_version").fetchone()[0]
            scripts = [self._migrations[step] for step in range(older, self._version)] if older else [schema]
            for script in scripts:
                for statement in _statements(script):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {int(self._version)}")

    def _is_made(self, connection: sqlite3.Connection) -> bool:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if not tables and not version:
            return False
        if version == self._version and self._tables <= tables:
            return True
        ours = bool(version) and bool(self._tables & tables)
        if ours and version < self._version and all(step in self._migrations for step in range(version, self._version)):
            return False
        if version == self._version or not ours:
            raise StoreError(f"{self.path} does not hold {self._kind}: name another file, or move this one away")
        age, fix = ("a newer", "use that one") if version > self._version else ("an older", "move the file away")
        raise StoreError(
            f"{self.path} holds {self._kind} of layout {version}, made by {age} vitok; this one reads layout "
            f"{self._version}: {fix}, or name another file"
        )

    def _keep_ahead(self, connection: sqlite3.Connection) -> None:
        # Two that switch a new file at once get "locked" without waiting, whatever the timeout.
        until = time.monotonic() + self._wait_seconds
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if _code(error) not in _BUSY or time.monotonic() >= until:
                    raise
            else:
                return
            time.sleep(_PAUSE_SECONDS)

    @contextlib.contextmanager
    def _errors(self, wait_seconds: float) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = _code(error)
            if code in _BUSY:
                waited = f" for {wait_seconds:g} s" if wait_seconds else ""
                raise Conflict(f"{self._kind} in {self.path}: being written by others{waited}; try again") from error
            step = f"; {_NEXT_STEP[code]}" if code in _NEXT_STEP else ""
            raise StoreError(f"{self._kind} in {self.path}: {error}{step}") from error
        except OSError as error:
            raise StoreError(f"{self._kind} in {self.path}: {error}") from error


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _code(error: sqlite3.Error) -> int:
    # Errors of the module itself, such as of a closed connection, have none.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _statements(script: str) -> Iterator[str]:
    # The body of a trigger has semicolons of its own.
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip("; \n"):
                yield statement
            statement = ""
    if statement.strip("; \n"):
        yield statement
