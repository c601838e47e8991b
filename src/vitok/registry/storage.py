"""Where the ledger lies: SQLite or PostgreSQL that keeps entries in a chain of hashes, and lets none be changed."""

import contextlib
import json
import logging
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from vitok.clock import isoformat
from vitok.engines.address import hidden
from vitok.engines.postgres import Postgres, is_postgres
from vitok.engines.postgres_follower import Follower
from vitok.engines.sqlite import Database
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.registry.stages import NO_HASH, Entry, canonical, entry_hash

_LOG = logging.getLogger("vitok.registry")
_WAIT_SECONDS = 30.0
_SCHEMA_VERSION = 1
_COLUMNS = "seq, time_us, kind, model, version, stage_from, stage_to, actor, reason, details, key, previous_hash, hash"
_NAMES = tuple(name.strip() for name in _COLUMNS.split(","))
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


_TABLE = "vitok.entry"
_CHANNEL = "vitok_ledger"
_READ_AT_ONCE = 5_000
_POSTGRES_SCHEMA = f"""
CREATE SCHEMA IF NOT EXISTS vitok;
CREATE TABLE {_TABLE} (
    seq BIGINT PRIMARY KEY,
    time_us BIGINT NOT NULL,
    kind TEXT NOT NULL,
    model TEXT NOT NULL,
    version BIGINT,
    stage_from TEXT,
    stage_to TEXT,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    details TEXT NOT NULL,
    key TEXT,
    previous_hash TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE INDEX entry_model ON {_TABLE} (model, seq);
CREATE UNIQUE INDEX entry_key ON {_TABLE} (model, key) WHERE key IS NOT NULL;
CREATE FUNCTION vitok.entry_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        RAISE EXCEPTION 'the ledger only grows: no entry is changed or deleted';
    END IF;
    IF NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM {_TABLE}) THEN
        RAISE EXCEPTION 'the ledger only grows: the next entry has the next number';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER entry_only_grows BEFORE INSERT OR UPDATE OR DELETE ON {_TABLE}
    FOR EACH ROW EXECUTE FUNCTION vitok.entry_only_grows();
CREATE TRIGGER entry_no_truncate BEFORE TRUNCATE ON {_TABLE}
    FOR EACH STATEMENT EXECUTE FUNCTION vitok.entry_only_grows();
"""  # noqa: S608


class _Session(Protocol):
    def execute(self, sql: str, parameters: Any = (), /) -> Any: ...


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
    """Entries in a SQLite file or a PostgreSQL database, for any number of threads and processes.

    Args:
        place: The file, made with its folder where it does not exist; or `postgresql://user@host/database`.
        copy: File for a copy of what the database has, as far as `keep` was called. One that is opened while the
            database does not answer reads from it until it does; to be written to, or verified, it has to be there.

    Raises:
        StoreError: If it cannot be opened, or is something else.
    """

    def __init__(self, place: str | Path, *, copy: Path | None = None) -> None:
        self._place = place
        self._opening = threading.Lock()
        self._opened: Database | Postgres | None = None
        self._copy: EntryStore | None = None
        self._follower: Follower | None = None
        self._table = "entry"
        if isinstance(place, str) and is_postgres(place):
            self._table = _TABLE
            self._copy = None if copy is None else _copy_at(copy)
            try:
                self._opened = _in_postgres(place)
            except StoreError:
                if self._copy is None or not self._copy.revision():
                    raise
                _LOG.warning("%s; until it does, what was last known of it goes on", self.problem(), exc_info=True)
            self._follower = Follower(place, channel=_CHANNEL, query=self._latest)
        elif isinstance(place, str) and "://" in place:
            raise InvalidInput("ledger", hidden(place), "be a file, or look like postgresql://user@host/database")
        else:
            # Durable: a promotion that was confirmed is on the disk also after a power loss.
            self._opened = Database(
                place, schema=_SCHEMA, kind="ledger", version=_SCHEMA_VERSION, durable=True, wait_seconds=_WAIT_SECONDS
            )

    @property
    def place(self) -> str | Path:
        """The file, or the address with its password."""
        return self._opened.path if isinstance(self._opened, Database) else self._place

    @property
    def shown(self) -> str:
        """The file, or the address as it may be shown."""
        return hidden(self.place) if isinstance(self.place, str) else str(self.place)

    def close(self) -> None:
        """Closes the connections of this process."""
        if self._follower is not None:
            self._follower.close()
        for store in (self._opened, self._copy):
            if store is not None:
                store.close()

    def revision(self) -> int:
        """Returns the number of the latest entry, 0 where there is none.

        Of a PostgreSQL database, as it is followed: what another process has just written may be missing, for a
        millisecond or so where all is well and for three seconds at most.
        """
        followed = None if self._follower is None else self._follower.latest()
        if followed is not None:
            return followed
        known = self._last_known
        if known is not None:
            return known.revision()
        error = None if self._follower is None else self._follower.error
        if error is not None and self.problem():
            # Asked many times a second by who follows: that must not become as many connections.
            raise StoreError(self.problem()) from error
        return self.catch_up()

    def problem(self) -> str:
        """Says that the database does not answer, as far as is known without asking; empty where it does."""
        away = self._opened is None and (self._follower is None or self._follower.latest() is None)
        if away or (self._follower is not None and self._follower.lost):
            return f"ledger {self.shown}: the database does not answer; it is asked again all the time"
        return ""

    def keep(self) -> None:
        """Adds to the copy what the database has and it lacks; does nothing where there is none, or no database.

        What goes wrong is logged once, and no copy is kept from then on: it is only for bad days.
        """
        if self._copy is None or self._opened is None:
            return
        try:
            with self._copy.writing() as writing, self._opened.reading() as session, _damage(self.shown):
                last = writing.latest()
                for row in rows_of(session, self._table, after=last[0]):
                    entry = entry_of_row(row)
                    if entry.previous_hash != last[1]:
                        raise StoreError(
                            f"ledger {self.shown} does not go on from entry {last[0]} as it was known here: it was "
                            "changed or exchanged; call verify()"
                        )
                    writing.insert(entry)
                    last = entry.seq, entry.hash
        except (StoreError, Conflict):
            _LOG.warning("the copy %s is not kept any more", self._copy.shown, exc_info=True)
            self._copy = None

    @property
    def _last_known(self) -> "EntryStore | None":
        """The copy, as long as the database has not answered since this was opened."""
        if self._opened is not None or (self._follower is not None and self._follower.latest() is not None):
            return None
        return self._copy

    @property
    def _database(self) -> Database | Postgres:
        if self._opened is None:
            with self._opening:
                if self._opened is None:
                    self._opened = _in_postgres(str(self._place))
        return self._opened

    def catch_up(self) -> int:
        """Returns the number of the latest entry of all that was written before the call, by whomever."""
        latest = int(self._database.read(self._latest)[0][0])
        self._note(latest)
        return latest

    def read(self, where: str = "1 = 1", parameters: tuple[Any, ...] = ()) -> list[Entry]:
        """Returns entries in order; `where` is SQL of this package, never of a caller."""
        known = self._last_known
        if known is not None:
            return known.read(where, parameters)
        with self._database.reading() as session, _damage(self.shown):
            return _select(session, self._table, where, parameters)

    def last(self, where: str, parameters: tuple[Any, ...]) -> Entry | None:
        """Returns the latest of the entries that `read` would return, or None."""
        # Backwards along the index, so that nothing but this entry is read where it is recent.
        known = self._last_known
        if known is not None:
            return known.last(where, parameters)
        query = f"SELECT {_COLUMNS} FROM {self._table} WHERE {where} ORDER BY seq DESC LIMIT 1"  # noqa: S608
        with self._database.reading() as session, _damage(self.shown):
            rows = session.execute(query, parameters).fetchall()
            return entry_of_row(rows[0]) if rows else None

    def names(self) -> list[str]:
        """Returns the names of all models, sorted."""
        known = self._last_known
        if known is not None:
            return known.names()
        return sorted(row[0] for row in self._database.read(f"SELECT DISTINCT model FROM {self._table}"))  # noqa: S608

    @contextlib.contextmanager
    def writing(self) -> Iterator["Writing"]:
        """Opens a transaction that no other process can write beside; it is kept whole or not at all.

        Raises:
            Conflict: If another process has been writing all the time.
            StoreError: If the disk is full, the file damaged, or the server gone.
        """
        with self._database.writing() as session, _damage(self.shown):
            writing = Writing(session, self._table)
            yield writing
            if writing.last and self._follower is not None:
                # Told to all who follow, when it is kept.
                session.execute("SELECT pg_notify(?, ?)", (_CHANNEL, str(writing.last)))
        self._note(writing.last)

    def take_over(self, entries: Iterable[Entry]) -> None:
        """Fills an empty ledger with the entries of another, as they are.

        Raises:
            Conflict: If it has entries.
        """
        with self.writing() as writing:
            if writing.read("seq = ?", (1,)):
                raise Conflict(f"ledger {self.shown} has entries; only an empty one takes over another's")
            for entry in entries:
                writing.insert(entry)

    def verify(self, head: str | None = None) -> Verification:
        """Reads the whole ledger and checks the chain; see `Ledger.verify`."""
        previous, count, heads = NO_HASH, 0, set()
        with self._database.reading() as session:
            for row in rows_of(session, self._table):
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

    @property
    def _latest(self) -> str:
        return f"SELECT coalesce(max(seq), 0) FROM {self._table}"  # noqa: S608

    def _note(self, seq: int) -> None:
        if self._follower is not None:
            self._follower.note(seq)


def _in_postgres(place: str) -> Postgres:
    return Postgres(
        place,
        schema=_POSTGRES_SCHEMA,
        table=_TABLE,
        kind="ledger",
        version=_SCHEMA_VERSION,
        wait_seconds=_WAIT_SECONDS,
    )


def _copy_at(path: Path) -> EntryStore | None:
    try:
        return EntryStore(path)
    except StoreError:
        _LOG.warning("the copy %s cannot be opened; none is kept", path, exc_info=True)
        return None


def rows_of(session: _Session, table: str = _TABLE, *, after: int | None = None) -> Iterator[tuple[Any, ...]]:
    """Gives the rows of a ledger within a transaction, in order, some thousands at a time.

    Args:
        session: The transaction.
        table: The table.
        after: Only those after this number; None for all.
    """
    while True:
        where, parameters = ("1 = 1", ()) if after is None else ("seq > ?", (after,))
        query = f"SELECT {_COLUMNS} FROM {table} WHERE {where} ORDER BY seq LIMIT {_READ_AT_ONCE}"  # noqa: S608
        rows = session.execute(query, parameters).fetchall()
        yield from rows
        if len(rows) < _READ_AT_ONCE:
            return
        after = rows[-1][0]


class Writing:
    """A transaction in progress: it sees its own entries, others do not until it ends.

    Attributes:
        last: Number of the latest entry that was appended, 0 where none was.
    """

    def __init__(self, session: _Session, table: str) -> None:
        self._session = session
        self._table = table
        self.last = 0

    def read(self, where: str, parameters: tuple[Any, ...]) -> list[Entry]:
        """Returns entries in order."""
        return _select(self._session, self._table, where, parameters)

    def latest(self) -> tuple[int, str]:
        """Returns number and hash of the latest entry; 0 and zeros where there is none."""
        query = f"SELECT seq, hash FROM {self._table} ORDER BY seq DESC LIMIT 1"  # noqa: S608
        last = self._session.execute(query).fetchall()
        return (last[0][0], last[0][1]) if last else (0, NO_HASH)

    def append(self, entry: Entry) -> Entry:
        """Appends an entry and returns it with its number and hashes."""
        seq, previous = self.latest()
        details = canonical(entry.details)
        entry = replace(entry, seq=seq + 1, previous_hash=previous, details=json.loads(details))
        entry = replace(entry, hash=entry_hash(entry))
        self.insert(entry)
        return entry

    def insert(self, entry: Entry) -> None:
        """Adds an entry that has its number and hashes already, as one of a backup has."""
        row = {**entry.to_dict(), "details": canonical(entry.details)}
        marks = ", ".join("?" for _ in _NAMES)
        for name in ("actor", "reason", "key"):
            if self._table == _TABLE and "\0" in str(row[name]):
                raise InvalidInput(name, row[name], "have no zero byte: PostgreSQL keeps none")
        query = f"INSERT INTO {self._table} ({_COLUMNS}) VALUES ({marks})"  # noqa: S608
        self._session.execute(query, tuple(row[name] for name in _NAMES))
        self.last = entry.seq


def _select(session: _Session, table: str, where: str, parameters: tuple[Any, ...]) -> list[Entry]:
    rows = session.execute(f"SELECT {_COLUMNS} FROM {table} WHERE {where} ORDER BY seq", parameters)  # noqa: S608
    return [entry_of_row(row) for row in rows.fetchall()]


def entry_of_row(row: tuple[Any, ...]) -> Entry:
    """Makes an entry of a row; ValueError where its details are no JSON."""
    fields = dict(zip(_NAMES, row, strict=True))
    fields["details"] = json.loads(fields["details"])
    return Entry(**fields)


def _wrong(row: tuple[Any, ...], place: int, previous: str) -> str:
    if row[0] != place:
        return f"entry {place} is missing; the next one there is {row[0]}"
    try:
        entry = entry_of_row(row)
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
def _damage(shown: str) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        raise StoreError(f"ledger {shown} is damaged: details of an entry are not JSON; call verify()") from error
