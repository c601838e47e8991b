import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitok.errors import Conflict, StoreError
from vitok.registry import Ledger
from vitok.registry import storage as module

Add = Callable[..., int]
COLUMNS = {
    "time_us": 77,
    "kind": "gate",
    "model": "ads",
    "version": 9,
    "stage_from": "Production",
    "stage_to": "Production",
    "actor": "mallory",
    "reason": "nothing",
    "details": '{"accepted":true}',
    "key": "other",
    "previous_hash": "f" * 64,
    "hash": "e" * 64,
}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """One in a file, which these tests look into."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def test_text_with_a_zero_byte_is_kept(ledger: Ledger) -> None:
    entry = ledger.note("fraud", "a\x00b", actor="ann", now=0)
    assert ledger.history("fraud") == (entry,)
    assert ledger.verify().intact


def without_triggers(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    return connection


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET reason = 'x'",
        "DELETE FROM entry",
        "INSERT OR REPLACE INTO entry SELECT seq, 0, kind, model, version, stage_from, stage_to, actor, 'x', details,"
        " key, previous_hash, hash FROM entry WHERE seq = 1",
        "REPLACE INTO entry SELECT 4, 0, kind, model, version, stage_from, stage_to, actor, 'x', details,"
        " key, previous_hash, hash FROM entry WHERE key = 'k'",
        "INSERT INTO entry SELECT 9, 0, kind, model, version, stage_from, stage_to, actor, 'x', details,"
        " NULL, previous_hash, hash FROM entry WHERE seq = 1",
    ],
)
def test_nothing_is_changed_deleted_or_replaced(ledger: Ledger, add: Add, statement: str) -> None:
    add()
    ledger.note("fraud", "hello", actor="a", now=0, key="k")
    connection = sqlite3.connect(ledger.path)
    with pytest.raises(sqlite3.IntegrityError, match="only grows"):
        connection.execute(statement)
    connection.close()
    assert ledger.verify().intact


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seq=st.integers(1, 8), column=st.sampled_from(sorted(COLUMNS)))
def test_an_altered_entry_is_named(tmp_path_factory: pytest.TempPathFactory, seq: int, column: str) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("altered") / "ledger.sqlite")
    for now in range(8):
        ledger.note("fraud", f"note {now}", actor="a", now=now)
    assert ledger.verify().intact
    connection = without_triggers(ledger.path)
    connection.execute(f"UPDATE entry SET {column} = ? WHERE seq = ?", (COLUMNS[column], seq))
    connection.close()
    found = ledger.verify()
    assert (found.intact, found.seq) == (False, seq)
    assert f"ALTERED at entry {seq}" in str(found)
    ledger.close()


def test_removed_entries_are_noticed(ledger: Ledger, add: Add) -> None:
    for _ in range(3):
        add()
    head = ledger.verify().head
    connection = without_triggers(ledger.path)
    connection.execute("DELETE FROM entry WHERE seq = 6")
    assert ledger.verify().intact
    cut = ledger.verify(head=head)
    assert not cut.intact
    assert "cut off" in cut.reason
    connection.execute("DELETE FROM entry WHERE seq = 3")
    connection.close()
    found = ledger.verify()
    assert (found.intact, found.seq) == (False, 3)
    assert "missing" in found.reason


def test_an_older_head_is_still_good(ledger: Ledger, add: Add) -> None:
    assert ledger.verify(head=ledger.verify().head).intact
    add()
    head = ledger.verify().head
    add()
    assert ledger.verify(head=head).intact
    assert str(ledger.verify()).startswith("ledger intact: 4 entries")


def test_a_spoiled_entry_gives_an_error_not_a_wrong_state(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.register("fraud", digest="d", path="p", now=0, actor="a")
    ledger.close()
    for column, value in (("details", "{"), ("details", "{}"), ("version", 7)):
        connection = without_triggers(path)
        connection.execute(f"UPDATE entry SET {column} = ?", (value,))
        connection.close()
        ledger = Ledger(path)
        with pytest.raises(StoreError, match="verify"):
            ledger.state("fraud")
        assert not ledger.verify().intact
        ledger.close()


def test_files_that_are_no_ledger(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("hello " * 1000)
    with pytest.raises(StoreError, match="not a database"):
        Ledger(text)
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE x (y)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="does not hold ledger"):
        Ledger(other)
    with pytest.raises(StoreError):
        Ledger(tmp_path)
    empty = tmp_path / "empty"
    empty.touch()
    ledger = Ledger(empty)
    assert ledger.revision() == 0
    ledger.close()


def test_full_disk_keeps_what_was_there(ledger: Ledger, add: Add) -> None:
    add()
    connections = ledger._store._database._connections
    assert connections is not None
    pages = connections.writer.execute("PRAGMA page_count").fetchone()[0]
    connections.writer.execute(f"PRAGMA max_page_count = {pages}")
    before = ledger.revision()
    with pytest.raises(StoreError, match="full"):
        ledger.note("fraud", "x" * 100_000, actor="a", now=0)
    assert ledger.revision() == before
    connections.writer.execute("PRAGMA max_page_count = 1000000")
    ledger.note("fraud", "x" * 100_000, actor="a", now=0)
    assert ledger.verify().intact


def test_somebody_who_never_stops_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.05)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Conflict, match="written by others"):
        ledger.note("fraud", "x", actor="a", now=0)
    assert ledger.revision() == 0
    other.execute("ROLLBACK")
    other.close()
    ledger.note("fraud", "x", actor="a", now=0)
    ledger.close()
