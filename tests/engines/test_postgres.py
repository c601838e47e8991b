"""Tables in PostgreSQL: what `vitok.engines.postgres` promises, asked of a real server from a wheel."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tests.registry.servers import PostgresServer, postgres

from vitok.engines.postgres import Postgres, alone, connect
from vitok.engines.postgres_follower import Follower
from vitok.errors import Conflict, InvalidInput, StoreError

SCHEMA = "CREATE TABLE note (text TEXT NOT NULL, n BIGINT)"
LATEST = "SELECT coalesce(max(n), 0) FROM note"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres() as server:
        yield server


@pytest.fixture
def database(server: PostgresServer) -> str:
    return server.database("notes")


def opened(url: str, *, version: int = 1, wait_seconds: float = 30.0) -> Postgres:
    return Postgres(url, schema=SCHEMA, table="note", kind="notes", version=version, wait_seconds=wait_seconds)


def soon(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until


def test_what_was_written_is_read(database: str) -> None:
    first, second = opened(database), opened(database)
    with first.writing() as session:
        session.execute("INSERT INTO note VALUES (?, ?)", ("100 % ?", 1))
        assert second.read("SELECT count(*) FROM note") == [(0,)]
        assert session.execute("SELECT text FROM note").fetchall() == [("100 % ?",)]
    assert second.read("SELECT text FROM note WHERE n = ?", (1,)) == [("100 % ?",)]
    with second.reading() as session:
        before = session.execute(LATEST).fetchone()
        with first.writing() as other:
            other.execute("INSERT INTO note VALUES ('two', 2)")
        # As of one moment.
        assert session.execute(LATEST).fetchone() == before
    with pytest.raises(StoreError, match="read-only"):
        second.read("INSERT INTO note VALUES ('three', 3)")
    first.close()
    second.close()
    with pytest.raises(StoreError, match="closed"):
        first.read(LATEST)


def test_an_error_undoes_all_of_it(database: str) -> None:
    store = opened(database)

    def fail() -> None:
        with store.writing() as session:
            session.execute("INSERT INTO note VALUES ('one', 1)")
            raise Conflict("no")

    with pytest.raises(Conflict, match="no"):
        fail()
    assert store.read(LATEST) == [(0,)]
    store.close()


def test_many_make_the_tables_at_once(database: str) -> None:
    made: list[Postgres] = []
    threads = [threading.Thread(target=lambda: made.append(opened(database))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    for store in made:
        store.close()
    with pytest.raises(StoreError, match="another vitok"):
        opened(database, version=2)


def test_one_writes_at_a_time(database: str) -> None:
    first, second = opened(database), opened(database, wait_seconds=0.1)
    with first.writing(), pytest.raises(Conflict, match="by others"), second.writing():
        pass
    with second.writing() as session:
        session.execute("INSERT INTO note VALUES ('free again', 1)")
    with alone(database, "x"), pytest.raises(Conflict), alone(database, "x", wait_seconds=0.1):
        pass
    first.close()
    second.close()


def test_a_lost_connection_is_opened_anew(database: str, server: PostgresServer) -> None:
    store = opened(database)
    store.read(LATEST)
    assert server.cut("notes") >= 1
    assert store.read(LATEST) == [(0,)]
    server.cut("notes")
    with store.writing() as session:
        session.execute("INSERT INTO note VALUES ('one', 1)")
    server.cut("notes")
    with store.reading() as session:
        assert session.execute(LATEST).fetchone() == (1,)
    store.close()


def test_a_follower_is_told_and_comes_back(database: str, server: PostgresServer) -> None:
    store = opened(database)
    follower = Follower(database, channel="notes", query=LATEST)
    soon(lambda: follower.latest() == 0)
    with store.writing() as session:
        session.execute("INSERT INTO note VALUES ('one', 1)")
        session.execute("SELECT pg_notify('notes', '1')")
    soon(lambda: follower.latest() == 1)
    server.cut("notes")
    # Without a message it asks once a second.
    with store.writing() as session:
        session.execute("INSERT INTO note VALUES ('two', 2)")
    soon(lambda: follower.latest() == 2)
    follower.note(5)
    assert follower.latest() == 5
    follower.close()
    assert follower.latest() is None
    store.close()


def test_nobody_there_and_no_address() -> None:
    pytest.importorskip("psycopg", reason="PostgreSQL's driver comes with the extra postgres")
    follower = Follower("postgresql://127.0.0.1:1/x", channel="notes", query=LATEST)
    assert follower.latest() is None
    follower.close()
    for url in ("mysql://ann:word@host/x", "postgresql://ann:word@host/x?nonsense=1"):
        with pytest.raises(InvalidInput) as refused:
            connect(url)
        assert "word" not in str(refused.value)
