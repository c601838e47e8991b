"""Small state that changes, in tables of a PostgreSQL database, for any number of writers on any number of machines.

It has the face of `vitok.engines.sqlite.Database`: what is written for one file works for a server, and SQL marks its
parameters by `?` on both. Drivers and servers are those of PostgreSQL 14 and newer, by psycopg 3.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from vitok.engines.address import hidden
from vitok.errors import Conflict, InvalidInput, MissingExtra, StoreError

# What a connection has where its address does not say otherwise: a server that is gone is noticed within seconds.
_DEFAULTS = {
    "application_name": "vitok",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
_IDLE_SECONDS = 60
_NEXT_STEP = {
    "53100": "make room on its disk and try again; nothing was changed",
    "53300": "too many connections are open to it; raise max_connections, or put a pool before it",
    "25006": "it only answers questions; name the server that is written to",
    "42501": "whoever changes it needs the right to",
}


def connect(url: str) -> Any:
    """Opens a connection on which each statement counts by itself.

    Args:
        url: Address, `postgresql://user:word@host:5432/database`, with the options of libpq after `?`.

    Raises:
        MissingExtra: If psycopg is not installed.
        InvalidInput: If it is no such address.
        psycopg.Error: If nobody answers there, or the user is not let in.
    """
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        raise MissingExtra("postgres", "a PostgreSQL store") from error
    if not is_postgres(url):
        raise InvalidInput("address", hidden(url), "look like postgresql://user@host/database")
    try:
        options: dict[str, Any] = {**_DEFAULTS, **conninfo_to_dict(url)}
    except psycopg.ProgrammingError:
        # What libpq says of it would show the password.
        raise InvalidInput("address", hidden(url), "look like postgresql://user@host/database") from None
    return psycopg.connect(autocommit=True, **options)


def is_postgres(address: object) -> bool:
    """Says whether something is the address of a PostgreSQL database.

    Example:
        >>> is_postgres("postgresql://ann@localhost/models"), is_postgres(".vitok")
        (True, False)
    """
    return isinstance(address, str) and address.startswith(("postgresql://", "postgres://"))


class Session:
    """A connection within a transaction; parameters are marked by `?`.

    Args:
        connection: The connection of psycopg.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Runs a statement and returns its cursor."""
        return self.connection.execute(_marked(sql), tuple(parameters))


class _Connections:
    """One connection to read and one to write, each with its lock, of one process; opened when first needed."""

    def __init__(self, url: str) -> None:
        self.pid = os.getpid()
        self.url = url
        self.locks = {"read": threading.RLock(), "write": threading.RLock()}
        self._open: dict[str, Any] = {}

    def get(self, kind: str) -> Any:
        connection = self._open.get(kind)
        if connection is None or connection.closed:
            connection = self._open[kind] = self._new(kind)
        return connection

    def _new(self, kind: str) -> Any:
        connection = connect(self.url)
        if kind == "read":
            connection.execute("SET default_transaction_read_only = on")
        # A writer that hangs in the middle would hold up all others.
        connection.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_SECONDS}s'")
        if connection.execute("SHOW synchronous_commit").fetchone()[0] == "off":
            connection.execute("SET synchronous_commit = on")
        return connection

    def close(self) -> None:
        with self.locks["read"], self.locks["write"]:
            for connection in self._open.values():
                connection.close()


class Postgres:
    """Tables of one kind in a PostgreSQL database, made where they do not exist and recognised where they do.

    A transaction is kept whole or not at all. A connection that was lost is opened anew; what only reads is asked
    once more then. After a fork the child opens its own.

    Args:
        url: Address, `postgresql://user:word@host:5432/database`.
        schema: Statements that make the tables.
        table: The first of them with its schema, such as `"vitok.entry"`; it carries the layout's number, and its
            number in the database tells those who write it from all others.
        kind: What the tables hold, in a word, for errors.
        version: Number of the layout, at least 1; tables of another one are refused.
        wait_seconds: How long to wait for another writer.

    Raises:
        MissingExtra: If psycopg is not installed.
        InvalidInput: If the address is none of PostgreSQL.
        StoreError: If nobody answers there, or the tables are of another layout.
        Conflict: If others have been writing all the time.
    """

    def __init__(
        self, url: str, *, schema: str, table: str, kind: str, version: int, wait_seconds: float = 30.0
    ) -> None:
        self.url = url
        self._table = table
        self._kind = kind
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._closed = False
        # A connection that came over a fork must not be closed here: the parent's session would end.
        self._inherited: list[_Connections] = []
        self._connections = _Connections(url)
        try:
            self._make(schema, f"vitok {kind} {version}")
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Postgres({hidden(self.url)!r}, kind={self._kind!r})"

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Returns the rows of one query.

        Raises:
            StoreError: If nobody answers, or the store is closed.
        """
        with self._errors(), self._connected("read") as connections:
            cursor = self._executed(connections, "read", _marked(sql), tuple(parameters))[1]
            return list(cursor.fetchall())

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """Lets several queries see the database as of one moment.

        Raises:
            StoreError: If nobody answers, or the store is closed.
        """
        with self._errors(), self._connected("read") as connections:
            connection, _ = self._executed(connections, "read", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                yield Session(connection)
            finally:
                _undo(connection)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """Opens a transaction beside which nobody else can write these tables; an error in the block undoes it.

        Raises:
            Conflict: If others have been writing all the time.
            StoreError: If nobody answers, its disk is full, or the store is closed. Where the connection was lost in
                the very commit, the message says so: then it may have been kept.
        """
        import psycopg

        with self._errors(), self._connected("write") as connections:
            connection, _ = self._executed(connections, "write", "BEGIN")
            try:
                connection.execute(f"SET LOCAL lock_timeout = '{max(1, round(1000 * self._wait_seconds))}ms'")
                # By the name: the lock has to be there before the table is.
                connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"vitok {self._table}",))
                yield Session(connection)
            except BaseException:
                _undo(connection)
                raise
            try:
                connection.execute("COMMIT")
            except psycopg.OperationalError as error:
                if not connection.closed:
                    raise
                raise StoreError(
                    f"{self._kind} in {hidden(self.url)}: the connection was lost while the change was kept, and "
                    "whether it was is not known; read again, or repeat it with the same key"
                ) from error

    def close(self) -> None:
        """Closes the connections; the store cannot be used any more."""
        with self._lock:
            self._closed = True
            if self._connections.pid == os.getpid():
                self._connections.close()

    def _make(self, schema: str, layout: str) -> None:
        if self._layout() is None:
            with self.writing() as session:
                if session.execute("SELECT to_regclass(?)", (self._table,)).fetchone()[0] is None:
                    session.connection.execute(schema)
                    session.connection.execute(f"COMMENT ON TABLE {self._table} IS '{layout}'")
        found = self._layout()
        if found != layout:
            raise StoreError(
                f"table {self._table} of {hidden(self.url)} is {found!r} and not {layout!r}: another vitok, or another "
                "program, made it; name another database"
            )

    def _layout(self) -> str | None:
        found = self.read("SELECT to_regclass(?), obj_description(to_regclass(?))", (self._table, self._table))[0]
        return None if found[0] is None else str(found[1])

    @contextlib.contextmanager
    def _connected(self, kind: str) -> Iterator[_Connections]:
        with self._lock:
            if self._closed:
                raise StoreError(f"{self._kind} in {hidden(self.url)} is closed")
            if self._connections.pid != os.getpid():
                self._inherited.append(self._connections)
                self._connections = _Connections(self.url)
            connections = self._connections
        with connections.locks[kind]:
            yield connections

    def _executed(
        self, connections: _Connections, kind: str, sql: str, parameters: tuple[Any, ...] = ()
    ) -> tuple[Any, Any]:
        """Runs the first statement on a connection: once more on a new one where it was lost since the last call."""
        import psycopg

        connection = connections.get(kind)
        try:
            return connection, connection.execute(sql, parameters)
        except psycopg.Error:
            if not connection.closed:
                raise
        connection = connections.get(kind)
        return connection, connection.execute(sql, parameters)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        with store_errors(f"{self._kind} in {hidden(self.url)}", wait_seconds=self._wait_seconds):
            yield


@contextlib.contextmanager
def alone(url: str, what: str, *, wait_seconds: float = 120.0) -> Iterator[None]:
    """Holds a lock among all who use a database for a block of code; it is freed when its holder is gone.

    Args:
        url: Address, `postgresql://user@host/database`.
        what: What is locked.
        wait_seconds: How long to wait for another holder.

    Raises:
        Conflict: If somebody else held it all that time.
        StoreError: If nobody answers.
    """
    with store_errors(f"lock {what!r} in {hidden(url)}", wait_seconds=wait_seconds):
        connection = connect(url)
    with contextlib.closing(connection):
        with store_errors(f"lock {what!r} in {hidden(url)}", wait_seconds=wait_seconds):
            connection.execute(f"SET lock_timeout = '{max(1, round(1000 * wait_seconds))}ms'")
            connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (f"vitok lock {what}",))
        yield


@contextlib.contextmanager
def store_errors(what: str, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Turns the errors of psycopg into ours.

    Args:
        what: What is being used, for the message.
        wait_seconds: How long others were waited for.
    """
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtra("postgres", "a PostgreSQL store") from error
    try:
        yield
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
        raise Conflict(f"{what}: being written by others for {wait_seconds:g} s; try again") from error
    except psycopg.Error as error:
        step = _NEXT_STEP.get(error.sqlstate or "", "")
        raise StoreError(f"{what}: {str(error).strip() or type(error).__name__}{step and f'; {step}'}") from error


def _undo(connection: Any) -> None:
    import psycopg

    # A connection that is lost has nothing left to undo.
    with contextlib.suppress(psycopg.Error):
        connection.execute("ROLLBACK")


def _marked(sql: str) -> str:
    return sql.replace("%", "%%").replace("?", "%s")
