"""Runs in PostgreSQL with their files in an S3-compatible store, both real servers from wheels."""

import contextlib
import gc
import math
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.registry.conftest import accepted
from tests.registry.servers import PostgresServer, S3Server

from vitok.errors import InvalidInput
from vitok.registry import Registry, Tracker
from vitok.registry.metric_store import MetricStore, opened

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tracker(postgres_server: PostgresServer, s3_server: S3Server) -> Iterator[Tracker]:
    """One for all tests here: MLflow takes its seconds to make the tables."""
    pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    database, bucket = postgres_server.database("runs"), s3_server.fresh()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_S3_ENDPOINT_URL", "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE"):
            patch.setenv(name, "x")
            patch.delenv(name)
        # Two at once: one makes the tables, the other waits.
        trackers = [Tracker(database, artifacts=bucket) for _ in range(2)]
        threads = [threading.Thread(target=tracker.make) for tracker in trackers]
        with warnings.catch_warnings():
            # MLflow leaves the connection of its migrations to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            gc.collect()
        assert all(tracker._opened is not None for tracker in trackers)
        yield trackers[0]


def test_addresses_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="s3://"):
        Tracker("postgresql://ann@localhost/runs")
    with pytest.raises(InvalidInput, match="postgresql://"):
        Tracker("mysql://ann:word@localhost/runs", artifacts="s3://runs")
    with pytest.raises(InvalidInput, match="left out"):
        Tracker(tmp_path, artifacts="s3://runs")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(InvalidInput, match="MLFLOW_S3_ENDPOINT_URL"):
        Tracker("postgresql://ann@localhost/runs", artifacts="s3://runs?endpoint=http://127.0.0.1:2")


def test_a_run_and_what_is_read_back(tracker: Tracker) -> None:
    with tracker.run("fraud", name="boosting", params={"leaves": 31}) as run:
        run.log_history("log_loss", [0.31, 0.28, 0.27])
        run.log_metrics({"auc": 0.9, "bad": math.nan}, step=2)
        run.log_artifact("reports/card.md", "# Card")
    found = tracker.recorded(run.run_id)
    assert (found.status, found.params["leaves"], found.metrics["log_loss"]) == ("FINISHED", "31", 0.27)
    assert tracker.history(found, "log_loss").values.tolist() == [0.31, 0.28, 0.27]
    assert [item.name for item in tracker.runs(experiment="fraud", matching="metrics.auc > 0.8")] == ["boosting"]
    files = tracker._client().list_artifacts(run.run_id, "reports")
    assert [file.path for file in files] == ["reports/card.md"]
    info = tracker._client().get_run(run.run_id).info
    assert info.artifact_uri.startswith(f"{tracker.artifact_root}/")
    assert "password" not in repr(tracker)


def test_points_are_those_of_mlflow(tracker: Tracker) -> None:
    """The oracle is MLflow's own log_batch on the same store."""
    from mlflow.entities import Metric

    points = [("loss", 0.5, 1_000, 0), ("loss", 0.4, 2_000, 1), ("loss", 0.4, 2_000, 1), ("loss", 0.6, 1_500, 1)]
    client = tracker._client()
    with tracker.run("points", name="ours") as ours, tracker.run("points", name="theirs") as theirs:
        with contextlib.closing(MetricStore(tracker.uri)) as store:
            store.write(ours.run_id, [*points, ("other", 1.0, 1, 0)])
            store.write(ours.run_id, points)
            store.write(ours.run_id, [])
        client.log_batch(theirs.run_id, [Metric(*point) for point in [*points, ("other", 1.0, 1, 0)]])
        client.log_batch(theirs.run_id, [Metric(*point) for point in points])

    def told(run_id: str) -> tuple[object, object]:
        history = sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(run_id, "loss"))
        return history, client.get_run(run_id).data.metrics

    assert told(ours.run_id) == told(theirs.run_id)
    assert len(told(ours.run_id)[0]) == 3  # type: ignore[arg-type]


def test_another_database_has_no_such_tables(database: str) -> None:
    assert opened(database) is None


def test_the_ledger_is_mirrored(tracker: Tracker, shared: Registry) -> None:
    version = shared.register("fraud", {"model.onnx": b"weights"}, now=1, actor="train")
    shared.ledger.record_gate("fraud", 1, accepted(), now=2, actor="gate")
    shared.ledger.promote("fraud", 1, "Production", reason="r", actor="ann", now=3)
    for _ in range(2):
        tracker.mirror(shared.state("fraud"), packages=shared.location)
    champion = tracker._client().get_model_version_by_alias("fraud", "champion")
    assert (champion.source, champion.tags["vitok.version"]) == (f"{shared.location}/{version.path}", "1")
