"""Backups to and from a bucket, and of a registry in PostgreSQL; all servers are real ones from wheels."""

import gc
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.registry.conftest import accepted
from tests.registry.servers import PostgresServer, S3Server

from vitok.engines.s3 import Bucket
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.registry import Registry, Tracker, backup, restore
from vitok.registry.remote_backup import fetch_backup, send_backup
from vitok.registry.shared_backup import backup_stores, restore_stores


def fill(registry: Registry, n: int = 3) -> None:
    for number in range(1, n + 1):
        registry.register("fraud", {"model.onnx": f"weights {number}"}, now=number, actor="train", key=f"k{number}")
    registry.ledger.record_gate("fraud", 1, accepted(), now=n, actor="gate")
    registry.ledger.promote("fraud", 1, "Production", reason="first", actor="ann", now=n)


def test_a_home_goes_to_a_bucket_and_comes_back(tmp_path: Path, bucket: str) -> None:
    registry = Registry(tmp_path / "home")
    fill(registry)
    registry.close()
    place = bucket.replace("?", "/backups/monday?")
    made = backup(tmp_path / "home", tmp_path / "made", now=9)
    send_backup(made.folder, place)
    # The same again sends nothing and is no error.
    send_backup(made.folder, place)
    fetched = fetch_backup(place, tmp_path / "fetched")
    assert fetched.seal == made.seal
    restored = restore(fetched.folder, tmp_path / "elsewhere")
    assert (restored.n_packages, restored.ledger and restored.ledger.intact) == (3, True)
    second = Registry(restored.home)
    assert second.load("fraud").text("model.onnx") == "weights 1"
    second.close()
    other = backup(tmp_path / "home", tmp_path / "other", now=10)
    with pytest.raises(Conflict, match="another backup"):
        send_backup(other.folder, place)


def test_what_was_never_finished_or_is_damaged(tmp_path: Path, bucket: str) -> None:
    with pytest.raises(NotFound):
        fetch_backup(bucket, tmp_path / "fetched")
    registry = Registry(tmp_path / "home")
    fill(registry)
    registry.close()
    made = backup(tmp_path / "home", tmp_path / "made", now=9)
    name = "home/registry/packages/fraud/1/model.onnx"
    store = Bucket(bucket)
    store.put_file(name, made.folder / name, notes={"sha256": "by half"})
    with pytest.raises(NotFound):
        fetch_backup(bucket, tmp_path / "fetched")
    # Goes on where it was.
    send_backup(made.folder, bucket)
    store.put(name, b"other")
    with pytest.raises(StoreError, match="damaged"):
        fetch_backup(bucket, tmp_path / "fetched")
    send_backup(made.folder, bucket)
    assert restore(fetch_backup(bucket, tmp_path / "fetched").folder, tmp_path / "elsewhere").n_packages == 3
    store.put("home/stranger", b"x")
    with pytest.raises(Conflict, match="something else"):
        send_backup(made.folder, bucket)


def test_stores_become_a_home_and_stores_again(
    shared: Registry, tmp_path: Path, postgres_server: PostgresServer, s3_server: S3Server
) -> None:
    fill(shared)
    made = backup_stores(shared, tmp_path / "made", now=9)
    assert (made.missing, made.skipped, "postgres:@" in str(made)) == ((), (), False)
    with pytest.raises(Conflict, match="finished"):
        backup_stores(shared, tmp_path / "made", now=9)
    # As a home, which the rest of this package opens.
    restored = restore(made.folder, tmp_path / "home")
    assert restored.n_packages == 3
    home = Registry(restored.home)
    assert home.ledger.verify().head == shared.ledger.verify().head
    assert home.load("fraud").text("model.onnx") == "weights 1"
    assert home.register("fraud", {"model.onnx": b"next"}, now=11, actor="train").version == 4
    home.close()
    # And as stores, which go on where they were.
    database, bucket = postgres_server.database("second"), s3_server.fresh()
    second = Registry(database, packages=bucket, cache=tmp_path / "second")
    found = restore_stores(made.folder, second)
    assert (found.n_packages, found.ledger.intact, found.n_runs) == (3, True, None)
    assert "3 packages" in str(found)
    assert second.load("fraud").text("model.onnx") == "weights 1"
    assert second.register("fraud", {"model.onnx": b"x"}, now=12, actor="train", key="k2").version == 2
    assert second.register("fraud", {"model.onnx": b"next"}, now=12, actor="train").version == 4
    with pytest.raises(Conflict, match="never goes over"):
        restore_stores(made.folder, second)
    second.close()


def test_a_home_moves_to_stores(shared: Registry, tmp_path: Path) -> None:
    home = Registry(tmp_path / "home")
    fill(home)
    made = backup(home.home, tmp_path / "made", now=9)
    assert restore_stores(made.folder, shared).n_packages == 3
    assert shared.ledger.history("fraud") == home.ledger.history("fraud")
    assert shared.load("fraud", 3).text("model.onnx") == "weights 3"
    with pytest.raises(InvalidInput):
        restore_stores(made.folder, home)
    with pytest.raises(InvalidInput):
        backup_stores(home, tmp_path / "x", now=9)
    home.close()


def test_an_interrupted_one_goes_on(shared: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(shared)
    objects = shared.objects
    assert objects is not None
    fetch, calls = objects.fetch, 0

    def failing(*given: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise StoreError("the line was cut")
        return fetch(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(objects, "fetch", failing)
    with pytest.raises(StoreError, match="cut"):
        backup_stores(shared, tmp_path / "made", now=9)
    with pytest.raises(StoreError, match="never finished"):
        restore(tmp_path / "made", tmp_path / "home")
    backup_stores(shared, tmp_path / "made", now=10)
    # The first was there already.
    assert calls == 4
    assert restore(tmp_path / "made", tmp_path / "home").n_packages == 3


def test_what_comes_while_it_runs(shared: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(shared, 1)
    objects = shared.objects
    assert objects is not None
    fetch: Callable[..., object] = objects.fetch

    def beside(*given: object) -> object:
        monkeypatch.undo()
        shared.register("fraud", {"model.onnx": b"came in between"}, now=5, actor="train")
        return fetch(*given)

    monkeypatch.setattr(objects, "fetch", beside)
    made = backup_stores(shared, tmp_path / "made", now=9)
    restored = restore(made.folder, tmp_path / "home")
    assert (restored.n_packages, made.missing) == (2, ())


def test_a_package_that_is_gone_is_named(shared: Registry, tmp_path: Path) -> None:
    fill(shared)
    assert shared.objects is not None
    path = shared.versions("fraud")[1].path
    shared.objects.discard(path)
    made = backup_stores(shared, tmp_path / "made", now=9)
    assert made.missing == (path,)
    assert restore(made.folder, tmp_path / "home").n_packages == 2


# MLflow leaves the connections of its migrations to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_runs_come_back_with_their_files(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL", raising=False)
    registries, trackers, buckets = [], [], []
    for name in ("runs-a", "runs-b"):
        bucket = s3_server.fresh()
        files = bucket.replace("?", "/runs?")
        database = postgres_server.database(name)
        registries.append(Registry(database, packages=bucket.replace("?", "/packages?"), cache=tmp_path / name))
        trackers.append(Tracker(database, artifacts=files))
        buckets.append(Bucket(files))
    fill(registries[0])
    with trackers[0].run("fraud", name="boosting", params={"leaves": 31}) as run:
        run.log_history("log_loss", [0.31, 0.28])
        run.log_artifact("reports/card.md", "# Card")
    trackers[0].mirror(registries[0].state("fraud"), packages=registries[0].location)
    made = backup_stores(registries[0], tmp_path / "made", now=9, tracker=trackers[0], bucket=buckets[0])
    found = restore_stores(made.folder, registries[1], tracker=trackers[1], bucket=buckets[1])
    assert (found.n_runs, found.n_packages) == (1, 3)
    again = trackers[1].recorded(run.run_id)
    assert (again.name, again.params["leaves"]) == ("boosting", "31")
    assert trackers[1].history(again, "log_loss").values.tolist() == [0.31, 0.28]
    client = trackers[1]._client()
    assert Path(client.download_artifacts(run.run_id, "reports/card.md", str(tmp_path))).read_text() == "# Card"
    source = client.get_model_version_by_alias("fraud", "champion").source
    assert source.startswith(f"{registries[1].location}/")
    # New experiments and runs count on.
    with trackers[1].run("ads", name="next"):
        pass
    assert json.loads((made.folder / "home/mlflow-tables/tables.json").read_text())["roots"][0].endswith("/runs")
    for registry in registries:
        registry.close()
    gc.collect()
