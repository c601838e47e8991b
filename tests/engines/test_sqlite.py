"""SQLite files: made once by whoever is first, recognised, shared, written whole or not at all, and clear errors."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from vitok.engines.sqlite import Database, Journal
from vitok.errors import Conflict, StoreError

SCHEMA = """
CREATE TABLE note (number INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;
CREATE TRIGGER note_stays BEFORE DELETE ON note
BEGIN SELECT RAISE(ABORT, 'notes stay; all of them'); END
"""
JOURNALS: tuple[Journal, ...] = ("wal", "rollback")


def opened(path: Path, *, journal: Journal = "wal", version: int = 1, wait_seconds: float = 5.0) -> Database:
    return Database(path, schema=SCHEMA, kind="notes", version=version, journal=journal, wait_seconds=wait_seconds)


def add(database: Database, *texts: str) -> None:
    add_all(database, texts)


def add_all(database: Database, texts: Iterable[str]) -> None:
    with database.writing() as transaction:
        for text in texts:
            transaction.execute("INSERT INTO note (text) VALUES (?)", (text,))


def texts(database: Database) -> list[str]:
    return [row[0] for row in database.read("SELECT text FROM note ORDER BY number")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made on the way" / "notes?#%.sqlite"


@pytest.fixture(params=JOURNALS)
def database(request: pytest.FixtureRequest, path: Path) -> Iterator[Database]:
    made = opened(path, journal=request.param)
    yield made
    made.close()


def test_what_was_written_is_there_for_others(database: Database) -> None:
    add(database, "one", "two")
    for journal in JOURNALS:
        other = opened(database.path, journal=journal)
        assert texts(other) == ["one", "two"]
        other.close()
    assert repr(database).startswith("Database(")


def test_an_error_in_the_block_undoes_all_of_it(database: Database) -> None:
    add(database, "one")

    def broken() -> Iterator[str]:
        yield "two"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        add_all(database, broken())
    with pytest.raises(StoreError, match="NOT NULL"):
        add(database, "two", None)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="notes stay; all of them"), database.writing() as transaction:
        transaction.execute("DELETE FROM note")
    assert texts(database) == ["one"]
    with pytest.raises(StoreError, match="readonly"):
        database.read("INSERT INTO note (text) VALUES ('by reading')")
    assert texts(database) == ["one"]


def test_several_queries_see_one_moment(path: Path) -> None:
    database, other = opened(path), opened(path)
    add(database, "one")
    with database.reading() as connection:
        first = connection.execute("SELECT count(*) FROM note").fetchone()
        add(other, "two")
        # The same process writes meanwhile, and by the same object: nobody waits.
        add(database, "three")
        assert connection.execute("SELECT count(*) FROM note").fetchone() == first
    assert len(texts(database)) == 3
    database.close()
    other.close()


def test_opening_and_reading_do_not_wait_for_a_writer(path: Path) -> None:
    database = opened(path)
    add(database, "one")
    with database.writing() as transaction:
        transaction.execute("INSERT INTO note (text) VALUES ('two')")
        reader = opened(path, wait_seconds=0.0)
        assert texts(reader) == texts(database) == ["one"]
        reader.close()
    database.close()


@pytest.mark.parametrize("journal", JOURNALS)
def test_somebody_who_never_stops_writing(path: Path, journal: Journal) -> None:
    database = opened(path, journal=journal, wait_seconds=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Conflict, match=r"notes in .*written by others for 0.05 s; try again"):
        add(database, "one")
    if journal == "rollback":
        with pytest.raises(Conflict, match="written by others; try again"), database.reading(wait_seconds=0.0) as found:
            found.execute("SELECT * FROM note")
    other.execute("ROLLBACK")
    other.close()
    add(database, "one")
    assert texts(database) == ["one"]
    database.close()


def test_a_full_disk_changes_nothing_and_says_so(path: Path) -> None:
    database = opened(path)
    add(database, "one")
    assert database._connections is not None
    writer = database._connections.writer
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full; make room and try again"):
        add(database, "two", "x" * 100_000)
    assert texts(database) == ["one"]
    writer.execute("PRAGMA max_page_count = 1000000")
    add(database, "two", "x" * 100_000)
    assert len(texts(database)) == 3
    database.close()


@pytest.mark.parametrize("journal", JOURNALS)
def test_files_of_something_else_are_left_alone(path: Path, journal: Journal) -> None:
    path.parent.mkdir()
    foreign = path.with_name("foreign.sqlite")
    connection = sqlite3.connect(foreign)
    connection.executescript("CREATE TABLE receipt (x); PRAGMA user_version = 1;")
    connection.close()
    whole = foreign.read_bytes()
    with pytest.raises(StoreError, match="does not hold notes: name another file, or move this one away"):
        opened(foreign, journal=journal)
    assert foreign.read_bytes() == whole
    text = path.with_name("text")
    text.write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(StoreError, match="not a database; name another file"):
        opened(text, journal=journal)
    with pytest.raises(StoreError, match="unable to open"):
        opened(path.parent, journal=journal)
    blocked = text / "notes.sqlite"
    with pytest.raises(StoreError, match="notes in"):
        opened(blocked, journal=journal)
    path.touch()
    empty = opened(path, journal=journal)
    assert texts(empty) == []
    empty.close()


def test_a_file_of_another_layout_says_which(path: Path) -> None:
    opened(path, version=2).close()
    with pytest.raises(StoreError, match="layout 2, made by a newer vitok; this one reads layout 1: use that one"):
        opened(path, version=1)
    with pytest.raises(StoreError, match="layout 2, made by an older vitok; this one reads layout 3"):
        opened(path, version=3)
    opened(path, version=2).close()


def test_a_file_that_went_away_is_not_made_anew_by_reading(path: Path) -> None:
    database = opened(path, journal="rollback")
    add(database, "one")
    path.rename(path.with_name("away"))
    with pytest.raises(StoreError, match="look whether it is there"):
        texts(database)
    assert not path.exists()
    path.with_name("away").rename(path)
    assert texts(database) == ["one"]
    # Another copy in its place counts from the next use on.
    other = opened(path.with_name("other"), journal="rollback")
    add(other, "another")
    other.path.replace(path)
    assert texts(database) == ["another"]
    assert {file.name for file in path.parent.iterdir()} == {path.name}


def test_a_closed_file_says_so(path: Path) -> None:
    database = opened(path)
    database.close()
    database.close()
    with pytest.raises(StoreError, match="closed"):
        texts(database)
    with pytest.raises(StoreError, match="closed"):
        add(database, "one")


def test_threads_share_one_object(path: Path) -> None:
    database = opened(path)

    def write(name: str) -> None:
        for n in range(25):
            add(database, f"{name}{n}")
            texts(database)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(texts(database))) == 100
    database.close()


FORKING = """
import os, sys
from tests.engines.test_sqlite import add, opened, texts
from pathlib import Path
database = opened(Path(sys.argv[1]))
add(database, "before")
child = os.fork()
if not child:
    add(database, "in the child")
    database.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
add(database, "after")
database.close()
"""


def test_a_child_of_a_fork_opens_the_file_anew(path: Path) -> None:
    # In a process of its own, whose other threads do not come in between.
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    database = opened(path)
    assert texts(database) == ["before", "in the child", "after"]
    database.close()


MAKING = """
import os, signal, sys
from tests.engines.test_sqlite import add, opened
from pathlib import Path
print(flush=True)
sys.stdin.read()
database = opened(Path(sys.argv[1]), journal=sys.argv[2])
for n in range(10):
    add(database, str(n))
with database.writing() as transaction:
    transaction.execute("INSERT INTO note (text) VALUES ('half done')")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("journal", JOURNALS)
def test_processes_make_one_file_at_once_and_are_killed_while_they_write(path: Path, journal: Journal) -> None:
    command = [sys.executable, "-c", MAKING, str(path), journal]
    pipe = subprocess.PIPE
    makers = [subprocess.Popen(command, cwd=Path(__file__).parents[2], stdin=pipe, stdout=pipe) for _ in range(4)]
    for maker in makers:
        assert maker.stdout is not None
        assert maker.stdout.readline()
    for maker in makers:
        maker.communicate(timeout=60)
    assert [maker.returncode for maker in makers] == [-9] * 4
    database = opened(path, journal=journal)
    assert sorted(texts(database)) == sorted(str(n) for n in range(10) for _ in range(4))
    assert database.read("PRAGMA journal_mode") == [("wal" if journal == "wal" else "delete",)]
    database.close()


def test_an_older_file_becomes_a_newer_one_with_all_that_is_in_it(path: Path) -> None:
    old = opened(path, version=1)
    add(old, "kept")
    old.close()
    steps = {
        1: "ALTER TABLE note ADD COLUMN who TEXT NOT NULL DEFAULT ''; UPDATE note SET who = 'ann';",
        2: "CREATE TABLE page (x) STRICT",
    }
    with pytest.raises(StoreError, match="layout 1, made by an older vitok; this one reads layout 3"):
        Database(path, schema=SCHEMA, kind="notes", version=3, migrations={2: steps[2]})
    # A step that fails leaves the file as it was.
    with pytest.raises(StoreError, match="syntax error"):
        Database(path, schema=SCHEMA, kind="notes", version=3, migrations={1: steps[1], 2: "CREATE TABBLE"})
    steps[2] = "CREATE TABLE page (x INTEGER) STRICT"
    for _ in range(2):
        new = Database(path, schema=SCHEMA, kind="notes", version=3, migrations=steps)
        assert new.read("SELECT text, who FROM note") == [("kept", "ann")]
        assert new.read("SELECT count(*) FROM page") == [(0,)]
        new.close()
    with pytest.raises(StoreError, match="made by a newer vitok"):
        opened(path, version=1)
