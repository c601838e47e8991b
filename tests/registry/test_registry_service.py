"""The registry over HTTP: by its client on a home in a folder, and by several servers on a database and a bucket."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from tests.registry.conftest import accepted

from vitok.clock import SystemClock
from vitok.console.registry_commands import serve_registry
from vitok.errors import Conflict, GateRefused, InvalidInput, NotFound, ServiceError, StoreError
from vitok.guard import KeyRing, KeyStore
from vitok.registry import Registry, RegistryClient, Tracker
from vitok.serving.registry_service import APPROVE, PROMOTE, READ, WRITE, PackageEndpoint, RegistryDesk
from vitok.serving.registry_service import registry_application as application
from vitok.serving.server import running

FILES = {"model.onnx": b"weights", "signature.json": {"inputs": ["amount"]}}
WRITERS, ROUNDS = 8, 8
NOW = SystemClock().now()
SERVER = "import typer; from vitok.console.registry_commands import serve_registry; typer.run(serve_registry)"


@contextlib.contextmanager
def served(desk: RegistryDesk) -> Iterator[str]:
    with (
        contextlib.closing(PackageEndpoint(desk)) as endpoint,
        running(application(desk), [endpoint], max_body=1 << 24) as service,
    ):
        yield service.url


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path / "home")
    yield registry
    registry.close()


@pytest.fixture
def url(registry: Registry) -> Iterator[str]:
    with served(RegistryDesk(registry)) as url:
        yield url


def get(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_version_goes_all_the_way(registry: Registry, url: str, tmp_path: Path) -> None:
    client = RegistryClient(url, actor="ann")
    version = client.register("fraud", FILES, key="run-1")
    assert client.register("fraud", FILES, key="run-1") == version == registry.versions("fraud")[0]
    with pytest.raises(GateRefused, match="run the gate"):
        client.promote("fraud", 1, "Production", reason="first")
    assert client.record_gate("fraud", 1, accepted()).kind == "gate"
    client.require_approvals("fraud", 1, reason="policy")
    client.propose("fraud", 1, reason="good")
    with pytest.raises(Conflict, match="somebody else"):
        client.approve("fraud", 1, reason="mine")
    RegistryClient(url, actor="bob").approve("fraud", 1, reason="fine")
    entry = client.promote("fraud", 1, "Production", reason="first", expected=0, key="p")
    assert client.promote("fraud", 1, "Production", reason="first", expected=0, key="p") == entry
    with pytest.raises(Conflict, match="already"):
        client.promote("fraud", 1, "Production", reason="again")
    assert client.models() == ("fraud",)
    assert client.state("fraud") == registry.state("fraud")
    assert client.state("fraud", at=entry.time_us - 1).production is None
    assert (client.at("fraud", entry.time_us), client.at("fraud", 0)) == (1, None)
    with pytest.raises(InvalidInput, match="time_us: got '2020'"):
        client.at("fraud", cast("int", "2020"))
    assert client.history("fraud") == registry.ledger.history("fraud")
    assert client.history("fraud", after=2, version=1) == registry.ledger.history("fraud", after=2, version=1)
    assert client.verify() == registry.ledger.verify()
    package = client.load("fraud", "Production", tmp_path / "fetched")
    assert package.bytes("model.onnx") == b"weights"
    assert package.json("signature.json") == {"inputs": ["amount"]}
    assert client.load("fraud", 1, tmp_path / "fetched").digest == version.digest


def test_canaries_and_roll_backs(registry: Registry, url: str) -> None:
    client = RegistryClient(url, actor="ann")
    for n in (1, 2):
        client.register("fraud", {"m": f"{n}"})
        client.record_gate("fraud", n, accepted())
    client.promote("fraud", 1, "Production", reason="first")
    client.start_canary("fraud", 2, 0.1, reason="look")
    assert client.state("fraud").canary_share == 0.1
    client.end_canary("fraud", verdict="accepted", reason="good")
    client.promote("fraud", 2, "Production", reason="better")
    assert client.rollback("fraud", reason="worse", expected=2).details["to_version"] == 1
    assert client.state("fraud").production == 1


def test_what_cannot_be_done(url: str, tmp_path: Path) -> None:
    client = RegistryClient(url, actor="ann")
    for call in (lambda: client.state("fraud"), lambda: client.load("fraud", 1, tmp_path)):
        with pytest.raises(NotFound):
            call()
    with pytest.raises(InvalidInput, match="actor"):
        RegistryClient(url).register("fraud", FILES)
    client.register("fraud", FILES)
    with pytest.raises(NotFound, match="fraud/9"):
        client.propose("fraud", 9, reason="r")
    with pytest.raises(InvalidInput, match="stage"):
        client.promote("fraud", 1, "Prod", reason="r")  # type: ignore[arg-type]
    for path, code in (
        ("/v1/nowhere", 404),
        ("/v1/models/fraud/at", 422),
        ("/v1/models/fraud/history?after=x", 422),
        ("/v1/models/fraud/versions/champion", 422),
        ("/v1/runs/abcd", 404),
    ):
        assert get(url + path)[0] == code
    with pytest.raises(InvalidInput, match="http"):
        RegistryClient("ftp://x")


def test_runs_are_shown(tracker: Tracker, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    with tracker.run("fraud", name="boosting") as run:
        run.log_history("log_loss", [0.3, 0.2])
    with served(RegistryDesk(registry, tracker=tracker)) as url:
        assert [item["name"] for item in get(f"{url}/v1/runs")[1]["runs"]] == ["boosting"]
        assert get(f"{url}/v1/runs/{run.run_id}")[1]["metrics"]["log_loss"] == 0.2
        assert get(f"{url}/v1/runs/{run.run_id}/metrics/log_loss")[1]["values"] == [0.3, 0.2]
    registry.close()


def test_keys_say_who_acts_and_what_is_allowed(registry: Registry, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.sqlite")

    def key(owner: str, *scopes: str) -> str:
        return store.create("for a test", tenant=owner, scopes=scopes, actor="admin", now=NOW).token

    tokens = {
        "ann": key("ann", READ, WRITE, PROMOTE, APPROVE),
        "bob": key("bob", READ, APPROVE),
        "eve": key("eve", READ),
    }
    with served(RegistryDesk(registry, keys=KeyRing(store))) as url:
        clients = {name: RegistryClient(url, key=token) for name, token in tokens.items()}
        assert get(f"{url}/healthz")[0] == get(f"{url}/readyz")[0] == 200
        assert get(f"{url}/v1/models")[0] == 401
        with pytest.raises(ServiceError, match="no key was sent"):
            RegistryClient(url, actor="ann").register("fraud", FILES)
        assert clients["ann"].register("fraud", FILES).version == 1
        for call in (
            lambda: clients["eve"].register("fraud", FILES),
            lambda: clients["bob"].promote("fraud", 1, "Production", reason="r"),
            lambda: clients["eve"].approve("fraud", 1, reason="r"),
        ):
            with pytest.raises(ServiceError, match="does not allow"):
                call()
        clients["ann"].record_gate("fraud", 1, accepted())
        clients["ann"].propose("fraud", 1, reason="good")
        with pytest.raises(Conflict, match="somebody else"):
            clients["ann"].approve("fraud", 1, reason="mine")
        # Nobody acts in another's name.
        with pytest.raises(InvalidInput, match="whose key it is"):
            RegistryClient(url, key=tokens["ann"], actor="bob").approve("fraud", 1, reason="as bob")
        assert clients["bob"].approve("fraud", 1, reason="fine").actor == "bob"
        assert clients["ann"].promote("fraud", 1, "Production", reason="r").actor == "ann"
        assert clients["eve"].state("fraud").production == 1


def test_ready_says_what_is_wrong(registry: Registry, url: str) -> None:
    assert get(f"{url}/readyz") == (200, {"ready": True, "ledger": "ok", "packages": "ok"})
    registry.close()
    code, told = get(f"{url}/readyz")
    assert (code, told["ready"], told["packages"]) == (503, False, "ok")
    assert "ledger" in told["ledger"]
    assert get(f"{url}/healthz")[0] == 200


def test_no_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitok.registry.client._PAUSES", (0.0, 0.0))
    with pytest.raises(ServiceError, match="no server"):
        RegistryClient(["http://127.0.0.1:1", "http://127.0.0.1:2"]).models()


def test_the_command_wants_keys_where_others_may_ask(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import typer

    with pytest.raises(typer.Exit):
        serve_registry(home=str(tmp_path), host="0.0.0.0")
    assert "--keys" in capsys.readouterr().err
    with pytest.raises(typer.Exit):
        serve_registry(home=str(tmp_path), keys=tmp_path / "none")
    with pytest.raises(typer.Exit):
        serve_registry(home=str(tmp_path), packages="s3://models")
    assert "--packages: got 's3://models', must go with a database as --home" in capsys.readouterr().err


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", SERVER, "--port", "0", "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield process, str(json.loads(process.stdout.readline())["url"])
        finally:
            process.kill()


@pytest.mark.slow
def test_two_servers_eight_writers_and_one_is_killed(database: str, bucket: str, tmp_path: Path) -> None:
    Registry(database, packages=bucket, cache=tmp_path / "r").close()
    store = KeyStore(tmp_path / "keys.sqlite")
    scopes = (READ, WRITE, PROMOTE)
    tokens = [
        store.create("writer", tenant=f"w{me}", scopes=scopes, actor="admin", now=NOW).token for me in range(WRITERS)
    ]
    given = ("--home", database, "--packages", bucket, "--keys", str(tmp_path / "keys.sqlite"))
    with (
        started(*given, "--cache", str(tmp_path / "cache-0")) as first,
        started(*given, "--cache", str(tmp_path / "cache-1")) as second,
    ):
        made = write_at_once([first[1], second[1]], tokens, first[0])
        client = RegistryClient(second[1], key=tokens[0])
        checked, versions = client.verify(), client.state("fraud").versions
        second[0].terminate()
        assert second[0].wait(30) == 0
    assert len(made) == WRITERS * ROUNDS
    # What was under way in the killed server and sent again counts once.
    assert (checked.intact, checked.n_entries) == (True, 4 * len(made) - 1)
    assert len(versions) == len(made)
    registry = Registry(database, packages=bucket, cache=tmp_path / "r")
    for version, content in made.items():
        assert registry.load("fraud", version).text("m") == content
    registry.close()


def write_at_once(urls: list[str], tokens: list[str], victim: "subprocess.Popen[str]") -> dict[int, str]:
    """Has eight clients register and promote; one server is killed when they have done a third of it."""
    made: dict[int, str] = {}
    errors: list[BaseException] = []
    halfway = threading.Event()

    def write(me: int) -> None:
        client = RegistryClient(urls[me % 2 :] + urls[: me % 2], key=tokens[me])
        try:
            for i in range(ROUNDS):
                version = client.register("fraud", {"m": f"{me}-{i}"}).version
                client.record_gate("fraud", version, accepted())
                client.promote("fraud", version, "Production", reason="r")
                # What one server has acknowledged every server knows.
                assert client.state("fraud").version(version).gate
                assert version not in made
                made[version] = f"{me}-{i}"
                if len(made) >= WRITERS * ROUNDS // 3:
                    halfway.set()
        except BaseException as error:
            errors.append(error)
            halfway.set()
            raise

    writers = [threading.Thread(target=write, args=(me,)) for me in range(WRITERS)]
    for writer in writers:
        writer.start()
    halfway.wait(120)
    victim.kill()
    for writer in writers:
        writer.join(120)
    assert errors == []
    return made


def test_a_store_that_is_down_is_a_503(registry: Registry, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitok.registry.client._PAUSES", (0.0,))
    registry.close()
    with pytest.raises(ServiceError):
        RegistryClient(url, actor="ann").state("fraud")
    with pytest.raises(StoreError):
        registry.ledger.catch_up()
