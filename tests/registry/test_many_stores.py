"""A registry for many writers: PostgreSQL and an S3-compatible store, both real servers from wheels."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.registry.conftest import accepted
from tests.registry.servers import PostgresServer, S3Server

from vitok.engines.postgres import Postgres
from vitok.engines.s3 import Bucket
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.registry import Ledger, Registry

FILES = {"model.onnx": b"weights", "signature.json": {"inputs": ["amount"]}}
WRITERS, ROUNDS = 8, 6


def soon(condition: Callable[[], object]) -> None:
    """Waits for what another process wrote: it is told within milliseconds."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until


def promote(ledger: Ledger, version: int, now: int = 0) -> None:
    ledger.record_gate("fraud", version, accepted(), now=now, actor="gate")
    ledger.promote("fraud", version, "Production", reason="r", actor="ann", now=now)


def test_addresses_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="s3://"):
        Registry("postgresql://ann@localhost/models")
    with pytest.raises(InvalidInput, match="postgresql://"):
        Registry("mysql://ann:word@localhost/models", packages="s3://models")
    with pytest.raises(InvalidInput, match="left out"):
        Registry(tmp_path, packages="s3://models")
    with pytest.raises(InvalidInput, match="postgresql://") as refused:
        Ledger("mysql://ann:word@localhost/models")
    assert "word" not in str(refused.value)
    with pytest.raises(InvalidInput, match="endpoint, region"):
        Bucket("s3://models?versions=2")


def test_nobody_answers() -> None:
    pytest.importorskip("psycopg", reason="PostgreSQL's driver comes with the extra postgres")
    with pytest.raises(StoreError) as refused:
        Ledger("postgresql://ann:word@127.0.0.1:1/models")
    assert "word" not in str(refused.value)


def test_a_version_goes_all_the_way(shared: Registry, tmp_path: Path, database: str, bucket: str) -> None:
    version = shared.register("fraud", FILES, now=1, actor="train", key="run-1")
    assert shared.register("fraud", FILES, now=2, actor="train", key="run-1") == version
    promote(shared.ledger, 1)
    second = shared.register("fraud", {"model.onnx": b"better"}, now=3, actor="train")
    assert (version.version, second.version) == (1, 2)
    assert version.path != second.path
    assert shared.location == bucket.partition("?")[0]
    # Another machine: nothing in its cache.
    other = Registry(database, packages=bucket, cache=tmp_path / "other")
    package = other.load("fraud")
    assert package.bytes("model.onnx") == b"weights"
    assert package.json("signature.json") == {"inputs": ["amount"]}
    assert (package.name, package.version, package.digest) == ("fraud", 1, version.digest)
    assert other.load("fraud", 2).bytes("model.onnx") == b"better"
    assert shared.load("fraud").digest == package.digest
    assert len(other.objects.sizes()) == 2 if other.objects else False
    with pytest.raises(NotFound):
        other.load("fraud", 3)
    copy = pickle.loads(pickle.dumps(other))
    assert copy.load("fraud").folder == package.folder
    copy.close()
    other.close()


def test_the_cache_is_checked_and_fetched_anew(shared: Registry) -> None:
    shared.register("fraud", FILES, now=1, actor="train")
    folder = shared.load("fraud", 1).folder
    (folder / "model.onnx").write_bytes(b"Weights")
    assert shared.load("fraud", 1).bytes("model.onnx") == b"weights"
    (folder / "manifest.json").unlink()
    assert shared.load("fraud", 1).bytes("model.onnx") == b"weights"


def test_what_was_overwritten_or_deleted_is_read_from_its_version(shared: Registry, tmp_path: Path) -> None:
    objects = shared.objects
    assert objects is not None
    for content in (b"first", b"second", b"third"):
        shared.register("fraud", {"model.onnx": content}, now=1, actor="train")
    paths = [version.path for version in shared.versions("fraud")]
    objects.bucket.put(f"{paths[0]}/model.onnx", b"somebody else's")
    objects.bucket.put(f"{paths[1]}/manifest.json", b"{}")
    client = objects.bucket._client
    client.delete_object(Bucket=objects.bucket._bucket, Key=f"{objects.bucket._prefix}{paths[2]}/model.onnx")
    fresh = pickle.loads(pickle.dumps(shared))
    fresh.objects.cache = tmp_path / "fresh"
    assert [fresh.load("fraud", n).bytes("model.onnx") for n in (1, 2, 3)] == [b"first", b"second", b"third"]
    fresh.close()


def test_without_versions_a_change_is_noticed(database: str, s3_server: S3Server, tmp_path: Path) -> None:
    registry = Registry(database, packages=s3_server.fresh(versions=False), cache=tmp_path / "a")
    assert registry.objects is not None
    path = registry.register("fraud", FILES, now=1, actor="train").path
    registry.objects.bucket.put(f"{path}/model.onnx", b"Weights")
    registry.objects.cache = tmp_path / "b"
    with pytest.raises(StoreError, match="restore it from a backup"):
        registry.load("fraud", 1)
    registry.close()


def test_the_cache_keeps_to_its_size(database: str, bucket: str, tmp_path: Path) -> None:
    registry = Registry(database, packages=bucket, cache=tmp_path / "cache", cache_bytes=1500)
    for n in range(3):
        registry.register("fraud", {"model.onnx": bytes([n]) * 1000}, now=1, actor="train")
    folders = [registry.packages / version.path for version in registry.versions("fraud")]
    for age, folder in zip((9000, 8000, 10), folders, strict=True):
        os.utime(folder, times=(time.time() - age,) * 2)
    assert registry.objects is not None
    registry.objects._make_room()
    # The last is over the size as well, but was used just now.
    assert [folder.exists() for folder in folders] == [False, False, True]
    assert registry.load("fraud", 1).bytes("model.onnx") == bytes(1000)
    registry.close()


def test_no_store_of_packages(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3", reason="S3's client comes with the extra s3; make test-libraries has it")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nobody")
    registry = Registry(database, packages="s3://models?endpoint=http://127.0.0.1:1", cache=tmp_path / "c")
    with pytest.raises(StoreError):
        registry.register("fraud", FILES, now=1, actor="train")
    # The ledger names nothing that is not there.
    assert registry.ledger.models() == ()
    registry.close()


def test_a_key_used_for_something_else_leaves_no_objects(shared: Registry) -> None:
    shared.ledger.note("fraud", "hello", actor="ann", now=0, key="k")
    with pytest.raises(Conflict):
        shared.register("fraud", FILES, now=1, actor="train", key="k")
    assert shared.objects is not None
    assert shared.objects.sizes() == {}


def test_the_tables_let_nothing_be_changed(database: str) -> None:
    import psycopg

    ledger = Ledger(database)
    ledger.note("fraud", "hello", actor="ann", now=0)
    row = "9, 0, 'note', 'm', NULL, NULL, NULL, 'a', 'r', '{}', NULL, '', ''"
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in (
            "UPDATE vitok.entry SET reason = 'other'",
            "DELETE FROM vitok.entry",
            "TRUNCATE vitok.entry",
            f"INSERT INTO vitok.entry VALUES ({row})",
        ):
            with pytest.raises(psycopg.errors.RaiseException, match="only grows"):
                connection.execute(statement)
        assert ledger.verify().intact
        connection.execute("ALTER TABLE vitok.entry DISABLE TRIGGER ALL")
        connection.execute("UPDATE vitok.entry SET reason = 'other' WHERE seq = 1")
    found = ledger.verify()
    assert (found.intact, found.seq) == (False, 1)
    with pytest.raises(InvalidInput, match="zero byte"):
        ledger.note("fraud", "a\x00b", actor="ann", now=0)
    ledger.close()


def test_another_layout_is_refused(database: str) -> None:
    import psycopg

    Ledger(database).close()
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("COMMENT ON TABLE vitok.entry IS 'vitok ledger 99'")
    with pytest.raises(StoreError, match="another vitok"):
        Ledger(database)


def test_lost_connections_are_opened_anew(database: str, postgres_server: PostgresServer) -> None:
    ledger, other = Ledger(database), Ledger(database)
    ledger.note("fraud", "one", actor="ann", now=0)
    assert postgres_server.cut("vitok") >= 3
    ledger.note("fraud", "two", actor="ann", now=0)
    assert len(other.history("fraud")) == 2
    # The follower comes back by itself.
    other.note("fraud", "three", actor="ann", now=0)
    soon(lambda: ledger._store._follower is not None and ledger._store._follower.latest() == 3)
    ledger.close()
    other.close()


def test_a_change_cut_off_in_the_middle_leaves_nothing(database: str, postgres_server: PostgresServer) -> None:
    ledger = Ledger(database)

    def cut() -> None:
        with ledger._change("fraud", actor="a", reason="r", now=0, key=None) as change:
            change.append("note", None)
            postgres_server.cut("vitok")

    with pytest.raises(StoreError):
        cut()
    assert ledger.history("fraud") == ()
    ledger.note("fraud", "next", actor="ann", now=0)
    assert ledger.verify().n_entries == 1
    ledger.close()


def test_following_needs_no_question(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, other = Ledger(database), Ledger(database)
    ledger.register("fraud", digest="d", path="p", now=0, actor="train")
    soon(lambda: other.state("fraud").latest == 1)
    soon(lambda: other._store._follower is not None and other._store._follower.latest() == 1)

    def refuse(*_: Any) -> None:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(Postgres, "read", refuse)
    monkeypatch.setattr(Postgres, "reading", refuse)
    assert other.state("fraud").latest == 1
    monkeypatch.undo()
    ledger.close()
    other.close()


def test_somebody_who_never_stops_writing(database: str) -> None:
    ledger, other = Ledger(database), Ledger(database)
    other._store._database._wait_seconds = 0.2  # type: ignore[union-attr]
    with ledger._change("fraud", actor="a", reason="r", now=0, key=None) as change:
        with pytest.raises(Conflict, match="by others"):
            other.note("fraud", "x", actor="ann", now=0)
        # Reading does not wait for writing.
        assert other.history("fraud") == ()
        change.append("note", None)
    ledger.close()
    other.close()


def _run(n: int, database: str, packages: str, home: Path, kill: tuple[int, int] | None = None) -> list[list[int]]:
    """Runs writers until all have ended, and gives what each told; `kill` ends one of them when it has told so much."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(Path(__file__).with_name("writer.py")), database, packages, str(home)]
    started = [
        subprocess.Popen([*command, str(me), str(ROUNDS)], stdout=subprocess.PIPE, text=True, env=environment)
        for me in range(n)
    ]
    found: list[list[int]] = []

    def listen(process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            found.append(json.loads(line))
            if tuple(found[-1][:2]) == kill:
                process.kill()

    listeners = [threading.Thread(target=listen, args=(process,)) for process in started]
    for listener in listeners:
        listener.start()
    codes = [process.wait(120) for process in started]
    for listener, process in zip(listeners, started, strict=True):
        listener.join(10)
        assert process.stdout is not None
        process.stdout.close()
    assert codes == [-signal.SIGKILL if kill and me == kill[0] else 0 for me in range(n)]
    return found


@pytest.mark.slow
def test_eight_writers_and_no_error(database: str, bucket: str, tmp_path: Path) -> None:
    Registry(database, packages=bucket, cache=tmp_path / "r").close()
    found = _run(WRITERS, database, bucket, tmp_path)
    registry = Registry(database, packages=bucket, cache=tmp_path / "r")
    made = {version: f"{me}-{i}" for me, i, version in found}
    assert sorted(made) == list(range(1, WRITERS * ROUNDS + 1))
    for version, content in made.items():
        assert registry.load("fraud", version).text("m") == content
    checked = registry.ledger.verify()
    # Registered, accepted and promoted; the one before each but the first archived.
    assert (checked.intact, checked.n_entries) == (True, 4 * len(made) - 1)
    registry.close()


@pytest.mark.slow
def test_a_writer_that_is_killed_holds_nobody_up(database: str, bucket: str, tmp_path: Path) -> None:
    Registry(database, packages=bucket, cache=tmp_path / "r").close()
    found = _run(3, database, bucket, tmp_path, kill=(0, 1))
    registry = Registry(database, packages=bucket, cache=tmp_path / "r")
    assert registry.ledger.verify().intact
    assert {version for _, _, version in found} <= {version.version for version in registry.versions("fraud")}
    for version in registry.versions("fraud"):
        registry.load("fraud", version.version)
    registry.close()
