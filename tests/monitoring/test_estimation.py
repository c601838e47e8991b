"""Oracles: labels drawn from known laws; NannyML 0.13.1 on its own car-loan data, where its environment is there."""

import json
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from vitok.clock import DAY
from vitok.errors import Conflict, InvalidInput
from vitok.models.calibrators import IsotonicCalibrator
from vitok.monitoring.density_ratio import density_ratio
from vitok.monitoring.estimation import (
    MulticlassEstimator,
    PerformanceEstimator,
    estimate_from_window,
    estimate_under_shift,
    realised_performance,
)
from vitok.monitoring.profile import ReferenceProfile
from vitok.monitoring.sketches import Sketches
from vitok.stats.binned_performance import ScoreBins

ROOT = Path(__file__).parent.parent.parent
NANNYML = ROOT / ".venv" / "peers" / "nannyml" / "bin" / "python"


def test_a_score_that_is_no_probability_is_calibrated_first() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(0.4, 4, 40_000)
    score, y = np.log(p / (1 - p)) * 3 + 1, rng.random(40_000) < p
    estimator = PerformanceEstimator.fit(score[:20_000], y[:20_000])
    found = estimator.estimate(score[20_000:], flagged=p[20_000:] > 0.3)
    truth = p[20_000:][p[20_000:] > 0.3].mean()
    assert found["precision"].lower < truth < found["precision"].upper
    again = PerformanceEstimator.from_dict(json.loads(json.dumps(estimator.to_dict())))
    assert again.estimate(score[20_000:])["roc_auc"] == found["roc_auc"]


def test_selective_labels_are_weighted_by_their_propensity() -> None:
    rng = np.random.default_rng(1)
    p = rng.beta(0.5, 3, 60_000)
    new = rng.random(60_000) < 0.5
    y = rng.random(60_000) < np.where(new, p, p / 3)
    # Rows of new accounts are mostly blocked, and only a tenth of the blocked pass.
    propensity = np.where(new, 0.1, 1.0)
    seen = rng.random(60_000) < propensity
    naive = PerformanceEstimator.fit(p[seen], y[seen]).estimate(p)["positive_rate"]
    found = PerformanceEstimator.fit(p[seen], y[seen], weight=1 / propensity[seen]).estimate(p)["positive_rate"]
    assert found.lower < y.mean() < found.upper
    assert naive.upper < y.mean()


def shifted(rng: np.random.Generator, n: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    young, score = rng.random(n) < share, rng.beta(1, 3, n)
    return np.column_stack([young, rng.normal(size=n)]), score, rng.random(n) < np.where(young, score, score**2)


def test_weights_follow_a_changed_mix_of_rows() -> None:
    rng = np.random.default_rng(2)
    X, score, y = shifted(rng, 20_000, 0.2)
    now, score_now, y_now = shifted(rng, 10_000, 0.7)
    flagged = score_now > 0.4
    found = estimate_under_shift(
        reference=X,
        reference_score=score,
        reference_y=y,
        current=now,
        current_score=score_now,
        flagged=flagged,
        reference_weight=np.ones(len(y)),
    )
    assert found.reliable
    assert found.ratio.auc.lower > 0.6
    real = {"positive_rate": y_now.mean(), "precision": y_now[flagged].mean()}
    for name, value in real.items():
        weighted, plain = found.performance[name], found.unweighted[name]
        assert abs(weighted.value - value) < 0.35 * abs(plain.value - value)
        assert plain.upper < value < weighted.upper
    assert "effective" in str(found)


def test_without_overlap_it_says_so() -> None:
    rng = np.random.default_rng(3)
    X, score, y = shifted(rng, 4_000, 0.0)
    now = np.column_stack([np.ones(2_000), rng.normal(8, 1, 2_000)])
    found = estimate_under_shift(
        reference=X, reference_score=score, reference_y=y, current=now, current_score=rng.beta(9, 1, 2_000)
    )
    assert found.ratio.auc.value > 0.99
    same = density_ratio(X, shifted(rng, 4_000, 0.0)[0])
    assert same.n_effective > 0.9 * len(X)
    assert same.auc.lower < 0.52


def test_realised_metrics_have_the_names_of_the_estimated_ones() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(6)
    p = rng.beta(0.5, 4, 5_000)
    y, flags = rng.random(5_000) < p, p > 0.3
    cost = np.where(flags, 3.0, 100.0 * y)
    estimator = PerformanceEstimator.fit(p, y)
    said = estimator.estimate(
        p, flagged=flags, forecast=p, cost_if_positive=np.where(flags, 3.0, 100.0), cost_if_negative=3.0 * flags
    )
    known = {one.name: one for one in realised_performance(p, y, flagged=flags, forecast=p, cost=cost)}
    assert set(known) == {one.name for one in said.estimates}
    assert known["f1"].value == pytest.approx(f1_score(y, flags))
    for name, one in known.items():
        assert one.value == pytest.approx(said[name].value, abs=4 * said[name].label_error), name
        assert one.lower <= one.value <= one.upper
    assert np.isnan(realised_performance([0.1], [0], flagged=[0])[1].value)
    with pytest.raises(InvalidInput, match="flagged"):
        realised_performance([0.1], [0], flagged=[0, 1])


def test_hourly_counts_of_the_log_are_enough(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    p = rng.beta(0.3, 5, 30_000)
    y = rng.random(30_000) < p
    profile = ReferenceProfile.fit(["x"], np.zeros((20_000, 1)), p[:20_000], start=0, end=DAY)
    bins = ScoreBins.fit(profile.edges[-1], p[:20_000], y[:20_000])
    now = p[20_000:]
    frame = pl.DataFrame(
        {
            "event_time": np.arange(10_000) * (DAY // 10_000),
            "model_version": ["fraud/1"] * 10_000,
            "probability": now,
            "latency_us": [900] * 10_000,
            "action": ["allow"] * 10_000,
            "route": ["champion"] * 10_000,
            "feature_status": ["fresh"] * 10_000,
            "f_x": np.zeros(10_000),
        }
    )
    sketches = Sketches(tmp_path / "sketches.sqlite")
    sketches.add(frame, profile)
    window = sketches.window("fraud/1", 0, DAY)
    sketches.close()
    assert window is not None
    found = estimate_from_window(bins, profile, window)
    rows = PerformanceEstimator.fit(p[:20_000], y[:20_000]).estimate(now)
    for name in ("positive_rate", "roc_auc", "average_precision", "brier", "log_loss"):
        assert found[name].value == pytest.approx(rows[name].value, abs=rows[name].label_error)
    real = y[20_000:].mean()
    assert found["positive_rate"].lower < real < found["positive_rate"].upper
    other = ReferenceProfile.fit(["x"], np.zeros((20_000, 1)), p[:20_000] / 2, start=0, end=DAY)
    with pytest.raises(Conflict, match="bins"):
        estimate_from_window(bins, other, window)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(InvalidInput, match="score"):
        PerformanceEstimator.fit([[0.1]], [1])
    with pytest.raises(InvalidInput, match="current"):
        estimate_under_shift(
            reference=np.zeros((2, 1)),
            reference_score=[0.1, 0.2],
            reference_y=[0, 1],
            current=[[1.0]],
            current_score=[0.1, 0.2],
        )
    with pytest.raises(InvalidInput, match="ceiling"):
        density_ratio(np.zeros((9, 1)), np.zeros((9, 1)), ceiling=1.0)
    with pytest.raises(InvalidInput, match="estimator"):
        PerformanceEstimator.from_dict({})
    with pytest.raises(InvalidInput, match=r"\(n, k\)"):
        MulticlassEstimator.fit(np.zeros(3), np.zeros(3))


@pytest.mark.slow
@pytest.mark.skipif(not NANNYML.exists(), reason="no environment of NannyML: python -m bench.monitoring.cbpe makes it")
def test_cbpe_is_nannyml_s_on_its_car_loan_data(tmp_path: Path) -> None:
    metrics = ["roc_auc", "average_precision", "f1", "precision", "recall", "specificity", "accuracy"]
    payload = {"what": "car_loan", "metrics": metrics, "chunk": 5_000, "file": str(tmp_path / "car_loan.npz")}
    script = ROOT / "bench" / "monitoring" / "peers" / "nannyml_cbpe.py"
    done = subprocess.run(
        [NANNYML, script], input=json.dumps(payload), capture_output=True, text=True, check=True, timeout=300
    )
    peer = json.loads(done.stdout.splitlines()[-1])["estimates"]
    data = np.load(payload["file"])
    for calibrator in (None, IsotonicCalibrator.fit(data["reference_score"], data["reference_y"])):
        estimator = PerformanceEstimator.fit(data["reference_score"], data["reference_y"], calibrator=calibrator)
        for at in range(10):
            rows = slice(5_000 * at, 5_000 * (at + 1))
            found = estimator.estimate(data["score"][rows], flagged=data["flagged"][rows])
            for metric in metrics:
                assert found[metric].value == pytest.approx(peer[metric][at], abs=1e-3), (metric, at)


def test_rows_that_could_not_be_seen_count_for_the_mix_and_not_twice() -> None:
    rng = np.random.default_rng(4)
    n, m = 12_000, 6_000
    x, score = rng.random(n + m), rng.beta(1, 8, n + m)
    y = rng.random(n + m) < np.clip(score * np.where(x > 0.5, 1.3, 0.7), 0, 1)
    hidden = (score > 0.35) & (rng.random(n + m) > 0.05)
    weight = np.where(hidden, 0.0, np.where(score > 0.35, 20.0, 1.0))
    asked = {"current": x[n:, None], "current_score": score[n:]}
    labels = np.where(hidden, 1 - y, y)[:n].astype(float)
    every = estimate_under_shift(
        reference=x[:n, None],
        reference_score=score[:n],
        reference_y=labels,
        reference_weight=weight[:n],
        **asked,  # type: ignore[arg-type]
    )
    # Nothing has moved between the two, and what is hidden stands in for nothing twice.
    assert every.ratio.auc.value == pytest.approx(0.5, abs=0.03)
    assert every.performance["positive_rate"].value == pytest.approx(y[n:].mean(), rel=0.1)
    turned = estimate_under_shift(
        reference=x[:n, None],
        reference_score=score[:n],
        reference_y=np.where(hidden[:n], 1 - labels, labels),
        reference_weight=weight[:n],
        **asked,  # type: ignore[arg-type]
    )
    assert turned.performance["positive_rate"] == every.performance["positive_rate"]
    seen = ~hidden[:n]
    assert every.n_effective < every.ratio.n_effective < n
    assert every.n_effective <= seen.sum()
    with pytest.raises(InvalidInput, match="reference_y"):
        estimate_under_shift(
            reference=x[:n, None],
            reference_score=score[:n],
            reference_y=labels[1:],
            **asked,  # type: ignore[arg-type]
        )


def test_a_few_rows_that_stand_for_many_decide_nothing_alone() -> None:
    rng = np.random.default_rng(5)
    x, score = rng.random(9_000), rng.beta(1, 8, 9_000)
    y, weight = rng.random(9_000) < score, np.ones(9_000)
    weight[:3] = 500.0
    found = estimate_under_shift(
        reference=x[:6_000, None],
        reference_score=score[:6_000],
        reference_y=y[:6_000],
        reference_weight=weight[:6_000],
        current=x[6_000:, None],
        current_score=score[6_000:],
    )
    # With all of its weight one in twenty of the rows would be all that is known.
    assert found.n_effective > 3_000
    rate = found.performance["positive_rate"]
    assert rate.upper - rate.lower < 0.04
