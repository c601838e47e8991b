"""The ledger's file: SQLite that takes entries, keeps them in a chain of hashes, and lets none be changed."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitok.clock import isoformat
from vitok.engines.sqlite import Database
from vitok.errors import StoreError
from vitok.registry.stages import NO_HASH, Entry, canonical, entry_hash

_WAIT_SECONDS = 30.0
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


class EntryStore:
    """Entries in a SQLite file, for any number of threads and processes.

    Args:
        path: The file; it and its folder are made where they do not exist.

    Raises:
        StoreError: If the file cannot be opened, or is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        # Durable: a promotion that was confirmed is on the disk also after a power loss.
        self._database = Database(
            self.path, schema=_SCHEMA, kind="ledger", version=_SCHEMA_VERSION, durable=True, wait_seconds=_WAIT_SECONDS
        )

    def close(self) -> None:
        """Closes the connections of this process."""
        self._database.close()

    def revision(self) -> int:
        """Returns the number of the latest entry, 0 where there is none."""
        return self._database.read("SELECT coalesce(max(seq), 0) FROM entry")[0][0]

    def read(self, where: str = "1", parameters: tuple[Any, ...] = ()) -> list[Entry]:
        """Returns entries in order; `where` is SQL of this package, never of a caller."""
        with self._database.reading() as connection, _damage(self.path):
            return _select(connection, where, parameters)

    def last(self, where: str, parameters: tuple[Any, ...]) -> Entry | None:
        """Returns the latest of the entries that `read` would return, or None."""
        # Backwards along the index, so that nothing but this entry is read where it is recent.
        query = f"SELECT {_COLUMNS} FROM entry WHERE {where} ORDER BY seq DESC LIMIT 1"  # noqa: S608
        with self._database.reading() as connection, _damage(self.path):
            rows = connection.execute(query, parameters).fetchall()
            return _entry(rows[0]) if rows else None

    def names(self) -> list[str]:
        """Returns the names of all models, sorted."""
        return [row[0] for row in self._database.read("SELECT DISTINCT model FROM entry ORDER BY model")]

    @contextlib.contextmanager
    def writing(self) -> Iterator["Writing"]:
        """Opens a transaction that no other process can write beside; it is kept whole or not at all.

        Raises:
            Conflict: If another process has been writing all the time.
            StoreError: If the disk is full or the file damaged.
        """
        with self._database.writing() as connection, _damage(self.path):
            yield Writing(connection)

    def verify(self, head: str | None = None) -> Verification:
        """Reads the whole ledger and checks the chain; see `Ledger.verify`."""
        previous, count, heads = NO_HASH, 0, set()
        with self._database.reading() as connection:
            for row in connection.execute(f"SELECT {_COLUMNS} FROM entry ORDER BY seq"):  # noqa: S608
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
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        raise StoreError(f"ledger {path} is damaged: details of an entry are not JSON; call verify()") from error
