"""Noise and rounding: repeatable, as large as asked, never across a threshold; and what they do not stop."""

from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import logit

from vitok.errors import InvalidInput
from vitok.guard import KeyedNoise, rounded, scale_for
from vitok.stats import log_loss

KEY = b"0123456789abcdef"
RNG = np.random.default_rng(3)
X = RNG.normal(size=(20_000, 4))


def test_the_same_input_gets_the_same_answer_and_does_not_average_out() -> None:
    noise = KeyedNoise(KEY, scale=0.5)
    one = noise.apply([0.3], X[:1])
    again = noise.apply(np.full(50, 0.3), np.repeat(X[:1], 50, axis=0))
    assert (again == one[0]).all()
    assert one[0] != 0.3
    for other in (
        KeyedNoise(KEY[::-1], scale=0.5),
        KeyedNoise(KEY, scale=0.5, model_version="fraud/2"),
    ):
        assert other.apply([0.3], X[:1]) != one


def test_neighbours_to_three_digits_share_their_noise() -> None:
    noise = KeyedNoise(KEY, scale=0.5)
    base = np.array([[1.234, -5.67e-9, 0.0, np.nan, 8.9e12, np.inf]])
    same = [base * (1 + 1e-7), base * (1 - 1e-7)]
    negative_zero = base.copy()
    negative_zero[0, 2] = -0.0
    other_nan = base.copy()
    other_nan[0, 3] = np.frombuffer(b"\x01\x00\x00\x00\x00\x00\xf8\xff", dtype=np.float64)[0]
    expected = noise.apply([0.3], base)
    for x in (*same, negative_zero, other_nan):
        assert noise.apply([0.3], x) == expected
    assert noise.apply([0.3], base * 1.01) != expected


def test_its_law_is_the_one_it_says() -> None:
    p = RNG.uniform(0.01, 0.99, len(X))
    moved = logit(KeyedNoise(KEY, scale=0.2).apply(p, X)) - logit(p)
    assert stats.kstest(moved / 0.2, "norm").pvalue > 0.001
    assert abs(np.corrcoef(moved[1:], moved[:-1])[0, 1]) < 0.03


def test_nothing_crosses_a_threshold() -> None:
    p = np.concatenate((RNG.beta(1, 8, len(X) - 6), [0.0, 1.0, 0.1, 0.5, np.nextafter(0.1, 0), np.nextafter(0.5, 0)]))
    noisy = KeyedNoise(KEY, scale=1.0, thresholds=[0.5, 0.1]).apply(p, X)
    cuts = np.array([0.1, 0.5])
    assert (np.searchsorted(cuts, noisy, side="right") == np.searchsorted(cuts, p, side="right")).all()
    assert noisy[-6] == 0.0
    assert noisy[-5] == 1.0
    assert (noisy != p).mean() > 0.9
    assert np.isfinite(noisy).all()


def test_the_scale_costs_what_was_allowed() -> None:
    p = RNG.beta(1, 8, len(X))
    y = RNG.random(len(X)) < p
    scale = scale_for(y, p, max_rise=0.02)
    noisy = KeyedNoise(KEY, scale=scale).apply(p, X)
    rise = log_loss(y, noisy).value / log_loss(y, p).value - 1
    assert 0.01 < rise < 0.03
    assert scale_for(np.ones(3), np.ones(3), max_rise=0.1) >= 0


def test_rounding() -> None:
    assert rounded([0.123456], 3).tolist() == [0.123]
    for decimals in (0, 16):
        with pytest.raises(InvalidInput):
            rounded([0.5], decimals)


@pytest.mark.parametrize(
    ("key", "options"),
    [(b"short", {}), (KEY, {"scale": -1.0}), (KEY, {"digits": 0}), (KEY, {"thresholds": [1.0]}), (KEY, {"scale": 1e3})],
)
def test_wrong_options(key: bytes, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        KeyedNoise(key, **{"scale": 0.1, **options})


def test_wrong_rows_and_none() -> None:
    noise = KeyedNoise(KEY, scale=0.1)
    assert noise.apply([], np.empty((0, 3))).shape == (0,)
    assert noise.apply([0.5, 0.5], np.empty((2, 0))).shape == (2,)
    for p, rows in (([0.5], X[:2]), ([1.5], X[:1]), ([0.5], X[0])):
        with pytest.raises(InvalidInput):
            noise.apply(p, rows)
    with pytest.raises(InvalidInput):
        scale_for([], [], max_rise=0.1)
    with pytest.raises(InvalidInput):
        scale_for([1], [0.5], max_rise=0.0)


def test_neither_rounding_nor_noise_stops_a_student() -> None:
    """Serves a logistic model of 8 features to a student of the same kind, in plain numpy, with 2,000 questions."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=8)
    asked, judged = rng.normal(size=(2_000, 8)), rng.normal(size=(5_000, 8))

    def taught(answers: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        odds = logit(np.clip(answers, 0.005, 0.995))
        learned, *_ = np.linalg.lstsq(asked, odds, rcond=None)
        return float(((judged @ learned > 0) == (judged @ weights > 0)).mean())

    p = 1 / (1 + np.exp(-asked @ weights))
    assert taught(p) > 0.98
    assert taught(rounded(p, 1)) > 0.98
    assert taught(KeyedNoise(KEY, scale=0.5).apply(p, asked)) > 0.98
