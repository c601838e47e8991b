"""Latency histogram. Oracle: the sorted values themselves."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.stats import LatencyHistogram


def of(values: object) -> LatencyHistogram:
    histogram = LatencyHistogram()
    histogram.record_many(np.asarray(values))
    return histogram


def test_quantiles_are_within_one_percent() -> None:
    values = np.sort(np.exp(np.random.default_rng(0).uniform(0, math.log(1e8), 20_000)).astype(int))
    histogram = of(values)
    for q in (0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0):
        exact = values[max(0, math.ceil(q * len(values) * (1 - 1e-12)) - 1)]
        assert histogram.quantile(q) == pytest.approx(exact, rel=0.008)
    assert (histogram.min, histogram.max, histogram.count) == (values[0], values[-1], 20_000)
    assert histogram.mean == pytest.approx(values.mean())


def test_small_values_are_exact() -> None:
    histogram = of(np.arange(128))
    assert [histogram.quantile((i + 1) / 128) for i in range(128)] == list(range(128))


def test_one_by_one_equals_many_at_once() -> None:
    values = [0, 1, 127, 128, 129, 255, 256, 99_999_999, 100_000_000, 100_000_001, 10**12, 3.7]
    one = LatencyHistogram()
    for value in values:
        one.record(value)
    assert one.to_dict() == of(values).to_dict()
    edges = np.concatenate([2**k + np.array([-1, 0, 1]) for k in range(1, 28)])
    one = LatencyHistogram()
    for value in edges.tolist():
        one.record(value)
    assert one.to_dict() == of(edges).to_dict()


def test_above_the_range_only_the_maximum_is_known() -> None:
    assert of([5, 200_000_000, 300_000_000]).quantile(0.6) == 300_000_000


def test_merge_and_json_equal_the_whole() -> None:
    values = np.random.default_rng(1).integers(0, 10**6, 1000)
    whole, left = of(values), of(values[:300])
    left.merge(of(values[300:]))
    left.merge(LatencyHistogram())
    assert left.to_dict() == whole.to_dict()
    fresh = LatencyHistogram()
    fresh.merge(whole)
    assert LatencyHistogram.from_dict(json.loads(json.dumps(fresh.to_dict()))).to_dict() == whole.to_dict()
    fresh.merge(fresh)
    assert (fresh.count, fresh.total) == (2 * whole.count, 2 * whole.total)


def test_nothing_recorded() -> None:
    histogram = of([])
    assert math.isnan(histogram.quantile(0.5))
    assert math.isnan(histogram.mean)
    assert (histogram.count, histogram.max, histogram.min, str(histogram)) == (0, 0, 0, "n 0")


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_impossible_latency(value: float) -> None:
    histogram = LatencyHistogram()
    with pytest.raises(InvalidInput):
        histogram.record(value)
    with pytest.raises(InvalidInput):
        histogram.record_many([1.0, value])
    assert histogram.count == 0


def test_bad_quantile_and_bad_json() -> None:
    with pytest.raises(InvalidInput):
        of([1]).quantile(99)
    data = of([1, 2]).to_dict()
    for broken in ({**data, "count": 3}, {**data, "buckets": [[99_999, 2]]}, {}):
        with pytest.raises(InvalidInput):
            LatencyHistogram.from_dict(broken)


@given(st.lists(st.integers(-10_000, 2 * 10**11), max_size=60), st.lists(st.integers(0, 10**9), max_size=5))
def test_since_moments_is_many_at_once(ages_ns: list[int], before_us: list[int]) -> None:
    now = 10**12
    since, many = LatencyHistogram(), LatencyHistogram()
    for histogram in (since, many):
        histogram.record_many(before_us)
    since.record_since([now - age for age in ages_ns], now)
    many.record_many([max(age // 1000, 0) for age in ages_ns])
    assert since.to_dict() == many.to_dict()
