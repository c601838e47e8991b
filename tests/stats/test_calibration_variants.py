"""Oracles: relplot 1.0.3 and model-diagnostics 1.5.0 on the same rows; identities; simulation under calibration."""

import math

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.stats import brier, brier_decomposition, calibration_error, ece_equal_mass, ece_equal_width
from vitok.stats.calibration_variants import (
    adaptive_calibration_error,
    calibration_null_test,
    class_wise_error,
    maximum_calibration_error,
    murphy_decomposition,
    smooth_calibration_error,
    top_label_error,
)


def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(42)
    p = rng.beta(1, 2, 2_000)
    return p, (rng.random(2_000) < p**1.5).astype(int)


def test_smooth_error_is_relplot_s() -> None:
    p, y = rows()
    # Its grid is coarser; the difference is below one of its cells.
    assert smooth_calibration_error(y, p).value == pytest.approx(0.11436628995999261, abs=5e-4)


def test_parts_of_the_brier_score_are_model_diagnostics_s() -> None:
    p, y = rows()
    found = brier_decomposition(y, p)
    parts = (found.miscalibration, found.discrimination, found.uncertainty, found.brier)
    assert parts == pytest.approx((0.017563, 0.04625, 0.164736, 0.136048), abs=5e-7)


@pytest.mark.parametrize("n_bins", [1, 7, 15, 1_000])
def test_murphy_s_parts_add_up_exactly(n_bins: int) -> None:
    p, y = rows()
    m = murphy_decomposition(y, p, n_bins=n_bins)
    total = m.reliability - m.resolution + m.uncertainty + m.within_variance - m.within_covariance
    assert total == pytest.approx(brier(y, p).value, abs=1e-14)
    assert m.brier == pytest.approx(total)


def test_without_the_within_bin_terms_it_is_another_number() -> None:
    p, y = rows()
    m = murphy_decomposition(y, p)
    assert abs(m.reliability - m.resolution + m.uncertainty - m.brier) > 1e-4


def test_named_variants_by_hand() -> None:
    p, y = np.array([0.05, 0.15, 0.2, 0.9, 0.95]), np.array([0, 0, 1, 1, 1])
    assert maximum_calibration_error(y, p, n_bins=5).value == pytest.approx(0.8)
    assert ece_equal_width(y, p, n_bins=5).value == pytest.approx((0.1 * 2 + 0.8 + 0.075 * 2) / 5)
    # Cuts at the second and the fourth value: bins of 1, 2 and 2 rows.
    assert adaptive_calibration_error(y, p, n_bins=3).value == pytest.approx((0.05 + 0.325 + 0.075) / 3)


def test_null_means_are_what_a_perfect_model_shows() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(1, 2, 1_000)
    for measure in (adaptive_calibration_error, maximum_calibration_error):
        shown = [measure(rng.random(1_000) < p, p).value for _ in range(100)]
        assert measure(rng.random(1_000) < p, p).null_mean == pytest.approx(np.mean(shown), rel=0.12)


def test_null_test_keeps_its_level_and_finds_what_spiegelhalter_does_not() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(size=400)
    wrong = sum(
        calibration_null_test(rng.random(400) < p, p, n_draws=99, seed=run).p_value <= 0.1 for run in range(120)
    )
    assert 3 <= wrong <= 23
    from vitok.stats import spiegelhalter

    many = rng.uniform(size=4_000)
    wavy = many + 0.48 * many * (1 - many) * np.cos(4 * math.pi * many)
    y = rng.random(4_000) < wavy
    assert calibration_null_test(y, many, n_draws=199).p_value <= 0.01
    assert spiegelhalter(y, many).p_value > 0.01


def test_several_classes() -> None:
    rng = np.random.default_rng(2)
    p = rng.dirichlet([1, 1, 1], 8_000)
    y = (p.cumsum(axis=1) < rng.random((8_000, 1))).sum(axis=1)
    sharp = p**2 / (p**2).sum(axis=1, keepdims=True)
    assert top_label_error(y, p).value < 0.03 < 0.1 < top_label_error(y, sharp).value
    found = class_wise_error(y, sharp, error=lambda f, q: ece_equal_mass(f, q))
    assert found.mean == pytest.approx(np.mean([one.value for one in found.by_class]))
    assert top_label_error(y, sharp).name == "top_label_calibration_error"
    confidence, right = sharp.max(axis=1), sharp.argmax(axis=1) == y
    assert top_label_error(y, sharp).value == calibration_error(right, confidence).value
    assert "class 2" in str(found)


def test_nothing_and_nonsense() -> None:
    for measure in (adaptive_calibration_error, maximum_calibration_error, smooth_calibration_error):
        assert math.isnan(measure([], []).value)
    assert math.isnan(murphy_decomposition([], []).brier)
    assert calibration_null_test([1], [0.5]).p_value == 1.0
    with pytest.raises(InvalidInput, match="n_draws"):
        calibration_null_test([1, 0], [0.5, 0.5], n_draws=5)
    with pytest.raises(InvalidInput, match="resolution"):
        smooth_calibration_error([1], [0.5], resolution=3)
    with pytest.raises(InvalidInput, match="y"):
        top_label_error([3], [[0.5, 0.5]])
