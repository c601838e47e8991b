"""The discrepancy: against the double sum over all pairs, unbiased, and right about nulls, masses and infinities."""

import numpy as np
import pytest
from scipy import stats

from vitok.errors import InvalidInput
from vitok.guard.discrepancy import Embedded, Habits, KernelMap, mmd2

RNG = np.random.default_rng(2)
X = RNG.normal(size=(3_000, 4))


def exact(kernel: KernelMap, one: np.ndarray, other: np.ndarray) -> float:
    """Gretton et al. 2012, equation 3, with the Gaussian kernel itself."""

    def k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squared = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
        return np.exp(-squared / (2 * kernel.width**2))

    a, b = kernel.ranks(one), kernel.ranks(other)
    within = [(k(side, side).sum() - len(side)) / (len(side) * (len(side) - 1)) for side in (a, b)]
    return float(sum(within) - 2 * k(a, b).mean())


def test_near_the_double_sum() -> None:
    kernel = KernelMap(X, n_features=4096)
    one, other = RNG.normal(size=(200, 4)), RNG.normal(0.7, 1, size=(150, 4))
    assert mmd2(kernel.embed(one), kernel.embed(other)) == pytest.approx(exact(kernel, one, other), abs=0.005)


def test_unbiased_for_equal_laws() -> None:
    kernel = KernelMap(X)
    reference = kernel.embed(X)
    found = [mmd2(kernel.embed(RNG.normal(size=(50, 4))), reference) for _ in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(200) + 1 / 3_000
    assert min(found) < 0 < max(found)


def test_parts_add_up() -> None:
    kernel = KernelMap(X)
    whole, left, right = kernel.embed(X), kernel.embed(X[:1_000]), kernel.embed(X[1_000:])
    np.testing.assert_allclose(left.plus(right).total, whole.total)
    np.testing.assert_allclose(whole.less(left).total, right.total)
    group = RNG.integers(-1, 3, len(X))
    sums, counts = kernel.embed_groups(X, group, 4)
    assert counts.tolist() == [*np.bincount(group[group >= 0]).tolist(), 0]
    np.testing.assert_allclose(sums[1], kernel.embed(X[group == 1]).total)
    assert not sums[3].any()


def test_ranks_of_odd_values() -> None:
    column = np.concatenate((np.zeros(500), RNG.uniform(1, 2, 500)))
    kernel = KernelMap(np.column_stack((column, np.full(1_000, np.nan), np.ones(1_000))))
    odd = np.array([[0.0, np.nan, 1.0], [np.nan, 1.0, 2.0], [np.inf, -np.inf, np.nan], [-1.0, 1.0, 0.0], [1.5, 1, 1]])
    ranks = kernel.ranks(odd)
    assert ranks[:, 0].tolist()[:4] == [pytest.approx(0.25, abs=0.01), -0.75, 1.25, -0.25]
    assert ranks[4, 0] == pytest.approx(0.75, abs=0.02)
    assert ranks[:3, 1].tolist() == [-0.75, 1.25, 1.25]
    assert ranks[:4, 2].tolist() == [0.5, 1.25, -0.75, -0.25]
    assert np.isfinite(kernel.embed(odd).total).all()
    sorted_ranks = kernel.ranks(np.column_stack((np.sort(column), np.ones(1_000), np.ones(1_000))))[:, 0]
    assert (np.diff(sorted_ranks) >= 0).all()


def test_habits_as_hotelling_has_it() -> None:
    # With many windows and hardly any shrinkage, the squared distance of Mahalanobis, chi-square with d degrees.
    scatter = RNG.normal(size=(20_000, 3)) @ RNG.normal(size=(3, 3))
    habits = Habits(scatter, shrinkage=1e-9)
    assert stats.kstest(habits.distance(scatter[:2_000]), stats.chi2(3).cdf).pvalue > 0.001
    assert Habits(np.ones((5, 2))).distance([[1.0, 1.0], [2.0, 1.0]]).tolist() == [0.0, 1.0]
    with pytest.raises(InvalidInput):
        Habits(np.ones((1, 2)))


def test_rows_that_are_all_equal_and_none() -> None:
    kernel = KernelMap(np.ones((10, 2)))
    assert mmd2(kernel.embed(np.ones((5, 2))), kernel.embed(np.ones((5, 2)))) == pytest.approx(0.0, abs=1e-12)
    assert kernel.embed(np.empty((0, 2))).n == 0
    with pytest.raises(InvalidInput):
        mmd2(kernel.embed(np.ones((1, 2))), Embedded(5, np.zeros(256)))
    for bad in (np.ones(3), np.ones((1, 2)), np.ones((3, 0))):
        with pytest.raises(InvalidInput):
            KernelMap(bad)
    with pytest.raises(InvalidInput):
        KernelMap(X, n_features=3)
    with pytest.raises(InvalidInput):
        kernel.embed(np.ones((3, 3)))
