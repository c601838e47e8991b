"""Services that follow a registry in a database and a bucket, and go on while the database is away."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines.servers import until
from tests.registry.conftest import accepted
from tests.registry.servers import PostgresServer
from tests.serving.model_folders import ROWS, SUM, put_model

from vitok.console import stores
from vitok.errors import StoreError
from vitok.registry import Registry, Tracker, attach
from vitok.serving import HotRequest
from vitok.systems.fraud.app import follow
from vitok.systems.fraud.service import FraudService

BODY = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2.5]}]}


def files(folder: Path, number: int) -> dict[str, bytes]:
    put_model(folder, "sum", number, SUM.format(sleep=0), ROWS)
    place = folder / "sum" / str(number)
    return {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}


def release(registry: Registry, folder: Path, number: int) -> None:
    version = registry.register("sum", files(folder, number) | {"n.txt": str(number).encode()}, now=1, actor="train")
    registry.ledger.record_gate("sum", version.version, accepted(), now=2, actor="gate")
    registry.ledger.promote("sum", version.version, "Production", reason="r", actor="ann", now=3)


def get(url: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@contextlib.contextmanager
def models(home: Path, database: str, bucket: str) -> Iterator[tuple[str, list[str]]]:
    """Serves models of a registry; gives where, and what is said of it."""
    command = [sys.executable, "-W", "error", "-m", "vitok", "serve-models", "--port", "0", "--json"]
    command += ["--home", str(home), "--registry", database, "--packages", bucket]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        line = child.stdout.readline()
        assert line, child.communicate()[1]
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(child.stderr or ()), daemon=True)
        reader.start()
        try:
            yield json.loads(line)["http"], said
        finally:
            child.send_signal(signal.SIGTERM)
            assert child.wait(20) == 0
            reader.join(20)


def version(url: str) -> str:
    status, told = get(f"{url}/v2/models/sum/infer", BODY)
    assert status == 200, told
    return str(told["model_version"])


def failures(url: str) -> dict[str, str]:
    status, told = get(f"{url}/v2/health/ready")
    assert (status, told["ready"]) == (200, True)
    return dict(told.get("failures", {}))


def test_served_models_go_on_while_the_database_is_away(
    shared: Registry, tmp_path: Path, database: str, bucket: str, postgres_server: PostgresServer
) -> None:
    home = tmp_path / "home"
    release(shared, tmp_path / "made", 1)
    with models(home, database, bucket) as (url, said):
        assert version(url) == "1"
        release(shared, tmp_path / "made", 2)
        until(lambda: version(url) == "2")
        assert list((home / "registry-cache" / "packages" / "sum").iterdir())
        with postgres_server.away("vitok"):
            until(lambda: "does not answer" in failures(url).get("the registry", ""))
            assert version(url) == "2"
        until(lambda: not failures(url))
        release(shared, tmp_path / "made", 3)
        until(lambda: version(url) == "3")
    # Asked twenty times a second, and said once.
    assert sum("does not answer" in line for line in said) == 1, said
    # One that begins while it is away knows what the one before knew.
    with postgres_server.away("vitok"), models(home, database, bucket) as (url, said):
        assert version(url) == "3"
        until(lambda: "does not answer" in failures(url).get("the registry", ""))
    assert any("what was last known of it goes on" in line for line in said)


def test_the_fraud_service_goes_on_while_the_database_is_away(
    shared: Registry,
    tmp_path: Path,
    database: str,
    bucket: str,
    postgres_server: PostgresServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    home = tmp_path / "home"
    attach(home, database, packages=bucket)
    service = FraudService(home, deadline=5.0)
    stop = threading.Event()
    thread = threading.Thread(target=follow, args=(service, stop), daemon=True)
    thread.start()
    try:
        assert service.ready()["registry"] == "ok"
        shared.register("fraud", {"notes.json": [1]}, now=1, actor="train")
        until(lambda: service.versions.current.revision == 1)
        # Whoever opens the home finds the same: the operator, an order at the command line, a page.
        other = Registry(home)
        assert (other.home, other.state("fraud").latest) == (home, 1)
        other.close()
        version = stores.state(home).version(1)
        assert stores.document(home, version, "notes.json") == [1]
        with postgres_server.away("vitok"):
            until(lambda: service.ready()["registry"] != "ok")
            assert "does not answer" in service.ready()["registry"]
            assert service.can_decide()
            body = {"transaction_id": "new-1", "customer_id": "1", "terminal_id": "2", "amount": 12.5}
            body["event_time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            reply = service.handle([HotRequest(json.dumps(body).encode(), time.perf_counter_ns(), [])])[0]
            assert reply.status == 200
            with pytest.raises(StoreError, match="does not answer"):
                service.registry.state("fraud")
            until(lambda: any("cannot be read" in record.getMessage() for record in caplog.records))
        until(lambda: service.ready()["registry"] == "ok")
        shared.ledger.note("fraud", "it is back", actor="ann", now=2)
        until(lambda: service.versions.current.revision == 2)
        assert sum("cannot be read" in record.getMessage() for record in caplog.records) == 1
    finally:
        stop.set()
        thread.join()
        service.close()
        # Pages share one for as long as the process lives.
        with stores.registry(home) as kept:
            kept.close()
        stores._shared.cache_clear()
    with postgres_server.away("vitok"):
        # Started again meanwhile, it knows what it knew.
        service = FraudService(home, deadline=5.0)
        assert service.versions.current.revision == 2
        assert service.can_decide()
        assert "does not answer" in service.ready()["registry"]
        service.close()


def test_a_home_remembers_where_its_runs_are(tmp_path: Path, database: str, bucket: str) -> None:
    attach(tmp_path, database, packages=bucket)
    assert Tracker(tmp_path).database is None
    attach(tmp_path, database, packages=bucket, artifacts=bucket.replace("?", "/runs?"))
    attach(tmp_path, database, packages=bucket)
    assert Tracker(tmp_path).database == database


def test_a_home_knows_what_it_knew_while_the_database_is_away(
    shared: Registry, tmp_path: Path, database: str, bucket: str, postgres_server: PostgresServer
) -> None:
    home = tmp_path / "home"
    attach(home, database, packages=bucket)
    shared.register("fraud", {"notes.json": [1]}, now=1, actor="train")
    with postgres_server.away("vitok"), pytest.raises(StoreError):
        # Nothing was ever known here.
        Registry(home)
    before = Registry(home)
    until(lambda: before.state("fraud").latest == 1)
    assert before.load("fraud", 1).json("notes.json") == [1]
    before.close()
    with postgres_server.away("vitok"):
        after = Registry(home)
        assert after.ledger.models() == ("fraud",)
        assert after.ledger.revision() == 1
        assert after.load("fraud", 1).json("notes.json") == [1]
        assert len(after.ledger.history("fraud")) == 1
        assert after.ledger.at("fraud", 5) is None
        assert "does not answer" in after.problem()
        with pytest.raises(StoreError):
            after.ledger.note("fraud", "not now", actor="ann", now=2)
        with pytest.raises(StoreError):
            after.ledger.verify()
    until(lambda: not after.problem())
    shared.ledger.note("fraud", "it is back", actor="ann", now=2)
    until(lambda: after.state("fraud").revision == 2)
    after.ledger.note("fraud", "and written to", actor="ann", now=3)
    assert after.ledger.verify().n_entries == 3
    after.close()


def test_a_ledger_that_was_exchanged_is_noticed(
    shared: Registry,
    tmp_path: Path,
    database: str,
    bucket: str,
    postgres_server: PostgresServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    home = tmp_path / "home"
    attach(home, database, packages=bucket)
    shared.ledger.note("fraud", "one", actor="ann", now=1)
    registry = Registry(home)
    until(lambda: registry.state("fraud").revision == 1)
    registry.close()
    shared.close()
    postgres_server.database("vitok")
    other = Registry(home)
    for text in ("another", "and more"):
        other.ledger.note("fraud", text, actor="bob", now=1)
    other.close()
    again = Registry(home)
    assert again.state("fraud").revision == 2
    assert "does not go on from entry 1" in caplog.text
    again.close()
