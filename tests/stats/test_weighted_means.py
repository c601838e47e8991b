"""Oracles: the unweighted t interval, and coverage under inverse propensities by simulation."""

import math

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.stats import mean_interval
from vitok.stats.weighted_means import effective_sample_size, weighted_mean_interval, weights_of


def test_equal_weights_are_the_plain_interval() -> None:
    x = np.random.default_rng(0).normal(size=50)
    ours, plain = weighted_mean_interval(x, np.full(50, 3.0)), mean_interval(x)
    assert (ours.value, ours.lower, ours.upper) == pytest.approx((plain.value, plain.lower, plain.upper))
    assert ours.n_effective == pytest.approx(50)


def test_inverse_propensities_undo_a_selection() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        x = rng.random(2_000)
        propensity = 0.1 + 0.8 * x
        seen = rng.random(2_000) < propensity
        found = weighted_mean_interval(x[seen], 1 / propensity[seen])
        covered += found.lower <= 0.5 <= found.upper
    assert covered >= 182


def test_few_and_none() -> None:
    assert math.isnan(weighted_mean_interval([], []).value)
    assert weighted_mean_interval([2.0], [1.0]).upper == math.inf
    assert effective_sample_size([]) == 0.0
    assert effective_sample_size([1.0, 0.0]) == 1.0


def test_wrong_weights_are_named() -> None:
    for bad in ([-1.0, 1.0], [0.0, 0.0], [1.0], [math.nan, 1.0]):
        with pytest.raises(InvalidInput, match="weight"):
            weights_of("weight", bad, 2)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_the_scale_of_the_weights_does_not_matter(scale: float) -> None:
    weight = np.array([1.0, 2.0, 3.0, 0.0])
    plain = weighted_mean_interval([1.0, 2.0, 4.0, 9.0], weight)
    found = weighted_mean_interval([1.0, 2.0, 4.0, 9.0], weight * scale)
    assert (found.value, found.lower, found.upper) == pytest.approx((plain.value, plain.lower, plain.upper))
    assert effective_sample_size(weight * scale) == pytest.approx(36 / 14)
