"""Confidence sequences. Oracle: seeded simulation over sixty looks; formulas written out a second time."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import betaln

from vitok.errors import InvalidInput
from vitok.stats import bounded_mean_sequence, mean_sequence, rate_difference_sequence, rate_sequence

LOOKS = 60


def test_mean_sequence_by_its_formula() -> None:
    n, alpha, tuned = 700, 0.1, 400
    rho = math.sqrt((-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tuned)
    t = n * rho**2
    half = 2.0 * math.sqrt(2 * (t + 1) / (n**2 * rho**2) * math.log(math.sqrt(t + 1) / alpha))
    found = mean_sequence(n_obs=n, mean=5.0, variance=4.0, tuned_for=tuned, confidence_level=0.9)
    assert (found.lower, found.upper) == pytest.approx((5 - half, 5 + half))


def test_mean_sequence_holds_over_all_looks() -> None:
    rng, missed = np.random.default_rng(0), 0
    for _ in range(300):
        values = rng.exponential(size=LOOKS * 50)
        n = np.arange(1, LOOKS + 1) * 50
        means = np.cumsum(values)[n - 1] / n
        variances = np.cumsum(values**2)[n - 1] / n - means**2
        looks = [
            mean_sequence(n_obs=int(k), mean=m, variance=v, tuned_for=1000)
            for k, m, v in zip(n, means, variances, strict=True)
        ]
        missed += any(not look.lower <= 1.0 <= look.upper for look in looks)
    assert missed <= 15


def test_mean_sequence_of_nothing_and_bad_input() -> None:
    found = mean_sequence(n_obs=0, mean=math.nan, variance=math.nan, tuned_for=10)
    assert (found.lower, found.upper) == (-math.inf, math.inf)
    for parts in ({"variance": -1.0}, {"variance": math.nan}, {"n_obs": -1}, {"tuned_for": 0}):
        with pytest.raises(InvalidInput):
            mean_sequence(**{"n_obs": 5, "mean": 0.0, "variance": 1.0, "tuned_for": 5, **parts})  # type: ignore[arg-type]


def slow_bernstein(x: Any, alpha: float) -> tuple[float, float]:
    """The sequence of Waudby-Smith & Ramdas, one observation after the other."""
    mean, spread, total, weighted, cost, lower, upper = 0.5, 0.25, 0.0, 0.0, 0.0, 0.0, 1.0
    sum_x, sum_spread = 0.0, 0.0
    for t, value in enumerate(x, start=1):
        bet = min(math.sqrt(2 * math.log(2 / alpha) / (spread * t * math.log(1 + t))), 0.5)
        total, weighted = total + bet, weighted + bet * value
        cost += 4 * (value - mean) ** 2 * (-math.log(1 - bet) - bet) / 4
        half = (math.log(2 / alpha) + cost) / total
        lower, upper = max(lower, weighted / total - half), min(upper, weighted / total + half)
        sum_x += value
        mean = (0.5 + sum_x) / (t + 1)
        sum_spread += (value - mean) ** 2
        spread = (0.25 + sum_spread) / (t + 1)
    return lower, upper


def test_bounded_mean_by_its_formula_and_its_coverage() -> None:
    rng = np.random.default_rng(1)
    x = rng.beta(2, 5, 400)
    found = bounded_mean_sequence(x)
    assert (found.lower, found.upper) == pytest.approx(slow_bernstein(x, 0.05))
    # The running intersection contains the truth exactly where every look did.
    missed = 0
    for _ in range(300):
        found = bounded_mean_sequence(rng.beta(2, 5, 1000))
        missed += not found.lower <= 2 / 7 <= found.upper
    assert missed <= 15


def test_bounded_mean_at_the_edges() -> None:
    nothing = bounded_mean_sequence([])
    assert (nothing.lower, nothing.upper) == (0.0, 1.0)
    assert bounded_mean_sequence([1.0]).upper == 1.0
    assert bounded_mean_sequence(np.ones(2000)).lower > 0.95
    with pytest.raises(InvalidInput, match=r"values\[1\]"):
        bounded_mean_sequence([0.5, 1.5])


def test_rate_by_its_formula() -> None:
    def gap(p: float) -> float:
        return 20 * math.log(p) + 980 * math.log1p(-p) - betaln(20.5, 980.5) + betaln(0.5, 0.5) - math.log(0.05)

    found = rate_sequence(successes=20, n_obs=1000)
    assert found.lower == pytest.approx(brentq(gap, 1e-5, 0.02), rel=1e-6)
    assert found.upper == pytest.approx(brentq(gap, 0.02, 0.5), rel=1e-6)


def test_rate_holds_over_all_looks() -> None:
    rng, missed = np.random.default_rng(2), 0
    for _ in range(150):
        errors = np.cumsum(rng.binomial(50, 0.03, LOOKS))
        looks = [rate_sequence(successes=int(e), n_obs=50 * (i + 1)) for i, e in enumerate(errors)]
        missed += any(not look.lower <= 0.03 <= look.upper for look in looks)
    assert missed <= 8


def test_rate_at_the_edges() -> None:
    assert (rate_sequence(successes=0, n_obs=0).lower, rate_sequence(successes=0, n_obs=0).upper) == (0.0, 1.0)
    assert rate_sequence(successes=0, n_obs=100).lower == 0.0
    assert rate_sequence(successes=100, n_obs=100).upper == 1.0
    with pytest.raises(InvalidInput):
        rate_sequence(successes=2, n_obs=1)


def canary(
    rng: np.random.Generator, rates: tuple[float, float], share: float, per_look: int, outages: Any = 1.0
) -> dict[str, Any]:
    treatment = rng.binomial(per_look, share, LOOKS)
    control = per_look - treatment
    return {
        "control_successes": rng.binomial(control, np.minimum(rates[0] * outages, 1)),
        "control_n": control,
        "treatment_successes": rng.binomial(treatment, np.minimum(rates[1] * outages, 1)),
        "treatment_n": treatment,
    }


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_no_false_alarm_over_sixty_looks(share: float) -> None:
    # Evidence never decreases with looks, so the interval at the last look tells whether any look refuted 0.
    rng = np.random.default_rng(3)
    found = [rate_difference_sequence(**canary(rng, (0.02, 0.02), share, 200)) for _ in range(50)]
    assert sum(not f.lower <= 0 <= f.upper for f in found) <= 2


def test_an_outage_in_both_arms_is_no_evidence() -> None:
    rng = np.random.default_rng(4)
    found = []
    for _ in range(50):
        outages = rng.choice([0.2, 1.0, 10.0], LOOKS)
        found.append(rate_difference_sequence(**canary(rng, (0.02, 0.02), 0.1, 200, outages)))
    assert sum(not f.lower <= 0 <= f.upper for f in found) <= 2


@pytest.mark.parametrize(("share", "per_look"), [(0.1, 200), (0.3, 100), (0.5, 100)])
def test_a_bad_canary_is_caught(share: float, per_look: int) -> None:
    rng = np.random.default_rng(5)
    found = [rate_difference_sequence(**canary(rng, (0.02, 0.05), share, per_look)) for _ in range(40)]
    assert sum(f.lower > 0 for f in found) >= 38
    assert sum(not f.lower <= 0.03 <= f.upper for f in found) <= 2


def test_arms_swapped_turn_the_interval_around() -> None:
    data = canary(np.random.default_rng(6), (0.02, 0.05), 0.3, 100)
    swapped = {
        "control_successes": data["treatment_successes"],
        "control_n": data["treatment_n"],
        "treatment_successes": data["control_successes"],
        "treatment_n": data["control_n"],
    }
    one, other = rate_difference_sequence(**data), rate_difference_sequence(**swapped)
    assert (one.lower, one.upper, one.value) == pytest.approx((-other.upper, -other.lower, -other.value))


def test_difference_at_the_edges() -> None:
    def call(*parts: Any) -> Any:
        names = ("control_successes", "control_n", "treatment_successes", "treatment_n")
        return rate_difference_sequence(**dict(zip(names, parts, strict=True)))

    for nothing in (call([], [], [], []), call([1], [5], [0], [0])):
        assert math.isnan(nothing.value)
        assert (nothing.lower, nothing.upper) == (-1.0, 1.0)
    one = call([1], [100], [50], [100])
    assert (one.lower, one.upper, one.value) == (-1.0, 1.0, 0.49)
    extreme = call([0] * 20, [50] * 20, [50] * 20, [50] * 20)
    assert 0.9 < extreme.lower <= extreme.value <= extreme.upper == 1.0
    gaps = call([0, 2, 0, 2], [0, 100, 0, 100], [1, 0, 3, 0], [20, 0, 30, 0])
    assert gaps.lower <= gaps.value <= gaps.upper
    with pytest.raises(InvalidInput, match=r"treatment_successes\[0\]"):
        call([1], [2], [3], [2])
    with pytest.raises(InvalidInput, match="same length"):
        call([1], [2], [1, 1], [2, 2])
