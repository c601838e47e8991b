"""A home that goes by another registry: one file says so, and whoever opens the home finds the same."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
from tests.registry.conftest import accepted

from vitok.console import stores
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.registry import Registry, Tracker, attach, attachment_of, backup, clean, has_registry

URL, BUCKET = "postgresql://ann@localhost/models", "s3://models/packages"


def fill(home: Path) -> None:
    registry = Registry(home)
    registry.register("fraud", {"model.onnx": b"weights", "policy.json": {}}, now=1, actor="train")
    registry.ledger.record_gate("fraud", 1, accepted(), now=2, actor="gate")
    registry.ledger.promote("fraud", 1, "Production", reason="first", actor="ann", now=3)
    registry.close()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    fill(tmp_path / "shared")
    return tmp_path / "shared"


def test_two_homes_go_by_one_registry(tmp_path: Path, shared: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for home in (one, two):
        assert not has_registry(home)
        assert str(attach(home, shared)) == str(shared)
        assert has_registry(home)
    first, second = Registry(one), Registry(two)
    assert (first.home, second.home) == (one, two)
    assert first.location == second.location == str(shared / "registry" / "packages")
    assert first.register("fraud", {"model.onnx": b"better"}, now=4, actor="train").version == 2
    assert second.load("fraud", 2).bytes("model.onnx") == b"better"
    assert not (one / "registry").exists()
    assert second.problem() == ""
    copy = pickle.loads(pickle.dumps(second))
    assert (copy.home, copy.state("fraud").latest) == (two, 2)
    for registry in (first, second, copy):
        registry.close()
    # The pages and commands that only read find it as well.
    with stores.ledger(one) as ledger:
        assert ledger is not None
        assert ledger.state("fraud").production == 1
    with stores.registry(one) as registry:
        assert registry.load("fraud").version == 1
    version = stores.state(one).version(1)
    assert stores.package(one, version).bytes("model.onnx") == b"weights"
    assert stores.document(one, version, "policy.json") == {}
    assert Tracker(one).uri.endswith("one/mlflow.db")


def test_the_same_again_changes_nothing_and_another_is_refused(tmp_path: Path, shared: Path) -> None:
    home = tmp_path / "home"
    attach(home, shared)
    before = (home / "registry.json").read_bytes()
    attach(home, shared)
    assert (home / "registry.json").read_bytes() == before
    other = tmp_path / "other"
    fill(other)
    with pytest.raises(Conflict, match=r"goes by .*shared"):
        attach(home, other)
    # The registry of a home that has none of its own is nobody's.
    with pytest.raises(InvalidInput, match=r"of its own.*shared"):
        attach(tmp_path / "third", home)


@pytest.mark.parametrize(
    ("registry", "packages", "artifacts", "told"),
    [
        ("postgresql://ann:word@localhost/models", BUCKET, None, "PGPASSWORD"),
        ("postgresql://ann@localhost/models?password=word", BUCKET, None, "PGPASSWORD"),
        (URL, None, None, "s3://"),
        (URL, "models", None, "s3://"),
        ("http://localhost:8500", None, None, "postgresql://"),
        ("shared", BUCKET, None, "left out"),
        ("shared", None, BUCKET, "left out"),
        ("home", None, None, "another than"),
    ],
)
def test_addresses_that_do_not_fit(
    tmp_path: Path, shared: Path, registry: str, packages: str | None, artifacts: str | None, told: str
) -> None:
    (tmp_path / "home").mkdir()
    place = registry if "://" in registry else str(tmp_path / registry)
    with pytest.raises(InvalidInput, match=told) as refused:
        attach(tmp_path / "home", place, packages=packages, artifacts=artifacts)
    assert "word@" not in str(refused.value)
    assert "=word" not in str(refused.value)
    assert attachment_of(tmp_path / "home") is None


def test_a_path_that_is_misspelt_makes_no_registry(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        attach(tmp_path / "home", tmp_path / "shard")
    assert not (tmp_path / "shard").exists()
    assert not (tmp_path / "home").exists()


def test_versions_of_its_own_are_never_lost_from_sight(tmp_path: Path, shared: Path) -> None:
    home, copied = tmp_path / "home", tmp_path / "copied"
    fill(home)
    registry = Registry(home)
    registry.ledger.note("fraud", "of this home only", actor="ann", now=5)
    registry.close()
    with pytest.raises(Conflict, match="vitok runs copy"):
        attach(home, shared)
    # Where the other goes on from what the home has, nothing is lost.
    shutil.copytree(home, copied)
    registry = Registry(copied)
    registry.ledger.note("fraud", "later", actor="ann", now=6)
    registry.close()
    attach(home, copied)
    with stores.ledger(home) as ledger:
        assert ledger is not None
        assert ledger.revision() == 5


@pytest.mark.parametrize("content", [b"", b"[]", b'{"registry": 1, "more": 2}', b'{"packages": null}'])
def test_a_file_that_says_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "registry.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"registry\.json"):
        Registry(tmp_path)


def test_backup_and_clean_up_of_such_a_home(tmp_path: Path, shared: Path) -> None:
    home = tmp_path / "home"
    attach(home, shared)
    cached = home / "registry-cache" / "packages" / "fraud" / "1" / "model.onnx"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"fetched again when it is asked for")
    made = backup(home, tmp_path / "backup", now=9)
    assert set(made.files) == {"registry.json"}
    with pytest.raises(InvalidInput, match="clean that one up"):
        clean(home, now=9, actor="ann")


def test_runs_may_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL", raising=False)
    said = {"registry": URL, "packages": BUCKET, "artifacts": "s3://models/runs"}
    (tmp_path / "registry.json").write_text(json.dumps(said))
    tracker = Tracker(tmp_path)
    assert (tracker.database, tracker.artifact_root) == (URL, "s3://models/runs")
    assert tracker.uri == "postgresql+psycopg://ann@localhost/models"
