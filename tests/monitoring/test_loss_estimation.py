"""Oracle: the errors themselves, drawn with a spread that the features tell."""

import math

import numpy as np
import pytest

from vitok.errors import InvalidInput, NotFound
from vitok.monitoring.loss_estimation import LossEstimator


def rows(rng: np.random.Generator, n: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    X = np.column_stack([rng.uniform(size=n), rng.uniform(low, high, n)])
    return X, X[:, 0], X[:, 0] + rng.normal(size=n) * (0.1 + X[:, 1])


@pytest.fixture(scope="module")
def estimator() -> LossEstimator:
    return LossEstimator.fit(*rows(np.random.default_rng(0), 8_000, 0.0, 1.0))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.6, 1.0), (0.0, 0.2)])
def test_loss_follows_the_mix_of_rows(estimator: LossEstimator, low: float, high: float) -> None:
    X, prediction, y = rows(np.random.default_rng(1), 4_000, low, high)
    found = estimator.estimate(X, prediction)
    error = np.abs(y - prediction)
    for name, real in (("mae", error.mean()), ("mse", (error**2).mean()), ("rmse", math.sqrt((error**2).mean()))):
        assert found[name].value == pytest.approx(real, rel=0.2)
        assert found[name].lower <= found[name].value <= found[name].upper
    assert "mae" in str(found)


def test_interval_counts_the_window(estimator: LossEstimator) -> None:
    rng = np.random.default_rng(2)
    covered, widths = 0, []
    for _ in range(100):
        X, prediction, y = rows(rng, 200, 0.0, 1.0)
        found = estimator.estimate(X, prediction)["mae"]
        covered += found.lower <= np.abs(y - prediction).mean() <= found.upper
        widths.append(found.upper - found.lower)
    assert covered >= 88
    X, prediction, _ = rows(rng, 20_000, 0.0, 1.0)
    wide = estimator.estimate(X, prediction)["mae"]
    assert wide.upper - wide.lower < 0.4 * np.mean(widths)


def test_nothing_and_nonsense(estimator: LossEstimator) -> None:
    empty = estimator.estimate(np.zeros((0, 2)), [])
    assert all(math.isnan(one.value) for one in empty.estimates)
    with pytest.raises(InvalidInput, match="X and prediction"):
        estimator.estimate(np.zeros((2, 2)), [0.0])
    with pytest.raises(InvalidInput, match="20 rows"):
        LossEstimator.fit(np.zeros((3, 1)), np.zeros(3), np.zeros(3))
    with pytest.raises(InvalidInput, match="y"):
        LossEstimator.fit(np.zeros((30, 1)), np.zeros(30), np.full(30, math.nan))
    with pytest.raises(InvalidInput, match="X: "):
        estimator.estimate(np.zeros((2, 1)), [0.0, 1.0])
    assert "learnt from" in repr(estimator)
    with pytest.raises(NotFound, match="mape"):
        empty["mape"]
