"""What was tracked is read back with MLflow's own client (mlflow-skinny 3.17), the oracle of the format."""

import json
import math
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from vitok.clock import EventClock
from vitok.errors import InvalidInput, MissingExtra, StoreError
from vitok.registry import DataSnapshot, Registry, TrackedRun, Tracker, at_least, evaluate, mlflow_client
from vitok.registry import tracking as module
from vitok.stats.results import Estimate

mlflow = pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
ACCEPTED = evaluate([at_least("x", 1, 0)])


def client(tracker: Tracker) -> Any:
    return mlflow.MlflowClient(tracking_uri=tracker.uri, registry_uri=tracker.uri)


def artifacts(tracker: Tracker, run: TrackedRun) -> Path:
    return tracker.artifacts / run.run_id / "artifacts"


def test_a_run_is_what_was_logged(tracker: Tracker) -> None:
    known = {"amount": {"nulls": 0.0, "mean": 2.5, "q1": None}}
    data = {"train": DataSnapshot(digest="abc", rows=100, statistics=known)}
    with tracker.run(
        "fraud",
        name="boosting",
        params={"leaves": 31, "names": ["a"]},
        tags={"team": "x"},
        seeds={"split": 7},
        data=data,
    ) as run:
        estimate = Estimate(name="ap", value=0.6, lower=0.5, upper=0.7, n_obs=10)
        run.log_metrics({"roc_auc": 0.9, "ap": estimate, "half": cast("float", np.float32(0.5))})
        run.log_history("loss", np.linspace(1, 0, 5))
        run.log_artifact("reports/card.md", "# Card")
        run.log_artifact("bytes.bin", b"\x00")
        run.log_artifact("x.json", {"a": 1})
    read = client(tracker).get_run(run.run_id)
    assert read.info.status == "FINISHED"
    assert read.info.run_name == "boosting"
    assert read.data.params == {
        "leaves": "31",
        "names": '["a"]',
        "seed.split": "7",
        "data.train.digest": "abc",
        "data.train.rows": "100",
    }
    assert read.data.metrics == {
        "roc_auc": 0.9, "ap": 0.6, "ap_lower": 0.5, "ap_upper": 0.7, "half": 0.5, "loss": 0.0
    }  # fmt: skip
    history = client(tracker).get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.75), (2, 0.5), (3, 0.25), (4, 0.0)]
    assert read.data.tags["team"] == "x"
    assert read.data.tags["vitok.packages_digest"]
    assert (artifacts(tracker, run) / "reports" / "card.md").read_text() == "# Card"
    assert json.loads((artifacts(tracker, run) / "data.train.statistics.json").read_text()) == known
    assert json.loads((artifacts(tracker, run) / "provenance" / "environment.json").read_text())["packages"]["numpy"]


def test_git_is_recorded_and_its_absence_too(tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with tracker.run("fraud", name="a", source=tmp_path) as run:
        pass
    assert client(tracker).get_run(run.run_id).data.tags["vitok.git"] == "none"
    code = tmp_path / "code"
    code.mkdir()
    (code / "a").write_text("1\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null"]
    for arguments in (["init", "-qb", "main"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], cwd=code, check=True)
    (code / "a").write_text("2\n")
    with tracker.run("fraud", name="b", source=code) as run:
        pass
    tags = client(tracker).get_run(run.run_id).data.tags
    assert tags["vitok.git"] == "changed"
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags["mlflow.source.git.branch"] == "main"
    assert "+2" in (artifacts(tracker, run) / "provenance" / "git.diff").read_text()


def test_numbers_that_are_none_are_marked_not_stored(tracker: Tracker) -> None:
    with tracker.run("fraud", name="x") as run:
        run.log_metrics({"auc": math.nan, "loss": math.inf, "good": 1.0})
        run.log_history("loss", [1.0, math.nan, -math.inf])
        run.log_history("long", [math.nan] * 1000)
    read = client(tracker).get_run(run.run_id)
    assert read.data.metrics == {"good": 1.0, "loss": 1.0}
    assert read.data.tags["not_finite.auc"] == "nan at step 0"
    assert read.data.tags["not_finite.loss"] == "inf at step 0; nan at step 1; -inf at step 2"
    assert read.data.tags["not_finite.long"].endswith("and 980 more")


def test_batches_stay_within_the_limits_of_mlflow(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int, int]] = []
    with tracker.run("fraud", name="x") as run:
        real = run._client.log_batch

        def log_batch(run_id: str, metrics: list[Any], params: list[Any], tags: list[Any]) -> None:
            sizes.append((len(metrics), len(params), len(tags)))
            real(run_id, metrics, params, tags)

        monkeypatch.setattr(run._client, "log_batch", log_batch)
        run.log_params({f"p{i}": i for i in range(250)})
        run.set_tags({f"t{i}": str(i) for i in range(150)})
        run.log_history("loss", range(2500))
    assert all(metrics + params + tags <= 1000 and params <= 100 and tags <= 100 for metrics, params, tags in sizes)
    assert len(sizes) <= 6
    assert len(client(tracker).get_run(run.run_id).data.params) == 250
    points = client(tracker).get_metric_history(run.run_id, "loss")
    assert sorted(point.value for point in points) == list(range(2500))


def test_how_a_run_ends(tracker: Tracker) -> None:
    with pytest.raises(ValueError, match="broken"), tracker.run("fraud", name="x") as failed:  # noqa: PT012
        failed.log_metrics({"a": 1.0})
        raise ValueError("broken")
    with pytest.raises(KeyboardInterrupt), tracker.run("fraud", name="y") as killed:
        raise KeyboardInterrupt
    read = client(tracker).get_run(failed.run_id)
    assert read.info.status == "FAILED"
    assert read.data.tags["error"] == "ValueError: broken"
    assert read.data.metrics == {"a": 1.0}
    assert client(tracker).get_run(killed.run_id).info.status == "KILLED"
    failed.end()
    with pytest.raises(StoreError, match="has ended"):
        failed.log_metrics({"a": 1})
    with pytest.raises(StoreError, match="has ended"):
        failed.log_params({})
    with pytest.raises(StoreError, match="has ended"):
        failed.log_artifact("a", "x")


def test_times_come_from_the_clock(tracker: Tracker) -> None:
    clock = EventClock(5_000_000)
    timed = Tracker(tracker.home, clock=clock)
    with timed.run("fraud", name="x") as run:
        clock.advance(7_000_000)
        run.log_metrics({"a": 1.0})
        clock.advance(9_000_000)
    read = client(tracker).get_run(run.run_id)
    assert (read.info.start_time, read.info.end_time) == (5000, 9000)
    assert client(tracker).get_metric_history(run.run_id, "a")[0].timestamp == 7000


def test_values_that_mlflow_would_cut_or_refuse(tracker: Tracker) -> None:
    with tracker.run("fraud", name="x") as run:
        run.log_params({"long": "x" * 7000, "same": 1})
        run.log_params({"same": 1})
        with pytest.raises(InvalidInput, match=r"params\[same\]"):
            run.log_params({"same": 2})
        with pytest.raises(InvalidInput, match="at most 8000"):
            run.set_tags({"t": "x" * 9000})
        for name in ("card_precision@100", "", "/a", "a//b", "../a", "a/../b", "x" * 300):
            with pytest.raises(InvalidInput, match="name"):
                run.log_metrics({name: 1.0})
        for name in ("/etc/passwd", "../x", "a/../../x"):
            with pytest.raises(InvalidInput, match="artifact"):
                run.log_artifact(name, "x")
        with pytest.raises(InvalidInput, match="JSON"):
            run.log_artifact("x.json", {"a": math.nan})
    assert (artifacts(tracker, run) / "params" / "long.txt").read_text() == "x" * 7000
    assert (
        client(tracker).get_run(run.run_id).data.params["long"] == "7000 characters, see the artifact params/long.txt"
    )


def test_mirror_of_the_ledger(tracker: Tracker) -> None:
    registry = Registry(tracker.home)
    ledger = registry.ledger
    with tracker.run("fraud", name="x") as run:
        pass
    tracker.mirror(registry.state("fraud"), packages=registry.packages)
    for run_id in (run.run_id, None, "no such run"):
        version = registry.register("fraud", {"model.onnx": b"w"}, now=1, actor="a", run_id=run_id)
        ledger.record_gate("fraud", version.version, ACCEPTED, now=1, actor="a")

    def aliases() -> dict[str, int]:
        tracker.mirror(registry.state("fraud"), packages=registry.packages)
        found = client(tracker).get_registered_model("fraud").aliases
        versions = {alias: client(tracker).get_model_version("fraud", str(v)) for alias, v in found.items()}
        return {alias: int(version.tags["vitok.version"]) for alias, version in versions.items()}

    who: dict[str, Any] = {"reason": "r", "actor": "a", "now": 2}
    assert aliases() == {}
    ledger.promote("fraud", 1, "Production", **who)
    assert aliases() == {"champion": 1}
    ledger.promote("fraud", 3, "Staging", **who)
    assert aliases() == {"champion": 1, "challenger": 3}
    ledger.start_canary("fraud", 2, 0.1, **who)
    assert aliases() == {"champion": 1, "challenger": 2}
    ledger.promote("fraud", 2, "Production", **who)
    assert aliases() == {"champion": 2, "challenger": 3}
    ledger.promote("fraud", 3, "Archived", **who)
    assert aliases() == aliases() == {"champion": 2}
    ledger.rollback("fraud", **who)
    assert aliases() == {"champion": 1}
    found = client(tracker).search_model_versions("name = 'fraud'")
    assert sorted((int(v.tags["vitok.version"]), v.tags["vitok.stage"], v.run_id or None) for v in found) == [
        (1, "Production", run.run_id),
        (2, "Archived", None),
        (3, "Archived", None),
    ]
    champion = client(tracker).get_model_version_by_alias("fraud", "champion")
    assert champion.source == (registry.packages / "fraud" / "1").as_uri()
    registry.close()


def test_two_trackers_on_one_store(tracker: Tracker) -> None:
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for i in range(3):
                with Tracker(tracker.home).run("same", name=f"{name}{i}") as run:
                    run.log_metrics({"a": float(i)})
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    experiment = client(tracker).get_experiment_by_name("same")
    assert len(client(tracker).search_runs([experiment.experiment_id])) == 6


def test_a_deleted_experiment(tracker: Tracker) -> None:
    with tracker.run("old", name="x"):
        pass
    client(tracker).delete_experiment(client(tracker).get_experiment_by_name("old").experiment_id)
    with pytest.raises(InvalidInput, match="mlflow experiments restore"):
        tracker.run("old", name="y")


def test_a_new_store_is_whole_in_wal_and_made_once(empty_store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = empty_store.stat().st_mtime_ns
    Tracker.prepare(empty_store.parent)
    assert empty_store.stat().st_mtime_ns == before
    connection = sqlite3.connect(empty_store)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert sorted(path.name for path in empty_store.parent.glob("*unfinished*")) == []


PREPARE = """
import sys, threading
from vitok.registry import Tracker
threads = [threading.Thread(target=Tracker.prepare, args=(sys.argv[1],)) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
with Tracker(sys.argv[1]).run("fraud", name="x") as run:
    run.log_metrics({"a": 1.0})
import os, mlflow
from mlflow.telemetry import get_telemetry_client
assert get_telemetry_client() is None
assert mlflow.active_run() is None
"""


@pytest.mark.slow
def test_first_start_by_two_processes_and_two_threads_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CI", "PYTEST_CURRENT_TEST", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mlflow-unfinished.db").write_text("left by a killed process")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE, str(tmp_path / "home")],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0] for process in processes] == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    tracker = Tracker(tmp_path / "home")
    experiment = client(tracker).get_experiment_by_name("fraud")
    assert len(client(tracker).search_runs([experiment.experiment_id])) == 2


def test_a_store_that_cannot_be_used(tmp_path: Path, empty_store: Path) -> None:
    (tmp_path / "mlflow.db").write_text("hello " * 1000)
    with pytest.raises(StoreError, match="mlflow db upgrade"):
        Tracker(tmp_path).run("fraud", name="x")
    newer = tmp_path / "newer"
    newer.mkdir()
    shutil.copy(empty_store, newer / "mlflow.db")
    connection = sqlite3.connect(newer / "mlflow.db")
    connection.execute("UPDATE alembic_version SET version_num = 'unknown'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="mlflow db upgrade"):
        Tracker(newer).run("fraud", name="x")


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "alembic", None)
    with pytest.raises(MissingExtra, match=r"vitok\[mlflow\]"):
        mlflow_client.import_mlflow()
    with pytest.raises(MissingExtra):
        module.Tracker(tmp_path).run("fraud", name="x")


def test_importing_the_room_does_not_import_mlflow() -> None:
    code = (
        "import sys, vitok.registry; print([m for m in ('mlflow', 'sqlalchemy', 'numba', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def points(tracker: Tracker, run: TrackedRun, name: str = "a") -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client(tracker).get_metric_history(run.run_id, name))


def test_what_is_logged_is_written_beside_the_program(tracker: Tracker) -> None:
    with tracker.run("fraud", name="x", flush_seconds=0.01) as run:
        run.log_metrics({"a": 1.0}, step=3)
        for _ in range(1000):
            if points(tracker, run):
                break
            threading.Event().wait(0.01)
        assert points(tracker, run) == [(3, 1.0)]


def test_the_latest_is_the_largest_by_step_and_copies_count_once(tracker: Tracker) -> None:
    clock = EventClock(1_000)
    with Tracker(tracker.home, clock=clock).run("fraud", name="x") as run:
        for step, value in ((5, 1.0), (2, 9.0), (5, 1.0)):
            run.log_metrics({"a": value}, step=step)
        run.flush()
        run.log_metrics({"a": 7.0}, step=4)
        run.log_metrics({"a": 1.0}, step=5)
    assert points(tracker, run) == [(2, 9.0), (4, 7.0), (5, 1.0)]
    assert client(tracker).get_run(run.run_id).data.metrics == {"a": 1.0}


def test_tables_of_another_shape_are_written_by_mlflow_itself(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitok.registry import metric_store

    monkeypatch.setitem(metric_store._COLUMNS, "metrics", {"key", "value"})
    assert metric_store.opened(tracker.uri) is None
    assert metric_store.opened("mysql://localhost/x") is None
    with tracker.run("fraud", name="x") as run:
        run.log_history("a", range(1_000))
    assert [step for step, _ in points(tracker, run)] == list(range(1_000))


def test_a_store_that_fails_for_a_while_loses_nothing(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracker.run("fraud", name="x", flush_seconds=60)
    real, broken = run._write_points, StoreError("disk is full")

    def fail(_: Any) -> None:
        raise broken

    monkeypatch.setattr(run, "_write_points", fail)
    run.log_history("a", range(10))
    with pytest.raises(StoreError, match="disk is full"):
        run.flush()
    monkeypatch.setattr("vitok.registry.runs._MOST_POINTS", 10)
    with pytest.raises(StoreError, match="disk is full"):
        run.log_metrics({"a": 10.0}, step=10)
    monkeypatch.setattr(run, "_write_points", real)
    run.log_metrics({"a": 11.0}, step=11)
    run.end()
    assert [step for step, _ in points(tracker, run)] == list(range(12))


def test_a_checkpoint_comes_after_its_metrics(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "w.bin").write_bytes(b"w")
    with tracker.run("fraud", name="x", flush_seconds=60) as run:
        run.log_checkpoint("weights.bin", b"1", step=10, metrics={"a": 0.5})
        assert points(tracker, run) == [(10, 0.5)]
        run.log_checkpoint("state", tmp_path / "state", step=20)
        with pytest.raises(InvalidInput, match="step"):
            run.log_checkpoint("weights.bin", b"1", step=-1)
        with pytest.raises(InvalidInput, match="name"):
            run.log_checkpoint("../weights.bin", b"1", step=1)
    folder = artifacts(tracker, run) / "checkpoints"
    assert (folder / "0000000010" / "weights.bin").read_bytes() == b"1"
    assert (folder / "0000000020" / "state" / "w.bin").read_bytes() == b"w"


KILLED = """
import os, signal, sys, time
from vitok.registry import Tracker
run = Tracker(sys.argv[1]).run("fraud", name="x", flush_seconds=0.2)
print(run.run_id, flush=True)
began = time.monotonic()
for step in range(10**9):
    while time.monotonic() < began + step / 20_000:
        pass
    run.log_metrics({"a": float(step)}, step=step)
    if step % 100 == 0:
        print(step, time.monotonic(), flush=True)
"""

LEFT = """
import os, sys
from vitok.errors import StoreError
from vitok.registry import Tracker
run = Tracker(sys.argv[1]).run("fraud", name="x", flush_seconds=60)
run.log_metrics({"a": 1.0})
child = os.fork()
if child == 0:
    run.end()
    try:
        run.log_metrics({"a": 2.0}, step=1)
    except StoreError:
        os._exit(7)
print(run.run_id, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_a_killed_run_keeps_all_up_to_some_step(tracker: Tracker) -> None:
    told: list[tuple[int, float]] = []
    command = [sys.executable, "-c", KILLED, str(tracker.home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        for line in process.stdout:
            # The last line may be cut in two.
            step, _, at = line.partition(" ")
            if not line.endswith("\n"):
                break
            told.append((int(step), float(at)))
            if told[-1][1] - told[0][1] > 4.0:
                process.kill()
    kept = {point.step for point in client(tracker).get_metric_history(run_id, "a")}
    assert kept == set(range(len(kept)))
    # Twenty windows have passed; how much of the last is lost is measured by bench/registry/tracking.py.
    assert kept


@pytest.mark.slow
def test_a_run_that_nobody_ended_is_written_at_the_exit_and_not_by_a_fork(tracker: Tracker) -> None:
    done = subprocess.run([sys.executable, "-c", LEFT, str(tracker.home)], capture_output=True, text=True, check=True)
    run_id, child = done.stdout.split()
    assert child == "7"
    assert [point.value for point in client(tracker).get_metric_history(run_id, "a")] == [1.0]
    assert client(tracker).get_run(run_id).info.status == "RUNNING"
