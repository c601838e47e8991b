"""Runs read back: ours and those of plain MLflow code; the oracle of a history is MLflow's own client (3.17)."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitok.clock import EventClock, parse_time
from vitok.errors import InvalidInput, NotFound
from vitok.registry import Tracker, compare, tracking
from vitok.registry.run_reading import RunRecord, facts

mlflow = pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")


def plain(tracker: Tracker) -> Any:
    return mlflow.MlflowClient(tracking_uri=tracker.uri, registry_uri=tracker.uri)


def test_runs_of_both_kinds_are_listed(tracker: Tracker) -> None:
    clock = EventClock(parse_time("2026-01-01"))
    ours = Tracker(tracker.home, clock=clock)
    with ours.run("fraud", name="first", params={"leaves": 31}) as run:
        run.log_metrics({"auc": 0.9, "loss": 0.3})
    client = plain(tracker)
    other = client.create_run(client.create_experiment("plain"), run_name="theirs")
    client.log_metric(other.info.run_id, "auc", float("nan"))
    client.log_metric(other.info.run_id, "gain", float("-inf"))
    client.log_param(other.info.run_id, "leaves", 63)

    both = tracker.runs()
    assert [found.name for found in both] == ["theirs", "first"]
    assert both.metric_names() == ("auc", "gain", "loss")
    assert math.isnan(both[0].metrics["auc"])
    assert both[0].metrics["gain"] == -math.inf
    assert (both[0].status, both[0].ended, both[0].lasted) == ("RUNNING", None, None)
    assert both[1].started == clock.now()
    assert "first" in str(both)
    assert "leaves = 31" in str(both[1])
    assert json.loads(json.dumps(both[0].to_dict(), allow_nan=False))["metrics"] == {"auc": "nan", "gain": "-inf"}

    assert [found.name for found in tracker.runs(experiment="fraud")] == ["first"]
    assert [found.name for found in tracker.runs(matching="params.leaves = '63'")] == ["theirs"]
    assert len(tracker.runs(most=1)) == 1
    assert tracker.recorded(run.run_id[:8]).name == "first"

    side = compare(list(both))
    assert {line.name: line.values for line in side.params}["leaves"] == ("63", "31")
    assert {line.name: line.differs for line in side.metrics} == {"auc": True, "gain": True, "loss": True}
    json.dumps(side.to_dict(), allow_nan=False)
    with pytest.raises(InvalidInput, match="2 to 20 different"):
        compare([both[0], both[0]])


@pytest.mark.parametrize("known", [True, False])
def test_a_history_is_that_of_mlflow(tracker: Tracker, monkeypatch: pytest.MonkeyPatch, *, known: bool) -> None:
    if not known:
        monkeypatch.setattr(tracking, "opened", lambda uri: None)
    with tracker.run("fraud", name="first") as run:
        run.log_history("loss", np.linspace(1.0, 0.0, 2_000))
    client = plain(tracker)
    client.log_metric(run.run_id, "loss", float("nan"), step=5_000)
    client.log_metric(run.run_id, "loss", float("inf"), step=-3)
    found = tracker.history(run.run_id, "loss")
    oracle = sorted(client.get_metric_history(run.run_id, "loss"), key=lambda point: (point.step, point.timestamp))
    assert found.steps.tolist() == [point.step for point in oracle]
    assert found.times.tolist() == [point.timestamp * 1000 for point in oracle]
    np.testing.assert_array_equal(found.values[1:], [point.value for point in oracle][1:])
    assert found.values[0] == math.inf
    assert str(found) == f"loss of {run.run_id[:8]}: 2002 points, 0 to 1, 2 not finite, last nan"
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_is_not_there_is_said(tracker: Tracker) -> None:
    assert str(tracker.runs()) == "no runs"
    with tracker.run("fraud", name="first") as run:
        run.log_metrics({"auc": 0.9})
    with pytest.raises(NotFound, match="fraud"):
        tracker.runs(experiment="frauds")
    with pytest.raises(InvalidInput, match="condition that MLflow knows"):
        tracker.runs(matching="metrics.auc >")
    with pytest.raises(InvalidInput, match="at least 1"):
        tracker.runs(most=0)
    for wrong in ("", "ffff", "%", "' OR 1 = 1", "0" * 32):
        with pytest.raises(NotFound, match=run.run_id):
            tracker.recorded(wrong)
    with pytest.raises(NotFound, match="auc"):
        tracker.history(run.run_id, "loss")


def test_reading_makes_no_store(tmp_path: Path) -> None:
    assert len(Tracker(tmp_path).runs()) == 0
    with pytest.raises(NotFound):
        Tracker(tmp_path).recorded("abcd")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (
            {
                "vitok.hardware": '{"processor": "Some Chip 3000", "cores": 8, "memory": 34359738368, "bits": 64}',
                "vitok.platform": "Linux-6.1-x86_64",
                "vitok.lock_digest": "ab" * 32,
                "vitok.git": "none",
            },
            {
                "hardware": "Some Chip 3000, 8 cores, 32 GiB",
                "platform": "Linux-6.1-x86_64",
                "lock": "abababababab",
                "commit": "none: no git repository",
            },
        ),
        ({"vitok.hardware": '{"processor": "", "cores": null, "memory": null}'}, {}),
        ({"vitok.hardware": "a laptop"}, {"hardware": "a laptop"}),
        ({"vitok.hardware": "[4]"}, {"hardware": "[4]"}),
        ({"mlflow.source.git.commit": "c" * 40, "vitok.git": "changed"}, {"commit": f"{'c' * 12} and unsaved changes"}),
        ({"mlflow.source.git.commit": "c" * 40}, {"commit": "c" * 12}),
        ({}, {}),
    ],
)
def test_what_is_said_of_how_a_run_came_about(tags: dict[str, str], expected: dict[str, str]) -> None:
    run = RunRecord(
        run_id="r",
        name="r",
        experiment="e",
        status="FINISHED",
        started=None,
        ended=None,
        params={},
        metrics={},
        tags=tags,
    )
    assert facts(run) == {"status": "FINISHED"} | expected
