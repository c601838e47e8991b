import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vitok.registry import Ledger, Tracker, Verdict, at_least, evaluate


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.sqlite")
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
