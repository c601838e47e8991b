"""The floor of confidence: its bound holds on new rows, ties and hopeless models are handled."""

import math

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.guard import confidence_of, fit_floor


def rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = confidence_of(rng.random(n))
    return confidence, rng.random(n) < confidence


def test_the_bound_holds_on_new_rows_as_often_as_it_says() -> None:
    # The true error above a floor t is 1 - (1 + t) / 2, as confidence is uniform on [0.5, 1] and calibrated.
    broken, coverage = 0, []
    for seed in range(200):
        floor = fit_floor(*rows(2_000, seed), max_error=0.1, confidence_level=0.9)
        broken += (1 - floor.floor) / 2 > 0.1
        coverage.append(floor.coverage)
    assert broken <= 200 * 0.1
    # At best 40 % of the rows can be answered.
    assert 0.2 < np.mean(coverage) <= 0.4


def test_what_it_says_is_what_was_seen() -> None:
    confidence, correct = rows(5_000, 1)
    floor = fit_floor(confidence, correct, max_error=0.1)
    answered = floor.answers(confidence)
    assert answered.mean() == floor.coverage
    assert (~correct[answered]).mean() == floor.error
    assert floor.error < floor.error_bound <= 0.1
    assert not floor.answers([math.nan])[0]


def test_ties_go_together() -> None:
    confidence = np.repeat([0.9, 0.6], [3_000, 3_000])
    correct = np.ones(6_000)
    correct[3_000:4_500] = 0
    floor = fit_floor(confidence, correct, max_error=0.05)
    assert (floor.floor, floor.coverage) == (0.9, 0.5)


def test_always_right_and_never() -> None:
    assert fit_floor(np.ones(1_000), np.ones(1_000), max_error=0.05).coverage == 1.0
    never = fit_floor(np.ones(1_000), np.zeros(1_000), max_error=0.05)
    assert math.isinf(never.floor)
    assert not never.answers([1.0])[0]
    assert "no floor" in str(never)
    # Ten rows cannot show that errors are rare.
    assert math.isinf(fit_floor(np.ones(10), np.ones(10), max_error=0.01).floor)


def test_wrong_input() -> None:
    for confidence, correct, bound in (([], [], 0.1), ([0.5], [1, 1], 0.1), ([0.5], [1], 0.0), ([np.nan], [1], 0.1)):
        with pytest.raises(InvalidInput):
            fit_floor(confidence, correct, max_error=bound)
