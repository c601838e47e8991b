"""Divergences. Oracles: published figures, scipy 1.17, simulation of the null laws."""

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as oracle
from scipy.spatial.distance import jensenshannon

from vitok.errors import InvalidInput
from vitok.stats import FrozenEdges, chi_square, hellinger, jensen_shannon, ks, psi, wasserstein

ALL = [psi, jensen_shannon, hellinger, chi_square, ks]
R, C = [1, 2, 3, 4], [2, 2, 3, 3]


def test_published_figures() -> None:
    assert psi(R, C).value == pytest.approx(0.0980829253, abs=1e-10)
    assert jensen_shannon(R, C).value == pytest.approx(0.1320067319, abs=1e-10)
    # The samples 0..9 and 1.5 x + 1 of them, as counts over all their values.
    low, high = np.arange(10.0), 1.5 * np.arange(10.0) + 1
    at = np.unique(np.concatenate((low, high)))
    a, b = np.isin(at, low).astype(int), np.isin(at, high).astype(int)
    assert ks(a, b).value == pytest.approx(0.4)
    assert wasserstein(a, b, positions=at).value == pytest.approx(3.25)


def test_values_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(1, 50, 8), rng.integers(1, 80, 8)
        places = np.sort(rng.normal(size=8))
        table = oracle.chi2_contingency(np.array([a, b]), correction=False)
        assert chi_square(a, b).value == pytest.approx(table.statistic)
        assert chi_square(a, b).p_value == pytest.approx(table.pvalue)
        assert jensen_shannon(a, b).value == pytest.approx(jensenshannon(a, b, base=2))
        expected = oracle.wasserstein_distance(places, places, a, b)
        assert wasserstein(a, b, positions=places, scale=2.0).value == pytest.approx(expected / 2)
        sample = np.repeat(np.arange(8), a), np.repeat(np.arange(8), b)
        assert ks(a, b).value == pytest.approx(oracle.ks_2samp(*sample).statistic)
        p, q = a / a.sum(), b / b.sum()
        assert hellinger(a, b).value == pytest.approx(math.sqrt(1 - np.sqrt(p * q).sum()))
        assert psi(a, b).value == pytest.approx(oracle.entropy(p, q) + oracle.entropy(q, p))


def null_draws(divergence: Any, n: int, m: int, bins: int = 10, **parts: Any) -> list[Any]:
    rng = np.random.default_rng(5)
    law = np.arange(1, bins + 1) / np.arange(1, bins + 1).sum()
    return [divergence(rng.multinomial(n, law), rng.multinomial(m, law), **parts) for _ in range(400)]


@pytest.mark.parametrize("divergence", [psi, jensen_shannon, hellinger, chi_square])
def test_null_mean_and_quantile_hold(divergence: Any) -> None:
    draws = null_draws(divergence, 5000, 1500)
    assert np.mean([d.value for d in draws]) == pytest.approx(draws[0].null_mean, rel=0.07)
    assert 0.02 < np.mean([d.value > d.null_quantile for d in draws]) < 0.085
    assert 0.02 < np.mean([d.p_value < 0.05 for d in draws]) < 0.085
    assert abs(np.mean([d.excess for d in draws])) < 0.07 * draws[0].null_mean


@pytest.mark.parametrize("bins", [2, 10, 32])
def test_null_law_of_ks_holds(bins: int) -> None:
    draws = null_draws(ks, 5000, 1500, bins=bins)
    assert np.mean([d.value for d in draws]) == pytest.approx(draws[0].null_mean, rel=0.08)
    assert 0.02 < np.mean([d.p_value < 0.05 for d in draws]) < 0.085
    assert 0.02 < np.mean([d.value > d.null_quantile for d in draws]) < 0.085


def test_null_law_of_ks_beside_a_point_mass_errs_on_the_large_side() -> None:
    rng = np.random.default_rng(8)
    law = [0.6, *[0.02] * 20]
    draws = [ks(rng.multinomial(3000, law), rng.multinomial(3000, law)) for _ in range(400)]
    assert np.mean([d.p_value < 0.05 for d in draws]) < 0.07
    assert np.mean([d.value for d in draws]) < draws[0].null_mean


@pytest.mark.parametrize("divergence", [psi, jensen_shannon, hellinger, chi_square])
@pytest.mark.parametrize("sizes", [(20_000, 60), (150, 40), (30, 30)])
def test_drawn_null_law_holds_where_bins_hold_few(divergence: Any, sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(9)
    shares = 0.8 ** np.arange(30) / (0.8 ** np.arange(30)).sum()
    draws = [divergence(rng.multinomial(sizes[0], shares), rng.multinomial(sizes[1], shares)) for _ in range(400)]
    assert "drawn" in draws[0].definition
    assert np.mean([d.value for d in draws]) == pytest.approx(np.mean([d.null_mean for d in draws]), rel=0.1)
    assert 0.02 < np.mean([d.p_value < 0.05 for d in draws]) < 0.085
    assert np.mean([d.p_value < 0.002 for d in draws]) < 0.012


def test_null_law_of_wasserstein_holds() -> None:
    draws = null_draws(wasserstein, 5000, 1500, positions=np.arange(10.0) ** 2, scale=10.0)
    assert np.mean([d.value for d in draws]) == pytest.approx(draws[0].null_mean, rel=0.07)
    assert 0.02 < np.mean([d.value > d.null_quantile for d in draws]) < 0.085


def test_small_samples_show_large_psi_without_any_drift() -> None:
    # Ten equal bins, n = m = 200: mean about 0.09, above 0.1 in 37 % (simulated with the formula of the null law).
    rng = np.random.default_rng(7)
    draws = [psi(rng.multinomial(200, [0.1] * 10), rng.multinomial(200, [0.1] * 10)) for _ in range(600)]
    assert draws[0].null_mean == pytest.approx(0.0915, rel=0.05)
    assert np.mean([d.value for d in draws]) == pytest.approx(0.0915, abs=0.006)
    assert np.mean([d.value > 0.1 for d in draws]) == pytest.approx(0.37, abs=0.06)


def test_empty_bins() -> None:
    both = psi([10, 10, 0], [10, 10, 0])
    assert (both.value, both.n_bins) == (0.0, 2)
    # One side empty: half a count of 20.
    expected = (0.025 - 0.5) * math.log(0.025 / 0.5) + 0.5 * math.log(2)
    assert psi([10, 10], [20, 0]).value == pytest.approx(expected)
    assert math.isfinite(psi([10, 0], [0, 10]).value)
    assert jensen_shannon([10, 0], [0, 10]).value == pytest.approx(1.0)


@pytest.mark.parametrize("divergence", ALL)
def test_one_bin_never_differs(divergence: Any) -> None:
    found = divergence([0, 7], [0, 3])
    assert (found.value, found.p_value) == (0.0, 1.0)
    assert wasserstein([0, 7], [0, 3], positions=[0, 1]).p_value == 1.0


@pytest.mark.parametrize("divergence", ALL)
def test_an_empty_side_is_undefined(divergence: Any) -> None:
    found = divergence([1, 2], [0, 0])
    assert math.isnan(found.value)
    assert found.p_value == 1.0
    assert found.definition == "the current window has no counts"
    assert "undefined" in str(found)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["value"] is None
    assert divergence([0, 0], [1, 2]).definition == "the reference has no counts"


def test_bins_without_a_place_are_left_out_of_wasserstein() -> None:
    found = wasserstein([5, 1, 1, 0], [0, 0, 1, 1], positions=[math.nan, 0, 1, 2])
    assert (found.value, found.n_reference, found.n_current) == (1.0, 2.0, 2.0)
    assert math.isnan(wasserstein([5], [5], positions=[math.nan]).value)


def test_a_shift_of_a_heavy_tail_is_seen() -> None:
    rng = np.random.default_rng(3)
    before, after = rng.lognormal(sigma=2, size=20_000), 1.6 * rng.lognormal(sigma=2, size=5000)
    edges = FrozenEdges.from_values(before)
    counts = edges.count(before), edges.count(after)
    for divergence in ALL:
        assert divergence(*counts).p_value < 1e-6
    assert wasserstein(*counts, positions=edges.centers, scale=edges.scale).p_value < 1e-6
    assert ks(*counts).value == pytest.approx(oracle.ks_2samp(before, after).statistic, abs=0.01)


@pytest.mark.parametrize(
    ("reference", "current", "field"),
    [([1, -1], [1, 1], "reference[1]"), ([1, 1], [1, math.nan], "current[1]"), ([1], [1, 1], "reference and current")],
)
def test_bad_counts_are_named(reference: Any, current: Any, field: str) -> None:
    for divergence in ALL:
        with pytest.raises(InvalidInput) as caught:
            divergence(reference, current)
        assert caught.value.field == field


def test_bad_positions() -> None:
    with pytest.raises(InvalidInput, match="positions"):
        wasserstein([1, 1], [1, 1], positions=[0.0])
    with pytest.raises(InvalidInput, match="scale"):
        wasserstein([1, 1], [1, 1], positions=[0, 1], scale=0.0)


@pytest.mark.parametrize(("n", "m"), [(50_000, 200), (2_000, 300), (300, 20_000)])
def test_small_and_unequal_sides_are_called_changed_as_often_as_they_should(n: int, m: int) -> None:
    """Oracle: pairs of samples of one law; at most about 5 % and 1 % of them have such p-values."""
    rng = np.random.default_rng(4)
    share = np.concatenate([np.full(24, 1 / 32), rng.dirichlet(np.ones(8)) / 4])
    p_values: dict[str, list[float]] = {}
    for _ in range(300):
        r, c = rng.multinomial(n, share), rng.multinomial(m, share)
        for statistic in (psi, jensen_shannon, hellinger, chi_square):
            p_values.setdefault(statistic.__name__, []).append(statistic(r, c).p_value)
    for name, found in p_values.items():
        # Few bins make few values of a distance: it may also be called changed less often.
        assert 0.005 < np.mean(np.array(found) <= 0.05) < 0.09, name
        assert np.mean(np.array(found) <= 0.01) < 0.035, name


def test_one_value_beyond_a_large_reference_is_no_change() -> None:
    """Pearson's statistic would be n / m for it, 50 here."""
    r, c = np.append(np.full(30, 2_000), 0), np.append(np.full(30, 40), 1)
    found = chi_square(r, c)
    assert found.n_bins == 30
    assert found.p_value > 0.99
    gone = chi_square(np.append(np.full(30, 2_000), 0), np.append(np.full(30, 40), 60))
    assert gone.n_bins == 31
    assert gone.p_value < 1e-9
