"""Oracles: entropies by hand, scipy's entropy, and Newcombe's interval of the paper's example."""

import json
import math

import numpy as np
import pytest
from scipy.stats import entropy

from vitok.errors import InvalidInput
from vitok.monitoring.confidence import ConfidenceCounts, confidence_shift


def test_counts_by_hand_and_of_parts() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.5, 0.5, 0.5], 1_000)
    whole = ConfidenceCounts.of(p)
    parts = ConfidenceCounts.of(p[:300]) + ConfidenceCounts.of(p[300:])
    assert whole.n_below == int((p.max(axis=1) < 0.6).sum())
    assert whole.sum_entropy == pytest.approx(entropy(p, axis=1).sum() / math.log(3))
    np.testing.assert_array_equal(parts.largest, whole.largest)
    np.testing.assert_array_equal(parts.entropy, whole.entropy)
    assert parts.sum_entropy == pytest.approx(whole.sum_entropy)
    again = ConfidenceCounts.from_dict(json.loads(json.dumps(whole.to_dict())))
    assert confidence_shift(whole, again).change.value == 0.0


def test_change_is_newcombe_s_interval() -> None:
    # Newcombe 1998, table II, example (a): 56/70 less 48/80 is 0.2, method 10 gives 0.0524 to 0.3339.
    before = ConfidenceCounts.of(np.concatenate((np.full(48, 0.5), np.full(32, 0.99))))
    now = ConfidenceCounts.of(np.concatenate((np.full(56, 0.5), np.full(14, 0.99))))
    change = confidence_shift(before, now).change
    assert (change.value, change.lower, change.upper) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_a_less_sure_model_is_seen_and_a_same_one_is_not() -> None:
    rng = np.random.default_rng(1)
    reference = ConfidenceCounts.of(rng.beta(0.2, 0.4, 20_000))
    same = confidence_shift(reference, ConfidenceCounts.of(rng.beta(0.2, 0.4, 2_000)))
    other = confidence_shift(reference, ConfidenceCounts.of(rng.beta(0.6, 1.2, 2_000)))
    assert same.change.lower < 0 < same.change.upper
    assert other.change.lower > 0
    assert other.mean_entropy > same.mean_entropy
    assert other.largest.value > 5 * same.largest.value


def test_nulls_nothing_and_nonsense() -> None:
    found = ConfidenceCounts.of([math.nan, 0.9])
    assert found.n == 1
    empty = ConfidenceCounts.of([])
    assert math.isnan(confidence_shift(found, empty).change.value)
    with pytest.raises(InvalidInput, match="probability"):
        ConfidenceCounts.of([1.5])
    with pytest.raises(InvalidInput, match="floor"):
        ConfidenceCounts.of([0.5], floor=0.0)
    with pytest.raises(InvalidInput, match="same on both sides"):
        confidence_shift(found, ConfidenceCounts.of([0.5], floor=0.7))
