"""The frontier of a cascade against one that is computed threshold by threshold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.serving.thresholds import confidence_of, frontier, judged

CONFIDENCE = st.one_of(st.sampled_from([0.5, 0.6, 0.6000000001, 0.9, 1.0, math.nan, math.inf, -math.inf]), st.floats())
ROW = st.tuples(CONFIDENCE, st.sampled_from([0.0, 1.0, 0.25, 7.5]), st.sampled_from([0.0, 1.0, 3.5]))


@given(
    st.lists(ROW, min_size=1, max_size=60),
    st.sampled_from([0.0, 1.0, 2.5]),
    st.sampled_from([0.0, 9.0]),
    st.sampled_from([0.0, 1.0, 30.0]),
)
def test_every_threshold(
    rows: list[tuple[float, float, float]], cost_small: float, cost_large: float, price: float
) -> None:
    conf, small, large = (np.array(column) for column in zip(*rows, strict=True))
    curve = frontier(conf, small, large, cost_small=cost_small, cost_large=cost_large, loss_price=price)
    assert (np.diff(curve.threshold) > 0).all()
    assert curve.threshold[-1] == math.inf
    # Oracle: each threshold by itself, over all rows; a NaN is below every one.
    for t in {*curve.threshold.tolist(), *(c for c in conf.tolist() if c == c), 0.55}:
        up = ~(conf >= t)
        found = curve.at(t)
        assert found.escalated == pytest.approx(up.mean(), abs=1e-12)
        assert found.cost == pytest.approx(cost_small + up.mean() * cost_large)
        assert found.loss == pytest.approx(np.where(up, large, small).mean(), abs=1e-9)
        assert found.total == pytest.approx(found.cost + price * found.loss)
        assert curve.best.total <= found.total + 1e-9
    # Each division of the rows that a threshold can make is there once.
    divisions = {tuple(~(conf >= t)) for t in [*conf[~np.isnan(conf)].tolist(), math.inf]}
    assert len(curve) == len(divisions)


def test_a_confidence_at_the_threshold_stays() -> None:
    curve = frontier([0.5, 0.7, 0.9], [1, 1, 0], [0, 0, 0], cost_small=1, cost_large=10)
    assert curve.at(0.7).escalated == pytest.approx(1 / 3)
    assert curve.at(0.7000001).escalated == pytest.approx(2 / 3)
    assert curve.at(-1.0).escalated == 0.0
    assert curve.at(math.inf).escalated == 1.0


def test_of_equal_totals_the_one_that_escalates_least() -> None:
    curve = frontier([0.5, 0.7], [0, 0], [0, 0], cost_small=1, cost_large=0)
    assert curve.best.escalated == 0.0


def test_choices_under_a_bound() -> None:
    generator = np.random.default_rng(3)
    conf = generator.uniform(0.5, 1, 4000)
    small = (generator.random(4000) > conf).astype(float)
    large = (generator.random(4000) > 0.97).astype(float)
    curve = frontier(conf, small, large, cost_small=1, cost_large=10, loss_price=100)
    cheap = curve.within_cost(4.0)
    assert cheap.cost <= 4.0
    assert cheap.loss == curve.loss[curve.cost <= 4.0].min()
    good = curve.reaching(0.08)
    assert good.loss <= 0.08
    assert good.cost == curve.cost[curve.loss <= 0.08].min()
    with pytest.raises(InvalidInput, match=r"cost: got 0\.5, must be at least 1\. The small model alone costs that"):
        curve.within_cost(0.5)
    with pytest.raises(InvalidInput, match="loss"):
        curve.reaching(0.0001)
    # Theory: with calibrated confidence a row pays where (1 - conf) price > cost_large + 0.03 price, below 0.87.
    assert curve.best.threshold == pytest.approx(0.87, abs=0.03)
    assert curve.calibration is not None
    assert curve.calibration.value < 0.05
    assert "confidence of the small model" in str(curve)


def test_a_promise_stands_on_other_rows() -> None:
    generator = np.random.default_rng(4)
    conf = generator.uniform(0.5, 1, 3000)
    small = (generator.random(3000) > conf).astype(float)
    large = np.zeros(3000)
    curve = frontier(conf[:300], small[:300], large[:300], cost_small=1, cost_large=10, loss_price=50)
    found = judged(
        curve.best.threshold, conf[300:], small[300:], large[300:], cost_small=1, cost_large=10, loss_price=50
    )
    held = frontier(conf[300:], small[300:], large[300:], cost_small=1, cost_large=10, loss_price=50)
    assert found.value == pytest.approx(held.at(curve.best.threshold).total)
    assert found.lower < found.value < found.upper
    assert found.n_obs == 2700


def test_calibration_is_only_told_of_probabilities_and_errors() -> None:
    assert frontier([1.5, 2.5], [0, 1], [0, 0], cost_small=1, cost_large=1).calibration is None
    assert frontier([0.5, 0.6], [0, 0.5], [0, 0], cost_small=1, cost_large=1).calibration is None
    assert frontier([0.9, 0.6], [0, 1], [0, 0], cost_small=1, cost_large=1).calibration is not None


def test_confidence() -> None:
    assert confidence_of([0.2, 0.9]).tolist() == [0.8, 0.9]
    assert np.isnan(confidence_of([math.nan])).all()
    assert confidence_of([[0.1, 0.9], [0.6, 0.4]]).tolist() == [0.9, 0.6]


def test_a_million_rows_in_a_sort() -> None:
    n = 1_000_000
    generator = np.random.default_rng(5)
    conf = generator.random(n)
    loss = (generator.random(n) < 0.1).astype(float)
    assert len(frontier(conf, loss, 0 * loss, cost_small=1, cost_large=2)) == len(np.unique(conf)) + 1


def test_wrong_data() -> None:
    with pytest.raises(InvalidInput, match="same shape"):
        frontier([0.5], [0, 1], [0, 1], cost_small=1, cost_large=1)
    with pytest.raises(InvalidInput, match="at least one row"):
        frontier([], [], [], cost_small=1, cost_large=1)
    with pytest.raises(InvalidInput, match=r"small_loss\[1\]"):
        frontier([0.5, 0.5], [0, -1], [0, 0], cost_small=1, cost_large=1)
    with pytest.raises(InvalidInput, match="cost_large"):
        frontier([0.5], [0], [0], cost_small=1, cost_large=math.inf)
    with pytest.raises(InvalidInput, match="threshold"):
        frontier([0.5], [0], [0], cost_small=1, cost_large=1).at(math.nan)


@given(st.lists(st.sampled_from([0.5, 0.6, 0.7, 0.8, float("nan")]), min_size=1, max_size=30), st.integers(2, 12))
def test_a_table_goes_from_one_end_to_the_other(confidence: list[float], n: int) -> None:
    rng = np.random.default_rng(len(confidence))
    losses = rng.integers(0, 2, (2, len(confidence)))
    curve = frontier(confidence, *losses, cost_small=1.0, cost_large=9.0)
    table = curve.table(n)
    assert 1 <= len(table) <= n
    assert table[-1] == curve.point(len(curve) - 1)
    assert table[0].escalated == curve.escalated[0]
    assert [point.cost for point in table] == sorted(point.cost for point in table)


def test_no_threshold() -> None:
    with pytest.raises(InvalidInput, match="threshold"):
        judged(float("nan"), [0.9, 0.6], [0, 1], [0, 0], cost_small=1.0, cost_large=9.0)
    with pytest.raises(InvalidInput, match="n: got 1"):
        frontier([0.9], [0], [0], cost_small=1.0, cost_large=9.0).table(1)
