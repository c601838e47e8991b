"""Intervals and adjusted p-values. Oracles: scipy 1.17, published figures, hand computation."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as oracle

from vitok.errors import InvalidInput
from vitok.stats import (
    benjamini_hochberg,
    clopper_pearson,
    clopper_pearson_lower,
    holm,
    mean_interval,
    mean_interval_from_moments,
    trials_needed,
    wilson,
)


@pytest.mark.parametrize(("function", "method"), [(clopper_pearson, "exact"), (wilson, "wilson")])
@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (1, 1), (7, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_rates_equal_scipy(function: Any, method: str, k: int, n: int, level: float) -> None:
    expected = oracle.binomtest(k, n).proportion_ci(level, method=method)
    found = function(k, n, confidence_level=level)
    assert (found.lower, found.upper) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("function", [clopper_pearson, clopper_pearson_lower, wilson])
def test_no_trials(function: Any) -> None:
    found = function(0, 0)
    assert math.isnan(found.value)
    assert (found.lower, found.upper) == (0.0, 1.0)


@pytest.mark.parametrize("function", [clopper_pearson, clopper_pearson_lower, wilson])
@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts(function: Any, k: int, n: int) -> None:
    with pytest.raises(InvalidInput):
        function(k, n)


def test_one_sided_bound_equals_scipy() -> None:
    expected = oracle.binomtest(590, 598, alternative="greater").proportion_ci(0.95)
    assert clopper_pearson_lower(590, 598).lower == pytest.approx(expected.low, abs=1e-12)
    with pytest.raises(InvalidInput):
        clopper_pearson_lower(1, 2, confidence_level=0.4)


def test_598_clean_blocks_show_a_precision_of_99_5_percent() -> None:
    assert trials_needed(0.995) == 598
    assert clopper_pearson_lower(598, 598).lower >= 0.995 > clopper_pearson_lower(597, 597).lower


@given(st.floats(0.05, 0.999), st.integers(0, 5))
def test_trials_needed_is_the_smallest(rate: float, failures: int) -> None:
    n = trials_needed(rate, failures=failures)
    assert clopper_pearson_lower(n - failures, n).lower >= rate - 1e-9
    if n > failures + 1:
        assert clopper_pearson_lower(n - 1 - failures, n - 1).lower < rate + 1e-9


def test_mean_equals_scipy() -> None:
    values = np.random.default_rng(0).normal(size=30)
    expected = oracle.ttest_1samp(values, 0).confidence_interval(0.9)
    found = mean_interval(values, confidence_level=0.9)
    assert (found.lower, found.upper) == pytest.approx((expected.low, expected.high))
    moments = mean_interval_from_moments(
        mean=values.mean(), variance=values.var(ddof=1), n_obs=30, confidence_level=0.9
    )
    assert moments.lower == pytest.approx(found.lower)


def test_mean_of_little() -> None:
    assert math.isnan(mean_interval([]).value)
    one = mean_interval([2.0])
    assert (one.value, one.lower, one.upper) == (2.0, -math.inf, math.inf)
    with pytest.raises(InvalidInput):
        mean_interval([1.0, math.inf])
    with pytest.raises(InvalidInput):
        mean_interval_from_moments(mean=0.0, variance=-1.0, n_obs=5)


@pytest.mark.parametrize("level", [0.0, 1.0, 95, math.nan])
def test_level_must_be_a_share(level: float) -> None:
    with pytest.raises(InvalidInput, match="confidence_level"):
        wilson(1, 2, confidence_level=level)


@given(st.lists(st.floats(0, 1), max_size=30))
def test_benjamini_hochberg_equals_scipy(p: list[float]) -> None:
    expected = oracle.false_discovery_control(p) if p else []
    assert benjamini_hochberg(p).adjusted == pytest.approx(tuple(expected))


def test_holm_by_hand() -> None:
    # Holm 1979: ascending p times 3, 2, 1, then the running maximum, in the order given.
    assert holm([0.04, 0.01, 0.03]).adjusted == pytest.approx((0.06, 0.03, 0.06))
    assert holm([0.9, 0.8]).adjusted == (1.0, 1.0)


@pytest.mark.parametrize("adjust", [benjamini_hochberg, holm])
def test_p_values_must_be_probabilities(adjust: Any) -> None:
    assert adjust([]).adjusted == ()
    for bad in (1.5, -0.1, math.nan):
        with pytest.raises(InvalidInput, match=r"p_values\[1\]"):
            adjust([0.5, bad])
