"""Calibration, detectors and maturity: what the pages compute of the log, against their definitions."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.console.conftest import START, Home

from vitok import decisions
from vitok.clock import DAY
from vitok.console import curves
from vitok.console.calibration_reading import calibration, grouped
from vitok.console.detector_reading import WISHED, Worse, detectors, kinds, placed
from vitok.console.estimate_reading import estimates
from vitok.console.labelled_reading import label_view, labelled
from vitok.console.maturity_reading import outcomes_maturity
from vitok.console.newest import one_in, taken_rows
from vitok.decision import Outcome
from vitok.errors import NotFound
from vitok.stats import brier, calibration_error, roc_auc, run_length


def test_label_view_is_that_of_the_log(home: Home) -> None:
    # Oracle: decisions.labels over the whole log.
    folder = home.folder / "log" / "outcomes"
    found = label_view(decisions.read(folder)).sort("request_id")
    known = decisions.labels(folder, as_of=2**62, kind="fraud").sort("request_id")
    assert found.equals(known)


def test_label_view_takes_the_answer_that_was_learned_last(tmp_path: Path) -> None:
    def came(request: str, value: float, learned: int, kind: str = "fraud") -> Outcome:
        return Outcome(request_id=request, kind=kind, value=value, event_time=1, ingest_time=learned, source="b")

    with decisions.OutcomeLog(tmp_path) as log:
        # The repeated delivery of the first answer changes nothing.
        log.append([came("a", 1.0, 1), came("b", 0.0, 2), came("a", 0.0, 3), came("a", 1.0, 4), came("c", 1.0, 5, "x")])
    found = label_view(decisions.read(tmp_path)).sort("request_id")
    assert found.equals(decisions.labels(tmp_path, as_of=9, kind="fraud").sort("request_id"))
    assert found["label"].to_list() == [0.0, 0.0]


def test_sample_takes_the_same_requests_of_both_logs(home: Home) -> None:
    log = home.folder / "log"
    assert one_in(log / "decisions", most=1_000) == 4
    made, k = taken_rows(log / "decisions", ["request_id"], one_in=4)
    came, _ = taken_rows(log / "outcomes", ["request_id"], one_in=4)
    assert made is not None
    assert came is not None
    assert k == 4
    assert 600 < made.height < 1_000
    assert set(came["request_id"]) <= set(made["request_id"])
    # Only the newest are looked at.
    last, _ = taken_rows(log / "decisions", ["request_id"], one_in=1, until=10)
    assert last is not None
    assert last["request_id"].to_list() == home.rows["request_id"].tail(10).to_list()


def test_calibration_is_that_of_decisions_with_labels(home: Home) -> None:
    # Oracle: the statistics on the rows themselves.
    seen = calibration(home.folder)
    assert seen.chosen is not None
    rows = decisions.read(home.folder / "log" / "decisions", columns=["request_id", "probability", "model_version"])
    rows = rows.filter((pl.col("model_version") == "fraud/1") & pl.col("request_id").is_in(list(home.labels)))
    p = rows["probability"].to_numpy()
    y = np.array([home.labels[request] for request in rows["request_id"]])
    assert seen.chosen.error.n_obs == len(y)
    assert seen.chosen.error.value == pytest.approx(calibration_error(y, p).value)
    assert seen.chosen.discrimination.value == pytest.approx(roc_auc(y, p).value)
    assert seen.diagram is not None
    assert seen.diagram.score.brier == pytest.approx(brier(y, grouped(p)).value)
    assert [line.version for line in seen.versions] == ["fraud/1"]
    with pytest.raises(NotFound, match="fraud/2"):
        calibration(home.folder, "fraud/2")


def test_groups_keep_the_mean() -> None:
    p = np.random.default_rng(0).beta(1, 50, 20_000)
    found = grouped(p, 100)
    assert len(np.unique(found)) <= 100
    assert found.mean() == pytest.approx(p.mean())
    assert np.abs(found - p).max() < 0.1
    assert grouped(p[:50], 100) is not None
    assert (np.diff(found[np.argsort(p)]) >= 0).all()


def test_days_without_most_of_their_labels_do_not_count(home: Home) -> None:
    found = labelled(home.folder)
    assert found is not None
    assert set(found.known()["event_time"] // DAY - START // DAY) == {0, 1, 2, 3}
    some = dataclasses.replace(
        found, rows=found.rows.with_columns(label=pl.when(pl.int_range(pl.len()) % 2 == 0).then(0.0))
    )
    assert some.known().height == 0


def test_outcomes_maturity_finds_the_delay(home: Home) -> None:
    seen = outcomes_maturity(home.folder)
    (fraud,) = seen.kinds
    assert (fraud.kind, fraud.half_now, fraud.half_before) == ("fraud", 2 * DAY, 2 * DAY)
    assert {age.age: age.arrived for age, _ in fraud.told}[DAY] == pytest.approx(0.0, abs=0.01)
    assert seen.n_labelled == len(home.labels)


@pytest.mark.slow
@pytest.mark.parametrize("worse", ["higher", None])
def test_detectors_run_as_long_as_is_said(worse: Worse) -> None:
    # Oracle: simulation with other random numbers; both intervals hold 95 % of the time.
    for kind in kinds(worse):
        found = run_length(kind.detector, null=lambda rng, n: rng.random(n), n_runs=300, seed=5).arl0
        _, lower, upper = kind.arl0
        assert found.lower <= 1.05 * upper, kind.name
        assert found.upper >= 0.95 * lower, kind.name
        assert kind.arl0[0] > 0.95 * WISHED


def test_detectors_see_a_rise_and_call_it_worse() -> None:
    rng = np.random.default_rng(1)
    learnt, then = rng.beta(1, 50, 300), rng.beta(1, 25, 300)
    places = placed(np.concatenate([rng.beta(1, 50, 200), then]), learnt)
    assert 0.4 < places[:200].mean() < 0.6 < places[200:].mean()
    for kind in kinds("higher")[:2]:
        found = kind.detector.with_threshold(kind.detector.threshold).update_many(places)
        assert found.alarms, kind.name
        assert found.directions[found.changes.index(found.alarms[-1])] == "higher"


def test_detectors_of_a_home(home: Home) -> None:
    seen = detectors(home.folder)
    assert (seen.version, seen.versions) == ("fraud/1", ("fraud/1", "fraud/2"))
    error, probability = seen.streams
    assert len(error.starts) < len(probability.starts)
    rows = decisions.read(home.folder / "log" / "decisions", columns=["event_time", "probability", "model_version"])
    own = rows.filter(pl.col("model_version") == "fraud/1")
    first = own.filter(
        pl.col("event_time").to_physical() // probability.length == probability.starts[0] // probability.length
    )
    assert probability.values[0] == pytest.approx(first["probability"].mean())


def test_estimates_of_a_subject(home: Home) -> None:
    seen = estimates(home.folder)
    assert (seen.subject, seen.metric, seen.n_windows, seen.realised) == ("fraud/1", "average_precision", 8, 6)
    assert seen.grade is not None
    assert seen.grade.coverage.value == pytest.approx(5 / 6)
    assert "realised 0.71 from 100 % of the labels, inside the interval" in str(seen)


@pytest.mark.parametrize(
    ("values", "zero", "ends"),
    [
        ([0.93], False, (0.8, 1.2)),
        ([0.0, 0.0], False, (-0.5, 0.5)),
        ([-0.02, 0.013], True, (-0.02, 0.02)),
        ([float("nan"), 5.0, float("inf")], True, (0.0, 5.0)),
        ([], True, (0.0, 1.0)),
        ([1e-9, 3e-9], False, (1e-9, 3e-9)),
    ],
)
def test_axis_holds_its_values(values: list[float], zero: bool, ends: tuple[float, float]) -> None:
    axis = curves.Axis.around(values, zero=zero)
    assert (axis.low, axis.high) == pytest.approx(ends)
    assert all(0 <= axis.along(value) <= 100 for value in values if np.isfinite(value))


def test_gaps_end_a_curve() -> None:
    nan = float("nan")
    assert curves.line([(0, 1), (1, nan), (2, 3), (3, 4)], "actual").pieces == ("0.00,1.00", "2.00,3.00 3.00,4.00")
    # One window alone is an area that can be seen.
    (band,) = curves.bands([(50, 10, 20), (60, nan, 20)], "actual")
    assert band.points == "49.60,10.00 50.40,10.00 50.40,20.00 49.60,20.00"
    assert curves.times([5]).along(5) == 50.0
