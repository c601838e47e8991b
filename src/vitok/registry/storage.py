"""The ledger's file: SQLite that takes entries, keeps them in a chain of hashes, and lets none be changed."""

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitok.clock import isoformat
from vitok.errors import Conflict, StoreError
from vitok.registry.files import exclusive
from vitok.registry.stages import NO_HASH, Entry, canonical, entry_hash

BUSY_MS = 30_000
_SCHEMA_VERSION = 1
_COLUMNS = "seq, time_us, kind, model, version, stage_from, stage_to, actor, reason, details, key, previous_hash, hash"
# REPLACE deletes rows without asking the delete trigger: the insert triggers close that way.
_SCHEMA = """
CREATE TABLE entry (
    seq INTEGER PRIMARY KEY,
    time_us INTEGER NOT NULL,
    kind TEXT NOT NULL,
    model TEXT NOT NULL,
    version INTEGER,
    stage_from TEXT,
    stage_to TEXT,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    details TEXT NOT NULL,
    key TEXT,
    previous_hash TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;
CREATE INDEX entry_model ON entry (model, seq);
CREATE UNIQUE INDEX entry_key ON entry (model, key) WHERE key IS NOT NULL;
CREATE TRIGGER entry_no_update BEFORE UPDATE ON entry
BEGIN SELECT RAISE(ABORT, 'the ledger only grows: no entry is changed'); END;
CREATE TRIGGER entry_no_delete BEFORE DELETE ON entry
BEGIN SELECT RAISE(ABORT, 'the ledger only grows: no entry is deleted'); END;
CREATE TRIGGER entry_no_replace BEFORE INSERT ON entry
WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM entry)
BEGIN SELECT RAISE(ABORT, 'the ledger only grows: the next entry has the next number'); END;
CREATE TRIGGER entry_no_second_key BEFORE INSERT ON entry
WHEN NEW.key IS NOT NULL AND EXISTS (SELECT 1 FROM entry WHERE model = NEW.model AND key = NEW.key)
BEGIN SELECT RAISE(ABORT, 'the ledger only grows: this key is taken'); END;
"""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Whether a ledger is what was written.

    Attributes:
        intact: True where every entry follows from the one before it.
        n_entries: How many entries were read.
        seq: The first entry that is wrong, or None.
        reason: What is wrong with it, in words.
        head: Hash of the last entry; kept elsewhere, it also shows a tail that was cut off.
    """

    intact: bool
    n_entries: int
    seq: int | None
    reason: str
    head: str

    def __str__(self) -> str:
        if self.intact:
            return f"ledger intact: {self.n_entries} entries, head {self.head[:12]}"
        return f"ledger ALTERED at entry {self.seq}: {self.reason}"


class _Connections:
    """One connection to read and one to write, each with its lock, in one process."""

    def __init__(self, path: Path) -> None:
        self.pid = os.getpid()
        self.read_lock = threading.RLock()
        self.write_lock = threading.RLock()
        self.reader = _connect(path)
        self.writer = _connect(path)
        self.reader.execute("PRAGMA query_only = ON")

    def close(self) -> None:
        with self.read_lock, self.write_lock:
            self.reader.close()
            self.writer.close()


class EntryStore:
    """Entries in a SQLite file, for any number of threads and processes.

    Args:
        path: The file; it and its folder are made where they do not exist.

    Raises:
        StoreError: If the file cannot be opened, or is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        # A connection that came over a fork must neither be used nor closed; it is kept so that nothing closes it.
        self._inherited: list[_Connections] = []
        with _sqlite_errors(self.path):
            self._create()
            self._connections = _Connections(self.path)

    def close(self) -> None:
        """Closes the connections of this process."""
        with self._lock:
            if self._connections.pid == os.getpid():
                self._connections.close()

    def revision(self) -> int:
        """Returns the number of the latest entry, 0 where there is none."""
        connections = self._opened()
        with connections.read_lock, _sqlite_errors(self.path):
            return connections.reader.execute("SELECT coalesce(max(seq), 0) FROM entry").fetchall()[0][0]

    def read(self, where: str = "1", parameters: tuple[Any, ...] = ()) -> list[Entry]:
        """Returns entries in order; `where` is SQL of this package, never of a caller."""
        connections = self._opened()
        with connections.read_lock, _sqlite_errors(self.path):
            return _select(connections.reader, where, parameters)

    def names(self) -> list[str]:
        """Returns the names of all models, sorted."""
        connections = self._opened()
        with connections.read_lock, _sqlite_errors(self.path):
            return [row[0] for row in connections.reader.execute("SELECT DISTINCT model FROM entry ORDER BY model")]

    @contextlib.contextmanager
    def writing(self) -> Iterator["Writing"]:
        """Opens a transaction that no other process can write beside; it is kept whole or not at all.

        Raises:
            Conflict: If another process has been writing all the time.
            StoreError: If the disk is full or the file damaged.
        """
        connections = self._opened()
        with connections.write_lock, _sqlite_errors(self.path):
            connections.writer.execute("BEGIN IMMEDIATE")
            try:
                yield Writing(connections.writer)
                connections.writer.execute("COMMIT")
            except BaseException:
                if connections.writer.in_transaction:
                    connections.writer.execute("ROLLBACK")
                raise

    def verify(self, head: str | None = None) -> Verification:
        """Reads the whole ledger and checks the chain; see `Ledger.verify`."""
        connections = self._opened()
        previous, count, heads = NO_HASH, 0, set()
        with connections.read_lock, _sqlite_errors(self.path):
            for row in connections.reader.execute(f"SELECT {_COLUMNS} FROM entry ORDER BY seq"):  # noqa: S608
                count += 1
                wrong = _wrong(row, count, previous)
                if wrong:
                    return Verification(intact=False, n_entries=count, seq=count, reason=wrong, head=previous)
                previous = row[-1]
                heads.add(previous)
        if head is not None and head not in heads and head != NO_HASH:
            reason = "the entry with the head that was kept is gone: the end was cut off, or all was written anew"
            return Verification(intact=False, n_entries=count, seq=count + 1, reason=reason, head=previous)
        return Verification(intact=True, n_entries=count, seq=None, reason="", head=previous)

    def _opened(self) -> _Connections:
        connections = self._connections
        if connections.pid == os.getpid():
            return connections
        with self._lock:
            if self._connections.pid != os.getpid():
                self._inherited.append(self._connections)
                with _sqlite_errors(self.path):
                    self._connections = _Connections(self.path)
            return self._connections

    def _create(self) -> None:
        if self.path.exists() and self._known():
            return
        # Two processes that switch a new file to WAL at once get "database is locked" without waiting.
        with exclusive(self.path.with_name(self.path.name + ".lock")):
            if self.path.exists() and self._known():
                return
            connection = _connect(self.path)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {_SCHEMA_VERSION};COMMIT;")
            finally:
                connection.close()

    def _known(self) -> bool:
        connection = _connect(self.path)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                return False
            if version != _SCHEMA_VERSION:
                raise StoreError(f"ledger {self.path} has layout {version}; this vitok reads layout {_SCHEMA_VERSION}")
            return True
        finally:
            connection.close()


class Writing:
    """A transaction in progress: it sees its own entries, others do not until it ends."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def read(self, where: str, parameters: tuple[Any, ...]) -> list[Entry]:
        """Returns entries in order."""
        return _select(self._connection, where, parameters)

    def append(self, entry: Entry) -> Entry:
        """Appends an entry and returns it with its number and hashes."""
        last = self._connection.execute("SELECT seq, hash FROM entry ORDER BY seq DESC LIMIT 1").fetchall()
        seq, previous = last[0] if last else (0, NO_HASH)
        details = canonical(entry.details)
        entry = replace(entry, seq=seq + 1, previous_hash=previous, details=json.loads(details))
        entry = replace(entry, hash=entry_hash(entry))
        row = {**entry.to_dict(), "details": details}
        marks = ", ".join(f":{name.strip()}" for name in _COLUMNS.split(","))
        self._connection.execute(f"INSERT INTO entry ({_COLUMNS}) VALUES ({marks})", row)  # noqa: S608
        return entry


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
    # FULL: a promotion that was confirmed is on the disk also after a power loss.
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _select(connection: sqlite3.Connection, where: str, parameters: tuple[Any, ...]) -> list[Entry]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM entry WHERE {where} ORDER BY seq", parameters)  # noqa: S608
    return [_entry(row) for row in rows.fetchall()]


def _entry(row: tuple[Any, ...]) -> Entry:
    names = (name.strip() for name in _COLUMNS.split(","))
    fields = dict(zip(names, row, strict=True))
    fields["details"] = json.loads(fields["details"])
    return Entry(**fields)


def _wrong(row: tuple[Any, ...], place: int, previous: str) -> str:
    if row[0] != place:
        return f"entry {place} is missing; the next one there is {row[0]}"
    try:
        entry = _entry(row)
    except ValueError:
        return "its details are not JSON any more"
    if entry_hash(entry) != entry.hash or canonical(entry.details) != row[9]:
        return f"its contents are not those that were hashed ({entry.kind} {entry.model}, {_when(entry)})"
    if entry.previous_hash != previous:
        return f"it does not follow from the entry before it ({entry.kind} {entry.model}, {_when(entry)})"
    return ""


def _when(entry: Entry) -> str:
    try:
        return isoformat(entry.time_us)
    except OverflowError:
        return "at no possible time"


@contextlib.contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Conflict(f"ledger {path} was being written by others for {BUSY_MS // 1000} s; try again") from error
        raise StoreError(f"ledger {path} cannot be used: {error}") from error
    except sqlite3.Error as error:
        raise StoreError(f"ledger {path} cannot be used: {error}") from error
    except OSError as error:
        raise StoreError(f"ledger {path} cannot be used: {error}") from error
    except json.JSONDecodeError as error:
        raise StoreError(f"ledger {path} is damaged: details of an entry are not JSON; call verify()") from error
