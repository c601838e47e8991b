"""Runs, versions and packages of a home that go to PostgreSQL and S3, both real servers from wheels."""

import gc
import math
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.engines.servers import until
from tests.registry.conftest import accepted
from tests.registry.servers import PostgresServer, S3Server
from typer.testing import CliRunner, Result

from vitok.console.run_commands import run_app
from vitok.engines.s3 import Bucket
from vitok.errors import Conflict, StoreError
from vitok.registry import DataSnapshot, Registry, Tracker, attachment_of, copy_home
from vitok.registry.run_copying import MARK, Rows, _Copier

ROUNDS = 200


@pytest.fixture(autouse=True)
def _endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_S3_ENDPOINT_URL", "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def made(postgres_server: PostgresServer, s3_server: S3Server) -> str:
    """MLflow takes its seconds to make its tables: made once, each test takes a copy of the database."""
    pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    address = postgres_server.database("template_runs")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", s3_server.endpoint)
        # MLflow leaves the connection of its migrations to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        tracker = Tracker(address, artifacts=f"s3://models/made?endpoint={s3_server.endpoint}")
        tracker.make()
        tracker._opened._tracking_client.store.engine.dispose()
        tracker._opened = None
        gc.collect()
    postgres_server.cut("template_runs")
    return "template_runs"


@pytest.fixture
def target(made: str, postgres_server: PostgresServer) -> str:
    return postgres_server.database("copied", like=made)


@pytest.fixture
def home(empty_store: Path, tmp_path: Path) -> Path:
    """A home with versions, and with runs of ours and of plain MLflow code."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, LoggedModelOutput

    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    tracker = Tracker(home)
    data = {"train": DataSnapshot(digest="5d41", rows=120_000)}
    for number in range(3):
        with tracker.run("fraud", name=f"run {number}", params={"leaves": 31 + number}, data=data) as run:
            run.log_history("loss", [1.0 / (step + number + 1) for step in range(ROUNDS)])
            run.log_artifact("reports/card.md", f"# Card {number}: größer")
    client = tracker._client()
    plain = client.create_run(client.create_experiment("plain", tags={"team": "risk"}), run_name="ünïcode\x1f")
    one = plain.info.run_id
    client.log_metric(one, "bad", math.nan, step=1)
    client.log_metric(one, "large", math.inf)
    client.log_param(one, "empty", "")
    dataset = Dataset(name="d", digest="1", source_type="local", source="{}")
    client.log_inputs(one, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train")])])
    model = client.create_logged_model(plain.info.experiment_id, name="forest", source_run_id=one, params={"n": "3"})
    client.log_outputs(one, [LoggedModelOutput(model.model_id, 0)])
    client.log_inputs(one, models=[LoggedModelInput(model.model_id)])
    client.set_terminated(one)
    client.create_run(plain.info.experiment_id, run_name="killed")
    deleted = client.create_run(plain.info.experiment_id, run_name="deleted")
    client.set_terminated(deleted.info.run_id)
    client.delete_run(deleted.info.run_id)
    registry = Registry(home)
    for number in (1, 2):
        registry.register("fraud", {"model.onnx": bytes([number])}, now=number, actor="train", run_id=run.run_id)
    registry.ledger.record_gate("fraud", 1, accepted(), now=3, actor="gate")
    registry.ledger.promote("fraud", 1, "Production", reason="first", actor="ann", now=4)
    registry.close()
    return home


class Place:
    """A database with its buckets."""

    def __init__(self, database: str, server: S3Server, folder: Path) -> None:
        self.database, self.packages, self.artifacts = database, server.fresh(), server.fresh()
        self.tracker = Tracker(database, artifacts=self.artifacts)
        self.bucket = Bucket(self.artifacts)
        self.registry = Registry(database, packages=self.packages, cache=folder / "cache")

    def take(self, home: Path, **more: bool):
        return copy_home(home, self.database, registry=self.registry, tracker=self.tracker, bucket=self.bucket, **more)


@pytest.fixture
def place(target: str, s3_server: S3Server, tmp_path: Path) -> Iterator[Place]:
    place = Place(target, s3_server, tmp_path)
    yield place
    place.registry.close()


def same(home: Path, place: Place, names: set[str]) -> None:
    """Compares by what MLflow reads from both stores."""
    here, there = Tracker(home), place.tracker
    runs = {run.run_id: run for run in here.runs() if run.name in names}
    assert {run.name for run in runs.values()} == names
    copied = {run.run_id: run for run in there.runs()}
    assert set(copied) == set(runs)
    for key, run in runs.items():
        other = copied[key]
        kept = ("name", "experiment", "status", "params", "started", "ended")
        assert [getattr(other, name) for name in kept] == [getattr(run, name) for name in kept]
        assert set(other.metrics) == set(run.metrics)
        for metric in run.metrics:
            one, two = here.history(run, metric), there.history(other, metric)
            assert repr(one.values.tolist()) == repr(two.values.tolist())
            assert one.steps.tolist() == two.steps.tolist()
            assert one.times.tolist() == two.times.tolist()
        files = {file.path for file in here._client().list_artifacts(key, "reports")}
        assert {file.path for file in there._client().list_artifacts(key, "reports")} == files
        tags = [tracker._client().get_run(key).data.tags for tracker in (here, there)]
        assert {name: text for name, text in tags[1].items() if name != MARK} == tags[0]


@pytest.mark.slow
def test_a_home_is_copied_whole_and_once(home: Path, place: Place, tmp_path: Path) -> None:
    done = place.take(home)
    assert done.runs is not None
    assert done.ledger is not None
    assert (done.n_packages, done.runs.n_runs, done.runs.n_before, done.runs.n_models) == (2, 5, 0, 1)
    assert done.runs.n_points == 3 * ROUNDS + 2
    assert done.ledger.n_entries == 4
    assert any("1 runs that say they are still going on" in line for line in done.left)
    same(home, place, {"run 0", "run 1", "run 2", "ünïcode\x1f"})
    client = place.tracker._client()
    found = next(run for run in place.tracker.runs() if run.experiment == "plain")
    whole = client.get_run(found.run_id)
    assert [item.dataset.name for item in whole.inputs.dataset_inputs] == ["d"]
    assert [tag.value for item in whole.inputs.dataset_inputs for tag in item.tags] == ["train"]
    assert client.get_logged_model(whole.outputs.model_outputs[0].model_id).params == {"n": "3"}
    experiments = [tracker._client().get_experiment_by_name("plain") for tracker in (Tracker(home), place.tracker)]
    assert experiments[1].tags["team"] == "risk"
    assert experiments[1].creation_time == experiments[0].creation_time
    # Its own run is named by the version, and MLflow shows the stages.
    assert (
        client.get_model_version_by_alias("fraud", "champion").run_id == place.registry.state("fraud").version(1).run_id
    )
    own = Registry(home)
    assert own.ledger.verify().head == place.registry.ledger.verify().head
    assert own.load("fraud").bytes("model.onnx") == place.registry.load("fraud").bytes("model.onnx") == b"\1"
    own.close()
    # The same again finds nothing to do, also where others have gone on there.
    client.set_tag(found.run_id, "note", "seen")
    place.registry.ledger.note("fraud", "goes on there", actor="ann", now=9)
    with place.tracker.run("fraud", name="new"):
        pass
    again = place.take(home)
    assert again.runs is not None
    assert (again.runs.n_runs, again.runs.n_before) == (0, 5)
    assert again.n_files == done.n_files > 3
    taken = place.take(home, unfinished=True)
    assert taken.runs is not None
    assert (taken.runs.n_runs, taken.runs.n_before) == (1, 5)
    assert "5 of them before" in str(taken)


@pytest.mark.slow
def test_another_home_comes_to_the_runs_and_not_to_the_ledger(home: Path, place: Place, tmp_path: Path) -> None:
    place.take(home)
    other = tmp_path / "other"
    other.mkdir()
    tracker = Tracker(other)
    with tracker.run("fraud", name="elsewhere") as run:
        run.log_metrics({"auc": 0.9})
    done = copy_home(other, place.database, tracker=place.tracker, bucket=place.bucket)
    assert done.ledger is None
    assert "elsewhere" in {found.name for found in place.tracker.runs(experiment="fraud")}
    registry = Registry(other)
    registry.register("shop", {"model.onnx": b"1"}, now=1, actor="train")
    registry.close()
    with pytest.raises(Conflict, match="two ledgers cannot become one"):
        place.take(other)
    assert place.registry.ledger.models() == ("fraud",)


@pytest.mark.slow
def test_nothing_is_written_over(home: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.take(home)
    tracker = Tracker(home)
    changed = next(run.run_id for run in tracker.runs() if run.name == "run 1")
    tracker._client().set_tag(changed, "note", "of the home")
    with pytest.raises(Conflict, match=f"run {changed}"):
        place.take(home)
    assert "note" not in place.tracker._client().get_run(changed).data.tags
    tracker._client().delete_tag(changed, "note")
    place.take(home)
    card = next((home / "mlartifacts").rglob("card.md"))
    card.write_text("# another")
    with pytest.raises(Conflict, match=r"card\.md is there already"):
        place.take(home)


@pytest.mark.slow
def test_what_is_read_back_is_compared(home: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = _Copier._fitted

    def bent(self: _Copier, there: Any, table: str, rows: Rows, numbers: Mapping[int, int]) -> Rows:
        changed = {"value": 0.5} if table == "metrics" else {}
        return [row | changed for row in fitted(self, there, table, rows, numbers)]

    with monkeypatch.context() as patch:
        patch.setattr(_Copier, "_fitted", bent)
        with pytest.raises(StoreError, match="read back"):
            place.take(home)
    assert len(place.tracker.runs()) == 0
    assert place.registry.ledger.catch_up() == 0
    assert place.take(home).ledger is not None


@pytest.mark.slow
def test_a_copy_that_is_killed_goes_on(home: Path, place: Place) -> None:
    for number in range(6):
        with Tracker(home).run("fraud", name=f"more {number}") as run:
            run.log_history("loss", [float(step) for step in range(8_000)])
    command = [sys.executable, "-m", "vitok", "runs", "copy", "--home", str(home), "--to", place.database]
    command += ["--packages", place.packages, "--artifacts", place.artifacts]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        until(lambda: len(place.tracker.runs()) or child.poll() is not None)
        child.send_signal(signal.SIGKILL)
    began = len(place.tracker.runs(most=1000))
    assert began >= 1
    done = place.take(home)
    assert done.runs is not None
    assert done.runs.n_runs + done.runs.n_before == 11
    assert done.runs.n_before >= began
    assert done.runs.n_points == 3 * ROUNDS + 2 + 6 * 8_000
    assert done.ledger is not None


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(run_app, [str(item) for item in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.slow
def test_by_command_and_the_home_goes_by_it(home: Path, place: Place) -> None:
    given = ("--to", place.database, "--artifacts", place.artifacts)
    without = run("copy", "--home", home, *given)
    assert (without.exit_code, "--packages" in without.stderr) == (2, True)
    assert attachment_of(home) is None
    done = run("copy", "--home", home, *given, "--packages", place.packages, "--attach")
    assert done.exit_code == 0, done.output
    assert "2 packages; ledger intact: 4 entries" in done.stdout
    assert "goes by" in done.stdout
    assert Tracker(home).database == place.database
    registry = Registry(home)
    assert registry.register("fraud", {"model.onnx": b"3"}, now=9, actor="train").version == 3
    registry.close()
    listed = run("list", "--home", home)
    assert "run 0" in listed.stdout


def test_addresses_that_do_not_fit(tmp_path: Path) -> None:
    wrong = run("copy", "--home", tmp_path, "--to", "mysql://ann:word@localhost/runs", "--artifacts", "s3://runs")
    assert (wrong.exit_code, "postgresql://" in wrong.stderr, "word" in wrong.stderr) == (2, True, False)
    wrong = run("copy", "--home", tmp_path, "--to", "postgresql://ann@localhost/runs", "--artifacts", "runs")
    assert (wrong.exit_code, "--artifacts" in wrong.stderr) == (2, True)
