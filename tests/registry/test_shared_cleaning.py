"""Clean-up of a registry in PostgreSQL and a bucket."""

import time
from pathlib import Path

import pytest
from tests.registry.conftest import accepted

from vitok.clock import DAY
from vitok.engines.s3 import Bucket
from vitok.errors import InvalidInput, NotFound, StoreError
from vitok.registry import Registry
from vitok.registry.shared_cleaning import clean_stores

NOW = int(time.time() * 1_000_000) + 60 * DAY


def fill(registry: Registry) -> None:
    for number in range(1, 5):
        registry.register("fraud", {"model.onnx": f"weights {number}"}, now=number, actor="train")
    registry.ledger.record_gate("fraud", 1, accepted(), now=5, actor="gate")
    registry.ledger.promote("fraud", 1, "Production", reason="first", actor="ann", now=5)
    registry.ledger.propose("fraud", 2, reason="r", actor="ann", now=6)


def test_what_nothing_refers_to_goes(shared: Registry) -> None:
    fill(shared)
    objects = shared.objects
    assert objects is not None
    forgotten = objects.upload("fraud", {"model.onnx": b"never registered"}, created=0)
    said = clean_stores(shared, now=NOW, actor="ann", logs=[])
    assert [(removal.kind, removal.name) for removal in said.removals] == [
        ("package", "fraud/3"),
        ("left over", forgotten.path),
    ]
    assert said.kept == (("fraud/2", "it is proposed"), ("fraud/4", "it is the latest"))
    assert "would be removed" in str(said)
    assert len(objects.sizes()) == 5
    done = clean_stores(shared, now=NOW, actor="ann", logs=[], dry_run=False)
    assert done.removals == said.removals
    assert len(objects.sizes()) == 3
    path = shared.versions("fraud")[2].path
    # With all versions of each object.
    assert objects.bucket.versions(f"{path}/model.onnx") == []
    assert shared.ledger.history("fraud", version=3)[-1].kind == "removed"
    with pytest.raises(NotFound, match="removed"):
        shared.load("fraud", 3)
    assert clean_stores(shared, now=NOW, actor="ann", logs=[]).removals == ()
    for number in (1, 2, 4):
        shared.load("fraud", number)


def test_an_upload_of_today_is_left_alone(shared: Registry) -> None:
    assert shared.objects is not None
    shared.objects.upload("fraud", {"model.onnx": b"about to be registered"}, created=0)
    assert clean_stores(shared, now=NOW - 60 * DAY, actor="ann", logs=[], older_than=1).removals == ()
    assert len(clean_stores(shared, now=NOW, actor="ann", logs=[], older_than=1).removals) == 1


def test_what_was_removed_by_half_goes_the_next_time(shared: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(shared)
    objects = shared.objects
    assert objects is not None

    def refuse(_: str) -> None:
        raise StoreError("the line was cut")

    monkeypatch.setattr(objects, "discard", refuse)
    with pytest.raises(StoreError):
        clean_stores(shared, now=NOW, actor="ann", logs=[], dry_run=False)
    monkeypatch.undo()
    assert shared.versions("fraud")[2].removed
    assert len(clean_stores(shared, now=NOW, actor="ann", logs=[], dry_run=False).removals) == 1
    assert len(objects.sizes()) == 3


def test_files_of_deleted_runs(shared: Registry, bucket: str, database: str) -> None:
    """The table is cut down to what is asked of it; the whole one is MLflow's and takes seconds to make."""
    import psycopg

    files = Bucket(bucket.replace("?", "/runs?"))
    for run in ("kept", "gone", "used", "late"):
        files.put(f"1/{run}/artifacts/model.bin", b"12345")
    shared.register("fraud", {"m": b"1"}, now=1, actor="train", run_id="used")
    rows = [
        (run, "active" if run == "kept" else "deleted", f"{files.location}/1/{run}/artifacts")
        for run in ("kept", "gone", "used", "late")
    ]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE runs (run_uuid TEXT, lifecycle_stage TEXT, artifact_uri TEXT, deleted_time BIGINT)"
        )
        for run, stage, address in rows:
            deleted = NOW // 1000 if run == "late" else 1
            connection.execute("INSERT INTO runs VALUES (%s, %s, %s, %s)", (run, stage, address, deleted))
        connection.execute("INSERT INTO runs VALUES ('out', 'deleted', 's3://elsewhere/1/out/artifacts', 1)")
    done = clean_stores(shared, now=NOW, actor="ann", logs=[], bucket=files, dry_run=False)
    assert [(removal.kind, removal.name, removal.size) for removal in done.removals] == [("artifacts", "gone", 5)]
    assert {item.name.split("/")[1] for item in files.objects()} == {"kept", "used", "late"}


def test_a_folder_or_a_log_that_is_not_there(shared: Registry, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    with pytest.raises(InvalidInput):
        clean_stores(registry, now=NOW, actor="ann", logs=[])
    registry.close()
    with pytest.raises(NotFound):
        clean_stores(shared, now=NOW, actor="ann", logs=[tmp_path / "nowhere"])
