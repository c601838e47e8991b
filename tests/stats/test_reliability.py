"""Oracles: isotonic regression of scikit-learn 1.9, and how often a calibrated model leaves the band."""

import math
import tracemalloc

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.stats import brier_decomposition, roc_auc
from vitok.stats.reliability import reliability_diagram


def test_curve_is_the_isotonic_fit() -> None:
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(0)
    p = rng.beta(1, 3, 500).round(2)
    y = rng.random(500) < p
    found = reliability_diagram(y, p, n_points=1_000)
    fitted = IsotonicRegression().fit(p, y).predict(np.array(found.probability))
    np.testing.assert_allclose(found.recalibrated, fitted, atol=1e-12)
    assert found.score == brier_decomposition(y, p)
    assert found.discrimination == roc_auc(y, p)


def test_a_calibrated_model_stays_in_the_band() -> None:
    rng = np.random.default_rng(1)
    p = rng.beta(1, 3, 1_000)
    outside = [reliability_diagram(rng.random(1_000) < p, p, n_draws=100, seed=run).outside for run in range(40)]
    assert np.mean(outside) == pytest.approx(0.1, abs=0.06)


def test_a_model_that_is_off_leaves_it() -> None:
    rng = np.random.default_rng(2)
    p = rng.beta(1, 3, 5_000)
    found = reliability_diagram(rng.random(5_000) < p**1.5, p)
    assert found.outside > 0.8
    assert "outside" in str(found)
    assert len(found.probability) == 50


def test_nothing_one_value_and_nonsense() -> None:
    assert math.isnan(reliability_diagram([], []).outside)
    one = reliability_diagram([0, 1, 1, 1], [0.7] * 4)
    assert one.recalibrated == (0.75,)
    with pytest.raises(InvalidInput, match="n_points"):
        reliability_diagram([1], [0.5], n_points=1)


def test_many_distinct_probabilities_need_little_memory() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(100_000)
    y = rng.random(100_000) < p
    tracemalloc.start()
    found = reliability_diagram(y, p, n_draws=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All draws at all places are 16 MB, and 16 again in the quantiles.
    assert peak < 25e6
    assert len(found.probability) == 50
    assert found.outside < 0.25
