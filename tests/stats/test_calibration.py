"""Calibration. Oracles: scikit-learn 1.9, hand computation, simulation of perfect models."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from vitok.errors import InvalidInput
from vitok.stats import (
    brier,
    brier_decomposition,
    calibration_error,
    ece_equal_mass,
    ece_equal_width,
    isotonic_means,
    log_loss,
    reliability_curve,
    spiegelhalter,
)


def perfect(n: int, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    p = rng.uniform(size=n)
    return rng.uniform(size=n) < p, p


def test_scores_equal_sklearn() -> None:
    y, p = perfect(500, 0)
    assert brier(y, p).value == pytest.approx(brier_score_loss(y, p), rel=1e-12)
    assert log_loss(y, p).value == pytest.approx(sklearn_log_loss(y, p), rel=1e-12)
    losses = (p - y) ** 2
    half = 1.9647 * losses.std(ddof=1) / math.sqrt(500)
    assert brier(y, p).upper == pytest.approx(losses.mean() + half, rel=1e-4)


def test_log_loss_of_a_certain_mistake_is_finite() -> None:
    assert log_loss([1], [0.0]).value == pytest.approx(-math.log(1e-15))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=1, max_size=50))
@settings(max_examples=60, deadline=None)
def test_decomposition_adds_up_and_is_isotonic(rows: list[tuple[bool, int]]) -> None:
    y, p = np.array([row[0] for row in rows]), np.array([row[1] / 10 for row in rows])
    parts = brier_decomposition(y, p)
    assert parts.miscalibration - parts.discrimination + parts.uncertainty == pytest.approx(parts.brier, abs=1e-12)
    assert min(parts.miscalibration, parts.discrimination, parts.uncertainty) >= -1e-12
    recalibrated = IsotonicRegression().fit(p, y).predict(p)
    assert parts.brier - parts.miscalibration == pytest.approx(brier_score_loss(y, recalibrated), abs=1e-9)


def test_isotonic_means_pool_ties_by_weight() -> None:
    x, means, weights = isotonic_means(np.array([2.0, 1.0, 2.0]), np.array([1.0, 0.0, 0.0]), np.array([3.0, 1.0, 1.0]))
    assert (x.tolist(), means.tolist(), weights.tolist()) == ([1.0, 2.0], [0.0, 0.75], [1.0, 4.0])


def test_debiased_error_by_hand() -> None:
    # Bins at 0.2 (rate 0.2) and 0.8 (rate 0.2), 50 rows each; noise 0.16 / 49 in both.
    y, p = np.tile([1, 0, 0, 0, 0], 20), np.repeat([0.2, 0.8], 50)
    squared = 0.5 * (0 - 0.16 / 49) + 0.5 * (0.36 - 0.16 / 49)
    found = calibration_error(y, p)
    assert found.value == pytest.approx(math.sqrt(squared), rel=1e-12)
    assert found.n_bins == 2
    assert found.lower < found.value < found.upper


def test_equal_width_and_mass_by_hand() -> None:
    y, p = [0, 0, 1, 1, 1], [0.05, 0.15, 0.35, 1.0, 1.0]
    # Width 0.1: gaps 0.05, 0.15, 0.65, 0 with weights 1, 1, 1, 2 of 5.
    assert ece_equal_width(y, p, n_bins=10).value == pytest.approx(0.85 / 5)
    # Mass with edges 0.15 and 1.0 in thirds: {0.05}, {0.15, 0.35}, {1, 1}.
    found = ece_equal_mass(y, p, n_bins=3)
    assert found.value == pytest.approx((0.05 + 2 * 0.25) / 5)
    assert found.n_bins == 3


def test_plain_errors_of_a_perfect_model_are_their_null_mean_and_the_debiased_is_not() -> None:
    # The bias of 0.119 at n = 200 and 15 bins depends on the probabilities; here they are uniform.
    found = [[f(*perfect(200, seed)) for f in (ece_equal_width, ece_equal_mass)] for seed in range(150)]
    for values in zip(*found, strict=True):
        mean = np.mean([value.value for value in values])
        assert mean > 0.06
        assert mean == pytest.approx(np.mean([value.null_mean for value in values]), rel=0.1)
    squared = [calibration_error(*perfect(2000, seed)).value for seed in range(50)]
    assert np.median(squared) < 0.01


def test_debiased_interval_covers_zero_and_a_known_error() -> None:
    assert sum(calibration_error(*perfect(1000, seed)).lower == 0.0 for seed in range(100)) >= 90
    covered = 0
    for seed in range(100):
        y, p = perfect(4000, seed)
        # The truth is p, the claim 0.8 p + 0.1: the gap is 0.2 |p - 0.5|, root mean square 0.2 / sqrt(12).
        found = calibration_error(y, 0.8 * p + 0.1)
        covered += found.lower <= 0.2 / math.sqrt(12) <= found.upper
    assert covered >= 88


def test_spiegelhalter_is_standard_normal_for_a_perfect_model() -> None:
    tests = [spiegelhalter(*perfect(300, seed)) for seed in range(300)]
    z = np.array([test.statistic for test in tests])
    assert abs(z.mean()) < 0.2
    assert z.std() == pytest.approx(1, abs=0.12)
    assert np.mean([test.p_value < 0.05 for test in tests]) < 0.1
    y, p = perfect(3000, 1)
    assert spiegelhalter(y, p**2).p_value < 1e-6


def test_spiegelhalter_at_the_edges() -> None:
    assert spiegelhalter([0, 1], [0.5, 0.5]).p_value == 1.0
    assert math.isnan(spiegelhalter([], []).statistic)
    wrong = spiegelhalter([1, 0], [0.0, 0.0])
    assert (wrong.statistic, wrong.p_value) == (math.inf, 0.0)


def test_reliability_curve() -> None:
    y, p = perfect(1000, 3)
    curve = reliability_curve(y, p, n_bins=5)
    assert sum(curve.n_obs) == 1000
    assert list(curve.mean_probability) == sorted(curve.mean_probability)
    assert all(low < f < high for low, f, high in zip(curve.lower, curve.frequency, curve.upper, strict=True))
    assert reliability_curve([], []).n_obs == ()
    assert reliability_curve([0, 1, 1], [0.5, 0.5, 0.5]).n_obs == (3,)


@pytest.mark.parametrize("metric", [brier, log_loss, calibration_error, ece_equal_width, ece_equal_mass])
def test_no_rows_is_undefined(metric: Any) -> None:
    assert math.isnan(metric([], []).value)


def test_decomposition_of_no_rows() -> None:
    assert math.isnan(brier_decomposition([], []).brier)


def test_bins_of_one_row_say_nothing() -> None:
    assert math.isnan(calibration_error([1], [0.5]).value)


@pytest.mark.parametrize(("p", "field"), [([1.1], "probability[0]"), ([math.nan], "probability[0]")])
def test_no_probability_is_named(p: list[float], field: str) -> None:
    for metric in (brier, log_loss, brier_decomposition, calibration_error, spiegelhalter, reliability_curve):
        with pytest.raises(InvalidInput) as caught:
            metric([1], p)
        assert caught.value.field == field
